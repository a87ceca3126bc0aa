"""A stream from both sides: what its activation says of itself, and what the database has."""

from typing import Literal

import msgspec

from domain.channels import Kind, stream_name, stream_partition
from domain.commands import Reminder
from domain.ports import StreamRecord, Taken
from domain.times import rfc3339
from serve_apps.schemas.common import Timestamp, Uuid

# --- what a host answers -----------------------------------------------------------------------------------------


class _Recent(msgspec.Struct):
    command_id: str
    offset: int
    at: int


class _Due(msgspec.Struct):
    name: str
    due_at: int
    fence_offset: int


class Inspected(msgspec.Struct):
    """What a host answers to the query `inspect`; times are Unix milliseconds."""

    host: str
    incarnation: str
    owner: int
    version: int
    committed: int
    mailbox: int
    uncommitted: int
    snapshot_offset: int
    bytes: int = 0
    idle_s: float = 0.0
    recent: list[_Recent] = []
    reminders: list[_Due] = []


# --- what operators are shown ------------------------------------------------------------------------------------


class StreamOwner(msgspec.Struct):
    """The host that answers for a stream; `position` is that of the takeover under which it speaks."""

    host: str
    incarnation: str
    position: int


class CommandTrace(msgspec.Struct):
    command_id: str
    offset: int
    at: Timestamp


class ReminderView(msgspec.Struct):
    name: str
    due_at: Timestamp
    fence_offset: int


class ActivationView(msgspec.Struct):
    """A live stream in its host. `uncommitted` turns wait for their commit, `mailbox` requests for their turn.

    `bytes` is about what it takes of the host's memory, `idle_s` the time since anybody but an operator asked;
    `recent` begins with the newest command.
    """

    offset: int
    committed_offset: int
    uncommitted: int
    mailbox: int
    snapshot_offset: int
    bytes: int
    idle_s: float
    recent: list[CommandTrace]
    reminders: list[ReminderView]


class TakeoverView(msgspec.Struct):
    """The last takeover of the partition that is in the log."""

    host: str
    incarnation: str
    position: int
    at: Timestamp


class StreamStored(msgspec.Struct):
    """What the database has: `head` is the stream's last offset, `position` and `relay_cursor` are the partition's."""

    head: int
    at: Timestamp | None
    snapshot_offset: int
    position: int
    relay_cursor: int
    takeover: TakeoverView | None
    reminders: list[ReminderView]


class StreamInspection(msgspec.Struct):
    """A stream from both sides. `differences` names what the two disagree on; empty is as it should be."""

    stream: str
    kind: Literal["conversation", "order"]
    id: Uuid
    partition: int
    owner: StreamOwner | None
    unanswered: str
    activation: ActivationView | None
    database: StreamStored
    differences: list[str]


# --- from the one to the other -----------------------------------------------------------------------------------


def inspection(
    kind: Kind, stream_id: str, inspected: Inspected | None, why: str, stored: StreamRecord
) -> StreamInspection:
    """Both sides as operators see them."""
    stream = stream_name(kind, stream_id)
    return StreamInspection(
        stream=stream,
        kind=kind,
        id=stream_id,
        partition=stream_partition(stream),
        owner=None if inspected is None else StreamOwner(inspected.host, inspected.incarnation, inspected.owner),
        unanswered=why,
        activation=None if inspected is None else _activation(inspected),
        database=_stored(stored),
        differences=[] if inspected is None else differences(inspected, stored),
    )


def differences(inspected: Inspected, stored: StreamRecord) -> list[str]:
    """What contradicts what, in words; the record must be older than the inspection."""
    found = []
    if stored.taken is not None and inspected.owner < stored.taken.position:
        found.append(
            f"{inspected.incarnation} speaks under position {inspected.owner}, but {stored.taken.owner} has taken the "
            f"partition at {stored.taken.position}: its commits are fenced"
        )
    if inspected.committed < stored.head:
        found.append(f"the activation has committed up to {inspected.committed}, the log goes up to {stored.head}")
    if inspected.snapshot_offset < stored.snapshot_offset:
        found.append(
            f"the activation knows of a snapshot at {inspected.snapshot_offset}, stored is one at {stored.snapshot_offset}"
        )
    if inspected.committed == stored.head:
        live = {(due.name, due.due_at) for due in inspected.reminders}
        kept = {(due.name, due.due_at) for due in stored.reminders}
        found += [f"reminder {name} is stored and not pending" for name, _ in sorted(kept - live)]
        found += [f"reminder {name} is pending and not stored" for name, _ in sorted(live - kept)]
    return found


def _activation(inspected: Inspected) -> ActivationView:
    return ActivationView(
        offset=inspected.version,
        committed_offset=inspected.committed,
        uncommitted=inspected.uncommitted,
        mailbox=inspected.mailbox,
        snapshot_offset=inspected.snapshot_offset,
        bytes=inspected.bytes,
        idle_s=inspected.idle_s,
        recent=[CommandTrace(trace.command_id, trace.offset, rfc3339(trace.at)) for trace in inspected.recent],
        reminders=[_reminder(due) for due in inspected.reminders],
    )


def _stored(stored: StreamRecord) -> StreamStored:
    return StreamStored(
        head=stored.head,
        at=None if stored.at is None else rfc3339(stored.at),
        snapshot_offset=stored.snapshot_offset,
        position=stored.position,
        relay_cursor=stored.cursor,
        takeover=None if stored.taken is None else _takeover(stored.taken),
        reminders=[_reminder(due) for due in stored.reminders],
    )


def _takeover(taken: Taken) -> TakeoverView:
    host, _, incarnation = taken.owner.partition("/")
    return TakeoverView(host, incarnation, taken.position, rfc3339(taken.at))


def _reminder(due: _Due | Reminder) -> ReminderView:
    return ReminderView(due.name, rfc3339(due.due_at), due.fence_offset)
