"""What the caller may use."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from .._asgi import (
    BODY_SECONDS,
    MAXIMUM_BODY_BYTES,
    ClientLeft,
    content_length,
    read_json,
    reject,
    route_path,
    with_body,
    with_route_path,
)
from .._forms import FormRequest, read_form, with_form
from .._leases import peek
from .._uploads import Upload
from ..admission import Admission, limit_exceeded
from ..catalogue import Catalogue, Model
from ..context import MaaSContext, ensure_context, required
from ..dialects import Dialect
from ..endpoints import INVOCATIONS, Endpoint, invoked
from ..entitlement import check_endpoint, check_features, check_ownership, subjects_of, within_cap
from ..errors import AccessDenied, InvalidRequest, MaaSError, ModelNotFound, NotFound, StoreUnavailable
from ..limiting import Ledger, limit_headers
from ..tiers import Tier, TierResolver

logger = logging.getLogger("maas_middleware")

_LARGE_BYTES = 64 << 10


class TierMiddleware:
    """Resolves the caller's tier on every request, and lets it have only the models of that tier.

    Needs `IdentityMiddleware` outside. A request to an endpoint of the catalogue is forwarded under its canonical path
    (one to `/invocations` under that of the endpoint that its fields tell of), with a body that was decoded at the top
    level, judged and encoded again: one value a key, the model under the name that its server knows, no feature that
    the tier lacks, and within `max_tokens_per_request`. A form is held until it was judged as a whole, unless the path
    names the model: then it is forwarded while it comes, and so are octets.

    Args:
        catalogue: default: any model, and it is the inner app that says which there are.
        unlisted: what happens to a path that is no endpoint: `refuse` (404), or `pass`: it does, and
            costs nothing. Never let a route of a model server pass like that.
        ledger: where given, refusals tell the caller's rate limits in their headers too, and whoever is over one is
            refused before a large body is read.
        max_body_bytes: what is over it is answered with 413.
        body_timeout: seconds that a body may take to arrive; then it is answered with 408. Of a body that is forwarded
            while it comes they are those that the client keeps us waiting.
        ietf_headers, jitter: as in `RateLimitMiddleware`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        resolver: TierResolver,
        catalogue: Catalogue | None = None,
        unlisted: Literal["refuse", "pass"] = "refuse",
        ledger: Ledger | None = None,
        max_body_bytes: int = MAXIMUM_BODY_BYTES,
        body_timeout: float = BODY_SECONDS,
        ietf_headers: bool = False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.app = app
        self._resolver = resolver
        self._catalogue = Catalogue() if catalogue is None else catalogue
        self._passes_unlisted = unlisted == "pass"
        self._ledger = ledger
        self._max_body_bytes = max_body_bytes
        self._body_timeout = body_timeout
        self._limit_headers = partial(limit_headers, ietf=ietf_headers)
        self._jitter = jitter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        context = ensure_context(scope)
        identity = required(context.identity, "TierMiddleware", "identity", "IdentityMiddleware")
        try:
            try:
                tier = context.tier = await self._resolver.resolve(identity)
                scope, receive = await self._admit(context, tier, scope, receive)
            except ClientLeft:
                return
            except MaaSError as error:
                await self._refuse(context, scope, receive, send, error)
                return
            if isinstance(context.request, Upload):
                if (refusal := await context.request.run(self.app, send)) is not None:
                    await self._refuse(context, scope, receive, send, refusal)
                return
            await self.app(scope, receive, send)
        finally:
            if isinstance(context.request, FormRequest):
                await context.request.aclose()

    async def _admit(self, context: MaaSContext, tier: Tier, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        location = self._catalogue.locate(route_path(scope))
        if scope["type"] == "websocket" or not location.endpoints:
            if location.endpoints or not self._passes_unlisted:
                raise NotFound
            return scope, receive
        endpoint = location.endpoint(scope["method"])
        dialect = _served_dialect(endpoint)
        context.endpoint = endpoint
        if location.model is not None:
            context.model = self._catalogue.model(location.model.id, tier)
        scope = with_route_path(scope, location.path)
        if scope["method"] == "HEAD":
            return scope, receive
        check_endpoint(endpoint, tier)
        if _may_be_large(scope):
            await self._refuse_early(context, endpoint, tier)
        if dialect.is_form and context.model is not None:
            upload = context.request = Upload(
                scope, receive, context.model, tier, limit=self._max_body_bytes, seconds=self._body_timeout
            )
            await upload.read_fields()
            return upload.scope, receive
        read = read_form if dialect.is_form else read_json
        request = context.request = await read(scope, receive, self._max_body_bytes, self._body_timeout)
        model = context.model = self._model(context.model, request.model, endpoint, tier)
        check_features(request, tier)
        if isinstance(request, FormRequest):
            request = context.request = request.naming(model.upstream_model)
            return with_form(scope, receive, request)
        if endpoint is INVOCATIONS:
            endpoint = context.endpoint = invoked(request)
            dialect = _served_dialect(endpoint)
            check_endpoint(endpoint, tier)
            scope = with_route_path(scope, endpoint.path)
        check_ownership(request, dialect)
        request = context.request = within_cap(request, dialect, tier, model).naming(model.upstream_model)
        return with_body(scope, receive, request.encoded)

    def _model(self, located: Model | None, named: str | None, endpoint: Endpoint, tier: Tier) -> Model:
        if located is not None:
            if named is not None and not located.is_called(named):
                raise ModelNotFound(named)
            return located
        if not named and endpoint is INVOCATIONS and len(self._catalogue.models) == 1:
            named = self._catalogue.models[0].id  # clients of SageMaker name none
        if not named:
            raise InvalidRequest("`model` is required", code="missing_required_parameter", param="model")
        return self._catalogue.model(named, tier)

    async def _refuse_early(self, context: MaaSContext, endpoint: Endpoint, tier: Tier) -> None:
        """Who is over a limit is told before a large body is read: reading costs time, and a refusal is free."""
        admission = await self._peek(context)
        refusal = None if admission is None else admission.refusal
        if refusal is not None and (endpoint.kind == "billable" or refusal[1].refused_by != "tokens"):
            raise limit_exceeded(*refusal, tier.name, self._jitter())

    async def _refuse(self, context: MaaSContext, scope: Scope, receive: Receive, send: Send, error: MaaSError) -> None:
        if context.endpoint is not None and (admission := await self._peek(context)) is not None:
            error.headers = (*error.headers, *self._limit_headers(admission.shown))
        await reject(scope, receive, send, error)

    async def _peek(self, context: MaaSContext) -> Admission | None:
        if self._ledger is None or context.identity is None or context.tier is None:
            return None
        try:
            return await peek(self._ledger, subjects_of(context.tier, context.identity, context.model))
        except StoreUnavailable:  # who knows of it logs it
            return None
        except Exception:  # a ledger in trouble decides nothing here
            logger.exception("the ledger failed on request %s", context.request_id)
            return None


def _may_be_large(scope: Scope) -> bool:
    length = content_length(scope["headers"])
    return length is None or length > _LARGE_BYTES


def _served_dialect(endpoint: Endpoint) -> Dialect:
    if endpoint.kind == "administrative":
        raise AccessDenied("This route is for the operators of the model server alone")
    if endpoint.dialect is None:
        raise NotFound
    return endpoint.dialect
