"""A gateway that dies in the middle of a stream: what it held in Redis lapses, and its request stays counted."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest

from maas_middleware import Limit, RedisLedger, SigningKeys, Subject, Verdict
from maas_middleware.testing.cluster import ClusterUser, StandInCluster
from maas_middleware.testing.model import SimulatedModel

from .deployments import bearer, chat
from .ledgers.redis_server import RedisServer, running_redis
from .processes import running
from .servers import serving

LEASE_SECONDS = 120
LOGIN = "sha256~alice"
CONFIG = """
openshift: {{api_url: {cluster}}}
counters: {counters}
tokens: {{signing_keys_file: {keys}}}
tiers:
  - name: free
    groups: ["system:authenticated"]
    limits: {{requests: 5/hour, tokens: 1000/hour}}
    concurrency: 1
models:
  - {{id: simulator, tiers: all, upstreams: ["{model}"], engine: vllm}}
"""
ALICE = Subject("openshift/alice", (Limit(5, 3600),), (Limit(1000, 3600),), concurrency=1)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


async def standing(redis: RedisServer, *, in_seconds: float = 0) -> tuple[int, int, str | None]:
    """Requests and tokens that are left then, and what stands in the way of the next call."""
    ledger = RedisLedger(f"redis://127.0.0.1:{redis.port}", clock=lambda: time.time() + in_seconds, timeout=5)
    try:
        verdict: Verdict = await ledger.peek(ALICE)
    finally:
        await ledger.aclose()
    assert verdict.requests is not None
    assert verdict.tokens is not None
    return verdict.requests.remaining, verdict.tokens.remaining, verdict.refused_by


async def test_what_a_killed_gateway_held_lapses_and_its_request_stays_counted(
    redis: RedisServer, tmp_path: Path
) -> None:
    simulator = SimulatedModel()
    config = tmp_path / "maas.yaml"
    async with (
        serving(StandInCluster({LOGIN: ClusterUser("alice")})) as cluster,
        serving(simulator) as model,
        httpx.AsyncClient(timeout=10) as client,
    ):
        counters = f"redis://127.0.0.1:{redis.port}/0"
        keys = tmp_path / "keys.json"
        SigningKeys.generate().save(keys)
        config.write_text(CONFIG.format(cluster=cluster, counters=counters, keys=keys, model=model))
        command = [sys.executable, "-m", "maas_middleware", "serve", "--port", "0", "--config", str(config)]
        with running(*command) as gateway:
            url = f"http://127.0.0.1:{gateway.port}"
            minted = await client.post(f"{url}/v1/tokens", headers=bearer(LOGIN))
            simulator.gate = anyio.Event()
            body = chat("simulator", stream=True, max_tokens=100)
            headers = bearer(minted.json()["token"])
            async with client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as stream:
                assert stream.status_code == 200
                requests, tokens, refused_by = await standing(redis)
                gateway.process.kill()
                with pytest.raises(httpx.RemoteProtocolError):
                    await stream.aread()

    assert (requests, refused_by) == (4, "concurrency")
    assert tokens < 900
    assert await standing(redis) == (requests, tokens, refused_by)
    assert await standing(redis, in_seconds=LEASE_SECONDS + 1) == (4, 1000, None)
