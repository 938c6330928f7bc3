"""The two forms that an answer takes in every dialect, and what it needs to know of the call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from starlette.responses import JSONResponse, Response

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Call:
    """What an answer repeats of the call.

    Attributes:
        id: without the prefix that each dialect puts before it.
        created: seconds since the epoch.
    """

    model: str
    id: str
    created: int


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that is sent at once, when so many tokens are generated."""

    response: Response
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer of server-sent events as they are on the wire, each with the number of tokens that are before it."""

    events: Iterable[tuple[int, bytes]]


class Question(Protocol):
    """The body of a request, in any dialect."""

    model: str | None

    def answer(self, call: Call, /) -> Whole | Stream:
        """What the model says to it.

        Raises:
            RefusedError: if its fields do not fit each other.
        """


class RefusedError(Exception):
    """The model does not answer a request.

    Args:
        message: a sentence for the client.
        status: 400 or 404.
        param: the field that is wrong.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self._status = status
        self._param = param

    def response(self, *, is_anthropic: bool) -> Response:
        """The refusal as vLLM words it on the paths of OpenAI's dialects, or on those of Anthropic's."""
        kind = "NotFoundError" if self._status == 404 else "BadRequestError"
        error = {"type": kind, "message": str(self)}
        if is_anthropic:
            return JSONResponse({"type": "error", "error": error}, self._status)
        return JSONResponse({"error": {**error, "param": self._param, "code": self._status}}, self._status)


def timeline(
    opening: Sequence[dict[str, Any]],
    tokens: Sequence[str],
    delta: Callable[[str], dict[str, Any]],
    closing: Sequence[dict[str, Any]],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The events of a stream with one `delta` a token, each with the number of tokens that are before it."""
    yield from ((0, event) for event in opening)
    yield from ((position, delta(token)) for position, token in enumerate(tokens))
    yield from ((len(tokens), event) for event in closing)


def data_event(data: dict[str, Any]) -> bytes:
    """An event without a name."""
    return b"data: " + _encode(data) + b"\n\n"


def named_event(data: dict[str, Any]) -> bytes:
    """An event that is named after its `type`."""
    return f"event: {data['type']}\n".encode() + data_event(data)
