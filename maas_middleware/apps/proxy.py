"""Forwarding to the server of a model, streaming both ways."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote

import anyio
import httpx
from starlette.types import Message, Receive, Scope, Send

from .._asgi import ClientLeft, answer_error, reject, route_path, with_headers
from ..catalogue import Model
from ..context import ensure_context, required
from ..envelopes import MAXIMUM_ERROR_BYTES, inner_error
from ..errors import InvalidRequest, MaaSError, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from ._forwarding import request_headers, response_headers, upstream_wait

logger = logging.getLogger("maas_middleware")

_CLOSING_SECONDS = 5.0


class ProxyApp:
    """Forwards a request to the upstream of the model in the context, and its answer back, chunk by chunk.

    Needs `TierMiddleware` outside, which finds the model and canonicalises path and body. The caller's credential and
    cookies stop here; the model's own credential is put in. A client that leaves closes the upstream at once.
    Errors of the upstream are answered in our envelope: a 4xx keeps its message, its 401 and 403 become 502 (the
    credential was ours), and what breaks off after the first byte raises `UpstreamError` or `UpstreamTimeout`.

    Args:
        transport: any httpx transport. It is not closed here.
        connect_timeout, first_byte_timeout, idle_timeout: seconds to connect, until the first byte of the answer's
            body, and between two of its chunks; the body of an error has to come whole in `idle_timeout`, and a client
            that reads nothing for that long is taken for one that left.
    """

    def __init__(
        self,
        *,
        transport: httpx.AsyncBaseTransport,
        connect_timeout: float = 5.0,
        first_byte_timeout: float = 120.0,
        idle_timeout: float = 60.0,
    ) -> None:
        self._transport = transport
        self._first_byte_timeout = first_byte_timeout
        self._idle_timeout = idle_timeout
        timeouts = {"connect": connect_timeout, "pool": connect_timeout, "read": None, "write": None}
        self._extensions = {"timeout": timeouts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"ProxyApp speaks HTTP, not {scope['type']}")
        model = required(ensure_context(scope).model, "ProxyApp", "model", "TierMiddleware")
        body, send = _RequestBody(receive), _telling_who_left(send, self._idle_timeout)

        async def exchange() -> None:
            answer = _Answer(model, self._first_byte_timeout, self._idle_timeout)
            try:
                await answer.open(self._transport, self._request(scope, model, body))
                body.end()
                await answer.relay(send)
            except InvalidRequest as error:
                await reject(scope, receive, send, error)
            except MaaSError as error:
                if answer.started:
                    raise
                await answer_error(scope, receive, send, error)
            finally:
                await answer.close()

        with suppress(ClientLeft):
            await _until_gone(exchange, body.client_gone)

    def _request(self, scope: Scope, model: Model, body: _RequestBody) -> httpx.Request:
        query = scope.get("query_string", b"")
        target = quote(route_path(scope)).encode() + (b"?" + query if query else b"")
        if not model.upstreams:
            raise LookupError(f"model {model.id} has no upstream: TierMiddleware needs a Catalogue with upstreams")
        base = httpx.URL(model.upstreams[0])
        try:
            url = base.copy_with(raw_path=base.raw_path.rstrip(b"/") + target)
        except (httpx.InvalidURL, UnicodeDecodeError):
            raise InvalidRequest("The query of the URL is malformed") from None
        headers = request_headers(scope, url.netloc, model)
        return httpx.Request(scope["method"], url, headers=headers, stream=body, extensions=self._extensions)


class _RequestBody(httpx.AsyncByteStream):
    """The client's body, piece by piece, and then the news that the client left."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = anyio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self._ended.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            if not message.get("more_body", False):
                self._ended.set()
            if body := message.get("body", b""):
                yield body

    def end(self) -> None:
        """Nobody will read on, whether the client has sent all or not: an upstream may answer early."""
        self._ended.set()

    async def client_gone(self) -> None:
        await self._ended.wait()  # `receive` has one reader at a time
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _Answer:
    """The upstream's answer on its way to the client. Owns the upstream's response."""

    def __init__(self, model: Model, first_byte_timeout: float, idle_timeout: float) -> None:
        self.started = False
        self._model = model
        self._first_byte_timeout = first_byte_timeout
        self._idle_timeout = idle_timeout
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes]
        self._first: bytes | None = None

    async def open(self, transport: httpx.AsyncBaseTransport, request: httpx.Request) -> None:
        """Wait for the first byte of the body: up to there a failure still has an answer of its own.

        Raises:
            UpstreamUnavailable, UpstreamTimeout, UpstreamError: there is no answer, or one that says so.
            MaaSError: the upstream's own refusal.
        """
        with _failures_mapped(), anyio.fail_after(self._first_byte_timeout):
            self._response = await transport.handle_async_request(request)
            assert isinstance(self._response.stream, httpx.AsyncByteStream)
            self._chunks = aiter(self._response.stream)
            self._first = await anext(self._chunks, None)
        if not 200 <= self._response.status_code < 300:
            raise await self._refusal(self._response)

    async def relay(self, send: Send) -> None:
        assert self._response is not None
        headers = response_headers(self._response.headers.raw)
        self.started = True
        await send({"type": "http.response.start", "status": self._response.status_code, "headers": headers})
        chunk = self._first
        while chunk is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            chunk = await self._next()
        await send({"type": "http.response.body", "body": b""})

    async def close(self) -> None:
        if self._response is not None:
            with anyio.move_on_after(_CLOSING_SECONDS, shield=True):
                await self._response.aclose()

    async def _next(self) -> bytes | None:
        with _failures_mapped(), anyio.fail_after(self._idle_timeout):
            return await anext(self._chunks, None)

    async def _refusal(self, response: httpx.Response) -> MaaSError:
        status, body = response.status_code, self._first or b""
        with _failures_mapped(), anyio.fail_after(self._idle_timeout):
            while len(body) < MAXIMUM_ERROR_BYTES and (chunk := await anext(self._chunks, None)) is not None:
                body += chunk
        # the method was right, for we know the endpoint
        is_failure = status < 400 or status == 405 or (status >= 500 and status not in (503, 504, 529))
        error = UpstreamError() if is_failure else inner_error(status, body)
        if error.status >= 500 or status == 404:  # the others are about the request
            logger.warning("the upstream of model %s answered %d", self._model.id, status)
        if error.status != 502:  # waiting would not help
            error.headers = tuple(with_headers(error.headers, upstream_wait(response.headers.raw)))
        return error


def _telling_who_left(send: Send, timeout: float) -> Send:
    async def send_or_leave(message: Message) -> None:
        try:
            with anyio.fail_after(timeout):  # whoever reads nothing must not hold an upstream
                await send(message)
        except OSError:  # the time-out, and since ASGI 2.4 what a server raises when the client is gone
            raise ClientLeft from None

    return send_or_leave


async def _until_gone(work: Callable[[], Awaitable[None]], gone: Callable[[], Awaitable[None]]) -> None:
    """Do the work, and cancel it as soon as the client is gone. Failures leave bare, not in an ExceptionGroup."""
    failure: Exception | None = None
    working, watching = anyio.CancelScope(), anyio.CancelScope()

    async def watch() -> None:
        with watching:
            await gone()
            working.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        with working:
            try:
                await work()
            except Exception as error:
                failure = error
        watching.cancel()
    if failure is not None:
        raise failure


@contextmanager
def _failures_mapped() -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
        raise UpstreamUnavailable from None
    except (TimeoutError, httpx.TimeoutException):
        raise UpstreamTimeout from None
    except httpx.TransportError:
        raise UpstreamError from None
