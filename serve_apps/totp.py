"""The second factor of operators: time-based one-time passwords (RFC 6238), made by an authenticator app."""

import base64
import hmac

import pyotp

from domain.devices import RULES, TotpSecret, require_fresh
from domain.errors import Code, Refusal
from domain.times import rfc3339
from serve_apps.endpoint import Call, Endpoint, Rule, endpoint
from serve_apps.me import masked
from serve_apps.schemas.auth import TotpEnrolled, TotpVerified, TotpVerify

_STEP_S = 30
_AROUND = (0, -1, 1)
"""The steps that are looked at beside now's: clocks differ, and people type slowly."""
_SECRET_BYTES = 20


@endpoint("POST", "/v1/auth/totp/enrol", tag="auth", rule=Rule.OPS, status=201, first_factor=True, conflicts=True)
async def enrol_totp(call: Call) -> TotpEnrolled:
    """A new secret for the operator's authenticator app, shown this once. It counts from the first right code on.

    For a session on which a one-time code was given less than ten minutes ago; else 401 `step_up_required`. 409 `conflict`
    where a secret counts already: `renoveasy reset-totp` removes it.
    """
    services, user = call.services, await call.user()
    require_fresh(await services.sessions.get(call.caller.session_id), call.now_ms())
    secret = base64.b32encode(services.entropy(_SECRET_BYTES)).decode()
    if not await services.totp.enrol(TotpSecret(user.id, secret, call.now_ms())):
        raise Refusal(Code.CONFLICT, "a second factor is set up already; operations can reset it")
    uri = pyotp.TOTP(secret).provisioning_uri(name=masked(user.phone), issuer_name="RenovEasy")
    return TotpEnrolled(uri)


@endpoint("POST", "/v1/auth/totp/verify", tag="auth", rule=Rule.OPS, first_factor=True, conflicts=True)
async def verify_totp(call: Call, body: TotpVerify) -> TotpVerified:
    """Verify this session by a code of the authenticator app. Each code counts once; 401 `unauthenticated` otherwise.

    After five wrong ones in a row 429 `rate_limited` for a while, whatever is sent.
    """
    services, settings, caller = call.services, call.settings, call.caller
    tries = f"totp:{caller.user_id}"
    wait_s = await services.tries.take(tries, settings.totp_tries, settings.totp_pause_s)
    if wait_s is not None:
        raise Refusal(Code.RATE_LIMITED, "too many wrong codes", retry_after_s=wait_s)
    now_ms = call.now_ms()
    secret = await services.totp.get(caller.user_id)
    step = None if secret is None else matching_step(secret.secret, body.code, now_ms)
    if secret is None or step is None or not await services.totp.spend(secret, step, caller.session_id, now_ms):
        raise Refusal(Code.UNAUTHENTICATED, "the code is wrong, was used before, or has expired")
    await services.tries.clear(tries)
    return TotpVerified(rfc3339(now_ms + RULES.second_factor_s * 1000))


def matching_step(secret: str, code: str, now_ms: int) -> int | None:
    """The time step that this is the code of, now or one step before or after."""
    totp, now_step = pyotp.TOTP(secret, interval=_STEP_S), now_ms // 1000 // _STEP_S
    found = None
    for step in (now_step + around for around in _AROUND):
        if hmac.compare_digest(totp.generate_otp(step), code) and found is None:
            found = step
    return found


ENDPOINTS: tuple[Endpoint, ...] = (enrol_totp, verify_totp)
