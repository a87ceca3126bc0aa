"""SEC-30: of those who want the same thing at the same moment exactly one gets it, and the books agree.

Over two roads at once, REST and the WebSocket, from several devices of one person and from several people. Whoever loses is told
why with the code that the protocol's page has for it.
"""

import asyncio
import json
import random
import sqlite3
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack, closing
from typing import Any, Final

import pytest

from domain.access import Role
from domain.policy import Policy
from domain.times import DAY_MS, HOUR_MS, rfc3339
from tests.security.city import LINES, ORDER, Answer, City, Line, Person
from tests.security.tally import Tally

LOST: Final = frozenset(
    {"version_conflict", "invalid_transition", "conflict", "offer_taken", "hold", "idempotency_mismatch"}
)


@pytest.fixture
def rounds(full: bool) -> int:
    """How often each race is run."""
    return 50 if full else 3


UNAVAILABLE: Final = 503
PATIENCE: Final = 10
"""On a busy machine a command may not be answered in time; nobody knows then what became of it until it is repeated."""


async def over_rest(
    person: Person, order_id: str, command: str, version: int | None, payload: dict[str, Any]
) -> tuple[int, str]:
    body = {"command": command, "command_id": person.city.new_id(), "expected_version": version, "payload": payload}
    for _ in range(PATIENCE):
        answer = await person.ask("POST", f"/v1/orders/{order_id}/commands", body)
        if answer.status != UNAVAILABLE:
            break
    return answer.status, answer.code


async def over_line(
    line: Line, order_id: str, command: str, version: int | None, payload: dict[str, Any]
) -> tuple[int, str]:
    data = {
        "order_id": order_id,
        "command": command,
        "command_id": None,
        "expected_version": version,
        "payload": payload,
    }
    data["command_id"] = payload.pop("command_id")
    for _ in range(PATIENCE):
        error = (await line.rpc("order.command", data)).get("error")
        if error is None or error["code"] != UNAVAILABLE:
            break
    return (200, "") if error is None else (error["code"], error["message"])


async def at_once(works: Sequence[Awaitable[tuple[int, str]]]) -> list[tuple[int, str]]:
    """All of them together, in any order."""
    shuffled = list(works)
    random.Random(len(shuffled)).shuffle(shuffled)
    return await asyncio.gather(*shuffled)


def judged(answers: list[tuple[int, str]], winners: int = 1) -> None:
    won = [answer for answer in answers if answer[0] in (200, 201)]
    assert len(won) == winners, answers
    assert {code for status, code in answers if status not in (200, 201)} <= LOST | {"invalid", "forbidden"}, answers
    assert all(status < 500 for status, _ in answers), answers


async def types_of(person: Person, order_id: str) -> list[str]:
    events = await person.must("GET", f"/v1/orders/{order_id}/events?limit=1000")
    return [event["type"] for event in events["items"]]


async def device_of(city: City, person: Person) -> Person:
    """Another device of the same person."""
    _, auth = await city.platform.login(person.phone)
    return Person(city, person.phone, person.id, auth)


async def test_of_many_acceptances_of_one_order_one_is_accepted(city: City, tally: Tally, rounds: int) -> None:
    """Two devices, on two roads each, accept eight quotes of eight workers; there is one contract."""
    for _ in range(rounds):
        customer = await city.person(Role.CUSTOMER)
        workers = [await city.person(Role.WORKER) for _ in range(Policy().quotes_active_max)]
        order_id, *quotes = await city.quoted(customer, *workers)
        version = (await customer.must("GET", f"/v1/orders/{order_id}"))["version"]
        second = await device_of(city, customer)
        async with customer.line() as one, second.line() as two:
            works: list[Awaitable[tuple[int, str]]] = []
            for quote_id in quotes:
                wish = {"quote_id": quote_id, "rev": 1}
                works += [
                    over_rest(device, order_id, "accept_quote", version, dict(wish)) for device in (customer, second)
                ]
                works += [
                    over_line(line, order_id, "accept_quote", version, wish | {"command_id": city.new_id()})
                    for line in (one, two)
                ]
            judged(await at_once(works))
            tally.tried("SEC-30", "accepting two offers", "order.command accept_quote", len(works))
        assert (await types_of(customer, order_id)).count("order.awarded") == 1
        order = await customer.must("GET", f"/v1/orders/{order_id}")
        assert [quote["status"] for quote in order["quotes"]].count("accepted") == 1
        hired = [
            worker for worker in workers if (await worker.ask("GET", f"/v1/orders/{order_id}/events")).status == 200
        ]
        assert [worker.id for worker in hired] == [order["worker_id"]]


async def test_of_an_acceptance_a_rejection_a_withdrawal_and_a_cancellation_one_wins(
    city: City, tally: Tally, rounds: int
) -> None:
    for _ in range(rounds * 3):
        customer, worker = await city.person(Role.CUSTOMER), await city.person(Role.WORKER)
        order_id, quote_id = await city.quoted(customer, worker)
        version = (await customer.must("GET", f"/v1/orders/{order_id}"))["version"]
        answers = await at_once(
            [
                over_rest(customer, order_id, "accept_quote", version, {"quote_id": quote_id, "rev": 1}),
                over_rest(customer, order_id, "reject_quote", version, {"quote_id": quote_id}),
                over_rest(worker, order_id, "withdraw_quote", version, {"quote_id": quote_id}),
                over_rest(customer, order_id, "cancel", version, {"reason": "changed my mind"}),
            ]
        )
        judged(answers)
        tally.tried("SEC-30", "ends that exclude one another", "order.command of an open order", 4)


async def test_one_milestone_is_paid_once_however_many_payments_are_made(city: City, tally: Tally, rounds: int) -> None:
    for _ in range(rounds):
        customer, worker = await city.person(Role.CUSTOMER), await city.person(Role.WORKER)
        order_id = await awarded(customer, worker)
        second = await device_of(city, customer)
        path = f"/v1/orders/{order_id}/payments"
        payments = [{"id": city.new_id(), "milestone": 1, "rail": "sandbox"} for _ in range(20)]
        devices = (customer, second)
        answers: list[Answer] = await asyncio.gather(
            *(devices[at % 2].ask("POST", path, payment) for at, payment in enumerate(payments * 2))
        )
        tally.tried("SEC-30", "paying twice", "POST /v1/orders/{order_id}/payments", len(answers))
        assert all(answer.status in (200, 409) for answer in answers), [answer.body for answer in answers]
        held = {
            answer.json["payment_id"] for answer in answers if answer.status == 200 and answer.json["status"] == "held"
        }
        assert len(held) == 1
        order = await customer.must("GET", f"/v1/orders/{order_id}")
        assert order["funding"][0]["held"] == LINES[0]["amount"]
        assert (await types_of(customer, order_id)).count("order.funded") == 1
        assert balance(city, order_id) == 0


async def awarded(customer: Person, worker: Person) -> str:
    order_id, quote_id = await customer.city.quoted(customer, worker)
    version = (await customer.must("GET", f"/v1/orders/{order_id}"))["version"]
    await customer.command(order_id, "accept_quote", version, quote_id=quote_id, rev=1)
    return str(order_id)


def balance(city: City, order_id: str) -> int:
    """The sum of all postings of an order: 0 where every debit has its credit."""
    with closing(sqlite3.connect(f"file:{city._file}?mode=ro", uri=True)) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(ledger_posting)")]
        rows = database.execute("SELECT * FROM ledger_posting").fetchall()
    booked = [dict(zip(columns, row, strict=True)) for row in rows]
    return sum(row["debit"] - row["credit"] for row in booked if row["order_id"] == order_id)


async def test_a_cancellation_and_a_deposit_leave_either_a_paid_order_or_the_money_back(
    city: City, tally: Tally, rounds: int
) -> None:
    for turn in range(rounds * 4):
        customer, worker = await city.person(Role.CUSTOMER), await city.person(Role.WORKER)
        order_id = await awarded(customer, worker)
        payment = {"id": city.new_id(), "milestone": 1, "rail": "sandbox"}
        payer, canceller = (customer, await device_of(city, customer))

        async def paid(
            payer: Person = payer, payment: dict[str, Any] = payment, order_id: str = order_id
        ) -> tuple[int, str]:
            answer = await payer.ask("POST", f"/v1/orders/{order_id}/payments", payment)
            return answer.status, answer.code

        async def cancelled(
            canceller: Person = canceller, order_id: str = order_id, wait: float = turn * 0.0007
        ) -> tuple[int, str]:
            await asyncio.sleep(wait)
            return await over_rest(canceller, order_id, "cancel", None, {"reason": "changed my mind"})

        answers = await asyncio.gather(paid(), cancelled())
        tally.tried("SEC-30", "cancelling while paying", "order.command cancel", 2)
        assert all(status < 500 for status, _ in answers)
        order = await customer.must("GET", f"/v1/orders/{order_id}")
        held = sum(entry.get("held", 0) for entry in order["funding"])
        assert (order["state"], held) in {("funded", LINES[0]["amount"]), ("cancelled", 0)}, (answers, order["funding"])
        assert balance(city, order_id) == 0
        types = await types_of(customer, order_id)
        assert types.count("order.cancelled") == (order["state"] == "cancelled")


async def test_an_order_takes_no_more_quotes_than_it_may_however_many_come_at_once(
    city: City, tally: Tally, rounds: int
) -> None:
    """Fifty workers, one order, eight places."""
    workers = [await city.person(Role.WORKER) for _ in range(50)]
    for _ in range(rounds):
        customer = await city.person(Role.CUSTOMER)
        order_id = (await customer.must("POST", "/v1/orders", ORDER | {"publish": True}))["id"]
        answers = await at_once(
            [
                over_rest(
                    worker,
                    order_id,
                    "submit_quote",
                    None,
                    {"quote_id": city.new_id(), "rev": 1, "milestones": LINES, "currency": "CNY"},
                )
                for worker in workers
            ]
        )
        tally.tried("SEC-30", "more than there is room for", "order.command submit_quote", len(answers))
        judged(answers, winners=Policy().quotes_active_max)
        order = await customer.must("GET", f"/v1/orders/{order_id}")
        assert len(order["quotes"]) == Policy().quotes_active_max


async def test_who_has_as_many_open_orders_as_the_policy_allows_opens_no_more(
    city: City, tally: Tally, rounds: int
) -> None:
    """However many are opened in the same moment, as new ones or out of drafts."""
    most = Policy().open_orders_max
    for _ in range(rounds):
        customer = await city.person(Role.CUSTOMER)
        orders = [ORDER | {"publish": True} for _ in range(most * 3)]
        burst = await asyncio.gather(*(customer.ask("POST", "/v1/orders", order) for order in orders))
        judged([(answer.status, answer.code) for answer in burst], winners=most)
        listed = await customer.must("GET", "/v1/orders?role=customer&state=open&limit=100")
        assert len(listed["items"]) == most
        late = await asyncio.gather(*(customer.ask("POST", "/v1/orders", order) for order in orders))
        tally.tried("SEC-30", "more than there is room for", "POST /v1/orders", len(burst) + len(late))
        judged([(answer.status, answer.code) for answer in late], winners=0)


async def test_one_proposal_is_confirmed_once_however_many_devices_confirm_it(
    city: City, tally: Tally, rounds: int
) -> None:
    for _ in range(rounds):
        mine = await city.belongings(Role.CUSTOMER)
        order_id, visit_id = mine.ids["order_id"], city.new_id()
        now_ms = city.platform.clock.now_ms()
        start, end = rfc3339(now_ms + 3 * DAY_MS), rfc3339(now_ms + 3 * DAY_MS + HOUR_MS)
        await mine.owner.command(order_id, "propose_slot", visit_id=visit_id, start=start, end=end)
        async with AsyncExitStack() as stack:
            lines = [await stack.enter_async_context(mine.partner.line()) for _ in range(4)]
            works = [
                over_line(line, order_id, "confirm_slot", None, {"visit_id": visit_id, "command_id": city.new_id()})
                for line in lines
                for _ in range(5)
            ]
            judged(await at_once(works))
        tally.tried("SEC-30", "the same step twice", "order.command confirm_slot", len(works))
        assert (await types_of(mine.owner, order_id)).count("order.slot_confirmed") == 2


async def test_one_id_is_one_write_whoever_is_first(city: City, tally: Tally, rounds: int) -> None:
    """Two people make an order with the same id, and one person makes two messages with one id."""
    for _ in range(rounds):
        one, two = await city.person(Role.CUSTOMER), await city.person(Role.CUSTOMER)
        taken = city.new_id()
        answers = await asyncio.gather(
            *(person.ask("POST", "/v1/orders", ORDER | {"id": taken, "title": person.id}) for person in (one, two) * 10)
        )
        tally.tried("SEC-30", "one id for two things", "POST /v1/orders", len(answers))
        made = {answer.json["customer_id"] for answer in answers if answer.status == 201}
        assert len(made) == 1
        lost = {(answer.status, answer.code) for answer in answers if answer.status != 201}
        assert lost <= {(409, "idempotency_mismatch"), (404, "not_found")}

        mine = city.of[Role.CUSTOMER]
        path, message_id = f"/v1/conversations/{mine.ids['conversation_id']}/messages", city.new_id()
        sent = await asyncio.gather(
            *(mine.owner.ask("POST", path, {"id": message_id, "text": f"text {number % 2}"}) for number in range(20))
        )
        tally.tried("SEC-30", "one id for two things", "POST /v1/conversations/{conversation_id}/messages", len(sent))
        assert {answer.status for answer in sent} == {200, 409}
        assert len({answer.json["offset"] for answer in sent if answer.status == 200}) == 1
        assert [answer.json["replayed"] for answer in sent if answer.status == 200].count(False) == 1


async def test_a_message_that_is_edited_while_it_is_deleted_is_gone(city: City, tally: Tally, rounds: int) -> None:
    for _ in range(rounds * 2):
        mine = city.of[Role.CUSTOMER]
        room, message_id = mine.ids["conversation_id"], city.new_id()
        await mine.owner.must("POST", f"/v1/conversations/{room}/messages", {"id": message_id, "text": "gone soon"})
        named = {"conversation_id": room, "message_id": message_id}
        async with mine.owner.line() as one, mine.owner.line() as two:
            edits = [one.rpc("message.edit", named | {"id": city.new_id(), "text": "secret edit"}) for _ in range(5)]
            deletes = [two.rpc("message.delete", named | {"id": city.new_id()}) for _ in range(2)]
            await asyncio.gather(*edits, *deletes)
        tally.tried("SEC-30", "changing what is being deleted", "rpc message.edit", 7)
        shown = await mine.partner.must("GET", f"/v1/conversations/{room}/messages?limit=3")
        newest = next(item for item in shown["items"] if item["message_id"] == message_id)
        assert newest["deleted"] is True
        events = await mine.partner.must("GET", f"/v1/conversations/{room}/events?limit=1000")
        assert "secret edit" not in json.dumps([shown, events])
        assert "secret edit" not in city.rows()


async def test_who_is_taken_out_while_they_write_writes_nothing_afterwards(
    city: City, tally: Tally, rounds: int
) -> None:
    for _ in range(rounds):
        one, two, three = [await city.person(Role.CUSTOMER) for _ in range(3)]
        room = (await one.must("POST", "/v1/conversations", {"member_ids": [two.id, three.id]}))["id"]
        path = f"/v1/conversations/{room}"

        async def say(person: Person = three, path: str = path) -> int:
            answer = await person.ask("POST", f"{path}/messages", {"id": city.new_id(), "text": "still here"})
            return answer.json["offset"] if answer.status == 200 else 0

        taken_out = one.ask("DELETE", f"{path}/members/{three.id}", headers={"Idempotency-Key": city.new_id()})
        answers = await asyncio.gather(*(say() for _ in range(10)), taken_out, *(say() for _ in range(10)))
        tally.tried(
            "SEC-30",
            "writing while being taken out",
            "DELETE /v1/conversations/{conversation_id}/members/{user_id}",
            21,
        )
        left_at = next(answer for answer in answers if isinstance(answer, Answer)).json["offset"]
        assert all(answer < left_at for answer in answers if isinstance(answer, int))
