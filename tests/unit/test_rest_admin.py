"""What operators see of a stream, and that nobody else sees anything."""

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from domain.commands import SYSTEM, Query, Reminder, Viewed
from domain.errors import Code, Refusal
from domain.ids import partition_of
from domain.ports import StoreUnavailable, StreamRecord, Taken
from serve_apps.inspection import Inspected, differences
from tests.support.rest_app import START_MS, World

REMINDER = {"name": "expire", "due_at": START_MS + 60_000, "fence_offset": 3}
LIVE: dict[str, Any] = {
    "host": "host-0",
    "incarnation": "host-0-abc",
    "owner": 17,
    "version": 5,
    "committed": 4,
    "mailbox": 2,
    "uncommitted": 1,
    "snapshot_offset": 3,
    "bytes": 4_000,
    "idle_s": 1.5,
    "recent": [{"command_id": "0190a000-0000-7000-8000-000000000009", "offset": 4, "at": START_MS}],
    "reminders": [REMINDER],
}


def stored(**changed: Any) -> StreamRecord:
    record = StreamRecord(
        head=4,
        at=START_MS,
        snapshot_offset=3,
        position=21,
        cursor=20,
        taken=Taken("host-0/host-0-abc", 17, START_MS),
        reminders=(Reminder("order:x", "expire", START_MS + 60_000, 3, "expire"),),
    )
    return msgspec.structs.replace(record, **changed)


class Office:
    """A world with an operator in it, and an order that is live."""

    def __init__(self, http: httpx.AsyncClient, world: World, operator: dict[str, str]) -> None:
        self.http, self.world, self.operator = http, world, operator
        self.id = world.new_id()
        self.path = f"/v1/admin/streams/order/{self.id}"
        world.records.stored[f"order:{self.id}"] = stored()

    def host_says(self, **changed: Any) -> None:
        self.world.router.answers = [Viewed(5, msgspec.json.encode(LIVE | changed))]

    def nobody_answers(self) -> None:
        self.world.router.answers = [Refusal(Code.UNAVAILABLE, "the partition has no owner")]

    async def get(self, accept: str = "*/*") -> httpx.Response:
        return await self.http.get(self.path, headers=self.operator | {"Accept": accept})


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    world = World()
    user, auth = await world.login("+8613800000009")
    await world.accounts.grant(user.id, "ops")
    transport = httpx.ASGITransport(world.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://rest") as http:
        yield Office(http, world, auth)


async def test_an_operator_sees_the_owner_and_the_database_side_by_side(office: Office) -> None:
    office.host_says()
    response = await office.get()
    shown = response.json()
    assert response.status_code == 200
    assert (shown["stream"], shown["partition"]) == (f"order:{office.id}", partition_of(office.id))
    assert shown["owner"] == {"host": "host-0", "incarnation": "host-0-abc", "position": 17}
    live, database = shown["activation"], shown["database"]
    assert (live["offset"], live["committed_offset"], live["uncommitted"], live["mailbox"]) == (5, 4, 1, 2)
    assert (live["bytes"], live["idle_s"]) == (4_000, 1.5)
    assert live["recent"] == [
        {"command_id": LIVE["recent"][0]["command_id"], "offset": 4, "at": "2027-01-15T08:00:00.000Z"}
    ]
    assert live["reminders"] == database["reminders"]
    assert (database["head"], database["snapshot_offset"], database["position"], database["relay_cursor"]) == (
        4,
        3,
        21,
        20,
    )
    assert database["takeover"]["incarnation"] == "host-0-abc"
    assert shown["differences"] == []
    (asked,) = office.world.router.asked
    assert isinstance(asked, Query)
    assert (asked.name, asked.actor) == ("inspect", SYSTEM)


async def test_without_an_owner_the_database_is_shown_alone_and_why(office: Office) -> None:
    office.nobody_answers()
    shown = (await office.get()).json()
    assert shown["owner"] is shown["activation"] is None
    assert "no owner" in shown["unanswered"]
    assert shown["database"]["head"] == 4


async def test_a_host_of_another_version_does_not_hide_the_database(office: Office) -> None:
    office.world.router.answers = [Viewed(5, b'{"host": 1}')]
    shown = (await office.get()).json()
    assert shown["owner"] is None
    assert "cannot be read" in shown["unanswered"]
    assert shown["database"]["head"] == 4


async def test_a_stream_that_neither_side_has_does_not_exist(office: Office) -> None:
    office.world.records.stored.clear()
    for answer in (Viewed(0, msgspec.json.encode(LIVE | {"version": 0, "committed": 0})), Refusal(Code.UNAVAILABLE)):
        office.world.router.answers = [answer]
        response = await office.get()
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_a_stream_that_is_not_committed_yet_exists(office: Office) -> None:
    office.world.records.stored.clear()
    office.host_says(version=1, committed=0)
    assert (await office.get()).status_code == 200


async def test_without_the_database_it_is_unavailable(office: Office) -> None:
    async def gone(_stream: str) -> StreamRecord:
        raise StoreUnavailable("gone")

    office.world.records.record = gone
    response = await office.get()
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")


@pytest.mark.parametrize("role", ["customer", "worker"])
async def test_others_are_refused_alike_whatever_they_ask_about(office: Office, role: str) -> None:
    """Neither the existence of a stream nor the form of an id makes a difference, and nothing is asked for them."""
    user, stranger = await office.world.login("+8613800000010")
    await office.world.accounts.grant(user.id, role)
    answers = set()
    for kind, identifier in (
        ("order", office.id),
        ("order", office.world.new_id()),
        ("order", "no-id"),
        ("conversation", office.id),
        ("secret", office.id),
    ):
        response = await office.http.get(f"/v1/admin/streams/{kind}/{identifier}", headers=stranger)
        problem = response.json()
        del problem["request_id"]
        answers.add((response.status_code, msgspec.json.encode(problem)))
    ((status, _),) = answers
    assert status == 403
    assert office.world.router.asked == []


async def test_a_role_that_was_given_after_login_counts_and_admins_may_too(office: Office) -> None:
    user, late = await office.world.login("+8613800000011")
    assert (await office.http.get(office.path, headers=late)).status_code == 403
    await office.world.accounts.grant(user.id, "admin")
    office.host_says()
    assert (await office.http.get(office.path, headers=late)).status_code == 200


@pytest.mark.parametrize("kind", ["user", "Order", "orders", "%6frder%00", ".."])
async def test_for_operators_an_unknown_kind_does_not_exist(office: Office, kind: str) -> None:
    response = await office.http.get(f"/v1/admin/streams/{kind}/{office.id}", headers=office.operator)
    assert response.status_code == 404
    assert office.world.router.asked == []


async def test_no_content_of_a_command_is_shown(office: Office) -> None:
    office.host_says(recent=[LIVE["recent"][0] | {"body": "canary", "actor": "canary"}], state="canary")
    for accept in ("application/json", "text/html"):
        response = await office.get(accept)
        office.host_says(recent=[LIVE["recent"][0] | {"body": "canary"}])
        assert response.status_code == 200
        assert "canary" not in response.text


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/json;q=0.5, text/html", "text/html"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("text/html;q=0", "application/json"),
    ],
)
async def test_who_wants_a_page_gets_a_page(office: Office, accept: str, media_type: str) -> None:
    office.host_says()
    response = await office.get(accept)
    assert response.headers["content-type"].partition(";")[0] == media_type
    assert response.headers["vary"] == "Accept"
    assert "host-0-abc" in response.text


async def test_the_page_shows_what_differs_and_escapes_everything(office: Office) -> None:
    office.host_says(host="<script>alert(1)</script>", committed=2)
    response = await office.get("text/html")
    assert "the activation has committed up to 2, the log goes up to 4" in response.text
    assert "<script" not in response.text
    assert "&lt;script&gt;" in response.text
    assert "script-src" not in response.headers["content-security-policy"]


async def test_the_page_without_an_owner_says_so(office: Office) -> None:
    office.nobody_answers()
    response = await office.get("text/html")
    assert "No host answers" in response.text


async def test_the_form_is_open_to_all_holds_nothing_and_runs_its_own_script_alone(office: Office) -> None:
    response = await office.http.get("/admin")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    (script,) = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in response.headers["content-security-policy"]
    assert "unsafe-inline" not in response.headers["content-security-policy"].partition("script-src")[2]
    assert not re.findall(r"""(?:src|href)=['"]?https?:""", response.text)


# --- what counts as a difference -----------------------------------------------------------------------------------


def live(**changed: Any) -> Inspected:
    return msgspec.convert(LIVE | {"version": 4, "uncommitted": 0} | changed, Inspected)


def test_two_sides_that_agree_differ_in_nothing() -> None:
    assert differences(live(), stored()) == []


def test_an_activation_that_went_on_after_the_database_was_read_differs_in_nothing() -> None:
    later = live(version=9, committed=8, owner=30, snapshot_offset=8, reminders=[])
    assert differences(later, stored()) == []


@pytest.mark.parametrize(
    ("activation", "record", "says"),
    [
        ({"owner": 16}, {}, "speaks under position 16.*host-0/host-0-abc has taken.* at 17.*fenced"),
        ({"committed": 3}, {}, "committed up to 3, the log goes up to 4"),
        ({"snapshot_offset": 0}, {}, "a snapshot at 0, stored is one at 3"),
        ({"reminders": []}, {}, "reminder expire is stored and not pending"),
        ({}, {"reminders": ()}, "reminder expire is pending and not stored"),
    ],
)
def test_what_contradicts_is_named(activation: dict[str, Any], record: dict[str, Any], says: str) -> None:
    (found,) = differences(live(**activation), stored(**record))
    assert re.search(says, found)
