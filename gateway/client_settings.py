"""The client's settings: units, defaults, what zero means."""

import msgspec


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast things are tried again: a random part of `first_s`, doubled each time up to `longest_s` (full jitter)."""

    first_s: float = 0.1
    longest_s: float = 10.0

    def delay_s(self, attempts: int, chance: float) -> float:
        """Before the attempt that follows `attempts` failures; `chance` is in [0, 1)."""
        return chance * min(self.longest_s, self.first_s * float(2 ** min(attempts, 30)))


class ClientSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds."""

    answer_s: float = 6.0
    """How long an answer is waited for; a gateway answers within 4.5 s, if only to say that it does not know."""
    doubt_s: float = 6.0
    """How long after its sending a copy of a write may still land; a gateway gives up on it after 4.5 s."""
    silence_s: float = 10.0
    """A connection on which nothing comes for this long beyond the server's ping interval is taken for dead."""
    steady_s: float = 5.0
    """A connection that held for this long makes earlier failures forgotten."""
    pace: Pace = Pace()
    """For connecting, subscribing, asking and writing again."""
    drain_jitter_s: float = 2.0
    """Over how long reconnects are spread after a `draining`."""
    sync: bool = True
    """Call `sync` after connecting, and when a hint tells of something that is not followed."""
    sync_pause_s: float = 1.0
    """Between two of them; also over how long they are spread after a hint."""
    restored_jitter_s: float = 5.0
    """Over how long they are spread after a reconnect or an outage that everybody has noticed."""
    device_id: str = ""
    """Told to the server, which writes it down; it decides nothing."""
    max_in_flight: int = 32
    """Writes that wait for their answers; further ones wait in the outbox."""
    max_writes: int = 10_000
    """Writes in the outbox; further ones are refused with `busy`."""
