"""Model servers that break off, hang or tell too much behind the first byte of a stream: it breaks off, visibly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import anyio
import pytest

from ..deployments import bearer, chat
from ..raw_upstream import LAST_CHUNK, Connection, Script, answer, chunk, chunked_head, raw_upstream
from .attack import CHAT, PATIENCE, Answer, Target, besieged, request
from .scripts import Changing, for_ever, reset_after, said

HEAD = chunked_head("text/event-stream; charset=utf-8")
TELLTALE = "Traceback (most recent call last): connect to http://10.0.0.1:8000 failed at 127.0.0.1:8000"
MEBIBYTE = 1 << 20


def event(data: object) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def piece(**delta: str) -> bytes:
    return event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]})


HELLO, DONE = piece(content="Hello"), event(b"[DONE]")
STOP = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
ERROR = {"error": {"message": TELLTALE, "type": "Boom", "param": None, "code": 500}}
healthy = said(HEAD, chunk(HELLO), chunk(STOP + DONE), LAST_CHUNK)
model = Changing(healthy)


@pytest.fixture(scope="module")
async def besieged_target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    model.script = healthy
    async with raw_upstream(model) as upstream:
        models = [{"id": "simulator", "tiers": "all", "upstreams": [upstream.url]}]
        proxy = {"first_byte_timeout": 0.3, "idle_timeout": 0.3}
        async with besieged(tmp_path_factory.mktemp("keys"), models=models, proxy=proxy) as target:
            target.secrets += ["10.0.0.1", "Boom"]
            yield target


def farewell(answered: Answer, code: str) -> bytes:
    """What was sent before the error event, after a look at that event and at how the stream ends."""
    assert (answered.status, answered.whole) == (200, False), answered.received
    assert (answered.header("content-type") or "").startswith("text/event-stream")
    before, _, last = (b"\n\n" + answered.body).rpartition(b"\n\ndata: ")
    error = json.loads(last)["error"]
    assert last.endswith(b"}\n\n")
    assert (error["code"], error["type"]) == (code, "server_error")
    assert (answered.header("x-request-id") or "?") in error["message"]
    assert b"[DONE]" not in before
    return before[2:] + b"\n\n"


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        pytest.param(said(HEAD, chunk(HELLO)), "upstream_error", id="closes"),
        pytest.param(said(HEAD, chunk(HELLO), chunk(HELLO)[:-9]), "upstream_error", id="closes-within-a-chunk"),
        pytest.param(said(HEAD, chunk(HELLO + b"data: {")), "upstream_error", id="closes-within-an-event"),
        pytest.param(said(HEAD, chunk(HELLO + b"data: {"), LAST_CHUNK), "upstream_error", id="ends-within-an-event"),
        pytest.param(said(HEAD, chunk(HELLO), LAST_CHUNK), "upstream_error", id="ends-without-saying-so"),
        pytest.param(reset_after(HEAD, chunk(HELLO)), "upstream_error", id="resets"),
        pytest.param(said(HEAD, chunk(HELLO), b"zz\r\n"), "upstream_error", id="no-chunk"),
        pytest.param(said(HEAD, chunk(HELLO), b"f" * 30 + b"\r\n"), "upstream_error", id="chunk-of-120-bits"),
        pytest.param(said(HEAD, chunk(HELLO), b"\x16\x03\x01" * 99), "upstream_error", id="bytes"),
        pytest.param(said(HEAD, chunk(HELLO), b"1" * 300_000), "upstream_error", id="endless-size-of-a-chunk"),
        pytest.param(said(HEAD, chunk(HELLO), then_hang=True), "upstream_timeout", id="hangs"),
        pytest.param(said(HEAD, chunk(HELLO), b"9\r\n: x", then_hang=True), "upstream_timeout", id="hangs-in-a-chunk"),
        pytest.param(said(HEAD, chunk(HELLO), b"5", then_hang=True), "upstream_timeout", id="hangs-in-a-size"),
        pytest.param(
            said(answer("200 OK", HELLO, b"Content-Type: text/event-stream").replace(b"Length: ", b"Length: 9")),
            "upstream_error",
            id="shorter-than-its-length",
        ),
    ],
)
async def test_stream_that_breaks_off_says_so_and_is_charged_what_was_produced(
    target: Target, trouble: Script, code: str
) -> None:
    token, model.script = target.access(), trouble

    answered = await target.chat(token, stream=True)

    assert farewell(answered, code).startswith(HELLO)
    requests, tokens = await target.used(token)
    assert requests == 1
    assert 1 < tokens < 50  # prompt and one piece, and not the estimate


async def test_event_that_was_begun_is_ended_before_the_farewell(target: Target) -> None:
    model.script = said(HEAD, chunk(HELLO), chunk(b'data: {"choices": [{"delta": {"content": "Hel'))

    answered = await target.chat(target.access(), stream=True, stream_options={"include_usage": True})

    sent = farewell(answered, "upstream_error")
    assert sent in (HELLO, HELLO + b'data: {"choices": [{"delta": {"content": "Hel\n\n')


@pytest.mark.parametrize("hangs", [pytest.param(False, id="closes"), pytest.param(True, id="hangs")])
async def test_large_document_that_breaks_off_is_cut_visibly(target: Target, hangs: bool) -> None:
    document = b'{"x": "' + b"x" * 5 * MEBIBYTE
    model.script = said(chunked_head("application/json"), chunk(document), then_hang=hangs)

    answered = await target.chat(target.access())

    assert (answered.status, answered.whole) == (200, False)
    assert len(answered.body) > 5 * MEBIBYTE
    assert b"error" not in answered.body


async def test_event_without_an_end_is_passed_on_and_not_kept(target: Target) -> None:
    model.script = for_ever(HEAD + chunk(HELLO + b"data: "), chunk(b"x" * 100_000))
    received = 0

    headers, body = bearer(target.access()), chat(stream=True)
    async with target.service.client.stream("POST", CHAT, json=body, headers=headers) as response:
        async for data in response.aiter_raw():
            received += len(data)
            if received > 8 * MEBIBYTE:
                break

    assert received > 8 * MEBIBYTE


async def test_client_that_reads_nothing_is_taken_for_one_that_left(target: Target) -> None:
    token, left = target.access(), anyio.Event()

    async def flooding(connection: Connection) -> None:
        try:
            await for_ever(HEAD, chunk(HELLO * 500))(connection)
        finally:
            left.set()

    model.script = flooding
    with anyio.fail_after(PATIENCE):
        async with await anyio.connect_tcp("127.0.0.1", target.port) as client:
            await client.send(request("POST", CHAT, token=token, body=json.dumps(chat(stream=True))))
            await left.wait()

    requests, tokens = await target.used(token)
    assert requests == 1
    assert tokens > 1000
