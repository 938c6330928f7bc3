"""What clusters and model servers in trouble do, as scripts of a raw upstream."""

from __future__ import annotations

import socket

import anyio
from anyio.abc import SocketAttribute

from ..raw_upstream import Connection, Script


class Changing:
    """A script that each test sets anew."""

    def __init__(self, script: Script) -> None:
        self.script = script

    async def __call__(self, connection: Connection) -> None:
        await self.script(connection)


def said(*pieces: bytes, then_hang: bool = False) -> Script:
    """Read a request, send the pieces, and close or hang."""

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(*pieces)
        if then_hang:
            await connection.until_client_left()

    return script


def for_ever(head: bytes, piece: bytes) -> Script:
    """Read a request and send without an end."""

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(head)
        while True:
            await connection.send(piece)
            await anyio.lowlevel.checkpoint()

    return script


async def hanging_up(connection: Connection) -> None:
    await connection.read()


def reset_after(*pieces: bytes) -> Script:
    """Read a request, send the pieces, and close without a farewell."""

    async def script(connection: Connection) -> None:
        await said(*pieces)(connection)
        linger = b"\1\0\0\0\0\0\0\0"
        connection.stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    return script
