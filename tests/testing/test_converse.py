from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from maas_middleware.testing.converse import GrammarError, converse, http_scope
from tests.parts import Answering, last, piece, start

EXTENSIONS = ("early_hint", "trailers", "pathsend")
OFFERED: dict[str, Any] = {"extensions": {f"http.response.{name}": {} for name in EXTENSIONS}}
TRAILERS: Message = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]}
PATH: Message = {"type": "http.response.pathsend", "path": "/tmp/file"}


def length(count: int) -> tuple[bytes, bytes]:
    return (b"content-length", str(count).encode())


async def test_app_gets_a_scope_as_a_server_makes_it() -> None:
    app = Answering(start(), last())

    await converse(
        app, "POST", "/a b/ü", headers=[("X-Name", "wörth")], scope={"root_path": "/a b", "query_string": b"q=1"}
    )

    assert app.scopes[0] == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/a b/ü",
        "raw_path": b"/a%20b/%C3%BC",
        "query_string": b"q=1",
        "root_path": "/a b",
        "headers": [(b"X-Name", "wörth".encode("latin-1"))],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        "state": {},
    }


async def test_a_token_is_sent_as_a_bearer_and_the_headers_beside_it() -> None:
    app = Answering(start(), last())

    await converse(app, "POST", token="alice-token", headers=[("accept", "*/*")], json={})

    assert app.headers == [
        (b"authorization", b"Bearer alice-token"),
        (b"accept", b"*/*"),
        (b"content-type", b"application/json"),
    ]


def test_scope_takes_more_keys_and_replaces_its_own() -> None:
    scope = http_scope(root_path="/srv", query_string=b"a=1", client=None, extensions={})

    assert (scope["root_path"], scope["query_string"]) == ("/srv", b"a=1")
    assert (scope["client"], scope["extensions"]) == (None, {})


async def receive_all(scope: Scope, receive: Receive, send: Send) -> None:
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    await JSONResponse([[message["body"].decode(), message["more_body"]] for message in messages])(scope, receive, send)


@pytest.mark.parametrize(
    ("body", "received"),
    [
        pytest.param(b"", [["", False]], id="none"),
        pytest.param(b"whole", [["whole", False]], id="whole"),
        pytest.param([b"in ", b"", b"pieces"], [["in ", True], ["", True], ["pieces", False]], id="pieces"),
    ],
)
async def test_app_gets_the_body_in_messages(body: bytes | Sequence[bytes], received: list[list[object]]) -> None:
    answer = await converse(receive_all, "POST", body=body)

    assert answer.json() == received


async def test_json_is_sent_with_its_content_type() -> None:
    app = Answering(start(), last())

    await converse(app, "POST", headers=[("x-first", "1")], json={"a": None})

    assert app.bodies == [b'{"a": null}']
    assert app.headers == [(b"x-first", b"1"), (b"content-type", b"application/json")]


async def test_answer_is_told_as_it_came() -> None:
    messages = [start(201, (b"x-a", b"1"), (b"x-b", "ü".encode("latin-1"))), piece(b"[1"), piece(b""), last(b",2]")]

    answer = await converse(Answering(*messages))

    assert answer.messages == messages
    assert (answer.started, answer.complete, answer.exception) == (True, True, None)
    assert (answer.status, answer.headers) == (201, [("x-a", "1"), ("x-b", "ü")])
    assert (answer.header("x-a"), answer.header("x-none")) == ("1", None)
    assert (answer.chunks, answer.body, answer.json()) == ([b"[1", b",2]"], b"[1,2]", [1, 2])


async def test_header_that_stands_twice_is_not_one_value() -> None:
    answer = await converse(Answering(start(200, (b"x-a", b"1"), (b"x-a", b"2")), last()))

    with pytest.raises(AssertionError, match="x-a stands 2 times"):
        answer.header("x-a")


async def test_app_that_raises_or_does_not_end_is_told() -> None:
    fault = ZeroDivisionError()

    answer = await converse(Answering(start(), piece(b"half"), raises=fault))
    nothing = await converse(Answering())

    assert (answer.started, answer.complete, answer.exception) == (True, False, fault)
    assert (nothing.started, nothing.complete, nothing.exception) == (False, False, None)


async def test_cancellation_is_not_swallowed() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    with anyio.move_on_after(0) as cancelled:
        await converse(app)

    assert cancelled.cancelled_caught


class Listening:
    """Sends events, and remembers what it heard of its client behind the request's body."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.heard: list[str] = []
        self.sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start())
        for _ in range(self.events):
            await send(piece(b"event"))
            await send(piece(b""))
            self.sent += 1
        await send(last())
        self.heard.append((await receive())["type"])


@pytest.mark.parametrize(
    ("leave_after", "chunks"),
    [
        pytest.param(None, 3, id="never"),
        pytest.param(0, 0, id="before-the-answer"),
        pytest.param(1, 1, id="after-one"),
        pytest.param(9, 3, id="later-than-the-end"),
    ],
)
async def test_client_leaves_and_loses_what_is_sent_then(leave_after: int | None, chunks: int) -> None:
    app = Listening(3)

    answer = await converse(app, "POST", body=b"{}", leave_after=leave_after)

    assert len(answer.chunks) == chunks
    assert answer.started is (leave_after != 0)
    assert answer.complete is (chunks == 3)
    assert (app.sent, app.heard, answer.exception) == (3, ["http.disconnect"], None)


@pytest.mark.parametrize(
    ("version", "sent"),
    [
        pytest.param({"spec_version": "2.3"}, 3, id="2.3-loses"),
        pytest.param({}, 3, id="unknown-loses"),
        pytest.param({"spec_version": "2.4"}, 0, id="2.4-raises"),
        pytest.param({"spec_version": "2.10"}, 0, id="2.10-raises"),
    ],
)
async def test_sending_to_a_client_that_left_fails_from_asgi_2_4_on(version: dict[str, str], sent: int) -> None:
    app = Listening(3)

    answer = await converse(app, "POST", leave_after=1, scope={"asgi": {"version": "3.0", **version}})

    assert (len(answer.chunks), app.sent) == (1, sent)
    assert isinstance(answer.exception, OSError) is (sent == 0)


async def test_client_that_was_answered_before_its_body_was_read_gets_that_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(401))
        await send(last(b"no"))

    answer = await converse(app, "POST", body=b"large", leave_after=0)

    assert (answer.status, answer.body, answer.complete) == (401, b"no", True)


async def test_client_leaves_while_sending() -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive(), await receive()])
        await send(start())
        await send(last())

    answer = await converse(app, "POST", body=[b"a", b"b"], leave_while_sending=True)

    assert heard == [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": True},
        {"type": "http.disconnect"},
    ]
    assert answer.messages == []


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        pytest.param([last()], "a body before the start", id="body-before-start"),
        pytest.param([piece(b"a")], "a body before the start", id="piece-before-start"),
        pytest.param([start(), start()], "a second start", id="two-starts"),
        pytest.param([start(), last(), last()], "http.response.body after the end of the answer", id="body-after-end"),
        pytest.param(
            [start(), last(), start()], "http.response.start after the end of the answer", id="start-after-end"
        ),
        pytest.param([start(100)], "a status that is none", id="status-100"),
        pytest.param([start(600)], "a status that is none", id="status-600"),
        pytest.param([{**start(), "status": "200"}], "a status that is none", id="status-text"),
        pytest.param([start(200, (b"X-A", b"1"))], "a header name that is not lowercase", id="upper-case-header"),
        pytest.param([start(200, (b"x-a", b"1\r\nx-b: 2"))], "a header with a line break", id="line-break"),
        pytest.param([{**start(), "headers": [("x-a", b"1")]}], "a header that is not bytes", id="text-header-name"),
        pytest.param([{**start(), "headers": [(b"x-a", "1")]}], "a header that is not bytes", id="text-header-value"),
        pytest.param([start(), {**last(), "body": "text"}], "a body that is not bytes", id="text-body"),
        pytest.param([start(), {**last(), "more_body": None}], "a more_body that is not a bool", id="more-body-none"),
        pytest.param([start(200, length(1), length(1))], "several content-lengths", id="two-content-lengths"),
        pytest.param([start(200, length(1)), piece(b"ab")], "a body longer than its content-length", id="too-long"),
        pytest.param([start(200, length(3)), last(b"ab")], "a body shorter than its content-length", id="too-short"),
        pytest.param([start(204), last(b"a")], "a body longer than its content-length", id="body-of-204"),
        pytest.param([start(304), last(b"a")], "a body longer than its content-length", id="body-of-304"),
        pytest.param([TRAILERS], "trailers that were not announced, or too early", id="trailers-alone"),
        pytest.param([start(), TRAILERS], "trailers that were not announced, or too early", id="trailers-unannounced"),
        pytest.param(
            [start(trailers=True), piece(b""), TRAILERS],
            "trailers that were not announced, or too early",
            id="trailers-before-the-last-body",
        ),
        pytest.param(
            [start(trailers=True), last(), {**TRAILERS, "headers": [(b"X-Sum", b"1")]}],
            "a header name that is not lowercase",
            id="upper-case-trailer",
        ),
        pytest.param([start(trailers=True), last(), last()], "a body after the last one", id="body-not-trailers"),
        pytest.param([PATH], "a path before the start", id="path-before-start"),
        pytest.param([start(trailers=True), last(), PATH], "a path after the last one", id="path-after-body"),
        pytest.param([{"type": "http.response.push"}], "http.response.push is not offered", id="not-offered"),
        pytest.param([{"type": "websocket.accept"}], "websocket.accept is not offered", id="other-protocol"),
    ],
)
async def test_grammar_is_held(messages: list[Message], complaint: str) -> None:
    with pytest.raises(GrammarError, match=f"^{complaint}"):
        await converse(Answering(*messages), scope=OFFERED)


@pytest.mark.parametrize(
    ("messages", "complete"),
    [
        pytest.param([{"type": "http.response.start", "status": 200}, {"type": "http.response.body"}], True, id="bare"),
        pytest.param([start(200, length(2)), piece(b"a"), piece(b""), last(b"b")], True, id="content-length"),
        pytest.param([start(204), last()], True, id="204"),
        pytest.param([start(trailers=True), last()], False, id="trailers-to-come"),
        pytest.param(
            [start(trailers=True), last(b"a"), {**TRAILERS, "more_trailers": True}, TRAILERS], True, id="trailers"
        ),
        pytest.param([start(200, length(99)), PATH], True, id="path"),
        pytest.param([{"type": "http.response.early_hint", "links": []}, start(), last()], True, id="early-hint"),
    ],
)
async def test_what_the_specification_allows_is_no_error(messages: list[Message], complete: bool) -> None:
    answer = await converse(Answering(*messages), scope=OFFERED)

    assert (answer.messages, answer.complete) == (messages, complete)


async def test_answer_to_head_may_tell_the_length_of_what_it_does_not_send() -> None:
    answer = await converse(Answering(start(200, length(99)), last()), "HEAD")

    assert answer.complete


async def test_server_without_extensions_offers_none() -> None:
    with pytest.raises(GrammarError):
        await converse(Answering({"type": "http.response.early_hint", "links": []}), scope={"extensions": None})


async def test_grammar_is_held_where_the_app_swallows_the_complaint() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in (last(), start(), start()):
            try:
                await send(message)
            except Exception:
                continue

    with pytest.raises(GrammarError, match="a body before the start"):
        await converse(app)


async def test_grammar_is_held_behind_the_back_of_a_client_that_left() -> None:
    with pytest.raises(GrammarError, match="a second start"):
        await converse(Answering(start(), start()), leave_after=0)


async def test_two_readers_share_one_queue() -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            heard.append((await receive())["type"])

        await listen()
        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            await send(start())
            await send(last())

    with anyio.fail_after(5):
        await converse(app)

    assert heard == ["http.request", "http.disconnect"]


async def test_app_that_raised_has_no_status_and_the_reason_is_told() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("wrap it")

    answer = await converse(app)

    with pytest.raises(AssertionError, match="the app did not answer") as raised:
        _ = answer.status
    assert raised.value.__cause__ is answer.exception
