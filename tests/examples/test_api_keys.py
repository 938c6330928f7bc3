from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from examples.stand_ins import cluster
from tests.servers import serving

from .running import ALICE, BOB, bearer, running


@pytest.fixture(autouse=True)
def audit(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("maas_middleware.audit")
    handlers, level = list(logger.handlers), logger.level
    yield caplog
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(cluster) as cluster_url, running("api_keys", CLUSTER_URL=cluster_url) as client:
        yield client


async def create(client: httpx.AsyncClient, name: str = "nightly build") -> dict[str, str]:
    answer = await client.post("/v1/api-keys", headers=BOB, json={"name": name, "expiration": "30d"})
    assert (answer.status_code, answer.json()["expiration"]) == (201, "720h0m0s")
    created: dict[str, str] = answer.json()
    return created


async def test_an_api_key_opens_the_route_until_its_owner_revokes_it(client: httpx.AsyncClient) -> None:
    created = await create(client)
    greeting = await client.get("/hello", headers=bearer(created["token"]))
    revoking = await client.delete(f"/v1/api-keys/{created['jti']}", headers=BOB)
    refused = await client.get("/hello", headers=bearer(created["token"]))
    listed = (await client.get("/v1/api-keys", headers=BOB)).json()

    assert (greeting.status_code, greeting.text) == (200, "Hello, bob!\n")
    assert (revoking.status_code, refused.status_code) == (204, 401)
    assert [(row["name"], row["status"]) for row in listed] == [("nightly build", "revoked")]


async def test_an_api_key_manages_no_keys(client: httpx.AsyncClient) -> None:
    key = bearer((await create(client))["token"])
    answers = [
        await client.post("/v1/api-keys", headers=key, json={"name": "another"}),
        await client.get("/v1/api-keys", headers=key),
        await client.get("/v1/admin/users?user=bob", headers=key),
    ]

    assert [answer.status_code for answer in answers] == [403, 403, 403]


async def test_administrators_see_and_end_what_others_have_and_it_is_recorded(
    client: httpx.AsyncClient, audit: pytest.LogCaptureFixture
) -> None:
    created = await create(client)
    denied = await client.get("/v1/admin/users?user=alice", headers=BOB)
    shown = await client.get("/v1/admin/users?user=bob", headers=ALICE)
    revoking = await client.delete("/v1/admin/tokens?user=bob", headers=ALICE)
    refused = await client.get("/hello", headers=bearer(created["token"]))

    acts = [json.loads(one.getMessage()) for one in audit.records if one.name == "maas_middleware.audit"]
    assert (shown.json()["tier"], shown.json()["apiKeys"]["active"]) == ("everyone", 1)
    assert (denied.status_code, revoking.status_code, refused.status_code) == (403, 204, 401)
    assert [(act["event"], act["actor"], act["subject"], act["outcome"]) for act in acts] == [
        ("admin.users.read", "openshift/bob", "openshift/alice", "denied"),
        ("admin.users.read", "openshift/alice", "openshift/bob", "done"),
        ("admin.tokens.revoke", "openshift/alice", "openshift/bob", "done"),
    ]
