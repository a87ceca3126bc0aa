"""What a client's core wants done, and what it has found out. `gateway/client.py` performs the one and passes on the other."""

from typing import NamedTuple

from domain.errors import Refused
from gateway.client_wire import Position, Write


class Dial(NamedTuple):
    """Open connection `link`, and report `dialled` or `lost`."""

    link: int


class Transmit(NamedTuple):
    link: int
    frame: bytes


class HangUp(NamedTuple):
    """Close connection `link`; nothing that it says from now on counts, and nothing need be reported of it."""

    link: int


class RenewToken(NamedTuple):
    """Get an access token, and report `token` or `no_token`."""


class Save(NamedTuple):
    """Store the write so that a power loss does not take it, then report `stored`. In the order of these effects."""

    write: Write


class Forget(NamedTuple):
    """The write is settled: it need not be kept. To forget it late is harmless."""

    write: Write


class Discard(NamedTuple):
    """The write was refused: keep it no longer, and report `discarded` when a power loss cannot bring it back."""

    write: Write
    why: Refused
    attempts: int


class Owner(NamedTuple):
    """Whose outbox this is, from the first connection on."""

    user_id: str


class Online(NamedTuple):
    """Connected: the first time, or again."""


class Offline(NamedTuple):
    """The connection is lost; another one is on its way."""

    code: int
    reason: str


class Finished(NamedTuple):
    """The client comes back no more: `code` and `reason` are the server's, or 0 and our own."""

    code: int
    reason: str


class Done(NamedTuple):
    """The write has landed, once; `result` is its answer in JSON. It was sent `attempts` times."""

    write: Write
    result: bytes
    attempts: int


class Rejected(NamedTuple):
    """The write was refused and has had no effect."""

    write: Write
    why: Refused
    attempts: int


class Answered(NamedTuple):
    """The answer to a question, in JSON, or the refusal."""

    key: str
    result: bytes | Refused


class Unanswered(NamedTuple):
    """The question had no answer in its time."""

    key: str


class Standing(NamedTuple):
    """The subscription stands, from `position` on."""

    channel: str
    position: Position


class Published(NamedTuple):
    """The next event of a stream: its offset is one more than that of the last one."""

    channel: str
    offset: int
    data: bytes


class Ephemeral(NamedTuple):
    """What is true for a moment; may be lost, and may come twice."""

    channel: str
    data: bytes


class Reload(NamedTuple):
    """What is known of the stream continues nowhere: load it anew, and report `reloaded`."""

    channel: str


class Expelled(NamedTuple):
    """The subscription has ended for good: no member, or no such stream."""

    channel: str
    code: int
    reason: str


class Hinted(NamedTuple):
    """What came on `user:<id>`, in JSON."""

    data: bytes


class Synced(NamedTuple):
    """Where all the user's streams stand (`domain.wire.SyncResult` in JSON)."""

    data: bytes


Effect = (
    Dial | Transmit | HangUp | RenewToken | Save | Forget | Discard | Owner | Online | Offline | Finished | Done | Rejected
    | Answered | Unanswered | Standing | Published | Ephemeral | Reload | Expelled | Hinted | Synced
)  # fmt: skip
