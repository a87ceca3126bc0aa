"""Who may do what on the broker and in Redis: one table each, of which the embedded servers' configurations are made.

A role has what its code uses and nothing else. Answers come to inboxes of a role's own, which no other role may read. The
same tables are printed for servers of an operator's own by `renoveasy rights`.
"""

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from actors.ownership import TAKEN_SUBJECT
from actors.placement import HEARTBEAT_SUBJECT, TABLE_SUBJECT, handover_subject, probe_subject
from domain.channels import REVOKED_SUBJECT, STREAM_KINDS, event_subject, gateway_subject
from storage.broker import inbox_of

_COMMANDS: Final = "cmd.*"
_HINTS: Final = "ev.user.*"
_EVENTS: Final = tuple(event_subject(f"{kind}:*") for kind in STREAM_KINDS)
_HANDOVERS, _PROBES, _GATEWAYS = handover_subject("*"), probe_subject("*"), gateway_subject("*")


class Rights(NamedTuple):
    """Subjects without the platform's prefix; `*` is one token, `>` all that follow."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def _inboxes(*roles: str) -> tuple[str, ...]:
    return tuple(f"{inbox_of(role)}>" for role in roles)


ON_THE_BROKER: Final[Mapping[str, Rights]] = {
    "host": Rights(
        (
            *(*_EVENTS, _HINTS, TAKEN_SUBJECT, HEARTBEAT_SUBJECT, _HANDOVERS),
            *_inboxes("gateway", "rest", "host", "placement"),
        ),
        (_COMMANDS, TAKEN_SUBJECT, TABLE_SUBJECT, _HANDOVERS, _PROBES, *_inboxes("host")),
    ),
    # A gateway says on a stream's own subject who comes and goes.
    "gateway": Rights(
        (_COMMANDS, *_EVENTS, _GATEWAYS, *_inboxes("gateway")),
        (*_EVENTS, _HINTS, _GATEWAYS, REVOKED_SUBJECT, *_inboxes("gateway")),
    ),
    "rest": Rights((_COMMANDS, _HINTS, REVOKED_SUBJECT), (REVOKED_SUBJECT, *_inboxes("rest"))),
    "placement": Rights((TABLE_SUBJECT, _PROBES, *_inboxes("host")), (HEARTBEAT_SUBJECT, *_inboxes("placement"))),
    # `renoveasy ps`, `doctor`, `drain` and `scale`.
    "census": Rights((), (HEARTBEAT_SUBJECT, *_inboxes("census"))),
}
"""By role. Who may ask may be answered: by those who may publish to its inboxes."""


def nats_accounts(passwords: Mapping[str, str], namespace: str = "") -> str:
    """The block of a NATS server's configuration that lets in these roles, and nobody else.

    `passwords` are words of the configuration's language: quoted texts, or `$NAME` for one of the server's environment.
    """
    before = f"{namespace}." if namespace else ""

    def listed(subjects: tuple[str, ...]) -> str:
        if not subjects:
            return 'deny: ">"'
        return f"allow: {json.dumps([before + subject for subject in subjects])}"

    users = "".join(
        f"      {{user: {role}, password: {passwords[role]}, permissions: {{\n"
        f"        publish: {{{listed(rights.publish)}}}\n"
        f"        subscribe: {{{listed(rights.subscribe)}}}\n"
        "      }}\n"
        for role, rights in ON_THE_BROKER.items()
    )
    return f"accounts {{\n  RENOVEASY {{\n    users: [\n{users}    ]\n  }}\n}}\n"


_SCRIPTS: Final = ("eval", "evalsha", "time", "del", "expire", "pexpire")
_STRINGS: Final = ("get", "set")
_HASHES: Final = ("hget", "hset", "hdel")
_SORTED_SETS: Final = ("zadd", "zscore", "zrange", "zrem", "zcard", "zcount", "zrangebyscore", "zremrangebyscore")


class Uses(NamedTuple):
    """Keys without the platform's prefix, as Redis' patterns; commands, those inside of scripts included."""

    keys: tuple[str, ...]
    commands: tuple[str, ...]


IN_REDIS: Final[Mapping[str, Uses]] = {
    "gateway": Uses(
        ("{presence}*", "ticket:*"),
        (*_SCRIPTS, *_STRINGS, *_HASHES, *_SORTED_SETS, "hlen", "hrandfield"),
    ),
    "rest": Uses(
        (
            *("{presence}*", "ticket:*", "otp:*", "otp-sent:*", "otp-used:*", "otp-shut", "rate:*", "outbox"),
            *("sign-in:*", "link:*", "challenge:*", "tries:*"),
        ),
        (
            *(*_SCRIPTS, *_STRINGS, *_HASHES, *_SORTED_SETS, "hsetnx", "hincrby", "getdel", "exists", "incr", "pttl"),
            *("lindex", "llen", "lrange", "lpush", "rpush", "ltrim"),
        ),
    ),
}
"""By role."""
_CONNECTING: Final = ("ping", "select", "client|setinfo", "client|setname", "hello")


def redis_users(passwords: Mapping[str, str], namespace: str = "") -> str:
    """The lines of a Redis server's configuration that let in these roles, and nobody else."""
    before = f"{namespace}:" if namespace else ""
    lines = ["user default off"]
    for role, uses in IN_REDIS.items():
        # A health check runs its script on a key without a name.
        keys = [f"~{before}{key}" for key in (*uses.keys, "")]
        commands = [f"+{command}" for command in (*_CONNECTING, *uses.commands)]
        lines.append(" ".join([f"user {role} on >{passwords[role]} resetchannels", *keys, "-@all", *commands]))
    return "".join(f"{line}\n" for line in lines)
