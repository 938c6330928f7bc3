"""Event streams as servers send them, and what is in them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from maas_middleware.dialects import CHAT, COMPLETIONS, IMAGES, MESSAGES, RESPONSES, SPEECH, TRANSCRIPTION, Dialect
from maas_middleware.endpoints import ENDPOINTS
from maas_middleware.usage import TokenUsage

Event = tuple[dict[str, str], object]

_FOLDER = Path(__file__).parent
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r|\Z")

# where a server reports seconds of audio instead of tokens
TOKENS_PER_SECOND = 10


@dataclass(frozen=True, slots=True)
class Recording:
    """What a server streams.

    Attributes:
        name: of the file. Chat and completions have two: `NAME.asked.sse` where usage was asked for, and
            `NAME.plain.sse` where it was not.
        usage: what it tells of its usage; None: nothing.
        produced: pieces of content.
        end: what the first event has in it by which the answer is whole, or is known to have failed.
        failed: whether the model reports an error.
        is_error: whether an event of its own reports it, in place of an end.
        puts_null: whether usage is null in all chunks but one only because it was asked for.
    """

    name: str
    usage: TokenUsage | None
    produced: int
    end: bytes
    dialect: Dialect = CHAT
    failed: bool = False
    is_error: bool = False
    puts_null: bool = False

    @property
    def path(self) -> str:
        """Where it is asked for."""
        return next(endpoint.path for endpoint in ENDPOINTS if endpoint.dialect is self.dialect)

    @property
    def asked(self) -> bytes:
        """What it streams where usage was asked for, if that can be asked for."""
        return self._read("asked")

    @property
    def plain(self) -> bytes:
        """What it streams to a client that asks for nothing."""
        return self._read("plain")

    def given(self, stream: bytes) -> bytes:
        """What users are to read of it: everything, or everything before the event that reports an error."""
        if not self.is_error:
            return stream
        return whole_events(stream, stream.index(self.end))

    def _read(self, kind: str) -> bytes:
        name = f"{self.name}.{kind}" if self.dialect.asks_for_usage else self.name
        return (_FOLDER / f"{name}.sse").read_bytes()


STOPPED = b'"finish_reason":"stop"'

CHATS = (
    Recording("vllm", TokenUsage(11, 5, 16), 5, STOPPED),
    Recording("vllm-completions", TokenUsage(2, 3, 5), 3, b'"finish_reason":"length"', COMPLETIONS),
    Recording("vllm-keep-alive", TokenUsage(40, 9, 49), 3, b'"finish_reason":"tool_calls"'),
    Recording("vllm-multibyte", TokenUsage(7, 12, 19), 4, STOPPED),
    Recording("vllm-two-choices", TokenUsage(6, 3, 9), 3, STOPPED),
    Recording("vllm-error", None, 1, b'"error":', failed=True, is_error=True),
    Recording("vllm-old-error", None, 1, b'"object":"error"', failed=True, is_error=True),
    Recording("only-error", None, 0, b'"error":', failed=True, is_error=True),
    Recording("transformers", TokenUsage(21, 2, 23), 2, STOPPED),
    Recording("llama-cpp", None, 2, b'"finish_reason": "stop"'),
    Recording("unended", TokenUsage(4, 2, 6), 1, STOPPED),
    Recording("openai", TokenUsage(9, 1, 10), 1, STOPPED, puts_null=True),
    Recording("azure", TokenUsage(9, 1, 10), 1, STOPPED, puts_null=True),
    Recording("litserve", TokenUsage(3, 2, 5), 2, STOPPED, puts_null=True),
    Recording("crlf", TokenUsage(5, 3, 8), 3, b"[DONE]", puts_null=True),
    Recording("cr", TokenUsage(5, 3, 8), 3, b"[DONE]", puts_null=True),
    Recording("no-space", TokenUsage(5, 3, 8), 3, b"[DONE]", puts_null=True),
    Recording("multi-line", TokenUsage(5, 3, 8), 3, b"[DONE]", puts_null=True),
)
# a server that puts running usage into every chunk where it was asked for; nobody knows what it would have sent else
CONTINUOUS = Recording("vllm-continuous", TokenUsage(11, 5, 16), 5, STOPPED)

_WHOLE_MESSAGE = b'"type":"message_stop"'
_WHOLE_RESPONSE = b'"type":"response.completed"'
_WHOLE_TRANSCRIPT = b'"type":"transcript.text.done"'
_ERROR = b'"type":"error"'

OTHERS = (
    Recording("messages.anthropic", TokenUsage(115, 6, 121), 2, _WHOLE_MESSAGE, MESSAGES),
    Recording("messages.vllm", TokenUsage(12, 3, 15), 3, _WHOLE_MESSAGE, MESSAGES),
    Recording("messages.thinking", TokenUsage(20, 9, 29), 3, _WHOLE_MESSAGE, MESSAGES),
    Recording("messages.tool", TokenUsage(31, 17, 48), 4, _WHOLE_MESSAGE, MESSAGES),
    Recording("messages.error", TokenUsage(8, 1, 9), 1, _ERROR, MESSAGES, failed=True, is_error=True),
    Recording("messages.only-error", None, 0, _ERROR, MESSAGES, failed=True, is_error=True),
    Recording("responses.openai", TokenUsage(9, 4, 13), 3, _WHOLE_RESPONSE, RESPONSES),
    Recording("responses.incomplete", TokenUsage(6, 2, 8), 2, b'"type":"response.incomplete"', RESPONSES),
    Recording("responses.failed", TokenUsage(7, 1, 8), 1, b'"type":"response.failed"', RESPONSES, failed=True),
    Recording("responses.function-call", TokenUsage(44, 12, 56), 2, _WHOLE_RESPONSE, RESPONSES),
    Recording("responses.vllm-reasoning", TokenUsage(13, 5, 18), 3, _WHOLE_RESPONSE, RESPONSES),
    Recording("responses.error", None, 1, _ERROR, RESPONSES, failed=True, is_error=True),
    Recording("responses.only-error", None, 0, b'"error":', RESPONSES, failed=True, is_error=True),
    Recording("transcription.openai", TokenUsage(14, 5, 19), 3, _WHOLE_TRANSCRIPT, TRANSCRIPTION),
    Recording("transcription.duration", TokenUsage(33, 0, 33), 2, _WHOLE_TRANSCRIPT, TRANSCRIPTION),
    Recording("transcription.vllm", None, 3, STOPPED, TRANSCRIPTION),
    Recording("transcription.vllm-usage", TokenUsage(108, 4, 112), 3, STOPPED, TRANSCRIPTION),
    Recording("transcription.error", None, 1, b'"error":', TRANSCRIPTION, failed=True, is_error=True),
    Recording("images.generation", TokenUsage(16, 272, 288), 2, b'"type":"image_generation.completed"', IMAGES),
    Recording("images.edit", TokenUsage(212, 272, 484), 2, b'"type":"image_edit.completed"', IMAGES),
    Recording("images.error", None, 1, _ERROR, IMAGES, failed=True, is_error=True),
    Recording("speech.openai", TokenUsage(14, 101, 115), 2, b'"type":"speech.audio.done"', SPEECH),
)
RECORDINGS = (*CHATS, CONTINUOUS, *OTHERS)


def boundaries(stream: bytes) -> list[tuple[int, int]]:
    """The places at which an event has its whole text, and those at which it has its blank line too."""
    return [boundary.span() for boundary in _BOUNDARY.finditer(stream)]


def whole_events(stream: bytes, cut: int) -> bytes:
    """The events that a stream has with their blank lines before it is cut."""
    return stream[: max((end for _, end in boundaries(stream) if end <= cut), default=0)]


def events(stream: bytes) -> list[Event]:
    """Read a stream as the WHATWG's event stream interpretation does, except that the last event need not be ended."""
    found: list[Event] = []
    fields: dict[str, str] = {}
    data: list[str] = []
    for line in [*re.split("\r\n|\n|\r", stream.decode()), ""]:
        name, _, value = line.partition(":")
        if line == "" and data:
            text = "\n".join(data)
            found.append((fields, text if text == "[DONE]" else json.loads(text)))
            fields, data = {}, []
        elif name == "data":
            data.append(value.removeprefix(" "))
        elif name:
            fields[name] = value.removeprefix(" ")
    return found


def without_null_usage(event: Event) -> Event:
    """The same event where nothing says `"usage": null`."""
    fields, data = event
    if isinstance(data, dict) and data.get("usage", 0) is None:
        data = {key: value for key, value in data.items() if key != "usage"}
    return fields, data
