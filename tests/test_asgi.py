from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware._asgi import (
    answer_error,
    content_length,
    header_value,
    new_id,
    path_below,
    read_body,
    read_json,
    reject,
    route_path,
    serve,
    with_body,
    with_headers,
    with_route_path,
    without_headers,
)
from maas_middleware._forms import FormRequest
from maas_middleware.context import ensure_context, required
from maas_middleware.errors import (
    AccessDenied,
    MaaSError,
    NotFound,
    RateLimitExceeded,
    RequestTimeout,
    StoreUnavailable,
    UpstreamError,
)
from maas_middleware.testing.converse import converse, http_scope
from tests.parts import knock


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        pytest.param("/v1/models", "", "/v1/models", id="no-root"),
        pytest.param("/srv/v1/models", "/srv", "/v1/models", id="root-in-the-path"),
        pytest.param("/v1/models", "/srv", "/v1/models", id="root-absent-from-the-path"),
        pytest.param("/srv", "/srv", "/", id="nothing-left"),
        pytest.param("/srv/", "/srv/", "/", id="root-with-a-slash"),
        pytest.param("/srv/v1", "/srv/", "/v1", id="root-with-a-slash-before-more"),
        pytest.param("/v1/models", "/", "/v1/models", id="root-is-a-slash"),
        pytest.param("/v1x/models", "/v1", "/v1x/models", id="root-only-at-a-segment-boundary"),
        pytest.param("", "", "/", id="empty"),
    ],
)
def test_route_path_is_what_is_left_below_the_root(path: str, root: str, below: str) -> None:
    assert route_path(http_scope(path=path, root_path=root)) == below


def test_route_path_needs_no_root_in_the_scope() -> None:
    assert route_path({"type": "http", "path": "/v1/models"}) == "/v1/models"


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        pytest.param("/v1/tokens/abc", "", "/abc", id="routed-to"),
        pytest.param("/v1/tokens/abc", "/v1/tokens", "/abc", id="mounted-at"),
        pytest.param("/v1/tokens", "", "", id="itself"),
        pytest.param("/v1/tokens", "/v1/tokens", "/", id="itself-mounted"),
        pytest.param("/v1/tokensx", "", "/v1/tokensx", id="only-at-a-segment-boundary"),
        pytest.param("/v1/tokens/v1/tokens/abc", "", "/v1/tokens/abc", id="only-once"),
    ],
)
def test_path_below_a_collection_is_the_same_however_it_is_mounted(path: str, root: str, below: str) -> None:
    assert path_below(http_scope(path=path, root_path=root), "/v1/tokens") == below


@pytest.mark.parametrize(
    ("path", "root", "rewritten", "raw"),
    [
        pytest.param("/simulator/v1/x", "", "/v1/x", b"/v1/x", id="no-root"),
        pytest.param("/srv/simulator/v1/x", "/srv", "/srv/v1/x", b"/srv/v1/x", id="root-in-the-path"),
        pytest.param("/simulator/v1/x", "/srv", "/v1/x", b"/v1/x", id="root-absent-from-the-path"),
        pytest.param("/a b/ü/v1/x", "/a b", "/a b/v1/x", b"/a%20b/v1/x", id="raw-path-is-quoted"),
        pytest.param("/srv", "/srv", "/srv/v1/x", b"/srv/v1/x", id="root-alone"),
    ],
)
def test_another_route_path_stays_below_the_root(path: str, root: str, rewritten: str, raw: bytes) -> None:
    scope = http_scope(path=path, root_path=root)
    before = dict(scope)

    changed = with_route_path(scope, "/v1/x")

    assert (changed["path"], changed["raw_path"], changed["root_path"]) == (rewritten, raw, root)
    assert scope == before


@pytest.mark.parametrize(
    ("raw", "forwarded"),
    [
        pytest.param(b"/v1/x", b"/v1/x", id="as-it-is"),
        pytest.param(b"/v1/%78", b"/v1/x", id="written-otherwise"),
        pytest.param(None, b"/v1/x", id="unknown"),
    ],
)
def test_path_is_forwarded_as_it_was_matched_however_the_client_wrote_it(raw: bytes | None, forwarded: bytes) -> None:
    scope = http_scope(path="/v1/x")
    if raw is None:
        scope.pop("raw_path", None)
    else:
        scope["raw_path"] = raw

    changed = with_route_path(scope, "/v1/x")

    assert (changed["path"], changed["raw_path"]) == ("/v1/x", forwarded)
    assert scope.get("raw_path") == raw


def test_route_path_that_is_the_root_once_more_stays_below_it() -> None:
    scope = {"type": "http", "path": "/v1/x", "raw_path": b"/v1/x", "root_path": "/v1"}

    assert with_route_path(scope, "/v1/x")["path"] == "/v1/v1/x"


def test_headers_are_found_in_any_case_and_the_first_one_counts() -> None:
    headers = [(b"X-One", b"1"), (b"x-one", b"2")]

    assert header_value(headers, b"x-one") == b"1"
    assert header_value(headers, b"x-two") == b""


@pytest.mark.parametrize(
    ("value", "size"),
    [
        pytest.param(b"0", 0, id="nothing"),
        pytest.param(b"000000000000000007", 7, id="leading-zeros"),
        pytest.param(b"9" * 18, 10**18 - 1, id="18-digits"),
        pytest.param(b"0" * 18 + b"7", 10**18, id="19-digits"),
        pytest.param(b"9" * 5000, 10**18, id="5000-digits"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"-1", None, id="negative"),
        pytest.param(b"1_0", None, id="underscore"),
        pytest.param("\u0663".encode(), None, id="digits-of-others"),
    ],
)
def test_content_length_is_a_number_of_bounded_size(value: bytes, size: int | None) -> None:
    assert content_length([(b"host", b"x"), (b"Content-Length", value)]) == size


def test_content_length_that_is_not_there_is_unknown() -> None:
    assert content_length([(b"host", b"x")]) is None


def test_headers_are_taken_out_in_any_case_and_the_rest_keeps_its_order_and_duplicates() -> None:
    headers = ((b"set-cookie", b"a"), (b"X-Gone", b"1"), (b"set-cookie", b"b"), (b"x-gone", b"2"))

    assert without_headers(headers, b"x-gone", b"x-never-there") == [(b"set-cookie", b"a"), (b"set-cookie", b"b")]


def test_headers_of_ours_replace_those_of_the_same_name() -> None:
    headers = [(b"X-Ours", b"theirs"), (b"x-other", b"kept")]

    assert with_headers(headers, [(b"x-ours", b"1"), (b"x-new", b"2")]) == [
        (b"x-other", b"kept"),
        (b"x-ours", b"1"),
        (b"x-new", b"2"),
    ]
    assert headers == [(b"X-Ours", b"theirs"), (b"x-other", b"kept")]


async def echo_up_to_five_bytes(scope: Scope, receive: Receive, send: Send) -> None:
    async def respond(request: Request) -> Response:
        return Response(await read_body(request.receive, 5))

    await serve(scope, receive, send, respond)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"12345", id="whole"),
        pytest.param([b"1", b"", b"2345"], id="pieces"),
        pytest.param(b"", id="empty"),
    ],
)
async def test_body_is_read_whole(body: bytes | list[bytes]) -> None:
    answer = await converse(echo_up_to_five_bytes, "POST", body=body)

    assert answer.body == (body if isinstance(body, bytes) else b"".join(body))


async def test_body_message_without_keys_is_an_empty_last_one() -> None:
    async def receive() -> Message:
        return {"type": "http.request"}

    assert await read_body(receive, 5) == b""


@pytest.mark.parametrize(
    "body", [pytest.param(b"123456", id="whole"), pytest.param([b"123", b"456", b"never read"], id="pieces")]
)
async def test_body_over_the_limit_is_413_whatever_its_content_length_says(body: bytes | list[bytes]) -> None:
    answer = await converse(echo_up_to_five_bytes, "POST", headers=[("content-length", "1")], body=body)

    assert answer.status == 413
    assert answer.json()["error"]["code"] == "request_too_large"


async def test_body_over_the_limit_is_not_read_to_its_end() -> None:
    received = 0

    async def receive() -> Message:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b"123", "more_body": True}

    with pytest.raises(MaaSError):
        await read_body(receive, 5)

    assert received == 2


async def test_client_that_leaves_while_sending_its_body_gets_no_answer_and_is_no_error() -> None:
    answer = await converse(echo_up_to_five_bytes, "POST", body=[b"12"], leave_while_sending=True)

    assert answer.messages == []
    assert answer.exception is None


async def test_another_body_comes_with_its_own_headers_and_then_the_client_itself_is_heard() -> None:
    heard: list[Message] = []
    inner_headers: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given = list(scope["headers"])
        await read_body(receive, 100)
        inner_scope, inner_receive = with_body(scope, receive, b"other body")
        inner_headers.extend(inner_scope["headers"])
        heard.extend([await inner_receive(), await inner_receive(), await inner_receive()])
        assert scope["headers"] == given

    headers = [
        ("Content-Length", "4"),
        ("transfer-encoding", "chunked"),
        ("content-md5", "abc"),
        ("content-digest", "sha-256=:abc:"),
        ("content-encoding", "gzip"),
        ("content-type", "text/plain; charset=utf-7"),
        ("x-other", "kept"),
    ]
    await converse(app, "POST", headers=headers, body=b"body", leave_after=0)

    assert inner_headers == [
        (b"x-other", b"kept"),
        (b"content-type", b"application/json"),
        (b"content-length", b"10"),
    ]
    assert heard == [
        {"type": "http.request", "body": b"other body", "more_body": False},
        {"type": "http.disconnect"},
        {"type": "http.disconnect"},
    ]


async def test_request_is_judged_once_while_nobody_changes_its_body() -> None:
    judged: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = await read_json(scope, receive)
        judged.append(request)
        scope, receive = with_body(scope, receive, request.encoded)
        judged.append(await read_json(scope, receive))
        scope, receive = with_body(scope, receive, b'{"model":"b"}')
        judged.append(await read_json(scope, receive))
        assert ensure_context(scope).request is judged[2]

    await converse(app, "POST", json={"model": "a"})

    assert judged[1] is judged[0]
    assert [request.model for request in judged] == ["a", "a", "b"]


async def test_headers_that_describe_a_body_are_made_once_for_it() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, 100)
        outer, receive = with_body(scope, receive, body)
        same, receive = with_body(outer, receive, body)
        added = {**outer, "headers": [*outer["headers"], (b"content-length", b"1")]}
        scopes.extend([outer, same, with_body(added, receive, body)[0], with_body(outer, receive, b"{}")[0]])

    await converse(app, "POST", body=b"body")

    outer, same, added, other = scopes
    assert same is outer
    assert [value for name, value in added["headers"] if name == b"content-length"] == [b"4"]
    assert [value for name, value in other["headers"] if name == b"content-length"] == [b"2"]
    assert [value for name, value in outer["headers"] if name == b"content-length"] == [b"4"]


async def test_request_in_another_form_is_judged_anew() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ensure_context(scope).request = FormRequest.judge([("model", "form")])
        request = await read_json(scope, receive)
        assert (request.model, ensure_context(scope).request) == ("json", request)

    answer = await converse(app, "POST", json={"model": "json"})

    assert answer.exception is None


async def refuse(error: MaaSError, scope: Scope, receive: Receive, send: Send) -> None:
    ensure_context(scope).request_id = "req-1"
    await reject(scope, receive, send, error)


async def test_refusal_is_the_envelope_with_the_headers_of_the_error() -> None:
    error = RateLimitExceeded(details={"limit": "requests"}, headers=((b"retry-after", b"7"),))

    answer = await converse(lambda *asgi: refuse(error, *asgi))

    body = (
        b'{"error":{"message":"Rate limit exceeded","type":"rate_limit_error","param":null,'
        b'"code":"rate_limit_exceeded","details":{"limit":"requests"}}}'
    )
    assert answer.messages == [
        {
            "type": "http.response.start",
            "status": 429,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"retry-after", b"7"),
            ],
        },
        {"type": "http.response.body", "body": body},
    ]


@pytest.mark.parametrize(
    ("path", "root"),
    [
        pytest.param("/v1/messages", "", id="plain"),
        pytest.param("/v1/messages/count_tokens/", "", id="count-tokens"),
        pytest.param("/org/model/v1/messages", "", id="below-a-model"),
        pytest.param("/srv/v1/messages", "/srv", id="root-in-the-path"),
        pytest.param("/v1/messages", "/srv", id="root-absent-from-the-path"),
    ],
)
async def test_refusal_of_messages_is_in_the_shape_of_anthropic(path: str, root: str) -> None:
    answer = await converse(lambda *asgi: refuse(AccessDenied(), *asgi), "POST", path, scope={"root_path": root})

    assert (answer.status, answer.header("content-length")) == (403, str(len(answer.body)))
    assert answer.json() == {
        "type": "error",
        "error": {"type": "permission_error", "message": "Insufficient permissions for this model"},
        "request_id": "req-1",
    }


async def test_refusal_of_a_websocket_is_an_http_answer_where_the_server_can_deny() -> None:
    messages = await knock(lambda *asgi: refuse(AccessDenied(), *asgi))

    assert [message["type"] for message in messages] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert messages[0]["status"] == 403
    assert (b"content-type", b"application/json") in messages[0]["headers"]
    assert json.loads(messages[1]["body"])["error"]["code"] == "access_denied"


async def test_refusal_of_a_websocket_closes_it_where_the_server_cannot_deny() -> None:
    messages = await knock(lambda *asgi: refuse(AccessDenied("Not for you"), *asgi), can_deny=False)

    assert messages == [{"type": "websocket.close", "code": 1008, "reason": "Not for you"}]


async def test_reason_of_a_close_fits_into_its_frame_and_cuts_no_character() -> None:
    messages = await knock(lambda *asgi: refuse(AccessDenied("€" * 100), *asgi), can_deny=False)

    assert messages[0]["reason"] == "€" * 41  # 123 bytes, RFC 6455


async def test_server_that_names_no_extensions_is_one_without() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(AccessDenied("Not for you"), {**scope, "extensions": None}, receive, send)

    assert [message["type"] for message in await knock(app, can_deny=False)] == ["websocket.close"]


async def test_refusal_is_marked_as_ours_and_an_answered_failure_of_somebody_else_is_not() -> None:
    scope: Scope = http_scope()
    other: Scope = http_scope()

    await converse(lambda _, receive, send: reject(scope, receive, send, NotFound()))
    answer = await converse(lambda _, receive, send: answer_error(other, receive, send, UpstreamError()))

    assert ensure_context(scope).refusal == "not_found"
    assert ensure_context(other).refusal is None
    assert answer.status == 502


async def test_refusal_with_5xx_is_one_line_in_the_log_with_the_id_of_the_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = await converse(lambda *asgi: refuse(StoreUnavailable(), *asgi))

    assert answer.json()["error"]["message"].endswith("(request req-1)")
    assert answer.header("retry-after") == "2"
    assert [record.getMessage() for record in caplog.records] == ["answered 503 store_unavailable to request req-1"]


async def test_refusal_with_4xx_is_not_worth_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    await converse(lambda *asgi: refuse(NotFound(), *asgi))

    assert caplog.records == []


def endpoint(respond: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    return lambda scope, receive, send: serve(scope, receive, send, respond)


async def test_what_an_endpoint_returns_is_sent() -> None:
    async def respond(request: Request) -> Response:
        return JSONResponse({"path": request.url.path}, 201)

    answer = await converse(endpoint(respond), path="/v1/things")

    assert (answer.status, answer.json()) == (201, {"path": "/v1/things"})


async def test_what_an_endpoint_refuses_is_answered_as_ours() -> None:
    scope: Scope = http_scope()

    async def respond(request: Request) -> Response:
        raise NotFound("No such thing")

    answer = await converse(lambda _, receive, send: serve(scope, receive, send, respond))

    assert (answer.status, answer.json()["error"]["message"]) == (404, "No such thing")
    assert answer.exception is None
    assert ensure_context(scope).refusal == "not_found"


async def test_fault_of_an_endpoint_is_left_to_the_shells_outside() -> None:
    async def respond(request: Request) -> Response:
        raise ZeroDivisionError

    answer = await converse(endpoint(respond))

    assert answer.messages == []
    assert isinstance(answer.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("can_deny", "sent"),
    [
        pytest.param(True, ["websocket.http.response.start", "websocket.http.response.body"], id="can-deny"),
        pytest.param(False, ["websocket.close"], id="cannot-deny"),
    ],
)
async def test_endpoint_refuses_websockets(can_deny: bool, sent: list[str]) -> None:
    async def respond(request: Request) -> Response:
        return PlainTextResponse("never")

    messages = await knock(endpoint(respond), can_deny=can_deny)

    assert [message["type"] for message in messages] == sent


def test_what_an_outer_shell_left_is_returned() -> None:
    assert required("value", "InnerMiddleware", "thing", "OuterMiddleware") == "value"


def test_what_no_outer_shell_left_names_the_one_that_is_missing() -> None:
    with pytest.raises(LookupError, match=r"^InnerMiddleware needs to know the thing: wrap it in OuterMiddleware$"):
        required(None, "InnerMiddleware", "thing", "OuterMiddleware")


def test_new_ids_are_32_hexadecimal_digits_and_never_the_same() -> None:
    first, second = new_id(), new_id()

    assert len(first) == len(bytes.fromhex(first)) * 2 == 32
    assert first != second


async def test_body_that_does_not_come_in_time_is_408() -> None:
    pieces: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Message:
        if not pieces:
            await anyio.sleep_forever()
        return pieces.pop()

    with pytest.raises(RequestTimeout) as caught:
        await read_body(receive, 100, seconds=0.01)

    assert (caught.value.status, caught.value.type, caught.value.code) == (408, "timeout_error", "request_timeout")


async def test_body_that_comes_late_but_in_time_is_read_whole() -> None:
    pieces = [b"12", b"34", b"5"]

    async def receive() -> Message:
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    assert await read_body(receive, 5) == b"12345"


async def test_body_that_does_not_come_in_time_is_408_inside_of_a_scope_of_somebody_else() -> None:
    async def receive() -> Message:
        with anyio.move_on_after(20):
            await anyio.sleep_forever()
        raise AssertionError

    with pytest.raises(RequestTimeout):
        await read_body(receive, 100, seconds=0.01)


async def test_deadline_of_somebody_else_inside_of_receive_is_none_of_ours() -> None:
    messages: list[Message] = []

    async def receive() -> Message:
        with anyio.move_on_after(0.01):
            await anyio.sleep_forever()
        messages.append({"type": "http.request", "body": b"late"})
        return messages[-1]

    assert await read_body(receive, 100) == b"late"


@pytest.mark.parametrize("is_late", [False, True])
async def test_time_out_of_the_server_is_408_too(is_late: bool) -> None:
    async def receive() -> Message:
        if is_late:
            await anyio.lowlevel.checkpoint()
        raise TimeoutError

    with pytest.raises(RequestTimeout):
        await read_body(receive, 100)


@pytest.mark.parametrize("is_late", [False, True])
async def test_fault_of_the_server_is_not_hidden(is_late: bool) -> None:
    async def receive() -> Message:
        if is_late:
            await anyio.lowlevel.checkpoint()
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await read_body(receive, 100)


async def test_whoever_waits_for_a_body_can_be_cancelled_and_the_server_hears_of_it() -> None:
    heard: list[type[BaseException]] = []
    waits = anyio.Event()

    async def receive() -> Message:
        waits.set()
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            heard.append(type(error))
            raise
        raise AssertionError

    reading = asyncio.create_task(read_body(receive, 100))
    await waits.wait()
    reading.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reading
    assert heard == [asyncio.CancelledError]


async def test_server_that_only_lets_others_run_can_be_cancelled_too() -> None:
    waits = anyio.Event()

    async def receive() -> Message:
        for _ in range(100):
            waits.set()
            await asyncio.sleep(0)
        return {"type": "http.request"}

    reading = asyncio.create_task(read_body(receive, 100))
    await waits.wait()
    reading.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_server_that_needs_time_to_end_a_cancelled_receive_has_it() -> None:
    ended: list[str] = []

    async def receive() -> Message:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                ended.append("receive")
        raise AssertionError

    async with anyio.create_task_group() as group:
        group.start_soon(read_body, receive, 100)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()

    assert ended == ["receive"]
