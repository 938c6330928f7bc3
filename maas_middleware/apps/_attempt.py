"""A request that is sent to one upstream."""

from __future__ import annotations

import asyncio
import logging

import anyio
import httpx

from .._asgi import with_headers
from ..balancing import Upstream
from ..catalogue import Model
from ..envelopes import MAXIMUM_ERROR_BYTES, inner_error
from ..errors import Headers, MaaSError, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from ._answer import Answer
from ._forwarding import response_headers, upstream_wait
from ._vigil import CLOSING_SECONDS, Vigil

logger = logging.getLogger("maas_middleware")

# the upstream has read nothing
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
# the fault of our own pool, or of what the client sent
_NOT_TO_BLAME = (httpx.PoolTimeout, httpx.LocalProtocolError)
_FAILURES = (502, 503, 504)


class Attempt:
    """Relays what an upstream answers, and tells it how it did. Owns its response.

    Attributes:
        was_refused: nobody listened: it cost the upstream nothing.
    """

    __slots__ = ("_answer", "_has_begun", "_is_judged", "_model", "_response", "_upstream", "_vigil", "was_refused")

    def __init__(self, upstream: Upstream, model: Model, vigil: Vigil, answer: Answer) -> None:
        self._upstream = upstream
        self._model = model
        self._vigil = vigil
        self._answer = answer
        self._response: httpx.Response | None = None
        self._has_begun = False
        self._is_judged = False
        self.was_refused = False

    async def run(self, transport: httpx.AsyncBaseTransport, request: httpx.Request) -> UpstreamUnavailable | None:
        """Answer the client; or return why not, where the upstream has not processed the request.

        Raises:
            UpstreamTimeout, UpstreamError: there is no answer, or no whole one.
            MaaSError: the upstream's own refusal.
            ClientLeft: there is nobody to answer.
        """
        try:
            response = self._response = await transport.handle_async_request(request)
            if response.status_code == 503:
                return self._unavailable(response)
            self._vigil.end_of_body()
            self._vigil.await_first_byte()
            if not 200 <= response.status_code < 300:
                raise await self._refusal(response)
            await self._relay(response)
        except httpx.TransportError as failure:
            if not isinstance(failure, _NOT_TO_BLAME):
                self._judge(False)
            self.was_refused = isinstance(failure, httpx.ConnectError)
            if isinstance(failure, _NOT_SENT):
                return UpstreamUnavailable()
            raise (UpstreamTimeout if isinstance(failure, httpx.TimeoutException) else UpstreamError) from None
        except asyncio.CancelledError:
            is_late = isinstance(self._vigil.reason, UpstreamTimeout)
            if is_late and not (self._has_begun and self._vigil.is_overdue):  # a long answer is no failure
                self._judge(False)
            raise
        finally:
            await self._close()
        return None

    async def _relay(self, response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._answer.prepare(response.status_code, response_headers(response.headers.raw))
        async for chunk in response.stream:
            if not self._has_begun:
                self._begin()
            await self._answer.write(chunk)
        await self._answer.end()
        await response.aclose()  # nothing to wait for, so that it needs no shield
        self._response = None
        self._judge(True)

    def _begin(self) -> None:
        self._has_begun = True
        if self._upstream.is_ejected:  # what others wait for must not take as long as the answer
            self._judge(True)

    def _judge(self, succeeded: bool) -> None:
        if not self._is_judged:
            self._is_judged = True
            (self._upstream.succeeded if succeeded else self._upstream.failed)()

    def _unavailable(self, response: httpx.Response) -> UpstreamUnavailable:
        self._judge(False)
        self._log(503)
        error = UpstreamUnavailable()
        error.headers = _waits(error, response)
        return error

    async def _refusal(self, response: httpx.Response) -> MaaSError:
        status, body = response.status_code, bytearray()
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for chunk in response.stream:
            if not self._has_begun:
                self._has_begun = True
                self._vigil.await_upstream()  # all the rest of it
            body += chunk
            if len(body) >= MAXIMUM_ERROR_BYTES:
                break
        self._judge(status not in _FAILURES)
        # the method was right, for we know the endpoint
        is_failure = status < 400 or status == 405 or (status >= 500 and status not in (504, 529))
        error = UpstreamError() if is_failure else inner_error(status, bytes(body))
        if error.status >= 500 or status == 404:  # the others are about the request
            self._log(status)
        if error.status != 502:  # waiting would not help
            error.headers = _waits(error, response)
        return error

    def _log(self, status: int) -> None:
        logger.warning("the upstream of model %s answered %d", self._model.id, status)

    async def _close(self) -> None:
        try:
            await self._answer.aclose()
        finally:
            if self._response is not None:
                with anyio.move_on_after(CLOSING_SECONDS, shield=True):
                    await self._response.aclose()


def _waits(error: MaaSError, response: httpx.Response) -> Headers:
    return tuple(with_headers(error.headers, upstream_wait(response.headers.raw)))
