"""API keys: by them a worker's own programs read and quote."""

import base64
from hashlib import sha256

from domain.devices import API_KEY_PREFIX, RULES, ApiKey, require_fresh
from domain.errors import Code, Refusal
from domain.times import rfc3339
from serve_apps.endpoint import Call, Endpoint, Rule, endpoint
from serve_apps.schemas.auth import ApiKeyMade, ApiKeyPut, ApiKeys, ApiKeyView


@endpoint("POST", "/v1/me/api-keys", tag="people", rule=Rule.OWNER, status=201, conflicts=True)
async def add_api_key(call: Call, body: ApiKeyPut) -> ApiKeyMade:
    """A new API key of a worker, shown this once. 403 `forbidden` for who is no worker.

    For a session on which a one-time code was given less than ten minutes ago; else 401 `step_up_required`.
    """
    services, user = call.services, await call.user()
    if "worker" not in user.roles:
        raise Refusal(Code.FORBIDDEN, "API keys are for workers")
    require_fresh(await services.sessions.get(call.caller.session_id), call.now_ms())
    secret = API_KEY_PREFIX + base64.urlsafe_b64encode(services.entropy(32)).rstrip(b"=").decode()
    key = ApiKey(services.new_id(), user.id, body.name, call.now_ms())
    await services.api_keys.add(key, sha256(secret.encode()).digest(), RULES.api_keys_most)
    return ApiKeyMade(key.id, secret)


@endpoint("GET", "/v1/me/api-keys", tag="people", rule=Rule.OWNER)
async def list_api_keys(call: Call) -> ApiKeys:
    """The user's API keys without the keys themselves, the latest first."""
    return ApiKeys([api_key_view(key) for key in await call.services.api_keys.list_of(call.caller.user_id)])


@endpoint("DELETE", "/v1/me/api-keys/{key_id}", tag="people", rule=Rule.OWNER, status=204)
async def remove_api_key(call: Call, key_id: str) -> None:
    """Remove an API key; it is refused from the next request on."""
    if not await call.services.api_keys.remove(call.caller.user_id, key_id):
        raise Refusal(Code.NOT_FOUND)


def api_key_view(key: ApiKey) -> ApiKeyView:
    used = None if key.last_used_at is None else rfc3339(key.last_used_at)
    return ApiKeyView(key.id, key.name, rfc3339(key.created_at), used)


ENDPOINTS: tuple[Endpoint, ...] = (add_api_key, list_api_keys, remove_api_key)
