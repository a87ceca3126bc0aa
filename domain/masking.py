"""Contacts are masked until the deposit is held: phone numbers, e-mail addresses, messenger handles, street addresses.

A policy for people in a hurry, not a wall: it catches what is typed, spelled out or spaced out in English and Chinese, and
leaves prices, measures, dates, and the numbers of orders, models and paints alone. `docs/protocol.md` says what it misses
on purpose. Every pattern is linear in the text: the time is bounded by the message's length, whatever it says.
"""

from typing import Final

import msgspec

from domain.masking_fold import fold, merged
from domain.masking_names import find_emails, find_handles, find_links
from domain.masking_phones import find_phones
from domain.masking_places import find_addresses

BULLETS: Final = "•••"
"""What stands where a contact stood, however long it was."""

KINDS: Final = ("phone", "email", "handle", "url", "address")

ROUNDS: Final = 3
"""How often a text is looked at again after something in it was masked."""

_FINDERS: Final = {
    "email": find_emails,
    "url": find_links,
    "address": find_addresses,
    "phone": find_phones,
    "handle": find_handles,
}


class Masked(msgspec.Struct, frozen=True):
    """A text without contacts. `kinds` are those found, each once, in the order of `KINDS`."""

    text: str
    kinds: tuple[str, ...]


def mask(text: str) -> Masked:
    """The text with every contact replaced by `BULLETS`; all else stays byte for byte.

    Nothing found: `kinds` is empty and `text` is the very object given. Masking the result finds nothing more. Deterministic,
    in time linear in the text.
    """
    kinds: set[str] = set()
    shown = text
    for _ in range(ROUNDS):
        found = _find(shown)
        if not found:
            return Masked(shown, tuple(kind for kind in KINDS if kind in kinds))
        kinds.update(kind for _, _, kind in found)
        shown = _replace(shown, found)
    # Each round uncovered another contact: nobody writes so but who tries the filter out.
    return Masked(BULLETS, tuple(kind for kind in KINDS if kind in kinds))


def _find(text: str) -> list[tuple[int, int, str]]:
    """Where contacts stand in the text and of which kind, in order, without overlaps."""
    folded = fold(text)
    found: list[tuple[int, int, str]] = []
    for kind, finder in _FINDERS.items():
        spans = merged(finder(folded.text, folded.cased))
        if spans:
            found += [(start, end, kind) for start, end in spans]
            folded = folded.without(spans)
    return [(*folded.original(start, end), kind) for start, end, kind in sorted(found)]


def _replace(text: str, found: list[tuple[int, int, str]]) -> str:
    pieces: list[str] = []
    at = 0
    for start, end, _ in found:
        pieces += (text[at:start], BULLETS)
        at = end
    return "".join((*pieces, text[at:]))
