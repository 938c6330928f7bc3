"""`/v1/models`: the models of the caller's tier, and only those."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._asgi import path_below, serve
from ..catalogue import Catalogue, Model
from ..context import MOUNT_POINT, ensure_context, required
from ..endpoints import MODELS
from ..tiers import Tier
from ._model_rows import Row, Tiers, base_url, check_reading, listing, looked_up, model_row, quoted_path


class ModelsApp:
    """Lists models. `IdentityMiddleware` and `TierMiddleware(unlisted="pass")` are outside.

    Mounted at `/v1/models`, or routed to for `/v1/models` and `/v1/models/{id:path}`.

    `GET /` answers `{"object": "list", "data": [{"id", "object", "created", "owned_by", "name", "url", "tier",
    "ready"}]}`, `GET /{id}` one of the rows. Where the context names a model already, it is the only one.

    Args:
        tiers: those in force, to name the lowest one that may use a model.
        public_url: what the URLs of the models begin with; default: the request's own scheme, host and mount point.
        is_ready: tells a model's `ready`, as `Balancer.is_ready` does; default: every one is.
        clock: seconds since the epoch; a model's `created` is when the app was made.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        tiers: Tiers,
        public_url: str | None = None,
        is_ready: Callable[[Model], bool] = lambda _: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalogue = catalogue
        self._tiers = looked_up(tiers)
        self._public_url = public_url
        self._is_ready = is_ready
        self._created = int(clock())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, send, self._respond)

    async def _respond(self, request: Request) -> Response:
        context = ensure_context(request.scope)
        tier = required(context.tier, "ModelsApp", "tier", "TierMiddleware")
        check_reading(request)
        base = base_url(request, self._public_url)
        # a mount point that is a version has no room for paths of models
        has_paths = MOUNT_POINT not in request.scope
        if model_id := path_below(request.scope, MODELS).strip("/"):
            return JSONResponse(self._row(self._catalogue.model(model_id, tier), tier, base, has_paths))
        models = self._catalogue.models_for(tier)
        if context.model is not None:
            models = [self._catalogue.model(context.model.id, tier)]
        return JSONResponse(listing(self._row(model, tier, base, has_paths) for model in models))

    def _row(self, model: Model, callers: Tier, base: str, has_path: bool) -> Row:
        return model_row(
            model.id,
            name=model.name,
            created=self._created,
            owned_by="maas",
            url=base + quoted_path(model.path) if has_path else base,
            # the tiers may have changed since the caller's was resolved
            tiers=[tier for tier in self._tiers() if model.is_for(tier)] or [callers],
            ready=self._is_ready(model),
        )
