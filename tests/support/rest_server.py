"""`RestPlatform` behind a real HTTP server, in a thread with an event loop of its own."""

import asyncio
import json
import threading
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn

from tests.support.device_keys import Handset
from tests.support.pictures import picture
from tests.support.rest_platform import RestPlatform

START_LIMIT_S = 60.0

JPEG = {"Content-Type": "image/jpeg"}


class RestServer:
    """As a context manager: serves on a free port of 127.0.0.1, with two people, an order that they share, and an operator."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="rest-server", daemon=True)
        self.base_url = ""
        self.customer: dict[str, str] = {}
        self.operator: dict[str, str] = {}
        self.ids: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(START_LIMIT_S) or self._failed is not None:
            raise AssertionError("the server did not start") from self._failed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(30)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # told to the test's thread
            self._failed = error
            self._ready.set()

    async def _serve(self) -> None:
        platform = await RestPlatform(self._url).start()
        try:
            app = platform.app()
            await self._furnish(platform, app)
            config = uvicorn.Config(app, "127.0.0.1", 0, log_level="critical", lifespan="on", access_log=False)
            self._server = uvicorn.Server(config)
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.01)
            port = self._server.servers[0].sockets[0].getsockname()[1]
            self.base_url = f"http://127.0.0.1:{port}"
            self._ready.set()
            await serving
        finally:
            await platform.stop()

    async def _furnish(self, platform: RestPlatform, app: Any) -> None:
        """Something behind every id: an order, a conversation with messages, a worker and a document, a picture, a session."""
        _, self.customer = await platform.login("+8613800000001")
        worker, worker_auth = await platform.login("+8613800000002")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rest") as http:
            offer = {"skills": ["plumbing"], "base": {"lat": 1, "lon": 2}, "radius_m": 5000, "hourly_rate": 100}
            await self._done(http.put("/v1/me/worker", json=offer, headers=worker_auth))
            site = {"lat": 1, "lon": 2, "address": "here"}
            order = {"category": "plumbing", "title": "A tap", "description": "It drips", "site": site}
            made = await self._done(http.post("/v1/orders", json=order, headers=self.customer))
            room = {"member_ids": [worker.id]}
            opened = await self._done(http.post("/v1/conversations", json=room, headers=self.customer))
            said = {"id": platform.new_id(), "text": "hello"}
            path = f"/v1/conversations/{opened['id']}/messages"
            await self._done(http.post(path, json=said, headers=self.customer))
            phone = {"public_key": Handset().jwk(), "name": "phone"}
            device_key = await self._done(http.post("/v1/auth/device-keys", json=phone, headers=self.customer))
            shown = await self._done(
                http.post("/v1/uploads?purpose=chat", content=picture(), headers=JPEG | self.customer)
            )
            proof = await self._done(
                http.post("/v1/uploads?purpose=document", content=picture(), headers=JPEG | worker_auth)
            )
            passport = {"kind": "identity", "upload_id": proof["id"]}
            document = await self._done(http.post("/v1/me/worker/documents", json=passport, headers=worker_auth))
        operator, self.operator = await platform.login("+8613800000003")
        await platform.accounts.grant(operator.id, "ops")
        _, other_device = await platform.login("+8613800000001")
        session = await platform.tokens.verify(other_device["Authorization"].removeprefix("Bearer "))
        self.ids = {
            "id": made["id"],
            "order_id": made["id"],
            "conversation_id": opened["id"],
            "worker_id": worker.id,
            "user_id": operator.id,
            "message_id": said["id"],
            "session_id": session.session_id,
            "key_id": device_key["id"],
            "upload_id": shown["id"],
            "document_id": document["id"],
        }

    async def _done(self, request: Any) -> Any:
        response = await request
        assert response.is_success, response.text
        return json.loads(response.content)
