from __future__ import annotations

import json
from typing import Any

import anyio
import httpx
import pytest

from maas_middleware.ledgers.throttles import MovingWindowThrottle
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.middleware.throttle import ThrottleMiddleware
from maas_middleware.testing.converse import converse
from tests.parts import AS_ALICE, AS_BOB, Answering, identified, json_answer, knock, start_up, starting_up
from tests.servers import serving

ANSWER = json_answer(b"{}")


def throttled(app: Any, limits: str = "2/minute", **options: Any) -> Any:
    """The app inside the middleware, for callers that are known."""
    return identified(ThrottleMiddleware(app, throttle=MovingWindowThrottle(limits, name="control"), **options))


async def test_each_user_passes_so_many_times_and_gets_429_in_the_envelope_then() -> None:
    app = Answering(*ANSWER)
    middleware = throttled(app, jitter=lambda: 0.0)

    answers = [await converse(middleware, headers=[AS_ALICE]) for _ in range(3)]
    other = await converse(middleware, headers=[AS_BOB])

    assert [answer.status for answer in answers] == [200, 200, 429]
    assert other.status == 200
    assert len(app.scopes) == 3
    refused = answers[-1]
    retry_after = int(refused.header("retry-after") or "")
    assert 50 <= retry_after <= 61
    assert retry_after * 1000 - 1000 < int(refused.header("retry-after-ms") or "") <= retry_after * 1000
    assert refused.json() == {
        "error": {
            "message": "Rate limit exceeded",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
            "details": {
                "limit": "control_requests",
                "quota": 2,
                "window_seconds": 60,
                "retry_after_seconds": retry_after,
            },
        }
    }


async def test_wait_has_a_little_jitter() -> None:
    middleware = throttled(Answering(*ANSWER), "1/hour", jitter=lambda: 1.0)

    [_, refused] = [await converse(middleware, headers=[AS_ALICE]) for _ in range(2)]

    assert 3_700_000 < int(refused.header("retry-after-ms") or "") <= 3_780_002


@pytest.mark.parametrize("limit", ["mints", "control_requests"])
async def test_limit_has_the_name_that_it_is_given(limit: str) -> None:
    middleware = throttled(Answering(*ANSWER), "1/minute", limit=limit)

    [_, refused] = [await converse(middleware, headers=[AS_ALICE]) for _ in range(2)]

    assert refused.json()["error"]["details"]["limit"] == limit


async def test_every_method_counts() -> None:
    middleware = throttled(Answering(*ANSWER), "4/minute")
    methods = ("GET", "HEAD", "OPTIONS", "DELETE", "POST", "HEAD")

    answers = [await converse(middleware, method, headers=[AS_ALICE]) for method in methods]

    assert [answer.status for answer in answers] == [200] * 4 + [429] * 2


async def test_stranger_costs_nobody_anything() -> None:
    middleware = throttled(Answering(*ANSWER), "1/minute")

    strangers = [await converse(middleware, headers=[("authorization", "Bearer nonsense")]) for _ in range(3)]
    answer = await converse(middleware, headers=[AS_ALICE])

    assert {stranger.status for stranger in strangers} == {401}
    assert answer.status == 200


async def test_websockets_count_too() -> None:
    async def accepting(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    middleware = throttled(accepting, "1/minute")

    first = await knock(middleware, headers=[AS_ALICE])
    refused = await knock(middleware, headers=[AS_ALICE])
    closed = await knock(middleware, headers=[AS_ALICE], can_deny=False)

    assert first == [{"type": "websocket.accept"}]
    assert (refused[0]["type"], refused[0]["status"]) == ("websocket.http.response.start", 429)
    assert json.loads(refused[1]["body"])["error"]["details"]["limit"] == "control_requests"
    assert closed == [{"type": "websocket.close", "code": 1008, "reason": "Rate limit exceeded"}]


async def test_lifespan_passes() -> None:
    throttle = MovingWindowThrottle("1/minute", name="control")

    messages = await start_up(ThrottleMiddleware(starting_up, throttle=throttle))

    assert messages == [{"type": "lifespan.startup.complete"}]


async def test_without_an_identity_it_says_which_middleware_is_missing() -> None:
    throttle = MovingWindowThrottle("1/minute", name="control")

    answer = await converse(ThrottleMiddleware(Answering(*ANSWER), throttle=throttle))

    assert isinstance(answer.exception, LookupError)
    assert str(answer.exception) == "ThrottleMiddleware needs to know the identity: wrap it in IdentityMiddleware"


async def test_body_of_a_refused_request_is_not_read() -> None:
    async def receive() -> Any:
        raise AssertionError("a server would answer 100-continue now")

    middleware = throttled(Answering(*ANSWER), "1/minute")
    await converse(middleware, headers=[AS_ALICE])

    answer = await converse(lambda scope, _, send: middleware(scope, receive, send), "POST", headers=[AS_ALICE])

    assert (answer.status, answer.exception) == (429, None)


async def test_requests_at_once_over_a_socket_pass_as_often_as_the_limit_says() -> None:
    app = ErrorEnvelopeMiddleware(throttled(Answering(*ANSWER), "10/minute"))
    answers: list[httpx.Response] = []

    async with serving(app) as url, httpx.AsyncClient(base_url=url, headers=[AS_ALICE]) as client:

        async def ask() -> None:
            answers.append(await client.get("/v1/me"))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for _ in range(40):
                    group.start_soon(ask)

    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 30
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(answer.headers["x-request-id"] and answer.headers["retry-after"] for answer in refused)
