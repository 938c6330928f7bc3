from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware.apps.host_models import HostModelsApp
from maas_middleware.identity import Identity
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.middleware.identity import IdentityMiddleware
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.testing.converse import Conversation, converse
from maas_middleware.testing.identity import StaticIdentityProvider
from maas_middleware.tiers import GroupTierResolver, Tier

from ..parts import Answering, PassingOn, knock, piece, start
from ..servers import serving

FREE = Tier("free", level=0, groups=("everyone",))
PREMIUM = Tier("premium", level=1, groups=("payers",))
TIERS = (PREMIUM, FREE)
PROVIDER = StaticIdentityProvider(
    {
        "free": Identity("test", "free", ("everyone",)),
        "premium": Identity("test", "premium", ("payers",)),
        "stranger": Identity("test", "stranger"),
    }
)
NOW = 1_790_000_000
VLLM = {
    "object": "list",
    "data": [
        {
            "id": "tiny",
            "object": "model",
            "created": 1_780_000_000,
            "owned_by": "vllm",
            "root": "/secret/models/tiny",
            "parent": None,
            "max_model_len": 8192,
            "permission": [{"id": "modelperm-1", "allow_sampling": True}],
        },
        {
            "id": "org/sql-lora",
            "object": "model",
            "created": 1_780_000_001,
            "owned_by": "vllm",
            "root": "/secret/loras/sql",
            "parent": "tiny",
            "max_model_len": None,
            "permission": [],
        },
    ],
}
TINY = {
    "id": "tiny",
    "object": "model",
    "created": 1_780_000_000,
    "owned_by": "vllm",
    "name": "tiny",
    "url": "https://gateway.example.com/v1/chat/completions",
    "tier": "free",
    "ready": True,
    "max_model_len": 8192,
}
LORA = {
    "id": "org/sql-lora",
    "object": "model",
    "created": 1_780_000_001,
    "owned_by": "vllm",
    "name": "org/sql-lora",
    "url": "https://gateway.example.com/v1/chat/completions",
    "tier": "free",
    "ready": True,
    "parent": "tiny",
}


def host(document: object = VLLM, status: int = 200) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse(document, status)

    return app


def models(
    app: ASGIApp,
    *,
    public_url: str | None = "https://gateway.example.com",
    tiers: Sequence[Tier] | Callable[[], Sequence[Tier]] = TIERS,
    **options: Any,
) -> ASGIApp:
    """The app with real shells round it."""
    listing = HostModelsApp(app, tiers=tiers, public_url=public_url, clock=lambda: NOW + 0.9, **options)
    tiered = TierMiddleware(listing, resolver=GroupTierResolver(TIERS), unlisted="pass")
    return ErrorEnvelopeMiddleware(IdentityMiddleware(tiered, provider=PROVIDER))


async def ask(
    app: ASGIApp,
    path: str = "",
    /,
    *,
    method: str = "GET",
    user: str = "free",
    headers: Sequence[tuple[str, str]] = (),
    **scope: Any,
) -> Conversation:
    return await converse(
        app,
        method,
        f"/v1/models{path}",
        headers=[("authorization", f"Bearer {user}"), ("host", "gw"), *headers],
        scope={"root_path": "/v1/models", "app_root_path": "", **scope},
    )


def code_of(answer: Conversation) -> tuple[int, str]:
    assert answer.exception is None
    return answer.status, answer.json()["error"]["code"]


@pytest.mark.parametrize("path", [pytest.param("", id="bare"), pytest.param("/", id="trailing-slash")])
@pytest.mark.parametrize("user", ["free", "premium"])
async def test_hosts_models_are_listed_in_our_rows_and_in_nothing_else_of_the_hosts(path: str, user: str) -> None:
    answer = await ask(models(host()), path, user=user)

    assert (answer.status, answer.header("content-type")) == (200, "application/json")
    assert answer.json() == {"object": "list", "data": [TINY, LORA]}
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    ("row", "told"),
    [
        pytest.param(
            {"id": "/models/tiny.gguf", "object": "model", "owned_by": "me", "permissions": []},
            {"id": "/models/tiny.gguf", "name": "/models/tiny.gguf", "owned_by": "me", "created": NOW},
            id="llama-cpp-python",
        ),
        pytest.param(
            {"id": "lit", "object": "model", "created": 1_780_000_000, "owned_by": "litai"},
            {"id": "lit", "name": "lit", "owned_by": "litai", "created": 1_780_000_000},
            id="litserve",
        ),
        pytest.param(
            {
                **{"id": "bge", "object": "model", "owned_by": "infinity", "created": 1_780_000_000},
                **{"stats": {"queue_absolute": 3}, "backend": "torch", "capabilities": ["embed"]},
            },
            {"id": "bge", "name": "bge", "owned_by": "infinity", "created": 1_780_000_000},
            id="infinity",
        ),
        pytest.param(
            {"owned_by": "", "id": "gpt2@main", "object": "model", "created": 1_780_000_000.75},
            {"id": "gpt2@main", "name": "gpt2@main", "owned_by": "maas", "created": 1_780_000_000},
            id="transformers",
        ),
        pytest.param(
            {"id": "m", "created": True, "owned_by": 7, "max_model_len": True, "parent": {}, "url": "http://10.0.0.1"},
            {"id": "m", "name": "m", "owned_by": "maas", "created": NOW},
            id="values-of-wrong-types",
        ),
        pytest.param({"id": "m"}, {"id": "m", "name": "m", "owned_by": "maas", "created": NOW}, id="an-id-alone"),
    ],
)
async def test_rows_of_other_hosts_are_told_in_the_same_shape(row: dict[str, Any], told: dict[str, Any]) -> None:
    answer = await ask(models(host({"object": "list", "data": [row]})))

    ours = {"object": "model", "url": TINY["url"], "tier": "free", "ready": True}
    assert answer.json()["data"] == [{**ours, **told}]


async def test_rows_without_an_id_that_is_text_are_left_out() -> None:
    rows: list[object] = [{"object": "model"}, {"id": 7}, {"id": None}, "tiny", None, ["tiny"], {"id": "tiny"}]

    answer = await ask(models(host({"data": rows})))

    assert [row["id"] for row in answer.json()["data"]] == ["tiny"]


async def test_host_without_models_has_an_empty_list() -> None:
    answer = await ask(models(host({"object": "list", "data": []})))

    assert (answer.status, answer.json()) == (200, {"object": "list", "data": []})


@pytest.mark.parametrize(
    ("model_id", "path"),
    [
        pytest.param("tiny", "/tiny", id="plain"),
        pytest.param("tiny", "/tiny/", id="trailing-slash"),
        pytest.param("org/sql-lora", "/org/sql-lora", id="slash"),
        pytest.param("/models/tiny", "//models/tiny", id="a-path"),
        pytest.param("/models/tiny", "/models/tiny", id="a-path-whose-first-slash-is-lost"),
        pytest.param("modèle:8b", "/modèle:8b", id="no-ascii"),
    ],
)
async def test_one_model_is_its_row_of_the_list(model_id: str, path: str) -> None:
    app = models(host({"data": [{"id": "other"}, {"id": model_id, "root": "x"}]}))
    listed = (await ask(app)).json()["data"]

    answer = await ask(app, path)

    assert (answer.status, answer.json()) == (200, listed[1])
    assert answer.json()["id"] == model_id


@pytest.mark.parametrize("path", ["/nope", "/org", "/Tiny", "/tiny/x", "/tiny/.."])
async def test_unknown_model_is_404(path: str) -> None:
    answer = await ask(models(host()), path)

    assert code_of(answer) == (404, "model_not_found")
    assert answer.json()["error"]["message"] == f"The model `{path[1:]}` does not exist"


@pytest.mark.parametrize("path", ["", "/tiny"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_other_methods_are_405_and_do_not_reach_the_host(method: str, path: str) -> None:
    app = Answering()

    answer = await ask(models(app), path, method=method)

    assert code_of(answer) == (405, "method_not_allowed")
    assert answer.header("allow") == "GET, HEAD"
    assert app.scopes == []


@pytest.mark.parametrize(
    ("user", "refusal"),
    [
        pytest.param("stranger", (403, "no_tier"), id="in-no-tier"),
        pytest.param("nobody", (401, "invalid_api_key"), id="unknown"),
    ],
)
async def test_list_is_for_those_who_may_use_the_models(user: str, refusal: tuple[int, str]) -> None:
    app = Answering()

    answer = await ask(models(app), user=user)

    assert code_of(answer) == refusal
    assert app.scopes == []


async def test_tier_is_the_lowest_of_those_in_force_or_else_the_callers() -> None:
    in_force = [PREMIUM]
    app = models(host(), tiers=lambda: in_force)
    told = []

    for tiers in ([PREMIUM], [PREMIUM, FREE], []):
        in_force[:] = tiers
        told.append((await ask(app, "/tiny", user="premium")).json()["tier"])

    assert told == ["premium", "free", "premium"]


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    seen = []

    async def told(request: Request) -> Response:
        seen.append((request.method, await request.body()))
        return JSONResponse(VLLM)

    app = models(Starlette(routes=[Route("/v1/models", told)]))
    async with serving(app, lifespan="off") as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        client.headers["authorization"] = "Bearer free"
        get = await client.request("GET", "/v1/models", content=b"a body that nobody asked for")
        head = await client.head("/v1/models")

    assert get.status_code == head.status_code == 200
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))
    assert head.content == b""
    assert seen == [("GET", b""), ("GET", b"")]


async def test_host_is_asked_for_the_whole_list_as_it_is() -> None:
    app = Answering(start(), {"type": "http.response.body", "body": json.dumps(VLLM).encode()})
    headers = [
        *(("accept-encoding", "gzip"), ("if-none-match", '"x"'), ("range", "bytes=0-9"), ("content-length", "4")),
        *(("if-modified-since", "now"), ("cookie", "a=b"), ("x-own", "1")),
    ]

    place: dict[str, Any] = {"root_path": "/srv/v1/models", "app_root_path": "/srv", "path": "/srv/v1/models/tiny"}

    answer = await ask(models(app), headers=headers, query_string=b"a=b", **place)

    scope = app.scopes[0]
    assert answer.json()["id"] == "tiny"
    assert (scope["method"], scope["path"], scope["root_path"]) == ("GET", "/srv/v1/models", "/srv")
    assert (scope["raw_path"], scope["query_string"], scope["extensions"]) == (b"/srv/v1/models", b"", {})
    assert {name for name, _ in app.headers} == {b"host", b"cookie", b"x-own", b"x-request-id"}


async def test_host_that_could_compress_does_not() -> None:
    app = host()
    app.add_middleware(GZipMiddleware, minimum_size=1)

    answer = await ask(models(app), headers=[("accept-encoding", "gzip")])

    assert [row["id"] for row in answer.json()["data"]] == ["tiny", "org/sql-lora"]


async def test_host_may_answer_in_pieces_and_through_middlewares_of_the_common_kind() -> None:
    body = json.dumps(VLLM).encode()
    pieces = [body[:7], body[7:300], body[300:]]

    async def told(_: Request) -> Response:
        return StreamingResponse(iter(pieces), media_type="application/json")

    app = Starlette(routes=[Route("/v1/models", told)])
    app.add_middleware(PassingOn)

    answer = await ask(models(app))

    assert [row["id"] for row in answer.json()["data"]] == ["tiny", "org/sql-lora"]


async def _plain(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("Traceback: http://10.0.0.1:8000")(scope, receive, send)


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None: ...


async def _compressed(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(gzip.compress(json.dumps(VLLM).encode()), headers={"content-encoding": "gzip"})(scope, receive, send)


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(host(status=500), id="500"),
        pytest.param(host(status=401), id="401"),
        pytest.param(host(status=201), id="201"),
        pytest.param(FastAPI(), id="no-such-route"),
        pytest.param(host([{"id": "tiny"}]), id="a-bare-list"),
        pytest.param(host({"object": "list"}), id="no-data"),
        pytest.param(host({"data": {"id": "tiny"}}), id="data-is-no-list"),
        pytest.param(host(None), id="null"),
        pytest.param(_plain, id="no-json"),
        pytest.param(_compressed, id="compressed-all-the-same"),
        pytest.param(_nothing, id="no-answer"),
        pytest.param(Answering(start(), piece(b'{"data":[{"id"')), id="half-an-answer"),
        pytest.param(Answering(start(), piece(b'{"data":[{"id":"\\ud800"}]}')), id="half-a-character"),
        pytest.param(Answering(start(), piece(b'{"data":' + b"[" * 100_000)), id="nested-too-deep"),
    ],
)
@pytest.mark.parametrize("path", ["", "/tiny"])
async def test_host_that_tells_no_list_is_an_error_of_the_model_server(app: ASGIApp, path: str) -> None:
    answer = await ask(models(app), path)

    assert code_of(answer) == (502, "upstream_error")
    assert answer.json()["error"]["message"].startswith("The model failed to answer")


async def test_operator_of_a_host_without_a_list_is_told_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    await ask(models(FastAPI()))

    assert "the app answered 404 to GET /v1/models: name its models in `models`" in caplog.messages


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(Answering(raises=RuntimeError("at /secret/path")), id="at-once"),
        pytest.param(Answering(start(), raises=OSError("at /secret/path")), id="after-the-begin"),
        pytest.param(Answering(start(), piece(b'{"data":[]}'), raises=ValueError("at /secret/path")), id="at-the-end"),
    ],
)
async def test_host_that_raises_is_an_error_in_the_log_and_no_word_of_it_in_the_answer(
    app: ASGIApp, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask(models(app))

    assert code_of(answer) == (502, "upstream_error")
    assert b"secret" not in answer.body
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "the app failed to list its models"
    assert record.exc_info is not None


async def test_list_without_an_end_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    sent = 0

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(start())
        while True:
            await send(piece(b" " * (1 << 20)))
            sent += 1

    answer = await ask(models(endless))

    assert code_of(answer) == (502, "upstream_error")
    assert sent == 4
    assert [record for record in caplog.records if record.levelno == logging.ERROR] == []


async def test_list_of_four_mebibytes_is_read() -> None:
    body = json.dumps(VLLM).encode()

    answer = await ask(models(Answering(start(), piece(b" " * ((4 << 20) - len(body)) + body))))

    assert [row["id"] for row in answer.json()["data"]] == ["tiny", "org/sql-lora"]


async def test_host_that_says_nothing_is_waited_for_as_long_as_it_may_take() -> None:
    left = []

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        try:
            await receive()
        except anyio.get_cancelled_exc_class():
            left.append(True)
            raise

    answer = await ask(models(silent, timeout=0.01))

    assert code_of(answer) == (504, "upstream_timeout")
    assert left == [True]


@pytest.mark.parametrize(
    ("scope", "url"),
    [
        pytest.param({}, "http://gw/v1/chat/completions", id="host"),
        pytest.param({"scheme": "https"}, "https://gw/v1/chat/completions", id="https"),
        pytest.param(
            {"app_root_path": "/llm", "root_path": "/llm/v1/models", "path": "/llm/v1/models"},
            "http://gw/llm/v1/chat/completions",
            id="mount-point",
        ),
    ],
)
async def test_url_begins_with_what_the_request_was_sent_to(scope: dict[str, Any], url: str) -> None:
    app = models(Answering(start(), piece(json.dumps(VLLM).encode())), public_url=None)

    answer = await ask(app, **scope)

    assert {row["url"] for row in answer.json()["data"]} == {url}


@pytest.mark.parametrize("make", [pytest.param("mount", id="mounted"), pytest.param("route", id="routed-to")])
async def test_app_may_stand_in_another_one(make: str) -> None:
    app = models(host(), public_url=None)
    routes: dict[str, list[BaseRoute]] = {
        "mount": [Mount("/v1/models", app=app)],
        "route": [Route("/v1/models", app), Route("/v1/models/{id:path}", app)],
    }
    outer = Starlette(routes=routes[make])
    async with serving(outer, lifespan="off") as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        client.headers["authorization"] = "Bearer free"
        listed = await client.get("/v1/models", follow_redirects=True)
        one = await client.get("/v1/models/org/sql-lora")

    assert [row["id"] for row in listed.json()["data"]] == ["tiny", "org/sql-lora"]
    assert one.json() == {**LORA, "url": f"{url}/v1/chat/completions"}


async def test_websocket_is_refused() -> None:
    messages = await knock(models(Answering()), headers=[("authorization", "Bearer free")])

    assert messages[0]["status"] == 404


async def test_app_without_a_tier_says_what_is_missing() -> None:
    answer = await converse(HostModelsApp(host(), tiers=TIERS))

    assert isinstance(answer.exception, LookupError)
    assert str(answer.exception) == "HostModelsApp needs to know the tier: wrap it in TierMiddleware"
    assert answer.messages == []
