"""`/v1/models`: the models of the caller's tier, and only those."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._asgi import path_below, serve
from ..catalogue import Catalogue, Model
from ..context import ensure_context, required
from ..endpoints import CHAT_COMPLETIONS, MODELS
from ..errors import MethodNotAllowed
from ..tiers import Tier

_HOST = re.compile(r"[A-Za-z0-9._~-]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?")
_PATH_CHARACTERS = "/:@!$&'()*+,;="  # RFC 3986 3.3


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
        tiers: Sequence[Tier] | Callable[[], Sequence[Tier]],
        public_url: str | None = None,
        is_ready: Callable[[Model], bool] = lambda _: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalogue = catalogue
        self._tiers = tiers if callable(tiers) else lambda: tiers
        self._public_url = public_url
        self._is_ready = is_ready
        self._created = int(clock())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, send, self._respond)

    async def _respond(self, request: Request) -> Response:
        context = ensure_context(request.scope)
        tier = required(context.tier, "ModelsApp", "tier", "TierMiddleware")
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed("GET", "HEAD")
        base = self._public_url or _base_url(request)
        if model_id := path_below(request.scope, MODELS).strip("/"):
            return JSONResponse(self._row(self._catalogue.model(model_id, tier), tier, base))
        models = self._catalogue.models_for(tier)
        if context.model is not None:
            models = [self._catalogue.model(context.model.id, tier)]
        return JSONResponse({"object": "list", "data": [self._row(model, tier, base) for model in models]})

    def _row(self, model: Model, callers: Tier, base: str) -> dict[str, Any]:
        # the tiers may have changed since the caller's was resolved
        entitled = [tier for tier in self._tiers() if model.is_for(tier)] or [callers]
        return {
            "id": model.id,
            "object": "model",
            "created": self._created,
            "owned_by": "maas",
            "name": model.name,
            "url": f"{base}{quote(model.path, _PATH_CHARACTERS)}{CHAT_COMPLETIONS}",
            "tier": min(entitled, key=lambda tier: tier.level).name,
            "ready": self._is_ready(model),
        }


def _base_url(request: Request) -> str:
    scope = request.scope
    root = scope.get("app_root_path", scope.get("root_path", "")).rstrip("/")
    host = request.headers.get("host", "localhost")
    return f"{scope.get('scheme', 'http')}://{host if _HOST.fullmatch(host) else 'localhost'}{root}"
