"""The openai SDK, pointed at the gateway, gets what it expects: answers, streams, and errors of the right classes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from .deployments import Deployment, deployed
from .raw_upstream import Connection, raw_upstream

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello, how are you?"}]


@pytest.fixture
async def service() -> AsyncIterator[Deployment]:
    async with deployed() as service:
        yield service


def sdk(service: Deployment, token: str, *, max_retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=token, max_retries=max_retries, timeout=10)


async def test_chat_completion(service: Deployment) -> None:
    async with sdk(service, await service.mint()) as client:
        raw = await client.chat.completions.with_raw_response.create(model="simulator", messages=MESSAGES)

    completion = raw.parse()

    assert completion.usage is not None
    assert raw.headers["x-odhu-usage-total-tokens"] == str(completion.usage.total_tokens)
    assert raw.headers["x-ratelimit-remaining-requests"] == "4"
    assert completion.choices[0].message.content
    assert completion._request_id == raw.headers["x-request-id"]


async def test_legacy_completion(service: Deployment) -> None:
    async with sdk(service, await service.mint()) as client:
        completion = await client.completions.create(model="simulator", prompt="Hello", max_tokens=5)

    assert completion.usage is not None
    assert completion.usage.completion_tokens == 5


async def test_stream_shows_no_usage_that_was_not_asked_for(service: Deployment) -> None:
    async with sdk(service, await service.mint()) as client:
        stream = await client.chat.completions.create(model="simulator", messages=MESSAGES, stream=True)
        chunks = [chunk async for chunk in stream]
        left = await client.chat.completions.with_raw_response.create(
            model="simulator", messages=MESSAGES, max_tokens=1
        )

    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith("Hello!")
    # it was counted all the same
    assert int(left.headers["x-ratelimit-remaining-tokens"]) < 100 - len(chunks)


async def test_stream_shows_the_usage_that_was_asked_for(service: Deployment) -> None:
    async with sdk(service, await service.mint()) as client:
        stream = await client.chat.completions.create(
            model="simulator", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]

    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0


async def test_models_of_the_tier_are_listed_with_the_guides_fields(service: Deployment) -> None:
    async with sdk(service, await service.mint()) as client:
        free = [model async for model in client.models.list()]
    async with sdk(service, await service.mint("sha256~premium")) as client:
        premium = [model async for model in client.models.list()]
        one = await client.models.retrieve("qwen3")

    assert [model.id for model in free] == ["simulator"]
    assert [model.id for model in premium] == ["simulator", "qwen3"]
    assert one.model_dump()["url"] == f"{service.url}/qwen3/v1/chat/completions"
    assert one.model_dump()["tier"] == "premium"


async def test_wrong_token_is_an_authentication_error(service: Deployment) -> None:
    async with sdk(service, "wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="Invalid authentication token") as caught:
            await client.chat.completions.create(model="simulator", messages=MESSAGES, stream=True)

    assert caught.value.code == "invalid_api_key"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


async def test_login_token_is_no_api_key_and_the_cluster_is_not_asked(service: Deployment) -> None:
    async with sdk(service, "sha256~free") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model="simulator", messages=MESSAGES)

    assert isinstance(caught.value.body, dict)
    assert caught.value.body["details"] == {"reason": "unknown"}
    assert service.cluster.reviews == []


async def test_model_of_another_tier_is_a_permission_error(service: Deployment) -> None:
    async with sdk(service, await service.mint()) as client:
        with pytest.raises(openai.PermissionDeniedError, match="Insufficient permissions for this model") as caught:
            await client.chat.completions.create(model="qwen3", messages=MESSAGES)

    assert caught.value.code == "access_denied"
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "5"


async def test_unknown_model_is_a_not_found_error(service: Deployment) -> None:
    async with sdk(service, await service.mint()) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="gpt-7", messages=MESSAGES)

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


async def test_requests_over_the_limit_are_a_rate_limit_error_that_says_when_again(service: Deployment) -> None:
    async with sdk(service, await service.mint()) as client:
        for _ in range(5):
            await client.chat.completions.create(model="simulator", messages=MESSAGES, max_tokens=1)
        with pytest.raises(openai.RateLimitError, match="Rate limit exceeded") as caught:
            await client.chat.completions.create(model="simulator", messages=MESSAGES, max_tokens=1)

    headers = caught.value.response.headers
    assert caught.value.code == "rate_limit_exceeded"
    assert 55_000 < int(headers["retry-after-ms"]) <= 64_000
    assert int(headers["retry-after"]) == -(-int(headers["retry-after-ms"]) // 1000)
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert isinstance(caught.value.body, dict)
    details = caught.value.body["details"]
    assert details["retry_after_seconds"] == int(headers["retry-after"])
    assert (details["limit"], details["quota"], details["window_seconds"], details["tier"]) == (
        "requests",
        5,
        60,
        "free",
    )


async def test_sdk_waits_as_long_as_it_is_told_and_then_passes() -> None:
    tiers = [{"name": "free", "groups": ["system:authenticated"], "limits": {"requests": "1/second"}}]
    limits = {"free": {"tokens": "unlimited"}}
    async with (
        deployed(tiers=tiers, tier_limits=limits, qwen3_tiers=[]) as service,
        sdk(service, await service.mint(), max_retries=1) as client,
    ):
        with anyio.fail_after(10):
            for _ in range(3):
                await client.chat.completions.create(model="simulator", messages=MESSAGES, max_tokens=1)

    assert len(service.simulator.requests) == 3


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(b"", id="closed like an answer without a length"),
        pytest.param(b"\r\n0\r\n\r\n", id="ended like a whole one"),
    ],
)
async def test_stream_that_is_cut_is_never_taken_for_a_whole_one(ending: bytes) -> None:
    chunk = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"simulator","choices":'
    chunk += b'[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n'
    framing = b"transfer-encoding: chunked\r\n" if ending else b""
    body = b"%x\r\n%b%b" % (len(chunk), chunk, ending) if ending else chunk

    async def cut(upstream: Connection) -> None:
        await upstream.read_request()
        await upstream.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + framing + b"\r\n" + body)

    async with raw_upstream(cut) as upstream:
        models = [{"id": "simulator", "tiers": "all", "upstreams": [upstream.url]}]
        async with deployed(models=models) as service, sdk(service, await service.mint()) as client:
            stream = await client.chat.completions.create(model="simulator", messages=MESSAGES, stream=True)
            first = await anext(stream)
            with pytest.raises(openai.APIError, match="The model failed to answer"):
                await anext(stream)

    assert first.choices[0].delta.content == "Hel"
