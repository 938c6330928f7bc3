"""What a call costs is what the SDK says that it used: in the headers, and in what is left afterwards."""

from __future__ import annotations

import pytest

from .calls import (
    OPENAI_CALLS,
    OPENAI_STREAMS,
    OPENAI_WHOLE,
    QUESTION,
    count_tokens,
    message,
    message_stream,
    speech,
)
from .site import Site

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

# tokens of the answer of the simulated model, for which a word is one
EXPECTED = {
    "chat": 4 + 18,
    "completions": 4 + 16,
    "responses": 6 + 18,
    "embeddings": 4 + 1,
    "transcriptions": 30,
    "translations": 30,
    "images": 4 + 32,
}


@pytest.mark.parametrize("kind", OPENAI_WHOLE)
async def test_answer_costs_the_usage_that_it_tells(site: Site, kind: str) -> None:
    user = await site.user()

    reply = await OPENAI_WHOLE[kind](user.openai(), "simulator")

    assert reply.tokens == EXPECTED[kind]
    assert reply.headers["x-odhu-usage-total-tokens"] == str(reply.tokens)
    assert await user.used() == (1, reply.tokens)


async def test_message_costs_the_usage_that_it_tells(site: Site) -> None:
    user = await site.user()

    reply = await message(user.anthropic(), "simulator")

    usage = reply.data["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], reply.tokens) == (6, 15, 21)
    assert {name: reply.headers[f"x-odhu-usage-{name}-tokens"] for name in ("input", "output", "total")} == {
        "input": "6",
        "output": "15",
        "total": "21",
    }
    assert await user.used() == (1, 21)


STREAMS = {
    "chat-stream": EXPECTED["chat"],
    "chat-stream-with-usage": EXPECTED["chat"],
    "completions-stream": EXPECTED["completions"],
    "responses-stream": EXPECTED["responses"],
}


@pytest.mark.parametrize("kind", STREAMS)
async def test_stream_costs_what_the_whole_answer_does(site: Site, kind: str) -> None:
    user = await site.user()

    await OPENAI_STREAMS[kind](user.openai(), "simulator")

    assert await user.used() == (1, STREAMS[kind])


async def test_stream_costs_the_usage_of_its_last_event(site: Site) -> None:
    chatting, responding, writing = [await site.user() for _ in range(3)]

    chat_events = (await OPENAI_STREAMS["chat-stream-with-usage"](chatting.openai(), "simulator")).data
    response_events = (await OPENAI_STREAMS["responses-stream"](responding.openai(), "simulator")).data
    message_events = (await message_stream(writing.anthropic(), "simulator")).data

    usage = message_events[-2]["usage"]
    assert await chatting.used() == (1, chat_events[-1]["usage"]["total_tokens"])
    assert await responding.used() == (1, response_events[-1]["response"]["usage"]["total_tokens"])
    assert await writing.used() == (1, usage["input_tokens"] + usage["output_tokens"])
    assert (await writing.used())[1] == 21


@pytest.mark.parametrize("kind", ["transcriptions-stream", "translations"])
async def test_transcription_that_tells_no_usage_costs_an_estimate(site: Site, kind: str) -> None:
    user = await site.user()
    more = {"response_format": "text"} if kind == "translations" else {}

    reply = await OPENAI_CALLS[kind](user.openai(), "simulator", **more)

    assert [name for name in reply.headers if name.startswith("x-odhu-")] == []
    requests, tokens = await user.used()
    assert requests == 1
    assert 20 < tokens < 600


async def test_speech_costs_an_estimate(site: Site) -> None:
    user = await site.user()

    reply = await speech(user.openai(), "simulator")

    assert [name for name in reply.headers if name.startswith("x-odhu-")] == []
    requests, tokens = await user.used()
    assert requests == 1
    assert 4 <= tokens <= 10


async def test_counting_tokens_costs_a_request_alone(site: Site) -> None:
    user = await site.user()

    reply = await count_tokens(user.anthropic(), "simulator")

    assert "x-odhu-usage-total-tokens" not in reply.headers
    assert await user.used() == (1, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/v1/rerank", {"query": QUESTION, "documents": ["Hello", "Good bye"]}, id="rerank"),
        pytest.param("/score", {"text_1": QUESTION, "text_2": ["Hello", "Good bye"]}, id="score"),
        pytest.param("/classify", {"input": [QUESTION]}, id="classify"),
        pytest.param("/pooling", {"input": [QUESTION]}, id="pooling"),
    ],
)
async def test_what_the_sdks_do_not_call_costs_the_usage_that_it_tells(
    site: Site, path: str, body: dict[str, object]
) -> None:
    user = await site.user()

    answer = await user.post(path, model="simulator", **body)

    total = answer.json()["usage"]["total_tokens"]
    assert total > 3
    assert answer.headers["x-odhu-usage-total-tokens"] == str(total)
    assert await user.used() == (1, total)


async def test_calls_add_up_over_both_sdks(site: Site) -> None:
    user = await site.user()

    for kind in OPENAI_WHOLE:
        await OPENAI_WHOLE[kind](user.openai(), "simulator")
    await message(user.anthropic("/acme/large"), "claude")
    await message_stream(user.anthropic(), "simulator")

    assert await user.used() == (9, sum(EXPECTED.values()) + 2 * 21)
