"""`ports.ReadModels` and `ports.FactSource`: what lists say after the commits they come from, on every store."""

import msgspec
import pytest

from domain.aggregate import AccountNeed, MessageFact, MessageNeed, OpenOrdersNeed
from domain.chat import (
    MemberJoined,
    MemberLeft,
    MessageDeleted,
    MessageEdited,
    MessageReacted,
    ReceiptDelivered,
    ReceiptRead,
)
from domain.errors import Code, Refusal
from domain.ports import ConversationRow, Entry, PartitionLog, Position, Snapshot
from domain.times import rfc3339
from storage.accounts import SqlAccounts
from tests.contract.conftest import InSql, Store
from tests.support.keys import FixedKeys
from tests.support.log_rows import AT, chat_row, conversation, new_id, opened, order_row, order_state, posted, turn

WHEN = rfc3339(AT)


class Writer:
    """The owner of a partition, writing one turn after another."""

    def __init__(self, log: PartitionLog, heads: dict[int, int]) -> None:
        self._log = log
        self._heads = heads

    async def write(self, *entries: Entry, snapshots: tuple[Snapshot, ...] = ()) -> None:
        done = await self._log.commit([turn(*entries, snapshots=list(snapshots))], self._heads)
        assert not done.fenced
        assert not done.stale
        self._heads.update(done.heads)


@pytest.fixture
async def writer(store: Store, partition: int) -> Writer:
    log = store.log()
    return Writer(log, {p: t.position for p, t in (await log.take([partition], "host", AT)).items()})


async def only(store: Store, user: str) -> ConversationRow:
    (row,) = (await store.read_models().conversations(user, None, 10)).items
    return row


def bare(stream: str) -> str:
    return stream.partition(":")[2]


async def test_a_conversation_is_in_the_lists_of_its_members(store: Store, writer: Writer, partition: int) -> None:
    ann, bob, order = new_id(), new_id(), new_id(partition)
    stream = conversation(partition)
    await writer.write(*opened(stream, ann, bob, order_id=order))
    row = await only(store, bob)
    assert row == ConversationRow(bare(stream), (ann, bob), order, 2, 0, 0, None, AT)
    assert (await store.read_models().conversations(new_id(), None, 10)).items == []


async def test_unread_counts_what_others_have_posted_since_one_has_read(
    store: Store, writer: Writer, partition: int
) -> None:
    ann, bob = new_id(), new_id()
    stream = conversation(partition)
    messages = [posted(stream, n, by=ann if n % 2 else bob) for n in range(3, 9)]  # ann: 3, 5, 7; bob: 4, 6, 8
    await writer.write(*opened(stream, ann, bob), *messages)
    assert ((await only(store, ann)).unread, (await only(store, bob)).unread) == (3, 3)

    await writer.write(chat_row(stream, 9, ReceiptRead(bob, WHEN, 5), bob))
    assert ((await only(store, ann)).unread, (await only(store, bob)).unread) == (3, 1)
    assert (await only(store, bob)).read_offset == 5

    await writer.write(
        chat_row(stream, 10, ReceiptRead(bob, WHEN, 10), bob),
        chat_row(stream, 11, ReceiptRead(ann, WHEN, 4), ann),
        chat_row(stream, 12, ReceiptDelivered(ann, WHEN, 11), ann),
    )
    assert ((await only(store, ann)).unread, (await only(store, bob)).unread) == (2, 0)


async def test_the_last_message_is_the_newest_as_it_reads_now(store: Store, writer: Writer, partition: int) -> None:
    ann, bob = new_id(), new_id()
    stream = conversation(partition)
    first, last = posted(stream, 3, ann, "first"), posted(stream, 4, bob, "secret")
    await writer.write(*opened(stream, ann, bob), first, last)
    assert (await only(store, ann)).last_message == last.body

    assert last.command_id is not None
    await writer.write(chat_row(stream, 5, MessageEdited(last.command_id, bob, WHEN, "edited"), bob, new_id()))
    shown = msgspec.json.decode((await only(store, ann)).last_message)
    assert (shown["text"], shown["message_id"]) == ("edited", last.command_id)

    await writer.write(chat_row(stream, 6, MessageDeleted(last.command_id, bob, WHEN), bob, new_id()))
    deleted = (await only(store, ann)).last_message
    assert deleted is not None
    assert b"secret" not in deleted
    assert b'edited"' not in deleted
    assert (await only(store, ann)).offset == 6


async def test_messages_page_both_ways_with_their_changes(store: Store, writer: Writer, partition: int) -> None:
    ann, bob = new_id(), new_id()
    stream = conversation(partition)
    rows = [posted(stream, n, ann, f"text {n}") for n in (3, 4, 5)]
    await writer.write(*opened(stream, ann, bob), *rows)
    ids = [row.command_id or "" for row in rows]
    later = rfc3339(AT + 5)
    await writer.write(
        chat_row(stream, 6, ReceiptRead(bob, WHEN, 3), bob),
        chat_row(stream, 7, MessageEdited(ids[0], ann, later, "better"), ann, new_id()),
        chat_row(stream, 8, MessageReacted(ids[1], bob, WHEN, "👍", True), bob, new_id()),
        chat_row(stream, 9, MessageReacted(ids[1], ann, WHEN, "👍", True), ann, new_id()),
    )
    await writer.write(
        chat_row(stream, 10, MessageReacted(ids[1], bob, WHEN, "👍", False), bob, new_id()),
        chat_row(stream, 11, MessageDeleted(ids[2], ann, later), ann, new_id()),
        posted(stream, 12, bob, "last"),
    )
    models = store.read_models()

    newest, on = await models.messages(bare(stream), before=None, after=None, limit=2)
    assert [row.offset for row in newest] == [12, 5]
    assert on == 5
    assert newest[1].deleted_at == AT + 5
    assert newest[1].text is None
    assert b"text 5" not in newest[1].data

    older, end = await models.messages(bare(stream), before=on, after=None, limit=2)
    assert [row.offset for row in older] == [4, 3]
    assert end is None
    assert (older[1].text, older[1].edited_at) == ("better", AT + 5)
    assert older[1].data == rows[0].body
    assert (older[0].text, older[0].reactions) == ("text 4", {"👍": (ann,)})

    forward, more = await models.messages(bare(stream), before=None, after=3, limit=2)
    assert [row.offset for row in forward] == [4, 5]
    assert more == 5
    assert (await models.messages(new_id(), before=None, after=None, limit=2)) == ([], None)


async def test_lists_are_by_latest_activity_and_receipts_are_none(store: Store, writer: Writer, partition: int) -> None:
    ann, bob = new_id(), new_id()
    streams = [conversation(partition) for _ in range(5)]
    for n, stream in enumerate(streams):
        await writer.write(*opened(stream, ann, bob, at=AT + n))
    await writer.write(chat_row(streams[0], 3, ReceiptRead(bob, WHEN, 1), bob, at=AT + 50))
    await writer.write(posted(streams[1], 3, at=AT + 60))
    models, cursor, seen = store.read_models(), None, []
    for _ in range(3):
        page = await models.conversations(ann, cursor, 2)
        seen += [row.id for row in page.items]
        cursor = page.next_cursor
    assert cursor is None
    assert seen == [bare(streams[n]) for n in (1, 4, 3, 2, 0)]


async def test_pages_go_on_between_conversations_of_the_same_instant(
    store: Store, writer: Writer, partition: int
) -> None:
    ann, bob = new_id(), new_id()
    for _ in range(4):
        await writer.write(*opened(conversation(partition), ann, bob))
    models, cursor, seen = store.read_models(), None, []
    while True:
        page = await models.conversations(ann, cursor, 1)
        seen += [row.id for row in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert len(seen) == len(set(seen)) == 4


async def test_who_left_does_not_see_the_conversation_until_they_are_back(
    store: Store, writer: Writer, partition: int
) -> None:
    ann, bob = new_id(), new_id()
    stream = conversation(partition)
    await writer.write(*opened(stream, ann, bob), chat_row(stream, 3, MemberLeft(ann, WHEN, bob), ann, new_id()))
    assert (await store.read_models().conversations(bob, None, 10)).items == []
    assert (await only(store, ann)).members == (ann,)
    await writer.write(posted(stream, 4, ann))
    await writer.write(chat_row(stream, 5, MemberJoined(ann, WHEN, bob), ann, new_id()), posted(stream, 6, ann))
    row = await only(store, bob)
    assert row.members == (ann, bob)
    assert row.unread == 1  # what was said while bob was away is not new to him


@pytest.mark.parametrize("cursor", ["", "x", "🙂", "bnVsbA", "WzEsMl0", "W10", "a" * 500, "WzEsIvCfmYIiXQ"])
async def test_a_bad_cursor_is_refused_by_name(store: Store, cursor: str) -> None:
    models = store.read_models()
    for page in (models.conversations("u", cursor, 5), models.orders("u", "worker", None, cursor, 5)):
        with pytest.raises(Refusal) as refusal:
            await page
        assert refusal.value.code == Code.INVALID
        assert refusal.value.refused.errors[0].field == "cursor"


async def test_orders_are_listed_for_customer_hired_worker_and_who_has_quoted(
    store: Store, writer: Writer, partition: int
) -> None:
    cara, will, quinn = new_id(), new_id(), new_id()
    stream = f"order:{new_id(partition)}"
    draft = order_state(stream, 1, "draft", cara)
    await writer.write(order_row(stream, 1, "order.created"), snapshots=(draft,))
    models = store.read_models()
    assert (await models.orders(cara, "customer", None, None, 10)).items == [draft.body]
    assert (await models.orders(will, "worker", None, None, 10)).items == []

    quotes = [{"id": "q1", "worker_id": will}, {"id": "q2", "worker_id": quinn}]
    open_state = order_state(stream, 2, "open", cara, quotes=quotes)
    await writer.write(order_row(stream, 2, "order.published"), snapshots=(open_state,))
    for worker in (will, quinn):
        assert (await models.orders(worker, "worker", "open", None, 10)).items == [open_state.body]
        assert await models.order_heads(worker) == [(bare(stream), 2, "open")]

    hired = order_state(stream, 3, "awarded", cara, quotes=quotes, worker_id=will)
    await writer.write(order_row(stream, 3, "order.awarded"), snapshots=(hired,))
    assert await models.order_heads(will) == [(bare(stream), 3, "awarded")]
    assert await models.order_heads(quinn) == []  # it went to somebody else
    assert (await models.orders(cara, "customer", "open", None, 10)).items == []
    assert (await models.orders(cara, "customer", "awarded", None, 10)).items == [hired.body]
    assert (await models.orders(cara, "worker", None, None, 10)).items == []

    closed = order_state(stream, 4, "closed", cara, quotes=quotes, worker_id=will)
    await writer.write(order_row(stream, 4, "order.closed"), snapshots=(closed,))
    assert await models.order_heads(cara) == []


async def test_orders_page_by_latest_activity(store: Store, writer: Writer, partition: int) -> None:
    cara = new_id()
    streams = [f"order:{new_id(partition)}" for _ in range(3)]
    for n, stream in enumerate(streams):
        row = order_row(stream, 1, "order.created", at=AT + n)
        await writer.write(row, snapshots=(order_state(stream, 1, "open", cara),))
    first = await store.read_models().orders(cara, "customer", None, None, 2)
    second = await store.read_models().orders(cara, "customer", None, first.next_cursor, 2)
    listed = [msgspec.json.decode(body)["id"] for body in first.items + second.items]
    assert listed == [bare(stream) for stream in reversed(streams)]
    assert second.next_cursor is None


async def test_rules_learn_how_many_open_orders_a_customer_has(store: Store, writer: Writer, partition: int) -> None:
    cara, nobody = new_id(), new_id()
    for state in ("open", "open", "draft", "awarded"):
        stream = f"order:{new_id(partition)}"
        await writer.write(order_row(stream, 1, "order.created"), snapshots=(order_state(stream, 1, state, cara),))
    facts = await store.facts().facts([OpenOrdersNeed(cara), OpenOrdersNeed(nobody)])
    assert (facts.open_orders(cara), facts.open_orders(nobody)) == (2, 0)


async def test_rules_learn_who_wrote_a_message_and_whether_it_is_gone(
    store: Store, writer: Writer, partition: int
) -> None:
    ann, bob = new_id(), new_id()
    stream = conversation(partition)
    kept, gone, edit = posted(stream, 3, ann), posted(stream, 4, bob), new_id()
    await writer.write(*opened(stream, ann, bob), kept, gone)
    await writer.write(
        chat_row(stream, 5, MessageDeleted(gone.command_id or "", bob, WHEN), bob, new_id()),
        chat_row(stream, 6, MessageEdited(kept.command_id or "", ann, WHEN, "x"), ann, edit),
    )
    place = bare(stream)
    ids = [kept.command_id or "", gone.command_id or "", edit, new_id()]
    facts = await store.facts().facts([MessageNeed(place, message) for message in ids])
    assert [facts.message(place, message) for message in ids] == [
        MessageFact(ann, 3, edits=1),
        MessageFact(bob, 4, deleted=True),
        None,  # the id of a command that posted nothing
        None,
    ]


async def test_rules_learn_a_users_roles_and_profile(sql_store: InSql) -> None:
    worker, customer, unknown = new_id(), new_id(), new_id()
    profile = (
        '{"skills":["plumbing"],"base_lat":31.2,"base_lon":121.4,"radius_m":5000.0,"hourly_rate":1,"currency":"CNY"}'
    )
    async with sql_store.database().write() as connection:
        for user, roles, about in ((worker, '["customer","worker"]', profile), (customer, '["customer"]', None)):
            await connection.exec_driver_sql(
                "INSERT INTO user (id, phone, name, locale, roles, worker, rating_sum, rating_count, created_at,"
                f" updated_at) VALUES ('{user}', '{user[:30]}', '', 'en', '{roles}',"
                f" {'NULL' if about is None else repr(about)}, 0, 0, 0, 0)"
            )
    facts = await sql_store.facts().facts([AccountNeed(user) for user in (worker, customer, unknown)])
    found = facts.account(worker)
    assert found is not None
    assert found.roles == ("customer", "worker")
    assert found.worker is not None
    assert found.worker.skills == ("plumbing",)
    plain = facts.account(customer)
    assert plain is not None
    assert plain.worker is None
    assert facts.account(unknown) is None


async def test_positions_come_back_in_time_order_and_once(store: Store) -> None:
    order, models = new_id(), store.read_models()
    first, second = new_id(), new_id()
    track = [Position(AT + n, 31.2 + n / 1000, 121.4, 5.0, None if n else 1.5, 90.0, first) for n in (2, 0, 1)]
    await models.add_positions(order, track)
    await models.add_positions(order, [track[0], Position(AT + 9, 31.3, 121.5, 7.5, visit_id=second)])
    await models.add_positions(order, [])
    other = store.read_models()
    assert await other.positions(order, first, 10) == sorted(track, key=lambda p: p.at)
    assert [p.at - AT for p in await other.positions(order, None, 3)] == [1, 2, 9]
    assert await other.positions(new_id(), None, 10) == []


async def test_the_ledgers_lines_come_from_the_events(sql_store: InSql, partition: int) -> None:
    log = sql_store.log()
    heads = {p: t.position for p, t in (await log.take([partition], "host", AT)).items()}
    order = new_id(partition)
    stream = f"order:{order}"
    ledger = [
        {
            "kind": "L1",
            "milestone": 1,
            "currency": "CNY",
            "postings": [
                {"account": "psp:sandbox:cash", "amount": 500},
                {"account": f"escrow:{order}:1", "amount": -500},
            ],
        }
    ]
    row = order_row(stream, 1, "order.funded", private={"ledger": ledger})
    await log.commit([turn(row, snapshots=[order_state(stream, 1, "funded", new_id())])], heads)
    async with sql_store.database().read() as connection:
        lines = await connection.exec_driver_sql(
            f"SELECT n, account, debit, credit, currency, posting FROM ledger_posting WHERE order_id = '{order}'"
        )
        assert [tuple(line) for line in lines] == [
            (0, "psp:sandbox:cash", 500, 0, "CNY", "L1"),
            (1, f"escrow:{order}:1", 0, 500, "CNY", "L1"),
        ]


async def test_ratings_count_for_whom_they_are_about_once_they_are_known(sql_store: InSql, partition: int) -> None:
    log = sql_store.log()
    heads = {p: t.position for p, t in (await log.take([partition], "host", AT)).items()}
    accounts = SqlAccounts(sql_store.database(), FixedClock(), lambda: new_id(), FixedKeys())
    worker, _ = await accounts.find_or_create(f"+8613{partition:04d}{int(new_id()[:4], 16):05d}", "en")
    stream = f"order:{new_id(partition)}"
    hidden = order_row(stream, 1, "order.rated", side="customer")
    known = order_row(stream, 2, "order.rated", ratings=[{"by": new_id(), "to": worker.id, "stars": 4}])
    state = order_state(stream, 2, "approved", new_id())
    committed = await log.commit([turn(hidden)], heads)
    assert (await accounts.get([worker.id]))[worker.id].rating_count == 0
    await log.commit([turn(known, snapshots=[state])], committed.heads)
    rated = (await accounts.get([worker.id]))[worker.id]
    assert (rated.rating_sum, rated.rating_count) == (4, 1)


class FixedClock:
    def now_ms(self) -> int:
        return AT

    def monotonic_s(self) -> float:
        return 0.0
