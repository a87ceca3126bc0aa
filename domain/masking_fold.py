"""A message as the finders of `domain.masking` read it: one way to write every digit, letter and sign."""

import re
from typing import Final

import msgspec

HIDDEN: Final = "\x00"
"""Stands where something was found already: no pattern reads across it."""

_INVISIBLE: Final = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff\u20e3]+")
"""Soft hyphens, zero-width and direction signs, and what makes a digit an emoji."""

_MASKED: Final = re.compile("•{3,}")

Span = tuple[int, int]


def _table() -> dict[int, str]:
    table = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    for code in range(0xFF01, 0xFF5F):
        table[code] = chr(code - 0xFEE0).lower()
    for zero in (0x0660, 0x06F0, 0x0966, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6):
        table.update({zero + n: str(n) for n in range(10)})
    for one in (0x2460, 0x2776, 0x24F5, 0x2780, 0x278A):
        table.update({one + n: str(n + 1) for n in range(9)})
    for signs, plain in (
        ("⓪⓿", "0"), ("‐‑‒–—―−─", "-"), ("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u202f\u3000", " "),
        ("。·・∙", "."), ("、", ","), ("【〔", "["), ("】〕", "]"), ("○◯Ｏ", "〇"), ("➕", "+"), ("оО", "o"), ("аА", "a"),
        ("еЕ", "e"), ("сС", "c"), ("рР", "p"), ("хХ", "x"), ("’‘", "'"),
    ):  # fmt: skip
        table.update({ord(sign): plain for sign in signs})
    table[ord("Ｏ")] = "o"
    return table


_TABLE: Final = _table()


class Folded(msgspec.Struct, frozen=True):
    """`text` is lower-case with plain digits and signs, `cased` the same letters as they were typed; equally long."""

    text: str
    cased: str
    index: tuple[int, ...] | None = None
    """Where each character stands in the message, and where that ends, if invisible ones were left out."""

    def original(self, start: int, end: int) -> Span:
        """The span of the message that this span of the folded text was, with the invisible signs at its end."""
        if self.index is None:
            return start, end
        return self.index[start], self.index[end]

    def without(self, spans: list[Span]) -> "Folded":
        """The same with these spans hidden."""
        return Folded(hide(self.text, spans), hide(self.cased, spans), self.index)


def fold(text: str) -> Folded:
    """The message without invisible signs, ready to be searched."""
    cased, index = text, None
    if not text.isascii():
        if _INVISIBLE.search(text):
            cased, index = _INVISIBLE.sub("", text), _visible(text)
        cased = _MASKED.sub(lambda match: HIDDEN * len(match[0]), cased)
    return Folded(cased.lower() if text.isascii() else cased.translate(_TABLE), cased, index)


def _visible(text: str) -> tuple[int, ...]:
    """Where the visible characters stand, and where the text ends."""
    kept: list[int] = []
    at = 0
    for match in _INVISIBLE.finditer(text):
        kept += range(at, match.start())
        at = match.end()
    return (*kept, *range(at, len(text) + 1))


def hide(text: str, spans: list[Span]) -> str:
    """The text with these spans made unreadable; its length stays."""
    pieces: list[str] = []
    at = 0
    for start, end in sorted(spans):
        if end > at:
            start = max(start, at)
            pieces += (text[at:start], HIDDEN * (end - start))
            at = end
    return "".join((*pieces, text[at:]))


def merged(spans: list[Span]) -> list[Span]:
    """The spans in order; those that touch are one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
