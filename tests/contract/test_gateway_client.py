"""The platform's own Python client against a gateway on a real socket."""

import asyncio
import json
import random
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from domain.errors import Code, Refusal
from gateway.client import Client, ClientEnded, NoToken, StreamLost
from gateway.client_dial import dial
from gateway.client_feed import Change, Loaded
from gateway.client_settings import ClientSettings, Pace
from gateway.client_store import Batch, MemoryOutbox, OutboxBroken, OutboxFile, SqliteOutbox
from gateway.client_wire import BEGINNING, Position
from gateway.server import GatewayServer
from storage.memory_presence import MemoryPresence
from tests.support.fake_platform import FakePlatform, SystemClock
from tests.support.gateways import gateway_over

ALICE = "0190a0a0-0000-7000-8000-00000000000a"
BOB = "0190a0a0-0000-7000-8000-00000000000b"
CONVERSATION = "0190a0a0-0000-7000-8000-0000000000c1"
ORDER = "0190a0a0-0000-7000-8000-0000000000d1"
CHAT, JOB = f"conversation:{CONVERSATION}", f"order:{ORDER}"
QUICK = ClientSettings(
    pace=Pace(first_s=0.02, longest_s=0.1), drain_jitter_s=0.1, restored_jitter_s=0.1, sync_pause_s=0.05
)


def new_id() -> str:
    return str(uuid.uuid4())


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


class House:
    """A platform with gateways in front, and the clients that a test opened."""

    def __init__(self, platform: FakePlatform) -> None:
        self.platform = platform
        self.presence = MemoryPresence(SystemClock().now_ms)
        self.servers: list[GatewayServer] = []
        self.clients: list[Client] = []
        self.port = 0

    async def open_gateway(self, **settings: Any) -> GatewayServer:
        options = {"port": self.port} | settings
        server = gateway_over(self.platform, presence_store=self.presence, **options)
        self.port = await server.start()
        self.servers.append(server)
        return server

    async def stop_gateway(self) -> None:
        await self.servers.pop(0).stop()

    async def restart(self) -> None:
        await self.stop_gateway()
        await self.open_gateway()

    async def client(self, user: str = ALICE, outbox: OutboxFile | None = None, **options: Any) -> Client:
        options = {"token": self.platform.token(user, f"sid-{user[-1]}"), "settings": QUICK} | options
        client = Client(f"ws://127.0.0.1:{self.port}/connection/websocket", outbox=outbox, **options)
        await client.__aenter__()
        self.clients.append(client)
        return client

    def texts(self, stream: str = CHAT) -> list[str]:
        return [json.loads(event).get("text") for event in self.platform.streams[stream].events]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    platform = FakePlatform()
    platform.create(CHAT, ALICE, BOB)
    platform.create(JOB, ALICE)
    house = House(platform)
    await house.open_gateway()
    yield house
    for client in house.clients:
        await client.close()
    for server in house.servers:
        await server.stop()


class Reader:
    """Takes changes as they come."""

    def __init__(self, changes: Any) -> None:
        self.seen: list[Change] = []
        self.ended: Exception | None = None
        self.task = asyncio.create_task(self._read(changes))

    async def _read(self, changes: Any) -> None:
        try:
            async for change in changes:
                self.seen.append(change)
        except (StreamLost, ClientEnded) as error:
            self.ended = error

    @property
    def offsets(self) -> list[int]:
        return [change.offset for change in self.seen]


async def test_a_message_is_answered_once_it_is_durable_and_others_hear_of_it(house: House) -> None:
    alice, bob = await house.client(), await house.client(BOB)
    theirs = await bob.conversation(CONVERSATION)
    changes = theirs.changes()
    mine = await alice.conversation(CONVERSATION)
    written = await mine.send("hello")
    assert (written.offset, written.replayed) == (1, False)
    change = await anext(changes)
    assert (change.offset, change.event["text"], change.event["by"]) == (1, "hello", ALICE)
    assert alice.waiting == []


async def test_order_commands_receipts_sync_history_and_status(house: House) -> None:
    alice = await house.client()
    result = await alice.order(ORDER).command("publish", {"note": "now"})
    assert (result.order, result.events[0]["offset"], result.replayed) == ({"id": ORDER, "state": "open"}, 1, False)
    conversation = await alice.conversation(CONVERSATION)
    message = conversation.send("x")
    await message
    for offset in (1, 2, 3):
        conversation.read(offset)
    await alice.settled()
    receipts = [command for command in house.platform.asked if getattr(command, "name", "") == "receipt.read"]
    assert receipts[-1].payload == b'{"offset":3}'  # type: ignore[union-attr]
    assert len(receipts) <= 2
    assert (await alice.sync()).orders[0].offset == 1
    assert [offset for offset, _ in await alice.history(CHAT, limit=1)] == [1]
    assert (await alice.write_status(CHAT, message.id)).known
    assert not (await alice.write_status(CHAT, new_id())).known


async def test_who_is_there_can_be_asked_of_a_stream_and_of_users(house: House) -> None:
    alice, bob = await house.client(), await house.client(BOB)
    await alice.conversation(CONVERSATION)
    await bob.conversation(CONVERSATION)
    async with asyncio.timeout(10.0):
        while {info["user"] for info in (await alice.present(CHAT)).values()} != {ALICE, BOB}:
            await asyncio.sleep(0.05)
        while not (user := (await alice.presence(BOB))[0]).online:
            await asyncio.sleep(0.05)
    assert user.user_id == BOB


async def test_a_refusal_reaches_the_caller_and_leaves_the_outbox(house: House) -> None:
    outbox = MemoryOutbox()
    alice = await house.client(outbox=outbox)
    with pytest.raises(Refusal) as caught:
        await alice.order(ORDER).command("forbidden_now")
    assert (caught.value.code, caught.value.refused.allowed_commands) == (Code.INVALID_TRANSITION, ("cancel",))
    with pytest.raises(Refusal):
        await alice.conversation(new_id()).send("to nobody")
    assert outbox.kept.writes == []


async def test_what_no_gateway_would_take_is_refused_before_it_is_kept(house: House) -> None:
    alice = await house.client()
    with pytest.raises(Refusal) as caught:
        await alice.conversation(CONVERSATION).send("x" * 70_000)
    assert caught.value.code is Code.PAYLOAD_TOO_LARGE
    nested: dict[str, Any] = {}
    for _ in range(40):
        nested = {"a": nested}
    with pytest.raises(Refusal) as caught:
        await alice.order(ORDER).command("publish", nested)
    assert caught.value.code is Code.INVALID
    assert (await alice.order(ORDER).command("publish")).events[0]["offset"] == 1


async def test_a_gateway_that_dies_again_and_again_loses_doubles_and_reorders_nothing(house: House) -> None:
    alice, bob = await house.client(), await house.client(BOB)
    reader = Reader((await bob.conversation(CONVERSATION)).changes())
    conversation = alice.conversation(CONVERSATION)
    sent = []
    for n in range(60):
        sent.append(conversation.send(f"{n}"))
        if n % 15 == 7:
            house.platform.delay_s = 0.03
            await asyncio.sleep(0.05)
            await house.restart()
        await asyncio.sleep(0.002)
    assert [(await pending).offset for pending in sent] == list(range(1, 61))
    await until(lambda: len(reader.seen) >= 60)
    assert reader.offsets == list(range(1, 61))
    assert house.texts() == [str(n) for n in range(60)]
    assert max(pending.attempts for pending in sent) > 1


async def test_an_app_that_is_killed_and_started_again_says_what_it_had_to_say_once(
    house: House, tmp_path: Path
) -> None:
    house.platform.refuse = Refusal(Code.UNAVAILABLE)
    first = await house.client(outbox=SqliteOutbox(tmp_path / "phone.db"))
    sent = [first.conversation(CONVERSATION).send(f"{n}") for n in range(5)]
    await asyncio.gather(*(pending.stored() for pending in sent))
    await first.close()
    with pytest.raises(ClientEnded):
        await sent[0]
    house.platform.refuse = None
    second = await house.client(outbox=SqliteOutbox(tmp_path / "phone.db"))
    assert [pending.id for pending in second.waiting] == [pending.id for pending in sent]
    assert [(await pending).offset for pending in second.waiting] == [1, 2, 3, 4, 5]
    await second.close()
    third = await house.client(outbox=SqliteOutbox(tmp_path / "phone.db"))
    assert third.waiting == []
    assert house.texts() == ["0", "1", "2", "3", "4"]


APP = """
import asyncio, sys
from gateway.client import Client
from gateway.client_store import SqliteOutbox

async def main(url, token, file, conversation):
    async with Client(url, token=token, outbox=SqliteOutbox(file)) as client:
        sent = [client.conversation(conversation).send(f"{n}") for n in range(20)]
        await asyncio.gather(*(pending.stored() for pending in sent))
        print("stored", flush=True)
        await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_that_is_killed_leaves_every_stored_write_to_the_next_one(house: House, tmp_path: Path) -> None:
    """It is killed while some have landed and one is on its way."""
    house.platform.delay_s = 0.05
    url, token = f"ws://127.0.0.1:{house.port}/connection/websocket", house.platform.token(ALICE, "sid-a")
    app = await asyncio.create_subprocess_exec(
        sys.executable, "-c", APP, url, token, str(tmp_path / "phone.db"), CONVERSATION, stdout=asyncio.subprocess.PIPE
    )
    assert app.stdout is not None
    assert await app.stdout.readline() == b"stored\n"
    await until(lambda: len(house.texts()) >= 3)
    app.kill()
    await app.wait()
    assert len(house.texts()) < 20
    house.platform.delay_s = 0
    alice = await house.client(outbox=SqliteOutbox(tmp_path / "phone.db"))
    await alice.settled()
    assert house.texts() == [str(n) for n in range(20)]


async def test_connections_that_are_cut_at_any_moment_lose_double_and_reorder_nothing(house: House) -> None:
    """A transport is aborted, with whatever was on its way: no closing handshake, no code."""
    wires: list[Any] = []

    async def dialled(url: str) -> Any:
        wires.append(await dial(url))
        return wires[-1]

    alice, bob = await house.client(dial=dialled), await house.client(BOB, dial=dialled)
    reader = Reader((await bob.conversation(CONVERSATION)).changes())
    chance = random.Random(7)
    sent = []
    for n in range(150):
        sent.append(alice.conversation(CONVERSATION).send(f"{n}"))
        if chance.random() < 0.15:
            house.platform.delay_s = chance.choice((0.0, 0.002, 0.02))
            wires[chance.randrange(len(wires))]._socket.transport.abort()
            wires[-1]._socket.transport.abort()
        await asyncio.sleep(0.01 * chance.random())
    house.platform.delay_s = 0.0
    assert [(await pending).offset for pending in sent] == list(range(1, 151))
    await until(lambda: len(reader.seen) >= 150)
    assert reader.offsets == list(range(1, 151))
    assert house.texts() == [str(n) for n in range(150)]
    assert len(wires) > 10


async def test_the_same_id_again_after_a_restart_has_no_second_effect(house: House) -> None:
    outbox, message_id = MemoryOutbox(), new_id()
    for _ in range(2):
        client = await house.client(outbox=outbox)
        assert (await client.conversation(CONVERSATION).send("once", id=message_id)).offset == 1
        await client.close()
    assert house.texts() == ["once"]


async def test_an_outbox_is_sent_by_nobody_but_its_owner(house: House) -> None:
    outbox = MemoryOutbox()
    alice = await house.client(outbox=outbox)
    await alice.online()
    house.platform.refuse = Refusal(Code.UNAVAILABLE)
    await alice.conversation(CONVERSATION).send("mine").stored()
    await alice.close()
    house.platform.refuse = None
    bob = await house.client(BOB, outbox=outbox)
    with pytest.raises(ClientEnded, match="belongs to"):
        await bob.settled()
    assert house.texts() == []
    assert len(outbox.kept.writes) == 1


async def test_a_restarted_app_goes_on_from_its_view_without_hole_or_double(house: House, tmp_path: Path) -> None:
    file = tmp_path / "phone.db"
    ids = [new_id() for _ in range(4)]

    def posted(n: int) -> dict[str, Any]:
        return {"type": "message.posted", "message_id": ids[n], "by": BOB, "at": "t", "text": f"{n}"}

    await house.platform.post(CHAT, posted(0), posted(1))
    first = await house.client(outbox=SqliteOutbox(file))
    conversation = await first.conversation(CONVERSATION)
    assert [message.text for message in conversation.view.messages.values()] == ["0", "1"]
    await first.close()
    await house.platform.post(CHAT, posted(2), {"type": "of a later release"}, posted(3))
    house.platform.reads = 0
    second = await house.client(outbox=SqliteOutbox(file))
    conversation = second.conversation(CONVERSATION)
    changes = conversation.changes()
    assert (conversation.position, len(conversation.view.messages)) == (Position("e1", 2), 2)
    await conversation
    assert [(await anext(changes)).offset for _ in range(3)] == [3, 4, 5]
    assert [message.text for message in conversation.view.messages.values()] == ["0", "1", "2", "3"]


async def test_without_a_view_a_restart_goes_on_behind_what_the_app_has_done_with(house: House) -> None:
    outbox = MemoryOutbox()
    await house.platform.post(CHAT, *({"n": n} for n in range(5)))
    first = await house.client(outbox=outbox, folds={})
    conversation = first.conversation(CONVERSATION, after=BEGINNING)
    changes = conversation.changes()
    assert [(await anext(changes)).offset for _ in range(3)] == [1, 2, 3]
    await first.close()
    second = await house.client(outbox=outbox, folds={})
    conversation = second.conversation(CONVERSATION)
    changes = conversation.changes()
    assert [(await anext(changes)).offset for _ in range(3)] == [3, 4, 5]


async def test_a_position_that_leads_nowhere_is_loaded_anew(house: House) -> None:
    await house.platform.post(CHAT, {"n": 1}, {"n": 2})
    asked = []

    async def load(channel: str) -> Loaded:
        asked.append(channel)
        if len(asked) == 1:
            raise OSError("not now")
        return Loaded(Position("e1", 1))

    alice = await house.client(folds={}, reload=load)
    changes = alice.conversation(CONVERSATION, after=Position("another life", 7)).changes()
    first, second = await anext(changes), await anext(changes)
    assert (first.reloaded, first.offset, second.offset, asked) == (True, 1, 2, [CHAT, CHAT])
    bob = await house.client(BOB, folds={})
    changes = bob.conversation(CONVERSATION, after=Position("e1", 99)).changes()
    assert [(await anext(changes)).offset for _ in range(3)] == [0, 1, 2]


async def test_ten_thousand_events_go_through_a_slow_consumer_that_writes_and_nothing_piles_up(house: House) -> None:
    for start in range(0, 10_000, 1_000):
        bodies = ({"type": "message.posted", "text": f"{n:0100d}"} for n in range(start, start + 1_000))
        await house.platform.post(CHAT, *bodies)
    alice = await house.client(folds={})
    changes = alice.conversation(CONVERSATION, after=BEGINNING).changes()
    offsets, most = [], 0
    async for change in changes:
        offsets.append(change.offset)
        most = max(most, len(changes._queue))
        if len(offsets) in (300, 5_000):
            await alice.order(ORDER).command("publish")
            await asyncio.sleep(1.2)
        if len(offsets) == 10_000:
            break
    assert offsets == list(range(1, 10_001))
    assert most < 5_000


async def test_who_is_no_member_is_told_so_and_who_leaves_hears_nothing_more(house: House) -> None:
    bob = await house.client(BOB)
    with pytest.raises(StreamLost):
        await bob.order(ORDER)
    reader = Reader((await bob.conversation(CONVERSATION)).changes())
    await house.platform.leave(CHAT, BOB)
    await until(lambda: reader.ended)
    assert reader.offsets == [1]
    assert isinstance(reader.ended, StreamLost)


async def test_tokens_are_renewed_before_they_expire_and_when_they_have(house: House) -> None:
    lives = [-5.0, 1.2, 1.2, 1.2, 900.0]

    async def token() -> str:
        return house.platform.token(ALICE, "sid-a", lives.pop(0))

    alice = await house.client(token=token)
    reader = Reader((await alice.conversation(CONVERSATION)).changes())
    await until(lambda: not lives)
    await house.platform.post(CHAT, {"n": 1})
    await until(lambda: reader.offsets == [1])


async def test_a_client_ends_when_there_are_no_more_tokens_or_its_session_is_revoked(house: House) -> None:
    async def no_token() -> str:
        raise NoToken

    out = await house.client(token=no_token)
    with pytest.raises(ClientEnded, match="no valid access token"):
        await out.online()
    late = await house.client(token=house.platform.token(ALICE, "sid-x", -5))
    with pytest.raises(ClientEnded, match="no valid access token"):
        await late.online()
    alice = await house.client()
    await alice.conversation(CONVERSATION)
    await house.platform.revoke("sid-a")
    with pytest.raises(ClientEnded) as caught:
        await alice.settled()
        await alice._until(lambda: False)
    assert caught.value.code == 4500
    with pytest.raises(ClientEnded):
        alice.conversation(CONVERSATION).send("too late")


async def test_hints_are_passed_on_and_lead_to_one_sync(house: House) -> None:
    hints: list[str] = []
    alice = await house.client(hinted=lambda hint: hints.append(hint["type"]))
    await until(lambda: alice.heads is not None)
    alice.heads = None
    for _ in range(20):
        await house.platform.hint(ALICE, {"type": "order.activity", "order_id": ORDER, "offset": 1})
    await until(lambda: alice.heads is not None)
    assert len(hints) == 20


async def test_typing_and_fixes_are_said_while_there_is_a_connection(house: House) -> None:
    alice = await house.client()
    assert not alice.conversation(CONVERSATION).typing()
    await alice.online()
    assert alice.conversation(CONVERSATION).typing()
    assert alice.order(ORDER).fix({"at": "t", "lat": 1.0, "lon": 2.0, "accuracy_m": 5.0})
    await until(lambda: [signal.name for signal in house.platform.signals] == ["typing", "fix"])


async def test_a_gateway_is_replaced_without_a_gap_an_event_shown_twice_or_a_write_asked_twice(house: House) -> None:
    """Make before break: the second connection has every subscription before the first one is left."""
    dials: list[int] = []

    def dialled(url: str) -> Any:
        dials.append(len(alice._lines))
        return dial(url)

    alice = await house.client(dial=dialled)
    conversation = await alice.conversation(CONVERSATION)
    reader = Reader(conversation.changes())
    await house.open_gateway()
    draining: asyncio.Task[None] | None = None
    sent = []
    for n in range(100):
        sent.append(conversation.send(f"{n}"))
        if n == 20:
            draining = asyncio.create_task(house.servers[0].drain())
        await asyncio.sleep(0.01)
    assert [(await pending).replayed for pending in sent] == [False] * 100
    assert [pending.attempts for pending in sent] == [1] * 100
    await until(lambda: len(reader.seen) == 100)
    assert reader.offsets == list(range(1, 101))
    assert draining is not None
    await asyncio.wait_for(draining, 5.0)
    assert dials == [1, 2], "the second was dialled beside the first"
    assert len(alice._lines) == 1


class FullDisk(MemoryOutbox):
    """Takes nothing while `full`."""

    full = True

    async def commit(self, batch: Batch) -> None:
        if self.full:
            raise OutboxBroken("no space left on device")
        await super().commit(batch)


async def test_what_cannot_be_kept_is_not_sent_and_the_caller_knows(house: House) -> None:
    outbox = FullDisk()
    alice = await house.client(outbox=outbox)
    await alice.online()
    with pytest.raises(OutboxBroken, match="no space"):
        await alice.conversation(CONVERSATION).send("kept nowhere")
    outbox.full = False
    assert (await alice.conversation(CONVERSATION).send("kept")).offset == 1
    assert house.texts() == ["kept"]


async def test_a_second_write_with_an_id_that_waits_is_the_same_write_or_none(house: House) -> None:
    house.platform.delay_s = 0.1
    alice = await house.client()
    conversation, message_id = alice.conversation(CONVERSATION), new_id()
    first = conversation.send("once", id=message_id)
    assert conversation.send("once", id=message_id) is first
    with pytest.raises(Refusal) as caught:
        conversation.send("twice", id=message_id)
    assert caught.value.code is Code.IDEMPOTENCY_MISMATCH
    assert (await first).offset == 1
