"""Logging in by a one-time code, refreshing, logging out; device sessions."""

import hmac
from hashlib import sha256
from typing import Any

import msgspec
import phonenumbers
import structlog

from domain.channels import REVOKED_SUBJECT, user_subject
from domain.commands import Hint
from domain.errors import Code, Refusal, invalid
from domain.ports import BrokerUnavailable, Device, DeviceSession
from domain.times import rfc3339
from serve_apps.endpoint import Body, Call, Endpoint, Rate, Rule, endpoint
from serve_apps.i18n import otp_text
from serve_apps.me import me_view
from serve_apps.schemas import (
    DeviceInfo,
    Jwks,
    LoggedIn,
    LogoutRequest,
    OtpRequest,
    OtpSent,
    RefreshRequest,
    Sessions,
    SessionView,
    TokenPair,
    VerifyRequest,
)

_log = structlog.get_logger(__name__)


def checked_phone(text: str) -> str:
    """The phone number, if it is one that can exist, written in E.164. Refusal `invalid` otherwise."""
    try:
        number = phonenumbers.parse(text, None)
    except phonenumbers.NumberParseException as error:
        raise invalid("phone", "invalid", "must be a phone number in E.164, such as +8613800000000") from error
    canonical = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    if canonical != text or not phonenumbers.is_possible_number(number):
        raise invalid("phone", "invalid", "must be a phone number in E.164, such as +8613800000000")
    return canonical


def code_hash(pepper: bytes, phone: str, code: str) -> bytes:
    """What is stored of a one-time code: useless without the pepper, and for another phone."""
    return hmac.digest(pepper, f"otp\n{phone}\n{code}".encode(), sha256)


def _phone_key(pepper: bytes, phone: str) -> str:
    """A name for a phone's counters that does not show the number."""
    return hmac.digest(pepper, f"limit\n{phone}".encode(), sha256).hex()[:32]


@endpoint("POST", "/v1/auth/otp", tag="auth", rule=Rule.PUBLIC, rate=Rate.AUTH, status=202)
async def request_code(call: Call, body: OtpRequest) -> OtpSent:
    """Send a one-time code by text message. The answer is the same whether or not the number is known."""
    settings, services = call.settings, call.services
    phone = checked_phone(body.phone)
    if settings.rate_limits:
        await _count_phone(call, phone)
    code = f"{int.from_bytes(services.entropy(8), 'big') % 1_000_000:06d}"
    await services.otp.put(phone, code_hash(settings.otp_pepper, phone, code), settings.otp_ttl_s)
    await services.sms.send(phone, otp_text(code, settings.otp_ttl_s, call.locale), code)
    return OtpSent(settings.otp_ttl_s, settings.otp_resend_s)


async def _count_phone(call: Call, phone: str) -> None:
    settings, limiter = call.settings, call.services.limiter
    key = _phone_key(settings.otp_pepper, phone)
    for name, limit, window_s in (("gap", 1, settings.otp_resend_s), ("hour", settings.otp_per_phone_hour, 3600)):
        wait_s = await limiter.hit(f"otp:{name}:{key}", limit, window_s)
        if wait_s is not None:
            raise Refusal(Code.RATE_LIMITED, "too many codes for this number", retry_after_s=wait_s)


@endpoint("POST", "/v1/auth/otp/verify", tag="auth", rule=Rule.PUBLIC, rate=Rate.AUTH)
async def verify_code(call: Call, body: VerifyRequest) -> LoggedIn:
    """Log in with a code. A wrong code, an expired one and a sixth try are all 401 `unauthenticated`."""
    settings, services = call.settings, call.services
    phone = checked_phone(body.phone)
    hashed = code_hash(settings.otp_pepper, phone, body.code)
    if not await services.otp.check(phone, hashed, settings.otp_tries):
        raise Refusal(Code.UNAUTHENTICATED, "the code is wrong or has expired")
    user, is_new = await services.accounts.find_or_create(phone, call.locale)
    now_ms = call.now_ms()
    device = Device(body.device.id, body.device.name, body.device.platform)
    session = DeviceSession(services.new_id(), user.id, device, now_ms, now_ms)
    pair = _new_pair(call, user.id, session.id)
    expires_at = now_ms + settings.refresh_ttl_s * 1000
    await services.sessions.open(session, services.tokens.hash(pair.refresh_token), expires_at)
    return LoggedIn(**msgspec.structs.asdict(pair), user=me_view(user), is_new=is_new)


def _new_pair(call: Call, user_id: str, session_id: str) -> TokenPair:
    settings, tokens = call.settings, call.services.tokens
    access = tokens.access(user_id, session_id, call.now_ms(), settings.access_ttl_s)
    return TokenPair(access, "Bearer", settings.access_ttl_s, tokens.refresh(), settings.refresh_ttl_s)


@endpoint("POST", "/v1/auth/refresh", tag="auth", rule=Rule.PUBLIC)
async def refresh(call: Call, body: RefreshRequest) -> TokenPair:
    """Trade a refresh token for a new pair.

    A second use within the grace period gives the same pair again (two requests raced, or an answer was lost); a later
    one means that the token was stolen, and ends the device session.
    """
    settings, services = call.settings, call.services
    tokens = services.tokens
    now_ms = call.now_ms()
    successor = tokens.refresh()
    try:
        session, sealed = await services.sessions.rotate(
            tokens.hash(body.refresh_token),
            tokens.hash(successor),
            tokens.seal(f"{now_ms} {successor}"),
            now_ms,
            now_ms + settings.refresh_ttl_s * 1000,
            settings.refresh_grace_s * 1000,
        )
    except Refusal as refusal:
        stolen = await services.sessions.get(str(refusal.refused.current)) if refusal.refused.current else None
        if stolen is not None:
            await _announce(call, stolen.user_id, [stolen.id])
        raise Refusal(refusal.code, refusal.refused.detail) from refusal
    issued_ms = now_ms
    if sealed is not None:
        issued, _, successor = tokens.unseal(sealed).partition(" ")
        issued_ms = int(issued)
    age_s = (now_ms - issued_ms) // 1000
    access = tokens.access(session.user_id, session.id, issued_ms, settings.access_ttl_s)
    return TokenPair(access, "Bearer", settings.access_ttl_s - age_s, successor, settings.refresh_ttl_s - age_s)


async def _revoke(call: Call, user_id: str, session_ids: list[str]) -> None:
    """Revoke in the database, then tell the gateways. Where they cannot be told, tokens are refused all the same."""
    await call.services.sessions.revoke(session_ids, call.now_ms())
    await _announce(call, user_id, session_ids)


async def _announce(call: Call, user_id: str, session_ids: list[str]) -> None:
    """Tell the user's devices which session has ended, and the gateways to close its sockets."""
    publish = call.services.broker.publish
    for session_id in session_ids:
        call.services.verifier.forget(session_id)
        hint = msgspec.json.encode({"type": "session.revoked", "session_id": session_id})
        try:
            await publish(user_subject(user_id), msgspec.msgpack.encode(Hint(user_id, hint)))
            await publish(REVOKED_SUBJECT, session_id.encode())
        except BrokerUnavailable:
            _log.warning("a revocation could not be announced", session_id=session_id)


@endpoint("POST", "/v1/auth/logout", tag="auth", rule=Rule.USER, status=204)
async def logout(call: Call, body: LogoutRequest) -> None:
    """End this device session, or with `all` every one of the user's; their sockets are closed."""
    caller = call.caller
    ids = [caller.session_id]
    if body.all:
        ids = [session.id for session in await call.services.sessions.list_of(caller.user_id) if not session.revoked_at]
    await _revoke(call, caller.user_id, ids)


@endpoint("GET", "/v1/auth/sessions", tag="auth", rule=Rule.OWNER)
async def list_sessions(call: Call) -> Sessions:
    """The user's device sessions that can still be used."""
    caller = call.caller
    sessions = await call.services.sessions.list_of(caller.user_id)
    return Sessions([_session_view(item, caller.session_id) for item in sessions if item.revoked_at is None])


def _session_view(session: DeviceSession, current: str) -> SessionView:
    device = DeviceInfo(session.device.id, session.device.name, session.device.platform)
    created, seen = rfc3339(session.created_at), rfc3339(session.last_seen_at)
    return SessionView(session.id, device, created, seen, session.id == current)


@endpoint("DELETE", "/v1/auth/sessions/{session_id}", tag="auth", rule=Rule.OWNER, status=204)
async def end_session(call: Call, session_id: str) -> None:
    """End one device session of the user; its sockets are closed."""
    session = await call.services.sessions.get(session_id)
    if session is None or session.user_id != call.caller.user_id or session.revoked_at is not None:
        raise Refusal(Code.NOT_FOUND)
    await _revoke(call, session.user_id, [session_id])


@endpoint("GET", "/.well-known/jwks.json", tag="auth", rule=Rule.PUBLIC, rate=Rate.NONE)
async def jwks(call: Call) -> Body[Jwks]:
    """The public keys that access tokens are signed with."""
    keys: dict[str, Any] = call.services.tokens.jwks()
    return Body(msgspec.json.encode(keys), headers={"Cache-Control": "public, max-age=300"})


ENDPOINTS: tuple[Endpoint, ...] = (request_code, verify_code, refresh, logout, list_sessions, end_session, jwks)
