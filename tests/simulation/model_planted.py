"""Bugs that are planted on purpose: what the model-based test is worth is that it finds each of them.

Each changes how one thing is put together: the device's fold, its outbox, a read model, the rules, a gateway or a host's store.
The platform's code is untouched. The docstring says what is wrong.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from domain.aggregate import Decision, Facts, MessageFact
from domain.chat import ChatEvent, Conversation
from domain.chat_commands import Edit
from domain.chat_view import View, apply
from domain.commands import Command
from domain.ports import ConversationRow, Page
from gateway.client_feed import Folding
from gateway.client_views import CHAT
from gateway.recovery import Cursor
from storage.memory import MemoryReadModels
from tests.simulation.model_world import Planted, Rules
from tests.simulation.planted import AckBeforeCommit, LaggingForgotten, RecoveryOffByOne
from tests.support.simulated_network import Wire
from tests.support.simulated_parts import NumberedConnection, Switchboard, Wiring

_event = msgspec.json.Decoder(ChatEvent).decode


def _folding(change: Callable[[ChatEvent], ChatEvent | None]) -> dict[str, Folding]:
    """The real fold over events that were changed before; None: the event is not folded at all."""

    def fold(view: View, offset: int, data: bytes) -> View:
        event = change(_event(data))
        if event is None:
            view.offset = offset
            return view
        return apply(view, offset, event)

    return {"conversation": CHAT._replace(fold=fold)}


def _but(kind: str) -> Callable[[ChatEvent], ChatEvent | None]:
    return lambda event: None if event.__struct_config__.tag == kind else event


class EditLost(Planted):
    """A device does not fold edits."""

    folds = _folding(_but("message.edited"))


class RevealLost(Planted):
    """A device does not fold revelations: it hides what may be seen."""

    folds = _folding(_but("message.revealed"))


class ReactionStays(Planted):
    """A device takes no reaction back."""

    folds = _folding(lambda event: None if getattr(event, "emoji", None) and not getattr(event, "on", True) else event)


class DevicesForgotten(Planted):
    """A device does not fold how far the devices of members are, only how far members are."""

    folds = _folding(lambda event: replace(event, device="", device_offset=0) if hasattr(event, "device") else event)


class _Reads:
    def __init__(self, real: MemoryReadModels) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def conversations(self, user_id: str, cursor: str | None, limit: int) -> Page:
        page = await self._real.conversations(user_id, cursor, limit)
        return Page([self.row(row, user_id) for row in page.items], page.next_cursor)

    def row(self, row: ConversationRow, user_id: str) -> ConversationRow:
        raise NotImplementedError


class _Remembering(_Reads):
    def __init__(self, real: MemoryReadModels) -> None:
        super().__init__(real)
        self._texts: dict[str, str] = {}

    def row(self, row: ConversationRow, user_id: str) -> ConversationRow:
        if row.last_message is None:
            return row
        last = msgspec.json.decode(row.last_message)
        if "text" in last:
            self._texts[last["message_id"]] = last["text"]
        elif last["message_id"] in self._texts:
            return replace(row, last_message=msgspec.json.encode(last | {"text": self._texts[last["message_id"]]}))
        return row


class DeletedTextInLists(Planted):
    """The list of conversations shows the text of a deleted message."""

    def reads(self, real: MemoryReadModels) -> Any:
        return _Remembering(real)


class _Selfish(_Reads):
    def row(self, row: ConversationRow, user_id: str) -> ConversationRow:
        entries = self._real._store.streams[f"conversation:{row.id}"][row.read_offset :]
        return replace(row, unread=sum(entry.type == "message.posted" for entry in entries))


class UnreadCountsOwn(Planted):
    """Lists count one's own messages as unread."""

    def reads(self, real: MemoryReadModels) -> Any:
        return _Selfish(real)


class _Lenient(Rules):
    def _own(self, state: Conversation, command: Command, message_id: str, facts: Facts) -> MessageFact:
        return self._message(state, message_id, facts, "message_id")


class AnybodyEdits(Planted):
    """Members edit and delete what others wrote."""

    rules = _Lenient


class _Deaf(Rules):
    def admit(self, state: Conversation, command: Command, facts: Facts) -> None:
        super().admit(replace(state, blocks={}), command, facts)


class BlockIgnored(Planted):
    """Who is blocked is heard all the same."""

    rules = _Deaf


class _Leaking(Rules):
    def decide(
        self, state: Conversation, command: Command, parsed: Any, now_ms: int, facts: Facts
    ) -> Decision[ChatEvent]:
        bare = replace(state, order_id=None) if isinstance(parsed, Edit) else state
        return super().decide(bare, command, parsed, now_ms, facts)


class EditReveals(Planted):
    """What is edited into a message is not masked."""

    rules = _Leaking


class _Thin(Rules):
    snapshot_every = 2  # type: ignore[misc]

    def encode_state(self, state: Conversation) -> bytes:
        return super().encode_state(replace(state, masked={}))


class MaskForgotten(Planted):
    """A snapshot does not hold what is masked: who loads it reveals nothing."""

    rules = _Thin


class _Forgiving(NumberedConnection):
    __slots__ = ()

    def expelled(self, cursor: Cursor) -> None:
        """They go on hearing."""


class _Open(Wiring):
    def connection(self, board: Switchboard, wire: Wire) -> Any:
        return _Forgiving(board, wire)


class LeaversHear(Planted):
    """A gateway goes on telling those who are members no more."""

    wiring = _Open


class _Recovery(Planted):
    """A recovered subscription goes on one event too far, whenever it has missed more than one."""

    wiring = RecoveryOffByOne


class _Lagging(Planted):
    """A session that was too slow for its events is not caught up."""

    wiring = LaggingForgotten


class _Hasty(Planted):
    """The host answers when a flush begins, not when it is durable."""

    wiring = AckBeforeCommit


PLANTED: Final[dict[str, type[Planted]]] = {
    "edit-lost": EditLost,
    "reveal-lost": RevealLost,
    "reaction-stays": ReactionStays,
    "devices-forgotten": DevicesForgotten,
    "deleted-text-in-lists": DeletedTextInLists,
    "unread-counts-own": UnreadCountsOwn,
    "anybody-edits": AnybodyEdits,
    "block-ignored": BlockIgnored,
    "edit-reveals": EditReveals,
    "mask-forgotten": MaskForgotten,
    "leavers-hear": LeaversHear,
    "recovery-off-by-one": _Recovery,
    "lagging-forgotten": _Lagging,
    "ack-before-commit": _Hasty,
}
