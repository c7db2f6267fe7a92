"""What personal data and keys look like: spans of bytes, found by shape and checked by arithmetic. Pure.

INVARIANT: what `find` finds in some bytes, `likely` says of all bytes that hold them. So a whole chunk of rows
is looked at once, and only what could hold something is taken apart.
"""

from __future__ import annotations

import base64
import re
from binascii import Error as BadBase64
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Final, NamedTuple


class Kind(StrEnum):
    """What is looked for."""

    CARD = "card"
    SSN = "ssn"
    IBAN = "iban"
    EMAIL = "email"
    KEY = "key"


Kinds = frozenset[Kind]


class Span(NamedTuple):
    """`data[start:end]` is of this kind."""

    start: int
    end: int
    kind: Kind


def find(data: bytes, kinds: Kinds) -> list[Span]:
    """Everything of these kinds, by place. Spans of different kinds may overlap.

    The letters of escapes (`\\n`, of JSON and COPY) belong to no word: a number behind one begins there.
    """
    if b"\\" in data:
        data = ESCAPE.sub(_blanked, data)
    return sorted([Span(start, end, kind) for kind in likely(data, kinds) for start, end in _FINDERS[kind](data)])


def likely(data: bytes, kinds: Kinds) -> Kinds:
    """For which of these kinds a closer look is worth it; a no is certain. Nearly at the speed of memory."""
    shape = b"" if _SHAPED.isdisjoint(kinds) else data.translate(_SHAPE)
    return frozenset([kind for kind in kinds if _HINTS[kind](data, shape)])


def is_card(digits: bytes) -> bool:
    """Whether the digits are a card number: an issuer's prefix and length, and the check digit (Luhn)."""
    if _ISSUED.fullmatch(digits) is None:
        return False
    total = sum(map(_SAME.__getitem__, digits[-1::-2])) + sum(map(_DOUBLED.__getitem__, digits[-2::-2]))
    return total % 10 == 0


ESCAPE: Final = re.compile(rb"\\(?:[bfnrtv]|u[0-9A-Fa-f]{4})")
_BLANK: Final = b"\x01"


def _blanked(escape: re.Match[bytes]) -> bytes:
    return _BLANK * len(escape[0])


# -- the quick look --------------------------------------------------------------------------------------

# Digits become 0, capitals A, what separates groups of digits becomes `-`, all else nothing of these.
_SHAPE: Final = bytes(
    ord("0") if chr(byte) in "0123456789" else ord("A") if 65 <= byte <= 90 else ord("-") if byte in b" .-" else 1
    for byte in range(256)
)
_SHAPED: Final = frozenset((Kind.SSN, Kind.IBAN))
_CARD_RUN, _SSN_RUN = b"0" * 13, b"0" * 9
# What may stand between groups of a card's digits: spaces, dashes of all widths, `.`, `/`, `_`. Byte by byte for the
# quick look, which leaves them out.
_BETWEEN: Final = rb"(?:[ ./_-]|\xc2\xa0|\xe2\x80[\x80-\x95\xaf]){1,3}"
_BETWEEN_BYTES: Final = b" ./_-\xc2\xa0\xe2\xaf" + bytes(range(0x80, 0x96))
# Keys are long words; the shortest that is known here has 15 characters.
_WORD: Final = bytes(
    ord("A") if byte in b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_+/.-" else 1
    for byte in range(256)
)
_KEY_WORD: Final = b"A" * 15
# One of these is in it, or before it.
_KEY_MARK: Final = re.compile(
    rb"A(?:KIA|SIA|BIA|CCA)|aws|AWS|[sS]ecret|SECRET|gh[pousr]_|github_pat_|gl[a-z]{2,5}-|xox|xapp-|hooks\.slack\.com/"
    rb"|AIza|ya29\.|GOCSPX-|k_live_|k_test_|whsec_|sk-ant-|T3BlbkFJ|npm_|pypi-AgE|hf_|SG\.|do[opr]_v1_|shp[acs][ast]_"
    rb"|dapi|hvs\.|AGE-SECRET-KEY-1|eyJ|AccountKey="
)


def _has_key_mark(data: bytes) -> bool:
    if _KEY_WORD in data.translate(_WORD) and _KEY_MARK.search(data) is not None:
        return True
    return b"PRIVATE KEY" in data or (b"://" in data and b"@" in data)


_HINTS: Final[Mapping[Kind, Callable[[bytes, bytes], bool]]] = {
    Kind.CARD: lambda data, _: _CARD_RUN in data.translate(_SHAPE, _BETWEEN_BYTES),
    Kind.SSN: lambda _, shape: b"000-00-0000" in shape or _SSN_RUN in shape,
    Kind.IBAN: lambda _, shape: b"AA00" in shape,
    Kind.EMAIL: lambda data, _: b"@" in data,
    Kind.KEY: lambda data, _: _has_key_mark(data),
}

# -- cards -----------------------------------------------------------------------------------------------

_ISSUED: Final = re.compile(
    rb"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    rb"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    rb"|3[47]\d{13}"  # American Express
    rb"|(?:6011|64[4-9]\d|65\d\d)\d{12}(?:\d{3})?"  # Discover
    rb"|3(?:0[0-5]|[689]\d)\d{11}(?:\d\d)?"  # Diners Club
    rb"|35(?:2[89]|[3-8]\d)\d{12}(?:\d{3})?"  # JCB
    rb"|(?:62|81)\d{14,17}"  # UnionPay
    rb"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}"  # Maestro
    rb"|220[0-4]\d{12,15}"  # Mir
    rb"|(?:60\d\d|82\d\d|508[5-9])\d{12}"  # RuPay
)
_SAME: Final = {ord(str(digit)): digit for digit in range(10)}
_DOUBLED: Final = {ord(str(digit)): digit * 2 // 10 + digit * 2 % 10 for digit in range(10)}
# As people and systems write them: in one piece, by fours, or 4-6-5. A part after the decimal point is none.
_CARD: Final = re.compile(
    rb"(?<![0-9A-Za-z])(?<![0-9]\.)"
    rb"(?P<head>\d{13,19}|(?:\d{4}%(between)s){3}\d{1,4}|\d{4}%(between)s\d{6}%(between)s\d{4,5})"
    rb"(?P<tail>%(between)s\d{1,3})?(?![0-9A-Za-z])" % {b"between": _BETWEEN}
)


def _cards(data: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while (match := _CARD.search(data, at)) is not None:
        at = match.start() + 1  # the groups of a number that is none may be the first of one that is
        for end in {match.end(): None, match.end("head"): None}:
            if is_card(data[match.start() : end].translate(None, _BETWEEN_BYTES)):
                yield match.start(), end
                at = end
                break


# -- social security numbers -----------------------------------------------------------------------------

# Area 9xx has taxpayer numbers (ITIN), and numbers that examples are made of.
_SSN: Final = re.compile(
    rb"(?<![0-9A-Za-z])(?<![0-9][ -])(?!000|666)\d{3}([ -])(?!00)\d\d\1(?!0000)\d{4}(?![0-9A-Za-z]|[ -]\d)"
)
_NAMED_SSN: Final = re.compile(
    rb"(?<![a-z])(?:ssn|itin|social[ _-]?security(?:[ _-]?(?:number|num|no|nr))?)"
    rb"[^0-9a-z]{0,8}(?:is|was|number|no)?[^0-9a-z]{0,4}((?!000|666)\d{3}(?!00)\d\d(?!0000)\d{4})(?![0-9a-z])",
    re.IGNORECASE,
)


def _ssns(data: bytes) -> Iterator[tuple[int, int]]:
    for match in _SSN.finditer(data):
        yield match.span()
    for match in _NAMED_SSN.finditer(data):
        yield match.span(1)


# -- bank accounts ---------------------------------------------------------------------------------------

# Characters of an IBAN by country: the SWIFT registry.
_IBANS_OF: Final = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
    "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
    "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
    "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
_IBAN_LENGTHS: Final = {word[:2].encode(): int(word[2:]) for word in _IBANS_OF.split()}
_IBAN_START: Final = re.compile(rb"(?<![0-9A-Za-z])([A-Z]{2})\d\d")
_IBANS: Final = {
    length: re.compile(
        rb"[A-Z]{2}\d\d(?:[ -]?[0-9A-Z]{4}){%d}(?:[ -]?[0-9A-Z]{%d})(?![0-9A-Za-z])" % divmod(length - 4, 4)
    )
    for length in set(_IBAN_LENGTHS.values())
}


def _ibans(data: bytes) -> Iterator[tuple[int, int]]:
    for start in _IBAN_START.finditer(data):
        pattern = _IBANS.get(_IBAN_LENGTHS.get(start[1], 0))
        match = pattern.match(data, start.start()) if pattern else None
        if match is not None and _mod97(match[0].translate(None, b" -")) == 1:
            yield match.span()


def _mod97(iban: bytes) -> int:
    """ISO 13616: the first four to the end, letters as 10 to 35."""
    return int("".join(str(int(chr(c), 36)) for c in iban[4:] + iban[:4])) % 97


# -- e-mail addresses ------------------------------------------------------------------------------------

# Beside ASCII the letters that UTF-8 writes in two bytes: Latin, Greek, Cyrillic.
_CONTINUING: Final = bytes(range(0x80, 0xC0))
_LETTERS: Final = bytes(range(0xC3, 0xD5)) + _CONTINUING
_LOCAL: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._%+-" + _LETTERS
_LABEL: Final = rb"[0-9A-Za-z\xc3-\xd4\x80-\xbf]"
_DOMAIN: Final = re.compile(
    rb"(?:%(label)s(?:%(label)s|-)*\.)+(?:[A-Za-z\xc3-\xd4\x80-\xbf]{2,}|xn--[0-9A-Za-z]+)(?![0-9\x80-\xbf])"
    % {b"label": _LABEL}
)
_PICTURE: Final = re.compile(rb"\dx\.(?:png|jpe?g|gif|webp|svg)")  # `logo@2x.png`


def _emails(data: bytes) -> Iterator[tuple[int, int]]:
    behind, at = 0, data.find(b"@")
    while at >= 0:
        left = data[behind:at]
        local = left[len(left.rstrip(_LOCAL)) :].lstrip(_CONTINUING)
        domain = _DOMAIN.match(data, at + 1)
        behind = at + 1
        if domain is not None and local.strip(b"._%+-") and not _PICTURE.fullmatch(domain[0]):
            behind = domain.end()
            yield at - len(local), behind
        at = data.find(b"@", behind)


# -- keys ------------------------------------------------------------------------------------------------

_B64URL: Final = rb"[0-9A-Za-z_-]"
# A line break, raw or escaped, is part of a key in PEM; arrays around JSON escape it twice.
_PEM: Final = rb"(?:[0-9A-Za-z+/=\s,:.-]|\\*\x01)*"
_KEY: Final = re.compile(
    rb"(?<![0-9A-Za-z])(?:"
    + rb"|".join(
        (
            rb"A(?:KIA|SIA|BIA|CCA)[0-9A-Z]{16}(?:[^0-9A-Za-z]{1,4}[0-9A-Za-z/+]{40})?(?![0-9A-Za-z/+])",  # AWS
            rb"gh[pousr]_[0-9A-Za-z]{36,255}",
            rb"github_pat_[0-9A-Za-z_]{22,255}",
            rb"gl(?:pat|dt|rt|cbt|ptt|soat|agent)-[0-9A-Za-z_.-]{20,255}",  # GitLab
            rb"xox[abeoprs](?:\.xox[bp])?-[0-9A-Za-z-]{10,255}",  # Slack
            rb"xapp-\d-[0-9A-Za-z-]{20,255}",
            rb"hooks\.slack\.com/(?:services|workflows|triggers)/[0-9A-Za-z/]{20,255}",
            rb"AIza%(u)s{35}(?!%(u)s)",  # Google
            rb"ya29\.%(u)s{20,2048}",
            rb"GOCSPX-%(u)s{28}",
            rb"[rsp]k_(?:live|test)_[0-9A-Za-z]{16,255}",  # Stripe
            rb"whsec_[0-9A-Za-z+/=]{24,255}",
            rb"sk-ant-%(u)s{20,255}",
            rb"(?<![_-])sk-(?:%(u)s{0,100})T3BlbkFJ%(u)s{20,255}",  # OpenAI
            rb"npm_[0-9A-Za-z]{36}",
            rb"pypi-AgE%(u)s{50,2048}",
            rb"hf_[A-Za-z]{34}",
            rb"SG\.%(u)s{16,64}\.%(u)s{16,64}",  # SendGrid
            rb"do[opr]_v1_[0-9a-f]{64}",
            rb"shp(?:at|ca|pa|ss)_[0-9A-Fa-f]{32}",  # Shopify
            rb"dapi[0-9a-f]{32}",  # Databricks
            rb"hvs\.%(u)s{24,255}",  # Vault
            rb"AGE-SECRET-KEY-1[0-9A-Z]{58}",
            rb"(?<![_-])eyJ%(u)s{8,4096}\.eyJ%(u)s{8,65536}\.%(u)s*",  # JSON web tokens
        )
    )
    % {b"u": _B64URL}
    + rb")"
    rb"|-----BEGIN (?:[0-9A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----(?:"
    + _PEM
    + rb"?-----END (?:[0-9A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----|"
    + _PEM
    + rb")"
)
# Keys without a shape of their own. A secret of AWS is known by the word before it, which is looked for from there.
_SECRET: Final = re.compile(rb"(?<![0-9A-Za-z/+=])[0-9A-Za-z/+]{40}(?![0-9A-Za-z/+=])")
_NAMES_SECRET: Final = re.compile(
    rb"(?:aws|AWS|[sS]ecret|SECRET)[0-9A-Za-z_ .-]{0,30}[\"'\\]{0,8}\s{0,3}(?:=>|[=:,]|is)?\s{0,3}[\"'\\]{0,8}\Z"
)
_NAME_BYTES: Final = 64
_MIXED: Final = (re.compile(rb"[a-z]"), re.compile(rb"[A-Z]"), re.compile(rb"[0-9]"))
_PASSWORD: Final = re.compile(
    rb"AccountKey=([0-9A-Za-z+/]{86}==)"
    rb"|://[^\s/:@\"'<>\\]{0,255}:([^\s/@\"'<>\\]{1,255})@(?=[0-9A-Za-z\[])"
)


def _keys(data: bytes) -> Iterator[tuple[int, int]]:
    for match in _KEY.finditer(data):
        if not match[0].startswith(b"eyJ") or _is_token(match[0]):
            yield match.span()
    for match in _SECRET.finditer(data):
        before = data[max(0, match.start() - _NAME_BYTES) : match.start()]
        if all(pattern.search(match[0]) for pattern in _MIXED) and _NAMES_SECRET.search(before):
            yield match.span()
    for match in _PASSWORD.finditer(data):
        yield match.span(match.lastindex or 0)


def _is_token(text: bytes) -> bool:
    """Whether the header is that of a JSON web token."""
    header = text.partition(b".")[0]
    try:
        return b'"alg"' in base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4))
    except BadBase64:
        return False


_FINDERS: Final[Mapping[Kind, Callable[[bytes], Iterator[tuple[int, int]]]]] = {
    Kind.CARD: _cards,
    Kind.SSN: _ssns,
    Kind.IBAN: _ibans,
    Kind.EMAIL: _emails,
    Kind.KEY: _keys,
}
