"""Where the events of an answer are, without reading them."""

from __future__ import annotations

from collections.abc import Iterable

from ._asgi import Headers, header_value

# the end of a line, and an empty line behind it; each may end in LF, CR or both
BETWEEN_EVENTS = (b"\n\n", b"\r\r", b"\n\r", b"\n\r\n", b"\r\r\n")


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether these headers of an answer are those of server-sent events."""
    return names_events(header_value(headers, b"content-type"))


def names_events(content_type: bytes) -> bool:
    """Whether a content type is that of server-sent events."""
    return content_type.lower().startswith(b"text/event-stream")


def takes_events(headers: Headers) -> bool:
    """Whether events of ours may be put between those of an answer: it is not compressed, and tells no size."""
    names = {name.lower() for name, _ in headers}
    return is_event_stream(headers) and names.isdisjoint((b"content-encoding", b"content-length"))


def last_bytes(before: bytes, sent: bytes) -> bytes:
    """The last three bytes of a stream: all that it takes to tell whether it ends in one of `BETWEEN_EVENTS`."""
    return sent[-3:] if len(sent) > 2 else (before + sent)[-3:]
