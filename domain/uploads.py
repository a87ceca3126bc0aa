"""What people upload: pictures beside messages and orders, and documents that say who a worker is.

An upload is its owner's until a message, an order or a document names it; what is named stays as long as that does. What
nobody names for `UNUSED_MS` is doomed: from then on nothing may name it any more, and `DOOMED_MS` later it is gone.
"""

from typing import Final, Literal, Protocol, get_args

import msgspec

from domain.aggregate import Facts, UploadNeed
from domain.errors import invalid
from domain.times import DAY_MS, HOUR_MS

Purpose = Literal["chat", "photo", "evidence", "document"]
"""What it is for, and therefore where it may be named: in a message, in an order, in a dispute, as a worker's document."""
PURPOSES: Final[tuple[str, ...]] = get_args(Purpose)

IMAGES: Final = frozenset({"image/jpeg", "image/png", "image/webp"})
PDF: Final = "application/pdf"
TYPES: Final[dict[str, frozenset[str]]] = {
    "chat": IMAGES,
    "photo": IMAGES,
    "evidence": IMAGES,
    "document": IMAGES | {PDF},
}
"""Purpose → media types that it takes. All else is refused."""

UNUSED_MS: Final = DAY_MS
"""How long an upload waits to be named."""
DOOMED_MS: Final = HOUR_MS
"""Longer than any turn takes from learning of an upload to its commit."""


class Upload(msgspec.Struct, frozen=True):
    """`size_bytes` is that of what is served; `digest` the SHA-256 of what was sent. Unix milliseconds."""

    id: str
    owner_id: str
    purpose: Purpose
    content_type: str
    size_bytes: int
    digest: bytes
    created_at: int


class Uploads(Protocol):
    """Uploads and their content, encrypted each under a key of its own. Every method may raise `StoreUnavailable`."""

    async def get(self, upload_id: str) -> Upload | None:
        """One whose content is there."""
        ...

    async def add(self, upload: Upload, content: bytes, quota_bytes: int) -> tuple[Upload, bool]:
        """Store it, durable on return; the same again is what was stored, and True. Atomic under any race.

        Raises:
            Refusal: `idempotency_mismatch` where the id is another upload's; `conflict` where all of the owner's would
                take more than `quota_bytes`.
        """
        ...

    async def content(self, upload_id: str) -> bytes | None:
        """What was stored, or None. Raises `ContentDamaged` where it is not what was stored."""
        ...

    async def streams(self, upload_id: str, user_id: str, limit: int) -> list[str]:
        """Streams that name it and that the user may be in: their conversations, and any order. They are to be asked."""
        ...

    async def list_of(self, user_id: str, after: str, limit: int) -> list[Upload]:
        """By id."""
        ...

    async def sweep(self, now_ms: int, limit: int) -> int:
        """Look at so many that are due: doom what nobody names, remove what was doomed. How many were looked at."""
        ...

    async def forget(self, user_id: str) -> None:
        """Remove all of a user's with their content, whoever names them. Harmless when repeated."""
        ...


class ContentDamaged(Exception):
    """A stored content is not what was stored there. Names the upload, never the content."""


def needs_of(uploads: tuple[str, ...]) -> tuple[UploadNeed, ...]:
    """What has to be known before these may be named."""
    return tuple(UploadNeed(each) for each in dict.fromkeys(uploads))


def require_own(uploads: tuple[str, ...], owner_id: str, purpose: Purpose, facts: Facts, field: str) -> None:
    """Refusal `invalid` for the first that is not there, is somebody else's, or is for another purpose: all told alike."""
    for n, upload_id in enumerate(uploads):
        found = facts.upload(upload_id)
        if found is None or found.owner_id != owner_id or found.purpose != purpose:
            raise invalid(f"{field}[{n}]", "unknown", f"you have no upload of this id for the purpose {purpose}")
