"""What must be true after every simulation, once everything is mended and has caught up. Each check yields what is wrong."""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from actors.activation import MAILBOX
from domain import chat_events
from domain.aggregate import Account, AccountNeed, Facts
from domain.channels import stream_partition
from domain.chat import MessageDeleted, MessageEdited, MessagePosted
from domain.commands import Command
from domain.errors import Refusal
from domain.order_state import OrderState
from domain.order_table import TERMINAL
from domain.order_turn import held_keys
from domain.orders import OrderRules
from domain.policy import DEFAULT_POLICY
from domain.ports import Entry
from storage.memory import MemoryStore
from tests.simulation.ledger import WITHOUT_EFFECT, Ledger
from tests.simulation.rules import RemindingChat, Room, alarm_over, alarm_set, rings
from tests.support.simulated_client import Device
from tests.support.simulated_parts import EPOCH_MS, Cluster
from tests.support.simulated_store import SimulatedDatabase

LATE_MS = 4_000
"""A reminder that is due has fired by then, in a cluster that is well."""


def log_of(database: SimulatedDatabase) -> Iterator[str]:
    """Positions and offsets without holes, no id twice, and one writer at a time."""
    store = database.store
    for partition, rows in sorted(store.logs.items()):
        owner = ""
        ends: dict[str, int] = {}
        for position, entry in enumerate(rows, 1):
            author = database.authors[partition, position]
            if entry is None:
                owner = author
                continue
            if author != owner:
                yield f"one writer: {author} wrote {partition}@{position}, which was {owner or 'nobody'}'s"
            if entry.offset != ends.get(entry.stream, 0) + 1:
                yield f"gapless: {entry.stream} has {entry.offset} after {ends.get(entry.stream, 0)}"
            if stream_partition(entry.stream) != partition:
                yield f"gapless: {entry.stream} lies in partition {partition}"
            ends[entry.stream] = entry.offset
    for stream, entries in sorted(store.streams.items()):
        ids = [entry.command_id for entry in entries if entry.command_id is not None]
        if len(set(ids)) != len(ids):
            yield f"exactly once: {stream} has an id twice"
        posted = [m.message_id for entry in entries if (m := _message(stream, entry)) is not None]
        if len(set(posted)) != len(posted):
            yield f"exactly once: {stream} has a message twice"


CHAT = RemindingChat()


def _message(stream: str, entry: Entry) -> MessagePosted | None:
    if entry.type != "message.posted":
        return None
    event = CHAT.decode_event(entry.body)
    assert isinstance(event, MessagePosted)
    return event


def erased(store: MemoryStore) -> Iterator[str]:
    """Nothing that was deleted has any content left, and nothing else has lost its own."""
    for stream, entries in sorted(store.streams.items()):
        if not stream.startswith("conversation:"):
            continue
        events = [CHAT.decode_event(entry.body) for entry in entries]
        deleted = {event.message_id for event in events if isinstance(event, MessageDeleted)}
        for offset, event in enumerate(events, 1):
            if isinstance(event, MessagePosted | MessageEdited):
                if event.erased != (event.message_id in deleted):
                    yield f"erased: {stream}#{offset} is {'' if event.erased else 'not '}erased"
                if event.erased and entries[offset - 1].body != chat_events.erased(entries[offset - 1].body):
                    yield f"erased: {stream}#{offset} has content left"


def writes(ledger: Ledger, store: MemoryStore) -> Iterator[str]:
    """Nothing that was acknowledged is lost, nothing that was not sent is stored, and every sender's order is kept."""
    for write in ledger.writes.values():
        judged = write.answer is not None and write.method not in WITHOUT_EFFECT
        if judged and store.commands.get((write.stream, write.id)) != write.answer[0]:
            yield f"acknowledged means durable: {write.id} was acknowledged at {write.stream}#{write.answer[0]}"
        if not write.over:
            yield f"everything ends: {write.id} ({write.method}) of {write.device} has no answer"
    for stream, entries in sorted(store.streams.items()):
        latest: dict[str, float] = {}
        for entry in entries:
            write = ledger.writes.get(entry.command_id or "")
            if entry.actor.startswith("user:") and entry.command_id is not None:
                if write is None:
                    yield f"nothing unsent: {stream}#{entry.offset} was sent by nobody"
                    continue
                if f"user:{write.user}" != entry.actor:
                    yield f"nothing unsent: {stream}#{entry.offset} stands under the wrong name"
                if write.first_sent_s < latest.get(write.device, -1.0):
                    yield f"senders' order: {stream}#{entry.offset} was sent by {write.device} before what stands before it"
                latest[write.device] = write.first_sent_s


def shown(ledger: Ledger, devices: Iterable[Device], store: MemoryStore) -> Iterator[str]:
    """Every member's devices have shown everything, up to the end."""
    for device in devices:
        for stream, entries in sorted(store.streams.items()):
            last = ledger.shown.get((device.name, stream), 0)
            if stream in device.disk.channels and last != len(entries):
                yield f"shown: {device.name} has shown {stream} up to {last} of {len(entries)}"
            if stream not in device.disk.channels and device.user in members_of(stream, entries):
                if stream.startswith("order:") and replayed_order(stream, entries).state in TERMINAL:
                    continue  # `sync` names only those that are not over
                yield f"shown: {device.name} has never heard of {stream}"


def members_of(stream: str, entries: list[Entry]) -> set[str]:
    """Who may follow a stream as it stands at its end."""
    if stream.startswith("order:"):
        state = replayed_order(stream, entries)
        return {user for user in (state.customer_id, state.worker_id) if user}
    room = replayed_room(stream, entries)
    return set(room.members)


def replayed_room(stream: str, entries: list[Entry]) -> Room:
    state = CHAT.initial(stream.partition(":")[2])
    for entry in entries:
        CHAT.evolve(state, CHAT.decode_event(entry.body), entry.offset)
    return state


ORDERS = OrderRules(pepper=b"pepper")


def replayed_order(stream: str, entries: list[Entry]) -> OrderState:
    state = ORDERS.initial(stream.partition(":")[2])
    for entry in entries:
        state = ORDERS.evolve(state, ORDERS.decode_event(entry.body), entry.offset)
    return state


JUDGED = frozenset({"invalid_transition", "version_conflict", "forbidden", "not_found"})
"""Refusals that follow from an order's state alone, whatever the time and whoever else has claimed what."""


def refusable(command: Command, code: str, entries: list[Entry], since: int, accounts: Mapping[str, Account]) -> bool:
    """Whether the order, as it stood at some offset from `since` on, refuses the command so."""
    if code not in JUDGED or command.kind != "order":
        return True
    for end in range(since, len(entries) + 1):
        state = replayed_order(command.stream, entries[:end])
        facts = Facts({AccountNeed(user): account for user, account in accounts.items()})
        try:
            ORDERS.admit(state, command, facts)
            ORDERS.decide(state, command, ORDERS.parse(command), EPOCH_MS, facts)
        except Refusal as refusal:
            if refusal.code.value == code:
                return True
    return False


def snapshots(store: MemoryStore) -> Iterator[str]:
    """A snapshot is what its stream's events make."""
    for stream, snapshot in sorted(store.snapshots.items()):
        entries = store.streams.get(stream, [])[: snapshot.offset]
        if len(entries) < snapshot.offset:
            yield f"snapshots: {stream} has one of {snapshot.offset}, and ends at {len(entries)}"
            continue
        if stream.startswith("order:"):
            same = ORDERS.encode_state(replayed_order(stream, entries)) == snapshot.body
        else:
            same = CHAT.encode_state(replayed_room(stream, entries)) == snapshot.body
        if not same:
            yield f"snapshots: that of {stream}#{snapshot.offset} is not what its events make"


def claims(store: MemoryStore) -> Iterator[str]:
    """What is claimed for good is what the orders hold, and nobody's time is promised twice."""
    held: dict[str, str] = {}
    for stream, entries in sorted(store.streams.items()):
        if stream.startswith("order:"):
            for key in held_keys(replayed_order(stream, entries), DEFAULT_POLICY):
                if key in held:
                    yield f"claims: {key} is promised to {held[key]} and to {stream}"
                held[key] = stream
    kept = {key: holder for key, (holder, until) in store.claims.items() if until is None}
    if kept != held:
        yield f"claims: stored {sorted(kept.items() - held.items())}, held {sorted(held.items() - kept.items())}"


def reminders(database: SimulatedDatabase, now_s: float) -> Iterator[str]:
    """Every alarm rang once, unless somebody took it back, and none before its time."""
    store, now_ms = database.store, EPOCH_MS + int(now_s * 1000)
    for stream, entries in sorted(store.streams.items()):
        if not stream.startswith("conversation:"):
            continue
        pending: dict[str, tuple[int, int]] = {}
        for entry in entries:
            event = CHAT.decode_event(entry.body)
            if (made := alarm_set(event)) is not None:
                pending[made[0]] = (made[1], entry.offset)
            elif (card := rings(event)) is not None:
                due_at, fence = pending.pop(card["ring"], (0, 0))
                if fence != card["fence"]:
                    yield f"reminders: {card['ring']} of {stream}#{card['fence']} rang at {entry.offset}, and did not stand"
                elif entry.at < due_at:
                    yield f"reminders: {card['ring']} of {stream}#{fence} rang {due_at - entry.at} ms early"
            elif (over := alarm_over(event)) is not None:
                pending.pop(over[0], None)
        for name, (due_at, fence) in pending.items():
            if due_at < now_ms - LATE_MS:
                yield f"reminders: {name} of {stream}#{fence} has been due for {now_ms - due_at} ms"
            if (stream, name) not in store.reminders:
                yield f"reminders: {name} of {stream}#{fence} is not stored"
        for (of, name), (_, reminder) in store.reminders.items():
            if of == stream and name not in pending and reminder.due_at < now_ms - LATE_MS:
                yield f"reminders: {name} of {stream} is over and still stored"


def bounds(cluster: Cluster) -> Iterator[str]:
    """Nothing in a host grows beyond its limits."""
    for part in cluster.of("host"):
        host = part.host
        for activation in host.activations.values():
            if len(activation.mailbox) + activation.uncommitted > MAILBOX:
                yield f"bounded: the mailbox of {activation.stream} holds {len(activation.mailbox)}"
        # Admission looks at these limits; what a turn touches besides comes on top.
        if len(host.activations) > host.settings.activations_ever + 8:
            yield f"bounded: {len(host.activations)} activations"
        waiting = len(host._commits) + host.activations.waiting
        if waiting > host.settings.buffer_commands + 8:
            yield f"bounded: {waiting} requests and turns wait"
        if host.activations.waiting != sum(len(activation.mailbox) for activation in host.activations.values()):
            yield f"bounded: {host.activations.waiting} requests in mailboxes, by the host's count"
    for part in cluster.of("gateway"):
        settings = part.board.settings
        for peer in part.board.peers:
            out = peer._out
            if len(out) > settings.outbound_frames or (len(out) > 1 and out.size > settings.outbound_bytes):
                yield f"bounded: {len(out)} frames of {out.size} bytes wait for one session of {part.incarnation}"


def at_rest(cluster: Cluster) -> Iterator[str]:
    """With nothing to do, nothing is under way in any host, and every partition has one owner."""
    owned: dict[int, str] = {}
    for part in cluster.of("host"):
        for number in part.host.partitions:
            if number in owned:
                yield f"at rest: {owned[number]} and {part.incarnation} both own partition {number}"
            owned[number] = part.incarnation
        for activation in part.host.activations.values():
            if activation.mailbox or activation.uncommitted or activation.paused:
                yield f"at rest: {activation.stream} waits in {part.incarnation}"
    if missing := set(cluster.partitions) - owned.keys():
        yield f"at rest: nobody owns {sorted(missing)}"


def fingerprint(store: MemoryStore) -> bytes:
    """The whole log, to be hashed."""
    return msgspec.msgpack.encode([[number, rows] for number, rows in sorted(store.logs.items())])
