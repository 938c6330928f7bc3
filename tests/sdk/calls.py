"""What the SDKs are asked to do, in every dialect, and what they make of the answers."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, Protocol

import anthropic
import openai
from anthropic.types import MessageParam
from openai.types.chat import ChatCompletionMessageParam

QUESTION = "Hello, how are you?"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
TURNS: list[MessageParam] = [{"role": "user", "content": QUESTION}]
RECORDING = ("recording.mp3", b"\xff\xfb" * 20_000)  # three seconds, for the simulated model
TOKENS_PER_SECOND = 10


@dataclass(frozen=True)
class Reply:
    """What a call came to.

    Attributes:
        data: what the SDK read: a document, a list of events, text or bytes.
        request_id: as the SDK tells it, None where it tells none.
    """

    headers: Mapping[str, str]
    data: Any
    request_id: str | None = None

    @property
    def tokens(self) -> int | None:
        """What a document says was used, in total."""
        usage = self.data.get("usage") if isinstance(self.data, dict) else None
        if usage is None:
            return None
        if "seconds" in usage:
            return int(usage["seconds"]) * TOKENS_PER_SECOND
        total = usage.get("total_tokens", usage.get("input_tokens", 0) + usage.get("output_tokens", 0))
        assert isinstance(total, int)
        return total


class _Read(Protocol):
    def to_dict(self, *, warnings: bool) -> dict[str, object]: ...


OpenAICall = Callable[..., Awaitable[Reply]]  # of a client, a model, and more for the request
AnthropicCall = Callable[..., Awaitable[Reply]]


def document(read: _Read) -> dict[str, Any]:
    """What an SDK's object was made of."""
    return read.to_dict(warnings=False)  # of fields that are vLLM's own


async def documents(stream: AsyncIterable[_Read]) -> list[dict[str, Any]]:
    return [document(event) async for event in stream]


async def _whole(call: Awaitable[Any]) -> Reply:
    raw = await call
    answer = await _parsed(raw)
    if isinstance(answer, str):
        return Reply(raw.headers, answer)
    return Reply(raw.headers, document(answer), answer._request_id)


async def _events(call: Awaitable[Any]) -> Reply:
    raw = await call
    return Reply(raw.headers, await documents(await _parsed(raw)))


async def _parsed(raw: Any) -> Any:
    parsed = raw.parse()
    return await parsed if isawaitable(parsed) else parsed  # so it is in one of the SDKs


async def chat(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    create = client.chat.completions.with_raw_response.create
    return await _whole(create(**{"model": model, "messages": MESSAGES, **more}))


async def chat_stream(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    create = client.chat.completions.with_raw_response.create
    return await _events(create(**{"model": model, "messages": MESSAGES, "stream": True, **more}))


async def chat_stream_with_usage(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    return await chat_stream(client, model, stream_options={"include_usage": True}, **more)


async def completion(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    create = client.completions.with_raw_response.create
    return await _whole(create(**{"model": model, "prompt": QUESTION, **more}))


async def completion_stream(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    create = client.completions.with_raw_response.create
    return await _events(create(**{"model": model, "prompt": QUESTION, "stream": True, **more}))


async def response(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    create = client.responses.with_raw_response.create
    return await _whole(create(**{"model": model, "input": QUESTION, "instructions": "Be kind.", **more}))


async def response_stream(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    create = client.responses.with_raw_response.create
    asked = {"model": model, "input": QUESTION, "instructions": "Be kind.", "stream": True, **more}
    return await _events(create(**asked))


async def embeddings(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    create = client.embeddings.with_raw_response.create
    return await _whole(create(**{"model": model, "input": [QUESTION, "Well."], **more}))


async def transcription(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    create = client.audio.transcriptions.with_raw_response.create
    return await _whole(create(**{"model": model, "file": RECORDING, "prompt": "Names: Fay, Pat", **more}))


async def transcription_stream(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    create = client.audio.transcriptions.with_raw_response.create
    return await _events(create(**{"model": model, "file": RECORDING, "stream": True, **more}))


async def translation(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    create = client.audio.translations.with_raw_response.create
    return await _whole(create(**{"model": model, "file": RECORDING, **more}))


async def speech(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    create = client.audio.speech.with_raw_response.create
    raw = await create(**{"model": model, "voice": "alloy", "input": QUESTION, **more})
    return Reply(raw.headers, raw.parse().content)


async def images(client: openai.AsyncOpenAI, model: str, **more: Any) -> Reply:
    generate = client.images.with_raw_response.generate
    return await _whole(generate(**{"model": model, "prompt": QUESTION, "n": 2, **more}))


async def message(client: anthropic.AsyncAnthropic, model: str, **more: Any) -> Reply:
    create = client.messages.with_raw_response.create
    return await _whole(create(**{"model": model, "messages": TURNS, "max_tokens": 15, "system": "Be kind.", **more}))


async def message_stream(client: anthropic.AsyncAnthropic, model: str, **more: Any) -> Reply:
    create = client.messages.with_raw_response.create
    asked = {"model": model, "messages": TURNS, "max_tokens": 15, "system": "Be kind.", "stream": True, **more}
    return await _events(create(**asked))


async def count_tokens(client: anthropic.AsyncAnthropic, model: str, **more: Any) -> Reply:
    count = client.messages.with_raw_response.count_tokens
    return await _whole(count(**{"model": model, "messages": TURNS, "system": "Be kind.", **more}))


OPENAI_WHOLE: dict[str, OpenAICall] = {
    "chat": chat,
    "completions": completion,
    "responses": response,
    "embeddings": embeddings,
    "transcriptions": transcription,
    "translations": translation,
    "images": images,
}
OPENAI_STREAMS: dict[str, OpenAICall] = {
    "chat-stream": chat_stream,
    "chat-stream-with-usage": chat_stream_with_usage,
    "completions-stream": completion_stream,
    "responses-stream": response_stream,
    "transcriptions-stream": transcription_stream,
}
OPENAI_CALLS = {**OPENAI_WHOLE, **OPENAI_STREAMS, "speech": speech}
ANTHROPIC_CALLS: dict[str, AnthropicCall] = {
    "messages": message,
    "messages-stream": message_stream,
    "count-tokens": count_tokens,
}
