"""A planted bug for the judge to find: a host that acknowledges before it commits. Wired in by `PART_WIRING`, see `part.py`."""

import asyncio

import actors.host
from actors.group_commit import GroupCommit, Pending

COMMIT_LATER_S = 0.1
"""Flushes wait for this long, so that there is always something acknowledged and not committed."""


class EarlyAcks(GroupCommit):
    """Says yes at once, commits later."""

    def add(self, pending: Pending) -> None:
        turn = pending.outcome.turn
        if turn is not None and turn.entries and turn.entries[0].type == "message.posted":
            self._owner.answer(pending.reply, pending.outcome.answer)
            pending.reply = ""
        super().add(pending)

    async def _flush(self, batch: list[Pending]) -> None:
        await asyncio.sleep(COMMIT_LATER_S)
        await super()._flush(batch)


def plant(role: str) -> None:
    if role == "host":
        actors.host.GroupCommit = EarlyAcks  # type: ignore[misc]
