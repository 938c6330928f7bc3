"""In `scope: inference` what is not an endpoint stays the host's own: routes, cookies, errors, files, WebSockets."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, HTTPException, WebSocket
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, requires
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from websockets.asyncio.client import connect

from maas_middleware import MaaSMiddleware, Settings
from maas_middleware.testing.converse import converse
from tests.deployments import bearer, chat
from tests.hosts.inference import MODEL, Notes, Question, completion, fastapi_app
from tests.hosts.servers import SERVERS, Serving
from tests.hosts.sites import Site, host_settings, hosted, hosting
from tests.parts import knock


class OutOfMemory(Exception):
    pass


class Item(BaseModel):
    name: str
    size: int


def shop(folder: Path) -> FastAPI:
    """An app that has much else to do than inference."""
    app = FastAPI()

    @app.exception_handler(OutOfMemory)
    async def out_of_memory(request: Request, error: Exception) -> Response:
        return JSONResponse({"sorry": str(error)}, 409, {"x-handled": "here"})

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return PlainTextResponse("the host's own page of errors", 500)

    @app.post("/items")
    async def make_item(item: Item) -> Item:
        return item

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, {"short": "stout"}, {"x-spout": "here"})

    @app.get("/full")
    async def full() -> None:
        raise OutOfMemory("nothing left")

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError

    @app.get("/cookies")
    async def cookies(request: Request) -> Response:
        response = JSONResponse(dict(request.cookies) | {"auth": request.headers.get("authorization")})
        response.set_cookie("basket", "7")
        response.set_cookie("theme", "dark")
        return response

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    @app.post("/v1/chat/completions")
    async def complete(question: Question, request: Request) -> Response:
        said = question.messages[-1]["content"]
        if said == "full":
            raise OutOfMemory("nothing left")
        if said == "teapot":
            raise HTTPException(418, "short and stout", {"x-spout": "here"})
        if said == "broken":
            raise ZeroDivisionError
        response = JSONResponse(completion(question) | {"cookies": dict(request.cookies)})
        response.set_cookie("basket", "7")
        response.set_cookie("theme", "dark")
        return response

    app.mount("/static", StaticFiles(directory=folder))
    return app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "logo.svg").write_text("<svg/>")
    return tmp_path


@asynccontextmanager
async def shopping(folder: Path) -> AsyncIterator[Site]:
    def make(settings: Settings) -> ASGIApp:
        app = shop(folder)
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make, scope="inference") as site:
        yield site


def said(text: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}]}


async def test_routes_of_the_host_answer_as_they_do_without_us(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[tuple[str, str, dict[str, object]]] = [
        ("GET", "/cookies", {"headers": {"cookie": "theme=light; x=1", **bearer("the-hosts-own")}}),
        ("POST", "/items", {"json": {"name": "a", "size": 1}}),
        ("POST", "/items", {"json": {"name": "a", "size": "many"}}),
        ("GET", "/items", {}),
        ("GET", "/teapot", {}),
        ("GET", "/full", {}),
        ("GET", "/broken", {}),
        ("GET", "/static/logo.svg", {}),
        ("GET", "/static/nothing", {}),
        ("OPTIONS", "/items", {}),
        ("GET", "/nothing", {"headers": {"x-request-id": "mine", "x-maas-user": "eve"}}),
        ("GET", "/docs", {}),
    ]

    async def answers(client: httpx.AsyncClient) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for method, path, more in asked:
            answer = await client.request(method, path, **more)  # type: ignore[arg-type]
            headers = sorted(pair for pair in answer.headers.multi_items() if pair[0] != "date")
            found.append((path, answer.status_code, headers, answer.content))
            client.cookies.clear()
        return found

    with caplog.at_level(logging.CRITICAL):
        async with hosting(shop(folder)) as bare, shopping(folder) as site:
            ours, theirs = await answers(site.client), await answers(bare.client)

    assert ours == theirs
    assert [status for _, status, *_ in ours] == [200, 200, 422, 405, 418, 409, 500, 200, 404, 405, 404, 200]


async def test_cookies_of_the_host_pass_on_guarded_paths_too(folder: Path) -> None:
    async with shopping(folder) as site:
        headers = await site.headers()

        answer = await site.ask(headers | {"cookie": "theme=light; x=1"})

    assert answer.json()["cookies"] == {"theme": "light", "x": "1"}
    assert answer.headers.get_list("set-cookie") == [
        "basket=7; Path=/; SameSite=lax",
        "theme=dark; Path=/; SameSite=lax",
    ]


@pytest.mark.parametrize(
    ("text", "status", "header"),
    [pytest.param("teapot", 418, "x-spout", id="http-exception"), pytest.param("full", 409, "x-handled", id="handler")],
)
async def test_error_of_the_host_is_in_the_envelope_on_guarded_paths(
    folder: Path, text: str, status: int, header: str
) -> None:
    async with shopping(folder) as site:
        answer = await site.ask(await site.headers(), **said(text))

    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert isinstance(answer.json()["error"]["message"], str)
    assert "x-ratelimit-remaining-requests" in answer.headers
    assert answer.headers[header] == "here"


async def test_request_that_the_host_does_not_understand_is_422_in_the_envelope(folder: Path) -> None:
    async with shopping(folder) as site:
        answer = await site.ask(await site.headers(), messages=["not an object"])

    error = answer.json()["error"]
    assert answer.status_code == 422
    assert (error["type"], error["param"]) == ("invalid_request_error", "messages.0")


@pytest.mark.parametrize("is_wrapped", [pytest.param(False, id="added"), pytest.param(True, id="wrapped")])
async def test_fault_of_the_host_is_500_in_the_envelope_and_its_handler_runs(
    folder: Path, is_wrapped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    handled: list[Exception] = []
    app = shop(folder)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        handled.append(error)
        return PlainTextResponse("a stack of secrets", 500)

    def make(settings: Settings) -> ASGIApp:
        if is_wrapped:
            return MaaSMiddleware(app, settings=settings)
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    with caplog.at_level(logging.CRITICAL, logger="uvicorn.error"):
        async with hosted(make, scope="inference") as site:
            headers = await site.headers()
            before = await site.tokens_left(headers)
            answer = await site.ask(headers, **said("broken"))
            after = await site.tokens_left(headers)

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert [type(error) for error in handled] == [ZeroDivisionError]
    assert after == before


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
async def test_file_of_the_host_is_served_whichever_way_the_server_sends_it(server: Serving, folder: Path) -> None:
    def make(settings: Settings) -> ASGIApp:
        return MaaSMiddleware(shop(folder), settings=settings)

    async with hosted(make, server=server, scope="inference") as site:
        answer = await site.client.get("/static/logo.svg")

    assert (answer.status_code, answer.text) == (200, "<svg/>")


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
async def test_websocket_of_the_host_works(server: Serving, folder: Path) -> None:
    def make(settings: Settings) -> ASGIApp:
        return MaaSMiddleware(shop(folder), settings=settings)

    async with (
        hosted(make, server=server, scope="inference") as site,
        connect(str(site.client.base_url.join("/echo")).replace("http", "ws"), proxy=None) as websocket,
    ):
        await websocket.send("hello")
        echoed = await websocket.recv()

    assert echoed == "hello"


@pytest.mark.parametrize("scope", ["all", "inference"])
async def test_websocket_of_an_endpoint_is_closed_where_the_server_cannot_deny(scope: str, folder: Path) -> None:
    async with host_settings(scope=scope) as settings:
        app = MaaSMiddleware(shop(folder), settings=settings)

        messages = await knock(app, "/v1/realtime", can_deny=False)

    assert messages == [{"type": "websocket.close", "code": 1008, "reason": "Invalid authentication token"}]


async def test_websocket_of_the_host_is_refused_in_scope_all(folder: Path) -> None:
    async with host_settings() as settings:
        app = MaaSMiddleware(shop(folder), settings=settings)

        messages = await knock(app, "/echo", can_deny=False)

    assert [message["type"] for message in messages] == ["websocket.close"]


class OwnUsers(AuthenticationBackend):
    """The host's own logins, by a cookie."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.cookies.get("user")
        return None if name is None else (AuthCredentials(["authenticated", "clerk"]), SimpleUser(name))


def counter() -> FastAPI:
    """An app whose routes tell who they take the caller for."""
    app = FastAPI()

    @app.get("/desk")
    @requires("clerk")
    async def desk(request: Request) -> str:
        return str(request.user.display_name)

    @app.post("/v1/chat/completions")
    @requires("authenticated")
    async def complete(request: Request) -> dict[str, object]:
        question = Question.model_validate(await request.json())
        user = {"user": request.user.display_name, "scopes": request.auth.scopes, "is": request.user.is_authenticated}
        return completion(question) | user | {"maas": request.state.maas.identity.name}

    return app


@pytest.mark.parametrize("is_outside", [pytest.param(False, id="inside"), pytest.param(True, id="outside")])
async def test_authentication_of_the_host_is_its_own_on_its_own_routes(is_outside: bool) -> None:
    def make(settings: Settings) -> ASGIApp:
        app = counter()
        layers: list[Callable[[], None]] = [
            lambda: app.add_middleware(AuthenticationMiddleware, backend=OwnUsers()),
            lambda: app.add_middleware(MaaSMiddleware, settings=settings),
        ]
        for add in layers if not is_outside else reversed(layers):
            add()
        return app

    async with hosted(make, scope="inference") as site:
        headers = await site.headers()
        desk = await site.client.get("/desk", headers={"cookie": "user=carl"})
        closed = await site.client.get("/desk", headers=headers)
        answer = await site.ask(headers | {"cookie": "user=carl"})

    assert (desk.status_code, desk.json()) == (200, "carl")
    assert closed.status_code == 403
    # whoever is inside has the last word on `request.user`; `request.state.maas` is always ours
    assert answer.json()["user"] == ("pat" if is_outside else "carl")
    assert answer.json()["maas"] == "pat"


async def test_starlettes_requires_knows_the_caller_of_a_guarded_path() -> None:
    def make(settings: Settings) -> ASGIApp:
        app = counter()
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make) as site:
        answer = (await site.ask(await site.headers())).json()

    assert (answer["user"], answer["scopes"], answer["is"]) == ("pat", ["authenticated"], True)


@pytest.mark.parametrize("is_outside", [pytest.param(False, id="inside"), pytest.param(True, id="outside")])
async def test_session_of_the_host_lasts_over_own_and_guarded_routes(is_outside: bool) -> None:
    app = FastAPI()

    @app.get("/visit")
    async def visit(request: Request) -> int:
        request.session["visits"] = request.session.get("visits", 0) + 1
        return int(request.session["visits"])

    @app.post("/v1/chat/completions")
    async def complete(question: Question, request: Request) -> dict[str, object]:
        request.session["visits"] = request.session.get("visits", 0) + 1
        return completion(question) | {"visits": request.session["visits"]}

    def make(settings: Settings) -> ASGIApp:
        if is_outside:
            app.add_middleware(MaaSMiddleware, settings=settings)
            app.add_middleware(SessionMiddleware, secret_key="a-secret-for-tests")
        else:
            app.add_middleware(SessionMiddleware, secret_key="a-secret-for-tests")
            app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make, scope="inference") as site:
        headers = await site.headers()
        first = (await site.client.get("/visit")).json()
        second = (await site.ask(headers)).json()["visits"]
        third = (await site.client.get("/visit")).json()

    assert (first, second, third) == (1, 2, 3)


async def test_app_beside_a_mounted_one_is_left_alone() -> None:
    def make(settings: Settings) -> ASGIApp:
        outer, inner = FastAPI(), fastapi_app(Notes())
        inner.add_middleware(MaaSMiddleware, settings=settings)

        @outer.get("/page")
        async def page() -> str:
            return "the outer page"

        @outer.post("/v1/chat/completions")
        async def complete(question: Question) -> str:
            return "nobody guards this one"

        outer.mount("/llm", inner)
        return outer

    async with hosted(make) as site:
        page = await site.client.get("/page")
        beside = await site.ask({})
        guarded = await site.client.post("/llm/v1/chat/completions", json=chat(MODEL))

    assert page.json() == "the outer page"
    assert "x-request-id" not in page.headers
    assert beside.json() == "nobody guards this one"
    assert guarded.status_code == 401


async def test_two_mounted_apps_have_each_their_own_tokens_and_limits() -> None:
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(host_settings()) for _ in range(2)]
        outer = FastAPI()
        for path, settings in (("/a", first), ("/b", second)):
            outer.mount(path, MaaSMiddleware(fastapi_app(Notes()), settings=settings))
        site = await stack.enter_async_context(hosting(outer, "/a"))

        headers = await site.headers()
        own = await site.ask(headers)
        others = await converse(outer, "POST", "/b/v1/chat/completions", json=chat(MODEL), headers=headers.items())

    assert own.status_code == 200
    assert others.status == 401


async def test_host_that_gives_its_requests_a_state_finds_it_beside_ours() -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
        yield {"engine": "running"}

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def complete(question: Question, request: Request) -> dict[str, object]:
        return completion(question) | {"engine": request.state.engine, "tier": request.state.maas.tier.name}

    def make(settings: Settings) -> ASGIApp:
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make) as site:
        answers = [await site.ask(await site.headers(login)) for login in ("sha256~premium", "sha256~free")]

    assert [answer.json()["engine"] for answer in answers] == ["running"] * 2
    assert [answer.json()["tier"] for answer in answers] == ["premium", "free"]


@pytest.mark.parametrize(("scope", "status"), [("all", 404), ("inference", 200)])
async def test_routes_without_a_version_in_their_path_are_no_endpoints(scope: str, status: int) -> None:
    """Such as `/chat/completions` below `/openai`: `scope: inference` leaves them open, as all that it leaves."""

    def make(settings: Settings) -> ASGIApp:
        app = FastAPI()

        @app.post("/chat/completions")
        async def complete(question: Question) -> dict[str, object]:
            return completion(question)

        return Starlette(routes=[Mount("/openai", app=MaaSMiddleware(app, settings=settings))])

    async with hosted(make, "/openai", scope=scope) as site:
        headers = await site.headers()
        answer = await site.client.post("/chat/completions", json=chat(MODEL), headers=headers)

    assert answer.status_code == status
    assert "x-ratelimit-remaining-requests" not in answer.headers
