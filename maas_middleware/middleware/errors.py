"""One envelope round every error, and an id on every answer."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable

import anyio
import msgspec
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._asgi import BODY_MESSAGES, DESCRIBING_HEADERS, Headers, new_id, with_headers, without_headers
from .._event_streams import BETWEEN_EVENTS, last_bytes, takes_events
from ..context import MaaSContext, ensure_context
from ..dialects import ErrorFormat
from ..endpoints import error_format
from ..envelopes import MAXIMUM_ERROR_BYTES, envelope, error_event, inner_error
from ..errors import InternalError, InvalidRequest, MaaSError, UpstreamRefusal, UpstreamUnavailable
from ..identity import header
from ..renaming import Renaming

logger = logging.getLogger("maas_middleware")

_CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_FAREWELL_SECONDS = 1.0
_WEBSOCKET_STARTS = frozenset({"websocket.accept", "websocket.http.response.start"})


class ErrorEnvelopeMiddleware:
    """Puts every error into OpenAI's envelope: those of our shells, of the inner app, and its exceptions.

    On `/v1/messages` it is Anthropic's, and the id is also in `request-id`.

    Every answer carries `x-request-id`: the client's own if it is 1 to 64 of `[A-Za-z0-9._-]`, else a fresh one. The
    inner app always sees a fresh one, because vLLM takes it for the key of the running request.

    After the first byte nothing can be refused: an event stream gets one error event, and the answer is left
    unfinished, so that the server breaks the connection off and no client takes it for whole. An exception that is no
    `MaaSError`, or that comes after the end of the answer, is raised again for the server's log.
    """

    def __init__(self, app: ASGIApp, *, id_factory: Callable[[], str] = new_id) -> None:
        self.app = app
        self._id_factory = id_factory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        context = ensure_context(scope)
        context.request_id = inner_id = self._id_factory()
        headers = without_headers(scope["headers"], b"x-request-id")
        if len(headers) < len(scope["headers"]):
            context.request_id = _client_id(scope) or inner_id
        headers.append((b"x-request-id", inner_id.encode()))
        scope = {**scope, "headers": headers}
        if scope["type"] == "http":
            await _Responder(context, error_format(scope["path"]), receive, send).run(self.app, scope)
            return

        async def send_with_id(message: Message) -> None:
            if message["type"] in _WEBSOCKET_STARTS:
                message = {**message, "headers": _with_id(context, message.get("headers", ()))}
            await send(message)

        await self.app(scope, receive, send_with_id)


def _client_id(scope: Scope) -> str | None:
    try:
        value = header(scope, b"x-request-id")
    except InvalidRequest:
        return None
    return value.decode() if value is not None and _CLIENT_ID.fullmatch(value) else None


def _with_id(context: MaaSContext, headers: Iterable[tuple[bytes, bytes]], errors: ErrorFormat = "openai") -> Headers:
    assert context.request_id is not None
    request_id = context.request_id.encode()
    if errors == "anthropic":  # whose clients read the second
        return with_headers(headers, [(b"x-request-id", request_id), (b"request-id", request_id)])
    ours = without_headers(headers, b"x-request-id")
    ours.append((b"x-request-id", request_id))
    return ours


class _Responder:
    """One answer on its way out."""

    def __init__(self, context: MaaSContext, errors: ErrorFormat, receive: Receive, send: Send) -> None:
        self._context = context
        self._errors = errors
        self._receive = receive
        self._send = send
        self._client_left = False
        self._started = False
        self._complete = False
        self._headers: Headers = []
        self._tail = b"\n\n"
        self._replaced: Message | None = None  # the start of an error answer of the inner app
        self._error_body = bytearray()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:  # a server that stops does so with calls that take too long
            with anyio.move_on_after(_FAREWELL_SECONDS, shield=True):
                await self._fail(UpstreamUnavailable())
            raise
        except Exception as raised:
            error = _answerable(_bare(raised))
            if isinstance(error, MaaSError) and not self._complete:
                await self._fail(self._named(error))
                return
            await self._fail(InternalError())
            raise
        if self._replaced is not None and not self._started:
            await self._translate(self._replaced)
        elif not self._started:  # servers would answer in plain text
            await self._fail(InternalError())

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._client_left = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in BODY_MESSAGES:
            if self._replaced is not None:
                await self._hold(self._replaced, message)
                return
            body = message.get("body", b"")
            self._tail = last_bytes(self._tail, body)
            self._complete = not message.get("more_body", False)
        elif kind == "http.response.start":
            if message["status"] >= 400 and self._context.refusal is None:
                self._replaced = message
                return
            self._headers = _with_id(self._context, message.get("headers", ()), self._errors)
            self._started = True
            message = {**message, "headers": self._headers}
        elif self._replaced is not None and kind == "http.response.trailers":
            return
        try:
            await self._send(message)
        except OSError:  # so do servers of ASGI 2.4 say that the client left
            self._client_left = True
            raise

    async def _hold(self, start: Message, message: Message) -> None:
        room = MAXIMUM_ERROR_BYTES - len(self._error_body)
        self._error_body += message.get("body", b"")[:room]
        if not message.get("more_body", False):
            await self._translate(start)

    async def _translate(self, start: Message) -> None:
        is_behind_us = self._context.identity is not None
        error = self._named(inner_error(start["status"], bytes(self._error_body), is_behind_us=is_behind_us))
        headers = without_headers(start.get("headers", ()), *DESCRIBING_HEADERS)
        if error.status != start["status"]:
            headers = without_headers(headers, b"www-authenticate")
        names = {name.lower() for name, _ in headers}
        await self._answer(error, [*headers, *(pair for pair in error.headers if pair[0] not in names)])

    def _named(self, error: MaaSError) -> MaaSError:
        if isinstance(error, UpstreamRefusal):  # its words are not ours
            error.message = Renaming(self._context.model).message(error.message)
        return error

    async def _fail(self, error: MaaSError) -> None:
        if self._client_left or self._complete:
            return
        if not self._started:
            await self._answer(error, error.headers)
            return
        logger.warning("broke off the answer to request %s: %s", self._context.request_id, error.code)
        if takes_events(self._headers):
            with anyio.move_on_after(_FAREWELL_SECONDS):  # whoever reads nothing must not hold the call
                await self._send_event(error)

    async def _answer(self, error: MaaSError, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if error.status >= 500:
            logger.warning("answered %d %s to request %s", error.status, error.code, self._context.request_id)
        body = envelope(error, self._context.request_id, self._errors)
        described = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers = [*_with_id(self._context, headers, self._errors), *described]
        self._started = self._complete = True
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def _send_event(self, error: MaaSError) -> None:
        event = error_event(error, self._context.request_id, self._errors, self._context.events)
        body = event if self._tail.endswith(BETWEEN_EVENTS) else b"\n\n" + event
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


def _answerable(error: Exception) -> Exception:
    """What a middleware means that raises where nobody handles it: beside of the app, or in our `receive`."""
    if isinstance(error, HTTPException) and 400 <= error.status_code < 500:
        answer = inner_error(error.status_code, msgspec.json.encode({"detail": str(error.detail)}))
        if answer.status == error.status_code:
            given = ((name.lower().encode(), value.encode("latin-1")) for name, value in (error.headers or {}).items())
            answer.headers = (*answer.headers, *without_headers(given, *DESCRIBING_HEADERS))
        return answer
    return error


def _bare(error: Exception) -> Exception:
    """The one exception that a task group wrapped."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
