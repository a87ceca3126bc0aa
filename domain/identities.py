"""Signing in by a third party: who vouches for whom, what is kept of it, and for how long.

A provider says which of its subjects somebody is. The platform keeps a digest of issuer and subject beside the account that
this subject was linked to, and nothing else of what the provider may know.
"""

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Protocol
from urllib.parse import urlsplit

import msgspec

PROVIDER_NAME: Final = r"[a-z][a-z0-9_-]{0,31}"
MAX_SUBJECT: Final = 255
"""Characters (OpenID Connect Core 1.0, section 2)."""
_MAX_URL: Final = 2048

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"\A[\x21-\x7e]+\Z")]
"""Visible ASCII without spaces."""


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A provider as its operator describes it.

    `oidc` is OpenID Connect with discovery at `issuer` (Google, Apple); `wechat` needs no more than its id and secret, and
    its endpoints are set only where they are not Tencent's own. An empty secret is that of a public client.
    """

    kind: Literal["oidc", "wechat"]
    client_id: Word
    client_secret: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    issuer: str = ""
    authorization_endpoint: str = ""
    token_endpoint: str = ""
    scopes: Annotated[tuple[Word, ...], msgspec.Meta(max_length=16)] = ()
    """Empty: `openid`, or what WeChat's own page asks for."""


def providers_from(given: Any, *, dev: bool) -> dict[str, ProviderSettings]:
    """The providers of a JSON object, by the names that clients use. Raises ValueError; it never holds a secret."""
    try:
        providers = msgspec.convert(given, dict[str, ProviderSettings])
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    for name, provider in providers.items():
        if not re.fullmatch(PROVIDER_NAME, name):
            raise ValueError("a provider's name must be a short lower-case word such as google")
        urls = {"issuer": provider.issuer} if provider.kind == "oidc" else {}
        urls |= {key: url for key in ("authorization_endpoint", "token_endpoint") if (url := getattr(provider, key))}
        if provider.kind == "oidc" and len(urls) > 1:
            raise ValueError(f"{name}: the endpoints of an oidc provider come from its issuer's discovery document")
        for key, url in urls.items():
            try:
                check_endpoint(url, dev=dev)
            except ValueError as error:
                raise ValueError(f"{name}.{key}: {error}") from None
    return providers


def check_endpoint(url: object, *, dev: bool) -> str:
    """The URL, if the platform may call it: https by a public name, or in development http on this machine.

    Raises:
        ValueError.
    """
    if not isinstance(url, str) or len(url) > _MAX_URL or not re.fullmatch(r"[\x21-\x7e]+", url) or "\\" in url:
        raise ValueError("must be an https address")
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "http" and dev and _is_loopback(host):
        return url
    if (
        parts.scheme != "https"
        or not host
        or parts.username is not None
        or parts.password is not None
        or parts.fragment
    ):
        raise ValueError("must be an https address")
    # Whatever a resolver might take for an address of a machine is none here: names end in letters.
    if not re.fullmatch(r"([a-z0-9_-]+\.)+[a-z][a-z0-9-]*", host):
        raise ValueError("must be an https address with a host that is a public name")
    _ = parts.port
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Vouched(msgspec.Struct, frozen=True):
    """Who somebody is to an issuer; `subject` is unique and never used again within it."""

    issuer: str
    subject: str

    @property
    def digest(self) -> bytes:
        """32 bytes, the same for the same subject whatever the provider is called in the settings."""
        return hashlib.sha256(f"{self.issuer}\n{self.subject}".encode()).digest()


class SignIn(msgspec.Struct, frozen=True):
    """A sign-in that was begun. `verifier` is the platform's own PKCE secret, `challenge` the client's, if it has one."""

    provider: str
    nonce: str
    verifier: str
    redirect_uri: str
    challenge: str | None


class PendingLink(msgspec.Struct, frozen=True):
    """A subject that a provider has vouched for and that no account is linked to."""

    provider: str
    digest: bytes


class LinkedIdentity(msgspec.Struct, frozen=True):
    """A provider that may speak for an account, since Unix milliseconds."""

    provider: str
    linked_at: int


class IdentityProvider(Protocol):
    """A third party. Whatever it does, each method ends within a few seconds."""

    async def authorization_url(self, state: str, nonce: str, redirect_uri: str, verifier: str) -> str:
        """Where the person is sent. Refusal `unavailable` where the provider does not answer."""
        ...

    async def vouch(self, code: str, sign_in: SignIn, issuer: str | None) -> Vouched:
        """Trade the code that came back for who it stands for; `issuer` is what came back beside it (RFC 9207).

        Raises:
            Refusal: `unauthenticated` for a code that is not good or an answer that does not prove what it says;
                `unavailable` where the provider does not answer, or not as it should.
        """
        ...

    async def close(self) -> None: ...


class SignInStore(Protocol):
    """Sign-ins under way and links not yet made. Atomic under any race. Raises `StoreUnavailable`: then none goes on.

    A store that has forgotten everything lets none go on either.
    """

    async def begin(self, state: str, sign_in: SignIn, ttl_s: int) -> None: ...

    async def take(self, state: str) -> SignIn | None:
        """The sign-in, once, within `ttl_s` of its beginning."""
        ...

    async def offer(self, token: str, link: PendingLink, ttl_s: int) -> None: ...

    async def claim(self, token: str, phone: str) -> bool:
        """Whether the link may be redeemed for this phone: the first one that is named keeps it for itself."""
        ...

    async def redeem(self, token: str, phone: str) -> PendingLink | None:
        """The link, once, for the phone that claimed it."""
        ...


class Identities(Protocol):
    """Which subjects are linked to which accounts. Durable on return. Every method may raise `StoreUnavailable`."""

    async def find(self, digest: bytes) -> str | None:
        """The account of a subject."""
        ...

    async def link(self, link: PendingLink, user_id: str, now_ms: int) -> None:
        """Link the subject to the account; again is harmless.

        Raises:
            Refusal: `conflict`: the subject belongs to another account, or the account has another subject of this provider.
        """
        ...

    async def list_of(self, user_id: str) -> list[LinkedIdentity]:
        """Oldest first."""
        ...

    async def unlink(self, user_id: str, provider: str) -> bool:
        """False: it was not linked."""
        ...


NO_PROVIDERS: Final[Mapping[str, IdentityProvider]] = {}
