from __future__ import annotations

from .running import bearer, running

QUESTION = {"model": "simulator", "prompt": "Hi"}


async def test_everybody_has_limits_of_their_own() -> None:
    async with running("custom_tiers") as client:
        alice = await client.head("/v1/completions", headers=bearer("alice-token"))
        bob = [await client.post("/v1/completions", headers=bearer("bob-token"), json=QUESTION) for _ in range(3)]

    assert alice.headers["x-ratelimit-limit-requests"] == "40"
    assert [answer.status_code for answer in bob] == [200, 200, 429]


async def test_who_has_no_plan_reads_what_to_do() -> None:
    async with running("custom_tiers") as client:
        answer = await client.post("/v1/completions", headers=bearer("carol-token"))

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "no_tier"
    assert "https://example.com/plans" in answer.json()["error"]["message"]
