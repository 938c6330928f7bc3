"""Servers that answer before they have read the whole request."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import httpx
import pytest

from ..raw_upstream import answer
from .asking import Kind, ask, post
from .scripts import OK, silent
from .upstreams import Peer, hostile, soon, until_still


@pytest.mark.parametrize("waits", [True, False], ids=["server-waits", "server-reads-on"])
async def test_early_refusal_is_given_at_once_and_the_rest_is_not_sent(kind: Kind, waits: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_until(b"first")
        await peer.send(answer("413 Content Too Large", b"too much"))
        await (proceed.wait() if waits else peer.until_client_left())

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await release.wait()
        yield b"x" * 65536 * 512 if waits else b"second"

    proceed, release, found = anyio.Event(), anyio.Event(), []

    async def upload() -> None:
        try:
            found.append((await post(transport, upstream.url, body(), write=0.1)).status)
        except httpx.WriteTimeout:
            found.append(0)

    async with hostile(script) as upstream, kind.open(max_connections=1) as transport:
        async with anyio.create_task_group() as group:
            group.start_soon(upload)
            await until_still(lambda: (upstream.log, found))
            early = list(found)
            release.set()
        proceed.set()
        closed = kind.name == "httpx" or await soon(upstream.peers[0].over)

    # httpcore reads nothing while it sends: it answers when the body was sent, and never where nobody reads it
    assert early == kind.of(http11=[413], httpx=[])
    assert found == kind.of(http11=[413], httpx=[0] if waits else [413])
    assert closed
    assert (b"second" in upstream.log) == kind.of(http11=False, httpx=not waits)


async def test_connection_of_an_early_answer_is_not_used_again(kind: Kind) -> None:
    async def script(peer: Peer) -> None:
        for _ in range(2):
            await peer.read_until(b"GET" if b"POST" in peer.received else b"\r\n\r\n")
            await peer.send(OK)
        await peer.until_client_left()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await release.wait()

    release = anyio.Event()
    async with hostile(script) as upstream, kind.open(max_connections=1) as transport:
        async with anyio.create_task_group() as group:
            group.start_soon(post, transport, upstream.url, body())
            await until_still(lambda: upstream.log)
            release.set()
        found = await ask(transport, upstream.url, pool=5)

    assert found.body == b"ok"
    assert len(upstream.peers) == kind.of(http11=2, httpx=1)  # httpcore has sent the whole body by then


async def test_answer_of_a_server_that_hangs_up_on_a_large_body_is_read(kind: Kind) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_until(b"\r\n\r\n")
        await peer.send(answer("413 Content Too Large", b"too much", b"Connection: close"))
        await peer.plain.send_eof()
        await peer.until_client_left()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    async with hostile(script) as upstream, kind.open() as transport:
        found = await post(transport, upstream.url, body())

    assert (found.status, found.body) == (413, b"too much")


async def test_answer_of_a_server_that_resets_the_connection_is_read_before_it_is_written_to(kind: Kind) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await until_still(lambda: upstream.log)
        upstream.peers[0].say_now(answer("413 Content Too Large", b"too much"))
        upstream.peers[0].reset_now()
        for _ in range(8):
            yield b"x" * 65536

    outcome: object
    async with hostile(silent) as upstream, kind.open() as transport:
        try:
            outcome = (await post(transport, upstream.url, body())).body
        except httpx.ReadError as error:
            outcome = type(error)

    # anyio forgets what came before the write that failed
    assert outcome == kind.of(http11=b"too much", httpx=httpx.ReadError)
