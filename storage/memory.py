"""The store of the partition log in memory, with the promises of the real one except that it forgets.

Several owners share one `MemoryStore` as several hosts share one database: it is what a fence is tried against where no
server is wanted. What the events change is computed by the same functions as for SQL.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from domain import chat_events
from domain.aggregate import (
    Account,
    AccountNeed,
    BlockNeed,
    Facts,
    MessageNeed,
    Need,
    OpenOrdersNeed,
    UploadFact,
    UploadNeed,
)
from domain.channels import stream_partition
from domain.commands import Reminder
from domain.ports import (
    Committed,
    ConversationRow,
    Entry,
    Loaded,
    MessageRow,
    MessageVersion,
    Page,
    Position,
    Snapshot,
    Takeover,
    Turn,
)
from storage import chat, claims, orders
from storage.chat import CONVERSATION, EDITED, POSTED, MessageChange
from storage.commit_plan import CommitPlan, plan_commit
from storage.facts import message_fact
from storage.log_queries import follow
from storage.partition_log import publication
from storage.read_models import Mark, decode_cursor, encode_cursor, message_id_of, message_row, version_of


class _Member(msgspec.Struct):
    joined: int
    left: int | None = None
    read: int = 0
    delivered: int = 0


class _Conversation(msgspec.Struct):
    order_id: str | None = None
    updated_at: int = 0
    offset: int = 0
    last_message: bytes | None = None
    revealed_at: int = 0
    members: dict[str, _Member] = {}


class MemoryStore:
    """What a database would hold. Everything happens between two awaits, so nobody sees half of it."""

    def __init__(self) -> None:
        self.logs: dict[int, list[Entry | None]] = {}
        """By partition; None is a takeover row. Position n stands at index n - 1."""
        self.streams: dict[str, list[Entry]] = {}
        self.commands: dict[tuple[str, str], int] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.cursors: dict[int, int] = {}
        self.claims: dict[str, tuple[str, int | None]] = {}
        self.reminders: dict[tuple[str, str], tuple[int, Reminder]] = {}
        """By stream and name: with the partition."""
        self.conversations: dict[str, _Conversation] = {}
        self.messages: dict[tuple[str, str], MessageChange] = {}
        self.parties: dict[tuple[str, str, str], orders.Party] = {}
        self.lines: list[orders.Line] = []
        self.tracks: dict[str, dict[tuple[str, int], Position]] = {}
        self.accounts: dict[str, Account] = {}
        self.blocks: set[tuple[str, str]] = set()
        """(blocker, blocked) that stand."""
        self.uploads: dict[str, UploadFact] = {}
        """Those that may be named."""

    def head(self, partition: int) -> int:
        return len(self.logs.get(partition, ()))

    def end(self, stream: str) -> int:
        return len(self.streams.get(stream, ()))

    def open_orders(self, customer_id: str) -> int:
        parties = [p for p in self.parties.values() if p.user_id == customer_id]
        return sum(p.role == "customer" and p.state == "open" for p in parties)


class MemoryPartitionLog:
    """`domain.ports.PartitionLog` over a `MemoryStore`."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()

    async def take(self, partitions: Sequence[int], owner: str, at: int) -> dict[int, Takeover]:
        taken = {}
        for partition in partitions:
            self.store.logs.setdefault(partition, []).append(None)
            taken[partition] = Takeover(self.store.head(partition), self.store.cursors.get(partition, 0))
        return taken

    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        fenced: set[int] = set()
        stale: set[str] = set()
        while True:
            plan = plan_commit(turns, heads, fenced, stale)
            found = self._overtaken(plan)
            if not found[0] and not found[1]:
                break
            fenced, stale = plan.fenced | found[0], plan.stale | found[1]
        self._write(plan)
        return Committed(plan.heads, frozenset(plan.fenced), frozenset(plan.stale))

    def _overtaken(self, plan: CommitPlan) -> tuple[set[int], set[str]]:
        store = self.store
        fenced = {p for p, base in plan.bases.items() if store.head(p) != base}
        stale = {s for s, first in plan.firsts.items() if store.end(s) != first - 1}
        stale |= {e.stream for e in plan.entries if e.command_id and (e.stream, e.command_id) in store.commands}
        for key, streams, at in plan.claims:
            if not claims.free(store.claims.get(key), streams, at):
                stale.update(streams)
        stale |= orders.too_many(plan, {o.customer_id: store.open_orders(o.customer_id) for o, _ in plan.openings})
        return fenced, {s for s in stale if plan.partition_of.get(s) not in fenced}

    def _write(self, plan: CommitPlan) -> None:
        store = self.store
        for entry in plan.entries:
            store.logs.setdefault(plan.partition_of[entry.stream], []).append(entry)
            store.streams.setdefault(entry.stream, []).append(entry)
            if entry.command_id is not None:
                store.commands[entry.stream, entry.command_id] = entry.offset
        for snapshot in plan.snapshots:
            stored = store.snapshots.get(snapshot.stream)
            if stored is None or stored.offset <= snapshot.offset:
                store.snapshots[snapshot.stream] = snapshot
        for key, streams, _ in plan.claims:
            store.claims[key] = (claims.holder(store.claims.get(key), streams), None)
        kept = {key for key, _, _ in plan.claims}
        for key, streams, _ in plan.releases:
            if key not in kept and key in store.claims and store.claims[key][0] in streams:
                del store.claims[key]
        for over in plan.done:
            store.reminders.pop(over, None)
        store.reminders.update({(r.stream, r.name): (partition, r) for partition, r in plan.reminders})
        conversations = chat.conversation_changes(plan.entries)
        for identifier, change in conversations.items():
            _change_conversation(store, identifier, change)
        for identifier, message_id in chat.deleted_messages(conversations):
            _erase(store, identifier, message_id)
        changes = orders.order_changes(plan.entries, plan.snapshots)
        store.parties.update({party[:3]: party for party in changes.parties})
        store.lines.extend(changes.lines)

    async def load(self, streams: Sequence[str], schemas: Mapping[str, int]) -> dict[str, Loaded]:
        loaded = {}
        for stream in streams:
            snapshot = self.store.snapshots.get(stream)
            if snapshot is not None and snapshot.schema != schemas.get(stream.partition(":")[0]):
                snapshot = None
            tail = self.store.streams.get(stream, [])[snapshot.offset if snapshot else 0 :]
            loaded[stream] = Loaded(snapshot, list(tail))
        return loaded

    async def heads(self, partitions: Sequence[int]) -> dict[int, int]:
        return {partition: self.store.head(partition) for partition in partitions}

    async def ends(self, streams: Sequence[str]) -> dict[str, int]:
        return {stream: offset for stream in streams if (offset := self.store.end(stream))}

    async def find_commands(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[Entry]]:
        found = {}
        for key in keys:
            if (offset := self.store.commands.get(key)) is not None:
                rows = self.store.streams[key[0]]
                found[key] = [rows[offset - 1]]
                follow(found[key], {(e.stream, e.offset): e for e in rows if e.command_id is None})
        return found

    async def read_partition(self, partition: int, after: int, limit: int) -> list[tuple[int, Entry]]:
        rows = enumerate(self.store.logs.get(partition, [])[after:], after + 1)
        return [(position, entry) for position, entry in rows if entry is not None][:limit]

    async def save_cursors(self, cursors: Mapping[int, int]) -> None:
        for partition, position in cursors.items():
            self.store.cursors[partition] = max(position, self.store.cursors.get(partition, 0))

    async def reminders(self, partitions: Sequence[int], before_ms: int, limit: int) -> list[Reminder]:
        wanted = set(partitions)
        found = [r for partition, r in self.store.reminders.values() if partition in wanted and r.due_at < before_ms]
        return sorted(found, key=lambda r: (r.due_at, r.stream, r.name))[:limit]

    async def drop_reminders(self, reminders: Sequence[Reminder]) -> None:
        for over in reminders:
            _, stored = self.store.reminders.get((over.stream, over.name), (0, None))
            if stored is not None and (stored.due_at, stored.fence_offset) == (over.due_at, over.fence_offset):
                del self.store.reminders[over.stream, over.name]

    async def writer(self) -> int:
        return 0

    async def end_writers(self, numbers: Sequence[int]) -> None:
        """There are no connections."""

    async def reserve(self, holder: str, keys: Sequence[str], now_ms: int, until_ms: int) -> str | None:
        for key in keys:
            if not claims.free(self.store.claims.get(key), (holder,), now_ms):
                return key
        for key in keys:
            if self.store.claims.get(key) != (holder, None):
                self.store.claims[key] = (holder, until_ms)
        return None


def _change_conversation(store: MemoryStore, identifier: str, change: chat.ConversationChange) -> None:
    found = store.conversations.setdefault(identifier, _Conversation())
    found.order_id = found.order_id or change.order_id
    found.updated_at = max(found.updated_at, change.active_at)
    found.offset = change.offset
    found.last_message = change.last_message or found.last_message
    found.revealed_at = max(found.revealed_at, change.revealed_at)
    for user, moved in change.members.items():
        member = found.members.setdefault(user, _Member(moved.joined))
        if moved.joined:
            member.read = member.delivered = 0
        member.left = moved.left if moved.joined else moved.left or member.left
        member.joined = max(member.joined, moved.joined)
        member.read = max(member.read, moved.read)
        member.delivered = max(member.delivered, moved.delivered)
    for offset, event in change.messages:
        chat.apply(store.messages.setdefault((identifier, event.message_id), MessageChange()), offset, event)


def _erase(store: MemoryStore, identifier: str, message_id: str) -> None:
    """Overwrite the content of a deleted message wherever it is stored."""
    stream = CONVERSATION + identifier
    log, entries = store.logs[stream_partition(stream)], store.streams[stream]
    posted = store.commands.get((stream, message_id))
    for offset in [*([] if posted is None else [posted]), *store.messages[identifier, message_id].texts]:
        entry = entries[offset - 1]
        erased = msgspec.structs.replace(entry, body=chat_events.erased(entry.body))
        log[log.index(entry)] = entries[offset - 1] = erased
    found = store.conversations[identifier]
    if found.last_message is not None and message_id_of(found.last_message) == message_id:
        found.last_message = chat_events.erased(found.last_message)


class MemoryStreamReader:
    """`domain.ports.StreamReader` over a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def read(self, stream: str, after: int, limit: int, max_bytes: int = 262_144) -> list[tuple[int, bytes]]:
        items: list[tuple[int, bytes]] = []
        size = 0
        for entry in self._store.streams.get(stream, [])[max(after, 0) :][:limit]:
            data = publication(stream, entry.body)
            size += len(data)
            if items and size > max_bytes:
                break
            items.append((entry.offset, data))
        return items

    async def read_back(self, stream: str, before: int, limit: int) -> list[tuple[int, bytes]]:
        older = self._store.streams.get(stream, [])[: max(before - 1, 0)]
        return [(entry.offset, publication(stream, entry.body)) for entry in reversed(older)][:limit]


class MemoryFacts:
    """`domain.ports.FactSource` over a `MemoryStore`; accounts are those put into `store.accounts`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def facts(self, needs: Sequence[Need]) -> Facts:
        return Facts({need: answer for need in needs if (answer := self._answer(need)) is not None})

    def _answer(self, need: Need) -> Any:
        store = self._store
        match need:
            case AccountNeed(user_id):
                return store.accounts.get(user_id)
            case OpenOrdersNeed(customer_id):
                return store.open_orders(customer_id)
            case UploadNeed(upload_id):
                return store.uploads.get(upload_id)
            case BlockNeed(blocker_id, blocked_id):
                return (blocker_id, blocked_id) in store.blocks
            case MessageNeed(conversation_id, message_id):
                stream = CONVERSATION + conversation_id
                offset = store.commands.get((stream, message_id))
                if offset is None or store.streams[stream][offset - 1].type != POSTED:
                    return None
                body = store.streams[stream][offset - 1].body
                return message_fact(body, offset, store.messages.get((conversation_id, message_id)))


class MemoryReadModels:
    """`domain.ports.ReadModels` over a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def conversations(self, user_id: str, cursor: str | None, limit: int) -> Page:
        mine = []
        for identifier, found in self._store.conversations.items():
            member = found.members.get(user_id)
            if member is not None and member.left is None:
                mine.append((Mark(found.updated_at, identifier), self._row(identifier, found, user_id, member)))
        return _page(mine, cursor, limit)

    def _row(self, identifier: str, found: _Conversation, user_id: str, member: _Member) -> ConversationRow:
        unread = self._unread(identifier, user_id, max(member.read, member.joined))
        last = found.last_message
        if last is not None:
            change = self._store.messages.get((identifier, message_id_of(last)))
            last = chat.shown(last, change, user_id, revealed=found.revealed_at > 0)
        present = sorted((m.joined, user) for user, m in found.members.items() if m.left is None)
        members = tuple(user for _, user in present)
        return ConversationRow(
            identifier, members, found.order_id, found.offset, member.read, unread, last, found.updated_at
        )

    def _unread(self, identifier: str, user_id: str, after: int) -> int:
        return sum(
            entry.type == POSTED
            and entry.actor not in (f"user:{user_id}", f"ops:{user_id}")
            and not entry.actor.startswith("system:")
            and chat_events.ERASED not in entry.body
            for entry in self._store.streams.get(CONVERSATION + identifier, [])[after:]
        )

    async def unread(self, conversation_id: str, user_id: str, after: int) -> int:
        return self._unread(conversation_id, user_id, after)

    async def history(self, conversation_id: str, message_id: str) -> list[MessageVersion] | None:
        stream = CONVERSATION + conversation_id
        entries = self._store.streams.get(stream, [])
        posted = self._store.commands.get((stream, message_id))
        if posted is None or entries[posted - 1].type != POSTED:
            return None
        change = self._store.messages.get((conversation_id, message_id), MessageChange())
        if change.deleted_at is not None:
            return []
        found = [entries[offset - 1] for offset in (posted, *change.texts)]
        revealed = self._revealed(conversation_id)
        return [version_of(entry, revealed=revealed) for entry in found if entry.type in (POSTED, EDITED)]

    def _revealed(self, conversation_id: str) -> bool:
        return self._store.conversations.get(conversation_id, _Conversation()).revealed_at > 0

    async def messages(
        self, conversation_id: str, *, before: int | None, after: int | None, limit: int
    ) -> tuple[list[MessageRow], int | None]:
        posted = [e for e in self._store.streams.get(CONVERSATION + conversation_id, []) if e.type == POSTED]
        posted = [e for e in posted if (before is None or e.offset < before) and (after is None or e.offset > after)]
        if after is None:
            posted.reverse()
        changes, revealed = self._store.messages, self._revealed(conversation_id)
        rows = [
            message_row(e.offset, e.body, changes.get((conversation_id, message_id_of(e.body))), revealed=revealed)
            for e in posted[:limit]
        ]
        return rows, rows[-1].offset if len(posted) > limit else None

    async def contacts(self, user_id: str, others: Sequence[str]) -> frozenset[str]:
        shared = [
            {member for member, seat in conversation.members.items() if seat.left is None}
            for conversation in self._store.conversations.values()
        ]
        known = set().union(*(members for members in shared if user_id in members))
        return frozenset(known & set(others) - {user_id})

    async def orders(self, user_id: str, role: str, state: str | None, cursor: str | None, limit: int) -> Page:
        parties = [p for p in self._store.parties.values() if p.user_id == user_id and p.role == role]
        return _page(
            [
                (Mark(p.updated_at, p.order_id), self._store.snapshots[orders.ORDER + p.order_id].body)
                for p in parties
                if state is None or p.state == state
            ],
            cursor,
            limit,
        )

    async def order_heads(self, user_id: str) -> list[tuple[str, int, str]]:
        parties = [p for p in self._store.parties.values() if p.user_id == user_id and orders.follows(p)]
        parties.sort(key=lambda p: (-p.updated_at, p.order_id))
        heads = {p.order_id: (p.offset, p.state) for p in parties}
        return [(order_id, *head) for order_id, head in heads.items()]

    async def add_positions(self, order_id: str, positions: Sequence[Position]) -> None:
        track = self._store.tracks.setdefault(order_id, {})
        for position in positions:
            track.setdefault((position.visit_id, position.at), position)

    async def positions(self, order_id: str, visit_id: str | None, limit: int) -> list[Position]:
        track = self._store.tracks.get(order_id, {}).values()
        found = sorted((p for p in track if visit_id in (None, p.visit_id)), key=lambda p: (-p.at, p.visit_id))
        return found[:limit][::-1]


def _page(items: list[tuple[Mark, Any]], cursor: str | None, limit: int) -> Page:
    """A page of items, latest first."""
    items.sort(key=lambda item: (item[0].at, item[0].id), reverse=True)
    if cursor is not None:
        mark = decode_cursor(cursor)
        items = [item for item in items if (item[0].at, item[0].id) < (mark.at, mark.id)]
    more = len(items) > limit
    return Page([item for _, item in items[:limit]], encode_cursor(items[limit - 1][0]) if more else None)
