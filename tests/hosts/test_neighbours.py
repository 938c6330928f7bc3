"""Other middlewares of a host app, inside and outside of ours."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable, Iterable
from functools import partial

import anyio
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware import Identity, MaaSMiddleware, Settings
from maas_middleware.endpoints import CHAT_COMPLETIONS
from tests.deployments import chat
from tests.hosts.inference import ENDLESS, MODEL, Notes, Question, Served, completion, fastapi_app
from tests.hosts.sites import Site, hosted
from tests.parts import PassingOn

ORIGIN = "https://ui.example.com"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}
INSIDE_AND_OUTSIDE = pytest.mark.parametrize(
    "is_outside", [pytest.param(False, id="inside"), pytest.param(True, id="outside")]
)
Add = Callable[[FastAPI], None]


def with_ours(settings: Settings, app: FastAPI, add: Add, *, is_outside: bool) -> FastAPI:
    """The app with another middleware on one side of ours."""
    layers: list[Add] = [add, lambda app: app.add_middleware(MaaSMiddleware, settings=settings)]
    for layer in layers if is_outside is False else reversed(layers):
        layer(app)
    return app


def passing_on(app: FastAPI) -> None:
    app.add_middleware(PassingOn)


def zipping(app: FastAPI) -> None:
    app.add_middleware(GZipMiddleware, minimum_size=1)


def sharing(app: FastAPI) -> None:
    app.add_middleware(CORSMiddleware, allow_origins=[ORIGIN], allow_methods=["*"], allow_headers=["*"])


async def ask_for_stream(site: Site, headers: dict[str, str]) -> str:
    return (await site.ask(headers, stream=True)).text


@INSIDE_AND_OUTSIDE
async def test_base_http_middleware_streams_and_is_charged(is_outside: bool) -> None:
    make = partial(with_ours, app=fastapi_app(Notes()), add=passing_on, is_outside=is_outside)
    async with hosted(make) as site:
        headers = await site.headers()
        before = await site.tokens_left(headers)

        whole, stream = await site.ask(headers), await ask_for_stream(site, headers)
        after = await site.tokens_left(headers)

    assert whole.headers["x-odhu-usage-total-tokens"] == "5"
    assert stream.count("data: {") == 2
    assert stream.endswith("data: [DONE]\n\n")
    assert before - after == 10


@INSIDE_AND_OUTSIDE
async def test_client_that_leaves_is_charged_through_base_http_middleware(is_outside: bool) -> None:
    notes = Notes()

    def make(settings: Settings) -> ASGIApp:
        return Served(with_ours(settings, fastapi_app(notes), passing_on, is_outside=is_outside), notes)

    async with hosted(make) as site:
        headers = await site.headers()
        before = await site.tokens_left(headers)
        asked = chat(MODEL, stream=True, messages=[{"role": "user", "content": ENDLESS}])
        async with site.client.stream("POST", CHAT_COMPLETIONS, json=asked, headers=headers) as answer:
            await anext(answer.aiter_raw())
        await notes.served.wait()
        after = await site.tokens_left(headers)

    assert notes.cancelled.is_set()
    assert 2 <= before - after < 20


async def test_function_that_is_a_middleware_of_the_host_sees_the_caller() -> None:
    seen: list[str] = []
    app = fastapi_app(Notes())

    @app.middleware("http")
    async def note(request: Request, call_next: Callable[[Request], object]) -> object:
        seen.append(request.state.maas.identity.name)
        return await call_next(request)  # type: ignore[misc]  # as FastAPI's own documentation writes it

    def make(settings: Settings) -> ASGIApp:
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make) as site:
        answer = await site.ask(await site.headers())

    assert answer.status_code == 200
    assert seen == ["pat"]


@INSIDE_AND_OUTSIDE
async def test_compressed_answers_are_counted(is_outside: bool) -> None:
    make = partial(with_ours, app=fastapi_app(Notes()), add=zipping, is_outside=is_outside)
    async with hosted(make) as site:
        headers = await site.headers() | {"accept-encoding": "gzip"}
        before = await site.tokens_left(headers)

        whole, stream = await site.ask(headers), await ask_for_stream(site, headers)
        after = await site.tokens_left(headers)

    # inside it does not hear of what the client accepts: what is compressed cannot be counted
    assert whole.headers.get("content-encoding") == ("gzip" if is_outside else None)
    assert whole.json()["usage"]["total_tokens"] == 5
    assert whole.headers["x-odhu-usage-total-tokens"] == "5"
    assert stream.endswith("data: [DONE]\n\n")
    assert before - after == 10


async def test_compression_inside_of_us_goes_on_for_the_hosts_own_routes() -> None:
    make = partial(with_ours, app=fastapi_app(Notes()), add=zipping, is_outside=False)
    async with (
        hosted(make, scope="inference") as site,
        site.client.stream("GET", "/page", headers={"accept-encoding": "gzip"}) as page,
    ):
        raw = b"".join([piece async for piece in page.aiter_raw()])

    assert page.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw) == b'"a page"'


@INSIDE_AND_OUTSIDE
async def test_preflights_of_the_host_pass(is_outside: bool) -> None:
    make = partial(with_ours, app=fastapi_app(Notes()), add=sharing, is_outside=is_outside)
    async with hosted(make) as site:
        preflight = await site.client.options(CHAT_COMPLETIONS, headers=PREFLIGHT)

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN


@INSIDE_AND_OUTSIDE
async def test_refusals_are_readable_in_browsers_where_cors_is_outside(is_outside: bool) -> None:
    make = partial(with_ours, app=fastapi_app(Notes()), add=sharing, is_outside=is_outside)
    async with hosted(make) as site:
        refused = await site.client.post(CHAT_COMPLETIONS, json=chat(MODEL), headers={"origin": ORIGIN})
        answer = await site.ask(await site.headers() | {"origin": ORIGIN})

    assert refused.status_code == 401
    assert refused.headers.get("access-control-allow-origin") == (ORIGIN if is_outside else None)
    assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN]


def shared(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [pair for pair in headers if pair[0] == "access-control-allow-origin"]


@pytest.mark.parametrize("has_own", [pytest.param(False, id="alone"), pytest.param(True, id="beside-the-hosts-own")])
async def test_refusals_are_readable_in_browsers_by_setting(has_own: bool) -> None:
    def make(settings: Settings) -> ASGIApp:
        return with_ours(settings, fastapi_app(Notes()), sharing if has_own else lambda _: None, is_outside=False)

    async with hosted(make, cors_origins=[ORIGIN], scope="inference") as site:
        headers = await site.headers()
        preflight = await site.client.options(CHAT_COMPLETIONS, headers=PREFLIGHT)
        refused = await site.client.post(CHAT_COMPLETIONS, json=chat(MODEL), headers={"origin": ORIGIN})
        answer = await site.ask(headers | {"origin": ORIGIN})
        foreign = await site.ask(headers | {"origin": "https://elsewhere.example.com"})
        listed = await site.client.get("/v1/models", headers=headers | {"origin": ORIGIN})
        page = await site.client.get("/page", headers={"origin": ORIGIN})

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    for readable in (refused, answer, listed):
        assert shared(readable.headers.multi_items()) == [("access-control-allow-origin", ORIGIN)]
        assert "x-request-id" in readable.headers["access-control-expose-headers"].lower()
    assert (refused.status_code, answer.status_code, foreign.status_code) == (401, 200, 200)
    assert shared(foreign.headers.multi_items()) == []
    assert len(shared(page.headers.multi_items())) == has_own  # the host's own route is its own business


async def test_background_tasks_run_behind_an_answer_that_is_settled_once() -> None:
    gate, done = anyio.Event(), anyio.Event()
    app = FastAPI()

    async def clean_up() -> None:
        await gate.wait()
        done.set()

    @app.post(CHAT_COMPLETIONS)
    async def complete(question: Question, tasks: BackgroundTasks) -> dict[str, object]:
        tasks.add_task(clean_up)
        return completion(question)

    def make(settings: Settings) -> ASGIApp:
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make) as site:
        headers = await site.headers()
        before = await site.tokens_left(headers)
        answer = await site.ask(headers)
        while_it_runs = await site.tokens_left(headers)
        assert not done.is_set()
        gate.set()
        await done.wait()
        after = await site.tokens_left(headers)

    assert answer.status_code == 200
    assert (before - while_it_runs, before - after) == (5, 5)


async def test_dependency_of_fastapi_knows_the_caller() -> None:
    app = FastAPI()

    def caller(request: Request) -> Identity:
        identity = request.state.maas.identity
        assert isinstance(identity, Identity)
        return identity

    @app.post(CHAT_COMPLETIONS)
    async def complete(question: Question, who: Identity = Depends(caller)) -> dict[str, object]:  # noqa: B008
        return completion(question) | {"who": who.name, "groups": list(who.groups)}

    def make(settings: Settings) -> ASGIApp:
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make) as site:
        answer = (await site.ask(await site.headers())).json()

    assert answer["who"] == "pat"
    assert "premium-group" in answer["groups"]


@pytest.mark.parametrize("scope", ["all", "inference"])
async def test_applied_twice_it_works_once_and_says_so(scope: str, caplog: pytest.LogCaptureFixture) -> None:
    def make(settings: Settings) -> ASGIApp:
        app = fastapi_app(Notes())
        app.add_middleware(PassingOn)
        app.add_middleware(MaaSMiddleware, settings=settings)
        app.add_middleware(PassingOn)
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make, scope=scope) as site:
        headers = await site.headers()
        before = await site.tokens_left(headers)
        answers = [await site.ask(headers) for _ in range(2)]
        after = await site.tokens_left(headers)

    said = [record for record in caplog.records if "twice" in record.getMessage()]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert before - after == 10
    assert answers[1].headers["x-ratelimit-remaining-requests"] == "18"
    assert [record.levelno for record in said] == [logging.WARNING]


async def test_middleware_of_the_host_that_answers_itself_is_charged_with_nothing() -> None:
    class Maintenance(BaseHTTPMiddleware):
        """Such as a model that is loading."""

        def __init__(self, app: ASGIApp) -> None:
            super().__init__(app)
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"7")]})
            await send({"type": "http.response.body", "body": b"Scaling"})

    def make(settings: Settings) -> ASGIApp:
        return with_ours(settings, fastapi_app(Notes()), lambda app: app.add_middleware(Maintenance), is_outside=False)

    async with hosted(make) as site:
        headers = await site.headers()
        before = await site.tokens_left(headers)
        answer = await site.ask(headers)
        after = await site.tokens_left(headers)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json()["error"]["code"] == "upstream_unavailable"
    assert before == after
