"""However a request ends, its place is free, its upstream is left, and nobody reads what was another's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from ..deployments import chat
from ..raw_upstream import LAST_CHUNK, Connection, RawUpstream, Script, answer, chunk, chunked_head, raw_upstream
from .attack import CHAT, PATIENCE, REQUESTS, TOKENS, Target, besieged, request
from .scripts import Changing, hanging_up, reset_after, said

JSON = b"Content-Type: application/json"
DOCUMENT = json.dumps(
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
).encode()
STREAM = chunked_head("text/event-stream")
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
END = b"data: [DONE]\n\n"
UPLOAD = "/simulator/v1/audio/transcriptions"
FILE = b'--client\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF'
TIERS = [
    {
        "name": "crew",
        "groups": ["crew"],
        "limits": {"requests": f"{REQUESTS}/hour", "tokens": f"{TOKENS}/hour"},
        "concurrency": 1,
    }
]
healthy = said(answer("200 OK", DOCUMENT, JSON))
silent = said(then_hang=True)
begun = said(STREAM, chunk(EVENT), then_hang=True)
model = Changing(healthy)


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[RawUpstream]:
    model.script = healthy
    async with raw_upstream(model) as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def besieged_target(upstream: RawUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    models = [{"id": "simulator", "tiers": "all", "upstreams": [upstream.url]}]
    proxy = {"first_byte_timeout": 0.3, "idle_timeout": 0.3, "keepalive_interval": 0.1}
    directory = tmp_path_factory.mktemp("keys")
    async with besieged(directory, models=models, tiers=TIERS, qwen3_tiers="all", proxy=proxy) as target:
        yield target


@pytest.fixture
async def patient_target(upstream: RawUpstream, tmp_path: Path) -> AsyncIterator[Target]:
    """With the default time-outs, for many clients at once."""
    models = [{"id": "simulator", "tiers": "all", "upstreams": [upstream.url]}]
    model.script = healthy
    async with besieged(tmp_path, models=models, tiers=TIERS, qwen3_tiers="all") as target:
        yield target


async def has_a_place(target: Target, token: str) -> bool:
    """Whether the one request at a time that the tier allows is admitted before long."""
    model.script = healthy
    with anyio.move_on_after(PATIENCE):
        while (await target.chat(token)).status == 429:
            pass
        return True
    return False


@pytest.mark.parametrize(
    ("script", "status"),
    [
        pytest.param(silent, 504, id="silent"),
        pytest.param(hanging_up, 502, id="hangs-up"),
        pytest.param(said(STREAM, then_hang=True), 200, id="only-comments"),
        pytest.param(begun, 200, id="stalls-in-the-stream"),
        pytest.param(said(STREAM, chunk(EVENT + b"data: {"), then_hang=True), 200, id="stalls-within-an-event"),
        pytest.param(reset_after(STREAM, chunk(EVENT)), 200, id="resets-in-the-stream"),
        pytest.param(said(STREAM, chunk(b'data: {"error":{"code":500}}\n\n'), then_hang=True), 200, id="error-event"),
        pytest.param(said(answer("503 X", b"no")[:-1], then_hang=True), 503, id="unavailable-and-unfinished"),
        pytest.param(said(answer("400 X", b"no")[:-1], then_hang=True), 504, id="refusal-that-stalls"),
    ],
)
async def test_failure_gives_the_place_back_and_leaves_the_upstream(
    target: Target, upstream: RawUpstream, script: Script, status: int
) -> None:
    token, model.script = target.access(), script
    known = len(upstream.connections)

    answered = await target.chat(token, stream=True)

    assert (answered.status, answered.whole) == (status, status != 200)
    assert answered.body.count(b"data: {") == answered.body.count(b"}\n\n")  # comments and errors split no event
    assert await has_a_place(target, token)
    assert len(upstream.connections) > known


@pytest.mark.parametrize(
    ("script", "mark"), [(silent, b""), (said(STREAM, then_hang=True), b": keep-alive"), (begun, EVENT)]
)
async def test_client_that_leaves_gives_its_place_back(
    target: Target, upstream: RawUpstream, script: Script, mark: bytes
) -> None:
    token, reached = target.access(), anyio.Event()

    async def reaching(connection: Connection) -> None:
        reached.set()
        await script(connection)

    model.script = reaching
    with anyio.fail_after(PATIENCE):
        async with await anyio.connect_tcp("127.0.0.1", target.port) as stream:
            await stream.send(request("POST", CHAT, token=token, body=json.dumps(chat(stream=True))))
            received = b""
            while mark not in received:
                received += await stream.receive()
            await reached.wait()
        await upstream.connections[-1].client_left.wait()

    assert await has_a_place(target, token)


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        pytest.param([FILE], 408, id="stops"),
        pytest.param(
            [FILE, b"\r\n--client\r\nContent-Disposition: form-data; name=model\r\n\r\nx\r\n--client\r\n"],
            404,
            id="model",
        ),
        pytest.param([FILE, b""], 400, id="has-no-last-boundary"),
        pytest.param([FILE, b"\r\n--client\r\nX: " + b"x" * 100_000], 400, id="has-an-endless-head"),
    ],
)
async def test_upload_that_fails_on_its_way_gives_the_place_back_and_costs_nothing(
    target: Target, upstream: RawUpstream, pieces: list[bytes], status: int
) -> None:
    token, reached = target.access(), anyio.Event()

    async def reading(connection: Connection) -> None:
        await connection.read_until(b"RIFF")
        reached.set()
        await connection.until_client_left()

    model.script = reading
    type_and_framing = ("Content-Type: multipart/form-data; boundary=client", "Transfer-Encoding: chunked")
    first, *others = pieces
    received = b""
    with anyio.fail_after(PATIENCE):
        async with await anyio.connect_tcp("127.0.0.1", target.port) as stream:
            await stream.send(request("POST", UPLOAD, *type_and_framing, token=token) + chunk(first))
            await reached.wait()
            for piece in others:
                await stream.send(chunk(piece))
            while b"}}" not in received:
                received += await stream.receive()
        broken_off = upstream.connections[-1]
        await broken_off.client_left.wait()

    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert LAST_CHUNK not in broken_off.received
    assert await target.used(token) == (0, 0)
    assert await has_a_place(target, token)


async def test_streams_of_clients_of_whom_many_leave_are_never_mixed(patient_target: Target) -> None:
    target, whole = patient_target, list[bool]()

    async def echo(connection: Connection) -> None:
        while True:
            asked = json.loads((await connection.read_request()).body)["messages"][0]["content"].encode()
            await connection.send(STREAM)
            for _ in range(20):
                await connection.send(chunk(EVENT.replace(b'"a"', b'"<%b>"' % asked)))
                await anyio.lowlevel.checkpoint()
            await connection.send(chunk(END) + LAST_CHUNK)

    async def ask(number: int) -> None:
        token, name = target.access(), f"client-{number}"
        body = json.dumps({**chat(stream=True), "messages": [{"role": "user", "content": name}]})
        for pieces_to_read in (1, 3, 1000):  # leaves twice, and stays
            received = b""
            async with await anyio.connect_tcp("127.0.0.1", target.port) as stream:
                await stream.send(
                    request("POST", CHAT, token=token if pieces_to_read == 1000 else target.access(), body=body)
                )
                try:
                    for _ in range(pieces_to_read):
                        received += await stream.receive(512)
                except anyio.EndOfStream:
                    pass
            assert received.count(b"<") == received.count(f"<{name}".encode())
        whole.append(received.count(f"<{name}>".encode()) == 20 and b"[DONE]" in received)

    model.script = echo
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(ask, number)

    assert whole == [True] * 30
