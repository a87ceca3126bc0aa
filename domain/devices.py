"""What a device session is trusted with, and the ports of what speaks for a user beside it: device keys, second factors,
API keys.

The rules are pure: they take the session as stored, how the device comes now, and the time.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from domain.errors import Code, Refusal
from domain.geo import distance_m
from domain.places import Place, Seen
from domain.ports import Device, DeviceSession

API_KEY_PREFIX: Final = "rek_"
"""What API keys begin with, and no access token does."""
QUOTE_COMMANDS: Final = frozenset({"submit_quote", "withdraw_quote"})
"""The commands to orders that an API key may give."""


class DeviceRules(msgspec.Struct, frozen=True):
    """The numbers. `fast_mps`: nobody travels faster between two refreshes (an airliner does 250 m/s); distances up to
    `near_m` are not looked at, because places of addresses are no better than that."""

    fast_mps: float = 300.0
    near_m: float = 500_000.0
    fresh_s: int = 600
    """For how long after a one-time code a session may make what outlives it."""
    second_factor_s: int = 43_200
    """For how long a session counts as verified by a second factor."""
    device_keys_most: int = 20
    """Of one user."""
    api_keys_most: int = 10
    """Of one user."""


RULES: Final = DeviceRules()


# --- rules -------------------------------------------------------------------------------------------------------


def strange(session: DeviceSession, device: Device | None, seen: Seen, now_ms: int, rules: DeviceRules = RULES) -> str:
    """Why a refresh of this session has to prove who it is: `device`, `agent`, `country`, `distance`; empty: it need not.

    Names of devices do not count, nor does what is not known: on a session that began before it was noted, of a client
    that does not say its device, of an address without a place.
    """
    if device is not None and (device.id, device.platform) != (session.device.id, session.device.platform):
        return "device"
    if session.seen.agent and seen.agent != session.seen.agent:
        return "agent"
    old, new = session.seen.place, seen.place
    if old.country and new.country and old.country != new.country:
        return "country"
    return "distance" if _too_far(old, new, now_ms - session.last_seen_at, rules) else ""


def _too_far(old: Place, new: Place, elapsed_ms: int, rules: DeviceRules) -> bool:
    if old.lat is None or old.lon is None or new.lat is None or new.lon is None:
        return False
    away_m = distance_m(old.lat, old.lon, new.lat, new.lon)
    return away_m > max(rules.near_m, rules.fast_mps * max(0, elapsed_ms) / 1000)


def seen_again(session: DeviceSession, seen: Seen) -> DeviceSession:
    """The session after its device was seen so. A place that is known is not forgotten for one that is not."""
    place = seen.place if seen.place.country or seen.place.lat is not None else session.seen.place
    return msgspec.structs.replace(session, seen=msgspec.structs.replace(seen, place=place))


def stepped_up(session: DeviceSession, device: Device, seen: Seen, now_ms: int) -> DeviceSession:
    """The session after a one-time code: it belongs to this device at this place."""
    return msgspec.structs.replace(session, device=device, seen=seen, confirmed_at=now_ms)


def require_fresh(session: DeviceSession | None, now_ms: int, rules: DeviceRules = RULES) -> None:
    """Raises Refusal `step_up_required` unless the session was confirmed by a one-time code a short while ago."""
    if session is None or not 0 <= now_ms - session.confirmed_at < rules.fresh_s * 1000:
        raise step_up("otp", "confirm by a one-time code first: POST /v1/auth/step-up")


def require_second_factor(session: DeviceSession | None, now_ms: int, rules: DeviceRules = RULES) -> None:
    """Raises Refusal `step_up_required` unless the session was verified by a second factor, not too long ago."""
    if session is None or not 0 <= now_ms - session.second_factor_at < rules.second_factor_s * 1000:
        raise step_up("totp", "verify by a second factor first: POST /v1/auth/totp/verify")


def step_up(factor: str, detail: str) -> Refusal:
    """The refusal of what asks for another proof of who calls; `factor` is `otp` or `totp`."""
    return Refusal(Code.STEP_UP_REQUIRED, detail, current={"factor": factor})


def login_message(audience: str, key_id: str, challenge: str) -> bytes:
    """What a device key signs to log in: good for this challenge, this key and this platform, and for nothing else."""
    return f"renoveasy device login v1\n{audience}\n{key_id}\n{challenge}".encode()


# --- device keys -------------------------------------------------------------------------------------------------


class DeviceKey(msgspec.Struct, frozen=True):
    """A P-256 key that a device keeps behind a face or a finger. `public_key` is DER (SubjectPublicKeyInfo)."""

    id: str
    user_id: str
    name: str
    public_key: bytes
    created_at: int
    last_used_at: int | None = None


class DeviceKeys(Protocol):
    """Device keys. Durable on return; every method may raise `StoreUnavailable`.

    `Sessions.open` with a `device_key_id` looks the key up in its own transaction: no session is opened by a key
    that was removed before.
    """

    async def add(self, key: DeviceKey, most: int) -> DeviceKey:
        """The key as it stands: the one that is given, or the same user's of the same public key.

        Raises:
            Refusal: `conflict` where the user has `most` already, however many add at once.
        """
        ...

    async def get(self, key_id: str) -> DeviceKey | None: ...
    async def list_of(self, user_id: str) -> list[DeviceKey]:
        """The latest first."""
        ...

    async def remove(self, user_id: str, key_id: str | None) -> bool:
        """Remove one key of the user, or with None all of them; whether there was one."""
        ...


class ChallengeStore(Protocol):
    """Challenges that were given out and not used. Atomic under any race. `StoreUnavailable`: then none is let through."""

    async def issue(self, challenge: str, key_id: str, ttl_s: int) -> None: ...

    async def spend(self, challenge: str, key_id: str) -> bool:
        """True once, within `ttl_s`, for the key it was issued to; for another one it is used up without."""
        ...


# --- second factors ----------------------------------------------------------------------------------------------


class TotpSecret(msgspec.Struct, frozen=True):
    """A user's secret in base 32. `confirmed_at` is None until a first code has shown that the user has it."""

    user_id: str
    secret: str
    created_at: int
    confirmed_at: int | None = None
    last_step: int = 0


class TotpSecrets(Protocol):
    """Secrets of second factors, at most one of each user, stored encrypted. Every method may raise `StoreUnavailable`."""

    async def enrol(self, secret: TotpSecret) -> bool:
        """Store it instead of one that was never confirmed. False: the user has a confirmed one, which stays."""
        ...

    async def get(self, user_id: str) -> TotpSecret | None:
        """Refusal `conflict` for one that cannot be read any more."""
        ...

    async def spend(self, secret: TotpSecret, step: int, session_id: str, now_ms: int) -> bool:
        """Use up a time step of this secret, confirm it, and mark the session as verified: all or nothing.

        True once for each step, under any race; False for a step that is not later than all used before, and where the
        secret has been replaced or reset meanwhile.
        """
        ...

    async def reset(self, user_id: str) -> bool:
        """Forget the user's secret, and what sessions it has verified; whether there was one."""
        ...


class TryCounter(Protocol):
    """Counts tries of whoever has few. Atomic under any race. `StoreUnavailable`: then nothing may be tried."""

    async def take(self, key: str, most: int, pause_s: int) -> float | None:
        """Count a try before it is made: None, or the seconds to wait where `most` were taken; each begins the pause anew."""
        ...

    async def clear(self, key: str) -> None:
        """It was right: the next begins with a full count."""
        ...


# --- API keys ----------------------------------------------------------------------------------------------------


class ApiKey(msgspec.Struct, frozen=True):
    """A key by which a worker's own programs read and quote. Only its SHA-256 is stored."""

    id: str
    user_id: str
    name: str
    created_at: int
    last_used_at: int | None = None


class ApiKeys(Protocol):
    """API keys. Nothing is remembered in between: a key that is removed is refused from then on, everywhere."""

    async def add(self, key: ApiKey, hashed: bytes, most: int) -> None:
        """Refusal `conflict` where the user has `most` already, however many add at once."""
        ...

    async def find(self, hashed: bytes, now_ms: int) -> ApiKey | None:
        """The key of this hash; its use is noted to about five minutes."""
        ...

    async def list_of(self, user_id: str) -> list[ApiKey]:
        """The latest first."""
        ...

    async def remove(self, user_id: str, key_id: str | None) -> bool:
        """Remove one key of the user, or with None all of them; whether there was one."""
        ...


def living(sessions: Sequence[DeviceSession], device_key_id: str | None = None) -> list[str]:
    """The ids of those that are not revoked; with a key's id, of those that this key has opened."""
    wanted = (item for item in sessions if device_key_id is None or item.device_key_id == device_key_id)
    return [item.id for item in wanted if item.revoked_at is None]
