from __future__ import annotations

from examples.stand_ins import cluster
from tests.servers import serving

from .running import ALICE, BOB, bearer, running

QUESTION = {"model": "echo", "prompt": "Hello!"}


async def test_a_minted_token_is_admitted_metered_and_answered() -> None:
    async with serving(cluster) as cluster_url, running("compose_by_hand", CLUSTER_URL=cluster_url) as client:
        minted = await client.post("/v1/tokens", headers=ALICE)
        answer = await client.post("/v1/completions", headers=bearer(minted.json()["token"]), json=QUESTION)

    assert minted.status_code == 201
    assert answer.json()["choices"][0]["text"] == "Hello!"
    assert answer.headers["x-odhu-usage-total-tokens"] == "2"
    assert answer.headers["x-ratelimit-limit-requests"] == "20"
    assert answer.headers["x-ratelimit-remaining-requests"] == "19"
    assert "x-ratelimit-limit-tokens" not in answer.headers
    assert answer.headers["x-request-id"]


async def test_a_login_mints_but_calls_no_models() -> None:
    async with serving(cluster) as cluster_url, running("compose_by_hand", CLUSTER_URL=cluster_url) as client:
        login = await client.post("/v1/completions", headers=BOB, json=QUESTION)
        stranger = await client.post("/v1/tokens")

    assert (login.status_code, login.json()["error"]["details"]) == (401, {"reason": "unknown"})
    assert (stranger.status_code, stranger.json()["error"]["details"]) == (401, {"reason": "missing"})


async def test_an_access_token_calls_models_within_its_tier_but_does_not_mint() -> None:
    async with serving(cluster) as cluster_url, running("compose_by_hand", CLUSTER_URL=cluster_url) as client:
        headers = bearer((await client.post("/v1/tokens", headers=BOB)).json()["token"])
        minted = await client.post("/v1/tokens", headers=headers)
        answers = [await client.post("/v1/completions", headers=headers, json=QUESTION) for _ in range(6)]

    assert (minted.status_code, minted.json()["error"]["code"]) == (403, "access_denied")
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert answers[-1].json()["error"]["details"]["tier"] == "free"


async def test_what_is_no_inference_is_refused_in_the_envelope() -> None:
    async with serving(cluster) as cluster_url, running("compose_by_hand", CLUSTER_URL=cluster_url) as client:
        headers = bearer((await client.post("/v1/tokens", headers=BOB)).json()["token"])
        missing = await client.get("/docs", headers=headers)

    assert missing.status_code == 404
    assert missing.json() == {
        "error": {"message": "Not found", "type": "invalid_request_error", "param": None, "code": "not_found"}
    }
    assert missing.headers["x-request-id"]
