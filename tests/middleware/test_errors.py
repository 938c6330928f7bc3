from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pytest
from fastapi import FastAPI, HTTPException
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.context import ensure_context, get_context
from maas_middleware.endpoints import CHAT_COMPLETIONS
from maas_middleware.errors import MaaSError, RateLimitExceeded, UpstreamError, UpstreamTimeout
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.testing.converse import converse, http_scope
from tests.parts import (
    AS_ALICE,
    EVENT_STREAM,
    Answering,
    PassingOn,
    identified,
    json_answer,
    knock,
    last,
    piece,
    start,
    start_up,
    starting_up,
    watched,
)
from tests.servers import serving

FRESH = "0123456789abcdef"
INTERNAL = {
    "message": f"Internal error (request {FRESH})",
    "type": "server_error",
    "param": None,
    "code": "internal_error",
}


def enveloped(app: ASGIApp) -> ErrorEnvelopeMiddleware:
    return ErrorEnvelopeMiddleware(app, id_factory=lambda: FRESH)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "maas_middleware"]


@pytest.mark.parametrize(
    "given", [pytest.param("req-1_A.b", id="all-kinds-of-characters"), pytest.param("a" * 64, id="longest")]
)
async def test_id_of_the_client_is_echoed_and_the_app_sees_a_fresh_one(given: str) -> None:
    app = Answering(*json_answer(b"{}"))

    answer = await converse(enveloped(app), headers=[("X-Request-ID", given)])

    assert answer.header("x-request-id") == given
    assert app.headers == [(b"x-request-id", FRESH.encode())]
    assert get_context(app.scopes[0]).request_id == given


@pytest.mark.parametrize(
    "given",
    [
        pytest.param([], id="none"),
        pytest.param([""], id="empty"),
        pytest.param(["a" * 65], id="too-long"),
        pytest.param(["a b"], id="blank"),
        pytest.param(["a/b"], id="slash"),
        pytest.param(["ü"], id="not-ascii"),
        pytest.param(["one", "two"], id="repeated"),
    ],
)
async def test_id_that_the_client_does_not_give_properly_is_a_fresh_one(given: list[str]) -> None:
    app = Answering(*json_answer(b"{}"))

    answer = await converse(enveloped(app), headers=[("x-request-id", value) for value in given])

    assert answer.header("x-request-id") == FRESH
    assert app.headers == [(b"x-request-id", FRESH.encode())]


async def test_ids_are_never_the_same_twice() -> None:
    app = ErrorEnvelopeMiddleware(Answering(*json_answer(b"{}")))

    ids = {(await converse(app)).header("x-request-id") for _ in range(3)}

    assert len(ids) == 3


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([start(200, (b"x-request-id", b"theirs")), last(b"{}")], id="answer"),
        pytest.param([start(400, (b"x-request-id", b"theirs")), last(b"{}")], id="error"),
    ],
)
async def test_id_stands_once_where_the_app_sets_its_own(messages: list[Message]) -> None:
    answer = await converse(enveloped(Answering(*messages)))

    assert answer.header("x-request-id") == FRESH


async def test_scope_of_the_server_keeps_its_headers() -> None:
    scope = http_scope(headers=[("x-request-id", "client")])

    await converse(lambda _, receive, send: enveloped(Answering(*json_answer(b"{}")))(scope, receive, send))

    assert scope["headers"] == [(b"x-request-id", b"client")]


async def test_answer_passes_message_by_message() -> None:
    messages = [EVENT_STREAM, piece(b"data: 1\n\n"), piece(b""), piece(b"data: 2\n\n"), last()]

    answer = await converse(enveloped(Answering(*messages)))

    with_id = [*EVENT_STREAM["headers"], (b"x-request-id", FRESH.encode())]
    assert answer.messages == [{**EVENT_STREAM, "headers": with_id}, *messages[1:]]


async def test_nothing_of_an_answer_is_held_back() -> None:
    reached: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for count, message in enumerate([EVENT_STREAM, piece(b"data: 1\n\n"), last()], 1):
            await send(message)
            assert len(reached) == count

    answer = await converse(watched(enveloped(app), reached.append))

    assert answer.exception is None


@pytest.mark.parametrize("size", [pytest.param(2, id="few-bytes"), pytest.param(100_000, id="many-bytes")])
async def test_what_was_sent_is_not_kept(size: int) -> None:
    kept: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENT_STREAM)
        body = bytes(size)
        before = sys.getrefcount(body)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        kept.append(sys.getrefcount(body) - before)
        await send(last())

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        pass

    await enveloped(app)(http_scope(), receive, send)

    assert kept == [0]


async def test_response_that_an_app_reuses_does_not_grow() -> None:
    good, bad = JSONResponse({"ok": True}), JSONResponse({"detail": "no"}, 400)

    answers = [[await converse(enveloped(app)) for _ in range(3)] for app in (good, bad)]

    for first, second, third in answers:
        assert first.messages == second.messages == third.messages
        assert [name for name, _ in third.headers].count("x-request-id") == 1
    assert [name for name, _ in good.raw_headers] == [name for name, _ in bad.raw_headers]


REFUSED = "The model refused the request"


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        pytest.param(
            400,
            b'{"error":{"message":"too long","type":"BadRequestError","param":"prompt","code":400}}',
            {"message": "too long", "type": "invalid_request_error", "param": "prompt", "code": "invalid_request"},
            id="vllm-with-a-code-that-is-a-number",
        ),
        pytest.param(
            404,
            b'{"error":{"message":"`/models/x` does not exist. Aliases: a","type":"NotFoundError","code":404}}',
            {
                "message": "The model does not exist",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            },
            id="unknown-model-names-no-paths",
        ),
        pytest.param(
            404,
            b'{"detail":"Not Found"}',
            {"message": "Not Found", "type": "invalid_request_error", "param": None, "code": "not_found"},
            id="starlette-detail",
        ),
        pytest.param(
            401,
            b'{"error":"Unauthorized"}',
            {"message": "Unauthorized", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"},
            id="error-that-is-a-string",
        ),
        pytest.param(
            400,
            b"<html>Bad Request</html>",
            {"message": REFUSED, "type": "invalid_request_error", "param": None, "code": "invalid_request"},
            id="html",
        ),
        pytest.param(
            413,
            b"\xff\xfe",
            {"message": REFUSED, "type": "invalid_request_error", "param": None, "code": "request_too_large"},
            id="not-even-text",
        ),
        pytest.param(
            429,
            b"",
            {"message": REFUSED, "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"},
            id="empty",
        ),
        pytest.param(
            400,
            b'{"type":"error","error":{"type":"BadRequestError","message":"max_tokens: Field required"}}',
            {
                "message": "max_tokens: Field required",
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_request",
            },
            id="shape-of-anthropic",
        ),
        pytest.param(500, b"Traceback: http://10.0.0.1:8000 fell over", INTERNAL, id="plain-text-500"),
    ],
)
async def test_error_of_the_inner_app_is_translated(status: int, body: bytes, error: dict[str, object]) -> None:
    answer = await converse(enveloped(Answering(start(status, (b"content-type", b"text/plain")), last(body))))

    assert (answer.status, answer.json()) == (status, {"error": error})
    assert answer.header("content-type") == "application/json"
    assert answer.header("content-length") == str(len(answer.body))
    assert len(answer.messages) == 2


DETAIL = {"message": "no", "type": "invalid_request_error", "param": None, "code": "invalid_request"}


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([start(400), piece(b'{"det'), piece(b""), last(b'ail":"no"}')], id="chunked"),
        pytest.param([start(400), piece(b'{"detail":"no"}'), last()], id="with-an-empty-last-piece"),
        pytest.param([start(400), piece(b'{"detail":"no"}')], id="never-ended"),
        pytest.param([{"type": "http.response.start", "status": 400}, last(b'{"detail":"no"}')], id="without-headers"),
        pytest.param([{**start(400), "headers": ()}, last(b'{"detail":"no"}')], id="headers-as-a-tuple"),
    ],
)
async def test_error_is_translated_whatever_its_messages_look_like(messages: list[Message]) -> None:
    answer = await converse(enveloped(Answering(*messages)))

    assert (answer.status, answer.json()) == (400, {"error": DETAIL})
    assert answer.complete


async def test_translated_error_leaves_before_the_app_is_done_with_its_background_tasks() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(400))
        await send(last(b'{"detail":"no"}'))
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        assert await receive() == {"type": "http.disconnect"}  # the answer is complete

    with anyio.fail_after(5):
        answer = await converse(enveloped(app))

    assert (answer.status, answer.json(), answer.exception) == (400, {"error": DETAIL}, None)


async def test_error_without_a_body_message_is_translated() -> None:
    answer = await converse(enveloped(Answering(start(404))))

    assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")


async def test_error_over_64_kib_loses_its_message_and_not_its_status() -> None:
    body = json.dumps({"detail": "x" * 70_000}).encode()
    pieces = [piece(body[cut : cut + 999]) for cut in range(0, len(body), 999)]

    answer = await converse(enveloped(Answering(start(400), *pieces, last())))

    assert (answer.status, answer.json()["error"]["message"]) == (400, REFUSED)


async def test_translated_error_keeps_the_headers_that_do_not_describe_its_body() -> None:
    headers = [
        (b"Content-Encoding", b"gzip"),
        (b"etag", b"abc"),
        (b"content-length", b"3"),
        (b"content-type", b"text/html"),
        (b"allow", b"GET"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
    ]

    answer = await converse(enveloped(Answering(start(405, *headers), last(b"no!"))))

    assert answer.headers == [
        ("allow", "GET"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-request-id", FRESH),
        ("content-type", "application/json"),
        ("content-length", str(len(answer.body))),
    ]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [pytest.param([], "2", id="none"), pytest.param([(b"retry-after", b"30")], "30", id="the-apps-own")],
)
async def test_503_says_when_to_come_back(headers: list[tuple[bytes, bytes]], expected: str) -> None:
    answer = await converse(enveloped(Answering(start(503, *headers), last(b"down"))))

    assert answer.header("retry-after") == expected
    assert answer.json()["error"]["code"] == "upstream_unavailable"


async def test_overloaded_model_is_503() -> None:
    overloaded = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'

    answer = await converse(enveloped(Answering(start(529), last(overloaded))))

    assert (answer.status, answer.json()["error"]["code"]) == (503, "upstream_unavailable")
    assert answer.header("retry-after") == "2"


MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"


@pytest.mark.parametrize(
    ("app", "status", "error"),
    [
        pytest.param(
            Answering(start(400), last(b'{"type":"error","error":{"type":"BadRequestError","message":"no"}}')),
            400,
            {"type": "invalid_request_error", "message": "no"},
            id="refusal-of-the-app",
        ),
        pytest.param(
            Answering(start(404), last(b'{"error":{"message":"The model `/m` does not exist","code":404}}')),
            404,
            {"type": "not_found_error", "message": "The model does not exist"},
            id="unknown-model",
        ),
        pytest.param(
            Answering(start(529), last(b"Overloaded")),
            503,
            {"type": "overloaded_error", "message": f"The model is not available at the moment (request {FRESH})"},
            id="overloaded",
        ),
        pytest.param(
            Answering(raises=RateLimitExceeded(details={"limit": "tokens"})),
            429,
            {"type": "rate_limit_error", "message": "Rate limit exceeded", "details": {"limit": "tokens"}},
            id="refusal-of-ours",
        ),
        pytest.param(
            Answering(),
            500,
            {"type": "api_error", "message": f"Internal error (request {FRESH})"},
            id="no-answer",
        ),
        pytest.param(
            identified(Answering()),
            401,
            {
                "type": "authentication_error",
                "message": "Invalid authentication token",
                "details": {"reason": "missing"},
            },
            id="missing-credential",
        ),
    ],
)
@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens/", f"/org/model{MESSAGES}"])
async def test_error_on_messages_is_in_the_shape_of_anthropic(
    app: ASGIApp, status: int, error: dict[str, object], path: str
) -> None:
    answer = await converse(enveloped(app), "POST", path)

    assert answer.status == status
    assert answer.json() == {"type": "error", "error": error, "request_id": FRESH}
    assert answer.header("content-type") == "application/json"
    assert answer.header("content-length") == str(len(answer.body))
    assert (answer.header("request-id"), answer.header("x-request-id")) == (FRESH, FRESH)


async def test_id_on_messages_stands_in_the_header_that_anthropic_reads_too() -> None:
    theirs = [(b"request-id", b"theirs"), (b"x-request-id", b"theirs")]
    app = enveloped(Answering(start(200, *theirs), last(b"{}")))

    messages = await converse(app, "POST", MESSAGES, headers=[("x-request-id", "mine")])
    others = await converse(app, "POST", CHAT_COMPLETIONS, headers=[("x-request-id", "mine")])

    assert messages.headers == [("x-request-id", "mine"), ("request-id", "mine")]
    assert others.headers == [("request-id", "theirs"), ("x-request-id", "mine")]


async def test_error_of_fastapi_is_translated() -> None:
    app = FastAPI()

    @app.get("/teapot")
    async def teapot(size: int) -> None:
        raise HTTPException(418, "short and stout", headers={"x-spout": "left"})

    raised = await converse(enveloped(app), path="/teapot", scope={"query_string": b"size=1"})
    invalid = await converse(enveloped(app), path="/teapot")

    assert (raised.status, raised.json()["error"]["message"]) == (418, "short and stout")
    assert raised.header("x-spout") == "left"
    assert (invalid.status, invalid.json()["error"]["message"]) == (422, "Field required")


async def test_refusal_of_our_own_passes_as_it_is() -> None:
    answer = await converse(enveloped(identified(Answering())))

    assert answer.status == 401
    assert answer.body == (
        b'{"error":{"message":"Invalid authentication token","type":"invalid_request_error","param":null,'
        b'"code":"invalid_api_key","details":{"reason":"missing"}}}'
    )
    assert answer.headers == [
        ("content-type", "application/json"),
        ("content-length", str(len(answer.body))),
        ("www-authenticate", "Bearer"),
        ("x-request-id", FRESH),
    ]


async def test_refusal_of_our_own_passes_as_it_is_through_base_http_middleware() -> None:
    answer = await converse(enveloped(PassingOn(identified(Answering()))))

    assert (answer.status, answer.json()["error"]["details"]) == (401, {"reason": "missing"})
    assert answer.header("x-request-id") == FRESH


@pytest.mark.parametrize("status", [pytest.param(401, id="401"), pytest.param(403, id="403")])
async def test_app_that_refuses_our_credential_is_502_for_a_caller_whose_own_was_right(status: int) -> None:
    begin = start(status, (b"www-authenticate", b"Bearer"), (b"x-other", b"kept"))

    answer = await converse(enveloped(identified(Answering(begin, last(b"whose key is this?")))), headers=[AS_ALICE])

    assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert [name for name, _ in answer.headers] == ["x-other", "x-request-id", "content-type", "content-length"]


async def test_app_that_refuses_the_callers_own_credential_says_how_to_authenticate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begin = start(401, (b"www-authenticate", b"Basic"))

    answer = await converse(enveloped(Answering(begin, last(b'{"error":"Unauthorized"}'))))

    assert (answer.status, answer.header("www-authenticate")) == (401, "Basic")
    assert lines(caplog) == []


async def test_other_errors_of_an_app_are_its_own_for_a_caller_who_is_known() -> None:
    app = enveloped(identified(Answering(start(400), last(b'{"detail":"no"}'))))

    answer = await converse(app, headers=[AS_ALICE])

    assert (answer.status, answer.json()) == (400, {"error": DETAIL})


async def test_error_answer_to_head_has_no_more_than_its_headers_to_say() -> None:
    answer = await converse(enveloped(Answering(start(404), last())), "HEAD")

    assert (answer.status, answer.header("content-type")) == (404, "application/json")


async def test_exception_is_500_in_the_envelope_and_raised_again(caplog: pytest.LogCaptureFixture) -> None:
    fault = ZeroDivisionError("secret detail")

    answer = await converse(enveloped(Answering(raises=fault)))

    assert (answer.status, answer.json()) == (500, {"error": INTERNAL})
    assert answer.header("x-request-id") == FRESH
    assert answer.exception is fault
    assert lines(caplog) == [f"answered 500 internal_error to request {FRESH}"]


async def test_exception_after_the_start_of_an_error_is_one_answer() -> None:
    answer = await converse(enveloped(Answering(start(400), piece(b"half"), raises=ZeroDivisionError())))

    assert (answer.status, answer.json()) == (500, {"error": INTERNAL})
    assert isinstance(answer.exception, ZeroDivisionError)


async def test_exception_that_the_app_answered_itself_is_one_answer() -> None:
    app = FastAPI()

    @app.get("/")
    async def fault() -> None:
        raise ZeroDivisionError

    answer = await converse(enveloped(app))

    assert (answer.status, answer.json()) == (500, {"error": INTERNAL})
    assert isinstance(answer.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "wrapped",
    [
        pytest.param(lambda error: error, id="bare"),
        pytest.param(lambda error: ExceptionGroup("", [error]), id="in-a-group"),
        pytest.param(lambda error: ExceptionGroup("", [ExceptionGroup("", [error])]), id="in-two-groups"),
    ],
)
async def test_error_of_ours_that_is_raised_is_answered_with_its_status_and_headers(
    wrapped: Callable[[Exception], Exception],
) -> None:
    error = RateLimitExceeded(details={"limit": "tokens"}, headers=((b"retry-after", b"3"),))

    answer = await converse(enveloped(Answering(raises=wrapped(error))))

    assert (answer.status, answer.header("retry-after")) == (429, "3")
    assert answer.json()["error"]["details"] == {"limit": "tokens"}
    assert answer.exception is None


async def test_several_errors_at_once_are_a_fault() -> None:
    group = ExceptionGroup("", [RateLimitExceeded(), ZeroDivisionError()])

    answer = await converse(enveloped(Answering(raises=group)))

    assert (answer.status, answer.json()) == (500, {"error": INTERNAL})
    assert answer.exception is group


async def test_app_that_forgets_to_answer_is_500_in_the_envelope() -> None:
    answer = await converse(enveloped(Answering()))

    assert (answer.status, answer.json(), answer.exception) == (500, {"error": INTERNAL}, None)


def broken_event(code: str, message: str) -> bytes:
    error = {"message": f"{message} (request {FRESH})", "type": "server_error", "param": None, "code": code}
    return b"data: " + json.dumps({"error": error}, separators=(",", ":")).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("sent", "separator"),
    [
        pytest.param([], b"", id="before-the-first-byte"),
        pytest.param([b"data: 1\n\n"], b"", id="between-events"),
        pytest.param([b"data: 1\n", b"\n"], b"", id="between-events-by-two-pieces"),
        pytest.param([b"data: 1\r\n\r\n"], b"", id="between-events-crlf"),
        pytest.param([b"data: 1\r\r"], b"", id="between-events-cr"),
        pytest.param([b"data: 1\n\r\n"], b"", id="between-events-lf-crlf"),
        pytest.param([b"data: 1\r\r\n"], b"", id="between-events-cr-crlf"),
        pytest.param([b"data: 1\r\n\r"], b"", id="between-events-half-a-crlf"),
        pytest.param([b"data: 1\n\n", b"data: {"], b"\n\n", id="inside-a-line"),
        pytest.param([b"data: 1\n"], b"\n\n", id="behind-a-line"),
        pytest.param([b"data: 1\r\n"], b"\n\n", id="behind-a-line-crlf"),
        pytest.param([b"data: 1\r"], b"\n\n", id="behind-a-line-cr"),
        pytest.param([b"\r\n"], b"", id="behind-an-empty-line"),
    ],
)
async def test_event_stream_that_fails_gets_an_error_event_and_no_end(sent: list[bytes], separator: bytes) -> None:
    app = Answering(EVENT_STREAM, *map(piece, sent), raises=ZeroDivisionError())

    answer = await converse(enveloped(app))

    assert answer.status == 200
    assert answer.chunks == [*sent, separator + broken_event("internal_error", "Internal error")]
    assert not answer.complete
    assert isinstance(answer.exception, ZeroDivisionError)


async def test_error_of_ours_in_a_stream_is_one_line_in_the_log_and_not_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Answering(EVENT_STREAM, piece(b"data: 1\n\n"), raises=UpstreamTimeout())

    answer = await converse(enveloped(app))

    assert answer.chunks[1:] == [broken_event("upstream_timeout", "The model took too long to answer")]
    assert not answer.complete
    assert answer.exception is None
    assert lines(caplog) == [f"broke off the answer to request {FRESH}: upstream_timeout"]
    assert caplog.records[0].exc_info is None


@pytest.mark.parametrize("http", [pytest.param("h11", id="h11"), pytest.param("httptools", id="httptools")])
async def test_server_breaks_a_failed_stream_off_behind_the_error_event(http: str) -> None:
    app = Answering(EVENT_STREAM, piece(b"data: 1\n\n"), raises=UpstreamTimeout())
    received: list[bytes] = []

    async def read(url: str) -> None:
        async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
            async for chunk in response.aiter_raw():
                received.append(chunk)

    async with serving(enveloped(app), http=http, lifespan="off") as url:
        with pytest.raises(httpx.RemoteProtocolError):
            await read(url)

    event = broken_event("upstream_timeout", "The model took too long to answer")
    assert b"".join(received) == b"data: 1\n\n" + event


def failing_after(events: int, error: Exception) -> ASGIApp:
    """An app whose stream breaks off after so many events, as far as an inner shell has seen."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENT_STREAM)
        ensure_context(scope).events = events
        raise error

    return app


@pytest.mark.parametrize(
    ("path", "event"),
    [
        pytest.param(
            MESSAGES,
            b'event: error\ndata: {"type":"error","error":{"type":"timeout_error",'
            b'"message":"The model took too long to answer (request 0123456789abcdef)"},'
            b'"request_id":"0123456789abcdef"}\n\n',
            id="messages",
        ),
        pytest.param(
            f"/org/model{RESPONSES}",
            b'event: error\ndata: {"type":"error","code":"upstream_timeout",'
            b'"message":"The model took too long to answer (request 0123456789abcdef)","param":null,'
            b'"sequence_number":7}\n\n',
            id="responses",
        ),
        pytest.param(
            CHAT_COMPLETIONS, broken_event("upstream_timeout", "The model took too long to answer"), id="chat"
        ),
    ],
)
async def test_event_of_a_broken_stream_is_that_of_its_dialect(path: str, event: bytes) -> None:
    answer = await converse(enveloped(failing_after(7, UpstreamTimeout())), "POST", path)

    assert answer.chunks == [event]
    assert not answer.complete


async def test_stream_that_an_app_leaves_unended_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    answer = await converse(enveloped(Answering(EVENT_STREAM, piece(b"data: 1\n\n"))))

    assert (answer.chunks, answer.complete, answer.exception) == ([b"data: 1\n\n"], False, None)
    assert lines(caplog) == []


async def test_event_stream_is_known_in_any_case() -> None:
    begin = start(200, (b"content-type", b"Text/Event-Stream"))

    answer = await converse(enveloped(Answering(begin, raises=UpstreamError())))

    assert answer.chunks == [broken_event("upstream_error", "The model failed to answer")]


async def test_answer_that_is_no_event_stream_is_only_cut(caplog: pytest.LogCaptureFixture) -> None:
    begin = start(200, (b"content-type", b"application/json"))

    answer = await converse(enveloped(Answering(begin, piece(b'{"a":'), raises=UpstreamError())))

    assert answer.chunks == [b'{"a":']
    assert not answer.complete
    assert answer.exception is None
    assert lines(caplog) == [f"broke off the answer to request {FRESH}: upstream_error"]


@pytest.mark.parametrize("fault", [pytest.param(ZeroDivisionError(), id="any"), pytest.param(MaaSError(), id="ours")])
async def test_exception_after_the_end_is_raised_and_changes_nothing(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await converse(enveloped(Answering(*json_answer(b"{}"), raises=fault)))

    assert (answer.status, answer.body, answer.complete) == (200, b"{}", True)
    assert answer.exception is fault
    assert lines(caplog) == []


async def test_cancelled_stream_says_so_before_it_breaks_off(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENT_STREAM)
        group.cancel_scope.cancel()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        await converse(enveloped(app))

    assert group.cancel_scope.cancelled_caught
    assert lines(caplog) == ["broke off the answer to request 0123456789abcdef: upstream_unavailable"]


async def listen_and_raise(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise UpstreamError


async def listen_and_return(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.mark.parametrize(
    "header", [(b"content-encoding", b"gzip"), (b"content-length", b"20")], ids=["compressed", "of-known-length"]
)
async def test_event_stream_that_nothing_can_be_added_to_is_only_broken_off(header: tuple[bytes, bytes]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), header]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"\x1f\x8b", "more_body": True})
        raise UpstreamError

    answer = await converse(enveloped(app))

    assert answer.chunks == [b"\x1f\x8b"]
    assert not answer.complete


@pytest.mark.parametrize(
    "app", [pytest.param(listen_and_raise, id="raises"), pytest.param(listen_and_return, id="returns")]
)
async def test_client_that_left_is_not_answered(app: ASGIApp, caplog: pytest.LogCaptureFixture) -> None:
    answer = await converse(enveloped(app), "POST", body=b"{}", leave_after=0)

    assert answer.messages == []
    assert answer.exception is None
    assert lines(caplog) == []


async def test_client_that_left_a_server_of_asgi_2_4_is_not_sent_an_event(caplog: pytest.LogCaptureFixture) -> None:
    app = Answering(EVENT_STREAM, piece(b"data: 1\n\n"), piece(b"data: 2\n\n"), last())

    answer = await converse(enveloped(app), leave_after=1, scope={"asgi": {"version": "3.0", "spec_version": "2.4"}})

    assert answer.chunks == [b"data: 1\n\n"]
    assert isinstance(answer.exception, OSError)
    assert lines(caplog) == []


async def test_messages_that_we_do_not_know_pass_and_trailers_stay_announced() -> None:
    hint: Message = {"type": "http.response.early_hint", "links": [b"</style.css>"]}
    trailers: Message = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]}
    begin = start(200, trailers=True)
    offered: dict[str, object] = {"extensions": {hint["type"]: {}, trailers["type"]: {}}}

    answer = await converse(enveloped(Answering(hint, begin, last(b"done"), trailers)), scope=offered)

    begin_with_id = {**begin, "headers": [(b"x-request-id", FRESH.encode())]}
    assert answer.messages == [hint, begin_with_id, last(b"done"), trailers]
    assert answer.complete


async def test_trailers_of_a_translated_error_go_with_its_body() -> None:
    trailers: Message = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]}
    messages = [start(400, trailers=True), last(b'{"detail":"no"}'), trailers]

    answer = await converse(enveloped(Answering(*messages)), scope={"extensions": {"http.response.trailers": {}}})

    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.body"]
    assert "trailers" not in answer.messages[0]
    assert answer.json() == {"error": DETAIL}


async def test_messages_that_we_do_not_know_pass_within_an_error() -> None:
    debug: Message = {"type": "http.response.debug", "info": {}}

    answer = await converse(
        enveloped(Answering(start(400), debug, last(b'{"detail":"no"}'))),
        scope={"extensions": {"http.response.debug": {}}},
    )

    assert answer.messages[0] == debug
    assert answer.json() == {"error": DETAIL}


async def test_error_page_that_the_server_would_send_from_a_file_is_translated(tmp_path: Path) -> None:
    page = tmp_path / "404.html"
    page.write_text("<h1>Gone</h1>")
    app = FileResponse(page, 404, media_type="text/html")

    answer = await converse(enveloped(app), scope={"extensions": {"http.response.pathsend": {}}})

    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.body"]
    assert answer.json()["error"]["code"] == "not_found"


async def test_file_that_the_server_sends_is_whole(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<h1>Here</h1>")

    app = Answering(start(), {"type": "http.response.pathsend", "path": str(page)}, raises=MaaSError())

    answer = await converse(enveloped(app), scope={"extensions": {"http.response.pathsend": {}}})

    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.pathsend"]
    assert isinstance(answer.exception, MaaSError)


async def test_lifespan_passes() -> None:
    assert await start_up(enveloped(starting_up)) == [{"type": "lifespan.startup.complete"}]


async def test_denied_websocket_carries_the_id() -> None:
    messages = await knock(enveloped(identified(Answering())), headers=[("x-request-id", "mine")])

    assert (messages[0]["type"], messages[0]["status"]) == ("websocket.http.response.start", 401)
    assert messages[0]["headers"].count((b"x-request-id", b"mine")) == 1
    assert json.loads(messages[1]["body"])["error"]["details"] == {"reason": "missing"}


async def test_denied_websocket_is_closed_where_the_server_cannot_deny() -> None:
    messages = await knock(enveloped(identified(Answering())), can_deny=False)

    assert messages == [{"type": "websocket.close", "code": 1008, "reason": "Invalid authentication token"}]


async def test_accepted_websocket_carries_the_id_and_the_app_sees_a_fresh_one() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await send({"type": "websocket.accept", "headers": [(b"x-request-id", b"theirs"), (b"x-other", b"kept")]})
        await send({"type": "websocket.close"})

    messages = await knock(enveloped(app), headers=[("x-request-id", "mine")])

    assert messages == [
        {"type": "websocket.accept", "headers": [(b"x-other", b"kept"), (b"x-request-id", b"mine")]},
        {"type": "websocket.close"},
    ]
    assert seen[0]["headers"] == [(b"x-request-id", FRESH.encode())]


async def test_plain_text_answer_without_an_error_stays_plain_text() -> None:
    answer = await converse(enveloped(PlainTextResponse("hello")))

    assert (answer.header("content-type"), answer.body) == ("text/plain; charset=utf-8", b"hello")


async def test_translated_5xx_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    await converse(enveloped(Answering(start(502), last(b"<html>"))))

    assert lines(caplog) == [f"answered 502 upstream_error to request {FRESH}"]


def raising(app: ASGIApp, error: Exception) -> ASGIApp:
    """The app inside a middleware that refuses a body by an exception."""

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def refusing_receive() -> Message:
            raise error

        await app(scope, refusing_receive, send)

    return outer


@pytest.mark.parametrize(
    ("status", "code"), [(413, "request_too_large"), (429, "rate_limit_exceeded"), (400, "invalid_request")]
)
async def test_refusal_that_a_middleware_outside_raises_is_told_in_the_envelope(status: int, code: str) -> None:
    app = raising(ErrorEnvelopeMiddleware(Answering()), HTTPException(status, "not this"))

    answer = await converse(app)

    assert (answer.status, answer.json()["error"]["code"], answer.exception) == (status, code, None)


async def test_failure_that_a_middleware_outside_raises_is_one() -> None:
    app = raising(ErrorEnvelopeMiddleware(Answering()), HTTPException(503, "10.1.2.3"))

    answer = await converse(app)

    assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "10.1.2.3" not in str(answer.json())


@pytest.mark.parametrize("status", [204, 304, 307])
async def test_http_exception_that_is_no_error_is_an_internal_error_when_nobody_handles_it(status: int) -> None:
    app = raising(ErrorEnvelopeMiddleware(Answering()), HTTPException(status, headers={"location": "/login"}))

    assert (await converse(app)).status == 500


async def test_http_exception_beside_the_app_keeps_its_headers() -> None:
    error = HTTPException(429, "slow", headers={"Retry-After": "7", "content-length": "1"})

    answer = await converse(raising(ErrorEnvelopeMiddleware(Answering()), error))

    assert (answer.status, dict(answer.headers)["retry-after"]) == (429, "7")


async def test_unauthorized_that_is_raised_beside_the_app_does_not_ask_for_another_credential() -> None:
    error = HTTPException(401, "who?", headers={"www-authenticate": "Basic"})

    answer = await converse(raising(ErrorEnvelopeMiddleware(Answering()), error))

    assert (answer.status, answer.header("www-authenticate")) == (502, None)
