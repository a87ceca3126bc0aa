"""Bare echo servers for the floors: `python -m benchmarks.echo tcp|websocket <processors>` prints its port and serves.

They end when their standard input does, so they cannot outlive the bench.
"""

import os
import signal
import socket
import sys
import threading

import uvloop
from websockets.asyncio.server import ServerConnection, serve


def tcp() -> None:
    """One connection after the other, blocking: nothing is faster."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                while data := connection.recv(4096):
                    connection.sendall(data)


async def websocket() -> None:
    """The library that the gateways use, as it documents itself, on the event loop that they use."""

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0, compression=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Serve until the input ends."""
    kind, processors = sys.argv[1:]
    os.sched_setaffinity(0, {int(processor) for processor in processors.split(",")})
    threading.Thread(target=_end_with_input, daemon=True).start()
    if kind == "tcp":
        tcp()
    else:
        uvloop.run(websocket())


if __name__ == "__main__":
    main()
