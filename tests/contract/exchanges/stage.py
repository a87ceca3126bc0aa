"""What an exchange is played on: a platform, people who log in, and the sheet on which all is written down."""

import inspect
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import httpx
import uuid_utils

from tests.support.parts import Parts
from tests.support.servers import Valkey
from tests.support.transcripts import Feed, Line, Sheet, compact, filled

_phones = itertools.count(1)


def new_id() -> str:
    return str(uuid_utils.uuid7())


class Person(NamedTuple):
    """Somebody who has logged in on one device."""

    name: str
    id: str
    device: str
    token: str
    refresh_token: str
    phone: str

    @property
    def auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


class Stage:
    """For one exchange. `budgeted` and `leaving` are gateways of their own: one with budgets, one that will be replaced."""

    def __init__(self, parts: Parts, valkey: Valkey, http: httpx.AsyncClient, urls: Mapping[str, str]) -> None:
        self.parts = parts
        self.valkey = valkey
        self.http = http
        self.urls = urls
        self.sheet = Sheet()
        self.names = self.sheet.names
        self._ears: list[Line | Feed] = []

    # --- people --------------------------------------------------------------------------------------------------

    async def person(self, name: str, phone: str = "", device: str = "phone") -> Person:
        """Somebody new; or, with their phone's number, one more device of theirs."""
        phone = phone or f"+861380{next(_phones):07d}"
        await self.rest("POST", "/v1/auth/otp", json={"phone": phone})
        (item, *_) = (await self.rest("GET", "/dev/outbox", params={"to": phone}))["items"]
        body = {"phone": phone, "code": item["code"], "device": {"id": device, "name": device, "platform": "ios"}}
        pair = await self.rest("POST", "/v1/auth/otp/verify", json=body)
        token = pair["access_token"]
        sessions = (await self.rest("GET", "/v1/auth/sessions", headers={"Authorization": f"Bearer {token}"}))["items"]
        (sid,) = [session["id"] for session in sessions if session["current"]]
        self.names.know(pair["user"]["id"], name)
        self.names.know(sid, f"{name}-{device}")
        self.names.know(token, f"token-of-{name}" if device == "phone" else f"token-of-{name}-{device}")
        return Person(name, pair["user"]["id"], sid, token, pair["refresh_token"], phone)

    async def people(self, *names: str) -> list[Person]:
        return [await self.person(name) for name in names]

    async def chat(self, *people: Person) -> str:
        """A conversation that the first one opens; its id."""
        body = {"id": new_id(), "member_ids": [person.id for person in people[1:]]}
        await self.rest("POST", "/v1/conversations", people[0], json=body)
        return self.names.number(body["id"], "chat")

    def new(self, name: str) -> str:
        """An id that a client makes."""
        return self.names.number(new_id(), name)

    # --- speaking ------------------------------------------------------------------------------------------------

    async def rest(self, method: str, path: str, by: Person | None = None, **options: Any) -> Any:
        """A request that is not written down; its answer. Raises AssertionError: it is not a good one."""
        if by is not None:
            options["headers"] = by.auth
        answer = await self.http.request(method, path, **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def asks_rest(
        self, by: Person | None, method: str, path: str, body: object = None, who: str = "", name: str = ""
    ) -> Any:
        """A request that is written down, with its answer; `name` is that of the user in the answer."""
        said = self.names(path if body is None else f"{path} {compact(body)}")
        self.sheet.line(who, "→", f"{method} {said}")
        answer = await self.http.request(method, path, headers=by.auth if by else {}, json=body)
        told = answer.json() if answer.content else {}
        for key in ("access_token", "refresh_token", "ticket", "request_id"):
            self.names.number(told.get(key, ""), key.replace("_", "-"))
        self.names.number(told.get("user", {}).get("id", ""), name)
        self.sheet.line(who, "←", self.names(f"{answer.status_code} {answer.text}").rstrip())
        return told

    async def dial(self, who: str = "", gateway: str = "first", **options: Any) -> Line:
        """A connection on which nothing was said yet; `who` stands before what is said on it."""
        line = await Line(self.sheet, who, self.urls[gateway], **options).open()
        self._ears.append(line)
        return line

    async def online(self, person: Person, who: str = "", gateway: str = "first", **options: Any) -> Line:
        """A connection whose `connect` was answered; that is not written down."""
        line = await self.dial(who, gateway, **options)
        await line.silently({"connect": {"token": person.token}}, f"client-of-{person.name}")
        return line

    async def following(self, person: Person, channel: str, who: str = "", **options: Any) -> Line:
        """A connection that follows a channel; that is not written down either."""
        line = await self.online(person, who, **options)
        await line.silently({"subscribe": {"channel": channel}})
        return line

    async def epoch(self, person: Person, channel: str) -> str:
        """The epoch of a stream, as a client has it that was here before."""
        line = await self.online(person)
        epoch: str = (await line.silently({"subscribe": {"channel": channel}}))["subscribe"]["epoch"]
        await line.hang_up()
        return epoch

    def add(self, ear: Line | Feed) -> None:
        """To be hung up when the exchange is over."""
        self._ears.append(ear)

    def note(self, text: str) -> None:
        self.sheet.note(text)

    async def over(self) -> None:
        for ear in self._ears:
            await ear.quiet()
        await self.hang_up()

    async def hang_up(self) -> None:
        for ear in self._ears:
            await ear.hang_up()


Play = Callable[[Stage], Awaitable[None]]


class Exchange(NamedTuple):
    """`when` is `slow` for those that wait for the platform's timers, `last` for those after which it is not whole."""

    title: str
    text: str
    play: Play
    when: str


def exchange(title: str, when: str = "") -> Callable[[Play], Exchange]:
    """Make an exchange of a function; its docstring is what the reader is told before."""

    def made(play: Play) -> Exchange:
        paragraphs = (inspect.getdoc(play) or "").split("\n\n")
        return Exchange(title, "\n\n".join(filled(each) for each in paragraphs), play, when)

    return made
