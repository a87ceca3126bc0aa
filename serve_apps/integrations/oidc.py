"""OpenID Connect: Google, Apple, and whoever else publishes a discovery document."""

import asyncio
from typing import Any, Final

import msgspec
from authlib.oauth2.base import OAuth2Error
from authlib.oauth2.client import OAuth2Client
from authlib.oidc.core import CodeIDToken
from httpx import HTTPStatusError
from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from domain.errors import Code, Refusal
from domain.identities import MAX_SUBJECT, IdentityProvider, ProviderSettings, SignIn, Vouched, check_endpoint
from domain.ports import Clock
from serve_apps.integrations.exchange import Exchange, ExchangeLimits, json_object

ALGORITHMS: Final = ("RS256", "ES256")
"""What an id token may be signed with; whatever else its header says, it is refused."""
_DISCOVERY: Final = "/.well-known/openid-configuration"
_ENDPOINTS: Final = ("authorization_endpoint", "token_endpoint", "jwks_uri")
_MAX_KEYS: Final = 32
_RSA_CHARS: Final = range(342, 1400)
"""Base64url characters of a modulus of 2,048 to about 8,400 bits: no weaker, and none that takes long to check."""


class OidcSettings(msgspec.Struct, frozen=True):
    """Times in seconds. Keys are fetched again for a token whose key is unknown, but not more often than `keys_gap_s`."""

    document_ttl_s: float = 3600.0
    keys_ttl_s: float = 3600.0
    keys_gap_s: float = 60.0
    leeway_s: int = 60
    max_age_s: int = 600
    """How long before now an id token may have been made."""
    max_token_chars: int = 16 * 1024


class _Metadata(msgspec.Struct, frozen=True):
    """What a discovery document (OpenID Connect Discovery 1.0, section 3) says that matters here."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


class _Client(OAuth2Client):  # type: ignore[misc]
    """Authlib's client over an `Exchange`, which bounds what it may cost."""

    async def _fetch_token(
        self, url: str, body: str = "", headers: Any = None, auth: Any = None, method: str = "POST", **_: Any
    ) -> dict[str, Any]:
        url, headers, body = auth.prepare(method, url, dict(headers), body)
        answer = await self.session.fetch(method, url, headers, body)
        token: dict[str, Any] = self.parse_response_token(answer)
        return token


class OidcProvider(IdentityProvider):
    """`domain.identities.IdentityProvider` by the authorization code flow with PKCE (S256) and a nonce.

    Its endpoints are those that the discovery document at the configured issuer names, and only https is spoken.
    """

    def __init__(
        self,
        name: str,
        provider: ProviderSettings,
        clock: Clock,
        *,
        dev: bool = False,
        settings: OidcSettings | None = None,
        limits: ExchangeLimits | None = None,
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._dev = dev
        self._settings = settings or OidcSettings()
        self._exchange = Exchange(name, limits)
        self._fetching = asyncio.Lock()
        self._metadata: tuple[float, _Metadata] | None = None
        self._keys: tuple[float, KeySet] | None = None

    async def authorization_url(self, state: str, nonce: str, redirect_uri: str, verifier: str) -> str:
        async with self._exchange.turn():
            metadata = await self._discover()
        client = self._client(metadata)
        url, _ = client.create_authorization_url(
            metadata.authorization_endpoint, state, verifier, nonce=nonce, redirect_uri=redirect_uri
        )
        return str(url)

    async def vouch(self, code: str, sign_in: SignIn, issuer: str | None) -> Vouched:
        async with self._exchange.turn():
            metadata = await self._discover()
            if issuer != metadata.issuer and (
                issuer is not None or metadata.authorization_response_iss_parameter_supported
            ):
                raise _refused("another provider has answered")
            token = await self._trade(metadata, code, sign_in)
            claims = await self._checked(metadata, token, sign_in.nonce)
        return Vouched(metadata.issuer, claims["sub"])

    async def close(self) -> None:
        await self._exchange.close()

    def _client(self, metadata: _Metadata) -> _Client:
        methods = metadata.token_endpoint_auth_methods_supported
        method = "client_secret_basic" if "client_secret_basic" in methods else "client_secret_post"
        return _Client(
            self._exchange,
            client_id=self._provider.client_id,
            client_secret=self._provider.client_secret or None,
            token_endpoint_auth_method=method if self._provider.client_secret else "none",
            scope=" ".join(dict.fromkeys(("openid", *self._provider.scopes))),
            code_challenge_method="S256",
        )

    async def _trade(self, metadata: _Metadata, code: str, sign_in: SignIn) -> dict[str, Any]:
        """What the token endpoint gives for the code."""
        try:
            token: dict[str, Any] = await self._client(metadata).fetch_token(
                metadata.token_endpoint,
                grant_type="authorization_code",
                code=code,
                redirect_uri=sign_in.redirect_uri,
                code_verifier=sign_in.verifier,
            )
        except OAuth2Error as error:
            if error.error == "invalid_grant":
                raise _refused("the provider does not know this code") from None
            raise self._exchange.unavailable(f"the token endpoint says {str(error.error)[:40]!r}") from None
        except (HTTPStatusError, ValueError, TypeError, RecursionError):
            raise self._exchange.unavailable("the token endpoint answered no JSON object") from None
        return token

    # --- what the provider publishes ---

    async def _discover(self) -> _Metadata:
        async with self._fetching:
            now_s = self._clock.monotonic_s()
            if self._metadata is None or now_s >= self._metadata[0]:
                answer = await self._exchange.fetch("GET", self._provider.issuer.rstrip("/") + _DISCOVERY)
                self._metadata = now_s + self._settings.document_ttl_s, self._metadata_of(json_object(answer))
            return self._metadata[1]

    def _metadata_of(self, document: dict[str, Any] | None) -> _Metadata:
        try:
            metadata = msgspec.convert(document, _Metadata)
            for name in _ENDPOINTS:
                check_endpoint(getattr(metadata, name), dev=self._dev)
        except (msgspec.ValidationError, ValueError) as error:
            raise self._exchange.unavailable(f"its discovery document cannot be used: {error}") from None
        if metadata.issuer != self._provider.issuer:
            raise self._exchange.unavailable("its discovery document is another issuer's")
        return metadata

    async def _key_set(self, metadata: _Metadata, *, unknown: KeySet | None = None) -> KeySet:
        """The provider's keys; others than the `unknown` set, which lacked one, if it may be asked again already."""
        async with self._fetching:
            now_s = self._clock.monotonic_s()
            if self._keys is not None:
                fetched_s, keys = self._keys
                age_s = now_s - fetched_s
                if age_s < (self._settings.keys_gap_s if keys is unknown else self._settings.keys_ttl_s):
                    return keys
            document = json_object(await self._exchange.fetch("GET", metadata.jwks_uri))
            keys = self._keys_of(document)
            self._keys = now_s, keys
            return keys

    def _keys_of(self, document: dict[str, Any] | None) -> KeySet:
        """The keys that may sign; those of other kinds are not for us (RFC 7517, section 5)."""
        listed = document.get("keys") if document is not None else None
        usable = []
        for key in listed[:_MAX_KEYS] if isinstance(listed, list) else ():
            try:
                if _may_sign(key):
                    usable += KeySet.import_key_set({"keys": [key]}).keys
            except (JoseError, ValueError, TypeError, KeyError):
                continue
        if not usable:
            raise self._exchange.unavailable("it publishes no key that can be used")
        return KeySet(usable)

    # --- the id token ---

    async def _checked(self, metadata: _Metadata, token: dict[str, Any], nonce: str) -> CodeIDToken:
        """The claims of the id token, all of them true. OpenID Connect Core 1.0, section 3.1.3.7."""
        id_token = token.get("id_token")
        if not isinstance(id_token, str) or len(id_token) > self._settings.max_token_chars:
            raise _refused("the provider gave no id token")
        keys = await self._key_set(metadata)
        try:
            decoded = _decoded(id_token, keys)
        except (InvalidKeyIdError, BadSignatureError) as error:
            renewed = await self._key_set(metadata, unknown=keys)
            if renewed is keys:
                raise _refused(f"the id token is not good ({error.error})") from None
            try:
                decoded = _decoded(id_token, renewed)
            except (InvalidKeyIdError, BadSignatureError) as second:
                raise _refused(f"the id token is not good ({second.error})") from None
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            options={
                "iss": {"essential": True, "value": metadata.issuer},
                "aud": {"essential": True, "value": self._provider.client_id},
            },
            params={
                "nonce": nonce,
                "client_id": self._provider.client_id,
                "access_token": token.get("access_token"),
            },
        )
        now_s = self._clock.now_ms() // 1000
        try:
            claims.validate(now_s, self._settings.leeway_s)
        except (JoseError, ValueError, TypeError, AttributeError) as error:
            raise _refused(f"the id token is not good ({error})") from None
        if claims["iat"] < now_s - self._settings.max_age_s - self._settings.leeway_s:
            raise _refused("the id token is too old")
        if not (0 < len(claims["sub"]) <= MAX_SUBJECT and claims["sub"].isascii()):
            raise _refused("the id token names nobody")
        return claims


def _decoded(id_token: str, keys: KeySet) -> jwt.Token:
    """The token, its signature checked. Raises InvalidKeyIdError or BadSignatureError where newer keys might know it."""
    try:
        return jwt.decode(id_token, keys, algorithms=ALGORITHMS)
    except (InvalidKeyIdError, BadSignatureError):
        raise
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _refused(f"the id token is not good ({type(error).__name__})") from None


def _may_sign(key: Any) -> bool:
    if not isinstance(key, dict) or key.get("use", "sig") != "sig":
        return False
    if key.get("kty") == "RSA":
        return isinstance(key.get("n"), str) and len(key["n"]) in _RSA_CHARS and "d" not in key
    return key.get("kty") == "EC" and key.get("crv") == "P-256" and "d" not in key


def _refused(why: str) -> Refusal:
    return Refusal(Code.UNAUTHENTICATED, why)
