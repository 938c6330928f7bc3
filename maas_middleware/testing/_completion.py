"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from starlette.responses import JSONResponse

from ._answers import DONE, Call, RefusedError, Stream, Whole, data_event
from ._words import AtLeastOne, Conversation, greeting, reply, spoken, text_of, words

_DEFAULT_TEXT_TOKENS = 16  # what /v1/completions generates unless told otherwise


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Asked(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: AtLeastOne | None = None
    max_tokens: AtLeastOne | None = None


class Chat(_Asked, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: Conversation
    max_completion_tokens: AtLeastOne | None = None

    def answer(self, call: Call) -> Whole | Stream:
        """The assistant's message."""
        question = text_of(self.messages[-1].content)
        return _Completion(self, call, spoken(self.messages), question, self.max_completion_tokens).answer()


class Text(_Asked, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: str

    def answer(self, call: Call) -> Whole | Stream:
        """The text."""
        return _Completion(self, call, self.prompt, self.prompt, self.max_tokens or _DEFAULT_TEXT_TOKENS).answer()


class _Completion:
    def __init__(self, asked: Chat | Text, call: Call, prompt: str, question: str, cap: int | None) -> None:
        self._asked = asked
        self._is_chat = isinstance(asked, Chat)
        self._choices = asked.n or 1
        self._prompt_tokens = len(words(prompt))
        self._reply = reply(greeting(call.model), question, cap or asked.max_tokens)
        self._finish_reason = "length" if self._reply.is_cut else "stop"
        prefix = "chatcmpl" if self._is_chat else "cmpl"
        self._head = {"id": f"{prefix}-{call.id}", "created": call.created, "model": call.model}

    def answer(self) -> Whole | Stream:
        if self._asked.stream:
            return Stream(self._events())
        if self._asked.stream_options is not None:
            raise RefusedError("Stream options can only be defined when `stream=True`.", param="stream_options")
        return Whole(JSONResponse(self._document()), len(self._reply.tokens))

    def _document(self) -> dict[str, Any]:
        text = self._reply.text
        content = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        ending = {"logprobs": None, "finish_reason": self._finish_reason, "stop_reason": None}
        return {
            **self._head,
            "object": "chat.completion" if self._is_chat else "text_completion",
            "choices": [{"index": index, **content, **ending} for index in range(self._choices)],
            "usage": self._usage(len(self._reply.tokens) * self._choices),
        }

    def _events(self) -> Iterator[tuple[int, bytes]]:
        for position, chunk in self._chunks():
            yield position, data_event(chunk)
        yield len(self._reply.tokens), DONE

    def _chunks(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._is_chat:
            yield from self._step(0, 0, {"delta": {"role": "assistant", "content": ""}})
        for position, token in enumerate(self._reply.tokens):
            yield from self._step(position, position + 1, self._content(token))
        count = len(self._reply.tokens)
        yield from self._step(count, count, {**self._content(""), "stop_reason": None}, self._finish_reason)
        options = self._asked.stream_options
        if options is not None and options.include_usage:
            yield count, {**self._chunk_head(), "choices": [], "usage": self._usage(count * self._choices)}

    def _step(
        self, position: int, produced: int, content: dict[str, Any], finish_reason: str | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        options = self._asked.stream_options
        continuous = options is not None and options.include_usage and options.continuous_usage_stats
        usage = {"usage": self._usage(produced)} if continuous else {}  # of one choice, as vLLM tells it
        for index in range(self._choices):
            choice = {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}
            yield position, {**self._chunk_head(), "choices": [choice], **usage}

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk" if self._is_chat else "text_completion"}

    def _content(self, token: str) -> dict[str, Any]:
        return {"delta": {"content": token}} if self._is_chat else {"text": token}

    def _usage(self, produced: int) -> dict[str, Any]:
        total = self._prompt_tokens + produced
        return {"prompt_tokens": self._prompt_tokens, "total_tokens": total, "completion_tokens": produced}
