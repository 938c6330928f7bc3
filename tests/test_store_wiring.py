"""What is configured of the store reaches its parts, and what runs with the service ends with it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import asyncpg  # type: ignore[import-untyped]  # it has no types of its own
import httpx
import jwt
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from maas_middleware import MaaSMiddleware, gateway, load_settings
from maas_middleware.identity import Identity
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.settings import ConfigurationError
from maas_middleware.stores.sql import SQLDatabase, SQLUsageStore
from maas_middleware.testing.cluster import StandInCluster
from maas_middleware.testing.model import SimulatedModel

from .deployments import UNTHROTTLED, USERS, Deployment, bearer, chat, deployed
from .fleet import until
from .ledgers.redis_server import RedisServer, running_redis
from .processes import running
from .servers import serving
from .stores.postgres_server import PostgresServer, running_postgres

FAY, PAT, OTTO = USERS
CHAT = "/v1/chat/completions"
BOUND_SECONDS = 1.0
TIERS = [{"name": "crew", "groups": ["system:authenticated"], "limits": {"requests": "999/day", "tokens": "unlimited"}}]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    SigningKeys.generate().save(file := tmp_path / "keys.json")
    return file


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until the log has this, which the time-out of the test bounds."""
    while text not in caplog.text:
        await anyio.lowlevel.checkpoint()


async def degraded(site: Deployment) -> object:
    return (await site.client.get("/ready")).json().get("degraded")


@asynccontextmanager
async def frozen(server: PostgresServer) -> AsyncIterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


# the database is away


async def test_database_that_is_away_is_noticed_by_itself_and_after_the_grace_the_policy_holds(
    postgres: PostgresServer, keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (file := tmp_path / "store").write_text(await postgres.new_database())
    tokens: dict[str, Any] = {"signing_keys_file": str(keys), "revocation_grace": "100ms"}
    settings: dict[str, Any] = {"store_file": str(file), "store_timeout": "300ms", "tiers": TIERS, "qwen3_tiers": "all"}

    async with (
        deployed(tokens={**tokens, "on_store_failure": "refuse"}, **settings) as refusing,
        deployed(tokens={**tokens, "on_store_failure": "continue"}, **settings) as continuing,
    ):
        sites = (refusing, continuing)
        asked = bearer(await refusing.mint())
        before = [(await site.client.post(CHAT, json=chat(), headers=asked)).status_code for site in sites]
        async with frozen(postgres):
            # nobody asks anything
            await logged(caplog, "too old: requests with access tokens are refused")
            await logged(caplog, "too old: going on with it")
            ready = [await site.client.get("/ready") for site in sites]
            inference = [await site.client.post(CHAT, json=chat(), headers=asked) for site in sites]
            listed = [await site.client.get("/v1/models", headers=asked) for site in sites]
            logins = [await site.client.get("/v1/models", headers=bearer(FAY)) for site in sites]
            alive = [await site.client.get(path) for site in sites for path in ("/health", "/.well-known/jwks.json")]
            with anyio.fail_after(1.5):  # the default is 2 seconds
                refused = await continuing.client.post("/v1/tokens", headers=bearer(FAY))
        for site in sites:
            await until(partial(_is_ready, site))
        after = [(await site.client.post(CHAT, json=chat(), headers=asked)).status_code for site in sites]

    assert before == after == [200, 200]
    assert [code_of(ready[0]), code_of(inference[0]), code_of(listed[0])] == [(503, "store_unavailable")] * 3
    assert all("retry-after" in answer.headers for answer in (ready[0], inference[0], listed[0], refused))
    assert [ready[1].status_code, ready[1].json()["degraded"]] == [200, ["store"]]
    assert [answer.status_code for answer in (inference[1], listed[1], *logins, *alive)] == [200] * 8
    assert code_of(refused) == (503, "store_unavailable")


async def _is_ready(site: Deployment) -> bool:
    answer = await site.client.get("/ready")
    return answer.status_code == 200 and "degraded" not in answer.json()


async def test_ready_names_everything_that_works_only_in_part(
    postgres: PostgresServer, redis: RedisServer, keys: Path, tmp_path: Path
) -> None:
    (tiers := tmp_path / "tiers.json").write_text(json.dumps(TIERS))

    async with deployed(
        store=await postgres.new_database(),
        store_timeout="300ms",
        counters=redis.url,
        tokens={"signing_keys_file": str(keys)},
        tiers_file=str(tiers),
        qwen3_tiers="all",
    ) as site:
        asked = bearer(await site.mint())
        whole = await degraded(site)
        _spoil(tiers, keys)
        redis.kill()
        async with frozen(postgres):
            await until(partial(_has_degraded, site, ["tiers", "store", "signing_keys"]))
            still_served = await site.client.post(CHAT, json=chat(), headers=asked)
            of_all, below_maas_api = [await site.client.get(f"{prefix}/ready") for prefix in ("", "/maas-api")]

    assert whole is None
    assert still_served.status_code == 200
    assert of_all.status_code == 200
    assert of_all.json() == below_maas_api.json()
    assert of_all.json()["degraded"] == ["tiers", "counters", "store", "signing_keys"]


def _spoil(tiers: Path, keys: Path) -> None:
    tiers.write_text("[")
    keys.chmod(0o644)


async def _has_degraded(site: Deployment, names: list[str]) -> bool:
    return await degraded(site) == names


@pytest.mark.parametrize("place", ["store", "store_file"])
def test_store_that_cannot_be_used_is_a_problem_of_the_key_that_names_it(
    place: str, keys: Path, tmp_path: Path
) -> None:
    url = f"postgresql://maas:hunter2@db/maas?sslmode=verify-full&sslrootcert={tmp_path}/nowhere"
    (file := tmp_path / "store").write_text(url)
    settings: dict[str, Any] = {place: url if place == "store" else str(file), "models": [{"id": "a"}]}

    with pytest.raises(ConfigurationError) as refused:
        gateway(load_settings({}, tokens={"signing_keys_file": str(keys)}, **settings))

    assert [problem.place for problem in refused.value.problems] == [place]
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("store", "counters", "what"),
    [
        ("memory://", "memory://", "tokens, revocations, recorded use and counters"),
        ("memory://", "redis://127.0.0.1:9", "tokens, revocations and recorded use"),
        ("sqlite:///{}/maas.db", "memory://", "counters"),
        ("sqlite:///{}/maas.db", "redis://127.0.0.1:9", None),
    ],
)
def test_what_ends_with_the_process_is_one_warning(
    store: str, counters: str, what: str | None, keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = {"signing_keys_file": str(keys)}
    MaaSMiddleware(
        SimulatedModel(), settings=load_settings({}, store=store.format(tmp_path), counters=counters, tokens=tokens)
    )

    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    many = "; several processes, such as workers or API servers, multiply the limits" if "memory" in counters else ""
    assert warnings == ([] if what is None else [f"{what}: kept by this process alone, gone when it ends{many}"])


# what runs while the service lives, and ends with it


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_last_use_of_a_key_is_remembered_also_where_it_only_lists_models(kind: str, tmp_path: Path) -> None:
    store = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/maas.db"

    async with deployed(store=store) as site:
        made = (await site.client.post("/v1/api-keys", headers=bearer(FAY), json={"name": "ci"})).json()
        await site.client.get("/v1/models", headers=bearer(made["token"]))

        async def is_known() -> bool:
            row = (await site.client.get(f"/v1/api-keys/{made['jti']}", headers=bearer(FAY))).json()
            return "lastUsedDate" in row

        assert await until(is_known) < BOUND_SECONDS


async def test_service_that_ends_has_written_everything_and_leaves_no_connection(
    postgres: PostgresServer, redis: RedisServer, keys: Path
) -> None:
    store = await postgres.new_database()
    settings: dict[str, Any] = {"counters": redis.url, "tokens": {"signing_keys_file": str(keys)}}

    before = _open_sockets()
    async with deployed(store=store, throttles={"mints": "9/minute"}, **settings) as site:
        asked = bearer(await site.mint())
        assert await _connections(postgres, store) > 0
        assert _clients(redis) > 1
        answers = [await site.client.post(CHAT, json=chat(), headers=asked) for _ in range(2)]
    with anyio.fail_after(5):  # the servers need a moment
        while _open_sockets() - before or _clients(redis) > 1 or await _connections(postgres, store):
            await anyio.lowlevel.checkpoint()

    assert [answer.status_code for answer in answers] == [200, 200]
    assert await _recorded_requests(store) == 2


async def test_use_of_a_stream_that_the_end_of_the_service_cuts_is_written(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/maas.db"
    model, gate = SimulatedModel("simulator"), anyio.Event()
    model.gate, model.hold_after = gate, 2
    async with serving(model) as model_url:
        models = [{"id": "simulator", "tiers": "all", "upstreams": [model_url]}]
        async with httpx.AsyncClient(timeout=10) as client, deployed(store=store, models=models) as site:
            asked = bearer(await site.mint())
            body = chat(stream=True)
            request = client.build_request("POST", f"{site.url}{CHAT}", json=body, headers=asked)
            response = await client.send(request, stream=True)
            assert response.status_code == 200
        gate.set()

    assert await _recorded_requests(store) == 1


def _open_sockets() -> set[str]:
    """Those of this process, on a system that tells."""
    links = [str(link) for link in Path("/proc/self/fd").glob("*")]
    return {target for link in links if (target := _target(link)).startswith("socket:")}


def _target(link: str) -> str:
    try:
        return str(Path(link).readlink())
    except FileNotFoundError:  # the one that was open to look
        return ""


async def _connections(server: PostgresServer, store: str) -> int:
    """How many are open to this database."""
    name = store.rpartition("/")[2].partition("?")[0]
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        return int(await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", name))
    finally:
        await connection.close()


def _clients(server: RedisServer) -> int:
    """How many clients it has; who asks is one."""
    return server.do("CLIENT", "LIST").count(b"id=")


async def _recorded_requests(store: str) -> int:
    database, today = SQLDatabase(store), date.today()
    day = timedelta(days=1)
    records = await SQLUsageStore(database).usage(Identity("openshift", "fay").key, today - day, today + day)
    await database.aclose()
    return sum(record.requests for record in records)


# where no lifespan runs


@asynccontextmanager
async def below_a_path(cluster_url: str, store: str) -> AsyncIterator[httpx.AsyncClient]:
    """A mounted service that no lifespan reaches, closed when everything is over."""
    settings = load_settings(
        {},
        openshift={"api_url": cluster_url},
        store=store,
        throttles=UNTHROTTLED,
        tiers=TIERS,
        tokens={"administrators": ["premium-group"]},
    )
    service = MaaSMiddleware(SimulatedModel(), settings=settings)
    async with (
        serving(Starlette(routes=[Mount("/llm", app=service)])) as url,
        httpx.AsyncClient(base_url=f"{url}/llm", timeout=10) as http,
    ):
        yield http
    await service.aclose()


@pytest.mark.parametrize("prefix", ["", "/maas-api"])
async def test_service_below_a_path_follows_revocations_and_writes_use_when_it_is_asked(
    prefix: str, tmp_path: Path
) -> None:
    async with (
        serving(StandInCluster(USERS)) as cluster_url,
        below_a_path(cluster_url, f"sqlite:///{tmp_path}/maas.db") as one,
        below_a_path(cluster_url, f"sqlite:///{tmp_path}/maas.db") as other,
    ):
        key = (await one.post(f"{prefix}/v1/api-keys", headers=bearer(FAY), json={"name": "ci"})).json()
        minted = (await one.post(f"{prefix}/v1/tokens", headers=bearer(FAY))).json()
        for credential in (key, minted):
            answer = await one.post(CHAT, json=chat(), headers=bearer(credential["token"]))
            assert answer.status_code == 200, answer.text
            assert (await other.get(f"{prefix}/v1/me", headers=bearer(credential["token"]))).json()["user"] == "fay"

        async def is_written() -> bool:
            usage = (await other.get(f"{prefix}/v1/usage", headers=bearer(FAY))).json()
            row = (await other.get(f"{prefix}/v1/api-keys/{key['jti']}", headers=bearer(FAY))).json()
            return usage["total"]["requests"] == 2 and "lastUsedDate" in row

        assert await until(is_written) < BOUND_SECONDS
        ended = await one.delete(f"{prefix}/v1/tokens/{minted['jti']}", headers=bearer(FAY))
        assert ended.status_code == 204
        assert await last_accepted(one, minted["token"]) is None
        assert (await last_accepted(other, minted["token"]) or 0) < BOUND_SECONDS
        ended = await other.delete(f"{prefix}/v1/admin/tokens?user=fay", headers=bearer(PAT))
        assert ended.status_code == 204
        assert await last_accepted(other, key["token"]) is None
        assert (await last_accepted(one, key["token"]) or 0) < BOUND_SECONDS
        assert (await one.get("/maas-api/ready")).json() == {"status": "ready"}


async def last_accepted(http: httpx.AsyncClient, token: str) -> float | None:
    """Ask until the token is refused; when the last request began that was not, in seconds from now on."""
    since, last = time.monotonic(), None
    while True:
        began = time.monotonic() - since
        answer = await http.get("/v1/me", headers=bearer(token))
        if answer.status_code == 401:
            assert answer.json()["error"]["details"] == {"reason": "revoked"}
            return last
        assert answer.status_code == 200, answer.text
        last = began


# several workers


@pytest.mark.timeout(60)
async def test_workers_on_one_sqlite_file_share_the_key_that_is_made_beside_it(tmp_path: Path) -> None:
    config = tmp_path / "maas.json"
    async with serving(StandInCluster(USERS)) as cluster_url:
        document = {
            "openshift": {"api_url": cluster_url},
            "store": f"sqlite:///{tmp_path}/maas.db",
            "throttles": UNTHROTTLED,
            "models": [{"id": "simulator", "tiers": "all", "upstreams": ["http://127.0.0.1:9"]}],
        }
        config.write_text(json.dumps(document))
        command = [sys.executable, "-m", "maas_middleware", "serve", "--port", "0", "--config", str(config)]
        gateway = running(*command, "--workers", "2")
        process = await anyio.to_thread.run_sync(gateway.__enter__)
        try:
            ask = partial(_ask, f"http://127.0.0.1:{process.port}")
            minted = [(await ask("POST", "/v1/tokens", FAY)).json() for _ in range(6)]
            accepted = [(await ask("GET", "/v1/models", one["token"])).status_code for one in minted * 2]
        finally:
            await anyio.to_thread.run_sync(gateway.__exit__, None, None, None)

    assert accepted == [200] * 12
    kid = SigningKeys.load(tmp_path / "maas.keys.json").key_id
    assert {jwt.get_unverified_header(one["token"])["kid"] for one in minted} == {kid}
    assert "2 workers: each has limits of its own" in process.printed


async def _ask(url: str, method: str, path: str, token: str) -> httpx.Response:
    """On a connection of its own, so that any of the workers may take it."""
    transport = httpx.AsyncHTTPTransport(retries=6)  # the workers begin to listen after their parent has said so
    async with httpx.AsyncClient(transport=transport, base_url=url, timeout=10) as http:
        return await http.request(method, path, headers=bearer(token))
