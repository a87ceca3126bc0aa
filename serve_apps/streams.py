"""What orders and conversations have in common: paging a stream of events, and splicing stored JSON into answers."""

from collections.abc import Iterable

import msgspec

from domain.channels import Kind, stream_name
from domain.commands import Accepted, Attached
from serve_apps.endpoint import Call
from serve_apps.schemas.common import After, clamped

MOST_EVENTS = 1000
"""Events in one page, however many are asked for."""
_PAGE_BYTES = 1 << 20


def with_offset(offset: int, data: bytes) -> msgspec.Raw:
    """Publication data with its offset as the first field. The data is a JSON object, as everything that is published."""
    rest = data.lstrip()[1:].lstrip()
    comma = b"" if rest.startswith(b"}") else b","
    return msgspec.Raw(b'{"offset":%d%s%s' % (offset, comma, rest))


def page_of(items: Iterable[msgspec.Raw], next_cursor: int | str | None) -> bytes:
    """The JSON of a page."""
    return msgspec.json.encode({"items": list(items), "next_cursor": next_cursor})


def accepted_events(accepted: Accepted) -> list[msgspec.Raw]:
    """The events of a command, as the members see them."""
    return [with_offset(item.offset, item.data) for item in accepted.events]


async def attach(call: Call, kind: Kind, stream_id: str) -> Attached:
    """Where the stream stands; Refusal `not_found` for who may not read it."""
    answer = await call.query(kind, stream_id, "attach")
    if not isinstance(answer, Attached):
        raise TypeError(f"attaching was answered by {type(answer).__name__}")
    return answer


async def event_page(call: Call, kind: Kind, stream_id: str, query: After) -> bytes:
    """A page of a stream's events, for its members. `next_cursor` is null where the stream ended a moment ago."""
    attached = await attach(call, kind, stream_id)
    limit = clamped(query.limit, MOST_EVENTS)
    rows = await call.services.reader.read(stream_name(kind, stream_id), query.after, limit, _PAGE_BYTES)
    more = bool(rows) and rows[-1][0] < attached.head
    return page_of((with_offset(offset, data) for offset, data in rows), rows[-1][0] if more else None)


def with_replayed(view: bytes, accepted: Accepted) -> bytes:
    """The object as JSON, and whether the write had made it before."""
    return view[:-1] + (b',"replayed":true}' if accepted.replayed else b',"replayed":false}')
