"""WeChat: OAuth2 with shapes of its own. No PKCE, no nonce, no id token; TLS alone says that the answer is WeChat's."""

from typing import Any, Final
from urllib.parse import urlencode

from domain.errors import Code, Refusal
from domain.identities import MAX_SUBJECT, IdentityProvider, ProviderSettings, SignIn, Vouched
from serve_apps.integrations.exchange import Exchange, ExchangeLimits, json_object

ISSUER: Final = "https://open.weixin.qq.com"
_AUTHORIZE: Final = f"{ISSUER}/connect/qrconnect"
_TOKEN: Final = "https://api.weixin.qq.com/sns/oauth2/access_token"  # noqa: S105 - an address
_SCOPE: Final = "snsapi_login"
_BAD_CODE: Final = frozenset({40029, 40163, 41008, 42003})
"""Invalid, used, missing, expired."""


class WechatProvider(IdentityProvider):
    """`domain.identities.IdentityProvider`. A person is their `unionid`, which all apps of one owner see alike; where
    WeChat gives none, their `openid`, which is this app's alone."""

    def __init__(self, name: str, provider: ProviderSettings, limits: ExchangeLimits | None = None) -> None:
        self._provider = provider
        self._exchange = Exchange(name, limits)

    async def authorization_url(self, state: str, nonce: str, redirect_uri: str, verifier: str) -> str:
        """WeChat wants these names, and a fragment that selects its page."""
        query = {
            "appid": self._provider.client_id,
            "redirect_uri": redirect_uri,
            "response_type": "code",
            "scope": ",".join(self._provider.scopes) or _SCOPE,
            "state": state,
        }
        return f"{self._provider.authorization_endpoint or _AUTHORIZE}?{urlencode(query)}#wechat_redirect"

    async def vouch(self, code: str, sign_in: SignIn, issuer: str | None) -> Vouched:
        query = {
            "appid": self._provider.client_id,
            "secret": self._provider.client_secret,
            "code": code,
            "grant_type": "authorization_code",
        }
        if issuer is not None:
            raise Refusal(Code.UNAUTHENTICATED, "another provider has answered")
        async with self._exchange.turn():
            url = f"{self._provider.token_endpoint or _TOKEN}?{urlencode(query)}"
            answer = json_object(await self._exchange.fetch("GET", url))
        if answer is None:
            raise self._exchange.unavailable("it answered no JSON object")
        if answer.get("errcode"):
            raise self._refusal(answer["errcode"])
        union, person = _subject(answer.get("unionid")), _subject(answer.get("openid"))
        if union is not None:
            return Vouched(ISSUER, union)
        if person is None:
            raise self._exchange.unavailable("it named nobody")
        return Vouched(f"{ISSUER}#{self._provider.client_id}", person)

    def _refusal(self, errcode: Any) -> Refusal:
        if isinstance(errcode, int) and errcode in _BAD_CODE:
            return Refusal(Code.UNAUTHENTICATED, "the provider does not know this code")
        return self._exchange.unavailable(f"errcode {str(errcode)[:20]}")

    async def close(self) -> None:
        await self._exchange.close()


def _subject(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_SUBJECT and value.isascii() else None
