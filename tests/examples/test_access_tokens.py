from __future__ import annotations

import httpx
import jwt

from examples.stand_ins import cluster
from tests.servers import serving

from .running import ALICE, BOB, bearer, running


async def mint(client: httpx.AsyncClient, login: dict[str, str]) -> dict[str, str]:
    answer = await client.post("/v1/tokens", headers=login, json={"expiration": "15m"})
    assert (answer.status_code, answer.json()["expiration"]) == (201, "15m0s")
    minted: dict[str, str] = answer.json()
    return minted


async def test_a_minted_token_opens_the_route_and_a_login_does_not() -> None:
    async with serving(cluster) as cluster_url, running("access_tokens", CLUSTER_URL=cluster_url) as client:
        token = (await mint(client, ALICE))["token"]
        greeting = await client.get("/hello", headers=bearer(token))
        login = await client.get("/hello", headers=ALICE)

    assert (greeting.status_code, greeting.text) == (200, "Hello, alice!\n")
    assert login.status_code == 401


async def test_revoking_ends_the_tokens_of_one_user_at_once() -> None:
    async with serving(cluster) as cluster_url, running("access_tokens", CLUSTER_URL=cluster_url) as client:
        minted = [await mint(client, ALICE), await mint(client, ALICE), await mint(client, BOB)]
        one = await client.delete(f"/v1/tokens/{minted[0]['jti']}", headers=ALICE)
        after_one = [await client.get("/hello", headers=bearer(each["token"])) for each in minted]
        everything = await client.delete("/v1/tokens", headers=ALICE)
        after_all = [await client.get("/hello", headers=bearer(each["token"])) for each in minted]

    assert (one.status_code, everything.status_code) == (204, 204)
    assert [answer.status_code for answer in after_one] == [401, 200, 200]
    assert [answer.status_code for answer in after_all] == [401, 401, 200]
    assert after_all[0].json()["error"]["details"] == {"reason": "revoked"}


async def test_an_access_token_neither_mints_nor_revokes() -> None:
    async with serving(cluster) as cluster_url, running("access_tokens", CLUSTER_URL=cluster_url) as client:
        headers = bearer((await mint(client, ALICE))["token"])
        answers = [
            await client.post("/v1/tokens", headers=headers),
            await client.delete("/v1/tokens", headers=headers),
        ]

    assert [answer.status_code for answer in answers] == [403, 403]


async def test_anybody_can_verify_a_token_with_the_published_keys() -> None:
    async with serving(cluster) as cluster_url, running("access_tokens", CLUSTER_URL=cluster_url) as client:
        token = (await mint(client, ALICE))["token"]
        keys = jwt.PyJWKSet.from_dict((await client.get("/.well-known/jwks.json")).json())

    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, ["ES256"], issuer="https://maas.example.com", audience="maas")

    assert claims["sub"] == "alice"
