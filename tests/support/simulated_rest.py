"""The REST application in virtual time: the real endpoints in a simulated process, called without HTTP around them."""

from collections.abc import Sequence
from typing import Any

import msgspec

from domain.ports import Block
from serve_apps.rest import build_app
from storage.memory import MemoryReadModels, MemoryStore, MemoryStreamReader
from tests.support.memory_blocks import MemoryBlocks
from tests.support.rest_app import World as RestWorld
from tests.support.simulated_parts import Cluster, RestPart, Verifier

_encode = msgspec.json.encode
_decode = msgspec.json.decode


class StoredBlocks(MemoryBlocks):
    """Blocks beside a `MemoryStore`: hosts see them as facts, and it says who shares a conversation."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._store = store

    def _change(self, blocker_id: str, blocked_id: str, active: bool, now_ms: int) -> Block:
        (self._store.blocks.add if active else self._store.blocks.discard)((blocker_id, blocked_id))
        return super()._change(blocker_id, blocked_id, active, now_ms)

    async def shared(self, user_id: str, other_id: str, *, alone: bool) -> list[str]:
        self.conversations = {
            identifier: {user for user, member in found.members.items() if member.left is None}
            for identifier, found in self._store.conversations.items()
        }
        return await super().shared(user_id, other_id, alone=alone)


class _Accounts:
    """Whoever the store knows."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def get(self, user_ids: Sequence[str]) -> dict[str, Any]:
        return {user: self._store.accounts[user] for user in user_ids if user in self._store.accounts}


class _Switch:
    """Stands for a port of whichever cluster is being simulated: to build the application takes longer than to use it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(_ports[self._name], name)


_PORTS = ("router", "accounts", "tokens", "reads", "reader", "blocks", "clock")
_ports: dict[str, Any] = {}
_apps: list[Any] = []


def _application() -> Any:
    if not _apps:
        world = RestWorld()
        for name in _PORTS:
            setattr(world, name, _Switch(name))
        _apps.append(build_app(world.services(), world.settings))
    return _apps[0]


class SimulatedRest(RestPart):
    """A REST process. Its reads see the store itself, without the faults of a connection to it: what is fetched is fresh."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster, name)
        store = cluster.database.store
        self.app = _application()
        self.reads: Any = MemoryReadModels(store)
        self._ports = {
            "router": self.router,
            "accounts": _Accounts(store),
            "tokens": Verifier(),
            "reader": MemoryStreamReader(store),
            "blocks": StoredBlocks(store),
            "clock": self.clock,
        }

    async def call(self, token: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        _ports.update(self._ports, reads=self.reads)
        bare, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": bare,
            "raw_path": bare.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"authorization", b"Bearer " + token.encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        content = b"" if body is None else _encode(body)
        said: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            said.append(message)

        await self.app(scope, receive, send)
        answer = b"".join(message.get("body", b"") for message in said)
        return said[0]["status"], _decode(answer) if answer else None
