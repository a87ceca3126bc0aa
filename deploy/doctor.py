"""`renoveasy doctor`: is everything there that the platform needs? Looks, and changes nothing."""

import asyncio
import ipaddress
import resource
import shutil
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec
import psutil

from deploy import runtime
from deploy.certificates import ROADS, Road, judged, key_fields
from deploy.settings import Settings, key_of
from domain.ids import PARTITIONS
from domain.policy import DEFAULT_POLICY
from domain.ports import BrokerUnavailable
from gateway.certificates import CertificateError

if TYPE_CHECKING:
    from storage.engine import Database

MIN_FILES: Final = 4_096
MIN_DISK_BYTES: Final = 2 << 30
MIN_SHM_BYTES: Final = 64 << 20
TIMEOUT_S: Final = 5.0
RENEW_DAYS: Final = 14
SETTLE_S: Final = 2.0
"""Partitions that move just now are owned again within this."""


class Finding(NamedTuple):
    """`fail` keeps the platform from working; `warn` makes it work worse; `advice` is what to do."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""


async def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order in which the platform needs the things."""
    running = runtime.running(settings.data_dir)
    actual = running.settings if running else settings
    findings = [
        _python(),
        _open_files(),
        *_data_folder(settings),
        _shared_memory(),
        *_ports(settings, running is not None),
        _caps(settings),
        _policy(actual),
        _paused_hosts(actual),
    ]
    for check in (_tls, _database, _nats, _redis, _hosts):
        findings += await _guarded(check, settings, actual, running is not None)
    return findings


def worst(findings: list[Finding]) -> int:
    """The exit code: 1 when something fails."""
    return int(any(finding.verdict == "fail" for finding in findings))


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", "ok", version)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    what = f"{soft:,} open files (limit {hard:,})"
    if soft < MIN_FILES:
        return Finding("open files", "warn", what, f"raise it to at least {MIN_FILES:,}: ulimit -n")
    return Finding("open files", "ok", f"{what}: room for about {soft - 500:,} sessions in each gateway")


def _data_folder(settings: Settings) -> list[Finding]:
    folder = settings.data_dir
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    probe = existing / ".renoveasy-probe"
    try:
        probe.write_bytes(b"")
        probe.unlink()
        writable = Finding("data folder", "ok", str(folder))
    except OSError as error:
        writable = Finding(
            "data folder", "fail", f"{folder}: {error.strerror}", f"set {key_of('data_dir')} to another one"
        )
    free = shutil.disk_usage(existing).free
    verdict: Literal["ok", "warn"] = "ok" if free >= MIN_DISK_BYTES else "warn"
    return [
        writable,
        Finding("disk", verdict, f"{free / (1 << 30):.1f} GiB free", "" if verdict == "ok" else "free some"),
    ]


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")  # noqa: S108 - where Ray keeps its objects
    if not folder.exists():
        return Finding("shared memory", "warn", "missing", "Ray uses a slower folder instead")
    free = shutil.disk_usage(folder).free
    if free < MIN_SHM_BYTES:
        return Finding(
            "shared memory", "warn", f"{free >> 20} MiB free", "Ray uses a slower folder instead; enlarge it"
        )
    return Finding("shared memory", "ok", f"{free >> 20} MiB free")


def _ports(settings: Settings, running: bool) -> list[Finding]:
    findings = []
    for field in ("http_port", "ws_port", "dashboard_port"):
        port = int(getattr(settings, field))
        free = runtime.port_is_free(port, settings.bind if field != "dashboard_port" else "127.0.0.1")
        if running:
            findings.append(
                Finding(f"port {port}", "warn" if free else "ok", "nobody listens" if free else "the platform's")
            )
        elif free:
            findings.append(Finding(f"port {port}", "ok", "free"))
        else:
            findings.append(Finding(f"port {port}", "fail", "in use", f"stop who has it, or set {key_of(field)}"))
    return findings


def _caps(settings: Settings) -> Finding:
    """Whether what hosts may keep live fits into the machine, beside everything else."""
    wanted, there = settings.hosts * settings.host_activations_bytes, psutil.virtual_memory().total
    what = f"up to {wanted >> 20:,} MiB of activations in {settings.hosts} hosts, {there >> 20:,} MiB of memory"
    if wanted > there / 2:
        return Finding("memory", "warn", what, f"lower {key_of('host_activations_bytes')} or {key_of('hosts')}")
    return Finding("memory", "ok", what)


def _policy(settings: Settings) -> Finding:
    changed = {
        name: value
        for name in DEFAULT_POLICY.__struct_fields__
        if (value := getattr(settings.policy, name)) != getattr(DEFAULT_POLICY, name)
    }
    what = ", ".join(f"{name} = {msgspec.json.encode(value).decode()}" for name, value in changed.items())
    return Finding("policy", "ok", what or "the default")


def _paused_hosts(settings: Settings) -> Finding:
    if settings.end_paused_hosts == "on":
        return Finding("hosts that hang", "ok", "are ended and started anew")
    advice = f"set {key_of('end_paused_hosts')} to on, unless a debugger stops them on purpose"
    return Finding("hosts that hang", "warn", "are taken over and left where they are", advice)


async def _tls(given: Settings, actual: Settings, running: bool) -> list[Finding]:
    findings = []
    for road, name in ROADS.items():
        keys = " and ".join(key_of(field) for field in key_fields(road))
        try:
            pair = judged(actual, road)
        except CertificateError as error:
            findings.append(Finding(f"TLS of {name}", "fail", str(error), f"put the right files there, or set {keys}"))
            continue
        if pair is None:
            near = ipaddress.ip_address(actual.bind).is_loopback
            advice = f"set {keys}, unless something in front of it speaks TLS"
            findings.append(Finding(f"TLS of {name}", "ok" if near else "warn", "off", "" if near else advice))
            continue
        left = pair.ends - datetime.now(UTC)
        what = f"for {', '.join(pair.names) or 'no name'}, until {pair.ends:%Y-%m-%d} ({left.days} days)"
        if left.days < RENEW_DAYS:
            findings.append(
                Finding(f"TLS of {name}", "warn", what, "renew it: replace the files, nothing is restarted")
            )
        elif running and await _shown(actual, road) != pair.leaf:
            log = actual.logs_dir / ("up.log" if road == "http" else "gateway-0.log")
            findings.append(Finding(f"TLS of {name}", "warn", f"{what}; another one is in use", f"look into {log}"))
        else:
            findings.append(Finding(f"TLS of {name}", "ok", what))
    return findings


async def _shown(settings: Settings, road: Road) -> bytes | None:
    """The certificate that the road's port shows now, in DER."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is compared as a whole
    address = urlsplit(settings.rest_address if road == "http" else settings.ws_address)
    _, writer = await asyncio.open_connection(address.hostname, address.port, ssl=context)
    try:
        return bytes(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    finally:
        writer.transport.abort()


Check = Callable[[Settings, Settings, bool], Awaitable[list[Finding]]]


async def _guarded(check: Check, given: Settings, actual: Settings, running: bool) -> list[Finding]:
    name = check.__name__.strip("_")
    advice = f"check {key_of(f'{name}_url')}" if name in ("database", "nats", "redis") else "look into the logs"
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await check(given, actual, running)
    except TimeoutError:
        return [Finding(name, "fail", f"no answer within {TIMEOUT_S:g} s", advice)]
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [Finding(name, "fail", reason[:200], advice)]


async def _database(given: Settings, actual: Settings, running: bool) -> list[Finding]:
    from storage.engine import Database, current_revision

    if given.embedded["database"] and not given.sqlite_path.exists():
        return [Finding("database", "ok", "SQLite, made at the first start")]
    url = given.database_url or f"sqlite+aiosqlite:///{given.sqlite_path}"
    if await current_revision(url) is None:
        return [Finding("database", "warn", "reachable, without a schema", "run: renoveasy migrate")]
    database = Database(url)
    try:
        await database.check()
        findings = [Finding("database", "ok", f"{urlsplit(url).scheme.partition('+')[0]}, schema up to date")]
        if not url.startswith("sqlite"):
            findings += await _durability(database)
        return findings
    finally:
        await database.close()


async def _durability(database: "Database") -> list[Finding]:
    name = "innodb_flush_log_at_trx_commit"
    async with database.read() as connection:
        value = str((await connection.exec_driver_sql(f"SELECT @@{name}")).scalar())
    if value == "1":
        return [Finding(name, "ok", value)]
    return [Finding(name, "fail", value, "set it to 1: acknowledged writes can be lost otherwise")]


async def _nats(given: Settings, actual: Settings, running: bool) -> list[Finding]:
    if not actual.nats_url:
        return [Finding("nats", "ok", "embedded, started with the platform")]
    line = await _first_line(actual.nats_url, 4222, b"", tls=False)
    return [
        Finding("nats", "ok", "answers")
        if line.startswith(b"INFO ")
        else Finding("nats", "fail", "is not a NATS server")
    ]


async def _redis(given: Settings, actual: Settings, running: bool) -> list[Finding]:
    if not actual.redis_url:
        return [Finding("redis", "ok", "embedded, started with the platform")]
    import redis.asyncio

    client = redis.asyncio.from_url(actual.redis_url)
    try:
        await client.ping()
    finally:
        await client.aclose()
    return [Finding("redis", "ok", "answers")]


async def _hosts(given: Settings, actual: Settings, running: bool) -> list[Finding]:
    """Whether the hosts of the running platform own everything between them."""
    from deploy.census import Census, settled

    if not running:
        return []
    try:
        async with Census(actual) as census:
            well = await census.until(settled, SETTLE_S)
            beats = census.beats()
    except BrokerUnavailable:
        return [Finding("hosts", "fail", "cannot be heard", "NATS must answer first")]
    owned = ", ".join(f"{name} owns {beat.owned}" for name, beat in beats.items()) or "none is heard"
    if well:
        return [Finding("hosts", "ok", owned)]
    return [
        Finding("hosts", "fail", f"{owned}, of {PARTITIONS} partitions", "look at `renoveasy ps` and the hosts' logs")
    ]


async def _first_line(url: str, default_port: int, hello: bytes, *, tls: bool) -> bytes:
    parts = urlsplit(url)
    context = ssl.create_default_context() if tls else None
    host, port = parts.hostname or "127.0.0.1", parts.port or default_port
    reader, writer = await asyncio.open_connection(host, port, ssl=context, family=socket.AF_UNSPEC)
    try:
        writer.write(hello)
        return await reader.readline()
    finally:
        writer.close()
