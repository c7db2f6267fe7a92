"""pgcli's own executor and completion queries through one door: prints what they found as JSON. Run by test_pgcli.py.

Arguments: host, port, user, database; the password comes from PGPASSWORD.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import psycopg
from pgcli.pgexecute import PGExecute
from pgspecial.main import PGSpecial

host, port, user, database = sys.argv[1:5]
COMPLETIONS = (
    "search_path", "schemata", "tables", "views", "table_columns", "view_columns", "databases", "foreignkeys",
    "functions", "datatypes", "get_timezone",
)  # fmt: skip


def answered(executor: PGExecute, line: str) -> list[Any]:
    """What pgcli would show for a line that somebody typed: rows, headers, status; or its error."""
    shown: list[Any] = []
    for title, rows, headers, status, _, success, _ in executor.run(line, pgspecial=PGSpecial()):
        found = rows if isinstance(rows, str) or rows is None else [list(row) for row in rows]
        shown.append([title, found, headers, status, success])
    return shown


def main() -> None:
    """Everything, as one JSON object."""
    executor = PGExecute(database, user, os.environ["PGPASSWORD"], host, port)
    found: dict[str, Any] = {name: str(_listed(getattr(executor, name)())) for name in COMPLETIONS}
    found["view"] = executor.view_definition("public.customer_orders")
    for line in ("\\dt", "\\d tickets", "\\dv", "\\df", "\\dn", "\\l"):
        found[line] = str(answered(executor, line))
    found["masked"] = answered(executor, "SELECT ssn, card FROM customers WHERE id = 5; SELECT 1")
    for name, line in (("position", "SELECT id, nme FROM tickets"), ("refused", "DROP TABLE orders")):
        try:
            found[name] = answered(executor, line)
        except psycopg.Error as error:
            found[name] = str(error)
    json.dump(found, sys.stdout, default=str)


def _listed(found: Any) -> Any:
    """pgcli gives some as generators, and functions as objects of its own."""
    return found if isinstance(found, str) else [vars(row) if hasattr(row, "__dict__") else row for row in found]


main()
