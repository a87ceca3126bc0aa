"""`ports.Accounts` on SQLite and on MariaDB."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count

import pytest

from domain.aggregate import WorkerProfile
from domain.errors import Code, Refusal
from domain.ports import StoreUnavailable
from storage.accounts import SqlAccounts
from storage.engine import Database
from tests.support.databases import migrated
from tests.support.keys import FixedKeys

PROFILE = WorkerProfile(("plumbing", "tiling"), 31.2304, 121.4737, 12_500.0, 15_000, "CNY", "水电 🔧")
UNKNOWN = "01890000-0000-7000-8000-ffffffffffff"

_ids = (f"01890000-0000-7000-8000-{number:012x}" for number in count(1))
_phones = (f"+86138{number:08d}" for number in count(1))


class CountingClock:
    """Each look at the clock is a millisecond later."""

    def __init__(self) -> None:
        self._ticks = count(1_800_000_000_000)

    def now_ms(self) -> int:
        return next(self._ticks)

    def monotonic_s(self) -> float:
        return 0.0


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with migrated(request.param, tmp_path_factory.mktemp("accounts")) as url:
        yield url


@pytest.fixture
async def processes(url: str) -> AsyncIterator[Callable[[], SqlAccounts]]:
    """Each call is one more process, with connections of its own."""
    databases: list[Database] = []

    def another() -> SqlAccounts:
        databases.append(Database(url))
        return SqlAccounts(databases[-1], CountingClock(), lambda: next(_ids), FixedKeys())

    yield another
    for database in databases:
        await database.close()


@pytest.fixture
def accounts(processes: Callable[[], SqlAccounts]) -> SqlAccounts:
    return processes()


@pytest.fixture
def phone() -> str:
    return next(_phones)


async def test_the_first_login_makes_a_customer_and_the_next_one_finds_them(accounts: SqlAccounts, phone: str) -> None:
    new, is_new = await accounts.find_or_create(phone, "zh-CN")
    assert is_new
    assert (new.phone, new.name, new.locale, new.roles) == (phone, "", "zh-CN", ("customer",))
    assert (new.worker, new.avatar, new.rating_sum, new.rating_count) == (None, None, 0, 0)
    assert await accounts.find_or_create(phone, "en") == (new, False)
    assert await accounts.get([new.id]) == {new.id: new}


async def test_twenty_first_logins_at_once_in_two_processes_make_one_user(
    processes: Callable[[], SqlAccounts], phone: str
) -> None:
    one, other = processes(), processes()
    logins = await asyncio.gather(*(where.find_or_create(phone, "en") for where in [one, other] * 10))
    assert len({user.id for user, _ in logins}) == 1
    assert [is_new for _, is_new in logins].count(True) == 1


async def test_reading_leaves_out_who_does_not_exist_and_takes_any_number(accounts: SqlAccounts) -> None:
    users = [(await accounts.find_or_create(next(_phones), "en"))[0] for _ in range(3)]
    strangers = [f"01890000-0000-7000-8000-eeee{number:08x}" for number in range(1_200)]
    assert await accounts.get([]) == {}
    assert await accounts.get(strangers[:600] + [user.id for user in users] * 2 + strangers[600:]) == {
        user.id: user for user in users
    }


async def test_an_update_changes_what_is_given_and_keeps_the_rest(accounts: SqlAccounts, phone: str) -> None:
    user, _ = await accounts.find_or_create(phone, "en")
    named = await accounts.update(user.id, name="王师傅 👷", locale=None, avatar=None)
    assert (named.name, named.locale, named.avatar) == ("王师傅 👷", "en", None)
    moved = await accounts.update(user.id, name=None, locale="zh-CN", avatar="a/b.jpg")
    assert (moved.name, moved.locale, moved.avatar) == ("王师傅 👷", "zh-CN", "a/b.jpg")
    assert await accounts.update(user.id, name=None, locale=None, avatar=None) == moved
    assert await accounts.get([user.id]) == {user.id: moved}


async def test_who_becomes_a_worker_stays_a_customer_and_keeps_the_profile(accounts: SqlAccounts, phone: str) -> None:
    user, _ = await accounts.find_or_create(phone, "en")
    worker = await accounts.become_worker(user.id, PROFILE)
    assert worker.roles == ("customer", "worker")
    assert worker.worker == PROFILE
    again = await accounts.become_worker(user.id, WorkerProfile(("painting",), -1.5, 2.25, 100.0, 9, "CNY"))
    assert again.roles == ("customer", "worker")
    assert again.worker is not None
    assert again.worker.skills == ("painting",)
    assert await accounts.get([user.id]) == {user.id: again}


async def test_roles_granted_at_the_same_time_are_all_kept(processes: Callable[[], SqlAccounts], phone: str) -> None:
    one, other = processes(), processes()
    user, _ = await one.find_or_create(phone, "en")
    roles = [f"role{number}" for number in range(10)]
    await asyncio.gather(*(where.grant(user.id, role) for role in roles for where in (one, other)))
    (known,) = (await one.get([user.id])).values()
    assert sorted(known.roles) == ["customer", *roles]


async def test_an_unknown_user_cannot_be_changed(accounts: SqlAccounts) -> None:
    for attempt in (
        accounts.update(UNKNOWN, name="x", locale=None, avatar=None),
        accounts.become_worker(UNKNOWN, PROFILE),
        accounts.grant(UNKNOWN, "ops"),
    ):
        with pytest.raises(Refusal) as caught:
            await attempt
        assert caught.value.code == Code.NOT_FOUND
    assert await accounts.get([UNKNOWN]) == {}


async def test_another_process_reads_at_once_what_was_written(processes: Callable[[], SqlAccounts], phone: str) -> None:
    one, other = processes(), processes()
    user, _ = await one.find_or_create(phone, "en")
    for number in range(10):
        written = await one.update(user.id, name=f"name {number}", locale=None, avatar=None)
        assert await other.get([user.id]) == {user.id: written}


async def test_a_database_that_is_not_there_is_unavailable() -> None:
    database = Database("mysql+asyncmy://nobody:nothing@127.0.0.1:1/nowhere")
    accounts = SqlAccounts(database, CountingClock(), lambda: next(_ids), FixedKeys())
    with pytest.raises(StoreUnavailable):
        await accounts.get([UNKNOWN])
    with pytest.raises(StoreUnavailable):
        await accounts.grant(UNKNOWN, "ops")
    await database.close()
