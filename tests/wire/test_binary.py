"""Binary parameters as the audit shows them: whatever the server sends in binary reads back as the same value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.pq import Format

from tests.stack import Stack
from wire.binary import _READERS, as_text

VALUES = [
    "true", "'a'::\"char\"", "'n'::name", "9223372036854775807::int8", "(-1)::int2", "41::int4", "4294967295::oid",
    "'süß \"\\ '::text", "'{\"a\": 1}'::json", "0.1::float4", "'-Infinity'::float8", "1e-300::float8", "'x'::bpchar",
    "'::1/64'::inet", "'10.0.0.1'::inet", "'10.0.0.0/8'::cidr", "'2026-11-24'::date", "'23:59:59.000001'::time",
    "'2026-11-24 10:00:00.5'::timestamp", "'2026-11-24 10:00:00.5+02'::timestamptz",
    "'1 year -2 days -03:00:00.25'::interval", "0::numeric", "1.50::numeric", "-12345678.000900::numeric",
    "0.0000012::numeric", "1e20::numeric", "'NaN'::numeric", "'Infinity'::numeric",
    "'5b1b5c9e-0000-4000-8000-000000000000'::uuid", "'{\"a\": [1, null]}'::jsonb", "'\\xdead'::bytea",
    "ARRAY[1, NULL, 3]", "ARRAY['a \"b\"', 'NULL', '', NULL, 'c\\d']", "'{}'::int[]", "ARRAY[1.5, 2]",
    "ARRAY['\\x00'::bytea]",
    # Not read here, so shown as bytes.
    "'infinity'::date", "'[1,2)'::int4range", "ARRAY[[1,2]]",
]  # fmt: skip
SHOWN_AS_BYTES = VALUES[-3:]


@pytest.fixture(scope="module")
def direct(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(stack.demo.admin_dsn, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("value", VALUES)
def test_what_the_server_sends_in_binary_reads_back_as_the_same_value(
    direct: psycopg.Connection[Any], value: str
) -> None:
    sent = direct.pgconn.exec_params(f"SELECT {value}".encode(), [], result_format=Format.BINARY)
    raw = sent.get_value(0, 0)
    assert raw is not None
    text = as_text(raw, sent.ftype(0))
    if value in SHOWN_AS_BYTES:
        assert text == "\\x" + raw.hex()
        return
    again = direct.pgconn.exec_params(b"SELECT $1", [text.encode()], [sent.ftype(0)], result_format=Format.BINARY)
    assert again.get_value(0, 0) == raw


@given(st.sampled_from(sorted(_READERS)), st.binary(max_size=40))
def test_garbage_is_text_of_some_kind(oid: int, raw: bytes) -> None:
    assert isinstance(as_text(raw, oid), str)
