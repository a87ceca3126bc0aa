"""Orders as an aggregate: `ORDERS` is what hosts, REST and gateways hold; the machine itself is `order_table.py`."""

from typing import Any, Final

import msgspec

from domain import order_events as ev
from domain.aggregate import AccountNeed, BlockNeed, Decision, Facts, Need, OpenOrdersNeed
from domain.channels import Kind, stream_name
from domain.commands import Actor, Command, Reminder
from domain.errors import Code, Refusal, invalid
from domain.order_commands import AcceptQuote, Create, Malformed, QuoteRef, parse_payload, wrong
from domain.order_evolve import evolve
from domain.order_state import OrderState, Role, conversation_of
from domain.order_table import PLANNED, ROWS, TERMINAL, Row, allowed_commands
from domain.order_timers import reminders
from domain.order_turn import OrderTurn, conflict
from domain.order_views import project, role_of
from domain.policy import DEFAULT_POLICY, Policy
from domain.ports import Position
from domain.tracking import Track, follow
from domain.uploads import needs_of, require_own

ABOUT_QUOTES = (ev.Awarded, ev.Reopened, ev.Funded, ev.Cancelled, ev.Expired)
"""Events that change how everybody's quotes stand."""


class OrderRules:
    """The rules of orders, as `domain.aggregate.Rules`.

    `pepper` is a secret of the platform that goes into check-in codes; it may change at any time, since a code is made
    once and then kept in the log. Without it codes rest on the customer's device session id, which only they know.
    """

    kind: Kind = "order"
    schema = 1
    snapshot_every = 1

    def __init__(self, policy: Policy = DEFAULT_POLICY, pepper: bytes = b"") -> None:
        self.policy = policy
        self._pepper = pepper
        self._decoder = msgspec.json.Decoder(OrderState)

    def initial(self, stream_id: str) -> OrderState:
        return OrderState(stream_id)

    def fork(self, state: OrderState) -> OrderState:
        return state

    def is_over(self, state: OrderState) -> bool:
        return state.state in TERMINAL

    def version(self, state: OrderState) -> int:
        return state.version

    def epoch(self, state: OrderState) -> str:
        """The time of its creation: two streams of one name would not share it."""
        return f"{state.created_at:x}" if state.version else ""

    # --- access ------------------------------------------------------------------------------------------------------

    def needs(self, state: OrderState, actor: Actor, name: str) -> tuple[Need, ...]:
        party = state.version > 0 and actor.id in (state.customer_id, state.worker_id)
        return () if party or actor.kind != "user" else (AccountNeed(actor.id),)

    def admit(self, state: OrderState, command: Command, facts: Facts) -> None:
        if state.version == 0 or command.name == "create":
            self._admit_creation(state, command, facts)
            return
        role = role_of(state, command.actor, facts)
        if role is None:
            raise Refusal(Code.NOT_FOUND, "no such order")
        row = ROWS.get(command.name)
        if row is None or role in row.who:
            return
        if role == "bidder" and "worker" in row.who and state.worker_id is None:
            return
        raise Refusal(Code.FORBIDDEN, f"{command.name} is not for you")

    def _admit_creation(self, state: OrderState, command: Command, facts: Facts) -> None:
        if command.name != "create" or command.actor.kind != "user":
            raise Refusal(Code.NOT_FOUND, "no such order")
        if state.version > 0:
            if command.actor.id != state.customer_id:
                raise Refusal(Code.IDEMPOTENCY_MISMATCH, "this id cannot be used")
            return
        account = facts.account(command.actor.id)
        if account is None or not account.phone_verified:
            raise Refusal(Code.FORBIDDEN, "an order needs a customer with a verified phone")

    def may_read(self, state: OrderState, actor: Actor, facts: Facts) -> bool:
        return state.version > 0 and role_of(state, actor, facts) in ("customer", "worker", "ops", "system")

    def may_signal(self, state: OrderState, actor: Actor, name: str) -> bool:
        on_the_way = state.state == "en_route" and actor.kind == "user" and actor.id == state.worker_id
        return name == "fix" and on_the_way

    def view(self, state: OrderState, actor: Actor, facts: Facts) -> bytes | None:
        role = role_of(state, actor, facts) if state.version > 0 else None
        return None if role is None else msgspec.json.encode(project(state, role, actor.id, self.policy))

    def view_of(self, state: OrderState, actor: Actor, facts: Facts) -> dict[str, Any] | None:
        """The same object as `view`, for a row of a list."""
        role = role_of(state, actor, facts) if state.version > 0 else None
        return None if role is None else project(state, role, actor.id, self.policy)

    # --- commands ----------------------------------------------------------------------------------------------------

    def parse(self, command: Command) -> Any:
        """The payload as its struct, or `Malformed`: whether the command is possible at all is said before that."""
        row = ROWS.get(command.name)
        if row is None:
            if command.name in PLANNED:
                return Malformed(wrong("command", "unavailable", f"{command.name} is not possible"))
            raise invalid("command", "unknown", f"there is no command {command.name[:64]!r}")
        if command.name == "accept_quote" and command.expected_version is None:
            return Malformed(wrong("expected_version", "required", "say which version of the order you decide on"))
        return parse_payload(command.payload, row.payload)

    def needs_of(self, state: OrderState, command: Command, parsed: Any) -> tuple[Need, ...]:
        actor_id = command.actor.id
        uploads = needs_of((*getattr(parsed, "photos", ()), *getattr(parsed, "evidence", ())))
        if command.name == "publish":
            return (OpenOrdersNeed(state.customer_id),)
        if isinstance(parsed, Create) and parsed.publish:
            return (OpenOrdersNeed(actor_id), *uploads)
        if command.name == "submit_quote":
            customer_id = state.customer_id
            return (AccountNeed(actor_id), BlockNeed(customer_id, actor_id), BlockNeed(actor_id, customer_id))
        return (*uploads, *self._hired(state, command, parsed))

    def _hired(self, state: OrderState, command: Command, parsed: Any) -> tuple[Need, ...]:
        """The worker who is to be hired or to come, where the category asks who they are."""
        wanted = self.policy.category(state.category)
        if not wanted.verified and not wanted.licence:
            return ()
        if isinstance(parsed, AcceptQuote) and (quote := state.quote(parsed.quote_id)) is not None:
            return (AccountNeed(quote.worker_id),)
        if command.name == "confirm_slot" and state.worker_id is not None:
            return (AccountNeed(state.worker_id),)
        return ()

    def touches(self, state: OrderState, command: Command, parsed: Any) -> tuple[str, ...]:
        ids = {conversation_of(state, w) for w in _card_readers(state, command, parsed)}
        return tuple(sorted(stream_name("conversation", i) for i in ids))

    def decide(
        self, state: OrderState, command: Command, parsed: Any, now_ms: int, facts: Facts
    ) -> Decision[ev.AnyEvent]:
        row = ROWS.get(command.name)
        creating = row is not None and row.command == "create" and state.version == 0
        role: Role | None = "customer" if creating else role_of(state, command.actor, facts)
        if role is None or (state.version == 0 and not creating):
            raise Refusal(Code.NOT_FOUND, "no such order")

        def allowed(now: OrderState) -> tuple[str, ...]:
            return allowed_commands(now, role, command.actor.id)

        self._check(state, command, parsed, row, role, allowed(state))
        assert row is not None
        require_own(getattr(parsed, "photos", ()), command.actor.id, "photo", facts, "photos")
        require_own(getattr(parsed, "evidence", ()), command.actor.id, "evidence", facts, "evidence")
        turn = OrderTurn(state, command, role, now_ms, facts, self.policy, self._pepper, allowed)
        row.decide(turn, parsed)
        return turn.decision()

    def _check(
        self, state: OrderState, command: Command, parsed: Any, row: Row | None, role: Role, allowed: tuple[str, ...]
    ) -> None:
        """Version, then state, then payload: the first that does not fit is the answer."""
        if command.expected_version not in (None, state.version):
            detail = f"you decided on version {command.expected_version}, and it is {state.version} now"
            raise conflict(state, Code.VERSION_CONFLICT, detail, allowed)
        fits = row is not None and state.state in row.states and role in row.who
        if row is None or not fits or not row.when(state, role, command.actor.id):
            detail = f"{command.name} is not possible while the order is {state.state or 'not there'}"
            raise conflict(state, Code.INVALID_TRANSITION, detail, allowed)
        if isinstance(parsed, Malformed):
            raise Refusal.of(parsed.refused)

    def evolve(self, state: OrderState, event: ev.AnyEvent, offset: int) -> OrderState:
        assert event.version == offset, f"event {event.version} of order {state.id} stands at offset {offset}"
        return evolve(state, event)

    # --- what others hear --------------------------------------------------------------------------------------------

    def reminders(self, state: OrderState) -> tuple[Reminder, ...]:
        return reminders(state)

    def hints(self, state: OrderState, events: list[tuple[int, ev.AnyEvent]]) -> list[tuple[str, bytes]]:
        out: list[tuple[str, bytes]] = []
        for offset, event in events:
            hint = {
                "type": "order.activity",
                "order_id": state.id,
                "offset": offset,
                "state": event.state,
                "event": ev.type_of(event),
            }
            data = msgspec.json.encode(hint)
            out += [(user_id, data) for user_id in _concerned(state, event)]
        return out

    def event_type(self, event: ev.AnyEvent) -> str:
        return ev.type_of(event)

    def encode_event(self, event: ev.AnyEvent) -> bytes:
        return ev.encode(event)

    def decode_event(self, body: bytes) -> ev.AnyEvent:
        return ev.decode(body)

    def publication(self, body: bytes) -> bytes:
        return ev.public(body)

    def encode_state(self, state: OrderState) -> bytes:
        return msgspec.json.encode(state)

    def decode_state(self, body: bytes) -> OrderState:
        return self._decoder.decode(body)

    # --- the live map ------------------------------------------------------------------------------------------------

    def signal(
        self, state: OrderState, track: Track, actor: Actor, name: str, payload: bytes, now_ms: int
    ) -> tuple[bytes | None, list[Position]]:
        """Take fixes from the worker on the way: the publication to send, if any, and the positions to record.

        `track` belongs to the activation and is changed. Fixes that make no sense are dropped in silence.
        """
        visit = state.visit_in("en_route", "arrived")
        if not self.may_signal(state, actor, name) or visit is None or state.site is None:
            return None, []
        return follow(track, visit.id, (state.site.lat, state.site.lon), payload, now_ms)


def _card_readers(state: OrderState, command: Command, parsed: Any) -> list[str]:
    """The workers in whose conversations this command may post."""
    if command.name == "nudge":
        return []
    if command.name == "submit_quote" and state.worker_id is None:
        return [command.actor.id]
    if isinstance(parsed, QuoteRef) or hasattr(parsed, "quote_id"):
        quote = state.quote(parsed.quote_id)
        return [quote.worker_id] if quote is not None else []
    if state.worker_id is not None:
        return [state.worker_id]
    if command.name in ("cancel", "expire"):
        return [q.worker_id for q in state.quotes if q.status == "submitted"]
    return []


def _concerned(state: OrderState, event: ev.AnyEvent) -> list[str]:
    """Who should look at the order again, each once, in a fixed order. Operations look by themselves."""
    if isinstance(event, ev.Nudged):
        reminded = {"customer": state.customer_id, "worker": state.worker_id}
        return [user for role in event.concerns if (user := reminded.get(role))]
    users = [state.customer_id, state.worker_id or ""]
    if event.private is not None:
        users.append(event.private.worker_id)
    if isinstance(event, ABOUT_QUOTES):
        users += [q.worker_id for q in state.quotes if q.status != "withdrawn"]
    return [user for user in dict.fromkeys(users) if user]


ORDERS: Final = OrderRules()
"""The rules with the default policy."""
