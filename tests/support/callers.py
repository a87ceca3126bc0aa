"""People who use the platform by REST alone and remember what it told them, for when it has lost its power."""

import asyncio
import copy
import random
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import httpx

ANSWER_S: Final = 10.0
CATEGORY: Final = "painting"


class Caller:
    """One person. Everything here was told with a positive answer; `asked` is the write that has had none yet."""

    def __init__(self, number: int) -> None:
        self.phone = f"+86138{number:08d}"
        self.user = ""
        self.name = ""
        self.access = ""
        self.refresh = ""
        self.left: list[str] = []
        """Access tokens of device sessions that were logged out."""
        self.orders: dict[str, tuple[str, int]] = {}
        """State and version by order id."""
        self.asked: tuple[str, Any] | None = None


class Callers:
    """Many people, each of whom asks for the next thing when the last was answered."""

    def __init__(self, url: str, people: int, seed: int) -> None:
        self.people = [Caller(number) for number in range(people)]
        self.answers = 0
        self._random = random.Random(seed)
        self._http = httpx.AsyncClient(base_url=url, timeout=ANSWER_S)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await asyncio.gather(*map(self.log_in, self.people))
        self._tasks = [asyncio.create_task(self._live(person)) for person in self.people]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()
        if kind is None:
            for result in ended:
                if isinstance(result, Exception):
                    raise result

    async def until_answered(self, more: int, limit_s: float = 60.0) -> None:
        """Return when so many more answers have come. Raises TimeoutError."""
        enough = self.answers + more
        async with asyncio.timeout(limit_s):
            while self.answers < enough:
                await asyncio.sleep(0.01)

    def tell(self, known: list[Caller]) -> None:
        """Put into `known` what everybody has been told by now."""
        known += copy.deepcopy(self.people)

    async def _live(self, person: Caller) -> None:
        while True:
            await self._random.choice([self.rename, self.make_order, self.cancel_order, self.renew, self.log_in_anew])(
                person
            )

    # --- what they do --------------------------------------------------------------------------------------------

    async def log_in(self, person: Caller) -> None:
        person.asked = ("log in", None)
        await self._call("POST", "/v1/auth/otp", {"phone": person.phone})
        items = (await self._call("GET", f"/dev/outbox?to={person.phone.replace('+', '%2B')}"))["items"]
        device = {"id": "phone", "name": "phone", "platform": "test"}
        body = {"phone": person.phone, "code": items[0]["code"], "device": device}
        grant = await self._call("POST", "/v1/auth/otp/verify", body)
        person.user, person.access, person.refresh = grant["user"]["id"], grant["access_token"], grant["refresh_token"]
        person.name = grant["user"]["name"]
        person.asked = None

    async def rename(self, person: Caller) -> None:
        name = f"name {self._random.randrange(1_000_000)}"
        person.asked = ("rename", name)
        person.name = (await self._call("PATCH", "/v1/me", {"name": name}, person))["name"]
        person.asked = None

    async def make_order(self, person: Caller) -> None:
        identifier = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        person.asked = ("order", identifier)
        body = {
            "id": identifier,
            "category": CATEGORY,
            "title": "a wall",
            "description": "two coats of white, all of it, soon",
            "site": {"lat": 31.2, "lon": 121.4, "address": "1 Road"},
            "publish": self._random.random() < 0.5,
        }
        self._keep(person, await self._call("POST", "/v1/orders", body, person))

    async def cancel_order(self, person: Caller) -> None:
        waiting = [identifier for identifier, (state, _) in person.orders.items() if state in ("draft", "open")]
        if not waiting:
            return
        identifier = self._random.choice(waiting)
        person.asked = ("order", identifier)
        command = {"command": "cancel", "command_id": str(uuid.UUID(int=self._random.getrandbits(128), version=4))}
        answer = await self._call("POST", f"/v1/orders/{identifier}/commands", command, person)
        self._keep(person, answer["order"])

    async def renew(self, person: Caller) -> None:
        person.asked = ("renew", None)
        grant = await self._call("POST", "/v1/auth/refresh", {"refresh_token": person.refresh})
        person.access, person.refresh = grant["access_token"], grant["refresh_token"]
        person.asked = None

    async def log_in_anew(self, person: Caller) -> None:
        person.asked = ("log out", None)
        await self._call("POST", "/v1/auth/logout", {}, person)
        person.left.append(person.access)
        await self.log_in(person)

    def _keep(self, person: Caller, order: Mapping[str, Any]) -> None:
        person.orders[order["id"]] = (order["state"], order["version"])
        person.asked = None

    async def _call(self, method: str, path: str, body: Any = None, person: Caller | None = None) -> Any:
        headers = {"Authorization": f"Bearer {person.access}"} if person is not None else {}
        answer = await self._http.request(method, path, json=body, headers=headers)
        if not answer.is_success:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
        self.answers += 1
        return answer.json() if answer.content else None


async def forgotten(url: str, people: list[Caller]) -> list[str]:
    """What the platform at `url` no longer knows of what it told these people."""
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_S) as http:
        found = [await _forgotten(http, person) for person in people]
    return [fault for faults in found for fault in faults]


async def _forgotten(http: httpx.AsyncClient, person: Caller) -> list[str]:
    what, value = person.asked or ("", None)

    async def ask(path: str, access: str) -> httpx.Response:
        return await http.get(path, headers={"Authorization": f"Bearer {access}"})

    told = [(await ask("/v1/me", access)).status_code for access in person.left]
    faults = [f"{person.phone} had logged out, and is answered {status}" for status in told if status != 401]
    if what in ("log out", "log in"):
        return faults  # nobody knows which session is the last one
    me = await ask("/v1/me", person.access)
    if me.status_code != 200 or me.json()["id"] != person.user:
        return [*faults, f"{person.phone} is {person.user}, and is answered {me.status_code} {me.text}"]
    if me.json()["name"] not in {person.name, value if what == "rename" else person.name}:
        faults.append(f"{person.phone} is named {person.name!r}, not {me.json()['name']!r}")
    for identifier, (state, version) in person.orders.items():
        answer = await ask(f"/v1/orders/{identifier}", person.access)
        order = answer.json()
        same = answer.status_code == 200 and (order["state"], order["version"]) == (state, version)
        if not same and not (answer.status_code == 200 and value == identifier and order["version"] > version):
            faults.append(
                f"order {identifier} was {state} at {version}, and is {answer.status_code} {answer.text[:200]}"
            )
    if what != "renew":
        answer = await http.post("/v1/auth/refresh", json={"refresh_token": person.refresh})
        if answer.status_code != 200:
            faults.append(f"{person.phone}'s refresh token is answered {answer.status_code} {answer.text}")
    return faults
