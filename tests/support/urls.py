"""Addresses that somebody might have the platform fetch, by kind; they lead to this machine, or to what only it reaches."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

LOOPBACKS: Final[dict[str, tuple[str, ...]]] = {
    "numbers": (
        "127.0.0.1", "127.1", "127.0.1", "2130706433", "0177.0.0.1", "0177.0.0.01", "017700000001", "0x7f.0.0.1", "0x7f000001",
        "0x7f.1", "127.0.0.1.", "127.127.127.127", "0.0.0.0", "0", "00000127.0.0.1", "4294967297", "127.0.0.1%00.example.com",
    ),
    "IPv6": (
        "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]",
        "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25lo]",
    ),
    "names": (
        "localhost", "LOCALHOST", "localhost.", "ip6-localhost", "localhost.localdomain", "127.0.0.1.nip.io", "localtest.me",
        "7f000001.c0a80001.rbndr.us", "make-127.0.0.1-rr.1u.ms", "spoofed.burpcollaborator.net", "①②⑦.⓪.⓪.①", "127。0。0。1",
        "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "loc%61lhost",
    ),
    "inside of clouds": (
        "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:169.254.169.254]", "[fd00:ec2::254]",
        "metadata.google.internal", "100.100.100.200", "10.0.0.1", "192.168.0.1", "172.16.0.1", "kubernetes.default.svc",
    ),
    "users before the host": (
        "app.example@127.0.0.1", "app.example%40127.0.0.1", "127.0.0.1@app.example", "app.example:80@127.0.0.1",
        "app.example\\@127.0.0.1", "app.example#@127.0.0.1", "app.example?@127.0.0.1", "127.0.0.1 @app.example",
    ),
}  # fmt: skip
SCHEMES: Final = (
    "https", "HTTP", "ws", "ftp", "gopher", "dict", "ldap", "tftp", "sftp", "jar:http", "view-source:http", "feed:http",
)  # fmt: skip
FILES: Final = (
    "file:///etc/passwd", "file://localhost/etc/passwd", "file:/etc/passwd", "FILE:///etc/passwd", "netdoc:///etc/passwd",
    "data:text/html,x", "php://filter/resource=/etc/passwd", "unix:///var/run/docker.sock", "//127.0.0.1:{port}/x",
    "\\\\127.0.0.1@{port}\\x", "http:127.0.0.1:{port}", "http:/127.0.0.1:{port}/x", "http:///127.0.0.1:{port}/x",
)  # fmt: skip


def urls(port: int) -> dict[str, list[str]]:
    """By kind; `port` is that of a server on this machine which counts who asks."""
    made = {kind: [f"http://{host}:{port}/x" for host in hosts] for kind, hosts in LOOPBACKS.items()}
    made["schemes"] = [f"{scheme}://127.0.0.1:{port}/_GET%20/" for scheme in SCHEMES]
    made["files and forms without a host"] = [each.replace("{port}", str(port)) for each in FILES]
    made["redirects"] = [f"http://127.0.0.1:{port}/to/{code}" for code in (301, 302, 303, 307, 308)]
    made["within a text"] = [f"look ![x](http://127.0.0.1:{port}/x.png)", f'<img src="http://127.0.0.1:{port}/x">']
    return made


class Reached:
    """Where this process has asked for an address or begun a connection while it was watched."""

    def __init__(self) -> None:
        self.watched = False
        self.places: list[str] = []

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watched and event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
            # The address of a connection comes behind its socket; a name comes first.
            self.places.append(f"{event} {arguments[1] if event == 'socket.connect' else arguments[0]}")


_reached: Final = Reached()
sys.addaudithook(_reached.hook)


@contextmanager
def reaching() -> Iterator[list[str]]:
    """What the process reaches for inside the block, by the interpreter's own audit events; no library gets past them."""
    _reached.places = []
    _reached.watched = True
    try:
        yield _reached.places
    finally:
        _reached.watched = False
