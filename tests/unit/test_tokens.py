"""Keys, access tokens, refresh tokens: what is accepted, and the many things that are not."""

import asyncio
import base64
import hashlib
import hmac
import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import Code, Refusal
from domain.ports import Device, DeviceSession, Identity
from storage.tokens import LOOK_S, MAX_TOKEN_CHARS, JwtIssuer, JwtVerifier, SigningKeys, TokenSettings

USER = "01890000-0000-7000-8000-000000000001"
SESSION = "01890000-0000-7000-8000-00000000000a"
OTHER_SESSION = "01890000-0000-7000-8000-00000000000b"
NOW_MS = 1_800_000_000_123


class ManualClock:
    def __init__(self) -> None:
        self.ms = NOW_MS

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000

    def advance(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)


class KnownSessions:
    """The reading half of `ports.Sessions`, that counts how often it is asked and may take its time."""

    def __init__(self, *ids: str) -> None:
        device = Device("d", "phone", "ios")
        self.known = {id_: DeviceSession(id_, USER, device, NOW_MS, NOW_MS) for id_ in ids}
        self.asked = 0
        self.gate: asyncio.Event | None = None

    async def get(self, session_id: str) -> DeviceSession | None:
        self.asked += 1
        session = self.known.get(session_id)
        if self.gate is not None:
            await self.gate.wait()
        return session

    def revoke(self, session_id: str) -> None:
        old = self.known[session_id]
        device = old.device
        self.known[session_id] = DeviceSession(session_id, old.user_id, device, NOW_MS, NOW_MS, revoked_at=NOW_MS)


@pytest.fixture(scope="module")
def key() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def keys(key: RSAPrivateKey) -> SigningKeys:
    return SigningKeys([key])


@pytest.fixture
def issuer(keys: SigningKeys) -> JwtIssuer:
    return JwtIssuer(keys)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def sessions() -> KnownSessions:
    return KnownSessions(SESSION)


@pytest.fixture
def verifier(keys: SigningKeys, sessions: KnownSessions, clock: ManualClock) -> JwtVerifier:
    return JwtVerifier(keys, sessions, clock)  # type: ignore[arg-type]


async def refused(verifier: JwtVerifier, token: Any) -> Code:
    with pytest.raises(Refusal) as caught:
        await verifier.verify(token)
    return caught.value.code


# --- keys ---


def test_the_first_start_makes_a_key_that_only_its_owner_can_read(tmp_path: Path) -> None:
    keys = SigningKeys.open(tmp_path / "data" / "keys")
    files = list((tmp_path / "data" / "keys").iterdir())
    assert [file.name for file in files] == ["signing-1.pem"]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700
    assert SigningKeys.open(tmp_path / "data" / "keys").newest.kid == keys.newest.kid


def test_processes_that_start_at_once_end_with_the_same_key(tmp_path: Path) -> None:
    program = "import sys, pathlib; from storage.tokens import SigningKeys; "
    program += "sys.stdin.readline(); print(SigningKeys.open(pathlib.Path(sys.argv[1])).newest.kid)"
    command = [sys.executable, "-c", program, str(tmp_path / "keys")]
    root = Path(__file__).parents[2]
    starting = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    time.sleep(1.0)
    for process in starting:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = {process.communicate(timeout=60)[0] for process in starting}
    assert answers == {f"{SigningKeys.open(tmp_path / 'keys').newest.kid}\n"}
    assert [file.name for file in (tmp_path / "keys").iterdir()] == ["signing-1.pem"]


def test_the_newest_key_signs_and_all_of_them_verify(tmp_path: Path, clock: ManualClock) -> None:
    old = SigningKeys.open(tmp_path)
    old_kid = old.newest.kid
    token, sealed = JwtIssuer(old).access(USER, SESSION, NOW_MS, 900), JwtIssuer(old).seal("kept")
    new = SigningKeys.rotate(tmp_path)
    assert new.newest.kid != old_kid
    assert [jwk["kid"] for jwk in new.jwks()["keys"]] == [new.newest.kid, old_kid]
    verifier = JwtVerifier(new, KnownSessions(SESSION), clock)  # type: ignore[arg-type]
    assert asyncio.run(verifier.verify(token)).user_id == USER
    assert asyncio.run(verifier.verify(JwtIssuer(new).access(USER, SESSION, NOW_MS, 900))).user_id == USER
    assert JwtIssuer(new).unseal(sealed) == "kept"


def test_a_key_that_is_added_verifies_and_unseals_in_processes_that_run_already(
    tmp_path: Path, clock: ManualClock
) -> None:
    verifying, unsealing = SigningKeys.open(tmp_path), SigningKeys.open(tmp_path)
    verifier = JwtVerifier(verifying, KnownSessions(SESSION), clock)  # type: ignore[arg-type]
    elsewhere = JwtIssuer(SigningKeys.rotate(tmp_path))
    assert asyncio.run(verifier.verify(elsewhere.access(USER, SESSION, NOW_MS, 900))).user_id == USER
    assert JwtIssuer(unsealing).unseal(elsewhere.seal("new")) == "new"


def test_a_key_that_is_added_signs_and_is_published_by_processes_that_run_already(tmp_path: Path) -> None:
    signing, publishing = SigningKeys.open(tmp_path), SigningKeys.open(tmp_path)
    elsewhere = SigningKeys.rotate(tmp_path)
    assert signing.newest.kid == elsewhere.newest.kid
    assert publishing.jwks() == elsewhere.jwks()
    assert len(publishing.jwks()["keys"]) == 2


def test_a_key_that_is_removed_counts_for_seconds_more_and_no_longer(tmp_path: Path, clock: ManualClock) -> None:
    SigningKeys.rotate(tmp_path)
    running = SigningKeys.open(tmp_path)
    verifier = JwtVerifier(running, KnownSessions(SESSION), clock)  # type: ignore[arg-type]
    stolen = JwtIssuer(running).access(USER, SESSION, NOW_MS, 900)
    SigningKeys.rotate(tmp_path)
    (tmp_path / "signing-1.pem").unlink()
    assert asyncio.run(verifier.verify(stolen)).user_id == USER
    clock.advance(LOOK_S + 1)
    assert asyncio.run(refused(verifier, stolen)) == Code.UNAUTHENTICATED


def test_a_folder_that_is_emptied_or_spoilt_leaves_running_processes_their_keys(tmp_path: Path) -> None:
    running = SigningKeys.open(tmp_path)
    kid = running.newest.kid
    (tmp_path / "signing-2.pem").write_text("no key")
    assert running.newest.kid == kid
    for path in tmp_path.iterdir():
        path.unlink()
    assert running.newest.kid == kid


def test_a_key_that_is_too_short_is_not_used(tmp_path: Path) -> None:
    pem = generate_private_key(65537, 1024).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "signing-1.pem").write_bytes(pem)
    with pytest.raises(ValueError, match="2048"):
        SigningKeys.open(tmp_path)


def test_the_key_set_verifies_tokens_and_holds_nothing_private(issuer: JwtIssuer) -> None:
    token = issuer.access(USER, SESSION, NOW_MS, 900)
    (jwk,) = issuer.jwks()["keys"]
    assert set(jwk) == {"kty", "n", "e", "kid", "use", "alg"}
    canonical = f'{{"e":"{jwk["e"]}","kty":"RSA","n":"{jwk["n"]}"}}'.encode()
    assert jwk["kid"] == base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).rstrip(b"=").decode()
    options = {"verify_exp": False, "verify_iat": False}
    claims = jwt.decode(token, jwt.PyJWK(jwk), algorithms=["RS256"], audience="renoveasy-api", options=options)
    assert claims["sub"] == USER
    assert claims["exp"] - claims["iat"] == 900


# --- access tokens ---


async def test_a_token_says_who_speaks_and_until_when(issuer: JwtIssuer, verifier: JwtVerifier) -> None:
    token = issuer.access(USER, SESSION, NOW_MS, 900)
    assert await verifier.verify(token) == Identity(USER, SESSION, (NOW_MS // 1000 + 900) * 1000)
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"


def test_equal_arguments_give_an_equal_token_and_other_ones_another_jti(issuer: JwtIssuer) -> None:
    first = issuer.access(USER, SESSION, NOW_MS, 900)
    assert issuer.access(USER, SESSION, NOW_MS, 900) == first
    assert issuer.access(USER, SESSION, NOW_MS + 1, 900) != first
    assert issuer.access(USER, OTHER_SESSION, NOW_MS, 900) != first


async def test_a_token_expires_and_only_five_seconds_are_forgiven(
    issuer: JwtIssuer, verifier: JwtVerifier, clock: ManualClock
) -> None:
    token = issuer.access(USER, SESSION, NOW_MS, 900)
    clock.advance(904)
    await verifier.verify(token)
    clock.advance(1)
    assert await refused(verifier, token) == Code.TOKEN_EXPIRED


async def test_a_token_from_the_future_is_refused_beyond_five_seconds(issuer: JwtIssuer, verifier: JwtVerifier) -> None:
    await verifier.verify(issuer.access(USER, SESSION, NOW_MS + 5_000, 900))
    assert await refused(verifier, issuer.access(USER, SESSION, NOW_MS + 6_000, 900)) == Code.UNAUTHENTICATED


async def test_the_longest_identifiers_still_fit(issuer: JwtIssuer) -> None:
    assert len(issuer.access(USER, SESSION, 10**14, 10**9)) < MAX_TOKEN_CHARS


# --- forgeries ---


def segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims_now(**changes: Any) -> dict[str, Any]:
    claims = {
        "iss": "renoveasy",
        "aud": "renoveasy-api",
        "sub": USER,
        "sid": SESSION,
        "iat": NOW_MS // 1000,
        "exp": NOW_MS // 1000 + 900,
        "jti": "x",
    } | changes
    return {name: value for name, value in claims.items() if value is not None}


Forge = Callable[..., str]


@pytest.fixture
def forge(key: RSAPrivateKey, keys: SigningKeys) -> Forge:
    """Signs anything with the real key: what is refused then is refused for its content alone."""

    def make(claims: dict[str, Any] | None = None, *, algorithm: str = "RS256", **header: Any) -> str:
        headers = {"kid": keys.newest.kid, "typ": "at+jwt"} | header
        return jwt.encode(claims or claims_now(), key, algorithm, headers=headers)

    return make


async def test_what_the_tests_forge_would_be_accepted_if_nothing_were_wrong(
    verifier: JwtVerifier, forge: Forge
) -> None:
    assert (await verifier.verify(forge())).user_id == USER


@pytest.mark.parametrize("spelling", ["none", "None", "NONE", "nOnE", "none ", "", None])
@pytest.mark.parametrize("signature", ["", "AA", "kept"])
async def test_an_unsigned_token_is_refused_however_none_is_spelt(
    verifier: JwtVerifier, issuer: JwtIssuer, keys: SigningKeys, spelling: str | None, signature: str
) -> None:
    real = issuer.access(USER, SESSION, NOW_MS, 900)
    header = segment({"alg": spelling, "typ": "at+jwt", "kid": keys.newest.kid})
    last = real.rpartition(".")[2] if signature == "kept" else signature
    assert await refused(verifier, f"{header}.{segment(claims_now())}.{last}") == Code.UNAUTHENTICATED


def public_forms(keys: SigningKeys) -> list[bytes]:
    public = keys.newest.public
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    pkcs1 = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
    jwk = json.dumps(keys.jwks()["keys"][0]).encode()
    return [pem, pem.strip(), der, pkcs1, jwk, keys.jwks()["keys"][0]["n"].encode(), b""]


@pytest.mark.parametrize("algorithm", ["HS256", "hs256", "HS384", "HS512", "RS256"])
async def test_the_public_key_does_not_serve_as_a_shared_secret(
    verifier: JwtVerifier, keys: SigningKeys, algorithm: str
) -> None:
    for secret in public_forms(keys):
        for digest in ("sha256", "sha384", "sha512"):
            header = segment({"alg": algorithm, "typ": "at+jwt", "kid": keys.newest.kid})
            signed = f"{header}.{segment(claims_now())}"
            forged = f"{signed}.{segment(hmac.digest(secret, signed.encode(), digest))}"
            assert await refused(verifier, forged) == Code.UNAUTHENTICATED


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "PS384", "PS512"])
async def test_another_algorithm_of_the_same_key_is_refused(
    verifier: JwtVerifier, forge: Forge, algorithm: str
) -> None:
    assert await refused(verifier, forge(algorithm=algorithm)) == Code.UNAUTHENTICATED


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "JWT"},
        {"typ": "AT+JWT"},
        {"typ": None},
        {"typ": "rt+jwt"},
        {"kid": ""},
        {"kid": "unknown"},
        {"kid": "../../../../dev/null"},
        {"kid": "' OR 1=1 --"},
        {"kid": "a\u0000b"},
        {"kid": "http://127.0.0.1:1/key"},
        {"kid": "k" * 10_000},
        {"jku": "http://127.0.0.1:1/jwks.json"},
        {"x5u": "http://127.0.0.1:1/cert.pem"},
        {"x5c": ["AAAA"]},
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": True},
        {"zip": "DEF"},
        {"cty": "JWT"},
    ],
)
async def test_a_header_that_says_anything_else_is_refused(
    verifier: JwtVerifier, forge: Forge, header: dict[str, Any]
) -> None:
    assert await refused(verifier, forge(**header)) == Code.UNAUTHENTICATED


@pytest.mark.parametrize("kid", [7, None, ["x"], {"a": 1}, True])
async def test_a_key_name_that_is_no_text_is_refused(verifier: JwtVerifier, issuer: JwtIssuer, kid: object) -> None:
    header = segment({"alg": "RS256", "typ": "at+jwt", "kid": kid})
    rest = issuer.access(USER, SESSION, NOW_MS, 900).partition(".")[2]
    assert await refused(verifier, f"{header}.{rest}") == Code.UNAUTHENTICATED


async def test_a_token_that_brings_its_own_key_is_refused(verifier: JwtVerifier, keys: SigningKeys) -> None:
    mine = SigningKeys([generate_private_key(65537, 2048)])
    jwk = mine.jwks()["keys"][0]
    for kid in (keys.newest.kid, mine.newest.kid):
        for header in ({"kid": kid}, {"kid": kid, "jwk": jwk}):
            forged = jwt.encode(claims_now(), mine.newest.private, "RS256", headers={"typ": "at+jwt"} | header)
            assert await refused(verifier, forged) == Code.UNAUTHENTICATED


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in ("iss", "aud", "sub", "sid", "iat", "exp", "jti")),
        {"iss": "somebody"},
        {"aud": "another-api"},
        {"aud": []},
        {"sub": "not-a-uuid"},
        {"sub": USER.upper().replace("0", "A", 1)},
        {"sid": "../" + SESSION},
        {"exp": str(NOW_MS)},
        {"exp": float(NOW_MS)},
        {"exp": True},
        {"iat": "now"},
        {"nbf": NOW_MS // 1000 + 60},
        {"nbf": "later"},
    ],
)
async def test_a_token_with_wrong_claims_is_refused(
    verifier: JwtVerifier, forge: Forge, changes: dict[str, Any]
) -> None:
    assert await refused(verifier, forge(claims_now(**changes))) == Code.UNAUTHENTICATED


async def test_a_second_spelling_of_a_good_token_is_refused(verifier: JwtVerifier, issuer: JwtIssuer) -> None:
    token = issuer.access(USER, SESSION, NOW_MS, 900)
    header, payload, signature = token.split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    same_bytes = alphabet[alphabet.index(signature[-1]) | 0b0001]
    assert base64.urlsafe_b64decode(signature[:-1] + same_bytes + "==") == base64.urlsafe_b64decode(signature + "==")
    for forged in (
        f"{header}.{payload}.{signature}==",
        f"{header}.{payload}.{signature[:-1]}{same_bytes}",
        f"{header}.{payload}.{signature}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}..{signature}",
        f" {token}",
        f"{token}\n",
        f"{header}.{payload}.{signature[:10]}\n{signature[10:]}",
        f"Bearer {token}",
        signature,
        "",
        "..",
        "…",
    ):
        assert await refused(verifier, forged) == Code.UNAUTHENTICATED


@pytest.mark.parametrize("token", [None, 7, b"a.b.c", ["a.b.c"]])
async def test_what_is_no_text_is_refused(verifier: JwtVerifier, token: object) -> None:
    assert await refused(verifier, token) == Code.UNAUTHENTICATED


async def test_a_token_over_the_limit_is_refused_before_it_is_looked_at(
    verifier: JwtVerifier, forge: Forge, sessions: KnownSessions
) -> None:
    assert await refused(verifier, forge(claims_now(padding="x" * MAX_TOKEN_CHARS))) == Code.UNAUTHENTICATED
    assert await refused(verifier, "a" * 10_000_000) == Code.UNAUTHENTICATED
    assert sessions.asked == 0


@given(st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]{0,80}\.[A-Za-z0-9_-]{0,80}\.[A-Za-z0-9_-]{0,80}"))
def test_no_text_at_all_gets_in_or_breaks_the_verifier(text: str) -> None:
    keys = _HYPOTHESIS_KEYS
    verifier = JwtVerifier(keys, KnownSessions(SESSION), ManualClock())  # type: ignore[arg-type]
    assert asyncio.run(refused(verifier, text)) == Code.UNAUTHENTICATED


_HYPOTHESIS_KEYS = SigningKeys([generate_private_key(65537, 2048)])


# --- the session's life ---


async def test_a_token_of_a_revoked_or_unknown_session_is_refused(
    issuer: JwtIssuer, verifier: JwtVerifier, sessions: KnownSessions
) -> None:
    assert await refused(verifier, issuer.access(USER, OTHER_SESSION, NOW_MS, 900)) == Code.SESSION_REVOKED
    sessions.revoke(SESSION)
    assert await refused(verifier, issuer.access(USER, SESSION, NOW_MS, 900)) == Code.SESSION_REVOKED


async def test_a_session_of_somebody_else_is_refused(issuer: JwtIssuer, verifier: JwtVerifier) -> None:
    assert await refused(verifier, issuer.access(OTHER_SESSION, SESSION, NOW_MS, 900)) == Code.UNAUTHENTICATED


async def test_the_database_is_asked_once_in_five_seconds_about_a_session(
    issuer: JwtIssuer, verifier: JwtVerifier, sessions: KnownSessions, clock: ManualClock
) -> None:
    token = issuer.access(USER, SESSION, NOW_MS, 900)
    for _ in range(10):
        await verifier.verify(token)
        clock.advance(0.4)
    assert sessions.asked == 1
    sessions.revoke(SESSION)
    clock.advance(1.1)
    assert await refused(verifier, token) == Code.SESSION_REVOKED


async def test_a_forgotten_session_is_asked_about_at_once(
    issuer: JwtIssuer, verifier: JwtVerifier, sessions: KnownSessions
) -> None:
    token = issuer.access(USER, SESSION, NOW_MS, 900)
    await verifier.verify(token)
    sessions.revoke(SESSION)
    verifier.forget(SESSION)
    assert await refused(verifier, token) == Code.SESSION_REVOKED


async def test_an_answer_that_a_revocation_overtook_is_not_believed(
    issuer: JwtIssuer, verifier: JwtVerifier, sessions: KnownSessions
) -> None:
    # The session is read as alive, then revoked and announced, and only then the answer arrives: kept, it would let the
    # token through for another five seconds.
    sessions.gate = asyncio.Event()
    verifying = asyncio.ensure_future(refused(verifier, issuer.access(USER, SESSION, NOW_MS, 900)))
    await asyncio.sleep(0)
    sessions.revoke(SESSION)
    verifier.forget(SESSION)
    sessions.gate.set()
    assert await verifying == Code.SESSION_REVOKED


async def test_the_memory_of_sessions_is_bounded(keys: SigningKeys, issuer: JwtIssuer, clock: ManualClock) -> None:
    ids = [f"01890000-0000-7000-8000-{number:012x}" for number in range(30)]
    sessions = KnownSessions(*ids)
    verifier = JwtVerifier(keys, sessions, clock, TokenSettings(sessions_kept=10))  # type: ignore[arg-type]
    for id_ in ids:
        await verifier.verify(issuer.access(USER, id_, NOW_MS, 900))
    assert len(verifier._alive._known) == 10


# --- refresh tokens ---


def test_refresh_tokens_are_long_random_and_stored_as_hashes(issuer: JwtIssuer) -> None:
    tokens = {issuer.refresh() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(base64.urlsafe_b64decode(token + "=")) == 32 for token in tokens)
    token = tokens.pop()
    assert issuer.hash(token) == hashlib.sha256(token.encode()).digest()


def test_what_is_sealed_is_read_again_and_shows_nothing(issuer: JwtIssuer) -> None:
    text = "砖 " * 100
    assert issuer.unseal(issuer.seal(text)) == text
    assert issuer.seal(text) != issuer.seal(text)
    assert text.encode()[:12] not in issuer.seal(text)
    with pytest.raises(ValueError, match="4097"):
        issuer.seal("x" * 4097)


def test_every_changed_or_shortened_byte_of_what_was_sealed_is_noticed(issuer: JwtIssuer) -> None:
    sealed = issuer.seal("token")
    for place in range(len(sealed)):
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(ValueError, match="sealed"):
            issuer.unseal(changed)
        with pytest.raises(ValueError, match="sealed"):
            issuer.unseal(sealed[:place])


def test_other_keys_do_not_open_what_was_sealed(issuer: JwtIssuer) -> None:
    with pytest.raises(ValueError, match="not here"):
        JwtIssuer(_HYPOTHESIS_KEYS).unseal(issuer.seal("token"))
