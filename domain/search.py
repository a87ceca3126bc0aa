"""What a text and a query have in common: words, and runs of scripts that put no spaces between words. Pure.

A word of the query of three letters or more finds every word that begins with it, a shorter one is found whole; a run of
Chinese (or Japanese, Thai …) is found wherever it stands. All of them must be there, in any order, whatever their case
or width. An index holds terms: cuts of words, single characters and pairs of them. Terms lead to candidates; the text
itself has the last word (`Wanted.found_in`).
"""

import hashlib
import re
import unicodedata
from typing import Final, NamedTuple

from domain.errors import invalid

MAX_QUERY: Final = 200
"""Characters of a query."""
_WHOLE: Final = 2
"""Words of so many letters are found whole only."""
_CUTS: Final = (3, 4, 6, 9)
"""Where words are cut for the index: a query is looked up by the longest cut that it reaches."""

# Thai to Khmer, kana, bopomofo, ideographs, Hangul; and pictures, which are searched for as well.
_UNSPACED: Final = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u2600-\u27bf\u3005-\u3007\u3041-\u30ff\u3105-\u312f\u31a0-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U0001f300-\U0001faff\U00020000-\U0003ffff"
)
# Marks that stand within words and are letters to nobody's `\w`: accents, Hebrew and Arabic points, Indic vowels.
_MARKS: Final = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0970-\u0dff"
_PIECES: Final = re.compile(f"([{_UNSPACED}]+)|((?:[^\\W_{_UNSPACED}]|[{_MARKS}])+)")


class Pieces(NamedTuple):
    """A text taken apart: its words, and its runs of unspaced script, each once."""

    words: frozenset[str]
    runs: frozenset[str]


class Wanted(NamedTuple):
    """A query that was understood."""

    pieces: Pieces

    def found_in(self, text: str) -> bool:
        """Whether the text holds everything that is wanted."""
        return self._in(pieces_of(text))

    def _in(self, there: Pieces) -> bool:
        return all(any(run in other for other in there.runs) for run in self.pieces.runs) and all(
            word in there.words or (len(word) > _WHOLE and any(other.startswith(word) for other in there.words))
            for word in self.pieces.words
        )

    def terms(self, most: int) -> tuple[str, ...]:
        """Terms that every text with all of this has in its index, at most so many: the longest, which are the rarest."""
        found = {word[: _longest_cut(word)] for word in self.pieces.words}
        for run in self.pieces.runs:
            found.update(_pairs(run) or (run,))
        return tuple(sorted(found, key=lambda term: (-len(term), term))[:most])


def wanted(query: str) -> Wanted:
    """What a query asks for.

    Raises:
        Refusal: `invalid` for a query that is empty, too long, or without a letter, a digit or a picture.
    """
    if not query.strip():
        raise invalid("q", "empty", "say what to search for")
    if len(query) > MAX_QUERY:
        raise invalid("q", "too_long", f"a query has at most {MAX_QUERY} characters; this one has {len(query)}")
    pieces = pieces_of(query)
    if not pieces.words and not pieces.runs:
        raise invalid("q", "invalid", "there is no letter and no digit to search for")
    return Wanted(pieces)


def pieces_of(text: str) -> Pieces:
    """The text's words and runs, without regard to case and width (Unicode NFKC, then case folding)."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    found = _PIECES.findall(folded)
    return Pieces(frozenset(word for _, word in found if word), frozenset(run for run, _ in found if run))


def terms_of(text: str) -> set[str]:
    """Everything that the text may be found by."""
    pieces = pieces_of(text)
    terms: set[str] = set()
    for word in pieces.words:
        if len(word) <= _WHOLE:
            terms.add(word)
        else:
            terms.update(word[:cut] for cut in _CUTS if cut <= len(word))
    for run in pieces.runs:
        terms.update(run)
        terms.update(_pairs(run))
    return terms


def token(scope: str, term: str) -> str:
    """A term as ten hexadecimal digits, other ones in every scope.

    No database's full text splits such a token, drops it as too short or takes it for a stop word; and what an index
    keeps of a deleted text until it tidies itself up can be read by nobody.
    """
    return hashlib.blake2b(f"{scope}\n{term}".encode("utf-8", "replace"), digest_size=5).hexdigest()


def _longest_cut(word: str) -> int:
    return max((cut for cut in _CUTS if cut <= len(word)), default=len(word))


def _pairs(run: str) -> list[str]:
    return [run[n : n + 2] for n in range(len(run) - 1)]
