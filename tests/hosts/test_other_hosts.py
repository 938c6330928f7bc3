"""What other hosts do, imitated: llama-cpp-python, LitServe, transformers serve, BentoML, Ray Serve and SGLang."""

from __future__ import annotations

import copy
import pickle
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio
import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware import MaaSMiddleware, Settings, load_settings
from maas_middleware.endpoints import CHAT_COMPLETIONS
from maas_middleware.testing.cluster import StandInCluster
from maas_middleware.testing.converse import converse
from maas_middleware.testing.lifespan import started
from tests.deployments import UNTHROTTLED, USERS, bearer, chat
from tests.hosts.inference import MODEL, Notes, Served, fastapi_app
from tests.hosts.sites import host_settings, hosted, hosting
from tests.parts import PassingOn
from tests.servers import serving_in_thread
from tests.streams import RECORDINGS

PIECE = 61  # bytes, which have nothing to do with events


def recorded(name: str) -> bytes:
    return next(recording.plain for recording in RECORDINGS if recording.name == name)


class TwoReaders:
    """Streams as llama-cpp-python does: sse-starlette waits for the client to leave, and so does the publisher."""

    def __init__(self, notes: Notes, *, is_endless: bool = False) -> None:
        self._notes = notes
        self._is_endless = is_endless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        await request.body()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen, receive, group.cancel_scope)
            stream = recorded("llama-cpp")
            for at in range(0, len(stream), PIECE):
                assert not await request.is_disconnected()
                await send({"type": "http.response.body", "body": stream[at : at + PIECE], "more_body": True})
                if self._is_endless and at > 10 * PIECE:
                    await anyio.sleep_forever()
            await send({"type": "http.response.body", "body": b""})
            group.cancel_scope.cancel()

    async def _listen(self, receive: Receive, scope: anyio.CancelScope) -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await receive()
        self._notes.cancelled.set()
        scope.cancel()


def put_round(app: ASGIApp, settings: Settings) -> ASGIApp:
    return MaaSMiddleware(app, settings=settings)


async def test_llama_cpp_stream_without_usage_is_charged_by_what_it_produced() -> None:
    async with hosted(partial(put_round, TwoReaders(Notes()))) as site:
        headers = await site.headers()
        before = await site.tokens_left(headers)
        answer = await site.ask(headers, stream=True)
        after = await site.tokens_left(headers)

    assert answer.content == recorded("llama-cpp")
    assert b": ping" in answer.content
    assert before - after == 12 + 3  # the estimate of its prompt, and the pieces with words


async def test_client_that_leaves_is_heard_by_both_readers_of_llama_cpp() -> None:
    notes = Notes()

    def make(settings: Settings) -> ASGIApp:
        return Served(MaaSMiddleware(TwoReaders(notes, is_endless=True), settings=settings), notes)

    async with hosted(make) as site:
        headers = await site.headers()
        before = await site.tokens_left(headers)
        asked = chat(MODEL, stream=True)
        async with site.client.stream("POST", CHAT_COMPLETIONS, json=asked, headers=headers) as answer:
            await anext(answer.aiter_raw())
        await notes.served.wait()
        after = await site.tokens_left(headers)

    assert notes.cancelled.is_set()
    assert 1 <= before - after < 40


def transformers_serve(fails: bool) -> Starlette:
    """Streams with usage on the last chunk that has a choice, and no `[DONE]`; its errors are plain text."""

    async def chat_completions(request: Request) -> Response:
        if fails:
            return PlainTextResponse("Internal Server Error", 500)
        stream = recorded("transformers")
        pieces = [stream[at : at + PIECE] for at in range(0, len(stream), PIECE)]

        async def generate() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return StreamingResponse(generate(), media_type="text/event-stream")

    route = Route(CHAT_COMPLETIONS, chat_completions, methods=["POST"])
    return Starlette(routes=[route], middleware=[Middleware(PassingOn)])


async def test_transformers_stream_without_done_is_whole_and_exactly_charged() -> None:
    used = next(recording.usage for recording in RECORDINGS if recording.name == "transformers")
    assert used is not None
    async with hosted(partial(put_round, transformers_serve(fails=False))) as site:
        headers = await site.headers()
        before = await site.tokens_left(headers)
        answer = await site.ask(headers, stream=True)
        after = await site.tokens_left(headers)

    assert answer.content.count(b"data: {") == recorded("transformers").count(b"data: {")
    assert b"[DONE]" not in answer.content
    assert b"upstream_error" not in answer.content
    assert before - after == used.total


async def test_plain_text_500_of_a_host_is_in_the_envelope_and_costs_no_tokens() -> None:
    async with hosted(partial(put_round, transformers_serve(fails=True))) as site:
        headers = await site.headers()
        before = await site.tokens_left(headers)
        answer = await site.ask(headers)
        after = await site.tokens_left(headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert before == after


def in_threads(stack: ExitStack, *apps: ASGIApp) -> list[httpx.Client]:
    """A client for each app, which is served by a thread and an event loop of its own."""
    urls = [stack.enter_context(serving_in_thread(app)) for app in apps]
    return [stack.enter_context(httpx.Client(base_url=url, timeout=10)) for url in urls]


def minted(client: httpx.Client) -> dict[str, str]:
    answer = client.post("/v1/tokens", headers=bearer("sha256~premium"))
    assert answer.status_code == 201, answer.text
    return bearer(answer.json()["token"])


def test_instance_that_litserve_shares_between_two_loops_counts_once() -> None:
    with ExitStack() as stack:
        cluster = stack.enter_context(serving_in_thread(StandInCluster(USERS)))
        models = [{"id": MODEL, "tiers": "all"}]
        settings = load_settings({}, openshift={"api_url": cluster}, models=models, throttles=UNTHROTTLED)
        app = MaaSMiddleware(fastapi_app(Notes()), settings=settings)
        clients = in_threads(stack, app, copy.copy(app))
        headers = minted(clients[0])

        def ask(count: int) -> int:
            return clients[count % 2].post(CHAT_COMPLETIONS, json=chat(MODEL), headers=headers).status_code

        minted(clients[1])
        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(ask, range(22)))

    assert sorted(statuses) == [*[200] * 20, 429, 429]


def test_copies_of_litserve_share_tokens_by_a_database(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = stack.enter_context(serving_in_thread(StandInCluster(USERS)))
        models = [{"id": MODEL, "tiers": "all"}]
        store = f"sqlite:///{tmp_path}/maas.db"
        settings = load_settings({}, openshift={"api_url": cluster}, models=models, store=store)
        app = fastapi_app(Notes())
        app.add_middleware(MaaSMiddleware, settings=settings)
        first, second = in_threads(stack, copy.copy(app), copy.copy(app))

        headers = minted(first)
        answers = [client.post(CHAT_COMPLETIONS, json=chat(MODEL), headers=headers) for client in (first, second)]

    assert [answer.status_code for answer in answers] == [200, 200]


async def test_bentoml_builds_the_middleware_at_the_first_request() -> None:
    built: list[MaaSMiddleware] = []

    class Noted(MaaSMiddleware):
        def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
            super().__init__(app, settings=settings)
            built.append(self)

    async with host_settings() as settings:
        inner = FastAPI()
        inner.add_middleware(Noted, settings=settings)

        @inner.post("/chat/completions")
        async def complete() -> JSONResponse:
            return JSONResponse({"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})

        async with hosting(Starlette(routes=[Mount("/v1", app=inner)])) as site:
            before = len(built)
            answer = await site.ask(await site.headers())

    assert before == 0
    assert len(built) == 1
    assert answer.headers["x-odhu-usage-total-tokens"] == "2"


async def test_bentoml_gets_503_where_the_configuration_is_refused_at_the_first_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAAS_COUNTERS", "etcd://localhost")
    inner = FastAPI()
    inner.add_middleware(MaaSMiddleware)
    app = Starlette(routes=[Mount("/v1", app=inner)])

    answer = await converse(app, "POST", CHAT_COMPLETIONS, json=chat(MODEL))

    assert (answer.status, answer.json()["error"]["code"]) == (503, "not_configured")


async def test_ray_serve_pickles_the_middleware_with_its_settings() -> None:
    async with host_settings() as settings:
        middleware = Middleware(MaaSMiddleware, settings=settings)
        arrived = pickle.loads(pickle.dumps(middleware))

        async with hosting(arrived.cls(fastapi_app(Notes()), **arrived.kwargs)) as site:
            answer = await site.ask(await site.headers())

    assert arrived.kwargs["settings"] == settings
    assert answer.status_code == 200


def test_pickled_settings_keep_their_values_and_not_the_environment_they_came_from(tmp_path: Path) -> None:
    config = tmp_path / "maas.yaml"
    config.write_text("models: [{id: tiny, tiers: all}]\n")
    settings = load_settings({"SOMEBODYS_PASSWORD": "swordfish"}, config=str(config))

    pickled = pickle.dumps(settings)
    arrived = pickle.loads(pickled)

    assert arrived == settings
    assert arrived.origin is None  # tiers that stand in the file itself are not followed any more
    assert b"swordfish" not in pickled


async def test_ray_llm_adds_the_middleware_to_an_app_that_runs_already() -> None:
    async with host_settings() as settings:
        inner = fastapi_app(Notes())
        await converse(inner, "GET", "/health")  # builds its stack
        inner.middleware_stack = None
        inner.add_middleware(MaaSMiddleware, settings=settings)

        async with hosting(Starlette(routes=[Mount("/llm", app=inner)]), "/llm") as site:
            answer = await site.ask(await site.headers())
            stranger = await site.ask({})

    assert (answer.status_code, stranger.status_code) == (200, 401)


def sglang(settings: Settings, api_key: str | None) -> FastAPI:
    """Its own check of `--api-key` is added when it starts, and so is the outermost."""
    app = fastapi_app(Notes())
    app.add_middleware(MaaSMiddleware, settings=settings)
    if api_key is not None:

        @app.middleware("http")
        async def check(request: Request, call_next: Callable[[Request], object]) -> object:
            if request.headers.get("authorization") != f"Bearer {api_key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            return await call_next(request)  # type: ignore[misc]  # as Starlette documents it

    return app


async def test_sglang_without_a_key_of_its_own_works() -> None:
    async with hosted(partial(sglang, api_key=None)) as site:
        answer = await site.ask(await site.headers())

    assert answer.status_code == 200


async def test_sglang_with_a_key_of_its_own_refuses_every_token_of_ours() -> None:
    async with host_settings() as settings, hosting(sglang(settings, "sglangs-own")) as site:
        login = await site.client.post("/v1/tokens", headers=bearer("sha256~premium"))
        own = await site.ask(bearer("sglangs-own"))

    assert (login.status_code, login.json()) == (401, {"error": "Unauthorized"})
    assert own.json()["error"]["code"] == "invalid_api_key"


async def test_recorded_use_is_written_below_a_mount_that_never_shuts_down(tmp_path: Path) -> None:
    async with host_settings(store=f"sqlite:///{tmp_path}/maas.db") as settings:
        mounted, other = [MaaSMiddleware(fastapi_app(Notes()), settings=settings) for _ in range(2)]

        async with hosting(Starlette(routes=[Mount("/llm", app=mounted)]), "/llm") as site:
            headers = await site.headers()
            await site.ask(headers)
        async with hosting(other) as site:
            used = (await site.client.get("/v1/usage", headers=headers)).json()

        async with started(mounted):
            pass  # closes the database, as the end of the process does

    assert used["data"][0]["total_tokens"] == 5
