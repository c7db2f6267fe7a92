"""Mask expressions on real servers: each has exactly its column's type, and none fails on any value."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from base64 import b64encode
from collections.abc import Iterator
from decimal import Decimal

import psycopg
import pytest

from gateway import catalog as reader
from gateway.model import Connection
from policy.buckets import Unit
from policy.catalog import Catalog, Column
from policy.masks import Mask, MaskKind, UnmaskableError, expression
from policy.patterns import parse_pattern
from policy.pseudonyms import MaskKey
from server.postgres import SUPERUSER, Postgres
from tests.e2e.test_postgres import connect
from tests.servers import found_binaries
from wire.upstream import Factory

ANY = parse_pattern("*", 3, "")
KEY = MaskKey(bytes(range(32)))

NULL, REDACT = Mask(ANY, MaskKind.NULL), Mask(ANY, MaskKind.REDACT)
PARTIAL = Mask(ANY, MaskKind.PARTIAL, keep_last=2)
HASH = Mask(ANY, MaskKind.HASH, pool="p")
TEN, WEEK = Mask(ANY, MaskKind.RANGE, size=Decimal(10)), Mask(ANY, MaskKind.RANGE, days=7)
MONTH = Mask(ANY, MaskKind.TRUNCATE, unit=Unit.MONTH)
KINDS = [NULL, REDACT, PARTIAL, HASH, TEN, WEEK, MONTH]

SCHEMA = r"""
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN code AS varchar(30) COLLATE "C";
CREATE DOMAIN inner_code AS code;
CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%');
CREATE DOMAIN needed AS text NOT NULL;
CREATE DOMAIN tags AS text[];
DO $do$ BEGIN
  CREATE COLLATION soft (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
EXCEPTION WHEN feature_not_supported THEN  -- a server that was built without ICU
  CREATE COLLATION soft FROM "C";
END $do$;
CREATE TABLE every (
  a_text text, a_varchar varchar(12), a_short varchar(5), a_char char(11), a_name name, a_soft text COLLATE soft,
  a_c text COLLATE "C", an_int int, a_small smallint, a_big bigint, a_numeric numeric(5,2), a_free numeric,
  a_real real, a_double double precision, a_date date, a_stamp timestamp(0), a_stamptz timestamptz,
  a_uuid uuid, a_bytea bytea, a_json json, a_jsonb jsonb, an_enum mood, a_bool bool, texts text[],
  varchars varchar(12)[], ints int[], dates date[], moods mood[], a_code inner_code, an_email email,
  a_needed needed, a_tags tags, an_inet inet, bytes bytea[]
);
INSERT INTO every VALUES
  ('a\b''c', 'abc', 'abc', '123-45-6789', 'name', 'Soft', 'c', 2147483647, -32768, -9223372036854775808, 999.99,
   'NaN', 'Infinity', 1.7976931348623157e308, 'infinity', '-infinity', 'infinity', gen_random_uuid(), '\x00ff',
   '{"a": 1}', '{"a": 1}', 'ok', true, ARRAY['one', NULL, 'three'], ARRAY['one'], ARRAY[15, NULL],
   ARRAY[date '2026-02-17'],
   ARRAY['ok'::mood], 'code', 'a@b', 'x', ARRAY['t'], '10.0.0.1', ARRAY['\x01'::bytea]),
  ('', '', '', '', '', '', '', -2147483648, 32767, 9223372036854775807, -999.99, '-1e300', 'NaN', '-Infinity',
   '4713-01-01 BC', '4713-01-01 BC', '4713-01-01 BC', gen_random_uuid(), '', '[]', '[]', 'sad', false, '{}', '{}', '{}',
   '{}', '{}', '', '@', '', '{}', '::1', '{}'),
  ('z', 'z', 'z', 'z', 'z', 'z', 'z', 47, 47, 47, 47.11, 47.11, 47.11, 47.11, '5874897-12-31', '294276-12-31 23:59:59',
   '294276-12-31 23:59:59+00', gen_random_uuid(), 'z', '1', '1', 'ok', true, '{{a,b},{c,d}}', NULL, '{47}',
   '{infinity}', NULL,
   'z', '@', 'z', NULL, '1.2.3.4', NULL);
INSERT INTO every (a_needed, a_date, a_stamp, a_stamptz) VALUES
  ('n', '2026-02-17', '2026-02-17 10:00', '2026-02-17 23:30:00+00');
"""


@pytest.fixture(scope="module", params=found_binaries(), ids=lambda folder: f"{folder.parent.name}")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("types"), bin_folder=request.param) as running:
        running.run_script(SCHEMA)
        yield running


@pytest.fixture(scope="module")
def catalog(server: Postgres) -> Catalog:
    async def load() -> Catalog:
        upstream = await Factory().connect(
            Connection("types", server.host, server.port, "postgres", SUPERUSER, server.password),
            application_name="test",
        )
        try:
            return await reader.load(upstream)
        finally:
            await upstream.disconnect()

    return asyncio.run(load())


def columns(catalog: Catalog) -> dict[str, Column]:
    relation = catalog.relation("public", "every")
    assert relation is not None
    return {column.name: column for column in relation.columns}


def _possible(catalog: Catalog) -> list[tuple[Mask, Column, str]]:
    found = []
    for mask in KINDS:
        for column in columns(catalog).values():
            try:
                found.append((mask, column, expression((mask,), column, KEY.subkey)))
            except UnmaskableError:
                continue
    return found


def test_every_expression_has_exactly_the_type_of_its_column(server: Postgres, catalog: Catalog) -> None:
    made = _possible(catalog)
    assert len(made) >= 60
    with connect(server) as connection:
        for mask, column, sql in made:
            connection.execute(f'CREATE TEMP VIEW masked AS SELECT {sql} AS "{column.name}" FROM every')
            asked = (
                "SELECT format_type(a.atttypid, a.atttypmod), a.attcollation FROM pg_attribute a "
                "WHERE a.attrelid = %s::regclass AND a.attname = %s"
            )
            ours = connection.execute(asked, ("pg_temp.masked", column.name)).fetchall()
            its = connection.execute(asked, ("public.every", column.name)).fetchall()
            assert ours == its, (mask.kind, column.name)
            connection.execute("DROP VIEW pg_temp.masked")


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati"])
def test_no_expression_fails_on_any_value_or_is_volatile(server: Postgres, catalog: Catalog, zone: str) -> None:
    with connect(server) as connection:
        connection.execute(f"SET timezone = '{zone}'")
        connection.execute(
            "SET datestyle = 'German, DMY'; SET intervalstyle = 'sql_standard'; SET bytea_output = 'escape'"
        )
        for mask, column, sql in _possible(catalog):
            rows = connection.execute(f'SELECT "{column.name}"::text, ({sql})::text FROM every').fetchall()
            for raw, masked in rows:
                if raw is None:
                    assert masked is None or mask is REDACT, (mask.kind, column.name)
                elif mask in (HASH, REDACT) and raw not in ("", "{}"):
                    assert masked != raw, (mask.kind, column.name)


def masked(server: Postgres, catalog: Catalog, mask: Mask, column: str, zone: str = "UTC") -> list[object]:
    sql = expression((mask,), columns(catalog)[column], KEY.subkey)
    with connect(server) as connection:
        connection.execute(f"SET timezone = '{zone}'")
        return [row[0] for row in connection.execute(f"SELECT ({sql})::text FROM every").fetchall()]


def test_hash_is_hmac_sha256_under_the_key_of_its_pool(server: Postgres, catalog: Catalog) -> None:
    key = hmac.digest(KEY.secret, b"countersign hash mask\0p", "sha256")
    digest = hmac.new(key, rb"a\b'c", hashlib.sha256).digest()
    token = b64encode(digest, b"-_").decode()
    assert masked(server, catalog, HASH, "a_text")[0] == token[:22]
    uuid = Mask(ANY, MaskKind.HASH, pool="q")
    assert masked(server, catalog, uuid, "a_text")[0] != token[:22]


def test_equal_values_of_several_types_stay_joinable(server: Postgres, catalog: Catalog) -> None:
    whole = masked(server, catalog, HASH, "a_text")[2]
    assert isinstance(whole, str)
    assert masked(server, catalog, HASH, "a_varchar")[2] == whole[:12]
    assert masked(server, catalog, HASH, "a_char")[2] == whole[:11]
    assert masked(server, catalog, HASH, "a_soft")[2] == whole


@pytest.mark.parametrize(
    ("mask", "column", "expected"),
    [
        (TEN, "an_int", ["2147483640", "-2147483640", "40", None]),
        (TEN, "a_small", ["-32760", "32760", "40", None]),
        (TEN, "a_numeric", ["990.00", "-990.00", "40.00", None]),
        (TEN, "a_real", [None, None, "40", None]),
        (TEN, "ints", ["{10,NULL}", "{}", "{40}", None]),
        (MONTH, "a_date", [None, None, None, "2026-02-01"]),
        (WEEK, "a_date", [None, None, None, "2026-02-16"]),
        (MONTH, "a_stamptz", [None, None, None, "2026-02-01 00:00:00+00"]),
        (WEEK, "a_stamp", [None, None, None, "2026-02-16 00:00:00"]),
        (
            REDACT,
            "texts",
            ["{[redacted],[redacted],[redacted]}", "{}", "{[redacted],[redacted],[redacted],[redacted]}", None],
        ),
        (PARTIAL, "texts", ["{*ne,NULL,***ee}", "{}", "{*,*,*,*}", None]),
    ],
)
def test_values_become_what_the_documentation_says(
    server: Postgres, catalog: Catalog, mask: Mask, column: str, expected: list[object]
) -> None:
    assert masked(server, catalog, mask, column) == expected


def test_a_clients_time_zone_does_not_move_the_cut(server: Postgres, catalog: Catalog) -> None:
    assert masked(server, catalog, MONTH, "a_stamptz", "Pacific/Kiritimati")[3] == "2026-02-01 14:00:00+14"


@pytest.mark.parametrize(
    ("mask", "column", "why"),
    [
        (REDACT, "an_enum", "it is `mood`; use `null`"),
        (HASH, "a_short", "fewer than 10 characters"),
        (HASH, "an_int", "use `null` or `range` with `size`"),
        (PARTIAL, "an_email", "a domain whose constraints a masked value may break"),
        (NULL, "a_needed", "a domain that refuses NULL"),
        (Mask(ANY, MaskKind.RANGE, size=Decimal("0.5")), "an_int", "use a whole number"),
        (Mask(ANY, MaskKind.REDACT, path=("a",)), "a_json", "make it jsonb"),
        (Mask(ANY, MaskKind.REDACT, path=("a",)), "a_text", "only `jsonb` has paths"),
    ],
)
def test_what_cannot_be_says_why_and_what_can(catalog: Catalog, mask: Mask, column: str, why: str) -> None:
    with pytest.raises(UnmaskableError, match=why):
        expression((mask,), columns(catalog)[column], KEY.subkey)


DOCUMENTS = [
    ("{notes.card}", '{"notes": {"card": "4111", "x": 1}}', '{"notes": {"card": "[redacted]", "x": 1}}'),
    ("{notes.card}", '{"notes": [{"card": 1}, {"x": 2}, [{"card": 3}], "s"]}',
     '{"notes": [{"card": "[redacted]"}, {"x": 2}, null, "s"]}'),
    ("{notes.card}", '[{"notes": {"card": {"n": 1}}}]', '[{"notes": {"card": "[redacted]"}}]'),
    ("{notes.card}", '{"notes": "card"}', '{"notes": "card"}'),
    ("{notes.card}", '["notes", {"notes": []}]', '["notes", {"notes": []}]'),
    ("{notes.card}", "[]", "[]"),
    ("{notes.card}", "7", "7"),
    ("{notes.card}", "null", "null"),
    ("{o'k}", '{"o\'k": 1}', '{"o\'k": "[redacted]"}'),
]  # fmt: skip


@pytest.mark.parametrize(("path", "document", "expected"), DOCUMENTS)
def test_paths_reach_into_jsonb_and_never_show_more(
    server: Postgres, catalog: Catalog, path: str, document: str, expected: str
) -> None:
    mask = Mask(ANY, MaskKind.REDACT, path=tuple(path.strip("{}").split(".")))
    column = Column(1, "d", "jsonb", 3802)
    with connect(server) as connection:
        asked = f"SELECT {expression((mask,), column)} = %s::jsonb FROM (SELECT %s::jsonb AS d) AS t"
        assert connection.execute(asked, (expected, document)).fetchall() == [(True,)]


def test_paths_of_several_kinds_meet_in_one_value(server: Postgres) -> None:
    masks = (
        Mask(ANY, MaskKind.HASH, path=("a",), pool="p"),
        Mask(ANY, MaskKind.NULL, path=("b", "c")),
        Mask(ANY, MaskKind.PARTIAL, path=("d",), keep_first=1),
    )
    column = Column(1, "d", "jsonb", 3802)
    document = '{"a": "z", "b": [{"c": 1}], "d": "secret", "e": null}'
    with connect(server) as connection:
        asked = f"SELECT {expression(masks, column, KEY.subkey)} FROM (SELECT %s::jsonb AS d) AS t"
        [(value,)] = connection.execute(asked, (document,)).fetchall()
        assert isinstance(value, dict)
        assert value == {"a": value["a"], "b": [{"c": None}], "d": "s*****", "e": None}
        assert len(value["a"]) == 22


def test_no_column_type_is_forgotten_by_the_snapshot(server: Postgres, catalog: Catalog) -> None:
    code = columns(catalog)["a_code"]
    assert code.domain is not None
    assert (code.base_oid, code.width, code.domain.checked) == (1043, 30, False)
    assert columns(catalog)["a_tags"].element == 25
    assert columns(catalog)["an_email"].domain is not None
    with pytest.raises(psycopg.errors.CheckViolation), connect(server) as connection:
        connection.execute("SELECT CAST('[redacted]' AS email)")
