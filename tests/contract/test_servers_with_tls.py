"""Servers given by URL over TLS: NATS, Redis and MariaDB, each refused when nobody vouches for its certificate."""

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from domain.ports import BrokerUnavailable, StoreUnavailable
from gateway.certificates import server_context
from storage.broker import NatsBroker
from storage.cache import RedisServer
from storage.engine import Database
from tests.support.certificates import Authority
from tests.support.servers import MariaDb, Nats, Valkey, mariadb_installed

ASK = """
import asyncio, sys
from storage.broker import NatsBroker
async def main():
    broker = await NatsBroker(sys.argv[1]).start(8)
    await broker.confirm(5)
    await broker.close()
    print("confirmed")
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.issue()
    return made


class SecureNats(Nats):
    def __init__(self, authority: Authority) -> None:
        super().__init__()
        self._files = authority.folder

    @property
    def url(self) -> str:
        return f"tls://localhost:{self.port}"

    def command(self) -> list[str]:
        return [
            *super().command(),
            *("--tls", "--tlscert", str(self._files / "server.pem"), "--tlskey", str(self._files / "server.key")),
        ]


async def test_nats_over_tls_with_an_authority_of_ones_own(authority: Authority) -> None:
    with SecureNats(authority) as nats:
        # The system's authorities are read by a process once: SSL_CERT_FILE names others.
        asking = [sys.executable, "-c", ASK, nats.url]
        environment = os.environ | {"SSL_CERT_FILE": str(authority.file)}
        asked = subprocess.run(
            asking,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert asked.stdout == "confirmed\n", asked.stderr
        with pytest.raises(BrokerUnavailable):
            await NatsBroker(nats.url).start(2)


async def test_redis_over_tls_with_an_authority_of_ones_own(authority: Authority) -> None:
    """The Valkey that comes with the platform was built without TLS: here it is spoken before it."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while part := await reader.read(65536):
                writer.write(part)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", valkey.port)
        await asyncio.gather(pass_on(reader, behind_writer), pass_on(behind_reader, writer))

    context = server_context(str(authority.folder / "server.pem"), str(authority.folder / "server.key"))
    with Valkey() as valkey:
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            url = f"rediss://localhost:{server.sockets[0].getsockname()[1]}/0"
            redis = RedisServer(f"{url}?ssl_ca_certs={authority.file}", timeout_s=10)
            await redis.ping()
            await redis.close()
            stranger = RedisServer(url, timeout_s=10)
            with pytest.raises(StoreUnavailable, match="certificate verify failed"):
                await stranger.ping()
            await stranger.close()


@pytest.mark.skipif(not mariadb_installed(), reason="MariaDB is not installed: apt-get install mariadb-server")
async def test_mariadb_over_tls_with_an_authority_of_ones_own(authority: Authority) -> None:
    folder = authority.folder
    options = (
        f"--ssl-cert={folder / 'server.pem'}",
        f"--ssl-key={folder / 'server.key'}",
        "--require-secure-transport=ON",
    )
    with MariaDb(*options) as mariadb:
        url = mariadb.url("one")
        database = Database(f"{url}&ssl_ca={authority.file}")
        async with database.read() as connection:
            version = (await connection.exec_driver_sql("SHOW STATUS LIKE 'Ssl_version'")).one()[1]
        assert version == "TLSv1.3"
        await database.close()
        plain = Database(url)
        with pytest.raises(StoreUnavailable):
            await plain.check()
        await plain.close()
        other = Authority(folder / "..")
        stranger = Database(f"{url}&ssl_ca={other.file}")
        with pytest.raises(StoreUnavailable):
            await stranger.check()
        await stranger.close()
