"""The dialects that endpoints speak: what an answer may come to, how its stream begins and ends, how errors look."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

ErrorFormat = Literal["openai", "anthropic", "responses"]


Patterns = tuple[re.Pattern[bytes], ...]

_ERROR = rb'"error"\s*:\s*(?!null)[^\s]'


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """How the events of an answer are told apart, by patterns that match anywhere in one event.

    Inside of JSON text quotes are escaped, so that nothing that a model says can look like one of these.

    Attributes:
        ends: nothing more is to come; without such an event the stream was cut.
        fails: perhaps the model reports an error.
        content: one match for each piece of content, about a token. Its group, if it has one, begins the JSON text
            that is the content.
    """

    ends: Patterns
    fails: Patterns
    content: re.Pattern[bytes]


def found_in(event: bytes, patterns: Patterns) -> bool:
    """Whether one of them matches anywhere."""
    # one by one: each is looked for by how it begins, which many at once have not in common
    for pattern in patterns:  # noqa: SIM110 - any() is half as fast
        if pattern.search(event):
            return True
    return False


def _field(name: bytes) -> bytes:
    # only where a line begins, which may end in LF, CR or both; a pattern that begins with a letter is the faster one
    return name + rb":(?<=(?<![^\r\n])" + name + rb":)[ ]?"


def _stream(*, ends: tuple[bytes, ...], fails: tuple[bytes, ...], content: bytes) -> StreamFormat:
    ends = (_field(b"data") + rb"\[DONE\]", *ends)
    return StreamFormat(tuple(map(re.compile, ends)), tuple(map(re.compile, fails)), re.compile(content))


def _type(name: bytes) -> bytes:
    return rb'"type"\s*:\s*"' + name + rb'"'


def _event(name: bytes) -> bytes:
    return _field(b"event") + name + rb"(?![^\r\n])"


def _own_type(name: bytes) -> tuple[bytes, ...]:
    # the Responses API repeats objects of the request, in which users may write anything
    name = rb"(?:" + name + rb")"
    return _event(name), _field(b"data") + rb"\{\s*" + _type(name), _type(name) + rb"\s*\}\s*\Z"


def _failure(name: bytes) -> tuple[bytes, ...]:
    return *_own_type(name), _field(b"data") + rb"\{\s*" + _ERROR


# what can be told of an event, of any dialect, of which only the beginning is held
LARGE_ERROR = re.compile(
    rb"(?:(?!data:|event:[ ]?error[\r\n])[^\r\n]*[\r\n]+)*+"
    rb'(?:event:[ ]?error[\r\n]|data:\s*\{\s*(?:"error"\s*:\s*["{]|"(?:object|type)"\s*:\s*"error"))'
)

# vLLM up to 0.10 has the fields of an error at the top level
_ERROR_OBJECT = (_event(rb"error"), _ERROR, rb'"object"\s*:\s*"error"')

_CHOICES = _stream(
    ends=(rb'"finish_reason"\s*:\s*"',),
    fails=_ERROR_OBJECT,
    content=rb'"(?:content|text|reasoning_content|reasoning|refusal|arguments)"\s*:\s*"([^"])',
)
_BLOCKS = _stream(
    ends=(_type(rb"message_stop"),),
    fails=_failure(rb"error"),
    content=rb'"(?:text|thinking|partial_json)"\s*:\s*"([^"])',
)
_ITEMS = _stream(
    ends=_own_type(rb"response\.(?:completed|incomplete|failed|cancelled)"),
    fails=_failure(rb"error|response\.failed"),
    content=_type(rb"response\.[a-z_.]+\.delta"),
)
_TRANSCRIPT = _stream(
    ends=(rb'"finish_reason"\s*:\s*"', _type(rb"transcript\.text\.done")),
    fails=_ERROR_OBJECT,
    content=rb'"(?:content|delta)"\s*:\s*"([^"])',
)
_MEDIA = _stream(
    ends=(_type(rb"(?:speech\.audio\.done|image_generation\.completed|image_edit\.completed)"),),
    fails=_failure(rb"error"),
    content=_type(rb"[a-z_.]+\.(?:delta|partial_image)"),
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """A way to ask a model and to be answered.

    Attributes:
        name: what people call it.
        output_tokens: what an answer is taken for whose request names no cap; 0 where nothing is generated.
        cap: the field by which a request is given a cap; None where it cannot have one.
        is_form: whether requests are multipart forms instead of JSON objects.
        asks_for_usage: whether a stream tells its usage only where `stream_options.include_usage` asks for it.
        completes_usage: whether the usages of one stream complete each other; else the last one is the whole.
        errors: the shape of errors.
        stream: None where no answer is a stream.
        is_json_only: whether an answer that is no stream has to be JSON.
    """

    name: str
    output_tokens: int = 0
    cap: str | None = None
    is_form: bool = False
    asks_for_usage: bool = False
    completes_usage: bool = False
    errors: ErrorFormat = "openai"
    stream: StreamFormat | None = None
    is_json_only: bool = False


CHAT = Dialect("chat", 512, "max_tokens", asks_for_usage=True, stream=_CHOICES, is_json_only=True)
COMPLETIONS = Dialect("completions", 512, "max_tokens", asks_for_usage=True, stream=_CHOICES, is_json_only=True)
MESSAGES = Dialect(
    "messages", 512, "max_tokens", completes_usage=True, errors="anthropic", stream=_BLOCKS, is_json_only=True
)
RESPONSES = Dialect("responses", 512, "max_output_tokens", errors="responses", stream=_ITEMS, is_json_only=True)
EMBEDDINGS = Dialect("embeddings")
RERANK = Dialect("rerank", is_json_only=True)
POOLING = Dialect("pooling")
TOKENIZE = Dialect("tokenize")
COUNT_TOKENS = Dialect("count tokens", errors="anthropic")
TRANSCRIPTION = Dialect("transcription", 512, is_form=True, stream=_TRANSCRIPT)
SPEECH = Dialect("speech", stream=_MEDIA)
IMAGES = Dialect("images", 1024, stream=_MEDIA, is_json_only=True)
# a request to `/invocations` may be in many of them: where nobody finds out which it is, it is taken for a generation
INVOCATION = Dialect("invocation", 512, "max_tokens", asks_for_usage=True, stream=_CHOICES)
IMAGE_FORM = Dialect("images", 1024, is_form=True, stream=_MEDIA, is_json_only=True)
