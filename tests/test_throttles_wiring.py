"""What is configured of throttles reaches them, and counts where the counters are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from maas_middleware.identity import Identity
from maas_middleware.providers.jwt import JWTMinter
from maas_middleware.providers.keys import SigningKeys

from .deployments import UNTHROTTLED, USERS, Deployment, bearer, chat, deployed, made, minted, statuses, throttled
from .ledgers.redis_server import RedisServer, running_redis

FAY, PAT, OTTO = USERS
CHAT = "/v1/chat/completions"
ROOMY = [{"name": "crew", "groups": ["system:authenticated"], "limits": {"requests": "999/day", "tokens": "unlimited"}}]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the keys that all gateways here sign with."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    SigningKeys.generate().save(file)
    return file


@asynccontextmanager
async def replicas(redis: RedisServer, keys: Path, throttles: dict[str, str]) -> AsyncIterator[tuple[Deployment, ...]]:
    """Two gateways that count in one Redis."""
    assert redis.do("FLUSHALL") == b"+OK\r\n"
    settings: dict[str, Any] = {
        "counters": redis.url,
        "counters_timeout": "5s",
        "throttles": {**UNTHROTTLED, **throttles},
        "tokens": {"signing_keys_file": str(keys)},
        "tiers": ROOMY,
        "qwen3_tiers": "all",
    }
    async with deployed(**settings) as one, deployed(**settings) as other:
        yield one, other


async def test_tokens_and_api_keys_of_a_user_are_throttled_together_at_all_replicas(
    redis: RedisServer, keys: Path
) -> None:
    async with replicas(redis, keys, {"mints": "3/hour"}) as (one, other):
        passed = [await minted(one), await made(other), await minted(other)]
        refused = [await minted(one), await made(one), await minted(other), await made(other)]
        elsewhere = await one.client.get("/v1/api-keys", headers=bearer(FAY))
        somebody_else = await minted(other, PAT)

    assert [answer.status_code for answer in passed] == [201] * 3
    assert {throttled(answer) for answer in refused} == {("mints", 3, 3600)}
    assert (elsewhere.status_code, somebody_else.status_code) == (200, 201)


async def test_control_requests_of_a_user_are_throttled_at_all_replicas_and_inference_is_not(
    redis: RedisServer, keys: Path
) -> None:
    async with replicas(redis, keys, {"control_requests": "5/hour"}) as (one, other):
        token = await one.mint()
        counted = await statuses(one, FAY, "/v1/models", "/nothing", "/maas-api/v1/me")
        counted += await statuses(other, FAY, "/v1/usage")
        refused = [await site.client.get("/v1/me", headers=bearer(FAY)) for site in (one, other)]
        counted_apart = await statuses(other, token, *["/v1/me"] * 5)
        refused += [await site.client.get("/v1/me", headers=bearer(token)) for site in (one, other)]
        inference = await one.client.post(CHAT, json=chat(), headers=bearer(token))
        for_everybody = await statuses(one, FAY, "/ready", "/health", "/.well-known/jwks.json")
        somebody_else = await statuses(other, PAT, "/v1/me")

    assert counted == [200, 404, 200, 200]
    assert counted_apart == [200] * 5
    assert {throttled(answer) for answer in refused} == {("control_requests", 5, 3600)}
    assert [inference.status_code, *for_everybody, *somebody_else] == [200] * 5


async def test_wrong_credentials_are_counted_on_every_kind_of_route_and_at_all_replicas(
    redis: RedisServer, keys: Path
) -> None:
    forged = JWTMinter(keys=SigningKeys.generate()).mint(Identity("openshift", "fay"), 900, 0).token

    async with replicas(redis, keys, {"failed_credentials": "4/hour"}) as (one, other):
        token = await one.mint()
        counted = await statuses(one, forged, CHAT, "/v1/models")
        counted += await statuses(other, "sha256~guessed", CHAT, "/v1/me")
        reviewed = len(other.cluster.reviews)
        refused = [
            await site.client.get(path, headers=bearer(wrong))
            for site in (one, other)
            for path, wrong in ((CHAT, forged), ("/v1/models", forged), ("/v1/models", "sha256~guess"))
        ]
        newcomer = await minted(other)
        known = await one.client.post(CHAT, json=chat(), headers=bearer(token))

    assert counted == [401] * 4
    assert reviewed == 1
    assert {throttled(answer) for answer in [*refused, newcomer]} == {("failed_credentials", 4, 3600)}
    assert len(other.cluster.reviews) == reviewed
    assert known.status_code == 200


async def test_throttles_of_the_same_limit_count_apart(redis: RedisServer, keys: Path) -> None:
    async with replicas(redis, keys, dict.fromkeys(UNTHROTTLED, "2/hour")) as (one, other):
        token, last = await one.mint(), await minted(other)  # two requests, and two mints
        one_too_many = await minted(other)
        known = await one.client.post(CHAT, json=chat(), headers=bearer(token))
        guesses = await statuses(one, "a.b.c", CHAT, "/v1/me", CHAT)

    assert guesses == [401, 401, 429]
    assert (last.status_code, known.status_code) == (201, 200)
    assert throttled(one_too_many) == ("control_requests", 2, 3600)


async def test_throttles_wait_for_redis_as_long_as_is_configured(
    redis: RedisServer, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with replicas(redis, keys, {"mints": "2/hour"}) as (one, other):
        first = await minted(one)
        assert redis.do("CLIENT", "PAUSE", "600", "ALL") == b"+OK\r\n"  # the default is 250 ms
        second = await minted(one)
        refused = await minted(other)

    assert [answer.status_code for answer in (first, second)] == [201, 201]
    assert throttled(refused) == ("mints", 2, 3600)
    assert "counts on its own" not in caplog.text


@pytest.mark.parametrize(("trusted", "others"), [(["127.0.0.1"], 401), ([], 429)])
async def test_wrong_credentials_are_counted_by_the_address_that_trusted_proxies_tell(
    trusted: list[str], others: int
) -> None:
    async with deployed(trusted_proxies=trusted, throttles={"failed_credentials": "2/hour"}) as site:

        async def guess(path: str, address: str) -> int:
            headers = {**bearer("a.b.c"), "x-forwarded-for": address}
            return (await site.client.get(path, headers=headers)).status_code

        guesses = [await guess(path, "192.0.2.1") for path in (CHAT, "/v1/me", CHAT, "/v1/me")]
        elsewhere = await guess(CHAT, "192.0.2.2")

    assert guesses == [401, 401, 429, 429]
    assert elsewhere == others


async def test_throttle_that_is_switched_off_lets_everything_pass() -> None:
    async with deployed(throttles=UNTHROTTLED) as site:
        mints = {(await minted(site)).status_code for _ in range(31)}  # the default is 30
        guesses = {status for _ in range(61) for status in await statuses(site, "a.b.c", CHAT)}  # and 60

    assert (mints, guesses) == ({201}, {401})
