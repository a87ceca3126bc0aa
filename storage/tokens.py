"""Keys, access tokens and refresh tokens: made here, checked here.

Access tokens are JWTs as in RFC 9068: RS256 and nothing else, `typ` `at+jwt`, the key named by its RFC 7638 thumbprint.
Tickets are the same with another type and another audience, so that neither passes for the other (RFC 8725, section 3.12).
"""

import base64
import hashlib
import json
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import jwt
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from domain.errors import Code, Refusal
from domain.ids import is_uuid
from domain.ports import Clock, DeviceSession, Identity, SessionSource
from domain.tickets import TICKET_PREFIX

ALGORITHM: Final = "RS256"
TYPE: Final = "at+jwt"
TICKET_TYPE: Final = "ticket+jwt"
MAX_TOKEN_CHARS: Final = 2048
MAX_SEALED_CHARS: Final = 4096
LOOK_S: Final = 5.0
"""How long a signing key that was removed may still count where it is known."""

_CLAIMS: Final = ("iss", "aud", "sub", "sid", "iat", "exp", "jti")
_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_KEY_FILE = re.compile(r"signing-(\d{1,6})\.pem")
_NONCE_BYTES: Final = 12
_log = logging.getLogger(__name__)
_KEY_NAME_BYTES: Final = 8


class TokenSettings(msgspec.Struct, frozen=True):
    """`leeway_s`: how far the clocks of two machines may differ, for every time in a token. `session_ttl_s`: for how long a
    device session counts as alive without asking again, if nobody says otherwise; 0 asks each time. `sessions_kept` bounds
    that memory."""

    issuer: str = "renoveasy"
    audience: str = "renoveasy-api"
    ticket_audience: str = "renoveasy-connect"
    leeway_s: int = 5
    session_ttl_s: float = 5.0
    sessions_kept: int = 20_000


# --- keys --------------------------------------------------------------------------------------------------------


class SigningKey(NamedTuple):
    """A key pair, its `kid`, and the symmetric key derived from it that seals."""

    kid: str
    private: RSAPrivateKey
    public: RSAPublicKey
    sealing: bytes


class SigningKeys:
    """RSA keys of a folder: the newest signs and seals, all of them verify and unseal.

    Keys that were read from a folder follow it, in every process: one that is added there is known as soon as it is
    needed, one that is removed is forgotten at the next `look`.
    """

    def __init__(self, keys: Sequence[RSAPrivateKey], folder: Path | None = None, version: int = 0) -> None:
        """`keys` from oldest to newest, at least one; `version` is the folder's before they were read."""
        if not keys:
            raise ValueError("no signing key")
        self._folder = folder
        self._version = version
        self._keep(keys)

    def _keep(self, keys: Sequence[RSAPrivateKey]) -> None:
        known = [_signing_key(key) for key in keys]
        self._newest = known[-1]
        self._by_kid = {key.kid: key for key in known}

    @classmethod
    def open(cls, folder: Path) -> "SigningKeys":
        """The keys `signing-<n>.pem` of a folder, with the first one made if there is none.

        Processes that start at once end with the same key: it appears whole, under a name that only one of them can take.
        The folder is made with mode 0700, a key with 0600. Blocks for as long as a key takes to make (some 0.1 s).
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _key_files(folder):
            _add_key(folder, 1)
        version = folder.stat().st_mtime_ns
        return cls([_load(path) for path in _key_files(folder)], folder, version)

    @classmethod
    def rotate(cls, folder: Path) -> "SigningKeys":
        """Add a key that signs from now on, in running processes too."""
        numbers = [int(match[1]) for path in _key_files(folder) if (match := _KEY_FILE.fullmatch(path.name))]
        _add_key(folder, max(numbers, default=0) + 1)
        return cls.open(folder)

    def look(self) -> None:
        """Read the folder again if anything was added or removed since. A folder that cannot be read changes nothing."""
        if self._folder is None:
            return
        try:
            version = self._folder.stat().st_mtime_ns
            if version != self._version and (paths := _key_files(self._folder)):
                self._keep([_load(path) for path in paths])
                self._version = version
        except (OSError, ValueError) as error:
            _log.warning("the signing keys in %s cannot be read: %r", self._folder, error)

    @property
    def newest(self) -> SigningKey:
        self.look()
        return self._newest

    def find(self, kid: str) -> SigningKey | None:
        """The key of that name."""
        if kid not in self._by_kid:
            self.look()
        return self._by_kid.get(kid)

    def unsealing(self, name: bytes) -> SigningKey | None:
        """The key under whose name something was sealed."""
        self.look()
        return next((key for key in self._by_kid.values() if _seal_name(key) == name), None)

    def jwks(self) -> dict[str, Any]:
        """The public keys as a JWK set (RFC 7517), the newest first."""
        self.look()
        keys = reversed(self._by_kid.values())
        return {"keys": [_jwk(key.public) | {"kid": key.kid, "use": "sig", "alg": ALGORITHM} for key in keys]}


def _signing_key(private: RSAPrivateKey) -> SigningKey:
    public = private.public_key()
    thumbprint = hashlib.sha256(json.dumps(_jwk(public), sort_keys=True, separators=(",", ":")).encode()).digest()
    pkcs8 = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    sealing = HKDF(hashes.SHA256(), 32, salt=None, info=b"renoveasy seal v1").derive(pkcs8)
    return SigningKey(_base64url(thumbprint), private, public, sealing)


def _jwk(public: RSAPublicKey) -> dict[str, str]:
    numbers = public.public_numbers()
    return {"e": _base64url_number(numbers.e), "kty": "RSA", "n": _base64url_number(numbers.n)}


def _key_files(folder: Path) -> list[Path]:
    named = [(match, path) for path in folder.iterdir() if (match := _KEY_FILE.fullmatch(path.name))]
    return [path for match, path in sorted(named, key=lambda item: int(item[0][1]))]


def _add_key(folder: Path, number: int) -> None:
    """Put a new key under this number, unless another process was faster."""
    pem = generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = folder / f".draft-{os.getpid()}-{os.urandom(8).hex()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, does not replace what is there.
        os.link(draft, folder / f"signing-{number}.pem")
    except FileExistsError:
        return
    finally:
        draft.unlink()
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _load(path: Path) -> RSAPrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, RSAPrivateKey) or key.key_size < 2048:
        raise ValueError(f"{path.name} must hold an RSA key of at least 2048 bits")
    return key


# --- making ------------------------------------------------------------------------------------------------------


class JwtIssuer:
    """`ports.TokenIssuer`. `entropy` gives that many unpredictable bytes."""

    def __init__(
        self, keys: SigningKeys, entropy: Callable[[int], bytes] = os.urandom, settings: TokenSettings | None = None
    ) -> None:
        self._keys = keys
        self._entropy = entropy
        self._settings = settings or TokenSettings()

    def access(self, user_id: str, session_id: str, now_ms: int, ttl_s: int) -> str:
        key = self._keys.newest
        # Derived, so that a repeated refresh gives the same token; the signature (PKCS #1 v1.5) has no salt either.
        seed = f"{key.kid}\n{user_id}\n{session_id}\n{now_ms}\n{ttl_s}"
        token_id = hashlib.sha256(seed.encode()).hexdigest()[:32]
        claims = self._claims(self._settings.audience, user_id, session_id, token_id, now_ms, ttl_s)
        return jwt.encode(claims, key.private, ALGORITHM, headers={"kid": key.kid, "typ": TYPE})

    def ticket(self, user_id: str, session_id: str, ticket_id: str, now_ms: int, ttl_s: int) -> str:
        key = self._keys.newest
        claims = self._claims(self._settings.ticket_audience, user_id, session_id, ticket_id, now_ms, ttl_s)
        return TICKET_PREFIX + jwt.encode(claims, key.private, ALGORITHM, headers={"kid": key.kid, "typ": TICKET_TYPE})

    def _claims(
        self, audience: str, user_id: str, session_id: str, token_id: str, now_ms: int, ttl_s: int
    ) -> dict[str, Any]:
        return {
            "iss": self._settings.issuer,
            "aud": audience,
            "sub": user_id,
            "sid": session_id,
            "iat": now_ms // 1000,
            "exp": now_ms // 1000 + ttl_s,
            "jti": token_id,
        }

    def refresh(self) -> str:
        return _base64url(self._entropy(32))

    def hash(self, refresh_token: str) -> bytes:
        return hashlib.sha256(refresh_token.encode()).digest()

    def seal(self, text: str) -> bytes:
        """AES-256-GCM under a key derived from the newest signing key: its name (8 bytes), a nonce (12), the rest."""
        if len(text.encode()) > MAX_SEALED_CHARS:
            raise ValueError(f"{len(text.encode())} bytes are too many to seal, the limit is {MAX_SEALED_CHARS}")
        key = self._keys.newest
        name, nonce = _seal_name(key), self._entropy(_NONCE_BYTES)
        return name + nonce + AESGCM(key.sealing).encrypt(nonce, text.encode(), name)

    def unseal(self, sealed: bytes) -> str:
        """The text that was sealed. Raises ValueError: sealed with other keys, or changed since."""
        name, rest = sealed[:_KEY_NAME_BYTES], sealed[_KEY_NAME_BYTES:]
        key = self._keys.unsealing(name)
        if key is None:
            raise ValueError("sealed with a key that is not here")
        try:
            return AESGCM(key.sealing).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], name).decode()
        except (InvalidTag, ValueError) as error:
            raise ValueError("what was sealed has been changed") from error

    def jwks(self) -> dict[str, Any]:
        return self._keys.jwks()


def _seal_name(key: SigningKey) -> bytes:
    return hashlib.sha256(b"seal" + key.kid.encode()).digest()[:_KEY_NAME_BYTES]


# --- checking ----------------------------------------------------------------------------------------------------


class JwtVerifier:
    """`ports.TokenVerifier`. Whoever hears of a revoked session calls `forget`; without that, it is noticed within
    `session_ttl_s`."""

    def __init__(
        self, keys: SigningKeys, sessions: SessionSource, clock: Clock, settings: TokenSettings | None = None
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._settings = settings or TokenSettings()
        self._alive = _LivingSessions(sessions, clock, self._settings)
        self._looked_s = clock.monotonic_s()

    async def verify(self, token: str) -> Identity:
        return await self._identity(self._checked(token, TYPE, self._settings.audience))

    async def verify_ticket(self, ticket: str) -> tuple[Identity, str]:
        """Whom a ticket speaks for, and its id; whether it was used before is not looked at.

        Raises:
            Refusal: as for access tokens.
        """
        claims = self._checked(ticket.removeprefix(TICKET_PREFIX), TICKET_TYPE, self._settings.ticket_audience)
        return await self._identity(claims), claims["jti"]

    async def check_session(self, session_id: str) -> None:
        await self._living(session_id)

    async def _identity(self, claims: dict[str, Any]) -> Identity:
        session = await self._living(claims["sid"])
        if session.user_id != claims["sub"]:
            raise Refusal(Code.UNAUTHENTICATED)
        return Identity(claims["sub"], claims["sid"], claims["exp"] * 1000, session.locale)

    async def _living(self, session_id: str) -> DeviceSession:
        session = await self._alive.get(session_id)
        if session is None or session.revoked_at is not None:
            raise Refusal(Code.SESSION_REVOKED)
        return session

    def forget(self, session_id: str) -> None:
        """Ask the database about this session the next time it is seen."""
        self._alive.forget(session_id)

    def _checked(self, token: str, kind: str, audience: str) -> dict[str, Any]:
        if self._clock.monotonic_s() - self._looked_s > LOOK_S:
            self._looked_s = self._clock.monotonic_s()
            self._keys.look()
        key = self._keys.find(_kid(token, kind))
        if key is None:
            raise Refusal(Code.UNAUTHENTICATED)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.public,
                algorithms=[ALGORITHM],
                audience=audience,
                issuer=self._settings.issuer,
                # Times are checked below, by the clock that was given.
                options={"require": list(_CLAIMS), "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except jwt.PyJWTError as error:
            raise Refusal(Code.UNAUTHENTICATED) from error
        self._check_claims(claims)
        return claims

    def _check_claims(self, claims: dict[str, Any]) -> None:
        now_s, leeway_s = self._clock.now_ms() / 1000, self._settings.leeway_s
        times = [claims["iat"], claims["exp"], claims.get("nbf", claims["iat"])]
        if not all(type(time) is int for time in times) or not (is_uuid(claims["sub"]) and is_uuid(claims["sid"])):
            raise Refusal(Code.UNAUTHENTICATED)
        if max(times[0], times[2]) > now_s + leeway_s:
            raise Refusal(Code.UNAUTHENTICATED, "the token is not valid yet")
        if claims["exp"] <= now_s - leeway_s:
            raise Refusal(Code.TOKEN_EXPIRED)


def _kid(token: str, kind: str) -> str:
    """The `kid` of a token of this type whose form and header are exactly those that `JwtIssuer` writes.

    What a header may say beside that (`jku`, `jwk`, `x5u`, `crit`, other algorithms or spellings) is refused unread, and
    so is every second spelling of the same bytes.
    """
    match = _COMPACT.fullmatch(token) if isinstance(token, str) and len(token) <= MAX_TOKEN_CHARS else None
    try:
        if match is None:
            raise ValueError("not a compact JWS")
        first, _, _ = (_canonical(segment) for segment in match.groups())
        header = json.loads(first.decode("ascii"))  # of bytes it would guess the encoding
        if header != {"alg": ALGORITHM, "typ": kind, "kid": header["kid"]} or not isinstance(header["kid"], str):
            raise ValueError("not our header")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refusal(Code.UNAUTHENTICATED) from error
    kid: str = header["kid"]
    return kid


def _canonical(segment: str) -> bytes:
    raw = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if _base64url(raw) != segment:
        raise ValueError("not canonical base64url")
    return raw


class _LivingSessions:
    """Device sessions as they were at most `session_ttl_s` ago."""

    def __init__(self, sessions: SessionSource, clock: Clock, settings: TokenSettings) -> None:
        self._sessions = sessions
        self._clock = clock
        self._ttl_s = settings.session_ttl_s
        self._most = settings.sessions_kept
        self._known: OrderedDict[str, tuple[float, DeviceSession | None]] = OrderedDict()
        self._forgotten = 0

    async def get(self, session_id: str) -> DeviceSession | None:
        known = self._known.get(session_id)
        if known is not None and self._clock.monotonic_s() < known[0]:
            return known[1]
        # A revocation that is announced while the answer is on its way may be newer than the answer: ask once more.
        # A storm of revocations must not keep us here, so what was read last is believed then, but not kept.
        for _ in range(3):
            forgotten, asked_at = self._forgotten, self._clock.monotonic_s()
            session = await self._sessions.get(session_id)
            if forgotten == self._forgotten:
                self._keep(session_id, asked_at + self._ttl_s, session)
                break
        return session

    def forget(self, session_id: str) -> None:
        self._forgotten += 1
        self._known.pop(session_id, None)

    def _keep(self, session_id: str, until_s: float, session: DeviceSession | None) -> None:
        self._known.pop(session_id, None)
        self._known[session_id] = (until_s, session)
        while len(self._known) > self._most:
            self._known.popitem(last=False)


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _base64url_number(number: int) -> str:
    return _base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))
