"""What the headers of an answer say of its events."""

from __future__ import annotations

from collections.abc import Iterable

from ._asgi import Headers, header_value


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether these headers of an answer are those of server-sent events."""
    return header_value(headers, b"content-type").lower().startswith(b"text/event-stream")


def takes_events(headers: Headers) -> bool:
    """Whether events of ours may be put between those of an answer: it is not compressed, and tells no size."""
    names = {name.lower() for name, _ in headers}
    return is_event_stream(headers) and names.isdisjoint((b"content-encoding", b"content-length"))
