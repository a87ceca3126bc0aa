"""`ObjectStore` in a folder, in a bucket as moto serves it, and in memory."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import boto3
import pytest

from deploy.contents import objects
from deploy.settings import from_environment
from domain.ports import ObjectStore, StoreUnavailable
from storage.objects import FileObjects, S3Objects, S3Settings
from tests.support.memory_uploads import MemoryObjects

ONE, TWO = "0" * 31 + "1", "0" * 31 + "2"


@pytest.fixture
def s3(aws: str) -> S3Settings:
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=aws)
    client.create_bucket(Bucket="uploads")
    client.close()
    return S3Settings("s3://uploads/some/prefix", "us-east-1", aws)


@pytest.fixture(params=["file", "s3", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    made: ObjectStore
    match request.param:
        case "file":
            made = FileObjects(tmp_path / "data" / "uploads")
        case "s3":
            made = S3Objects(request.getfixturevalue("s3"))
        case _:
            made = MemoryObjects()
    yield made
    await made.close()


async def test_a_content_is_there_until_it_is_removed(store: ObjectStore) -> None:
    large = os.urandom(3 << 20)
    assert await store.get(ONE) is None
    await store.put(ONE, large)
    await store.put(TWO, b"")
    assert await store.get(ONE) == large
    assert await store.get(TWO) == b""
    await store.put(ONE, b"another")
    assert await store.get(ONE) == b"another"
    await store.remove(ONE)
    await store.remove(ONE)
    assert await store.get(ONE) is None
    assert await store.get(TWO) == b""


async def test_whoever_reads_while_a_content_is_replaced_gets_the_whole_of_one(store: ObjectStore) -> None:
    contents = [bytes([n]) * 200_000 for n in range(6)]
    await store.put(ONE, contents[0])

    async def read() -> None:
        for _ in range(6):
            assert await store.get(ONE) in contents

    await asyncio.gather(*(store.put(ONE, content) for content in contents), read(), read())
    assert await store.get(ONE) in contents


@pytest.mark.parametrize(
    "name", ["", "../x", "/etc/passwd", "x" * 32, "A" * 32, "0" * 31, "0" * 33, "0" * 30 + "\0" + "1"]
)
async def test_a_name_that_the_platform_does_not_make_is_no_path(name: str, tmp_path: Path) -> None:
    for store in (FileObjects(tmp_path), S3Objects(S3Settings("s3://uploads"))):
        for work in (store.get(name), store.remove(name), store.put(name, b"x")):
            with pytest.raises(ValueError, match="32 hexadecimal"):
                await work
    assert list(tmp_path.iterdir()) == []


async def test_files_are_for_this_user_alone_and_no_draft_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "uploads"
    store = FileObjects(folder)
    await asyncio.gather(*(store.put(f"{n:032x}", b"content") for n in range(40)))
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert len(found) == 40
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in [folder, *(p for p in folder.iterdir())]} == {0o700}


async def test_a_content_is_synced_before_it_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before it gets its name, the folders after it."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def syncing(descriptor: int) -> None:
        done.append("file" if stat.S_ISREG(os.fstat(descriptor).st_mode) else "folder")
        fsync(descriptor)

    def replacing(self: Path, target: Path) -> Path:
        done.append("name")
        return replace(self, target)

    store = FileObjects(tmp_path / "uploads")
    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", replacing)
    await store.put(ONE, b"content")
    assert done.index("file") < done.index("name")
    assert done[done.index("name") + 1 :] == ["folder", "folder"]


async def test_a_folder_that_cannot_be_written_is_unavailable_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="folder of uploads"):
        await FileObjects(tmp_path / "file" / "uploads").put(ONE, b"x")


async def test_a_bucket_that_does_not_answer_or_is_not_there_is_unavailable(s3: S3Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for settings, why in (
            (S3Settings("s3://uploads", "us-east-1", nobody, timeout_s=1.0), "does not answer"),
            (S3Settings("s3://nowhere", "us-east-1", s3.endpoint), "NoSuchBucket"),
        ):
            store = S3Objects(settings)
            with pytest.raises(StoreUnavailable, match=why):
                await store.put(ONE, b"x")
            with pytest.raises(StoreUnavailable, match=why):
                await store.get(ONE)
            await store.close()


def test_the_settings_say_which_it_is(tmp_path: Path) -> None:
    environment = {"RENOVEASY_DATA_DIR": str(tmp_path)}
    assert isinstance(objects(from_environment(environment)), FileObjects)
    assert isinstance(objects(from_environment(environment | {"RENOVEASY_S3_URL": "s3://bucket/x"})), S3Objects)
