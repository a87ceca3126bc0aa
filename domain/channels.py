"""Channel names as clients use them, and the subjects the platform uses for them."""

from typing import Literal, NamedTuple

from domain.ids import is_uuid, partition_of

Kind = Literal["conversation", "order"]
STREAM_KINDS: tuple[Kind, ...] = ("conversation", "order")


class Channel(NamedTuple):
    """A parsed channel: `user`, `conversation` or `order`, and the id it is about."""

    kind: Literal["user", "conversation", "order"]
    id: str

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.id}"


def parse_channel(name: str) -> Channel | None:
    """The channel of a name such as `order:<uuid>`; None where the name has no meaning here."""
    kind, _, identifier = name.partition(":")
    if not is_uuid(identifier):
        return None
    match kind:
        case "user" | "conversation" | "order":
            return Channel(kind, identifier)
        case _:
            return None


def stream_name(kind: str, identifier: str) -> str:
    """The name of a stream, which is that of its channel."""
    return f"{kind}:{identifier}"


def stream_partition(stream: str) -> int:
    """The partition that a stream lives in."""
    return partition_of(stream)


def command_subject(partition: int) -> str:
    """Where the owner of a partition listens."""
    return f"cmd.{partition}"


def event_subject(stream: str) -> str:
    """Where a stream's committed events and its ephemeral publications are published."""
    kind, _, identifier = stream.partition(":")
    return f"ev.{kind}.{identifier}"


def user_subject(user_id: str) -> str:
    """Where hints for a user are published; shared by the users of one partition, filtered in the gateway."""
    return f"ev.user.{partition_of(user_id)}"


def gateway_subject(node: str) -> str:
    """Where a gateway hears what other gateways were told for one of its clients."""
    return f"gw.{node}"


REVOKED_SUBJECT = "ctl.revoked"
"""Where a revoked device session (its `sid`) is announced to every gateway."""
