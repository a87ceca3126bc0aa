"""Lists of orders follow the same policy as the hosts that own them."""

from typing import Any

import httpx

from domain.orders import OrderRules
from domain.policy import Policy
from domain.ports import Page
from tests.support.rest_app import World
from tests.unit import order_world

CELL_M = 25_000.0


async def test_a_place_in_a_list_is_as_coarse_as_the_policy_says() -> None:
    policy = Policy(site_cell_m=CELL_M)
    order = order_world.World(policy)
    order.do(
        "anna", "create", category="plumbing", title="A tap", description="It drips, and it has for a week.",
        site=order_world.SITE, publish=True,
    )  # fmt: skip
    snapshot = order.rules.encode_state(order.state)

    class Reads:
        async def orders(self, *_query: Any) -> Page:
            return Page([snapshot], None)

    world = World()
    world.reads, world.orders = Reads(), OrderRules(policy=policy)
    worker, auth = await world.login("+8613800000002")
    await world.accounts.become_worker(worker.id, order_world.profile())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(world.app()), base_url="http://rest") as http:
        listed = (await http.get("/v1/orders", params={"role": "worker"}, headers=auth)).json()["items"]
    assert listed[0]["site"]["cell_m"] == CELL_M
