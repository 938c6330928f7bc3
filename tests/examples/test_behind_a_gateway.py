from __future__ import annotations

import runpy
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from examples.stand_ins import cluster
from tests.servers import serving

from .running import BOB, bearer

QUESTION = {"model": "greeter", "prompt": "Hello"}


@pytest.fixture
async def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Those of the gateway and of the app, each started from the same module as by uvicorn."""
    keys = tmp_path / "assertion-keys"
    keys.write_text("what openssl rand -base64 32 would have printed\n")
    keys.chmod(0o600)
    monkeypatch.setenv("ASSERTION_KEYS_FILE", str(keys))
    async with AsyncExitStack() as stack:
        monkeypatch.setenv("CLUSTER_URL", await stack.enter_async_context(serving(cluster)))
        module = runpy.run_module("examples.behind_a_gateway")
        app_url = await stack.enter_async_context(serving(module["app"]))
        monkeypatch.setenv("APP_URL", app_url)
        edge = runpy.run_module("examples.behind_a_gateway")["edge"]
        edge_url = await stack.enter_async_context(serving(edge))
        yield [await stack.enter_async_context(httpx.AsyncClient(base_url=url)) for url in (edge_url, app_url)]


async def minted(client: httpx.AsyncClient) -> dict[str, str]:
    return bearer((await client.post("/v1/tokens", headers=BOB)).json()["token"])


async def test_the_app_greets_the_person_and_the_gateway_counts(clients: list[httpx.AsyncClient]) -> None:
    edge, app = clients
    token = await minted(edge)

    answer = await edge.post("/v1/completions", headers=token, json=QUESTION)
    directly = await app.post("/v1/completions", headers=token, json=QUESTION)

    assert answer.json()["choices"][0]["text"].startswith("Hello, bob of system:authenticated")
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"
    assert answer.headers["x-odhu-usage-total-tokens"] == "6"
    assert directly.status_code == 401


async def test_the_app_serves_its_own_users_too(clients: list[httpx.AsyncClient]) -> None:
    _, app = clients

    answer = await app.post("/v1/completions", headers=await minted(app), json=QUESTION)

    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"
