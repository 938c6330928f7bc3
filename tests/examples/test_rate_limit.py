from __future__ import annotations

import openai
import pytest

from .running import bearer, running, sdk

QUESTION = {"model": "simulator", "prompt": "Hi", "max_tokens": 1}


async def test_the_fourth_request_of_a_user_is_refused() -> None:
    async with running("rate_limit") as client:
        answers = [await client.post("/v1/completions", headers=bearer("bob-token"), json=QUESTION) for _ in range(4)]
        other = await client.post("/v1/completions", headers=bearer("alice-token"), json=QUESTION)

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 65
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert answers[-1].json()["error"]["details"]["limit"] == "requests"
    assert other.status_code == 200


async def test_the_tokens_that_the_model_reports_are_charged() -> None:
    async with running("rate_limit") as client, sdk(client, "bob-token") as user:
        answer = await user.completions.create(model="simulator", prompt="Hi there")
        left = await client.head("/v1/completions", headers=bearer("bob-token"))

    assert answer.usage is not None
    assert int(left.headers["x-ratelimit-remaining-tokens"]) == 100 - answer.usage.total_tokens


async def test_looking_at_what_is_left_is_free() -> None:
    async with running("rate_limit") as client:
        answers = [await client.head("/v1/completions", headers=bearer("bob-token")) for _ in range(5)]

    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-ratelimit-remaining-requests"] for answer in answers} == {"3"}


async def test_a_used_up_token_limit_refuses_streams_before_they_begin() -> None:
    async with running("rate_limit") as client, sdk(client, "bob-token") as user:
        async for _ in await user.completions.create(model="simulator", prompt="word " * 100, stream=True):
            pass
        with pytest.raises(openai.RateLimitError) as refusal:
            await user.completions.create(model="simulator", prompt="Hi", stream=True)

    assert refusal.value.response.json()["error"]["details"]["limit"] == "tokens"
