"""Limits that users, models and replicas share, as people meet them: over sockets, and on a real Redis."""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from maas_middleware import SigningKeys, gateway, load_settings
from maas_middleware.testing.cluster import StandInCluster
from maas_middleware.testing.model import SimulatedModel

from .deployments import UNTHROTTLED, USERS, bearer, chat
from .ledgers.redis_server import RedisServer, running_redis
from .processes import running
from .servers import serving

CHAT = "/v1/chat/completions"
FAY, PAT, OTTO = USERS
ROOMY = {"requests": "1000/hour", "tokens": "1000000/hour"}
USED = 22  # by each answer of the simulated model
PASSWORD = "hunter2"
AT_MOST_SECONDS = 1.0  # that an answer may take while Redis is frozen


@dataclass
class User:
    """Somebody with an access token."""

    client: httpx.AsyncClient
    headers: dict[str, str]

    async def ask(self, model: str = "simulator", **more: Any) -> httpx.Response:
        return await self.client.post(CHAT, json=chat(model, **more), headers=self.headers)

    async def left(self, what: str = "requests", path: str = CHAT) -> int:
        answer = await self.client.head(path, headers=self.headers)
        assert (answer.status_code, answer.content) == (200, b"")
        return int(answer.headers[f"x-ratelimit-remaining-{what}"])

    @asynccontextmanager
    async def streaming(self, model: str = "simulator", **more: Any) -> AsyncIterator[httpx.Response]:
        """A stream that has begun; whoever does not read it leaves."""
        body = chat(model, stream=True, **more)
        async with self.client.stream("POST", CHAT, json=body, headers=self.headers) as response:
            assert response.status_code == 200, await response.aread()
            yield response


@dataclass
class Service:
    """Gateways to the same models, in their order; what they answered is kept."""

    simulator: SimulatedModel
    gateways: list[httpx.AsyncClient]
    answers: list[httpx.Response] = field(default_factory=list)

    async def user(self, login: str = PAT, at: int = 0) -> User:
        client = self.gateways[at]
        response = await client.post("/v1/tokens", headers=bearer(login))
        assert response.status_code == 201, response.text
        return User(client, bearer(response.json()["token"]))

    async def ready(self, at: int = 0) -> object:
        answer = await self.gateways[at].get("/ready")
        assert answer.status_code == 200
        return answer.json()


@asynccontextmanager
async def served(
    *,
    tier: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    gateways: int = 1,
    **settings: Any,
) -> AsyncIterator[Service]:
    """Gateways for one tier of everybody, before `simulator`, which may have limits, and `other`, which has none."""
    simulator = SimulatedModel()
    service = Service(simulator, [])
    crew = {"name": "crew", "groups": ["system:authenticated"], "limits": ROOMY, **(tier or {})}
    async with AsyncExitStack() as stack:
        cluster_url = await stack.enter_async_context(serving(StandInCluster(USERS)))
        model_url = await stack.enter_async_context(serving(simulator))
        models = [
            {"id": "simulator", "tiers": "all", "upstreams": [model_url], "limits": limits or {}},
            {"id": "other", "tiers": "all", "upstreams": [model_url], "upstream_model": "simulator"},
        ]
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        SigningKeys.generate().save(directory / "keys.json")
        config = {
            "openshift": {"api_url": cluster_url},
            "tokens": {"signing_keys_file": str(directory / "keys.json")},
            "models": models,
            "tiers": [crew],
            "throttles": UNTHROTTLED,
            **settings,
        }

        async def keep(answer: httpx.Response) -> None:
            service.answers.append(answer)

        for _ in range(gateways):
            url = await stack.enter_async_context(serving(gateway(load_settings({}, **config)), lifespan="on"))
            client = httpx.AsyncClient(base_url=url, timeout=10, event_hooks={"response": [keep]})
            service.gateways.append(await stack.enter_async_context(client))
        yield service


def url_of(redis: RedisServer) -> str:
    return f"redis://default:{PASSWORD}@127.0.0.1:{redis.port}/0"  # the user `default` takes any password


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def counters(request: pytest.FixtureRequest, redis: RedisServer) -> str:
    """Where to count, and nobody has counted before."""
    if getattr(request, "param", "redis") == "memory":
        return "memory://"
    assert redis.do("FLUSHALL") == b"+OK\r\n"
    return url_of(redis)


WHEREVER = pytest.mark.parametrize("counters", ["memory", "redis"], indirect=True)


def refusal(answer: httpx.Response) -> dict[str, Any]:
    """The details of a 429 that is as it has to be, but for the wait, which is the same as in the headers."""
    assert answer.status_code == 429, answer.text
    error = answer.json()["error"]
    details: dict[str, Any] = error.pop("details")
    assert error == {
        "message": "Rate limit exceeded",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    seconds = int(answer.headers["retry-after"])
    assert details.pop("retry_after_seconds") == seconds >= 1
    assert seconds - 1 < int(answer.headers["retry-after-ms"]) / 1000 <= seconds
    return details


def quota(answer: httpx.Response) -> dict[str, str]:
    """What the headers say of limits, but for the time."""
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in answer.headers.items()
        if name.startswith("x-ratelimit-") and "reset" not in name
    }


def told(requests: tuple[int, int], tokens: tuple[int, int]) -> dict[str, str]:
    """Such headers: limits, and what is left of them."""
    return {
        "limit-requests": str(requests[0]),
        "remaining-requests": str(requests[1]),
        "limit-tokens": str(tokens[0]),
        "remaining-tokens": str(tokens[1]),
    }


async def comes(condition: Callable[[], Awaitable[object]], expected: object) -> None:
    """Ask again until it is so, which the time-out of the test bounds."""
    while await condition() != expected:
        await anyio.lowlevel.checkpoint()


# one user


@WHEREVER
async def test_limits_on_a_model_come_on_top_of_those_of_the_user(counters: str) -> None:
    tier = {"model_limits": {"simulator": {"requests": "2/hour"}}}

    async with served(counters=counters, tier=tier) as service:
        pat, otto = await service.user(PAT), await service.user(OTTO)
        answers = [await pat.ask() for _ in range(3)]
        elsewhere, by_otto = await pat.ask("other"), await otto.ask()

    assert [answer.status_code for answer in (*answers, elsewhere, by_otto)] == [200, 200, 429, 200, 200]
    assert refusal(answers[2]) == {"limit": "requests", "tier": "crew", "quota": 2, "window_seconds": 3600}
    assert quota(answers[0]) == told((2, 1), (1_000_000, 1_000_000 - USED))
    assert quota(answers[2]) == told((2, 0), (1_000_000, 1_000_000 - 2 * USED))
    assert quota(elsewhere) == told((1000, 997), (1_000_000, 1_000_000 - 3 * USED))
    assert quota(by_otto) == told((2, 1), (1_000_000, 1_000_000 - USED))


async def test_a_call_without_cost_shows_the_tightest_limit_of_the_model_that_it_names(counters: str) -> None:
    tier = {"model_limits": {"simulator": {"requests": "2/hour", "tokens": "50/hour"}}}

    async with served(counters=counters, tier=tier) as service:
        pat = await service.user()
        await pat.ask()
        at_large, below, elsewhere = [
            await pat.client.head(f"{prefix}{CHAT}", headers=pat.headers) for prefix in ("", "/simulator", "/other")
        ]

    assert quota(at_large) == quota(elsewhere) == told((1000, 999), (1_000_000, 1_000_000 - USED))
    assert quota(below) == told((2, 1), (50, 50 - USED))


async def test_tokens_on_a_model_are_what_it_reports(counters: str) -> None:
    tier = {"model_limits": {"simulator": {"tokens": "40/hour"}}}

    async with served(counters=counters, tier=tier) as service:
        pat = await service.user()
        answers = [await pat.ask() for _ in range(3)]
        elsewhere = await pat.ask("other")

    assert [answer.status_code for answer in (*answers, elsewhere)] == [200, 200, 429, 200]
    assert refusal(answers[2]) == {"limit": "tokens", "tier": "crew", "quota": 40, "window_seconds": 3600}
    assert [quota(answer)["remaining-tokens"] for answer in answers] == ["18", "0", "0"]
    assert answers[2].headers["x-should-retry"] == "false"  # it would be an hour


async def test_of_several_windows_the_tightest_is_shown_and_refuses(counters: str) -> None:
    tier = {"limits": {"requests": "5/minute;3/hour;100/day", "tokens": f"1000/minute;{5 * USED}/day"}}

    async with served(counters=counters, tier=tier) as service:
        pat = await service.user()
        answers = [await pat.ask() for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [quota(answer) for answer in answers] == [
        told((3, 3 - count), (5 * USED, (5 - count) * USED)) for count in (1, 2, 3, 3)
    ]
    assert refusal(answers[3]) == {"limit": "requests", "tier": "crew", "quota": 3, "window_seconds": 3600}
    assert 3500 < int(answers[3].headers["retry-after"]) <= 3661 * 1.05


@pytest.mark.parametrize("how", ["is read to its end", "is left by its client"])
async def test_a_stream_holds_a_place_until_it(how: str, counters: str) -> None:
    async with served(counters=counters, tier={"concurrency": 1}) as service:
        pat, otto = await service.user(PAT), await service.user(OTTO)
        service.simulator.gate = anyio.Event()
        async with otto.streaming(), pat.streaming() as stream:
            refused = await pat.ask(stream=True)
            if how == "is read to its end":
                service.simulator.gate.set()
                await stream.aread()
        service.simulator.gate.set()

        async def status() -> int:
            return (await pat.ask()).status_code

        await comes(status, 200)

    assert refusal(refused) == {"limit": "concurrency", "tier": "crew", "quota": 1}
    assert refused.headers["retry-after"] in ("1", "2")  # with its jitter
    assert "x-should-retry" not in refused.headers
    assert quota(refused)["remaining-requests"] == "999"


async def test_calls_that_are_answered_leave_no_place_taken(counters: str) -> None:
    tier = {"concurrency": 1, "model_limits": {"simulator": {"concurrency": 1}}}

    async with served(counters=counters, tier=tier, limits={"concurrency": 1}) as service:
        pat = await service.user()
        answers = [
            await pat.ask(),
            await pat.ask("nothing"),
            await pat.ask(max_tokens="many"),
            await pat.ask(messages=[]),
            await pat.client.head(f"/simulator{CHAT}", headers=pat.headers),
            await pat.ask(),
        ]

    assert [answer.status_code for answer in answers] == [200, 404, 400, 400, 200, 200]


# a model as a whole


@WHEREVER
async def test_limit_of_a_model_is_for_all_users_together_and_tells_nobody_how_much_is_left(counters: str) -> None:
    async with served(counters=counters, limits={"requests": "3/hour"}) as service:
        pat, otto = await service.user(PAT), await service.user(OTTO)
        admitted = [await pat.ask(), await pat.ask(), await otto.ask()]
        refused = [await otto.ask(), await pat.ask(stream=True)]
        elsewhere = await otto.ask("other")
        looked = await otto.client.head(f"/simulator{CHAT}", headers=otto.headers)

    assert [answer.status_code for answer in (*admitted, elsewhere)] == [200] * 4
    for answer in refused:
        assert refusal(answer) == {
            "limit": "requests",
            "tier": "crew",
            "scope": "model",
            "quota": 3,
            "window_seconds": 3600,
        }
    everything = 1_000_000
    assert quota(admitted[2]) == quota(refused[0]) == told((1000, 999), (everything, everything - USED))
    assert quota(refused[1]) == told((1000, 998), (everything, everything - 2 * USED))
    assert quota(elsewhere) == quota(looked) == told((1000, 998), (everything, everything - 2 * USED))


async def test_places_at_a_model_are_for_all_users_together(counters: str) -> None:
    async with served(counters=counters, limits={"concurrency": 1}) as service:
        pat, otto = await service.user(PAT), await service.user(OTTO)
        service.simulator.gate = anyio.Event()
        async with pat.streaming() as stream:
            refused = await otto.ask()
            service.simulator.gate.set()
            await stream.aread()
        passed = await otto.ask()

    assert refusal(refused) == {"limit": "concurrency", "tier": "crew", "scope": "model", "quota": 1}
    assert quota(refused) == told((1000, 1000), (1_000_000, 1_000_000))
    assert passed.status_code == 200


@WHEREVER
async def test_what_a_model_refuses_is_given_back_to_all_budgets_before_it(counters: str) -> None:
    tier = {
        "limits": {"requests": "2/hour", "tokens": "1000/hour"},
        "concurrency": 1,
        "model_limits": {"simulator": {"requests": "2/hour", "tokens": "1000/hour", "concurrency": 1}},
    }

    async with served(counters=counters, tier=tier, limits={"tokens": "1/hour"}) as service:
        pat = await service.user()
        first, *refused = [await pat.ask() for _ in range(4)]
        left = await pat.client.head(f"/simulator{CHAT}", headers=pat.headers)
        elsewhere = await pat.ask("other")

    assert (first.status_code, elsewhere.status_code) == (200, 200)
    assert {answer.status_code for answer in refused} == {429}
    assert quota(left) == quota(refused[-1]) == told((2, 1), (1000, 1000 - USED))
    assert quota(elsewhere) == told((2, 0), (1000, 1000 - 2 * USED))


async def test_refusal_by_a_model_is_in_the_dialect_of_the_request() -> None:
    said = {"model": "simulator", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}

    async with served(limits={"requests": "1/hour"}) as service:
        pat = await service.user()
        await pat.ask()
        answer = await pat.client.post("/v1/messages", json=said, headers=pat.headers)

    assert (answer.status_code, answer.json()["type"]) == (429, "error")
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) > 3000
    assert answer.headers["x-should-retry"] == "false"


# strict and soft

TIGHT = {"tokens": "100/hour"}


@pytest.mark.parametrize(
    ("tier", "limits", "scope"),
    [
        pytest.param({"limits": {**ROOMY, **TIGHT}}, {}, {}, id="user"),
        pytest.param({"model_limits": {"simulator": TIGHT}}, {}, {}, id="user-on-the-model"),
        pytest.param({}, TIGHT, {"scope": "model"}, id="model"),
    ],
)
async def test_strict_refuses_for_good_what_is_larger_than_a_limit(
    tier: dict[str, Any], limits: dict[str, Any], scope: dict[str, str], counters: str
) -> None:
    async with served(counters=counters, admission="strict", tier=tier, limits=limits) as service:
        pat = await service.user()
        larger = [await pat.ask(max_tokens=101), await pat.ask(max_tokens=101, stream=True)]
        untouched = await pat.left("requests", f"/simulator{CHAT}"), await pat.left("tokens")
        fitting = await pat.ask(max_tokens=50)
        larger_than_what_is_left = await pat.ask(max_tokens=85)

    hopeless = {"limit": "tokens", "tier": "crew", **scope, "quota": 100, "window_seconds": 3600}
    for answer in larger:
        assert refusal(answer) == {**hopeless, "reason": "request_exceeds_limit"}
        assert answer.headers["x-should-retry"] == "false"
    assert untouched == (1000, int(tier.get("limits", ROOMY)["tokens"].removesuffix("/hour")))
    assert fitting.status_code == 200
    assert refusal(larger_than_what_is_left) == hopeless


async def test_soft_admits_what_is_larger_than_a_limit(counters: str) -> None:
    async with served(counters=counters, tier={"limits": {**ROOMY, **TIGHT}}) as service:
        pat = await service.user()
        answer = await pat.ask(max_tokens=1000)

    assert answer.status_code == 200
    assert quota(answer) == told((1000, 999), (100, 100 - USED))


# two replicas on one Redis


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


REPLICAS = """
openshift: {{api_url: {cluster}}}
counters_file: {directory}/counters
tokens: {{signing_keys_file: {directory}/keys.json}}
tiers:
  - {{name: counted, level: 1, groups: [premium-group], limits: {{requests: 15/hour, tokens: unlimited}}}}
  - {{name: free, groups: ["system:authenticated"], limits: {{requests: unlimited, tokens: 1000/hour}}}}
models:
  - {{id: simulator, tiers: all, upstreams: ["{model}"], limits: {{requests: 25/hour}}}}
"""


@pytest.fixture(scope="module")
async def replicas(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """Two gateways as processes of their own, with one key and one Redis."""
    directory: Path = tmp_path_factory.mktemp("replicas")
    SigningKeys.generate().save(directory / "keys.json")
    (directory / "counters").write_text(url_of(redis))
    simulator = SimulatedModel()
    async with AsyncExitStack() as stack:
        cluster_url = await stack.enter_async_context(serving(StandInCluster(USERS)))
        model_url = await stack.enter_async_context(serving(simulator))
        config = directory / "maas.yaml"
        config.write_text(REPLICAS.format(cluster=cluster_url, directory=directory, model=model_url))
        command = [sys.executable, "-m", "maas_middleware", "serve", "--port", "0", "--config", str(config)]
        service = Service(simulator, [])

        async def start() -> None:
            process = running(*command)
            port = (await anyio.to_thread.run_sync(process.__enter__)).port
            stack.callback(process.__exit__, None, None, None)
            service.gateways.append(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10))

        async with anyio.create_task_group() as group:
            group.start_soon(start)
            group.start_soon(start)
        for client in service.gateways:
            await stack.enter_async_context(client)
        yield service


@pytest.fixture
async def both(replicas: Service, redis: RedisServer) -> Service:
    """The same with nothing counted."""
    assert redis.do("FLUSHALL") == b"+OK\r\n"
    replicas.simulator.gate = None
    replicas.simulator.requests.clear()
    return replicas


async def at_both(service: Service, login: str) -> list[User]:
    """One user, with one token, at each of the gateways."""
    headers = (await service.user(login)).headers
    return [User(client, headers) for client in service.gateways]


async def test_what_one_replica_counts_the_other_knows(both: Service) -> None:
    here, there = await at_both(both, PAT)

    answers = [await user.ask() for user in (here, there, here)]

    assert [answer.status_code for answer in answers] == [200] * 3
    assert [quota(answer)["remaining-requests"] for answer in answers] == ["14", "13", "12"]
    assert await there.left() == 12


async def test_of_calls_at_once_at_both_replicas_exactly_the_limit_passes(both: Service) -> None:
    users = await at_both(both, PAT)
    answers: list[httpx.Response] = []

    async def ask(user: User) -> None:
        answers.append(await user.ask())

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(ask, users[number % 2])

    assert [await both.ready(at) for at in (0, 1)] == [{"status": "ready"}] * 2
    assert sorted(answer.status_code for answer in answers) == [200] * 15 + [429] * 25
    assert len(both.simulator.requests) == 15
    assert {refusal(answer)["limit"] for answer in answers if answer.status_code == 429} == {"requests"}


async def test_of_all_users_at_both_replicas_exactly_the_limit_of_the_model_passes(both: Service) -> None:
    users = [*await at_both(both, PAT), *await at_both(both, OTTO), *await at_both(both, FAY)]
    answers: list[httpx.Response] = []

    async def ask(user: User) -> None:
        answers.append(await user.ask(max_tokens=1))

    async with anyio.create_task_group() as group:
        for number in range(48):
            group.start_soon(ask, users[number % 6])

    assert [await both.ready(at) for at in (0, 1)] == [{"status": "ready"}] * 2
    assert len(both.simulator.requests) == 25
    scopes = [refusal(answer).get("scope") for answer in answers if answer.status_code == 429]
    assert len(scopes) == 48 - 25
    # what is refused by the model is given back: nobody is short of more than what passed
    left = [await user.left() for user in (users[0], users[2])]
    fay = sum(answer.status_code == 200 for answer in answers) - sum(15 - count for count in left)
    assert await users[4].left("tokens") == 1000 - 5 * fay


async def test_tokens_that_a_stream_holds_here_are_missing_there_until_it_ends(both: Service) -> None:
    here, there = await at_both(both, FAY)
    both.simulator.gate = anyio.Event()

    async with here.streaming(max_tokens=600) as stream:
        during = await there.left("tokens")
        both.simulator.gate.set()
        await stream.aread()

    assert 300 < during < 400  # the prompt is estimated
    assert await there.left("tokens") == 1000 - USED


# Redis goes away, and comes back

FAILS = "the counter store fails"
ANSWERS = "the counter store answers again"
DEGRADED = {"status": "ready", "degraded": ["counters"]}
FEW = {"limits": {"requests": "6/hour", "tokens": "1000/hour"}}


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """A server that a test may do anything to."""
    with running_redis() as server:
        yield server


class Watched:
    """All that is answered and logged, of which nothing may tell where the counters are."""

    def __init__(self, caplog: pytest.LogCaptureFixture, redis: RedisServer) -> None:
        caplog.set_level(logging.INFO, "maas_middleware")
        self._caplog = caplog
        self._secrets = (PASSWORD, f"127.0.0.1:{redis.port}", "redis://")

    @property
    def changes(self) -> list[str]:
        """The lines of the log about the counters, each without the reason."""
        lines = [line for line in self._caplog.messages if "store" in line or "ledger" in line]
        return [re.sub(r" \(\w+\)|\d+ (?=settle)", "", line) for line in lines]

    def check(self, service: Service) -> None:
        """Whether nothing was told, and nobody got a 500."""
        answers = [f"{answer.headers} {answer.text if answer.is_closed else ''}" for answer in service.answers]
        told = "\n".join([self._caplog.text, *answers])
        assert len(answers) > 3
        assert [secret for secret in self._secrets if secret in told] == []
        assert {answer.status_code for answer in service.answers} <= {200, 201, 404, 429, 503}


@pytest.fixture
def watched(caplog: pytest.LogCaptureFixture, own: RedisServer) -> Watched:
    return Watched(caplog, own)


@asynccontextmanager
async def held(user: User, service: Service) -> AsyncIterator[tuple[httpx.Response, anyio.Event]]:
    """A stream that has begun, and the event it waits for; other answers do not."""
    gate = service.simulator.gate = anyio.Event()
    async with user.streaming() as stream:
        service.simulator.gate = None
        yield stream, gate


async def test_without_redis_a_replica_goes_on_with_its_share(own: RedisServer, watched: Watched) -> None:
    async with served(counters=url_of(own), replicas=2, tier=FEW) as service:
        pat = await service.user()
        before = await pat.ask()
        own.kill()
        during = [await pat.ask() for _ in range(4)]
        left, unknown, ready = await pat.left(), await pat.ask("nothing"), await service.ready()
        changes = watched.changes

    assert quota(before)["limit-requests"] == "6"
    assert [answer.status_code for answer in during] == [200, 200, 200, 429]
    assert [quota(answer) for answer in during[:3]] == [told((3, 3 - n), (500, 500 - n * USED)) for n in (1, 2, 3)]
    assert refusal(during[3]) == {"limit": "requests", "tier": "crew", "quota": 3, "window_seconds": 3600}
    assert (left, unknown.status_code, ready) == (0, 404, DEGRADED)
    assert changes == [f"{FAILS}: this process counts on its own"]
    watched.check(service)


async def test_without_redis_nobody_passes_where_that_is_the_policy(own: RedisServer, watched: Watched) -> None:
    async with served(counters=url_of(own), on_counters_failure="closed", tier=FEW) as service:
        pat = await service.user()
        passed = await pat.ask()
        own.kill()
        refused = [await pat.ask(), await pat.ask(stream=True), await pat.ask()]
        looked, unknown = await pat.client.head(CHAT, headers=pat.headers), await pat.ask("nothing")
        ready, listed = await service.ready(), await pat.client.get("/v1/models", headers=pat.headers)
        await service.user(OTTO)

    assert passed.status_code == 200
    assert len(service.simulator.requests) == 1
    for answer in refused:
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (503, "server_error", "store_unavailable")
        assert error["message"].startswith("The service cannot reach its store at the moment (request ")
        assert int(answer.headers["retry-after"]) >= 1
        assert quota(answer) == {}
    assert (looked.status_code, looked.content, looked.headers["retry-after"]) == (503, b"", "2")
    assert (unknown.status_code, listed.status_code, ready) == (404, 200, DEGRADED)
    assert watched.changes[0] == f"{FAILS}: requests are refused"
    watched.check(service)


@pytest.mark.parametrize(("policy", "status"), [("local", 200), ("closed", 503)])
async def test_frozen_redis_holds_nobody_up(policy: str, status: int, own: RedisServer, watched: Watched) -> None:
    durations, statuses = [], []

    async def ask(user: User) -> None:
        begin = anyio.current_time()
        statuses.append((await user.ask()).status_code)
        durations.append(anyio.current_time() - begin)

    async with served(counters=url_of(own), on_counters_failure=policy, limits={"requests": "99/hour"}) as service:
        users = [await service.user(login) for login in USERS]
        await ask(users[0])
        async with held(users[0], service) as (stream, gate):
            own.freeze()
            async with anyio.create_task_group() as group:
                for number in range(12):
                    group.start_soon(ask, users[number % 3])
            for user in users:  # it is known by now
                await ask(user)
            begin = anyio.current_time()
            gate.set()
            body = await stream.aread()
            durations.append(anyio.current_time() - begin)
        ready = await service.ready()
        own.thaw()

    assert statuses == [200, *[status] * 15]
    assert max(durations) < AT_MOST_SECONDS
    assert body.endswith(b"data: [DONE]\n\n")
    assert ready == DEGRADED
    watched.check(service)


async def test_what_was_used_while_redis_was_frozen_is_charged_when_it_is_back(
    own: RedisServer, watched: Watched
) -> None:
    async with served(counters=url_of(own), gateways=2) as service:
        pat, there, otto = await service.user(), await service.user(at=1), await service.user(OTTO)
        async with held(pat, service) as (stream, gate):
            own.freeze()
            during = [await pat.ask() for _ in range(3)]
            ready = await service.ready()
            gate.set()
            await stream.aread()
            own.thaw()
        await comes(partial(ready_after_a_call, otto, service), {"status": "ready"})
        await comes(partial(spent_after_a_call, otto, there), 4 * USED)
        requests = 1000 - await there.left()

    assert [answer.status_code for answer in during] == [200] * 3
    assert ready == DEGRADED
    assert 1 <= requests <= 2  # that of the stream, and of the others at most the one that was sent
    assert watched.changes == [
        f"{FAILS}: this process counts on its own",
        f"{ANSWERS}; settlements wait to be replayed",
    ]
    watched.check(service)


async def test_redis_that_starts_again_with_nothing_is_used_again(own: RedisServer, watched: Watched) -> None:
    async with served(counters=url_of(own), gateways=2) as service:
        pat, there, otto = await service.user(), await service.user(at=1), await service.user(OTTO)
        await pat.ask()
        own.kill()
        await pat.ask()
        with running_redis(port=own.port):
            await comes(partial(ready_after_a_call, otto, service), {"status": "ready"})
            await comes(partial(spent_after_a_call, otto, there), USED)
            again = await pat.ask()
            changes = watched.changes

    assert quota(again) == told((1000, 999), (1_000_000, 1_000_000 - 2 * USED))
    assert changes == [
        f"{FAILS}: this process counts on its own",
        f"{ANSWERS}; settlements wait to be replayed",
    ]
    watched.check(service)


async def test_gateway_that_starts_before_redis_finds_it_later(own: RedisServer, watched: Watched) -> None:
    own.kill()
    async with served(counters=url_of(own)) as service:
        otto = await service.user(OTTO)
        at_first = await service.ready()  # nobody has asked yet, and so nobody knows
        first = await otto.ask()
        degraded = await service.ready()
        with running_redis(port=own.port):
            await comes(partial(ready_after_a_call, otto, service), {"status": "ready"})

    assert (at_first, first.status_code, degraded) == ({"status": "ready"}, 200, DEGRADED)
    watched.check(service)


async def ready_after_a_call(user: User, service: Service) -> object:
    assert (await user.ask()).status_code == 200
    return await service.ready()


async def spent_after_a_call(user: User, other: User) -> int:
    """What the other one has spent, when one of the first has given settlements that wait their turn."""
    assert (await user.ask()).status_code == 200
    return 1_000_000 - await other.left("tokens")
