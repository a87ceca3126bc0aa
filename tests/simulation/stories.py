"""What people do: they talk, they look things up, and they take orders from wish to rating."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec

from domain.times import HOUR_MS, rfc3339
from tests.simulation.ledger import Ledger, Write
from tests.support.simulated_client import Device
from tests.support.simulated_parts import EPOCH_MS, Cluster

SITE = {"lat": 31.2304, "lon": 121.4737, "address": "Nanjing Road 1"}
NEXT_JOB_MS = HOUR_MS // 4


def identifier(cluster: Cluster, device: Device) -> str:
    """A write's id as clients make them: mostly by their own clock, whatever that says."""
    if device.chance.random() < 0.3:
        return cluster.random_id()
    return cluster.new_id(device.clock)


class Talk:
    """A device's habits in its conversations; `pace_s` is the mean time between two of its acts."""

    def __init__(self, cluster: Cluster, ledger: Ledger, pace_s: float, calm: Callable[[], bool]) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._pace_s = pace_s
        self._calm = calm
        self._alarms = 0

    async def live(self, device: Device) -> None:
        chance = device.chance
        while not self._calm():
            await asyncio.sleep(min(5.0, chance.expovariate(1 / self._pace_s)))
            rooms = [channel for channel in device.disk.channels if channel.startswith("conversation:")]
            if rooms and not self._calm():
                self._act(device, chance.choice(rooms), chance)

    def _act(self, device: Device, room: str, chance: random.Random) -> None:
        drawn = chance.random()
        for share, act in _ACTS:
            if drawn < share:
                act(self, device, room, chance)
                return
            drawn -= share

    # --- acts ----------------------------------------------------------------------------------------------------------

    def _write(self, device: Device, room: str, method: str, **data: Any) -> None:
        if len(device.disk.outbox.get(room, ())) < 5:
            made = identifier(self._cluster, device)
            device.write(room, method, {"conversation_id": room.partition(":")[2], "id": made, **data}, made)

    def _say(self, device: Device, room: str, chance: random.Random) -> None:
        text = f"{device.name} says {chance.getrandbits(32):08x}"
        self._write(device, room, "message.send", text=text + "." * chance.choice((0, 0, 0, 200, 1_500)))

    def _alarm(self, device: Device, room: str, chance: random.Random) -> None:
        name, known = f"alarm-{chance.randrange(4)}", device.disk.messages.get(room, [])
        if not known:
            self._say(device, room, chance)
            return
        message, _ = chance.choice(known)
        calm = chance.random() < 0.2
        emoji = name if calm else f"{name} {chance.choice((0, 50, 800, 3_000, 8_000))}"
        self._write(device, room, "message.react", message_id=message, emoji=emoji, on=not calm)

    def _change(self, device: Device, room: str, chance: random.Random) -> None:
        known = device.disk.messages.get(room, [])
        if not known:
            return
        own = [message for message, by in known if by == device.user]
        kind = chance.randrange(3)
        if kind == 0 and own:
            self._write(device, room, "message.edit", message_id=chance.choice(own), text=f"edited {chance.random()}")
        elif kind == 1 and own:
            self._write(device, room, "message.delete", message_id=chance.choice(own))
        else:
            message, _ = chance.choice(known)
            self._write(device, room, "message.react", message_id=message, emoji="👍", on=chance.random() < 0.7)

    def _receipt(self, device: Device, room: str, chance: random.Random) -> None:
        offset = device.disk.positions.get(room, ("", 0))[1]
        method = chance.choice(("receipt.read", "receipt.delivered"))
        if offset:
            device.rpc(method, {"conversation_id": room.partition(":")[2], "offset": offset}, lambda reply, error: None)

    def _type(self, device: Device, room: str, chance: random.Random) -> None:
        data = {"type": "typing", "conversation_id": room.partition(":")[2], "on": chance.random() < 0.5}
        device.signal(data)

    def _status(self, device: Device, room: str, chance: random.Random) -> None:
        known = [write for write in self._ledger.writes.values() if write.stream == room and not write.refused]
        if known:
            device.status(chance.choice(known[-20:]))

    def _look(self, device: Device, room: str, chance: random.Random) -> None:
        chance.choice((device.look, device.unsubscribe))(room)

    def _page(self, device: Device, room: str, chance: random.Random) -> None:
        device.history(room, back=chance.random() < 0.5, limit=chance.choice((1, 5, 50)))

    def _sync(self, device: Device, room: str, chance: random.Random) -> None:
        device.sync()

    def _leave(self, device: Device, room: str, chance: random.Random) -> None:
        device.hang_up()


_ACTS: tuple[tuple[float, Callable[[Talk, Device, str, random.Random], None]], ...] = (
    (0.40, Talk._say),
    (0.07, Talk._alarm),
    (0.10, Talk._change),
    (0.08, Talk._receipt),
    (0.10, Talk._type),
    (0.07, Talk._status),
    (0.07, Talk._look),
    (0.05, Talk._page),
    (0.03, Talk._sync),
    (0.03, Talk._leave),
)


class Job:
    """One order, from wish to rating, by a customer and workers who sometimes change their minds. Runs as a task of its own.

    Every step is an ordinary write in somebody's outbox; what a step needs to know is read as its user sees it.
    """

    def __init__(
        self, cluster: Cluster, ledger: Ledger, customer: Device, workers: list[Device], number: int, seed: str
    ) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._customer = customer
        self._workers = workers
        self._chance = random.Random(f"{seed}/job {number}")
        self._pace_s = 0.4
        self.calm = False
        self.order_id = cluster.new_id(customer.clock)
        self.stream = f"order:{self.order_id}"

    async def run(self) -> None:
        await self._do(
            self._customer,
            "create",
            {
                "category": "plumbing",
                "title": "Kitchen tap",
                "description": "The kitchen tap drips day and night.",
                "site": SITE,
                "publish": True,
            },
            by_rest=True,
            made=self.order_id,
        )
        self._customer.follow(self.stream)
        for _ in range(40):
            if self.calm:
                return
            await asyncio.sleep(self._chance.expovariate(1 / self._pace_s))
            if not await self._step():
                return

    async def _do(
        self,
        device: Device,
        name: str,
        payload: dict[str, Any],
        *,
        by_rest: bool = False,
        made: str = "",
        version: Any = None,
    ) -> Write:
        made = made or identifier(self._cluster, device)
        if by_rest:
            write = device.write(self.stream, name, payload, made)
        else:
            data = {"order_id": self.order_id, "command": name, "command_id": made, "payload": payload}
            if version is not None:
                data["expected_version"] = version
            write = device.write(self.stream, "order.command", data, made)
        while not write.over and not self.calm:
            await asyncio.sleep(0.1)
        return write

    async def _view(self, device: Device) -> dict[str, Any] | None:
        seen: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()

        def got(order: dict[str, Any] | None) -> None:
            if not seen.done():
                seen.set_result(order)

        device.process.call(0.0, device.view, self.order_id, got)
        done, _ = await asyncio.wait([seen], timeout=8.0)
        return seen.result() if done else None

    async def _step(self) -> bool:
        """The next thing to happen, as the order stands; False when there is nothing more."""
        order = await self._view(self._customer)
        if order is None:
            return not self.calm
        act = getattr(self, f"_when_{order['state']}", None)
        if act is None:
            return False
        await act(order)
        return True

    def _hired(self, order: dict[str, Any]) -> Device:
        return next(worker for worker in self._workers if worker.user == order["worker_id"])

    # --- what happens in each state --------------------------------------------------------------------------------------

    async def _when_open(self, order: dict[str, Any]) -> None:
        quotes = [quote for quote in order["quotes"] if quote["status"] == "submitted"]
        if not quotes or (len(quotes) < 2 and self._chance.random() < 0.4):
            worker = self._chance.choice(self._workers)
            mine = [quote for quote in quotes if quote["worker_id"] == worker.user]
            payload = {
                "quote_id": mine[0]["id"] if mine else identifier(self._cluster, worker),
                "rev": mine[0]["rev"] + 1 if mine else 1 + sum(q["worker_id"] == worker.user for q in order["quotes"]),
                "milestones": [{"title": "All of it", "amount": 50_000}],
                "currency": "CNY",
            }
            await self._do(worker, "submit_quote", payload)
            return
        quote = self._chance.choice(quotes)
        if self._chance.random() < 0.1:
            worker = next(worker for worker in self._workers if worker.user == quote["worker_id"])
            await self._do(worker, "withdraw_quote", {"quote_id": quote["id"]})
            return
        version = order["version"] - (self._chance.random() < 0.1)
        payload = {"quote_id": quote["id"], "rev": quote["rev"]}
        await self._do(self._customer, "accept_quote", payload, version=version)

    async def _when_awarded(self, order: dict[str, Any]) -> None:
        if self._chance.random() < 0.1:
            await self._do(
                self._chance.choice((self._customer, self._hired(order))), "cancel", {"reason": "changed my mind"}
            )
            return
        payment = identifier(self._cluster, self._customer)
        started = await self._do(
            self._customer, "start_payment", {"payment_id": payment, "milestone": 1, "rail": "sandbox"}, by_rest=True
        )
        if started.refused:
            return
        news = {"payment_id": payment, "psp_event_id": f"evt-{payment}", "amount": 50_000, "currency": "CNY"}
        for _ in range(self._chance.choice((1, 1, 2))):
            await self._do(self._customer, "deposit_held", news, by_rest=True)

    async def _when_funded(self, order: dict[str, Any]) -> None:
        proposed = [visit for visit in order["visits"] if visit["status"] == "proposed"]
        hired = self._hired(order)
        if not proposed or self._chance.random() < 0.2:
            # All jobs want the same afternoon: workers' calendars collide.
            start = EPOCH_MS // HOUR_MS * HOUR_MS + 3 * HOUR_MS + self._chance.randrange(3) * NEXT_JOB_MS
            payload = {
                "visit_id": identifier(self._cluster, hired),
                "start": rfc3339(start),
                "end": rfc3339(start + 2 * NEXT_JOB_MS),
            }
            await self._do(self._chance.choice((hired, self._customer)), "propose_slot", payload)
            return
        visit = self._chance.choice(proposed)
        await self._do(self._chance.choice((self._customer, hired)), "confirm_slot", {"visit_id": visit["id"]})

    async def _when_scheduled(self, order: dict[str, Any]) -> None:
        visit = next((v for v in order["visits"] if v["status"] == "confirmed"), None)
        if visit is not None:
            if self._chance.random() < 0.1:
                await self._do(self._chance.choice((self._customer, self._hired(order))), "cancel", {"reason": "no"})
                return
            await self._do(self._hired(order), "start_trip", {"visit_id": visit["id"]})

    async def _when_en_route(self, order: dict[str, Any]) -> None:
        hired = self._hired(order)
        visit = next((v for v in order["visits"] if v["status"] in ("en_route", "arrived")), None)
        if visit is None:
            return
        self._customer.follow(self.stream)
        for n in range(self._chance.randrange(1, 6)):
            at = rfc3339(hired.clock.now_ms())
            away = 0.02 * self._chance.random()
            fix = {"at": at, "lat": SITE["lat"] + away, "lon": SITE["lon"], "accuracy_m": 5.0 + n}
            hired.signal({"type": "fix", "order_id": self.order_id, "fixes": [fix]})
            await asyncio.sleep(1.1)
        if self._chance.random() < 0.15:
            await self._do(hired, "abort_trip", {"visit_id": visit["id"], "reason": "a flat tyre"})
            return
        code = visit.get("check_in_code", "0000")
        if self._chance.random() < 0.2:
            code = "0000"
        await self._do(hired, "check_in", {"visit_id": visit["id"], "code": code})

    async def _when_in_progress(self, order: dict[str, Any]) -> None:
        await self._do(self._hired(order), "submit_completion", {})

    async def _when_work_submitted(self, order: dict[str, Any]) -> None:
        if self._chance.random() < 0.2:
            await self._do(self._customer, "request_changes", {"n": 1, "items": ["the corner"]})
            return
        await self._do(self._customer, "approve_completion", {})

    async def _when_approved(self, order: dict[str, Any]) -> None:
        for device in (self._customer, self._hired(order)):
            await self._do(device, "rate", {"stars": self._chance.randint(1, 5)})
        self.calm = True


def opening(members: list[Device]) -> bytes:
    return msgspec.json.encode({"member_ids": [device.user for device in members]})
