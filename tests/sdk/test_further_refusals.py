"""Refusals that take more than a call: changed tiers, revoked tokens, broken bodies, and a service in trouble."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import anthropic
import anyio
import openai
import pytest
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware import MaaSMiddleware, load_settings, stack
from maas_middleware.errors import StoreUnavailable
from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.middleware.identity import IdentityMiddleware
from maas_middleware.middleware.rate_limit import RateLimitMiddleware
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.middleware.usage import UsageMiddleware
from maas_middleware.testing.cluster import ClusterUser, StandInCluster

from ..deployments import bearer
from ..parts import CATALOGUE, PROVIDER, RESOLVER, Answering, watched
from ..servers import serving
from .calls import ANTHROPIC_CALLS, OPENAI_CALLS, TURNS
from .site import CHAT, TIERS, SDKs, Site, User, sited

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

KINDS = ("chat", "responses-stream", "transcriptions")
MESSAGE_KINDS = ("messages", "messages-stream", "count-tokens")
TINY_CONTEXT = 8


@pytest.fixture(scope="module")
def tiers_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tiers") / "tiers.yaml"
    put_tiers(file, without="none")
    return file


def put_tiers(file: Path, *, without: str) -> None:
    file.write_text(json.dumps([tier for tier in TIERS if tier["name"] != without]))


@pytest.fixture(scope="module")
async def changing(site: Site, tmp_path_factory: pytest.TempPathFactory, tiers_file: Path) -> AsyncIterator[Site]:
    """A gateway whose tiers may change, with a model that has next to no context, and whose server is not there.

    It ends before `site`, and so has to begin after it.
    """
    tiny = {"id": "tiny", "tiers": "all", "upstreams": ["http://127.0.0.1:9"], "context_length": TINY_CONTEXT}
    async with sited(tmp_path_factory.mktemp("keys"), [tiny], tiers=None, tiers_file=str(tiers_file)) as changing:
        yield changing


def told_by_openai(error: openai.APIStatusError) -> tuple[int, str | None, str | None]:
    """Status, type and code, after a look at what all refusals have."""
    assert error.request_id
    assert error.request_id == error.response.headers["x-request-id"]
    return error.status_code, error.type, error.code


def told_by_anthropic(error: anthropic.APIStatusError) -> tuple[int, str | None]:
    """Status and type, after a look at what all refusals have."""
    assert isinstance(error.body, dict)
    assert error.body["type"] == "error"
    assert error.body["request_id"] == error.request_id == error.response.headers["x-request-id"]
    return error.status_code, error.type


async def openai_error(call: Awaitable[object]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await call
    return caught.value


async def anthropic_error(call: Awaitable[object]) -> anthropic.APIStatusError:
    with pytest.raises(anthropic.APIStatusError) as caught:
        await call
    return caught.value


def details(error: openai.APIStatusError | anthropic.APIStatusError) -> Any:
    """None where there are none."""
    assert isinstance(error.body, dict)
    return error.body.get("error", error.body).get("details")


def post(client: openai.AsyncOpenAI | anthropic.AsyncAnthropic, path: str, **sent: Any) -> Awaitable[object]:
    """Send a body that the SDKs themselves would not make."""
    content_type = sent.pop("content_type", "application/json")
    return client.post(path, cast_to=object, options={"headers": {"content-type": content_type}}, **sent)


async def costs_nothing(user: User, error: openai.APIStatusError | anthropic.APIStatusError) -> None:
    assert error.response.headers["x-ratelimit-remaining-requests"] == "1000"
    assert await user.used() == (0, 0)


async def test_tier_that_was_taken_away_from_a_live_token(changing: Site, tiers_file: Path) -> None:
    user = await changing.user("brisk")
    before = await changing.http.head(CHAT, headers=bearer(user.token))

    put_tiers(tiers_file, without="brisk")
    while (await changing.http.head(CHAT, headers=bearer(user.token))).status_code == 200:
        pass  # the test's deadline ends it
    errors = [await openai_error(OPENAI_CALLS[kind](user.openai(), "tiny")) for kind in KINDS]
    listing = await openai_error(user.openai().models.list())
    message_errors = [await anthropic_error(ANTHROPIC_CALLS[kind](user.anthropic(), "tiny")) for kind in MESSAGE_KINDS]

    assert before.status_code == 200
    assert {told_by_openai(error) for error in (*errors, listing)} == {(403, "permission_error", "no_tier")}
    assert {told_by_anthropic(error) for error in message_errors} == {(403, "permission_error")}
    for error in (*errors, listing, *message_errors):
        assert isinstance(error, openai.PermissionDeniedError | anthropic.PermissionDeniedError)
        assert "You are in no group that gives access to a tier" in error.message
        assert details(error) is None
        assert "x-ratelimit-limit-requests" not in error.response.headers


@pytest.mark.parametrize("which", ["one", "all"])
async def test_revoked_token(site: Site, which: str) -> None:
    login = f"sha256~revoked-{which}"
    site.cluster.users[login] = ClusterUser(f"revoked-{which}", ("premium",))
    minted = (await site.http.post("/v1/tokens", headers=bearer(login))).json()
    user = User(minted["token"], site.sdks, site.http)
    assert await user.used() == (0, 0)

    await site.http.delete(f"/v1/tokens/{minted['jti']}" if which == "one" else "/v1/tokens", headers=bearer(login))
    errors = [await openai_error(OPENAI_CALLS[kind](user.openai(), "simulator")) for kind in KINDS]
    errors.append(await openai_error(user.openai().models.list()))
    message_errors = [
        await anthropic_error(ANTHROPIC_CALLS[kind](user.anthropic(), "simulator")) for kind in MESSAGE_KINDS
    ]

    assert {told_by_openai(error) for error in errors} == {(401, "invalid_request_error", "invalid_api_key")}
    assert {told_by_anthropic(error) for error in message_errors} == {(401, "authentication_error")}
    for error in (*errors, *message_errors):
        assert isinstance(error, openai.AuthenticationError | anthropic.AuthenticationError)
        assert details(error) == {"reason": "revoked"}
        assert error.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/models"])
async def test_repeated_header(site: Site, path: str, name: str) -> None:
    user = await site.user()
    credential = f"Bearer {user.token}" if name == "authorization" else user.token

    answer = await site.http.post(path, json={}, headers=[(name, credential), (name, credential)])

    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["type"], error["message"]) == ("invalid_request_error", f"The header {name} is repeated")
    assert error.get("code") == (None if path == "/v1/messages" else "repeated_header")
    assert await user.used() == (0, 0)


@pytest.mark.parametrize(
    ("kind", "param"),
    [
        ("chat", "max_tokens"),
        ("chat-stream", "max_tokens"),
        ("completions", "max_tokens"),
        ("responses", "max_output_tokens"),
    ],
)
async def test_prompt_that_may_fill_the_context_needs_a_cap(changing: Site, kind: str, param: str) -> None:
    user = await changing.user("capped")

    error = await openai_error(OPENAI_CALLS[kind](user.openai(), "tiny"))

    assert isinstance(error, openai.BadRequestError)
    assert told_by_openai(error) == (400, "invalid_request_error", "max_tokens_required")
    assert (error.param, details(error)) == (param, {"maximum": 20})
    assert f"`{param}` is required; your tier allows 20" in error.message
    await costs_nothing(user, error)


async def test_message_that_may_fill_the_context_needs_a_cap(changing: Site) -> None:
    user = await changing.user("capped")

    error = await anthropic_error(post(user.anthropic(), "/v1/messages", body={"model": "tiny", "messages": TURNS}))

    assert isinstance(error, anthropic.BadRequestError)
    assert told_by_anthropic(error) == (400, "invalid_request_error")
    assert details(error) == {"maximum": 20}
    assert "`max_tokens` is required; your tier allows 20" in error.message
    await costs_nothing(user, error)


BROKEN = [
    pytest.param(b'{"model": "simulator", ', id="cut"),
    pytest.param(b'["simulator"]', id="no-object"),
    pytest.param(b'{"model": "\xff"}', id="no-text"),
    pytest.param(b"", id="empty"),
]


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/embeddings", "/audio/speech"])
async def test_body_that_is_no_json(site: Site, path: str, content: bytes) -> None:
    user = await site.user()

    error = await openai_error(post(user.openai(), path, content=content))

    assert isinstance(error, openai.BadRequestError)
    assert told_by_openai(error) == (400, "invalid_request_error", "invalid_json")
    assert "The request body is not a JSON object" in error.message
    assert (error.param, details(error)) == (None, None)
    await costs_nothing(user, error)


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_message_that_is_no_json(site: Site, path: str, content: bytes) -> None:
    user = await site.user()

    error = await anthropic_error(post(user.anthropic(), path, content=content))

    assert isinstance(error, anthropic.BadRequestError)
    assert told_by_anthropic(error) == (400, "invalid_request_error")
    assert "The request body is not a JSON object" in error.message
    await costs_nothing(user, error)


FORMS = ("/audio/transcriptions", "/audio/translations", "/images/edits", "/images/variations")
NO_FORMS = [  # to what the SDK knows as a form, it adds a boundary and fields of its own
    pytest.param("Multipart/form-data; boundary=x", b"--x\r\ncontent-disp", 400, "invalid_form", id="cut"),
    pytest.param("Multipart/form-data", b"--x--\r\n", 400, "invalid_form", id="no-boundary"),
    pytest.param("application/json", b'{"model": "simulator"}', 415, "unsupported_media_type", id="json"),
    pytest.param("Multipart/form-data; boundary=x; charset=utf-7", b"", 415, "unsupported_media_type", id="charset"),
]


@pytest.mark.parametrize(("content_type", "content", "status", "code"), NO_FORMS)
@pytest.mark.parametrize("path", FORMS)
async def test_body_that_is_no_form(
    site: Site, path: str, content_type: str, content: bytes, status: int, code: str
) -> None:
    user = await site.user()

    error = await openai_error(post(user.openai(), path, content=content, content_type=content_type))

    assert told_by_openai(error) == (status, "invalid_request_error", code)
    assert isinstance(error, openai.BadRequestError) is (status == 400)
    assert (error.param, details(error)) == (None, None)
    await costs_nothing(user, error)


def sdks_at(site: Site, url: str) -> SDKs:
    return SDKs(url, site.sdks.openai_pool, site.sdks.anthropic_pool)


@asynccontextmanager
async def calling(site: Site, app: ASGIApp) -> AsyncIterator[User]:
    """Serve an app; yields somebody whom `PROVIDER` knows."""
    async with serving(app, lifespan="off") as url:
        yield User("alice-token", sdks_at(site, url), site.http)


@asynccontextmanager
async def calling_mounted(
    site: Site, app: ASGIApp, refused: anyio.Event | None = None, **settings: Any
) -> AsyncIterator[User]:
    """Serve an app inside of the middleware; yields somebody with an access token.

    Args:
        refused: set when an error leaves.
    """

    def note(message: Message) -> None:
        if refused is not None and message.get("status", 0) >= 400:
            refused.set()

    async with serving(StandInCluster({"sha256~ulla": ClusterUser("ulla")})) as cluster:
        settings = {"openshift": {"api_url": cluster}, **settings}
        service = MaaSMiddleware(app, settings=load_settings({}, **settings))
        async with serving(watched(service, note), lifespan="off") as url:
            minted = await site.http.post(f"{url}/v1/tokens", headers=bearer("sha256~ulla"))
            yield User(minted.json()["token"], sdks_at(site, url), site.http)


async def slowly(refused: anyio.Event) -> AsyncIterator[bytes]:
    yield b'{"model": "simulator", '
    await refused.wait()


async def test_body_that_takes_too_long(site: Site) -> None:
    refused = anyio.Event()
    async with calling_mounted(site, Answering(), refused, proxy={"body_timeout": 0.1}) as user:
        error = await openai_error(post(user.openai(), "/chat/completions", content=slowly(refused)))

    assert told_by_openai(error) == (408, "timeout_error", "request_timeout")
    assert "The request body took too long to arrive" in error.message
    assert (error.param, details(error)) == (None, None)
    assert error.response.headers["x-ratelimit-remaining-requests"] == "5"


async def test_message_that_takes_too_long(site: Site) -> None:
    refused = anyio.Event()
    async with calling_mounted(site, Answering(), refused, proxy={"body_timeout": 0.1}) as user:
        error = await anthropic_error(post(user.anthropic(), "/v1/messages", content=slowly(refused)))

    assert told_by_anthropic(error) == (408, "invalid_request_error")
    assert "The request body took too long to arrive" in error.message


async def test_app_that_raises(site: Site) -> None:
    async with calling_mounted(site, Answering(raises=RuntimeError("no route to 10.0.0.1"))) as user:
        errors = [await openai_error(OPENAI_CALLS[kind](user.openai(), "simulator")) for kind in KINDS]
        message_errors = [
            await anthropic_error(ANTHROPIC_CALLS[kind](user.anthropic(), "simulator")) for kind in MESSAGE_KINDS
        ]

    assert {told_by_openai(error) for error in errors} == {(500, "server_error", "internal_error")}
    assert {told_by_anthropic(error) for error in message_errors} == {(500, "api_error")}
    for error in (*errors, *message_errors):
        assert isinstance(error, openai.InternalServerError | anthropic.InternalServerError)
        assert f"Internal error (request {error.request_id})" in error.message
        assert "10.0.0.1" not in error.response.text
        assert details(error) is None
        assert "retry-after" not in error.response.headers


class UnreachableLedger(MemoryLedger):
    """Cannot be reached whenever somebody wants to be admitted."""

    async def admit(self, *_: object) -> NoReturn:
        raise StoreUnavailable


def with_ledger(ledger: MemoryLedger) -> ASGIApp:
    return stack(
        Answering(),
        Middleware(ErrorEnvelopeMiddleware),
        Middleware(IdentityMiddleware, provider=PROVIDER),
        Middleware(TierMiddleware, resolver=RESOLVER, catalogue=CATALOGUE, ledger=ledger),
        Middleware(RateLimitMiddleware, ledger=ledger),
        Middleware(UsageMiddleware),
    )


def without_configuration() -> ASGIApp:
    return MaaSMiddleware(Answering(), settings=load_settings({}, public_paths=["/v1/completions"]))


@pytest.mark.parametrize(
    ("app", "code", "message"),
    [
        pytest.param(
            lambda: with_ledger(UnreachableLedger()),
            "store_unavailable",
            "The service cannot reach its store at the moment",
            id="store",
        ),
        pytest.param(without_configuration, "not_configured", "The service is not configured", id="configuration"),
    ],
)
async def test_service_that_cannot_serve(site: Site, app: Any, code: str, message: str) -> None:
    async with calling(site, app()) as user:
        errors = [await openai_error(OPENAI_CALLS[kind](user.openai(), "simulator")) for kind in KINDS]
        message_errors = [
            await anthropic_error(ANTHROPIC_CALLS[kind](user.anthropic(), "simulator")) for kind in MESSAGE_KINDS
        ]

    assert {told_by_openai(error) for error in errors} == {(503, "server_error", code)}
    assert {told_by_anthropic(error) for error in message_errors} == {(503, "overloaded_error")}
    for error in (*errors, *message_errors):
        assert isinstance(error, openai.InternalServerError | anthropic.ServiceUnavailableError)
        assert f"{message} (request {error.request_id})" in error.message
        assert details(error) is None
        assert error.response.headers["retry-after"] == "2"


@contextmanager
def cluster_down(site: Site, failure: ASGIApp) -> Iterator[None]:
    site.cluster.failure = failure
    try:
        yield
    finally:
        site.cluster.failure = None


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        pytest.param(500, {}, "2", id="no-wait-is-known"),
        pytest.param(503, {"retry-after": "7"}, "7", id="the-clusters-own-wait"),
    ],
)
async def test_login_while_the_cluster_is_down(site: Site, status: int, headers: Mapping[str, str], wait: str) -> None:
    models = site.sdks.openai("sha256~nobody").models
    anthropic_models = site.sdks.anthropic("sha256~nobody").models

    with cluster_down(site, JSONResponse({}, status, dict(headers))):
        errors = [await openai_error(models.list()), await openai_error(models.retrieve("simulator"))]
        other = await anthropic_error(anthropic_models.list())

    assert {told_by_openai(error) for error in errors} == {(503, "server_error", "auth_unavailable")}
    for error in (*errors, other):
        assert isinstance(error, openai.InternalServerError | anthropic.ServiceUnavailableError)
        request_id = error.response.headers["x-request-id"]
        assert f"The identity provider does not answer at the moment (request {request_id})" in error.message
        assert details(error) is None
        assert error.response.headers["retry-after"] == wait


async def test_sdks_wait_as_long_as_a_503_says_and_then_pass(site: Site) -> None:
    waited: dict[str, float] = {}
    logins = {name: f"sha256~patient-{name}" for name in ("openai", "anthropic")}
    site.cluster.users |= {login: ClusterUser(name, ("premium",)) for name, login in logins.items()}
    clients: dict[str, openai.AsyncOpenAI | anthropic.AsyncAnthropic] = {
        "openai": site.sdks.openai(logins["openai"], max_retries=1),
        "anthropic": site.sdks.anthropic(logins["anthropic"], max_retries=1),
    }
    failed = 0

    async def fail_once_each(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal failed
        failed += 1
        if failed == len(clients):
            site.cluster.failure = None
        await JSONResponse({}, 503, {"retry-after": "1"})(scope, receive, send)

    async def list_models(name: str) -> None:
        started = anyio.current_time()
        await clients[name].models.list()
        waited[name] = anyio.current_time() - started

    with cluster_down(site, fail_once_each), anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for name in clients:
                group.start_soon(list_models, name)

    assert failed == 2
    assert min(waited.values()) >= 1  # of themselves they would wait for half a second
