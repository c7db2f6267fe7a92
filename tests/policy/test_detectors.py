"""What is found in text and what is not. Every value is a published example; none was ever anybody's."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policy.detection import Findings, hide, hide_text
from policy.detectors import Kind, find, likely

ALL = frozenset(Kind)
# RFC 7519, section 3.1; the signature is its own.
JWT = (
    "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxl"
    "LmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
)
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX6Ppy\n-----END RSA PRIVATE KEY-----"

# Test cards of payment providers; SSA's advertised and withdrawn numbers; the SWIFT registry's example IBANs;
# AWS's documented keys; shapes of tokens filled with the alphabet.
FOUND = {
    Kind.CARD: [
        "4111111111111111", "4222222222222", "5555555555554444", "2223003122003222", "378282246310005",
        "6011111111111117", "30569309025904", "3530111333300000", "6200000000000005", "4111 1111 1111 1111",
        "4111-1111-1111-1111", "4111.1111.1111.1111", "3782 822463 10005", "6304000000000000",
        "4111\u00a01111\u00a01111\u00a01111", "4111\u20111111\u20111111\u20111111", "4111 - 1111 - 1111 - 1111",
        "4111/1111/1111/1111", "2200000000000004",
    ],
    Kind.SSN: ["078-05-1120", "219-09-9999", "078 05 1120", "900-12-3456"],
    Kind.IBAN: [
        "GB29NWBK60161331926819", "GB29 NWBK 6016 1331 9268 19", "DE89370400440532013000", "NO9386011117947",
        "MT84MALT011000012345MTLCAST001S", "FR1420041010050500013M02606", "SA0380000000608010167519",
        "LC55HEMM000100010012001200023015", "DE89-3704-0044-0532-0130-00",
    ],
    Kind.EMAIL: [
        "ada@example.com", "a.b+tag@sub.example.co.uk", "josé@example.com", "müller@bücher.example",
        "x_1%y@a-b.example.org", "ada@xn--bcher-kva.example",
    ],
    Kind.KEY: [
        "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "ghp_abcdefghijklmnopqrstuvwxyzABCDEFGHIJ",
        "github_pat_11ABCDEFG0abcdefghijkl_abcdefghijklmnop", "glpat-abcDEF-hij_klmnopqrs", "xoxb-1234567890",
        "xapp-1-A012345678-0123456789012-abcdef", "AIzaabcdefghijklmnopqrstuvwxyzABCDEFGHI", "sk_test_abcdefghijklmnop",
        "rk_live_abcdefghijklmnop", "whsec_abcdefghijklmnopqrstuvwx", "npm_abcdefghijklmnopqrstuvwxyzABCDEFGHIJ",
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
        "SG.abcdefghijklmnopqrstuv.abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG",
        "sk-ant-api03-abcdefghijklmnopqrstuvwxyz", "sk-proj-abcdefghijT3BlbkFJabcdefghijklmnopqrst",
        "shpat_0123456789abcdef0123456789abcdef", "dapi0123456789abcdef0123456789abcdef",
        "hvs.abcdefghijklmnopqrstuvwxyz", "ya29.abcdefghijklmnopqrstuvwxyz", "GOCSPX-abcdefghijklmnopqrstuvwxyzAB",
        "hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX", JWT, PEM,
    ],
}  # fmt: skip
# (around, what of it is found): the same where words, punctuation or other numbers stand beside it.
INSIDE = [
    ("1234 4111 1111 1111 1111", Kind.CARD, "4111 1111 1111 1111"),
    ("4111 1111 1111 1111 12/27 123", Kind.CARD, "4111 1111 1111 1111"),
    ("card_4111111111111111.", Kind.CARD, "4111111111111111"),
    ("line\\n4111111111111111\\t", Kind.CARD, "4111111111111111"),
    ("-4111111111111111.50", Kind.CARD, "4111111111111111"),
    ("SSN: 078051120", Kind.SSN, "078051120"),
    ('{"social_security_number": 219099999}', Kind.SSN, "219099999"),
    ("IBAN DE89 3704 0044 0532 0130 00 BANK", Kind.IBAN, "DE89 3704 0044 0532 0130 00"),
    ("<ada@example.com>, please", Kind.EMAIL, "ada@example.com"),
    ("請寫信給ada@example.com謝謝", Kind.EMAIL, "ada@example.com"),
    ("\\nada@example.com", Kind.EMAIL, "ada@example.com"),
    (
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        Kind.KEY,
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    ),
    (
        "AKIAIOSFODNN7EXAMPLE,wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        Kind.KEY,
        "AKIAIOSFODNN7EXAMPLE,wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    ),
    ("postgres://app:hunter2@db:5432/shop", Kind.KEY, "hunter2"),
]
NOTHING = [
    "", "4111111111111112", "41111111111111111", "1234567812345670", "x4111111111111111", "0.4111111111111111",
    "a3f04111111111111111", "2026-11-25 12:00:00", "1764072000000", "1764072000000000", "+1 555 0100 0100",
    "192.168.100.200", "12345678-1234-1234-1234-123456789012", "9780306406157", "000-12-3456", "666-12-3456",
    "078-00-1120", "078-05-0000", "078051120", "2078-05-1120", "078-05-11203", "GB29NWBK60161331926818",
    "XX29NWBK60161331926819", "GB29NWBK6016133192681", "ada@localhost", "@types/node", "a @ b.com", "logo@2x.png",
    "x@", "AKIAIOSFODNN7EXAMPL", "AKIAiosfodnn7example", "eyJhbGciOi", "eyJmb28iOiJiYXIifQ.eyJmb28iOiJiYXIifQ.abc",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709", "the secretary wrote", "https://example.com:443/x", "sk_live_short",
    "-----BEGIN PUBLIC KEY-----", "task-abcdefghijklmnopqrstuvwxyz",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_an_example_is_found_as_a_whole_in_any_surroundings(kind: Kind, text: str) -> None:
    raw = text.encode()
    for before, after in ((b"", b""), (b"see ", b", ok"), (b'{"a": "', b'"}'), (b"(", b")"), (b"=", b"\n")):
        data = before + raw + after
        spans = [(s.start, s.end) for s in find(data, ALL) if s.kind is kind]
        assert spans == [(len(before), len(before) + len(raw))], (before, after)
        hidden, _ = hide(data, ALL)
        assert len(hidden) == len(data)
        assert hidden.startswith(before)
        assert hidden.endswith(after)
        assert find(hidden, ALL) == []


@pytest.mark.parametrize(("text", "kind", "found"), INSIDE)
def test_an_example_is_told_from_what_stands_beside_it(text: str, kind: Kind, found: str) -> None:
    data = text.encode()
    assert [data[s.start : s.end].decode() for s in find(data, frozenset((kind,)))] == [found]


@pytest.mark.parametrize("text", NOTHING)
def test_what_only_looks_alike_is_left_alone(text: str) -> None:
    assert find(text.encode(), ALL) == []


@pytest.mark.parametrize(
    ("value", "hidden"),
    [
        ("4111111111111111", "1000000000000000"),
        ("-4111111111111111.50", "-1000000000000000.50"),
        ("card 4111111111111111, ok", "card ****************, ok"),
        ("4111 1111 1111 1111", "**** **** **** ****"),
        ("{4111111111111111,NULL}", "{1000000000000000,NULL}"),
        ("(4111111111111111,x)", "(1000000000000000,x)"),
        ("[4111111111111111,4111111111111112)", "[1000000000000000,4111111111111112)"),
        ('[\\n 4111111111111111\\n]', "[\\n 1000000000000000\\n]"),
    ],
)  # fmt: skip
def test_numbers_stay_numbers_and_text_gets_stars(value: str, hidden: str) -> None:
    assert hide(value.encode(), ALL)[0].decode() == hidden


@given(
    st.recursive(
        st.sampled_from([text for texts in FOUND.values() for text in texts] + NOTHING)
        | st.sampled_from([4111111111111111, -4111111111111111, 378282246310005, 0, 1.5, None, True])
        | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_json_stays_json_of_the_same_shape(document: object, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    hidden = hide(text.encode(), ALL)[0].decode()
    assert shape(json.loads(hidden)) == shape(document)


def shape(value: object) -> object:
    match value:
        case dict():
            return [shape(v) for v in value.values()]
        case list():
            return [shape(v) for v in value]
    return type(value)


PIECES = st.lists(
    st.sampled_from([text.encode() for texts in FOUND.values() for text in texts])
    | st.sampled_from([text.encode() for text in NOTHING])
    | st.binary(max_size=6)
    | st.sampled_from([b" ", b"-", b".", b"@", b"\\n", b"\\", b'"', b",", b"{", b"4111", b"\xc3\xa9", b"\n"]),
    max_size=8,
).map(b"".join)


@given(PIECES)
def test_lengths_never_change_nothing_is_left_and_nothing_raises(data: bytes) -> None:
    hidden, spans = hide(data, ALL)
    assert len(hidden) == len(data)
    assert bool(spans) == (hidden != data)
    assert hide(hidden, ALL) == (hidden, [])


@given(PIECES, PIECES, PIECES, st.sets(st.sampled_from(Kind), min_size=1).map(frozenset))
def test_the_quick_look_sees_all_that_is_found(
    before: bytes, data: bytes, after: bytes, kinds: frozenset[Kind]
) -> None:
    found = {span.kind for span in find(data, kinds)}
    assert found <= likely(before + data + after, kinds)


@given(PIECES)
@example("logo@2x.pngÀ4111111111111111".encode())  # where one ends, another character does not end in its middle
def test_utf_8_stays_utf_8(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    assert len(hide_text(text, ALL).encode()) == len(text.encode())


def test_findings_count_the_outermost_and_never_keep_a_value() -> None:
    findings = Findings()
    for value in ("https://u:secret@db.example.com and ada@example.com", "ada@example.com"):
        findings.note("body", hide(value.encode(), ALL)[1])
    assert [str(one) for one in findings] == ["body: 3 email", "body: 1 key"]
