"""Puts the sample shop into a running PostgreSQL."""

from __future__ import annotations

from importlib import resources

from server.postgres import Postgres
from server.sample.rows import copy_script

DATABASE = "shop"
GATEWAY_ROLE = "countersign_gateway"


def load_sample(postgres: Postgres, gateway_password: str) -> None:
    """Create database, roles, schema and rows, in about a second. Raises PostgresError.

    `gateway_password` becomes the password of the role that the gateway logs in with; letters, digits,
    `-` and `_` only.
    """
    if not gateway_password.replace("-", "").replace("_", "").isalnum():
        raise ValueError("the gateway's password may hold letters, digits, `-` and `_` only")
    postgres.run_script(f"CREATE DATABASE {DATABASE};")
    schema = resources.files("server.sample").joinpath("schema.sql").read_text(encoding="utf-8")
    script = f"\\set gateway_password {gateway_password}\nBEGIN;\n{schema}\n{copy_script()}COMMIT;\n"
    postgres.run_script(script, database=DATABASE)
