"""The simulated broker keeps the port's promises: the contract suite of all brokers, run on it."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from domain.ports import Broker
from tests.contract import test_broker as contract
from tests.contract.test_broker import (  # noqa: F401
    test_a_closed_broker_is_unavailable,
    test_a_handler_that_fails_is_logged_and_the_next_message_comes,
    test_a_message_carries_its_subject_and_any_bytes,
    test_a_message_over_the_limit_is_refused_here,
    test_a_prefix_is_a_word_of_its_own,
    test_a_request_gets_its_own_answer,
    test_a_request_that_nobody_listens_to_fails_at_once,
    test_a_request_without_an_answer_times_out_and_a_late_answer_disturbs_nobody,
    test_a_stopped_subscription_hears_nothing_more,
    test_a_subject_is_checked_before_it_reaches_the_wire,
    test_a_subscriber_hears_what_is_published_afterwards_in_order,
    test_a_subscription_may_be_a_pattern,
    test_subscribing_is_done_when_the_server_knows_of_it,
    test_two_prefixes_on_one_server_do_not_hear_each_other,
    test_what_was_published_before_closing_arrives,
)
from tests.support.simulated_broker import LinkQuality, SimulatedBroker, SimulatedServer

Connect = Callable[..., Awaitable[Broker]]


class RealTime:
    """The running event loop as the server's scheduler: there is only one process."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def time(self) -> float:
        return self._loop.time()

    def later(self, process: Any, delay_s: float, callback: Callable[..., object], *args: Any) -> Any:
        return self._loop.call_later(delay_s, callback, *args)

    def at(self, process: Any, when_s: float, callback: Callable[..., object], *args: Any) -> Any:
        return self._loop.call_at(when_s, callback, *args)


@pytest.fixture(params=[False, True], ids=["in order", "reordering"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    quality = LinkQuality(reordering=request.param)
    server = SimulatedServer(RealTime(), None, random.Random(1), quality)
    brokers: list[SimulatedBroker] = []

    async def connect(prefix: str = "") -> SimulatedBroker:
        brokers.append(await SimulatedBroker(server, None, f"broker-{len(brokers)}", prefix).start())
        return brokers[-1]

    yield connect
    for broker in brokers:
        await broker.close()


def test_every_promise_of_the_port_is_among_these() -> None:
    promised = {name for name, test in vars(contract).items() if "connect" in getattr(test, "__annotations__", {})}
    assert promised <= set(globals()), promised - set(globals())
