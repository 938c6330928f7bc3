"""Connections that the server has closed: nobody notices while nothing was sent, and nothing is ever sent twice."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from .asking import Kind, ask, exchange, post, request
from .scripts import OK, Farewell, Gate, answering_in_turn, farewells, leave_idle
from .upstreams import Peer, hostile, turns


async def streamed() -> AsyncIterator[bytes]:
    for piece in (b"once ", b"only"):
        yield piece


@farewells
@pytest.mark.parametrize("noticed", [0, 20], ids=["in-this-turn", "some-turns-ago"])
@pytest.mark.parametrize("content", [None, b"once only", "streamed"], ids=["no-body", "body", "streamed-body"])
async def test_connection_that_was_closed_while_idle_is_replaced_silently(
    kind: Kind, farewell: Farewell, noticed: int, content: bytes | str | None
) -> None:
    async with hostile(answering_in_turn(OK)) as upstream, kind.open(max_connections=1) as transport:
        await ask(transport, f"{upstream.url}/first")
        farewell(upstream.peers[0])
        await turns(noticed)
        body = streamed() if content == "streamed" else content
        assert not isinstance(body, str)
        found = await exchange(transport, request(f"{upstream.url}/second", "POST", content=body))

    assert (found.body, len(upstream.peers)) == (b"ok", 2)
    assert upstream.log.count(b"/second") == 1
    assert upstream.log.count(b"only") == (content is not None)


@farewells
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_request_that_the_server_has_read_is_not_sent_again(kind: Kind, farewell: Farewell, method: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        await peer.read_request()
        farewell(peer)

    content = b"once only" if method == "POST" else None
    async with hostile(script) as upstream, kind.open(max_connections=1) as transport:
        await ask(transport, f"{upstream.url}/first")
        with pytest.raises(httpx.ReadError if farewell is Peer.reset_now else httpx.RemoteProtocolError):
            await exchange(transport, request(f"{upstream.url}/second", method, content=content))
        after = await ask(transport, f"{upstream.url}/third")

    assert (after.body, len(upstream.peers)) == (b"ok", 2)
    assert upstream.log.count(b"/second") == 1


@farewells
async def test_request_that_the_server_has_read_in_part_is_not_sent_again(kind: Kind, farewell: Farewell) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        await peer.read_until(b"once")
        farewell(peer)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"once " * 4096

    async with hostile(script) as upstream, kind.open(max_connections=1) as transport:
        await ask(transport, f"{upstream.url}/first")
        with pytest.raises((httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError)):
            await post(transport, f"{upstream.url}/second", endless())

    assert len(upstream.peers) == 1
    assert upstream.log.count(b"/second") == 1


@farewells
async def test_new_connection_that_fails_is_not_tried_again(kind: Kind, farewell: Farewell) -> None:
    async def script(peer: Peer) -> None:
        await peer.read()
        farewell(peer)

    async with hostile(script) as upstream, kind.open() as transport:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await post(transport, upstream.url, b"once only")

    assert len(upstream.peers) == 1
    assert upstream.log.count(b"once only") == 1


async def test_all_stale_connections_are_passed_over(kind: Kind) -> None:
    gate = Gate()
    async with hostile(gate) as upstream, kind.open() as transport:
        await leave_idle(transport, gate, upstream.url, 3)
        for peer in upstream.peers:
            peer.hang_up_now()
        gate.answer()
        found = await post(transport, f"{upstream.url}/last", b"once only")

    assert (found.body, len(upstream.peers)) == (b"/last", 4)
    assert upstream.log.count(b"once only") == 1
