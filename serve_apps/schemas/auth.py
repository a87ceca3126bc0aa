"""Logging in, sessions, device keys, second factors, API keys."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serve_apps.schemas.common import Line, OtpCode, Phone, Timestamp, Uuid
from serve_apps.schemas.people import Me


class OtpRequest(msgspec.Struct):
    phone: Phone


class OtpSent(msgspec.Struct):
    expires_in_s: int
    resend_in_s: int


class DeviceInfo(msgspec.Struct):
    """The device that logs in: an id it keeps, a name for people, and its platform."""

    id: Line
    name: Line = "unnamed"
    platform: Line = "unknown"


LinkToken = Annotated[str, Meta(min_length=1, max_length=128)]


class VerifyRequest(msgspec.Struct):
    """`link_token` is what a sign-in by a third party gave: its account is linked to this phone's."""

    phone: Phone
    code: OtpCode
    device: DeviceInfo
    link_token: LinkToken | None = None


class TokenPair(msgspec.Struct):
    """A new pair: the refresh token it came from is spent."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in_s: int
    refresh_token: str
    refresh_expires_in_s: int


class LoggedIn(TokenPair):
    user: Me
    is_new: bool


class SignInStart(msgspec.Struct):
    """`code_challenge` is the base64url of the SHA-256 of a verifier that the app keeps until it finishes."""

    redirect_uri: Annotated[str, Meta(min_length=1, max_length=512)]
    code_challenge: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{43}\Z")] | None = None


class SignInStarted(msgspec.Struct):
    authorization_url: str
    state: str
    expires_in_s: int


class SignInFinish(msgspec.Struct):
    """What came back at the redirect address, `iss` too if it was there, and the device that logs in."""

    state: Annotated[str, Meta(min_length=1, max_length=128)]
    code: Annotated[str, Meta(min_length=1, max_length=2048, pattern=r"\A[\x20-\x7e]+\Z")]
    device: DeviceInfo
    code_verifier: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._~-]{43,128}\Z")] | None = None
    iss: Annotated[str, Meta(max_length=2048)] | None = None


class SignedIn(msgspec.Struct, omit_defaults=True):
    """Either what logging in by a code answers, or `link_token` and for how long it is good (`expires_in_s`)."""

    expires_in_s: int
    link_token: str | UnsetType = UNSET
    access_token: str | UnsetType = UNSET
    token_type: Literal["Bearer"] | UnsetType = UNSET
    refresh_token: str | UnsetType = UNSET
    refresh_expires_in_s: int | UnsetType = UNSET
    user: Me | UnsetType = UNSET
    is_new: bool | UnsetType = UNSET

    @classmethod
    def of(cls, answer: LoggedIn) -> "SignedIn":
        return cls(**{name: getattr(answer, name) for name in LoggedIn.__struct_fields__})


class IdentityView(msgspec.Struct):
    """A third party that the caller can sign in by."""

    provider: str
    linked_at: Timestamp


class Identities(msgspec.Struct):
    items: list[IdentityView]


class Ticket(msgspec.Struct):
    """Good for one connection, as its `token`, within `expires_in_s`."""

    ticket: str
    expires_in_s: int


RefreshToken = Annotated[str, Meta(min_length=1, max_length=512)]


class RefreshRequest(msgspec.Struct):
    """`device` as at the login, where the client says it: another one has to step up."""

    refresh_token: RefreshToken
    device: DeviceInfo | UnsetType = UNSET


class StepUpRequest(msgspec.Struct):
    """A code that `POST /v1/auth/otp` has sent to the session's user, and the device as it is now."""

    refresh_token: RefreshToken
    code: OtpCode
    device: DeviceInfo | UnsetType = UNSET


class LogoutRequest(msgspec.Struct):
    all: bool = False


class PlaceView(msgspec.Struct, omit_defaults=True):
    """Roughly where: an ISO 3166 country and a city, as far as they are known."""

    country: str | UnsetType = UNSET
    city: str | UnsetType = UNSET


class SessionView(msgspec.Struct, omit_defaults=True):
    """A device session: `current` is the one that asks. `last_seen_place` is there if it is known."""

    id: Uuid
    device: DeviceInfo
    created_at: Timestamp
    last_seen_at: Timestamp
    current: bool
    last_seen_place: PlaceView | UnsetType = UNSET


class Sessions(msgspec.Struct):
    items: list[SessionView]


Coordinate = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{43}\Z")]
"""32 bytes in base64url."""


class EcJwk(msgspec.Struct, forbid_unknown_fields=True):
    """A P-256 public key (RFC 7518, section 6.2). A private one, or anything else beside these, is refused."""

    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: Coordinate
    y: Coordinate


class DeviceKeyPut(msgspec.Struct):
    """A P-256 public key: a JWK, or SubjectPublicKeyInfo in base64."""

    public_key: EcJwk | str
    name: Line


class DeviceKeyView(msgspec.Struct):
    id: Uuid
    name: str
    created_at: Timestamp
    last_used_at: Timestamp | None


class DeviceKeys(msgspec.Struct):
    items: list[DeviceKeyView]


class ChallengeRequest(msgspec.Struct):
    key_id: Uuid


class Challenge(msgspec.Struct):
    """To be signed within `expires_in_s`, once."""

    challenge: str
    expires_in_s: int


class DeviceLogin(msgspec.Struct):
    """`signature` is `r || s` or DER, in base64url."""

    key_id: Uuid
    challenge: str
    signature: str
    device: DeviceInfo


class TotpEnrolled(msgspec.Struct):
    """What an authenticator app reads, as a QR code for instance. It holds the secret."""

    otpauth_uri: str


class TotpVerify(msgspec.Struct):
    code: OtpCode


class TotpVerified(msgspec.Struct):
    """For how long this session counts as verified."""

    until: Timestamp


class ApiKeyPut(msgspec.Struct):
    name: Line


class ApiKeyMade(msgspec.Struct):
    """`key` is what `Authorization: Bearer` takes. It is never shown again."""

    id: Uuid
    key: str


class ApiKeyView(msgspec.Struct):
    """`last_used_at` to some five minutes."""

    id: Uuid
    name: str
    created_at: Timestamp
    last_used_at: Timestamp | None


class ApiKeys(msgspec.Struct):
    items: list[ApiKeyView]
