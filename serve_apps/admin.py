"""For operators: how a stream stands, as its owner says and as the database says, side by side."""

from typing import Final

import msgspec

from domain.audit import Recorded, Wanted
from domain.channels import STREAM_KINDS, Kind, stream_name
from domain.commands import SYSTEM, Query, Viewed
from domain.errors import Code, Refusal, invalid
from domain.times import parse_rfc3339, rfc3339
from serve_apps import admin_page
from serve_apps.endpoint import Body, Call, Endpoint, Rule, endpoint
from serve_apps.inspection import Inspected, StreamInspection, inspection
from serve_apps.schemas.audit import AuditedAct, AuditQuery
from serve_apps.schemas.common import Items, clamped

_ACTS_MOST: Final = 200
_inspected: Final = msgspec.json.Decoder(Inspected)


@endpoint(
    "GET",
    "/v1/admin/streams/{kind}/{id}",
    tag="admin",
    rule=Rule.OPS,
    words={"kind": STREAM_KINDS},
    html=True,
)
async def inspect_stream(call: Call, kind: Kind, id: str) -> Body[StreamInspection]:
    """Who owns a stream, how its activation stands, and what the database has of it.

    `owner` and `activation` are null where no host answers, and `unanswered` says why. The database is read before the
    host is asked: whatever `differences` lists is not the time that passed between the two. No content is shown.
    """
    stream = stream_name(kind, id)
    stored = await call.services.records.record(stream)
    inspected, why = await _ask(call, kind, id)
    if not stored.head and (inspected is None or not inspected.version):
        raise Refusal(Code.NOT_FOUND)
    shown = inspection(kind, id, inspected, why, stored)
    if call.wants_page:
        return Body(admin_page.stream_page(shown), "text/html; charset=utf-8", admin_page.HEADERS)
    return Body(msgspec.json.encode(shown), headers={"Vary": "Accept"})


async def _ask(call: Call, kind: Kind, stream_id: str) -> tuple[Inspected | None, str]:
    """The host's side, or why there is none."""
    try:
        answer = await call.services.router.ask(
            Query(kind, stream_id, "inspect", SYSTEM), call.settings.inspect_timeout_s
        )
    except Refusal as refusal:
        return None, f"{refusal.code}: {refusal.refused.detail}"
    if not isinstance(answer, Viewed):
        raise TypeError(f"an inspection was answered by {type(answer).__name__}")
    try:
        return _inspected.decode(answer.body), ""
    except msgspec.DecodeError as error:  # a host of another version, in the middle of a rolling restart
        return None, f"the host's answer cannot be read: {error}"


@endpoint("GET", "/v1/admin/audit", tag="admin", rule=Rule.OPS)
async def list_audit(call: Call, query: AuditQuery) -> Items[AuditedAct]:
    """What was done that matters to security, latest first: by whom, from where, to what, and how it ended.

    `from` is the first instant, `to` the first one after. An operator's call of the endpoint `x` is the act `ops.x`.
    """
    wanted = Wanted(query.actor, query.act, _instant("from", query.since), _instant("to", query.until))
    page = await call.services.audit.find(wanted, query.cursor, clamped(query.limit, _ACTS_MOST))
    return Items([_act_view(item) for item in page.items], page.next_cursor)


def _instant(field: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_rfc3339(text)
    except (ValueError, OverflowError) as error:
        raise invalid(field, "invalid", "must be an instant such as 2026-01-31T09:30:00Z") from error


def _act_view(item: Recorded) -> AuditedAct:
    act = item.act
    return AuditedAct(
        number=item.number,
        id=item.id,
        at=rfc3339(item.at),
        act=act.act,
        outcome=act.outcome,
        actor=act.actor,
        session=act.session,
        ip=act.ip,
        object=act.object,
        details=act.details,
    )


@endpoint("GET", "/admin", tag="admin", rule=Rule.PUBLIC, media_type="text/html")
async def admin_form(call: Call) -> Body[str]:
    """A page that asks for an access token and a stream, and shows what `GET /v1/admin/streams/…` answers.

    It holds nothing by itself: whoever has no token of operations sees an empty form.
    """
    return Body(admin_page.form_page(), "text/html; charset=utf-8", admin_page.FORM_HEADERS)


ENDPOINTS: tuple[Endpoint, ...] = (inspect_stream, list_audit, admin_form)
