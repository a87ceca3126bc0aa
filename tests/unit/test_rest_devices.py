"""Sessions that come from elsewhere, device keys, operators' second factor, and workers' API keys, over REST."""

import base64
from typing import Any

import httpx
import msgspec
import pyotp
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from domain.channels import REVOKED_SUBJECT
from domain.devices import RULES
from domain.places import Place
from domain.ports import DeviceSession, StoreUnavailable
from serve_apps.endpoint import GUARDED, Rule
from serve_apps.rest import ROUTES
from tests.support.device_keys import Handset, b64, challenge_for, der
from tests.support.memory_devices import MemoryPlaces
from tests.support.rest_app import World
from tests.unit.test_rest_auth import PHONE, bearer, code_for, logged_in

DEVICE = {"id": "phone-1", "name": "Li's phone", "platform": "ios"}
CHINA, GERMANY = "198.51.100.7", "203.0.113.7"
PLACES = {"198.51.100.0/24": Place("CN", "Shanghai", 31.2, 121.5), "203.0.113.0/24": Place("DE", "Berlin", 52.5, 13.4)}


def client(world: World, ip: str = CHINA, agent: str = "App/1.0 (iOS)") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(world.app(), client=(ip, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://rest", headers={"User-Agent": agent})


def placed(**settings: Any) -> World:
    world = World(**settings)
    world.places = MemoryPlaces(PLACES)
    return world


async def refreshed(http: httpx.AsyncClient, token: str, **more: Any) -> httpx.Response:
    return await http.post("/v1/auth/refresh", json={"refresh_token": token} | more)


def wants(response: httpx.Response, factor: str) -> bool:
    body = response.json()
    header = response.headers.get("www-authenticate", "")
    assert 'error="insufficient_user_authentication"' in header
    return (response.status_code, body["code"], body["current"]) == (401, "step_up_required", {"factor": factor})


# --- sessions ---


async def test_an_update_another_address_in_the_country_and_a_new_name_need_no_step_up() -> None:
    world = placed()
    async with client(world) as http:
        token = (await logged_in(http))["refresh_token"]
    async with client(world, "198.51.100.99", "App/2.1 (iOS)") as http:
        renamed = await refreshed(http, token, device=DEVICE | {"name": "renamed"})
    assert renamed.status_code == 200


@pytest.mark.parametrize(
    ("ip", "agent", "device"),
    [
        (GERMANY, "App/1.0 (iOS)", DEVICE),
        (CHINA, "curl/8", DEVICE),
        (CHINA, "App/1.0 (iOS)", DEVICE | {"id": "phone-2"}),
        (CHINA, "App/1.0 (iOS)", DEVICE | {"platform": "android"}),
    ],
)
async def test_a_refresh_from_elsewhere_needs_a_code_and_then_belongs_there(
    ip: str, agent: str, device: dict[str, str]
) -> None:
    world = placed()
    async with client(world) as http:
        first = await logged_in(http)
    async with client(world, ip, agent) as elsewhere, client(world) as home:
        refused = await refreshed(elsewhere, first["refresh_token"], device=device)
        assert wants(refused, "otp")
        assert (await home.get("/v1/me", headers=bearer(first))).status_code == 200
        body = {"refresh_token": first["refresh_token"], "code": await code_for(elsewhere), "device": device}
        stepped = await elsewhere.post("/v1/auth/step-up", json=body)
        assert stepped.status_code == 200
        pair = stepped.json()
        assert (await elsewhere.get("/v1/me", headers=bearer(pair))).status_code == 200
        again = await refreshed(elsewhere, pair["refresh_token"], device=device)
        assert again.status_code == 200
        assert wants(await refreshed(home, again.json()["refresh_token"], device=DEVICE), "otp")


async def test_a_refused_refresh_spends_nothing_so_home_goes_on() -> None:
    world = placed()
    async with client(world) as home, client(world, GERMANY) as thief:
        token = (await logged_in(home))["refresh_token"]
        for _ in range(3):
            assert wants(await refreshed(thief, token), "otp")
        assert (await refreshed(home, token)).status_code == 200


async def test_the_pair_of_the_grace_is_not_given_to_another_country() -> None:
    world = placed()
    async with client(world) as home, client(world, GERMANY) as thief:
        token = (await logged_in(home))["refresh_token"]
        assert (await refreshed(home, token)).status_code == 200
        assert wants(await refreshed(thief, token), "otp")


@pytest.mark.parametrize("wrong", ["code", "token", "foreign code", "revoked"])
async def test_a_step_up_with_anything_wrong_is_401_of_one_shape(wrong: str) -> None:
    world = placed()
    async with client(world) as http:
        pair = await logged_in(http)
        other = "+8613800000002"
        code = await code_for(http, other if wrong == "foreign code" else PHONE)
        if wrong == "code":
            code = f"{(int(code) + 1) % 1_000_000:06d}"
        if wrong == "revoked":
            await http.post("/v1/auth/logout", headers=bearer(pair))
        token = "unknown" if wrong == "token" else pair["refresh_token"]
        response = await http.post("/v1/auth/step-up", json={"refresh_token": token, "code": code})
        after = await refreshed(http, pair["refresh_token"])
    problem = response.json()
    assert (response.status_code, problem["code"]) == (401, "unauthenticated")
    assert problem["detail"] == "the code is wrong or has expired"
    assert after.status_code == (401 if wrong == "revoked" else 200)


async def test_a_step_up_uses_the_code_up_and_counts_against_its_tries() -> None:
    world = placed()
    async with client(world) as http:
        pair = await logged_in(http)
        code = await code_for(http)
        wrong = {"refresh_token": pair["refresh_token"], "code": f"{(int(code) + 1) % 1_000_000:06d}"}
        for _ in range(5):
            assert (await http.post("/v1/auth/step-up", json=wrong)).status_code == 401
        right = {"refresh_token": pair["refresh_token"], "code": code}
        assert (await http.post("/v1/auth/step-up", json=right)).status_code == 401
        right["code"] = await code_for(http)
        assert (await http.post("/v1/auth/step-up", json=right)).status_code == 200
        assert (
            await http.post("/v1/auth/otp/verify", json={"phone": PHONE, "device": DEVICE} | right)
        ).status_code == 401


async def test_a_step_up_with_a_token_that_is_reused_ends_the_session() -> None:
    world = placed()
    async with client(world) as http:
        pair = await logged_in(http)
        await refreshed(http, pair["refresh_token"])
        world.clock.advance_s(31)
        body = {"refresh_token": pair["refresh_token"], "code": await code_for(http)}
        response = await http.post("/v1/auth/step-up", json=body)
        assert (response.status_code, response.json()["code"]) == (401, "session_revoked")
        assert (await http.get("/v1/me", headers=bearer(pair))).status_code == 401
    assert world.broker.published[-1][0] == REVOKED_SUBJECT


async def test_the_list_of_sessions_says_roughly_where_and_never_the_address() -> None:
    world = placed()
    async with client(world) as http:
        pair = await logged_in(http)
        response = await http.get("/v1/auth/sessions", headers=bearer(pair))
        (item,) = response.json()["items"]
        assert item["last_seen_place"] == {"country": "CN", "city": "Shanghai"}
        assert CHINA not in response.text
        assert "31.2" not in response.text
    world.places = MemoryPlaces()
    async with client(world) as http:
        pair = await logged_in(http, "+8613800000002")
        (item,) = (await http.get("/v1/auth/sessions", headers=bearer(pair))).json()["items"]
        assert "last_seen_place" not in item


async def test_an_ipv6_address_is_kept_as_its_network() -> None:
    world = placed()
    async with client(world, "2001:db8:1:2:3:4:5:6") as http:
        await logged_in(http)
    (session,) = world.sessions.sessions.values()
    assert session.seen.ip == "2001:db8:1:2::/64"


# --- device keys ---


async def handset(http: httpx.AsyncClient) -> tuple[Handset, dict[str, Any]]:
    phone, pair = Handset(), await logged_in(http)
    await phone.register(http, bearer(pair))
    return phone, pair


async def test_a_registered_key_logs_in_as_a_code_would() -> None:
    async with client(World()) as http:
        phone, pair = await handset(http)
        response = await phone.login(http)
        assert response.status_code == 200
        assert response.json()["user"] == pair["user"]
        assert response.json()["is_new"] is False
        assert set(response.json()) == set(pair)
        assert (await http.get("/v1/me", headers=bearer(response.json()))).status_code == 200
        assert (await refreshed(http, response.json()["refresh_token"], device=phone.device)).status_code == 200


@pytest.mark.parametrize("form", ["der", "padded base64"])
async def test_a_signature_may_come_as_der_and_in_plain_base64(form: str) -> None:
    async with client(World()) as http:
        phone, _ = await handset(http)
        challenge = await challenge_for(http, phone.key_id)
        signature = der(*phone.sign(challenge))
        text = b64(signature) if form == "der" else base64.b64encode(signature).decode()
        assert (await phone.login(http, challenge=challenge, signature=text)).status_code == 200


async def test_a_key_is_registered_as_jwk_or_spki_and_the_same_one_once() -> None:
    async with client(World()) as http:
        phone, pair = await handset(http)
        bodies = [phone.jwk(), base64.b64encode(phone.spki()).decode(), b64(phone.spki())]
        answers = [
            await http.post("/v1/auth/device-keys", headers=bearer(pair), json={"public_key": key, "name": "again"})
            for key in bodies
        ]
        assert [answer.status_code for answer in answers] == [201] * 3
        assert {answer.json()["id"] for answer in answers} == {phone.key_id}
        listed = (await http.get("/v1/auth/device-keys", headers=bearer(pair))).json()["items"]
        one = (await http.get(f"/v1/auth/device-keys/{phone.key_id}", headers=bearer(pair))).json()
        assert listed == [one]
        assert set(one) == {"id", "name", "created_at", "last_used_at"}


def _spki(key: Any) -> str:
    return b64(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def _bad_keys() -> dict[str, Any]:
    phone = Handset()
    jwk, spki = phone.jwk(), phone.spki()
    return {
        "P-384": _spki(ec.generate_private_key(ec.SECP384R1()).public_key()),
        "secp256k1": _spki(ec.generate_private_key(ec.SECP256K1()).public_key()),
        "RSA": _spki(rsa.generate_private_key(65537, 2048).public_key()),
        "Ed25519": _spki(ed25519.Ed25519PrivateKey.generate().public_key()),
        "off the curve": jwk | {"y": jwk["x"]},
        "zero": jwk | {"x": "A" * 43, "y": "A" * 43},
        "beyond the field": jwk | {"x": "_" * 42 + "8"},
        "bits to spare": jwk | {"x": jwk["x"][:-1] + "B"},
        "another curve's name": jwk | {"crv": "secp256k1"},
        "another kind": jwk | {"kty": "oct"},
        "a private key": jwk | {"d": "A" * 43},
        "long coordinates": jwk | {"x": "A" * 44},
        "trailing bytes": b64(spki + b"\0"),
        "cut off": b64(spki[:-1]),
        "PEM": "-----BEGIN PUBLIC KEY-----",
        "empty": "",
        "huge": "A" * 200_000,
        "not ASCII": "密钥",
        "a number": 7,
        "null": None,
        "a list": [],
    }


BAD_KEYS = _bad_keys()


@pytest.mark.parametrize("kind", BAD_KEYS)
async def test_what_is_no_public_p256_key_is_not_registered(kind: str) -> None:
    world = World()
    async with client(world) as http:
        pair = await logged_in(http)
        body = {"public_key": BAD_KEYS[kind], "name": "phone"}
        response = await http.post("/v1/auth/device-keys", headers=bearer(pair), json=body)
    assert (response.status_code, response.json()["code"]) == (422, "invalid")
    assert response.json()["errors"][0]["field"].startswith("public_key")
    assert world.device_keys.keys == {}


async def test_registering_needs_a_code_less_than_ten_minutes_old() -> None:
    world = World()
    async with client(world) as http:
        pair = await logged_in(http)
        world.clock.advance_s(600)
        phone = Handset()
        body = {"public_key": phone.jwk(), "name": "phone"}
        assert wants(await http.post("/v1/auth/device-keys", headers=bearer(pair), json=body), "otp")
        step = {"refresh_token": pair["refresh_token"], "code": await code_for(http)}
        stepped = (await http.post("/v1/auth/step-up", json=step)).json()
        assert (await http.post("/v1/auth/device-keys", headers=bearer(stepped), json=body)).status_code == 201


async def test_a_session_opened_by_a_key_registers_no_further_key() -> None:
    async with client(World()) as http:
        phone, _ = await handset(http)
        by_key = (await phone.login(http)).json()
        body = {"public_key": Handset().jwk(), "name": "another"}
        assert wants(await http.post("/v1/auth/device-keys", headers=bearer(by_key), json=body), "otp")


async def test_a_user_has_twenty_device_keys_and_ten_api_keys_at_most() -> None:
    world = World()
    async with client(world) as http:
        pair = await logged_in(http)
        user_id = pair["user"]["id"]
        await world.accounts.grant(user_id, "worker")
        for path, most in (("/v1/auth/device-keys", RULES.device_keys_most), ("/v1/me/api-keys", RULES.api_keys_most)):
            for n in range(most + 1):
                body = {"public_key": Handset().jwk(), "name": str(n)}
                response = await http.post(path, headers=bearer(pair), json=body)
                assert response.status_code == (201 if n < most else 409)


async def test_removing_a_key_ends_the_sessions_it_opened_and_no_other() -> None:
    world = World()
    async with client(world) as http:
        phone, pair = await handset(http)
        by_key = (await phone.login(http)).json()
        path = f"/v1/auth/device-keys/{phone.key_id}"
        stranger = await logged_in(http, "+8613800000002")
        for method in ("GET", "DELETE"):
            assert (await http.request(method, path, headers=bearer(stranger))).status_code == 404
        assert (await http.delete(path, headers=bearer(pair))).status_code == 204
        assert (await http.get("/v1/me", headers=bearer(by_key))).json()["code"] == "session_revoked"
        assert (await http.get("/v1/me", headers=bearer(pair))).status_code == 200
        assert (await phone.login(http)).status_code == 401
        assert (await http.delete(path, headers=bearer(pair))).status_code == 404
    assert [subject for subject, _ in world.broker.published].count(REVOKED_SUBJECT) == 1


async def test_logging_out_everywhere_removes_device_keys_and_api_keys_too() -> None:
    world = World()
    async with client(world) as http:
        phone, pair = await handset(http)
        await world.accounts.grant(pair["user"]["id"], "worker")
        key = (await http.post("/v1/me/api-keys", headers=bearer(pair), json={"name": "calendar"})).json()["key"]
        by_key = (await phone.login(http)).json()
        await http.post("/v1/auth/logout", headers=bearer(pair), json={"all": True})
        for token in (pair["access_token"], by_key["access_token"], key):
            assert (await http.get("/v1/me", headers={"Authorization": f"Bearer {token}"})).status_code == 401
        assert (await phone.login(http)).status_code == 401


async def test_logging_out_here_leaves_device_keys_and_api_keys() -> None:
    world = World()
    async with client(world) as http:
        phone, pair = await handset(http)
        await http.post("/v1/auth/logout", headers=bearer(pair))
        assert (await phone.login(http)).status_code == 200


# --- the second factor of operators ---

OPS_PATH = "/v1/admin/streams/order/0190a000-0000-7000-8000-000000000001"


async def operator(world: World, http: httpx.AsyncClient, role: str = "ops") -> dict[str, Any]:
    pair = await logged_in(http)
    await world.accounts.grant(pair["user"]["id"], role)
    return pair


async def enrolled(http: httpx.AsyncClient, pair: dict[str, Any]) -> pyotp.TOTP:
    response = await http.post("/v1/auth/totp/enrol", headers=bearer(pair))
    assert response.status_code == 201, response.text
    totp = pyotp.parse_uri(response.json()["otpauth_uri"])
    assert isinstance(totp, pyotp.TOTP)
    return totp


async def verify(world: World, http: httpx.AsyncClient, pair: dict[str, Any], totp: pyotp.TOTP, steps: int = 0) -> Any:
    code = totp.generate_otp(world.clock.now_ms() // 30_000 + steps)
    return await http.post("/v1/auth/totp/verify", headers=bearer(pair), json={"code": code})


@pytest.mark.parametrize("role", ["ops", "admin"])
async def test_an_operator_needs_a_second_factor_for_what_is_for_operations(role: str) -> None:
    world = World(ops_totp=True)
    async with client(world) as http:
        pair = await operator(world, http, role)
        assert wants(await http.get(OPS_PATH, headers=bearer(pair)), "totp")
        totp = await enrolled(http, pair)
        assert wants(await http.get(OPS_PATH, headers=bearer(pair)), "totp")
        verified = await verify(world, http, pair, totp)
        assert verified.status_code == 200
        assert (await http.get(OPS_PATH, headers=bearer(pair))).status_code == 404
        other_session = await logged_in(http)
        assert wants(await http.get(OPS_PATH, headers=bearer(other_session)), "totp")
        assert (await http.get("/v1/me", headers=bearer(other_session))).status_code == 200


async def test_where_it_is_not_asked_for_the_role_is_enough() -> None:
    world = World(ops_totp=False)
    async with client(world) as http:
        assert (await http.get(OPS_PATH, headers=bearer(await operator(world, http)))).status_code == 404


async def test_a_verified_session_is_asked_again_after_twelve_hours() -> None:
    world = World(ops_totp=True, access_ttl_s=86_400)
    async with client(world) as http:
        pair = await operator(world, http)
        until = (await verify(world, http, pair, await enrolled(http, pair))).json()["until"]
        assert until.endswith("Z")
        world.clock.advance_s(12 * 3600 - 1)
        assert (await http.get(OPS_PATH, headers=bearer(pair))).status_code == 404
        world.clock.advance_s(1)
        assert wants(await http.get(OPS_PATH, headers=bearer(pair)), "totp")


async def test_a_code_counts_once_and_none_of_an_earlier_step_after_it() -> None:
    world = World(ops_totp=True)
    async with client(world) as http:
        pair = await operator(world, http)
        totp = await enrolled(http, pair)
        statuses = [(await verify(world, http, pair, totp, steps)).status_code for steps in (0, 0, -1, 1, 2)]
    assert statuses == [200, 401, 401, 200, 401]


async def test_after_five_wrong_codes_the_right_one_waits_too() -> None:
    world = World(ops_totp=True)
    async with client(world) as http:
        pair = await operator(world, http)
        totp = await enrolled(http, pair)
        right = totp.generate_otp(world.clock.now_ms() // 30_000)
        wrong = f"{(int(right) + 1) % 1_000_000:06d}"
        for _ in range(5):
            response = await http.post("/v1/auth/totp/verify", headers=bearer(pair), json={"code": wrong})
            assert response.status_code == 401
        paused = await verify(world, http, pair, totp)
        assert (paused.status_code, paused.json()["code"]) == (429, "rate_limited")
        assert 0 < int(paused.headers["retry-after"]) <= 900
        pair = await logged_in(http)
        assert (await verify(world, http, pair, totp)).status_code == 429
        world.clock.advance_s(900)
        pair = (await refreshed(http, pair["refresh_token"])).json()
        assert (await verify(world, http, pair, totp)).status_code == 200


async def test_enrolling_is_for_operators_with_a_fresh_code_and_once() -> None:
    world = World(ops_totp=True)
    async with client(world) as http:
        customer = await logged_in(http, "+8613800000002")
        for path, body in (("/v1/auth/totp/enrol", {}), ("/v1/auth/totp/verify", {"code": "000000"})):
            assert (await http.post(path, headers=bearer(customer), json=body)).status_code == 403
        pair = await operator(world, http)
        lost, totp = await enrolled(http, pair), await enrolled(http, pair)
        assert (await verify(world, http, pair, lost)).status_code == 401
        assert (await verify(world, http, pair, totp)).status_code == 200
        again = await http.post("/v1/auth/totp/enrol", headers=bearer(pair))
        assert (again.status_code, again.json()["code"]) == (409, "conflict")
        world.clock.advance_s(600)
        assert wants(await http.post("/v1/auth/totp/enrol", headers=bearer(pair)), "otp")


async def test_the_phone_is_masked_in_what_the_app_shows() -> None:
    world = World(ops_totp=True)
    async with client(world) as http:
        pair = await operator(world, http)
        totp = await enrolled(http, pair)
    (stored,) = world.totp.secrets.values()
    assert stored.secret == totp.secret
    assert PHONE[3:-2] not in totp.provisioning_uri()


async def test_after_a_reset_the_operator_starts_anew() -> None:
    world = World(ops_totp=True)
    async with client(world) as http:
        pair = await operator(world, http)
        await verify(world, http, pair, await enrolled(http, pair))
        await world.totp.reset(pair["user"]["id"])
        assert wants(await http.get(OPS_PATH, headers=bearer(pair)), "totp")
        assert (await verify(world, http, pair, await enrolled(http, pair))).status_code == 200


# --- API keys ---


async def api_key(world: World, http: httpx.AsyncClient, phone: str = PHONE) -> tuple[dict[str, str], dict[str, Any]]:
    """The header of a new worker's API key, and the worker's session."""
    pair = await logged_in(http, phone)
    await world.accounts.grant(pair["user"]["id"], "worker")
    response = await http.post("/v1/me/api-keys", headers=bearer(pair), json={"name": "calendar"})
    assert response.status_code == 201
    return {"Authorization": f"Bearer {response.json()['key']}"}, pair


SCOPE = {
    ("GET", "/v1/me"),
    ("GET", "/v1/workers/{worker_id}"),
    ("GET", "/v1/orders"),
    ("GET", "/v1/orders/{order_id}"),
    ("GET", "/v1/orders/{order_id}/events"),
    ("POST", "/v1/orders/{order_id}/commands"),
}


def test_the_scope_of_api_keys_is_this_and_nothing_for_operations_or_logging_in() -> None:
    taking = [row for row in ROUTES if row.api_keys]
    assert {(row.method, row.path) for row in taking} == SCOPE
    assert not [row for row in taking if row.rule is Rule.OPS or row.tag == "auth"]


async def test_an_api_key_speaks_for_its_worker() -> None:
    world = World()
    async with client(world) as http:
        auth, pair = await api_key(world, http)
        assert (await http.get("/v1/me", headers=auth)).json()["id"] == pair["user"]["id"]
        assert auth["Authorization"].startswith("Bearer rek_")
        assert (await http.get("/v1/orders", headers=auth)).status_code == 200


@pytest.mark.parametrize(
    "row",
    [row for row in ROUTES if row.rule in GUARDED and not row.api_keys],
    ids=lambda row: f"{row.method} {row.path}",
)
async def test_whatever_does_not_declare_it_refuses_an_api_key_also_of_an_operator(row: Any) -> None:
    world = World()
    async with client(world) as http:
        auth, pair = await api_key(world, http)
        await world.accounts.grant(pair["user"]["id"], "admin")
        path = row.path
        for part in row.parts:
            path = path.replace(f"{{{part}}}", row.words.get(part, (world.new_id(),))[0])
        response = await http.request(row.method, path, headers=auth, json={})
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        assert (await http.get("/v1/me", headers=bearer(pair))).status_code == 200
    assert world.router.asked == []


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("submit_quote", 404),
        ("withdraw_quote", 404),
        ("accept_quote", 403),
        ("cancel", 403),
        ("", 404),  # malformed, which is told only to who may know of the order
        ("check_in", 403),
    ],
)
async def test_by_an_api_key_an_order_is_quoted_for_and_not_commanded(command: str, status: int) -> None:
    world = World()
    async with client(world) as http:
        auth, _ = await api_key(world, http)
        body = {"command": command, "command_id": world.new_id(), "payload": {}}
        response = await http.post(f"/v1/orders/{world.new_id()}/commands", headers=auth, json=body)
    assert response.status_code == status
    if status == 403:
        assert world.router.asked == []


@pytest.mark.parametrize(
    "key", ["rek_", "rek_" + "A" * 43, "rek_" + "A" * 4000, "REK_" + "A" * 43, "rek_../..", "rek_a.b.c"]
)
async def test_a_key_that_there_is_not_is_401(key: str) -> None:
    async with client(World()) as http:
        response = await http.get("/v1/me", headers={"Authorization": f"Bearer {key}"})
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


async def test_a_key_is_shown_once_and_only_its_hash_is_kept() -> None:
    world = World()
    async with client(world) as http:
        auth, pair = await api_key(world, http)
        secret = auth["Authorization"].removeprefix("Bearer ")
        listed = await http.get("/v1/me/api-keys", headers=bearer(pair))
        assert [set(item) for item in listed.json()["items"]] == [{"id", "name", "created_at", "last_used_at"}]
        assert secret not in listed.text
    assert secret.encode() not in b"".join(world.api_keys.hashes)


async def test_a_removed_key_is_refused_at_once_and_a_foreign_one_does_not_exist() -> None:
    world = World()
    async with client(world) as http:
        auth, pair = await api_key(world, http)
        key_id = (await http.get("/v1/me/api-keys", headers=bearer(pair))).json()["items"][0]["id"]
        _, stranger = await api_key(world, http, "+8613800000002")
        path = f"/v1/me/api-keys/{key_id}"
        assert (await http.delete(path, headers=bearer(stranger))).status_code == 404
        assert (await http.get("/v1/me", headers=auth)).status_code == 200
        assert (await http.delete(path, headers=bearer(pair))).status_code == 204
        assert (await http.get("/v1/me", headers=auth)).status_code == 401
        assert (await http.delete(path, headers=bearer(pair))).status_code == 404


async def test_making_a_key_is_for_workers_with_a_fresh_code() -> None:
    world = World()
    async with client(world) as http:
        customer = await logged_in(http)
        body = {"name": "calendar"}
        assert (await http.post("/v1/me/api-keys", headers=bearer(customer), json=body)).status_code == 403
        await world.accounts.grant(customer["user"]["id"], "worker")
        world.clock.advance_s(600)
        assert wants(await http.post("/v1/me/api-keys", headers=bearer(customer), json=body), "otp")


async def test_a_key_has_a_thousand_requests_an_hour_and_is_told_when_to_come_back() -> None:
    world = World(rate_limits=True, requests_per_ip_minute=10_000, auth_per_ip_hour=100)
    async with client(world) as http:
        auth, _ = await api_key(world, http)
        statuses = [(await http.get("/v1/me", headers=auth)).status_code for _ in range(1001)]
        assert statuses == [200] * 1000 + [429]
        refused = await http.get("/v1/me", headers=auth)
        assert int(refused.headers["retry-after"]) == 3600
        world.clock.advance_s(61)
        other, _ = await api_key(world, http, "+8613800000002")
        assert (await http.get("/v1/me", headers=other)).status_code == 200
        world.clock.advance_s(3600 - 61)
        assert (await http.get("/v1/me", headers=auth)).status_code == 200


async def test_refused_uses_of_a_key_count_too() -> None:
    world = World(rate_limits=True, api_key_per_hour=2, auth_per_ip_hour=100)
    async with client(world) as http:
        auth, _ = await api_key(world, http)
        statuses = [(await http.post("/v1/auth/ticket", headers=auth)).status_code for _ in range(3)]
    assert statuses == [403, 403, 429]


async def test_while_nobody_can_count_a_key_works_on_and_no_second_factor_does() -> None:
    world = World(rate_limits=True, auth_per_ip_hour=100)
    async with client(world) as http:
        auth, pair = await api_key(world, http)
        await world.accounts.grant(pair["user"]["id"], "ops")

        async def gone(*_: Any) -> Any:
            raise StoreUnavailable("redis")

        world.limiter.hit = world.tries.take = world.challenges.issue = gone
        assert (await http.get("/v1/me", headers=auth)).status_code == 200
        verified = await http.post("/v1/auth/totp/verify", headers=bearer(pair), json={"code": "000000"})
        asked = await http.post("/v1/auth/device-login/challenge", json={"key_id": world.new_id()})
    assert verified.status_code == asked.status_code == 503


@pytest.mark.parametrize("gone", ["role", "account"])
async def test_who_is_no_worker_any_more_speaks_by_no_key(gone: str) -> None:
    world = World()
    async with client(world) as http:
        auth, pair = await api_key(world, http)
        user = world.accounts.users[pair["user"]["id"]]
        if gone == "role":
            world.accounts.users[user.id] = msgspec.structs.replace(user, roles=("customer",))
        else:
            del world.accounts.users[user.id]
        response = await http.get("/v1/me", headers=auth)
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


async def test_who_logs_in_by_a_key_while_sessions_are_listed_for_logging_out_everywhere_is_refused() -> None:
    """Were the keys removed only afterwards, that session would be in no list and live on."""
    world = World()
    async with client(world) as http:
        phone, pair = await handset(http)
        real, late = world.sessions.list_of, []

        async def list_of(user_id: str) -> list[DeviceSession]:
            found = await real(user_id)
            late.append(await phone.login(http))
            return found

        world.sessions.list_of = list_of  # type: ignore[method-assign]
        assert (await http.post("/v1/auth/logout", headers=bearer(pair), json={"all": True})).status_code == 204
    assert [answer.status_code for answer in late] == [401]
