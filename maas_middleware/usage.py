"""Reading what an inference answer used, from JSON bodies and from event streams."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

MAXIMUM_EVENT_BYTES = 1 << 20
_TAIL_BYTES = 16 << 10

_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")
_DATA = re.compile(rb"(?<![^\r\n])data:[ ]?([^\r\n]*)")
_ENDING = re.compile(rb'^data:[ ]?\[DONE\]|"finish_reason"\s*:\s*"|"error"\s*:', re.MULTILINE)
_CONTENT = re.compile(rb'"(?:content|text|reasoning_content|reasoning|refusal|arguments)"\s*:\s*"[^"]')

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens, as the model counted them. A usage of 0 is 0; what is not known is no TokenUsage."""

    input: int
    output: int
    total: int


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


_answers = msgspec.json.Decoder(_Answer)
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_usage(document: bytes) -> TokenUsage | None:
    """Return the `usage` at the top level of a JSON object; None where there is none that makes sense."""
    try:
        usage = _answers.decode(document).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if usage is None or (usage.prompt_tokens is None and usage.total_tokens is None):
        return None
    given, produced = usage.prompt_tokens or 0, usage.completion_tokens or 0
    total = given + produced if usage.total_tokens is None else usage.total_tokens
    return None if min(given, produced, total) < 0 else TokenUsage(given, produced, total)


def is_json(document: bytes) -> bool:
    """Whether an answer can be read at all."""
    try:
        document.decode()
        _answers.decode(document)
    except msgspec.ValidationError:
        return True  # of another shape
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


class JSONScanner:
    """Finds the usage of a JSON answer that passes in pieces, keeping no more than its last 16 KiB."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, piece: bytes) -> None:
        self._tail = (self._tail + piece)[-_TAIL_BYTES:]

    @property
    def usage(self) -> TokenUsage | None:
        """What stands behind the last `"usage":`. Inside a JSON string its quotes would be escaped."""
        found = list(re.finditer(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})', self._tail))
        return read_usage(b'{"usage":' + found[-1][1] + b"}") if found else None


class EventScanner:
    """Reads usage out of a server-sent event stream that is cut anywhere, and takes out what only we asked for.

    Args:
        strip: whether usage was asked for on the client's behalf. Then `feed` returns whole events without it: the
            event that has nothing but usage is dropped, and `"usage": null` is taken out of the others. Otherwise
            it returns the bytes untouched.

    Attributes:
        usage: the last usage seen. Running totals replace each other and are never added.
        produced: pieces of content seen, about one a token.
    """

    def __init__(self, *, strip: bool) -> None:
        self.usage: TokenUsage | None = None
        self.produced = 0
        self._strip = strip
        self._pending = bytearray()
        self._oversized = False
        self._began = False
        self._ended = False

    @property
    def is_cut(self) -> bool:
        """Whether there were choices, but neither `[DONE]`, nor a `finish_reason`, nor an error."""
        return self._began and not self._ended

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes of the stream; return what the client is to read now, possibly nothing."""
        kept = bytearray()
        start, searched = 0, max(0, len(self._pending) - 3)  # an end of line may have been cut
        self._pending += piece
        ends = [end.end() for end in _EVENT_END.finditer(self._pending, searched)]
        for end in ends:
            kept += self._event(bytes(self._pending[start:end]))
            start = end
        del self._pending[:start]
        if len(self._pending) >= MAXIMUM_EVENT_BYTES:
            kept += self._give_up_event()
        return bytes(kept) if self._strip else piece

    def flush(self) -> bytes:
        """End of the stream: read and return what is left of an event that was not ended by a blank line."""
        rest, self._pending = bytes(self._pending), bytearray()
        kept = self._event(rest)
        return kept if self._strip else b""

    def _give_up_event(self) -> bytes:
        passed = bytes(self._pending[:-3])
        del self._pending[:-3]  # its end may have begun
        self._oversized = True
        return passed

    def _event(self, event: bytes) -> bytes:
        if self._oversized or len(event) > MAXIMUM_EVENT_BYTES:
            self._oversized = False
            self._ended = True  # nobody knows what was in it
            return event
        self._began |= b'"choices"' in event
        self._ended |= _ENDING.search(event) is not None
        self.produced += len(_CONTENT.findall(event))
        return self._metered(event) if b'"usage"' in event else event

    def _metered(self, event: bytes) -> bytes:
        lines: list[bytes] = _DATA.findall(event)
        document = b"\n".join(lines)
        if (usage := read_usage(document)) is not None:
            self.usage = usage
        return self._without_usage(event, document) if self._strip else event

    def _without_usage(self, event: bytes, document: bytes) -> bytes:
        try:
            fields = _objects.decode(document)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return event
        if bytes(fields.get("usage", b"0")) == b"null":
            del fields["usage"]
            # a line break between two tokens would end the line of the event
            return _replace_data(event, _encode(fields).replace(b"\n", b""))
        if bytes(fields.get("choices", b"0")) == b"[]" and "usage" in fields:
            return b""
        return event


def _replace_data(event: bytes, document: bytes) -> bytes:
    first, *others = list(_DATA.finditer(event))
    end = others[-1].end(1) if others else first.end(1)
    return event[: first.start(1)] + document + event[end:]


def usage_headers(usage: TokenUsage) -> list[tuple[bytes, bytes]]:
    """`x-odhu-usage-input-tokens`, `-output-tokens` and `-total-tokens`, for answers that are no streams."""
    pairs: list[tuple[str, Any]] = [("input", usage.input), ("output", usage.output), ("total", usage.total)]
    return [(f"x-odhu-usage-{name}-tokens".encode(), b"%d" % count) for name, count in pairs]
