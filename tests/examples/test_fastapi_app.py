from __future__ import annotations

import openai
import pytest

from examples.stand_ins import cluster
from tests.servers import serving

from .running import ALICE, BOB, running, sdk


async def test_a_login_mints_a_token_that_the_openai_sdk_uses() -> None:
    async with serving(cluster) as cluster_url, running("fastapi_app", CLUSTER_URL=cluster_url) as client:
        minted = (await client.post("/v1/tokens", headers=BOB)).json()
        async with sdk(client, minted["token"]) as user:
            models = await user.models.list()
            raw = await user.chat.completions.with_raw_response.create(
                model="parrot", messages=[{"role": "user", "content": "Hello there!"}]
            )
            with pytest.raises(openai.NotFoundError) as unknown:
                await user.chat.completions.create(model="owl", messages=[{"role": "user", "content": "Hello"}])

    assert [model.id for model in models.data] == ["parrot"]
    assert raw.parse().choices[0].message.content == "Hello there!"
    assert raw.headers["x-odhu-usage-total-tokens"] == "4"
    assert raw.headers["x-ratelimit-limit-requests"] == "5"
    assert raw.headers["x-ratelimit-remaining-requests"] == "4"
    assert unknown.value.code == "model_not_found"


async def test_the_tier_decides_the_limits() -> None:
    async with serving(cluster) as cluster_url, running("fastapi_app", CLUSTER_URL=cluster_url) as client:
        minted = (await client.post("/v1/tokens", headers=ALICE)).json()
        left = await client.head("/v1/chat/completions", headers={"authorization": f"Bearer {minted['token']}"})

    assert left.status_code == 200
    assert left.headers["x-ratelimit-limit-requests"] == "20"
    assert left.headers["x-ratelimit-limit-tokens"] == "50000"


async def test_only_public_paths_are_open_to_anyone() -> None:
    async with serving(cluster) as cluster_url, running("fastapi_app", CLUSTER_URL=cluster_url) as client:
        health = await client.get("/health")
        docs = await client.get("/docs")
        inference = await client.post("/v1/chat/completions", headers=BOB, json={"model": "parrot", "messages": []})

    assert health.json() == {"status": "parroting"}
    assert docs.status_code == 401
    assert (inference.status_code, inference.json()["error"]["details"]) == (401, {"reason": "unknown"})
