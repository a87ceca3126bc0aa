"""`Uploads` and `WorkerDocuments` on SQLite and on MariaDB."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from domain.acts import Act
from domain.aggregate import AccountNeed, UploadFact, UploadNeed
from domain.audit import Wanted
from domain.channels import stream_partition
from domain.errors import Code, Refusal
from domain.ports import Entry, StoreUnavailable, Turn
from domain.uploads import DOOMED_MS, UNUSED_MS, ContentDamaged, Upload
from domain.verification import DOCUMENTS_MOST, Review, WorkerDocument
from storage import tables as t
from storage.accounts import SqlAccounts
from storage.audit import SqlAudit
from storage.engine import Database
from storage.facts import SqlFacts
from storage.partition_log import SqlPartitionLog
from storage.reencryption import reencrypt
from storage.uploads import SqlUploads
from storage.verification import SqlWorkerDocuments
from tests.support.databases import migrated
from tests.support.keys import FixedKeys
from tests.support.memory_uploads import MemoryObjects
from tests.support.rest_app import ManualClock

NOW = 1_800_000_000_000
QUOTA = 10_000
_numbers = count(1)


def new_id() -> str:
    return f"01890000-0000-7000-9000-{next(_numbers):012x}"


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with migrated(request.param, tmp_path_factory.mktemp("uploads")) as url:
        yield url


class Place:
    """What one process has: two of them share a database and an object store."""

    def __init__(self, url: str, objects: MemoryObjects, keys: FixedKeys) -> None:
        self.database = Database(url)
        self.objects = objects
        self.uploads = SqlUploads(self.database, objects, keys)
        self.audit = SqlAudit(self.database, b"k" * 32, ManualClock(), new_id)
        self.documents = SqlWorkerDocuments(self.database, keys, self.audit)
        self.accounts = SqlAccounts(self.database, ManualClock(), new_id, keys)
        self.facts = SqlFacts(self.database)

    async def user(self) -> str:
        user, _ = await self.accounts.find_or_create(f"+8613{next(_numbers):09d}", "en")
        return user.id

    async def known(self, upload_id: str) -> Any:
        return (await self.facts.facts([UploadNeed(upload_id)])).upload(upload_id)

    async def added(self, owner_id: str, content: bytes = b"content", **fields: Any) -> Upload:
        made = upload(owner_id, content, **fields)
        assert await self.uploads.add(made, content, QUOTA) == (made, False)
        return made


@pytest.fixture
async def places(url: str) -> AsyncIterator[tuple[Place, Place]]:
    objects = MemoryObjects()
    made = Place(url, objects, FixedKeys()), Place(url, objects, FixedKeys())
    yield made
    for place in made:
        await place.database.close()


@pytest.fixture
def place(places: tuple[Place, Place]) -> Place:
    return places[0]


def upload(owner_id: str, content: bytes = b"content", **fields: Any) -> Upload:
    digest = bytes([len(content) % 256]) * 32
    made = Upload(new_id(), owner_id, "chat", "image/png", len(content), digest, NOW)
    return msgspec.structs.replace(made, **fields)


async def refusal(doing: Any) -> Code:
    with pytest.raises(Refusal) as refused:
        await doing
    return refused.value.code


# --- uploads -----------------------------------------------------------------------------------------------------


async def test_an_upload_is_found_with_its_content_by_every_process(places: tuple[Place, Place]) -> None:
    here, there = places
    owner = await here.user()
    made = await here.added(owner, b"some pixels")
    assert await there.uploads.get(made.id) == made
    assert await there.uploads.content(made.id) == b"some pixels"
    assert await there.known(made.id) == UploadFact(owner, "chat")
    assert await there.uploads.get(new_id()) is None
    assert await there.uploads.content(new_id()) is None
    assert await there.known(new_id()) is None


async def test_what_the_store_holds_is_sealed_for_its_upload_alone(place: Place) -> None:
    owner = await place.user()
    one, two = await place.added(owner, b"secret one!"), await place.added(owner, b"secret two!")
    assert not any(b"secret" in content for content in place.objects.contents.values())
    names = sorted(place.objects.contents)
    assert not {one.id, two.id, one.id.replace("-", "")} & set(names)
    a, b = (place.objects.contents[name] for name in names)
    place.objects.contents.update({names[0]: b, names[1]: a})
    for made in (one, two):
        with pytest.raises(ContentDamaged):
            await place.uploads.content(made.id)
    place.objects.contents.update({names[0]: a[:-1] + bytes([a[-1] ^ 1]), names[1]: b[:5]})
    for made in (one, two):
        with pytest.raises(ContentDamaged):
            await place.uploads.content(made.id)
    place.objects.contents.clear()
    with pytest.raises(ContentDamaged, match="missing"):
        await place.uploads.content(one.id)


async def test_the_same_again_is_what_was_stored_and_anything_else_under_its_id_is_refused(place: Place) -> None:
    owner, other = await place.user(), await place.user()
    made = await place.added(owner)
    later = msgspec.structs.replace(made, created_at=NOW + 5)
    assert await place.uploads.add(later, b"content", QUOTA) == (made, True)
    for change in ({"owner_id": other}, {"purpose": "photo"}, {"digest": b"x" * 32}):
        different = msgspec.structs.replace(made, **change)
        assert await refusal(place.uploads.add(different, b"content", QUOTA)) is Code.IDEMPOTENCY_MISMATCH
    assert await place.uploads.content(made.id) == b"content"


async def test_many_at_once_under_one_id_make_one_upload(places: tuple[Place, Place]) -> None:
    owner = await places[0].user()
    made = upload(owner)
    answers = await asyncio.gather(*(places[n % 2].uploads.add(made, b"content", QUOTA) for n in range(8)))
    assert {answer[0] for answer in answers} == {made}
    assert await places[0].uploads.content(made.id) == b"content"
    assert len(places[0].objects.contents) == 1


async def test_a_quota_is_never_exceeded_by_any_race(places: tuple[Place, Place]) -> None:
    owner, other = await places[0].user(), await places[0].user()
    content = b"x" * 1_000
    tries = (places[n % 2].uploads.add(upload(owner, content), content, 4_000) for n in range(8))
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(answer, tuple) for answer in answers) == 4
    assert {answer.code for answer in answers if isinstance(answer, Refusal)} == {Code.CONFLICT}
    assert len(places[0].objects.contents) == 4
    await places[0].added(other, content)


async def test_an_object_store_that_is_away_leaves_a_row_that_the_same_again_completes(place: Place) -> None:
    owner, made = await place.user(), None
    made = upload(owner)
    place.objects.error = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await place.uploads.add(made, b"content", QUOTA)
    place.objects.error = None
    assert await place.uploads.get(made.id) is None
    assert await place.known(made.id) is None
    assert await place.uploads.list_of(owner, "", 10) == []
    assert await place.uploads.add(made, b"content", QUOTA) == (made, False)
    assert await place.uploads.content(made.id) == b"content"


async def commit(place: Place, stream: str, offset: int, body: Any, kind: str, command_id: str) -> None:
    log = SqlPartitionLog(place.database)
    partition = stream_partition(stream)
    head = (await log.heads([partition]))[partition]
    entry = Entry(stream, offset, kind, command_id, b"h" * 16, "user:x", NOW + offset, msgspec.json.encode(body))
    assert not (await log.commit([Turn(partition, [entry])], {partition: head})).stale
    await log.close()


async def posted(place: Place, room: str, offset: int, *attachments: str) -> str:
    message_id = new_id()
    body = {"type": "message.posted", "message_id": message_id, "by": "x", "at": "t", "attachments": attachments}
    await commit(place, f"conversation:{room}", offset, body, "message.posted", message_id)
    return message_id


async def deleted(place: Place, room: str, offset: int, message_id: str) -> None:
    at = "2027-01-15T08:00:00.000Z"
    body = {"type": "message.deleted", "message_id": message_id, "by": "x", "at": at}
    await commit(place, f"conversation:{room}", offset, body, "message.deleted", new_id())


async def joined(place: Place, room: str, offset: int, user_id: str) -> None:
    body = {"type": "member.joined", "by": user_id, "at": "2027-01-15T08:00:00.000Z", "user_id": user_id}
    await commit(place, f"conversation:{room}", offset, body, "member.joined", new_id())


async def test_what_names_an_upload_is_known_from_the_commit_on(place: Place) -> None:
    owner, member, stranger = [await place.user() for _ in range(3)]
    picture, photo, other = [await place.added(owner) for _ in range(3)]
    room, order = new_id(), new_id()
    await joined(place, room, 1, member)
    await posted(place, room, 2, picture.id, picture.id, "no id at all")
    await commit(place, f"order:{order}", 1, {"type": "order.created", "photos": [photo.id]}, "order.created", new_id())
    private = {"type": "order.dispute_opened", "private": {"evidence": [other.id]}}
    await commit(place, f"order:{order}", 2, private, "order.dispute_opened", new_id())
    streams = place.uploads.streams
    assert await streams(picture.id, member, 10) == [f"conversation:{room}"]
    assert await streams(picture.id, stranger, 10) == []
    for named in (photo, other):
        assert await streams(named.id, stranger, 10) == [f"order:{order}"], "the order itself says who sees it"


async def swept(place: Place, at_ms: int) -> None:
    while await place.uploads.sweep(at_ms, 50):
        pass


async def test_what_nobody_names_is_doomed_after_a_day_and_gone_an_hour_later(place: Place) -> None:
    owner, room = await place.user(), new_id()
    unused, used = await place.added(owner), await place.added(owner)
    await posted(place, room, 1, used.id)
    await swept(place, NOW + UNUSED_MS - 1)
    assert await place.known(unused.id) is not None
    await swept(place, NOW + UNUSED_MS)
    assert await place.known(unused.id) is None, "nothing names it from now on"
    assert await place.uploads.content(unused.id) == b"content"
    await swept(place, NOW + UNUSED_MS + DOOMED_MS - 1)
    assert await place.uploads.get(unused.id) is not None
    await swept(place, NOW + UNUSED_MS + DOOMED_MS)
    assert await place.uploads.get(unused.id) is None
    assert await place.uploads.content(used.id) == b"content"
    assert await place.known(used.id) is not None
    assert len(place.objects.contents) == 1


async def test_a_commit_that_was_under_way_when_an_upload_was_doomed_saves_it(place: Place) -> None:
    owner, room = await place.user(), new_id()
    made = await place.added(owner)
    await swept(place, NOW + UNUSED_MS)
    await posted(place, room, 1, made.id)
    await swept(place, NOW + UNUSED_MS + DOOMED_MS)
    assert await place.known(made.id) is not None
    assert await place.uploads.content(made.id) == b"content"


async def test_a_deleted_message_lets_its_attachments_go_unless_another_one_names_them(place: Place) -> None:
    owner, member, room = await place.user(), await place.user(), new_id()
    alone, shared = await place.added(owner), await place.added(owner)
    await joined(place, room, 1, member)
    first = await posted(place, room, 2, alone.id, shared.id)
    await posted(place, room, 3, shared.id)
    await swept(place, NOW + UNUSED_MS)
    assert await place.uploads.streams(alone.id, member, 10) == [f"conversation:{room}"]
    await deleted(place, room, 4, first)
    assert await place.uploads.streams(alone.id, member, 10) == []
    assert await place.uploads.streams(shared.id, member, 10) == [f"conversation:{room}"]
    later = NOW + 400 * UNUSED_MS
    await swept(place, later)
    await swept(place, later + DOOMED_MS)
    assert await place.uploads.get(alone.id) is None
    assert await place.uploads.content(shared.id) == b"content"


async def test_an_object_store_that_is_away_keeps_word_of_what_is_to_be_removed(place: Place) -> None:
    owner = await place.user()
    made = await place.added(owner)
    await swept(place, NOW + UNUSED_MS)
    place.objects.error = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await swept(place, NOW + UNUSED_MS + DOOMED_MS)
    assert await place.uploads.get(made.id) is None, "nobody can read it any more"
    place.objects.error = None
    assert place.objects.contents
    await swept(place, NOW + UNUSED_MS + DOOMED_MS)
    assert place.objects.contents == {}


async def test_who_is_forgotten_leaves_no_upload_and_others_keep_theirs(place: Place) -> None:
    owner, other, room = await place.user(), await place.user(), new_id()
    mine = [await place.added(owner) for _ in range(3)]
    theirs = await place.added(other)
    await posted(place, room, 1, mine[0].id, theirs.id)
    await place.uploads.forget(owner)
    await place.uploads.forget(owner)
    assert await place.uploads.list_of(owner, "", 10) == []
    assert [await place.uploads.content(each.id) for each in mine] == [None] * 3
    assert await place.uploads.content(theirs.id) == b"content"
    assert len(place.objects.contents) == 1


async def test_a_list_is_the_owners_by_id(place: Place) -> None:
    owner = await place.user()
    made = [await place.added(owner) for _ in range(5)]
    await place.added(await place.user())
    assert await place.uploads.list_of(owner, "", 3) == made[:3]
    assert await place.uploads.list_of(owner, made[2].id, 3) == made[3:]


# --- documents ---------------------------------------------------------------------------------------------------

NUMBER = "310101199001011234"
ACT = Act("document.reviewed", "ok")


async def handed_in(place: Place, worker_id: str, number: str = NUMBER, **fields: Any) -> WorkerDocument:
    file = await place.added(worker_id, purpose="document")
    made = WorkerDocument(new_id(), worker_id, "identity", file.id, "pending", NOW)
    made = msgspec.structs.replace(made, **fields)
    stored, replayed = await place.documents.add(made, number)
    assert not replayed
    return stored


async def account(place: Place, worker_id: str) -> tuple[int, dict[str, int]]:
    user = (await place.accounts.get([worker_id]))[worker_id]
    fact = (await place.facts.facts([AccountNeed(worker_id)])).account(worker_id)
    assert fact is not None
    assert (fact.identity_until, fact.licences) == (user.identity_until, user.licences)
    return user.identity_until, user.licences


async def test_a_document_is_listed_without_its_number_which_is_stored_encrypted(place: Place) -> None:
    worker = await place.user()
    made = await handed_in(place, worker)
    assert made.number_tail == "1234"
    assert await place.documents.list_of(worker) == [made]
    async with place.database.read() as connection:
        rows = (await connection.execute(sa.select(t.worker_document))).all()
    assert NUMBER.encode() not in repr(rows).encode()
    for number, tail in (
        ("", ""),
        ("12", ""),
        ("123", "3"),
        ("12345", "5"),
        ("1234567", "67"),
        ("123456789012", "9012"),
    ):
        assert (await handed_in(place, worker, number)).number_tail == tail


async def test_the_same_document_again_is_how_it_stands_and_another_one_is_refused(place: Place) -> None:
    worker, other = await place.user(), await place.user()
    made = await handed_in(place, worker)
    assert await place.documents.add(made, NUMBER) == (made, True)
    for change in ({"kind": "licence", "skill": "gas"}, {"worker_id": other}, {"expires_at": 5}):
        different = msgspec.structs.replace(made, **change)
        assert await refusal(place.documents.add(different, NUMBER)) is Code.IDEMPOTENCY_MISMATCH
    again = msgspec.structs.replace(made, id=new_id())
    assert await refusal(place.documents.add(again, NUMBER)) is Code.INVALID


async def test_only_the_workers_own_documents_are_taken(place: Place) -> None:
    worker, other = await place.user(), await place.user()
    theirs = await place.added(other, purpose="document")
    chat = await place.added(worker, purpose="chat")
    for upload_id in (theirs.id, chat.id, new_id()):
        made = WorkerDocument(new_id(), worker, "identity", upload_id, "pending", NOW)
        assert await refusal(place.documents.add(made, "")) is Code.INVALID
    assert await place.documents.list_of(worker) == []


async def test_a_document_keeps_its_upload_from_being_swept(place: Place) -> None:
    made = await handed_in(place, await place.user())
    await swept(place, NOW + UNUSED_MS)
    await swept(place, NOW + UNUSED_MS + DOOMED_MS)
    assert await place.uploads.content(made.upload_id) == b"content"


async def test_what_is_approved_counts_until_it_expires_and_the_act_is_written_down(place: Place) -> None:
    worker, ops = await place.user(), await place.user()
    identity = await handed_in(place, worker)
    licence = await handed_in(place, worker, kind="licence", skill="gas 煤气")
    assert await account(place, worker) == (0, {})
    act = msgspec.structs.replace(ACT, object=f"worker_document:{identity.id}")
    stands = await place.documents.review(identity.id, Review(True, ops, NOW + 5, NOW + 100), act)
    assert (stands.state, stands.expires_at, stands.reviewed_by) == ("approved", NOW + 100, ops)
    assert await account(place, worker) == (NOW + 100, {})
    await place.documents.review(licence.id, Review(True, ops, NOW + 5, NOW + 200), ACT)
    assert await account(place, worker) == (NOW + 100, {"gas 煤气": NOW + 200})
    written = await place.audit.find(Wanted(act="document.reviewed"), None, 50)
    assert [item.act.object for item in written.items].count(act.object) == 1
    assert await place.documents.review(identity.id, Review(True, ops, NOW + 9, NOW + 100), act) == stands
    other = Review(False, ops, NOW, reason="blurred")
    assert await refusal(place.documents.review(identity.id, other, ACT)) is Code.CONFLICT
    assert await account(place, worker) == (NOW + 100, {"gas 煤气": NOW + 200})


async def test_what_is_rejected_counts_for_nothing(place: Place) -> None:
    worker, ops = await place.user(), await place.user()
    made = await handed_in(place, worker)
    stands = await place.documents.review(made.id, Review(False, ops, NOW, reason="blurred"), ACT)
    assert (stands.state, stands.reason) == ("rejected", "blurred")
    assert await account(place, worker) == (0, {})
    own = await handed_in(place, worker)
    assert await refusal(place.documents.review(own.id, Review(True, worker, NOW, NOW + 1), ACT)) is Code.FORBIDDEN
    assert await refusal(place.documents.review(new_id(), Review(True, ops, NOW, NOW + 1), ACT)) is Code.NOT_FOUND


async def test_of_many_who_judge_at_once_one_does(places: tuple[Place, Place]) -> None:
    worker = await places[0].user()
    made = await handed_in(places[0], worker)
    reviews = [Review(n % 2 == 0, new_id(), NOW, NOW + n if n % 2 == 0 else 0, str(n)) for n in range(6)]
    doing = (places[n % 2].documents.review(made.id, each, ACT) for n, each in enumerate(reviews))
    answers = await asyncio.gather(*doing, return_exceptions=True)
    assert sum(isinstance(answer, WorkerDocument) for answer in answers) == 1
    assert {answer.code for answer in answers if isinstance(answer, Refusal)} == {Code.CONFLICT}


async def test_those_that_have_waited_longest_come_first_page_by_page(place: Place) -> None:
    worker = await place.user()
    made = [await handed_in(place, worker, created_at=NOW - 10**9 + n) for n in range(5)]
    first = await place.documents.find("pending", None, 2)
    second = await place.documents.find("pending", first.next_cursor, 3)
    assert [*first.items, *second.items] == made
    assert await refusal(place.documents.find("pending", "nonsense", 2)) is Code.INVALID


async def test_a_worker_hands_in_so_many_at_most(place: Place) -> None:
    worker = await place.user()
    for _ in range(DOCUMENTS_MOST):
        await handed_in(place, worker, "")
    file = await place.added(worker, purpose="document")
    one_more = WorkerDocument(new_id(), worker, "identity", file.id, "pending", NOW)
    assert await refusal(place.documents.add(one_more, "")) is Code.CONFLICT


# --- keys --------------------------------------------------------------------------------------------------------


async def test_a_new_data_key_rewrites_keys_and_numbers_and_no_content(url: str, place: Place) -> None:
    worker = await place.user()
    made = await handed_in(place, worker)
    before = dict(place.objects.contents)
    both = FixedKeys(1, 2)
    done = await reencrypt(place.database, both, lambda progress: None)
    assert done.done == done.total > 0
    assert done.damaged == []
    assert place.objects.contents == before
    only_new = Place(url, place.objects, FixedKeys(2))
    assert await only_new.uploads.content(made.upload_id) == b"content"
    assert await only_new.documents.list_of(worker) == [made]
    assert (await reencrypt(place.database, both, lambda progress: None)).total == 0
    await only_new.database.close()
    # What other tests of this module have is under the first key again.
    async with place.database.write() as connection:
        for table in (t.worker_document, t.upload_use, t.upload, t.user):
            await connection.execute(sa.delete(table))
