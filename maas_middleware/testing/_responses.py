"""OpenAI's Responses API: `/v1/responses`, and what vLLM has below it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from starlette.responses import JSONResponse, Response

from ._answers import Call, Stream, Whole, named_event, timeline
from ._words import AtLeastOne, Message, Reply, greeting, reply, spoken, text_of, words

Status = Literal["in_progress", "completed", "incomplete", "cancelled"]


class _Item(Message, kw_only=True):
    role: str = ""  # calls of tools and their results have none


class Responses(msgspec.Struct, kw_only=True):
    """The body of `/v1/responses`."""

    input: str | list[_Item]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: AtLeastOne | None = None
    stream: bool | None = None

    def answer(self, call: Call) -> Whole | Stream:
        """The response."""
        items = [_Item(content=self.input)] if isinstance(self.input, str) else self.input
        prompt = words(f"{self.instructions or ''} {spoken(items)}")
        question = text_of(items[-1].content) if items else ""
        said = reply(greeting(call.model), question, self.max_output_tokens)
        answer = _Answer(call, len(prompt), said, self.instructions)
        if self.stream:
            return Stream(answer.events())
        return Whole(JSONResponse(answer.document()), len(said.tokens))


def stored(call: Call, response_id: str, status: Status) -> Response:
    """A response of somebody, for whoever names its id."""
    return JSONResponse({**_document(call, status), "id": response_id})


class _Answer:
    def __init__(self, call: Call, input_tokens: int, said: Reply, instructions: str | None) -> None:
        self._call = call
        self._input_tokens = input_tokens
        self._said = said
        self._instructions = instructions
        self._status: Status = "incomplete" if said.is_cut else "completed"

    def document(self) -> dict[str, Any]:
        item = self._item(self._status, [_part(self._said.text)])
        reason = {"reason": "max_output_tokens"} if self._said.is_cut else None
        ending = {"incomplete_details": reason, "output": [item], "usage": self._usage()}
        return {**self._head(self._status), **ending}

    def events(self) -> Iterator[tuple[int, bytes]]:
        events = timeline(self._opening(), self._said.tokens, self._delta, self._closing())
        for number, (position, event) in enumerate(events):
            yield position, named_event({**event, "sequence_number": number})

    def _opening(self) -> list[dict[str, Any]]:
        item = self._item("in_progress", [])
        return [
            {"type": "response.created", "response": self._head("in_progress")},
            {"type": "response.in_progress", "response": self._head("in_progress")},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.content_part.added", **self._place(), "part": _part("")},
        ]

    def _delta(self, token: str) -> dict[str, Any]:
        return {"type": "response.output_text.delta", **self._place(), "delta": token, "logprobs": []}

    def _closing(self) -> list[dict[str, Any]]:
        text, item = self._said.text, self._item(self._status, [_part(self._said.text)])
        return [
            {"type": "response.output_text.done", **self._place(), "text": text, "logprobs": []},
            {"type": "response.content_part.done", **self._place(), "part": _part(text)},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": f"response.{self._status}", "response": self.document()},
        ]

    def _head(self, status: Status) -> dict[str, Any]:
        return {**_document(self._call, status), "instructions": self._instructions}

    def _item(self, status: Status, content: list[dict[str, Any]]) -> dict[str, Any]:
        item = {"id": f"msg_{self._call.id}", "type": "message", "role": "assistant"}
        return {**item, "status": status, "content": content}

    def _place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._call.id}", "output_index": 0, "content_index": 0}

    def _usage(self) -> dict[str, Any]:
        output_tokens = len(self._said.tokens)
        return {
            "input_tokens": self._input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._input_tokens + output_tokens,
        }


def _document(call: Call, status: Status) -> dict[str, Any]:
    return {
        "id": f"resp_{call.id}",
        "object": "response",
        "created_at": call.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": call.model,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
