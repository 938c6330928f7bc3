from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from examples.stand_ins import cluster
from maas_middleware import SigningKeys
from tests.fleet import until
from tests.servers import serving

from .running import BOB, bearer, running

QUESTION = {"model": "simulator", "prompt": "Hi", "max_tokens": 5}


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[list[httpx.AsyncClient]]:
    SigningKeys.generate().save(tmp_path / "keys.json")
    async with AsyncExitStack() as stack:
        environ = {
            "CLUSTER_URL": await stack.enter_async_context(serving(cluster)),
            "DATABASE_URL": f"sqlite:///{tmp_path}/tokens.db",
            "KEYS_FILE": f"{tmp_path}/keys.json",
        }
        yield [await stack.enter_async_context(running("shared_tokens", **environ)) for _ in range(2)]


async def minted(client: httpx.AsyncClient) -> dict[str, str]:
    answer = await client.post("/v1/tokens", headers=BOB)
    assert answer.status_code == 201, answer.text
    return bearer(answer.json()["token"])


async def test_what_one_mints_the_other_accepts_until_it_is_revoked(replicas: list[httpx.AsyncClient]) -> None:
    one, other = replicas
    token = await minted(one)
    answer = await other.post("/v1/completions", headers=token, json=QUESTION)
    revoking = await one.delete("/v1/tokens", headers=BOB)
    at_once = await one.get("/v1/usage", headers=token)

    async def is_refused() -> bool:
        return (await other.get("/v1/usage", headers=token)).status_code == 401

    assert (answer.status_code, revoking.status_code, at_once.status_code) == (200, 204, 401)
    assert await until(is_refused) < 1.0


async def test_use_is_recorded_wherever_it_was(replicas: list[httpx.AsyncClient]) -> None:
    one, other = replicas
    token = await minted(one)
    used = (await other.post("/v1/completions", headers=token, json=QUESTION)).json()["usage"]["total_tokens"]

    own = (await other.get("/v1/usage", headers=token)).json()

    assert (own["total"]["requests"], own["total"]["total_tokens"]) == (1, used)
    assert [row["model"] for row in own["data"]] == ["simulator"]
