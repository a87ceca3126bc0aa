"""`ports.Sessions` on SQLite and on MariaDB: refresh tokens are spent once, and reuse ends the device session."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count

import pytest
import sqlalchemy as sa

from domain.errors import Code, Refusal
from domain.ports import Device, DeviceSession
from storage.engine import Database
from storage.sessions import SqlSessions
from storage.tables import refresh_token
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
