"""The anthropic SDK, pointed at the gateway: messages, their streams, and how many tokens they have."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import pytest

from .calls import ANTHROPIC_CALLS, QUESTION, TURNS, message
from .site import Site, User

ASKED: dict[str, Any] = {"model": "simulator", "messages": TURNS, "max_tokens": 100}
WORDS = 18  # of the answer


@pytest.mark.parametrize("kind", ANTHROPIC_CALLS)
async def test_answer_tells_its_request_and_the_limits(site: Site, kind: str) -> None:
    user = await site.user()

    reply = await ANTHROPIC_CALLS[kind](user.anthropic(), "simulator")

    assert reply.headers["request-id"] == reply.headers["x-request-id"]
    assert reply.headers["x-ratelimit-limit-requests"] == "1000"
    assert reply.headers["x-ratelimit-remaining-requests"] == "999"
    assert int(reply.headers["x-ratelimit-remaining-tokens"]) <= 100_000
    assert ("x-odhu-usage-total-tokens" in reply.headers) is (kind == "messages")


async def test_sdk_reads_the_id_of_its_request(site: Site) -> None:
    client = (await site.user()).anthropic(default_headers={"x-request-id": "my-call_1"})

    whole = await client.messages.create(**ASKED)
    async with client.messages.stream(**ASKED) as stream:
        final = await stream.get_final_message()

    assert whole._request_id == stream.request_id == "my-call_1"
    assert "my-call_1" not in whole.id + final.id  # the model has an id of ours for it


async def test_events_of_a_stream(site: Site) -> None:
    client = (await site.user()).anthropic()

    async with client.messages.stream(**ASKED) as stream:
        kinds = [event.type async for event in stream]

    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta", "text"] * WORDS,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize("cap", [100, 1, 7])
async def test_final_message_of_a_stream_is_the_whole_one(site: Site, cap: int) -> None:
    client = (await site.user()).anthropic()
    asked = {**ASKED, "max_tokens": cap}

    whole = await client.messages.create(**asked)
    async with client.messages.stream(**asked) as stream:
        final = await stream.get_final_message()

    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert (final.usage, final.stop_reason, final.model) == (whole.usage, whole.stop_reason, whole.model)
    assert final.stop_reason == ("end_turn" if cap == 100 else "max_tokens")


async def test_text_of_a_stream_is_that_of_the_whole_message(site: Site) -> None:
    client = (await site.user()).anthropic()

    whole = await client.messages.create(**ASKED)
    async with client.messages.stream(**ASKED) as stream:
        pieces = [piece async for piece in stream.text_stream]

    assert len(pieces) == WORDS
    assert whole.content[0].type == "text"
    assert "".join(pieces) == whole.content[0].text


async def test_counted_tokens_are_those_that_the_message_has(site: Site) -> None:
    client = (await site.user()).anthropic()

    counted = await client.messages.count_tokens(model="simulator", messages=TURNS, system="Be kind.")
    answered = await client.messages.create(system="Be kind.", **ASKED)

    assert counted.input_tokens == answered.usage.input_tokens == 6


async def test_everything_that_was_asked_reaches_the_model(site: Site) -> None:
    client = (await site.user()).anthropic()
    tool: Any = {"name": "weather", "description": "Überall", "input_schema": {"type": "object", "required": []}}
    turns: Any = [
        {"role": "user", "content": [{"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"n": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny."}]},
    ]
    asked: dict[str, Any] = {
        "messages": turns,
        "tools": [tool],
        "tool_choice": {"type": "auto"},
        "stop_sequences": ["END"],
        "metadata": {"user_id": "1"},
    }

    await client.messages.create(model="simulator", max_tokens=100, **asked)

    seen = json.loads(site.models["simulator"][0].requests[-1].body)
    assert seen == {"model": "simulator", "max_tokens": 100, **asked}


def by_api_key(user: User) -> anthropic.AsyncAnthropic:
    return user.anthropic()


def by_auth_token(user: User) -> anthropic.AsyncAnthropic:
    return user.anthropic(api_key=None, auth_token=user.token)


def by_x_api_key(user: User) -> anthropic.AsyncAnthropic:
    """As the SDK did before its version 1."""
    headers = {"authorization": anthropic.omit, "x-api-key": user.token}
    return user.anthropic(default_headers=headers)


def by_both(user: User) -> anthropic.AsyncAnthropic:
    return user.anthropic(default_headers={"x-api-key": "something else"})


@pytest.mark.parametrize("credential", [by_api_key, by_auth_token, by_x_api_key, by_both])
async def test_token_is_a_credential_in_every_form(site: Site, credential: Any) -> None:
    user = await site.user()

    reply = await message(credential(user), "simulator")

    assert reply.data["type"] == "message"
    assert await user.used() == (1, reply.tokens)
    seen = str(site.models["simulator"][0].requests[-1])
    assert user.token not in seen
    assert "x-api-key" not in seen


async def test_x_api_key_alone_is_enough(site: Site) -> None:
    user = await site.user()
    headers = {"x-api-key": user.token, "anthropic-version": "2023-06-01"}

    async with httpx.AsyncClient(base_url=site.sdks.url, headers=headers) as client:
        whole = await client.post("/v1/messages", json=ASKED)
        streamed = await client.post("/v1/messages", json={**ASKED, "stream": True})
        quota = await client.head("/v1/messages")

    assert (whole.status_code, whole.json()["type"]) == (200, "message")
    assert streamed.text.startswith("event: message_start\ndata: {")
    assert streamed.text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert "[DONE]" not in streamed.text
    assert quota.headers["x-ratelimit-remaining-requests"] == "998"


async def test_model_may_be_in_the_path(site: Site) -> None:
    client = (await site.user()).anthropic("/acme/large")

    answer = await client.messages.create(**{**ASKED, "model": "claude"})
    counted = await client.messages.count_tokens(model="acme/large", messages=TURNS)

    assert (answer.model, counted.input_tokens) == ("acme/large", 4)


async def test_models_are_listed(site: Site) -> None:
    client = (await site.user()).anthropic()

    listed = [model.id async for model in client.models.list()]
    one = await client.models.retrieve("claude")

    assert listed == ["simulator", "qwen3", "acme/large"]
    assert one.id == "acme/large"
