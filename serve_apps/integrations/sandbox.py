"""Vendors that are not there: what would be sent goes to the outbox, what would be paid is paid at once."""

from domain.ports import Clock, Outbox


class SandboxSms:
    """Text messages that land in the outbox, where `/dev/outbox` shows them."""

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock

    async def send(self, phone: str, text: str, code: str | None) -> None:
        """Return when the message is in the outbox. Raises StoreUnavailable."""
        await self._outbox.add(phone, "sms", text, code, self._clock.now_ms())
