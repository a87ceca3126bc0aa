"""`domain.audit.AuditLog` on SQLite and on MariaDB: whatever is changed or taken out of it shows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa

from domain.acts import Act
from domain.audit import Mark, Recorded, Wanted
from domain.errors import Code, Refusal
from domain.ports import Device, DeviceSession, StoreUnavailable
from storage import audit as module
from storage.accounts import SqlAccounts
from storage.audit import SqlAudit
from storage.engine import Database
from storage.sessions import SqlSessions
from storage.tables import audit, audit_base, audit_head
from tests.support.keys import FixedKeys

KEY = b"k" * 32
NOW = 1_800_000_000_000


class TickingClock:
    """Every look at it is a millisecond later."""

    def __init__(self) -> None:
        self._ticks = count(NOW)

    def now_ms(self) -> int:
        return next(self._ticks)

    def monotonic_s(self) -> float:
        return 0.0


_numbers = count(1)


def new_id() -> str:
    return f"01890000-0000-7000-8000-{next(_numbers):012x}"


@pytest.fixture
async def database(sql_place: str) -> AsyncIterator[Database]:
    database = Database(sql_place)
    async with database.write() as connection:
        await connection.execute(sa.delete(audit))
        await connection.execute(sa.delete(audit_head))
        await connection.execute(sa.delete(audit_base))
    yield database
    await database.close()


@pytest.fixture
async def another(database: Database, sql_place: str) -> AsyncIterator[Callable[[], SqlAudit]]:
    """Each call is one more process, with connections of its own."""
    databases: list[Database] = []

    def make() -> SqlAudit:
        databases.append(Database(sql_place))
        return SqlAudit(databases[-1], KEY, TickingClock(), new_id)

    yield make
    for one in databases:
        await one.close()


@pytest.fixture
def log(database: Database) -> SqlAudit:
    return SqlAudit(database, KEY, TickingClock(), new_id)


def login(actor: str, outcome: str = "ok") -> Act:
    return Act("login", outcome, actor, "s" * 36, "192.0.2.1", "session:1", {"platform": "ios"})


async def every(log: SqlAudit, wanted: Wanted, limit: int = 3) -> list[Recorded]:
    found: list[Recorded] = []
    cursor: str | None = None
    while True:
        page = await log.find(wanted, cursor, limit)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found


async def test_an_act_that_was_written_is_found_as_it_was_by_any_process(another: Callable[[], SqlAudit]) -> None:
    act = login("ann")
    await another().write(act)
    (found,) = (await another().find(Wanted(), None, 10)).items
    assert found.act == act
    assert (found.number, found.at) == (1, NOW)
    assert (await another().verify()).wrong == ""


async def test_a_log_without_acts_is_in_order(log: SqlAudit) -> None:
    assert await log.verify() == module.Verdict(Mark(0, b""))


async def test_many_processes_that_write_at_once_make_one_chain_without_a_hole(
    another: Callable[[], SqlAudit],
) -> None:
    processes = [another() for _ in range(4)]
    await asyncio.gather(*(process.write(login(f"user-{n}")) for n in range(60) for process in processes))
    verdict = await another().verify()
    assert (verdict.wrong, verdict.mark.number) == ("", 240)
    found = await every(processes[0], Wanted(), limit=100)
    assert sorted(item.number for item in found) == list(range(1, 241))


async def test_acts_are_found_by_who_what_and_when_the_latest_first_page_by_page(log: SqlAudit) -> None:
    for n in range(10):
        await log.write(login("ann" if n % 2 else "bob", "ok" if n % 3 else "refused"))
    await log.write(Act("logout", "ok", "ann"))
    by_ann = await every(log, Wanted(actor="ann"))
    assert [item.number for item in by_ann] == [11, 10, 8, 6, 4, 2]
    assert [item.number for item in await every(log, Wanted(actor="ann", act="login"))] == [10, 8, 6, 4, 2]
    assert [item.number for item in await every(log, Wanted(act="logout"))] == [11]
    times = {item.number: item.at for item in await every(log, Wanted())}
    between = Wanted(since_ms=times[3], until_ms=times[7])
    assert [item.number for item in await every(log, between)] == [6, 5, 4, 3]
    assert await every(log, Wanted(actor="nobody")) == []


async def test_acts_of_the_same_millisecond_are_all_found(database: Database) -> None:
    class Stopped(TickingClock):
        def now_ms(self) -> int:
            return NOW

    log = SqlAudit(database, KEY, Stopped(), new_id)
    for _ in range(7):
        await log.write(login("ann"))
    assert [item.number for item in await every(log, Wanted(), limit=2)] == [7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("cursor", ["x", "WzEsImEiXQ", "WzEsIi0xIl0", "eyJhIjoxfQ"])
async def test_a_cursor_that_no_page_has_given_out_is_invalid(log: SqlAudit, cursor: str) -> None:
    with pytest.raises(Refusal) as refused:
        await log.find(Wanted(), cursor, 10)
    assert refused.value.code is Code.INVALID


async def test_what_is_too_long_or_not_ascii_is_cut_and_still_in_order(log: SqlAudit) -> None:
    await log.write(Act("x" * 500, "y" * 500, "ü" * 500, object="z" * 500, details={"long": "w" * 5_000}))
    (found,) = (await log.find(Wanted(), None, 1)).items
    assert (len(found.act.act), found.act.actor, len(found.act.object)) == (64, "?" * 64, 128)
    assert (await log.verify()).wrong == ""


# --- tampering -----------------------------------------------------------------------------------------------------


async def seven(log: SqlAudit) -> None:
    for n in range(7):
        await log.write(login(f"user-{n}"))


CHANGES: dict[str, Any] = {
    "id": "01890000-0000-7000-8000-ffffffffffff",
    "at": NOW - 1,
    "actor": "eve",
    "session": "",
    "ip": "203.0.113.9",
    "act": "logout",
    "object": "",
    "outcome": "refused",
    "details": b"{}",
    "digest": b"d" * 32,
}


@pytest.mark.parametrize("column", CHANGES)
async def test_a_changed_row_shows_whichever_column_it_was(log: SqlAudit, database: Database, column: str) -> None:
    assert set(CHANGES) == {item.name for item in audit.columns} - {"n"}
    await seven(log)
    async with database.write() as connection:
        await connection.execute(sa.update(audit).where(audit.c.n == 4).values({column: CHANGES[column]}))
    verdict = await log.verify()
    assert "row 4 is not what was written" in verdict.wrong
    assert verdict.mark.number == 3


@pytest.mark.parametrize("number", [1, 4])
async def test_a_row_that_was_taken_out_shows(log: SqlAudit, database: Database, number: int) -> None:
    await seven(log)
    async with database.write() as connection:
        await connection.execute(sa.delete(audit).where(audit.c.n == number))
    assert f"row {number} is gone" in (await log.verify()).wrong


async def test_taking_a_row_out_and_closing_the_ranks_shows(log: SqlAudit, database: Database) -> None:
    await seven(log)
    async with database.write() as connection:
        await connection.execute(sa.delete(audit).where(audit.c.n == 4))
        for n in (5, 6, 7):
            await connection.execute(sa.update(audit).where(audit.c.n == n).values(n=n - 1))
        await connection.execute(sa.update(audit_head).values(n=6))
    assert "row 4 is not what was written" in (await log.verify()).wrong


async def test_two_rows_that_changed_places_show(log: SqlAudit, database: Database) -> None:
    await seven(log)
    async with database.write() as connection:
        for old, new in ((3, 100), (4, 3), (100, 4)):
            await connection.execute(sa.update(audit).where(audit.c.n == old).values(n=new))
    assert "row 3 is not what was written" in (await log.verify()).wrong


async def cut_off(database: Database, last: int) -> None:
    async with database.write() as connection:
        await connection.execute(sa.delete(audit).where(audit.c.n > last))
        await connection.execute(sa.update(audit_head).values(n=last))


async def test_an_end_that_was_cut_off_shows(log: SqlAudit, database: Database) -> None:
    await seven(log)
    await cut_off(database, 5)
    assert "rows after 5 were cut off" in (await log.verify()).wrong


async def test_an_end_that_was_cut_off_shows_for_ever_however_much_is_written_after_it(
    log: SqlAudit, database: Database
) -> None:
    """A new row that covered the digest of the one before, and not its seal, would heal the chain."""
    await seven(log)
    await cut_off(database, 5)
    await seven(log)
    assert "row 6 is not what was written" in (await log.verify()).wrong


async def test_an_old_copy_in_the_place_of_the_log_shows_to_who_kept_a_mark(log: SqlAudit, database: Database) -> None:
    await seven(log)
    async with database.read() as connection:
        seal = (await connection.execute(sa.select(audit_head.c.seal))).scalar_one()
    await seven(log)
    mark = (await log.verify()).mark
    await cut_off(database, 7)
    async with database.write() as connection:
        await connection.execute(sa.update(audit_head).values(seal=seal))
    assert (await log.verify()).wrong == ""
    assert "row 14 is not the one" in (await log.verify(Mark.read(str(mark)))).wrong


async def test_an_emptied_log_shows_to_who_kept_a_mark(log: SqlAudit, database: Database) -> None:
    await seven(log)
    mark = (await log.verify()).mark
    async with database.write() as connection:
        await connection.execute(sa.delete(audit))
        await connection.execute(sa.delete(audit_head))
    assert "row 7 is not the one" in (await log.verify(mark)).wrong


async def test_a_log_that_has_gone_on_since_the_mark_is_in_order(log: SqlAudit) -> None:
    await seven(log)
    mark = (await log.verify()).mark
    await seven(log)
    assert await log.verify(mark) == await log.verify()


async def test_rows_that_somebody_without_the_key_has_put_in_show(log: SqlAudit, database: Database) -> None:
    await seven(log)
    forger = SqlAudit(database, b"another key".ljust(32), TickingClock(), new_id)
    forger._key_name = log._key_name
    await forger.write(login("eve"))
    assert "row 8 is not what was written" in (await log.verify()).wrong


async def test_a_process_with_the_key_of_another_data_folder_writes_nothing(log: SqlAudit, database: Database) -> None:
    await seven(log)
    with pytest.raises(StoreUnavailable, match="another data folder"):
        await SqlAudit(database, b"another key".ljust(32), TickingClock(), new_id).write(login("ann"))
    assert await log.verify() == module.Verdict((await log.verify()).mark)


async def test_a_row_put_in_behind_the_head_shows_and_nothing_is_written_over_it(
    log: SqlAudit, database: Database
) -> None:
    await seven(log)
    async with database.write() as connection:
        row = (await connection.execute(sa.select(audit).where(audit.c.n == 7))).mappings().one()
        await connection.execute(sa.insert(audit).values({**row, "n": 8}))
    assert "the head stands at 7, the rows end at 8" in (await log.verify()).wrong
    with pytest.raises(StoreUnavailable, match="audit verify"):
        await log.write(login("ann"))


async def test_a_chain_longer_than_a_page_is_walked_to_its_end(log: SqlAudit, database: Database) -> None:
    acts = [login(f"user-{n}") for n in range(module.PAGE)]
    for _ in range(2):
        async with database.write() as connection:
            await log.append(connection, acts)
    assert (await log.verify()).mark.number == 2 * module.PAGE
    async with database.write() as connection:
        await connection.execute(sa.update(audit).where(audit.c.n == 2 * module.PAGE).values(actor="eve"))
    assert f"row {2 * module.PAGE} " in (await log.verify()).wrong


# --- bounds --------------------------------------------------------------------------------------------------------


async def test_a_transaction_that_is_undone_leaves_no_act(log: SqlAudit, database: Database) -> None:
    await seven(log)
    with pytest.raises(ZeroDivisionError):
        async with database.write() as connection:
            await log.append(connection, [login("ann")])
            raise ZeroDivisionError
    assert (await log.verify()).mark.number == 7


async def test_more_acts_than_may_wait_are_refused_and_the_others_are_written(log: SqlAudit) -> None:
    writes = [log.write(login("ann")) for _ in range(module.WAITING_MOST + 50)]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    refused = [item for item in outcomes if isinstance(item, StoreUnavailable)]
    assert len(refused) == 50
    assert (await log.verify()).mark.number == module.WAITING_MOST


async def test_who_stops_waiting_stops_nobody_else(log: SqlAudit) -> None:
    tasks = [asyncio.create_task(log.write(login(f"user-{n}"))) for n in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [n for n, item in enumerate(outcomes) if item is not None] == [3]
    assert (await log.verify()).wrong == ""


# --- with the act, or not at all -------------------------------------------------------------------------------------


async def test_a_session_and_the_act_that_opens_or_ends_it_are_one_transaction(
    database: Database, log: SqlAudit
) -> None:
    foreign = SqlAudit(database, b"another key".ljust(32), TickingClock(), new_id)
    await log.write(login("ann"))
    for audit_log, stands in ((foreign, False), (log, True)):
        sessions = SqlSessions(database, audit_log)
        session = DeviceSession(new_id(), new_id(), Device("d", "d", "d"), NOW, NOW)
        spent = next(_numbers).to_bytes(32, "big")
        with nullcontext() if stands else pytest.raises(StoreUnavailable):
            await sessions.open(session, spent, NOW + 10**9, login(session.user_id))
        assert (await sessions.get(session.id) is not None) == stands
        if not stands:
            await sessions.open(session, spent, NOW + 10**9)
        with nullcontext() if stands else pytest.raises(StoreUnavailable):
            await sessions.revoke([session.id], NOW + 5, Act("logout", "ok"))
        ended = await sessions.get(session.id)
        assert ended is not None
        assert (ended.revoked_at is not None) == stands
    assert [item.act.act for item in await every(log, Wanted())] == ["logout", "login", "login"]


async def test_the_reuse_of_a_token_is_written_once_with_whose_it_was(database: Database, log: SqlAudit) -> None:
    sessions = SqlSessions(database, log)
    session = DeviceSession(new_id(), new_id(), Device("d", "d", "d"), NOW, NOW)
    first, second, third = (n.to_bytes(32, "big") for n in (next(_numbers), next(_numbers), next(_numbers)))
    await sessions.open(session, first, NOW + 10**9)
    await sessions.rotate(
        first, second, b"sealed", NOW, NOW + 10**9, 30_000, reused=Act("refresh.reused", "session_revoked")
    )
    assert await every(log, Wanted()) == []
    for _ in range(2):
        with pytest.raises(Refusal):
            await sessions.rotate(
                first,
                third,
                b"sealed",
                NOW + 40_000,
                NOW + 10**9,
                30_000,
                reused=Act("refresh.reused", "session_revoked"),
            )
    (found,) = await every(log, Wanted())
    assert (found.act.actor, found.act.object) == (session.user_id, f"session:{session.id}")


async def test_a_role_and_the_act_that_grants_it_are_one_transaction(database: Database, log: SqlAudit) -> None:
    await log.write(login("ann"))
    foreign = SqlAudit(database, b"another key".ljust(32), TickingClock(), new_id)
    user, _ = await SqlAccounts(database, TickingClock(), new_id, FixedKeys()).find_or_create(
        f"+86138{next(_numbers):08d}", "en"
    )
    with pytest.raises(StoreUnavailable):
        await SqlAccounts(database, TickingClock(), new_id, FixedKeys(), foreign).grant(
            user.id, "ops", Act("role.granted", "ok")
        )
    accounts = SqlAccounts(database, TickingClock(), new_id, FixedKeys(), log)
    assert (await accounts.get([user.id]))[user.id].roles == ("customer",)
    await accounts.grant(user.id, "ops", Act("role.granted", "ok"))
    assert (await every(log, Wanted(act="role.granted")))[0].number == 2


# --- old acts are removed ---


DAY = 86_400_000


class AtClock(TickingClock):
    """The time that it is told."""

    def __init__(self, now_ms: int) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        return self.ms


async def aged(database: Database, ages: list[int]) -> tuple[SqlAudit, AtClock]:
    """An act of each age in days."""
    clock = AtClock(NOW)
    log = SqlAudit(database, KEY, clock, new_id)
    for number, days in enumerate(ages):
        clock.ms = NOW - days * DAY
        await log.write(login(f"user-{number}"))
    clock.ms = NOW
    return log, clock


async def all_of(log: SqlAudit) -> list[tuple[int, str]]:
    page = await log.find(Wanted(), None, 100)
    return sorted((item.number, item.act.act) for item in page.items)


async def test_old_acts_are_removed_from_the_front_and_the_rest_is_as_verifiable_as_before(database: Database) -> None:
    log, _ = await aged(database, [40, 35, 32, 5, 1])
    early = (await log.verify()).mark
    assert await log.sweep_old(30 * DAY) == 3
    assert await all_of(log) == [(4, "login"), (5, "login"), (6, "audit.swept")]
    swept = (await log.find(Wanted(act="audit.swept"), None, 1)).items[0].act
    assert (swept.outcome, swept.details["rows"], swept.details["mark"].partition(":")[0]) == ("ok", "3", "3")
    verdict = await log.verify(early)
    assert (verdict.wrong, verdict.mark.number) == ("", 6)
    assert (await log.verify(Mark.read(swept.details["mark"]))).wrong == ""
    assert (await log.verify(Mark(2, b"x" * 32))).wrong == "", "nobody can look at what is not there any more"
    assert (await log.verify(Mark(5, b"x" * 32))).wrong != ""
    await log.write(login("later"))
    assert (await log.verify()).wrong == ""


async def test_acts_go_when_all_before_them_are_old_and_not_each_by_itself(database: Database) -> None:
    log, clock = await aged(database, [40, 1, 40, 0])
    assert await log.sweep_old(30 * DAY) == 1
    assert await log.sweep_old(30 * DAY) == 0
    clock.ms = NOW + int(29.5 * DAY)
    assert await log.sweep_old(30 * DAY) == 0, "the oldest is too old by half a day only"
    clock.ms = NOW + int(30.5 * DAY)
    assert await log.sweep_old(30 * DAY) == 3
    assert (await log.verify()).wrong == ""


async def test_the_last_act_stays_however_old_it_is(database: Database) -> None:
    log, _ = await aged(database, [40, 40])
    assert await log.sweep_old(30 * DAY) == 1
    assert (await log.verify()).wrong == ""


@pytest.mark.parametrize("by", ["nobody", "hand"])
async def test_who_removes_old_acts_without_the_key_is_found_out(database: Database, by: str) -> None:
    """By taking them out alone, or by writing too where the log is to begin: every digest is there to be copied."""
    log, _ = await aged(database, [40, 35, 5, 1])
    await log.sweep(NOW - 39 * DAY)
    async with database.write() as connection:
        digest = await connection.scalar(sa.select(audit.c.digest).where(audit.c.n == 2))
        await connection.execute(sa.delete(audit).where(audit.c.n == 2))
        if by == "hand":
            await connection.execute(sa.update(audit_base).values(n=2, digest=digest))
    assert (await log.verify()).wrong != ""
    with pytest.raises(StoreUnavailable):
        await log.sweep(NOW)


async def test_a_sweep_hides_no_act_that_was_changed(database: Database) -> None:
    log, _ = await aged(database, [40, 35, 5])
    async with database.write() as connection:
        await connection.execute(sa.update(audit).where(audit.c.n == 2).values(actor="somebody"))
    with pytest.raises(StoreUnavailable, match="changed or is gone"):
        await log.sweep(NOW - 30 * DAY)
    assert "row 2" in (await log.verify()).wrong


async def test_sweeps_and_writers_in_many_processes_leave_one_chain(
    database: Database, another: Callable[[], SqlAudit]
) -> None:
    await aged(database, [40] * 30)
    logs = [another() for _ in range(4)]
    swept = asyncio.gather(*(log.sweep(NOW - 30 * DAY, most=4) for log in logs for _ in range(4)))
    written = asyncio.gather(*(log.write(login("w")) for log in logs for _ in range(10)))
    looked = asyncio.gather(*(log.verify() for log in logs))
    removed, _, verdicts = await asyncio.gather(swept, written, looked)
    assert sum(removed) == 30
    assert [verdict.wrong for verdict in verdicts] == [""] * 4
    assert (await logs[0].verify()).wrong == ""
