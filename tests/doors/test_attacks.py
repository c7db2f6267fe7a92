"""The attacks of the corpus with an oracle: the database's own state, and every byte that a client got.

Run on a stack whose upstream role may write: if a refusal did not hold, the state would show it. The raw values
of masked columns are read past the doors; none may occur in what the agent was sent.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from policy.engine import decide
from tests.doors.mcp_calls import client, text
from tests.doors.wire_calls import errors, raw_client
from tests.policy.corpus import ROOT, Case, load_cases, policy_of
from tests.policy.sample import PATH, PRINCIPALS, facts
from tests.servers import found_binaries
from tests.stack import Stack, running_stack, use_policy
from wire.frontend import Bind, Execute, Parse, Sync

AGENT = "devin"
DEMO, CARD = "examples/policy.yaml", "tests/policy/policies/card.yaml"
# The columns whose raw values the agent may not see under each policy.
HIDDEN = {DEMO: ("ssn", "card", "email", "notes::text"), CARD: ("card",)}

CORPUS = [case for case in load_cases() if case.path == tuple(PATH) and case.who == AGENT]
REFUSED = {policy: [case for case in CORPUS if case.decision == "deny" and case.policy == policy] for policy in HIDDEN}


def reads(case: Case) -> bool:
    """Whether the case is an allowed statement that changes nothing."""
    decision = decide(policy_of(case.policy), PRINCIPALS[case.who], facts(case.path), case.sql.encode())
    return case.decision == "allow" and decision.analysis is not None and not decision.analysis.effects.writes


MASKED = [
    case
    for case in CORPUS
    if case.policy in HIDDEN and "customer" in case.sql.lower() and "tickets" not in case.sql and reads(case)
]


@pytest.fixture(scope="module", params=found_binaries(), ids=lambda folder: folder.parent.name)
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PG_BIN", str(request.param))
        with running_stack(tmp_path_factory.mktemp("attacks")) as stack:
            yield stack


class Client:
    """libpq as psql uses it: whole texts by the simple protocol, however many statements they hold."""

    def __init__(self, stack: Stack) -> None:
        self._connection = psycopg.connect(stack.wire_dsn(AGENT), autocommit=True)
        self._notices: list[bytes] = []
        self._connection.pgconn.notice_handler = lambda notice: self._notices.append(_errors(notice))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def run(self, sql: str) -> tuple[bool, bytes]:
        """Whether the last statement succeeded, and every byte that came back."""
        connection = self._connection.pgconn
        result = connection.exec_(sql.encode())
        got = [*self._notices, _errors(result)]
        got += [
            result.get_value(row, column) or b"" for row in range(result.ntuples) for column in range(result.nfields)
        ]
        if result.status == ExecStatus.COPY_OUT:
            while (copied := connection.get_copy_data(1))[0] >= 0:
                got.append(bytes(copied[1]))
                if not copied[0]:
                    self._wait()
            while connection.is_busy():
                self._wait()
            while (end := connection.get_result()) is not None:
                got.append(_errors(end))
        self._notices.clear()
        assert connection.transaction_status == TransactionStatus.IDLE, sql
        return not result.error_message, b"\n".join(got)

    def _wait(self) -> None:
        """For more to read: these calls of libpq would hold up the gateway, which runs in a thread beside us."""
        assert select.select([self._connection.pgconn.socket], [], [], 10)[0], "the wire door is silent"
        self._connection.pgconn.consume_input()


def _errors(result: PGresult) -> bytes:
    return b"\n".join(filter(None, (result.error_field(field) for field in DiagnosticField)))


def state(stack: Stack) -> dict[str, object]:
    """Everything an attack could change: each table's rows, the catalogs' user rows, roles, settings, other files."""
    tables = stack.direct(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND c.oid >= 16384 AND n.nspname IN ('public', 'hr') ORDER BY 1"
    )
    found: dict[str, object] = {
        name: stack.direct(f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {name} t")
        for (name,) in tables
    }
    for catalog, condition in (
        ("pg_class", "relkind NOT IN ('t', 'i')"), ("pg_attribute", "attnum > 0"), ("pg_proc", "true"),
        ("pg_namespace", "nspname !~ '^pg_(toast_)?temp'"), ("pg_trigger", "true"), ("pg_extension", "true"),
        ("pg_largeobject_metadata", "true"),
    ):  # fmt: skip
        key = "attrelid" if catalog == "pg_attribute" else "oid"
        found[catalog] = stack.direct(
            f"SELECT count(*), sum(hashtext({catalog}.xmin::text || {key})) FROM {catalog}"
            f" WHERE {key} >= 16384 AND {condition}"
        )
    found["roles"] = stack.direct("SELECT rolname, rolsuper, rolconfig FROM pg_roles ORDER BY 1")
    found["settings"] = stack.direct(
        "SELECT name, setting FROM pg_settings WHERE source NOT IN ('default', 'session', 'client') ORDER BY 1"
    )
    return found


def secrets_of(stack: Stack, policy: str) -> list[bytes]:
    """The raw values that an agent may never see, less those too short to be told from chance."""
    columns = HIDDEN[policy]
    rows = stack.direct(f"SELECT {', '.join(columns)} FROM customers")
    rows += stack.direct("SELECT ssn FROM hr.employees") if policy == DEMO else []
    return sorted({value.encode() for row in rows for value in row if value is not None and len(value) >= 9})


def leaked(output: bytes, secrets: list[bytes]) -> list[bytes]:
    return [secret for secret in secrets if secret in output]


def test_the_corpus_is_large_enough() -> None:
    assert sum(map(len, REFUSED.values())) >= 300
    assert len(MASKED) >= 36


@pytest.mark.parametrize("policy", HIDDEN)
async def test_no_refused_attack_changes_anything_or_shows_a_masked_value(victim: Stack, policy: str) -> None:
    use_policy(victim, ROOT / policy)
    secrets, before = secrets_of(victim, policy), state(victim)
    async with client(victim, AGENT) as mcp:
        for case in REFUSED[policy]:
            answer = await mcp.call_tool("query", {"sql": case.sql})
            assert answer.is_error, case
            assert not leaked(text(answer).encode(), secrets), case
    with Client(victim) as wire:
        for case in REFUSED[policy]:
            succeeded, got = wire.run(case.sql)
            assert not succeeded, case
            assert not leaked(got, secrets), case
    after = state(victim)
    assert after == before, {key: (before.get(key), after[key]) for key in after if after[key] != before.get(key)}


async def test_an_allowed_read_of_a_masked_relation_shows_no_raw_value(victim: Stack) -> None:
    for policy in HIDDEN:
        use_policy(victim, ROOT / policy)
        secrets = secrets_of(victim, policy)
        async with client(victim, AGENT) as mcp:
            for case in (case for case in MASKED if case.policy == policy):
                # What a statement leaves in a session must not meet the next one.
                with Client(victim) as wire:
                    _, got = wire.run(case.sql)
                assert not leaked(got, secrets), case
                answer = await mcp.call_tool("query", {"sql": case.sql})
                assert not leaked((text(answer) + str(answer.structured_content)).encode(), secrets), case


HELD = (
    """CREATE TABLE held (code text DEFAULT 'none', n int) PARTITION BY LIST (code);
    CREATE TABLE held_one PARTITION OF held FOR VALUES IN ('held-secret-one');
    CREATE TABLE held_rest PARTITION OF held DEFAULT;
    INSERT INTO held VALUES ('held-secret-one', 1), ('held-secret-two', 2);
    CREATE TABLE filled (n int); INSERT INTO filled VALUES (1);
    ALTER TABLE filled ADD COLUMN code text DEFAULT 'held-secret-six';
    ALTER TABLE filled ALTER COLUMN code DROP DEFAULT;
    CREATE TABLE keyed (code text PRIMARY KEY); INSERT INTO keyed VALUES ('held-secret-key');
    CREATE TABLE referring (n int, code text REFERENCES keyed);
    CREATE VIEW bounds AS SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bound FROM pg_class c;
    CREATE VIEW constraints AS SELECT pg_get_partition_constraintdef(i.inhrelid) AS bound FROM pg_inherits i;
    CREATE VIEW fills AS SELECT to_jsonb(a) AS all FROM pg_attribute a;
    CREATE TABLE tied (n int PRIMARY KEY, lower_end int, amount int, kind int, CHECK (lower_end <= amount),
      UNIQUE (kind, amount));
    INSERT INTO tied VALUES (1, 0, 424242, 1), (2, 0, 424242, 2);
    CREATE VIEW refers AS SELECT n, code AS c FROM referring;
    CREATE VIEW tied_ends AS SELECT n, lower_end AS e FROM tied;
    CREATE DOMAIN code AS text; CREATE TABLE of_domain (c code); INSERT INTO of_domain VALUES ('held-secret-dom');
    CREATE TABLE upper (n int PRIMARY KEY); INSERT INTO upper VALUES (1);
    CREATE TABLE below (n int NOT NULL REFERENCES upper ON DELETE SET NULL, code text);
    INSERT INTO below VALUES (1, 'held-secret-row');
    CREATE FUNCTION spoil() RETURNS void LANGUAGE sql AS 'UPDATE below SET n = NULL';
    CREATE FUNCTION spoils() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM spoil(); RETURN NEW; END';
    CREATE TABLE watched (n int); CREATE TRIGGER t BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION spoils();
    CREATE TABLE late (code text REFERENCES keyed DEFERRABLE INITIALLY DEFERRED);
    INSERT INTO late VALUES ('held-secret-key');
    CREATE TABLE owner_of (n int PRIMARY KEY, m int); INSERT INTO owner_of VALUES (1), (2);
    CREATE TABLE middle (n int PRIMARY KEY REFERENCES owner_of ON UPDATE CASCADE ON DELETE CASCADE);
    CREATE TABLE owned (held int REFERENCES middle ON DELETE CASCADE); INSERT INTO middle VALUES (1), (2);
    INSERT INTO owned VALUES (2); CREATE VIEW owners AS SELECT n AS o, m FROM owner_of;
    CREATE VIEW within AS SELECT n, lower_end FROM tied WHERE lower_end <= amount;
    CREATE VIEW checked AS SELECT n, lower_end AS e FROM within WHERE n > 0 WITH CHECK OPTION;
    CREATE TABLE policed (n int PRIMARY KEY, lower_end int, amount int); INSERT INTO policed VALUES (1, 0, 424242);
    ALTER TABLE policed ENABLE ROW LEVEL SECURITY; CREATE POLICY r ON policed FOR SELECT USING (true);
    CREATE POLICY u ON policed FOR UPDATE USING (true) WITH CHECK (lower_end <= amount);
    CREATE TABLE all_of (n int PRIMARY KEY); INSERT INTO all_of VALUES (1), (2), (3);
    CREATE TABLE few (n int REFERENCES all_of ON DELETE CASCADE); INSERT INTO few VALUES (1), (2);
    CREATE FUNCTION refer(c text) RETURNS void LANGUAGE sql BEGIN ATOMIC INSERT INTO referring VALUES (1, c); END;
    CREATE TYPE pair AS (code text); CREATE TABLE typed OF pair; INSERT INTO typed VALUES ('held-secret-typ');
    GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
    DO $$ DECLARE who name := (SELECT rolname FROM pg_roles WHERE rolname LIKE 'countersign%' LIMIT 1);
      BEGIN EXECUTE format('ALTER DOMAIN code OWNER TO %1$I; ALTER TYPE pair OWNER TO %1$I;
        ALTER TABLE typed OWNER TO %1$I', who); END $$""",
    """DROP FUNCTION refer; DROP VIEW bounds, constraints, fills, tied_ends, refers, checked, within, owners;
    DROP TABLE held, filled, late, referring, keyed, tied, of_domain, below, upper, watched, typed, owned, middle,
      owner_of, policed, few, all_of;
    DROP FUNCTION spoil, spoils; DROP DOMAIN code; DROP TYPE pair""",
)
HELD_POLICY = """
rules:
  - {name: all, effect: allow, actions: [select, insert, update, delete, truncate, create, alter, drop]}
  - {name: trusted, effect: allow, actions: [call], functions: ["public.spoil*"]}
  - {name: opened, effect: allow, actions: [call], functions: [public.refer], bodies: analysed}
rows:
  - {relations: [public.few], filter: "n = 1"}
masks:
  - {columns: ["public.owned.held"], with: null}
  - {columns: ["public.policed.amount"], with: null}
  - {columns: ["public.held*.code"], with: redact}
  - {columns: ["public.filled.code"], with: redact}
  - {columns: ["public.keyed.code"], with: redact}
  - {columns: ["public.tied.amount"], with: null}
  - {columns: ["public.of_domain.c"], with: redact}
  - {columns: ["public.below.code"], with: redact}
  - {columns: ["public.typed.code"], with: redact}
"""
SHOW_HELD = (
    "SELECT pg_get_expr(relpartbound, oid) FROM pg_class", "SELECT relpartbound::text FROM pg_class",
    "SELECT to_jsonb(c) FROM pg_class c", "SELECT j FROM (pg_class c CROSS JOIN (SELECT 1) x) AS j", "TABLE pg_class",
    "SELECT x FROM pg_class NATURAL JOIN (SELECT 1) x", "SELECT * FROM bounds", "SELECT * FROM constraints",
    "SELECT pg_get_partition_constraintdef('held_one'::regclass)", "SELECT attmissingval FROM pg_attribute",
    "SELECT (inhrelid).pg_get_partition_constraintdef FROM pg_inherits", "SELECT a FROM pg_attribute a",
    "SELECT * FROM fills", "CREATE TABLE public.guess PARTITION OF held FOR VALUES IN ('held-secret-two')",
    "CREATE TABLE public.guess PARTITION OF held FOR VALUES IN ('held-secret-one', 'x')",
    "INSERT INTO referring VALUES (1, 'no')", "UPDATE referring SET code = 'no'",
    "INSERT INTO refers VALUES (1, 'no')", "INSERT INTO refers (c) VALUES ('no')",
    "UPDATE tied SET lower_end = 424243 WHERE n = 1", "UPDATE tied_ends SET e = 424243 WHERE n = 1",
    "UPDATE tied SET kind = 3", "INSERT INTO tied (n) VALUES (1) ON CONFLICT (n) DO UPDATE SET lower_end = 424243",
    "ALTER DOMAIN code ADD CONSTRAINT c CHECK (VALUE <> 'held-secret-dom')", "DELETE FROM upper", "SELECT spoil()",
    "ALTER TYPE pair RENAME ATTRIBUTE code TO other CASCADE", "SELECT * FROM typed",
    "INSERT INTO watched VALUES (1)", "DELETE FROM keyed; SELECT 1",
    "BEGIN; DELETE FROM keyed; COMMIT", "DELETE FROM keyed; SET CONSTRAINTS ALL IMMEDIATE",
)  # fmt: skip


# Whether they succeed, or what goes with them, would tell.
TELL_HELD = (
    "DELETE FROM owner_of WHERE n = 2", "UPDATE owner_of SET n = 3 WHERE n = 2", "DELETE FROM owners WHERE o = 2",
    "UPDATE owners SET o = 3 WHERE o = 2", "DELETE FROM middle", "MERGE INTO owner_of USING upper ON true WHEN MATCHED"
    " THEN DELETE", "UPDATE checked SET e = 424243 WHERE n = 1", "INSERT INTO checked VALUES (3, 4)",
    "UPDATE policed SET lower_end = 424243 WHERE n = 1", "SELECT refer('no')",
    "TRUNCATE few", "TRUNCATE all_of CASCADE", "DELETE FROM all_of WHERE n = 2",
    "WITH d AS (DELETE FROM all_of WHERE n = 3 RETURNING n) SELECT n FROM d",
)  # fmt: skip
TELL_NOTHING = (
    "UPDATE owner_of SET m = 3 WHERE n = 2", "UPDATE owners SET m = 4 WHERE o = 2", "INSERT INTO all_of VALUES (4)",
)  # fmt: skip


async def test_catalogs_and_keys_tell_no_masked_value(victim: Stack, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(HELD_POLICY)
    victim.direct(HELD[0])
    try:
        use_policy(victim, path)
        # As bytes of a tree, bytes are numbers: `held-secret` begins with 104 101 108 100 45.
        secrets = [b"held-secret", b"104 101 108 100 45", b"would be violated", b"would overlap", b"not present"]
        secrets += [b"tied_check", b"duplicate key", b"that violate"]
        with Client(victim) as wire:
            assert wire.run("SELECT FROM typed")[0]  # a name that is not known has the catalog asked again
        async with client(victim, AGENT) as mcp:
            for sql in SHOW_HELD:
                with Client(victim) as wire:
                    _, got = wire.run(sql)
                answer = await mcp.call_tool("query", {"sql": sql})
                sent = got.replace(sql.encode(), b"") + str(answer.structured_content).encode()
                assert not leaked(sent, secrets), (sql, sent)
            for sql in TELL_HELD:
                with Client(victim) as wire:
                    succeeded, got = wire.run(sql)
                assert not succeeded, sql
                assert b"masked for you" in got or b"only some rows" in got, (sql, got)
                assert (await mcp.call_tool("query", {"sql": sql})).is_error, sql
            with Client(victim) as wire:
                for sql in TELL_NOTHING:
                    assert wire.run(sql)[0], sql
        with raw_client(victim, AGENT) as wire:
            # What is deferred fails at Sync, which has no text.
            heard = wire.cycle(Parse("", b"DELETE FROM keyed"), Bind("", ""), Execute(""), Sync())
            assert [code for code, _ in errors(heard)] == ["23503"]
            assert "held-secret" not in repr(heard)
        for table, line in (("held", "held_one"), ("held_one", "Partition of: held"), ("orders", "2026-03-01")):
            told = victim.psql(AGENT, f"\\d{'+' if table != 'held_one' else ''} {table}")
            assert line in told.stdout, told
            assert not told.stderr, told
    finally:
        use_policy(victim, ROOT / DEMO)
        victim.direct(HELD[1])
