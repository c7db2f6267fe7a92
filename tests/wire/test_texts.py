"""Positions and error reports between the client's text and the text that ran."""

from __future__ import annotations

import pytest

from gateway.errors import RefusedError
from policy.model import Decision, Effect, MaskedColumn, Reason, Rewrite, Splice, Verdict
from wire.reports import as_client_sees, fatal, of_refusal, report
from wire.texts import Forwarded, forward_all, forward_one, offset_at, position_at

CLIENT = "SELECT 'süß', c.nme FROM customers c WHERE c.nam = 1".encode()
START = CLIENT.index(b"customers")
MASK = b"(SELECT id, NULL AS ssn FROM public.customers) AS "


def masked() -> Rewrite:
    end = START + len(b"customers ")
    return Rewrite(
        CLIENT[:START] + MASK + CLIENT[end:],
        (Splice(START, end, MASK),),
        (MaskedColumn("public.customers", "ssn", "null", "masks"),),
        frozenset({(16400, 3)}),
    )


@pytest.mark.parametrize(
    ("text", "offset", "position"),
    [(b"abc", 0, 1), (b"abc", 2, 3), ("süß".encode(), 3, 3), ("süß".encode(), 5, 4), ("🐘x".encode(), 4, 2)],
)
def test_positions_count_characters_and_offsets_count_bytes(text: bytes, offset: int, position: int) -> None:
    assert position_at(text, offset) == position
    assert offset_at(text, position) == offset


@pytest.mark.parametrize("word", ["'süß'", "c.nme", "c.nam", "= 1"])
def test_a_position_outside_of_the_splice_is_the_clients(word: str) -> None:
    text = forward_one(CLIENT, masked())
    ran = text.sql.decode().index(word) + 1
    assert text.client_position(ran) == CLIENT.decode().index(word) + 1


@pytest.mark.parametrize("word", ["(SELECT id", "NULL AS", "public.customers", ") AS "])
def test_a_position_in_what_we_generated_is_nowhere(word: str) -> None:
    text = forward_one(CLIENT, masked())
    assert text.client_position(text.sql.decode().index(word) + 1) is None


def test_positions_in_several_statements_each_belong_to_their_own() -> None:
    client = b"SELECT 1; " + CLIENT + b" ;SELECT nme"
    starts = [0, 10, client.index(b"SELECT nme")]
    text = forward_all(client, list(zip(starts, [Rewrite(b"SELECT 1"), masked(), Rewrite(b"SELECT nme")], strict=True)))
    assert text.sql.count(b";") == 2
    for word in ("SELECT 1", "c.nme", "c.nam", "SELECT nme"):
        assert text.client_position(text.sql.decode().index(word) + 1) == client.decode().index(word) + 1
    assert text.masked


FIELDS = {
    "S": "ERROR", "V": "ERROR", "C": "22P02", "M": "invalid input syntax", "D": "the value 536-90-4399", "H": "look",
    "W": 'PL/pgSQL function f("536-90-4399")', "q": "SELECT '536-90-4399'", "p": "8", "s": "public", "t": "customers",
}  # fmt: skip


def test_an_error_on_a_masked_statement_quotes_no_values() -> None:
    seen = as_client_sees({**FIELDS, "P": "1"}, forward_one(CLIENT, masked()))
    assert set(seen) == {"S", "V", "C", "M", "s", "t", "P"}
    assert "536-90-4399" not in "".join(seen.values())


def test_an_error_on_an_unmasked_statement_is_postgresqls_own() -> None:
    text = forward_one(b"SELECT 1", Rewrite(b"SELECT 1"))
    assert as_client_sees({**FIELDS, "P": "8"}, text) == {**FIELDS, "P": "8"}
    assert as_client_sees(FIELDS, None) == FIELDS


@pytest.mark.parametrize("position", ["", "x", "²"])
def test_a_position_that_is_no_number_is_dropped(position: str) -> None:
    text = forward_one(b"SELECT 1", Rewrite(b"SELECT 1"))
    assert "P" not in as_client_sees({"M": "m", "P": position}, text)


def refusal(code: str, location: int | None) -> RefusedError:
    reason = Reason(Effect.DENY, code, "no", cure="Ask.", location=location)
    return RefusedError(Decision(Verdict(Effect.DENY, (reason,)), None, "p", "c"), "st-1")


@pytest.mark.parametrize(
    ("code", "sqlstate"),
    [
        ("syntax", "42601"),
        ("statement.several", "42601"),
        ("relation.unknown", "42P01"),
        ("function.unknown", "42883"),
        ("text.long", "54000"),
        ("text.large", "54000"),
        ("text.deep", "54001"),
        ("no.rule", "42501"),
    ],
)
def test_a_refusal_has_the_sqlstate_that_clients_branch_on(code: str, sqlstate: str) -> None:
    assert of_refusal(refusal(code, None), b"SELECT 1", 0)["C"] == sqlstate


def test_a_refusal_points_at_the_place_in_the_whole_message() -> None:
    client = "SELECT 'ü'; DROP TABLE t".encode()
    start = client.index(b"DROP")
    fields = of_refusal(refusal("no.rule", len(b"DROP TABLE ")), client, start)
    assert client.decode()[int(fields["P"]) - 1 :] == "t"
    assert fields["S"] == "ERROR"


def test_a_report_names_its_severity_twice_as_the_protocol_wants() -> None:
    assert report("42501", "no", detail="why", hint="how") == {
        "S": "ERROR", "V": "ERROR", "C": "42501", "M": "no", "D": "why", "H": "how",
    }  # fmt: skip
    assert fatal("57P01", "bye")["S"] == "FATAL"


def test_a_text_without_statements_forwards_nothing() -> None:
    text = forward_all(b" -- nothing", [])
    assert text == Forwarded(b" -- nothing", b"", ())
    assert text.client_position(1) is None
