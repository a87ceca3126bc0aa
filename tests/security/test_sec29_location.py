"""SEC-29: where a worker is: told to the parties of an order that is under way, by nobody else, and not a second longer."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Final

from domain.access import Role
from domain.times import rfc3339
from tests.security.city import City, Line, Person
from tests.security.tally import Tally

SITE: Final = (31.2304, 121.4737)
PARTIES: Final = ("customer", "worker", "operations")
OTHERS: Final = ("rival", "stranger", "another worker")
LONGEST_S: Final = 1.0
"""After this long nothing is told any more."""


class Watch:
    """Six people and one order. Whoever may follows it; all say all the time where they are, as if they were its worker."""

    def __init__(
        self, city: City, order_id: str, people: dict[str, Person], lines: dict[str, Line], tally: Tally
    ) -> None:
        self._city, self._order_id, self._people, self._lines, self._tally = city, order_id, people, lines, tally
        self._rounds = 0

    def fix(self, lat: float) -> dict[str, Any]:
        at = rfc3339(self._city.platform.clock.now_ms())
        return {"at": at, "lat": lat, "lon": SITE[1], "accuracy_m": 5.0}

    async def follow(self) -> None:
        for name, line in self._lines.items():
            reply = await line.ask({"subscribe": {"channel": f"order:{self._order_id}"}})
            assert ("subscribe" in reply) is (name in PARTIES), (name, reply)
            self._tally.tried("SEC-29", f"following as {name}", "order:", 1)

    async def round(self, state: str) -> dict[str, list[float]]:
        """What each heard of positions, after everybody has said one, each at a latitude of their own."""
        self._rounds += 1
        for line in self._lines.values():
            line.heard.clear()
        said = {name: SITE[0] + 0.001 * self._rounds + 0.0001 * at for at, name in enumerate(self._lines)}
        for name, line in self._lines.items():
            await line.send({"type": "fix", "order_id": self._order_id, "fixes": [self.fix(said[name])]})
            self._tally.tried("SEC-29", f"saying where one is as {name}, {state}", "fix", 1)
        await asyncio.sleep(LONGEST_S)
        heard = {name: _positions(line) for name, line in self._lines.items()}
        for name, person in self._people.items():
            answer = await person.ask("GET", f"/v1/orders/{self._order_id}/track")
            assert answer.status == (200 if name in PARTIES else 404), (name, state)
            self._tally.tried("SEC-29", f"the record as {name}, {state}", "GET /v1/orders/{order_id}/track", 1)
        self.workers = said["worker"]
        return heard


def _positions(line: Line) -> list[float]:
    data = [item["push"].get("pub", {}).get("data", {}) for item in line.heard if "push" in item]
    return [each["lat"] for each in data if each.get("type") == "position"]


async def test_where_a_worker_is_is_told_to_the_parties_alone_and_while_they_are_on_the_way(
    city: City, tally: Tally
) -> None:
    mine = await city.belongings(Role.CUSTOMER)
    people = {
        "customer": mine.owner,
        "worker": mine.partner,
        "operations": await city.person(Role.OPS),
        "rival": mine.rival,
        "stranger": await city.person(Role.CUSTOMER),
        "another worker": await city.person(Role.WORKER),
    }
    worker, order_id, visit_id = mine.partner, mine.ids["order_id"], city.new_id()
    start, end = (rfc3339(city.platform.clock.now_ms() + hours * 3_600_000) for hours in (2, 4))
    await mine.owner.command(order_id, "propose_slot", visit_id=visit_id, start=start, end=end)
    await worker.command(order_id, "confirm_slot", visit_id=visit_id)
    visits = (await mine.owner.must("GET", f"/v1/orders/{order_id}"))["visits"]
    code = next(visit["check_in_code"] for visit in visits if visit["id"] == visit_id)
    nobody: dict[str, list[float]] = {name: [] for name in people}
    async with AsyncExitStack() as stack:
        lines = {name: await stack.enter_async_context(person.line()) for name, person in people.items()}
        watch = Watch(city, order_id, people, lines, tally)
        await watch.follow()
        assert await watch.round("before the trip") == nobody
        await worker.command(order_id, "start_trip", visit_id=visit_id, fix=watch.fix(SITE[0]))
        heard = await watch.round("on the way")
        assert heard == nobody | {name: [watch.workers] for name in PARTIES}
        await worker.command(order_id, "abort_trip", visit_id=visit_id)
        assert await watch.round("after a trip that was broken off") == nobody
        await worker.command(order_id, "start_trip", visit_id=visit_id, fix=watch.fix(SITE[0]))
        await worker.command(order_id, "check_in", visit_id=visit_id, code=code, fix=watch.fix(SITE[0]))
        assert await watch.round("at work") == nobody
        await mine.owner.command(order_id, "cancel", reason="changed my mind")
        assert await watch.round("cancelled") == nobody
