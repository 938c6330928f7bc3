"""Streams that break off, or tell an error: the SDKs raise, and take no part of an answer for the whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable
from typing import Any

import anthropic
import openai
import pytest

from ..hostile.scripts import said
from ..raw_upstream import answer, chunk
from .calls import MESSAGES, OPENAI_CALLS, QUESTION, TURNS, document
from .scripted import EVENTS, JSON, endings, model, recorded, streaming
from .site import Site

ASKED: dict[str, Any] = {"model": "scripted", "messages": TURNS, "max_tokens": 100}
ENDINGS = list(endings(b""))


async def collect(stream: AsyncIterable[object], seen: list[Any]) -> None:
    async for event in stream:
        seen.append(event)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("events", [1, 7])
async def test_message_that_breaks_off_raises(troubled: Site, events: int, ending: str) -> None:
    model.script, told = endings(recorded("messages.anthropic", events))[ending]
    user = await troubled.user()

    seen: list[Any] = []
    with pytest.raises(anthropic.APIStatusError, match=told) as caught:
        await collect(await user.anthropic().messages.create(stream=True, **ASKED), seen)

    assert seen[0].type == "message_start"
    assert "message_stop" not in {event.type for event in seen}
    assert caught.value.type == ("timeout_error" if ending == "hangs" else "api_error")
    assert caught.value.request_id
    assert caught.value.api_message == f"{told} (request {caught.value.request_id})"


@pytest.mark.parametrize("ending", ENDINGS)
async def test_message_that_breaks_off_has_no_final_message(troubled: Site, ending: str) -> None:
    model.script, told = endings(recorded("messages.anthropic", 7))[ending]
    user = await troubled.user()

    with pytest.raises(anthropic.APIStatusError, match=told):
        async with user.anthropic().messages.stream(**ASKED) as stream:
            await stream.get_final_message()


async def test_message_that_breaks_off_costs_what_was_used(troubled: Site) -> None:
    model.script = said(EVENTS, chunk(recorded("messages.anthropic", 7)))
    user = await troubled.user()

    with pytest.raises(anthropic.APIStatusError):
        async with user.anthropic().messages.stream(**ASKED) as stream:
            await stream.get_final_message()

    assert await user.used() == (1, 121)


@pytest.mark.parametrize("name", ["messages.error", "messages.only-error"])
async def test_error_event_of_the_server_is_raised_by_the_anthropic_sdk(troubled: Site, name: str) -> None:
    model.script = streaming(recorded(name))
    user = await troubled.user()

    with pytest.raises(anthropic.APIStatusError) as caught:
        async with user.anthropic().messages.stream(**ASKED) as stream:
            await stream.get_final_message()

    told = f"The model failed to answer (request {caught.value.request_id})"
    assert (caught.value.type, caught.value.api_message) == ("api_error", told)


async def test_tool_is_called_with_what_the_model_said(troubled: Site) -> None:
    model.script = streaming(recorded("messages.tool"))
    user = await troubled.user()

    async with user.anthropic().messages.stream(**ASKED) as stream:
        final = await stream.get_final_message()

    text, tool = final.content
    assert (text.type, tool.type) == ("text", "tool_use")
    assert tool.type == "tool_use"
    assert (tool.name, tool.input) == ("weather", {"city": "Oslo", "type": "error"})
    assert final.stop_reason == "tool_use"
    assert await user.used() == (1, 48)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("events", [1, 10])
async def test_response_that_breaks_off_raises(troubled: Site, events: int, ending: str) -> None:
    model.script, told = endings(recorded("responses.openai", events))[ending]
    user = await troubled.user()

    seen: list[Any] = []
    with pytest.raises(openai.APIConnectionError):
        await collect(await user.openai().responses.create(model="scripted", input=QUESTION, stream=True), seen)

    *whole, last = seen
    assert len(whole) == events
    assert whole[0].type == "response.created"
    assert "response.completed" not in {event.type for event in whole}
    assert (last.type, last.code) == ("error", "upstream_timeout" if ending == "hangs" else "upstream_error")
    assert last.message.startswith(f"{told} (request ")
    assert last.sequence_number > whole[-1].sequence_number


@pytest.mark.parametrize("ending", ENDINGS)
async def test_response_that_breaks_off_has_no_final_response(troubled: Site, ending: str) -> None:
    model.script, _ = endings(recorded("responses.openai", 10))[ending]
    user = await troubled.user()

    with pytest.raises(openai.APIConnectionError):
        async with user.openai().responses.stream(model="scripted", input=QUESTION) as stream:
            await stream.get_final_response()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vllm", "chat-stream"),
        ("vllm-completions", "completions-stream"),
        ("transcription.vllm", "transcriptions-stream"),
    ],
)
async def test_chunks_that_break_off_raise(troubled: Site, name: str, kind: str, ending: str) -> None:
    model.script, told = endings(recorded(name, 2))[ending]
    user = await troubled.user()

    with pytest.raises(openai.APIError, match=told) as caught:
        await OPENAI_CALLS[kind](user.openai(), "scripted")

    assert caught.value.code == ("upstream_timeout" if ending == "hangs" else "upstream_error")
    assert caught.value.type == "server_error"


HALF_AN_EVENT = b'event: x\ndata: {"type": "x'


async def test_message_that_breaks_off_within_an_event_raises(troubled: Site) -> None:
    model.script = said(EVENTS, chunk(recorded("messages.anthropic", 4) + HALF_AN_EVENT))
    user = await troubled.user()

    with pytest.raises(anthropic.APIStatusError, match="The model failed to answer"):
        async with user.anthropic().messages.stream(**ASKED) as stream:
            await stream.get_final_message()


@pytest.mark.parametrize("kind", ["responses-stream", "chat-stream", "chat-stream-with-usage", "transcriptions-stream"])
async def test_answer_that_breaks_off_within_an_event_raises(troubled: Site, kind: str) -> None:
    name = {"responses-stream": "responses.openai", "transcriptions-stream": "transcription.vllm"}.get(kind, "vllm")
    model.script = said(EVENTS, chunk(recorded(name, 2) + HALF_AN_EVENT))
    user = await troubled.user()

    with pytest.raises(openai.APIError):
        await OPENAI_CALLS[kind](user.openai(), "scripted")


async def test_response_that_fails_says_so(troubled: Site) -> None:
    model.script = streaming(recorded("responses.failed"))
    user = await troubled.user()

    stream = await user.openai().responses.create(model="scripted", input=QUESTION, stream=True)
    kinds = [event.type async for event in stream]

    assert kinds[-1] == "response.failed"
    assert "response.completed" not in kinds


async def test_error_event_of_a_response_takes_its_place_in_the_order(troubled: Site) -> None:
    model.script = streaming(recorded("responses.error"))
    user = await troubled.user()

    seen: list[Any] = []
    with pytest.raises(openai.APIConnectionError):
        await collect(await user.openai().responses.create(model="scripted", input=QUESTION, stream=True), seen)

    assert [event.sequence_number for event in seen] == list(range(6))
    assert (seen[-1].type, seen[-1].code) == ("error", "upstream_error")
    assert seen[-1].message.startswith("The model failed to answer (request ")


@pytest.mark.parametrize("name", ["vllm-error", "vllm-old-error"])
async def test_error_event_of_the_server_is_raised_by_the_openai_sdk(troubled: Site, name: str) -> None:
    model.script = streaming(recorded(name))
    user = await troubled.user()

    with pytest.raises(openai.APIError, match=r"^The model failed to answer \(request "):
        await OPENAI_CALLS["chat-stream"](user.openai(), "scripted")


async def test_refusal_in_a_stream_keeps_its_words(troubled: Site) -> None:
    model.script = streaming(b'data: {"error":{"message":"The prompt is too long","param":"messages","code":400}}\n\n')
    user = await troubled.user()

    with pytest.raises(openai.APIError, match=r"^The prompt is too long$") as caught:
        await OPENAI_CALLS["chat-stream"](user.openai(), "scripted")

    assert (caught.value.code, caught.value.param) == ("invalid_request", "messages")
    assert await user.used() == (0, 0)


CALLED = {"name": "weather", "arguments": '{"city": "Oslo"}'}
TOOL_CALL = {"index": 0, "id": "call_1", "type": "function", "function": CALLED}
CHAT_USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def completion(object_type: str, part: str, finish_reason: str | None, **more: object) -> bytes:
    choice = {"index": 0, part: {"role": "assistant", "tool_calls": [TOOL_CALL]}, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-1", "object": object_type, "created": 1, "model": "scripted"}
    return json.dumps({**head, "choices": [choice], **more}).encode()


async def test_tool_calls_of_a_completion(troubled: Site) -> None:
    user = await troubled.user()

    answered = completion("chat.completion", "message", "tool_calls", usage=CHAT_USAGE)
    model.script = said(answer("200 OK", answered, JSON))
    whole = await user.openai().chat.completions.create(model="scripted", messages=MESSAGES)
    pieces = [completion("chat.completion.chunk", "delta", "tool_calls"), b"[DONE]"]
    model.script = streaming(b"".join(b"data: " + piece + b"\n\n" for piece in pieces))
    async with user.openai().chat.completions.stream(model="scripted", messages=MESSAGES) as stream:
        streamed = await stream.get_final_completion()

    for completed in (whole, streamed):
        (call,) = document(completed)["choices"][0]["message"]["tool_calls"]
        assert (call["id"], call["type"]) == ("call_1", "function")
        assert {name: call["function"][name] for name in CALLED} == CALLED
