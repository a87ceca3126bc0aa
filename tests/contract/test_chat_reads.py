"""Histories of messages, what is unread, what is hidden from whom, and who has blocked whom, on every store."""

from typing import Any

import msgspec
import pytest

from domain.aggregate import BlockNeed
from domain.chat import (
    CHAT,
    ContactsRevealed,
    MemberJoined,
    MemberLeft,
    MessageDeleted,
    MessageEdited,
    MessagePosted,
    MessageReacted,
    MessageRevealed,
    ReceiptDelivered,
    ReceiptRead,
)
from domain.chat_events import Original
from domain.ports import Entry, MessageVersion
from domain.times import rfc3339
from storage.blocks import SqlBlocks
from tests.contract.conftest import InMemory, InSql, Store
from tests.support.log_rows import AT, HASH, chat_row, conversation, new_id, opened, posted, turn

WHEN = rfc3339(AT)
NUMBER = "13800138000"


class Writer:
    """The owner of a partition; each call is one flush."""

    def __init__(self, store: Store, partition: int) -> None:
        self._partition, self._log = partition, store.log()
        self._heads: dict[int, int] = {}

    async def write(self, *entries: Entry) -> None:
        if not self._heads:
            taken = await self._log.take([self._partition], "host", AT)
            self._heads = {partition: takeover.position for partition, takeover in taken.items()}
        self._heads.update((await self._log.commit([turn(*entries)], self._heads)).heads)


@pytest.fixture
def writer(store: Store, partition: int) -> Writer:
    return Writer(store, partition)


def bare(stream: str) -> str:
    return stream.partition(":")[2]


def hidden(stream: str, offset: int, by: str, text: str, message_id: str) -> Entry:
    """A message in which the text's end is masked."""
    event = MessagePosted(message_id, by, WHEN, "•••", masked=("phone",), private=Original(len(text), text))
    return Entry(stream, offset, "message.posted", message_id, HASH, f"user:{by}", AT, CHAT.encode_event(event))


# --- histories ---------------------------------------------------------------------------------------------------


async def test_a_messages_history_is_everything_that_it_said(store: Store, writer: Writer, partition: int) -> None:
    ann, bob = new_id(), new_id()
    stream = conversation(partition)
    first, other = posted(stream, 3, ann, "one"), posted(stream, 4, bob, "other")
    await writer.write(*opened(stream, ann, bob), first, other)
    mine = first.command_id or ""
    await writer.write(
        chat_row(stream, 5, MessageEdited(mine, ann, WHEN, "two"), ann, new_id(), AT + 5),
        chat_row(stream, 6, MessageReacted(mine, bob, WHEN, "👍", True), bob, new_id()),
        chat_row(stream, 7, MessageEdited(other.command_id or "", bob, WHEN, "other!"), bob, new_id()),
    )
    await writer.write(chat_row(stream, 8, MessageEdited(mine, ann, WHEN, "three"), ann, new_id(), AT + 8))
    models = store.read_models()
    assert await models.history(bare(stream), mine) == [
        MessageVersion(3, AT, ann, "one"),
        MessageVersion(5, AT + 5, ann, "two"),
        MessageVersion(8, AT + 8, ann, "three"),
    ]
    assert await models.history(bare(stream), other.command_id or "") == [
        MessageVersion(4, AT, bob, "other"),
        MessageVersion(7, AT, bob, "other!"),
    ]


async def test_a_deleted_message_has_no_history_and_no_message_has_none(
    store: Store, writer: Writer, partition: int
) -> None:
    ann, bob, edit = new_id(), new_id(), new_id()
    stream = conversation(partition)
    gone = posted(stream, 3, ann)
    await writer.write(*opened(stream, ann, bob), gone)
    await writer.write(
        chat_row(stream, 4, MessageEdited(gone.command_id or "", ann, WHEN, "x"), ann, edit),
        chat_row(stream, 5, MessageDeleted(gone.command_id or "", ann, WHEN), ann, new_id()),
    )
    models = store.read_models()
    assert await models.history(bare(stream), gone.command_id or "") == []
    assert await models.history(bare(stream), edit) is None
    assert await models.history(bare(stream), new_id()) is None
    assert await models.history(new_id(), gone.command_id or "") is None


# --- unread ------------------------------------------------------------------------------------------------------


async def unread(store: Store, stream: str, user: str, after: int) -> tuple[int, int]:
    """As the list and as the conversation say it."""
    (row,) = (await store.read_models().conversations(user, None, 10)).items
    return row.unread, await store.read_models().unread(bare(stream), user, after)


async def test_what_was_deleted_and_what_the_platform_says_is_not_unread(
    store: Store, writer: Writer, partition: int
) -> None:
    ann, bob = new_id(), new_id()
    stream = conversation(partition)
    messages = [posted(stream, n, ann, '"erased":true') for n in (3, 4, 5)]
    card = MessagePosted(new_id(), "system", WHEN, "Paid.", card={"erased": False})
    body = CHAT.encode_event(card)
    told = Entry(stream, 6, "message.posted", card.message_id, HASH, "system:renoveasy", AT, body)
    await writer.write(*opened(stream, ann, bob), *messages, told)
    assert await unread(store, stream, bob, 2) == (3, 3)

    await writer.write(chat_row(stream, 7, MessageDeleted(messages[1].command_id or "", ann, WHEN), ann, new_id()))
    assert await unread(store, stream, bob, 2) == (2, 2)
    await writer.write(chat_row(stream, 8, ReceiptRead(bob, WHEN, 3, "phone", 3), bob))
    assert await unread(store, stream, bob, 3) == (1, 1)
    await writer.write(chat_row(stream, 9, MessageDeleted(messages[0].command_id or "", ann, WHEN), ann, new_id()))
    assert await unread(store, stream, bob, 3) == (1, 1)
    assert await unread(store, stream, ann, 2) == (0, 0)


async def test_a_device_that_is_behind_takes_nothing_back(store: Store, writer: Writer, partition: int) -> None:
    ann, bob = new_id(), new_id()
    stream = conversation(partition)
    await writer.write(*opened(stream, ann, bob), *(posted(stream, n, ann) for n in (3, 4, 5)))
    await writer.write(chat_row(stream, 6, ReceiptRead(bob, WHEN, 5, "phone", 5), bob))
    await writer.write(chat_row(stream, 7, ReceiptRead(bob, WHEN, 5, "tablet", 2), bob))
    assert await unread(store, stream, bob, 5) == (0, 0)


@pytest.mark.parametrize("at_once", [False, True])
async def test_who_comes_back_begins_anew(store: Store, writer: Writer, partition: int, at_once: bool) -> None:
    ann, bob = new_id(), new_id()
    stream = conversation(partition)
    await writer.write(*opened(stream, ann, bob), posted(stream, 3, ann))
    rows = [
        chat_row(stream, 4, ReceiptRead(bob, WHEN, 3), bob),
        chat_row(stream, 5, ReceiptDelivered(bob, WHEN, 3), bob),
        chat_row(stream, 6, MemberLeft(bob, WHEN, bob), bob, new_id()),
        chat_row(stream, 7, MemberJoined(ann, WHEN, bob), ann, new_id()),
        posted(stream, 8, ann),
    ]
    for piece in [rows] if at_once else [[row] for row in rows]:
        await writer.write(*piece)
    (row,) = (await store.read_models().conversations(bob, None, 10)).items
    assert (row.read_offset, row.unread) == (0, 1)
    await writer.write(chat_row(stream, 9, ReceiptRead(bob, WHEN, 8), bob))
    (row,) = (await store.read_models().conversations(bob, None, 10)).items
    assert (row.read_offset, row.unread) == (8, 0)


# --- what is hidden ----------------------------------------------------------------------------------------------


async def text_for(store: Store, viewer: str) -> str:
    (row,) = (await store.read_models().conversations(viewer, None, 10)).items
    shown: dict[str, Any] = msgspec.json.decode(row.last_message)
    assert "private" not in shown
    return str(shown["text"])


async def test_what_is_hidden_is_for_its_author_alone(store: Store, writer: Writer, partition: int) -> None:
    ann, bob, message = new_id(), new_id(), new_id()
    stream = conversation(partition)
    await writer.write(*opened(stream, ann, bob, order_id=new_id(partition)), hidden(stream, 3, ann, NUMBER, message))
    assert (await text_for(store, ann), await text_for(store, bob)) == (NUMBER, "•••")
    models = store.read_models()
    ((row,), _) = await models.messages(bare(stream), before=None, after=None, limit=5)
    assert (row.text, row.original, row.masked) == ("•••", NUMBER, ("phone",))
    assert NUMBER.encode() not in row.data
    assert NUMBER.encode() not in (await store.reader().read(stream, 2, 9))[0][1]

    edited = MessageEdited(message, ann, WHEN, "••• now", ("phone",), private=Original(9, f"{NUMBER} now"))
    await writer.write(chat_row(stream, 4, edited, ann, new_id()))
    assert (await text_for(store, ann), await text_for(store, bob)) == (f"{NUMBER} now", "••• now")
    assert await models.history(bare(stream), message) == [
        MessageVersion(3, AT, ann, "•••", NUMBER),
        MessageVersion(4, AT, ann, "••• now", f"{NUMBER} now"),
    ]
    plain = chat_row(stream, 5, MessageEdited(message, ann, WHEN, "never mind"), ann, new_id())
    await writer.write(plain)
    assert (await text_for(store, ann), await text_for(store, bob)) == ("never mind", "never mind")
    ((row,), _) = await models.messages(bare(stream), before=None, after=None, limit=5)
    assert (row.text, row.original, row.masked) == ("never mind", None, ())


async def test_once_contacts_are_revealed_nothing_is_hidden_not_even_what_no_event_reveals(
    store: Store, writer: Writer, partition: int
) -> None:
    ann, bob, old, edited, told = (new_id() for _ in range(5))
    stream = conversation(partition)
    change = MessageEdited(edited, ann, WHEN, "•••", ("phone",), private=Original(11, f"{NUMBER} 2"))
    await writer.write(
        *opened(stream, ann, bob, order_id=new_id(partition)),
        hidden(stream, 3, ann, f"{NUMBER} 1", old),
        posted(stream, 4, ann, "x", edited),
        chat_row(stream, 5, change, ann, new_id()),
        hidden(stream, 6, ann, f"{NUMBER} 3", told),
    )
    await writer.write(
        chat_row(stream, 7, ContactsRevealed("system", WHEN), "p", new_id()),
        chat_row(stream, 8, MessageRevealed(told, "system", WHEN, f"{NUMBER} 3"), "p"),
    )
    models = store.read_models()
    rows, _ = await models.messages(bare(stream), before=None, after=0, limit=9)
    assert [(row.text, row.masked, row.original) for row in rows] == [(f"{NUMBER} {n}", (), None) for n in (1, 2, 3)]
    assert await text_for(store, bob) == f"{NUMBER} 3"
    assert rows[2].edited_at is None
    history = await models.history(bare(stream), edited)
    assert history is not None
    assert [version.text for version in history] == ["x", f"{NUMBER} 2"]


# --- blocks ------------------------------------------------------------------------------------------------------


async def test_rules_learn_who_has_blocked_whom(store: Store) -> None:
    ann, bob, eve = new_id(), new_id(), new_id()
    if isinstance(store, InMemory):
        store.store.blocks.add((ann, bob))
    else:
        assert isinstance(store, InSql)
        blocks = SqlBlocks(store.database())
        await blocks.block(ann, bob, AT)
        await blocks.block(eve, bob, AT)
        await blocks.unblock(eve, bob, AT + 1)
    pairs = [(ann, bob), (bob, ann), (eve, bob), (ann, eve)]
    facts = await store.facts().facts([BlockNeed(*pair) for pair in pairs])
    assert [facts.blocks(*pair) for pair in pairs] == [True, False, False, False]
