"""Pure: text shown so that a reader sees what is there: nothing invisible, nothing that only looks alike."""

from __future__ import annotations

import unicodedata

# Unicode general categories that a screen shows as nothing, or that change what stands around them
# (Trojan Source, CVE-2021-42574): control, format (bidi, zero width), surrogates, private, unassigned,
# line and paragraph separators.
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_LAYOUT = frozenset("\n\t")
_NAMED_AT_MOST = 20


def visible(text: str) -> str:
    """`text` with each invisible character as `\\u{…}` (its code point). Nothing is left out."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(char) for char in text)


def warnings(text: str) -> list[str]:
    """What to know before believing one's eyes: the invisible and the non-ASCII characters, by name."""
    odd = dict.fromkeys(char for char in text if not char.isascii() or (char not in _LAYOUT and not char.isprintable()))
    named = [f"U+{ord(char):04X} {unicodedata.name(char, 'unnamed')}" for char in list(odd)[:_NAMED_AT_MOST]]
    if len(odd) > _NAMED_AT_MOST:
        named.append(f"and {len(odd) - _NAMED_AT_MOST} more")
    if not named:
        return []
    return [f"the text holds characters that may be invisible or look like others: {', '.join(named)}"]


def _shown(char: str) -> str:
    if char in _LAYOUT or unicodedata.category(char) not in _INVISIBLE:
        return char
    return f"\\u{{{ord(char):x}}}"
