"""Logging in by a one-time code, refreshing, logging out; device sessions."""

import hmac
from hashlib import sha256
from typing import Any

import msgspec
import phonenumbers
import structlog
from msgspec import UNSET, UnsetType

from domain.acts import OK, Act, Deed
from domain.channels import REVOKED_SUBJECT, user_subject
from domain.commands import Hint
from domain.devices import living, seen_again, step_up, stepped_up, strange
from domain.errors import Code, Refusal, invalid
from domain.identities import PendingLink
from domain.otp import prefix_of
from domain.places import Place, Seen, agent_of
from domain.ports import BrokerUnavailable, Device, DeviceSession, Judge, StoreUnavailable, User
from domain.sentences import language_of
from domain.tickets import TICKET_TTL_S
from domain.times import rfc3339
from serve_apps.audited import act_of, failed, phone_object, write_after
from serve_apps.endpoint import Body, Call, Endpoint, Rate, Rule, endpoint
from serve_apps.i18n import otp_text
from serve_apps.me import me_view
from serve_apps.schemas.auth import (
    DeviceInfo,
    LoggedIn,
    LogoutRequest,
    OtpRequest,
    OtpSent,
    PlaceView,
    RefreshRequest,
    Sessions,
    SessionView,
    StepUpRequest,
    Ticket,
    TokenPair,
    VerifyRequest,
)
from serve_apps.schemas.health import Jwks

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
    number = phone_object(settings.otp_pepper, phone)
    if settings.rate_limits:
        try:
            await _take(call, phone)
        except Refusal as refusal:
            await failed(call, Deed.CODE_REQUESTED, number, refusal)
            raise
    code = f"{int.from_bytes(services.entropy(8), 'big') % 1_000_000:06d}"
    await services.otp.put(phone, code_hash(settings.otp_pepper, phone, code), settings.otp_ttl_s)
    text = otp_text(code, settings.otp_ttl_s, await _language(call, phone))
    await services.sms.send(phone, text, code)
    services.metrics.count("otp_sent")
    await write_after(call, act_of(call, Deed.CODE_REQUESTED, OK, number))
    return OtpSent(settings.otp_ttl_s, settings.otp_budgets.phone_gap_s)


async def _language(call: Call, phone: str) -> str:
    """What the person who has the phone reads: their account's language, else the caller's. Only they get to see it."""
    try:
        own = await call.services.accounts.locale_of(phone)
    except StoreUnavailable:
        own = None
    return language_of(own or "") or call.locale


async def _take(call: Call, phone: str) -> None:
    """Count the code in every budget, or refuse it. Which budget it was is for operators alone."""
    settings, services = call.settings, call.services
    prefix = _prefix(call, phone)
    taken = await services.otp_budget.take(_phone_key(settings.otp_pepper, phone), prefix, settings.otp_budgets)
    services.metrics.gauge("otp_prefixes_shut", taken.shut_prefixes)
    if taken.opened_breaker:
        services.metrics.count("otp_breaker_opened")
        _log.warning("codes are sent to a prefix and hardly any is used: it is shut for a while", prefix=prefix)
    if taken.refused is not None:
        services.metrics.count(f"otp_refused_{taken.refused.limit}")
        raise Refusal(Code.RATE_LIMITED, "too many codes, try again later", retry_after_s=taken.refused.wait_s)


def _prefix(call: Call, phone: str) -> str:
    country_code = phonenumbers.parse(phone, None).country_code or 0
    return prefix_of(phone, country_code, call.settings.otp_budgets.prefix_digits)


async def _note_used(call: Call, phone: str) -> None:
    """Tell the breaker. Whoever has shown the right code gets in all the same where it cannot be told."""
    try:
        await call.services.otp_budget.used(_prefix(call, phone), call.settings.otp_budgets)
    except StoreUnavailable:
        _log.warning("a login could not be counted")


@endpoint("POST", "/v1/auth/otp/verify", tag="auth", rule=Rule.PUBLIC, rate=Rate.AUTH, conflicts=True)
async def verify_code(call: Call, body: VerifyRequest) -> LoggedIn:
    """Log in with a code. A wrong code, an expired one and a sixth try are all 401 `unauthenticated`.

    With a `link_token`, the third party's account that it stands for is linked to this one; 409 `conflict` where one of
    them is linked to another already. A link token is good once, and for the first phone that it is given with.
    """
    services = call.services
    phone = checked_phone(body.phone)
    if body.link_token is not None and not await services.sign_ins.claim(body.link_token, phone):
        raise _bad_link()  # before the code is looked at, so that it is not used up
    await _check_code(call, phone, body.code)
    link = None if body.link_token is None else await _redeemed(call, body.link_token, phone)
    user, is_new = await services.accounts.find_or_create(phone, call.locale)
    if link is not None:
        await services.identities.link(link, user.id, call.now_ms())
    return await log_in(call, user, body.device, "code", is_new=is_new, confirmed=True)


def _bad_link() -> Refusal:
    return invalid("link_token", "expired", "was used before, is too old, or is another phone's; sign in again")


async def _redeemed(call: Call, token: str, phone: str) -> PendingLink:
    link = await call.services.sign_ins.redeem(token, phone)
    if link is None:
        raise _bad_link()
    return link


async def log_in(
    call: Call, user: User, info: DeviceInfo, by: str, *, is_new: bool, confirmed: bool = False
) -> LoggedIn:
    """A new device session of the user, and what logs in with it. The rest is as for `open_session`."""
    pair = await open_session(call, user.id, _device(info), by, confirmed=confirmed)
    return LoggedIn(**msgspec.structs.asdict(pair), user=me_view(call, user), is_new=is_new)


async def _check_code(call: Call, phone: str, code: str) -> None:
    """Use up the phone's code. Refusal `unauthenticated` unless it is this one."""
    settings = call.settings
    hashed = code_hash(settings.otp_pepper, phone, code)
    if not await call.services.otp.check(phone, hashed, settings.otp_tries):
        refusal = _wrong_code()
        await failed(call, Deed.LOGIN, phone_object(settings.otp_pepper, phone), refusal, by="code")
        raise refusal
    if settings.rate_limits:
        await _note_used(call, phone)


def _wrong_code() -> Refusal:
    return Refusal(Code.UNAUTHENTICATED, "the code is wrong or has expired")


def _device(given: DeviceInfo) -> Device:
    return Device(given.id, given.name, given.platform)


def seen_of(call: Call) -> Seen:
    """How the caller's device comes now."""
    agent = agent_of(call.headers.get(b"user-agent", b"").decode("latin-1"))
    return Seen(call.ip, agent, call.services.places.locate(call.ip))


async def open_session(
    call: Call, user_id: str, device: Device, by: str, *, confirmed: bool = False, device_key_id: str | None = None
) -> TokenPair:
    """A new session of a user who has proved who they are, `by` what; `confirmed`: by a one-time code."""
    settings, services, now_ms = call.settings, call.services, call.now_ms()
    session = DeviceSession(
        id=services.new_id(),
        user_id=user_id,
        device=device,
        created_at=now_ms,
        last_seen_at=now_ms,
        seen=seen_of(call),
        confirmed_at=now_ms if confirmed else 0,
        device_key_id=device_key_id,
    )
    token = services.tokens.refresh()
    opened = Act(Deed.LOGIN, OK, user_id, session.id, call.ip, f"session:{session.id}", {"by": by})
    await services.sessions.open(session, services.tokens.hash(token), now_ms + settings.refresh_ttl_s * 1000, opened)
    access = services.tokens.access(user_id, session.id, now_ms, settings.access_ttl_s)
    return TokenPair(access, "Bearer", settings.access_ttl_s, token, settings.refresh_ttl_s)


@endpoint("POST", "/v1/auth/refresh", tag="auth", rule=Rule.PUBLIC)
async def refresh(call: Call, body: RefreshRequest) -> TokenPair:
    """Trade a refresh token for a new pair.

    A second use within the grace period gives the same pair again (two requests raced, or an answer was lost); a later
    one means that the token was stolen, and ends the device session. From another device or country than before it is
    401 `step_up_required`, and the token is not spent: `POST /v1/auth/step-up` takes it.
    """
    device = None if isinstance(body.device, UnsetType) else _device(body.device)
    seen, now_ms = seen_of(call), call.now_ms()

    def judge(session: DeviceSession) -> DeviceSession:
        if why := strange(session, device, seen, now_ms):
            _log.info("a refresh needs a step-up", session_id=session.id, why=why)
            raise step_up("otp", "this session came from elsewhere; confirm by a one-time code: POST /v1/auth/step-up")
        return seen_again(session, seen)

    return await _rotate(call, body.refresh_token, judge)


@endpoint("POST", "/v1/auth/step-up", tag="auth", rule=Rule.PUBLIC, rate=Rate.AUTH)
async def step_up_session(call: Call, body: StepUpRequest) -> TokenPair:
    """Trade a refresh token and a one-time code for a new pair; the session then belongs to this device and place.

    The code is one that `POST /v1/auth/otp` has sent to the user's phone. Whatever is wrong, the token or the code, is
    401 `unauthenticated`.
    """
    services, seen, now_ms = call.services, seen_of(call), call.now_ms()
    session = await services.sessions.of_refresh(services.tokens.hash(body.refresh_token))
    if session is None or session.revoked_at is not None:
        raise _wrong_code()
    user = (await services.accounts.get([session.user_id])).get(session.user_id)
    if user is None:
        raise _wrong_code()
    await _check_code(call, user.phone, body.code)

    def judge(session: DeviceSession) -> DeviceSession:
        device = session.device if isinstance(body.device, UnsetType) else _device(body.device)
        return stepped_up(session, device, seen, now_ms)

    return await _rotate(call, body.refresh_token, judge)


async def _rotate(call: Call, refresh_token: str, judge: Judge) -> TokenPair:
    """Spend the token for a new pair, if the judge of its session lets it; reuse is announced to the gateways."""
    settings, services = call.settings, call.services
    tokens = services.tokens
    now_ms = call.now_ms()
    successor = tokens.refresh()
    try:
        session, sealed = await services.sessions.rotate(
            tokens.hash(refresh_token),
            tokens.hash(successor),
            tokens.seal(f"{now_ms} {successor}"),
            now_ms,
            now_ms + settings.refresh_ttl_s * 1000,
            settings.refresh_grace_s * 1000,
            judge,
            reused=act_of(call, Deed.REFRESH_REUSED, str(Code.SESSION_REVOKED)),
        )
    except Refusal as refusal:
        if refusal.code is Code.STEP_UP_REQUIRED:
            raise
        stolen = await services.sessions.get(str(refusal.refused.current)) if refusal.refused.current else None
        if stolen is not None:
            await announce(call, stolen.user_id, [stolen.id])
        raise Refusal(refusal.code, refusal.refused.detail) from refusal
    issued_ms = now_ms
    if sealed is not None:
        try:
            issued, _, successor = tokens.unseal(sealed).partition(" ")
        except ValueError as error:  # its signing key was removed within these seconds
            raise Refusal(Code.UNAUTHENTICATED) from error
        issued_ms = int(issued)
    age_s = (now_ms - issued_ms) // 1000
    access = tokens.access(session.user_id, session.id, issued_ms, settings.access_ttl_s)
    return TokenPair(access, "Bearer", settings.access_ttl_s - age_s, successor, settings.refresh_ttl_s - age_s)


@endpoint("POST", "/v1/auth/ticket", tag="auth", rule=Rule.USER)
async def new_ticket(call: Call) -> Ticket:
    """A ticket: what an event stream, which can say who it is only in its URL, carries in place of the access token.

    It opens one connection of this device session, once, and is good for nothing else.
    """
    caller, services = call.caller, call.services
    ticket_id = services.entropy(16).hex()
    await services.tickets.issue(ticket_id, TICKET_TTL_S)
    ticket = services.tokens.ticket(caller.user_id, caller.session_id, ticket_id, call.now_ms(), TICKET_TTL_S)
    return Ticket(ticket, TICKET_TTL_S)


async def revoke_sessions(call: Call, user_id: str, session_ids: list[str], act: Act) -> None:
    """Revoke in the database, then tell the gateways. Where they cannot be told, tokens are refused all the same."""
    await call.services.sessions.revoke(session_ids, call.now_ms(), act)
    await announce(call, user_id, session_ids)


async def announce(call: Call, user_id: str, session_ids: list[str]) -> None:
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
    """End this device session, or with `all` whatever speaks for the user; their sockets are closed.

    With `all` every session ends, and every device key and API key is removed. Whoever wants back in needs a code.
    """
    caller, services = call.caller, call.services
    ids = [caller.session_id]
    if body.all:
        # Keys first: no session can be opened by one of them behind the list.
        await services.device_keys.remove(caller.user_id, None)
        await services.api_keys.remove(caller.user_id, None)
        ids = living(await services.sessions.list_of(caller.user_id))
    act = act_of(call, Deed.LOGOUT, OK, f"session:{caller.session_id}", sessions=str(len(ids)))
    await revoke_sessions(call, caller.user_id, ids, act)


@endpoint("GET", "/v1/auth/sessions", tag="auth", rule=Rule.OWNER)
async def list_sessions(call: Call) -> Sessions:
    """The user's device sessions that can still be used."""
    caller = call.caller
    sessions = await call.services.sessions.list_of(caller.user_id)
    return Sessions([session_view(item, caller.session_id) for item in sessions if item.revoked_at is None])


def session_view(session: DeviceSession, current: str) -> SessionView:
    device = DeviceInfo(session.device.id, session.device.name, session.device.platform)
    created, seen = rfc3339(session.created_at), rfc3339(session.last_seen_at)
    return SessionView(session.id, device, created, seen, session.id == current, _place_view(session.seen.place))


def _place_view(place: Place) -> PlaceView | UnsetType:
    if not place.country and not place.city:
        return UNSET
    return PlaceView(place.country or UNSET, place.city or UNSET)


@endpoint("DELETE", "/v1/auth/sessions/{session_id}", tag="auth", rule=Rule.OWNER, status=204)
async def end_session(call: Call, session_id: str) -> None:
    """End one device session of the user; its sockets are closed."""
    session = await call.services.sessions.get(session_id)
    if session is None or session.user_id != call.caller.user_id or session.revoked_at is not None:
        raise Refusal(Code.NOT_FOUND)
    act = act_of(call, Deed.SESSION_ENDED, OK, f"session:{session_id}")
    await revoke_sessions(call, session.user_id, [session_id], act)


@endpoint("GET", "/.well-known/jwks.json", tag="auth", rule=Rule.PUBLIC, rate=Rate.NONE)
async def jwks(call: Call) -> Body[Jwks]:
    """The public keys that access tokens are signed with."""
    keys: dict[str, Any] = call.services.tokens.jwks()
    return Body(msgspec.json.encode(keys), headers={"Cache-Control": "public, max-age=300"})


ENDPOINTS: tuple[Endpoint, ...] = (
    request_code,
    verify_code,
    refresh,
    step_up_session,
    new_ticket,
    logout,
    list_sessions,
    end_session,
    jwks,
)
