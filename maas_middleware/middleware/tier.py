"""What the caller may use."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from .._asgi import (
    MAXIMUM_BODY_BYTES,
    ClientLeft,
    header_value,
    in_time,
    read_request,
    reject,
    required,
    route_path,
    with_body,
    with_route_path,
)
from ..catalogue import Catalogue, Location
from ..context import MaaSContext, ensure_context
from ..errors import InvalidRequest, MaaSError, MethodNotAllowed, ModelNotFound, NotFound
from ..limiting import Ledger, Verdict, limit_exceeded, rate_limit_headers
from ..tiers import Tier, TierResolver

logger = logging.getLogger("maas_middleware")

_LARGE_BYTES = 64 << 10


class TierMiddleware:
    """Resolves the caller's tier on every request, and lets it have only the models of that tier.

    Needs `IdentityMiddleware` outside. A request to an endpoint of the catalogue is forwarded under its canonical path,
    with a body that was decoded at the top level, judged and encoded again: one value a key, the model under the name
    that its server knows.

    Args:
        catalogue: default: any model, and it is the inner app that says which there are.
        unlisted: what happens to a path that is no endpoint: `refuse` (404), or `unmetered`: it passes, and
            costs nothing. Never let a route of a model server pass like that.
        ledger: where given, refusals tell the caller's rate limits in their headers too, and whoever is over one is
            refused before a large body is read.
        max_body_bytes: what is over it is answered with 413.
        jitter: as in `RateLimitMiddleware`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        resolver: TierResolver,
        catalogue: Catalogue | None = None,
        unlisted: Literal["refuse", "unmetered"] = "refuse",
        ledger: Ledger | None = None,
        max_body_bytes: int = MAXIMUM_BODY_BYTES,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.app = app
        self._resolver = resolver
        self._catalogue = Catalogue() if catalogue is None else catalogue
        self._passes_unlisted = unlisted == "unmetered"
        self._ledger = ledger
        self._max_body_bytes = max_body_bytes
        self._jitter = jitter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        context = ensure_context(scope)
        identity = required(context.identity, "TierMiddleware", "identity", "IdentityMiddleware")
        try:
            context.tier = await self._resolver.resolve(identity)
            scope, receive = await self._admit(context, context.tier, scope, receive)
        except ClientLeft:
            return
        except MaaSError as error:
            await self._add_limits(context, error)
            await reject(scope, receive, send, error)
            return
        await self.app(scope, receive, send)

    async def _admit(self, context: MaaSContext, tier: Tier, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        location = self._catalogue.locate(route_path(scope))
        if scope["type"] == "websocket" or not location.endpoints:
            if not self._passes_unlisted:
                raise NotFound
            return scope, receive
        method = scope["method"]
        if method == "HEAD":
            context.endpoint = next(iter(location.endpoints.values()))
        elif (endpoint := location.endpoints.get(method)) is not None:
            context.endpoint = endpoint
        else:
            raise MethodNotAllowed(*location.endpoints, "HEAD")
        if location.model is not None:
            context.model = self._catalogue.model(location.model.id, tier)
        scope = with_route_path(scope, location.path)
        return (scope, receive) if method == "HEAD" else await self._judge(context, tier, location, scope, receive)

    async def _judge(
        self, context: MaaSContext, tier: Tier, location: Location, scope: Scope, receive: Receive
    ) -> tuple[Scope, Receive]:
        await self._refuse_early(context, tier, scope)
        request = await read_request(scope, receive, self._max_body_bytes)
        if context.model is None:
            if not request.model:
                raise InvalidRequest("`model` is required", code="missing_required_parameter", param="model")
            context.model = self._catalogue.model(request.model, tier)
        elif request.model not in (None, context.model.id):
            raise ModelNotFound(request.model)
        context.request = request = request.naming(context.model.upstream_model)
        return with_body(scope, receive, request.encoded)

    async def _refuse_early(self, context: MaaSContext, tier: Tier, scope: Scope) -> None:
        """Who is over a limit is told before a large body is read: reading costs time, and a refusal is free."""
        verdict = await self._peek(context) if _may_be_large(scope) else None
        if verdict is not None and verdict.refused_by is not None:
            raise limit_exceeded(verdict, tier.name, self._jitter())

    async def _add_limits(self, context: MaaSContext, error: MaaSError) -> None:
        if context.endpoint is not None and (verdict := await self._peek(context)) is not None:
            error.headers = (*error.headers, *rate_limit_headers(verdict))

    async def _peek(self, context: MaaSContext) -> Verdict | None:
        if self._ledger is None or context.identity is None or context.tier is None:
            return None
        try:
            return await in_time(self._ledger.peek(context.tier.subject(context.identity)))
        except Exception:  # a ledger in trouble decides nothing here
            logger.exception("the ledger failed on request %s", context.request_id)
            return None


def _may_be_large(scope: Scope) -> bool:
    length = header_value(scope["headers"], b"content-length")
    return not length.isdigit() or int(length) > _LARGE_BYTES
