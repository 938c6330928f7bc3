from __future__ import annotations

import runpy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.ledgers.redis_server import running_redis
from tests.servers import serving

from .running import bearer

BOB = bearer("bob-token")
QUESTION = {"model": "simulator", "prompt": "Hi", "max_tokens": 1}
USED = 2


@asynccontextmanager
async def running(app: str = "app", **environ: str) -> AsyncIterator[httpx.AsyncClient]:
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environ.items():
            patch.setenv(variable, value)
        example: dict[str, Any] = runpy.run_module("examples.shared_counters")
    async with serving(example[app]) as url, httpx.AsyncClient(base_url=url, headers=BOB) as client:
        yield client


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/completions", json=QUESTION)


def left(answer: httpx.Response) -> tuple[str, str]:
    return answer.headers["x-ratelimit-remaining-requests"], answer.headers["x-ratelimit-remaining-tokens"]


async def test_what_one_has_counted_the_other_knows() -> None:
    with running_redis() as redis:
        async with running(REDIS_URL=redis.url) as one, running(REDIS_URL=redis.url) as other:
            answers = [await ask(client) for client in (one, other, one)]
            seen = await other.head("/v1/completions")
            answers += [await ask(client) for client in (other, one)]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429]
    assert left(seen) == ("1", str(200 - 3 * USED))
    assert answers[-1].json()["error"]["details"]["limit"] == "requests"


async def test_without_redis_each_has_its_share_and_says_so() -> None:
    with running_redis() as redis:
        async with running(REDIS_URL=redis.url) as one:
            before = (await one.get("/ready")).json()
            redis.kill()
            answers = [await ask(one) for _ in range(3)]
            after = (await one.get("/ready")).json()

    assert before == {"status": "ready"}
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert after == {"status": "ready", "degraded": ["counters"]}


async def test_requests_are_counted_on_any_storage_of_limits() -> None:
    async with running("by_requests") as client:
        answers = [await ask(client) for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert "x-ratelimit-limit-tokens" not in answers[0].headers
    assert answers[-1].json()["error"]["details"]["window_seconds"] == 60
