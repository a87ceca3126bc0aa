"""Who is there, as clients are told: answers to `presence`, `presence_stats` and `presence.get`, and join and leave."""

from collections.abc import Sequence

import msgspec

from domain.ports import ReadModels
from domain.presence import Move, Present, presence_list, stats, user_channel
from domain.wire import PresenceList
from gateway.codec import Codec
from gateway.presence import Presence
from gateway.protocol import ClientInfo, PresenceResult, PresenceStatsResult


class Moved:
    """A coming or going as it is pushed to those who asked: encoded once for each encoding, however many they are."""

    __slots__ = ("_channel", "_encoded", "_move", "key")

    def __init__(self, channel: str, move: Move) -> None:
        self._channel = channel
        self._move = move
        self._encoded: dict[str, bytes] = {}
        self.key = (channel, "moved", move.client.client)
        """To a client that lags only the latest of the same client is told."""

    def encoded(self, codec: Codec) -> bytes:
        """The push."""
        item = self._encoded.get(codec.name)
        if item is None:
            push = codec.joined if self._move.here else codec.left
            item = self._encoded[codec.name] = push(self._channel, client_info(self._move.client))
        return item


def client_info(client: Present) -> ClientInfo:
    """The client as the protocol names it, with its device."""
    return ClientInfo(client.user, client.client, msgspec.Raw(msgspec.json.encode({"device": client.device})))


async def answer(presence: Presence, channel: str, name: str) -> PresenceResult | PresenceStatsResult | None:
    """The result of `presence` or `presence_stats`; None where there are too many to name.

    Raises:
        StoreUnavailable: who is there by other gateways cannot be had now.
    """
    (there,) = await presence.of([channel])
    if name == "presence_stats":
        return PresenceStatsResult(*stats(there.clients))
    if len(there.clients) > presence.settings.max_listed:
        return None
    return PresenceResult({client.client: client_info(client) for client in there.clients})


async def whereabouts(
    presence: Presence, read_models: ReadModels, caller_id: str, user_ids: Sequence[str]
) -> PresenceList:
    """Which of the users are online, and where. All but contacts look as if they never were.

    Raises:
        StoreUnavailable: it cannot be had now.
    """
    known = {caller_id, *await read_models.contacts(caller_id, [each for each in user_ids if each != caller_id])}
    asked = [each for each in dict.fromkeys(user_ids) if each in known]
    found = dict(zip(asked, await presence.of([user_channel(each) for each in asked]), strict=True)) if asked else {}
    return presence_list(user_ids, found)
