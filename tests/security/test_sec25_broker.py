"""SEC-25: on the broker each role may do what the table of `deploy.rights` says, and nobody else may do anything.

The servers are those that `renoveasy up` starts, with the configurations that it writes.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

from deploy import runtime
from deploy.local import Server, nats_server, redis_server
from deploy.rights import IN_REDIS, ON_THE_BROKER, nats_accounts, redis_users
from deploy.settings import ROLES, Settings, from_environment
from domain.channels import command_subject, event_subject, user_subject
from domain.ports import BrokerUnavailable, Received, RequestTimeout
from storage.broker import NatsBroker
from storage.cache import RedisServer, RedisTickets
from tests.security.tally import Tally
from tests.support.servers import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = (
    ">", "*", "*.*", "*.>", "cmd.>", "ev.>", "ev.*.*", "host.>", "gw.>", "ctl.>", "placement.>", "placement.*", "_INBOX.>",
    "_INBOX.*", "_INBOX.*.>", "_INBOX.x.1", "$SYS.>", "$SYS.ACCOUNT.>", "$SYS.REQ.SERVER.PING", "$JS.API.>", "$JS.API.INFO",
    "$JS.API.STREAM.CREATE.x", "$KV.>", "$MQTT.>", "other.ev.order.x",
)  # fmt: skip
"""What nobody may hear or say, beside the subjects of the other roles."""


def concrete(subject: str) -> str:
    return subject.replace("*", "x").replace(">", "x.1")


KNOWN = sorted({concrete(subject) for rights in ON_THE_BROKER.values() for both in rights for subject in both})


def within(subject: str, allowed: str) -> bool:
    """Whether the server permits it: it takes a last `>` for one token, so that `cmd.*` permits `cmd.>` as well."""
    tokens, limits = subject.split("."), allowed.split(".")
    for n, limit in enumerate(limits):
        if limit == ">":
            return len(tokens) > n
        if n >= len(tokens) or limit not in ("*", tokens[n]):
            return False
    return len(tokens) == len(limits)


CASES = [
    (role, verb, subject, any(within(subject, allowed) for allowed in getattr(rights, verb)))
    for role, rights in ON_THE_BROKER.items()
    for verb in ("publish", "subscribe")
    for subject in (*KNOWN, *GREEDY)
    if verb == "subscribe" or not {"*", ">"} & set(subject)
]


class Client:
    """NATS's protocol by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connected(cls, port: int, **credentials: str) -> "Client":
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        assert (await client._reader.readline()).startswith(b"INFO ")
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True} | credentials
        client._writer.write(f"CONNECT {json.dumps(options)}\r\n".encode())
        return client

    async def try_to(self, verb: str, subject: str, reply: str = "") -> str:
        """What the server objects; empty: nothing."""
        line = f"PUB {subject} {reply} 0\r\n" if verb == "publish" else f"SUB {subject} 1"
        self._writer.write(f"{line}\r\nPING\r\n".encode())
        objection = ""
        with contextlib.suppress(ConnectionError):
            while (answer := (await asyncio.wait_for(self._reader.readline(), 10)).decode().strip()) != "PONG":
                if not answer:
                    break
                if answer.startswith("-ERR"):
                    objection = answer
        return objection

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


def settings_in(folder: Path, **more: str) -> Settings:
    environment = {
        "RENOVEASY_DATA_DIR": str(folder),
        "RENOVEASY_PORT_NATS": str(free_port()),
        "RENOVEASY_PORT_REDIS": str(free_port()),
    }
    return runtime.with_addresses(from_environment(environment | more))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_in(tmp_path_factory.mktemp("broker"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nats(settings: Settings) -> AsyncIterator[Server]:
    server = nats_server(settings)
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis(settings: Settings) -> AsyncIterator[Server]:
    server = redis_server(settings)
    await server.start()
    yield server
    await server.stop()


def credentials(settings: Settings, role: str) -> dict[str, str]:
    parts = urlsplit(settings.url_of("nats_url", role))
    return {"user": parts.username or "", "pass": parts.password or ""}


# --- the table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", list(ON_THE_BROKER))
async def test_a_role_may_do_what_the_table_says_and_nothing_else(
    settings: Settings, nats: Server, role: str, tally: Tally
) -> None:
    client = await Client.connected(nats.port, **credentials(settings, role))
    refused = 0
    for _, verb, subject, allowed in [case for case in CASES if case[0] == role]:
        answer = await client.try_to(verb, subject)
        if allowed:
            assert answer == "", f"{role} must be able to {verb} {subject}"
            continue
        kind = "Publish" if verb == "publish" else "Subscription"
        assert answer == f"-ERR 'Permissions Violation for {kind} to \"{subject}\"'", f"{role} {verb} {subject}"
        tally.tried("SEC-25", f"{verb} as {role}", subject)
        refused += 1
    assert refused >= 25
    await client.close()


@pytest.mark.parametrize(
    ("role", "verb", "subjects"),
    [
        ("gateway", "publish", ["placement.heartbeat", "placement.table", "host.taken", "host.x.probe", "host.x.handover"]),
        ("gateway", "publish", ["ctl.revoked", "ev.user.7", "_INBOX.rest.x", "_INBOX.host.x", "_INBOX.placement.x"]),
        ("gateway", "subscribe", ["cmd.7", "cmd.*", "host.taken", "placement.table", "placement.heartbeat"]),
        ("gateway", "subscribe", ["_INBOX.rest.>", "_INBOX.host.>", "_INBOX.placement.>", "_INBOX.census.>"]),
        ("rest", "publish", ["ev.order.x", "ev.conversation.x", "gw.x", "host.taken", "placement.heartbeat"]),
        ("rest", "subscribe", ["cmd.7", "ev.user.7", "ev.order.x", "ev.conversation.x", "gw.x", "_INBOX.gateway.>"]),
        ("placement", "publish", ["cmd.7", "ev.order.x", "ctl.revoked", "host.x.handover", "_INBOX.rest.x"]),
        ("placement", "subscribe", ["cmd.7", "ev.order.x", "ctl.revoked", "gw.x", "_INBOX.host.>"]),
        ("host", "publish", ["cmd.7", "ctl.revoked", "placement.table", "gw.x"]),
        ("host", "subscribe", ["ev.order.x", "ev.user.7", "placement.heartbeat", "gw.x", "_INBOX.gateway.>"]),
        ("census", "publish", ["placement.heartbeat", "placement.table", "cmd.7", "ctl.revoked", "_INBOX.host.x"]),
        ("census", "subscribe", ["cmd.7", "ev.order.x", "placement.table", "_INBOX.host.>"]),
    ],
)  # fmt: skip
async def test_what_roles_must_not_do_is_not_in_the_table(role: str, verb: str, subjects: list[str]) -> None:
    """Said by hand: the cases above follow the table, wherever it goes."""
    for subject in subjects:
        assert not any(within(subject, allowed) for allowed in getattr(ON_THE_BROKER[role], verb)), subject


async def test_nothing_lies_deeper_than_a_permitted_subject() -> None:
    """What `cmd.>` would hear beyond `cmd.*` does not exist."""
    for rights in ON_THE_BROKER.values():
        for allowed in rights.subscribe:
            if allowed.endswith(".*"):
                deeper = [subject for subject in KNOWN if within(subject, f"{allowed[:-1]}>")]
                assert all(within(subject, allowed) for subject in deeper)


async def test_the_subjects_that_are_written_out_are_those_of_the_code() -> None:
    stream = "0190a000-0000-7000-8000-000000000001"
    host = ON_THE_BROKER["host"]
    assert any(within(command_subject(7), allowed) for allowed in host.subscribe)
    for subject in (user_subject(stream), event_subject(f"order:{stream}"), event_subject(f"conversation:{stream}")):
        assert any(within(subject, allowed) for allowed in host.publish)


async def test_the_roles_of_the_tables_are_those_of_the_settings() -> None:
    assert set(ON_THE_BROKER) == set(ROLES["nats_url"])
    assert set(IN_REDIS) == set(ROLES["redis_url"])


# --- without credentials -------------------------------------------------------------------------------------------


async def test_without_the_credentials_of_a_role_there_is_nothing(
    settings: Settings, nats: Server, tally: Tally
) -> None:
    gateway, host = credentials(settings, "gateway"), credentials(settings, "host")
    tries = {
        "none": {},
        "an empty password": {"user": "host", "pass": ""},
        "a wrong password": {"user": "host", "pass": "x" * 32},
        "the password of another role": {"user": "host", "pass": gateway["pass"]},
        "a password as a token": {"auth_token": host["pass"]},
        "an unknown user": {"user": "admin", "pass": host["pass"]},
        "the system's user": {"user": "sys", "pass": host["pass"]},
    }
    for name, given in tries.items():
        client = await Client.connected(nats.port, **given)
        assert await client.try_to("subscribe", ">") == "-ERR 'Authorization Violation'", name
        tally.tried("SEC-25", "without credentials", name)
        await client.close()


async def test_the_server_listens_on_one_port_of_this_machine(nats: Server, tally: Tally) -> None:
    (process,) = nats.processes()
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.Process(process.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", nats.port)}  # neither monitor, cluster, leaf, websocket nor mqtt
    for port in ("monitor", "cluster", "leaf", "websocket", "mqtt"):
        tally.tried("SEC-25", "another port", port)


async def test_a_process_knows_the_credentials_of_its_own_role_only(settings: Settings) -> None:
    secrets = {role: credentials(settings, role)["pass"] for role in ROLES["nats_url"]}
    secrets |= {f"{role} in Redis": urlsplit(url).password or "" for role, url in settings.redis_urls.items()}
    assert len(set(secrets.values())) == len(secrets)
    for role in ROLES["nats_url"]:
        text = repr(settings.of_role(role))
        assert {owner for owner, secret in secrets.items() if secret in text} <= {role, f"{role} in Redis"}


# --- what the platform's own broker makes of it --------------------------------------------------------------------


async def broker_of(settings: Settings, role: str) -> NatsBroker:
    return await NatsBroker(settings.url_of("nats_url", role), "", f"test-{role}", role).start()


async def test_who_may_not_listen_is_told_so(settings: Settings, nats: Server) -> None:
    broker = await broker_of(settings, "gateway")
    with pytest.raises(BrokerUnavailable, match=r"do not permit to hear cmd\.7"):
        await broker.subscribe("cmd.7", lambda received: None)
    await broker.subscribe("ctl.revoked", lambda received: None)
    assert broker.connected
    await broker.close()


async def test_a_request_is_answered_across_roles_and_no_answer_goes_astray(settings: Settings, nats: Server) -> None:
    """Who may ask a host must not have it publish elsewhere, with its permissions: into a stream, or to placement."""
    host, gateway, rest = [await broker_of(settings, role) for role in ("host", "gateway", "rest")]
    heard: list[Received] = []
    answering: list[asyncio.Future[None]] = []

    def answer(received: Received) -> None:
        heard.append(received)
        if received.reply:
            answering.append(asyncio.ensure_future(host.publish(received.reply, b"answer")))

    await host.subscribe("cmd.7", answer)
    assert await gateway.request("cmd.7", b"", 5) == b"answer"
    assert await rest.request("cmd.7", b"", 5) == b"answer"
    client = await Client.connected(nats.port, **credentials(settings, "gateway"))
    astray = ["ev.user.7", "placement.heartbeat", "host.taken", "_INSIDE.1", "_INBOXES.gateway.x"]
    for subject in astray:
        assert await client.try_to("publish", "cmd.7", subject) == ""
    await client.try_to("publish", "cmd.7")
    await gateway.request("cmd.7", b"", 5)
    assert [received.reply for received in heard[2:-1]] == [""] * (len(astray) + 1)
    await client.close()
    for broker in (host, gateway, rest):
        await broker.close()


async def test_what_is_published_without_permission_arrives_nowhere(settings: Settings, nats: Server) -> None:
    census, gateway = await broker_of(settings, "census"), await broker_of(settings, "gateway")
    heard: list[Received] = []
    await census.subscribe("placement.heartbeat", heard.append)
    await gateway.publish("placement.heartbeat", b"I am a host")
    with pytest.raises(RequestTimeout):
        await gateway.request("placement.heartbeat", b"I am a host", 0.2)
    await census.confirm()
    assert heard == []
    await census.close()
    await gateway.close()


async def test_with_a_namespace_every_subject_is_below_it(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, RENOVEASY_NAMESPACE="one")
    server = nats_server(settings)
    await server.start()
    try:
        client = await Client.connected(server.port, **credentials(settings, "host"))
        assert await client.try_to("subscribe", "one.cmd.7") == ""
        assert "Violation" in await client.try_to("subscribe", "cmd.7")
        assert "Violation" in await client.try_to("publish", "two.ev.order.x")
        await client.close()
    finally:
        await server.stop()


async def test_what_is_printed_for_an_operators_server_is_what_the_own_one_has(settings: Settings) -> None:
    own = {role: credentials(settings, role)["pass"] for role in ON_THE_BROKER}
    assert (
        nats_accounts({role: f'"{secret}"' for role, secret in own.items()})
        in (settings.data_dir / "nats" / "nats.conf").read_text()
    )


# --- Redis ---------------------------------------------------------------------------------------------------------


def asking(settings: Settings, role: str) -> Redis:
    return Redis.from_url(settings.url_of("redis_url", role))


FORBIDDEN: dict[str, Callable[[Redis], object]] = {
    "all keys": lambda redis: redis.keys("*"),
    "a scan": lambda redis: redis.scan(),
    "emptying it": lambda redis: redis.flushall(),
    "its configuration": lambda redis: redis.config_get("*"),
    "its users": lambda redis: redis.acl_list(),
    "its clients": lambda redis: redis.client_list(),
    "its scripts": lambda redis: redis.script_flush(),
    "its end": lambda redis: redis.execute_command("SHUTDOWN", "NOSAVE"),
    "a replica": lambda redis: redis.execute_command("REPLICAOF", "127.0.0.1", "1"),
    "a channel": lambda redis: redis.publish("x", "y"),
    "a foreign key": lambda redis: redis.get("somebody-elses"),
    "a foreign key in a script": lambda redis: redis.eval("return redis.call('GET', 'somebody-elses')", 0),
    "a command in a script": lambda redis: redis.eval("return redis.call('FLUSHALL')", 0),
}


@pytest.mark.parametrize("role", list(IN_REDIS))
async def test_in_redis_a_role_has_its_keys_and_its_commands(
    settings: Settings, redis: Server, role: str, tally: Tally
) -> None:
    client = asking(settings, role)
    await client.ping()
    for name, forbidden in FORBIDDEN.items():
        with pytest.raises((NoPermissionError, RedisError), match=r"(?i)permission|NOPERM|can't run|ACL"):
            await forbidden(client)  # type: ignore[misc]
        tally.tried("SEC-25", f"Redis as {role}", name)
    await client.aclose()


async def test_a_gateway_cannot_read_codes_or_outboxes(settings: Settings, redis: Server, tally: Tally) -> None:
    gateway, rest = asking(settings, "gateway"), asking(settings, "rest")
    for key in ("otp:x", "otp-sent:all", "rate:x", "outbox", "sign-in:x", "link:x", "challenge:x", "tries:x"):
        with pytest.raises(NoPermissionError):
            await gateway.get(key)
        await rest.execute_command("DEL", key)
        tally.tried("SEC-25", "Redis as gateway", key)
    await gateway.aclose()
    await rest.aclose()


async def test_without_credentials_redis_says_nothing(settings: Settings, redis: Server, tally: Tally) -> None:
    for name, url in {
        "none": f"redis://127.0.0.1:{redis.port}/0",
        "a wrong password": f"redis://rest:wrong@127.0.0.1:{redis.port}/0",
        "the former user": f"redis://:{urlsplit(settings.redis_url).password}@127.0.0.1:{redis.port}/0",
    }.items():
        client = Redis.from_url(url)
        with pytest.raises(RedisError, match=r"(?i)auth|username-password"):
            await client.get("outbox")
        tally.tried("SEC-25", "Redis without credentials", name)
        await client.aclose()


async def test_a_ticket_goes_from_rest_to_a_gateway_and_both_can_be_checked(settings: Settings, redis: Server) -> None:
    rest, gateway = (RedisServer(settings.url_of("redis_url", role), timeout_s=10) for role in ("rest", "gateway"))
    await rest.ping()
    await gateway.ping()
    await RedisTickets(rest).issue("one", 60)
    assert await RedisTickets(gateway).spend("one")
    assert not await RedisTickets(gateway).spend("one")
    await rest.close()
    await gateway.close()


async def test_users_are_below_a_namespace_too() -> None:
    lines = redis_users({"gateway": "g", "rest": "r"}, "one").splitlines()
    assert lines[0] == "user default off"
    assert all("~one:" in line and " ~otp" not in line and " ~{presence}" not in line for line in lines[1:])
