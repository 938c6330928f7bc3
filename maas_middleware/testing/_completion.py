"""What the simulated model is asked, and what it answers, without a word about HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

MAXIMUM_ANSWER_TOKENS = 30

_DEFAULT_TEXT_TOKENS = 16  # what /v1/completions generates unless told otherwise
_QUOTED_TOKENS = 12
_TOKEN = re.compile(r"\s*\S+")

_AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Asked(msgspec.Struct, kw_only=True):
    """What both bodies have."""

    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: _AtLeastOne | None = None
    max_tokens: _AtLeastOne | None = None


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        parts = [_Part(self.content)] if isinstance(self.content, str) else self.content or []
        return " ".join(part.text for part in parts)


class Chat(Asked, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: _AtLeastOne | None = None

    @property
    def prompt(self) -> str:
        return " ".join(message.text for message in self.messages)

    @property
    def question(self) -> str:
        return self.messages[-1].text

    @property
    def cap(self) -> int:
        return self.max_completion_tokens or self.max_tokens or MAXIMUM_ANSWER_TOKENS


class Text(Asked, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: str

    @property
    def question(self) -> str:
        return self.prompt

    @property
    def cap(self) -> int:
        return self.max_tokens or _DEFAULT_TEXT_TOKENS


class Answer:
    """The tokens that answer a request, and the documents they are sent in."""

    def __init__(self, asked: Chat | Text, model: str, request_id: str, created: int) -> None:
        self.asked = asked
        self._is_chat = isinstance(asked, Chat)
        self._choices = asked.n or 1
        self._prompt_tokens = len(_TOKEN.findall(asked.prompt))
        tokens = _reply(model, asked.question)
        self.tokens = tokens[: asked.cap]
        self._finish_reason = "stop" if len(self.tokens) == len(tokens) else "length"
        prefix = "chatcmpl" if self._is_chat else "cmpl"
        self._head = {"id": f"{prefix}-{request_id}", "created": created, "model": model}

    def document(self) -> dict[str, Any]:
        """The answer as a whole."""
        text = "".join(self.tokens)
        content = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        ending = {"logprobs": None, "finish_reason": self._finish_reason, "stop_reason": None}
        return {
            **self._head,
            "object": "chat.completion" if self._is_chat else "text_completion",
            "choices": [{"index": index, **content, **ending} for index in range(self._choices)],
            "usage": self._usage(len(self.tokens)),
        }

    def chunks(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The answer in pieces, each with the number of tokens that are before it."""
        if self._is_chat:
            yield from self._step(0, 0, {"delta": {"role": "assistant", "content": ""}})
        for position, token in enumerate(self.tokens):
            yield from self._step(position, position + 1, self._content(token))
        count = len(self.tokens)
        yield from self._step(count, count, {**self._content(""), "stop_reason": None}, self._finish_reason)
        options = self.asked.stream_options
        if options is not None and options.include_usage:
            yield count, {**self._chunk_head(), "choices": [], "usage": self._usage(count)}

    def _step(
        self, position: int, produced: int, content: dict[str, Any], finish_reason: str | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        options = self.asked.stream_options
        continuous = options is not None and options.include_usage and options.continuous_usage_stats
        usage = {"usage": self._usage(produced)} if continuous else {}
        for index in range(self._choices):
            choice = {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}
            yield position, {**self._chunk_head(), "choices": [choice], **usage}

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk" if self._is_chat else "text_completion"}

    def _content(self, token: str) -> dict[str, Any]:
        return {"delta": {"content": token}} if self._is_chat else {"text": token}

    def _usage(self, produced: int) -> dict[str, Any]:
        completion = produced * self._choices
        total = self._prompt_tokens + completion
        return {"prompt_tokens": self._prompt_tokens, "total_tokens": total, "completion_tokens": completion}


def _reply(model: str, question: str) -> list[str]:
    quoted = "".join(_TOKEN.findall(question)[:_QUOTED_TOKENS]).strip() or "nothing"
    text = f"Hello! I am {model}, a simulated model, and I am doing well. You said: {quoted}"
    return _TOKEN.findall(text)[:MAXIMUM_ANSWER_TOKENS]
