"""`/v1/tiers/lookup`: the tier that groups lead to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._asgi import path_below, serve
from ..context import ensure_context, required
from ..errors import AccessDenied, InvalidRequest, MethodNotAllowed, NotFound, NoTier
from ..identity import Identity
from ..tiers import TierResolver
from ._objects import read_object


class TierLookupApp:
    """Tells callers who logged in which tier somebody in some groups is in. `IdentityMiddleware` is outside.

    Mounted at `/v1/tiers/lookup`, or routed to.

    `POST /` with `{"groups": ["a", "b"]}` answers `{"tier", "displayName"}`, or 404 where they lead to none.

    Args:
        resolver: is asked about a user who does not exist, in exactly these groups.
    """

    def __init__(self, *, resolver: TierResolver) -> None:
        self._resolver = resolver

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, send, self._respond)

    async def _respond(self, request: Request) -> Response:
        identity = required(ensure_context(request.scope).identity, "TierLookupApp", "identity", "IdentityMiddleware")
        if identity.restriction is not None:
            raise AccessDenied("Only a full login may look up tiers")
        if path_below(request.scope, "/v1/tiers/lookup") not in ("", "/"):
            raise NotFound
        if request.method != "POST":
            raise MethodNotAllowed("POST")
        groups = _groups(await read_object(request.receive))
        try:
            tier = await self._resolver.resolve(Identity("tier-lookup", "anyone", groups))
        except NoTier:
            raise NotFound("None of these groups gives access to a tier") from None
        return JSONResponse({"tier": tier.name, "displayName": tier.display_name})


def _groups(asked: Mapping[str, Any]) -> tuple[str, ...]:
    groups = asked.get("groups")
    if not isinstance(groups, list) or not groups or not all(isinstance(group, str) for group in groups):
        raise InvalidRequest("`groups` has to be a list of at least one name", code="invalid_value", param="groups")
    return tuple(groups)
