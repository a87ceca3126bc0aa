"""Settings: the only place that reads the environment.

Every key begins with `RENOVEASY_`. A value that is not allowed stops the program with a sentence that names the key, the
value and what is allowed. Ports that are 0 are chosen at start by `deploy.runtime`, which returns settings without zeros.
"""

import difflib
import hashlib
import ipaddress
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from domain.policy import DEFAULT_POLICY, Policy, policy_from

PREFIX: Final = "RENOVEASY_"
REPLICA_PORTS: Final = 24
"""How many ports Serve's replicas may use at once on one machine; twice as many during a rolling update is not needed."""


class SettingsError(Exception):
    """A setting has a value that is not allowed; the text is meant for whoever set it."""


class Ports(msgspec.Struct, frozen=True):
    """Ports inside the machine, all on 127.0.0.1; 0 means: a free one, chosen at start and kept in the data folder.

    `replicas` is the first of `REPLICA_PORTS` for HTTP and as many again for gRPC. Each port `x` is set by
    `RENOVEASY_PORT_X`.
    """

    gcs: int = 0
    node_manager: int = 0
    object_manager: int = 0
    dashboard_metrics: int = 0
    dashboard_agent: int = 0
    dashboard_agent_grpc: int = 0
    runtime_env_agent: int = 0
    fallback_proxy: int = 0
    haproxy_metrics: int = 0
    haproxy_stats: int = 0
    nats: int = 0
    redis: int = 0
    replicas: int = 0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set. Built by `from_environment`; every field is checked there."""

    env: Literal["dev", "prod"]
    """`dev` lifts rate limits and shows what the sandbox senders would have sent. Default: `dev` on a loopback address."""
    data_dir: Path
    """Absolute. Holds the embedded database, keys, logs and the runtime file."""
    bind: str
    """The address that REST and WebSocket listen on; everything else stays on 127.0.0.1."""
    http_port: int
    ws_port: int
    dashboard_port: int
    metrics_port: int
    """Ray's Prometheus endpoint; 0: chosen at start."""
    database_url: str
    """Empty: SQLite in the data folder."""
    nats_url: str
    """Empty: a NATS server of the platform's own."""
    redis_url: str
    """Empty: a Valkey server of the platform's own."""
    hosts: int
    """Ray actors that hold activations."""
    gateways: int
    """Ray actors that hold WebSocket sessions, all on one port."""
    rest_replicas: int
    rate_limits: Literal["auto", "on", "off"]
    """`auto`: on in `prod`, lifted in `dev`."""
    origins: tuple[str, ...]
    """Web pages (`https://app.example.com`) whose scripts may use REST and WebSocket; empty: none. Apps send no origin."""
    host_activations: int = 20_000
    """Live activations in one host before the least recently used are dropped."""
    host_activations_bytes: int = 512 << 20
    """The same by about how much memory they take, in one host."""
    end_paused_hosts: Literal["on", "off"] = "on"
    """`on`: the process of a host that was given up because it hangs or is stopped is killed, and Ray starts it anew."""
    policy: Policy = DEFAULT_POLICY
    """The numbers of the marketplace. Set by a JSON object of those that differ from the default."""
    log_level: Literal["debug", "info", "warning", "error"]
    namespace: str
    """Put before every NATS subject and Redis key, so that platforms can share servers; empty: nothing."""
    ray_cpus: int
    """Logical CPUs that Ray may hand out; 0: as many as the machine has."""
    object_store_bytes: int
    """Ray's shared memory. Data does not travel by it, so it is small."""
    ports: Ports = Ports()

    @property
    def rate_limits_on(self) -> bool:
        return self.rate_limits == "on" or (self.rate_limits == "auto" and self.env == "prod")

    @property
    def embedded(self) -> dict[str, bool]:
        """Which servers the platform starts itself."""
        return {"database": not self.database_url, "nats": not self.nats_url, "redis": not self.redis_url}

    @property
    def logs_dir(self) -> Path:
        return self.data_dir / "logs"

    @property
    def sqlite_path(self) -> Path:
        return self.data_dir / "renoveasy.db"

    @property
    def run_dir(self) -> Path:
        """Where the sockets live: short, because a Unix socket's path has at most 107 bytes, and one per data folder."""
        return run_root() / hashlib.sha256(str(self.data_dir).encode()).hexdigest()[:8]


def run_root() -> Path:
    """The parent of all run folders of this user: under TMPDIR, or under /tmp where that is too long for sockets."""
    name = f"renoveasy-{os.getuid()}"
    temporary = Path(tempfile.gettempdir())
    return (temporary if len(str(temporary / name)) <= _RUN_ROOT_LIMIT else Path("/tmp")) / name  # noqa: S108


# HAProxy binds `<run_dir>/h/<56 digits>/s.<pid>.tmp` first, Ray `<run_dir>/r/session_<36 characters>/sockets/<name>`.
_RUN_ROOT_LIMIT = 24


# --- reading -----------------------------------------------------------------------------------------------------


def from_environment(environment: Mapping[str, str] | None = None, folder: Path | None = None) -> Settings:
    """The settings of an environment (`os.environ`); a relative data folder is taken from `folder` (the current one).

    Raises:
        SettingsError: a value is not allowed.
    """
    given = os.environ if environment is None else environment
    values: dict[str, Any] = {field: _read(given, field, *spec) for field, spec in _FIELDS.items()}
    values["data_dir"] = ((folder or Path.cwd()) / values["data_dir"]).resolve()
    values["env"] = values["env"] or ("dev" if ipaddress.ip_address(values["bind"]).is_loopback else "prod")
    ports = Ports(**{field: _read(given, f"port_{field}", "0", _port_or_zero) for field in Ports.__struct_fields__})
    return Settings(**values, ports=ports)


def key_of(field: str) -> str:
    """The environment's key of a field, such as `http_port`."""
    return PREFIX + field.upper()


def unknown_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Keys with our prefix that mean nothing, each with the one that was probably meant (or an empty text)."""
    known = [key_of(field) for field in (*_FIELDS, *(f"port_{name}" for name in Ports.__struct_fields__))]
    strange = [key for key in environment if key.startswith(PREFIX) and key not in known]
    return {key: "".join(difflib.get_close_matches(key, known, 1)) for key in sorted(strange)}


def _read(environment: Mapping[str, str], field: str, default: str, parse: Callable[[str], Any]) -> Any:
    text = environment.get(key_of(field), "").strip() or default
    try:
        return parse(text)
    except _NotAllowedError as error:
        shown = "'***'" if "@" in text else repr(text)
        raise SettingsError(f"{key_of(field)} is {shown}; allowed: {error}") from None


class _NotAllowedError(Exception):
    """Carries what is allowed."""


def _whole(low: int, high: int, also: str = "") -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise _NotAllowedError(f"a whole number from {low} to {high}{also}")
        return int(text)

    return parse


_port = _whole(1, 65535)
_port_or_zero = _whole(0, 65535, " (0: a free port)")


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise _NotAllowedError(", ".join(word for word in words if word))
        return text

    return parse


def _address(text: str) -> str:
    text = "127.0.0.1" if text == "localhost" else text
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise _NotAllowedError("an IPv4 address of this machine, such as 127.0.0.1, or 0.0.0.0 for all") from None


def _path(text: str) -> str:
    path = Path(text).expanduser() if "\0" not in text else Path()
    if "\0" in text or (path.exists() and not path.is_dir()):
        raise _NotAllowedError("a folder, which is made if it is missing")
    return str(path)


def _namespace(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9_-]{0,32}", text):
        raise _NotAllowedError("up to 32 of a-z, 0-9, _ and -")
    return text


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
    for origin in origins:
        if not re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?", origin):
            raise _NotAllowedError("origins such as https://app.example.com, with commas between them")
    return origins


def _policy(text: str) -> Policy:
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError("not an object")
        return policy_from(given)
    except (ValueError, RecursionError) as error:
        raise _NotAllowedError(f'a JSON object of policy fields, such as {{"quotes_active_max": 5}}: {error}') from None


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
            usable = not text or (parts.scheme in schemes and bool(parts.netloc or parts.path.strip("/")))
            _ = parts.port
        except ValueError:
            usable = False
        if not usable:
            raise _NotAllowedError("an address that begins with " + " or ".join(f"{scheme}://" for scheme in schemes))
        return text

    return parse


_FIELDS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "env": ("", _one_of("", "dev", "prod")),
    "data_dir": ("var", _path),
    "bind": ("127.0.0.1", _address),
    "http_port": ("8000", _port),
    "ws_port": ("8080", _port),
    "dashboard_port": ("8265", _port),
    "metrics_port": ("0", _port_or_zero),
    "database_url": ("", _url("mysql+asyncmy", "mariadb+asyncmy", "sqlite+aiosqlite")),
    "nats_url": ("", _url("nats", "tls")),
    "redis_url": ("", _url("redis", "rediss", "unix")),
    "hosts": ("2", _whole(1, 256)),
    "gateways": ("2", _whole(1, 256)),
    "rest_replicas": ("1", _whole(1, REPLICA_PORTS)),
    "host_activations": ("20000", _whole(100, 10_000_000)),
    "host_activations_bytes": (str(512 << 20), _whole(1 << 20, 1 << 40)),
    "end_paused_hosts": ("on", _one_of("on", "off")),
    "policy": ("{}", _policy),
    "rate_limits": ("auto", _one_of("auto", "on", "off")),
    "origins": ("", _origins),
    "log_level": ("info", _one_of("debug", "info", "warning", "error")),
    "namespace": ("", _namespace),
    "ray_cpus": ("0", _whole(0, 1024)),
    "object_store_bytes": ("100000000", _whole(80_000_000, 1 << 40)),
}
"""Of each field of `Settings`: its default as text, and what reads it."""
