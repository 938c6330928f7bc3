"""Callers that leave, at any moment: the server sees it at once, and no socket and no place in the pool is lost."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import httpx
import pytest

from ..raw_upstream import chunk, chunked_head
from .asking import Kind, ask, exchange, pieces, post, read, request
from .scripts import LEFT_BEHIND, OK, answering_in_turn, full_listener, silent
from .upstreams import Peer, hostile, open_sockets, soon, turns, until_still

HEAD = chunked_head("text/plain")


async def cancelled(
    begin: Callable[[], Awaitable[object]], begun: Callable[[], Awaitable[object]] = lambda: turns(20)
) -> None:
    """Begin, and leave when something has happened."""
    async with anyio.create_task_group() as group:

        async def run() -> None:
            await begin()
            raise AssertionError("it was to be cancelled")

        group.start_soon(run)
        await begun()
        group.cancel_scope.cancel()


async def test_while_connecting(kind: Kind) -> None:
    with full_listener() as url:
        async with kind.open(max_connections=1) as transport:
            before = open_sockets()
            await cancelled(lambda: ask(transport, url))
            await turns(5)
            left = open_sockets() - before
            with pytest.raises(httpx.ConnectTimeout):  # and no PoolTimeout
                await ask(transport, url, pool=0.05, connect=0.05)

    assert left == 0


async def test_while_looking_up_a_name(kind: Kind) -> None:
    async with hostile(answering_in_turn(OK)) as upstream, kind.open(max_connections=1) as transport:
        url = upstream.url.replace("127.0.0.1", "localhost")
        for patience in range(4):
            await cancelled(lambda: ask(transport, url), lambda: turns(patience))  # noqa: B023  # ends in the loop
        found = await ask(transport, url, pool=5)

    assert found.body == b"ok"


@pytest.mark.filterwarnings(LEFT_BEHIND)
async def test_while_shaking_hands(kind: Kind) -> None:
    async with hostile(silent) as upstream, kind.open(max_connections=1) as transport:
        url = upstream.url.replace("http:", "https:")
        await cancelled(lambda: ask(transport, url), lambda: until_still(lambda: upstream.log))
        closed = await soon(upstream.peers[0].over)
        with pytest.raises(httpx.ConnectTimeout):  # and no PoolTimeout
            await ask(transport, url, pool=0.05, connect=0.05)

    assert upstream.log.startswith(b"\x16\x03")
    assert closed is (kind.name == "http11")
    if kind.name == "httpx":
        gc.collect()


async def test_while_waiting_for_the_head(kind: Kind) -> None:
    async with hostile(silent) as upstream, kind.open(max_connections=1) as transport:
        for number in range(1, 3):
            path = f"/{number}"
            await cancelled(lambda: ask(transport, upstream.url + path), lambda: until_still(lambda: upstream.log))  # noqa: B023  # ends in the loop
            assert await soon(upstream.peers[-1].over)

    assert [upstream.log.count(b"/%d " % number) for number in (1, 2)] == [1, 1]
    assert len(upstream.peers) == 2


async def test_within_the_head(kind: Kind) -> None:
    async with hostile(answering_in_turn(b"HTTP/1.1 200 OK\r\nConte")) as upstream, kind.open() as transport:
        await cancelled(lambda: ask(transport, upstream.url), lambda: until_still(lambda: upstream.log))
        closed = await soon(upstream.peers[0].over)

    assert closed


async def test_within_the_body(kind: Kind) -> None:
    async with hostile(answering_in_turn(HEAD + chunk(b"x"))) as upstream, kind.open(max_connections=1) as transport:
        for _ in range(2):
            await cancelled(lambda: ask(transport, upstream.url, pool=5), lambda: until_still(lambda: upstream.log))
            assert await soon(upstream.peers[-1].over)

    assert len(upstream.peers) == 2


async def test_within_the_body_by_a_reader_that_closes_nothing(kind: Kind) -> None:
    async with hostile(answering_in_turn(HEAD + chunk(b"x"))) as upstream, kind.open(max_connections=1) as transport:
        response = await transport.handle_async_request(request(upstream.url))
        body = pieces(response)
        await anext(body)
        await cancelled(lambda: anext(body))
        closed = await soon(upstream.peers[0].over)
        with pytest.raises(httpx.ReadTimeout):  # and no PoolTimeout
            await ask(transport, upstream.url, pool=0.5, read=0.02)

    assert closed


async def test_while_a_large_body_is_sent_to_a_server_that_does_not_read(kind: Kind) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        await peer.read_until(b"\r\n\r\n")
        await proceed.wait()
        await peer.until_client_left()

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 65536

    proceed = anyio.Event()
    async with hostile(script) as upstream, kind.open(max_connections=1) as transport:
        before = open_sockets()
        await cancelled(lambda: post(transport, upstream.url, body()), lambda: until_still(lambda: sent))
        await turns(5)
        left = open_sockets() - before
        proceed.set()
        await upstream.peers[0].over.wait()
        with pytest.raises(httpx.ReadTimeout):  # and no PoolTimeout
            await ask(transport, upstream.url, pool=0.05, read=0.05)

    assert left == 1  # the server's own, which it has not closed yet


async def test_while_the_next_piece_of_a_body_is_awaited(kind: Kind) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await anyio.sleep_forever()

    async with hostile(silent) as upstream, kind.open(max_connections=1) as transport:
        await cancelled(lambda: post(transport, upstream.url, body()), lambda: until_still(lambda: upstream.log))
        closed = await soon(upstream.peers[0].over)

    assert b"first" in upstream.log
    assert closed


async def test_closing_within_the_body_is_seen_by_the_server_at_once(kind: Kind) -> None:
    async with hostile(answering_in_turn(HEAD + chunk(b"x"))) as upstream, kind.open() as transport:
        response = await transport.handle_async_request(request(upstream.url))
        first = await anext(pieces(response))
        await response.aclose()
        closed = await soon(upstream.peers[0].over)

    assert (first, closed) == (b"x", True)


async def test_closing_before_the_body_is_seen_by_the_server_at_once(kind: Kind) -> None:
    async with hostile(answering_in_turn(HEAD)) as upstream, kind.open() as transport:
        response = await transport.handle_async_request(request(upstream.url))
        await response.aclose()
        closed = await soon(upstream.peers[0].over)

    assert closed


async def test_stream_that_is_closed_twice_harms_nobody(kind: Kind) -> None:
    async with (
        hostile(answering_in_turn(HEAD + chunk(b"x"), OK)) as upstream,
        kind.open(max_connections=1) as transport,
    ):
        response = await transport.handle_async_request(request(upstream.url))
        await response.aclose()
        other = await transport.handle_async_request(request(upstream.url))
        await response.aclose()
        first = await anext(pieces(other))
        await other.aclose()

    assert first == b"x"


async def test_body_that_fails_ends_the_request_and_its_connection(kind: Kind) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await turns(10)
        raise ValueError("no more")

    async with hostile(silent) as upstream, kind.open(max_connections=1) as transport:
        with pytest.raises(ValueError, match="no more"):
            await exchange(transport, request(upstream.url, "POST", content=body()))
        closed = await soon(upstream.peers[0].over)
        with pytest.raises(httpx.ReadTimeout):  # and no PoolTimeout
            await ask(transport, upstream.url, pool=0.05, read=0.05)

    assert closed
    assert b"0\r\n\r\n" not in upstream.log


async def test_answer_is_read_by_another_task_than_asked_for_it(kind: Kind) -> None:
    bodies = []

    async def reading(response: httpx.Response) -> None:
        bodies.append((await read(response)).body)

    async with hostile(answering_in_turn(OK)) as upstream, kind.open() as transport:
        response = await transport.handle_async_request(request(upstream.url))
        async with anyio.create_task_group() as group:
            group.start_soon(reading, response)

    assert bodies == [b"ok"]
