"""Contents by name: in a folder of this machine, or in a bucket that speaks S3. Names are the platform's own."""

import asyncio
import os
import re
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from domain.ports import StoreUnavailable

_NAME: Final = re.compile(r"[0-9a-f]{32}")


def _checked(name: str) -> str:
    """ValueError for a name that the platform does not make: it is never part of a path."""
    if not _NAME.fullmatch(name):
        raise ValueError("the name of an object is 32 hexadecimal digits")
    return name


class FileObjects:
    """`domain.ports.ObjectStore` in a folder that no server serves: of mode 0700, its files 0600.

    For one machine. A content is written beside its place, synced, put there by a rename, and the folder is synced.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, name: str, content: bytes) -> None:
        await self._do(self._put, _checked(name), content)

    async def get(self, name: str) -> bytes | None:
        found: bytes | None = await self._do(self._get, _checked(name))
        return found

    async def remove(self, name: str) -> None:
        await self._do(self._remove, _checked(name))

    async def close(self) -> None:
        """Nothing is open."""

    async def _do(self, work: Any, *arguments: Any) -> Any:
        try:
            return await asyncio.to_thread(work, *arguments)
        except OSError as error:
            raise StoreUnavailable(f"the folder of uploads: {error.strerror or error}") from error

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name

    def _put(self, name: str, content: bytes) -> None:
        path = self._path(name)
        self._make(path.parent)
        draft = path.with_name(f".{name}.{os.urandom(8).hex()}")
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            with suppress(OSError):
                draft.unlink()
        _sync(path.parent)
        _sync(self._folder)  # the part may be another writer's, made a moment ago

    def _make(self, part: Path) -> None:
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync(self._folder.parent)
        part.mkdir(mode=0o700, exist_ok=True)

    def _get(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._path(name).unlink()
            _sync(self._path(name).parent)


def _sync(folder: Path) -> None:
    """What has been made in the folder, or taken out of it, is so after a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class S3Settings(msgspec.Struct, frozen=True):
    """`url` is `s3://bucket` or `s3://bucket/prefix`. `endpoint` empty: the region's own. `timeout_s` bounds a call."""

    url: str
    region: str = ""
    endpoint: str = ""
    timeout_s: float = 10.0


class S3Objects:
    """`domain.ports.ObjectStore` in a bucket. Credentials are found the way of every AWS client.

    The identity needs `s3:GetObject`, `s3:PutObject` and `s3:DeleteObject` below the prefix, and `s3:ListBucket`: without it
    S3 calls forbidden what is not there.
    """

    def __init__(self, settings: S3Settings) -> None:
        parts = urlsplit(settings.url)
        self._settings = settings
        self._bucket = parts.netloc
        self._prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._client: Any = None

    async def put(self, name: str, content: bytes) -> None:
        await self._call("put_object", name, Body=content)

    async def get(self, name: str) -> bytes | None:
        return await self._call("get_object", name)

    async def remove(self, name: str) -> None:
        await self._call("delete_object", name)

    async def close(self) -> None:
        await self._stack.aclose()
        self._client = None

    async def _opened(self) -> Any:
        async with self._opening:
            if self._client is None:
                from aiobotocore.config import AioConfig
                from aiobotocore.session import get_session

                settings = self._settings
                config = AioConfig(
                    connect_timeout=settings.timeout_s,
                    read_timeout=settings.timeout_s,
                    max_pool_connections=16,
                    retries={"mode": "standard", "total_max_attempts": 2},
                )
                made = get_session().create_client(
                    "s3", region_name=settings.region or None, endpoint_url=settings.endpoint or None, config=config
                )
                self._client = await self._stack.enter_async_context(made)
            return self._client

    async def _call(self, operation: str, name: str, **arguments: Any) -> bytes | None:
        key = self._prefix + _checked(name)
        try:
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise StoreUnavailable("uploads in S3 need the package aiobotocore: pip install 'renoveasy[aws]'") from None
        try:
            async with asyncio.timeout(self._settings.timeout_s * 3):
                answer = await getattr(await self._opened(), operation)(Bucket=self._bucket, Key=key, **arguments)
                if operation != "get_object":
                    return None
                async with answer["Body"] as body:
                    return bytes(await body.read())
        except ClientError as error:
            told = error.response.get("Error", {})
            if told.get("Code") == "NoSuchKey" and operation == "get_object":
                return None
            reason = f"{told.get('Code', '')}: {told.get('Message', '')}"[:200]
            raise StoreUnavailable(f"the bucket {self._bucket} refuses: {reason}") from None
        except (BotoCoreError, OSError, TimeoutError, ValueError) as error:
            reason = str(error)[:200] or type(error).__name__
            raise StoreUnavailable(f"the bucket {self._bucket} does not answer: {reason}") from None
