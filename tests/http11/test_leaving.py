"""Whoever leaves an exchange in the middle closes its connection and frees its place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import httpx
import pytest

from maas_middleware.http11 import HTTP11Transport

from ..raw_upstream import chunk, chunked_head
from ..transport.scripts import silent
from ..transport.upstreams import Peer, hostile, soon
from .asking import Pieces, answering, ask, reached, read, request, started

LARGE = b"x" * (1 << 24)


async def begin(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(chunked_head("text/plain") + chunk(b"first"))
    await peer.until_client_left()


async def for_a_body(transport: HTTP11Transport, url: str) -> None:
    await transport.handle_async_request(request(url, Pieces(then=anyio.sleep_forever), pool=0.001))


async def for_more_body(transport: HTTP11Transport, url: str) -> None:
    await transport.handle_async_request(request(url, Pieces(b"x", then=anyio.sleep_forever), pool=0.001))


async def for_the_answer(transport: HTTP11Transport, url: str) -> None:
    await ask(transport, url, pool=0.001)


async def for_the_rest(transport: HTTP11Transport, url: str) -> None:
    await read(await transport.handle_async_request(request(url, pool=0.001)))


@pytest.mark.parametrize(
    ("work", "script"),
    [
        pytest.param(for_a_body, silent, id="its own body"),
        pytest.param(for_more_body, silent, id="more of its own body"),
        pytest.param(for_the_answer, silent, id="the answer"),
        pytest.param(for_the_rest, begin, id="the rest of the answer"),
    ],
)
async def test_who_is_cancelled_while_waiting(
    work: Callable[[HTTP11Transport, str], Awaitable[None]], script: Callable[[Peer], Awaitable[None]]
) -> None:
    async with reached(script, max_connections=1) as (transport, upstream), anyio.create_task_group() as group:
        for number in (1, 2):
            scope = await started(group, lambda: work(transport, upstream.url))
            assert len(upstream.peers) == number
            scope.cancel()
            await upstream.peers[-1].over.wait()


async def test_who_is_cancelled_while_the_server_does_not_read() -> None:
    release = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.read()
        await release.wait()
        await peer.until_client_left()

    async with reached(script, max_connections=1) as (transport, upstream), anyio.create_task_group() as group:
        for number in (1, 2):
            scope = await started(
                group, lambda: transport.handle_async_request(request(upstream.url, LARGE, pool=0.001))
            )
            assert len(upstream.peers) == number
            scope.cancel()
        release.set()
        for peer in upstream.peers:
            await peer.over.wait()


async def test_time_to_read_runs_out_before_the_answer_and_within() -> None:
    async with reached(begin, max_connections=1) as (transport, upstream):
        response = await transport.handle_async_request(request(upstream.url, read=0.01))
        with pytest.raises(httpx.ReadTimeout):
            await read(response)
        await upstream.peers[0].over.wait()

    async with reached(silent, max_connections=1) as (transport, upstream):
        with pytest.raises(httpx.ReadTimeout):
            await ask(transport, upstream.url, read=0.001)
        await upstream.peers[0].over.wait()


async def test_body_that_fails_ends_the_connection_and_fails_bare() -> None:
    class Left(Exception):
        pass

    async def leave() -> None:
        raise Left

    async with reached(silent, max_connections=1) as (transport, upstream):
        for pieces in ([], [b"first"]):
            with pytest.raises(Left):
                await transport.handle_async_request(request(upstream.url, Pieces(*pieces, then=leave), pool=0.001))

        for peer in upstream.peers:
            await peer.over.wait()


async def test_response_that_is_closed_before_its_end_ends_the_connection_at_once() -> None:
    async with reached(begin, max_connections=1) as (transport, upstream):
        response = await transport.handle_async_request(request(upstream.url))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        pieces = aiter(response.stream)
        assert await anext(pieces) == b"first"
        for _ in range(2):
            await response.aclose()

        assert await soon(upstream.peers[0].over)
        with pytest.raises(httpx.StreamClosed):
            await anext(pieces)
        await transport.handle_async_request(request(upstream.url, pool=0.001))


async def test_closing_the_transport_ends_what_is_going_on() -> None:
    async with reached(begin) as (transport, upstream), anyio.create_task_group() as group:

        async def broken() -> None:
            with pytest.raises(httpx.TransportError):
                await ask(transport, upstream.url)

        await started(group, broken)
        await transport.aclose()

        assert await soon(upstream.peers[0].over)


async def test_closing_the_transport_can_be_cancelled_and_done_again() -> None:
    async with hostile(answering) as one, hostile(answering) as other, HTTP11Transport() as transport:
        for upstream in (one, other):
            await ask(transport, upstream.url)

        closing = asyncio.create_task(transport.aclose())
        await anyio.lowlevel.checkpoint()
        closing.cancel()
        await asyncio.wait([closing])
        await transport.aclose()

        assert closing.cancelled()
        assert [await soon(upstream.peers[0].over) for upstream in (one, other)] == [True, True]
