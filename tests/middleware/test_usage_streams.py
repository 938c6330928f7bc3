from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.catalogue import Model
from maas_middleware.context import get_context
from maas_middleware.errors import MaaSError, UpstreamError, UpstreamRefusal
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.middleware.usage import UsageMiddleware
from maas_middleware.usage import TokenUsage
from tests.parts import AS_ALICE, CATALOGUE, EVENT_STREAM, RESOLVER, Answering, identified, last, piece, start, watched
from tests.streams import CHATS, OTHERS, TOKENS_PER_SECOND, Recording, events, whole_events, without_null_usage

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
async def test_client_that_asked_reads_every_event_as_it_came(every: int) -> None:
    app = Answering(*cut(WITH_USAGE, every=every))

    answer = await ask(UsageMiddleware(app), json=ASKED)

    assert (answer.body, answer.complete) == (WITH_USAGE, True)
    assert all(message.get("body", b"\n\n").endswith(b"\n\n") for message in answer.messages[1:-1])
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


@pytest.mark.parametrize("body", [pytest.param(STREAM, id="stripped"), pytest.param(ASKED, id="untouched")])
async def test_stream_loses_the_headers_that_describe_its_bytes(body: dict[str, Any]) -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"etag", b"abc"), (b"content-md5", b"abc")]
    begin = start(200, *headers, (b"Content-Length", str(len(WITH_USAGE)).encode()), (b"x-other", b"kept"))

    answer = await ask(UsageMiddleware(Answering(begin, last(WITH_USAGE))), json=body)

    assert answer.headers == [("content-type", "text/event-stream"), ("x-other", "kept")]


async def test_stream_tells_no_usage_in_its_headers() -> None:
    answer = await ask(UsageMiddleware(Answering(*cut(WITH_USAGE, every=99))), json=STREAM)

    assert answer.headers == [("content-type", "text/event-stream; charset=utf-8")]


@pytest.mark.parametrize("body", [pytest.param(STREAM, id="stripped"), pytest.param(ASKED, id="untouched")])
@pytest.mark.parametrize(
    ("messages", "given"),
    [
        pytest.param([piece(delta("a")), last()], delta("a"), id="behind-an-event"),
        pytest.param([last(delta("a"))], delta("a"), id="with-the-last-event"),
        pytest.param([last(delta("a") + b'data: {"cho')], delta("a"), id="within-an-event"),
        pytest.param([last(STOP + DONE + b'data: {"cho')], STOP + DONE, id="within-an-event-behind-the-end"),
        pytest.param([last()], b"", id="empty"),
        pytest.param([last(b": ping\n\n")], b": ping\n\n", id="comments"),
        pytest.param([last(b'data: {"a":1}\n\n')], b'data: {"a":1}\n\n', id="another-protocol"),
        pytest.param([last(b"<html>no</html>")], b"", id="no-events"),
    ],
)
async def test_stream_that_ends_without_saying_so_is_cut(
    body: dict[str, Any], messages: list[Message], given: bytes
) -> None:
    answer = await ask(UsageMiddleware(Answering(EVENT_STREAM, *messages)), json=body)

    assert (answer.body, answer.complete) == (given, False)
    assert isinstance(answer.exception, UpstreamError)


BROKEN = b'data: {"error":{"message":"The engine is dead at 10.0.0.7","code":500}}\n\n'
REFUSED = b'data: {"error":{"message":"The prompt is too long","param":"messages","code":400}}\n\n'


@pytest.mark.parametrize("body", [pytest.param(STREAM, id="stripped"), pytest.param(ASKED, id="untouched")])
@pytest.mark.parametrize(
    ("event", "kind", "message"),
    [
        pytest.param(BROKEN, UpstreamError, "The model failed to answer", id="of-the-model"),
        pytest.param(REFUSED, UpstreamRefusal, "The prompt is too long", id="of-the-request"),
    ],
)
@pytest.mark.parametrize(
    "behind",
    [
        pytest.param([last(DONE)], id="the-end-in-a-piece-of-its-own"),
        pytest.param([piece(delta("b")), last()], id="content-in-a-piece-of-its-own"),
        pytest.param([], id="nothing"),
    ],
)
async def test_error_event_is_raised_behind_what_came_before_it(
    body: dict[str, Any], event: bytes, kind: type[MaaSError], message: str, behind: list[Message]
) -> None:
    for pieces in ([piece(delta("a") + event)], [piece(delta("a") + event[:9]), piece(event[9:])]):
        app = Answering(EVENT_STREAM, *pieces, *behind)

        answer = await ask(UsageMiddleware(app), json=body)

        assert (answer.body, answer.complete) == (delta("a"), False)
        assert isinstance(answer.exception, kind)
        assert answer.exception.message == message
        assert (context_of(app).reported_failure, context_of(app).produced) == (True, 1)


@pytest.mark.parametrize("behind", [b"", DONE, b"data: [DONE]", delta("b") + DONE, b'data: {"cho'])
async def test_nothing_behind_an_error_event_is_sent_where_all_of_it_is_the_last_message(behind: bytes) -> None:
    app = Answering(EVENT_STREAM, last(delta("a") + REFUSED + behind))

    answer = await ask(UsageMiddleware(app), json=ASKED)

    assert (answer.body, answer.complete) == (delta("a"), False)
    assert isinstance(answer.exception, UpstreamRefusal)
    assert context_of(app).produced == 1


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
    given = recording.given(recording.plain)
    assert events(answer.body) == [without_null_usage(event) for event in events(given)]
    assert answer.complete is not recording.is_error
    assert isinstance(answer.exception, UpstreamError) is recording.is_error
    assert (context.usage, context.produced) == (recording.usage, recording.produced)
    assert context.reported_failure is recording.failed
    assert context.events >= len(events(recording.given(recording.asked)))


@EACH
async def test_stream_of_every_dialect_calls_the_model_by_its_id(recording: Recording) -> None:
    app = Answering(*cut(recording.plain, every=7))

    answer = await ask(serving_model(UsageMiddleware(app), SIMULATOR), recording.path, json=ASKED)

    renamed = re.sub(rb'("model": ?)"tiny"', rb'\1"simulator"', recording.given(recording.plain))
    assert events(answer.body) == events(renamed)
    assert answer.complete is not recording.is_error


@pytest.mark.parametrize("recording", OTHERS, ids=lambda recording: str(recording.name))
async def test_stream_of_every_dialect_that_breaks_off_is_cut(recording: Recording) -> None:
    stream = recording.plain
    end = stream.index(recording.end)
    app = Answering(EVENT_STREAM, piece(stream[:7]), last(stream[7:end]))

    answer = await ask(UsageMiddleware(app), recording.path, json=STREAM)

    assert (answer.body, answer.complete) == (whole_events(stream, end), False)
    assert isinstance(answer.exception, UpstreamError)


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
