"""Pausing a process while it holds a write transaction open."""

import asyncio
import random
import re
from pathlib import Path

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from storage.engine import Database
from tests.support.parts import Part

TRIES = 400
_WAL_WRITE_LOCK = "120"
"""The byte of SQLite's `-shm` file that its one writer holds (sqlite.org/walformat.html, section 2.2.4)."""


async def pause(part: Part, url: str, *, chance: random.Random) -> None:
    """SIGSTOP the part at a moment when it holds a write transaction open.

    Raises:
        AssertionError: there was no such moment in `TRIES` attempts.
    """
    for _ in range(TRIES):
        part.pause()
        if await writes(part.pid, url):
            return
        part.resume()
        await asyncio.sleep(chance.uniform(0.001, 0.01))
    raise AssertionError(f"{part.name} was never found inside of a transaction")


async def writes(pid: int, url: str) -> bool:
    """Whether the paused process holds a write transaction open, or the turn to begin one."""
    if make_url(url).get_backend_name() == "sqlite":
        return _locks_sqlite(pid, Path(make_url(url).database or ""))
    return await _writes_mariadb(pid, url)


def _locks_sqlite(pid: int, path: Path) -> bool:
    inodes = {name: str(path.with_name(path.name + name).stat().st_ino) for name in ("-turn", "-shm")}
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.replace("->", "").split()
        kind, mode, holder, where, first = fields[1], fields[3], fields[4], fields[5], fields[6]
        inode = where.rpartition(":")[2]
        if int(holder) != pid or mode != "WRITE":
            continue
        if (kind == "FLOCK" and inode == inodes["-turn"]) or (inode == inodes["-shm"] and first == _WAL_WRITE_LOCK):
            return True
    return False


async def _writes_mariadb(pid: int, url: str) -> bool:
    """By InnoDB's monitor, which is of this moment; `information_schema.innodb_trx` may be 0.1 s old."""
    ours = {each.laddr.port for each in psutil.Process(pid).net_connections("tcp") if each.laddr}
    database = Database(url)
    try:
        async with database.read() as connection:
            monitor = str((await connection.execute(sa.text("SHOW ENGINE INNODB STATUS"))).one()[2])
            threads = (await connection.execute(sa.text("SELECT id, host FROM information_schema.processlist"))).all()
    finally:
        await database.close()
    ports = {int(number): int(host.rpartition(":")[2] or 0) for number, host in threads if ":" in host}
    for transaction in monitor.partition("LIST OF TRANSACTIONS")[2].split("---TRANSACTION")[1:]:
        thread = re.search(r"thread id ([0-9]+)", transaction)
        if "undo log entries" in transaction and thread and ports.get(int(thread[1])) in ours:
            return True
    return False
