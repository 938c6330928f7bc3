from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import anyio
import pytest
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from maas_middleware.context import get_context
from maas_middleware.errors import AuthUnavailable, InvalidCredentials, RateLimitExceeded
from maas_middleware.identity import Identity
from maas_middleware.ledgers.throttles import MovingWindowThrottle
from maas_middleware.middleware.identity import IdentityMiddleware
from maas_middleware.testing.converse import Conversation, converse, http_scope
from maas_middleware.throttling import Refusal
from tests.parts import (
    ALICE,
    AS_ALICE,
    AS_BOB,
    BOB,
    PROVIDER,
    Answering,
    identified,
    json_answer,
    knock,
    start_up,
    starting_up,
)


class Raising:
    """A provider that cannot tell, or knows better."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def identify(self, scope: Scope, /) -> Identity | None:
        raise self._error


class Nobody:
    """A provider that knows no kind of credential."""

    async def identify(self, scope: Scope, /) -> Identity | None:
        return None


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([AS_ALICE], id="bearer"),
        pytest.param([("Authorization", "bEARER alice-token")], id="bearer-in-any-case"),
        pytest.param([("x-api-key", "alice-token")], id="x-api-key"),
        pytest.param([("X-API-Key", "alice-token")], id="x-api-key-in-any-case"),
        pytest.param([("x-api-key", "nonsense"), AS_ALICE], id="authorization-wins"),
    ],
)
async def test_caller_who_is_known_passes(headers: list[tuple[str, str]]) -> None:
    app = Answering(*json_answer(b"{}"))

    answer = await converse(identified(app), headers=headers)

    assert (answer.status, answer.body) == (200, b"{}")
    assert get_context(app.scopes[0]).identity == ALICE


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        pytest.param([], "missing", id="none"),
        pytest.param([("authorization", "Bearer nonsense")], "unknown", id="unknown"),
        pytest.param([("authorization", "alice-token")], "malformed", id="without-a-scheme"),
        pytest.param([("authorization", "Basic YTpi")], "malformed", id="another-scheme"),
        pytest.param([("authorization", "Bearer ")], "malformed", id="without-a-token"),
        pytest.param([("authorization", "")], "malformed", id="empty"),
        pytest.param([("x-api-key", "")], "malformed", id="empty-x-api-key"),
        pytest.param([("authorization", "Bearer " + "a" * 8193)], "malformed", id="over-8-kib"),
        pytest.param(
            [("authorization", "Basic YTpi"), ("x-api-key", "alice-token")], "malformed", id="wins-though-bad"
        ),
    ],
)
async def test_caller_who_is_not_known_is_401_with_the_reason(headers: list[tuple[str, str]], reason: str) -> None:
    app = Answering(*json_answer(b"{}"))

    answer = await converse(identified(app), headers=headers)

    assert answer.status == 401
    assert answer.header("www-authenticate") == "Bearer"
    assert answer.json() == {
        "error": {
            "message": "Invalid authentication token",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
            "details": {"reason": reason},
        }
    }
    assert app.scopes == []


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        pytest.param([], "missing", id="no-credential"),
        pytest.param([AS_ALICE], "unknown", id="no-provider-for-its-kind"),
    ],
)
async def test_credential_that_no_provider_answers_for_is_401(headers: list[tuple[str, str]], reason: str) -> None:
    answer = await converse(IdentityMiddleware(Answering(), provider=Nobody()), headers=headers)

    assert (answer.status, answer.json()["error"]["details"]) == (401, {"reason": reason})


@pytest.mark.parametrize("reason", [pytest.param("expired", id="expired"), pytest.param("revoked", id="revoked")])
async def test_provider_says_why_a_credential_is_refused(reason: Literal["expired", "revoked"]) -> None:
    app = IdentityMiddleware(Answering(), provider=Raising(InvalidCredentials(reason)))

    answer = await converse(app, headers=[AS_ALICE])

    assert (answer.status, answer.json()["error"]["details"]) == (401, {"reason": reason})


@pytest.mark.parametrize(
    "name", [pytest.param("authorization", id="authorization"), pytest.param("x-api-key", id="key")]
)
async def test_repeated_credential_is_400(name: str) -> None:
    app = Answering()

    answer = await converse(identified(app), headers=[(name, "Bearer alice-token"), (name.upper(), "Bearer bob-token")])

    assert (answer.status, answer.json()["error"]["code"]) == (400, "repeated_header")
    assert app.scopes == []


class ByCookie:
    """A provider that looks at no credential of ours."""

    async def identify(self, scope: Scope, /) -> Identity | None:
        return ALICE


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
async def test_repeated_credential_is_400_whatever_a_provider_says(name: str) -> None:
    app = Answering(*json_answer(b"{}"))

    answer = await converse(IdentityMiddleware(app, provider=ByCookie()), headers=[(name, "a"), (name, "a")])

    assert (answer.status, answer.json()["error"]["code"]) == (400, "repeated_header")
    assert app.scopes == []


async def test_provider_may_accept_what_carries_several_headers_that_end_here() -> None:
    app = Answering(*json_answer(b"{}"))
    headers = [AS_BOB, ("x-api-key", "b"), ("x-remote-user", "root")]

    answer = await converse(IdentityMiddleware(app, provider=ByCookie()), headers=headers)

    assert (answer.status, app.headers) == (200, [])


async def test_credential_of_another_scheme_may_be_of_the_kind_of_another_provider() -> None:
    class Basic:
        async def identify(self, scope: Scope, /) -> Identity | None:
            return ALICE if (b"authorization", b"Basic YTpi") in scope["headers"] else None

    app = Answering(*json_answer(b"{}"))

    answer = await converse(IdentityMiddleware(app, provider=Basic()), headers=[("authorization", "Basic YTpi")])

    assert (answer.status, app.headers) == (200, [])


async def test_provider_that_cannot_tell_is_503_and_never_401() -> None:
    answer = await converse(IdentityMiddleware(Answering(), provider=Raising(AuthUnavailable())), headers=[AS_ALICE])

    assert (answer.status, answer.json()["error"]["code"]) == (503, "auth_unavailable")
    assert answer.header("retry-after") == "2"


async def test_fault_of_a_provider_lets_nobody_pass() -> None:
    app = Answering(*json_answer(b"{}"))

    answer = await converse(IdentityMiddleware(app, provider=Raising(ZeroDivisionError())), headers=[AS_ALICE])

    assert isinstance(answer.exception, ZeroDivisionError)
    assert (answer.messages, app.scopes) == ([], [])


async def test_body_of_a_stranger_is_not_read() -> None:
    async def receive() -> Message:
        raise AssertionError("a server would answer 100-continue now")

    answer = await converse(lambda scope, _, send: identified(Answering())(scope, receive, send), "POST", body=b"{}")

    assert (answer.status, answer.exception) == (401, None)


@pytest.mark.parametrize(
    "spelled",
    [pytest.param(str.lower, id="lower"), pytest.param(str.title, id="title"), pytest.param(str.upper, id="upper")],
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("x-maas-user", id="x-maas"),
        pytest.param("x-remote-user", id="x-remote-user"),
        pytest.param("x-remote-group", id="x-remote-group"),
        pytest.param("x-auth-request-user", id="oauth2-proxy"),
        pytest.param("x-forwarded-user", id="x-forwarded-user"),
        pytest.param("x-forwarded-email", id="x-forwarded-email"),
        pytest.param("x-forwarded-groups", id="x-forwarded-groups"),
        pytest.param("x-forwarded-preferred-username", id="x-forwarded-preferred-username"),
        pytest.param("x-forwarded-access-token", id="x-forwarded-access-token"),
        pytest.param("x-api-key", id="x-api-key"),
        pytest.param("api-key", id="api-key"),
    ],
)
async def test_credentials_and_forged_identities_do_not_reach_the_app(name: str, spelled: Callable[[str], str]) -> None:
    app = Answering(*json_answer(b"{}"))
    headers = [(spelled("authorization"), "Bearer alice-token"), (spelled(name), "forged"), ("accept", "*/*")]

    answer = await converse(identified(app), headers=headers)

    assert answer.status == 200
    assert app.headers == [(b"accept", b"*/*")]


async def test_other_headers_and_cookies_reach_the_app_as_they_are() -> None:
    app = Answering(*json_answer(b"{}"))
    others = [
        ("x-forwarded-for", "10.0.0.1"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("X-Request-ID", "1"),
        ("x-api-key-hint", "1"),
    ]

    await converse(identified(app), headers=[*others, AS_ALICE])

    assert app.headers == [(name.encode(), value.encode()) for name, value in others]


async def test_inner_key_is_the_credential_that_the_app_sees() -> None:
    app = Answering(*json_answer(b"{}"))

    await converse(IdentityMiddleware(app, provider=PROVIDER, inner_key="schlüssel"), headers=[AS_ALICE])

    key = "schlüssel".encode("latin-1")
    assert app.headers == [(b"authorization", b"Bearer " + key), (b"x-api-key", key)]


async def test_scope_of_the_server_keeps_its_headers_and_gets_no_user() -> None:
    scope = http_scope(headers=[AS_ALICE])

    await converse(lambda _, receive, send: identified(Answering(*json_answer(b"{}")))(scope, receive, send))

    assert scope["headers"] == [(b"authorization", b"Bearer alice-token")]
    assert "user" not in scope


async def test_starlette_app_inside_knows_the_user() -> None:
    @requires("authenticated")
    async def whoami(request: Request) -> JSONResponse:
        user = request.user
        names = [user.display_name, user.identity, user.is_authenticated, user.maas_identity.groups]
        return JSONResponse([*names, request.auth.scopes, request.state.maas.identity.name])

    app = Starlette(routes=[Route("/", whoami)])

    answer = await converse(identified(app), headers=[AS_BOB])

    assert answer.json() == ["bob", "test/bob", True, ["premium-users"], ["authenticated"], "bob"]


async def test_lifespan_passes() -> None:
    assert await start_up(identified(starting_up)) == [{"type": "lifespan.startup.complete"}]


async def test_websocket_of_a_stranger_is_denied() -> None:
    messages = await knock(identified(Answering()))

    assert messages[0]["type"] == "websocket.http.response.start"
    assert messages[0]["status"] == 401
    assert (b"www-authenticate", b"Bearer") in messages[0]["headers"]
    assert messages[1]["type"] == "websocket.http.response.body"
    assert json.loads(messages[1]["body"])["error"]["details"] == {"reason": "missing"}


async def test_websocket_of_a_stranger_is_closed_where_the_server_cannot_deny() -> None:
    messages = await knock(identified(Answering()), can_deny=False)

    assert messages == [{"type": "websocket.close", "code": 1008, "reason": "Invalid authentication token"}]


async def test_websocket_of_a_known_caller_reaches_the_app_without_the_credential() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert get_context(scope).identity == BOB
        assert scope["headers"] == []
        await send({"type": "websocket.accept"})

    assert await knock(identified(app), headers=[AS_BOB]) == [{"type": "websocket.accept"}]


HERE, THERE = ("203.0.113.7", 40000), ("203.0.113.8", 40000)
GUESS = ("authorization", "Bearer guess")
NO_BEARER = ("authorization", "Basic YTpi")


def guarded(limits: str = "2/minute", **options: Any) -> IdentityMiddleware:
    failures = MovingWindowThrottle(limits, name="failures")
    return IdentityMiddleware(Answering(*json_answer(b"{}")), provider=PROVIDER, failures=failures, **options)


async def tried(
    app: IdentityMiddleware, *headers: tuple[str, str], client: object = HERE, path: str = "/"
) -> Conversation:
    return await converse(app, "POST", path, headers=headers, scope={"client": client})


async def test_credentials_that_fail_are_429_above_the_limit_of_their_address() -> None:
    app = guarded(jitter=lambda: 0.0)

    answers = [await tried(app, GUESS), await tried(app, NO_BEARER), await tried(app, GUESS), await tried(app)]
    elsewhere = await tried(app, GUESS, client=THERE)

    assert [answer.status for answer in answers] == [401, 401, 429, 401]
    refused = answers[2]
    retry_after = int(refused.header("retry-after") or "")
    assert 50 <= retry_after <= 61
    assert refused.header("www-authenticate") is None
    assert refused.json() == {
        "error": {
            "message": "Rate limit exceeded",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
            "details": {
                "limit": "failed_credentials",
                "quota": 2,
                "window_seconds": 60,
                "retry_after_seconds": retry_after,
            },
        }
    }
    assert elsewhere.status == 401


async def test_wait_of_an_address_that_failed_too_often_has_a_little_jitter() -> None:
    app = guarded("1/hour", jitter=lambda: 1.0)

    [_, refused] = [await tried(app, GUESS) for _ in range(2)]

    assert 3_700_000 < int(refused.header("retry-after-ms") or "") <= 3_780_002


async def test_credential_that_is_accepted_passes_from_any_address() -> None:
    app = guarded("1/minute")
    refused = [await tried(app, GUESS) for _ in range(3)][-1]

    answers = [await tried(app, AS_ALICE) for _ in range(5)]

    assert refused.status == 429
    assert {answer.status for answer in answers} == {200}


async def test_accepted_credentials_cost_their_address_nothing() -> None:
    app = guarded("1/minute")

    for _ in range(5):
        await tried(app, AS_ALICE)

    assert (await tried(app, GUESS)).status == 401


@pytest.mark.parametrize("reason", ["missing", "expired", "revoked"])
async def test_what_was_signed_by_us_or_is_not_there_does_not_count(
    reason: Literal["missing", "expired", "revoked"],
) -> None:
    failures = MovingWindowThrottle("1/minute", name="failures")
    app = IdentityMiddleware(Answering(), provider=Raising(InvalidCredentials(reason)), failures=failures)

    answers = [await tried(app, AS_ALICE) for _ in range(5)]

    assert [(answer.status, answer.json()["error"]["details"]) for answer in answers] == [(401, {"reason": reason})] * 5


@pytest.mark.parametrize(
    "error", [pytest.param(AuthUnavailable(), id="503"), pytest.param(RateLimitExceeded(), id="429")]
)
async def test_what_says_nothing_of_the_credential_does_not_count(error: AuthUnavailable | RateLimitExceeded) -> None:
    failures = MovingWindowThrottle("1/minute", name="failures")
    app = IdentityMiddleware(Answering(), provider=Raising(error), failures=failures)

    answers = [await tried(app, GUESS) for _ in range(3)]

    assert {answer.status for answer in answers} == {error.status}
    assert await failures.peek("203.0.113.7") is None


async def test_repeated_header_is_400_however_often() -> None:
    app = guarded("1/minute")

    assert {(await tried(app, GUESS, GUESS)).status for _ in range(3)} == {400}


async def test_error_of_a_provider_of_ones_own_without_a_reason_does_not_count() -> None:
    error = InvalidCredentials("unknown")
    error.details = None
    failures = MovingWindowThrottle("1/minute", name="failures")
    app = IdentityMiddleware(Answering(), provider=Raising(error), failures=failures)

    assert [(await tried(app, GUESS)).status for _ in range(3)] == [401] * 3


async def test_addresses_of_one_ipv6_network_are_one() -> None:
    app = guarded("1/minute")
    clients = [("2001:db8::1", 1), ("2001:db8::ffff:1", 2), ("2001:db8:0:1::1", 3)]

    assert [(await tried(app, GUESS, client=client)).status for client in clients] == [401, 429, 401]


async def test_ipv4_address_is_one_however_it_is_written() -> None:
    app = guarded("1/minute")

    assert [(await tried(app, GUESS, client=client)).status for client in (HERE, ("::ffff:203.0.113.7", 1))] == [
        401,
        429,
    ]


async def test_client_without_an_address_is_not_counted() -> None:
    app = guarded("1/minute")

    assert [(await tried(app, GUESS, client=None)).status for _ in range(3)] == [401] * 3


async def test_refusal_speaks_the_dialect_of_its_path() -> None:
    app = guarded("1/minute")

    [_, refused] = [await tried(app, GUESS, path="/v1/messages") for _ in range(2)]

    assert refused.status == 429
    assert refused.json()["type"] == "error"
    assert refused.json()["error"]["type"] == "rate_limit_error"


async def test_websockets_of_strangers_count_too() -> None:
    failures = MovingWindowThrottle("1/minute", name="failures")
    app = IdentityMiddleware(Answering(), provider=PROVIDER, failures=failures)

    statuses = [(await knock(app, headers=[GUESS]))[0]["status"] for _ in range(2)]
    closed = await knock(app, headers=[GUESS], can_deny=False)

    assert statuses == [401, 429]
    assert closed == [{"type": "websocket.close", "code": 1008, "reason": "Rate limit exceeded"}]


async def test_whoever_hangs_up_is_counted_all_the_same() -> None:
    class Far:
        """A throttle that takes its time."""

        def __init__(self) -> None:
            self.asked, self.answers = anyio.Event(), anyio.Event()
            self.hits = 0

        async def hit(self, key: str, /) -> Refusal | None:
            self.asked.set()
            await self.answers.wait()
            self.hits += 1
            return None

        async def peek(self, key: str, count: int = 1, /) -> Refusal | None:
            return None

    failures = Far()
    app = IdentityMiddleware(Answering(), provider=PROVIDER, failures=failures)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as server:
            server.start_soon(lambda: tried(app, GUESS))
            await failures.asked.wait()
            server.cancel_scope.cancel()
            failures.answers.set()

    assert failures.hits == 1


@pytest.mark.parametrize(
    "name",
    [
        *("x-amzn-sagemaker-adapter-identifier", "X-Amzn-SageMaker-Session-Id", "x-vllm-priority"),
        *("x-data-parallel-rank", "endpoint-load-metrics-format"),
    ],
)
async def test_header_by_which_a_caller_would_steer_the_model_server_is_removed(name: str) -> None:
    app = Answering(*json_answer(b"{}"))

    await converse(identified(app), headers=[AS_ALICE, (name, "1"), ("x-own", "1")])

    assert app.headers == [(b"x-own", b"1")]
