"""Hostile cases against device keys, second factors, API keys and sessions, on the real stores: SQLite and Valkey.

Every refusal is 401 of one shape, changes nothing, and tells nobody which part was wrong.
"""

import asyncio
import base64
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyotp
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from domain.devices import login_message
from domain.places import Place
from serve_apps.signatures import verified
from storage.accounts import SqlAccounts
from storage.audit import SqlAudit
from storage.cache import RedisServer
from storage.challenges import RedisChallenges, RedisTries
from storage.engine import Database
from storage.sessions import SqlSessions
from storage.user_keys import SqlApiKeys, SqlDeviceKeys, SqlTotpSecrets
from tests.support.databases import migrated
from tests.support.device_keys import AUDIENCE, ORDER, Handset, b64, challenge_for, der, raw
from tests.support.keys import FixedKeys
from tests.support.memory_devices import MemoryPlaces
from tests.support.rest_app import World
from tests.support.servers import Valkey
from tests.unit.test_rest_auth import bearer, code_for, logged_in

PHONE, OTHER = "+8613800000001", "+8613800000002"
WAYS = 20


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database that nobody has used."""
    folder = tmp_path_factory.mktemp("devices")
    with migrated("sqlite", folder):
        return folder / "renoveasy.db"


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


class Stored(World):
    """`World` whose accounts, sessions, keys, secrets, challenges and tries are the real ones."""

    def __init__(self, database: Database, redis: RedisServer, **settings: Any) -> None:
        super().__init__(**settings)
        self.audit = SqlAudit(database, b"audit key of the tests".ljust(32), self.clock, self.new_id)
        self.accounts = SqlAccounts(database, self.clock, self.new_id, FixedKeys(), self.audit)  # type: ignore[assignment]
        self.sessions = SqlSessions(database, self.audit)  # type: ignore[assignment]
        self.tokens._sessions = self.sessions
        self.device_keys = SqlDeviceKeys(database)
        self.totp = SqlTotpSecrets(database, FixedKeys())
        self.api_keys = SqlApiKeys(database)
        self.challenges, self.tries = RedisChallenges(redis), RedisTries(redis)


@pytest.fixture
async def world(empty: Path, valkey: Valkey, tmp_path: Path) -> AsyncIterator[Stored]:
    file = shutil.copy(empty, tmp_path / "renoveasy.db")
    database, redis = Database(f"sqlite+aiosqlite:///{file}"), RedisServer(valkey.url, tmp_path.name, timeout_s=10)
    yield Stored(database, redis, ops_totp=True)
    await redis.close()
    await database.close()


@pytest.fixture
async def http(world: Stored) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(world.app()), base_url="http://rest") as client:
        yield client


async def registered(http: httpx.AsyncClient, phone: str = PHONE) -> tuple[Handset, dict[str, Any]]:
    handset, pair = Handset(), await logged_in(http, phone)
    await handset.register(http, bearer(pair))
    return handset, pair


def shape(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    """What a caller can tell one refusal from another by."""
    return response.status_code, {key: value for key, value in response.json().items() if key != "request_id"}


REFUSED = (
    401,
    {
        "type": "urn:renoveasy:problem:unauthenticated",
        "title": "Log in first",
        "status": 401,
        "code": "unauthenticated",
        "detail": "the signature does not prove the key",
    },
)


# --- signatures that prove nothing ---


def _flipped(r: int, s: int) -> dict[str, str]:
    return {"signature flipped": raw(r, s ^ 1), "r flipped": raw(r ^ 1, s), "swapped": raw(s, r)}


def _ranges(r: int, s: int) -> dict[str, str]:
    """What the checks of a range must catch: 0, the order itself, and what is equal modulo the order."""
    long = (r + ORDER, s), (r, s + ORDER), (ORDER, s), (r, ORDER), (0, s), (r, 0), (0, 0), (ORDER, ORDER)
    named = {f"range {n}": b64(der(*pair)) for n, pair in enumerate(long)}
    zeros = {"raw zeros": raw(0, 0), "raw r zero": raw(0, s), "raw s zero": raw(r, 0), "raw order": raw(ORDER, ORDER)}
    return named | zeros


def _spellings(r: int, s: int) -> dict[str, str]:
    """Other spellings of a right signature."""
    plain, strict = raw(r, s), der(r, s)
    loose = {
        "DER with a byte behind": strict + b"\0",
        "DER with a longer length": b"\x30\x81" + strict[1:],
        "DER of indefinite length": b"\x30\x80" + strict[2:] + b"\0\0",
        "DER cut off": strict[:-1],
        "DER with a leading zero": _der_of(b"\0" + _integer(r), _integer(s)),
        "DER with a negative r": _der_of(b"\xff" + r.to_bytes(32, "big"), _integer(s)),
        "DER with a third number": _der_of(_integer(r), _integer(s), b"\1"),
        "DER of one number": _der_of(_integer(r)),
        "raw with a byte before": b"\0" + r.to_bytes(32, "big") + s.to_bytes(32, "big"),
        "raw with a byte behind": r.to_bytes(32, "big") + s.to_bytes(32, "big") + b"\0",
        "raw halves of 33 bytes": r.to_bytes(33, "big") + s.to_bytes(33, "big"),
        "raw cut off": (r.to_bytes(32, "big") + s.to_bytes(32, "big"))[:63],
        "compact of ASCII": plain.encode(),
    }
    texts = {
        "blank before": " " + plain,
        "line feed behind": plain + "\n",
        "blank within": plain[:10] + " " + plain[10:],
        "padded twice": plain + "====",
        "padded once": plain + "=",
        "hex": (r.to_bytes(32, "big") + s.to_bytes(32, "big")).hex(),
        "bits to spare": plain[:-1] + _next(plain[-1]),
        "NUL behind": plain + "\0",
        "full-width": plain[:-1] + chr(ord(plain[-1]) + 0xFEE0),
        "two alphabets": plain[:-2] + "-+",
        "quoted": f'"{plain}"',
        "JWS": f"eyJhbGciOiJFUzI1NiJ9.e30.{plain}",
    }
    return {name: b64(value) for name, value in loose.items()} | texts


def _next(letter: str) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return letters[letters.index(letter) | 1]


def _integer(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


def _der_of(*numbers: bytes) -> bytes:
    body = b"".join(b"\x02" + bytes([len(number)]) + number for number in numbers)
    return b"\x30" + bytes([len(body)]) + body


def _other_keys(message: bytes) -> dict[str, str]:
    sha = ec.ECDSA(hashes.SHA256())
    nobody = ec.derive_private_key(1, ec.SECP256R1())
    return {
        "another P-256 key": b64(ec.generate_private_key(ec.SECP256R1()).sign(message, sha)),
        "the key that stands in for none": b64(nobody.sign(message, sha)),
        "P-384": b64(ec.generate_private_key(ec.SECP384R1()).sign(message, sha)),
        "secp256k1": b64(ec.generate_private_key(ec.SECP256K1()).sign(message, sha)),
        "Ed25519": b64(ed25519.Ed25519PrivateKey.generate().sign(message)),
        "RSA": b64(rsa.generate_private_key(65537, 2048).sign(message, padding.PKCS1v15(), hashes.SHA256())),
    }


def _no_signatures() -> dict[str, str]:
    return {
        "empty": "",
        "one letter": "A",
        "none": "none",
        "64 zeros": b64(bytes(64)),
        "64 ones": b64(b"\xff" * 64),
        "huge": "A" * 200_000,
        "huge DER length": b64(b"\x30\x84\xff\xff\xff\xff" + bytes(60)),
        "other letters": "签" * 86,
        "128 bytes": b64(bytes(128)),
    }


def _hostile(handset: Handset, challenge: str) -> dict[str, str]:
    message = login_message(AUDIENCE, handset.key_id, challenge)
    r, s = handset.sign(challenge)
    private = handset.private
    wrong_texts = {
        "the bare challenge": challenge.encode(),
        "nothing": b"",
        "without a domain": f"{AUDIENCE}\n{handset.key_id}\n{challenge}".encode(),
        "another purpose": message.replace(b"device login v1", b"device login v2"),
        "another audience": login_message("renoveasy-connect", handset.key_id, challenge),
        "no audience": login_message("", handset.key_id, challenge),
        "another key's id": login_message(AUDIENCE, "0190a000-0000-7000-8000-000000000001", challenge),
        "another challenge": login_message(AUDIENCE, handset.key_id, "A" * 43),
        "moved borders": f"renoveasy device login v1\n{AUDIENCE}\n{handset.key_id}{challenge}".encode(),
        "a line more": message + b"\n",
        "carriage returns": message.replace(b"\n", b"\r\n"),
    }
    signed = {name: b64(private.sign(text, ec.ECDSA(hashes.SHA256()))) for name, text in wrong_texts.items()}
    hashed = {
        "SHA-512": b64(private.sign(message, ec.ECDSA(hashes.SHA512()))),
        "SHA-1": b64(private.sign(message, ec.ECDSA(hashes.SHA1()))),
    }
    return {
        **signed,
        **hashed,
        **_flipped(r, s),
        **_ranges(r, s),
        **_spellings(r, s),
        **_other_keys(message),
        **_no_signatures(),
    }


def _names() -> list[str]:
    handset = Handset()
    handset.key_id = "0190a000-0000-7000-8000-000000000002"
    return list(_hostile(handset, "B" * 43))


@pytest.mark.parametrize("name", _names())
async def test_a_signature_that_is_not_the_one_is_refused_like_every_other(
    http: httpx.AsyncClient, world: Stored, name: str
) -> None:
    handset, pair = await registered(http)
    before = len(await world.sessions.list_of(pair["user"]["id"]))
    challenge = await challenge_for(http, handset.key_id)
    signature = _hostile(handset, challenge)[name]
    body = {"key_id": handset.key_id, "challenge": challenge, "signature": signature, "device": handset.device}
    response = await http.post("/v1/auth/device-login", json=body)
    assert shape(response) == REFUSED
    assert len(await world.sessions.list_of(pair["user"]["id"])) == before
    # And its challenge is used up: the right signature comes too late.
    right = body | {"signature": raw(*handset.sign(challenge))}
    assert shape(await http.post("/v1/auth/device-login", json=right)) == REFUSED
    assert (await handset.login(http)).status_code == 200


async def test_either_s_of_a_signature_is_right_and_neither_is_right_twice(http: httpx.AsyncClient) -> None:
    """Phones give either one: refusing the high one would lock out half of the honest logins. One use makes it harmless."""
    handset, _ = await registered(http)
    challenge = await challenge_for(http, handset.key_id)
    r, s = handset.sign(challenge)
    first = await handset.login(http, challenge=challenge, signature=raw(r, ORDER - s))
    second = await handset.login(http, challenge=challenge, signature=raw(r, s))
    assert first.status_code == 200
    assert shape(second) == REFUSED


# --- challenges ---


async def test_a_login_that_was_overheard_cannot_be_sent_again(http: httpx.AsyncClient) -> None:
    handset, _ = await registered(http)
    challenge = await challenge_for(http, handset.key_id)
    said = {"challenge": challenge, "signature": raw(*handset.sign(challenge))}
    assert (await handset.login(http, **said)).status_code == 200
    for _ in range(3):
        assert shape(await handset.login(http, **said)) == REFUSED


async def test_of_twenty_who_send_one_login_at_once_one_is_let_in(http: httpx.AsyncClient, world: Stored) -> None:
    handset, pair = await registered(http)
    before = len(await world.sessions.list_of(pair["user"]["id"]))
    challenge = await challenge_for(http, handset.key_id)
    said = {"challenge": challenge, "signature": raw(*handset.sign(challenge))}
    answers = await asyncio.gather(*(handset.login(http, **said) for _ in range(WAYS)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * (WAYS - 1)
    assert len(await world.sessions.list_of(pair["user"]["id"])) == before + 1


@pytest.mark.parametrize("challenge", ["", "A" * 43, "x" * 100_000, "\0", "*", "a b\r\nFLUSHALL", "挑战", "null"])
async def test_a_challenge_that_was_never_given_out_is_refused_however_it_is_signed(
    http: httpx.AsyncClient, challenge: str
) -> None:
    handset, _ = await registered(http)
    nothing = b64(handset.private.sign(b"", ec.ECDSA(hashes.SHA256())))
    for signature in (raw(*handset.sign(challenge)), nothing):
        assert shape(await handset.login(http, challenge=challenge, signature=signature)) == REFUSED


async def test_a_challenge_of_one_key_does_not_serve_another_one(http: httpx.AsyncClient) -> None:
    victim, _ = await registered(http)
    attacker, _ = await registered(http, OTHER)
    challenge = await challenge_for(http, victim.key_id)
    signature = raw(*attacker.sign(challenge))
    assert shape(await attacker.login(http, challenge=challenge, signature=signature)) == REFUSED


async def test_a_foreign_key_does_not_open_an_account_under_the_victims_key_id(http: httpx.AsyncClient) -> None:
    victim, _ = await registered(http)
    attacker, _ = await registered(http, OTHER)
    for named in (victim.key_id, attacker.key_id):
        challenge = await challenge_for(http, victim.key_id)
        signature = raw(*attacker.sign(challenge, named))
        body = {"key_id": victim.key_id, "challenge": challenge, "signature": signature}
        assert shape(await attacker.login(http, **body)) == REFUSED


async def test_known_unknown_and_removed_keys_cannot_be_told_apart(http: httpx.AsyncClient, world: Stored) -> None:
    known, _ = await registered(http)
    gone, pair = await registered(http, OTHER)
    await http.delete(f"/v1/auth/device-keys/{gone.key_id}", headers=bearer(pair))
    asked, answered = [], []
    for key_id in (known.key_id, gone.key_id, world.new_id()):
        response = await http.post("/v1/auth/device-login/challenge", json={"key_id": key_id})
        body = response.json()
        asked.append((response.status_code, set(body), len(body["challenge"]), body["expires_in_s"]))
        signature = raw(*Handset().sign(body["challenge"], key_id))
        tried = {"key_id": key_id, "challenge": body["challenge"], "signature": signature}
        answered.append(shape(await known.login(http, **tried)))
    assert len({str(item) for item in asked}) == 1
    assert answered == [REFUSED] * 3


async def test_a_removed_key_is_refused_with_a_challenge_from_before(http: httpx.AsyncClient) -> None:
    handset, pair = await registered(http)
    challenge = await challenge_for(http, handset.key_id)
    await http.delete(f"/v1/auth/device-keys/{handset.key_id}", headers=bearer(pair))
    assert shape(await handset.login(http, challenge=challenge, signature=raw(*handset.sign(challenge)))) == REFUSED


async def test_the_key_that_stands_in_for_none_opens_nothing(http: httpx.AsyncClient, world: Stored) -> None:
    """A private key that everybody knows verifies signatures of keys that are not there; it must prove nothing."""
    handset = Handset()
    handset.private = ec.derive_private_key(1, ec.SECP256R1())
    handset.key_id = world.new_id()
    assert shape(await handset.login(http)) == REFUSED
    signature = b64(handset.private.sign(b"text", ec.ECDSA(hashes.SHA256())))
    assert verified(handset.spki(), signature, b"text")
    assert not verified(None, signature, b"text")


async def test_a_login_that_races_with_the_keys_removal_leaves_no_living_session(
    http: httpx.AsyncClient, world: Stored
) -> None:
    handset, pair = await registered(http)
    user_id = pair["user"]["id"]
    path = f"/v1/auth/device-keys/{handset.key_id}"
    await asyncio.gather(
        *(handset.login(http) for _ in range(10)),
        http.delete(path, headers=bearer(pair)),
        *(handset.login(http) for _ in range(10)),
    )
    assert [
        session
        for session in await world.sessions.list_of(user_id)
        if session.device_key_id == handset.key_id and session.revoked_at is None
    ] == []


async def test_a_login_that_races_with_logging_out_everywhere_leaves_no_living_session(
    http: httpx.AsyncClient, world: Stored
) -> None:
    handset, pair = await registered(http)
    await asyncio.gather(
        *(handset.login(http) for _ in range(10)),
        http.post("/v1/auth/logout", headers=bearer(pair), json={"all": True}),
        *(handset.login(http) for _ in range(10)),
    )
    living = [item for item in await world.sessions.list_of(pair["user"]["id"]) if item.revoked_at is None]
    assert living == []


# --- second factors ---


async def operator(http: httpx.AsyncClient, world: Stored, phone: str) -> tuple[dict[str, Any], pyotp.TOTP]:
    pair = await logged_in(http, phone)
    await world.accounts.grant(pair["user"]["id"], "ops")
    enrolled = await http.post("/v1/auth/totp/enrol", headers=bearer(pair))
    totp = pyotp.parse_uri(enrolled.json()["otpauth_uri"])
    assert isinstance(totp, pyotp.TOTP)
    return pair, totp


def verifying(http: httpx.AsyncClient, pair: dict[str, Any], code: str) -> Any:
    return http.post("/v1/auth/totp/verify", headers=bearer(pair), json={"code": code})


OPS_PATH = "/v1/admin/streams/order/0190a000-0000-7000-8000-000000000001"


async def test_of_twenty_sessions_that_send_one_code_at_once_one_is_verified(
    http: httpx.AsyncClient, world: Stored
) -> None:
    phone = "+8613800001001"
    pair, totp = await operator(http, world, phone)
    pairs = [pair, *[await logged_in(http, phone) for _ in range(WAYS - 1)]]
    code = totp.generate_otp(world.clock.now_ms() // 30_000)
    answers = await asyncio.gather(*(verifying(http, each, code) for each in pairs))
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) == 1
    assert set(statuses) <= {200, 401, 429}
    allowed = [(await http.get(OPS_PATH, headers=bearer(each))).status_code for each in pairs]
    assert sorted(allowed) == [401] * (WAYS - 1) + [404]
    assert allowed.index(404) == statuses.index(200)


async def test_of_twenty_guesses_at_once_five_are_looked_at(http: httpx.AsyncClient, world: Stored) -> None:
    pair, totp = await operator(http, world, "+8613800001002")
    now_step = world.clock.now_ms() // 30_000
    right = {totp.generate_otp(now_step + around) for around in (-1, 0, 1)}
    wrong = [code for n in range(30) if (code := f"{n:06d}") not in right][:WAYS]
    answers = await asyncio.gather(*(verifying(http, pair, code) for code in wrong))
    assert sorted(answer.status_code for answer in answers) == [401] * 5 + [429] * (WAYS - 5)
    assert (await verifying(http, pair, totp.generate_otp(now_step))).status_code == 429


@pytest.mark.parametrize("steps", [-100, -3, -2, 2, 3, 100])
async def test_a_code_of_another_time_is_refused(http: httpx.AsyncClient, world: Stored, steps: int) -> None:
    pair, totp = await operator(http, world, f"+86138000011{steps % 100:02d}")
    now_step = world.clock.now_ms() // 30_000
    code = totp.generate_otp(now_step + steps)
    assert (await verifying(http, pair, code)).status_code == 401
    assert (await http.get(OPS_PATH, headers=bearer(pair))).json()["code"] == "step_up_required"


@pytest.mark.parametrize(
    "code", ["", "12345", "1234567", "12 456", "١٢٣٤٥٦", "１２３４５６", "-12345", "123456\n", "1e5000"]
)
async def test_what_is_no_code_is_a_field_error_and_costs_no_try(
    http: httpx.AsyncClient, world: Stored, code: str
) -> None:
    pair, totp = await operator(http, world, f"+86138000012{len(code):02d}")
    for _ in range(6):
        assert (await verifying(http, pair, code)).status_code == 422
    world.clock.advance_s(60)
    assert (await verifying(http, pair, totp.generate_otp(world.clock.now_ms() // 30_000))).status_code == 200


async def test_the_code_of_another_operator_is_refused(http: httpx.AsyncClient, world: Stored) -> None:
    mine, _ = await operator(http, world, "+8613800001301")
    _, theirs = await operator(http, world, "+8613800001302")
    code = theirs.generate_otp(world.clock.now_ms() // 30_000)
    assert (await verifying(http, mine, code)).status_code == 401


async def test_a_second_factor_verifies_one_session_and_goes_with_a_reset(
    http: httpx.AsyncClient, world: Stored
) -> None:
    phone = "+8613800001401"
    pair, totp = await operator(http, world, phone)
    stolen = await logged_in(http, phone)
    await verifying(http, pair, totp.generate_otp(world.clock.now_ms() // 30_000))
    assert (await http.get(OPS_PATH, headers=bearer(pair))).status_code == 404
    assert (await http.get(OPS_PATH, headers=bearer(stolen))).status_code == 401
    await world.totp.reset(pair["user"]["id"])
    assert (await http.get(OPS_PATH, headers=bearer(pair))).status_code == 401


async def test_a_confirmed_second_factor_is_not_replaced_by_who_has_stolen_a_session(
    http: httpx.AsyncClient, world: Stored
) -> None:
    phone = "+8613800001501"
    pair, totp = await operator(http, world, phone)
    await verifying(http, pair, totp.generate_otp(world.clock.now_ms() // 30_000))
    thief = await logged_in(http, phone)
    answers = await asyncio.gather(
        *(http.post("/v1/auth/totp/enrol", headers=bearer(thief)) for _ in range(WAYS)), return_exceptions=False
    )
    assert {answer.status_code for answer in answers} == {409}


async def test_a_role_that_was_granted_does_not_make_an_old_session_an_operators(
    http: httpx.AsyncClient, world: Stored
) -> None:
    pair = await logged_in(http, "+8613800001601")
    assert (await http.get(OPS_PATH, headers=bearer(pair))).status_code == 403
    await world.accounts.grant(pair["user"]["id"], "admin")
    refused = await http.get(OPS_PATH, headers=bearer(pair))
    assert (refused.status_code, refused.json()["code"]) == (401, "step_up_required")


async def test_operators_command_orders_after_their_second_factor(http: httpx.AsyncClient, world: Stored) -> None:
    pair, totp = await operator(http, world, "+8613800001701")
    path, body = f"/v1/orders/{uuid.uuid4()}/commands", {"command": "cancel", "command_id": str(uuid.uuid4())}
    refused = await http.post(path, json=body, headers=bearer(pair))
    assert (refused.status_code, refused.json()["code"]) == (401, "step_up_required")
    assert (await verifying(http, pair, totp.generate_otp(world.clock.now_ms() // 30_000))).status_code == 200
    assert (await http.post(path, json=body, headers=bearer(pair))).status_code == 404


# --- API keys ---


async def keyed(http: httpx.AsyncClient, world: Stored, phone: str) -> tuple[str, str, dict[str, Any]]:
    pair = await logged_in(http, phone)
    await world.accounts.grant(pair["user"]["id"], "worker")
    made = (await http.post("/v1/me/api-keys", headers=bearer(pair), json={"name": "calendar"})).json()
    return made["key"], made["id"], pair


def _misspelled() -> dict[str, Callable[[str], str]]:
    return {
        "last letter": lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        "first letter": lambda key: "rek_" + ("A" if key[4] != "A" else "B") + key[5:],
        "cut off": lambda key: key[:-1],
        "longer": lambda key: key + "A",
        "padded": lambda key: key + "=",
        "upper case": lambda key: key.upper(),
        "without its beginning": lambda key: key.removeprefix("rek_"),
        "its beginning twice": lambda key: "rek_" + key,
        "its hash": lambda key: "rek_" + base64.urlsafe_b64encode(key.encode()).decode().rstrip("="),
        "a dot": lambda key: key + ".",
        "as a ticket": lambda key: "ticket." + key,
    }


@pytest.mark.parametrize("name", _misspelled())
async def test_an_api_key_counts_letter_for_letter(http: httpx.AsyncClient, world: Stored, name: str) -> None:
    key, _, _ = await keyed(http, world, "+8613800002001")
    wrong = _misspelled()[name](key)
    response = await http.get("/v1/me", headers={"Authorization": f"Bearer {wrong}"})
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
    assert (await http.get("/v1/me", headers={"Authorization": f"Bearer {key}"})).status_code == 200


async def test_a_removed_api_key_is_refused_by_every_request_that_comes_after(
    http: httpx.AsyncClient, world: Stored
) -> None:
    key, key_id, pair = await keyed(http, world, "+8613800002002")
    auth = {"Authorization": f"Bearer {key}"}
    await asyncio.gather(*(http.get("/v1/me", headers=auth) for _ in range(WAYS)))
    assert (await http.delete(f"/v1/me/api-keys/{key_id}", headers=bearer(pair))).status_code == 204
    answers = await asyncio.gather(*(http.get("/v1/me", headers=auth) for _ in range(WAYS)))
    assert {answer.status_code for answer in answers} == {401}


async def test_an_api_key_is_no_refresh_token_and_an_access_token_no_api_key(
    http: httpx.AsyncClient, world: Stored
) -> None:
    key, key_id, pair = await keyed(http, world, "+8613800002003")
    assert (await http.post("/v1/auth/refresh", json={"refresh_token": key})).status_code == 401
    for token in (key_id, "rek_" + pair["access_token"], "rek_" + pair["refresh_token"]):
        assert (await http.get("/v1/me", headers={"Authorization": f"Bearer {token}"})).status_code == 401


# --- sessions that travel ---


async def test_of_twenty_refreshes_from_two_countries_only_home_gets_a_pair(world: Stored) -> None:
    world.places = MemoryPlaces({"198.51.100.0/24": Place("CN"), "203.0.113.0/24": Place("DE")})
    app = world.app()

    def at(ip: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(ip, 1)), base_url="http://rest")

    async with at("198.51.100.7") as home, at("203.0.113.7") as away:
        pair = await logged_in(home, "+8613800003001")
        body = {"refresh_token": pair["refresh_token"]}
        answers = await asyncio.gather(*((home, away)[n % 2].post("/v1/auth/refresh", json=body) for n in range(WAYS)))
        at_home, from_away = answers[::2], answers[1::2]
        assert {answer.status_code for answer in at_home} == {200}
        assert len({answer.json()["refresh_token"] for answer in at_home}) == 1
        assert {answer.json()["code"] for answer in from_away} == {"step_up_required"}
        for answer in from_away:
            assert "refresh_token" not in answer.text


async def test_of_twenty_step_ups_with_one_code_one_gives_a_pair(http: httpx.AsyncClient) -> None:
    phone = "+8613800003002"
    pair = await logged_in(http, phone)
    body = {"refresh_token": pair["refresh_token"], "code": await code_for(http, phone)}
    answers = await asyncio.gather(*(http.post("/v1/auth/step-up", json=body) for _ in range(WAYS)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * (WAYS - 1)


async def test_who_steps_up_with_their_own_code_does_not_get_a_foreign_session(http: httpx.AsyncClient) -> None:
    victim = await logged_in(http, "+8613800003003")
    code = await code_for(http, "+8613800003004")
    body = {"refresh_token": victim["refresh_token"], "code": code}
    assert (await http.post("/v1/auth/step-up", json=body)).status_code == 401
    assert (await http.post("/v1/auth/refresh", json={"refresh_token": victim["refresh_token"]})).status_code == 200
