"""A hundred requests at once, on few connections that break now and then: each gets its own answer."""

from __future__ import annotations

import random

import anyio
import pytest

from ..raw_upstream import LAST_CHUNK, answer, chunk, chunked_head
from .asking import Kind, ask, post
from .upstreams import Peer, hostile, turns


def filled(path: bytes, length: int) -> bytes:
    """A body that no other request can have."""
    return (path + b" ") * (length // (len(path) + 1) + 1)


@pytest.mark.parametrize("seed", range(3))
async def test_answers_are_never_mixed(kind: Kind, seed: int) -> None:
    chance = random.Random(seed)
    bodies: dict[bytes, bytes] = {}
    wrong: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.read_request()
            path = asked.line.split()[1]
            if asked.body != filled(path, len(asked.body) - len(path) - 1):
                wrong.append(path)
            bodies[path] = filled(path, chance.choice([0, 10, 1000, 70_000]))
            await turns(chance.randrange(20))
            closing = chance.random() < 0.2
            await answer_in_some_way(peer, bodies[path], closing)
            if closing:
                return

    async def answer_in_some_way(peer: Peer, body: bytes, closing: bool) -> None:
        extra = [b"Connection: close"] if closing else []
        if chance.random() < 0.5:
            await peer.send(answer("200 OK", body, *extra))
            return
        await peer.send(chunked_head("text/plain", *extra))
        for start in range(0, len(body), 9000):
            await peer.send(chunk(body[start : start + 9000]))
            await turns(chance.randrange(3))
        await peer.send(LAST_CHUNK)

    async def one(number: int) -> None:
        path = b"/%d" % number
        found = await post(transport, upstream.url + path.decode(), filled(path, chance.choice([10, 5000])))
        if found.body != bodies[path]:
            wrong.append(path)

    async with (
        hostile(script) as upstream,
        kind.open(max_connections=12) as transport,
        anyio.create_task_group() as group,
    ):
        for number in range(100):
            group.start_soon(one, number)

    assert wrong == []
    assert len(bodies) == 100
    assert all(upstream.log.count(b"POST /%d HTTP" % number) == 1 for number in range(100))


@pytest.mark.parametrize("seed", range(3))
async def test_those_who_leave_take_nothing_from_the_others(kind: Kind, seed: int) -> None:
    chance = random.Random(seed)
    outcomes: dict[int, bytes] = {}

    async def script(peer: Peer) -> None:
        while True:
            path = (await peer.read_request()).line.split()[1]
            await turns(chance.randrange(6))
            await peer.send(chunked_head("text/plain"), chunk(path))
            await turns(chance.randrange(6))
            await peer.send(LAST_CHUNK)

    async def one(number: int) -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                if number % 2:
                    group.start_soon(leave, scope)
                outcomes[number] = (await ask(transport, f"{upstream.url}/{number}", pool=15)).body
                group.cancel_scope.cancel()

    async def leave(scope: anyio.CancelScope) -> None:
        await turns(chance.randrange(120))
        scope.cancel()

    async with hostile(script) as upstream, kind.open(max_connections=4) as transport:
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(one, number)
        assert (await ask(transport, f"{upstream.url}/last", pool=5)).body == b"/last"

    assert all(body == b"/%d" % number for number, body in outcomes.items())
    assert set(range(0, 100, 2)) <= set(outcomes)
