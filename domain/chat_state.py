"""What the activation of a conversation remembers; messages themselves live in the log."""

from typing import Final

import msgspec
from msgspec.structs import replace

from domain.chat_events import Original
from domain.chat_members import Member

RECENT: Final = 64
"""Messages whose author the state remembers; older ones are looked up in the log."""
MAX_MASKED: Final = 100
MAX_MASKED_TEXT: Final = 200_000
"""Of so many masked messages, and so many of their characters, the state keeps the originals: the latest ones."""


class RecentMessage(msgspec.Struct, frozen=True, array_like=True):
    by: str
    offset: int
    deleted: bool = False
    edits: int = 0


class Conversation(msgspec.Struct):
    """A conversation as its activation holds it.

    `blocks`: member → those whom they have blocked. `masked`: message → its original text, as long as that is hidden.
    """

    id: str
    version: int = 0
    epoch: str = ""
    order_id: str | None = None
    members: dict[str, Member] = {}
    recent: dict[str, RecentMessage] = {}
    opened_by: str = ""
    blocks: dict[str, tuple[str, ...]] = {}
    masked: dict[str, Original] = {}
    contacts_revealed: bool = False


def keep_original(state: Conversation, message_id: str, original: Original | None) -> None:
    """Let the state remember what the message's newest text hides, if anything."""
    state.masked.pop(message_id, None)
    if original is None or state.contacts_revealed:
        return
    state.masked[message_id] = original
    size = sum(kept.size for kept in state.masked.values())
    while len(state.masked) > MAX_MASKED or size > MAX_MASKED_TEXT:
        size -= state.masked.pop(next(iter(state.masked))).size


def forget_original(state: Conversation, message_id: str) -> None:
    """The message is deleted: nobody will see what it hid. Its place is kept, as after reading the log anew."""
    if (original := state.masked.get(message_id)) is not None:
        state.masked[message_id] = replace(original, text="")
