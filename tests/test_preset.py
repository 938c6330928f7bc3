"""The whole onion in front of an app: by environment alone, by Settings, and put together by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware import MaaSMiddleware, Settings, gateway, load_settings, stack
from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.cluster import StandInCluster
from maas_middleware.testing.converse import converse
from maas_middleware.testing.model import SimulatedModel

from .deployments import USERS, bearer, chat
from .servers import serving

PROMPT = {"model": "tiny", "prompt": "Hello!"}
BAD = {"MAAS_COUNTERS": "etcd://:secret@localhost", "MAAS_TOKENS_MINIMUM_EXPIRATION": "soon"}


@asynccontextmanager
async def mounted(app: ASGIApp, root: str = "", **overrides: object) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an app that has MaaSMiddleware in it, whose cluster is at `MAAS_OPENSHIFT_API_URL`; yields its client."""
    async with serving(app) as url, httpx.AsyncClient(base_url=url + root) as client:
        yield client


@asynccontextmanager
async def cluster_settings(**overrides: object) -> AsyncIterator[Settings]:
    async with serving(StandInCluster(USERS)) as url:
        yield load_settings({"MAAS_OPENSHIFT_API_URL": url}, config=None, **overrides)


async def access_token(client: httpx.AsyncClient) -> str:
    response = await client.post("/v1/tokens", headers=bearer("sha256~free"))
    assert response.status_code == 201, response.text
    return str(response.json()["token"])


def host_app() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete() -> dict[str, object]:
        return {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [{"id": "tiny"}]}

    @app.get("/health")
    async def health() -> str:
        return "the host's own"

    @app.get("/page")
    async def page() -> str:
        return "a page"

    return app


async def test_whole_onion_by_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(StandInCluster(USERS)) as cluster:
        monkeypatch.setenv("MAAS_OPENSHIFT_API_URL", cluster)
        app = host_app()
        app.add_middleware(MaaSMiddleware)
        async with mounted(app) as client:
            headers = bearer(await access_token(client))

            answer = await client.post("/v1/chat/completions", json=chat("any"), headers=headers)
            models = await client.get("/v1/models", headers=headers)
            stranger = await client.get("/v1/models")
            unlisted = await client.get("/page", headers=headers)
            health = await client.get("/health")
            ours = await client.get("/maas-api/health")

    assert answer.status_code == 200
    assert answer.headers["x-odhu-usage-total-tokens"] == "3"
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"
    assert [row["id"] for row in models.json()["data"]] == ["tiny"]
    assert stranger.status_code == 401
    assert unlisted.status_code == 404
    assert health.json() == "the host's own"
    assert ours.json() == {"status": "healthy"}


async def test_host_keeps_its_other_routes_in_scope_inference() -> None:
    async with cluster_settings(scope="inference") as settings:
        app = host_app()
        app.add_middleware(MaaSMiddleware, settings=settings)
        async with mounted(app) as client:
            page = await client.get("/page")
            missing = await client.get("/nothing")
            guarded = await client.post("/v1/chat/completions", json=chat("any"))

    assert page.json() == "a page"
    assert "x-request-id" not in page.headers
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    assert guarded.status_code == 401


async def test_configured_models_are_what_is_listed_and_served() -> None:
    models = [{"id": "tiny", "tiers": "all"}, {"id": "big", "tiers": ["enterprise"]}]
    async with cluster_settings(models=models) as settings:
        app = host_app()
        app.add_middleware(MaaSMiddleware, settings=settings)
        async with mounted(app) as client:
            headers = bearer(await access_token(client))

            listed = await client.get("/v1/models", headers=headers)
            served = await client.post("/tiny/v1/chat/completions", json={}, headers=headers)
            refused = await client.post("/v1/chat/completions", json=chat("big"), headers=headers)

    assert [model["id"] for model in listed.json()["data"]] == ["tiny"]
    assert served.status_code == 200
    assert refused.status_code == 403


async def test_works_below_a_mount_where_no_lifespan_reaches_it() -> None:
    async with cluster_settings(models=[{"id": "tiny", "tiers": "all"}]) as settings:
        app = Starlette(routes=[Mount("/llm", app=MaaSMiddleware(host_app(), settings=settings))])
        async with mounted(app, root="/llm") as client:
            headers = bearer(await access_token(client))

            served = await client.post("/v1/chat/completions", json=chat("tiny"), headers=headers)
            (model,) = (await client.get("/v1/models", headers=headers)).json()["data"]
            again = await client.post(model["url"], json=chat("tiny"), headers=headers)

    assert (served.status_code, again.status_code) == (200, 200)
    assert model["url"].endswith("/llm/tiny/v1/chat/completions")


async def test_inner_key_replaces_the_callers_credential(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("inner-secret\n")
    seen: list[Scope] = []
    model = SimulatedModel("tiny")

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await model(scope, receive, send)

    async with (
        cluster_settings(inner_api_key_file=str(key)) as settings,
        mounted(MaaSMiddleware(inner, settings=settings)) as client,
    ):
        headers = bearer(await access_token(client))
        await client.post("/v1/chat/completions", json=chat("tiny"), headers=headers)

    (scope,) = [scope for scope in seen if scope["type"] == "http"]
    assert [value for name, value in scope["headers"] if name == b"authorization"] == [b"Bearer inner-secret"]


async def test_endpoint_cannot_be_made_public() -> None:
    async with cluster_settings(public_paths=["/health", "/v1/completions/"]) as settings:
        app = MaaSMiddleware(host_app(), settings=settings)

        answer = await converse(app, "POST", "/v1/completions", json={})

    assert (answer.status, answer.json()["error"]["code"]) == (503, "not_configured")


async def test_preflights_are_the_hosts() -> None:
    async with cluster_settings() as settings:
        app = MaaSMiddleware(host_app(), settings=settings)
        headers = [("origin", "http://a"), ("access-control-request-method", "POST")]

        preflight = await converse(app, "OPTIONS", "/v1/chat/completions", headers=headers)
        options = await converse(app, "OPTIONS", "/v1/chat/completions")

    assert preflight.status == 405  # the host has no CORSMiddleware; it was asked
    assert preflight.json() == {"detail": "Method Not Allowed"}
    assert options.status == 401


def test_refused_configuration_fails_the_startup() -> None:
    code = (
        "import uvicorn; from maas_middleware import MaaSMiddleware; from fastapi import FastAPI;"
        "app = FastAPI(); app.add_middleware(MaaSMiddleware); uvicorn.run(app, port=0)"
    )

    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **BAD}, capture_output=True, text=True, timeout=20
    )

    assert ran.returncode == 3
    assert "MAAS_COUNTERS: etcd://... is not like" in ran.stderr
    assert "MAAS_TOKENS_MINIMUM_EXPIRATION: " in ran.stderr
    assert "secret" not in ran.stderr
    assert "Traceback" not in ran.stderr


async def test_refused_configuration_serves_503_where_there_is_no_lifespan(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BAD.items():
        monkeypatch.setenv(name, value)
    app = MaaSMiddleware(host_app())

    guarded = await converse(app, "POST", "/v1/chat/completions", json=chat())
    await app.aclose()
    public = await converse(app, "GET", "/health")

    assert (guarded.status, guarded.json()["error"]["code"]) == (503, "not_configured")
    assert public.json() == "the host's own"


@pytest.mark.parametrize("is_mounted", [True, False])
async def test_limits_in_memory_go_by_the_clock_that_is_given(is_mounted: bool) -> None:
    model, clock = SimulatedModel("tiny"), FakeClock()
    async with serving(model) as upstream:
        models = [{"id": "tiny", "tiers": "all", "upstreams": [upstream]}]
        async with cluster_settings(models=models) as settings:
            service = (
                MaaSMiddleware(model, settings=settings, clock=clock) if is_mounted else gateway(settings, clock=clock)
            )
            async with mounted(service) as client:
                headers = bearer(await access_token(client))

                answers = [await client.post("/v1/completions", json=PROMPT, headers=headers) for _ in range(6)]
                clock.advance(61)
                answers.append(await client.post("/v1/completions", json=PROMPT, headers=headers))

    assert [answer.status_code for answer in answers] == [200] * 5 + [429, 200]


async def test_stack_is_written_outermost_first() -> None:
    entered = []

    class Named:
        def __init__(self, app: ASGIApp, name: str) -> None:
            self.app, self.name = app, name

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            entered.append(self.name)
            await self.app(scope, receive, send)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        entered.append("app")

    await converse(stack(app, Middleware(Named, name="outer"), Middleware(Named, name="inner")))

    assert entered == ["outer", "inner", "app"]
