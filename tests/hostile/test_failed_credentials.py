"""Somebody who tries credentials by the hundred: neither the cluster nor anybody else is to feel it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import h11
import httpx
import pytest
from anyio.lowlevel import checkpoint
from starlette.types import ASGIApp

from maas_middleware.identity import FirstOf, Identity
from maas_middleware.ledgers.throttles import MovingWindowThrottle, ThrottleStorage
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.middleware.forwarded import ForwardedMiddleware
from maas_middleware.middleware.identity import IdentityMiddleware
from maas_middleware.providers.jwt import JWTMinter, JWTProvider
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.providers.openshift import OpenShiftProvider
from maas_middleware.stores.memory import MemoryTokenStore
from maas_middleware.testing.cluster import ClusterUser, StandInCluster

from ..ledgers.redis_server import running_redis
from ..parts import Answering, json_answer
from ..servers import serving

LIMIT = 10
COLLEAGUES = [f"sha256~colleague-{number}" for number in range(20)]
SECOND_ADDRESS = "127.0.0.2"


class Site:
    """A service in front of a cluster, and what to ask it.

    Attributes:
        access: the access token of somebody who works already.
    """

    def __init__(self, url: str, cluster: StandInCluster, access: str) -> None:
        self.url = url
        self.cluster = cluster
        self.access = access

    async def ask(self, token: str, *headers: tuple[str, str], source: str = "127.0.0.1") -> httpx.Response:
        """Send one request on a connection of its own."""
        transport = httpx.AsyncHTTPTransport(local_address=source, verify=False)
        async with httpx.AsyncClient(base_url=self.url, transport=transport, timeout=20) as client:
            return await client.get("/", headers=[("authorization", f"Bearer {token}"), *headers])

    async def statuses(self, tokens: Sequence[str], *headers: tuple[str, str], source: str = "127.0.0.1") -> list[int]:
        return [(await self.ask(token, *headers, source=source)).status_code for token in tokens]

    async def at_once(self, tokens: Sequence[str]) -> Counter[int]:
        answers = Counter[int]()

        async def ask(token: str) -> None:
            answers[(await self.ask(token)).status_code] += 1

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for token in tokens:
                    group.start_soon(ask, token)
        return answers


def guesses(count: int, kind: str = "guess") -> list[str]:
    return [f"sha256~{kind}-{number}" for number in range(count)]


def service(
    logins: OpenShiftProvider, keys: SigningKeys, failures: MovingWindowThrottle, trusted: Sequence[str] = ()
) -> ASGIApp:
    access_tokens = JWTProvider(keys=keys, revocations=MemoryTokenStore())
    app = IdentityMiddleware(Answering(*json_answer(b"{}")), provider=FirstOf(access_tokens, logins), failures=failures)
    return ForwardedMiddleware(ErrorEnvelopeMiddleware(app), trusted=trusted)


@asynccontextmanager
async def site(
    *, trusted: Sequence[str] = (), storage: ThrottleStorage | None = None, cluster: StandInCluster | None = None
) -> AsyncIterator[Site]:
    keys = SigningKeys.generate()
    users = {login: ClusterUser(login.removeprefix("sha256~"), ("crew",)) for login in COLLEAGUES}
    cluster = cluster or StandInCluster(users)
    failures = MovingWindowThrottle(f"{LIMIT}/hour", name="failed_credentials", storage=storage)
    async with serving(cluster) as cluster_url:
        logins = OpenShiftProvider(api_url=cluster_url, failures=failures)
        access = JWTMinter(keys=keys).mint(Identity("openshift", "olga", ("crew",)), 900, 0).token
        async with serving(service(logins, keys, failures, trusted)) as url:
            yield Site(url, cluster, access)
        await logins.aclose()


@asynccontextmanager
async def counting_in(kind: str) -> AsyncIterator[ThrottleStorage | None]:
    if kind == "memory":
        yield None
        return
    with running_redis() as server:
        storage = ThrottleStorage(server.url, timeout=10)
        yield storage
        assert not storage.degraded
        await storage.aclose()


both = pytest.mark.parametrize("kind", ["memory", "redis"])


@both
async def test_hundred_guesses_at_once_cost_the_cluster_no_more_reviews_than_may_fail(kind: str) -> None:
    async with counting_in(kind) as storage, site(storage=storage) as target:
        answers = await target.at_once(guesses(100))
        answers += await target.at_once(guesses(20, "another"))

        assert len(target.cluster.reviews) <= LIMIT
        assert answers == {401: len(target.cluster.reviews), 429: 120 - len(target.cluster.reviews)}


async def test_guesses_while_the_cluster_is_slow_do_not_pile_up_there() -> None:
    async with site() as target:
        target.cluster.gate = anyio.Event()
        answers = Counter[int]()

        async def ask(token: str) -> None:
            answers[(await target.ask(token)).status_code] += 1

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for token in guesses(100):
                    group.start_soon(ask, token)
                while answers[429] < 90 or len(target.cluster.reviews) < LIMIT:
                    await checkpoint()
                held = len(target.cluster.reviews), answers.total()
                target.cluster.gate.set()

        assert held == (LIMIT, 90)
        assert answers == {401: LIMIT, 429: 90}
        assert len(target.cluster.reviews) == LIMIT


async def test_who_works_already_works_on_from_an_address_that_is_over_the_limit() -> None:
    async with site() as target:
        login, late = COLLEAGUES[:2]
        assert await target.statuses([login, target.access]) == [200, 200]
        failed = await target.statuses(guesses(LIMIT + 5))
        reviews = len(target.cluster.reviews)

        working = await target.statuses([login, target.access] * 3)
        newcomer = await target.ask(late)
        elsewhere = await target.statuses([late], source=SECOND_ADDRESS)

        assert failed == [401] * LIMIT + [429] * 5
        assert working == [200] * 6
        assert newcomer.status_code == 429
        assert newcomer.json()["error"]["details"]["limit"] == "failed_credentials"
        assert int(newcomer.headers["retry-after"]) > 60
        assert elsewhere == [200]
        assert len(target.cluster.reviews) == reviews + 1


async def test_logins_that_are_good_cost_their_address_nothing() -> None:
    async with site() as target:
        good = await target.statuses(COLLEAGUES)
        bad = await target.statuses(guesses(LIMIT + 1))

    assert good == [200] * len(COLLEAGUES)
    assert bad == [401] * LIMIT + [429]


async def test_one_login_that_comes_a_hundred_times_at_once_is_one_review_and_passes() -> None:
    async with site() as target:
        assert await target.at_once([COLLEAGUES[0]] * 100) == {200: 100}
        assert len(target.cluster.reviews) == 1


async def test_cluster_that_fails_is_nobodys_failed_credential() -> None:
    cluster = StandInCluster({COLLEAGUES[0]: ClusterUser("ulla")})

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        for message in json_answer(b"{}", 500):
            await send(message)

    async with site(cluster=cluster) as target:
        cluster.failure = failing
        unavailable = await target.statuses(guesses(LIMIT * 2))
        cluster.failure = None

        assert unavailable == [503] * LIMIT * 2
        assert await target.statuses([COLLEAGUES[0]]) == [200]


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("e30.e30.e30", id="jwt-of-nobody"),
        pytest.param("a b", id="two-words"),
        pytest.param("x" * 9000, id="too-long"),
    ],
)
async def test_what_is_no_credential_counts_too(token: str) -> None:
    async with site() as target:
        assert await target.statuses([token] * (LIMIT + 1)) == [401] * LIMIT + [429]


async def test_nothing_is_told_of_the_address_or_the_credential() -> None:
    async with site() as target:
        await target.statuses(guesses(LIMIT))
        refused = await target.ask("sha256~secret-guess")

    assert refused.status_code == 429
    assert "127.0.0.1" not in refused.text + str(refused.headers)
    assert "secret" not in refused.text + str(refused.headers)


# whose address it is


async def test_forwarded_address_of_an_untrusted_peer_neither_evades_nor_frames_anybody() -> None:
    async with site(trusted=[SECOND_ADDRESS]) as target:
        spoofed = [
            (await target.ask(token, ("x-forwarded-for", f"203.0.113.{number}"))).status_code
            for number, token in enumerate(guesses(LIMIT + 1))
        ]
        framed = ("x-forwarded-for", "198.51.100.1")
        await target.statuses(guesses(LIMIT + 5, "framing"), framed)

        victim = await target.ask("sha256~typo", framed, source=SECOND_ADDRESS)
        newcomer = await target.ask(COLLEAGUES[0], framed, source=SECOND_ADDRESS)

    assert spoofed == [401] * LIMIT + [429]
    assert (victim.status_code, newcomer.status_code) == (401, 200)


async def test_behind_a_trusted_proxy_each_client_is_counted_by_its_own_address() -> None:
    async with site(trusted=["127.0.0.1"]) as target:
        attacker, colleague = (("x-forwarded-for", f"{address}") for address in ("203.0.113.7", "203.0.113.8"))
        failed = await target.statuses(guesses(LIMIT + 1), attacker)

        assert failed == [401] * LIMIT + [429]
        assert await target.statuses([COLLEAGUES[0]], attacker) == [429]
        assert await target.statuses([COLLEAGUES[0]], colleague) == [200]
        assert await target.statuses(["sha256~typo"]) == [401]  # the proxy itself


async def test_what_the_attacker_puts_in_front_of_a_trusted_proxys_word_counts_for_nothing() -> None:
    async with site(trusted=["127.0.0.1"]) as target:
        failed = [
            (await target.ask(token, ("x-forwarded-for", f"198.51.100.{number}, 203.0.113.7"))).status_code
            for number, token in enumerate(guesses(LIMIT + 1))
        ]

        assert failed == [401] * LIMIT + [429]
        assert await target.statuses([COLLEAGUES[0]], ("x-forwarded-for", "198.51.100.1")) == [200]


async def test_ipv6_client_has_one_budget_for_its_network() -> None:
    async with site(trusted=["127.0.0.1"]) as target:
        failed = [
            (await target.ask(token, ("x-forwarded-for", f"2001:db8::{number:x}"))).status_code
            for number, token in enumerate(guesses(LIMIT + 1))
        ]

    assert failed == [401] * LIMIT + [429]


# over a WebSocket


def handshake(token: str) -> bytes:
    lines = [
        "GET / HTTP/1.1",
        "Host: gateway",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        f"Authorization: Bearer {token}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def knock(port: int, token: str) -> tuple[int, dict[str, Any]]:
    """Ask for a WebSocket; returns the status and the body of the denial."""
    client, body = h11.Connection(h11.CLIENT), b""
    client.send(h11.Request(method="GET", target="/", headers=[("host", "gateway")]))
    client.send(h11.EndOfMessage())
    status = 0
    with anyio.fail_after(10):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(handshake(token))
            while True:
                event = client.next_event()
                if event is h11.NEED_DATA:
                    client.receive_data(await stream.receive())
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    return status, json.loads(body)


async def test_websockets_count_with_everything_else() -> None:
    async with site() as target:
        port = int(target.url.rpartition(":")[2])
        failed = [await knock(port, token) for token in guesses(LIMIT)]
        refused = await knock(port, "sha256~one-more")
        newcomer = await knock(port, COLLEAGUES[0])

        assert [status for status, _ in failed] == [401] * LIMIT
        assert (refused[0], newcomer[0]) == (429, 429)
        assert refused[1]["error"]["details"]["limit"] == "failed_credentials"
        assert len(target.cluster.reviews) == LIMIT


# with several replicas


async def test_replicas_count_failures_together_and_go_on_without_redis() -> None:
    with running_redis() as server:
        storages = [ThrottleStorage(server.url, timeout=10) for _ in range(2)]
        async with site(storage=storages[0]) as one, site(storage=storages[1]) as other:
            failed = await one.statuses(guesses(LIMIT // 2)) + await other.statuses(guesses(LIMIT))
            refused = await one.statuses(["sha256~one-more", COLLEAGUES[0]])
            server.kill()
            alone = await one.statuses(guesses(LIMIT + 1, "later"))

        assert failed == [401] * LIMIT + [429] * (LIMIT // 2)
        assert refused == [429, 429]
        assert alone == [401] * LIMIT + [429]
        for storage in storages:
            await storage.aclose()
