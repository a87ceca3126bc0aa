"""Conversations and orders as an app speaks of them. Made by `Client.conversation` and `Client.order`."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from domain.wire import OrderCommandResult, Written
from gateway.client_feed import Changes, Feed
from gateway.client_wire import Position
from gateway.client_writes import Pending

if TYPE_CHECKING:
    from gateway.client import Client


class Handle:
    """One stream. To write needs no subscription; awaiting the handle follows the stream until `unfollow`."""

    kind: ClassVar[str]

    def __init__(self, client: "Client", stream_id: str, after: Position | None) -> None:
        self.id = stream_id
        self.channel = f"{self.kind}:{stream_id}"
        self._client = client
        self._after = after

    def __await__(self) -> Generator[Any, None, Self]:
        return self._followed().__await__()

    async def _followed(self) -> Self:
        await self._client.standing(self.follow())
        return self

    def follow(self) -> Feed:
        """Begin to follow, without waiting for the subscription."""
        return self._client.follow(self.channel, self._after)

    def changes(self) -> Changes:
        """Everything from the present position on; what came before is in the view. Raises StreamLost when it ends."""
        return self.follow().changes()

    @property
    def view(self) -> Any:
        """What the stream's events amount to, up to `position`; None where the client has no fold for it."""
        return self.follow().view

    @property
    def position(self) -> Position | None:
        """Everything up to here is known; None until the first subscription stands."""
        return self.follow().position

    def unfollow(self) -> None:
        """Hear of it no more; its place is kept."""
        self._client.unfollow(self.channel)


class Conversation(Handle):
    kind = "conversation"

    def send(
        self, text: str | None = None, *, attachments: Sequence[str] = (), reply_to: str | None = None, id: str = ""
    ) -> Pending[Written]:
        """Say something; the message's id is the write's."""
        fields: dict[str, Any] = {} if text is None else {"text": text}
        if attachments:
            fields["attachments"] = list(attachments)
        if reply_to is not None:
            fields["reply_to"] = reply_to
        return self._write("message.send", fields, id)

    def edit(self, message_id: str, text: str, *, id: str = "") -> Pending[Written]:
        return self._write("message.edit", {"message_id": message_id, "text": text}, id)

    def delete(self, message_id: str, *, id: str = "") -> Pending[Written]:
        return self._write("message.delete", {"message_id": message_id}, id)

    def react(self, message_id: str, emoji: str, on: bool = True, *, id: str = "") -> Pending[Written]:
        return self._write("message.react", {"message_id": message_id, "emoji": emoji, "on": on}, id)

    def add(self, user_id: str, *, id: str = "") -> Pending[Written]:
        """Make a user a member."""
        return self._write("member.add", {"user_id": user_id}, id)

    def remove(self, user_id: str, *, id: str = "") -> Pending[Written]:
        """Take a member out."""
        return self._write("member.remove", {"user_id": user_id}, id)

    def leave(self, *, id: str = "") -> Pending[Written]:
        """Be a member no more."""
        return self._write("conversation.leave", {}, id)

    def read(self, offset: int | None = None) -> None:
        """Everything up to `offset`, or up to the present position, was read. Only the highest that waits is told."""
        self._receipt("receipt.read", offset)

    def delivered(self, offset: int | None = None) -> None:
        """As `read`, for what has reached this device."""
        self._receipt("receipt.delivered", offset)

    def typing(self, on: bool = True) -> bool:
        """False if it could not be said now."""
        return self._client.say({"type": "typing", "conversation_id": self.id, "on": on})

    def _write(self, method: str, fields: dict[str, Any], write_id: str) -> Pending[Written]:
        write_id = write_id or self._client.new_id()
        return self._client.write(
            method, self.channel, write_id, {"conversation_id": self.id, "id": write_id, **fields}
        )

    def _receipt(self, method: str, offset: int | None) -> None:
        if offset is None:
            offset = self.position.offset if self.position is not None else 0
        if offset > 0:
            fields = {"conversation_id": self.id, "offset": offset}
            self._client.write(method, self.channel, f"{method} {self.channel}", fields, watermark=offset)


class Order(Handle):
    kind = "order"

    def command(
        self, name: str, payload: dict[str, Any] | None = None, *, expected_version: int | None = None, id: str = ""
    ) -> Pending[OrderCommandResult]:
        """Give the order a command; with `expected_version`, only if nothing else has happened to it."""
        command_id = id or self._client.new_id()
        fields: dict[str, Any] = {
            "order_id": self.id,
            "command": name,
            "command_id": command_id,
            "payload": payload or {},
        }
        if expected_version is not None:
            fields["expected_version"] = expected_version
        return self._client.write("order.command", self.channel, command_id, fields)

    def fix(self, *fixes: dict[str, Any]) -> bool:
        """Where the worker is, oldest first; False if it could not be said now."""
        return self._client.say({"type": "fix", "order_id": self.id, "fixes": list(fixes)})
