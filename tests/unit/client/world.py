"""A platform in a few lines for a client without I/O: connections that can be cut anywhere, and time that is given.

Copies of a write that has arrived may land, or be refused, or be forgotten, up to `LIFE_S` later, as a gateway's own deadline
has it; whether anybody is still connected to hear of it is another matter.
"""

import json
from collections import deque
from collections.abc import Callable
from typing import Any

from gateway.client_core import ClientCore
from gateway.client_effects import (
    Dial,
    Discard,
    Done,
    Effect,
    Expelled,
    Finished,
    Forget,
    HangUp,
    Owner,
    Published,
    Rejected,
    Reload,
    RenewToken,
    Save,
    Standing,
    Transmit,
)
from gateway.client_settings import ClientSettings, Pace
from gateway.client_wire import Position, Write

USER = "0190a0a0-0000-7000-8000-00000000000a"
LIFE_S = 4.5
SETTINGS = ClientSettings(pace=Pace(first_s=0.1, longest_s=1.0), sync=False)


class Copy:
    """A write that has arrived at the platform and is not decided."""

    def __init__(self, conn: "Conn", number: int, write_id: str, stream: str, by_s: float) -> None:
        self.conn, self.number, self.write_id, self.stream, self.by_s = conn, number, write_id, stream, by_s


class Conn:
    def __init__(self, link: int) -> None:
        self.link = link
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.following: dict[str, int] = {}
        self.alive = True
        self.dialled = False

    def say(self, body: dict[str, Any]) -> None:
        if self.alive:
            self.down.append(json.dumps(body).encode())


class World:
    """`client` is replaced when its process is; `disk` is what it has stored."""

    def __init__(self, chance: Callable[[], float] = lambda: 0.5, settings: ClientSettings = SETTINGS) -> None:
        self.now_s = 100.0
        self.chance, self.settings = chance, settings
        self.conns: dict[int, Conn] = {}
        self.logs: dict[str, list[str]] = {}
        self.copies: list[Copy] = []
        self.disk: dict[str, Write] = {}
        self.owner = ""
        self.unsaved: list[Effect] = []
        self.places: dict[str, Position] = {}
        self.shown: dict[str, list[int]] = {}
        self.ended: list[tuple[str, str]] = []
        self.effects: list[Effect] = []
        self.finished: Finished | None = None
        self.token: str | None = "token"
        self.epoch = "e1"
        self.answers_sync = False
        self.hung_up: list[int] = []
        self.client = self._boot()

    def _boot(self) -> ClientCore:
        client = ClientCore(self.settings, self.chance, self.now_s, list(self.disk.values()), self.owner)
        self.client = client
        self.do(client.start(self.now_s))
        for channel, place in list(self.places.items()):
            self.do(client.follow(channel, place, self.now_s))
        return client

    # --- the client's side ---------------------------------------------------------------------------------------

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case RenewToken():
                    if self.token is None:
                        self.do(self.client.no_token(self.now_s, for_good=True))
                    else:
                        self.do(self.client.token(self.token, self.now_s))
                case Dial():
                    self.conns[effect.link] = Conn(effect.link)
                case Transmit():
                    if self.conns[effect.link].alive:
                        self.conns[effect.link].up.append(effect.frame)
                case HangUp():
                    self.hung_up.append(effect.link)
                    self.conns.pop(effect.link, None)
                case Save() | Discard():
                    self.unsaved.append(effect)
                case Forget():
                    self.unsaved.append(effect)
                case Owner():
                    self.owner = effect.user_id
                case Done():
                    self.ended.append((effect.write.id, "done"))
                case Rejected():
                    self.ended.append((effect.write.id, "rejected"))
                case Standing():
                    self.places[effect.channel] = effect.position
                case Published():
                    place = self.places[effect.channel]
                    self.shown.setdefault(effect.channel, []).append(effect.offset)
                    self.places[effect.channel] = Position(place.epoch, effect.offset)
                case Reload():
                    self.shown[effect.channel] = []
                    self.do(self.client.reloaded(effect.channel, Position(), self.now_s))
                case Expelled():
                    self.places.pop(effect.channel, None)
                case Finished():
                    self.finished = effect

    def write(self, write_id: str, stream: str = "conversation:c") -> None:
        data = json.dumps({"id": write_id}).encode()
        self.do(self.client.write(Write(write_id, stream, "message.send", data)))

    def store(self) -> None:
        """The disk takes everything that waits for it."""
        todo, self.unsaved = self.unsaved, []
        for effect in todo:
            if isinstance(effect, Save):
                self.disk.setdefault(effect.write.id, effect.write)
            elif isinstance(effect, Forget | Discard):
                self.disk.pop(effect.write.id, None)
        for effect in todo:
            if isinstance(effect, Save):
                self.do(self.client.stored(effect.write, self.now_s))
            elif isinstance(effect, Discard):
                self.do(self.client.discarded(effect, self.now_s))

    def crash(self, *, stored: bool) -> None:
        """The process is gone; what it had begun to store is there or not. The server does not hear of it at once."""
        if stored:
            for effect in self.unsaved:
                if isinstance(effect, Save):
                    self.disk.setdefault(effect.write.id, effect.write)
        self.unsaved = []
        for conn in self.conns.values():
            self._arrive(conn, len(conn.up))
            conn.alive = False
        self.conns.clear()
        self._boot()

    def pass_time(self, dt_s: float) -> None:
        """Time passes, in the client's own steps."""
        end_s = self.now_s + dt_s
        while self.client.deadline_s <= end_s:
            self.now_s = max(self.now_s, self.client.deadline_s)
            self.do(self.client.tick(self.now_s))
            self._expire()
        self.now_s = end_s
        self._expire()

    # --- the network ---------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connections that are being dialled come about."""
        for conn in list(self.conns.values()):
            if conn.alive and not conn.dialled:
                conn.dialled = True
                self.do(self.client.dialled(conn.link, self.now_s))

    def cut(self, link: int, code: int = 0, arrived: int = 1_000, *, noticed: bool = True) -> None:
        """The connection ends; so many frames of the client still arrive, and what the server has said does not."""
        conn = self.conns.pop(link, None)
        if conn is not None:
            self._arrive(conn, arrived)
            conn.alive = False
            if noticed:
                self.do(self.client.lost(link, code, "", self.now_s))
            else:
                self.conns[link] = conn  # the client waits for a silence to end

    def up(self, link: int, count: int = 1_000) -> None:
        if link in self.conns:
            self._arrive(self.conns[link], count)

    def down(self, link: int, count: int = 1_000, *, twice: bool = False) -> None:
        for _ in range(count):
            conn = self.conns.get(link)
            if conn is None or not conn.down:
                return
            frame = conn.down.popleft()
            for _ in range(2 if twice else 1):
                self.do(self.client.received(link, frame, self.now_s))

    # --- the platform's side -------------------------------------------------------------------------------------

    def _arrive(self, conn: Conn, count: int) -> None:
        for _ in range(min(count, len(conn.up))):
            self._said(conn, json.loads(conn.up.popleft()))

    def _said(self, conn: Conn, command: dict[str, Any]) -> None:
        number = command.get("id", 0)
        if "connect" in command:
            conn.say({"id": number, "connect": {"client": "c", "subs": {f"user:{USER}": {}}, "ping": 25, "pong": True}})
        elif "subscribe" in command:
            self._subscribe(conn, number, command["subscribe"])
        elif "unsubscribe" in command:
            conn.following.pop(command["unsubscribe"]["channel"], None)
            conn.say({"id": number, "unsubscribe": {}})
        elif "rpc" in command and command["rpc"]["method"] == "sync" and self.answers_sync:
            conn.say({"id": number, "rpc": {"data": {"conversations": [], "orders": []}}})
        elif "rpc" in command and command["rpc"]["method"] == "message.send":
            write_id = command["rpc"]["data"]["id"]
            stream = next(write.stream for write in self._all_writes() if write.id == write_id)
            self.copies.append(Copy(conn, number, write_id, stream, self.now_s + LIFE_S))

    def _all_writes(self) -> list[Write]:
        return [effect.write for effect in self.effects if isinstance(effect, Save)]

    def _subscribe(self, conn: Conn, number: int, asked: dict[str, Any]) -> None:
        channel = asked["channel"]
        log = self.logs.setdefault(channel, [])
        if channel in conn.following:
            return conn.say({"id": number, "error": {"code": 105, "message": "already subscribed"}})
        recover, offset = asked.get("recover", False), asked.get("offset", 0)
        if recover and (offset > len(log) or asked["epoch"] not in (self.epoch, "")):
            return conn.say({"id": number, "error": {"code": 112, "message": "unrecoverable position"}})
        start = offset if recover else len(log)
        page = [{"offset": n, "data": {"n": n}} for n in range(start + 1, len(log) + 1)]
        conn.following[channel] = len(log)
        result = {"epoch": self.epoch, "offset": start, "recovered": recover, "publications": page}
        return conn.say({"id": number, "subscribe": result})

    def post(self, stream: str, event: str) -> int:
        log = self.logs.setdefault(stream, [])
        log.append(event)
        for conn in self.conns.values():
            if stream in conn.following:
                conn.say({"push": {"channel": stream, "pub": {"offset": len(log), "data": {"n": len(log)}}}})
        return len(log)

    def decide(self, index: int, outcome: str) -> None:
        """What becomes of one of the copies that have arrived."""
        if not self.copies:
            return
        copy = self.copies.pop(index % len(self.copies))
        log = self.logs.setdefault(copy.stream, [])
        if copy.write_id not in log and outcome in ("land", "land silently", "land, unavailable"):
            self.post(copy.stream, copy.write_id)
        landed = copy.write_id in log
        if outcome == "land" or (landed and outcome == "refuse"):
            result = {"offset": log.index(copy.write_id) + 1, "at": "t", "replayed": False}
            copy.conn.say({"id": copy.number, "rpc": {"data": result}})
        elif outcome == "refuse":
            copy.conn.say({"id": copy.number, "error": {"code": 409, "message": "conflict"}})
        elif outcome in ("unavailable", "land, unavailable"):
            copy.conn.say({"id": copy.number, "error": {"code": 503, "message": "unavailable", "temporary": True}})

    def _expire(self) -> None:
        while self.copies and (late := [n for n, copy in enumerate(self.copies) if copy.by_s <= self.now_s]):
            self.decide(late[0], "unavailable")

    # --- in good weather -----------------------------------------------------------------------------------------

    def settle(self, within_s: float = 120.0) -> None:
        """Everything works from now on: until nothing moves any more."""
        end_s = self.now_s + within_s
        while self.now_s < end_s:
            self.store()
            self.connect()
            for link in list(self.conns):
                if not self.conns[link].alive:
                    self.cut(link)
                self.up(link)
            while self.copies:
                self.decide(0, "land")
            for link in list(self.conns):
                self.down(link)
            self.pass_time(0.25)
