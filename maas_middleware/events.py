"""Reading a server-sent event stream while it passes: what it used, whether it is whole."""

from __future__ import annotations

import re

import msgspec

from .dialects import Dialect
from .renaming import Renaming
from .usage import JSONScanner, TokenUsage, is_json, read_usage

MAXIMUM_EVENT_BYTES = 1 << 20

_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")
_DATA = re.compile(rb"(?<![^\r\n])data:[ ]?([^\r\n]*)")

_encode = msgspec.json.Encoder().encode
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])


class EventScanner:
    """Reads an event stream that is cut anywhere, and takes out what only we asked for.

    Args:
        dialect: what the events are.
        strip: whether usage was asked for on the client's behalf. Then the event that has nothing but usage is
            dropped, and `"usage": null` is taken out of the others.
        renaming: what the model is called by users.
        audio_tokens_per_second: what a second of audio is, where seconds are all that is reported.

    Attributes:
        usage: what was used so far. Running totals replace each other and are never added.
        produced: pieces of content seen, about one a token.
        failed: whether the model reported an error.
        events: how many events there were.
        changes: whether the client reads anything else than what comes.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        strip: bool = False,
        renaming: Renaming | None = None,
        audio_tokens_per_second: int = 0,
    ) -> None:
        self.usage: TokenUsage | None = None
        self.produced = 0
        self.failed = False
        self.events = 0
        self._dialect = dialect
        self._format = dialect.stream
        self._strip = strip
        self._renaming = renaming or Renaming(None)
        self.changes = strip or bool(self._renaming)
        self._audio_tokens_per_second = audio_tokens_per_second
        self._pending = bytearray()
        self._oversized: JSONScanner | None = None
        self._began = False
        self._ended = False
        self._broken = False

    @property
    def is_cut(self) -> bool:
        """Whether a part of an answer came, but nothing that ends it; or a part of an event."""
        return self._broken or (self._began and not self._ended)

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes of the stream; return what the client is to read now, possibly nothing.

        Where nothing can have to be changed these are the bytes themselves, else whole events.
        """
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
        return bytes(kept) if self.changes else piece

    def flush(self) -> bytes:
        """End of the stream: read and return what is left of an event that was not ended by a blank line."""
        rest, self._pending = bytes(self._pending), bytearray()
        self._broken = not (_is_whole(rest) if self._oversized is None else rest.rstrip().endswith(b"}"))
        kept = self._event(rest) if rest else b""
        return kept if self.changes else b""

    def _give_up_event(self) -> bytes:
        passed = bytes(self._pending[:-3])
        del self._pending[:-3]  # its end may have begun
        self._oversized = self._oversized or self._json_scanner()
        self._oversized.feed(passed)
        return passed

    def _event(self, event: bytes) -> bytes:
        self.events += 1
        if self._oversized is not None or len(event) > MAXIMUM_EVENT_BYTES:
            return self._end_oversized(self._oversized or self._json_scanner(), event)
        if self._format is not None:
            self._began |= self._format.begins.search(event) is not None
            self._ended |= self._format.ends.search(event) is not None
            self.failed |= self._format.fails.search(event) is not None
            self.produced += len(self._format.content.findall(event))
        return self._renaming(self._metered(event) if b'"usage"' in event else event)

    def _end_oversized(self, scanner: JSONScanner, event: bytes) -> bytes:
        scanner.feed(event)
        self._oversized = None
        self._ended = True  # nobody knows what else was in it
        self._count(scanner.usage)
        return event

    def _json_scanner(self) -> JSONScanner:
        return JSONScanner(self._audio_tokens_per_second)

    def _metered(self, event: bytes) -> bytes:
        lines: list[bytes] = _DATA.findall(event)
        document = b"\n".join(lines)
        self._count(read_usage(document, self._audio_tokens_per_second))
        return self._without_usage(event, document) if self._strip else event

    def _count(self, usage: TokenUsage | None) -> None:
        if usage is not None and self.usage is not None and self._dialect.completes_usage:
            usage = self.usage.completed_by(usage)
        self.usage = usage or self.usage

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


def _is_whole(event: bytes) -> bool:
    data: list[bytes] = _DATA.findall(event)
    document = b"\n".join(data)
    if data:
        return document == b"[DONE]" or is_json(document)
    return all(line.startswith(b":") for line in event.splitlines() if line)


def _replace_data(event: bytes, document: bytes) -> bytes:
    first, *others = list(_DATA.finditer(event))
    end = others[-1].end(1) if others else first.end(1)
    return event[: first.start(1)] + document + event[end:]
