"""A client of the gateway without I/O: frames and time in, effects out.

What it promises: every write that is `stored` has its effect once, those of a stream in their order, whatever is lost on the
way and however often connections and processes end; every event of a followed stream is `Published` once, in order, without
a hole, from the position at which following began.

Whoever drives it passes `now_s` (monotonic) with every input, performs the effects in their order, and calls `tick` at
`deadline_s`. There is one connection at a time, but for a while two when a gateway is being replaced: then the second one
must have every subscription before the first one is left.
"""

from collections.abc import Callable, Iterable
from typing import Final

from domain.errors import Code, Refusal
from gateway import client_effects as effects
from gateway import codes
from gateway.client_effects import Effect
from gateway.client_link import Asked, Kind, Link, Links
from gateway.client_outbox import Outbox
from gateway.client_questions import Questions
from gateway.client_settings import ClientSettings
from gateway.client_streams import Streams
from gateway.client_token import Token
from gateway.client_wire import (
    PONG,
    Connected,
    Frame,
    Garbled,
    Position,
    Push,
    Write,
    decode_frame,
    decode_hint,
    rpc,
    send,
)

_NEVER: Final = float("inf")
_SYNC: Final = "sync"


class ClientCore:
    """The state of one client. `kept` and `owner` are what an earlier process left in the outbox; `chance` is in [0, 1)."""

    def __init__(
        self, settings: ClientSettings, chance: Callable[[], float], now_s: float = 0.0, kept: Iterable[Write] = (),
        owner: str = "",
    ) -> None:  # fmt: skip
        self._settings = settings
        self._chance = chance
        self._now_s = now_s
        self._owner = owner
        self._effects: list[Effect] = []
        self._outbox = Outbox(kept, now_s, settings.pace, settings.doubt_s, settings.max_in_flight, chance)
        self._saving = 0
        self._questions = Questions(settings.pace, chance)
        self._links = Links()
        self._streams = Streams(self._links, settings.pace, chance, self._effects.append, self._ask)
        self._numbers = 0
        self._attempts = 0
        self._redial_s = _NEVER
        self._heir_s = _NEVER
        self._leaving = False
        self._token = Token(settings.pace, chance)
        self._expiring: set[int] = set()
        self._sync_s = _NEVER
        self._synced_s = -_NEVER
        self._been_online = False
        self.finished: effects.Finished | None = None
        """Set once the client comes back no more."""

    # --- what the driver may look at -----------------------------------------------------------------------------

    @property
    def online(self) -> bool:
        main = self._links.main
        return main is not None and main.open

    @property
    def user_id(self) -> str:
        """Whose connection it is; empty before the first one."""
        return self._owner

    @property
    def unsettled(self) -> int:
        """Writes that have no final answer."""
        return len(self._outbox) + self._saving

    @property
    def waiting(self) -> bool:
        """Whether an answer is waited for."""
        return self._outbox.flying > 0 or self._questions.flying

    def position(self, channel: str) -> Position | None:
        return self._streams.position(channel)

    @property
    def deadline_s(self) -> float:
        """When `tick` should be called at the latest."""
        if self.finished is not None:
            return _NEVER
        times = [self._token.retry_s, self._streams.retry_s(), self._questions.by_s()]
        times += [link.deadline_s for link in self._links.all.values()]
        if self._token.text or not self._token.coming:
            times += [self._redial_s, self._heir_s if self.online else _NEVER]
        if self.online:
            times += [self._sync_s, self._outbox.due_s(), self._questions.due_s()]
        return min(times)

    # --- coming and going ----------------------------------------------------------------------------------------

    def start(self, now_s: float) -> list[Effect]:
        """Connect, and stay connected."""
        self._now_s = self._redial_s = now_s
        self._approach()
        return self._take()

    def close(self, now_s: float) -> list[Effect]:
        """Leave. What is not answered stays in the outbox."""
        self._now_s = now_s
        self._finish(0, "closed by the client")
        return self._take()

    def token(self, text: str, now_s: float) -> list[Effect]:
        """A fresh access token."""
        self._now_s = now_s
        if self.finished is None:
            self._token.fresh(text)
            expiring, self._expiring = self._expiring, set()
            for link in [self._links.all[number] for number in expiring if number in self._links.all]:
                self._ask(link, "refresh", "", "refresh", {"token": text})
            self._approach()
        return self._take()

    def no_token(self, now_s: float, *, for_good: bool) -> list[Effect]:
        """There is none now, or none `for_good`: then the client ends when its connection does."""
        self._now_s = now_s
        self._token.failed(now_s, for_good=for_good)
        if for_good and self.finished is None:
            self._approach()
        return self._take()

    def dialled(self, number: int, now_s: float) -> list[Effect]:
        """The connection is open; who we are is said at once, since a server does not wait long for it."""
        self._now_s = now_s
        link = self._links.all.get(number)
        if link is None:
            return [effects.HangUp(number)]
        link.state = "connecting"
        data = {"device_id": self._settings.device_id, "handover": True}
        body = {"token": self._token.text, "name": "python", "data": data}
        self._ask(link, "connect", "", "connect", body)
        return self._take()

    def lost(self, number: int, code: int, reason: str, now_s: float) -> list[Effect]:
        """The connection has ended, or did not come about: `code` is the server's, or 0 where it said none."""
        self._now_s = now_s
        link = self._links.all.get(number)
        if link is not None:
            self._gone(link, code, reason)
        return self._take()

    # --- frames and time -----------------------------------------------------------------------------------------

    def received(self, number: int, frame: bytes, now_s: float) -> list[Effect]:
        """A frame from the server."""
        self._now_s = now_s
        link = self._links.all.get(number)
        if link is None:
            return []
        link.heard(now_s)
        try:
            lines = decode_frame(frame)
        except Garbled:
            self._drop(link, "not the protocol")
            return self._take()
        for line in lines:
            if self._links.all.get(number) is not link:
                break
            self._line(link, line)
        return self._take()

    def tick(self, now_s: float) -> list[Effect]:
        """Time has passed."""
        self._now_s = now_s
        if self.finished is not None:
            return []
        for link in list(self._links.all.values()):
            if link.number in self._links.all:
                self._tick_link(link)
        if self._token.tick(now_s):
            self._effects.append(effects.RenewToken())
        self._approach()
        self._streams.tick(now_s)
        self._effects += [effects.Unanswered(key) for key in self._questions.late(now_s)]
        if self._sync_s <= now_s and self.online and _SYNC not in self._questions:
            self._sync_s, self._synced_s = _NEVER, now_s
            self._questions.add(_SYNC, "rpc", rpc("sync", b"{}"), _NEVER)
        return self._take()

    # --- writing and asking --------------------------------------------------------------------------------------

    def write(self, write: Write) -> list[Effect]:
        """Something to be done once. Nothing is sent before it is `stored`.

        Raises:
            Refusal: `busy` when the outbox is full, `unavailable` when the client has ended.
        """
        if self.finished is not None:
            raise Refusal(Code.UNAVAILABLE, f"the client has ended: {self.finished.reason}")
        if self.unsettled >= self._settings.max_writes and write.id not in self._outbox:
            raise Refusal(Code.BUSY, f"{self.unsettled} writes wait already")
        self._saving += 1
        return [effects.Save(write)]

    def stored(self, write: Write, now_s: float) -> list[Effect]:
        """The write will survive a crash: now it may go."""
        self._now_s = now_s
        self._saving -= 1
        self._outbox.add(write)
        return self._take()

    def not_stored(self) -> None:
        """The write could not be kept: it is none."""
        self._saving -= 1

    def discarded(self, refusal: effects.Discard, now_s: float) -> list[Effect]:
        """The refused write will not come back: now its refusal counts."""
        self._now_s = now_s
        if self._outbox.forgotten(refusal.write):
            self._effects.append(effects.Rejected(*refusal))
        return self._take()

    def ask(self, key: str, name: str, body: object, by_s: float, now_s: float) -> list[Effect]:
        """A question that changes nothing: command `name` with `body`, asked again over reconnects until `by_s`."""
        self._now_s = now_s
        self._questions.add(key, name, body, by_s)
        return self._take()

    def give_up(self, key: str) -> None:
        """Nobody waits for the answer any more."""
        self._questions.drop(key)

    def send(self, data: object) -> list[Effect]:
        """Say something that has no answer; nothing is returned, and nothing said, when there is no connection."""
        main = self._links.main
        return [effects.Transmit(main.number, send(data))] if main is not None and main.open else []

    # --- following -----------------------------------------------------------------------------------------------

    def follow(self, channel: str, position: Position | None, now_s: float) -> list[Effect]:
        """Hear everything after `position`, or everything from now on."""
        self._now_s = now_s
        self._streams.follow(channel, position)
        return self._take()

    def unfollow(self, channel: str, now_s: float) -> list[Effect]:
        self._now_s = now_s
        self._streams.unfollow(channel)
        return self._moved()

    def park(self, channel: str, now_s: float) -> list[Effect]:
        """Let go of a stream whose consumer does not keep up; what comes meanwhile is had again by `unpark`."""
        self._now_s = now_s
        self._streams.park(channel)
        return self._moved()

    def unpark(self, channel: str, now_s: float) -> list[Effect]:
        self._now_s = now_s
        self._streams.unpark(channel)
        return self._take()

    def reloaded(self, channel: str, position: Position, now_s: float) -> list[Effect]:
        """After `Reload`: the stream is known up to `position`."""
        self._now_s = now_s
        self._streams.reloaded(channel, position, now_s)
        return self._take()

    # --- connections ---------------------------------------------------------------------------------------------

    def _take(self) -> list[Effect]:
        """What has come up, and whatever may be sent now."""
        main = self._links.main
        if main is not None and main.open:
            for write in self._outbox.take(self._now_s):
                self._ask(main, "write", write.id, "rpc", rpc(write.method, write.data), write)
            for due in self._questions.take(self._now_s):
                self._ask(main, "question", due.key, due.name, due.body)
        taken = list(self._effects)
        self._effects.clear()
        return taken

    def _ask(self, link: Link, kind: Kind, key: str, name: str, body: object, write: Write | None = None) -> None:
        asked = Asked(kind, key, self._now_s + self._settings.answer_s, write)
        self._effects.append(effects.Transmit(link.number, link.ask(asked, name, body)))

    def _renew(self) -> None:
        if self._token.fetch():
            self._effects.append(effects.RenewToken())

    def _approach(self) -> None:
        """Dial what is missing and due; without a token there is nothing to dial for."""
        links = self._links
        first = links.main is None and self._redial_s <= self._now_s
        second = self.online and links.heir is None and self._heir_s <= self._now_s
        if self.finished is not None or not (first or second):
            return None
        if not self._token.text:
            return self._without_token()
        self._numbers += 1
        link = links.all[self._numbers] = Link(self._numbers)
        self._effects.append(effects.Dial(link.number))
        if first:
            links.main, self._redial_s = link, _NEVER
        else:
            links.heir, self._heir_s = link, _NEVER
        return None

    def _without_token(self) -> None:
        self._renew()
        if self._token.no_more:
            self._heir_s = _NEVER
            if self._links.main is None:
                self._finish(0, "there is no valid access token")

    def _tick_link(self, link: Link) -> None:
        if link.heard_by_s <= self._now_s:
            return self._drop(link, "silence")
        if link.refresh_s <= self._now_s:
            link.refresh_s = _NEVER
            self._expiring.add(link.number)
            self._renew()
        late = link.late(self._now_s)
        for asked in late:
            self._unanswered(asked)
        dead = next((asked.kind for asked in late if asked.kind not in ("write", "question")), None)
        if dead is not None:
            return self._drop(link, f"{dead} was not answered")
        return self._retire(link)

    def _drop(self, link: Link, reason: str) -> None:
        """End a connection from our side, and come back."""
        self._effects.append(effects.HangUp(link.number))
        self._gone(link, 0, reason)

    def _gone(self, link: Link, code: int, reason: str) -> None:
        del self._links.all[link.number]
        for asked in link.pending.values():
            self._unanswered(asked, at_once=True)
        if not codes.Disconnect(code, reason).reconnect:
            return self._finish(code, reason)
        if code == codes.EXPIRED.code:
            self._token.text = ""
        if link is self._links.heir:
            self._links.heir = None
            self._attempts += 1
            self._heir_s = self._now_s + self._pause_s(code)
        elif link is self._links.main:
            self._main_gone(link, code, reason)
        return None

    def _main_gone(self, link: Link, code: int, reason: str) -> None:
        """A second connection that was under way takes its place, however far it has come."""
        links = self._links
        links.main, links.heir = links.heir, None
        self._heir_s, self._leaving = _NEVER, False
        if links.main is None:
            steady = link.open and self._now_s - link.opened_s >= self._settings.steady_s
            self._attempts = 0 if steady else self._attempts + 1
            self._redial_s = self._now_s + self._pause_s(code)
        elif links.main.open:
            self._streams.attach(links.main)
        if link.open and not self.online:
            self._effects.append(effects.Offline(code, reason))

    def _pause_s(self, code: int) -> float:
        if code == codes.DRAINING.code:
            return self._chance() * self._settings.drain_jitter_s
        return self._settings.pace.delay_s(self._attempts, self._chance())

    def _finish(self, code: int, reason: str) -> None:
        if self.finished is not None:
            return
        self.finished = effects.Finished(code, reason)
        self._effects += [effects.HangUp(number) for number in self._links.all]
        self._links.all.clear()
        self._links.main = self._links.heir = None
        self._effects.append(self.finished)

    def _unanswered(self, asked: Asked, *, at_once: bool = False) -> None:
        """No answer has come. What goes over another connection is not held back: dialling has been already."""
        if asked.write is not None:
            self._outbox.unanswered(asked.key, self._now_s, at_once=at_once)
        elif asked.kind == "question":
            self._questions.again(asked.key, self._now_s, at_once=at_once)

    # --- make before break ---------------------------------------------------------------------------------------

    def _leave(self, link: Link, within_s: float) -> None:
        """The gateway behind this connection goes away: have another one before it does."""
        if link is self._links.main and not self._leaving:
            self._leaving = True
            self._heir_s = self._now_s + self._chance() * within_s / 2
        elif link is self._links.heir:
            self._effects.append(effects.HangUp(link.number))
            self._gone(link, codes.DRAINING.code, "landed where everybody leaves")

    def _moved(self) -> list[Effect]:
        self._move()
        return self._take()

    def _move(self) -> None:
        """Once everything stands on the second connection, it is the one; the first is left when it owes us nothing."""
        links, old = self._links, self._links.main
        if links.heir is not None and old is not None and links.heir.open and self._streams.all_on(links.heir):
            links.main, links.heir, self._leaving = links.heir, None, False
            self._retire(old)

    def _retire(self, link: Link) -> None:
        links = self._links
        if link is not links.main and link is not links.heir and not link.pending and link.number in links.all:
            del links.all[link.number]
            self._effects.append(effects.HangUp(link.number))

    # --- lines ---------------------------------------------------------------------------------------------------

    def _line(self, link: Link, line: Frame) -> None:
        if line.push is not None:
            return self._pushed(link, line.push)
        if line.is_ping:
            self._effects.append(effects.Transmit(link.number, PONG))
            return None
        asked = link.pending.pop(line.id, None)
        if asked is None:
            return None  # an answer that came too late, or twice
        match asked.kind:
            case "connect":
                self._connect_answered(link, line)
            case "refresh":
                self._refresh_answered(link, line)
            case "subscribe":
                if not self._streams.answered(link, asked.key, line, self._now_s):
                    return self._drop(link, "not the protocol")
                self._move()
            case "write":
                self._write_answered(link, asked, line)
            case "question":
                self._question_answered(asked.key, line)
            case "unsubscribe":
                pass
        return self._retire(link)

    def _pushed(self, link: Link, push: Push) -> None:
        if push.channel.startswith("user:"):
            if push.pub is not None:
                self._hinted(link, bytes(push.pub.data))
        elif push.unsubscribe is not None:
            self._streams.unsubscribed(link, push.channel, push.unsubscribe, self._now_s)
        elif push.pub is not None:
            self._streams.published(link, push.channel, push.pub, self._now_s)

    def _connect_answered(self, link: Link, line: Frame) -> None:
        if line.connect is not None:
            return self._connected(link, line.connect)
        error = line.error
        if error is not None and not error.temporary and error.code != codes.TOKEN_EXPIRED.code:
            return self._finish(error.code, error.message)
        if error is not None and error.code == codes.TOKEN_EXPIRED.code:
            self._token.text = ""
        return self._drop(link, "the connection was refused")

    def _connected(self, link: Link, result: Connected) -> None:
        user_id = next((name[5:] for name in result.subs if name.startswith("user:")), "")
        if self._owner and user_id != self._owner:
            return self._finish(0, f"the outbox belongs to {self._owner}, and the token to {user_id}")
        link.opened(result, self._now_s, self._settings.silence_s)
        if not self._owner and user_id:
            self._owner = user_id
            self._effects.append(effects.Owner(user_id))
        if link is self._links.main:
            self._effects.append(effects.Online())
            self._sync_within(self._settings.restored_jitter_s if self._been_online else 0.0)
            self._been_online = True
        self._streams.attach(link)
        return self._move()

    def _refresh_answered(self, link: Link, line: Frame) -> None:
        if line.refresh is not None:
            link.renewed(line.refresh.ttl if line.refresh.expires else 0, self._now_s)
        elif line.error is not None and line.error.temporary:
            link.refresh_s = self._now_s + self._settings.pace.delay_s(3, self._chance())
        else:
            self._token.text = ""
            self._drop(link, "the token was not renewed")

    def _write_answered(self, link: Link, asked: Asked, line: Frame) -> None:
        write = asked.write
        assert write is not None
        attempts = self._outbox.attempts(write.id)
        if line.error is None and line.rpc is None:
            self._outbox.unanswered(write.id, self._now_s)
            return self._drop(link, "not the protocol")
        if line.rpc is not None:
            if self._outbox.done(write):
                self._effects += [effects.Done(write, bytes(line.rpc.data), attempts), effects.Forget(write)]
            return None
        assert line.error is not None
        if line.error.retryable:
            self._outbox.unanswered(write.id, self._now_s, line.error.retry_after_s)
        elif self._outbox.refused(write, self._now_s):
            self._effects.append(effects.Discard(write, line.error.refused(), attempts))
        return None

    def _question_answered(self, key: str, line: Frame) -> None:
        error = line.error
        if error is not None and error.retryable:
            self._questions.again(key, self._now_s, error.retry_after_s)
        elif self._questions.drop(key) and key != _SYNC:
            self._effects.append(effects.Answered(key, line.result() if error is None else error.refused()))
        elif key == _SYNC and error is None:
            self._effects.append(effects.Synced(line.result()))

    # --- hints ---------------------------------------------------------------------------------------------------

    def _hinted(self, link: Link, data: bytes) -> None:
        hint = decode_hint(data)
        self._effects.append(effects.Hinted(data))
        if hint.type == "service.draining":
            self._leave(link, hint.within_s)
        elif hint.type == "service.restored":
            self._sync_within(self._settings.restored_jitter_s)
        elif hint.stream and hint.stream not in self._streams:
            self._sync_within(self._settings.sync_pause_s)

    def _sync_within(self, spread_s: float) -> None:
        """Once, at a random moment of that time: everybody else has heard the same."""
        if self._settings.sync:
            due_s = max(self._now_s + self._chance() * spread_s, self._synced_s + self._settings.sync_pause_s)
            self._sync_s = min(self._sync_s, due_s)
