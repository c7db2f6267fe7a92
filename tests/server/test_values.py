"""Values: what PostgreSQL writes as text becomes JSON that tells exactly which value it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.postgres import SUPERUSER, Postgres
from server.values import BUILTIN_TYPES, JsonValue, TypeFacts, as_json, as_parameter, parameters_as_text

Ask = Callable[..., tuple[bytes | None, int]]

# One server round trip per example: fewer examples than usual, and no deadline on a busy machine.
DATABASE_PROPERTY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """`ask(expression, *parameters)`: the text and the type OID that a real server answers."""
    folder: Path = tmp_path_factory.mktemp("values")
    with (
        Postgres(folder) as postgres,
        psycopg.connect(
            host=postgres.host,
            port=postgres.port,
            user=SUPERUSER,
            password=postgres.password,
            dbname="postgres",
            autocommit=True,
        ) as connection,
    ):

        def run(expression: str, *parameters: bytes | None) -> tuple[bytes | None, int]:
            result = connection.pgconn.exec_params(f"SELECT {expression}".encode(), list(parameters))
            assert result.status == psycopg.pq.ExecStatus.TUPLES_OK, result.error_message.decode()
            return result.get_value(0, 0), result.ftype(0)

        yield run


CASES: list[tuple[str, JsonValue]] = [
    ("true", True),
    ("NULL::boolean", None),
    ("32767::int2", 32767),
    ("(-2147483648)::int4", -2147483648),
    ("4294967295::oid", 4294967295),
    ("9007199254740991::int8", 9007199254740991),
    ("9007199254740992::int8", "9007199254740992"),
    ("(-9223372036854775808)::int8", "-9223372036854775808"),
    ("0.1::float8", 0.1),
    ("1.1::float4", 1.1),
    ("'NaN'::float8", "NaN"),
    ("'-Infinity'::float4", "-Infinity"),
    ("1.10::numeric", "1.10"),
    ("12345678901234567890.123456789::numeric(40,9)", "12345678901234567890.123456789"),
    ("'NaN'::numeric", "NaN"),
    ("'\\xdeadbeef'::bytea", "\\xdeadbeef"),
    ("'2026-02-03 04:05:06.789+00'::timestamptz AT TIME ZONE 'UTC'", "2026-02-03 04:05:06.789"),
    ("'2026-02-03'::date", "2026-02-03"),
    ("'a\tb\n☃'::text", "a\tb\n☃"),
    ("""'{"a": [1, 2.5, null, "x"]}'::jsonb""", {"a": [1, 2.5, None, "x"]}),
    ("'5'::jsonb", 5),
    ("""'"text"'::jsonb""", '"text"'),
    ("'null'::jsonb", "null"),
    ("""'{"big": 12345678901234567890}'::jsonb""", '{"big": 12345678901234567890}'),
    ("""'{"exact": 0.1234567890123456789}'::jsonb""", '{"exact": 0.1234567890123456789}'),
    ("'1e999'::json", "1e999"),
    ("""'{"twice": 1, "twice": 2}'::json""", '{"twice": 1, "twice": 2}'),
    (r"""'{"half": "\ud800"}'::json""", r'{"half": "\ud800"}'),
    ("ARRAY[1, 2, NULL]", [1, 2, None]),
    ("ARRAY[[1, 2], [3, 4]]", [[1, 2], [3, 4]]),
    ("'{}'::int[]", []),
    ("'[0:1]={1,2}'::int[]", "[0:1]={1,2}"),
    (
        "ARRAY['NULL', NULL, '', 'a,b', '{x}', 'q\"q', 'back\\slash', ' sp ']",
        ["NULL", None, "", "a,b", "{x}", 'q"q', "back\\slash", " sp "],
    ),
    ("ARRAY[true, false]", [True, False]),
    ("ARRAY[9007199254740993]::int8[]", ["9007199254740993"]),
    ("ARRAY[1.50, 2]::numeric[]", ["1.50", "2"]),
    ("""ARRAY['{"a": 1}']::jsonb[]""", [{"a": 1}]),
    ("ARRAY['((1,1),(0,0))', '((2,2),(1,1))']::box[]", ["(1,1),(0,0)", "(2,2),(1,1)"]),
    ("ARRAY['NaN', 1.5]::float8[]", ["NaN", 1.5]),
    ("'1 2 3'::int2vector", "1 2 3"),
    ("ROW(1, 'x')", "(1,x)"),
    ("'192.0.2.1/24'::inet", "192.0.2.1/24"),
    ("interval '1 day 02:03'", "1 day 02:03:00"),
]


@pytest.mark.parametrize(("expression", "wanted"), CASES)
def test_a_value_of_a_real_server_becomes_exactly_this_json(ask: Ask, expression: str, wanted: JsonValue) -> None:
    text, oid = ask(expression)
    found = as_json(text, oid)
    assert found == wanted
    assert type(found) is type(wanted)


@DATABASE_PROPERTY
@given(number=st.integers(-(2**63), 2**63 - 1))
def test_every_bigint_comes_back_from_its_json(ask: Ask, number: int) -> None:
    text, oid = ask("$1::int8", str(number).encode())
    found = as_json(text, oid)
    assert int(str(found)) == number
    assert isinstance(found, str) == (abs(number) > 2**53 - 1)


@DATABASE_PROPERTY
@given(number=st.floats())
def test_every_double_comes_back_from_its_json(ask: Ask, number: float) -> None:
    text, oid = ask("$1::float8", repr(number).encode())
    found = as_json(text, oid)
    again = json.loads(json.dumps(found, allow_nan=False))
    assert float(again) == number or (math.isnan(number) and again == "NaN")


@DATABASE_PROPERTY
@given(number=st.decimals(allow_nan=False, allow_infinity=False, places=9))
def test_every_numeric_keeps_its_digits_and_its_scale(ask: Ask, number: Decimal) -> None:
    text, oid = ask("$1::numeric", f"{number:f}".encode())
    found = as_json(text, oid)
    assert isinstance(found, str)
    assert Decimal(found).as_tuple().exponent == number.as_tuple().exponent
    assert Decimal(found) == number


@DATABASE_PROPERTY
@given(words=st.lists(st.none() | TEXT, max_size=5))
def test_every_text_array_comes_back_from_its_json(ask: Ask, words: list[str | None]) -> None:
    text, oid = ask("ARRAY(SELECT jsonb_array_elements_text($1::jsonb))::text[]", json.dumps(words).encode())
    assert as_json(text, oid) == words


JSON_NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
JSON_DOCUMENTS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | JSON_NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@DATABASE_PROPERTY
@given(document=JSON_DOCUMENTS)
def test_every_json_document_comes_back_from_its_json(ask: Ask, document: Any) -> None:
    text, oid = ask("$1::jsonb", json.dumps(document).encode())
    assert text is not None
    found = as_json(text, oid)
    # A string is JSON text; everything else is the document itself.
    again = json.loads(found) if isinstance(found, str) else found
    assert again == json.loads(text)


@given(garbage=st.binary(max_size=60), oid=st.sampled_from([*BUILTIN_TYPES, 99999]))
def test_no_bytes_whatever_raise_and_all_become_json(garbage: bytes, oid: int) -> None:
    json.dumps(as_json(garbage, oid), allow_nan=False).encode("utf-8")


def test_bytes_that_are_no_utf8_are_shown_rather_than_lost() -> None:
    assert as_json(b"caf\xe9", 25) == "caf\\xe9"


def test_a_domain_array_is_read_by_what_its_type_facts_say() -> None:
    types = {70001: TypeFacts("shop.score[]", 23)}
    assert as_json(b"{1,2}", 70001, types) == [1, 2]


def test_deeply_nested_json_stays_text() -> None:
    deep = "[" * 100 + "]" * 100
    assert as_json(deep.encode(), 3802) == deep
    assert as_json(b"[" * 100_000 + b"]" * 100_000, 3802) == "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(None, None), (True, b"true"), (False, b"false"), (-5, b"-5"), (1.5, b"1.5"), ("ä", "ä".encode()), ("", b"")],
)
def test_a_json_parameter_becomes_text_format(value: Any, wanted: bytes | None) -> None:
    assert as_parameter(value) == wanted


@pytest.mark.parametrize("bad", ["a\0b", "\ud800"])
def test_a_parameter_that_postgresql_cannot_hold_is_named(bad: str) -> None:
    with pytest.raises(ValueError, match=r"^\$2: a parameter holds"):
        parameters_as_text(["fine", bad])


@DATABASE_PROPERTY
@given(word=TEXT)
def test_every_text_parameter_arrives_as_it_was_sent(ask: Ask, word: str) -> None:
    text, oid = ask("$1::text", as_parameter(word))
    assert as_json(text, oid) == word
