"""How much the caller used."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._asgi import (
    BODY_HEADERS,
    MAXIMUM_BODY_BYTES,
    ClientLeft,
    Headers,
    read_json,
    reject,
    route_path,
    with_body,
    with_headers,
    without_headers,
)
from .._event_streams import names_events
from ..catalogue import Catalogue
from ..context import MaaSContext, ensure_context
from ..dialects import Dialect
from ..endpoints import Endpoint
from ..envelopes import reported_error
from ..errors import MaaSError, MethodNotAllowed, NotFound, UpstreamError
from ..events import EventScanner
from ..renaming import Renaming
from ..requests import JSONRequest
from ..usage import JSONScanner, is_json, is_text, json_fields, read_usage, usage_headers, usage_of

_MAXIMUM_HELD_BYTES = 4 << 20
_READ_HEADERS = frozenset({b"content-type", b"content-encoding", b"metadata"})
_COMPRESSIONS = frozenset({b"gzip", b"x-gzip", b"deflate", b"br", b"zstd", b"compress", b"x-compress"})


class UsageMiddleware:
    """Reads the usage of every answer of an endpoint into `context.usage`.

    A stream is asked for its usage where the client did not ask, and what the client did not ask for is taken out
    again: event by event it reads what an untouched call would have given. A model that vLLM serves is asked for usage
    in every event, so that a stream that is cut has one too. Answers that are no streams tell their usage in
    `x-odhu-usage-*` headers; up to 4 MiB they are held back for that, larger ones pass without, and keep the name by
    which their server knows the model. The inner app
    sees no `accept-encoding`, because compressed answers cannot be read.

    Raises:
        UpstreamError: after a JSON answer that is none, or a stream that ends without saying so: nobody is to take a
            cut answer for a whole one. Also instead of an error that was sent as a success, or as an event.
        UpstreamRefusal: instead of such an error that says that it is a 4xx.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int = MAXIMUM_BODY_BYTES) -> None:
        self.app = app
        self._endpoints = Catalogue()
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = ensure_context(scope) if scope["type"] == "http" else None
        dialect = None if context is None else self._dialect(scope, context)
        if context is None or dialect is None:
            await self.app(scope, receive, send)
            return
        request = None
        if dialect.asks_for_usage:
            try:
                request, scope, receive = await self._ask(scope, receive, context)
            except ClientLeft:
                return
            except MaaSError as error:
                await reject(scope, receive, send, error)
                return
        scope = {**scope, "headers": without_headers(scope["headers"], b"accept-encoding")}
        responder = _Responder(context, dialect, send, request)
        await self.app(scope, receive, responder.send)

    def _dialect(self, scope: Scope, context: MaaSContext) -> Dialect | None:
        endpoint = context.endpoint or self._endpoint(scope)
        is_metered = endpoint is not None and endpoint.kind == "billable" and endpoint.method == scope["method"]
        return endpoint.dialect if endpoint is not None and is_metered else None

    def _endpoint(self, scope: Scope) -> Endpoint | None:
        try:
            return self._endpoints.locate(route_path(scope)).endpoint(scope["method"])
        except (NotFound, MethodNotAllowed):
            return None

    async def _ask(self, scope: Scope, receive: Receive, context: MaaSContext) -> tuple[JSONRequest, Scope, Receive]:
        request = asking = await read_json(scope, receive, self._max_body_bytes)
        if request.stream:
            running = _tells_running_usage(context)
            if not (request.include_usage and (request.running_usage or not running)):
                asking = request.asking_for_usage(running=running)
        return request, *with_body(scope, receive, asking.encoded)


def _tells_running_usage(context: MaaSContext) -> bool:
    return context.model is not None and context.model.engine == "vllm"


class _Responder:
    """One answer on its way out: an event stream, a JSON answer that is held back, or what is only passed on."""

    def __init__(self, context: MaaSContext, dialect: Dialect, send: Send, request: JSONRequest | None) -> None:
        self._context = context
        self._dialect = dialect
        self._send = send
        self._request = request
        self._renaming = Renaming(context.model)
        self._rate = 0 if context.model is None else context.model.audio_tokens_per_second
        self._events: EventScanner | None = None
        self._large: JSONScanner | None = None
        self._begun: Message | None = None
        self._held: list[Message] = []
        self._held_bytes = 0

    async def send(self, message: Message) -> None:
        events = self._events
        if events is None or message["type"] != "http.response.body":
            await self._take(message)
            return
        body = message.get("body", b"")
        given = events.feed(body)
        self._tell(events)
        if events.error is not None or not message.get("more_body", False):
            await self._end(events, message, given)
        elif given:
            await self._send(message if given is body else {**message, "body": given})

    async def _take(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            await self._start(message)
        elif kind != "http.response.body":
            await self._release()
            await self._send(message)
        elif self._begun is not None:
            await self._hold(self._begun, message)
        else:
            await self._pass(message)

    async def _start(self, message: Message) -> None:
        headers: Headers = list(message.get("headers", ()))
        read = {name: value for key, value in reversed(headers) if (name := key.lower()) in _READ_HEADERS}
        content_type = read.get(b"content-type", b"").lower()
        is_readable = message["status"] < 300 and not _is_compressed(read.get(b"content-encoding", b""))
        is_stream = message["status"] != 204 and names_events(content_type)
        if is_readable and is_stream:
            self._events = self._scanner()
            headers = without_headers(headers, *BODY_HEADERS)
        elif is_readable and (self._dialect.is_json_only or content_type.startswith(b"application/json")):
            self._begun = message
            return
        elif is_readable and (metadata := read.get(b"metadata")):
            # vLLM tells here what it cannot tell in embeddings that are no JSON
            self._context.usage = read_usage(metadata, self._rate)
            headers = with_headers(headers, [(b"metadata", self._renaming(metadata))])
        await self._send({**message, "headers": headers})

    def _scanner(self) -> EventScanner:
        request = self._request
        return EventScanner(
            self._dialect,
            strip=request is not None and not request.include_usage,
            strip_running=request is not None and not request.running_usage and _tells_running_usage(self._context),
            renaming=self._renaming,
            audio_tokens_per_second=self._rate,
        )

    def _tell(self, events: EventScanner) -> None:
        context = self._context
        context.usage = events.usage
        context.produced = events.produced
        context.events = events.events
        context.reported_failure = events.failed

    async def _end(self, events: EventScanner, message: Message, given: bytes) -> None:
        """Stop where the model reports an error, or where its last message says that nothing is to come."""
        if not message.get("more_body", False):
            given += events.flush()
        self._tell(events)
        error = events.error
        if error is None and events.is_cut:
            error = UpstreamError()  # an upstream that closes its connection looks like the end of the answer
        if error is None:
            await self._send({**message, "body": given})
            return
        if given:
            await self._send({**message, "body": given, "more_body": True})
        raise error

    async def _hold(self, start: Message, message: Message) -> None:
        self._held.append(message)
        self._held_bytes += len(message.get("body", b""))
        if not message.get("more_body", False):
            self._begun = None
            await self._answer(start, self._held)
        elif self._held_bytes > _MAXIMUM_HELD_BYTES:
            if self._dialect.is_json_only and not _looks_like_json(self._held):
                raise UpstreamError
            await self._release()

    async def _release(self) -> None:
        if self._begun is not None:
            self._large = JSONScanner(self._rate)
            start, self._begun = self._begun, None
            pieces, self._held = self._held, []
            await self._send(start)
            for piece in pieces:
                await self._pass(piece)

    async def _answer(self, start: Message, pieces: list[Message]) -> None:
        body = b"".join([piece.get("body", b"") for piece in pieces])
        fields = json_fields(body)
        usage = self._context.usage = None if fields is None else usage_of(fields, self._rate)
        is_readable = is_json(body) if fields is None else is_text(body)
        if not is_readable and (self._dialect.is_json_only or start["status"] != 204):
            raise UpstreamError
        if usage is None and b'"error"' in body and (error := reported_error(body)) is not None:
            self._context.reported_failure = True
            raise error
        headers = [] if usage is None else usage_headers(usage)
        replaced = [name for name, _ in headers]
        if (renamed := self._renaming(body, fields)) is not body:
            headers.append((b"content-length", b"%d" % len(renamed)))
            replaced += BODY_HEADERS
        headers = [*without_headers(start.get("headers", ()), *replaced), *headers]
        await self._send({**start, "headers": headers})
        await self._send({**pieces[-1], "body": renamed})

    async def _pass(self, message: Message) -> None:
        if self._large is not None:
            self._large.feed(message.get("body", b""))
            if not message.get("more_body", False):
                self._context.usage = self._large.usage
        await self._send(message)


def _is_compressed(encoding: bytes) -> bool:
    return not _COMPRESSIONS.isdisjoint(name.strip() for name in encoding.lower().split(b","))


def _looks_like_json(pieces: Iterable[Message]) -> bool:
    return next((body for piece in pieces if (body := piece.get("body", b"").lstrip())), b"")[:1] in (b"{", b"[")
