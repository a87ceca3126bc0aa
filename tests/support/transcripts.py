"""What goes over a client's wire, written down so that two runs of the same exchanges give the same text.

A `Sheet` is the text of one exchange. `Line` is a raw WebSocket whose every word goes on it; `Feed` is the same over a
response that does not end. `Names` are what takes the place of all that differs from run to run.
"""

import asyncio
import itertools
import json
import re
import textwrap
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PATIENCE_S = 60.0
"""For one word of the platform's, on a machine that has a lot else to do."""
QUIET_S = 0.15
"""Who says nothing for so long has no more to say."""

_UUID = re.compile(r"(?<![0-9a-f])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9a-f])")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_TTL = re.compile(r'"ttl":(8[5-9]\d|900)\b')
_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")

Item = dict[str, Any]


class Unnamed(AssertionError):
    """Something that differs from run to run has no name, and would stand in the text."""


class Names:
    """What stands for ids, tokens, clients, nodes and epochs; times and times to live have one name each."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._epochs: dict[str, str] = {}

    def know(self, value: str, name: str) -> str:
        """From here on `value` reads `<name>`."""
        if value:
            self._names.setdefault(value, f"<{name}>")
        return value

    def number(self, value: str, name: str) -> str:
        """As `know`; the second one of a name is `<name-2>`."""
        if value and value not in self._names:
            taken = set(self._names.values())
            free = (n for n in itertools.count(1) if _numbered(f"<{name}>", n) not in taken)
            self._names[value] = _numbered(f"<{name}>", next(free))
        return value

    def __call__(self, text: str) -> str:
        """The text with names.

        Raises:
            Unnamed: an id or a token is left.
        """
        for said, shown in self._epochs.items():
            text = text.replace(said, shown)
        for value in sorted(self._names, key=len, reverse=True):
            text = text.replace(value, self._names[value])
        text = _TTL.sub('"ttl":900', _TIME.sub("<time>", text))
        if left := _UUID.findall(text) + _JWT.findall(text):
            raise Unnamed(f"{left} in {text[:2000]}")
        return text

    def learn(self, item: Item, client: str = "client") -> None:
        """Name what only the platform can know beforehand."""
        told = item.get("connect", {})
        self.number(told.get("client", ""), client)
        self.know(told.get("node", ""), "node")
        self.number(told.get("session", ""), "session")
        push = item.get("push", {})
        self.number(push.get("pub", {}).get("data", {}).get("message_id", ""), "card")
        for kind in ("subscribe", "history"):
            if epoch := item.get(kind, {}).get("epoch"):
                # An epoch may look like a time of the stream's own; it is one only where it stands as such.
                self._epochs.setdefault(
                    f'"epoch":"{epoch}"', f'"epoch":"{_numbered("<epoch>", len(self._epochs) + 1)}"'
                )


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name[:-1]}-{number}>"


def filled(text: str) -> str:
    """A paragraph in lines that can be read."""
    return textwrap.fill(text, 130, break_long_words=False, break_on_hyphens=False)


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def in_order(items: Iterable[Item]) -> list[Item]:
    """What came together: replies by their command's id, then pushes by channel, events before what has no offset."""
    return sorted(items, key=_place)


def _place(item: Item) -> tuple[Any, ...]:
    if "push" not in item:
        return (0, item.get("id", 0))
    push = item["push"]
    offset = push.get("pub", {}).get("offset")
    return (1, push.get("channel", ""), offset is None, offset or 0, compact(push))


def is_hint(item: Item) -> bool:
    """Whether it says that a stream has moved: there is one for every event, to every member."""
    return _type(item).endswith(".activity")


def _type(item: Item) -> str:
    return str(item.get("push", {}).get("pub", {}).get("data", {}).get("type", ""))


class Sheet:
    """The text of an exchange: paragraphs, and blocks of what was said."""

    def __init__(self) -> None:
        self.names = Names()
        self._parts: list[str | list[str]] = []

    def note(self, text: str) -> None:
        """A paragraph between what is said before and after."""
        self._parts.append(filled(text))

    def line(self, who: str, arrow: str, what: str) -> None:
        if not self._parts or isinstance(self._parts[-1], str):
            self._parts.append([])
        block = self._parts[-1]
        assert isinstance(block, list)
        block.append(f"{who} {arrow} {what}".lstrip())

    def item(self, who: str, item: Item) -> None:
        """Something the platform says."""
        self.names.learn(item)
        named = json.loads(self.names(compact(item)))
        there = named.get("presence", {})
        if "presence" in there:
            there["presence"] = dict(sorted(there["presence"].items()))
        self.line(who, "←", compact(named))

    def said(self, who: str, item: object) -> None:
        """Something a client says."""
        self.line(who, "→", self.names(compact(item)))

    @property
    def text(self) -> str:
        blocks = [part if isinstance(part, str) else "\n".join(["```", *part, "```"]) for part in self._parts]
        return "\n\n".join(blocks)


class Ear:
    """Items as they come. Pings are answered and left out, unless `pings`; so are hints, without an answer, unless `hints`."""

    def __init__(self, sheet: Sheet, who: str, *, pings: bool = False, hints: bool = False) -> None:
        self.sheet = sheet
        self.who = who
        self.pings = pings
        self.hints = hints
        self._came: asyncio.Queue[Item | str] = asyncio.Queue()
        self._numbers = itertools.count(1)
        self._reading: asyncio.Task[None] | None = None
        self.gone = False
        """Whether it has hung up itself."""

    def numbered(self, command: Item) -> Item:
        """The command with the next id in front, unless it is one without an answer."""
        return command if not command or "send" in command else {"id": next(self._numbers), **command}

    async def next_item(self) -> Item | str:
        """What comes next; a text where it is the end."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                item = await self._came.get()
                if isinstance(item, str) or self.hints or not is_hint(item):
                    return item

    async def take(self, count: int = 1) -> list[Item]:
        """The next items, in their order, without writing them down."""
        taken: list[Item] = []
        while len(taken) < count:
            item = await self.next_item()
            assert not isinstance(item, str), f"{self.who} heard {taken}, and the end: {item}"
            taken.append(item)
        return in_order(taken)

    async def hears(self, count: int = 1) -> list[Item]:
        """The next items, written down."""
        items = await self.take(count)
        for item in items:
            self.sheet.item(self.who, item)
        return items

    async def ends(self) -> None:
        """The platform ends it. Whether the connection that a logout ends hears of it first is a matter of chance."""
        end = await self.next_item()
        if not isinstance(end, str) and _type(end) == "session.revoked":
            end = await self.next_item()
        self.sheet.line(self.who, "←", end if isinstance(end, str) else f"(not the end) {compact(end)}")

    async def quiet(self) -> None:
        """Write down whatever else comes: the text is not the same then."""
        if self.gone:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_S):
                while True:
                    item = await self.next_item()
                    self.sheet.line(self.who, "←", item if isinstance(item, str) else compact(item))


class Line(Ear):
    """A raw WebSocket."""

    def __init__(self, sheet: Sheet, who: str, url: str, **options: Any) -> None:
        super().__init__(sheet, who, **options)
        self._url = url
        self._socket: ClientConnection

    async def open(self) -> Self:
        self._socket = await connect(self._url, compression=None, open_timeout=PATIENCE_S, max_size=None)
        self._reading = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        try:
            async for frame in self._socket:
                for text in str(frame).splitlines():
                    item = json.loads(text)
                    if item or self.pings:
                        self._came.put_nowait(item)
                    else:
                        await self._socket.send("{}")
        except ConnectionClosed:
            pass
        self._came.put_nowait(f"close {self._socket.close_code} {self._socket.close_reason}".rstrip())

    async def send(self, text: str) -> None:
        with suppress(ConnectionClosed):
            await self._socket.send(text)

    async def says(self, *commands: Item) -> None:
        """Commands in one frame, a line each."""
        numbered = [self.numbered(command) for command in commands]
        for command in numbered:
            self.sheet.said(self.who, command)
        await self.send("\n".join(map(compact, numbered)))

    async def asks(self, command: Item, more: int = 0) -> Item:
        """A command, its reply, and so many pushes that come with it; gives the reply."""
        await self.says(command)
        return (await self.hears(1 + more))[0]

    async def silently(self, command: Item, client: str = "client") -> Item:
        """As `asks`; nothing of it is written down, but what it says is known by name, the connection as `client`."""
        await self.send(compact(self.numbered(command)))
        (item,) = await self.take()
        self.sheet.names.learn(item, client)
        return item

    async def hang_up(self) -> None:
        self.gone = True
        await self._socket.close()
        if self._reading is not None:
            await self._reading


class Feed(Ear):
    """Items of a response's lines, of which `item_in` finds each."""

    def listen(self, lines: AsyncIterator[str], item_in: Callable[[str], str | None]) -> Self:
        self._reading = asyncio.create_task(self._read(lines, item_in))
        return self

    async def _read(self, lines: AsyncIterator[str], item_in: Callable[[str], str | None]) -> None:
        async for line in lines:
            text = item_in(line)
            if text is not None and (text != "{}" or self.pings):
                self._came.put_nowait(json.loads(text))
        self._came.put_nowait("the response ends")

    async def hang_up(self) -> None:
        self.gone = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
