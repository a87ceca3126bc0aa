"""Parts in network namespaces of their own, whose packets to one server or another can be dropped, in one direction or both.

Needs root, `ip` and `nft`. Servers that are to be reached from a namespace listen on the network's own address. Everything
is removed at the end, whatever happened in between.
"""

import atexit
import os
import secrets
import shutil
import socket
import subprocess
from types import TracebackType
from typing import Literal, Self

from tests.support.parts import Parts
from tests.support.servers import MariaDb, Nats

Direction = Literal["in", "out", "both"]


def missing() -> str:
    """Why namespaces cannot be used here; empty if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "nft"):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"{program} is not installed: apt-get install iproute2 nftables"
    done = subprocess.run(["ip", "netns", "add", "rv-probe"], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"no network namespace can be made: {done.stderr.strip()}"
    _run("ip", "netns", "del", "rv-probe")
    return ""


def _run(*command: str, check: bool = True) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


class Namespace:
    """One network namespace with an address on the network."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    @property
    def wrap(self) -> list[str]:
        """What stands before the command of a part that is to run here."""
        return ["ip", "netns", "exec", self.name]

    def cut(self, address: str, port: int, direction: Direction = "both") -> None:
        """Drop the packets between here and that server: those that come `in`, those that go `out`, or both."""
        if direction in ("in", "both"):
            self._nft("add", "rule", "inet", "cut", "in", *f"ip saddr {address} tcp sport {port} drop".split())
        if direction in ("out", "both"):
            self._nft("add", "rule", "inet", "cut", "out", *f"ip daddr {address} tcp dport {port} drop".split())

    def heal(self) -> None:
        """Drop nothing any more."""
        self._nft("flush", "table", "inet", "cut")

    def _nft(self, *command: str) -> None:
        _run("ip", "netns", "exec", self.name, "nft", *command)

    def prepare(self) -> None:
        self._nft("add", "table", "inet", "cut")
        for chain, hook in (("in", "input"), ("out", "output")):
            rule = f"{{ type filter hook {hook} priority 0 ; }}"
            self._nft("add", "chain", "inet", "cut", chain, rule)


class Network:
    """A bridge with an address on this side, and namespaces behind it. As a context manager it is gone outside."""

    def __init__(self) -> None:
        self._id = secrets.token_hex(2)
        self._bridge = f"rv{self._id}"
        # 198.18.0.0/15 is set aside for tests (RFC 2544): nobody's real network is hidden.
        self._subnet = f"198.18.{secrets.randbelow(256)}"
        self.address = f"{self._subnet}.1"
        self._namespaces: list[Namespace] = []

    def __enter__(self) -> Self:
        atexit.register(self.close)
        try:
            _run("ip", "link", "add", self._bridge, "type", "bridge")
            _run("ip", "address", "add", f"{self.address}/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def namespace(self) -> Namespace:
        """A further namespace, connected."""
        number = len(self._namespaces) + 2
        made = Namespace(f"rv{self._id}-{number}", f"{self._subnet}.{number}")
        self._namespaces.append(made)
        here, there = f"rv{self._id}h{number}", f"rv{self._id}t{number}"
        _run("ip", "netns", "add", made.name)
        _run("ip", "link", "add", here, "type", "veth", "peer", "name", there)
        _run("ip", "link", "set", here, "master", self._bridge, "up")
        _run("ip", "link", "set", there, "netns", made.name)
        inside = ["ip", "-n", made.name]
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "address", "add", f"{made.address}/24", "dev", there)
        _run(*inside, "link", "set", there, "up")
        made.prepare()
        return made

    def close(self) -> None:
        """Remove all of it; processes that still run in a namespace must have been ended before."""
        atexit.unregister(self.close)
        for number, namespace in enumerate(self._namespaces, 2):
            # A namespace lives on while the kernel still waits for the last packets of its connections; its link need not.
            _run("ip", "link", "del", f"rv{self._id}h{number}", check=False)
            _run("ip", "netns", "del", namespace.name, check=False)
        self._namespaces.clear()
        _run("ip", "link", "del", self._bridge, check=False)


class _OnNetwork:
    """A server that listens on the network's address instead of the loopback."""

    address: str
    port: int

    def answers(self, connection: socket.socket) -> bool:
        raise NotImplementedError

    def _ready(self) -> bool:
        try:
            with socket.create_connection((self.address, self.port), timeout=1.0) as connection:
                return self.answers(connection)
        except OSError:
            return False


class NatsOnNetwork(_OnNetwork, Nats):
    """A NATS server that namespaces reach."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.address = network.address

    @property
    def url(self) -> str:
        return f"nats://{self.address}:{self.port}"

    def command(self) -> list[str]:
        return [self.address if word == "127.0.0.1" else word for word in super().command()]

    def answers(self, connection: socket.socket) -> bool:
        return Nats.answers(self, connection)


class MariaDbOnNetwork(_OnNetwork, MariaDb):
    """A MariaDB server that namespaces reach."""

    def __init__(self, network: Network, *options: str) -> None:
        super().__init__(f"--bind-address={network.address}", *options)
        self.address = network.address

    def url(self, database: str) -> str:
        return super().url(database).replace("127.0.0.1", self.address)

    def answers(self, connection: socket.socket) -> bool:
        return MariaDb.answers(self, connection)


class FarParts(Parts):
    """Parts whose clients come to a gateway in a namespace."""

    gateway_address = "127.0.0.1"

    @property
    def websocket(self) -> str:
        return f"ws://{self.gateway_address}:{self.ws_port}/connection/websocket"
