from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.catalogue import CHAT_COMPLETIONS
from maas_middleware.context import MaaSContext, get_context
from maas_middleware.errors import UpstreamError
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.middleware.usage import UsageMiddleware
from maas_middleware.testing.converse import Conversation, converse
from maas_middleware.usage import TokenUsage
from tests.parts import (
    AS_ALICE,
    CATALOGUE,
    EVENT_STREAM,
    RESOLVER,
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

CHAT = {"model": "simulator", "messages": []}
STREAM = {**CHAT, "stream": True}
ASKED = {**STREAM, "stream_options": {"include_usage": True}}

USAGE = b'{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}'
JSON_ANSWER = b'{"choices":[{"message":{"content":"hi"}}],"usage":' + USAGE + b"}"
USAGE_EVENT = b'data: {"choices":[],"usage":' + USAGE + b"}\n\n"
DONE = b"data: [DONE]\n\n"
STOP = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
MIB = 1 << 20


def delta(text: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % text.encode()


def delta_with_null(text: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%s"}}],"usage":null}\n\n' % text.encode()


async def chat(app: ASGIApp, **more: Any) -> Conversation:
    with anyio.fail_after(5):
        return await converse(app, "POST", CHAT_COMPLETIONS, **{"json": CHAT, **more})


def context_of(app: Answering) -> MaaSContext:
    return get_context(app.scopes[-1])


def cut(stream: bytes, *, every: int) -> list[Message]:
    return [EVENT_STREAM, *[piece(stream[at : at + every]) for at in range(0, len(stream), every)], last()]


@pytest.mark.parametrize(
    ("options", "forwarded"),
    [
        pytest.param({}, {"include_usage": True}, id="absent"),
        pytest.param({"stream_options": None}, {"include_usage": True}, id="null"),
        pytest.param({"stream_options": {}}, {"include_usage": True}, id="empty"),
        pytest.param({"stream_options": {"include_usage": False}}, {"include_usage": True}, id="refused"),
        pytest.param({"stream_options": {"a": [1]}}, {"a": [1], "include_usage": True}, id="others-are-kept"),
    ],
)
async def test_stream_is_asked_for_its_usage(options: dict[str, Any], forwarded: dict[str, Any]) -> None:
    app = Answering(EVENT_STREAM, last(DONE))

    await chat(UsageMiddleware(app), json={**STREAM, **options})

    assert json.loads(app.bodies[0]) == {**STREAM, "stream_options": forwarded}
    assert (b"content-length", str(len(app.bodies[0])).encode()) in app.headers


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(ASKED, id="asked-by-the-client"),
        pytest.param(CHAT, id="no-stream"),
        pytest.param({**CHAT, "stream": False}, id="stream-false"),
    ],
)
async def test_request_that_needs_no_asking_is_forwarded_as_it_is(body: dict[str, Any]) -> None:
    app = Answering(*json_answer(JSON_ANSWER))

    await chat(UsageMiddleware(app), body=json.dumps(body, separators=(",", ":")).encode(), json=None)

    assert app.bodies[0] == json.dumps(body, separators=(",", ":")).encode()


WITH_USAGE = delta_with_null("a") + b": keep-alive\n\n" + delta_with_null("\u00fc") + USAGE_EVENT + DONE
WITHOUT_USAGE = delta("a") + b": keep-alive\n\n" + delta("\u00fc") + DONE


@pytest.mark.parametrize("every", [pytest.param(size, id=f"{size}-bytes") for size in (1, 2, 7, 64, 10_000)])
async def test_client_that_did_not_ask_reads_what_an_untouched_call_would_have_given(every: int) -> None:
    app = Answering(*cut(WITH_USAGE, every=every))

    answer = await chat(UsageMiddleware(app), json=STREAM)

    assert answer.body == WITHOUT_USAGE
    assert answer.complete
    assert context_of(app).usage == TokenUsage(5, 7, 12)
    assert context_of(app).produced == 2


@pytest.mark.parametrize("every", [pytest.param(size, id=f"{size}-bytes") for size in (1, 7, 10_000)])
async def test_client_that_asked_reads_every_byte_as_it_came(every: int) -> None:
    messages = cut(WITH_USAGE, every=every)
    app = Answering(*messages)

    answer = await chat(UsageMiddleware(app), json=ASKED)

    assert answer.messages == messages
    assert context_of(app).usage == TokenUsage(5, 7, 12)
    assert context_of(app).produced == 2


async def test_stream_with_crlf_is_stripped_too() -> None:
    app = Answering(*cut(WITH_USAGE.replace(b"\n", b"\r\n"), every=3))

    answer = await chat(UsageMiddleware(app), json=STREAM)

    assert answer.body == WITHOUT_USAGE.replace(b"\n", b"\r\n")


async def test_each_event_is_passed_on_at_once() -> None:
    reached: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENT_STREAM)
        for text in "abc":
            await send(piece(delta(text)))
            assert reached[-1] == delta(text)
        await send(last(DONE))

    app_watched = watched(UsageMiddleware(app), lambda message: reached.append(message.get("body", b"")))
    answer = await chat(app_watched, json=STREAM)

    assert answer.exception is None


async def test_running_usage_is_known_at_any_moment_and_never_added() -> None:
    known: list[TokenUsage | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENT_STREAM)
        for total in (6, 7, 8):
            usage = b'{"prompt_tokens":5,"completion_tokens":%d,"total_tokens":%d}' % (total - 5, total)
            await send(piece(b'data: {"choices":[{"delta":{}}],"usage":' + usage + b"}\n\n"))
            known.append(get_context(scope).usage)

    await chat(UsageMiddleware(app), json=ASKED)

    assert known == [TokenUsage(5, 1, 6), TokenUsage(5, 2, 7), TokenUsage(5, 3, 8)]


@pytest.mark.parametrize(
    ("messages", "body"),
    [
        pytest.param([piece(b""), piece(STOP), piece(b""), last()], STOP, id="empty-chunks"),
        pytest.param([last(STOP + USAGE_EVENT)], STOP, id="all-in-the-last-chunk"),
        pytest.param([piece(STOP), last(USAGE_EVENT)], STOP, id="nothing-left-of-the-last-chunk"),
        pytest.param([piece(STOP), last(USAGE_EVENT[:-1])], STOP, id="usage-without-its-blank-line"),
        pytest.param(
            [piece(delta("a")), last(b"data: [DONE]")], delta("a") + b"data: [DONE]", id="end-within-an-event"
        ),
        pytest.param([piece(STOP), {"type": "http.response.body"}], STOP, id="last-chunk-without-keys"),
    ],
)
async def test_end_of_a_stream_is_the_last_message_whatever_is_in_it(messages: list[Message], body: bytes) -> None:
    answer = await chat(UsageMiddleware(Answering(EVENT_STREAM, *messages)), json=STREAM)

    assert (answer.body, answer.complete) == (body, True)


async def test_stream_that_breaks_off_keeps_its_whole_events_and_has_no_end() -> None:
    app = Answering(EVENT_STREAM, piece(delta("a") + b'data: {"cho'), raises=ZeroDivisionError())

    answer = await chat(UsageMiddleware(app), json=STREAM)

    assert (answer.body, answer.complete) == (delta("a"), False)
    assert isinstance(answer.exception, ZeroDivisionError)
    assert context_of(app).produced == 1


@pytest.mark.parametrize(
    ("body", "gone"),
    [
        pytest.param(STREAM, {"content-length", "etag", "content-md5"}, id="changed"),
        pytest.param(ASKED, set(), id="untouched"),
    ],
)
async def test_stream_that_is_changed_loses_the_headers_that_describe_its_bytes(
    body: dict[str, Any], gone: set[str]
) -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"etag", b"abc"), (b"content-md5", b"abc")]
    begin = start(200, *headers, (b"content-length", str(len(WITH_USAGE)).encode()))

    answer = await chat(UsageMiddleware(Answering(begin, last(WITH_USAGE))), json=body)

    assert {"content-type", "etag", "content-md5", "content-length"} - {name for name, _ in answer.headers} == gone


async def test_stream_tells_no_usage_in_its_headers() -> None:
    answer = await chat(UsageMiddleware(Answering(*cut(WITH_USAGE, every=99))), json=STREAM)

    assert answer.headers == [("content-type", "text/event-stream; charset=utf-8")]


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([last(JSON_ANSWER)], id="whole"),
        pytest.param([piece(JSON_ANSWER[:9]), piece(b""), last(JSON_ANSWER[9:])], id="pieces"),
        pytest.param([piece(JSON_ANSWER), {"type": "http.response.body"}], id="empty-last-piece"),
    ],
)
@pytest.mark.parametrize(
    "content_type",
    [
        pytest.param(b"application/json", id="plain"),
        pytest.param(b"application/json; charset=utf-8", id="charset"),
        pytest.param(b"Application/JSON", id="any-case"),
    ],
)
async def test_json_answer_tells_its_usage_in_its_headers(pieces: list[Message], content_type: bytes) -> None:
    begin = start(200, (b"content-type", content_type), (b"content-length", str(len(JSON_ANSWER)).encode()))
    app = Answering(begin, *pieces)

    answer = await chat(UsageMiddleware(app))

    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.body"]
    assert answer.body == JSON_ANSWER
    assert answer.headers == [
        ("content-type", content_type.decode()),
        ("content-length", str(len(JSON_ANSWER))),
        ("x-odhu-usage-input-tokens", "5"),
        ("x-odhu-usage-output-tokens", "7"),
        ("x-odhu-usage-total-tokens", "12"),
    ]
    assert context_of(app).usage == TokenUsage(5, 7, 12)


async def test_usage_of_0_is_0_and_not_unknown() -> None:
    app = Answering(*json_answer(b'{"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}'))

    answer = await chat(UsageMiddleware(app))

    assert context_of(app).usage == TokenUsage(0, 0, 0)
    assert answer.header("x-odhu-usage-total-tokens") == "0"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{}", id="none"),
        pytest.param(b'{"usage":null}', id="null"),
        pytest.param(b"null", id="no-object"),
        pytest.param(b'{"usage":3}', id="of-another-type"),
    ],
)
async def test_json_answer_without_usage_tells_none(body: bytes) -> None:
    app = Answering(*json_answer(body))

    answer = await chat(UsageMiddleware(app))

    assert answer.messages == json_answer(body)
    assert context_of(app).usage is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"usage":', id="truncated"),
        pytest.param(b"<html>\xff", id="no-json"),
        pytest.param(b'{"model":"\xff"}', id="no-utf-8"),
    ],
)
async def test_json_answer_that_cannot_be_read_is_no_answer(body: bytes) -> None:
    answer = await chat(UsageMiddleware(Answering(*json_answer(body))))

    assert answer.messages == []
    assert isinstance(answer.exception, UpstreamError)


async def test_answer_without_content_is_empty() -> None:
    messages = [start(204, (b"content-type", b"application/json")), last()]

    answer = await chat(UsageMiddleware(Answering(*messages)))

    assert answer.messages == messages


@pytest.mark.parametrize("body", [pytest.param(STREAM, id="stripped"), pytest.param(ASKED, id="untouched")])
@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([piece(delta("a")), last()], id="behind-an-event"),
        pytest.param([last(delta("a"))], id="with-the-last-event"),
    ],
)
async def test_stream_that_ends_without_saying_so_is_cut(body: dict[str, Any], messages: list[Message]) -> None:
    answer = await chat(UsageMiddleware(Answering(EVENT_STREAM, *messages)), json=body)

    assert (answer.body, answer.complete) == (delta("a"), False)
    assert isinstance(answer.exception, UpstreamError)


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b": ping\n\n", id="comments"),
        pytest.param(b'data: {"error":{"message":"no"}}\n\n', id="error"),
        pytest.param(b'data: {"anything":1}\n\n', id="another-protocol"),
        pytest.param(delta("a") + b'data: {"error":{"message":"no"}}\n\n', id="error-behind-content"),
    ],
)
async def test_stream_that_has_no_choices_or_says_how_it_ended_is_whole(stream: bytes) -> None:
    answer = await chat(UsageMiddleware(Answering(EVENT_STREAM, last(stream))), json=STREAM)

    assert (answer.body, answer.complete, answer.exception) == (stream, True, None)


async def test_usage_that_an_inner_gateway_tells_is_replaced_by_ours() -> None:
    begin = start(200, (b"content-type", b"application/json"), (b"X-ODHU-Usage-Total-Tokens", b"1"))

    answer = await chat(UsageMiddleware(Answering(begin, last(JSON_ANSWER))))

    assert answer.header("x-odhu-usage-total-tokens") == "12"


async def test_response_that_an_app_reuses_does_not_grow() -> None:
    response = JSONResponse(json.loads(JSON_ANSWER))
    before = list(response.raw_headers)

    answers = [await chat(UsageMiddleware(response)) for _ in range(3)]

    assert response.raw_headers == before
    assert answers[0].messages == answers[1].messages == answers[2].messages


def large_json(size: int) -> bytes:
    head, tail = b'{"choices":"', b'","usage":' + USAGE + b"}"
    return head + b"a" * (size - len(head) - len(tail)) + tail


async def test_json_answer_over_4_mib_streams_through_and_is_metered_all_the_same() -> None:
    body = large_json(5 * MIB)
    pieces = [piece(body[at : at + MIB]) for at in range(0, len(body), MIB)]
    begin = start(200, (b"content-type", b"application/json"))
    app = Answering(begin, *pieces, last())

    answer = await chat(UsageMiddleware(app))

    assert answer.messages == [begin, *pieces, last()]
    assert context_of(app).usage == TokenUsage(5, 7, 12)


async def test_json_answer_over_4_mib_leaves_before_its_end_is_there() -> None:
    body = large_json(5 * MIB)
    app = Answering(start(200, (b"content-type", b"application/json")), piece(body[:-1]), raises=ZeroDivisionError())

    answer = await chat(UsageMiddleware(app))

    assert (answer.body, answer.complete) == (body[:-1], False)
    assert context_of(app).usage is None


async def test_json_answer_of_exactly_4_mib_is_held() -> None:
    body = large_json(4 * MIB)
    app = Answering(start(200, (b"content-type", b"application/json")), piece(body), last())

    answer = await chat(UsageMiddleware(app))

    assert answer.body == body
    assert answer.header("x-odhu-usage-total-tokens") == "12"


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(
            [start(200, (b"content-type", b"application/json"), (b"content-encoding", b"gzip")), last(JSON_ANSWER)],
            id="gzip-json",
        ),
        pytest.param(
            [start(200, (b"content-type", b"text/event-stream"), (b"content-encoding", b"br")), last(USAGE_EVENT)],
            id="compressed-stream",
        ),
        pytest.param([start(200, (b"content-type", b"text/plain")), piece(JSON_ANSWER), last()], id="text"),
        pytest.param([start(200, (b"content-type", b"application/octet-stream")), last(JSON_ANSWER)], id="octets"),
        pytest.param([{"type": "http.response.start", "status": 200}, last(JSON_ANSWER)], id="without-headers"),
        pytest.param([start(400, (b"content-type", b"application/json")), piece(JSON_ANSWER), last()], id="error"),
        pytest.param([start(500, (b"content-type", b"text/event-stream")), last(USAGE_EVENT)], id="error-stream"),
        pytest.param([start(302, (b"content-type", b"application/json")), last(JSON_ANSWER)], id="redirect"),
    ],
)
async def test_answer_that_cannot_be_read_passes_as_it_is(messages: list[Message]) -> None:
    app = Answering(*messages)

    answer = await chat(UsageMiddleware(app), json=STREAM)

    assert answer.messages == [{"headers": [], **messages[0]}, *messages[1:]]
    assert context_of(app).usage is None


async def test_identity_is_no_encoding() -> None:
    begin = start(200, (b"content-type", b"application/json"), (b"content-encoding", b"identity"))

    answer = await chat(UsageMiddleware(Answering(begin, last(JSON_ANSWER))))

    assert answer.header("x-odhu-usage-total-tokens") == "12"


async def test_app_does_not_hear_which_encodings_the_client_accepts() -> None:
    app = Answering(*json_answer(JSON_ANSWER))

    await chat(UsageMiddleware(app), headers=[("Accept-Encoding", "gzip, br"), ("x-other", "kept")])

    assert [name for name, _ in app.headers] == [b"x-other", b"content-type", b"content-length"]


async def test_app_with_gzip_inside_is_metered() -> None:
    app = Answering(*json_answer(large_json(9000)))

    answer = await chat(UsageMiddleware(GZipMiddleware(app)), headers=[("accept-encoding", "gzip")])

    assert answer.body == large_json(9000)
    assert context_of(app).usage == TokenUsage(5, 7, 12)


async def test_app_with_base_http_middleware_inside_is_metered() -> None:
    app = Answering(*json_answer(JSON_ANSWER))

    answer = await chat(UsageMiddleware(PassingOn(app)))

    assert (answer.body, answer.header("x-odhu-usage-total-tokens")) == (JSON_ANSWER, "12")


async def test_failure_behind_the_start_of_a_json_answer_has_sent_nothing_yet() -> None:
    begin = start(200, (b"content-type", b"application/json"))

    answer = await chat(UsageMiddleware(Answering(begin, piece(b'{"a"'), raises=ZeroDivisionError())))

    assert answer.messages == []
    assert isinstance(answer.exception, ZeroDivisionError)


HINT: Message = {"type": "http.response.early_hint", "links": []}
TRAILERS: Message = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]}
OFFERED: dict[str, Any] = {
    "extensions": {"http.response.early_hint": {}, "http.response.trailers": {}, "http.response.pathsend": {}}
}


@pytest.mark.parametrize(
    ("begin", "body"),
    [
        pytest.param(start(200, (b"content-type", b"application/json"), trailers=True), JSON_ANSWER, id="json"),
        pytest.param({**EVENT_STREAM, "trailers": True}, STOP, id="stream"),
        pytest.param(start(200, (b"content-type", b"text/plain"), trailers=True), b"text", id="text"),
    ],
)
async def test_messages_that_we_do_not_know_pass_and_trailers_stay_announced(begin: Message, body: bytes) -> None:
    app = Answering(HINT, begin, piece(body), last(), TRAILERS)

    answer = await chat(UsageMiddleware(app), json=STREAM, scope=OFFERED)

    assert (answer.messages[0], answer.messages[-1]) == (HINT, TRAILERS)
    assert answer.messages[1]["trailers"] is True
    assert (answer.body, answer.complete) == (body, True)


async def test_json_answer_that_the_server_sends_from_a_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_bytes(JSON_ANSWER)

    answer = await chat(UsageMiddleware(FileResponse(path)), scope=OFFERED)

    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.pathsend"]
    assert answer.header("content-type") == "application/json"


async def test_message_in_the_middle_of_a_json_answer_keeps_its_place() -> None:
    messages = [start(200, (b"content-type", b"application/json")), piece(JSON_ANSWER[:9]), HINT, last(JSON_ANSWER[9:])]
    app = Answering(*messages)

    answer = await chat(UsageMiddleware(app), scope=OFFERED)

    assert answer.messages == messages
    assert context_of(app).usage == TokenUsage(5, 7, 12)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("POST", "/other", id="no-endpoint"),
        pytest.param("GET", CHAT_COMPLETIONS, id="another-method"),
        pytest.param("HEAD", CHAT_COMPLETIONS, id="head"),
    ],
)
async def test_what_is_no_endpoint_passes_as_it_is(method: str, path: str) -> None:
    app = Answering(*json_answer(JSON_ANSWER))

    answer = await converse(
        UsageMiddleware(app), method, path, headers=[("accept-encoding", "gzip")], body=b'{"a": 1, "a": 2}'
    )

    assert app.bodies[0] == b'{"a": 1, "a": 2}'
    assert app.headers == [(b"accept-encoding", b"gzip")]
    assert answer.messages == json_answer(JSON_ANSWER)


async def test_head_to_an_endpoint_of_the_catalogue_passes_as_it_is() -> None:
    app = Answering(*json_answer(b""))

    answer = await converse(
        identified(TierMiddleware(UsageMiddleware(app), resolver=RESOLVER)),
        "HEAD",
        CHAT_COMPLETIONS,
        headers=[AS_ALICE],
    )

    assert answer.status == 200
    assert len(app.scopes) == 1


@pytest.mark.parametrize(
    ("path", "root"),
    [
        pytest.param(CHAT_COMPLETIONS, "", id="plain"),
        pytest.param(f"/srv{CHAT_COMPLETIONS}", "/srv", id="below-a-root"),
        pytest.param(f"{CHAT_COMPLETIONS}/", "", id="trailing-slash"),
    ],
)
async def test_alone_it_finds_the_endpoints_itself(path: str, root: str) -> None:
    answer = await converse(
        UsageMiddleware(Answering(*json_answer(JSON_ANSWER))), "POST", path, json=CHAT, scope={"root_path": root}
    )

    assert answer.header("x-odhu-usage-total-tokens") == "12"


async def test_within_the_shells_the_endpoint_is_that_of_the_tier_middleware() -> None:
    app = Answering(*json_answer(JSON_ANSWER))
    shells = TierMiddleware(UsageMiddleware(app), resolver=RESOLVER, catalogue=CATALOGUE)

    answer = await converse(
        identified(shells), "POST", f"/simulator{CHAT_COMPLETIONS}", headers=[AS_ALICE], json={"messages": []}
    )

    assert answer.header("x-odhu-usage-total-tokens") == "12"
    assert json.loads(app.bodies[0]) == {"messages": [], "model": "sim"}


class PromptGuard:
    """A middleware of somebody else that changes the body between our shells."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads((await receive())["body"])
        guarded = json.dumps({**body, "messages": ["guarded"], "stream": True}).encode()
        headers = [(b"content-length", str(len(guarded)).encode())]

        async def guarded_receive() -> Message:
            return {"type": "http.request", "body": guarded}

        await self.app({**scope, "headers": headers}, guarded_receive, send)


async def test_body_that_a_middleware_between_the_shells_changed_is_what_is_judged_and_forwarded() -> None:
    app = Answering(*cut(WITH_USAGE, every=99))
    shells = TierMiddleware(PromptGuard(UsageMiddleware(app)), resolver=RESOLVER, catalogue=CATALOGUE)

    answer = await chat(identified(shells), headers=[AS_ALICE])

    assert json.loads(app.bodies[0]) == {
        "model": "sim",
        "messages": ["guarded"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert answer.body == WITHOUT_USAGE
    request = context_of(app).request
    assert request is not None
    assert request.stream


async def test_body_that_is_no_json_object_is_400() -> None:
    app = Answering(*json_answer(JSON_ANSWER))

    answer = await chat(UsageMiddleware(app), json=None, body=b"no json")

    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert (answer.exception, app.scopes) == (None, [])


async def test_body_over_the_limit_is_413() -> None:
    answer = await chat(UsageMiddleware(Answering(), max_body_bytes=10))

    assert (answer.status, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_client_that_leaves_while_sending_reaches_nobody_and_gets_no_answer() -> None:
    app = Answering(*json_answer(JSON_ANSWER))

    answer = await chat(UsageMiddleware(app), json=None, body=[b'{"model":'], leave_while_sending=True)

    assert (answer.messages, answer.exception, app.scopes) == ([], None, [])


async def test_app_hears_the_client_itself_behind_the_body() -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([(await receive())["type"], (await receive())["type"]])

    await chat(UsageMiddleware(app), leave_after=0)

    assert heard == ["http.request", "http.disconnect"]


async def test_lifespan_passes() -> None:
    assert await start_up(UsageMiddleware(starting_up)) == [{"type": "lifespan.startup.complete"}]


async def test_websocket_passes() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    assert await knock(UsageMiddleware(app), CHAT_COMPLETIONS) == [{"type": "websocket.accept"}]
