"""Clients that leave: nothing stays leased, no model server works on, and whoever stays is served."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from ..deployments import chat
from ..raw_upstream import LAST_CHUNK, Connection, RawUpstream, Script, chunk, chunked_head, raw_upstream
from .attack import CHAT, PATIENCE, Target, besieged, request
from .scripts import Changing, for_ever, said
from .test_broken_streams import DONE, HELLO, STOP, event

Leaving = Callable[[SocketStream], Awaitable[None]]

HEAD, JSON_HEAD = chunked_head("text/event-stream"), chunked_head("application/json")
PROMPT, OUTPUT = 13, 512  # estimates
USAGE = event({"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42}})
healthy = said(HEAD, chunk(HELLO + STOP + USAGE + DONE), LAST_CHUNK)
model = Changing(healthy)


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[RawUpstream]:
    model.script = healthy
    async with raw_upstream(model) as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def besieged_target(upstream: RawUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    models = [{"id": "simulator", "tiers": "all", "upstreams": [upstream.url]}]
    proxy = {"first_byte_timeout": 20, "idle_timeout": 20}
    async with besieged(tmp_path_factory.mktemp("keys"), models=models, proxy=proxy) as target:
        yield target


@pytest.fixture
def target(target: Target, upstream: RawUpstream) -> Target:
    upstream.connections.clear()
    return target


async def closing(stream: SocketStream) -> None:
    await stream.aclose()


async def resetting(stream: SocketStream) -> None:
    stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await stream.aclose()


leaves = pytest.mark.parametrize("leave", [closing, resetting])


def asking(token: str, *, stream: bool) -> bytes:
    return request("POST", CHAT, token=token, body=json.dumps(chat(stream=stream)))


async def connected(target: Target, *pieces: bytes) -> SocketStream:
    stream = await anyio.connect_tcp("127.0.0.1", target.port)
    for piece in pieces:
        await stream.send(piece)
    return stream


async def until_used(target: Target, token: str, used: tuple[int, int]) -> None:
    """Look on, for free, until the requests and tokens that are used or leased are these."""
    with anyio.fail_after(PATIENCE):
        while await target.used(token) != used:
            pass


async def until_asked(upstream: RawUpstream, *, sent: int = 0) -> Connection:
    """Wait until the model server has read a request, and sent so many bytes of its answer."""
    with anyio.fail_after(PATIENCE):
        while not upstream.connections or upstream.connections[0].sent < sent:
            await anyio.lowlevel.checkpoint()
    return upstream.connections[0]


@leaves
@pytest.mark.parametrize("sent", [0, 1, 20])
async def test_client_that_leaves_within_its_request_reaches_nobody(
    target: Target, upstream: RawUpstream, leave: Leaving, sent: int
) -> None:
    token = target.access()
    whole = asking(token, stream=True)
    head = whole.index(b"\r\n\r\n") + 4

    await leave(await connected(target, whole[: head + sent]))

    await until_used(target, token, (0, 0))
    assert upstream.connections == []


@leaves
@pytest.mark.parametrize("number", [1, 10])
async def test_clients_that_leave_while_the_cluster_is_asked_leave_one_answer_behind(
    target: Target, leave: Leaving, number: int
) -> None:
    cluster, login = target.service.cluster, target.newcomer()
    cluster.reviews.clear()
    cluster.gate = anyio.Event()

    leavers = [await connected(target, request("POST", "/v1/tokens", token=login)) for _ in range(number)]
    with anyio.fail_after(PATIENCE):
        while not cluster.reviews:
            await anyio.lowlevel.checkpoint()
    for leaver in leavers:
        await leave(leaver)
    cluster.gate.set()
    minted = await target.ask("POST", "/v1/tokens", token=login)
    cluster.gate = None

    assert minted.status == 201
    assert [review.token for review in cluster.reviews] == [login]


@leaves
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(said(b"", then_hang=True), id="before-its-headers"),
        pytest.param(said(b"HTTP/1.1 200 OK\r\nCont", then_hang=True), id="in-its-headers"),
        pytest.param(said(HEAD, then_hang=True), id="before-the-first-byte"),
        pytest.param(said(b"HTTP/1.1 102 Processing\r\n\r\n" * 3, then_hang=True), id="behind-interim-answers"),
        pytest.param(said(JSON_HEAD, chunk(b'{"choices": ['), then_hang=True), id="in-a-document"),
    ],
)
async def test_client_that_leaves_before_the_answer_closes_the_upstream(
    target: Target, upstream: RawUpstream, script: Script, stream: bool, leave: Leaving
) -> None:
    token, model.script = target.access(), script

    client = await connected(target, asking(token, stream=stream))
    connection = await until_asked(upstream)
    leased = await target.used(token)
    await leave(client)

    with anyio.fail_after(PATIENCE):
        await connection.client_left.wait()
    await until_used(target, token, (1, PROMPT))
    assert leased == (1, PROMPT + OUTPUT)


@leaves
@pytest.mark.parametrize(
    ("script", "charged"),
    [
        pytest.param(said(HEAD, chunk(HELLO * 3), then_hang=True), PROMPT + 3, id="within-the-stream"),
        pytest.param(said(HEAD, chunk(HELLO), chunk(HELLO)[:9], then_hang=True), PROMPT + 1, id="within-an-event"),
        pytest.param(said(HEAD, chunk(HELLO + STOP + USAGE), then_hang=True), 42, id="behind-the-usage"),
        pytest.param(said(HEAD, chunk(HELLO + STOP + USAGE + DONE), then_hang=True), 42, id="behind-the-last-event"),
    ],
)
async def test_client_that_leaves_in_the_stream_closes_the_upstream_and_pays_what_was_produced(
    target: Target, upstream: RawUpstream, script: Script, charged: int, leave: Leaving
) -> None:
    token, model.script = target.access(), script

    client = await connected(target, asking(token, stream=True))
    received = b""
    with anyio.fail_after(PATIENCE):
        while b"Hello" not in received:
            received += await client.receive()
    leased = await target.used(token)
    await leave(client)

    with anyio.fail_after(PATIENCE):
        await upstream.connections[0].client_left.wait()
    await until_used(target, token, (1, charged))
    assert leased == (1, PROMPT + OUTPUT)


@leaves
async def test_client_that_leaves_behind_the_last_byte_pays_for_the_answer(
    target: Target, upstream: RawUpstream, leave: Leaving
) -> None:
    token, model.script = target.access(), healthy

    client = await connected(target, asking(token, stream=True).replace(b"close", b"keep-alive"))
    received = b""
    with anyio.fail_after(PATIENCE):
        while not received.endswith(LAST_CHUNK):
            received += await client.receive()
    await leave(client)

    await until_used(target, token, (1, 42))
    assert (await target.chat(token, stream=True)).status == 200


@leaves
async def test_client_that_does_not_read_and_leaves_closes_the_upstream(
    target: Target, upstream: RawUpstream, leave: Leaving
) -> None:
    token, model.script = target.access(), for_ever(HEAD, chunk(HELLO * 500))

    client = await connected(target, asking(token, stream=True))
    connection = await until_asked(upstream, sent=1 << 20)
    await leave(client)

    with anyio.fail_after(PATIENCE):
        await connection.client_left.wait()
        while (await target.used(token))[1] == PROMPT + OUTPUT:
            pass
    requests, tokens = await target.used(token)
    assert requests == 1
    assert tokens > PROMPT + 1000


async def test_fifty_clients_that_leave_at_once_leave_nothing_behind(target: Target, upstream: RawUpstream) -> None:
    token, model.script = target.access(), said(HEAD, chunk(HELLO), then_hang=True)

    clients = [await connected(target, asking(token, stream=True)) for _ in range(50)]
    with anyio.fail_after(PATIENCE):
        for client in clients:
            await client.receive()
    leased = await target.used(token)
    for client in clients:
        await resetting(client)

    with anyio.fail_after(PATIENCE):
        for connection in upstream.connections:
            await connection.client_left.wait()
    await until_used(target, token, (50, 50 * (PROMPT + 1)))
    assert leased == (50, 50 * (PROMPT + OUTPUT))
    assert len(upstream.connections) == 50
