"""Parsing of responses without any input or output: bytes in; a head, pieces of a body and its end out.

llhttp is strict since httptools 0.6.4. What it lets pass is refused here: versions and status codes that there are not,
empty lines in front, control characters in the reason, any transfer coding but chunked alone, and endless overhead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import httptools
import httpx

from ._fields import LENGTH, TEXT, Fields, connection_options, framing_fields

MAXIMUM_HEAD_BYTES = 64 * 1024
MAXIMUM_FIELDS = 256
MAXIMUM_INTERIM_RESPONSES = 16
# chunk lines and trailers: bytes beyond so many for each byte of the body
MAXIMUM_EXCESS_BYTES = 16 * 1024
_OVERHEAD_OF_A_BYTE = 16
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-5][0-9][0-9])(?: (" + TEXT + rb"))?\r\n")


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a final response, its fields as they came."""

    version: bytes
    status: int
    reason: bytes
    fields: Fields


class ResponseParser:
    """Parses the response to one request.

    Args:
        has_body: whether a response to the request may have a body, as none to HEAD has.
        keep_alive: whether the request lets the connection be used again.

    Attributes:
        head: of the final response, as soon as it is whole; interim ones are skipped.
        pieces: of the body, until they are taken.
        buffered: bytes in `pieces`.
        is_complete: the whole response was parsed.
        keep_alive: whether the connection may be used again, once the response is complete.
    """

    __slots__ = (
        *("_callbacks", "_excess", "_has_body", "_interim", "_is_chunked", "_llhttp", "_received", "_remaining"),
        *("buffered", "head", "is_complete", "keep_alive", "pieces"),
    )

    def __init__(self, *, has_body: bool, keep_alive: bool) -> None:
        self.head: ResponseHead | None = None
        self.pieces: list[bytes] = []
        self.buffered = 0
        self.is_complete = False
        self.keep_alive = keep_alive
        self._has_body = has_body
        self._is_chunked = False
        self._remaining: int | None = None  # bytes of a body whose length is known
        self._excess = 0
        self._interim = 0
        self._expect_head()

    def feed(self, data: bytes) -> None:
        """Parse what was received.

        Raises:
            httpx.RemoteProtocolError: it is no response, or one that could be read in two ways (RFC 9112).
        """
        while self.head is None and data:
            data = self._feed_head(data)
        if not data:
            return
        if self.is_complete:
            self.keep_alive = False  # nobody asked for more
        elif self._is_chunked:
            self._feed_chunks(data)
        elif self._remaining is not None:
            self._feed_counted(data, self._remaining)
        else:
            self._add(data)

    def feed_eof(self) -> None:
        """Parse the end of the connection, which ends a response that has no other end.

        Raises:
            httpx.RemoteProtocolError: the response is not complete.
        """
        if self.head is None:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        if self._is_chunked or self._remaining is not None:
            raise httpx.RemoteProtocolError("Server disconnected without sending the whole body.")
        self.is_complete = True

    def take(self) -> bytes:
        """Take the body away as far as it was parsed."""
        body = b"".join(self.pieces)
        self.pieces.clear()
        self.buffered = 0
        return body

    def _expect_head(self) -> None:
        self._received = b""
        self._callbacks = _Callbacks()
        self._llhttp = httptools.HttpResponseParser(self._callbacks)

    def _feed_head(self, data: bytes) -> bytes:
        known = len(self._received)
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if len(head) > MAXIMUM_HEAD_BYTES:
            raise httpx.RemoteProtocolError("The head of the response is too long")
        if not end:
            self._execute(data)
            return b""
        head += end
        line = _STATUS_LINE.match(head)
        if line is None or line[2] == b"101":
            raise httpx.RemoteProtocolError("Illegal status line")
        self._execute(head[known:])
        if line[2] < b"200":
            self._skip_interim()
        else:
            self._end_head(line[1], int(line[2]), line[3] or b"")
        return rest

    def _skip_interim(self) -> None:
        self._interim += 1
        if self._interim > MAXIMUM_INTERIM_RESPONSES:
            raise httpx.RemoteProtocolError("Too many interim responses")
        self._expect_head()

    def _end_head(self, version: bytes, status: int, reason: bytes) -> None:
        self._received = b""  # a stream may last for hours
        fields, self._callbacks.fields = self._callbacks.fields, []  # trailers are dropped
        if len(fields) > MAXIMUM_FIELDS:
            raise httpx.RemoteProtocolError("The response has too many headers")
        framing = framing_fields(fields)
        options = connection_options(framing)
        is_lasting = b"close" not in options and (version == b"1.1" or b"keep-alive" in options)
        self._frame_body(framing, version)
        if not self._has_body or status in (204, 304) or self._remaining == 0:
            self.is_complete = True
        elif not self._is_chunked and self._remaining is None:
            is_lasting = False
        self.keep_alive = self.keep_alive and is_lasting
        self.head = ResponseHead(version, status, reason, fields)

    def _frame_body(self, framing: dict[bytes, bytes], version: bytes) -> None:
        length, coding = framing.get(b"content-length"), framing.get(b"transfer-encoding")
        if coding is not None:
            if coding.lower() != b"chunked" or version == b"1.0":
                raise httpx.RemoteProtocolError("Unknown transfer coding")
            self._is_chunked = True
        elif length is not None:
            if LENGTH.fullmatch(length) is None:
                raise httpx.RemoteProtocolError("Illegal content length")
            self._remaining = int(length)

    def _feed_counted(self, data: bytes, remaining: int) -> None:
        if len(data) > remaining:
            data, self.keep_alive = data[:remaining], False
        self._add(data)
        self._remaining = remaining - len(data)
        self.is_complete = self._remaining == 0

    def _feed_chunks(self, data: bytes) -> None:
        # the last byte apart: if the response is complete without it, something follows that nobody asked for
        view = memoryview(data)
        self._execute(view[:-1])
        if self._callbacks.is_complete:
            self.keep_alive = False
        else:
            self._execute(view[-1:])
        self.is_complete = self._callbacks.is_complete
        body = b"".join(self._callbacks.pieces)
        self._callbacks.pieces.clear()
        self._excess = max(0, self._excess + len(data) - len(body) * (1 + _OVERHEAD_OF_A_BYTE))
        if self._excess > MAXIMUM_EXCESS_BYTES:
            raise httpx.RemoteProtocolError("Too much around the chunks of the body")
        if body:
            self._add(body)

    def _add(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.buffered += len(piece)

    def _execute(self, data: bytes | memoryview) -> None:
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserError:
            # what follows a complete response is no part of it
            if not (self._is_chunked and self._callbacks.is_complete):
                raise httpx.RemoteProtocolError("Illegal response") from None


class _SecondMessage(Exception):
    """Stops llhttp behind the first."""


class _Callbacks:
    """What llhttp calls."""

    __slots__ = ("fields", "is_complete", "on_body", "pieces")

    def __init__(self) -> None:
        self.fields: Fields = []
        self.pieces: list[bytes] = []
        self.is_complete = False
        self.on_body = self.pieces.append

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise _SecondMessage

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.rstrip(b" \t")))

    def on_message_complete(self) -> None:
        self.is_complete = True
