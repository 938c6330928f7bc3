"""Reading a server-sent event stream while it passes: what it used, whether it is whole."""

from __future__ import annotations

import re

import msgspec

from .dialects import Dialect
from .envelopes import reported_error
from .errors import MaaSError, UpstreamError
from .renaming import Renaming
from .usage import JSONScanner, TokenUsage, is_json, read_usage

MAXIMUM_EVENT_BYTES = 1 << 20

_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")
_DATA = re.compile(rb"(?<![^\r\n])data:[ ]?([^\r\n]*)")
_FAILED_END = re.compile(rb'"type"\s*:\s*"response\.failed"')
_ERROR_EVENT = re.compile(rb"(?<![^\r\n])event:[ ]?error(?![^\r\n])")

# what can be told of an event that is larger than what is held
_LARGE_ERROR = re.compile(
    rb"(?:(?!data:|event:[ ]?error[\r\n])[^\r\n]*[\r\n]+)*+"
    rb'(?:event:[ ]?error[\r\n]|data:\s*\{\s*(?:"error"\s*:\s*["{]|"(?:object|type)"\s*:\s*"error"))'
)

_encode = msgspec.json.Encoder().encode
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])


class EventScanner:
    """Reads an event stream that is cut anywhere, passes whole events on, and takes out what only we asked for.

    What comes behind an event that reports an error is not read any more.

    Args:
        dialect: what the events are.
        strip: whether usage was asked for on the client's behalf. Then the event that has nothing but usage is
            dropped, and `"usage": null` is taken out of the others.
        strip_running: whether usage in every event was asked for on the client's behalf, and is taken out of them.
        renaming: what the model is called by users.
        audio_tokens_per_second: what a second of audio is, where seconds are all that is reported.

    Attributes:
        usage: what was used so far. Running totals replace each other and are never added.
        produced: pieces of content seen, about one a token.
        error: what the model reported instead of an end, in our words.
        failed: whether the model reported an error, also as one of the regular ends of its dialect.
        events: how many events with data were passed on.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        strip: bool = False,
        strip_running: bool = False,
        renaming: Renaming | None = None,
        audio_tokens_per_second: int = 0,
    ) -> None:
        self.usage: TokenUsage | None = None
        self.produced = 0
        self.error: MaaSError | None = None
        self.failed = False
        self.events = 0
        self._dialect = dialect
        self._format = dialect.stream
        self._strip = strip
        self._strip_running = strip_running
        self._renaming = Renaming(None) if renaming is None else renaming
        self._audio_tokens_per_second = audio_tokens_per_second
        self._pending = bytearray()
        self._oversized: JSONScanner | None = None
        self._ended = False
        self._broken = False

    @property
    def is_cut(self) -> bool:
        """Whether nothing came that ends an answer, or the last event is not whole."""
        return self._broken or (self._format is not None and not self._ended)

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes of the stream; return the events that the client is to read now, possibly none.

        Only what is larger than 1 MiB is passed on in parts.
        """
        if self.error is not None:
            return b""
        kept = bytearray()
        start, searched = 0, max(0, len(self._pending) - 3)  # an end of line may have been cut
        self._pending += piece
        ends = [end.end() for end in _EVENT_END.finditer(self._pending, searched)]
        for end in ends:
            kept += self._event(bytes(self._pending[start:end]))
            start = end
            if self.error is not None:
                self._pending.clear()
                return bytes(kept)
        del self._pending[:start]
        if len(self._pending) >= MAXIMUM_EVENT_BYTES:
            kept += self._give_up_event()
        return bytes(kept)

    def flush(self) -> bytes:
        """End of the stream: return the last event, if only the blank line behind it is missing."""
        rest, self._pending = bytes(self._pending), bytearray()
        if self._oversized is not None:
            self._broken = not rest.rstrip().endswith(b"}")
            return self._event(rest)
        self._broken = not _is_whole(rest)
        return self._event(rest) if rest and not self._broken else b""

    def _give_up_event(self) -> bytes:
        passed = bytes(self._pending[:-3])
        if self._oversized is None and self._is_large_error(passed):
            self._pending.clear()
            return b""
        del self._pending[:-3]  # its end may have begun
        self._oversized = self._oversized or self._json_scanner()
        self._oversized.feed(passed)
        return passed

    def _is_large_error(self, event: bytes) -> bool:
        if self._format is not None and _LARGE_ERROR.match(event):
            self.error, self.failed = UpstreamError(), True
        return self.error is not None

    def _event(self, event: bytes) -> bytes:
        if self._oversized is not None or len(event) > MAXIMUM_EVENT_BYTES:
            if self._oversized is None and self._is_large_error(event):
                return b""
            return self._end_oversized(self._oversized or self._json_scanner(), event)
        if self._format is not None:
            is_end = self._format.ends.search(event) is not None
            if self._format.fails.search(event) is not None:
                self.error = _failure(event)
                self.failed |= self.error is not None or _FAILED_END.search(event) is not None
                if self.error is not None:
                    self._count(read_usage(_document(event), self._audio_tokens_per_second))
                    return b""
            self._ended |= is_end
            self.produced += len(self._format.content.findall(event))
        if _DATA.search(event) is not None:
            self.events += 1
        return self._renamed(self._metered(event) if b'"usage"' in event else event)

    def _renamed(self, event: bytes) -> bytes:
        document = _document(event) if b'"model"' in event else b""
        renamed = self._renaming(document)
        # a line break between two tokens would end the line of the event
        return event if renamed is document else _replace_data(event, renamed.replace(b"\n", b""))

    def _end_oversized(self, scanner: JSONScanner, event: bytes) -> bytes:
        scanner.feed(event)
        self._oversized = None
        self._ended = True  # nobody knows what else was in it
        self._count(scanner.usage)
        return event

    def _json_scanner(self) -> JSONScanner:
        return JSONScanner(self._audio_tokens_per_second)

    def _metered(self, event: bytes) -> bytes:
        document = _document(event)
        self._count(read_usage(document, self._audio_tokens_per_second))
        return self._without_usage(event, document) if self._strip or self._strip_running else event

    def _count(self, usage: TokenUsage | None) -> None:
        if usage is not None and self.usage is not None and self._dialect.completes_usage:
            usage = self.usage.completed_by(usage)
        self.usage = usage or self.usage

    def _without_usage(self, event: bytes, document: bytes) -> bytes:
        try:
            fields = _objects.decode(document)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return event
        if "usage" not in fields:
            return event
        is_total = bytes(fields.get("choices", b"0")) == b"[]"
        is_null = bytes(fields["usage"]) == b"null"
        if (self._strip and is_null) or (self._strip_running and not is_total):
            del fields["usage"]
            # a line break between two tokens would end the line of the event
            return _replace_data(event, _encode(fields).replace(b"\n", b""))
        return b"" if self._strip and is_total else event


def _document(event: bytes) -> bytes:
    lines: list[bytes] = _DATA.findall(event)
    return b"\n".join(lines)


def _failure(event: bytes) -> MaaSError | None:
    document = _document(event)
    if (error := reported_error(document)) is not None:
        return error
    return UpstreamError() if _ERROR_EVENT.search(event) or not _is_object(document) else None


def _is_object(document: bytes) -> bool:
    return document.lstrip().startswith(b"{") and is_json(document)


def _is_whole(event: bytes) -> bool:
    if document := _document(event):
        return document == b"[DONE]" or is_json(document)
    return all(line.startswith(b":") for line in event.splitlines() if line)


def _replace_data(event: bytes, document: bytes) -> bytes:
    first, *others = list(_DATA.finditer(event))
    end = others[-1].end(1) if others else first.end(1)
    return event[: first.start(1)] + document + event[end:]
