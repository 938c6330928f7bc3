"""Forwarding to the servers of a model, streaming both ways."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

import anyio
import httpx
from starlette.types import Receive, Scope, Send

from .._asgi import ClientLeft, answer_error, reject
from ..assertions import ASSERTION_HEADER, Signer
from ..balancing import Balancer, Upstream
from ..catalogue import Model
from ..context import MaaSContext, ensure_context, required
from ..errors import InvalidRequest, MaaSError, RequestTimeout, RequestTooLarge, UpstreamUnavailable
from ._answer import Answer
from ._attempt import Attempt
from ._forwarding import Destination
from ._request_body import RequestBody
from ._vigil import Vigil

logger = logging.getLogger("maas_middleware")

_MAXIMUM_DESTINATIONS = 1024
_OF_THE_CLIENT = (InvalidRequest, RequestTimeout, RequestTooLarge)


class ProxyApp:
    """Forwards a request to an upstream of the model in the context, and its answer back, chunk by chunk.

    Needs `TierMiddleware` outside, which finds the model and canonicalises path and body. The caller's credential and
    cookies stop here; the model's own credential is put in. A client that leaves closes the upstream at once.
    Errors of the upstream are answered in our envelope: a 4xx keeps its message, its 401 and 403 become 502 (the
    credential was ours), and what breaks off after the first byte raises `UpstreamError` or `UpstreamTimeout`.

    Of several upstreams the one with the fewest requests under way is asked. Another one is asked only where the first
    has not processed the request, because it was not reached or answered 503; where nothing of the body is gone, and
    the balancer lets it. That is not asked where nobody listened: such a retry adds no work to an outage. Of several
    failures the client reads the last.

    Args:
        transport: any httpx transport. It is not closed here.
        balancer: default: one of its own. Who else sends requests to the same upstreams should share it.
        signers: who vouches for callers, by the ids of models whose upstreams are apps that trust this gateway: each
            attempt carries a fresh `x-maas-assertion`, whose audience is `upstream_model`, the name by which the app
            knows the model. No other upstream is sent one. Needs `ErrorEnvelopeMiddleware` outside, which knows the id
            of the request.
        connect_timeout, first_byte_timeout, idle_timeout: seconds to connect, until the first byte of the answer's
            body, and between two of its chunks; the body of an error has to come whole in `idle_timeout`, and a client
            that reads nothing for that long is taken for one that left, one that sends nothing is answered with 408.
            All attempts together have the time of `first_byte_timeout`; what a client takes to send is not counted.
        total_timeout: seconds for the whole exchange; then it is broken off, whatever comes. Default: no limit.
        keepalive_interval: seconds for which an event stream may be silent until the client is sent a comment, which
            is not counted as a chunk. Default: never.
    """

    def __init__(
        self,
        *,
        transport: httpx.AsyncBaseTransport,
        balancer: Balancer | None = None,
        signers: Mapping[str, Signer] | None = None,
        connect_timeout: float = 5.0,
        first_byte_timeout: float = 120.0,
        idle_timeout: float = 60.0,
        total_timeout: float | None = None,
        keepalive_interval: float | None = None,
    ) -> None:
        self._transport = transport
        self._balancer = Balancer() if balancer is None else balancer
        self._signers = dict(signers or {})
        self._idle_timeout = idle_timeout
        self._vigil = partial(
            Vigil, first_byte_timeout=first_byte_timeout, idle_timeout=idle_timeout, total_timeout=total_timeout
        )
        self._answer = partial(Answer, keepalive_interval=keepalive_interval)
        self._destination = lru_cache(maxsize=_MAXIMUM_DESTINATIONS)(Destination)
        timeouts = {"connect": connect_timeout, "pool": connect_timeout, "read": None, "write": None}
        self._extensions = {"timeout": timeouts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"ProxyApp speaks HTTP, not {scope['type']}")
        model = required(ensure_context(scope).model, "ProxyApp", "model", "TierMiddleware")
        vigil = self._vigil(receive)
        answer = self._answer(send, vigil)
        try:
            try:
                with vigil.scope:
                    await self._forward(scope, model, vigil, answer)
            finally:
                await vigil.aclose()
            if vigil.scope.cancelled_caught:
                assert vigil.reason is not None
                raise vigil.reason from None
        except ClientLeft:
            return
        except MaaSError as error:
            if answer.started:
                raise
            await self._refuse(scope, receive, send, error)

    async def _forward(self, scope: Scope, model: Model, vigil: Vigil, answer: Answer) -> None:
        body = RequestBody(vigil)
        await body.read_first()
        failure: UpstreamUnavailable | None = None
        tried: list[Upstream] = []
        costs_nothing = False
        while (upstream := self._choose(model, tried, body, costs_nothing)) is not None:
            tried.append(upstream)
            upstream.begin()
            try:
                request = self._request(scope, upstream, model, body)
                attempt = Attempt(upstream, model, vigil, answer)
                failure = await attempt.run(self._transport, request)
            finally:
                upstream.end()
            if failure is None:
                return
            costs_nothing = attempt.was_refused
        if failure is None:
            raise LookupError(f"model {model.id} has no upstream: TierMiddleware needs a Catalogue with upstreams")
        raise failure

    def _choose(
        self, model: Model, tried: Sequence[Upstream], body: RequestBody, costs_nothing: bool
    ) -> Upstream | None:
        if tried:
            is_possible = len(tried) < len(model.upstreams) and body.can_be_sent_again
            if not (is_possible and (costs_nothing or self._balancer.may_retry(model))):
                return None
            logger.warning("asking another upstream of model %s", model.id)
        return self._balancer.choose(model, tried)

    def _request(self, scope: Scope, upstream: Upstream, model: Model, body: RequestBody) -> httpx.Request:
        destination = self._destination(upstream.url, model.api_key)
        url, headers = destination.url(scope), destination.headers(scope)
        if (signer := self._signers.get(model.id)) is not None:
            headers.append((ASSERTION_HEADER, _assertion(signer, ensure_context(scope), model)))
        return httpx.Request(scope["method"], url, headers=headers, stream=body.stream(), extensions=self._extensions)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: MaaSError) -> None:
        respond = reject if isinstance(error, _OF_THE_CLIENT) else answer_error
        try:
            with anyio.move_on_after(self._idle_timeout):
                await respond(scope, receive, send, error)
        except OSError:  # since ASGI 2.4 a server raises it when the client is gone
            return


def _assertion(signer: Signer, context: MaaSContext, model: Model) -> bytes:
    return signer.sign(
        required(context.identity, "ProxyApp", "identity", "IdentityMiddleware"),
        tier=required(context.tier, "ProxyApp", "tier", "TierMiddleware").name,
        audience=model.upstream_model,
        request_id=required(context.request_id, "ProxyApp", "request id", "ErrorEnvelopeMiddleware"),
    )
