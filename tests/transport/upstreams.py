"""A hostile server on raw sockets, in the test's own event loop: every byte, farewell and reset is the script's."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import ByteStream, TaskGroup
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSStream

from ..raw_upstream import Connection

DEADLINE = 20
BUFFER = 1 << 18  # more than a segment of the loopback interface, or TCP's own timers would be waited for
RESET = b"\1\0\0\0\0\0\0\0"


class SocketStream(ByteStream):
    """A socket without a buffer of its own: what is not read stays in the kernel."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        self._loop = asyncio.get_running_loop()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._loop.sock_recv(self.raw, max_bytes)
        except OSError as error:
            raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        try:
            await self._loop.sock_sendall(self.raw, item)
        except OSError as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        try:
            self.raw.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise anyio.BrokenResourceError from error

    async def aclose(self) -> None:
        self.raw.close()


class Peer(Connection):
    """One connection of the server, which also acts within a turn of the event loop.

    Attributes:
        log: everything that was read, of all its requests.
        over: set when the script has ended and the socket is closed.
        scope: what its script runs in.
    """

    def __init__(self, raw: socket.socket) -> None:
        self.plain = SocketStream(raw)
        super().__init__(self.plain)
        self.log = b""
        self.over = anyio.Event()
        self.scope = anyio.CancelScope()

    async def encrypt(self, context: ssl.SSLContext) -> None:
        stream = await TLSStream.wrap(self.plain, ssl_context=context, server_side=True)
        self.stream = stream

    async def read(self) -> bytes:
        piece = await super().read()
        self.log += piece
        return piece

    def say_now(self, data: bytes) -> None:
        """Send before the event loop turns."""
        assert self.plain.raw.send(data) == len(data)

    def hang_up_now(self) -> None:
        """End both directions before the event loop turns."""
        self.plain.raw.shutdown(socket.SHUT_RDWR)

    def reset_now(self) -> None:
        """Close without a farewell; the client finds a broken connection."""
        raw = self.plain.raw
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        asyncio.get_running_loop().remove_reader(raw)
        raw.close()
        self.scope.cancel()


PeerScript = Callable[[Peer], Awaitable[None]]


@dataclass
class Upstream:
    """The server: its URL, and each connection that it ever had."""

    url: str
    peers: list[Peer] = field(default_factory=list)

    @property
    def standing(self) -> int:
        """How many connections are open, as far as their scripts read or write."""
        return sum(not peer.over.is_set() for peer in self.peers)

    @property
    def log(self) -> bytes:
        return b"".join(peer.log for peer in self.peers)


def listening(host: str = "127.0.0.1", backlog: int = 128) -> socket.socket:
    """A listener with small buffers that do not grow, so that few bytes are on their way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host, 0))
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


@asynccontextmanager
async def hostile(
    script: PeerScript, listener: socket.socket | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Upstream]:
    """Run a script for each connection, which is closed when it ends; a test that hangs in here fails."""
    listener = listener or listening()
    host, port = listener.getsockname()[:2]
    upstream = Upstream(f"http{'s' * bool(tls)}://{f'[{host}]' if ':' in host else host}:{port}")
    with listener, anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(_accept, listener, group, upstream, script, tls)
            yield upstream
            group.cancel_scope.cancel()


async def _accept(
    listener: socket.socket, group: TaskGroup, upstream: Upstream, script: PeerScript, tls: ssl.SSLContext | None
) -> None:
    while True:
        raw, _ = await asyncio.get_running_loop().sock_accept(listener)
        peer = Peer(raw)
        upstream.peers.append(peer)
        group.start_soon(_serve, peer, script, tls)


async def _serve(peer: Peer, script: PeerScript, tls: ssl.SSLContext | None) -> None:
    try:
        with peer.scope:
            if tls:
                await peer.encrypt(tls)
            await script(peer)
            await peer.stream.aclose()
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError):
        peer.client_left.set()
    finally:
        peer.plain.raw.close()
        peer.over.set()


async def turns(number: int) -> None:
    """Let the event loop turn, which reads and writes what the sockets have ready each time."""
    for _ in range(number):
        await checkpoint()


async def pass_by(seconds: float) -> None:
    """Let the event loop turn for so long."""
    late = time.monotonic() + seconds
    while time.monotonic() < late:
        await checkpoint()


async def until_still(measure: Callable[[], object], number: int = 50) -> None:
    """Wait until a figure stands still: no byte moves any more, since both ends live in this event loop."""
    before = object()
    while before != (before := measure()):
        await turns(number)


async def soon(event: anyio.Event, number: int = 50) -> bool:
    """Whether something happens within a few turns of the event loop, far less than a millisecond each."""
    for _ in range(number):
        if event.is_set():
            return True
        await checkpoint()
    return event.is_set()


def open_sockets() -> int:
    """How many sockets this process has open."""
    return sum(map(_is_socket, os.listdir("/dev/fd")))


def _is_socket(descriptor: str) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(int(descriptor)).st_mode)
    except OSError:  # the one that listed them
        return False
