"""Heads of requests, in bytes that nobody can smuggle a second request into."""

from __future__ import annotations

import re
from dataclasses import dataclass

import httpx

from ._fields import LENGTH, TEXT, TOKEN, connection_options, framing_fields

_HEAD = re.compile(TOKEN + rb" [\x21-\x7e]+ HTTP/1\.1\r\n(?:" + TOKEN + rb": " + TEXT + rb"\r\n)*\r\n")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of a request.

    Attributes:
        encoded: request line and headers, with the empty line.
        length: bytes of the body; None where it is sent in chunks.
        keep_alive: whether the request lets the connection be used again.
    """

    method: str
    encoded: bytes
    length: int | None
    keep_alive: bool

    @classmethod
    def of(cls, request: httpx.Request) -> RequestHead:
        """Encode the head of a request.

        Raises:
            httpx.LocalProtocolError: it is no HTTP/1.1 head, or does not say in one way how long the body is
                (RFC 9112, sections 3, 5 and 6).
        """
        if request.method == "CONNECT":
            raise httpx.LocalProtocolError("Tunnels are not supported")
        fields = request.headers.raw
        line = b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)
        encoded = b"\r\n".join([line, *[b"%b: %b" % field for field in fields], b"", b""])
        # a line break within a value would make a line more
        if encoded.count(b"\n") != len(fields) + 2 or _HEAD.fullmatch(encoded) is None:
            raise httpx.LocalProtocolError("Illegal method, target or header")
        framing = framing_fields(fields)
        if b"," in framing.get(b"host", b","):
            raise httpx.LocalProtocolError("A request has one host header")
        return cls(request.method, encoded, _body_length(framing), b"close" not in connection_options(framing))

    @property
    def ending(self) -> bytes:
        """What is sent after the last piece of the body."""
        return b"0\r\n\r\n" if self.length is None else b""

    def frame(self, piece: bytes | memoryview) -> bytes | memoryview:
        """A piece of the body as it is sent; an empty one is nothing."""
        if self.length is not None or not piece:
            return piece
        return b"".join((b"%x\r\n" % len(piece), piece, b"\r\n"))


def _body_length(framing: dict[bytes, bytes]) -> int | None:
    length, coding = framing.get(b"content-length"), framing.get(b"transfer-encoding")
    if length is None and coding is None:
        return 0
    if length is None and coding is not None and coding.lower() == b"chunked":
        return None
    if coding is None and length is not None and LENGTH.fullmatch(length) is not None:
        return int(length)
    raise httpx.LocalProtocolError("The length of the body is not clear")
