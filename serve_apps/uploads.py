"""Uploads: bytes in, and bytes out to who may see them."""

import asyncio
from hashlib import sha256
from typing import Any, Final

import msgspec
import structlog

from domain.access import OPERATORS
from domain.commands import Viewed
from domain.errors import Code, Refusal, invalid
from domain.ports import StoreUnavailable
from domain.times import rfc3339
from domain.uploads import PDF, TYPES, Upload
from serve_apps.audited import OpsAct
from serve_apps.endpoint import Body, Call, Endpoint, Rate, Rule, endpoint
from serve_apps.images import BODY, cleaned, sniffed
from serve_apps.schemas.uploads import UploadQuery, UploadView
from serve_apps.services import Services

_log = structlog.get_logger(__name__)
_ENDINGS: Final = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", PDF: "pdf"}
_STREAMS: Final = 20
"""How many streams that name an upload are asked whether they show it to the caller."""
_NAMING: Final = frozenset({"photos", "evidence", "answer_evidence"})
SWEEP_S: Final = 60.0
_SWEPT: Final = 200


def upload_view(upload: Upload, replayed: bool) -> UploadView:
    return UploadView(
        upload.id, upload.purpose, upload.content_type, upload.size_bytes, rfc3339(upload.created_at), replayed
    )


@endpoint("POST", "/v1/uploads", tag="uploads", rule=Rule.OWNER, rate=Rate.UPLOAD, status=201, keyed=True, raw=True)
async def upload(call: Call, query: UploadQuery) -> UploadView:
    """Send a picture (JPEG, PNG, WebP), or a PDF for the purpose `document`: the body is its bytes.

    `Content-Type` says what it is, and its first bytes have to agree. Pictures are decoded and written anew: places, cameras
    and everything else that is no pixel are left behind. What no message, order or document names is removed after a day.
    """
    upload_id = call.write_id(query.id) or call.services.new_id()
    media_type = call.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    if media_type not in TYPES[query.purpose]:
        allowed = ", ".join(sorted(TYPES[query.purpose]))
        raise Refusal(Code.UNSUPPORTED_MEDIA_TYPE, f"uploads for {query.purpose} are of these types: {allowed}")
    uploads, owner_id, intake = call.services.uploads, call.caller.user_id, call.services.intake
    with intake.admitted(owner_id) as held:
        sent = await _received(call, held.gather)
        if not sent:
            raise invalid(BODY, "empty", "an upload is not empty")
        if sniffed(sent) != media_type:
            raise invalid(BODY, "wrong_type", f"the first bytes are not those of {media_type}")
        digest = sha256(sent).digest()
        known = await uploads.get(upload_id)
        if known is None and media_type != PDF:
            kept = await intake.work(cleaned, sent, media_type, call.settings.upload_pixels)
        else:
            kept = sent
        new = Upload(upload_id, owner_id, query.purpose, media_type, len(kept), digest, call.now_ms())
        return upload_view(*await uploads.add(new, kept, call.settings.upload_quota_bytes))


async def _received(call: Call, gather: Any) -> bytes:
    """The body. More than is taken is refused before it is read where its length is said, else as soon as it shows."""
    try:
        async with asyncio.timeout(call.settings.upload_timeout_s):
            sent: bytes = await gather(call.request.stream())
    except TimeoutError as error:
        raise Refusal(Code.UNAVAILABLE, "the request did not arrive in time; try again with the same id") from error
    said = call.headers.get(b"content-length")
    if said is not None and said != str(len(sent)).encode():
        raise Refusal(Code.INVALID, "the request ended early")
    return sent


@endpoint("GET", "/v1/uploads/{upload_id}", tag="uploads", rule=Rule.OWNER, media_type="*/*")
async def get_upload(call: Call, upload_id: str) -> Body[bytes]:
    """What was uploaded, as a file to be saved: to its owner, and to whom a message or an order shows it.

    A document is shown to its owner and, written down in the audit log, to operations.
    """
    found = await call.services.uploads.get(upload_id)
    if found is None:
        raise Refusal(Code.NOT_FOUND)
    if found.owner_id == call.caller.user_id:
        return await _file(call, found)
    if found.purpose == "document":
        return await _for_operations(call, found)
    for stream in await call.services.uploads.streams(upload_id, call.caller.user_id, _STREAMS):
        if await _shows(call, stream, upload_id):
            return await _file(call, found)
    raise Refusal(Code.NOT_FOUND)


async def _for_operations(call: Call, found: Upload) -> Body[bytes]:
    if OPERATORS.isdisjoint((await call.user()).roles):
        raise Refusal(Code.NOT_FOUND)
    await call.second_factor()
    async with OpsAct(call, "get_upload", f"upload:{found.id}"):
        return await _file(call, found)


async def _shows(call: Call, stream: str, upload_id: str) -> bool:
    """Whether the stream is the caller's to see and, where it is an order, shows them this upload."""
    kind, _, stream_id = stream.partition(":")
    try:
        if kind == "conversation":
            await call.query("conversation", stream_id, "attach")
            return True
        answer = await call.query("order", stream_id, "view")
    except Refusal as refusal:
        if refusal.code is Code.NOT_FOUND:
            return False
        raise
    return isinstance(answer, Viewed) and upload_id in _named(msgspec.json.decode(answer.body))


def _named(shown: Any) -> set[str]:
    """The uploads that an order names, wherever in it."""
    if isinstance(shown, list):
        return set().union(*map(_named, shown))
    if not isinstance(shown, dict):
        return set()
    here = {each for key in _NAMING & shown.keys() for each in shown[key] or ()}
    return here.union(*(_named(value) for key, value in shown.items() if key not in _NAMING))


async def _file(call: Call, found: Upload) -> Body[bytes]:
    content = await call.services.uploads.content(found.id)
    if content is None:
        raise Refusal(Code.NOT_FOUND)
    headers = {
        "Content-Disposition": f'attachment; filename="{found.id}.{_ENDINGS[found.content_type]}"',
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    }
    return Body(content, found.content_type, headers)


async def sweep(services: Services, pause_s: float = SWEEP_S) -> None:
    """For ever: remove what nobody names, beside the requests of every replica."""
    while True:
        looked = 0
        try:
            looked = await services.uploads.sweep(services.clock.now_ms(), _SWEPT)
        except StoreUnavailable as error:
            _log.warning("uploads that nobody names have to wait", why=str(error)[:200])
        except Exception as error:  # one that cannot be judged must not keep all others
            _log.error("sweeping uploads failed", kind=type(error).__name__)
        await asyncio.sleep(pause_s if looked < _SWEPT else 0.1)


ENDPOINTS: tuple[Endpoint, ...] = (upload, get_upload)
