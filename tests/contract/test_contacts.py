"""`ports.ReadModels.contacts`: with whom somebody shares a conversation, on every store."""

from domain.chat import MemberLeft
from storage.blocks import SqlBlocks
from tests.contract.conftest import InSql, Store
from tests.contract.test_read_models import WHEN, Writer, writer
from tests.support.log_rows import AT, chat_row, conversation, new_id, opened

__all__ = ["writer"]


async def test_contacts_are_those_with_whom_one_shares_a_conversation_now(
    store: Store, writer: Writer, partition: int
) -> None:
    ann, bob, eve, carl = new_id(), new_id(), new_id(), new_id()
    first, second = conversation(partition), conversation(partition)
    await writer.write(*opened(first, ann, bob), *opened(second, bob, carl))
    contacts = store.read_models().contacts
    assert await contacts(ann, [bob, carl, eve, ann]) == {bob}
    assert await contacts(bob, [ann, carl, eve]) == {ann, carl}
    assert await contacts(eve, [ann, bob]) == frozenset()
    assert await contacts(ann, []) == frozenset()
    await writer.write(chat_row(first, 3, MemberLeft(ann, WHEN, bob), ann, new_id()))
    assert await contacts(ann, [bob]) == await contacts(bob, [ann]) == frozenset()


async def test_a_hundred_at_once_are_answered_too(store: Store, writer: Writer, partition: int) -> None:
    ann, others = new_id(), [new_id() for _ in range(100)]
    for number in range(3):
        await writer.write(*opened(conversation(partition), ann, others[number * 40]))
    assert await store.read_models().contacts(ann, others) == {others[0], others[40], others[80]}


async def test_who_has_blocked_somebody_is_no_contact_of_theirs(sql_store: InSql, partition: int) -> None:
    log = sql_store.log()
    ann, bob = new_id(), new_id()
    mine = Writer(log, {p: t.position for p, t in (await log.take([partition], "host", AT)).items()})
    await mine.write(*opened(conversation(partition), ann, bob))
    blocks, contacts = SqlBlocks(sql_store.database()), sql_store.read_models().contacts
    await blocks.block(bob, ann, AT)
    assert (await contacts(ann, [bob]), await contacts(bob, [ann])) == (frozenset(), {ann})
    await blocks.unblock(bob, ann, AT + 1)
    assert await contacts(ann, [bob]) == {bob}
