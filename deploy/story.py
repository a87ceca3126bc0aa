"""One order from login to rating, played by a customer and a worker through the public interfaces alone.

Every step checks what came back; what was acknowledged goes into the ledger, what can be seen of it into the scene.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import msgspec
import phonenumbers

from deploy.ledger import Entry, Event, Ledger, Step, differences
from deploy.person import Addresses, Feed, Person, RefusedError, StoryError, expect
from domain.geo import distance_m

QUARTER_S: Final = 900
_RATED_STATES: Final = ("approved", "settled", "closed")
_METRES_PER_DEGREE: Final = 111_195.0
_NEAR_M: Final = 20.0
"""How far from the site the worker parks."""


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """What is played. `seed` makes phones, names and places; equal seeds give equal people."""

    seed: int
    milestones: int = 2
    chatter: int = 3
    """Messages by each side, in each of the story's four talks."""
    talk_s: float = 0.0
    """How long a person thinks before each message."""
    fixes: int = 8
    fix_s: float = 0.25
    speed_mps: float = 40.0
    patience_s: float = 10.0
    """How long a write without an answer is sent again."""


class Scene(msgspec.Struct):
    """What a spectator sees of one story; changed as things happen."""

    customer: str
    worker: str
    order_id: str = ""
    title: str = ""
    step: str = "waiting"
    state: str = "-"
    version: int = 0
    chat: list[tuple[str, str]] = []
    typing: str = ""
    trip_m: float = 0.0
    left_m: float | None = None
    eta_s: float | None = None
    outcome: str = ""


JOBS: Final = (
    ("plumbing", "Leaking kitchen tap", "The tap under the kitchen sink drips day and night; the cabinet floor is wet."),
    ("painting", "Repaint a living room", "Two coats of white in a living room of 24 square metres, ceiling included."),
    ("electrical", "Three new sockets", "Three double sockets in the study, on a circuit of their own, near the window."),
    ("tiling", "Bathroom floor tiles", "About six square metres of floor tiles in the bathroom; old ones are out already."),
)  # fmt: skip
NAMES: Final = (("Lin", "Wang"), ("Mei", "Chen"), ("Anna", "Karim"), ("Jun", "Zhao"), ("Sara", "Liu"), ("Tom", "Yang"))
TALKS: Final = {
    "talk about the quote": (
        "Hello! Could you come this week?", "Yes. Is there parking nearby?", "In the yard, just ring the bell.",
        "Good. I will bring all material.", "Does your price include it?", "It does, and the waste too.",
    ),
    "talk about the visit": (
        "Do you need anything prepared?", "Only some free space, thank you.", "I will move the shelf, then.",
        "Perfect. I am on time, traffic allowing.", "Which entrance will you take?", "The one at the yard.",
    ),
    "talk at the site": (
        "Everything to hand?", "Yes. It will be a bit noisy now.", "No problem, the neighbours know.",
        "Would you like to see how it goes?", "Gladly, in a minute.", "I will leave the door open.",
    ),
    "say goodbye": (
        "It looks great, thank you!", "My pleasure. Call me if anything is wrong.", "I will. Safe trip home!",
        "Thank you, and good luck!", "I have told my neighbours.", "That is kind of you.",
    ),
}  # fmt: skip


def phone_number(seed: int, person: int) -> str:
    """A valid mobile number in E.164 that depends on its arguments alone."""
    number = f"+86138{(seed * 2 + person) * 7_919 % 100_000_000:08d}"
    assert phonenumbers.is_valid_number(phonenumbers.parse(number)), number
    return number


class Story:
    """`run` plays all of it. A story whose connections break goes on by itself as long as patience lasts."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        addresses: Addresses,
        script: Script,
        ledger: Ledger,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        customer, worker = NAMES[script.seed % len(NAMES)]
        self.script = script
        self.ledger = ledger
        self.customer = Person(http, addresses, phone_number(script.seed, 0), customer, ledger, script.patience_s)
        self.worker = Person(http, addresses, phone_number(script.seed, 1), worker, ledger, script.patience_s)
        self.scene = Scene(customer, worker)
        self.order_id = str(uuid.uuid4())
        self.conversation_id = ""
        self._tell = tell
        self._site = (31.20 + script.seed % 97 / 1000, 121.40 + script.seed % 89 / 1000)
        self._job = JOBS[script.seed % len(JOBS)]
        self._quote_id = str(uuid.uuid4())
        self._visit_id = str(uuid.uuid4())
        self._trip_m = _NEAR_M + script.fixes * script.fix_s * script.speed_mps

    async def run(self) -> None:
        """Raises StoryError at the first thing that is not as promised."""
        try:
            await self._meet()
            await self._hire()
            await self._travel()
            await self._work()
            await self._look_back()
        except BaseException:
            self.scene.outcome = f"stopped at: {self.scene.step}"
            raise
        finally:
            await self.customer.leave()
            await self.worker.leave()
        self.scene.outcome = "done"

    # --- the acts ------------------------------------------------------------------------------------------------

    async def _meet(self) -> None:
        async with self._step("log in"):
            await asyncio.gather(self.customer.log_in(), self.worker.log_in())
            await asyncio.gather(self.customer.connect(), self.worker.connect())
        async with self._step("become a worker"):
            await self._become_worker()
        async with self._step("post an order"):
            await self._post()
        async with self._step("quote"):
            await self._quote()
        await self._talk("talk about the quote")

    async def _hire(self) -> None:
        customer, worker = self.customer, self.worker
        async with self._step("accept the quote"):
            stale = self.scene.version - 1
            wish = {"quote_id": self._quote_id, "rev": 1}
            await self._refused(customer, "accept_quote", wish, "version_conflict", stale)
            await self._command(customer, "accept_quote", wish, "awarded", version=self.scene.version)
            await worker.follow(self._order_channel)
        async with self._step("pay the deposit"):
            await self._pay(1, "order.funded", "funded")
        async with self._step("agree on a time"):
            start = datetime.fromtimestamp((time.time() // QUARTER_S + 10) * QUARTER_S, UTC)
            slot = {"visit_id": self._visit_id, "start": _rfc3339(start), "end": _rfc3339(start + timedelta(hours=2))}
            await self._command(worker, "propose_slot", slot, "funded")
            await self._command(customer, "confirm_slot", {"visit_id": self._visit_id}, "scheduled")
        await self._talk("talk about the visit")

    async def _travel(self) -> None:
        async with self._step("start the trip"):
            visit = {"visit_id": self._visit_id, "fix": self._fix(self._trip_m)}
            await self._command(self.worker, "start_trip", visit, "en_route")
        async with self._step("drive to the site"):
            await self._drive()
        async with self._step("arrive and check in"):
            here = {"visit_id": self._visit_id, "fix": self._fix(_NEAR_M)}
            await self._command(self.worker, "arrived", here, "en_route")
            code = await self._check_in_code()
            await self._refused(self.worker, "check_in", {**here, "code": f"{(int(code) + 1) % 10_000:04d}"}, "invalid")
            await self._command(self.worker, "check_in", {**here, "code": code}, "in_progress")
        await self._talk("talk at the site")

    async def _work(self) -> None:
        customer, worker = self.customer, self.worker
        for n in range(1, self.script.milestones):
            async with self._step(f"milestone {n}"):
                await self._command(worker, "submit_milestone", {"n": n, "note": "done as agreed"}, "in_progress")
                await self._command(customer, "approve_milestone", {"n": n}, "in_progress")
                await self._pay(n + 1, "order.milestone_funded", "in_progress")
        async with self._step("check out"):
            await self._command(worker, "check_out", {"visit_id": self._visit_id}, "in_progress")
        async with self._step("finish and approve"):
            await self._command(worker, "submit_completion", {"note": "all done"}, "work_submitted")
            await self._command(customer, "approve_completion", {}, *_RATED_STATES)
        async with self._step("rate each other"):
            await self._command(customer, "rate", {"stars": 5, "text": "Clean and quick."}, *_RATED_STATES)
            await self._command(worker, "rate", {"stars": 4, "text": "Friendly."}, *_RATED_STATES)
            shown = await self._order_feed.until("event with both ratings", lambda event: bool(event.get("ratings")))
            stars = sorted(rating["stars"] for rating in shown["ratings"])
            expect("both ratings in the event of the second", stars == [4, 5], shown)
        await self._talk("say goodbye")

    async def _look_back(self) -> None:
        async with self._step("compare with what is stored"):
            mine = {self._order_channel, self._chat_channel}
            await self._caught_up()
            streams = {channel: await self.customer.stream(channel) for channel in sorted(mine)}
            wrong = differences(self._own_ledger(), streams)
            for person in (self.customer, self.worker):
                for channel, feed in person.feeds.items():
                    wrong += feed.faults() + _unlike(person.name, feed, streams[channel])
            expect("every acknowledged write, in order, once, for both sides", not wrong, wrong)
            await self._counted(streams)

    # --- the steps -----------------------------------------------------------------------------------------------

    async def _become_worker(self) -> None:
        lat, lon = self._site
        offer = {
            "skills": [self._job[0]],
            "base": {"lat": lat + 0.03, "lon": lon},
            "radius_m": 20_000,
            "hourly_rate": {"amount": 12_000, "currency": "CNY"},
            "bio": "Twelve years in the trade.",
        }
        me = await self.worker.rest("PUT", "/v1/me/worker", offer)
        expect("the role worker", "worker" in me["roles"], me)

    async def _post(self) -> None:
        category, title, description = self._job
        self.scene.title = title
        self.scene.order_id = self.order_id
        site = {"lat": self._site[0], "lon": self._site[1], "address": f"{self.script.seed % 900 + 1} Yan'an Road"}
        wish = {"id": self.order_id, "category": category, "title": title, "description": description, "site": site}
        order = await self.customer.rest("POST", "/v1/orders", wish)
        expect("an order in draft", (order["id"], order["state"]) == (self.order_id, "draft"), order)
        self._order_feed = await self.customer.follow(self._order_channel, self._on_order)
        await self._command(self.customer, "publish", {}, "open")

    async def _quote(self) -> None:
        seen = await self.worker.rest("GET", f"/v1/orders/{self.order_id}")
        expect("a site without an address for a worker who is not hired", "address" not in seen["site"], seen["site"])
        expect("submit_quote among the worker's commands", "submit_quote" in seen["allowed_commands"], seen)
        total = 50_000
        parts = [total // 5, total - total // 5] if self.script.milestones == 2 else [total]
        lines = [{"title": f"Part {n}", "amount": amount} for n, amount in enumerate(parts, 1)]
        offer = {
            "quote_id": self._quote_id,
            "rev": 1,
            "milestones": lines,
            "currency": "CNY",
            "note": "Material included",
        }
        order = await self._command(self.worker, "submit_quote", offer, "open")
        quote: Event = next((quote for quote in order["quotes"] if quote["id"] == self._quote_id), {})
        expect(f"the worker's own quote over {total}", quote.get("total") == total, order["quotes"])
        self.conversation_id = quote["conversation_id"]
        theirs = await self.customer.rest("GET", f"/v1/orders/{self.order_id}")
        same = [quote["conversation_id"] for quote in theirs["quotes"]] == [self.conversation_id]
        expect("one quote with the same conversation for the customer", same, theirs["quotes"])
        await self.customer.follow(self._chat_channel, self._on_chat)
        await self.worker.follow(self._chat_channel)

    async def _talk(self, name: str) -> None:
        """Each side speaks in turn; the other sees them type, receives the message, and acknowledges it."""
        async with self._step(name):
            lines = itertools.cycle(TALKS[name])
            for _ in range(self.script.chatter):
                await self._exchange(self.customer, self.worker, next(lines))
                await self._exchange(self.worker, self.customer, next(lines))
            self.scene.typing = ""

    async def _exchange(self, speaker: Person, listener: Person, text: str) -> None:
        speaker.send({"type": "typing", "conversation_id": self.conversation_id, "on": True})
        if self.script.talk_s:
            self.scene.typing = speaker.name
            await asyncio.sleep(self.script.talk_s)
        message = await speaker.say(self.conversation_id, text, self._next_entry())
        heard = await listener.feeds[self._chat_channel].until(
            f"message {message.id}", lambda event: event.get("message_id") == message.id, self.script.patience_s
        )
        told = (heard["offset"], heard["by"], heard["at"], heard.get("text"))
        expect(f"the message as acknowledged: {message}", told == (message.offset, speaker.id, message.at, text), heard)
        watermark = {"conversation_id": self.conversation_id, "offset": message.offset}
        await listener.rpc("receipt.delivered", watermark)
        await listener.rpc("receipt.read", watermark)

    async def _pay(self, milestone: int, event_type: str, state: str) -> None:
        payment_id = str(uuid.uuid4())
        body = {"id": payment_id, "milestone": milestone, "rail": "sandbox"}
        paid = await self.customer.rest("POST", f"/v1/orders/{self.order_id}/payments", body)
        expect("an answer about this payment", paid["payment_id"] == payment_id, paid)
        event = await self._order_feed.until(
            f"{event_type} by {payment_id}",
            lambda event: event["type"] == event_type and event.get("payment_id") == payment_id,
            self.script.patience_s,
        )
        expect(f"the order in {state} after the payment", event["state"] == state, event)
        self.ledger.transitions_from(self.order_id, "pay", [event])

    async def _drive(self) -> None:
        """Fixes go out at a steady rate while the customer watches. Any of them may be lost, but not all."""
        feed, deadline = self._order_feed, time.monotonic() + self.script.patience_s
        before = len(feed.ephemeral)
        self.scene.trip_m = self.scene.left_m = self._trip_m
        for n in itertools.count(1):
            left_m = max(_NEAR_M, self._trip_m - n * self.script.fix_s * self.script.speed_mps)
            self.worker.send({"type": "fix", "order_id": self.order_id, "fixes": [self._fix(left_m)]})
            await asyncio.sleep(self.script.fix_s)
            seen = [item for item in feed.ephemeral[before:] if item["type"] == "position"]
            if n >= self.script.fixes and (seen or time.monotonic() > deadline):
                break
        expect("a position of the worker while the customer watches", bool(seen), feed.ephemeral[before:])
        away = [distance_m(item["lat"], item["lon"], *self._site) for item in seen]
        expect(f"positions up to {self._trip_m + 100:.0f} m away", max(away) <= self._trip_m + 100, seen)
        expect("positions that do not go backwards", all(a >= b - 50 for a, b in itertools.pairwise(away)), away)

    async def _check_in_code(self) -> str:
        theirs = await self.customer.rest("GET", f"/v1/orders/{self.order_id}")
        own = await self.worker.rest("GET", f"/v1/orders/{self.order_id}")
        codes = [visit.get("check_in_code") for visit in theirs["visits"] if visit["id"] == self._visit_id]
        expect("four digits for the customer", len(codes) == 1 and len(codes[0] or "") == 4, theirs["visits"])
        hidden = not any(visit.get("check_in_code") for visit in own["visits"])
        expect("no code in the worker's view", hidden, own["visits"])
        return str(codes[0])

    async def _caught_up(self) -> None:
        """Wait until both have received everything that is in the streams now."""
        order = await self.customer.rest("GET", f"/v1/orders/{self.order_id}")
        heads = {self._order_channel: order["version"]}
        heads[self._chat_channel] = max(event["offset"] for event in await self.customer.stream(self._chat_channel))
        for person in (self.customer, self.worker):
            for channel, feed in person.feeds.items():
                await feed.reach(heads[channel])

    async def _counted(self, streams: dict[str, list[Event]]) -> None:
        """The lists agree with the streams: the conversation list, `sync`, `write.status`, the order list."""
        head = streams[self._chat_channel][-1]["offset"]
        for person in (self.customer, self.worker):
            rows = (await person.rest("GET", "/v1/conversations"))["items"]
            row: Event = next((row for row in rows if row["id"] == self.conversation_id), {})
            expect(f"a conversation list that knows offset {head}", row.get("offset") == head, row)
            synced = await person.rpc("sync", {})
            known = {row["id"]: row["offset"] for row in (*synced["conversations"], *synced["orders"])}
            version = streams[self._order_channel][-1]["offset"]
            told = (known.get(self.conversation_id), known.get(self.order_id))
            expect(f"sync to say ({head}, {version})", told == (head, version), synced)
        mine = [message for message in self.ledger.messages if message.conversation_id == self.conversation_id]
        status = await self.customer.rpc("write.status", {"stream": self._chat_channel, "id": mine[-1].id})
        expect(f"write.status to know {mine[-1]}", status == {"known": True, "offset": mine[-1].offset}, status)

    # --- small things --------------------------------------------------------------------------------------------

    async def _command(
        self, person: Person, name: str, payload: dict[str, Any], *states: str, version: int | None = None
    ) -> dict[str, Any]:
        order = await person.command(self.order_id, name, payload, self._next_entry(), version)
        expect(f"state {' or '.join(states)} after {name}", order["state"] in states, order["state"])
        self.scene.state, self.scene.version = order["state"], order["version"]
        return order

    async def _refused(
        self, person: Person, name: str, payload: dict[str, Any], code: str, version: int | None = None
    ) -> None:
        try:
            await person.command(self.order_id, name, payload, self._next_entry(), version)
        except RefusedError as error:
            expect(f"{name} to be refused with {code}", error.code == code, error)
        else:
            raise StoryError(f"{name} was accepted, and {code} was expected")

    def _next_entry(self) -> Entry:
        """REST and WebSocket in turn."""
        entries = self.ledger.entries
        return "rest" if entries["rest"] < entries["ws"] else "ws"

    def _fix(self, left_m: float) -> dict[str, Any]:
        """Where the worker is that far from the site: due north of it, driving south."""
        lat, lon = self._site
        at = _rfc3339(datetime.now(UTC))
        place = {"lat": round(lat + left_m / _METRES_PER_DEGREE, 6), "lon": lon}
        return {"at": at, **place, "accuracy_m": 8.0, "speed_mps": self.script.speed_mps, "heading_deg": 180.0}

    def _on_order(self, event: Event) -> None:
        if event["type"] == "position":
            self.ledger.positions += 1
            self.scene.left_m = distance_m(event["lat"], event["lon"], *self._site)
            self.scene.eta_s = event.get("eta_s")
            self._tell(f"position: {self.scene.left_m:.0f} m left")
        elif "offset" in event:
            if event["version"] > self.scene.version:
                self.scene.state, self.scene.version = event["state"], event["version"]
            if event["type"] == "order.arrived":
                self.scene.left_m, self.scene.eta_s = 0.0, None
            self._tell(f"{event['type']} -> {event['state']} (version {event['version']})")

    def _on_chat(self, event: Event) -> None:
        if event["type"] == "typing":
            self.scene.typing = self._name_of(event["by"])
        if event["type"] == "message.posted":
            self.scene.chat.append((self._name_of(event["by"]), event.get("text", "")))
            self._tell(f"{self.scene.chat[-1][0]}: {self.scene.chat[-1][1]}")

    def _name_of(self, user_id: str) -> str:
        return {self.customer.id: self.customer.name, self.worker.id: self.worker.name}.get(user_id, user_id)

    def _own_ledger(self) -> Ledger:
        """The part of the shared ledger that is about this story."""
        messages = [message for message in self.ledger.messages if message.conversation_id == self.conversation_id]
        transitions = [transition for transition in self.ledger.transitions if transition.order_id == self.order_id]
        return Ledger(messages=messages, transitions=transitions)

    @asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[None]:
        self.scene.step = name
        started = time.perf_counter()
        yield
        self.ledger.steps.append(Step(name, time.perf_counter() - started))

    @property
    def _order_channel(self) -> str:
        return f"order:{self.order_id}"

    @property
    def _chat_channel(self) -> str:
        return f"conversation:{self.conversation_id}"


def _unlike(name: str, feed: Feed, stored: list[Event]) -> list[str]:
    """Where a subscriber was told something else than what is stored."""
    kept = {event["offset"]: event for event in stored}
    unlike = [event for event in feed.events if kept.get(event["offset"]) != event]
    return [
        f"{feed.channel}: {name} was told {event} and stored is {kept.get(event['offset'])}" for event in unlike[:3]
    ]


def _rfc3339(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
