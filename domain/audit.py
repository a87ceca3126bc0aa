"""The record of acts: a chain of rows that are added and never changed."""

from typing import Protocol

import msgspec

from domain.acts import Act
from domain.ports import Page


class Recorded(msgspec.Struct, frozen=True):
    """An act as it was written: the `number`-th of all, at Unix milliseconds."""

    number: int
    id: str
    at: int
    act: Act


class Wanted(msgspec.Struct, frozen=True):
    """Which acts: None is any; `since_ms` is the first millisecond, `until_ms` the first one after."""

    actor: str | None = None
    act: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


class Mark(msgspec.Struct, frozen=True):
    """Where the chain of acts stood: how many there were, and the last one's digest. Written `<number>:<hex>`."""

    number: int
    digest: bytes

    def __str__(self) -> str:
        return f"{self.number}:{self.digest.hex()}"

    @classmethod
    def read(cls, text: str) -> "Mark":
        """Raises ValueError for a text that is no mark."""
        number, _, digest = text.strip().partition(":")
        mark = cls(int(number), bytes.fromhex(digest))
        if mark.number < 0 or len(mark.digest) not in (0, 32):
            raise ValueError("not a mark")
        return mark


class Verdict(msgspec.Struct, frozen=True):
    """What a walk along the chain has found: where it ends, and what is wrong with it; empty: nothing."""

    mark: Mark
    wrong: str = ""


class AuditLog(Protocol):
    """The record of acts: rows are added and never changed, and a row that was changed or removed shows in `verify`.

    Every method may raise `StoreUnavailable`.
    """

    async def write(self, act: Act) -> None:
        """Durable on return. `StoreUnavailable` also where too many wait already: then it was not written."""
        ...

    async def find(self, wanted: Wanted, cursor: str | None, limit: int) -> Page:
        """`Recorded` acts, latest first. Refusal `invalid` for a cursor that no page has given out."""
        ...
