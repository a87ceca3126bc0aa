"""The audit log."""

from typing import Annotated

import msgspec
from msgspec import Meta

from serve_apps.schemas.common import Listing, Timestamp, Uuid

Word = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[!-~]+\Z")]


class AuditQuery(Listing):
    actor: Word | None = None
    act: Word | None = None
    since: Annotated[str, Meta(max_length=40)] | None = msgspec.field(name="from", default=None)
    until: Annotated[str, Meta(max_length=40)] | None = msgspec.field(name="to", default=None)


class AuditedAct(msgspec.Struct):
    """An act. `actor` is a user's id, `cli:<account>`, or empty; `outcome` is `ok`, a code, or `allowed`.

    `allowed` stands on an operator's act, which is written down before it happens; if it then failed, the next act says how.
    """

    number: int
    id: Uuid
    at: Timestamp
    act: str
    outcome: str
    actor: str
    session: str
    ip: str
    object: str
    details: dict[str, str]
