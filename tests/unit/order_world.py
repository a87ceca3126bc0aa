"""A small world for orders: people, a clock, and the turn as the runtime takes it, with what every turn must keep."""

import copy
import json
import uuid
from typing import Any

import pytest

from domain.aggregate import (
    Account,
    AccountNeed,
    BlockNeed,
    Decision,
    Facts,
    Need,
    OpenOrdersNeed,
    UploadFact,
    UploadNeed,
    WorkerProfile,
)
from domain.channels import stream_partition
from domain.chat import CHAT, Conversation
from domain.commands import SYSTEM, Actor, Command, Reminder
from domain.errors import Refusal, Refused
from domain.order_events import (
    Cancelled,
    Created,
    Expired,
    Nudged,
    Published,
    QuoteRejected,
    QuoteSubmitted,
    QuoteWithdrawn,
    type_of,
)
from domain.order_state import OrderState
from domain.order_table import TERMINAL
from domain.orders import OrderRules
from domain.policy import Policy
from domain.times import HOUR_MS, rfc3339

NOW = 1_767_225_600_000
SITE = {"lat": 31.2304, "lon": 121.4737, "address": "Nanjing Road 1"}


def make_id(n: int) -> str:
    return str(uuid.UUID(int=n, version=4))


ORDER = make_id(0x1000)
DISPUTE = make_id(0x3000)
ANNA, BEN, EVE, ZOE, OPAL = (make_id(n) for n in range(1, 6))
"""A customer, two workers, a stranger who is no worker, and somebody of operations."""

PSP = Actor("psp", "sandbox")


def user(user_id: str) -> Actor:
    return Actor("user", user_id, f"session of {user_id}")


ACTORS = {
    "anna": user(ANNA), "ben": user(BEN), "eve": user(EVE), "zoe": user(ZOE), "opal": user(OPAL), "psp": PSP,
    "bank": Actor("psp", "bank"),
    "system": SYSTEM,
}  # fmt: skip


def profile(lat: float = 31.24, lon: float = 121.48, radius_m: float = 20_000) -> WorkerProfile:
    return WorkerProfile(("plumbing",), lat, lon, radius_m, 10_000, "CNY")


class World:
    """One order and those around it. `do` gives a command in somebody's name and checks what every turn must keep."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.rules = OrderRules(policy or Policy(), b"pepper")
        self.state: OrderState = self.rules.initial(ORDER)
        self.now = NOW
        self.accounts = {
            ANNA: Account(ANNA, ("customer",)),
            BEN: Account(BEN, ("customer", "worker"), profile()),
            EVE: Account(EVE, ("customer", "worker"), profile()),
            ZOE: Account(ZOE, ("customer",)),
            OPAL: Account(OPAL, ("customer", "ops")),
        }
        self.open_orders = 0
        self.blocks: set[tuple[str, str]] = set()
        """Who has blocked whom."""
        self.uploads: dict[str, UploadFact] = {}
        self.claims: set[str] = set()
        self.bodies: list[bytes] = []
        self.related: list[Command] = []
        self.events: list[Any] = []
        self.rooms: dict[str, Conversation] = {}
        self.said: dict[str, list[Any]] = {}
        """What has happened in the order's conversations, by the order's own doing."""
        self.taken_back: set[Reminder] = set()
        """Reminders that stood once and no longer do."""
        self._ids = 0x100000

    def uploaded(self, who: str, purpose: str = "photo") -> str:
        """Something that somebody may name."""
        upload_id = self.new_id()
        self.uploads[upload_id] = UploadFact(ACTORS[who].id, purpose)
        return upload_id

    def new_id(self) -> str:
        self._ids += 1
        return make_id(self._ids)

    def facts(self, *needs: Need) -> Facts:
        known: dict[Need, Any] = {}
        for need in needs:
            if isinstance(need, AccountNeed):
                known[need] = self.accounts.get(need.user_id)
            if isinstance(need, OpenOrdersNeed):
                known[need] = self.open_orders
            if isinstance(need, BlockNeed):
                known[need] = (need.blocker_id, need.blocked_id) in self.blocks
            if isinstance(need, UploadNeed):
                known[need] = self.uploads.get(need.upload_id)
        return Facts(known)

    def do(
        self, who: str, name: str, version: int | None = None, command_id: str | None = None, **payload: Any
    ) -> list[Any]:
        """The turn of a command: its events.

        Raises:
            Refusal: as the caller would get it; a refusal that is remembered has changed the state before.
        """
        command_id = command_id or self.new_id()
        return self._turn(Command("order", ORDER, name, ACTORS[who], command_id, json.dumps(payload).encode(), version))

    def _turn(self, command: Command) -> list[Any]:
        rules, state, actor, name = self.rules, self.state, command.actor, command.name
        stood = self.standing()
        before = rules.encode_state(state)
        try:
            needs = rules.needs(state, actor, name)
            rules.admit(state, command, self.facts(*needs))
            parsed = rules.parse(command)
            facts = self.facts(*needs, *rules.needs_of(state, command, parsed))
            decision = rules.decide(state, command, parsed, self.now, facts)
        except Refusal:
            assert rules.encode_state(state) == before, f"the refused {name} has changed the state"
            raise
        assert rules.encode_state(state) == before, f"deciding {name} has changed the state"
        touched = rules.touches(state, command, parsed)
        assert {c.stream for c in decision.related} <= set(touched)
        assert all(stream_partition(stream) == stream_partition(ORDER) for stream in touched)
        clash = self.claims & set(decision.claims)
        assert not clash, f"{name} claims what the order holds already: {clash}"
        assert set(decision.releases) <= self.claims, f"{name} releases what the order does not hold"
        self.claims = (self.claims | set(decision.claims)) - set(decision.releases)
        for event in decision.events:
            body = rules.encode_event(event)
            assert rules.decode_event(body) == event
            self.state = rules.evolve(self.state, event, self.state.version + 1)
            self.bodies.append(body)
        self.events += decision.events
        self.related += decision.related
        self._check_cards(state, decision)
        self._follow(decision.related)
        self._check_reminders(stood)
        if decision.refusal is not None:
            raise Refusal.of(decision.refusal)
        return decision.events

    def _check_cards(self, before: OrderState, decision: Decision[Any]) -> None:
        """Each event that both parties may know has one card where it belongs, in order, in the turn of the event."""
        expected: dict[str, list[tuple[str, int]]] = {}
        for event in decision.events:
            for worker_id in self._told(before, event):
                room = self.state.quotes_of(worker_id)[0].conversation_id
                expected.setdefault(room, []).append((type_of(event), event.version))
        posted: dict[str, list[tuple[str, int]]] = {}
        for command in decision.related:
            if command.name == "card":
                card = json.loads(command.payload)["card"]
                posted.setdefault(command.stream_id, []).append((card["type"], card["version"]))
                assert card["order_id"] == ORDER
        assert posted == expected

    def _told(self, before: OrderState, event: Any) -> list[str]:
        """The workers in whose conversations an event has a card, by the rule and not by the table."""
        if isinstance(event, Created | Published | Nudged):
            return []
        if isinstance(event, QuoteSubmitted | QuoteWithdrawn | QuoteRejected):
            assert event.private is not None
            return [event.private.worker_id]
        if isinstance(event, Cancelled | Expired):
            return [q.worker_id for q in before.quotes if q.status in ("submitted", "accepted")]
        hired = self.state.worker_id or before.worker_id
        return [] if hired is None else [hired]

    def _follow(self, related: list[Command]) -> None:
        """What the order sends to its conversations happens there, by their own rules."""
        for command in related:
            room = self.rooms.get(command.stream_id)
            if room is None:
                room = CHAT.initial(command.stream_id)
            decision = CHAT.decide(room, command, CHAT.parse(command), self.now, Facts({}))
            self.rooms[command.stream_id] = room = CHAT.fork(room)
            for event in decision.events:
                room = CHAT.evolve(room, event, room.version + 1)
                self.said.setdefault(command.stream_id, []).append(event)

    def _check_reminders(self, stood: list[Reminder]) -> None:
        """What the runtime's bookkeeping rests on."""
        stand = self.standing()
        assert stand == self.standing()
        assert len({r.name for r in stand}) == len(stand)
        assert all(0 < r.fence_offset <= self.state.version for r in stand)
        assert all(len(r.name) <= 64 and len(r.command) <= 64 for r in stand), "the database has room for no more"
        self.taken_back |= set(stood) - set(stand)
        back = self.taken_back & set(stand)
        assert not back, f"{back} was taken back, and may be dropped at any time"
        if self.state.state in TERMINAL and not self.state.holds:
            assert stand == []
            assert self.state.due == {}

    # --- time --------------------------------------------------------------------------------------------------------

    def standing(self) -> list[Reminder]:
        return list(self.rules.reminders(self.state))

    def timers(self) -> dict[str, int]:
        """The reminders that stand: their names, and in how many milliseconds they are due."""
        return {r.name: r.due_at - self.now for r in self.standing()}

    def fire(self, reminder: Reminder) -> list[Any]:
        """What the runtime does with a reminder that is due: its events, of which there are always some."""
        assert reminder in self.standing(), f"{reminder.name} does not stand"
        assert self.now >= reminder.due_at, f"{reminder.name} is not due yet"
        command = Command(
            "order", ORDER, reminder.command, SYSTEM, reminder.command_id, reminder.payload, reminder=reminder
        )
        events = self._turn(command)
        assert events, f"{reminder.name} would fire for ever"
        assert reminder not in self.standing()
        return events

    def wait_for(self, name: str) -> list[Any]:
        """Let the time come for a reminder, and nothing happen before that."""
        reminder = next(r for r in self.standing() if r.name == name)
        self.now = max(self.now, reminder.due_at)
        return self.fire(reminder)

    def wait(self, ms: int) -> list[str]:
        """Let time pass: what fires meanwhile, in order, as the runtime would have it."""
        until, fired = self.now + ms, []
        while due := [r for r in self.standing() if r.due_at <= until]:
            reminder = min(due, key=lambda r: (r.due_at, r.name))
            self.now = max(self.now, reminder.due_at)
            self.fire(reminder)
            fired.append(reminder.name)
            assert len(fired) < 200, f"this never ends: {fired[-5:]}"
        self.now = until
        return fired

    def fork(self) -> "World":
        """Another world with the same past."""
        other = copy.copy(self)
        for name in ("claims", "bodies", "related", "events", "taken_back", "rooms"):
            setattr(other, name, copy.copy(getattr(self, name)))
        other.said = {room: list(events) for room, events in self.said.items()}
        return other

    def refused(self, who: str, name: str, version: int | None = None, **payload: Any) -> Refused:
        with pytest.raises(Refusal) as caught:
            self.do(who, name, version, **payload)
        return caught.value.refused

    def view(self, who: str) -> dict[str, Any] | None:
        actor = ACTORS[who]
        body = self.rules.view(self.state, actor, self.facts(*self.rules.needs(self.state, actor, "view")))
        seen: dict[str, Any] | None = None if body is None else json.loads(body)
        return seen

    def seen(self, who: str) -> dict[str, Any]:
        view = self.view(who)
        assert view is not None
        return view

    def may_read(self, who: str) -> bool:
        actor = ACTORS[who]
        return self.rules.may_read(self.state, actor, self.facts(*self.rules.needs(self.state, actor, "attach")))

    def cards(self) -> list[dict[str, Any]]:
        return [json.loads(c.payload)["card"] for c in self.related if c.name == "card"]

    def publications(self) -> list[dict[str, Any]]:
        return [json.loads(self.rules.publication(body)) for body in self.bodies]

    # --- the story, step by step -------------------------------------------------------------------------------------

    def wish(self, **more: Any) -> dict[str, Any]:
        return {
            "category": "plumbing",
            "title": "Kitchen tap",
            "description": "The kitchen tap drips day and night.",
            "site": SITE,
            **more,
        }

    def opened(self) -> "World":
        self.do("anna", "create", **self.wish(publish=True))
        return self

    def quote(
        self, who: str = "ben", n: int = 1, rev: int = 1, amounts: tuple[int, ...] = (50_000,), **more: Any
    ) -> Any:
        lines = [{"title": f"Part {i}", "amount": a} for i, a in enumerate(amounts, 1)]
        return self.do(
            who, "submit_quote", quote_id=make_id(0x2000 + n), rev=rev, milestones=lines, currency="CNY", **more
        )

    def awarded(self, amounts: tuple[int, ...] = (50_000,)) -> "World":
        self.opened().quote(amounts=amounts)
        self.do("anna", "accept_quote", self.state.version, quote_id=make_id(0x2001), rev=1)
        return self

    def pay(self, n: int = 1, rail: str = "sandbox") -> str:
        payment_id = self.new_id()
        self.do("anna", "start_payment", payment_id=payment_id, milestone=n, rail=rail)
        self.held(payment_id)
        return payment_id

    def held(self, payment_id: str, psp_event_id: str = "", **more: Any) -> list[Any]:
        payment = self.state.payment(payment_id)
        assert payment is not None
        news = {"amount": payment.amount, "currency": payment.currency, **more}
        return self.do(
            "psp", "deposit_held", payment_id=payment_id, psp_event_id=psp_event_id or f"evt-{self.new_id()}", **news
        )

    def funded(self, amounts: tuple[int, ...] = (50_000,)) -> "World":
        self.awarded(amounts).pay()
        return self

    def slot(self, start: int, hours: float = 2, who: str = "ben") -> str:
        visit_id = self.new_id()
        end = start + int(hours * HOUR_MS)
        self.do(who, "propose_slot", visit_id=visit_id, start=rfc3339(start), end=rfc3339(end))
        return visit_id

    def scheduled(self, amounts: tuple[int, ...] = (50_000,), in_ms: int = 3 * HOUR_MS) -> "World":
        visit_id = self.funded(amounts).slot(self.now + in_ms)
        self.do("anna", "confirm_slot", visit_id=visit_id)
        return self

    @property
    def visit_id(self) -> str:
        visit = self.state.visit_in("confirmed", "en_route", "arrived", "checked_in")
        assert visit is not None
        return visit.id

    @property
    def code(self) -> str:
        return next(v["check_in_code"] for v in self.seen("anna")["visits"] if "check_in_code" in v)

    def en_route(self, amounts: tuple[int, ...] = (50_000,)) -> "World":
        self.scheduled(amounts)
        self.do("ben", "start_trip", visit_id=self.visit_id)
        return self

    def in_progress(self, amounts: tuple[int, ...] = (50_000,)) -> "World":
        self.en_route(amounts)
        self.do("ben", "check_in", visit_id=self.visit_id, code=self.code)
        return self

    def under_review(self) -> "World":
        """The first of two milestones is submitted, and the worker has left."""
        self.in_progress((15_000, 35_000))
        self.do("ben", "submit_milestone", n=1)
        self.do("ben", "check_out", visit_id=self.visit_id)
        return self

    def disputed(self, who: str = "anna", amount: int = 5_000) -> "World":
        """Somebody disputes a part of the first milestone while the work goes on."""
        self.in_progress((15_000, 35_000))
        self.do(who, "open_dispute", dispute_id=DISPUTE, n=1, amount=amount, reason="a scratch")
        return self

    def submitted(self) -> "World":
        self.in_progress()
        self.do("ben", "submit_completion")
        return self

    def approved(self) -> "World":
        self.submitted()
        self.do("anna", "approve_completion")
        return self


def fix(now_ms: int, lat: float = 31.2304, lon: float = 121.4737, accuracy_m: float = 5.0) -> dict[str, Any]:
    return {"at": rfc3339(now_ms), "lat": lat, "lon": lon, "accuracy_m": accuracy_m}
