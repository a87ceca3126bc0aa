"""Signing in by a third party, against a real provider that lies, breaks and hangs: nobody gets in who should not."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from joserfc import jwt

from domain.identities import ProviderSettings
from serve_apps.integrations.exchange import ExchangeLimits
from serve_apps.integrations.oidc import OidcProvider
from serve_apps.integrations.wechat import WechatProvider
from tests.support.oidc_server import CLIENT_ID, CLIENT_SECRET, DISCOVERY, OidcServer, ec_key, forged, rsa_key
from tests.support.rest_app import World

BACK = "com.example.app:/signed-in"
PHONE, OTHER_PHONE = "+8613800000001", "+8613800000002"
DEVICE = {"id": "phone-1", "name": "Li's phone", "platform": "ios"}
VERIFIER = "the-app-keeps-this-for-itself-until-it-finishes"
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
PATIENT, BRIEF = ExchangeLimits(turn_s=20.0), ExchangeLimits(turn_s=2.0, turns=3)


class Stage:
    """Two providers, the application, and the app of one person."""

    def __init__(self, world: World, google: OidcServer, other: OidcServer, http: httpx.AsyncClient) -> None:
        self.world, self.google, self.other, self.http = world, google, other, http

    async def start(self, provider: str = "google", **more: Any) -> httpx.Response:
        return await self.http.post(f"/v1/auth/oidc/{provider}/start", json={"redirect_uri": BACK} | more)

    async def visited(self, provider: str = "google", subject: str | None = None, **more: Any) -> dict[str, str]:
        """What comes back to the app after a start: state and code."""
        began = (await self.start(provider, **more)).json()
        server = self.google if provider == "google" else self.other
        back = await server.visit(began["authorization_url"], subject)
        assert back["state"] == began["state"]
        return back

    async def finish(self, back: dict[str, str], provider: str = "google", **more: Any) -> httpx.Response:
        body = {"state": back["state"], "code": back["code"], "device": DEVICE} | more
        return await self.http.post(f"/v1/auth/oidc/{provider}/finish", json=body)

    async def code(self, phone: str = PHONE) -> str:
        await self.http.post("/v1/auth/otp", json={"phone": phone})
        items = (await self.http.get("/dev/outbox", params={"to": phone})).json()["items"]
        return str(items[0]["code"])

    async def verify(self, link_token: str, phone: str = PHONE) -> httpx.Response:
        body = {"phone": phone, "code": await self.code(phone), "device": DEVICE, "link_token": link_token}
        return await self.http.post("/v1/auth/otp/verify", json=body)

    async def linked(self, phone: str = PHONE, provider: str = "google", subject: str | None = None) -> dict[str, Any]:
        token = (await self.finish(await self.visited(provider, subject), provider)).json()["link_token"]
        answer = await self.verify(token, phone)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def nobody_got_in(self) -> None:
        assert self.world.sessions.sessions == {}
        assert self.world.identities.rows == {}
        assert self.world.sign_ins.links == {}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    world = World(sign_in_redirects=(BACK, "https://app.example.com/signed-in"))

    def now_s() -> float:
        return world.clock.now_ms() / 1000

    async with OidcServer(now_s) as google, OidcServer(now_s) as other:
        for name, server in (("google", google), ("other", other)):
            world.providers[name] = provider_of(name, server, world, PATIENT)
        transport = httpx.ASGITransport(world.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://rest") as http:
            yield Stage(world, google, other, http)
        for provider in world.providers.values():
            await provider.close()


def provider_of(name: str, server: OidcServer, world: World, limits: ExchangeLimits) -> OidcProvider:
    settings = ProviderSettings(kind="oidc", issuer=server.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    return OidcProvider(name, settings, world.clock, dev=True, limits=limits)


def refused(answer: httpx.Response, status: int = 401, code: str = "unauthenticated") -> bool:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return True


# --- what an honest person sees ---


async def test_the_first_sign_in_proves_a_phone_and_the_second_logs_in(stage: Stage) -> None:
    first = await stage.finish(await stage.visited())
    assert first.status_code == 200
    assert set(first.json()) == {"link_token", "expires_in_s"}
    assert first.json()["expires_in_s"] == 600
    by_phone = (await stage.verify(first.json()["link_token"])).json()
    assert by_phone["is_new"]
    second = (await stage.finish(await stage.visited())).json()
    assert second.keys() == by_phone.keys()
    assert (second["user"]["id"], second["is_new"]) == (by_phone["user"]["id"], False)
    headers = {"Authorization": f"Bearer {second['access_token']}"}
    me = (await stage.http.get("/v1/me", headers=headers)).json()
    assert me["phone"] == "+86*********01"


async def test_a_second_person_at_the_same_provider_is_somebody_else(stage: Stage) -> None:
    await stage.linked()
    assert "link_token" in (await stage.finish(await stage.visited(subject="subject-2"))).json()


async def test_the_same_subject_at_another_provider_is_somebody_else(stage: Stage) -> None:
    await stage.linked()
    assert "link_token" in (await stage.finish(await stage.visited("other"), "other")).json()


async def test_a_user_sees_their_links_and_removes_them(stage: Stage) -> None:
    mine = {"Authorization": f"Bearer {(await stage.linked())['access_token']}"}
    _, theirs = await stage.world.login(OTHER_PHONE)
    listed = (await stage.http.get("/v1/auth/identities", headers=mine)).json()["items"]
    assert [item["provider"] for item in listed] == ["google"]
    assert (await stage.http.get("/v1/auth/identities", headers=theirs)).json() == {"items": []}
    assert refused(await stage.http.delete("/v1/auth/identities/google", headers=theirs), 404, "not_found")
    assert refused(await stage.http.delete("/v1/auth/identities/nowhere", headers=mine), 404, "not_found")
    assert (await stage.http.delete("/v1/auth/identities/google", headers=mine)).status_code == 204
    assert "link_token" in (await stage.finish(await stage.visited())).json()


async def test_an_elliptic_key_and_a_provider_that_takes_the_secret_in_the_body_are_fine(stage: Stage) -> None:
    """As Apple does it."""
    stage.google.keys = [ec_key(1)]
    stage.google.document = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    assert "link_token" in (await stage.finish(await stage.visited())).json()


async def test_an_app_with_a_verifier_of_its_own_finishes_with_it(stage: Stage) -> None:
    back = await stage.visited(code_challenge=CHALLENGE)
    assert "link_token" in (await stage.finish(back, code_verifier=VERIFIER)).json()


# --- where one may be sent back to ---


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/signed-in",
        "https://app.example.com/signed-in/",
        "https://app.example.com/signed-in?x=1",
        "https://app.example.com.evil.example/signed-in",
        "HTTPS://app.example.com/signed-in",
        "http://app.example.com/signed-in",
        "com.example.app:/signed-in#",
        "javascript:alert(1)",
    ],
)
async def test_a_redirect_address_off_the_list_is_refused_before_the_provider_is_asked(
    stage: Stage, address: str
) -> None:
    answer = await stage.start(redirect_uri=address)
    assert refused(answer, 422, "invalid")
    assert answer.json()["errors"][0]["field"] == "redirect_uri"
    assert stage.google.hits.total() == 0


@pytest.mark.parametrize("name", ["nowhere", "Google", "..%2fgoogle", "g" * 300, "%00"])
async def test_a_provider_that_is_not_configured_does_not_exist(stage: Stage, name: str) -> None:
    assert refused(await stage.start(name), 404, "not_found")
    assert refused(await stage.finish({"state": "s", "code": "c"}, name), 404, "not_found")


# --- states, codes and verifiers ---


async def test_a_state_is_good_once(stage: Stage) -> None:
    back = await stage.visited()
    assert (await stage.finish(back)).status_code == 200
    assert refused(await stage.finish(back))
    assert stage.google.hits["/token"] == 1


async def test_of_twenty_finishes_at_once_one_goes_on(stage: Stage) -> None:
    back = await stage.visited()
    answers = await asyncio.gather(*(stage.finish(back) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 19


async def test_a_state_that_nobody_was_given_or_that_is_ten_minutes_old_is_refused(stage: Stage) -> None:
    assert refused(await stage.finish({"state": "x" * 43, "code": "code"}))
    back = await stage.visited()
    stage.world.clock.advance_s(601)
    assert refused(await stage.finish(back))
    stage.nobody_got_in()


async def test_a_state_of_one_provider_is_refused_at_another_and_is_spent(stage: Stage) -> None:
    """A mix-up: the code of one provider must not even reach another one's token endpoint."""
    back = await stage.visited("google")
    assert refused(await stage.finish(back, "other"))
    assert stage.other.hits["/token"] == 0
    assert refused(await stage.finish(back, "google"))
    stage.nobody_got_in()


async def test_a_code_of_one_provider_with_a_state_of_another_is_refused(stage: Stage) -> None:
    mixed = {"state": (await stage.visited("other"))["state"], "code": (await stage.visited("google"))["code"]}
    assert refused(await stage.finish(mixed, "other"))
    stage.nobody_got_in()


async def test_an_answer_that_names_another_issuer_is_refused(stage: Stage) -> None:
    assert refused(await stage.finish(await stage.visited(), iss=stage.other.issuer))
    assert stage.google.hits["/token"] == 0
    assert "link_token" in (await stage.finish(await stage.visited(), iss=stage.google.issuer)).json()


async def test_an_issuer_that_promises_to_name_itself_must_be_named(stage: Stage) -> None:
    stage.google.document = {"authorization_response_iss_parameter_supported": True}
    assert refused(await stage.finish(await stage.visited()))
    assert "link_token" in (await stage.finish(await stage.visited(), iss=stage.google.issuer)).json()


async def test_a_code_that_was_used_is_refused_under_a_new_state(stage: Stage) -> None:
    first = await stage.visited()
    await stage.finish(first)
    second = await stage.visited()
    assert refused(await stage.finish({"state": second["state"], "code": first["code"]}))
    assert stage.google.refusals == ["invalid_grant"]


async def test_a_stolen_code_is_refused_under_the_thiefs_state(stage: Stage) -> None:
    """PKCE towards the provider: the thief's sign-in has another verifier."""
    stolen, thief = await stage.visited(subject="victim"), await stage.visited()
    assert refused(await stage.finish({"state": thief["state"], "code": stolen["code"]}))
    stage.nobody_got_in()


@pytest.mark.parametrize("more", [{}, {"code_verifier": VERIFIER[:-1] + "x"}, {"code_verifier": CHALLENGE}])
async def test_who_intercepts_the_redirect_cannot_finish_without_the_apps_verifier(
    stage: Stage, more: dict[str, str]
) -> None:
    back = await stage.visited(code_challenge=CHALLENGE)
    assert refused(await stage.finish(back, **more))
    assert refused(await stage.finish(back, code_verifier=VERIFIER))
    assert stage.google.hits["/token"] == 0
    stage.nobody_got_in()


async def test_a_verifier_where_there_was_no_challenge_is_refused(stage: Stage) -> None:
    """Somebody has taken the challenge off the start."""
    assert refused(await stage.finish(await stage.visited(), code_verifier=VERIFIER))


# --- id tokens ---

LIES: dict[str, dict[str, Any]] = {
    "another nonce": {"nonce": "x" * 43},
    "no nonce": {"nonce": None},
    "a list of nonces": {"nonce": ["x" * 43]},
    "another audience": {"aud": "somebody-else"},
    "an empty audience": {"aud": []},
    "no audience": {"aud": None},
    "two audiences and nobody authorised": {"aud": [CLIENT_ID, "somebody-else"]},
    "another authorised party": {"azp": "somebody-else"},
    "two audiences and another authorised": {"aud": [CLIENT_ID, "other"], "azp": "other"},
    "another issuer": {"iss": "https://accounts.example.com"},
    "an issuer with a slash": {"iss": "/"},
    "no issuer": {"iss": None},
    "no expiry": {"exp": None},
    "an expiry that is a text": {"exp": "9999999999"},
    "an expiry that is true": {"exp": True},
    "no time of issue": {"iat": None},
    "a time of issue that is a text": {"iat": "1"},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject that is a number": {"sub": 7},
    "a subject that is too long": {"sub": "s" * 256},
    "a subject that is no text of any encoding": {"sub": "\ud800"},
    "another access token's hash": {"at_hash": "x" * 22},
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_id_token_with_a_claim_that_is_not_true_lets_nobody_in(stage: Stage, lie: str) -> None:
    stage.google.claims = LIES[lie]
    assert refused(await stage.finish(await stage.visited()))
    stage.nobody_got_in()


@pytest.mark.parametrize(
    ("times", "good"),
    [
        ({"exp": -59}, True),
        ({"exp": -61}, False),
        ({"iat": 59}, True),
        ({"iat": 61}, False),
        ({"nbf": 61}, False),
        ({"iat": -650}, True),
        ({"iat": -661}, False),
    ],
)
async def test_times_are_judged_by_our_clock_with_a_minute_of_leeway(
    stage: Stage, times: dict[str, int], good: bool
) -> None:
    now_s = stage.world.clock.now_ms() // 1000
    stage.google.claims = {name: now_s + seconds for name, seconds in times.items()}
    answer = await stage.finish(await stage.visited())
    assert answer.status_code == 200 if good else refused(answer)


def _pem() -> bytes:
    return rsa_key(1).as_pem(private=False)


def _hmac_of(secret: bytes) -> Callable[[dict[str, Any]], str]:
    def sign(claims: dict[str, Any]) -> str:
        token = forged({"alg": "HS256", "kid": "rsa-1"}, claims)
        body = token.rpartition(".")[0]
        signature = hmac.digest(secret, body.encode(), "sha256")
        return body + "." + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()

    return sign


def _with(header: dict[str, Any], key: Any = None) -> Callable[[dict[str, Any]], str]:
    def sign(claims: dict[str, Any]) -> str:
        good = {"alg": "RS256", "kid": "rsa-1"} | header
        return jwt.encode(good, claims, key or rsa_key(1), algorithms=[good["alg"]])

    return sign


FORGERIES: dict[str, Callable[[dict[str, Any]], str]] = {
    "none": lambda claims: forged({"alg": "none"}, claims),
    "None": lambda claims: forged({"alg": "None", "kid": "rsa-1"}, claims),
    "NONE with a signature": lambda claims: forged({"alg": "NONE", "kid": "rsa-1"}, claims, b"x" * 256),
    "no algorithm": lambda claims: forged({"kid": "rsa-1"}, claims),
    "an algorithm that is a list": lambda claims: forged({"alg": ["RS256"], "kid": "rsa-1"}, claims),
    "HS256 with the public key's PEM": lambda claims: _hmac_of(_pem())(claims),
    "HS256 with the public key's JWK": lambda claims: _hmac_of(json.dumps(rsa_key(1).as_dict(private=False)).encode())(
        claims
    ),
    "HS256 with the client secret": _hmac_of(CLIENT_SECRET.encode()),
    "RS512": _with({"alg": "RS512"}),
    "PS256": _with({"alg": "PS256"}),
    "a stranger's key under the same name": _with({}, rsa_key(9)),
    "a stranger's key inside the token": lambda claims: _with(
        {"jwk": rsa_key(9).as_dict(private=False), "kid": "mine"}, rsa_key(9)
    )(claims),
    "a key of no name that is known": _with({"kid": "../../dev/null"}),
    "an empty signature": lambda claims: forged({"alg": "RS256", "kid": "rsa-1"}, claims),
    "a truncated signature": lambda claims: _with({})(claims)[:-8],
    "a critical header that nobody knows": lambda claims: forged(
        {"alg": "RS256", "kid": "rsa-1", "crit": ["x"], "x": 1}, claims, b"x" * 256
    ),
    "four parts": lambda claims: _with({})(claims) + ".e30",
    "no token at all": lambda _: "",
    "not a token": lambda _: "a.b.c",
    "too long a token": lambda claims: _with({})(claims | {"pad": "x" * 20_000}),
    "claims that are a list": lambda _: forged({"alg": "RS256", "kid": "rsa-1"}, [], b"x"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_an_id_token_that_its_provider_has_not_signed_lets_nobody_in(stage: Stage, forgery: str) -> None:
    stage.google.signer = FORGERIES[forgery]
    assert refused(await stage.finish(await stage.visited()))
    stage.nobody_got_in()


async def test_a_key_set_with_an_hmac_key_and_a_private_key_gives_neither_a_say(stage: Stage) -> None:
    secret = {"kty": "oct", "k": base64.urlsafe_b64encode(b"s" * 32).decode(), "kid": "oct-1", "alg": "HS256"}
    keys = [secret, rsa_key(1).as_dict(private=True), "nonsense", {"kty": "RSA"}, {"kty": "EC", "crv": "P-256"}]
    stage.google.bodies["/jwks"] = (200, {}, json.dumps({"keys": keys}).encode())
    assert refused(await stage.finish(await stage.visited()), 503, "unavailable")


async def test_after_a_rotation_the_new_key_is_fetched_once_and_the_old_one_is_refused(stage: Stage) -> None:
    await stage.finish(await stage.visited())
    stage.google.keys = [rsa_key(2)]
    stage.world.clock.advance_s(61)
    assert (await stage.finish(await stage.visited())).status_code == 200
    assert stage.google.hits["/jwks"] == 2
    stage.google.signer = _with({})
    assert refused(await stage.finish(await stage.visited()))


async def test_unknown_keys_make_us_ask_the_provider_no_more_than_once_a_minute(stage: Stage) -> None:
    stage.google.signer = _with({"kid": "unheard-of"})
    for _ in range(10):
        assert refused(await stage.finish(await stage.visited()))
    assert stage.google.hits["/jwks"] == 1
    stage.world.clock.advance_s(61)
    for _ in range(10):
        assert refused(await stage.finish(await stage.visited()))
    assert stage.google.hits["/jwks"] == 2


# --- link tokens ---


async def test_a_link_token_is_good_once_and_for_one_phone(stage: Stage) -> None:
    token = (await stage.finish(await stage.visited())).json()["link_token"]
    assert (await stage.verify(token)).status_code == 200
    for phone in (PHONE, OTHER_PHONE):
        answer = await stage.verify(token, phone)
        assert refused(answer, 422, "invalid")
        assert answer.json()["errors"][0]["field"] == "link_token"
    assert len(stage.world.identities.rows) == 1


async def test_a_link_token_belongs_to_the_first_phone_that_it_is_given_with(stage: Stage) -> None:
    token = (await stage.finish(await stage.visited())).json()["link_token"]
    body = {"phone": PHONE, "code": "000000", "device": DEVICE, "link_token": token}
    assert refused(await stage.http.post("/v1/auth/otp/verify", json=body))
    assert refused(await stage.verify(token, OTHER_PHONE), 422, "invalid")
    assert (await stage.verify(token)).status_code == 200


async def test_a_bad_link_token_uses_no_code_up_and_makes_no_account(stage: Stage) -> None:
    code = await stage.code()
    body = {"phone": PHONE, "code": code, "device": DEVICE, "link_token": "guessed"}
    assert refused(await stage.http.post("/v1/auth/otp/verify", json=body), 422, "invalid")
    assert stage.world.accounts.users == {}
    assert (await stage.http.post("/v1/auth/otp/verify", json=body | {"link_token": None})).status_code == 200


async def test_a_link_token_is_good_for_ten_minutes(stage: Stage) -> None:
    token = (await stage.finish(await stage.visited())).json()["link_token"]
    stage.world.clock.advance_s(601)
    assert refused(await stage.verify(token), 422, "invalid")


async def test_a_subject_that_has_an_account_meanwhile_is_not_given_to_another(stage: Stage) -> None:
    tokens = [(await stage.finish(await stage.visited())).json()["link_token"] for _ in range(2)]
    assert (await stage.verify(tokens[0])).status_code == 200
    assert refused(await stage.verify(tokens[1], OTHER_PHONE), 409, "conflict")
    assert len(stage.world.sessions.sessions) == 1


async def test_an_account_has_one_subject_of_a_provider(stage: Stage) -> None:
    await stage.linked()
    token = (await stage.finish(await stage.visited(subject="subject-2"))).json()["link_token"]
    assert refused(await stage.verify(token), 409, "conflict")


async def test_neither_a_link_token_nor_a_state_opens_a_session(stage: Stage) -> None:
    back = await stage.visited()
    token = (await stage.finish(back)).json()["link_token"]
    for secret in (back["state"], token):
        answer = await stage.http.get("/v1/me", headers={"Authorization": f"Bearer {secret}"})
        assert refused(answer)


# --- providers that break ---

BROKEN: dict[str, tuple[str, tuple[int, dict[str, str], bytes]]] = {
    "a compressed bomb": ("/token", (200, {"content-encoding": "gzip"}, b"\x1f\x8b")),
    "a document that is a list": (DISCOVERY, (200, {}, b"[]")),
    "a document of deep nests": (DISCOVERY, (200, {}, b"[" * 100_000)),
    "an error page": ("/token", (502, {}, b"<html>")),
    "a page": ("/token", (200, {}, b"<html>")),
    "a text": ("/token", (200, {}, b'"text"')),
    "an error that is no text": ("/token", (400, {}, b'{"error": {"a": []}}')),
    "keys that are a number": ("/jwks", (200, {}, b'{"keys": 7}')),
    "an unknown client": ("/token", (401, {}, b'{"error": "invalid_client"}')),
}


@pytest.mark.parametrize("fault", BROKEN)
async def test_a_provider_that_answers_nonsense_is_unavailable_and_lets_nobody_in(stage: Stage, fault: str) -> None:
    path, body = BROKEN[fault]
    back = await stage.visited() if path != DISCOVERY else {"state": "", "code": ""}
    stage.google.bodies[path] = body
    answer = await (stage.start() if path == DISCOVERY else stage.finish(back))
    assert refused(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    stage.nobody_got_in()


async def asked(stage: Stage, path: str) -> Callable[[], Any]:
    """The request that makes us ask for the path, ready to be sent."""
    if path == DISCOVERY:
        return stage.start
    back = await stage.visited()
    return lambda: stage.finish(back)


@pytest.mark.parametrize("path", [DISCOVERY, "/token", "/jwks"])
async def test_an_answer_is_read_up_to_its_limit_and_no_further(stage: Stage, path: str) -> None:
    """What it says would be good: it is the length alone that is refused."""
    ask = await asked(stage, path)
    stage.google.pads[path] = PATIENT.max_bytes
    assert refused(await ask(), 503, "unavailable")
    stage.google.pads[path] = PATIENT.max_bytes - 8_192
    assert (await (await asked(stage, path))()).status_code == 200


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", [DISCOVERY, "/token", "/jwks"])
async def test_nobody_is_followed_to_somewhere_else(stage: Stage, path: str, status: int) -> None:
    ask = await asked(stage, path)
    stage.google.bodies[path] = (status, {"location": f"{stage.other.issuer}{path}"}, b"")
    assert refused(await ask(), 503, "unavailable")
    assert stage.other.hits.total() == 0


@pytest.mark.parametrize(
    "lie",
    [
        {"issuer": "https://accounts.google.com"},
        {"issuer": None},
        {"token_endpoint": "http://169.254.169.254/latest/meta-data"},
        {"token_endpoint": "http://example.com/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "https://10.0.0.1/jwks"},
        {"jwks_uri": "https://user:pass@keys.example.com/"},
        {"jwks_uri": "https://[::1]/jwks"},
        {"jwks_uri": "https://2130706433/jwks"},
        {"jwks_uri": "https://0x7f.1/jwks"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"jwks_uri": "gopher://127.0.0.1:6379/_FLUSHALL"},
    ],
    ids=str,
)
async def test_a_discovery_document_that_leads_where_it_should_not_is_not_followed(
    stage: Stage, lie: dict[str, Any]
) -> None:
    stage.google.document = lie
    assert refused(await stage.start(), 503, "unavailable")


async def test_outside_development_nothing_is_asked_by_http(stage: Stage) -> None:
    settings = ProviderSettings(kind="oidc", issuer=stage.google.issuer, client_id=CLIENT_ID)
    stage.world.providers["google"] = OidcProvider("google", settings, stage.world.clock, dev=False)
    assert refused(await stage.start(), 503, "unavailable")


async def test_a_provider_that_is_gone_is_unavailable_and_comes_back(stage: Stage) -> None:
    await stage.google.stop()
    assert refused(await stage.start(), 503, "unavailable")
    assert (await stage.start("other")).status_code == 200


@pytest.mark.parametrize("path", [DISCOVERY, "/token", "/jwks"])
async def test_a_slow_provider_is_given_up_in_time_and_holds_nobody_else_up(stage: Stage, path: str) -> None:
    await stage.world.providers["google"].close()
    slow = stage.world.providers["google"] = provider_of("google", stage.google, stage.world, BRIEF)
    backs = [await stage.visited() for _ in range(6)] if path != DISCOVERY else []
    other = await stage.visited("other")
    stage.google.delays_s[path] = 5.0
    began = time.monotonic()
    sending = [stage.finish(back) for back in backs] or [stage.start() for _ in range(6)]
    waiting = [asyncio.create_task(request) for request in sending]
    await asyncio.sleep(BRIEF.turn_s / 2)
    assert sum(task.done() for task in waiting) == 6 - BRIEF.turns, "the others were told at once"
    assert (await stage.http.get("/health/live")).status_code == 200
    assert "link_token" in (await stage.finish(other, "other")).json()
    answers = await asyncio.gather(*waiting)
    assert time.monotonic() - began < 4.0
    assert all(refused(answer, 503, "unavailable") for answer in answers)
    assert stage.google.hits[path] <= BRIEF.turns
    stage.google.delays_s.clear()
    await slow.close()
    stage.world.providers["google"] = provider_of("google", stage.google, stage.world, PATIENT)
    assert "link_token" in (await stage.finish(await stage.visited())).json()


async def test_a_provider_that_sends_a_byte_now_and_then_is_given_up_in_time(stage: Stage) -> None:
    """Each byte comes in time; the answer as a whole does not."""
    back = await stage.visited()
    provider = stage.world.providers["slow"] = provider_of("google", stage.google, stage.world, BRIEF)
    stage.world.providers["google"], patient = provider, stage.world.providers["google"]
    stage.google.trickle_s["/token"] = 0.2
    began = time.monotonic()
    assert refused(await stage.finish(back), 503, "unavailable")
    assert time.monotonic() - began < 4.0
    await patient.close()


async def test_what_a_provider_says_of_itself_is_not_told_to_clients(stage: Stage) -> None:
    stage.google.bodies["/token"] = (400, {}, b'{"error": "canary", "error_description": "canary"}')
    answer = await stage.finish(await stage.visited())
    assert "canary" not in answer.text


# --- WeChat ---


class Tencent:
    """The few words of WeChat's token endpoint, behind a real socket."""

    def __init__(self) -> None:
        self.answer: Any = {"access_token": "t", "openid": "o-1", "unionid": "u-1"}
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1])
        body = json.dumps(self.answer).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        writer.close()


@pytest.fixture
async def tencent(stage: Stage) -> AsyncIterator[Tencent]:
    made = Tencent()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    at = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/sns/oauth2/access_token"
    settings = ProviderSettings(kind="wechat", client_id="wx123", client_secret="s&=crét", token_endpoint=at)
    stage.world.providers["wechat"] = WechatProvider("wechat", settings, PATIENT)
    yield made
    server.close()


async def wechat(stage: Stage, code: str = "c-1") -> httpx.Response:
    began = (await stage.start("wechat")).json()
    return await stage.finish({"state": began["state"], "code": code}, "wechat")


async def test_wechat_is_asked_in_its_own_words(stage: Stage, tencent: Tencent) -> None:
    url = (await stage.start("wechat")).json()["authorization_url"]
    assert url.startswith("https://open.weixin.qq.com/connect/qrconnect?appid=wx123&redirect_uri=com.example.app%3A%2F")
    assert url.endswith("#wechat_redirect")
    assert "link_token" in (await wechat(stage)).json()
    assert "appid=wx123&secret=s%26%3Dcr%C3%A9t&code=c-1&grant_type=authorization_code" in tencent.asked[0]


async def test_wechat_knows_a_person_by_the_union_id_and_else_by_the_open_id(stage: Stage, tencent: Tencent) -> None:
    await stage.verify((await wechat(stage)).json()["link_token"])
    tencent.answer = {"access_token": "t", "openid": "o-2", "unionid": "u-1"}
    assert "access_token" in (await wechat(stage)).json()
    tencent.answer = {"access_token": "t", "openid": "u-1"}
    assert "link_token" in (await wechat(stage)).json()


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"errcode": 40029, "errmsg": "invalid code"}, 401),
        ({"errcode": 40163, "errmsg": "code been used"}, 401),
        ({"errcode": -1, "errmsg": "system error"}, 503),
        ({"errcode": 40125, "errmsg": "invalid appsecret"}, 503),
        ({"errcode": ["40029"]}, 503),
        ({"openid": ""}, 503),
        ({"openid": ["o-1"]}, 503),
        ({"unionid": "é"}, 503),
        ({"openid": "o" * 256}, 503),
        ([], 503),
        ("text", 503),
    ],
)
async def test_wechats_refusals_let_nobody_in(stage: Stage, tencent: Tencent, said: Any, status: int) -> None:
    tencent.answer = said
    answer = await wechat(stage)
    assert refused(answer, status, "unauthenticated" if status == 401 else "unavailable")
    stage.nobody_got_in()
