from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from examples.stand_ins import cluster
from tests.ledgers.redis_server import running_redis
from tests.servers import serving

from .running import ALICE, BOB, bearer, running


@asynccontextmanager
async def service(**environ: str) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(cluster) as url, running("throttles", CLUSTER_URL=url, **environ) as client:
        yield client


def limit(answer: httpx.Response) -> object:
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    return answer.json()["error"]["details"]["limit"]


async def test_each_user_has_so_many_requests() -> None:
    async with service() as client:
        answers = [await client.get("/hello", headers=ALICE) for _ in range(6)]
        other = await client.get("/hello", headers=BOB)

    assert [answer.status_code for answer in answers[:5]] == [200] * 5
    assert limit(answers[5]) == "control_requests"
    assert other.text == "Hello, bob!\n"


async def test_an_act_may_have_a_limit_of_its_own() -> None:
    async with service() as client:
        answers = [await client.post("/invitations", headers=ALICE) for _ in range(3)]
        still = await client.get("/hello", headers=ALICE)

    assert [answer.status_code for answer in answers[:2]] == [201, 201]
    assert limit(answers[2]) == "invitations"
    assert still.status_code == 200


async def test_address_that_fails_too_often_is_refused_and_who_is_known_goes_on() -> None:
    async with service() as client:
        known = [(await client.get("/hello", headers=ALICE)).status_code]
        guesses = [await client.get("/hello", headers=bearer(f"sha256~guess-{number}")) for number in range(4)]
        newcomer = await client.get("/hello", headers=BOB)
        known.append((await client.get("/hello", headers=ALICE)).status_code)

    assert [guess.status_code for guess in guesses[:3]] == [401] * 3
    assert [limit(guesses[3]), limit(newcomer)] == ["failed_credentials"] * 2
    assert known == [200, 200]


async def test_replicas_count_together_where_there_is_a_redis() -> None:
    with running_redis() as redis:
        async with service(REDIS_URL=redis.url) as one, service(REDIS_URL=redis.url) as other:
            answers = [await client.post("/invitations", headers=BOB) for client in (one, other, one)]

    assert [answer.status_code for answer in answers] == [201, 201, 429]
