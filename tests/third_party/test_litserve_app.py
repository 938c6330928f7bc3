from __future__ import annotations

import anyio
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.deployments import bearer

from .apps import CHAT, App, settled

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello there!"}]


def said(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


async def test_login_mints_a_token_that_lists_and_uses_the_model(litserve: App) -> None:
    async with litserve.user() as user:
        models = await user.models.list()
        raw = await user.chat.completions.with_raw_response.create(model="parrot", messages=HELLO)

    answer = raw.parse()
    assert [model.id for model in models.data] == ["parrot"]
    assert answer.choices[0].message.content == "Hello there!"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 4
    assert raw.headers["x-odhu-usage-total-tokens"] == "4"
    assert raw.headers["x-ratelimit-remaining-requests"] == "49"
    assert raw.headers["x-ratelimit-remaining-tokens"] == "99996"


async def test_stream_is_whole_and_charged_as_it_says(litserve: App) -> None:
    async with litserve.user() as user:
        stream = await user.chat.completions.create(model="parrot", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]

        left = await litserve.left(user.api_key)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello there!"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert left == (49, 99_996)


async def test_several_choices_are_all_charged(litserve: App) -> None:
    async with litserve.user() as user:
        answer = await user.chat.completions.create(model="parrot", messages=HELLO, n=3)

        left = await litserve.left(user.api_key)

    assert len(answer.choices) == 3
    assert left == (49, 99_988)


async def test_requests_over_the_limit_of_the_tier_are_refused(litserve: App) -> None:
    async with litserve.user("tier-free-users") as user:
        for _ in range(5):
            await user.chat.completions.create(model="parrot", messages=HELLO)
        with pytest.raises(openai.RateLimitError) as refused:
            await user.chat.completions.create(model="parrot", messages=HELLO, stream=True)

    assert refused.value.code == "rate_limit_exceeded"
    assert int(refused.value.response.headers["retry-after"]) > 0


async def test_tokens_over_the_limit_of_the_tier_are_refused(litserve: App) -> None:
    async with litserve.user("tier-free-users") as user:
        await user.chat.completions.create(model="parrot", messages=said("word " * 60))
        with pytest.raises(openai.RateLimitError) as refused:
            await user.chat.completions.create(model="parrot", messages=HELLO)

    assert isinstance(refused.value.body, dict)
    assert refused.value.body["details"]["limit"] == "tokens"


async def test_who_leaves_in_mid_stream_pays_for_what_came(litserve: App) -> None:
    words = 30_000  # far more than what fits between the server and somebody who does not read
    async with litserve.user() as user:
        stream = await user.chat.completions.create(model="parrot", messages=said("a " * words), stream=True)
        first = await anext(aiter(stream))
        await stream.close()

        left = await settled(litserve, user.api_key)

    assert first.choices[0].delta.content == "a"
    assert 0 < 100_000 - left < 2 * words


async def test_unknown_model_and_bad_request_are_told_in_the_envelope(litserve: App) -> None:
    async with litserve.user() as user:
        with pytest.raises(openai.NotFoundError) as unknown:
            await user.chat.completions.create(model="owl", messages=HELLO)
        with pytest.raises(openai.UnprocessableEntityError) as invalid:
            await user.chat.completions.create(model="parrot", messages=HELLO, extra_body={"messages": 1})

    assert unknown.value.code == "model_not_found"
    assert (invalid.value.code, invalid.value.param) == ("unprocessable_entity", "messages")


@pytest.mark.parametrize("credential", ["nonsense", "sha256~0"], ids=["wrong", "a-login"])
async def test_other_credentials_than_access_tokens_are_refused(litserve: App, credential: str) -> None:
    await litserve.token()

    answer = await litserve.http.post(CHAT, headers=bearer(credential), json={"model": "parrot", "messages": HELLO})

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/", "/info", "/docs", "/redoc", "/openapi.json", "/shutdown"])
async def test_other_routes_of_the_host_are_closed(litserve: App, path: str) -> None:
    token = await litserve.token()

    stranger = await litserve.http.get(path)
    known = await litserve.http.get(path, headers=bearer(token))

    assert (stranger.status_code, known.status_code) == (401, 404)
    assert known.json()["error"]["code"] == "not_found"


async def test_health_is_that_of_the_host(litserve: App) -> None:
    answer = await litserve.http.get("/health")

    assert (answer.status_code, answer.text) == (200, "ok")


async def test_tokens_are_good_on_every_api_server(litserve_with_options: App) -> None:
    token = await litserve_with_options.token()
    statuses: list[int] = []

    async def ask() -> None:
        answer = await litserve_with_options.http.get("/v1/models", headers=bearer(token))
        statuses.append(answer.status_code)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(ask)

    assert statuses == [200] * 20


async def test_key_of_the_host_is_given_to_it(litserve_with_options: App) -> None:
    async with litserve_with_options.user() as user:
        answer = await user.chat.completions.create(model="parrot", messages=HELLO)
        direct = await litserve_with_options.http.get("/health")

    assert answer.choices[0].message.content == "Hello there!"
    assert direct.status_code in (401, 403)  # LitServe guards its health too


async def test_body_over_the_maximum_of_the_host_is_refused(litserve_with_options: App) -> None:
    async with litserve_with_options.user() as user:
        with pytest.raises(openai.APIStatusError) as refused:
            await user.chat.completions.create(model="parrot", messages=said("word " * 30_000))

    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")


async def test_failure_of_the_model_is_told_without_its_words(litserve_with_options: App) -> None:
    async with litserve_with_options.user() as user:
        with pytest.raises(openai.InternalServerError) as failed:
            await user.chat.completions.create(model="parrot", messages=said("now fail"))

    assert "10.1.2.3" not in failed.value.response.text
    assert failed.value.type == "server_error"


@pytest.mark.parametrize("text", ["fail", "now fail"], ids=["at-once", "later"])
async def test_stream_that_fails_raises(litserve_with_options: App, text: str) -> None:
    async with litserve_with_options.user() as user:
        with pytest.raises(openai.APIError) as failed:
            async for _ in await user.chat.completions.create(model="parrot", messages=said(text), stream=True):
                pass

    assert failed.value.type == "server_error"
    assert "10.1.2.3" not in str(failed.value.body)
