"""Keys that encrypt people's data, and who keeps them: the port to a key provider.

Fields are encrypted under data keys. A data key is stored only wrapped, which means encrypted by a provider that never
gives its own key away; it is unwrapped once, when a process starts, and lives in memory alone.
"""

from typing import Final, NamedTuple, Protocol

DATA_KEY_BYTES: Final = 32


class KeysUnavailable(Exception):
    """A provider does not answer, or does not want to: nothing was encrypted or decrypted. The text names it and the reason."""


class FreshKey(NamedTuple):
    """A new data key of `DATA_KEY_BYTES` random bytes, and what is stored of it."""

    plain: bytes
    wrapped: bytes

    def __repr__(self) -> str:
        return "FreshKey(***)"


class KeyProvider(Protocol):
    """Makes data keys and unwraps them. What it has wrapped once it unwraps for as long as its own key lives.

    Both calls have a limit in time and raise `KeysUnavailable`, whose text shows no secret.
    """

    @property
    def name(self) -> str:
        """Stored beside what it wraps: `file`, `vault` or `aws-kms`."""
        ...

    async def new_key(self) -> FreshKey: ...

    async def unwrap(self, wrapped: bytes) -> bytes:
        """The data key. KeysUnavailable also for what another key, or nobody, has wrapped."""
        ...
