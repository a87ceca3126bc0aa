"""The views that a client makes by itself, by the domain's own rules."""

from typing import Final

import msgspec

from domain.chat_events import ChatEvent
from domain.chat_view import View, apply
from gateway.client_feed import Folding

_event = msgspec.json.Decoder(ChatEvent).decode


def _chat(view: View, offset: int, data: bytes) -> View:
    """An event of a kind that this release does not know changes nothing that it could show."""
    try:
        return apply(view, offset, _event(data))
    except msgspec.ValidationError:
        view.offset = offset
        return view


CHAT: Final = Folding(
    lambda stream_id: View(), _chat, msgspec.json.encode, msgspec.json.Decoder(View).decode, version=1
)  # fmt: skip
"""Conversations as `domain.chat_view.View`."""

FOLDS: Final = {"conversation": CHAT}
