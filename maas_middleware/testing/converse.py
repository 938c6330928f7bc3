"""Talking to an ASGI app as a server does, and holding it to the grammar of every message."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import anyio
from starlette.types import ASGIApp, Message, Scope

from ._grammar import GrammarError as GrammarError
from ._grammar import HTTPGrammar

HeaderPairs = Iterable[tuple[str, str]]


@dataclass
class Conversation:
    """What an app answered.

    Attributes:
        messages: everything that reached the client, in order.
        complete: whether the answer was ended: the last body, or trailer, said that no more is to come.
        exception: what the app raised, if anything.
    """

    messages: list[Message] = field(default_factory=list)
    complete: bool = False
    exception: BaseException | None = None

    @property
    def started(self) -> bool:
        return any(message["type"] == "http.response.start" for message in self.messages)

    @property
    def status(self) -> int:
        status = self._start["status"]
        assert isinstance(status, int)
        return status

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._start.get("headers", ())]

    def header(self, name: str) -> str | None:
        """The value of a header that stands there once; None where it does not stand at all."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} stands {len(values)} times"
        return values[0] if values else None

    @property
    def chunks(self) -> list[bytes]:
        """The bodies as they were sent, without empty ones."""
        bodies = (message.get("body", b"") for message in self.messages if message["type"] == "http.response.body")
        return [body for body in bodies if body]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def _start(self) -> Message:
        start = next((message for message in self.messages if message["type"] == "http.response.start"), None)
        if start is None:
            raise AssertionError("the app did not answer") from self.exception
        return start


def http_scope(
    method: str = "GET",
    path: str = "/",
    *,
    headers: HeaderPairs = (),
    root_path: str = "",
    query_string: bytes = b"",
    **more: Any,
) -> Scope:
    """A scope as a server makes it. `more` replaces or adds keys."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": query_string,
        "root_path": root_path,
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        "state": {},
        **more,
    }


async def converse(
    app: ASGIApp,
    method: str = "GET",
    path: str = "/",
    *,
    token: str | None = None,
    headers: HeaderPairs = (),
    body: bytes | Sequence[bytes] = b"",
    json: Any = None,
    leave_while_sending: bool = False,
    leave_after: int | None = None,
    scope: Mapping[str, Any] | None = None,
) -> Conversation:
    """Send one request to an app and collect its answer.

    Args:
        token: sent as `authorization: Bearer`, before the headers.
        body: whole, or in pieces, each a message of its own.
        json: a value to be sent as JSON instead of `body`.
        leave_while_sending: the client leaves after these pieces of a body that was to be longer.
        leave_after: the client leaves once so many bodies with content have been sent to it; 0: once its request has
            been read. What is sent to a client that left is lost silently, as uvicorn loses it; where the scope says
            `spec_version` 2.4 or later, it raises `OSError`.
        scope: keys that replace those of the scope, such as `root_path`, `state` or `extensions`.

    Raises:
        GrammarError: the app sent something that is not allowed there.
    """
    if token is not None:
        headers = [("authorization", f"Bearer {token}"), *headers]
    pieces = [body] if isinstance(body, bytes) else list(body)
    if json is not None:
        pieces, headers = [_dumps(json)], [*headers, ("content-type", "application/json")]
    request_scope = {**http_scope(method, path, headers=headers), **(scope or {})}
    client = _Client(request_scope, pieces, leave_while_sending, leave_after)
    try:
        await app(request_scope, client.receive, client.send)
    except Exception as error:
        client.conversation.exception = error
    if client.complaint is not None:
        raise client.complaint
    return client.conversation


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


class _Client:
    def __init__(self, scope: Scope, pieces: Sequence[bytes], leaves_early: bool, leave_after: int | None) -> None:
        self.conversation = Conversation()
        self.complaint: GrammarError | None = None
        self._grammar = HTTPGrammar(scope)
        self._requests: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": leaves_early or index < len(pieces)}
            for index, piece in enumerate(pieces, 1)
        ]
        self._leaves_unanswered = leaves_early or leave_after == 0
        self._leave_after = leave_after
        self._delivered = 0
        self._gone = anyio.Event()
        version = scope["asgi"].get("spec_version", "2.0")
        self._raises = tuple(map(int, version.split("."))) >= (2, 4)

    async def receive(self) -> Message:
        if self._requests:
            message = self._requests.pop(0)
            if not self._requests and self._leaves_unanswered:
                self._gone.set()
            return message
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        try:
            self._grammar.take(message)
        except GrammarError as error:
            self.complaint = self.complaint or error
            raise
        if not self._gone.is_set():
            self._deliver(message)
        elif self._raises:
            raise OSError("the client is gone")

    def _deliver(self, message: Message) -> None:
        self.conversation.messages.append(message)
        self.conversation.complete = self._grammar.complete
        self._delivered += message["type"] == "http.response.body" and message.get("body", b"") != b""
        if self._grammar.complete or 0 < self._delivered == self._leave_after:
            self._gone.set()
