"""One turn: a command meets the state, and either nothing is missing and it is decided, or it is said what is missing.

Nothing here waits: a turn that needs something from outside (a look-up, a reservation, another activation) says so,
its activation pauses, and the turn is attempted again from the start when that is there.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from actors.activation import Activation, Item, Landed
from domain.aggregate import Decision, MessageNeed, Need
from domain.commands import (
    Accepted,
    Answer,
    Attached,
    Command,
    Publication,
    Query,
    Reminder,
    Status,
    Viewed,
    command_hash,
)
from domain.errors import Code, Refusal, Refused, invalid
from domain.ids import is_uuid
from domain.ports import Entry, Snapshot, Turn

WITHOUT_ID: Final = frozenset({"receipt.read", "receipt.delivered"})
"""Commands that are idempotent by value and carry no id."""
ATTEMPTS: Final = 8
"""How often a turn may ask for more before it is given up as busy."""


class Lookup(msgspec.Struct, frozen=True):
    """What a turn is missing. `settle`: the log must first hold what the activation has decided so far."""

    command: bool = False
    needs: tuple[Need, ...] = ()
    streams: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    settle: bool = False


class Step(msgspec.Struct):
    """What one activation did in a turn: its events with their offsets, and what its members will see of them."""

    activation: Activation
    events: list[tuple[int, Any]]
    publications: list[Publication]
    reminders: tuple[Reminder, ...] = ()
    """Those that stood before."""


class Outcome(msgspec.Struct):
    """The end of a turn. Without `turn` nothing is to be committed and `answer` can go as soon as that is allowed.

    `durable`: the answer rests on nothing that still waits for its commit.
    """

    answer: Answer
    turn: Turn | None = None
    steps: list[Step] = []
    durable: bool = False


OVER: Final = Refused(Code.CONFLICT, "the reminder does not stand any more")
BEHIND: Final = Refused(Code.FENCED, "the state is from before the reminder was set: this is not the owner any more")
"""Without this a host that was replaced would call a reminder over that its successor has set, and have it removed."""
EARLY: Final = Refused(Code.BUSY, "the reminder is not due yet", retry_after_s=1.0)


class Broken(Exception):
    """A turn failed half-way: the activations it touched no longer mirror anything and must be thrown away."""


def attempt(
    activation: Activation, item: Item, now_ms: int, owner: int, find: Callable[[str], Activation | None]
) -> Outcome | Lookup:
    """Run the turn of a command or query as far as what is known allows.

    `owner` is the takeover position under which the host holds the partition; `find` gives the ready activations of it.

    Raises:
        Broken: see there. Refusals are outcomes, not exceptions.
    """
    try:
        if isinstance(item.request, Query):
            return _query(activation, item, item.request, owner)
        assert isinstance(item.request, Command)
        return _command(activation, item, item.request, now_ms, find)
    except Refusal as refusal:
        if isinstance(item.request, Query) and activation.tentative and not item.settled:
            # What would allow it may be in the database already, and its commit not yet told to us.
            item.settled = True
            return Lookup(settle=True)
        return Outcome(refusal.refused, durable=isinstance(item.request, Query))


def _query(activation: Activation, item: Item, query: Query, owner: int) -> Outcome | Lookup:
    """What is asked is answered from what is durable, whatever waits for its commit; so reads never wait for writes."""
    rules, state = activation.rules, activation.stable()
    version = rules.version(state)
    missing = item.missing(rules.needs(state, query.actor, query.name))
    if missing:
        return Lookup(needs=missing)
    facts = item.known()
    if query.name == "view":
        body = rules.view(state, query.actor, facts) if version else None
        if body is None:
            raise Refusal(Code.NOT_FOUND, f"there is no such {query.kind}")
        return Outcome(Viewed(version, body), durable=True)
    if not version or not rules.may_read(state, query.actor, facts):
        raise Refusal(Code.NOT_FOUND, f"there is no such {query.kind}")
    if query.name == "attach":
        after = () if query.after is None else activation.tail_after(query.after)
        return Outcome(Attached(rules.epoch(state), version, owner, after), durable=True)
    if not _settled_id(activation, item, query.command_id):
        return Lookup(command=True)
    landed = activation.recent.get(query.command_id) or item.found
    tentative = landed is not None and landed.last_offset > activation.committed
    return Outcome(Status(landed is not None, landed.offset if landed else None), durable=not tentative)


def _settled_id(activation: Activation, item: Item, command_id: str) -> bool:
    """Whether it is known if the id has landed."""
    return command_id in activation.recent or item.looked_up or activation.rules_out(command_id)


def _command(
    activation: Activation, item: Item, command: Command, now_ms: int, find: Callable[[str], Activation | None]
) -> Outcome | Lookup:
    rules, state = activation.rules, activation.state
    if command.name in WITHOUT_ID and command.command_id:
        command = msgspec.structs.replace(command, command_id="")
    _parse(activation, item, command)
    landed = None
    if command.command_id and is_uuid(command.command_id):
        if not _settled_id(activation, item, command.command_id):
            return Lookup(command=True)
        landed = activation.recent.get(command.command_id) or item.found
    missing = item.missing(rules.needs(state, command.actor, command.name))
    if missing:
        return Lookup(needs=missing)
    facts = item.known()
    if landed is not None and item.hash == landed.hash:
        return Outcome(landed.replay(_view(activation, item, command)))
    rules.admit(state, command, facts)
    if item.error is not None:
        raise item.error
    if landed is not None:
        detail = "this id was used for something else"
        raise conflict(Code.IDEMPOTENCY_MISMATCH, detail, activation, item, command, offset=landed.offset)
    if not is_uuid(command.command_id) and command.name not in WITHOUT_ID:
        raise invalid("command_id", "invalid", "every write carries a canonical lower-case UUID")
    if command.reminder is not None:
        if rules.version(state) < command.reminder.fence_offset:
            return Outcome(BEHIND)
        standing = {(r.name, r.due_at, r.fence_offset) for r in rules.reminders(state)}
        if (command.reminder.name, command.reminder.due_at, command.reminder.fence_offset) not in standing:
            return Outcome(OVER)
        if now_ms < command.reminder.due_at:
            return Outcome(EARLY)
    missing = item.missing(rules.needs_of(state, command, item.parsed))
    if missing:
        return Lookup(needs=missing, settle=any(isinstance(need, MessageNeed) for need in missing))
    absent = tuple(stream for stream in rules.touches(state, command, item.parsed) if find(stream) is None)
    if absent:
        return Lookup(streams=absent)
    decision = rules.decide(state, command, item.parsed, now_ms, facts)
    unreserved = tuple(key for key in decision.claims if key not in item.reserved)
    if unreserved:
        return Lookup(claims=decision.claims)
    return _apply(activation, item, command, decision, now_ms, find)


def conflict(code: Code, detail: str, activation: Activation, item: Item, command: Command, **current: Any) -> Refusal:
    """The refusal for what does not fit what has happened, with how an order stands now and what its caller could do."""
    view = _view(activation, item, command)
    order = msgspec.json.decode(view) if view is not None else {}
    standing = {key: order[key] for key in ("state", "version") if key in order}
    return Refusal(code, detail, current=standing | current or None, allowed_commands=order.get("allowed_commands"))


def _parse(activation: Activation, item: Item, command: Command) -> None:
    if item.hash is not None or item.error is not None:
        return
    try:
        item.parsed = activation.rules.parse(command)
        item.hash = command_hash(command.actor, command.name, item.parsed)
    except Refusal as refusal:
        item.error = refusal


def _view(activation: Activation, item: Item, command: Command) -> bytes | None:
    """The object beside the answer, where the kind's answers carry it."""
    if command.actor.kind == "system" or activation.rules.kind != "order":
        return None
    return activation.rules.view(activation.state, command.actor, item.known())


def _apply(
    activation: Activation,
    item: Item,
    command: Command,
    decision: Decision[Any],
    now_ms: int,
    find: Callable[[str], Activation | None],
) -> Outcome:
    if not decision.events:
        refused: Refused | None = decision.refusal
        return Outcome(refused or Accepted(activation.version, now_ms, view=_view(activation, item, command)))
    turn = Turn(activation.partition, [], [], decision.claims, decision.releases, opening=decision.opening)
    remembered = command.command_id if decision.refusal is None else ""
    try:
        first = _step(activation, turn, command, remembered, item.hash or b"", decision.events, now_ms)
        steps = [first, *_relate(decision.related, turn, now_ms, find)]
        for step in steps:
            _remind(step, turn)
            after = 1 if decision.snapshot and step is first else 0
            snapshot: Snapshot | None = step.activation.snapshot(after)
            if snapshot is not None:
                turn.snapshots.append(snapshot)
        view = _view(activation, item, command)
    except Exception as error:
        raise Broken(f"{command.name} on {command.stream} failed half-way: {error!r}") from error
    accepted = Accepted(first.events[0][0], now_ms, tuple(first.publications), False, view)
    return Outcome(decision.refusal or accepted, turn, steps)


def _remind(step: "Step", turn: Turn) -> None:
    """What the stream will do by itself, where the turn has changed that."""
    standing = step.activation.rules.reminders(step.activation.state)
    if standing == step.reminders:
        return
    before, after = set(step.reminders), set(standing)
    names = {reminder.name for reminder in after}
    turn.reminders.extend(sorted(after - before, key=lambda reminder: reminder.name))
    turn.done.extend(sorted((r.stream, r.name) for r in before - after if r.name not in names))


def _relate(related: list[Command], turn: Turn, now_ms: int, find: Callable[[str], Activation | None]) -> "list[Step]":
    steps: dict[str, Step] = {}
    for command in related:
        activation = find(command.stream)
        if activation is None:
            raise Broken(f"a turn touched {command.stream} without saying so")
        parsed = activation.rules.parse(command)
        decision = activation.rules.decide(activation.state, command, parsed, now_ms, Item(command, "").known())
        hashed = command_hash(command.actor, command.name, parsed)
        step = _step(activation, turn, command, command.command_id, hashed, decision.events, now_ms)
        before = steps.setdefault(command.stream, step)
        if before is not step:
            before.events += step.events
            before.publications += step.publications
    return list(steps.values())


def _step(
    activation: Activation,
    turn: Turn,
    command: Command,
    command_id: str,
    hashed: bytes,
    events: list[Any],
    now_ms: int,
) -> Step:
    """Evolve the activation by the events and write their log rows into the turn."""
    rules = activation.rules
    step = Step(activation, [], [], rules.reminders(activation.state))
    if events:
        activation.begin()
    offset = activation.version
    for n, event in enumerate(events):
        offset += 1
        body = rules.encode_event(event)
        turn.entries.append(
            Entry(
                activation.stream,
                offset,
                rules.event_type(event),
                command_id if n == 0 and command_id else None,
                hashed if command_id else None,
                command.actor.label,
                now_ms,
                body,
            )
        )
        activation.state = rules.evolve(activation.state, event, offset)
        step.events.append((offset, event))
        step.publications.append(Publication(offset, rules.publication(body)))
    if command_id and step.events:
        first = step.events[0][0]
        activation.remember(command_id, Landed(hashed, first, offset, now_ms, tuple(step.publications)))
    return step
