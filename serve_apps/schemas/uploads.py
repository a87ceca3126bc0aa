"""Uploads, and documents of workers."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.uploads import Purpose
from domain.verification import Kind as DocumentKind
from domain.verification import State as DocumentState
from serve_apps.schemas.common import Listing, Timestamp, Uuid


class UploadQuery(msgspec.Struct):
    """`id` is made by the client; the header `Idempotency-Key` serves too."""

    purpose: Purpose
    id: Uuid | None = None


class UploadView(msgspec.Struct):
    """An upload; `bytes` is the size of what is kept."""

    id: Uuid
    purpose: Purpose
    content_type: str
    bytes: int
    created_at: Timestamp
    replayed: bool


DocumentNumber = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z][0-9A-Za-z ./-]{3,39}\Z")]
Skill = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[^\x00-\x1f\x7f]+\Z")]


class WorkerDocumentPost(msgspec.Struct):
    """`upload_id` is an upload for the purpose `document`; `skill` is what a licence is for; `expires_at` as it says itself."""

    kind: DocumentKind
    upload_id: Uuid
    id: Uuid | None = None
    skill: Skill | None = None
    number: DocumentNumber | None = None
    expires_at: Timestamp | None = None


class WorkerDocumentView(msgspec.Struct, omit_defaults=True):
    """A document and what was said of it. `number_tail` is the end of its number, which nobody is shown more of."""

    id: Uuid
    kind: DocumentKind
    upload_id: Uuid
    state: Literal["pending", "approved", "rejected", "expired"]
    created_at: Timestamp
    skill: str | UnsetType = UNSET
    number_tail: str | UnsetType = UNSET
    expires_at: Timestamp | UnsetType = UNSET
    reviewed_at: Timestamp | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    replayed: bool | UnsetType = UNSET


class WorkerDocumentForOps(WorkerDocumentView, kw_only=True, omit_defaults=True):
    """The same for operations."""

    worker_id: Uuid
    reviewed_by: Uuid | UnsetType = UNSET


class WorkerDocumentsQuery(Listing):
    state: DocumentState = "pending"


class ReviewDocument(msgspec.Struct):
    """`expires_at` is until when an approved document is good; `reason` is told to the worker of a rejected one."""

    decision: Literal["approve", "reject"]
    reason: Annotated[str, Meta(max_length=500, pattern=r"\A[^\x00]*\Z")] = ""
    expires_at: Timestamp | None = None
