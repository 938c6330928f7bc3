"""Connections: how many there are, who waits for one and for how long, and which one is taken."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import anyio
import httpx
import pytest

from ..raw_upstream import answer
from .asking import Kind, ask, read, request
from .scripts import LEFT_BEHIND, OK, Gate, answering, answering_in_turn, silent
from .upstreams import Peer, hostile, open_sockets, soon, turns, until_still


async def test_requests_beyond_the_bound_wait_and_are_served_in_their_order(kind: Kind) -> None:
    gate, got = Gate(), dict[str, bytes]()

    async def fetch(path: str) -> None:
        got[path] = (await ask(transport, upstream.url + path)).body

    paths = [f"/{number}" for number in range(12)]
    async with (
        hostile(gate) as upstream,
        kind.open(max_connections=3) as transport,
        anyio.create_task_group() as group,
    ):
        for path in paths:
            group.start_soon(fetch, path)
            await until_still(lambda: len(gate.asked))
        waiting = len(gate.asked)
        for _ in paths:
            gate.answer()
            await until_still(lambda: len(gate.asked))

    assert (waiting, gate.most, len(upstream.peers)) == (3, 3, 3)
    assert gate.asked == [path.encode() for path in paths]
    assert got == {path: path.encode() for path in paths}


async def test_no_connection_in_time_is_a_pool_timeout_and_takes_nothing(kind: Kind) -> None:
    gate = Gate()
    async with hostile(gate) as upstream, kind.open(max_connections=1) as transport:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, transport, upstream.url)
            await until_still(lambda: len(gate.asked))
            with pytest.raises(httpx.PoolTimeout):
                await ask(transport, upstream.url, pool=0.02)
            gate.answer(2)
        found = await ask(transport, f"{upstream.url}/again", pool=5)

    assert found.body == b"/again"
    assert gate.asked == [b"/", b"/again"]


async def test_answer_that_is_not_read_to_its_end_holds_its_connection(kind: Kind) -> None:
    script = answering_in_turn(answer("200 OK", b"hello")[:-1])
    async with hostile(script) as upstream, kind.open(max_connections=1) as transport:
        response = await transport.handle_async_request(request(upstream.url))
        with pytest.raises(httpx.PoolTimeout):
            await ask(transport, upstream.url, pool=0.02)
        await response.aclose()


@pytest.mark.parametrize("patience", range(12))
async def test_waiter_that_is_cancelled_while_its_turn_comes_loses_nothing(kind: Kind, patience: int) -> None:
    gate = Gate()
    async with hostile(gate) as upstream, kind.open(max_connections=1) as transport:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, transport, f"{upstream.url}/first")
            await until_still(lambda: len(gate.asked))
            # unlike those of anyio, tasks of asyncio are also cancelled when what they wait for is there already
            leaving = asyncio.create_task(ask(transport, f"{upstream.url}/leaving"))
            await turns(3)
            group.start_soon(ask, transport, f"{upstream.url}/behind")
            await turns(3)
            gate.answer(99)
            await turns(patience)
            leaving.cancel()
            await asyncio.wait([leaving])
        found = await ask(transport, f"{upstream.url}/last")

    assert found.body == b"/last"
    assert [path for path in gate.asked if path != b"/leaving"] == [b"/first", b"/behind", b"/last"]


async def test_waiter_gets_the_place_of_a_connection_that_breaks(kind: Kind) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        if len(upstream.peers) > 1:
            await peer.send(OK)
        await proceed.wait()

    proceed, bodies = anyio.Event(), []

    async def fetch() -> None:
        try:
            bodies.append((await ask(transport, upstream.url)).body)
        except httpx.RemoteProtocolError:
            bodies.append(b"broken")

    async with (
        hostile(script) as upstream,
        kind.open(max_connections=1) as transport,
        anyio.create_task_group() as group,
    ):
        group.start_soon(fetch)
        await until_still(lambda: upstream.log)
        group.start_soon(fetch)
        await turns(5)
        proceed.set()

    assert bodies == [b"broken", b"ok"]


async def test_waiter_gets_the_place_of_a_connection_that_could_not_be_made(kind: Kind) -> None:
    async with hostile(silent) as gone:
        pass
    failures: list[httpx.ConnectError] = []

    async def fetch() -> None:
        try:
            await ask(transport, gone.url)
        except httpx.ConnectError as error:
            failures.append(error)

    async with kind.open(max_connections=1) as transport, anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(fetch)

    assert len(failures) == 5


async def test_idle_connection_makes_room_for_another_upstream(kind: Kind) -> None:
    async with (
        hostile(answering(OK)) as one,
        hostile(answering(OK)) as other,
        kind.open(max_connections=1) as transport,
    ):
        bodies = [(await ask(transport, url, pool=5)).body for url in (one.url, other.url, one.url)]

    assert bodies == [b"ok"] * 3


async def test_connections_are_never_shared_between_upstreams(kind: Kind) -> None:
    async with (
        hostile(answering(answer("200 OK", b"1"))) as one,
        hostile(answering(answer("200 OK", b"2"))) as two,
        kind.open() as transport,
    ):
        bodies = [(await ask(transport, url)).body for url in (one.url, two.url) * 2]

    assert bodies == [b"1", b"2"] * 2
    assert (len(one.peers), len(two.peers)) == (1, 1)


async def test_closing_ends_idle_connections_and_those_in_use(kind: Kind) -> None:
    before = open_sockets()
    async with hostile(answering(OK)) as idle, hostile(answering(answer("200 OK", b"hello")[:-1])) as busy:
        async with kind.open() as transport:
            await ask(transport, idle.url)
            response = await transport.handle_async_request(request(busy.url))
        ended = [await soon(upstream.peers[0].over) for upstream in (idle, busy)]
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await read(response)

    assert ended == [True, True]
    assert open_sockets() == before


async def waiting_while_the_pool_is_closed(kind: Kind) -> list[str]:
    gate, ended = Gate(), list[str]()

    async def fetch(path: str) -> None:
        with contextlib.suppress(httpx.HTTPError, RuntimeError):
            await ask(transport, upstream.url + path)
        ended.append(path)

    async with hostile(gate) as upstream, anyio.create_task_group() as group:
        async with kind.open(max_connections=1) as transport:
            group.start_soon(fetch, "/busy")
            await until_still(lambda: len(gate.asked))
            group.start_soon(fetch, "/waiting")
            await turns(5)
        gate.answer(2)
    return ended


# httpx opens a connection for who waits, although it is closed already, and nobody closes that one
@pytest.mark.filterwarnings(LEFT_BEHIND)
async def test_nobody_waits_for_ever_when_the_pool_is_closed(kind: Kind) -> None:
    ended = await waiting_while_the_pool_is_closed(kind)

    assert sorted(ended) == ["/busy", "/waiting"]
    if kind.name == "httpx":
        gc.collect()
