"""Uploads, their contents and workers' documents in memory."""

from typing import Any

from domain.acts import Act
from domain.errors import Code, Refusal
from domain.ports import Page
from domain.uploads import Upload
from domain.verification import Review, WorkerDocument


class MemoryObjects:
    """`domain.ports.ObjectStore`; `error` is raised instead of everything."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.error: Exception | None = None

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    async def put(self, name: str, content: bytes) -> None:
        self._check()
        self.contents[name] = content

    async def get(self, name: str) -> bytes | None:
        self._check()
        return self.contents.get(name)

    async def remove(self, name: str) -> None:
        self._check()
        self.contents.pop(name, None)

    async def close(self) -> None: ...


class MemoryUploads:
    """Uploads that are there until their owner is forgotten; a test says which streams name them."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[Upload, bytes]] = {}
        self.named: dict[str, list[str]] = {}

    async def get(self, upload_id: str) -> Upload | None:
        return self.rows[upload_id][0] if upload_id in self.rows else None

    async def add(self, upload: Upload, content: bytes, quota_bytes: int) -> tuple[Upload, bool]:
        known = await self.get(upload.id)
        if known is not None:
            if (known.owner_id, known.purpose, known.digest) != (upload.owner_id, upload.purpose, upload.digest):
                raise Refusal(Code.IDEMPOTENCY_MISMATCH)
            return known, True
        held = sum(item.size_bytes for item, _ in self.rows.values() if item.owner_id == upload.owner_id)
        if held + upload.size_bytes > quota_bytes:
            raise Refusal(Code.CONFLICT)
        self.rows[upload.id] = upload, content
        return upload, False

    async def content(self, upload_id: str) -> bytes | None:
        return self.rows[upload_id][1] if upload_id in self.rows else None

    async def streams(self, upload_id: str, user_id: str, limit: int) -> list[str]:
        return self.named.get(upload_id, [])[:limit]

    async def list_of(self, user_id: str, after: str, limit: int) -> list[Upload]:
        found = [item for item, _ in self.rows.values() if item.owner_id == user_id and item.id > after]
        return sorted(found, key=lambda item: item.id)[:limit]

    async def sweep(self, now_ms: int, limit: int) -> int:
        return 0

    async def forget(self, user_id: str) -> None:
        self.rows = {key: row for key, row in self.rows.items() if row[0].owner_id != user_id}


class MemoryWorkerDocuments:
    """No documents at all."""

    async def add(self, document: WorkerDocument, number: str) -> tuple[WorkerDocument, bool]:
        return document, False

    async def list_of(self, worker_id: str) -> list[WorkerDocument]:
        return []

    async def find(self, state: str, cursor: str | None, limit: int) -> Page:
        return Page([], None)

    async def review(self, document_id: str, review: Review, act: Act) -> Any:
        raise Refusal(Code.NOT_FOUND)
