"""The one catalogue of errors: what REST answers with, what the WebSocket answers with, what the client should do."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from domain.redaction import redacted


class Code(StrEnum):
    """Every code a client can see. `STATUS` gives the HTTP status, `RETRYABLE` whether the same id may be sent again."""

    UNAUTHENTICATED = "unauthenticated"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a code, not a secret
    SESSION_REVOKED = "session_revoked"
    STEP_UP_REQUIRED = "step_up_required"
    """The caller is known, and has to prove once more who they are: `current.factor` says by what."""
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    VERSION_CONFLICT = "version_conflict"
    INVALID_TRANSITION = "invalid_transition"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    HOLD = "hold"
    OFFER_TAKEN = "offer_taken"
    INVALID = "invalid"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    BUSY = "busy"
    INTERNAL = "internal"
    """A bug of the platform's own: logged under the request id, told without details."""
    FENCED = "fenced"
    """Inside the platform only: the answering host no longer owns the partition; the router asks again."""


STATUS: Final[dict[Code, int]] = {
    Code.UNAUTHENTICATED: 401,
    Code.TOKEN_EXPIRED: 401,
    Code.SESSION_REVOKED: 401,
    Code.STEP_UP_REQUIRED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.METHOD_NOT_ALLOWED: 405,
    Code.CONFLICT: 409,
    Code.VERSION_CONFLICT: 409,
    Code.INVALID_TRANSITION: 409,
    Code.IDEMPOTENCY_MISMATCH: 409,
    Code.HOLD: 409,
    Code.OFFER_TAKEN: 409,
    Code.INVALID: 422,
    Code.PAYLOAD_TOO_LARGE: 413,
    Code.UNSUPPORTED_MEDIA_TYPE: 415,
    Code.RATE_LIMITED: 429,
    Code.UNAVAILABLE: 503,
    Code.BUSY: 503,
    Code.INTERNAL: 500,
    Code.FENCED: 503,
}

RETRYABLE: Final = frozenset({Code.RATE_LIMITED, Code.UNAVAILABLE, Code.BUSY, Code.FENCED})
"""Asking again later with the same id is right: the outcome is unknown or was refused for load alone."""


class FieldError(msgspec.Struct, frozen=True):
    """One thing wrong with the input: a JSON path such as `milestones[0].amount`, a code, and a sentence."""

    field: str
    code: str
    message: str


class Refused(msgspec.Struct, frozen=True, tag="refused", omit_defaults=True):
    """A refusal as it travels: nothing has changed, and `code` says why."""

    code: Code
    detail: str = ""
    errors: tuple[FieldError, ...] = ()
    current: Any = None
    allowed_commands: tuple[str, ...] | None = None
    retry_after_s: float | None = None


class Refusal(Exception):
    """Raised wherever a rule says no; carries what the client is told."""

    def __init__(
        self,
        code: Code,
        detail: str = "",
        *,
        errors: Sequence[FieldError] = (),
        current: Any = None,
        allowed_commands: Sequence[str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}" if detail else str(code))
        allowed = None if allowed_commands is None else tuple(allowed_commands)
        self.refused = Refused(code, detail, tuple(errors), current, allowed, retry_after_s)

    @property
    def code(self) -> Code:
        return self.refused.code

    @classmethod
    def of(cls, refused: Refused) -> "Refusal":
        """The exception of a refusal that came over the wire."""
        refusal = cls(refused.code, refused.detail)
        refusal.refused = refused
        return refusal


def invalid(field: str, code: str, message: str) -> Refusal:
    """The refusal for one bad field."""
    return Refusal(Code.INVALID, message, errors=(FieldError(field, code, message),))


def from_validation(error: msgspec.ValidationError | msgspec.DecodeError) -> Refusal:
    """The refusal for input that does not have the shape of its struct; msgspec names the path after ` - at `.

    Of what it repeats of the input, personal data and secrets are left out.
    """
    message, _, path = redacted(str(error)[:1000]).partition(" - at ")
    field = path.strip("`").removeprefix("$").removeprefix(".")
    return invalid(field, "malformed" if not isinstance(error, msgspec.ValidationError) else "invalid", message)
