"""Who is there: on which channel, on which device, since when; and when a user was last seen.

Each gateway says which of its clients are on a channel, and beats to show that it lives. What a silent gateway has said does
not count: its clients have come back by another one, or they are gone.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from domain.times import rfc3339
from domain.wire import DevicePresence, PresenceList, UserPresence

BEAT_S: Final = 10.0
"""How often a gateway shows that it lives."""
DEAD_AFTER_MS: Final = 30_000
"""A gateway that was not heard of for so long is taken for dead."""
LAST_SEEN_MS: Final = 30 * 86_400_000
"""For how long it is remembered when a user was last seen."""
_USER: Final = "user:"


class Present(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A client: one connection, `client`, of a user's device session, `device`; connected `since` (Unix ms)."""

    client: str
    user: str
    device: str
    since: int


class Move(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A client has come to a channel (`here`), or gone from it."""

    here: bool
    client: Present


class Said(msgspec.Struct, frozen=True):
    """What one gateway has said of a channel, when it was last heard of, and whether it is over: buried, or gone by itself."""

    gateway: str
    beat_ms: int
    over: bool
    clients: tuple[Present, ...]


class Heard(msgspec.Struct, frozen=True):
    """All that is known of a channel. Every time is by the store's own clock, so that nobody else's matters."""

    now_ms: int
    said: tuple[Said, ...] = ()
    last_seen_ms: int | None = None


class Attendance(msgspec.Struct, frozen=True):
    """Who is on a channel now. `last_seen_ms`: where nobody is, when the last one went, if that is remembered."""

    clients: tuple[Present, ...] = ()
    last_seen_ms: int | None = None


def alive(beat_ms: int, now_ms: int, dead_after_ms: int = DEAD_AFTER_MS) -> bool:
    """Whether a gateway that was last heard of then still counts."""
    return now_ms - beat_ms < dead_after_ms


def attendance(heard: Heard, dead_after_ms: int = DEAD_AFTER_MS) -> Attendance:
    """Who is there by what was heard. Who was there by a dead gateway was last seen when that last beat."""
    there: dict[str, Present] = {}
    seen = [] if heard.last_seen_ms is None else [heard.last_seen_ms]
    for said in heard.said:
        if not said.over and alive(said.beat_ms, heard.now_ms, dead_after_ms):
            there.update((client.client, client) for client in said.clients)
        elif said.clients:
            seen.append(said.beat_ms)
    if there:
        return Attendance(tuple(sorted(there.values(), key=lambda client: (client.since, client.client))))
    return Attendance((), max(seen, default=None))


def stats(clients: Iterable[Present]) -> tuple[int, int]:
    """How many clients, and how many users they are."""
    users = [client.user for client in clients]
    return len(users), len(set(users))


def keeps_last_seen(channel: str) -> bool:
    """Whether it is remembered when the last one went: on a user's own channel alone."""
    return channel.startswith(_USER)


def user_channel(user_id: str) -> str:
    """The channel that every connection of a user is on."""
    return f"{_USER}{user_id}"


def user_presence(user_id: str, seen: Attendance) -> UserPresence:
    """A user as others see them: each device once, since its first connection."""
    since: dict[str, int] = {}
    for client in seen.clients:
        since[client.device] = min(client.since, since.get(client.device, client.since))
    devices = sorted(since.items(), key=lambda item: (item[1], item[0]))
    last_seen_at = None if devices or seen.last_seen_ms is None else rfc3339(seen.last_seen_ms)
    shown = tuple(DevicePresence(device, rfc3339(at)) for device, at in devices)
    return UserPresence(user_id, bool(devices), shown, last_seen_at)


def presence_list(user_ids: Sequence[str], found: Mapping[str, Attendance]) -> PresenceList:
    """The users in the order of the question; of whom the caller may know nothing, nothing is found."""
    return PresenceList(tuple(user_presence(each, found.get(each, Attendance())) for each in user_ids))
