"""Blocks and mutes in memory, as one process would see them."""

import base64
import json
from collections.abc import Sequence

from domain.errors import invalid
from domain.ports import Block, Page


class MemoryBlocks:
    """`domain.ports.Blocks`; `conversations` are what a test says they are: id → members."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Block] = {}
        self.conversations: dict[str, set[str]] = {}

    async def block(self, blocker_id: str, blocked_id: str, now_ms: int) -> Block:
        known = self.rows.get((blocker_id, blocked_id))
        if known is not None and known.active:
            return known
        return self._change(blocker_id, blocked_id, True, now_ms)

    async def unblock(self, blocker_id: str, blocked_id: str, now_ms: int) -> Block | None:
        known = self.rows.get((blocker_id, blocked_id))
        return known if known is None or not known.active else self._change(blocker_id, blocked_id, False, now_ms)

    async def renew(self, known: Block, now_ms: int) -> Block:
        now = self.rows[known.blocker_id, known.blocked_id]
        if now.active == known.active:
            return now
        return self._change(now.blocker_id, now.blocked_id, now.active, now_ms)

    def _change(self, blocker_id: str, blocked_id: str, active: bool, now_ms: int) -> Block:
        known = self.rows.get((blocker_id, blocked_id))
        at = now_ms if known is None else max(now_ms, known.at + 1)
        new = self.rows[blocker_id, blocked_id] = Block(blocker_id, blocked_id, active, at)
        return new

    async def list_of(self, blocker_id: str, cursor: str | None, limit: int) -> Page:
        mine = [row for row in self.rows.values() if row.blocker_id == blocker_id and row.active]
        mine.sort(key=lambda row: (row.at, row.blocked_id), reverse=True)
        if cursor is not None:
            mark = _mark(cursor)
            mine = [row for row in mine if (row.at, row.blocked_id) < mark]
        following = None
        if len(mine) > limit:
            last = mine[limit - 1]
            following = base64.urlsafe_b64encode(json.dumps([last.at, last.blocked_id]).encode()).decode()
        return Page(mine[:limit], following)

    async def among(self, user_ids: Sequence[str]) -> frozenset[tuple[str, str]]:
        return frozenset(key for key, row in self.rows.items() if row.active and set(key) <= set(user_ids))

    async def shared(self, user_id: str, other_id: str, *, alone: bool) -> list[str]:
        both = {user_id, other_id}
        return sorted(c for c, members in self.conversations.items() if (members == both if alone else both <= members))


def _mark(cursor: str) -> tuple[int, str]:
    try:
        at, user_id = json.loads(base64.urlsafe_b64decode(cursor))
    except ValueError:
        raise invalid("cursor", "invalid", "this is not a cursor of this list") from None
    return at, user_id


class MemoryMutes:
    """`domain.ports.Mutes`."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], int] = {}

    async def mute(self, conversation_id: str, user_id: str, until_ms: int) -> None:
        self.rows[conversation_id, user_id] = until_ms

    async def unmute(self, conversation_id: str, user_id: str) -> None:
        self.rows.pop((conversation_id, user_id), None)

    async def of(self, user_id: str, conversation_ids: Sequence[str], now_ms: int) -> dict[str, int]:
        rows = {c: self.rows[c, user_id] for c in conversation_ids if (c, user_id) in self.rows}
        return {c: until_ms for c, until_ms in rows.items() if until_ms == 0 or until_ms > now_ms}

    async def muted(self, conversation_id: str, user_ids: Sequence[str], now_ms: int) -> frozenset[str]:
        return frozenset([u for u in user_ids if conversation_id in await self.of(u, [conversation_id], now_ms)])
