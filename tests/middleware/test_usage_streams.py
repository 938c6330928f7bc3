from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.catalogue import Model
from maas_middleware.context import get_context
from maas_middleware.errors import UpstreamError
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.middleware.usage import UsageMiddleware
from maas_middleware.usage import TokenUsage
from tests.parts import AS_ALICE, CATALOGUE, EVENT_STREAM, RESOLVER, Answering, identified, last, piece, start, watched
from tests.streams import CHATS, OTHERS, TOKENS_PER_SECOND, Recording, events, without_null_usage

from .metering import ASKED, DONE, STOP, STREAM, USAGE_EVENT, ask, context_of, delta, serving_model


def delta_with_null(text: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%s"}}],"usage":null}\n\n' % text.encode()


def cut(stream: bytes, *, every: int) -> list[Message]:
    return [EVENT_STREAM, *[piece(stream[at : at + every]) for at in range(0, len(stream), every)], last()]


WITH_USAGE = delta_with_null("a") + b": keep-alive\n\n" + delta_with_null("\u00fc") + USAGE_EVENT + DONE
WITHOUT_USAGE = delta("a") + b": keep-alive\n\n" + delta("\u00fc") + DONE


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

    await ask(UsageMiddleware(app), json={**STREAM, **options})

    assert json.loads(app.bodies[0]) == {**STREAM, "stream_options": forwarded}
    assert (b"content-length", str(len(app.bodies[0])).encode()) in app.headers


@pytest.mark.parametrize("every", [pytest.param(size, id=f"{size}-bytes") for size in (1, 2, 7, 64, 10_000)])
async def test_client_that_did_not_ask_reads_what_an_untouched_call_would_have_given(every: int) -> None:
    app = Answering(*cut(WITH_USAGE, every=every))

    answer = await ask(UsageMiddleware(app), json=STREAM)

    assert answer.body == WITHOUT_USAGE
    assert answer.complete
    assert context_of(app).usage == TokenUsage(5, 7, 12)
    assert context_of(app).produced == 2


@pytest.mark.parametrize("every", [pytest.param(size, id=f"{size}-bytes") for size in (1, 7, 10_000)])
async def test_client_that_asked_reads_every_byte_as_it_came(every: int) -> None:
    messages = cut(WITH_USAGE, every=every)
    app = Answering(*messages)

    answer = await ask(UsageMiddleware(app), json=ASKED)

    assert answer.messages == messages
    assert context_of(app).usage == TokenUsage(5, 7, 12)
    assert context_of(app).produced == 2


async def test_stream_with_crlf_is_stripped_too() -> None:
    app = Answering(*cut(WITH_USAGE.replace(b"\n", b"\r\n"), every=3))

    answer = await ask(UsageMiddleware(app), json=STREAM)

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
    answer = await ask(app_watched, json=STREAM)

    assert answer.exception is None


async def test_running_usage_is_known_at_any_moment_and_never_added() -> None:
    known: list[TokenUsage | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENT_STREAM)
        for total in (6, 7, 8):
            usage = b'{"prompt_tokens":5,"completion_tokens":%d,"total_tokens":%d}' % (total - 5, total)
            await send(piece(b'data: {"choices":[{"delta":{}}],"usage":' + usage + b"}\n\n"))
            known.append(get_context(scope).usage)

    await ask(UsageMiddleware(app), json=ASKED)

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
    answer = await ask(UsageMiddleware(Answering(EVENT_STREAM, *messages)), json=STREAM)

    assert (answer.body, answer.complete) == (body, True)


async def test_stream_that_breaks_off_keeps_its_whole_events_and_has_no_end() -> None:
    app = Answering(EVENT_STREAM, piece(delta("a") + b'data: {"cho'), raises=ZeroDivisionError())

    answer = await ask(UsageMiddleware(app), json=STREAM)

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

    answer = await ask(UsageMiddleware(Answering(begin, last(WITH_USAGE))), json=body)

    assert {"content-type", "etag", "content-md5", "content-length"} - {name for name, _ in answer.headers} == gone


async def test_stream_tells_no_usage_in_its_headers() -> None:
    answer = await ask(UsageMiddleware(Answering(*cut(WITH_USAGE, every=99))), json=STREAM)

    assert answer.headers == [("content-type", "text/event-stream; charset=utf-8")]


@pytest.mark.parametrize("body", [pytest.param(STREAM, id="stripped"), pytest.param(ASKED, id="untouched")])
@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([piece(delta("a")), last()], id="behind-an-event"),
        pytest.param([last(delta("a"))], id="with-the-last-event"),
    ],
)
async def test_stream_that_ends_without_saying_so_is_cut(body: dict[str, Any], messages: list[Message]) -> None:
    answer = await ask(UsageMiddleware(Answering(EVENT_STREAM, *messages)), json=body)

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
    answer = await ask(UsageMiddleware(Answering(EVENT_STREAM, last(stream))), json=STREAM)

    assert (answer.body, answer.complete, answer.exception) == (stream, True, None)


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

    answer = await ask(identified(shells), headers=[AS_ALICE])

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


EACH = pytest.mark.parametrize("recording", [*CHATS, *OTHERS], ids=lambda recording: str(recording.name))
TINY = Model("tiny", audio_tokens_per_second=TOKENS_PER_SECOND)
SIMULATOR = Model("simulator", upstream_model="tiny", audio_tokens_per_second=TOKENS_PER_SECOND)


@EACH
async def test_stream_of_every_dialect_is_metered_and_reads_as_an_untouched_call_does(recording: Recording) -> None:
    app = Answering(*cut(recording.asked, every=7))

    answer = await ask(serving_model(UsageMiddleware(app), TINY), recording.path, json=STREAM)

    context = context_of(app)
    assert events(answer.body) == [without_null_usage(event) for event in events(recording.plain)]
    assert (answer.complete, answer.exception) == (True, None)
    assert (context.usage, context.produced) == (recording.usage, recording.produced)
    assert context.reported_failure is recording.failed
    assert context.events >= len(events(recording.asked))


@EACH
async def test_stream_of_every_dialect_calls_the_model_by_its_id(recording: Recording) -> None:
    app = Answering(*cut(recording.plain, every=7))

    answer = await ask(serving_model(UsageMiddleware(app), SIMULATOR), recording.path, json=ASKED)

    assert answer.body == re.sub(rb'("model": ?)"tiny"', rb'\1"simulator"', recording.plain)
    assert answer.complete


@pytest.mark.parametrize("recording", OTHERS, ids=lambda recording: str(recording.name))
async def test_stream_of_every_dialect_that_breaks_off_is_cut(recording: Recording) -> None:
    stream = recording.plain
    broken = stream[: stream.index(recording.end)]
    app = Answering(EVENT_STREAM, piece(broken[:7]), last(broken[7:]))

    answer = await ask(UsageMiddleware(app), recording.path, json=STREAM)

    assert (answer.body, answer.complete) == (broken, False)
    assert isinstance(answer.exception, UpstreamError)


async def test_stream_that_is_renamed_loses_the_headers_that_describe_its_bytes() -> None:
    stream = b'data: {"model":"tiny","choices":[]}\n\ndata: [DONE]\n\n'
    begin = start(
        200, (b"content-type", b"text/event-stream"), (b"Content-Length", b"%d" % len(stream)), (b"etag", b"1")
    )
    app = Answering(begin, last(stream))

    answer = await ask(serving_model(UsageMiddleware(app), SIMULATOR), json=ASKED)

    assert answer.headers == [("content-type", "text/event-stream")]
    assert answer.body == stream.replace(b"tiny", b"simulator")


async def test_running_usage_of_a_message_is_known_at_any_moment() -> None:
    known: list[TokenUsage | None] = []
    recording = next(recording for recording in OTHERS if recording.name == "messages.vllm")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENT_STREAM)
        for event in recording.plain.split(b"\n\n"):
            await send(piece(event + b"\n\n"))
            known.append(get_context(scope).usage)
        await send(last())

    await ask(UsageMiddleware(app), recording.path, json=STREAM)

    start_usage, whole = TokenUsage(0, 0, 0), TokenUsage(12, 3, 15)
    assert known == [*[start_usage] * 6, *[whole] * (len(known) - 6)]


async def test_error_in_a_stream_is_known_before_the_answer_has_ended() -> None:
    known: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENT_STREAM)
        for event in (b": ping\n\n", b'data: {"error":{"message":"no"}}\n\n', DONE):
            await send(piece(event))
            known.append(get_context(scope).reported_failure)
        await send(last())

    await ask(UsageMiddleware(app), json=STREAM)

    assert known == [False, True, True]
