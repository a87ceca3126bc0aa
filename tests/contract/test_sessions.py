"""`ports.Sessions` on SQLite and on MariaDB: refresh tokens are spent once, and reuse ends the device session."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count

import msgspec
import pytest
import sqlalchemy as sa

from domain.devices import DeviceKey, stepped_up
from domain.errors import Code, Refusal
from domain.places import Place, Seen
from domain.ports import Device, DeviceSession, Judge, StoreUnavailable
from storage.engine import Database
from storage.erasures import SqlErasures
from storage.sessions import SqlSessions
from storage.tables import refresh_token
from storage.user_keys import SqlDeviceKeys
from tests.support.databases import migrated

NOW = 1_800_000_000_000
DAY = 86_400_000
EXPIRES = NOW + 30 * DAY
GRACE = 30_000

_ids = (f"01890000-0000-7000-8000-{number:012x}" for number in count(1))


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with migrated(request.param, tmp_path_factory.mktemp("sessions")) as url:
        yield url


@pytest.fixture
async def processes(url: str) -> AsyncIterator[Callable[[], SqlSessions]]:
    """Each call is one more process, with connections of its own."""
    databases: list[Database] = []

    def another() -> SqlSessions:
        databases.append(Database(url))
        return SqlSessions(databases[-1])

    yield another
    for database in databases:
        await database.close()


@pytest.fixture
def sessions(processes: Callable[[], SqlSessions]) -> SqlSessions:
    return processes()


def new_token() -> bytes:
    """The hash of a fresh refresh token."""
    return hashlib.sha256(os.urandom(32)).digest()


async def opened(sessions: SqlSessions, user_id: str | None = None) -> tuple[DeviceSession, bytes]:
    device = Device("device-1", "王的手机 📱", "android")
    session = DeviceSession(next(_ids), user_id or next(_ids), device, NOW, NOW)
    token = new_token()
    await sessions.open(session, token, EXPIRES)
    return session, token


async def rotated(
    sessions: SqlSessions, token: bytes, now: int, successor: bytes | None = None
) -> tuple[DeviceSession, bytes | None, bytes]:
    successor = successor or new_token()
    session, sealed = await sessions.rotate(token, successor, b"sealed " + successor, now, now + 30 * DAY, GRACE)
    return session, sealed, successor


async def refused(sessions: SqlSessions, token: bytes, now: int) -> Code:
    with pytest.raises(Refusal) as caught:
        await rotated(sessions, token, now)
    return caught.value.code


async def test_an_open_session_is_found_as_it_was_opened(sessions: SqlSessions) -> None:
    session, _ = await opened(sessions)
    assert await sessions.get(session.id) == session
    assert await sessions.get(next(_ids)) is None


async def test_a_token_is_traded_for_its_successor_again_and_again(sessions: SqlSessions) -> None:
    session, token = await opened(sessions)
    for hour in range(1, 6):
        same, sealed, token = await rotated(sessions, token, NOW + hour * 3_600_000)
        assert (same.id, sealed) == (session.id, None)
    known = await sessions.get(session.id)
    assert known is not None
    assert known.last_seen_at == NOW + 5 * 3_600_000


async def test_within_the_grace_the_same_token_gives_the_same_pair(sessions: SqlSessions) -> None:
    session, token = await opened(sessions)
    _, _, successor = await rotated(sessions, token, NOW + 1_000)
    same, sealed, unused = await rotated(sessions, token, NOW + 1_000 + GRACE)
    assert same.id == session.id
    assert sealed == b"sealed " + successor
    assert await refused(sessions, unused, NOW + 40_000) == Code.UNAUTHENTICATED
    assert (await rotated(sessions, successor, NOW + 60_000))[0].id == session.id


async def test_the_grace_ends_when_the_successor_has_been_used(sessions: SqlSessions) -> None:
    """Who holds the successor has no need of the old token any more: whoever sends it is somebody else."""
    session, first = await opened(sessions)
    _, _, second = await rotated(sessions, first, NOW + 1_000)
    await rotated(sessions, second, NOW + 2_000)
    assert await refused(sessions, first, NOW + 3_000) == Code.SESSION_REVOKED
    known = await sessions.get(session.id)
    assert known is not None
    assert known.revoked_at == NOW + 3_000


async def test_reuse_after_the_grace_ends_the_session_and_its_whole_family(sessions: SqlSessions) -> None:
    session, first = await opened(sessions)
    _, _, second = await rotated(sessions, first, NOW + 1_000)
    assert await refused(sessions, first, NOW + 1_001 + GRACE) == Code.SESSION_REVOKED
    assert await refused(sessions, second, NOW + 40_000) == Code.SESSION_REVOKED
    assert await refused(sessions, first, NOW + 40_000) == Code.SESSION_REVOKED
    known = await sessions.get(session.id)
    assert known is not None
    assert known.revoked_at == NOW + 1_001 + GRACE


async def test_twenty_refreshes_at_once_in_five_processes_give_one_pair(processes: Callable[[], SqlSessions]) -> None:
    callers = [processes() for _ in range(5)] * 4
    await asyncio.gather(*(where.get(next(_ids)) for where in callers))
    for _ in range(5):
        session, token = await opened(callers[0])
        answers = await asyncio.gather(*(rotated(where, token, NOW + 1_000 + n) for n, where in enumerate(callers)))
        firsts = [successor for _, sealed, successor in answers if sealed is None]
        assert len(firsts) == 1
        assert {sealed for _, sealed, _ in answers if sealed is not None} == {b"sealed " + firsts[0]}
        assert {same.id for same, _, _ in answers} == {session.id}
        assert (await rotated(callers[1], firsts[0], NOW + 60_000))[0].id == session.id


async def test_reuse_at_once_in_two_processes_lets_nobody_through(processes: Callable[[], SqlSessions]) -> None:
    one, other = processes(), processes()
    _, token = await opened(one)
    await rotated(one, token, NOW)
    late = NOW + GRACE + 1
    assert set(await asyncio.gather(*(refused(where, token, late) for where in [one, other] * 5))) == {
        Code.SESSION_REVOKED
    }


async def test_an_unknown_or_expired_token_is_refused_and_ends_nothing(sessions: SqlSessions) -> None:
    session, token = await opened(sessions)
    assert await refused(sessions, new_token(), NOW) == Code.UNAUTHENTICATED
    assert await refused(sessions, token, EXPIRES) == Code.UNAUTHENTICATED
    known = await sessions.get(session.id)
    assert known is not None
    assert known.revoked_at is None
    assert (await rotated(sessions, token, EXPIRES - 1))[0].id == session.id


async def test_a_revoked_session_gives_no_tokens(sessions: SqlSessions) -> None:
    session, token = await opened(sessions)
    other, other_token = await opened(sessions)
    await sessions.revoke([session.id, next(_ids)], NOW + 5)
    await sessions.revoke([session.id], NOW + 9)
    await sessions.revoke([], NOW)
    assert await refused(sessions, token, NOW + 10) == Code.SESSION_REVOKED
    known = await sessions.get(session.id)
    assert known is not None
    assert known.revoked_at == NOW + 5
    assert (await rotated(sessions, other_token, NOW + 10))[0].id == other.id


async def test_the_sessions_of_a_user_are_theirs_with_the_living_and_last_used_first(sessions: SqlSessions) -> None:
    user_id = next(_ids)
    (first, first_token), (second, _), (third, third_token) = [await opened(sessions, user_id) for _ in range(3)]
    await opened(sessions)
    await rotated(sessions, first_token, NOW + 1_000)
    await rotated(sessions, third_token, NOW + 9_000)
    await sessions.revoke([third.id], NOW + 9_500)
    listed = await sessions.list_of(user_id)
    assert [item.id for item in listed] == [first.id, second.id, third.id]
    assert [item.revoked_at for item in listed] == [None, None, NOW + 9_500]
    assert await sessions.list_of(next(_ids)) == []


async def test_expired_tokens_leave_the_database_as_the_session_goes_on(sessions: SqlSessions, url: str) -> None:
    session, token = await opened(sessions)
    for day in (10, 20, 29, 58):
        _, _, token = await rotated(sessions, token, NOW + day * DAY)
    database = Database(url)
    try:
        async with database.read() as connection:
            count_of = sa.select(sa.func.count()).where(refresh_token.c.session_id == session.id)
            assert await connection.scalar(count_of.select_from(refresh_token)) == 2
    finally:
        await database.close()


# --- where a session was seen, and who judges it ---

THERE = Seen("2001:db8::/64", "App/ (iOS )", Place("CN", "上海", 31.2, 121.5))


async def test_all_that_is_known_of_a_session_comes_back_as_it_was_stored(sessions: SqlSessions) -> None:
    device = Device("device-1", "王的手机 📱", "android")
    full = DeviceSession(
        next(_ids), next(_ids), device, NOW, NOW, seen=THERE, confirmed_at=NOW, second_factor_at=NOW + 1
    )
    await sessions.open(full, new_token(), EXPIRES)
    assert await sessions.get(full.id) == full


async def test_a_token_leads_to_its_session_without_being_spent(sessions: SqlSessions) -> None:
    session, token = await opened(sessions)
    assert (await sessions.of_refresh(token)) == session
    assert await sessions.of_refresh(new_token()) is None
    _, sealed, _ = await rotated(sessions, token, NOW + 1)
    assert sealed is None
    spent = await sessions.of_refresh(token)
    assert spent is not None
    assert spent.id == session.id


async def judged(sessions: SqlSessions, token: bytes, judge: Judge, now: int = NOW + 1_000) -> DeviceSession:
    session, _ = await sessions.rotate(token, new_token(), b"sealed", now, now + 30 * DAY, GRACE, judge)
    return session


def no(_: DeviceSession) -> DeviceSession:
    raise Refusal(Code.STEP_UP_REQUIRED)


async def test_what_a_judge_refuses_changes_nothing_and_the_token_can_still_be_spent(sessions: SqlSessions) -> None:
    session, token = await opened(sessions)
    with pytest.raises(Refusal) as refusal:
        await judged(sessions, token, no)
    assert refusal.value.code is Code.STEP_UP_REQUIRED
    assert await sessions.get(session.id) == session
    assert (await judged(sessions, token, lambda known: known)).id == session.id


async def test_within_the_grace_the_judge_is_asked_too(sessions: SqlSessions) -> None:
    _, token = await opened(sessions)
    await rotated(sessions, token, NOW + 1_000)
    with pytest.raises(Refusal) as refusal:
        await judged(sessions, token, no, NOW + 2_000)
    assert refusal.value.code is Code.STEP_UP_REQUIRED


async def test_a_reused_token_ends_the_session_whatever_a_judge_would_say(sessions: SqlSessions) -> None:
    session, token = await opened(sessions)
    await rotated(sessions, token, NOW + 1_000)
    with pytest.raises(Refusal) as refusal:
        await judged(sessions, token, no, NOW + 40_000)
    assert refusal.value.code is Code.SESSION_REVOKED
    found = await sessions.get(session.id)
    assert found is not None
    assert found.revoked_at == NOW + 40_000


async def test_what_a_judge_makes_of_the_session_is_stored_with_the_new_token(sessions: SqlSessions) -> None:
    session, token = await opened(sessions)
    other = Device("device-2", "new", "ios")
    after = await judged(sessions, token, lambda known: stepped_up(known, other, THERE, NOW + 1_000))
    stored = await sessions.get(session.id)
    assert stored == msgspec.structs.replace(after, last_seen_at=NOW + 1_000)
    assert (stored.device, stored.seen, stored.confirmed_at) == (other, THERE, NOW + 1_000)


async def test_of_many_who_race_from_two_places_only_one_place_wins(processes: Callable[[], SqlSessions]) -> None:
    """The judge sees what the one before has stored: whoever comes second from elsewhere is refused."""
    one, other = processes(), processes()
    session, token = await opened(one)

    def only(country: str) -> Judge:
        def judge(known: DeviceSession) -> DeviceSession:
            if known.seen.place.country not in ("", country):
                raise Refusal(Code.STEP_UP_REQUIRED)
            return msgspec.structs.replace(known, seen=Seen(place=Place(country)))

        return judge

    attempts = [(one, "CN"), (other, "DE")] * 10
    outcomes = await asyncio.gather(
        *(judged(at, token, only(country)) for at, country in attempts), return_exceptions=True
    )
    won = {
        country for (_, country), outcome in zip(attempts, outcomes, strict=True) if not isinstance(outcome, Refusal)
    }
    refused_for = {outcome.code for outcome in outcomes if isinstance(outcome, Refusal)}
    assert len(won) == 1
    assert refused_for == {Code.STEP_UP_REQUIRED}
    stored = await one.get(session.id)
    assert stored is not None
    assert {stored.seen.place.country} == won


async def not_opened(sessions: SqlSessions, session: DeviceSession) -> None:
    with pytest.raises(Refusal) as refusal:
        await sessions.open(session, new_token(), EXPIRES)
    assert refusal.value.code is Code.UNAUTHENTICATED
    assert await sessions.get(session.id) is None


async def test_a_key_opens_sessions_of_its_user_until_it_is_removed(sessions: SqlSessions, url: str) -> None:
    database = Database(url)
    try:
        keys = SqlDeviceKeys(database)
        key = await keys.add(DeviceKey(next(_ids), next(_ids), "phone", os.urandom(91), NOW), 5)

        def by_key(user_id: str) -> DeviceSession:
            return DeviceSession(next(_ids), user_id, Device("d", "d", "d"), NOW, NOW, device_key_id=key.id)

        mine = by_key(key.user_id)
        await sessions.open(mine, new_token(), EXPIRES)
        assert await sessions.get(mine.id) == mine
        used = await keys.get(key.id)
        assert used is not None
        assert used.last_used_at == NOW
        await not_opened(sessions, by_key(next(_ids)))
        assert await keys.remove(key.user_id, key.id)
        await not_opened(sessions, by_key(key.user_id))
    finally:
        await database.close()


async def test_once_a_key_is_removed_no_session_of_it_appears_any_more(
    processes: Callable[[], SqlSessions], url: str
) -> None:
    """Who removes a key ends the sessions that it finds afterwards: one that came later would live on."""
    database = Database(url)
    openers = [processes() for _ in range(4)]
    try:
        keys = SqlDeviceKeys(database)
        for _ in range(10):
            key = await keys.add(DeviceKey(next(_ids), next(_ids), "phone", os.urandom(91), NOW), 5)

            async def log_in(at: SqlSessions, key: DeviceKey = key) -> None:
                session = DeviceSession(next(_ids), key.user_id, Device("d", "d", "d"), NOW, NOW, device_key_id=key.id)
                await at.open(session, new_token(), EXPIRES)

            async def remove(key: DeviceKey = key) -> list[DeviceSession]:
                await keys.remove(key.user_id, key.id)
                return await openers[0].list_of(key.user_id)

            *_, found = await asyncio.gather(*(log_in(at) for at in openers), remove(), return_exceptions=True)
            assert found == await openers[0].list_of(key.user_id)
    finally:
        await database.close()


async def deadlocks(database: Database) -> int:
    async with database.read() as connection:
        row = (await connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'")).one()
    return int(row[1])


async def test_old_and_new_tokens_of_a_session_that_come_at_once_and_its_erasure_never_wait_for_each_other_in_a_ring(
    processes: Callable[[], SqlSessions],
) -> None:
    """Who spends a token drops the expired ones of its session, and so looks at all of them; who sends the old one again
    holds that. Each had first locked its token and then the session."""
    stores = [processes() for _ in range(4)]
    database = stores[0]._database
    before = 0 if database.is_sqlite else await deadlocks(database)
    for _ in range(10):
        session, old = await opened(stores[0])
        _, _, newest = await rotated(stores[0], old, NOW)
        again = [rotated(store, old, NOW + 1) for store in stores]
        spent = [rotated(store, newest, NOW + 2) for store in stores]
        outcomes = await asyncio.gather(
            *again, *spent, SqlErasures(database).forget(session.user_id), return_exceptions=True
        )
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert all(isinstance(error, Refusal | StoreUnavailable) for error in errors), errors  # the machine may be busy
    assert database.is_sqlite or await deadlocks(database) == before
