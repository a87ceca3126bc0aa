"""What timers do that change nothing else: somebody is reminded, or something that was due is put off."""

from domain import order_events as ev
from domain.order_commands import Nudge
from domain.order_timers import NUDGE, TIMERS, concerned
from domain.order_turn import OrderTurn
from domain.times import rfc3339


def nudge(turn: OrderTurn, which: Nudge) -> None:
    """Say it, to those whom it concerns; whoever sends pushes and messages to people hears it from the event."""
    due, name = turn.state.due.get(which.reminder), which.reminder
    if due is None or not due.times or TIMERS[name.partition(":")[0]].command != NUDGE:
        raise turn.conflict("there is nothing to be reminded of")
    turn.emit(ev.Nudged, reminder=name, concerns=concerned(turn.state, name))


def extend(turn: OrderTurn, name: str, by_ms: int) -> None:
    """Put the timer off until so much later than now."""
    turn.emit(ev.Extended, reminder=name, until=rfc3339(turn.now + by_ms))
