"""The payloads of an order's commands, and how bytes become one of them or a list of what is wrong with them."""

import re
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from domain.errors import Code, FieldError, Refused, from_validation
from domain.order_state import Line, Money

INT_MAX: Final = 2**53 - 1
AMOUNT_MAX: Final = 10**13
"""Largest single amount in minor units: ten of them still fit an IEEE double exactly."""

Id = Annotated[str, Meta(pattern=r"\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
Ref = Annotated[str, Meta(min_length=1, max_length=100)]
PLAIN: Final = r"\A[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*\Z"
"""No control characters but tab and line ends: they show nothing, and JSON makes six bytes of each."""
Text = Annotated[str, Meta(max_length=4_000, pattern=PLAIN)]
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=PLAIN)]
Currency = Annotated[str, Meta(pattern=r"\A[A-Z]{3}\Z")]
Amount = Annotated[int, Meta(ge=1, le=AMOUNT_MAX)]
Part = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
Number = Annotated[int, Meta(ge=1, le=1_000)]
Rev = Annotated[int, Meta(ge=1, le=INT_MAX)]
Latitude = Annotated[float, Meta(ge=-90, le=90)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]
Instant = Annotated[datetime, Meta(tz=True)]
Photos = Annotated[tuple[Ref, ...], Meta(max_length=30)]
Items = Annotated[tuple[Text, ...], Meta(min_length=1, max_length=50)]


class Site(msgspec.Struct, frozen=True):
    lat: Latitude
    lon: Longitude
    address: Annotated[str, Meta(min_length=1, max_length=500, pattern=PLAIN)]


class Budget(msgspec.Struct, frozen=True):
    amount: Amount
    currency: Currency

    def money(self) -> Money:
        return Money(self.amount, self.currency)


class MilestoneLine(msgspec.Struct, frozen=True):
    title: Annotated[str, Meta(min_length=1, max_length=100, pattern=PLAIN)]
    amount: Amount

    def line(self) -> Line:
        return Line(self.title, self.amount)


Milestones = Annotated[tuple[MilestoneLine, ...], Meta(min_length=1, max_length=10)]


class FixInput(msgspec.Struct, frozen=True):
    """A GPS observation as devices send it."""

    at: Instant
    lat: Latitude
    lon: Longitude
    accuracy_m: Annotated[float, Meta(ge=0, le=1e6)]
    speed_mps: Annotated[float, Meta(ge=0, le=1e4)] | None = None
    heading_deg: Annotated[float, Meta(ge=-360, le=360)] | None = None


class Nothing(msgspec.Struct, frozen=True):
    """No parameters."""


class Create(msgspec.Struct, frozen=True):
    category: Annotated[str, Meta(min_length=1, max_length=64)]
    title: Name
    description: Annotated[str, Meta(max_length=10_000, pattern=PLAIN)]
    site: Site
    budget: Budget | None = None
    photos: Photos = ()
    publish: bool = False


class SubmitQuote(msgspec.Struct, frozen=True):
    quote_id: Id
    rev: Rev
    milestones: Milestones
    currency: Currency
    note: Annotated[str, Meta(max_length=1_000, pattern=PLAIN)] = ""
    valid_until: Instant | None = None


class QuoteRef(msgspec.Struct, frozen=True):
    quote_id: Id


class AcceptQuote(msgspec.Struct, frozen=True):
    quote_id: Id
    rev: Rev


class StartPayment(msgspec.Struct, frozen=True):
    payment_id: Id
    milestone: Number
    rail: Annotated[str, Meta(min_length=1, max_length=40)]


class DepositHeld(msgspec.Struct, frozen=True):
    payment_id: Id
    amount: Amount
    currency: Currency
    psp_event_id: Ref


class DepositFailed(msgspec.Struct, frozen=True):
    payment_id: Id
    psp_event_id: Ref
    reason: Text = ""


class PspEvent(msgspec.Struct, frozen=True):
    psp_event_id: Ref


class RefundPaid(msgspec.Struct, frozen=True):
    milestone: Number
    amount: Amount
    currency: Currency
    psp_event_id: Ref


class ProposeSlot(msgspec.Struct, frozen=True):
    visit_id: Id
    start: Instant
    end: Instant


class VisitRef(msgspec.Struct, frozen=True):
    visit_id: Id


class OnVisit(msgspec.Struct, frozen=True):
    visit_id: Id
    fix: FixInput | None = None
    reason: Text = ""


class CheckIn(msgspec.Struct, frozen=True):
    visit_id: Id
    code: Annotated[str, Meta(max_length=16)]
    fix: FixInput | None = None


class SubmitMilestone(msgspec.Struct, frozen=True):
    n: Number
    photos: Photos = ()
    note: Text = ""


class MilestoneRef(msgspec.Struct, frozen=True):
    n: Number


class Submission(msgspec.Struct, frozen=True):
    n: Number
    submission_no: Rev


class RequestChanges(msgspec.Struct, frozen=True):
    n: Number
    items: Items


class SubmitCompletion(msgspec.Struct, frozen=True):
    photos: Photos = ()
    note: Text = ""


class ProposeChange(msgspec.Struct, frozen=True):
    change_id: Id
    milestones: Milestones
    contract_rev: Rev | None = None


class ChangeRef(msgspec.Struct, frozen=True):
    change_id: Id


class Cancel(msgspec.Struct, frozen=True):
    reason: Text = ""


class OpenDispute(msgspec.Struct, frozen=True):
    dispute_id: Id
    n: Number
    amount: Amount
    reason: Annotated[str, Meta(min_length=1, max_length=4_000)]
    evidence: Photos = ()


class RespondDispute(msgspec.Struct, frozen=True):
    dispute_id: Id
    text: Annotated[str, Meta(min_length=1, max_length=4_000)]
    evidence: Photos = ()


class DecideDispute(msgspec.Struct, frozen=True):
    dispute_id: Id
    to_customer: Part
    to_worker: Part


class DisputeRef(msgspec.Struct, frozen=True):
    dispute_id: Id


class Nudge(msgspec.Struct, frozen=True):
    reminder: Ref


class Rate(msgspec.Struct, frozen=True):
    stars: Annotated[int, Meta(ge=1, le=5)]
    text: Text = ""


class Malformed(msgspec.Struct, frozen=True):
    """A payload that is not its command's: refused by `decide`, after the state of the order had its say."""

    refused: Refused


_MISSING = re.compile(r"missing required field `([^`]+)`")


def wrong(field: str, code: str, message: str) -> Refused:
    """The refusal for one bad field, as a value."""
    return Refused(Code.INVALID, message, (FieldError(field, code, message),))


def parse_payload(payload: bytes, shape: type[msgspec.Struct]) -> Any:
    """The payload as that struct, or `Malformed` with the path of the field that is wrong."""
    try:
        return msgspec.json.decode(payload or b"{}", type=shape)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        refused = from_validation(error).refused
    except (UnicodeDecodeError, RecursionError):
        refused = wrong("payload", "malformed", "the payload is not a JSON object in UTF-8")
    missing = _MISSING.search(refused.detail)
    if missing is None:
        return Malformed(refused)
    inside = refused.errors[0].field
    return Malformed(wrong(f"{inside}.{missing[1]}" if inside else missing[1], "required", refused.detail))
