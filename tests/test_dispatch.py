from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware import MaaSMiddleware, Settings
from maas_middleware._asgi import reject, route_path
from maas_middleware.apps.health import health_app
from maas_middleware.catalogue import Catalogue, Model
from maas_middleware.context import ensure_context
from maas_middleware.dispatch import Dispatch, Host
from maas_middleware.errors import NotFound
from maas_middleware.testing.converse import converse, http_scope

from .parts import knock
from .servers import serving

CATALOGUE = Catalogue([Model("simulator"), Model("org/llama"), Model("org")])
PUBLIC = ("/health", "/ping", "/metrics")
PREFLIGHT = [("origin", "https://app.example.com"), ("Access-Control-Request-Method", "POST")]


class Named:
    """An app that says who it is and what it sees; as a WebSocket it only keeps the scope."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        model = ensure_context(scope).model
        seen = {
            "app": self.name,
            "path": scope["path"],
            "route_path": route_path(scope),
            "root_path": scope.get("root_path", ""),
            "app_root_path": scope.get("app_root_path"),
            "model": None if model is None else model.id,
        }
        await JSONResponse(seen)(scope, receive, send)


def host_of(
    app: ASGIApp, *, keeps_unlisted: bool, answers_preflights: bool = True, trusts_gateways: bool = True
) -> Host:
    return Host(
        app,
        administration=Named("administration"),
        asserted=Named("asserted") if trusts_gateways else None,
        public_paths=PUBLIC,
        keeps_unlisted=keeps_unlisted,
        answers_preflights=answers_preflights,
    )


def dispatch(*, keeps_unlisted: bool | None = None, catalogue: Catalogue = CATALOGUE, **host: bool) -> Dispatch:
    """With a host app if it is said what happens to its other paths, else as in the gateway."""
    collections = {path: Named(path) for path in ("/v1/tokens", "/v1/models")}
    documents = ("/maas-api/health", "/.well-known/jwks.json", *(("/health",) if keeps_unlisted is None else ()))
    return Dispatch(
        catalogue=catalogue,
        inference=Named("inference"),
        documents={path: Named(path) for path in documents},
        collections=collections | {f"/maas-api{path}": app for path, app in collections.items()},
        unknown=Named("unknown"),
        host=None if keeps_unlisted is None else host_of(Named("host"), keeps_unlisted=keeps_unlisted, **host),
    )


async def seen(app: ASGIApp, path: str, method: str = "GET", **options: Any) -> dict[str, Any]:
    conversation = await converse(app, method, path, **options)
    assert conversation.exception is None
    answer = conversation.json()
    assert isinstance(answer, dict)
    return answer


@pytest.mark.parametrize(
    ("path", "app", "below"),
    [
        pytest.param("/v1/tokens", "/v1/tokens", "/", id="tokens"),
        pytest.param("/v1/tokens/", "/v1/tokens", "/", id="tokens with a slash"),
        pytest.param("/v1/tokens/abc", "/v1/tokens", "/abc", id="one token"),
        pytest.param("/v1/tokens//", "/v1/tokens", "//", id="two slashes stay two"),
        pytest.param("/v1/tokens/../models", "/v1/tokens", "/../models", id="dots stay dots"),
        pytest.param("/maas-api/v1/tokens", "/v1/tokens", "/", id="tokens below maas-api"),
        pytest.param("/maas-api/v1/tokens/abc", "/v1/tokens", "/abc", id="one token below maas-api"),
        pytest.param("/v1/models", "/v1/models", "/", id="models"),
        pytest.param("/v1/models/", "/v1/models", "/", id="models with a slash"),
        pytest.param("/v1/models/org/llama", "/v1/models", "/org/llama", id="model with a slash in its id"),
        pytest.param("/maas-api/v1/models/simulator", "/v1/models", "/simulator", id="one model below maas-api"),
    ],
)
async def test_collection_has_everything_below_its_path(path: str, app: str, below: str) -> None:
    answer = await seen(dispatch(), path)

    assert (answer["app"], answer["route_path"], answer["model"]) == (app, below, None)
    assert answer["app_root_path"] == ""
    assert answer["path"] == path
    assert path == answer["root_path"] + ("" if below == "/" and not path.endswith("/") else below)


@pytest.mark.parametrize(
    ("path", "app"),
    [
        pytest.param("/health", "/health", id="health"),
        pytest.param("/health/", "/health", id="health with a slash"),
        pytest.param("/maas-api/health", "/maas-api/health", id="below maas-api"),
        pytest.param("/maas-api/health/", "/maas-api/health", id="below maas-api with a slash"),
        pytest.param("/.well-known/jwks.json", "/.well-known/jwks.json", id="keys"),
        pytest.param("/v1/chat/completions", "inference", id="chat"),
        pytest.param("/v1/chat/completions/", "inference", id="chat with a slash"),
        pytest.param("/v1/completions", "inference", id="completions"),
        pytest.param("/simulator/v1/chat/completions", "inference", id="below a model"),
        pytest.param("/org/llama/v1/chat/completions", "inference", id="below a model with a slash"),
        pytest.param("/v1/chat/completions/v1/chat/completions", "inference", id="doubled"),
        pytest.param("/simulator/v1/chat/completions/v1/chat/completions", "inference", id="doubled below a model"),
        pytest.param("/simulator/v1/chat/completions/v1/completions/", "inference", id="another appended"),
    ],
)
async def test_documents_and_endpoints_see_the_path_as_it_came(path: str, app: str) -> None:
    answer = await seen(dispatch(), path)

    assert answer == {
        "app": app,
        "path": path,
        "route_path": path,
        "root_path": "",
        "app_root_path": None,
        "model": None,
    }


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/keys",
        "/V1/models",
        "/v1/Tokens",
        "//v1/tokens",
        "/v1//tokens",
        "//v1/chat/completions",
        "/v1/chat//completions",
        "/v1/../v1/chat/completions",
        "/v1%2Ftokens",
        "/v1/chat%2Fcompletions",
        "/v1/tokensx",
        "/v1/modelsx",
        "/xv1/models",
        "/maas-api",
        "/maas-api/",
        "/maas-api/v1/chat/completions",
        "/maas-api/maas-api/v1/tokens",
        "/MAAS-API/v1/tokens",
        "/maas-apiv1/tokens",
        "/simulator",
        "/simulator/",
        "/simulator/v1/tokens",
        "/simulator/v1/modelsx",
        "/Simulator/v1/chat/completions",
        "/other/v1/chat/completions",
        "/other/v1/models",
        "/simulator/maas-api/v1/models",
        "/health//",
        "/health/x",
        "/healthx",
        "//health",
        "/health?",
        "/.well-known",
        "/v1/tokens\r\n",
    ],
)
async def test_path_that_is_found_nowhere_is_unknown(path: str) -> None:
    answer = await seen(dispatch(), path)

    assert answer["app"] == "unknown"
    assert answer["path"] == path


@pytest.mark.parametrize(
    ("path", "model"),
    [
        pytest.param("/simulator/v1/models", "simulator", id="plain"),
        pytest.param("/simulator/v1/models/", "simulator", id="trailing slash"),
        pytest.param("/org/llama/v1/models", "org/llama", id="the longest prefix"),
        pytest.param("/org/v1/models", "org", id="the shorter prefix"),
        pytest.param("/simulator/v1/chat/completions/v1/models", "simulator", id="below the listed url"),
    ],
)
@pytest.mark.parametrize("root_path", [pytest.param("", id="no root path"), pytest.param("/srv", id="root path")])
async def test_models_below_a_model_are_that_model(path: str, model: str, root_path: str) -> None:
    answer = await seen(dispatch(), root_path + path, scope={"root_path": root_path})

    assert answer == {
        "app": "/v1/models",
        "path": f"{root_path}/v1/models",
        "route_path": "/",
        "root_path": f"{root_path}/v1/models",
        "app_root_path": root_path,
        "model": model,
    }


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
async def test_method_does_not_decide(method: str) -> None:
    answers = [(await seen(dispatch(), path, method))["app"] for path in ("/v1/tokens", "/v1/completions", "/nope")]

    assert answers == ["/v1/tokens", "inference", "unknown"]


@pytest.mark.parametrize(
    ("path", "root_path", "app", "below"),
    [
        pytest.param("/srv/v1/tokens/abc", "/srv", "/v1/tokens", "/abc", id="in the path"),
        pytest.param("/v1/tokens/abc", "/srv", "/v1/tokens", "/abc", id="not in the path"),
        pytest.param("/srv/v1/tokens/abc", "/srv/", "/v1/tokens", "/abc", id="with a slash"),
        pytest.param("/srv/maas-api/v1/tokens/abc", "/srv", "/v1/tokens", "/abc", id="below maas-api"),
        pytest.param("/v1/v1/tokens/abc", "/v1", "/v1/tokens", "/abc", id="root that looks like ours"),
        pytest.param("/srv/v1/completions", "/srv", "inference", "/v1/completions", id="inference"),
        pytest.param("/srv/health", "/srv", "/health", "/health", id="document"),
        pytest.param("/srvx/v1/completions", "/srv", "unknown", "/srvx/v1/completions", id="not at a slash"),
        pytest.param("/srv", "/srv", "unknown", "/", id="the root itself"),
        pytest.param("/v1/tokens", "/v1", "unknown", "/tokens", id="root that hides ours"),
    ],
)
async def test_root_path_is_not_looked_at(path: str, root_path: str, app: str, below: str) -> None:
    answer = await seen(dispatch(), path, scope={"root_path": root_path})

    assert (answer["app"], answer["route_path"]) == (app, below)
    assert answer["app_root_path"] == (root_path.rstrip("/") if app == "/v1/tokens" else None)


async def test_scope_without_a_root_path_is_at_the_root() -> None:
    app = Named("tokens")
    scope = http_scope(path="/v1/tokens/abc")
    del scope["root_path"]

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None: ...

    parts: dict[str, Any] = {"inference": app, "documents": {}, "unknown": app}
    await Dispatch(catalogue=CATALOGUE, collections={"/v1/tokens": app}, **parts)(scope, receive, send)

    assert app.scopes[0]["root_path"] == "/v1/tokens"
    assert route_path(app.scopes[0]) == "/abc"
    assert "root_path" not in scope


async def test_scope_of_the_server_is_left_as_it_is() -> None:
    state: dict[str, Any] = {}
    headers: list[tuple[bytes, bytes]] = [(b"accept", b"*/*")]
    scope = http_scope(path="/simulator/v1/models", state=state, headers=[("accept", "*/*")])
    before = dict(scope)

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None: ...

    await dispatch()(scope, receive, send)

    assert scope == before
    assert scope["state"] is state
    assert scope["headers"] == headers


@pytest.mark.parametrize(
    ("path", "app", "below"),
    [
        pytest.param("/llm/v1/tokens/abc", "/v1/tokens", "/abc", id="collection"),
        pytest.param("/llm/maas-api/health", "/maas-api/health", "/maas-api/health", id="document"),
        pytest.param("/llm/simulator/v1/models", "/v1/models", "/", id="below a model"),
        pytest.param("/llm/v1/chat/completions", "inference", "/v1/chat/completions", id="inference"),
        pytest.param("/llm/nope", "unknown", "/nope", id="unknown"),
    ],
)
async def test_dispatch_may_be_mounted_anywhere(path: str, app: str, below: str) -> None:
    mounted = Starlette(routes=[Mount("/llm", app=dispatch())])

    answer = await seen(mounted, path)

    assert (answer["app"], answer["route_path"]) == (app, below)
    assert answer["app_root_path"] == ("/llm" if app.startswith("/v1") else "")


@pytest.mark.parametrize(
    ("target", "app", "below"),
    [
        pytest.param("/v1/tokens/a%2Fb", "/v1/tokens", "/a/b", id="slash"),
        pytest.param("/v1/tokens/100%25", "/v1/tokens", "/100%", id="percent sign"),
        pytest.param("/v1/tokens/%2e%2e/models", "/v1/tokens", "/../models", id="dots"),
        pytest.param("/v1%2Ftokens", "/v1/tokens", "/", id="slash between the segments"),
        pytest.param("/%76%31/chat/completions", "inference", "/v1/chat/completions", id="letters"),
        pytest.param("/v1/tokens%3Fx", "unknown", "/v1/tokens?x", id="question mark"),
        pytest.param("/v1/tokens?path=/v1/models", "/v1/tokens", "/", id="query"),
        pytest.param("//v1/tokens", "unknown", "//v1/tokens", id="two slashes"),
    ],
)
async def test_path_is_matched_as_a_real_server_decodes_it(target: str, app: str, below: str) -> None:
    async with serving(dispatch(), lifespan="off") as url:
        host, port = url.removeprefix("http://").split(":")
        async with await anyio.connect_tcp(host, int(port)) as client:
            await client.send(f"GET {target} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n".encode())
            received = b""
            with anyio.fail_after(5):
                while b"}" not in received:
                    received += await client.receive()

    answer = httpx.Response(200, content=received.partition(b"\r\n\r\n")[2]).json()
    assert (answer["app"], answer["route_path"]) == (app, below)


@pytest.mark.parametrize("path", PUBLIC)
@pytest.mark.parametrize("keeps_unlisted", [True, False])
async def test_public_paths_are_the_hosts_own(path: str, keeps_unlisted: bool) -> None:
    answer = await seen(dispatch(keeps_unlisted=keeps_unlisted), path)

    assert (answer["app"], answer["path"], answer["app_root_path"]) == ("host", path, None)


@pytest.mark.parametrize("path", ["/health/", "//health", "/Health", "/healthx", "/health/x", "/x/../health", "/"])
async def test_public_paths_are_exact(path: str) -> None:
    assert (await seen(dispatch(keeps_unlisted=False), path))["app"] == "unknown"


@pytest.mark.parametrize(
    ("path", "app"),
    [
        pytest.param("/docs", "host", id="its own"),
        pytest.param("/v1/files", "host", id="not listed"),
        pytest.param("/v1/embeddings", "inference", id="another dialect"),
        pytest.param("/v1/load_lora_adapter", "administration", id="administrative"),
        pytest.param("/simulator/sleep", "administration", id="administrative below a model"),
        pytest.param("/v1/responses/resp_1/cancel", "inference", id="refused"),
        pytest.param("//v1/chat/completions", "unknown", id="two slashes"),
        pytest.param("/V1/Chat/Completions", "unknown", id="another case"),
        pytest.param("/docs/../v1/chat/completions", "unknown", id="dots"),
        pytest.param("\\v1\\chat\\completions", "unknown", id="backslashes"),
        pytest.param("/health/", "host", id="almost public"),
        pytest.param("/v1/tokens", "/v1/tokens", id="tokens"),
        pytest.param("/maas-api/v1/models", "/v1/models", id="models"),
        pytest.param("/maas-api/health", "/maas-api/health", id="our health"),
        pytest.param("/maas-api/nope", "host", id="nothing of ours"),
        pytest.param("/v1/chat/completions", "inference", id="inference"),
        pytest.param("/simulator/v1/models", "/v1/models", id="below a model"),
    ],
)
async def test_host_may_keep_what_is_not_ours(path: str, app: str) -> None:
    assert (await seen(dispatch(keeps_unlisted=True), path))["app"] == app


@pytest.mark.parametrize("path", ["/docs", "/v1/files", "/maas-api/nope"])
async def test_host_may_have_nothing_but_what_is_listed(path: str) -> None:
    assert (await seen(dispatch(keeps_unlisted=False), path))["app"] == "unknown"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/tokens", "/docs", "/maas-api/health"])
async def test_preflight_is_answered_by_the_host(path: str) -> None:
    answer = await seen(dispatch(keeps_unlisted=False), path, "OPTIONS", headers=PREFLIGHT)

    assert (answer["app"], answer["path"]) == ("host", path)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        pytest.param("OPTIONS", PREFLIGHT[:1], id="no method asked for"),
        pytest.param("POST", PREFLIGHT, id="another method"),
        pytest.param("options", PREFLIGHT, id="another case"),
    ],
)
async def test_what_only_looks_like_a_preflight_is_not(method: str, headers: Iterable[tuple[str, str]]) -> None:
    answer = await seen(dispatch(keeps_unlisted=False), "/v1/tokens", method, headers=headers)

    assert answer["app"] == "/v1/tokens"


@pytest.mark.parametrize(
    ("path", "app"),
    [
        pytest.param("/v1/tokens", "/v1/tokens", id="collection"),
        pytest.param("/v1/chat/completions", "inference", id="inference"),
        pytest.param("/health", "host", id="public"),
        pytest.param("/docs", "host", id="kept by the host"),
    ],
)
async def test_preflight_is_asked_where_the_request_would_go_if_the_host_does_not_answer_it(
    path: str, app: str
) -> None:
    answering = dispatch(keeps_unlisted=True, answers_preflights=False)

    assert (await seen(answering, path, "OPTIONS", headers=PREFLIGHT))["app"] == app


async def test_gateway_forwards_administrative_routes_for_nobody() -> None:
    assert (await seen(dispatch(), "/v1/load_lora_adapter", "POST"))["app"] == "inference"


async def test_administrative_route_is_forwarded_under_its_canonical_path() -> None:
    answer = await seen(dispatch(keeps_unlisted=False), "/srv/simulator/sleep/", "POST", scope={"root_path": "/srv"})

    assert (answer["app"], answer["path"], answer["route_path"]) == ("administration", "/srv/sleep", "/sleep")


@pytest.mark.parametrize(
    ("path", "app"),
    [
        pytest.param("/v1/chat/completions", "asserted", id="inference"),
        pytest.param("/simulator/v1/chat/completions", "asserted", id="below a model"),
        pytest.param("/v1/tokens", "/v1/tokens", id="control route"),
        pytest.param("/v1/load_lora_adapter", "administration", id="administrative"),
        pytest.param("/nope", "unknown", id="unknown"),
    ],
)
async def test_assertion_of_a_gateway_counts_for_inference_alone(path: str, app: str) -> None:
    headers = [("X-MaaS-Assertion", "signed")]

    assert (await seen(dispatch(keeps_unlisted=False), path, headers=headers))["app"] == app


async def test_assertion_is_nothing_where_no_gateway_is_trusted() -> None:
    app = dispatch(keeps_unlisted=False, trusts_gateways=False)

    answers = [await seen(one, "/v1/completions", headers=[("x-maas-assertion", "x")]) for one in (app, dispatch())]

    assert [answer["app"] for answer in answers] == ["inference", "inference"]


@pytest.mark.parametrize(
    ("path", "app"),
    [
        pytest.param("/chat/completions", "inference", id="inference"),
        pytest.param("/chat/completions/v1/chat/completions", "inference", id="doubled"),
        pytest.param("/v1/chat/completions", "inference", id="with a version of its own"),
        pytest.param("/rerank", "inference", id="listed without a version"),
        pytest.param("/tokens/abc", "/v1/tokens", id="collection"),
        pytest.param("/models", "/v1/models", id="models"),
        pytest.param("/load_lora_adapter", "administration", id="administrative"),
        pytest.param("/files", "host", id="kept by the host"),
        pytest.param("/health", "host", id="public"),
        pytest.param("//chat/completions", "unknown", id="two slashes"),
        pytest.param("/Chat/completions", "unknown", id="another case"),
    ],
)
@pytest.mark.parametrize(
    ("root_path", "in_path"),
    [
        pytest.param("/v1", "/v1", id="at a version"),
        pytest.param("/v1/", "/v1", id="with a slash"),
        pytest.param("/llm/v1", "/llm/v1", id="below a path"),
        pytest.param("/v1", "", id="stripped by a proxy"),
    ],
)
async def test_mount_point_that_ends_in_a_version_is_a_part_of_the_route(
    path: str, app: str, root_path: str, in_path: str
) -> None:
    answer = await seen(dispatch(keeps_unlisted=True), in_path + path, scope={"root_path": root_path})

    assert answer["app"] == app


async def test_mount_point_with_another_name_is_no_version() -> None:
    answer = await seen(dispatch(keeps_unlisted=True), "/v3/chat/completions", scope={"root_path": "/v3"})

    assert answer["app"] == "host"


async def test_gateway_has_no_host_to_ask_for_a_preflight() -> None:
    answer = await seen(dispatch(), "/v1/chat/completions", "OPTIONS", headers=PREFLIGHT)

    assert answer["app"] == "inference"


@pytest.mark.parametrize(
    ("path", "keeps_unlisted", "denied"),
    [
        pytest.param("/v1/chat/completions", False, True, id="inference"),
        pytest.param("/v1/tokens", False, True, id="collection"),
        pytest.param("/maas-api/health", False, True, id="document"),
        pytest.param("/v1/realtime", False, True, id="not listed"),
        pytest.param("/ws", True, False, id="kept by the host"),
        pytest.param("/v1/realtime", True, True, id="listed as refused"),
        pytest.param("/v1/tokens", True, True, id="ours although the host keeps the rest"),
        pytest.param("/metrics", False, False, id="public"),
    ],
)
async def test_websocket_goes_where_a_request_would_go(path: str, keeps_unlisted: bool, denied: bool) -> None:
    async def deny(scope: Scope, receive: Receive, send: Send) -> None:
        await reject(scope, receive, send, NotFound())

    host = Named("host")
    app = Dispatch(
        catalogue=CATALOGUE,
        inference=deny,
        documents={"/maas-api/health": health_app()},
        collections={"/v1/tokens": deny},
        unknown=deny,
        host=host_of(host, keeps_unlisted=keeps_unlisted),
    )

    messages = await knock(app, path, headers=PREFLIGHT)

    assert [message.get("status") for message in messages] == ([404, None] if denied else [])
    assert len(host.scopes) == (0 if denied else 1)


async def test_preflight_has_no_body_whatever_the_client_sends() -> None:
    """A `Route` to an ASGI app looks at no method: it would answer the body, to everybody."""
    bodies: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        bodies.append((await receive())["body"])
        await JSONResponse({})(scope, receive, send)

    service = MaaSMiddleware(app, settings=Settings())
    await converse(service, "OPTIONS", "/v1/chat/completions", headers=PREFLIGHT, json={"model": "m"})

    assert bodies == [b""]
