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

from domain.identities import ProviderSettings, providers_from
from domain.otp import DEFAULT_BUDGETS, OtpBudgets
from domain.policy import DEFAULT_POLICY, Policy, policy_from

PREFIX: Final = "RENOVEASY_"
ROLES: Final[dict[str, tuple[str, ...]]] = {
    "nats_url": ("host", "gateway", "rest", "placement", "census"),
    "redis_url": ("gateway", "rest"),
}
"""Who connects to a server that may be given by URL, each with credentials of its own; `deploy.rights` says who may do what."""
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
    nats_urls: dict[str, str] = {}
    """By role, where it is not `nats_url`. Set by `RENOVEASY_NATS_URL_HOST` and the like."""
    redis_urls: dict[str, str] = {}
    """The same for `redis_url`."""
    http_tls_certificate: str = ""
    """A PEM file: REST's certificate, then those between it and an authority. Empty: plain HTTP."""
    http_tls_key: str = ""
    """A PEM file with the certificate's private key, without a passphrase."""
    ws_tls_certificate: str = ""
    """The same for the WebSockets' port."""
    ws_tls_key: str = ""
    hosts: int
    """Ray actors that hold activations."""
    gateways: int
    """Ray actors that hold WebSocket sessions, all on one port."""
    rest_replicas: int
    rate_limits: Literal["auto", "on", "off"]
    """`auto`: on in `prod`, lifted in `dev`."""
    origins: tuple[str, ...]
    """Web pages (`https://app.example.com`) whose scripts may use REST and WebSocket; empty: none. Apps send no origin."""
    ops_totp: Literal["auto", "on", "off"] = "auto"
    """Whether operators need a second factor. `auto`: in `prod`."""
    geoip_path: Path | None = None
    """An `.mmdb` file that tells where addresses are; None: nobody knows. A new one in its place is read within a minute."""
    audit_keep_days: int = 730
    """For how long acts stay in the audit log; 0: for ever."""
    host_activations: int = 20_000
    """Live activations in one host before the least recently used are dropped."""
    host_activations_bytes: int = 512 << 20
    """The same by about how much memory they take, in one host."""
    end_paused_hosts: Literal["on", "off"] = "on"
    """`on`: the process of a host that was given up because it hangs or is stopped is killed, and Ray starts it anew."""
    policy: Policy = DEFAULT_POLICY
    """The numbers of the marketplace. Set by a JSON object of those that differ from the default."""
    oidc_providers: dict[str, ProviderSettings] = {}
    """Third parties that people can sign in by, by the name that clients use. Set by a JSON object; see docs/operations.md."""
    oidc_redirects: tuple[str, ...] = ()
    """Where they may send people back to: exact addresses of the apps, with commas between them."""
    log_level: Literal["debug", "info", "warning", "error"]
    namespace: str
    """Put before every NATS subject and Redis key, so that platforms can share servers; empty: nothing."""
    ray_cpus: int
    """Logical CPUs that Ray may hand out; 0: as many as the machine has."""
    object_store_bytes: int
    """Ray's shared memory. Data does not travel by it, so it is small."""
    ports: Ports = Ports()
    otp: OtpBudgets = DEFAULT_BUDGETS
    """How many one-time codes are sent at most. Each field `x` is set by `RENOVEASY_OTP_X`."""
    key_provider: Literal["file", "vault", "aws-kms"] = "file"
    """Who wraps the data keys that encrypt personal data: a secret in the data folder, HashiCorp Vault, or AWS KMS."""
    vault_url: str = ""
    vault_key: str = ""
    """The key of Vault's transit engine."""
    vault_mount: str = "transit"
    vault_namespace: str = ""
    vault_token_file: str = ""
    """A file with Vault's token, read at each use: an agent may renew it."""
    vault_certificates: str = ""
    """A PEM file of further authorities for Vault's certificate; empty: none."""
    aws_kms_key: str = ""
    """Id, ARN or alias of the key in AWS KMS. Credentials come from where AWS's clients look for them."""
    aws_region: str = ""
    aws_kms_endpoint: str = ""
    """Empty: the region's own."""
    s3_url: str = ""
    """Where uploads are kept: `s3://bucket` or `s3://bucket/prefix`. Empty: in the data folder, of this machine alone."""
    s3_endpoint: str = ""
    """Empty: that of `aws_region`."""
    upload_bytes: int = 10 << 20
    """Of one upload."""
    upload_pixels: int = 25_000_000
    """Of a picture; decoding takes about eight bytes of memory a pixel, and a REST replica decodes two at once."""
    upload_quota_bytes: int = 1 << 30
    """Of all uploads of one user."""
    uploads_per_user_hour: int = 60

    @property
    def rate_limits_on(self) -> bool:
        return self.rate_limits == "on" or (self.rate_limits == "auto" and self.env == "prod")

    @property
    def ops_totp_on(self) -> bool:
        return self.ops_totp == "on" or (self.ops_totp == "auto" and self.env == "prod")

    @property
    def embedded(self) -> dict[str, bool]:
        """Which servers the platform starts itself."""
        return {"database": not self.database_url, "nats": not self.nats_url, "redis": not self.redis_url}

    def url_of(self, server: str, role: str) -> str:
        """Where and as whom a role connects to `nats_url` or `redis_url`."""
        urls: dict[str, str] = getattr(self, f"{server}s")
        return urls.get(role) or str(getattr(self, server))

    def of_role(self, role: str) -> "Settings":
        """The settings as a process of that role gets them: without the credentials of the others."""
        return msgspec.structs.replace(
            self,
            nats_url=self.url_of("nats_url", role),
            redis_url=self.url_of("redis_url", role) if role in ROLES["redis_url"] else "",
            nats_urls={},
            redis_urls={},
        )

    @property
    def rest_address(self) -> str:
        """Where REST answers on this machine, such as `http://127.0.0.1:8000`."""
        return f"http{'s' if self.http_tls_certificate else ''}://{self._near}:{self.http_port}"

    @property
    def ws_address(self) -> str:
        """Where a WebSocket is opened on this machine."""
        return f"ws{'s' if self.ws_tls_certificate else ''}://{self._near}:{self.ws_port}/connection/websocket"

    @property
    def _near(self) -> str:
        return "127.0.0.1" if self.bind == "0.0.0.0" else self.bind  # noqa: S104 - listening on all

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
    if values["geoip_path"] is not None:
        values["geoip_path"] = ((folder or Path.cwd()) / values["geoip_path"]).resolve()
    values["env"] = values["env"] or ("dev" if ipaddress.ip_address(values["bind"]).is_loopback else "prod")
    values["oidc_providers"] = _providers(given, dev=values["env"] == "dev")
    ports = Ports(**{field: _read(given, f"port_{field}", "0", _port_or_zero) for field in Ports.__struct_fields__})
    budgets = {name: _read(given, f"otp_{name}", str(default), _OTP[name]) for name, default in _otp_defaults().items()}
    for server in ROLES:
        values[f"{server}s"] = _urls_of_roles(given, server)
        if values[f"{server}s"] and not values[server]:
            raise SettingsError(
                f"{key_of(server)} is empty and a role has a URL of its own; it says that no server is to be started"
            )
    for road in ("http", "ws"):
        certificate, key = f"{road}_tls_certificate", f"{road}_tls_key"
        values |= {field: str(_in(folder, values[field])) for field in (certificate, key) if values[field]}
        if bool(values[certificate]) != bool(values[key]):
            missing, there = (key, certificate) if values[certificate] else (certificate, key)
            raise SettingsError(f"{key_of(missing)} is empty; {key_of(there)} needs it")
    for field in _NEEDED_BY_PROVIDER[values["key_provider"]]:
        if not values[field]:
            raise SettingsError(f"{key_of(field)} is empty; {key_of('key_provider')}={values['key_provider']} needs it")
    return Settings(**values, ports=ports, otp=OtpBudgets(**budgets))


def _in(folder: Path | None, path: str) -> Path:
    return ((folder or Path.cwd()) / Path(path).expanduser()).absolute()


def _urls_of_roles(environment: Mapping[str, str], server: str) -> dict[str, str]:
    parse = _FIELDS[server][1]
    found = {role: _read(environment, f"{server}_{role}", "", parse) for role in ROLES[server]}
    return {role: url for role, url in found.items() if url}


def key_of(field: str) -> str:
    """The environment's key of a field, such as `http_port`."""
    return PREFIX + field.upper()


def unknown_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Keys with our prefix that mean nothing, each with the one that was probably meant (or an empty text)."""
    fields = (
        *_FIELDS,
        _PROVIDERS,
        *(f"port_{name}" for name in Ports.__struct_fields__),
        *(f"otp_{name}" for name in _OTP),
        *(f"{server}_{role}" for server, roles in ROLES.items() for role in roles),
    )
    known = [key_of(field) for field in fields]
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


def _places(text: str) -> Path | None:
    path = Path(text).expanduser() if "\0" not in text else Path()
    if text and not path.is_file():
        raise _NotAllowedError("an .mmdb file that is there, or nothing")
    return path if text else None


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


def _file(text: str) -> str:
    if text and ("\0" in text or not Path(text).expanduser().is_file()):
        raise _NotAllowedError("a file that is there")
    return str(Path(text).expanduser().resolve()) if text else ""


def _pem(text: str) -> str:
    """Whether the file is good is looked at when it is used: it comes and goes while the platform runs."""
    if "\0" in text:
        raise _NotAllowedError("a PEM file, or nothing")
    return text


def _matching(pattern: str, allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise _NotAllowedError(allowed)
        return text

    return parse


def _policy(text: str) -> Policy:
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError("not an object")
        return policy_from(given)
    except (ValueError, RecursionError) as error:
        raise _NotAllowedError(f'a JSON object of policy fields, such as {{"quotes_active_max": 5}}: {error}') from None


def _redirects(text: str) -> tuple[str, ...]:
    addresses = tuple(address.strip() for address in text.split(",") if address.strip())
    for address in addresses:
        # A private scheme has a dot in it (RFC 8252, section 7.1): it is somebody's domain, turned round.
        named = re.fullmatch(r"(https://[a-z0-9.-]+(:[0-9]{1,5})?/|[a-z0-9-]+(\.[a-z0-9-]+)+:/)[\x21-\x7e]*", address)
        local = re.fullmatch(r"http://(127\.0\.0\.1|localhost)(:[0-9]{1,5})?/[\x21-\x7e]*", address)
        if not (named or local) or "#" in address or len(address) > 512:
            raise _NotAllowedError(
                "addresses such as https://app.example.com/signed-in or com.example.app:/signed-in, "
                "with commas between them"
            )
    return addresses


_PROVIDERS: Final = "oidc_providers"


def _providers(environment: Mapping[str, str], *, dev: bool) -> dict[str, ProviderSettings]:
    """Read apart from the others: it depends on the environment's kind, and what it holds is never shown."""
    text = environment.get(key_of(_PROVIDERS), "").strip() or "{}"
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    try:
        return providers_from(given, dev=dev)
    except ValueError as error:
        example = '{"google": {"kind": "oidc", "issuer": "https://accounts.google.com", "client_id": "…"}}'
        raise SettingsError(
            f"{key_of(_PROVIDERS)} is '***'; allowed: a JSON object of providers, such as {example}: {error}"
        ) from None


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
    "http_tls_certificate": ("", _pem),
    "http_tls_key": ("", _pem),
    "ws_tls_certificate": ("", _pem),
    "ws_tls_key": ("", _pem),
    "hosts": ("2", _whole(1, 256)),
    "gateways": ("2", _whole(1, 256)),
    "rest_replicas": ("1", _whole(1, REPLICA_PORTS)),
    "host_activations": ("20000", _whole(100, 10_000_000)),
    "host_activations_bytes": (str(512 << 20), _whole(1 << 20, 1 << 40)),
    "end_paused_hosts": ("on", _one_of("on", "off")),
    "policy": ("{}", _policy),
    "rate_limits": ("auto", _one_of("auto", "on", "off")),
    "ops_totp": ("auto", _one_of("auto", "on", "off")),
    "geoip_path": ("", _places),
    "audit_keep_days": ("730", _whole(0, 36_500)),
    "origins": ("", _origins),
    "oidc_redirects": ("", _redirects),
    "log_level": ("info", _one_of("debug", "info", "warning", "error")),
    "namespace": ("", _namespace),
    "ray_cpus": ("0", _whole(0, 1024)),
    "object_store_bytes": ("100000000", _whole(80_000_000, 1 << 40)),
    "key_provider": ("file", _one_of("file", "vault", "aws-kms")),
    "vault_url": ("", _url("https", "http")),
    "vault_key": ("", _matching(r"(?a:(\w[\w.-]{0,127})?)", "the name of a transit key: letters, digits, _, . and -")),
    "vault_mount": ("transit", _matching(r"(?a:\w[\w.-]*(/\w[\w.-]*){0,7})", "where the transit engine is mounted")),
    "vault_namespace": ("", _matching(r"(?a:[\w./-]{0,128})", "a namespace of Vault, or nothing")),
    "vault_token_file": ("", _file),
    "vault_certificates": ("", _file),
    "aws_kms_key": ("", _matching(r"(?a:[\w:/-]{0,256})", "a key's id, ARN or alias, such as alias/renoveasy")),
    "aws_region": ("", _matching(r"([a-z0-9-]{4,32})?", "a region such as eu-central-1")),
    "aws_kms_endpoint": ("", _url("https", "http")),
    "s3_url": (
        "",
        _matching(
            r"(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w!.*'()/-]{1,512})?)?", "s3://bucket or s3://bucket/prefix"
        ),
    ),
    "s3_endpoint": ("", _url("https", "http")),
    "upload_bytes": (str(10 << 20), _whole(1_000, 1 << 26)),
    "upload_pixels": ("25000000", _whole(1_000, 200_000_000)),
    "upload_quota_bytes": (str(1 << 30), _whole(1_000, 1 << 50)),
    "uploads_per_user_hour": ("60", _whole(1, 1_000_000)),
}
"""Of each field of `Settings`: its default as text, and what reads it."""


_seconds_of_a_day = _whole(1, 86_400)
_codes = _whole(0, 1_000_000)
_OTP: Final[dict[str, Callable[[str], int]]] = {
    "phone_gap_s": _seconds_of_a_day,
    "phone_hour": _whole(1, 1_000),
    "phone_day": _whole(1, 1_000),
    "prefix_digits": _whole(0, 12),
    "prefix_hour": _codes,
    "prefix_day": _codes,
    "global_hour": _codes,
    "global_day": _codes,
    "breaker_codes": _whole(1, 1_000_000),
    "breaker_percent": _whole(0, 100, " (0: never shut)"),
    "breaker_window_s": _seconds_of_a_day,
    "breaker_wait_s": _whole(0, 86_400),
    "shut_s": _whole(1, 604_800),
}
"""What reads each field of `OtpBudgets`."""


def _otp_defaults() -> dict[str, int]:
    defaults: dict[str, int] = msgspec.structs.asdict(DEFAULT_BUDGETS)
    return defaults


_NEEDED_BY_PROVIDER: Final[dict[str, tuple[str, ...]]] = {
    "file": (),
    "vault": ("vault_url", "vault_key", "vault_token_file"),
    "aws-kms": ("aws_kms_key", "aws_region"),
}
