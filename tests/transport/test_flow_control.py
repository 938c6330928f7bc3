"""Who does not read holds up who sends, on both sides: nothing piles up in between."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import httpx
import pytest

from ..raw_upstream import LAST_CHUNK, answer, chunk, chunked_head
from .asking import Answer, Kind, pieces, post, read, request
from .scripts import OK
from .upstreams import Peer, hostile, until_still

PIECE = b"x" * 65536
MANY = 512  # 32 MiB: more than any socket holds
MOST = 128  # 8 MiB: what the sockets of both ends may hold


@pytest.mark.parametrize(
    ("head", "piece", "last"),
    [
        pytest.param(chunked_head("text/plain"), chunk(PIECE), LAST_CHUNK, id="chunks"),
        pytest.param(chunked_head("text/plain"), chunk(b"x" * 1024) * 64, LAST_CHUNK, id="small-chunks"),
        pytest.param(answer("200 OK", PIECE * MANY)[: -len(PIECE) * MANY], PIECE, b"", id="length"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", PIECE, b"", id="until-the-end"),
    ],
)
async def test_fast_server_waits_for_a_reader_that_does_not_read(
    kind: Kind, head: bytes, piece: bytes, last: bytes
) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.read_request()
        await peer.send(head)
        for _ in range(MANY):
            await peer.send(piece)
            sent += 1
        await peer.send(last)

    async with hostile(script) as upstream, kind.open() as transport:
        response = await transport.handle_async_request(request(upstream.url))
        await until_still(lambda: sent)
        before = sent
        body = pieces(response)
        first = await anext(body)
        await until_still(lambda: sent)
        after = sent
        length = len(first) + sum([len(piece) async for piece in body])
        await response.aclose()

    assert before < MOST
    assert after < MOST
    assert len(first) < len(PIECE) * MOST
    assert (sent, length) == (MANY, MANY * 65536)


@pytest.mark.parametrize("framed", [False, True], ids=["chunks", "length"])
async def test_fast_sender_waits_for_a_server_that_does_not_read(kind: Kind, framed: bool) -> None:
    taken = 0
    proceed = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_until(b"\r\n\r\n")
        await proceed.wait()
        peer.received = b""
        while b"the end" not in peer.received[-64:]:
            peer.received = peer.received[-64:] + await peer.stream.receive()
        await peer.send(OK)

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(MANY):
            taken += 1
            yield PIECE
        yield b"the end"

    headers = [(b"Content-Length", b"%d" % (len(PIECE) * MANY + 7))] if framed else []
    found: list[Answer] = []

    async def upload() -> None:
        asked = request(upstream.url, "POST", headers=headers, content=body())
        found.append(await read(await transport.handle_async_request(asked)))

    async with hostile(script) as upstream, kind.open() as transport, anyio.create_task_group() as group:
        group.start_soon(upload)
        await until_still(lambda: (taken, len(upstream.log)))
        before = taken
        proceed.set()

    assert 0 < before < MOST
    assert (taken, [each.body for each in found]) == (MANY, [b"ok"])


async def test_piece_of_a_request_is_sent_before_the_next_one_is_there(kind: Kind) -> None:
    arrived = {b"one": anyio.Event(), b"two": anyio.Event()}

    async def script(peer: Peer) -> None:
        for piece, event in arrived.items():
            await peer.read_until(piece)
            event.set()
        await peer.read_until(b"0\r\n\r\n")
        await peer.send(OK)

    async def body() -> AsyncIterator[bytes]:
        for piece, event in arrived.items():
            yield piece
            await event.wait()

    async with hostile(script) as upstream, kind.open() as transport:
        found = await post(transport, upstream.url, body())

    assert found.body == b"ok"


async def test_many_slow_readers_do_not_hold_up_each_other(kind: Kind) -> None:
    async def script(peer: Peer) -> None:
        path = (await peer.read_request()).line.split()[1]
        await peer.send(chunked_head("text/plain"))
        for _ in range(64 if path == b"/slow" else 4):
            await peer.send(chunk(PIECE))
        await peer.send(LAST_CHUNK)

    async with hostile(script) as upstream, kind.open() as transport:
        slow = [await transport.handle_async_request(request(f"{upstream.url}/slow")) for _ in range(8)]
        fast = await read(await transport.handle_async_request(request(f"{upstream.url}/fast")))
        lengths = [len((await read(response)).body) for response in slow]

    assert len(fast.body) == len(PIECE) * 4
    assert lengths == [len(PIECE) * 64] * 8


async def test_answer_whose_rest_nobody_reads_is_closed(kind: Kind) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(chunked_head("text/plain"))
        while True:
            await peer.send(chunk(PIECE))

    async with hostile(script) as upstream, kind.open() as transport:
        response = await transport.handle_async_request(request(upstream.url))
        await anext(pieces(response))
        await until_still(lambda: upstream.peers[0].sent)
        await response.aclose()
        await until_still(lambda: upstream.standing)
        standing = upstream.standing

    assert standing == 0
    assert isinstance(response, httpx.Response)
