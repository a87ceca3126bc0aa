"""Disks that can lose their power: ext4 on a loop device.

The loop device writes past the page cache, so its image holds what was synced (or written back) and nothing else: a copy of
the image is what a disk holds when the power goes. `kill -9` alone shows nothing of that, since the page cache survives it.
"""

import contextlib
import fcntl
import functools
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

COPY_LIMIT_S = 20.0
STOP_LIMIT_S = 10.0
GONE_LIMIT_S = 10.0
_CHUNK = 1 << 20
_SHUT_DOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN of linux/fs.h, with EXT4_GOING_FLAGS_NOLOGFLUSH
_WITHOUT_FLUSH = 2
_TOOLS = ("losetup", "mkfs.ext4", "mount", "umount", "fsfreeze", "e2fsck")
_MOUNT = """
mount -t ext4 -o errors=remount-ro "$1" "$2" && echo mounted && cat
fsfreeze --unfreeze "$2" 2>/dev/null
umount --lazy "$2"
"""


class DiskTrouble(Exception):
    """A disk could not be made, copied or taken away; says what the system said."""


@functools.cache
def why_no_disks() -> str:
    """Why this machine has no disks that can lose their power; empty if it has."""
    if os.geteuid() != 0:
        return "loop devices need root"
    missing = [tool for tool in _TOOLS if _tool(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not Path("/dev/loop-control").exists():
        return "this kernel has no loop devices"
    try:
        with Disk(16):
            return ""
    except DiskTrouble as error:
        return f"loop devices do not work here: {error}"


class Disk:
    """A small ext4 file system, mounted at `folder` while this is open.

    Mount and loop device do not outlive this process, however it ends: a keeper unmounts then, and the kernel lets go of the
    device with the last process that uses it. `image` is taken over as it is, its journal not replayed yet. With `on`, the
    image lies on another disk, which can be frozen or filled under this one.
    """

    def __init__(self, megabytes: int = 256, image: Path | None = None, on: "Disk | None" = None) -> None:
        self._megabytes = megabytes
        self._on = on
        place = _real_disk_folder() if on is None else on.folder
        self._work = Path(tempfile.mkdtemp(prefix="renoveasy-disk-", dir=place))
        self.image = self._work / "image"
        if image is not None:
            shutil.move(image, self.image)
        self._keeper: subprocess.Popen[str] | None = None
        self.device = ""
        self.folder = self._work / "mount"

    def __enter__(self) -> Self:
        try:
            self._attach()
            self._mount()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _attach(self) -> None:
        if not self.image.exists():
            with self.image.open("wb") as file:
                file.truncate(self._megabytes << 20)
            # Nothing is left to be done lazily: the kernel must write only what the tenants write.
            lazy = ("-E", "lazy_itable_init=0,lazy_journal_init=0", "-m", "0", "-b", "4096")
            _run("mkfs.ext4", "-q", "-F", *lazy, str(self.image))
        with self.image.open("rb") as file:
            os.fsync(file.fileno())
        self.device = _run("losetup", "--find", "--show", "--direct-io=on", str(self.image)).strip()
        if self._sys("loop/dio") != "1":
            raise DiskTrouble(f"{self.device} does not do direct I/O on {self.image}")

    def _mount(self) -> None:
        self.folder.mkdir(exist_ok=True)
        # The keeper reads what never comes, and unmounts when this process has ended, even by SIGKILL. In a namespace of
        # its own the mount would go by itself, but SQLite resolves /proc/<pid>/root, the way into it, as a symlink.
        keeper = self._keeper = subprocess.Popen(
            ["sh", "-c", _MOUNT, "sh", self.device, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert keeper.stdout is not None
        said = keeper.stdout.readline()
        if said.strip() != "mounted":
            raise DiskTrouble(f"cannot mount {self.device}: {said}")
        # Lazily: the kernel lets go of the device when the file system does.
        _run("losetup", "--detach", self.device)

    def mount_again(self) -> None:
        """Unmount and mount again, as a restart of the machine does: with the check that mends whatever it finds."""
        if not self._unmount():
            raise DiskTrouble(f"somebody still has files open on {self.folder}")
        done = subprocess.run(
            [_tool("e2fsck") or "", "-f", "-y", str(self.image)], capture_output=True, text=True, check=False
        )
        if done.returncode > 1:
            raise DiskTrouble(f"e2fsck: {done.stdout}{done.stderr}")
        self._attach()
        self._mount()

    def close(self) -> None:
        """Unmount, and remove the image. Whatever still uses the file system keeps it until it ends."""
        self._unmount()
        shutil.rmtree(self._work, ignore_errors=True)

    def _unmount(self) -> bool:
        """Whether nobody uses it any more."""
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            keeper.communicate(timeout=GONE_LIMIT_S)
        elif self.device:
            with contextlib.suppress(DiskTrouble):
                _run("losetup", "--detach", self.device)
        deadline = time.monotonic() + GONE_LIMIT_S
        while self.device and self._attached() and time.monotonic() < deadline:
            time.sleep(0.01)
        gone = not (self.device and self._attached())
        self.device = ""
        return gone

    # --- losing power ---------------------------------------------------------------------------------------------

    def copy_running(self, into: Path) -> Path:
        """The image as it is at one instant, which may be in the middle of anything that is being written or synced.

        Needs a disk underneath: that one is frozen meanwhile, and whoever writes waits.
        """
        assert self._on is not None
        with self._on.frozen():
            _copy(self.image, into)
        return into

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, whoever writes or syncs stands still in the kernel; it goes on afterwards as if nothing had been."""
        _run("fsfreeze", "--freeze", str(self.folder))
        try:
            yield
        finally:
            _run("fsfreeze", "--unfreeze", str(self.folder))

    def copy(self, into: Path) -> Path:
        """The image as it is at one instant; whoever writes to the file system must be stopped.

        The kernel may still be writing back what nobody asked it to: a copy during which it did is made again.

        Raises:
            DiskTrouble: it went on writing for longer than `COPY_LIMIT_S`.
        """
        deadline = time.monotonic() + COPY_LIMIT_S
        while time.monotonic() < deadline:
            before = self._writes()
            _copy(self.image, into)
            if before.under_way == 0 and self._writes() == before:
                return into
            time.sleep(0.01)
        raise DiskTrouble(f"{self.device} is written to although everybody is stopped")

    def _writes(self) -> "_Writes":
        numbers = [int(number) for number in self._sys("stat").split()]
        return _Writes(numbers[4], numbers[6], numbers[11], numbers[8])

    # --- being full or broken -------------------------------------------------------------------------------------

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Lay ballast on the disk until only so much is free."""
        with (self.folder / "ballast").open("ab") as file:
            wanted = self.free_bytes - leave_bytes
            step = 1 << 24
            while step >= 4096:
                try:
                    while wanted >= step:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), step)
                        wanted -= step
                except OSError:
                    pass
                step //= 2

    def free(self) -> None:
        """Take the ballast away."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def die(self) -> None:
        """As when the device is gone: every read and write that needs it fails from now on.

        The file system stands still at that instant. Otherwise ext4 now and then calls a sync done that the shutdown has
        cut off (16 of 120 times, with a bare `fdatasync` loop), which no device that is gone does.
        """
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            with self.frozen():
                fcntl.ioctl(folder, _SHUT_DOWN, _WITHOUT_FLUSH.to_bytes(4, sys.byteorder))
        finally:
            os.close(folder)

    def turn_read_only(self) -> None:
        """As the kernel does when it finds the file system damaged: every write fails from now on, reads go on.

        At an instant at which nothing is being synced, for the same reason: here it was 6 of 40 times.
        """
        with self.frozen():
            (Path("/sys/fs/ext4") / Path(self.device).name / "trigger_fs_error").write_text("1")

    # --- the loop device ------------------------------------------------------------------------------------------

    def _sys(self, name: str) -> str:
        return (Path("/sys/block") / Path(self.device).name / name).read_text().strip()

    def _attached(self) -> bool:
        try:
            return self._sys("loop/backing_file").split(" (")[0] == str(self.image)
        except OSError:
            return False


class _Writes(NamedTuple):
    """What a device has written, and how many requests it is at work on."""

    requests: int
    sectors: int
    discards: int
    under_way: int


@contextlib.contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Every thread of these processes stands still inside, and goes on afterwards; those that have ended are fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + STOP_LIMIT_S
        while moving := [pid for pid in pids if not _stands_still(pid)]:
            if time.monotonic() > deadline:
                raise DiskTrouble(f"{moving} do not stop")
            time.sleep(0.001)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _stands_still(pid: int) -> bool:
    """Whether all threads are stopped: one that waits for the disk stops only when it has come back from there."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended: nobody stands stiller
        for task in Path(f"/proc/{pid}/task").iterdir():
            if (task / "stat").read_text().rpartition(")")[2].split()[0] not in "TtZX":
                return False
    return True


def _copy(source: Path, target: Path) -> None:
    """Copy what is allocated, past the page cache of the source, which knows nothing of direct writes."""
    size = source.stat().st_size
    reading = os.open(source, os.O_RDONLY | os.O_DIRECT)
    try:
        with target.open("wb") as writing, mmap.mmap(-1, _CHUNK) as buffer:
            writing.truncate(size)
            at = 0
            while at < size:
                try:
                    at = os.lseek(reading, at, os.SEEK_DATA) // _CHUNK * _CHUNK
                except OSError:
                    break  # only holes follow
                got = os.preadv(reading, [buffer], at)
                if buffer[:got].count(0) != got:
                    os.pwrite(writing.fileno(), buffer[:got], at)
                at += got
    finally:
        os.close(reading)


def _real_disk_folder() -> str:
    """A temporary folder on a disk: memory file systems do no direct I/O."""
    for folder in (tempfile.gettempdir(), "/var/tmp", str(Path.home())):
        kind = _run("stat", "--file-system", "--format=%T", folder).strip()
        if kind not in ("tmpfs", "ramfs", "overlayfs"):
            return folder
    return tempfile.gettempdir()


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run([_tool(name) or name, *arguments], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise DiskTrouble(f"{name}: {done.stderr.strip()}")
    return done.stdout
