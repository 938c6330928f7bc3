"""Callers that leave after any number of turns of the event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass

import anyio
import httpx
import pytest
import trustme

from ..raw_upstream import LAST_CHUNK, chunk, chunked_head
from .asking import Kind, ask, post
from .scripts import LEFT_BEHIND, proven, send_apart, trusted
from .upstreams import Peer, PeerScript, hostile, open_sockets, turns, until_still

Begin = Callable[[int], Coroutine[object, object, None]]


async def leave_task(begin: Begin, patience: int) -> bool:
    """Cancel a task of asyncio after so many turns; returns whether it ended before."""
    task = asyncio.create_task(begin(patience))
    await turns(patience)
    ended = task.done()
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return ended


async def leave_scope(begin: Begin, patience: int) -> bool:
    """Cancel a scope of anyio after so many turns; returns whether it ended before."""
    ended = anyio.Event()

    async def run() -> None:
        await begin(patience)
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await turns(patience)
        group.cancel_scope.cancel()
    return ended.is_set()


Leave = Callable[[Begin, int], Awaitable[bool]]
in_both_ways = pytest.mark.parametrize("leave", [leave_task, leave_scope], ids=["task", "scope"])


async def every_moment(leave: Leave, begin: Begin, most: int = 150) -> int | None:
    """Leave after no turn of the event loop, after one, after two; returns after how many it ended by itself."""
    for patience in range(most):
        if await leave(begin, patience):
            return patience
    return None


async def uploaded() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"x"
        await turns(1)


def telling_the_path(head: bytes) -> PeerScript:
    """Answer each request with its own path, in pieces."""

    async def script(peer: Peer) -> None:
        while True:
            path = (await peer.read_request()).line.split()[1]
            await send_apart(peer, head, chunk(path), chunk(b"!"), LAST_CHUNK)

    return script


@dataclass(frozen=True)
class Left:
    """What was left behind by those who left: when one first ended by itself, and what the next one got."""

    moments: int | None
    body: bytes
    sockets: int
    standing: int


async def leaving_at_any_turn(kind: Kind, leave: Leave, head: bytes, authority: trustme.CA | None) -> Left:
    """Leave one exchange at each turn of the event loop, on a single connection."""

    async def one(number: int) -> None:
        found = await post(transport, f"{upstream.url}/{number}", uploaded(), pool=5)
        assert found.body == b"/%d!" % number

    async def last() -> bytes:
        try:
            return (await ask(transport, f"{upstream.url}/last", pool=kind.of(http11=5, httpx=0.1))).body
        except httpx.PoolTimeout:
            return b""

    context = trusted(authority) if authority else None
    proof = proven(authority, "127.0.0.1") if authority else None
    async with hostile(telling_the_path(head), tls=proof) as upstream:
        before = open_sockets()
        async with kind.open(ssl_context=context, max_connections=1) as transport:
            moments = await every_moment(leave, one)
            body = await last()
        await until_still(lambda: upstream.standing)
        left = Left(moments, body, open_sockets() - before, upstream.standing)

    assert all(upstream.log.count(b"/%d " % number) <= 1 for number in range(moments or 0))
    return left


@in_both_ways
@pytest.mark.parametrize("secret", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("headers", [[], [b"Connection: close"]], ids=["kept", "closed"])
@pytest.mark.filterwarnings(LEFT_BEHIND)
async def test_nothing_is_lost_at_any_turn_of_the_event_loop(
    kind: Kind, authority: trustme.CA, headers: list[bytes], leave: Leave, secret: bool
) -> None:
    head = chunked_head("text/plain", *headers)
    left = await leaving_at_any_turn(kind, leave, head, authority if secret else None)

    # httpcore may lose sockets and places in its pool to cancelled tasks, and where TLS begins also to scopes
    if kind.name == "http11" or not (secret or leave is leave_task):
        assert left.moments is not None
        assert left.moments > 10
        assert left == Left(left.moments, b"/last!", sockets=0, standing=0)
    if kind.name == "httpx":
        gc.collect()
