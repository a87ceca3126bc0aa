"""Who a worker is: documents that workers hand in, and what operations say of them."""

from typing import Final

import msgspec
from msgspec import UNSET

from domain.acts import OK, Deed
from domain.errors import invalid
from domain.policy import AGE_MAX_MS
from domain.times import parse_rfc3339, rfc3339
from domain.verification import Review, WorkerDocument
from serve_apps.audited import act_of
from serve_apps.endpoint import Call, Endpoint, Rule, endpoint
from serve_apps.schemas.common import Items, clamped
from serve_apps.schemas.uploads import (
    ReviewDocument,
    WorkerDocumentForOps,
    WorkerDocumentPost,
    WorkerDocumentsQuery,
    WorkerDocumentView,
)

_LISTED: Final = 100


def document_view(document: WorkerDocument, now_ms: int) -> WorkerDocumentView:
    """A document as its worker sees it: `expired` is what an approved one is once its time is over."""
    over = document.state == "approved" and document.expires_at <= now_ms
    return WorkerDocumentView(
        id=document.id,
        kind=document.kind,
        upload_id=document.upload_id,
        state="expired" if over else document.state,
        created_at=rfc3339(document.created_at),
        skill=document.skill or UNSET,
        number_tail=document.number_tail or UNSET,
        expires_at=rfc3339(document.expires_at) if document.expires_at else UNSET,
        reviewed_at=UNSET if document.reviewed_at is None else rfc3339(document.reviewed_at),
        reason=document.reason or UNSET,
    )


def _ops_view(document: WorkerDocument, now_ms: int) -> WorkerDocumentForOps:
    shown = document_view(document, now_ms)
    fields = msgspec.structs.asdict(shown)
    return WorkerDocumentForOps(**fields, worker_id=document.worker_id, reviewed_by=document.reviewed_by or UNSET)


@endpoint("POST", "/v1/me/worker/documents", tag="people", rule=Rule.OWNER, status=201, keyed=True)
async def add_worker_document(call: Call, body: WorkerDocumentPost) -> WorkerDocumentView:
    """Hand in a document: who one is, or a licence for a skill. Its file was uploaded with the purpose `document`.

    Of its number nobody is ever shown more than the last characters. Operations look at it.
    """
    if (body.kind == "licence") != (body.skill is not None):
        raise invalid("skill", "invalid", "a licence is for a skill, and an identity document for none")
    now_ms = call.now_ms()
    expires_at = 0 if body.expires_at is None else _later("expires_at", body.expires_at, now_ms)
    document = WorkerDocument(
        id=call.write_id(body.id) or call.services.new_id(),
        worker_id=call.caller.user_id,
        kind=body.kind,
        upload_id=body.upload_id,
        state="pending",
        created_at=now_ms,
        skill=body.skill or "",
        expires_at=expires_at,
    )
    stored, replayed = await call.services.worker_documents.add(document, body.number or "")
    return msgspec.structs.replace(document_view(stored, now_ms), replayed=replayed)


@endpoint("GET", "/v1/me/worker/documents", tag="people", rule=Rule.OWNER)
async def list_worker_documents(call: Call) -> Items[WorkerDocumentView]:
    """The caller's documents, latest first, and what was said of them."""
    now_ms = call.now_ms()
    found = await call.services.worker_documents.list_of(call.caller.user_id)
    return Items([document_view(item, now_ms) for item in found])


@endpoint("GET", "/v1/admin/worker-documents", tag="admin", rule=Rule.OPS)
async def list_documents_to_review(call: Call, query: WorkerDocumentsQuery) -> Items[WorkerDocumentForOps]:
    """Documents of workers in a state, those that have waited longest first."""
    now_ms = call.now_ms()
    page = await call.services.worker_documents.find(query.state, query.cursor, clamped(query.limit, _LISTED))
    return Items([_ops_view(item, now_ms) for item in page.items], page.next_cursor)


@endpoint("POST", "/v1/admin/worker-documents/{document_id}/review", tag="admin", rule=Rule.OPS, conflicts=True)
async def review_worker_document(call: Call, document_id: str, body: ReviewDocument) -> WorkerDocumentForOps:
    """Approve a document until `expires_at`, or reject it for a `reason`. It is judged once; the same again changes nothing."""
    now_ms, by = call.now_ms(), call.caller.user_id
    if body.decision == "approve":
        if body.expires_at is None:
            raise invalid("expires_at", "required", "say until when the document is good")
        review = Review(True, by, now_ms, expires_at=_later("expires_at", body.expires_at, now_ms))
    else:
        if not body.reason.strip():
            raise invalid("reason", "required", "say why the document is rejected")
        review = Review(False, by, now_ms, reason=body.reason)
    act = act_of(call, Deed.DOCUMENT_REVIEWED, OK, f"worker_document:{document_id}", decision=body.decision)
    return _ops_view(await call.services.worker_documents.review(document_id, review, act), now_ms)


def _later(field: str, text: str, now_ms: int) -> int:
    try:
        at_ms = parse_rfc3339(text)
    except (ValueError, OverflowError) as error:
        raise invalid(field, "invalid", "must be an instant such as 2026-01-31T09:30:00Z") from error
    if at_ms <= now_ms:
        raise invalid(field, "past", "the document has expired already")
    if at_ms > now_ms + AGE_MAX_MS:
        raise invalid(field, "too_far", "no document is good for more than ten years from now")
    return at_ms


ENDPOINTS: tuple[Endpoint, ...] = (
    add_worker_document,
    list_worker_documents,
    list_documents_to_review,
    review_worker_document,
)
