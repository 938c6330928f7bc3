from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.converse import converse
from maas_middleware.testing.model import SimulatedModel
from tests.testing.test_model import ANSWER, TOKENS, post, sdk_for

RESPONSES = "/v1/responses"
ASKED = {"model": "simulator", "input": "Hello, how are you?"}

is_event: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


async def answer_of(body: dict[str, Any], **headers: str) -> Response:
    response = await post(SimulatedModel(clock=FakeClock(5.0)), body, RESPONSES, **headers)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    return Response.model_validate(response.json(), strict=True)


async def events_of(cap: int | None = None) -> list[ResponseStreamEvent]:
    async with sdk_for(SimulatedModel()) as sdk:
        stream = await sdk.responses.create(
            model="simulator", input="Hello, how are you?", max_output_tokens=cap, stream=True
        )
        return [event async for event in stream]


def tokens_of(response: Response) -> tuple[int, int, int]:
    assert response.usage is not None
    return response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens


async def test_a_response() -> None:
    response = await answer_of({**ASKED, "instructions": "Be brief."}, **{"x-request-id": "abc"})

    assert (response.id, response.created_at, response.model) == ("resp_abc", 5, "simulator")
    assert (response.status, response.incomplete_details) == ("completed", None)
    assert (response.instructions, response.output_text) == ("Be brief.", ANSWER)
    assert [(item.id, item.status) for item in response.output if item.type == "message"] == [("msg_abc", "completed")]
    assert tokens_of(response) == (6, 18, 24)


async def test_a_cap_leaves_a_response_incomplete() -> None:
    response = await answer_of({**ASKED, "max_output_tokens": 2})

    assert (response.status, response.output_text) == ("incomplete", "Hello! I")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in response.output if item.type == "message"] == ["incomplete"]
    assert tokens_of(response) == (4, 2, 6)


@pytest.mark.parametrize(
    ("asked", "said", "prompt"),
    [
        pytest.param([{"role": "user", "content": "Why?"}], "Why?", 1, id="string"),
        pytest.param(
            [{"role": "user", "content": [{"type": "input_text", "text": "Why not?"}, {"type": "input_image"}]}],
            "Why not?",
            2,
            id="parts",
        ),
        pytest.param(
            [
                {"role": "developer", "content": "Be brief."},
                {"role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]},
                {"type": "function_call_output", "call_id": "1", "output": "42"},
                {"type": "message", "role": "user", "content": "Sure?"},
            ],
            "Sure?",
            4,
            id="conversation",
        ),
        pytest.param([], "nothing", 0, id="empty"),
    ],
)
async def test_the_input_may_be_a_list(asked: Any, said: str, prompt: int) -> None:
    response = await answer_of({"input": asked})

    assert response.output_text.endswith(f" You said: {said}")
    assert tokens_of(response) == (prompt, 14 + len(said.split()), prompt + 14 + len(said.split()))


@pytest.mark.parametrize(
    ("cap", "ending"), [pytest.param(30, "completed", id="whole"), pytest.param(3, "incomplete", id="cut")]
)
async def test_a_stream_of_events(cap: int, ending: str) -> None:
    events = await events_of(cap)

    tokens = TOKENS[:cap]
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(tokens),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{ending}",
    ]
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == tokens
    assert [event.text for event in events if event.type == "response.output_text.done"] == ["".join(tokens)]
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert (last.response.status, last.response.output_text) == (ending, "".join(tokens))
    assert tokens_of(last.response) == (4, len(tokens), 4 + len(tokens))


async def test_usage_is_in_the_last_event_alone() -> None:
    events = await events_of()

    ends = ("response.created", "response.in_progress", "response.completed")
    responses = [Response.model_validate(event.to_dict()["response"]) for event in events if event.type in ends]
    assert [response.usage is None for response in responses] == [True, True, False]
    assert [response.status for response in responses] == ["in_progress", "in_progress", "completed"]


async def test_streams_are_valid_events_that_are_named_and_numbered() -> None:
    response = await post(SimulatedModel(), {**ASKED, "stream": True}, RESPONSES)

    *events, rest = response.text.split("\n\n")
    pairs = [event.removeprefix("event: ").split("\ndata: ") for event in events]
    decoded = [is_event.validate_json(data, strict=True) for _, data in pairs]
    assert rest == ""
    assert [name for name, _ in pairs] == [event.type for event in decoded]
    assert [event.sequence_number for event in decoded] == list(range(26))


async def test_the_openai_sdk_puts_a_stream_together() -> None:
    async with (
        sdk_for(SimulatedModel()) as sdk,
        sdk.responses.stream(model="simulator", input="Hello, how are you?") as stream,
    ):
        response = await stream.get_final_response()

    assert response.output_text == ANSWER


async def test_every_id_is_that_of_a_response() -> None:
    async with sdk_for(SimulatedModel()) as sdk:
        read = await sdk.responses.retrieve("resp_of-somebody")
        cancelled = await sdk.responses.cancel("resp_of-somebody")

    assert (read.id, read.status) == ("resp_of-somebody", "completed")
    assert (cancelled.id, cancelled.status) == ("resp_of-somebody", "cancelled")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        pytest.param("POST", "/v1/responses/resp_1", "GET", id="response"),
        pytest.param("GET", "/v1/responses/resp_1/cancel", "POST", id="cancel"),
        pytest.param("GET", "/v1/responses", "POST", id="responses"),
    ],
)
async def test_other_methods_on_responses(method: str, path: str, allow: str) -> None:
    conversation = await converse(SimulatedModel(), method, path)

    assert (conversation.status, conversation.header("allow")) == (405, allow)


@pytest.mark.parametrize(
    "path", ["/v1/responses/", "/v1/responses/a/b", "/v1/responses/a/cancel/", "/x/v1/responses/a"]
)
async def test_other_paths_below_responses(path: str) -> None:
    conversation = await converse(SimulatedModel(), "GET", path)

    assert (conversation.status, conversation.json()) == (404, {"detail": "Not Found"})
