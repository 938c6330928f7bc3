from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from maas_middleware.endpoints import CHAT_COMPLETIONS
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.middleware.usage import UsageMiddleware
from maas_middleware.testing.converse import converse
from tests.parts import (
    AS_ALICE,
    CATALOGUE,
    EVENT_STREAM,
    RESOLVER,
    Answering,
    identified,
    json_answer,
    knock,
    last,
    piece,
    start,
    start_up,
    starting_up,
)

from .metering import ASKED, CHAT, JSON_ANSWER, STOP, STREAM, USAGE_EVENT, ask, context_of


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

    await ask(UsageMiddleware(app), body=json.dumps(body, separators=(",", ":")).encode(), json=None)

    assert app.bodies[0] == json.dumps(body, separators=(",", ":")).encode()


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
        pytest.param([{"type": "http.response.start", "status": 400}, last(b"no")], id="error-without-headers"),
        pytest.param([start(400, (b"content-type", b"application/json")), piece(JSON_ANSWER), last()], id="error"),
        pytest.param([start(500, (b"content-type", b"text/event-stream")), last(USAGE_EVENT)], id="error-stream"),
        pytest.param([start(302, (b"content-type", b"application/json")), last(JSON_ANSWER)], id="redirect"),
    ],
)
async def test_answer_that_cannot_be_read_passes_as_it_is(messages: list[Message]) -> None:
    app = Answering(*messages)

    answer = await ask(UsageMiddleware(app), json=STREAM)

    assert answer.messages == [{"headers": [], **messages[0]}, *messages[1:]]
    assert context_of(app).usage is None


@pytest.mark.parametrize("encoding", [b"identity", b"utf-8", b""])
async def test_what_does_not_compress_is_read(encoding: bytes) -> None:
    begin = start(200, (b"content-type", b"application/json"), (b"content-encoding", encoding))

    answer = await ask(UsageMiddleware(Answering(begin, last(JSON_ANSWER))))

    assert answer.header("x-odhu-usage-total-tokens") == "12"


async def test_app_does_not_hear_which_encodings_the_client_accepts() -> None:
    app = Answering(*json_answer(JSON_ANSWER))

    await ask(UsageMiddleware(app), headers=[("Accept-Encoding", "gzip, br"), ("x-other", "kept")])

    assert [name for name, _ in app.headers] == [b"x-other", b"content-type", b"content-length"]


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
        pytest.param(start(200, (b"content-type", b"text/plain"), trailers=True), JSON_ANSWER, id="json-as-text"),
    ],
)
async def test_messages_that_we_do_not_know_pass_and_trailers_stay_announced(begin: Message, body: bytes) -> None:
    app = Answering(HINT, begin, piece(body), last(), TRAILERS)

    answer = await ask(UsageMiddleware(app), json=STREAM, scope=OFFERED)

    assert (answer.messages[0], answer.messages[-1]) == (HINT, TRAILERS)
    assert answer.messages[1]["trailers"] is True
    assert (answer.body, answer.complete) == (body, True)


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


async def test_body_that_is_no_json_object_is_400() -> None:
    app = Answering(*json_answer(JSON_ANSWER))

    answer = await ask(UsageMiddleware(app), json=None, body=b"no json")

    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert (answer.exception, app.scopes) == (None, [])


async def test_body_over_the_limit_is_413() -> None:
    answer = await ask(UsageMiddleware(Answering(), max_body_bytes=10))

    assert (answer.status, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_client_that_leaves_while_sending_reaches_nobody_and_gets_no_answer() -> None:
    app = Answering(*json_answer(JSON_ANSWER))

    answer = await ask(UsageMiddleware(app), json=None, body=[b'{"model":'], leave_while_sending=True)

    assert (answer.messages, answer.exception, app.scopes) == ([], None, [])


async def test_app_hears_the_client_itself_behind_the_body() -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([(await receive())["type"], (await receive())["type"]])

    await ask(UsageMiddleware(app), leave_after=0)

    assert heard == ["http.request", "http.disconnect"]


async def test_lifespan_passes() -> None:
    assert await start_up(UsageMiddleware(starting_up)) == [{"type": "lifespan.startup.complete"}]


async def test_websocket_passes() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    assert await knock(UsageMiddleware(app), CHAT_COMPLETIONS) == [{"type": "websocket.accept"}]
