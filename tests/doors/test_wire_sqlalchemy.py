"""SQLAlchemy through the wire door: what reflection finds is what it finds directly, and sessions behave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import URL, Engine, Inspector, MetaData, create_engine, inspect, text
from sqlalchemy.exc import ProgrammingError

from tests.stack import Stack


@contextmanager
def engine_of(host: str, port: int, user: str, password: str, database: str, **more: str) -> Iterator[Engine]:
    engine = create_engine(URL.create("postgresql+psycopg", user, password, host, port, database), **more)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture(scope="module")
def direct(stack: Stack) -> Iterator[Engine]:
    upstream = stack.demo.config.connections[0]
    with engine_of(upstream.host, upstream.port, upstream.user, upstream.password, upstream.database) as engine:
        yield engine


@pytest.fixture(scope="module")
def agent(stack: Stack) -> Iterator[Engine]:
    with engine_of(stack.host, stack.port, "devin", stack.tokens["devin"], stack.database) as engine:
        yield engine


def _all(inspector: Inspector) -> dict[str, object]:
    """Every multi-table question of the reflection API, in the schema of the sample shop."""
    from sqlalchemy.engine.reflection import ObjectKind

    found: dict[str, object] = {
        "schemas": inspector.get_schema_names(),
        "tables": inspector.get_table_names(),
        "views": inspector.get_view_names(),
        "materialized": inspector.get_materialized_view_names(),
        "sequences": inspector.get_sequence_names(),
        "definitions": [inspector.get_view_definition(name) for name in inspector.get_view_names()],
    }
    for question in ("columns", "pk_constraint", "foreign_keys", "indexes", "unique_constraints", "check_constraints",
                     "table_comment", "table_options"):  # fmt: skip
        found[question] = repr(sorted(getattr(inspector, f"get_multi_{question}")(kind=ObjectKind.ANY).items()))
    return found


def test_reflection_finds_what_it_finds_directly(agent: Engine, direct: Engine) -> None:
    through, plain = _all(inspect(agent)), _all(inspect(direct))
    assert through == plain
    assert "customers" in str(plain["tables"])


def test_a_reflected_table_can_be_read_and_is_masked(stack: Stack, agent: Engine) -> None:
    tables = MetaData()
    tables.reflect(agent, only=["customers", "orders", "tickets"])
    customers = tables.tables["customers"]
    with agent.connect() as connection:
        row = connection.execute(customers.select().where(customers.c.id == 1)).one()
    [(ssn, name)] = stack.direct("SELECT ssn, name FROM customers WHERE id = 1")
    assert row.ssn == f"*******{ssn[-4:]}"
    assert row.name == name


@pytest.mark.parametrize(
    "level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "READ UNCOMMITTED", "AUTOCOMMIT"]
)
def test_isolation_levels_are_in_force(agent: Engine, level: str) -> None:
    with agent.connect().execution_options(isolation_level=level) as connection:
        said = connection.execute(text("SHOW transaction_isolation")).scalar_one()
    assert said == ("read committed" if level == "AUTOCOMMIT" else level.lower())


def test_a_pool_gives_back_connections_that_were_refused_something(stack: Stack) -> None:
    with engine_of(stack.host, stack.port, "devin", stack.tokens["devin"], stack.database) as engine:
        for _ in range(3):
            with engine.connect() as connection, pytest.raises(ProgrammingError, match="agents-never-drop"):
                connection.execute(text("DROP TABLE orders"))
            with engine.connect() as connection:
                assert connection.execute(text("SELECT 1")).scalar_one() == 1
