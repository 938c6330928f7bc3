"""What hostile servers do, as scripts for each of their connections."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import httpx
import pytest
import trustme

from ..raw_upstream import answer
from .asking import ask
from .upstreams import Peer, PeerScript, listening, turns, until_still

OK = answer("200 OK", b"ok")
# anyio leaves the socket to the garbage collector when httpx is cancelled while it shakes hands
LEFT_BEHIND = "ignore:unclosed:ResourceWarning"
Farewell = Callable[[Peer], None]
farewells = pytest.mark.parametrize("farewell", [Peer.hang_up_now, Peer.reset_now], ids=["closed", "reset"])


def answering(*pieces: bytes) -> PeerScript:
    """Answer each request on a connection with pieces that arrive one by one."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.read_request()
            await send_apart(peer, *pieces)

    return script


def answering_in_turn(*answers: bytes) -> PeerScript:
    """Answer the requests on a connection in turn, and read on until the client leaves."""

    async def script(peer: Peer) -> None:
        for whole in answers:
            await peer.read_request()
            await peer.send(whole)
        await peer.until_client_left()

    return script


async def send_apart(peer: Peer, *pieces: bytes) -> None:
    """Send pieces that the client reads one by one."""
    for piece in pieces:
        await peer.send(piece)
        await turns(4)


async def silent(peer: Peer) -> None:
    """Read, and say nothing."""
    await peer.until_client_left()


def ending(*pieces: bytes) -> PeerScript:
    """Read a request, send pieces that arrive one by one, and close."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await send_apart(peer, *pieces)

    return script


class Gate:
    """A script that answers each request with its own path, one whenever the test says so."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.most = 0
        self._permits = anyio.Semaphore(0)
        self._busy = 0

    async def __call__(self, peer: Peer) -> None:
        while True:
            path = (await peer.read_request()).line.split()[1]
            self.asked.append(path)
            self._busy += 1
            self.most = max(self.most, self._busy)
            await self._permits.acquire()
            self._busy -= 1
            await peer.send(answer("200 OK", path))

    def answer(self, number: int = 1) -> None:
        for _ in range(number):
            self._permits.release()


async def leave_idle(transport: httpx.AsyncBaseTransport, gate: Gate, url: str, number: int) -> None:
    """Leave a number of connections idle, the last of them the youngest."""
    async with anyio.create_task_group() as group:
        for each in range(number):
            group.start_soon(ask, transport, f"{url}/{each}")
            await until_still(lambda: len(gate.asked))
        for _ in range(number):
            gate.answer()
            await turns(10)


def trusted(authority: trustme.CA) -> ssl.SSLContext:
    """What a client needs that trusts an authority and nobody else's."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def proven(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """What a server needs that can prove its names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@contextmanager
def full_listener() -> Iterator[str]:
    """A listener to which nobody can connect, and which refuses nobody: its queue is full."""
    with listening(backlog=0) as listener, socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
