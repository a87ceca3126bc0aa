"""The ports of `domain.devices` and `domain.places` in memory, by the clock of the test."""

import ipaddress
from hashlib import sha256
from typing import Any

import msgspec

from domain.devices import ApiKey, DeviceKey, TotpSecret
from domain.errors import Code, Refusal
from domain.places import Place


class MemoryDeviceKeys:
    def __init__(self) -> None:
        self.keys: dict[str, DeviceKey] = {}

    async def add(self, key: DeviceKey, most: int) -> DeviceKey:
        mine = await self.list_of(key.user_id)
        for known in mine:
            if known.public_key == key.public_key:
                return known
        if len(mine) >= most:
            raise Refusal(Code.CONFLICT)
        self.keys[key.id] = key
        return key

    async def get(self, key_id: str) -> DeviceKey | None:
        return self.keys.get(key_id)

    async def list_of(self, user_id: str) -> list[DeviceKey]:
        return [key for key in reversed(self.keys.values()) if key.user_id == user_id]

    async def remove(self, user_id: str, key_id: str | None) -> bool:
        return bool(_remove(self.keys, user_id, key_id))


class MemoryApiKeys:
    def __init__(self) -> None:
        self.keys: dict[str, ApiKey] = {}
        self.hashes: dict[bytes, str] = {}

    async def add(self, key: ApiKey, hashed: bytes, most: int) -> None:
        if len(await self.list_of(key.user_id)) >= most:
            raise Refusal(Code.CONFLICT)
        self.keys[key.id] = key
        self.hashes[hashed] = key.id

    async def find(self, hashed: bytes, now_ms: int) -> ApiKey | None:
        key = self.keys.get(self.hashes.get(hashed, ""))
        if key is not None:
            self.keys[key.id] = msgspec.structs.replace(key, last_used_at=now_ms)
        return key

    async def list_of(self, user_id: str) -> list[ApiKey]:
        return [key for key in reversed(self.keys.values()) if key.user_id == user_id]

    async def remove(self, user_id: str, key_id: str | None) -> bool:
        return bool(_remove(self.keys, user_id, key_id))


def _remove(keys: dict[str, Any], user_id: str, key_id: str | None) -> list[str]:
    gone = [key.id for key in keys.values() if key.user_id == user_id and key_id in (None, key.id)]
    for one in gone:
        del keys[one]
    return gone


class MemoryTotpSecrets:
    def __init__(self, sessions: Any) -> None:
        self.secrets: dict[str, TotpSecret] = {}
        self._sessions = sessions

    async def enrol(self, secret: TotpSecret) -> bool:
        known = self.secrets.get(secret.user_id)
        if known is not None and known.confirmed_at is not None:
            return False
        self.secrets[secret.user_id] = secret
        return True

    async def get(self, user_id: str) -> TotpSecret | None:
        return self.secrets.get(user_id)

    async def spend(self, secret: TotpSecret, step: int, session_id: str, now_ms: int) -> bool:
        known = self.secrets.get(secret.user_id)
        if known is None or known.secret != secret.secret or known.last_step >= step:
            return False
        confirmed = now_ms if known.confirmed_at is None else known.confirmed_at
        self.secrets[secret.user_id] = msgspec.structs.replace(known, last_step=step, confirmed_at=confirmed)
        sessions = self._sessions.sessions
        sessions[session_id] = msgspec.structs.replace(sessions[session_id], second_factor_at=now_ms)
        return True

    async def reset(self, user_id: str) -> bool:
        for session in self._sessions.sessions.values():
            if session.user_id == user_id:
                self._sessions.sessions[session.id] = msgspec.structs.replace(session, second_factor_at=0)
        return self.secrets.pop(user_id, None) is not None


class MemoryChallenges:
    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.issued: dict[bytes, tuple[str, int]] = {}

    async def issue(self, challenge: str, key_id: str, ttl_s: int) -> None:
        self.issued[sha256(challenge.encode()).digest()] = key_id, self._clock.now_ms() + ttl_s * 1000

    async def spend(self, challenge: str, key_id: str) -> bool:
        issued_to, until = self.issued.pop(sha256(challenge.encode()).digest(), ("", 0))
        return issued_to == key_id and until > self._clock.now_ms()


class MemoryTries:
    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.taken: dict[str, tuple[int, int]] = {}

    async def take(self, key: str, most: int, pause_s: int) -> float | None:
        count, until = self.taken.get(key, (0, 0))
        now_ms = self._clock.now_ms()
        count = count if until > now_ms else 0
        if count >= most:
            return (until - now_ms) / 1000
        self.taken[key] = count + 1, now_ms + pause_s * 1000
        return None

    async def clear(self, key: str) -> None:
        self.taken.pop(key, None)


class MemoryPlaces:
    """What a test says where networks are."""

    def __init__(self, places: dict[str, Place] | None = None) -> None:
        self.places = places or {}

    def locate(self, ip: str) -> Place:
        try:
            address = ipaddress.ip_address(ip.partition("/")[0])
        except ValueError:
            return Place()
        for network, place in self.places.items():
            if address in ipaddress.ip_network(network):
                return place
        return Place()
