"""What a client keeps: one suite for both outboxes, and what only the file can get wrong."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.client_store import Batch, Kept, MemoryOutbox, OutboxBroken, OutboxFile, Place, SqliteOutbox
from gateway.client_wire import Position, Write

W1, W2 = (Write(f"w{n}", "conversation:c", "message.send", b'{"n":%d}' % n) for n in (1, 2))


def receipt(watermark: int) -> Write:
    return Write("receipt.read c", "conversation:c", "receipt.read", b'{"offset":%d}' % watermark, watermark)


class Phone:
    """A device on which one outbox is opened after the other."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.outbox: OutboxFile = MemoryOutbox()

    async def start(self) -> Kept:
        if self.path is not None:
            self.outbox = SqliteOutbox(self.path)
        return await self.outbox.open()

    async def restart(self) -> Kept:
        await self.outbox.close()
        return await self.start()


@pytest.fixture(params=["memory", "sqlite"])
async def phone(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Phone]:
    phone = Phone(tmp_path / "phone.db" if request.param == "sqlite" else None)
    assert await phone.start() == Kept()
    yield phone
    await phone.outbox.close()


async def test_writes_come_back_in_their_order_and_settled_ones_do_not(phone: Phone) -> None:
    await phone.outbox.commit(Batch(saved=[W2]))
    await phone.outbox.commit(Batch(owner="alice", saved=[W1, receipt(1)], settled=[W2]))
    await phone.outbox.commit(Batch(saved=[W2]))
    assert await phone.restart() == Kept("alice", [W1, receipt(1), W2])


async def test_a_write_that_is_saved_again_stays_what_it_was(phone: Phone) -> None:
    await phone.outbox.commit(Batch(saved=[W1, W2]))
    await phone.outbox.commit(Batch(saved=[Write("w1", W1.stream, W1.method, b"{}")]))
    assert (await phone.restart()).writes == [W1, W2]


async def test_a_receipt_only_grows_and_goes_when_its_highest_is_settled(phone: Phone) -> None:
    await phone.outbox.commit(Batch(saved=[receipt(5), receipt(3), receipt(9)]))
    await phone.outbox.commit(Batch(settled=[receipt(5)]))
    assert (await phone.restart()).writes == [receipt(9)]
    await phone.outbox.commit(Batch(settled=[receipt(9)]))
    assert (await phone.restart()).writes == []


async def test_places_are_kept_replaced_and_forgotten(phone: Phone) -> None:
    there = Place(Position("e", 7), 1, b"view")
    await phone.outbox.commit(Batch(places={"a": Place(Position("e", 1)), "b": there}))
    await phone.outbox.commit(Batch(places={"a": None, "b": Place(Position("e", 8), 1, b"more")}))
    assert (await phone.restart()).places == {"b": Place(Position("e", 8), 1, b"more")}


async def test_two_processes_do_not_share_a_file(tmp_path: Path) -> None:
    first, second = SqliteOutbox(tmp_path / "phone.db"), SqliteOutbox(tmp_path / "phone.db")
    await first.open()
    with pytest.raises(OutboxBroken, match="locked"):
        await second.open()
    await second.close()
    await first.close()


async def test_a_file_that_is_no_outbox_or_one_of_another_release_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Sir or Madam, " * 100)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("PRAGMA user_version = 99")
    other.close()
    for name, reason in (("letter.txt", "not a database"), ("other.db", "another release"), ("no/where", "unable")):
        outbox = SqliteOutbox(tmp_path / name)
        with pytest.raises(OutboxBroken, match=reason):
            await outbox.open()
        await outbox.close()
    assert (tmp_path / "letter.txt").read_text().startswith("Dear Sir")


async def test_a_batch_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    outbox = SqliteOutbox(tmp_path / "phone.db")
    await outbox.open()
    bad = Write("w2", "conversation:c", "message.send", None)  # type: ignore[arg-type]
    with pytest.raises(OutboxBroken):
        await outbox.commit(Batch(saved=[W1, bad]))
    await outbox.commit(Batch(saved=[W2]))
    await outbox.close()
    outbox = SqliteOutbox(tmp_path / "phone.db")
    assert (await outbox.open()).writes == [W2]
    await outbox.close()
