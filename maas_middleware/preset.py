"""The whole onion, by Settings: in front of an inference app, or as a gateway before model servers."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from ._asgi import reject, route_path
from .assembly import Parts
from .errors import NotConfigured
from .middleware.errors import ErrorEnvelopeMiddleware
from .settings import ConfigurationError, Settings, load_settings

logger = logging.getLogger("maas_middleware")


class MaaSMiddleware:
    """Turns the inference app that it is wrapped round into a Models-as-a-Service.

    It answers `/v1/tokens` and `/v1/models` (also below `/maas-api`), and lets through to the app the endpoints of
    the catalogue for whoever has an access token and quota, and the app's public paths for everyone.

    A configuration that is refused fails the app's startup; where the server runs no lifespan, every guarded request
    is answered with 503.

    Args:
        settings: default: those of the `MAAS_*` environment variables, and of the file that `MAAS_CONFIG` names.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings | None = None) -> None:
        self.app = app
        self._service: ASGIApp
        try:
            self._service = Parts(load_settings() if settings is None else settings).mounted_in(app)
        except ConfigurationError as error:
            self._service = _Unconfigured(app, error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._service(scope, receive, send)


def gateway(settings: Settings | None = None) -> ASGIApp:
    """Make an app that serves the configured models from their upstreams. Any ASGI server runs it.

    Args:
        settings: default: those of the `MAAS_*` environment variables, and of the file that `MAAS_CONFIG` names.

    Raises:
        ConfigurationError: naming every problem.
    """
    return Parts(load_settings() if settings is None else settings).gateway()


class _Unconfigured:
    """Stands in for a service whose configuration was refused."""

    def __init__(self, app: ASGIApp, error: ConfigurationError) -> None:
        self._app = app
        self._error = error
        self._refusal = ErrorEnvelopeMiddleware(_refuse)
        self._public_paths = frozenset(Settings().public_paths)
        logger.error("the configuration was refused:\n%s", error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(self._error)})
        elif route_path(scope) in self._public_paths:
            await self._app(scope, receive, send)
        else:
            await self._refusal(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await reject(scope, receive, send, NotConfigured())
