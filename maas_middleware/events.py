"""Reading a server-sent event stream while it passes: what it used, whether it is whole."""

from __future__ import annotations

import re

import msgspec

from ._event_template import EventTemplate
from .dialects import LARGE_ERROR, Dialect, StreamFormat, found_in
from .envelopes import reported_error
from .errors import MaaSError, UpstreamError
from .renaming import Renaming
from .usage import Fields, JSONScanner, TokenUsage, is_json, json_fields, read_usage, usage_of

MAXIMUM_EVENT_BYTES = 1 << 20
_UNLIKE_EACH_OTHER = 16  # so many events, and from then on only one in so many is learned from

_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")
_HAS_DATA = re.compile(rb"data:(?<=(?<![^\r\n])data:)")
_DATA = re.compile(rb"(?<![^\r\n])data:[ ]?([^\r\n]*)")
_FAILED_END = re.compile(rb'"type"\s*:\s*"response\.failed"')
_ERROR_EVENT = re.compile(rb"(?<![^\r\n])event:[ ]?error(?![^\r\n])")

_encode = msgspec.json.Encoder().encode


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
        self._dialect, self._format = dialect, dialect.stream
        self._strip = strip
        self._strip_running = strip_running
        self._renaming = Renaming(None) if renaming is None else renaming
        self._audio_tokens_per_second = audio_tokens_per_second
        self._pending = bytearray()
        self._template: EventTemplate | None = None
        self._unlike = 0  # events that the template did not match, less those that it did
        self._oversized: JSONScanner | None = None
        self._ended = self._broken = False

    @property
    def is_cut(self) -> bool:
        """Whether nothing came that ends an answer, or the last event is not whole."""
        return self._broken or (self._format is not None and not self._ended)

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes of the stream; return the events that the client is to read now, possibly none.

        Only what is larger than 1 MiB is passed on in parts. A piece that is to be read as it is is returned itself.
        """
        if self.error is not None:
            return b""
        kept = b""
        if self._pending:
            kept, piece = self._complete(piece)
        kept += self._read(piece)
        if len(self._pending) >= MAXIMUM_EVENT_BYTES:
            kept += self._give_up_event()
        return kept

    def flush(self) -> bytes:
        """End of the stream: return the last event, if only the blank line behind it is missing."""
        rest, self._pending = bytes(self._pending), bytearray()
        if self._oversized is not None:
            self._broken = not rest.rstrip().endswith(b"}")
            return self._event(rest)
        self._broken = not _is_whole(rest)
        return self._event(rest) if rest and not self._broken else b""

    def _complete(self, piece: bytes) -> tuple[bytes, bytes]:
        """Where the event that is pending ends: what is to be kept of it if it is oversized, and what is to be read."""
        searched = max(0, len(self._pending) - 3)  # an end of line may have been cut
        self._pending += piece
        if (found := _EVENT_END.search(self._pending, searched)) is None:
            return b"", b""
        piece, self._pending = bytes(self._pending), bytearray()
        return (b"", piece) if self._oversized is None else (self._event(piece[: found.end()]), piece[found.end() :])

    def _read(self, piece: bytes) -> bytes:
        """Events of a piece in front of which nothing is pending; what is no whole event is pending then."""
        parts: list[bytes] = []
        start = taken = 0
        while start < len(piece) and self.error is None:
            like = None if self._template is None else self._template.match(piece, start)
            if like is not None:
                end, usage, given = like
                if self._unlike:
                    self._unlike -= 1
                self.produced += 1
                self.events += 1
                if usage is not None:
                    self._count(usage_of({"usage": usage}, self._audio_tokens_per_second))
            elif (found := _EVENT_END.search(piece, start)) is not None:
                end = found.end()
                event = piece[start:end]
                given = self._event(event)
                given = None if given is event else given
            else:
                self._pending += piece[start:]
                break
            if given is not None:
                parts += piece[taken:start], given
                taken = end
            start = end
        rest = piece[taken:start]
        return b"".join((*parts, rest)) if parts else rest

    def _event(self, event: bytes) -> bytes:
        if self._oversized is not None or len(event) > MAXIMUM_EVENT_BYTES:
            if self._oversized is None and self._is_large_error(event):
                return b""
            return self._end_oversized(self._oversized or JSONScanner(self._audio_tokens_per_second), event)
        return self._passed(event) if self._format is None else self._judged(self._format, event)

    def _judged(self, form: StreamFormat, event: bytes) -> bytes:
        is_suspect = found_in(event, form.fails)
        if is_suspect and self._is_error(event):
            return b""
        self._ended = self._ended or found_in(event, form.ends)
        texts = len(form.content.findall(event))
        self.produced += texts
        used, events = self.usage, self.events
        given = self._passed(event)
        if texts == 1 and form.content.groups and self.events > events and not is_suspect:
            if self._unlike < _UNLIKE_EACH_OTHER or self._unlike % _UNLIKE_EACH_OTHER == 0:
                self._template = EventTemplate.of(event, given, form.content, has_usage=self.usage is not used)
            self._unlike += 1
        return given

    def _is_error(self, event: bytes) -> bool:
        self.error = _failure(event)
        self.failed |= self.error is not None or _FAILED_END.search(event) is not None
        if self.error is not None:
            self._count(read_usage(_document(event), self._audio_tokens_per_second))
        return self.error is not None

    def _passed(self, event: bytes) -> bytes:
        """What the client is to read of an event that is none of an error."""
        if _HAS_DATA.search(event) is not None:
            self.events += 1
        is_named = self._renaming.concerns(event)
        fields = json_fields(_document(event)) if is_named or b'"usage"' in event else None
        if fields is None:
            return event
        self._count(usage_of(fields, self._audio_tokens_per_second))
        changed = self._renaming.changes(fields) if is_named else {}
        shown = self._shown(fields)
        if shown is None:
            return b""
        if shown is fields and not changed:
            return event
        # a line break between two tokens would end the line of the event
        return _replace_data(event, _encode(shown | changed).replace(b"\n", b""))

    def _shown(self, fields: Fields) -> Fields | None:
        """What an untouched call would have; None where that has no such event."""
        if "usage" not in fields:
            return fields
        is_total, is_null = bytes(fields.get("choices", b"")) == b"[]", bytes(fields["usage"]) == b"null"
        if (self._strip and is_null) or (self._strip_running and not is_total):
            return {name: value for name, value in fields.items() if name != "usage"}
        return None if self._strip and is_total else fields

    def _give_up_event(self) -> bytes:
        passed = bytes(self._pending[:-3])
        if self._oversized is None and self._is_large_error(passed):
            self._pending.clear()
            return b""
        del self._pending[:-3]  # its end may have begun
        self._oversized = self._oversized or JSONScanner(self._audio_tokens_per_second)
        self._oversized.feed(passed)
        return passed

    def _is_large_error(self, event: bytes) -> bool:
        if self._format is not None and LARGE_ERROR.match(event):
            self.error, self.failed = UpstreamError(), True
        return self.error is not None

    def _end_oversized(self, scanner: JSONScanner, event: bytes) -> bytes:
        scanner.feed(event)
        self._oversized = None
        self._ended = True  # nobody knows what else was in it
        self._count(scanner.usage)
        return event

    def _count(self, usage: TokenUsage | None) -> None:
        if usage is not None and self.usage is not None and self._dialect.completes_usage:
            usage = self.usage.completed_by(usage)
        self.usage = usage or self.usage


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
