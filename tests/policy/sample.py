"""The sample shop's catalog as a file, so that the policy tests need no server.

`sample_catalog.json` was read from a PostgreSQL 18 with `server/sample/schema.sql` by `gateway.catalog`;
`dump` writes it again. Columns of views carry the origins that the server itself described.
"""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

from policy.catalog import Body, Catalog, Column, Function, Relation, RelationKind, Volatility
from policy.model import Facts, Principal, PrincipalKind
from policy.pseudonyms import MaskKey

_FILE = Path(__file__).with_name("sample_catalog.json")
_ISSUER = "https://issuer.example"
PATH = ("pg_catalog", "public")

PRINCIPALS = {
    "devin": Principal("devin", _ISSUER, PrincipalKind.AGENT, frozenset(("ai-agents",)), on_behalf_of="ada"),
    "ada": Principal("ada", _ISSUER, PrincipalKind.HUMAN, frozenset(("developers",)), email="ada@example.com"),
    "grace": Principal("grace", _ISSUER, PrincipalKind.HUMAN, frozenset(("dba",)), email="grace@example.com"),
}


def dump(catalog: Catalog) -> str:
    """A snapshot as JSON, one relation or function name per line."""
    relations = [
        [
            r.oid, r.schema, r.name, r.kind.value,
            [[c.number, c.name, c.type, c.type_oid, c.collation, c.origin] for c in r.columns],
            sorted(r.family) if len(r.family) > 1 else [],
            sorted(r.reads) if r.oid >= 16384 else [],
            r.rules, r.triggers, sorted(r.bound_by), sorted(r.children),
        ]
        for r in catalog.relations.values()
    ]  # fmt: skip
    functions = [
        [
            schema, name,
            [
                [f.oid, f.kind, f.volatility.value, f.language, f.arguments] + ([astuple(f.body)] if f.body else [])
                for f in overloads
            ],
        ]
        for (schema, name), overloads in sorted(catalog.functions.items())
    ]  # fmt: skip
    lines = [
        f'"server_version": {catalog.server_version}',
        f'"schemas": {json.dumps(sorted(catalog.schemas))}',
        f'"server_types": {json.dumps(sorted(catalog.server_types))}',
        '"relations": [\n' + ",\n".join(map(json.dumps, relations)) + "]",
        '"functions": [\n' + ",\n".join(map(json.dumps, functions)) + "]",
    ]
    return "{" + ",\n".join(lines) + "}\n"


def read(text: str) -> Catalog:
    """The snapshot that `dump` wrote."""
    data: dict[str, Any] = json.loads(text)
    relations = {}
    for oid, schema, name, kind, columns, family, reads, rules, triggers, bound_by, children in data["relations"]:
        relations[oid] = Relation(
            oid=oid,
            schema=schema,
            name=name,
            kind=RelationKind(kind),
            columns=tuple(
                Column(number, column, type_, type_oid, collation, tuple(origin) if origin else None)
                for number, column, type_, type_oid, collation, origin in columns
            ),
            family=frozenset(family or (oid,)),
            reads=frozenset(reads),
            rules=rules,
            triggers=triggers,
            bound_by=frozenset(bound_by),
            children=frozenset(children),
        )
    functions = {
        (schema, name): tuple(
            Function(oid, schema, name, kind, Volatility(volatility), language, arguments, body=_body(*body))
            for oid, kind, volatility, language, arguments, *body in overloads
        )
        for schema, name, overloads in data["functions"]
    }
    return Catalog(
        epoch="sample",
        server_version=data["server_version"],
        relations=relations,
        functions=functions,
        schemas=frozenset(data["schemas"]),
        server_types=frozenset(data["server_types"]),
    )


def _body(fields: list[Any] | None = None) -> Body | None:
    if fields is None:
        return None
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in fields]
    return Body(*values)


MASK_KEY = MaskKey(b"a key of the tests, and of nobody else")
CATALOG = read(_FILE.read_text(encoding="utf-8"))


def facts(path: tuple[str, ...] = PATH, catalog: Catalog = CATALOG, connection: str = "shop") -> Facts:
    """Facts on the sample shop."""
    return Facts(connection, catalog, path, mask_key=MASK_KEY)
