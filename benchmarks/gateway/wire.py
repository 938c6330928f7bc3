"""What is asked and answered: an OpenAI chat completion of 1 KB, or a stream of so many chunks."""

from __future__ import annotations

import json
import re
from functools import cache

from msgspec import Struct

MODEL = "benchmark"
PATH = "/v1/chat/completions"
ANSWER_BYTES = 1024
DONE = b"data: [DONE]\n\n"

_WANTED = re.compile(rb"(\d+) chunks of (\d+) bytes, one every (\d+) ms")
_USAGE = {"prompt_tokens": 12, "completion_tokens": 100, "total_tokens": 112}
_LETTERS = "abcdefghij"
_COMMON = {"id": "chatcmpl-1", "created": 1, "model": MODEL}
_ASKS_FOR_USAGE = re.compile(rb'"include_usage":\s*true')


class Stream(Struct, frozen=True):
    """What a request asks the upstream for, in the words of its prompt: every proxy passes them on.

    Attributes:
        chunks, size: how many events with text, and the bytes of each.
        every: milliseconds between two of them; 0 is as fast as can be.
    """

    chunks: int
    size: int = 200
    every: int = 0


def request(stream: Stream | None, authorization: str | None) -> bytes:
    """A whole HTTP request; the client does not ask for the usage of a stream."""
    prompt = "Hello, how are you?"
    if stream is not None:
        prompt = f"Send {stream.chunks} chunks of {stream.size} bytes, one every {stream.every} ms."
    message = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 100}
    body = json.dumps({**message, "stream": stream is not None}).encode()
    given = f"authorization: Bearer {authorization}\r\n" if authorization else ""
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\n{given}accept: */*\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def wanted(asked: bytes) -> Stream | None:
    """Read a request: None asks for a single answer."""
    found = _WANTED.search(asked)
    return None if found is None else Stream(*map(int, found.groups()))


def asks_for_usage(asked: bytes) -> bool:
    return _ASKS_FOR_USAGE.search(asked) is not None


@cache
def answer() -> bytes:
    """The body of a single answer."""
    return _padded(ANSWER_BYTES, "chat.completion", {"message": {"role": "assistant"}}, "message", "a", usage=_USAGE)


@cache
def text_event(size: int, number: int = 0) -> bytes:
    """One event with text, of so many bytes; ten differ, for LiteLLM breaks off where a model repeats itself."""
    letter = _LETTERS[number]
    return b"data: " + _padded(size - 8, "chat.completion.chunk", {"delta": {}}, "delta", letter) + b"\n\n"


def text_events(stream: Stream, count: int) -> bytes:
    """So many events with text from the beginning of a stream."""
    some = b"".join(text_event(stream.size, number) for number in range(len(_LETTERS)))
    return (some * (count // len(_LETTERS) + 1))[: count * stream.size]


@cache
def last_events(with_usage: bool) -> bytes:
    """What follows the text of a stream."""
    common = {**_COMMON, "object": "chat.completion.chunk"}
    end = _event({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    usage = _event({**common, "choices": [], "usage": _USAGE}) if with_usage else b""
    return end + usage + DONE


@cache
def whole_body(stream: Stream | None) -> bytes:
    """What the client has to read in all."""
    return answer() if stream is None else text_events(stream, stream.chunks) + last_events(False)


def _event(document: object) -> bytes:
    return b"data: " + _compact(document) + b"\n\n"


def _compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _padded(size: int, kind: str, choice: dict[str, dict[str, str]], part: str, letter: str, **more: object) -> bytes:
    """A document with a text as long as makes it `size` bytes."""

    def with_text(text: str) -> bytes:
        choices = [{"index": 0, part: {**choice[part], "content": text}, "finish_reason": None}]
        return _compact({**_COMMON, "object": kind, "choices": choices, **more})

    return with_text(letter * (size - len(with_text(""))))
