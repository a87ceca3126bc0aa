"""Who is in a conversation, how far they and their devices are, and who has blocked whom: for hosts and devices alike."""

from typing import Final, Protocol

import msgspec

from domain.chat_events import MemberBlocked, MemberJoined, MemberLeft, ReceiptDelivered, ReceiptRead

MAX_DEVICES: Final = 8
"""Devices of a member whose own watermarks are remembered."""


class Member(msgspec.Struct, frozen=True, array_like=True):
    """Watermarks of a member, offsets: their own, and (read, delivered) of the sessions that they come from."""

    joined_offset: int
    read_offset: int = 0
    delivered_offset: int = 0
    devices: dict[str, tuple[int, int]] = {}


class Party(Protocol):
    """What these rules change. `blocks`: member → those whom they have blocked."""

    order_id: str | None
    epoch: str
    opened_by: str
    members: dict[str, Member]
    blocks: dict[str, tuple[str, ...]]


def change_members(party: Party, event: MemberJoined | MemberLeft | MemberBlocked, offset: int) -> None:
    """Somebody comes, goes, or blocks somebody. The first event of a conversation says what it is."""
    match event:
        case MemberJoined():
            if offset == 1:
                party.order_id, party.epoch, party.opened_by = event.order_id, event.at, event.by
            party.members[event.user_id] = Member(offset)
        case MemberLeft():
            party.members.pop(event.user_id, None)
            party.blocks.pop(event.user_id, None)
            for blocker in [blocker for blocker, named in party.blocks.items() if event.user_id in named]:
                _set_block(party, blocker, event.user_id, on=False)
        case MemberBlocked():
            _set_block(party, event.by, event.user_id, on=event.on)


def _set_block(party: Party, blocker: str, blocked: str, *, on: bool) -> None:
    named = tuple(user for user in party.blocks.get(blocker, ()) if user != blocked)
    if on:
        named = (*named, blocked)
    if named:
        party.blocks[blocker] = named
    else:
        party.blocks.pop(blocker, None)


def is_blocked(party: Party, user_id: str) -> bool:
    """Whether, in a conversation of two, the other one has blocked the user."""
    if not party.blocks or len(party.members) != 2:
        return False
    return any(user_id in party.blocks.get(other, ()) for other in party.members if other != user_id)


def take_receipt(party: Party, event: ReceiptRead | ReceiptDelivered) -> None:
    """A member's watermark moves, or that of one of their devices."""
    member = party.members.get(event.by)
    if member is None:
        return
    if isinstance(event, ReceiptRead):
        member = marked(member, event.device, read=event.device_offset)
        party.members[event.by] = marked(member, "", read=event.read_offset)
    else:
        member = marked(member, event.device, delivered=event.device_offset)
        party.members[event.by] = marked(member, "", delivered=event.delivered_offset)


def marked(member: Member, device: str, *, read: int = 0, delivered: int = 0) -> Member:
    """The member after one of their devices has said how far it is; the same where that moves nothing.

    Of more than `MAX_DEVICES` the one with the lowest watermark is forgotten, or never remembered: so a device that is
    behind all of them cannot make events for ever by repeating itself.
    """
    own = (max(member.read_offset, read), max(member.delivered_offset, delivered))
    devices = _with_device(member.devices, device, read, delivered) if device else member.devices
    if own == (member.read_offset, member.delivered_offset) and devices is member.devices:
        return member
    return Member(member.joined_offset, *own, devices)


def _with_device(
    devices: dict[str, tuple[int, int]], device: str, read: int, delivered: int
) -> dict[str, tuple[int, int]]:
    before = devices.get(device, (0, 0))
    now = (max(before[0], read), max(before[1], delivered))
    if now == before:
        return devices
    kept = dict(devices)
    if device not in kept and len(kept) >= MAX_DEVICES:
        lowest = min(kept, key=lambda known: (max(kept[known]), known))
        if max(now) <= max(kept[lowest]):
            return devices
        del kept[lowest]
    kept[device] = now
    return kept
