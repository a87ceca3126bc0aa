"""The state machine of `tests/simulation/test_model.py` on real processes: hosts and gateways are killed with SIGKILL."""

from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.conftest import Chaos
from tests.chaos.model_world import Ground, RealWorld
from tests.support.model_machine import (
    Act,
    Block,
    Close,
    Conversations,
    Delete,
    Drain,
    Edit,
    Kill,
    Leave,
    Open,
    Plug,
    React,
    Receipt,
    Reveal,
    Seat,
    Send,
    Unplug,
)
from tests.support.servers import Nats

PHONE: Final = "call me on 13812345678"
PAIR, GROUP, ORDER = 0, 1, 2
STORY: Final[tuple[tuple[tuple[int, Act], ...], ...]] = (
    ((0, Send(0, PAIR, "hello")), (5, Send(2, GROUP, "on my way")), (5, Send(3, ORDER, PHONE))),
    ((0, Send(1, GROUP, "hello", 0)), (5, Kill("host", 0, 0.3)), (0, Edit(0, PAIR, 0, "at nine")), (20, Send(3, PAIR, PHONE))),
    ((0, Unplug(1, True)), (0, Send(1, PAIR, "on my way")), (0, React(2, PAIR, 0, "\N{PARTY POPPER}", True))),
    ((0, Delete(0, GROUP, 0)), (0, Kill("gateway", 0, 0.3)), (5, Send(2, GROUP, "hello")), (5, Plug(0))),
    ((0, Receipt(1, PAIR, True, 0)), (0, Receipt(2, GROUP, False, 1)), (20, React(2, PAIR, 0, "\N{PARTY POPPER}", False))),
    ((0, Send(0, ORDER, "hello")), (0, Close(0, True)), (0, Edit(2, ORDER, 0, "mail to ana@example.com")), (300, Open(0, False))),
    ((0, Block(0, 1, True)), (0, Send(2, PAIR, "hello")), (0, Block(0, 1, False))),
    ((0, Leave(2, GROUP)), (60, Kill("host", 1, 0.3)), (0, Seat(0, GROUP, 1, True)), (60, Delete(3, ORDER, 0))),
    ((0, Drain("gateway", 0, 0.3)), (5, Send(0, PAIR, "see you at nine")), (20, Reveal()), (0, Edit(1, PAIR, 0, PHONE))),
    ((0, Close(3, False)), (0, Kill("gateway", 1, 0.3)), (0, Send(0, GROUP, "hello")), (60, Open(0, True))),
)  # fmt: skip
"""Every kind of act, with kills in between."""


@pytest.mark.catalogue("M1", "people with several devices do anything while hosts and gateways are killed")
@pytest.mark.timeout(3600)
def test_every_device_shows_what_a_fresh_fetch_says(chaos: Chaos, nats: Nats, tmp_store: str) -> None:
    """In the short form a story, in the full form 25 drawn ones as well."""
    examples = chaos.repeats(short=0, full=25)

    class Real(Conversations):
        make = staticmethod(lambda tight: RealWorld(ground))
        counts: dict[str, int] = {}  # noqa: RUF012 - each machine counts for itself

    with Ground(tmp_store, nats.url) as ground:
        tell(Real())
        if examples:
            run_state_machine_as_test(Real, settings=drawn(examples))
    chaos.record(**{name.replace(" ", "_"): count for name, count in Real.counts.items()})
    assert Real.counts["answered with an offset"] >= 15 + examples


def tell(machine: Conversations) -> None:
    machine.begin(devices=[2, 1, 1], rooms={"pair", "group", "order"}, tight=False)
    try:
        machine.everybody_sees_the_same()
        for acts in STORY:
            machine.act(*acts)
            machine.everybody_sees_the_same()
    finally:
        machine.teardown()


def drawn(examples: int) -> settings:
    return settings(
        max_examples=examples + 1,  # the first one is always empty
        stateful_step_count=15,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
