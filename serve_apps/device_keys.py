"""Keys that a device keeps behind a face or a finger: registering them, and logging in by them."""

import base64

import msgspec

from domain.acts import OK, Deed
from domain.devices import RULES, DeviceKey, living, login_message, require_fresh
from domain.errors import Code, Refusal
from domain.ports import Device
from domain.times import rfc3339
from serve_apps.audited import act_of, failed
from serve_apps.auth import open_session, revoke_sessions
from serve_apps.endpoint import Call, Endpoint, Rate, Rule, endpoint
from serve_apps.me import me_view
from serve_apps.schemas.auth import (
    Challenge,
    ChallengeRequest,
    DeviceKeyPut,
    DeviceKeys,
    DeviceKeyView,
    DeviceLogin,
    LoggedIn,
)
from serve_apps.signatures import checked_key, verified


@endpoint("POST", "/v1/auth/device-keys", tag="auth", rule=Rule.OWNER, status=201, conflicts=True)
async def add_device_key(call: Call, body: DeviceKeyPut) -> DeviceKeyView:
    """Register the public key of a pair that this device keeps. The same key again is the same registration.

    For a session on which a one-time code was given less than ten minutes ago; else 401 `step_up_required`.
    """
    services, user = call.services, await call.user()
    public_key = checked_key(body.public_key)
    require_fresh(await services.sessions.get(call.caller.session_id), call.now_ms())
    key = DeviceKey(services.new_id(), user.id, body.name, public_key, call.now_ms())
    return device_key_view(await services.device_keys.add(key, RULES.device_keys_most))


@endpoint("GET", "/v1/auth/device-keys", tag="auth", rule=Rule.OWNER)
async def list_device_keys(call: Call) -> DeviceKeys:
    """The user's device keys, the latest first."""
    return DeviceKeys([device_key_view(key) for key in await call.services.device_keys.list_of(call.caller.user_id)])


@endpoint("GET", "/v1/auth/device-keys/{key_id}", tag="auth", rule=Rule.OWNER)
async def get_device_key(call: Call, key_id: str) -> DeviceKeyView:
    """One device key of the user."""
    key = await call.services.device_keys.get(key_id)
    if key is None or key.user_id != call.caller.user_id:
        raise Refusal(Code.NOT_FOUND)
    return device_key_view(key)


@endpoint("DELETE", "/v1/auth/device-keys/{key_id}", tag="auth", rule=Rule.OWNER, status=204)
async def remove_device_key(call: Call, key_id: str) -> None:
    """Remove a device key; the sessions that were opened by it end, and their sockets are closed."""
    services, user_id = call.services, call.caller.user_id
    if not await services.device_keys.remove(user_id, key_id):
        raise Refusal(Code.NOT_FOUND)
    act = act_of(call, Deed.SESSION_ENDED, OK, f"device-key:{key_id}")
    await revoke_sessions(call, user_id, living(await services.sessions.list_of(user_id), key_id), act)


def device_key_view(key: DeviceKey) -> DeviceKeyView:
    used = None if key.last_used_at is None else rfc3339(key.last_used_at)
    return DeviceKeyView(key.id, key.name, rfc3339(key.created_at), used)


@endpoint("POST", "/v1/auth/device-login/challenge", tag="auth", rule=Rule.PUBLIC)
async def new_challenge(call: Call, body: ChallengeRequest) -> Challenge:
    """A challenge for a device key to sign, once. The answer is the same whether or not there is such a key."""
    challenge = base64.urlsafe_b64encode(call.services.entropy(32)).rstrip(b"=").decode()
    await call.services.challenges.issue(challenge, body.key_id, call.settings.challenge_ttl_s)
    return Challenge(challenge, call.settings.challenge_ttl_s)


@endpoint("POST", "/v1/auth/device-login", tag="auth", rule=Rule.PUBLIC, rate=Rate.AUTH)
async def device_login(call: Call, body: DeviceLogin) -> LoggedIn:
    """Log in by a device key's signature of a challenge. Whatever is wrong with it is 401 `unauthenticated`.

    Signed is the text `renoveasy device login v1`, the audience, the key's id and the challenge, with line feeds between
    them, by ECDSA with SHA-256.
    """
    services = call.services
    issued = await services.challenges.spend(body.challenge, body.key_id)
    key = await services.device_keys.get(body.key_id)
    message = login_message(call.settings.audience, body.key_id, body.challenge) if issued else b""
    signed = verified(None if key is None else key.public_key, body.signature, message)
    if key is None or not issued or not signed:
        await failed(call, Deed.LOGIN, f"device-key:{body.key_id}", _refused(), by="device key")
        raise _refused()
    user = (await services.accounts.get([key.user_id])).get(key.user_id)
    if user is None:
        raise _refused()
    device = Device(body.device.id, body.device.name, body.device.platform)
    try:
        pair = await open_session(call, user.id, device, "device key", device_key_id=key.id)
    except Refusal as refusal:
        if refusal.code is not Code.UNAUTHENTICATED:
            raise
        raise _refused() from refusal
    return LoggedIn(**msgspec.structs.asdict(pair), user=me_view(call, user), is_new=False)


def _refused() -> Refusal:
    return Refusal(Code.UNAUTHENTICATED, "the signature does not prove the key")


ENDPOINTS: tuple[Endpoint, ...] = (
    add_device_key,
    list_device_keys,
    get_device_key,
    remove_device_key,
    new_challenge,
    device_login,
)
