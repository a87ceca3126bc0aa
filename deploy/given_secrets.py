"""Outside `dev` no server is used whose door stands open: without a password over a network, or with one that all know."""

import ipaddress
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from deploy.runtime import StartError
from deploy.settings import ROLES, Settings, key_of

SHORTEST: Final = 8
"""Characters of a password."""
KNOWN: Final = frozenset(
    {
        "password", "passw0rd", "password1", "password123", "passwort", "changeme", "changeit", "change-me", "secret",
        "secret123", "default", "example", "admin", "admin123", "administrator", "root", "root1234", "toor", "guest",
        "test", "test1234", "testtest", "demo", "demo1234", "user", "username", "qwerty", "qwertyui", "qwerty123",
        "letmein", "welcome", "welcome1", "12345678", "123456789", "1234567890", "11111111", "00000000", "87654321",
        "abc12345", "abcd1234", "iloveyou", "mysql", "mariadb", "redis", "valkey", "nats", "natspass", "foobared",
        "renoveasy", "renoveasy1", "renovation", "your-password", "yourpassword", "mypassword", "supersecret",
        "topsecret", "insecure", "s3cr3t", "s3cret", "docker", "postgres", "database",
    }
)  # fmt: skip
"""What comes with software, documentation and examples, in lower case."""
_TAKES_TOKENS: Final = frozenset({"nats", "tls"})
"""Schemes whose only credential may be a token, where others have the user's name."""


def check_secrets(settings: Settings) -> None:
    """Return if the servers given by URL may be used in this environment; in `dev` all may.

    Raises:
        StartError: one may not; names the setting, never the secret.
    """
    if settings.env == "dev":
        return
    given = {"database_url": settings.database_url}
    for server, roles in ROLES.items():
        own: dict[str, str] = getattr(settings, f"{server}s")
        given |= {f"{server}_{role}": url for role, url in own.items()}
        if not own.keys() >= set(roles):  # else nobody uses it
            given[server] = getattr(settings, server)
    for field, url in given.items():
        wrong = wrong_with(url)
        if wrong:
            raise StartError(
                f"{key_of(field)} {wrong}; outside of dev that is not accepted (RENOVEASY_ENV is {settings.env}): "
                f"give the server a password of {SHORTEST} characters or more that is in no manual"
            )


def wrong_with(url: str) -> str:
    """Why the server must not be used, such as `has no password`; empty: it may."""
    parts = urlsplit(url)
    if not parts.hostname:  # nothing, a file, or a socket of the machine's
        return ""
    user, secret = unquote(parts.username or ""), unquote(parts.password or "")
    if not secret and parts.scheme in _TAKES_TOKENS:
        user, secret = "", user
    secret = secret or "".join(parse_qs(parts.query).get("password", [""])[-1:])
    if not secret:
        return "" if _loopback(parts.hostname) else "has no password"
    if secret.lower() in KNOWN or (user and secret.lower() == user.lower()):
        return "has a password that everybody knows"
    if len(secret) < SHORTEST or len(set(secret)) == 1:
        return "has a password that is guessed at once"
    return ""


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
