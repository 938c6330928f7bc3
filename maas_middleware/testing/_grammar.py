"""What an ASGI app may send, and in which order."""

from __future__ import annotations

from starlette.types import Message, Scope


class GrammarError(AssertionError):
    """The app sent a message that the ASGI specification does not allow at that point."""


class HTTPGrammar:
    """What an app has sent of an HTTP answer, and so what it may send next.

    Attributes:
        complete: whether the answer was ended: the last body, or trailer, said that no more is to come.
    """

    def __init__(self, scope: Scope) -> None:
        self.complete = False
        self._extensions = scope.get("extensions") or {}
        self._is_head = scope["method"] == "HEAD"
        self._started = False
        self._body_ended = False
        self._has_trailers = False
        self._length: int | None = None
        self._size = 0

    def take(self, message: Message) -> None:
        """Hold the next message to the specification.

        Raises:
            GrammarError: naming what is wrong.
        """
        kind = message["type"]
        _require(not self.complete, f"{kind} after the end of the answer")
        if kind == "http.response.start":
            self._start(message)
        elif kind == "http.response.body":
            self._body(message)
        else:
            _require(kind in self._extensions, f"{kind} is not offered by this server")
            if kind == "http.response.pathsend":
                self._piece("a path", last=True)
            elif kind == "http.response.trailers":
                self._trailers(message)

    def _start(self, message: Message) -> None:
        _require(not self._started, "a second start")
        status = message["status"]
        _require(isinstance(status, int) and 200 <= status <= 599, "a status that is none")
        lengths = [int(value) for name, value in _checked(message) if name == b"content-length"]
        _require(len(lengths) <= 1, "several content-lengths")
        self._started = True
        self._has_trailers = message.get("trailers", False)
        if status in (204, 304):
            self._length = 0
        elif lengths and not self._is_head:
            self._length = lengths[0]

    def _body(self, message: Message) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        _require(isinstance(body, bytes), "a body that is not bytes")
        _require(isinstance(more, bool), "a more_body that is not a bool")
        self._piece("a body", last=not more)
        self._size += len(body)
        if self._length is not None:
            _require(self._size <= self._length, "a body longer than its content-length")
            _require(more or self._size == self._length, "a body shorter than its content-length")

    def _piece(self, what: str, *, last: bool) -> None:
        _require(self._started, f"{what} before the start")
        _require(not self._body_ended, f"{what} after the last one")
        self._body_ended = last
        self.complete = last and not self._has_trailers

    def _trailers(self, message: Message) -> None:
        _require(self._has_trailers and self._body_ended, "trailers that were not announced, or too early")
        _checked(message)
        self.complete = not message.get("more_trailers", False)


def _checked(message: Message) -> list[tuple[bytes, bytes]]:
    headers = list(message.get("headers", ()))
    for name, value in headers:
        _require(isinstance(name, bytes) and isinstance(value, bytes), "a header that is not bytes")
        _require(name == name.lower(), f"a header name that is not lowercase: {name!r}")
        _require(not set(b"\r\n\0") & set(name + value), "a header with a line break")
    return headers


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise GrammarError(complaint)
