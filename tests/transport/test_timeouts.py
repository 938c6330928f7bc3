"""Each wait has a timeout of its own, which ends the connection and leaves the pool whole."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import httpx
import pytest

from ..raw_upstream import chunk, chunked_head
from .asking import Kind, ask, exchange, pieces, post, request
from .scripts import OK, answering, answering_in_turn, full_listener, silent
from .upstreams import Peer, hostile, open_sockets, pass_by, soon, turns

HEAD = chunked_head("text/plain")


async def test_connecting(kind: Kind) -> None:
    with full_listener() as url:
        before = open_sockets()
        async with kind.open(max_connections=1) as transport:
            for _ in range(2):
                with pytest.raises(httpx.ConnectTimeout):
                    await ask(transport, url, connect=0.02, pool=0.5, read=9)
            await turns(5)
            left = open_sockets() - before

    assert left == 0


async def test_waiting_for_the_head(kind: Kind) -> None:
    async with hostile(silent) as upstream, kind.open(max_connections=1) as transport:
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                await ask(transport, upstream.url, read=0.02, pool=0.5)
            assert await soon(upstream.peers[-1].over)

    assert len(upstream.peers) == 2


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nConte", id="head"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="interim-answer"),
    ],
)
async def test_waiting_for_the_rest_of_a_head(kind: Kind, said: bytes) -> None:
    async with hostile(answering_in_turn(said)) as upstream, kind.open() as transport:
        with pytest.raises(httpx.ReadTimeout):
            await ask(transport, upstream.url, read=0.02)
        closed = await soon(upstream.peers[0].over)

    assert closed


@pytest.mark.parametrize("head", [HEAD + chunk(b"x"), b"HTTP/1.1 200 OK\r\n\r\nx"], ids=["chunks", "until-the-end"])
async def test_waiting_for_more_of_a_body(kind: Kind, head: bytes) -> None:
    async with hostile(answering_in_turn(head)) as upstream, kind.open(max_connections=1) as transport:
        for _ in range(2):
            response = await transport.handle_async_request(request(upstream.url, read=0.02, pool=0.5))
            body = pieces(response)
            first = await anext(body)
            with pytest.raises(httpx.ReadTimeout):
                await anext(body)
            assert await soon(upstream.peers[-1].over)
            await response.aclose()

    assert first == b"x"
    assert len(upstream.peers) == 2


async def test_reading_is_measured_from_piece_to_piece(kind: Kind) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(HEAD)
        for digit in range(6):
            await pass_by(0.1)
            await peer.send(chunk(b"%d" % digit))
        await peer.send(b"0\r\n\r\n")

    async with hostile(script) as upstream, kind.open() as transport:
        found = await ask(transport, upstream.url, read=0.5)

    assert found.body == b"012345"


async def test_time_that_the_reader_takes_is_not_counted(kind: Kind) -> None:
    async with hostile(answering(HEAD, chunk(b"x"), b"0\r\n\r\n")) as upstream, kind.open() as transport:
        response = await transport.handle_async_request(request(upstream.url, read=0.2))
        body = pieces(response)
        got = [await anext(body)]
        await pass_by(0.3)
        got += [piece async for piece in body]
        await response.aclose()

    assert b"".join(got) == b"x"


async def test_sending_to_a_server_that_does_not_read(kind: Kind) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_until(b"\r\n\r\n")
        await proceed.wait()
        await peer.until_client_left()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    proceed = anyio.Event()
    async with hostile(script) as upstream, kind.open(max_connections=1) as transport:
        with pytest.raises(httpx.WriteTimeout):
            await post(transport, upstream.url, endless(), write=0.05, read=9)
        proceed.set()
        await upstream.peers[0].over.wait()
        with pytest.raises(httpx.ReadTimeout):  # and no PoolTimeout
            await ask(transport, upstream.url, pool=0.5, read=0.02)

    assert len(upstream.peers) == 2


async def test_waiting_for_a_connection(kind: Kind) -> None:
    async with hostile(answering_in_turn(HEAD, OK)) as upstream, kind.open(max_connections=1) as transport:
        response = await transport.handle_async_request(request(upstream.url))
        for _ in range(2):
            with pytest.raises(httpx.PoolTimeout):
                await ask(transport, upstream.url, pool=0.02, read=9, connect=9)
        await response.aclose()

    assert len(upstream.peers) == 1


async def test_body_that_waits_for_its_own_source_does_not_run_out_of_time(kind: Kind) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(2):
            yield b"x"
            await pass_by(0.1)

    async with hostile(answering(OK)) as upstream, kind.open() as transport:
        found = await post(transport, upstream.url, slow(), write=0.05, read=0.5)

    assert found.body == b"ok"


async def test_no_timeouts_at_all(kind: Kind) -> None:
    async with hostile(answering(OK)) as upstream, kind.open() as transport:
        found = await exchange(transport, httpx.Request("GET", upstream.url))

    assert found.body == b"ok"
