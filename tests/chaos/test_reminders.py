"""Orders that are to act by themselves while nobody is there, or while hosts die: each acts once, and soon."""

import asyncio
import json
from collections import Counter
from time import perf_counter, time

import pytest
import uuid_utils

from deploy.connections import SystemClock, new_id
from domain.commands import Actor, Command, canonical_json
from storage.accounts import SqlAccounts
from storage.engine import Database
from tests.chaos.conftest import Chaos, Houses, in_short_on
from tests.support.crowd import Crowd
from tests.support.keys import ring_of
from tests.support.oracle import Row, quantile, read_log, spread
from tests.support.parts import Parts

SOON_S = 2.0
"""After the start everything that has become due meanwhile has happened within this."""
DRAFT = {
    "category": "plumbing",
    "title": "Kitchen tap drips",
    "description": "The tap in the kitchen has been dripping for a week.",
    "site": {"lat": 31.2304, "lon": 121.4737, "address": "100 Century Avenue, Shanghai"},
}


async def drafts(parts: Parts, crowd: Crowd, count: int, every_s: float = 0.0) -> list[str]:
    """So many orders that nobody publishes, one after the other."""
    database = Database(parts.database_url)
    accounts = SqlAccounts(database, SystemClock(), new_id, ring_of(database, parts.folder))
    try:
        customer, _ = await accounts.find_or_create("+8613900000001", "en")
    finally:
        await database.close()
    actor, made = Actor("user", customer.id), [str(uuid_utils.uuid7()) for _ in range(count)]
    for order in made:
        await crowd.router.ask(
            Command("order", order, "create", actor, str(uuid_utils.uuid7()), canonical_json(DRAFT)), 30.0
        )
        await asyncio.sleep(every_s)
    return made


def expired(rows: list[Row]) -> dict[str, list[int]]:
    """By order: when it expired, in Unix milliseconds."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if row.type == "order.expired" and row.stream is not None:
            found.setdefault(row.stream.partition(":")[2], []).append(row.at_ms)
    return found


async def all_expired(url: str, orders: list[str], limit_s: float) -> dict[str, list[int]]:
    deadline_s = perf_counter() + limit_s
    while True:
        found = expired(await read_log(url))
        if found.keys() >= set(orders) or perf_counter() > deadline_s:
            return found
        await asyncio.sleep(0.1)


def expiring_after(ms: int) -> dict[str, str]:
    """Drafts live for so long."""
    return {"RENOVEASY_POLICY": json.dumps({"draft_ttl_ms": ms})}


@in_short_on("mariadb")
@pytest.mark.catalogue("TIMER", "reminders due while everything was down")
@pytest.mark.timeout(300)
async def test_what_became_due_while_everything_was_down_happens_once_after_the_start(
    chaos: Chaos, houses: Houses, store: str
):
    count, ttl_s = chaos.repeats(short=50, full=500), chaos.seconds(short=2.0, full=10.0)
    chaos.load(f"{count} orders, killed before their time")
    parts = await houses.build(store, hosts=2, gateways=0, environment=expiring_after(int(ttl_s * 1000)))
    crowd: Crowd = await houses.enter(Crowd(parts))
    orders = await drafts(parts, crowd, count)
    for part in parts.parts.values():
        parts.kill(part.name)
    assert not expired(await read_log(store)), "the orders took too long to make: nothing is left to become due"
    await asyncio.sleep(ttl_s + 0.5)
    launched_ms = time() * 1000
    await parts.start()
    settled_ms = time() * 1000
    found = await all_expired(store, orders, 20.0)
    await asyncio.sleep(1.0)
    found = expired(await read_log(store))
    assert found.keys() == set(orders)
    late_s = [(times[0] - launched_ms) / 1000 for times in found.values()]
    chaos.record(after_launch=spread(late_s), start_s=round((settled_ms - launched_ms) / 1000, 3))
    assert Counter(map(len, found.values())) == {1: count}, "each once"
    assert quantile(late_s, 1.0) - (settled_ms - launched_ms) / 1000 <= SOON_S
    if chaos.full:
        assert quantile(late_s, 1.0) <= SOON_S


@in_short_on("sqlite")
@pytest.mark.catalogue("TIMER-kill", "reminders due while hosts are killed and paused")
@pytest.mark.timeout(600)
async def test_what_becomes_due_while_hosts_die_happens_once(chaos: Chaos, houses: Houses, store: str):
    """Kills fall between the firing and the commit, and between the commit and its publication; owners wake with reminders
    in their heaps that others have fired."""
    count, ttl_s = chaos.choose(short=60, full=1_000), 2.0
    kills = chaos.repeats(short=3, full=40)
    chaos.load(f"{count} orders")
    environment = expiring_after(int(ttl_s * 1000)) | {"RENOVEASY_END_PAUSED_HOSTS": "off"}
    parts = await houses.build(
        store, hosts=2, gateways=0, environment=environment, supervised=True, restart_after_s=0.2
    )
    crowd: Crowd = await houses.enter(Crowd(parts))
    making = asyncio.create_task(drafts(parts, crowd, count, every_s=1.5 * kills / count))
    for number in range(kills):
        await asyncio.sleep(1.0)
        victim = chaos.random.choice([host for host in parts.hosts if host.running])
        if number % 3 == 2:
            victim.pause()
            await asyncio.sleep(1.2)
            victim.resume()
        else:
            parts.kill(victim.name)
        chaos.tell(f"{number + 1} of {kills}")
    orders = await making
    made_ms = {
        row.stream.partition(":")[2]: row.at_ms for row in await read_log(store) if row.stream and row.offset == 1
    }
    found = await all_expired(store, orders, 20.0)
    await asyncio.sleep(1.0)
    found = expired(await read_log(store))
    assert found.keys() == set(orders)
    late_s = [(times[0] - made_ms[order]) / 1000 - ttl_s for order, times in found.items()]
    chaos.record(late=spread(late_s))
    assert Counter(map(len, found.values())) == {1: count}, "each once"
    assert min(late_s) >= 0.0, "none too early"
