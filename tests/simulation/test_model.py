"""People talk, edit, come, go and lose their connections while gateways and hosts die: everybody sees the same after every step.

Hypothesis draws what happens, the cluster runs it in virtual time, and a failure is shrunk to the shortest story that fails.
The story prints itself as code, and that code is the replay: after

    from tests.support.model_machine import *
    from tests.simulation.test_model import machine
    Simulated = machine()

its lines run in a Python prompt.
"""

import os
import re
import sys
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.model_planted import PLANTED
from tests.simulation.model_world import Planted, SimulatedWorld
from tests.support import model_machine
from tests.support.model_machine import Conversations
from tests.support.model_people import Broken

FULL = os.environ.get("RENOVEASY_CHAOS") == "full"
EXAMPLES = int(os.environ.get("RENOVEASY_MODEL_EXAMPLES", "2000" if FULL else "60"))
STEPS = 15
WITHIN = 300
"""Examples within which a planted bug has to be found."""
QUICK = ("devices-forgotten", "unread-counts-own", "block-ignored", "recovery-off-by-one")
"""Planted bugs that are looked for in the short form: those that are found soonest."""


def machine(planted: type[Planted] = Planted) -> type[Conversations]:
    """The state machine over simulated clusters with that bug, or with none."""

    class Simulated(Conversations):
        counts: dict[str, int] = {}  # noqa: RUF012 - each machine counts for itself

        @staticmethod
        def make(tight: bool) -> SimulatedWorld:
            begun = Simulated.counts.get("examples", 0)
            if EXAMPLES >= 1_000 and begun % 100 == 0:
                print(f"{time.strftime('%H:%M:%S')} {begun} examples", file=sys.__stderr__, flush=True)
            return SimulatedWorld(planted(), tight=tight)

    return Simulated


def run(found: type[Conversations], examples: int, *, shrink: bool = True, steps: int = STEPS) -> None:
    """Raises Broken for the shortest story that breaks a promise."""
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(found, settings=profile)


@pytest.mark.timeout(7_200 if EXAMPLES > 100 else 300)
def test_every_device_shows_what_a_fresh_fetch_says(capsys: pytest.CaptureFixture[str]) -> None:
    simulated = machine()
    run(simulated, EXAMPLES)
    with capsys.disabled():
        print(f"\n{simulated.counts}")
    assert simulated.counts["examples"] >= EXAMPLES


@pytest.mark.timeout(900)
@pytest.mark.parametrize("planted", PLANTED if FULL else QUICK)
def test_a_planted_bug_is_found(planted: str, capsys: pytest.CaptureFixture[str]) -> None:
    simulated = machine(PLANTED[planted])
    with pytest.raises(Broken) as caught:
        run(simulated, WITHIN, shrink=False)
    with capsys.disabled():
        print(f"\n{planted}: example {simulated.counts['examples']}: {str(caught.value).splitlines()[0][:110]}")


@pytest.mark.timeout(600)
def test_a_failure_is_shrunk_and_prints_itself_as_code_that_fails_again() -> None:
    simulated = machine(PLANTED["edit-lost"])
    with pytest.raises(Broken) as caught:
        run(simulated, WITHIN, steps=4)
    printed = "\n".join(caught.value.__notes__)
    program = printed[printed.index("state = ") :]
    assert 1 <= len(re.findall(r"act=|acts=", program)) <= 2, program  # something is said and edited, perhaps at once
    names: dict[str, Any] = {**vars(model_machine), "Simulated": simulated}
    with pytest.raises(Broken) as again:
        exec(program, names)
    names["state"].teardown()
    assert str(again.value) == str(caught.value)
    assert "message.edit" in str(again.value)
