"""Model servers that break off, hang or tell too much behind the first byte of a stream: it breaks off, visibly."""

from __future__ import annotations

import gzip
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
        proxy = {"first_byte_timeout": 0.8, "idle_timeout": 0.8}
        async with besieged(tmp_path_factory.mktemp("keys"), models=models, proxy=proxy) as target:
            target.secrets += ["10.0.0.1", "Boom"]
            yield target


def farewell(answered: Answer, code: str) -> bytes:
    """What was sent before the error event, after a look at that event and at how the stream ends."""
    assert (answered.status, answered.whole) == (200, False), answered.received
    assert (answered.header("content-type") or "").startswith("text/event-stream")
    place = (b"\n\n" + answered.body).rindex(b"\n\ndata: ")
    before, last = answered.body[:place], answered.body[place:]
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert last.endswith(b"}\n\n")
    assert (error["code"], error["type"]) == (code, "server_error")
    assert (answered.header("x-request-id") or "?") in error["message"]
    assert b"[DONE]" not in before
    return before


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        pytest.param(said(HEAD, chunk(HELLO)), "upstream_error", id="closes"),
        pytest.param(said(HEAD, chunk(HELLO), chunk(HELLO)[:-9]), "upstream_error", id="closes-within-a-chunk"),
        pytest.param(said(HEAD, chunk(HELLO + b"data: {")), "upstream_error", id="closes-within-an-event"),
        pytest.param(said(HEAD, chunk(HELLO + b"data: {"), LAST_CHUNK), "upstream_error", id="ends-within-an-event"),
        pytest.param(said(HEAD, chunk(HELLO), LAST_CHUNK), "upstream_error", id="ends-without-saying-so"),
        pytest.param(
            said(HEAD, chunk(HELLO + STOP + b"data: {"), LAST_CHUNK), "upstream_error", id="goes-on-behind-its-end"
        ),
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


async def test_event_that_was_begun_is_left_out(target: Target) -> None:
    model.script = said(HEAD, chunk(HELLO), chunk(b'data: {"choices": [{"delta": {"content": "Hel'))

    answered = await target.chat(target.access(), stream=True, stream_options={"include_usage": True})

    assert farewell(answered, "upstream_error") == HELLO


OLD = {"object": "error", "message": TELLTALE, "type": "Boom", "param": None, "code": 500}
LINES = b"data: " + b"\ndata: ".join(json.dumps(ERROR, indent=1).encode().splitlines()) + b"\n\n"
FAILURES = [
    pytest.param(event(ERROR), id="vllm"),
    pytest.param(event(OLD), id="old-vllm"),
    pytest.param(event({"type": "error", "error": {"type": "Boom", "message": TELLTALE}}), id="anthropic"),
    pytest.param(event({"error": TELLTALE}), id="text"),
    pytest.param(event({"error": {"message": "Boom", "code": None}}), id="without-a-code"),
    pytest.param(event({"error": {"message": "Boom", "code": "400"}}), id="code-as-text"),
    pytest.param(event({"error": {"message": "Boom", "code": 401}}), id="401"),
    pytest.param(event({"id": "chat-1", "choices": [], "usage": None, **ERROR}), id="behind-other-fields"),
    pytest.param(event({"choices": [{"delta": {}, "finish_reason": "error"}], **ERROR}), id="beside-an-end"),
    pytest.param(b"event: error\n" + event({"message": TELLTALE}), id="event-error"),
    pytest.param(b"event: error\n" + event(b"Boom"), id="event-error-in-text"),
    pytest.param(event(b'{"error": {"message": "Boom \xff"}}'), id="invalid-utf-8"),
    pytest.param(event(ERROR).replace(b"\n", b"\r\n"), id="crlf"),
    pytest.param(event(ERROR).replace(b"\n", b"\r"), id="cr"),
    pytest.param(LINES, id="many-lines"),
    pytest.param(event(b'{"error":\ndata: {"message": "Boom"}}'), id="key-and-value-in-two-lines"),
    pytest.param(event({"error": ["Boom"]}), id="list"),
    pytest.param(event([ERROR]), id="in-a-list"),
    pytest.param(event(b'{"error": {"message": "Boom"}'), id="truncated-json"),
    pytest.param(event(b'{"error": {"message": "Boom", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}}"), id="deep"),
    pytest.param(event(ERROR).replace(b"data: ", b"data:"), id="no-space"),
    pytest.param(b": ping\nid: 7\n" + event(ERROR), id="behind-a-comment"),
]
asked = pytest.mark.parametrize(
    "options",
    [pytest.param({}, id="not-asked"), pytest.param({"stream_options": {"include_usage": True}}, id="asked")],
)


@asked
@pytest.mark.parametrize("failure", FAILURES)
async def test_error_event_of_the_upstream_reaches_the_client_in_our_words(
    target: Target, failure: bytes, options: dict[str, object]
) -> None:
    token, model.script = target.access(), said(HEAD, chunk(HELLO + failure + STOP + DONE), LAST_CHUNK)

    answered = await target.chat(token, stream=True, **options)

    assert farewell(answered, "upstream_error") == HELLO
    requests, tokens = await target.used(token)
    assert requests == 1
    assert 1 < tokens < 50


@pytest.mark.parametrize("failure", FAILURES)
async def test_stream_that_only_fails_costs_nothing(target: Target, failure: bytes) -> None:
    token, model.script = target.access(), said(HEAD, chunk(failure + DONE), LAST_CHUNK)

    answered = await target.chat(token, stream=True)

    assert farewell(answered, "upstream_error") == b""
    assert await target.used(token) == (0, 0)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
async def test_error_event_may_come_byte_by_byte(target: Target, ending: bytes) -> None:
    stream = (HELLO + event(ERROR) + DONE).replace(b"\n", ending)
    model.script = said(HEAD, *(chunk(bytes([byte])) for byte in stream), LAST_CHUNK)

    answered = await target.chat(target.access(), stream=True)

    assert answered.body.startswith(HELLO.replace(b"\n", ending))
    assert answered.body.count(b"data: ") == 2
    assert b'"upstream_error"' in answered.body
    assert not answered.whole


@pytest.mark.parametrize("then_hang", [False, True], ids=["closes", "hangs"])
async def test_error_event_without_an_end_is_not_passed(target: Target, then_hang: bool) -> None:
    model.script = said(HEAD, chunk(HELLO + event(ERROR)[:-2]), then_hang=then_hang)

    answered = await target.chat(target.access(), stream=True)

    assert farewell(answered, "upstream_timeout" if then_hang else "upstream_error") == HELLO


@asked
@pytest.mark.parametrize("message", ["`temperature` is too hot", TELLTALE])
@pytest.mark.parametrize("old", [False, True], ids=["vllm", "old-vllm"])
async def test_refusal_in_an_event_keeps_a_message_that_tells_nothing(
    target: Target, message: str, old: bool, options: dict[str, object]
) -> None:
    refusal = {"message": message, "type": "Boom", "param": "temperature", "code": 400}
    model.script = said(HEAD, chunk(event({"object": "error", **refusal} if old else {"error": refusal})), LAST_CHUNK)

    answered = await target.chat(target.access(), stream=True, **options)

    assert (answered.status, answered.whole) == (200, False)
    assert json.loads(answered.body.removeprefix(b"data: "))["error"] == {
        "message": message if message != TELLTALE else "The model refused the request",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "invalid_request",
    }


HOT = json.dumps({"error": {"message": "Too hot at 10.0.0.2", "code": 400}})


@asked
@pytest.mark.parametrize("content", [HOT, f"data: {HOT}\n\n", "\n\nevent: error\n\n", "data: [DONE]\n\n"])
async def test_model_may_write_about_errors(target: Target, content: str, options: dict[str, object]) -> None:
    stream = HELLO + piece(content=content) + STOP + DONE
    model.script = said(HEAD, chunk(stream), LAST_CHUNK)

    answered = await target.chat(target.access(), stream=True, **options)

    assert (answered.whole, answered.body) == (True, stream)


@asked
@pytest.mark.parametrize(
    ("body", "passed"),
    [
        pytest.param(b"", b"", id="empty"),
        pytest.param(b"\n\n", b"\n\n", id="blank"),
        pytest.param(b": ping\n\n", b": ping\n\n", id="comment"),
        pytest.param(f"<html><h1>{TELLTALE}</h1></html>".encode(), b"", id="html"),
        pytest.param(TELLTALE.encode(), b"", id="text"),
        pytest.param(json.dumps(ERROR).encode(), b"", id="error"),
        pytest.param(b"data: " + TELLTALE.encode(), b"", id="text-in-an-event-without-an-end"),
        pytest.param(event(b"Hello"), event(b"Hello"), id="text-in-an-event"),
        pytest.param(event([[["Hello"]]]), event([[["Hello"]]]), id="nested-array-in-an-event"),
        pytest.param(b'{"choices": [{"message": {"content": "Hello"}}]}', b"", id="json"),
        pytest.param(b"\x16\x03\x01\x00\xff" * 100, b"", id="bytes"),
        pytest.param(STOP[:-3], b"", id="end-that-is-cut"),
        pytest.param(gzip.compress(HELLO + STOP + DONE, mtime=0), b"", id="gzip-that-nobody-mentions"),
    ],
)
async def test_stream_of_no_events_is_no_answer(
    target: Target, body: bytes, passed: bytes, options: dict[str, object]
) -> None:
    model.script = said(HEAD, *([chunk(body)] if body else []), LAST_CHUNK)

    answered = await target.chat(target.access(), stream=True, **options)

    assert farewell(answered, "upstream_error") == passed


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
