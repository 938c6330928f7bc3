"""Connections that nobody uses: which one is taken, how many are kept, and for how long."""

from __future__ import annotations

import time

import httpx
import pytest

from .asking import Kind, ask, read, request
from .scripts import OK, Gate, answering, leave_idle
from .upstreams import hostile, open_sockets, pass_by, soon, turns, until_still


async def test_connection_that_was_used_last_is_used_next(kind: Kind) -> None:
    gate = Gate()
    async with hostile(gate) as upstream, kind.open() as transport:
        await leave_idle(transport, gate, upstream.url, 3)
        gate.answer()
        await ask(transport, f"{upstream.url}/next")
        used = [b"/next" in peer.log for peer in upstream.peers]

    # httpcore takes the first of its list
    assert used == kind.of(http11=[False, False, True], httpx=[True, False, False])


@pytest.mark.parametrize("kept", [0, 1])
async def test_no_more_idle_connections_are_kept_than_allowed(kind: Kind, kept: int) -> None:
    gate = Gate()
    async with hostile(gate) as upstream, kind.open(max_keepalive_connections=kept) as transport:
        await leave_idle(transport, gate, upstream.url, 3)
        await until_still(lambda: upstream.standing)
        standing = upstream.standing

    assert (len(upstream.peers), standing) == (3, kept)


async def test_idle_connection_expires(kind: Kind) -> None:
    async with hostile(answering(OK)) as upstream, kind.open(keepalive_expiry=0.002) as transport:
        await ask(transport, upstream.url)
        await pass_by(0.01)
        await turns(10)
        found = await ask(transport, upstream.url)
        closed = await soon(upstream.peers[0].over)

    assert (found.body, len(upstream.peers), closed) == (b"ok", 2, True)


async def test_connection_that_expired_while_the_event_loop_stood_still_is_not_used(kind: Kind) -> None:
    async with hostile(answering(OK)) as upstream, kind.open(keepalive_expiry=0.02) as transport:
        await ask(transport, upstream.url)
        expired = time.monotonic() + 0.03
        while time.monotonic() < expired:
            pass
        found = await ask(transport, upstream.url)

    assert (found.body, len(upstream.peers)) == (b"ok", 2)


async def test_idle_connection_that_the_server_closes_is_dropped_at_once(kind: Kind) -> None:
    async with hostile(answering(OK)) as upstream, kind.open() as transport:
        before = open_sockets()
        await ask(transport, upstream.url)
        upstream.peers[0].reset_now()
        await turns(20)
        left = open_sockets() - before

    assert left == kind.of(http11=0, httpx=1)  # httpcore looks when the next request comes


async def test_connection_is_free_when_the_last_byte_has_arrived(kind: Kind) -> None:
    async with hostile(answering(OK)) as upstream, kind.open(max_connections=1) as transport:
        response = await transport.handle_async_request(request(upstream.url))
        await until_still(lambda: upstream.log)
        try:
            again = (await ask(transport, upstream.url, pool=0.02)).body
        except httpx.PoolTimeout:
            again = None
        first = await read(response)
        await response.aclose()
        once_more = await ask(transport, upstream.url, pool=5)

    assert again == kind.of(http11=b"ok", httpx=None)  # httpcore waits until the answer was read and closed
    assert (first.body, once_more.body, len(upstream.peers)) == (b"ok", b"ok", 1)


async def test_whole_answer_that_is_not_read_does_not_break_its_connection(kind: Kind) -> None:
    async with hostile(answering(OK)) as upstream, kind.open(max_connections=1) as transport:
        response = await transport.handle_async_request(request(upstream.url))
        await response.aclose()
        found = await ask(transport, upstream.url, pool=5)

    assert found.body == b"ok"
    assert len(upstream.peers) == kind.of(http11=1, httpx=2)  # httpcore has not looked at the body yet
