"""Tokens minted anywhere, verified everywhere, and revoked everywhere within a second."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .deployments import bearer
from .fleet import ADMIN, FAY, PAT, Replica, fleet, until
from .stores.postgres_server import PostgresServer, running_postgres

BOUND_SECONDS = 1.0

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that nobody used before."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/maas.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return await server.new_database()


async def revoke_token(replica: Replica, minted: dict[str, str]) -> None:
    answer = await replica.http.delete(f"/v1/tokens/{minted['jti']}", headers=bearer(FAY))
    assert answer.status_code == 204, answer.text


async def revoke_all(replica: Replica, minted: dict[str, str]) -> None:
    answer = await replica.http.delete("/v1/tokens", headers=bearer(FAY))
    assert answer.status_code == 204, answer.text


async def revoke_key(replica: Replica, minted: dict[str, str]) -> None:
    answer = await replica.http.delete(f"/v1/api-keys/{minted['jti']}", headers=bearer(FAY))
    assert answer.status_code == 204, answer.text


async def revoke_as_administrator(replica: Replica, minted: dict[str, str]) -> None:
    answer = await replica.http.delete("/v1/admin/tokens", params={"user": "fay"}, headers=bearer(ADMIN))
    assert answer.status_code == 204, answer.text


async def test_tokens_minted_anywhere_are_accepted_everywhere_and_revoked_everywhere_within_a_second(
    store: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    latencies: dict[str, float] = {}
    async with fleet(store, tmp_path) as site:
        here, *others = await site.replicas(3)
        bystander = (await others[0].mint(PAT))["token"]
        for revoke, mint in (
            (revoke_token, here.mint),
            (revoke_token, others[0].mint),  # minted elsewhere
            (revoke_key, others[1].api_key),
            (revoke_all, here.mint),
            (revoke_as_administrator, here.api_key),
        ):
            minted = await mint()
            token = minted["token"]
            for replica in (here, *others):
                assert (await replica.models(token)).status_code == 200
                assert (await replica.call(token)).status_code == 200

            seen_elsewhere = [asyncio.ensure_future(other.seconds_until_refused(token)) for other in others]
            began = asyncio.get_running_loop().time()
            await revoke(here, minted)
            took = asyncio.get_running_loop().time() - began
            at_once = await here.models(token)
            latest = max(await asyncio.gather(*seen_elsewhere)) - took

            assert at_once.status_code == 401, "the replica that revoked refuses at once"
            assert at_once.json()["error"]["details"] == {"reason": "revoked"}
            assert latest < BOUND_SECONDS
            latencies[f"{revoke.__name__} of {mint.__name__}"] = latest
        for replica in (here, *others):
            assert (await replica.models(bystander)).status_code == 200
    record_property("seconds from the answer to the last refusal elsewhere", latencies)


async def test_restart_loses_nothing(store: str, tmp_path: Path) -> None:
    async with fleet(store, tmp_path) as site:
        before = await site.replica()
        kept, revoked, key = await before.mint(), await before.mint(), await before.api_key("nightly")
        await revoke_token(before, revoked)
        used = (await before.call(kept["token"])).json()["usage"]
        before.process.interrupt()

        after = await site.replica()

        assert (await after.call(kept["token"])).status_code == 200
        assert (await after.call(key["token"])).status_code == 200
        assert (await after.models(revoked["token"])).status_code == 401
        (listed,) = (await after.http.get("/v1/api-keys", headers=bearer(FAY))).json()
        assert (listed["id"], listed["name"], listed["status"]) == (key["jti"], "nightly", "active")
        assert await after.usage(FAY) == {
            "requests": 3,
            "input_tokens": 3 * used["prompt_tokens"],
            "output_tokens": 3 * used["completion_tokens"],
            "total_tokens": 3 * used["total_tokens"],
        }


async def test_use_is_recorded_within_a_second_and_a_killed_gateway_loses_no_more(store: str, tmp_path: Path) -> None:
    async with fleet(store, tmp_path) as site:
        one, other = await site.replicas(2)
        token = (await one.mint())["token"]
        for _ in range(3):
            assert (await one.call(token)).status_code == 200

        async def is_recorded() -> bool:
            return (await other.usage(token))["requests"] == 3

        assert await until(is_recorded) < BOUND_SECONDS
        one.process.process.kill()
        assert (await other.usage(token))["requests"] == 3


async def test_terminated_gateway_loses_nothing(store: str, tmp_path: Path) -> None:
    async with fleet(store, tmp_path) as site:
        one, other = await site.replicas(2)
        token = (await one.mint())["token"]
        answers = [await one.call(token) for _ in range(5)]
        one.process.process.send_signal(signal.SIGTERM)
        one.process.process.wait(timeout=10)

        total = await other.usage(token)

    assert total["requests"] == 5
    assert total["total_tokens"] == sum(answer.json()["usage"]["total_tokens"] for answer in answers)
    assert total["total_tokens"] == sum(int(answer.headers["x-odhu-usage-total-tokens"]) for answer in answers)


# the database goes away


@pytest.mark.parametrize(
    ("policy", "status"), [pytest.param("refuse", 503, id="refuse"), pytest.param("continue", 200, id="continue")]
)
async def test_database_out_of_reach_for_longer_than_the_grace_does_what_is_configured(
    policy: str, status: int, tmp_path: Path
) -> None:
    with running_postgres() as server:
        store = await server.new_database()
        tokens = {"on_store_failure": policy, "revocation_grace": "2s"}
        async with fleet(store, tmp_path, tokens=tokens, store_timeout="500ms") as site:
            replica = await site.replica()
            token, revoked = (await replica.mint())["token"], await replica.mint()
            await revoke_token(replica, revoked)
            server.kill()

            during_the_grace = await replica.call(token)
            refused = await replica.models(revoked["token"])
            minting = await replica.http.post("/v1/tokens", headers=bearer(FAY))

            async def is_degraded() -> bool:
                answer = await replica.http.get("/ready")
                return answer.status_code == 503 or answer.json().get("degraded") == ["store"]

            async def is_over() -> bool:
                return (await replica.models(token)).status_code == status == 503

            await until(is_degraded)
            if policy == "refuse":
                await until(is_over)
                not_ready = await replica.http.get("/ready")
                assert not_ready.status_code == 503
                assert not_ready.json()["error"]["code"] == "store_unavailable"
            after_the_grace = await replica.call(token)

            server.start()

            async def is_ready() -> bool:
                answer = await replica.http.get("/ready")
                return answer.status_code == 200 and "degraded" not in answer.json()

            await until(is_ready)
            again = await replica.call(token)
            still_refused = await replica.models(revoked["token"])

    assert during_the_grace.status_code == 200
    assert refused.status_code == still_refused.status_code == 401
    assert minting.status_code == 503
    assert minting.json()["error"]["code"] == "store_unavailable"
    assert "retry-after" in minting.headers
    assert after_the_grace.status_code == status
    assert again.status_code == 200
