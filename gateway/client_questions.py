"""Questions of a client, which change nothing: asked again, over reconnects, until there is an answer or no more time. Pure."""

from collections.abc import Callable
from typing import NamedTuple

from gateway.client_settings import Pace

_NEVER = float("inf")


class Due(NamedTuple):
    key: str
    name: str
    body: object


class _Question:
    __slots__ = ("attempts", "body", "by_s", "due_s", "flying", "name")

    def __init__(self, name: str, body: object, by_s: float) -> None:
        self.name = name
        self.body = body
        self.by_s = by_s
        self.due_s = 0.0
        self.attempts = 0
        self.flying = False


class Questions:
    """What is asked, by the key that its answer is known by."""

    def __init__(self, pace: Pace, chance: Callable[[], float]) -> None:
        self._pace = pace
        self._chance = chance
        self._open: dict[str, _Question] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._open

    @property
    def flying(self) -> bool:
        """Whether an answer is waited for."""
        return any(question.flying for question in self._open.values())

    def add(self, key: str, name: str, body: object, by_s: float) -> None:
        self._open[key] = _Question(name, body, by_s)

    def take(self, now_s: float) -> list[Due]:
        """What is to be asked now."""
        taken = []
        for key, question in self._open.items():
            if not question.flying and question.due_s <= now_s:
                question.flying = True
                question.attempts += 1
                taken.append(Due(key, question.name, question.body))
        return taken

    def again(self, key: str, now_s: float, after_s: float = 0.0, *, at_once: bool = False) -> None:
        """There was no answer, or one that decides nothing: ask again, `at_once` over another connection."""
        question = self._open.get(key)
        if question is not None:
            question.flying = False
            pause_s = 0.0 if at_once else self._pace.delay_s(question.attempts, self._chance())
            question.due_s = now_s + max(after_s, pause_s)

    def drop(self, key: str) -> bool:
        """Whether somebody still waited."""
        return self._open.pop(key, None) is not None

    def late(self, now_s: float) -> list[str]:
        """Those that have had their time; they are gone."""
        keys = [key for key, question in self._open.items() if question.by_s <= now_s]
        for key in keys:
            del self._open[key]
        return keys

    def by_s(self) -> float:
        return min((question.by_s for question in self._open.values()), default=_NEVER)

    def due_s(self) -> float:
        """When `take` will have something; infinity if that depends on answers alone."""
        return min((question.due_s for question in self._open.values() if not question.flying), default=_NEVER)
