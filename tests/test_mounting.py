"""MaaSMiddleware inside of an app: administrators, web pages, mount points that are versions, and twice by mistake."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp

from maas_middleware import MaaSMiddleware, Settings, load_settings
from maas_middleware.settings import ConfigurationError
from maas_middleware.testing.cluster import ClusterUser, StandInCluster
from maas_middleware.testing.converse import converse

from .deployments import USERS, bearer, chat
from .parts import knock
from .servers import serving

PAGE = "https://ui.example.com"
ADMIN = {"sha256~admin": ClusterUser("ada", ("maas-admins", "system:authenticated:oauth"))}


@asynccontextmanager
async def settings_of(**overrides: object) -> AsyncIterator[Settings]:
    async with serving(StandInCluster({**USERS, **ADMIN})) as cluster:
        yield load_settings(
            {"MAAS_OPENSHIFT_API_URL": cluster, "MAAS_TOKENS_ADMINISTRATORS": "maas-admins"}, config=None, **overrides
        )


@asynccontextmanager
async def asking(app: ASGIApp, root: str = "") -> AsyncIterator[httpx.AsyncClient]:
    async with serving(app) as url, httpx.AsyncClient(base_url=url + root) as client:
        yield client


async def minted(client: httpx.AsyncClient, login: str = "sha256~free") -> dict[str, str]:
    response = await client.post("/v1/tokens", headers=bearer(login))
    assert response.status_code == 201, response.text
    return bearer(response.json()["token"])


def model_server(prefix: str = "/v1") -> FastAPI:
    """Says what it sees."""
    app = FastAPI()

    @app.post(f"{prefix}/chat/completions")
    async def complete(request: Request) -> dict[str, object]:
        seen = {"root_path": request.scope["root_path"], "path": request.scope["path"]}
        return {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, "seen": seen}

    @app.get(f"{prefix}/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [{"id": "tiny", "object": "model", "root": "/models/tiny"}]}

    @app.post(f"{prefix}/load_lora_adapter")
    async def load(request: Request) -> dict[str, Any]:
        names = {"authorization", "x-request-id"}
        return {"got": await request.json(), "headers": {k: v for k, v in request.headers.items() if k in names}}

    @app.post("/sleep")
    async def sleep() -> JSONResponse:
        return JSONResponse({"detail": "cannot sleep"}, status_code=409)

    @app.get("/page")
    async def page() -> str:
        return "a page"

    return app


@pytest.mark.parametrize("scope", ["all", "inference"])
async def test_administrators_alone_reach_administrative_routes(scope: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "maas_middleware.audit")
    body = {"lora_name": "pirate", "lora_path": "/adapters/pirate"}
    async with (
        settings_of(scope=scope) as settings,
        asking(MaaSMiddleware(model_server(), settings=settings)) as client,
    ):
        token = await minted(client, "sha256~admin")

        stranger, forger, leaked, user, administrator = [
            await client.post("/v1/load_lora_adapter", json=body, headers=headers)
            for headers in ({}, bearer("x"), token, bearer("sha256~free"), bearer("sha256~admin"))
        ]

    assert (stranger.status_code, forger.status_code) == (401, 401)
    assert (leaked.status_code, user.status_code) == (403, 403)
    assert leaked.json()["error"]["code"] == user.json()["error"]["code"] == "access_denied"
    assert administrator.status_code == 200
    assert administrator.json()["got"] == body
    assert "authorization" not in administrator.json()["headers"]
    records = [json.loads(record.getMessage()) for record in caplog.records if record.name.endswith("audit")]
    assert [(record["actor"], record["outcome"]) for record in records] == [
        ("openshift/ada", "denied"),
        ("openshift/fay", "denied"),
        ("openshift/ada", "done"),
    ]
    assert {record["event"] for record in records} == {"admin.server POST /v1/load_lora_adapter"}
    assert records[-1]["request_id"] == administrator.headers["x-request-id"]


async def test_answer_of_an_administrative_route_is_the_servers_own(caplog: pytest.LogCaptureFixture) -> None:
    async with settings_of() as settings, asking(MaaSMiddleware(model_server(), settings=settings)) as client:
        failed = await client.post("/sleep", headers=bearer("sha256~admin"))
        missing = await client.get("/server_info", headers=bearer("sha256~admin"))

    assert (failed.status_code, missing.status_code) == (409, 404)
    assert failed.json()["error"]["message"] == "cannot sleep"
    outcomes = [
        json.loads(record.getMessage())["outcome"] for record in caplog.records if record.name.endswith("audit")
    ]
    assert outcomes == ["failed", "failed"]


async def test_administrative_routes_are_no_websockets() -> None:
    async with settings_of() as settings:
        app = MaaSMiddleware(model_server(), settings=settings)

        messages = await knock(app, "/collective_rpc", headers=[("authorization", "Bearer sha256~admin")])

    assert messages[0]["status"] == 404


async def test_without_cors_origins_web_pages_ask_the_host() -> None:
    async with settings_of() as settings:
        host = CORSMiddleware(
            model_server(), allow_origins=[PAGE], allow_methods=["*"], allow_headers=["authorization"]
        )
        async with asking(MaaSMiddleware(host, settings=settings)) as client:
            preflight = await client.options("/v1/chat/completions", headers=preflight_of())
            refusal = await client.post("/v1/chat/completions", headers={"origin": PAGE})

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert refusal.status_code == 401
    assert "access-control-allow-origin" not in refusal.headers


def preflight_of(origin: str = PAGE, headers: str = "authorization,content-type") -> dict[str, str]:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": headers}
    return {"origin": origin, **asked}


@pytest.mark.parametrize("has_cors_of_its_own", [False, True])
async def test_web_pages_of_cors_origins_can_read_every_answer(has_cors_of_its_own: bool) -> None:
    async with settings_of(cors_origins=[PAGE]) as settings:
        host: ASGIApp = model_server()
        if has_cors_of_its_own:
            host = CORSMiddleware(host, allow_origins=["*"], allow_credentials=True)
        async with asking(MaaSMiddleware(host, settings=settings)) as client:
            headers = {**await minted(client), "origin": PAGE}

            paths = ("/v1/chat/completions", "/v1/tokens", "/v1/models", "/nope")
            preflights = [await client.options(path, headers=preflight_of()) for path in paths]
            refused_preflight = await client.options(paths[0], headers=preflight_of("https://evil.example.com"))
            refusals = [await client.post(path, headers={"origin": PAGE}) for path in paths]
            answer = await client.post("/v1/chat/completions", json=chat("tiny"), headers=headers)
            mint = await client.post("/v1/tokens", headers={**bearer("sha256~free"), "origin": PAGE})
            elsewhere = await client.post("/v1/chat/completions", headers={"origin": "https://evil.example.com"})

    for preflight in preflights:
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    assert refused_preflight.status_code == 400
    assert [refusal.status_code for refusal in refusals] == [401, 401, 401, 401]
    for readable in (*refusals, answer, mint):
        assert readable.headers.get_list("access-control-allow-origin") == [PAGE]
        exposed = readable.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens", "x-odhu-usage-total-tokens"} <= set(
            exposed
        )
        assert "origin" in readable.headers["vary"].lower()
    assert (answer.status_code, mint.status_code) == (200, 201)
    assert elsewhere.headers.get("access-control-allow-origin") != "https://evil.example.com"


async def test_cors_origins_leave_the_hosts_own_routes_alone() -> None:
    async with (
        settings_of(cors_origins=["*"], scope="inference") as settings,
        asking(MaaSMiddleware(model_server(), settings=settings)) as client,
    ):
        page = await client.get("/page", headers={"origin": PAGE})
        preflight = await client.options("/page", headers=preflight_of())
        ours = await client.post("/v1/chat/completions", headers={"origin": PAGE})

    assert "access-control-allow-origin" not in page.headers
    assert preflight.status_code == 405
    assert ours.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "origin", ["ui.example.com", "https://ui.example.com/", "https://ui.example.com/app", "HTTPS://A"]
)
def test_cors_origin_is_written_as_browsers_send_it(origin: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cors_origins\[0\]"):
        load_settings({}, cors_origins=[origin])


async def test_below_a_mount_point_that_is_a_version() -> None:
    models = [{"id": "tiny", "tiers": "all"}]
    async with settings_of(models=models, scope="inference") as settings:
        app = Starlette(routes=[Mount("/v1", app=MaaSMiddleware(model_server(prefix=""), settings=settings))])
        async with asking(app) as client:
            headers = await minted(client)

            stranger = await client.post("/v1/chat/completions", json=chat("tiny"))
            answer = await client.post("/v1/chat/completions", json=chat("tiny"), headers=headers)
            doubled = await client.post("/v1/chat/completions/v1/chat/completions", json=chat("tiny"), headers=headers)
            listed = await client.get("/v1/models", headers=headers)
            again = await client.post(listed.json()["data"][0]["url"], json=chat("tiny"), headers=headers)
            page = await client.get("/v1/page")

    assert stranger.status_code == 401
    assert answer.json()["seen"] == {"root_path": "/v1", "path": "/v1/chat/completions"}
    assert doubled.json()["seen"] == answer.json()["seen"]
    assert again.json()["seen"] == answer.json()["seen"]
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"
    assert page.json() == "a page"


def warnings_in(caplog: pytest.LogCaptureFixture) -> Sequence[str]:
    return [record.getMessage() for record in caplog.records if "applied twice" in record.getMessage()]


@pytest.mark.parametrize("lifespan", ["on", "off"])
async def test_applied_twice_it_counts_once_and_warns_once(caplog: pytest.LogCaptureFixture, lifespan: str) -> None:
    async with settings_of() as settings:
        app = model_server()
        app.add_middleware(MaaSMiddleware, settings=settings)
        app.add_middleware(MaaSMiddleware, settings=settings)
        async with serving(app, lifespan=lifespan) as url, httpx.AsyncClient(base_url=url) as client:
            headers = await minted(client)

            answers = [await client.post("/v1/chat/completions", json=chat("tiny"), headers=headers) for _ in range(6)]
            listed = await client.get("/v1/models", headers=headers)
            administered = await client.post("/v1/load_lora_adapter", json={}, headers=bearer("sha256~admin"))
            health = await client.get("/health")

    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert answers[0].headers.get_list("x-ratelimit-remaining-requests") == ["4"]
    assert [model["id"] for model in listed.json()["data"]] == ["tiny"]
    assert administered.status_code == 200
    assert health.status_code == 404
    assert len(warnings_in(caplog)) == 1


async def test_applied_once_it_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with settings_of() as settings, asking(MaaSMiddleware(model_server(), settings=settings)) as client:
        await client.post("/v1/chat/completions", json=chat("tiny"), headers=await minted(client))

    assert warnings_in(caplog) == []


async def test_inner_one_still_guards_what_the_outer_one_leaves_to_its_host() -> None:
    async with settings_of(scope="inference") as settings:
        inner = MaaSMiddleware(model_server(), settings=settings)
        app = MaaSMiddleware(Starlette(routes=[Mount("/llm", app=inner)]), settings=settings)

        stranger = await converse(app, "POST", "/llm/tokenize", json={"model": "tiny", "prompt": "Hello!"})
        versioned = await converse(app, "POST", "/llm/v1/chat/completions", json=chat("tiny"))

    assert (stranger.status, stranger.json()["error"]["code"]) == (401, "invalid_api_key")
    assert versioned.status == 401
