"""Who may do what: every rule there is, whom it lets in, and which rule holds for what is said over the WebSocket.

A REST route names its rule where it is defined (`serve_apps/endpoint.py`), and cannot be defined without one. What has no
rule here does not exist for the gateway. What a stream's members may do in it is decided by the stream itself: `WHO` in
`domain/order_table.py` for orders, `domain/chat_members.py` for conversations.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import Final, NamedTuple

ABSENT_STEP_S: Final = 0.01
ABSENT_SPREAD_S: Final = 0.004


def absent_in_s(asked_s: float, now_s: float) -> float:
    """How long an answer still waits that says that something does not exist, or is not the caller's.

    It comes at a multiple of `ABSENT_STEP_S` after the question, so that its time does not tell the two apart: what exists
    and is in use is refused a millisecond sooner than what has to be looked for. Timers of event loops are late by what is
    missing to a whole millisecond, which would tell it still: the moment of the question, whose microseconds nobody chooses,
    spreads the answers over some of them.
    """
    return ABSENT_STEP_S - (now_s - asked_s) % ABSENT_STEP_S + asked_s * 1_000 % 1 * ABSENT_SPREAD_S


class Role(StrEnum):
    """What an account can be. It may be several; every account is a customer."""

    CUSTOMER = "customer"
    WORKER = "worker"
    OPS = "ops"
    ADMIN = "admin"


class Rule(StrEnum):
    """Who may ask at all. What a stream's own rules decide comes after it."""

    PUBLIC = "public"
    """Anybody."""
    USER = "user"
    """Whoever has a valid access token."""
    MEMBER = "member"
    """A user whom the stream that is named admits; to all others it does not exist."""
    OWNER = "owner"
    """A user, and only about what is their own; the rest does not exist."""
    OPS = "ops"
    """Operations: an account with one of the roles in `OPERATORS`. All others are refused, whatever they ask about."""
    SIGNED = "signed"
    """A payment provider that signs its body."""
    DEV = "dev"
    """Anybody, in the environment `dev`; elsewhere it does not exist."""
    NOBODY = "nobody"
    """Part of a public protocol, and never granted."""


class Rate(StrEnum):
    """Which limits count a request."""

    NONE = "none"
    GENERAL = "general"
    AUTH = "auth"
    """An attempt to log in: few an hour, and refused where nobody can count."""
    UPLOAD = "upload"
    """As `general`, and so many an hour of each user."""
    BUDGET = "budget"
    """What a connection, and all of one user's, may say in a second."""


GUARDED: Final = frozenset({Rule.USER, Rule.MEMBER, Rule.OWNER, Rule.OPS})
"""The rules that ask for an access token."""
OPERATORS: Final = frozenset({Role.OPS, Role.ADMIN})
ROLES_OF: Final[dict[Rule, frozenset[Role]]] = {
    rule: OPERATORS if rule is Rule.OPS else frozenset(Role) for rule in GUARDED
}
"""Which roles a rule lets in, one being enough; a rule that is not here asks for none."""


def admits(rule: Rule, roles: Collection[str]) -> bool:
    """Whether a rule lets in who has these roles. A role that is unknown counts for nothing, and nobody is let in by NOBODY."""
    if rule is Rule.NOBODY:
        return False
    wanted = ROLES_OF.get(rule)
    return wanted is None or not wanted.isdisjoint(roles)


class Access(NamedTuple):
    """Who may ask, and what counts it."""

    rule: Rule
    rate: Rate = Rate.BUDGET


_MEMBER: Final = Access(Rule.MEMBER)
_OWNER: Final = Access(Rule.OWNER)

RPC: Final[dict[str, Access]] = {
    "message.send": _MEMBER,
    "message.edit": _MEMBER,
    "message.delete": _MEMBER,
    "message.react": _MEMBER,
    "member.add": _MEMBER,
    "member.remove": _MEMBER,
    "conversation.leave": _MEMBER,
    "receipt.read": _MEMBER,
    "receipt.delivered": _MEMBER,
    "order.command": _MEMBER,
    "write.status": _MEMBER,
    "presence.get": Access(Rule.USER),
    "sync": _OWNER,
}
"""Method of an rpc → who may call it. Of whom one shares no conversation with, `presence.get` says that they are offline."""

SEND: Final[dict[str, Access]] = {"typing": _MEMBER, "fix": _MEMBER}
"""`type` of a `send` → who may say it. What others say is dropped, as `send` has no answer."""

CHANNELS: Final[dict[str, Access]] = {"conversation": _MEMBER, "order": _MEMBER, "user": _OWNER}
"""Kind of a channel → who may follow it, read its history and see who is there."""

COMMANDS: Final[dict[str, Access]] = {
    "connect": Access(Rule.PUBLIC, Rate.NONE),
    "refresh": Access(Rule.USER),
    "subscribe": _MEMBER,
    "unsubscribe": _OWNER,
    "publish": Access(Rule.NOBODY),
    "presence": _MEMBER,
    "presence_stats": _MEMBER,
    "history": _MEMBER,
    "ping": Access(Rule.USER),
    "send": Access(Rule.USER),
    "rpc": Access(Rule.USER),
    "sub_refresh": Access(Rule.NOBODY),
}
"""Command of the protocol → who may give it: the channel, the method or the type that it names has a rule of its own besides.

Every connection has given a valid token before anything but `connect` is looked at.
"""


def on_the_wire(access: Access | None) -> bool:
    """Whether any user's connection may ask for it. What has no rule, and what is for some roles only, is refused there.

    A gateway knows whose a connection is, and not which roles they have.
    """
    return access is not None and access.rule in (Rule.USER, Rule.MEMBER, Rule.OWNER)
