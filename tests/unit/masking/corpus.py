"""The corpus of labelled sentences, and how well a policy does on it."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from domain.masking import BULLETS, mask

_MARK = re.compile("⟦(.*?)⟧")


class Sentence(NamedTuple):
    """`parts` are what must stay, with a contact between each two of them."""

    language: str
    kinds: frozenset[str]
    text: str
    parts: tuple[str, ...]

    @property
    def wanted(self) -> str:
        return BULLETS.join(self.parts)


class Score(NamedTuple):
    """Sentences by outcome: `found` are contacts masked exactly, `leaked` show some of one, `spoiled` lost other text."""

    found: int
    leaked: list[str]
    spoiled: list[str]
    clean: int

    @property
    def precision(self) -> float:
        return self.found / (self.found + len(self.spoiled))

    @property
    def recall(self) -> float:
        return self.found / (self.found + len(self.leaked))


def read(name: str) -> list[Sentence]:
    """The sentences of a file, in its order."""
    lines = (Path(__file__).parent / name).read_text().splitlines()
    return [_sentence(line) for line in lines if line and not line.startswith("#")]


def _sentence(line: str) -> Sentence:
    language, kinds, text = line.split(" | ", 2)
    parts = tuple(_MARK.split(text)[::2])
    named = frozenset() if kinds == "-" else frozenset(kinds.split("+"))
    assert bool(named) == (len(parts) > 1), line
    return Sentence(language, named, _MARK.sub(r"\1", text), parts)


def judge(sentences: list[Sentence]) -> Score:
    """How mask() does. A sentence counts for what is worst about it: a leak first, then text lost that was no contact."""
    found, clean = 0, 0
    leaked: list[str] = []
    spoiled: list[str] = []
    for sentence in sentences:
        shown = mask(sentence.text).text
        if shown == sentence.wanted:
            found, clean = found + bool(sentence.kinds), clean + (not sentence.kinds)
        elif sentence.kinds and _leaks(sentence, shown):
            leaked.append(f"{sentence.text} -> {shown}")
        else:
            spoiled.append(f"{sentence.text} -> {shown}")
    return Score(found, leaked, spoiled, clean)


def _leaks(sentence: Sentence, shown: str) -> bool:
    """Whether a letter or digit is left that does not stand around the contacts."""
    return bool(_letters(shown) - _letters("".join(sentence.parts)))


def _letters(text: str) -> Counter[str]:
    return Counter(character for character in text if character.isalnum())
