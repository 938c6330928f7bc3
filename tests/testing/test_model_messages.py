from __future__ import annotations

import json
from typing import Any

import pytest

from maas_middleware.testing.model import SimulatedModel
from tests.testing.test_model import ANSWER, HELLO, TOKENS, post

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
ASKED: dict[str, Any] = {**HELLO, "max_tokens": 100}


async def answer_of(body: dict[str, Any], path: str = MESSAGES, **headers: str) -> Any:
    response = await post(SimulatedModel(), body, path, **headers)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    return response.json()


async def events_of(body: dict[str, Any]) -> list[Any]:
    """The decoded data of a stream, in which each event has the name of its type."""
    response = await post(SimulatedModel(), {"stream": True, **body}, MESSAGES)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    pairs = [event.removeprefix("event: ").split("\ndata: ") for event in events]
    decoded = [json.loads(data) for _, data in pairs]
    assert [name for name, _ in pairs] == [data["type"] for data in decoded]
    return decoded


async def test_a_message() -> None:
    assert await answer_of(ASKED, **{"x-request-id": "abc"}) == {
        "id": "msg_abc",
        "type": "message",
        "role": "assistant",
        "model": "simulator",
        "content": [{"type": "text", "text": ANSWER}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 4, "output_tokens": 18},
    }


async def test_a_cap_ends_a_message() -> None:
    answer = await answer_of({**ASKED, "max_tokens": 2})

    assert answer["content"] == [{"type": "text", "text": "Hello! I"}]
    assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", 2)


async def test_a_cap_that_is_just_enough_ends_nothing() -> None:
    assert (await answer_of({**ASKED, "max_tokens": 18}))["stop_reason"] == "end_turn"


async def test_a_stream_of_events() -> None:
    events = await events_of({**ASKED, "max_tokens": 3})

    assert events == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "simulator",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 4, "output_tokens": 0},
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": token}}
            for token in TOKENS[:3]
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": {"input_tokens": 4, "output_tokens": 3},
        },
        {"type": "message_stop"},
    ]


async def test_a_stream_says_the_same_as_a_whole_message() -> None:
    whole = await answer_of(ASKED)
    *_, delta, _stop = events = await events_of(ASKED)

    said = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(said) == whole["content"][0]["text"]
    assert (delta["delta"]["stop_reason"], delta["usage"]) == ("end_turn", whole["usage"])


@pytest.mark.parametrize(
    ("system", "tokens"),
    [
        pytest.param("Be brief.", 6, id="string"),
        pytest.param([{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}], 6, id="parts"),
        pytest.param(None, 4, id="null"),
    ],
)
async def test_the_system_prompt_counts(system: Any, tokens: int) -> None:
    answer = await answer_of({**ASKED, "system": system})
    count = await answer_of({**HELLO, "system": system}, COUNT)

    assert answer["usage"]["input_tokens"] == tokens
    assert count == {"input_tokens": tokens}


async def test_the_whole_conversation_counts_and_its_end_is_the_question() -> None:
    parts = [{"type": "image", "source": {}}, {"type": "text", "text": "And this?"}]
    messages = [
        {"role": "user", "content": "What is that?"},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": parts},
    ]

    answer = await answer_of({"messages": messages, "max_tokens": 100})

    assert answer["content"][0]["text"].endswith(" You said: And this?")
    assert answer["usage"]["input_tokens"] == 7


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "message"),
    [
        pytest.param(
            MESSAGES,
            {**ASKED, "model": "nope"},
            404,
            "NotFoundError",
            "The model `nope` does not exist.",
            id="unknown model",
        ),
        pytest.param(MESSAGES, b"{", 400, "BadRequestError", "Input data was truncated", id="truncated"),
        pytest.param(
            MESSAGES, HELLO, 400, "BadRequestError", "Object missing required field `max_tokens`", id="no cap"
        ),
        pytest.param(
            COUNT,
            {"messages": []},
            400,
            "BadRequestError",
            "Expected `array` of length >= 1 - at `$.messages`",
            id="nothing to count",
        ),
    ],
)
async def test_refusals_have_the_shape_of_anthropic(path: str, body: Any, status: int, kind: str, message: str) -> None:
    response = await post(SimulatedModel(), body, path)

    assert response.status_code == status
    assert response.json() == {"type": "error", "error": {"type": kind, "message": message}}
