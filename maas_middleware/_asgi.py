"""ASGI grammar, in one place: paths, headers, bodies and refusals."""

from __future__ import annotations

import asyncio
import logging
import os
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .context import ensure_context
from .endpoints import error_format
from .envelopes import envelope
from .errors import MaaSError, NotFound, RequestTimeout, RequestTooLarge
from .requests import JSONRequest

logger = logging.getLogger("maas_middleware")

MAXIMUM_BODY_BYTES = 32 << 20
BODY_SECONDS = 60.0
# messages that carry a body or the next piece of it
BODY_MESSAGES = frozenset({"http.response.body", "http.response.pathsend", "http.response.zerocopysend"})
# what describes a body, and so is wrong for another one
BODY_HEADERS = (b"content-length", b"transfer-encoding", b"etag", b"content-md5", b"content-digest", b"digest")
# and what is wrong for one of another kind, too
DESCRIBING_HEADERS = frozenset({b"content-type", b"content-encoding", *BODY_HEADERS})
_MAXIMUM_CLOSE_REASON_BYTES = 123  # RFC 6455, section 5.5

_JSON = (b"content-type", b"application/json")

Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")


class ClientLeft(Exception):
    """The client closed the connection before its request was read; there is nobody to answer."""


def new_id() -> str:
    """A fresh random id of 32 hexadecimal digits."""
    return os.urandom(16).hex()


def route_path(scope: Scope) -> str:
    """The decoded path below `root_path`, which servers put in front of it or not; `/` where nothing is left."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path or "/"


def path_below(scope: Scope, collection: str) -> str:
    """The route path without that of a collection such as `/v1/tokens`; an app may be mounted there or routed to."""
    path = route_path(scope)
    is_mounted = scope.get("root_path", "").rstrip("/").endswith(collection)
    if not is_mounted and (path == collection or path.startswith(collection + "/")):
        path = path[len(collection) :]
    return path


def with_route_path(scope: Scope, path: str) -> Scope:
    """The scope with another route path; `raw_path` is made anew, so that nothing else is forwarded."""
    if scope["path"] == path and scope.get("raw_path") == path.encode() and not scope.get("root_path"):
        return scope
    prefix = scope["path"].removesuffix(route_path(scope))
    return {**scope, "path": prefix + path, "raw_path": quote(prefix + path).encode()}


def header_value(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The first value of a header, given by its lowercase name; empty where it is not there."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return b""


def content_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The size that a body is said to have; None where that is no number, 10**18 for more than 18 digits."""
    value = header_value(headers, b"content-length")
    return int(value if len(value) <= 18 else 10**18) if value.isdigit() else None


def without_headers(headers: Iterable[tuple[bytes, bytes]], *names: bytes) -> Headers:
    """The headers except those of the given lowercase names, as a new list."""
    return [pair for pair in headers if pair[0].lower() not in names]


def with_headers(headers: Iterable[tuple[bytes, bytes]], ours: Headers) -> Headers:
    """The headers with ours in place of those of the same names, as a new list."""
    names = dict(ours)
    replaced = [pair for pair in headers if pair[0].lower() not in names]
    replaced += ours
    return replaced


async def read_body(receive: Receive, limit: int, seconds: float = BODY_SECONDS) -> bytes:
    """Read a request's body whole.

    Raises:
        RequestTooLarge: over `limit` bytes, counted as they come.
        RequestTimeout: it takes longer than so many seconds.
        ClientLeft: the connection closed first.
    """
    reading = _read_pieces(receive, limit)
    try:
        try:
            waited_for = reading.send(None)
        except StopIteration as read:  # most bodies are there already, and need no clock
            body: bytes = read.value
            return body
        # a scope of anyio could not be entered here: `receive` may be inside of its own
        async with asyncio.timeout(seconds):
            return await _rest(reading, waited_for)
    except TimeoutError:
        raise RequestTimeout from None


@types.coroutine
def _rest(begun: Coroutine[Any, Any, T], waited_for: Any) -> Generator[Any, Any, T]:
    """What is left of a coroutine that was begun by hand, and waits for something."""
    try:
        while True:
            try:
                yield waited_for
            except BaseException as error:  # it decides what becomes of it
                waited_for = begun.throw(error)
            else:
                waited_for = begun.send(None)
    except StopIteration as end:
        result: T = end.value
        return result


async def _read_pieces(receive: Receive, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body: bytes = message.get("body", b"")
        size += len(body)
        if size > limit:
            raise RequestTooLarge
        if not message.get("more_body", False):
            return b"".join([*pieces, body]) if pieces else body
        pieces.append(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, and then whatever the server has to say."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay_receive() -> Message:
        return pending.pop() if pending else await receive()

    return replay_receive


class _Described(Headers):
    """The headers of a request that say what there is to say of its body."""

    body: bytes


def with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """The scope and `receive` of the same request with another body, which is JSON and nothing else."""
    headers = scope["headers"]
    if not isinstance(headers, _Described) or headers.body is not body:
        headers = _Described([pair for pair in headers if pair[0].lower() not in DESCRIBING_HEADERS])
        headers += (_JSON, (b"content-length", b"%d" % len(body)))
        headers.body = body
        scope = {**scope, "headers": headers}
    return scope, replay(body, receive)


async def read_json(
    scope: Scope, receive: Receive, limit: int = MAXIMUM_BODY_BYTES, seconds: float = BODY_SECONDS
) -> JSONRequest:
    """Read and judge an inference request, once for all shells as long as nobody between them changes the body.

    Whoever calls it passes the request's `encoded` body on with `with_body`.
    """
    body = await read_body(receive, limit, seconds)
    context = ensure_context(scope)
    known = context.request
    if isinstance(known, JSONRequest) and known.encoded == body:
        return known
    request = context.request = JSONRequest.parse(body)
    return request


async def reject(scope: Scope, receive: Receive, send: Send, error: MaaSError) -> None:
    """Answer with an error of ours: an HTTP response, or the denial of a WebSocket.

    Outer shells read in the context that it is ours: it is not charged, and not translated again.
    """
    context = ensure_context(scope)
    context.refusal = error.code
    if error.status >= 500:
        logger.warning("answered %d %s to request %s", error.status, error.code, context.request_id)
    await answer_error(scope, receive, send, error)


async def answer_error(scope: Scope, receive: Receive, send: Send, error: MaaSError) -> None:
    """Answer with an error, without marking it as a refusal of ours."""
    body = envelope(error, ensure_context(scope).request_id, error_format(scope["path"]))
    if scope["type"] == "http":
        await _respond(send, "http.response", error, body)
    elif "websocket.http.response" in (scope.get("extensions") or {}):
        await _respond(send, "websocket.http.response", error, body)
    else:
        reason = error.message.encode()[:_MAXIMUM_CLOSE_REASON_BYTES].decode(errors="ignore")
        await send({"type": "websocket.close", "code": 1008, "reason": reason})


async def _respond(send: Send, kind: str, error: MaaSError, body: bytes) -> None:
    headers: list[tuple[bytes, bytes]] = [
        _JSON,
        (b"content-length", b"%d" % len(body)),
        *error.headers,
    ]
    await send({"type": f"{kind}.start", "status": error.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})


async def serve(scope: Scope, receive: Receive, send: Send, respond: Callable[[Request], Awaitable[Response]]) -> None:
    """Run an endpoint: what it returns is sent, and a `MaaSError` that it raises is answered.

    A WebSocket is refused: endpoints speak HTTP.
    """
    if scope["type"] != "http":
        await reject(scope, receive, send, NotFound())
        return
    try:
        response = await respond(Request(scope, receive))
    except ClientLeft:
        return
    except MaaSError as error:
        await reject(scope, receive, send, error)
        return
    await response(scope, receive, send)
