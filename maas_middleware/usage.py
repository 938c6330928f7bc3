"""Reading what an inference answer used."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

Fields = dict[str, msgspec.Raw]

_TAIL_BYTES = 16 << 10
_MAXIMUM_TOKENS = 1 << 40  # whoever reports more is not believed


class TokenUsage(msgspec.Struct, frozen=True, gc=False):
    """Tokens, as the model counted them. A usage of 0 is 0; what is not known is no TokenUsage."""

    input: int
    output: int
    total: int

    def completed_by(self, other: TokenUsage) -> TokenUsage:
        """Both together, where each may know only one side: the larger of both counts."""
        given, produced = max(self.input, other.input), max(self.output, other.output)
        return TokenUsage(given, produced, given + produced)


_Count = Annotated[int, msgspec.Meta(ge=0, le=_MAXIMUM_TOKENS)]


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    total_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    seconds: Annotated[float, msgspec.Meta(ge=0, le=_MAXIMUM_TOKENS)] | None = None


class _Inner(msgspec.Struct):
    usage: _Usage | None = None


_NULL = msgspec.Raw(b"null")
_anything = msgspec.json.Decoder(msgspec.Raw)
_objects = msgspec.json.Decoder(Fields)
_usages = msgspec.json.Decoder(_Usage | None)
_inners = msgspec.json.Decoder(_Inner | None)


def json_fields(document: bytes) -> Fields | None:
    """The fields of a JSON object, each as it is written; None where it is none."""
    try:
        return _objects.decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def read_usage(document: bytes, audio_tokens_per_second: int = 0) -> TokenUsage | None:
    """Return the `usage` of a JSON object, as `usage_of` does its fields; None where it is no object."""
    fields = json_fields(document)
    return None if fields is None else usage_of(fields, audio_tokens_per_second)


def usage_of(fields: Mapping[str, bytes | msgspec.Raw], audio_tokens_per_second: int = 0) -> TokenUsage | None:
    """Return the `usage` of an answer, or of the `response` or `message` in it; None where none makes sense.

    Anthropic's `input_tokens` do not include what was read from or written to a cache: it is added. Seconds of audio,
    where there are no tokens, are converted.
    """
    try:
        usage = _usages.decode(fields.get("usage", _NULL))
        if usage is None:
            inner = _inners.decode(fields.get("response", _NULL)) or _inners.decode(fields.get("message", _NULL))
            usage = None if inner is None else inner.usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return None if usage is None else _tokens(usage, audio_tokens_per_second)


def _tokens(usage: _Usage, audio_tokens_per_second: int) -> TokenUsage | None:
    given = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    produced = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
    if given is None and usage.total_tokens is None and usage.output_tokens is None:
        if usage.seconds is None:
            return None
        given = math.ceil(usage.seconds * audio_tokens_per_second)
    given, produced = given or 0, produced or 0
    if usage.prompt_tokens is None:  # where they stand beside `prompt_tokens` they are included
        given += (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
    total = given + produced if usage.total_tokens is None else usage.total_tokens
    return TokenUsage(given, produced, total) if given <= _MAXIMUM_TOKENS and total <= _MAXIMUM_TOKENS else None


def is_json(document: bytes) -> bool:
    """Whether an answer can be read at all."""
    try:
        _anything.decode(document)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return is_text(document)


def is_text(document: bytes) -> bool:
    """Whether it is in UTF-8, which reading JSON does not check in the values that it skips."""
    try:
        if not document.isascii():
            document.decode()
    except UnicodeDecodeError:
        return False
    return True


class JSONScanner:
    """Finds the usage of a JSON answer that passes in pieces, keeping no more than its last 16 KiB."""

    def __init__(self, audio_tokens_per_second: int = 0) -> None:
        self._tail = b""
        self._audio_tokens_per_second = audio_tokens_per_second

    def feed(self, piece: bytes) -> None:
        self._tail = (self._tail + piece)[-_TAIL_BYTES:]

    @property
    def usage(self) -> TokenUsage | None:
        """What stands behind the last `"usage":`. Inside a JSON string its quotes would be escaped."""
        found = list(re.finditer(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})', self._tail))
        if not found:
            return None
        return read_usage(b'{"usage":' + found[-1][1] + b"}", self._audio_tokens_per_second)


def usage_headers(usage: TokenUsage) -> list[tuple[bytes, bytes]]:
    """`x-odhu-usage-input-tokens`, `-output-tokens` and `-total-tokens`, for answers that are no streams."""
    return [
        (b"x-odhu-usage-input-tokens", b"%d" % usage.input),
        (b"x-odhu-usage-output-tokens", b"%d" % usage.output),
        (b"x-odhu-usage-total-tokens", b"%d" % usage.total),
    ]
