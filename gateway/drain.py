"""Sending everybody to another gateway: nobody's answer is lost, and who can moves without a gap."""

import asyncio
from collections import deque
from typing import Final

from gateway import codes
from gateway.switchboard import Peer, Switchboard, notice

_EACH_S: Final = 0.004
"""Draining takes this long per session, so that 250 a second have to find another gateway, until `drain_s` forbids it."""
_STEPS: Final = 200
_PAUSE_S: Final = 0.01


class Exodus:
    """Asks the sessions of a gateway to leave, one small batch after the other.

    Who said at `connect` that it hands over is told `service.draining` and has `handover_s` to be somewhere else before
    this connection is closed. Everybody else is closed at once with 4001, as soon as its commands are answered.
    """

    def __init__(self, board: Switchboard, over_s: float | None) -> None:
        """`over_s`: over how long they are asked; None: as many need, `drain_s` at most; 0: nobody is waited for."""
        self._board = board
        settings = board.settings
        peers = list(board.peers)
        spread_s = min(settings.drain_s, len(peers) * _EACH_S) if over_s is None else over_s
        self._handover_s = 0.0 if over_s == 0 else settings.handover_s
        self._pause_s = spread_s / _STEPS
        self._batches = deque(peers[step::_STEPS] for step in range(_STEPS))
        self._told: deque[tuple[float, Peer]] = deque()
        """Who is building its next connection, and until when it may."""
        self._asked: list[Peer] = []
        """Who is closed as soon as it is not busy."""

    async def run(self) -> None:
        """Return when nobody is left; who is still busy after `ask_timeout_s` is closed all the same."""
        board = self._board
        while self._batches:
            for peer in self._batches.popleft():
                self._ask(peer)
            self._close()
            await asyncio.sleep(self._pause_s)
        while any(peer in board.peers for _, peer in self._told):
            self._close()
            await asyncio.sleep(_PAUSE_S)
        patience_s = board.clock.monotonic_s() + board.settings.ask_timeout_s
        while board.peers and board.clock.monotonic_s() < patience_s:
            self._asked = list(board.peers)
            self._close()
            await asyncio.sleep(_PAUSE_S)
        for peer in list(board.peers):
            peer.disconnect(codes.DRAINING)

    def _ask(self, peer: Peer) -> None:
        if not (self._handover_s and peer.hands_over and peer in self._board.peers):
            self._asked.append(peer)
            return
        peer.hint(notice(peer.actor.id, "service.draining", within_s=self._handover_s))
        self._told.append((self._board.clock.monotonic_s() + self._handover_s, peer))

    def _close(self) -> None:
        now_s = self._board.clock.monotonic_s()
        while self._told and (self._told[0][0] <= now_s or self._told[0][1] not in self._board.peers):
            self._asked.append(self._told.popleft()[1])
        self._asked = [peer for peer in self._asked if not _closed(peer)]


def _closed(peer: Peer) -> bool:
    """Whether it is sent; a client whose commands are not answered yet is not heard from now on, and asked again soon."""
    if peer.busy:
        peer.take_no_more()
        return False
    peer.disconnect(codes.DRAINING)
    return True
