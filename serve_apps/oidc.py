"""Signing in by a third party, and the links between its accounts and ours.

The app sends the person to the provider, and brings back what the provider gave: a state, which is good once and names the
provider that it began with, and a code. Who is not known yet proves a phone number, as everybody does, and is linked to it.
"""

import base64
import hmac
from hashlib import sha256

from domain.errors import Code, Refusal, invalid
from domain.identities import IdentityProvider, PendingLink, SignIn, Vouched
from domain.times import rfc3339
from serve_apps.auth import log_in
from serve_apps.endpoint import Call, Endpoint, Rate, Rule, endpoint
from serve_apps.schemas.auth import Identities, IdentityView, SignedIn, SignInFinish, SignInStart, SignInStarted


def _random(call: Call) -> str:
    """256 bits that nobody can guess, URL-safe; as a PKCE verifier it is as long as RFC 7636 wants it."""
    return _base64url(call.services.entropy(32))


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _provider(call: Call, name: str) -> IdentityProvider:
    known = call.services.providers.get(name)
    if known is None:
        raise Refusal(Code.NOT_FOUND)
    return known


@endpoint("POST", "/v1/auth/oidc/{provider}/start", tag="auth", rule=Rule.PUBLIC, names=("provider",))
async def start_sign_in(call: Call, body: SignInStart, provider: str) -> SignInStarted:
    """Begin to sign in by a third party: where to send the person, and the state to finish with, within ten minutes.

    `code_challenge` (S256, RFC 7636) is the app's own: with it, only who knows its verifier can finish.
    """
    settings, services = call.settings, call.services
    known = _provider(call, provider)
    if body.redirect_uri not in settings.sign_in_redirects:
        raise invalid("redirect_uri", "invalid", "must be one of the addresses that are allowed here")
    state, nonce, verifier = _random(call), _random(call), _random(call)
    url = await known.authorization_url(state, nonce, body.redirect_uri, verifier)
    sign_in = SignIn(provider, nonce, verifier, body.redirect_uri, body.code_challenge)
    await services.sign_ins.begin(state, sign_in, settings.sign_in_ttl_s)
    return SignInStarted(url, state, settings.sign_in_ttl_s)


@endpoint("POST", "/v1/auth/oidc/{provider}/finish", tag="auth", rule=Rule.PUBLIC, rate=Rate.AUTH, names=("provider",))
async def finish_sign_in(call: Call, body: SignInFinish, provider: str) -> SignedIn:
    """Finish it with the code that came back: logged in, or a link token for who is not known yet.

    A state is good once, whatever becomes of it. With a link token, log in by a one-time code: `link_token` in
    `POST /v1/auth/otp/verify` links the two, and from then on this route logs in.
    """
    services = call.services
    known = _provider(call, provider)
    sign_in = await services.sign_ins.take(body.state)
    if sign_in is None or sign_in.provider != provider or not _proves(body.code_verifier, sign_in.challenge):
        raise Refusal(Code.UNAUTHENTICATED, "this sign-in was finished before, is too old or began elsewhere")
    vouched = await known.vouch(body.code, sign_in, body.iss)
    user_id = await services.identities.find(vouched.digest)
    user = None if user_id is None else (await services.accounts.get([user_id])).get(user_id)
    if user is None:
        return await _offer_link(call, provider, vouched)
    return SignedIn.of(await log_in(call, user, body.device, provider, is_new=False))


async def _offer_link(call: Call, provider: str, vouched: Vouched) -> SignedIn:
    token = _random(call)
    await call.services.sign_ins.offer(token, PendingLink(provider, vouched.digest), call.settings.link_ttl_s)
    return SignedIn(expires_in_s=call.settings.link_ttl_s, link_token=token)


def _proves(verifier: str | None, challenge: str | None) -> bool:
    """Whether the verifier is that of the challenge; where there was no challenge, none may be given (RFC 9700, 2.1.1)."""
    if verifier is None or challenge is None:
        return verifier is challenge
    return hmac.compare_digest(_base64url(sha256(verifier.encode()).digest()), challenge)


@endpoint("GET", "/v1/auth/identities", tag="auth", rule=Rule.OWNER)
async def list_identities(call: Call) -> Identities:
    """The third parties that the caller can sign in by."""
    linked = await call.services.identities.list_of(call.caller.user_id)
    return Identities([IdentityView(item.provider, rfc3339(item.linked_at)) for item in linked])


@endpoint("DELETE", "/v1/auth/identities/{provider}", tag="auth", rule=Rule.OWNER, status=204, names=("provider",))
async def remove_identity(call: Call, provider: str) -> None:
    """Sign in by this third party no more. Sessions stay as they are."""
    if not await call.services.identities.unlink(call.caller.user_id, provider):
        raise Refusal(Code.NOT_FOUND)


ENDPOINTS: tuple[Endpoint, ...] = (start_sign_in, finish_sign_in, list_identities, remove_identity)
