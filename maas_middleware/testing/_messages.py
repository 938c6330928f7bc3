"""Anthropic's dialect: `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from starlette.responses import JSONResponse

from ._answers import Call, Stream, Whole, named_event, timeline
from ._words import AtLeastOne, Content, Conversation, Reply, greeting, reply, spoken, text_of, words


class CountTokens(msgspec.Struct, kw_only=True):
    """The body of `/v1/messages/count_tokens`."""

    model: str | None = None
    system: Content = None
    messages: Conversation

    @property
    def input_tokens(self) -> int:
        """The tokens of the system prompt and of all messages."""
        return len(words(f"{text_of(self.system)} {spoken(self.messages)}"))

    def answer(self, _call: Call) -> Whole | Stream:
        """How many tokens the messages are."""
        return Whole(JSONResponse({"input_tokens": self.input_tokens}))


class Messages(CountTokens, kw_only=True):
    """The body of `/v1/messages`."""

    max_tokens: AtLeastOne
    stream: bool | None = None

    def answer(self, call: Call) -> Whole | Stream:
        """The assistant's message."""
        said = reply(greeting(call.model), text_of(self.messages[-1].content), self.max_tokens)
        if self.stream:
            return Stream(self._events(call, said))
        content = [{"type": "text", "text": said.text}]
        message = {**_message(call), "content": content, **_ending(said), "usage": self._usage(len(said.tokens))}
        return Whole(JSONResponse(message), len(said.tokens))

    def _events(self, call: Call, said: Reply) -> Iterator[tuple[int, bytes]]:
        beginning = {**_message(call), "content": [], "stop_reason": None, "stop_sequence": None}
        opening: list[dict[str, Any]] = [
            {"type": "message_start", "message": {**beginning, "usage": self._usage(0)}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        ]
        closing: list[dict[str, Any]] = [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": _ending(said), "usage": self._usage(len(said.tokens))},
            {"type": "message_stop"},
        ]
        for position, event in timeline(opening, said.tokens, _delta, closing):
            yield position, named_event(event)

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        return {"input_tokens": self.input_tokens, "output_tokens": output_tokens}


def _message(call: Call) -> dict[str, Any]:
    return {"id": f"msg_{call.id}", "type": "message", "role": "assistant", "model": call.model}


def _ending(said: Reply) -> dict[str, Any]:
    return {"stop_reason": "max_tokens" if said.is_cut else "end_turn", "stop_sequence": None}


def _delta(token: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": token}}
