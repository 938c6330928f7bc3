"""What a caller may use whom a gateway vouches for."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from .._asgi import reject, route_path
from ..catalogue import Catalogue, Model
from ..context import ensure_context
from ..errors import AccessDenied, MaaSError
from ..identity import AssertedIdentity
from ..tiers import Tier


class AudienceMiddleware:
    """Takes the model from an assertion; whatever else in the request names one has to name that one.

    `IdentityMiddleware` with a `SignedProvider` is outside, `TierMiddleware` inside, which reads the body.

    Raises:
        LookupError: the caller is no `AssertedIdentity`.
    """

    def __init__(self, app: ASGIApp, *, catalogue: Catalogue) -> None:
        self.app = app
        self._catalogue = catalogue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        context = ensure_context(scope)
        identity = context.identity
        if not isinstance(identity, AssertedIdentity):
            raise LookupError(
                "AudienceMiddleware needs an assertion: wrap it in IdentityMiddleware with a SignedProvider"
            )
        try:
            context.model = self._model(identity, route_path(scope))
        except MaaSError as error:
            await reject(scope, receive, send, error)
            return
        await self.app(scope, receive, send)

    def _model(self, identity: AssertedIdentity, path: str) -> Model:
        located = self._catalogue.locate(path).model
        if located is not None and not located.is_called(identity.audience):
            raise AccessDenied
        return self._catalogue.model(identity.audience, Tier(identity.tier))
