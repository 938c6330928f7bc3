"""The whole onion, by Settings: in front of an inference app, or as a gateway before model servers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from ._asgi import reject, route_path
from ._lifespan import Service
from ._mounting import mounted_in
from .assembly import Parts
from .context import GUARDED
from .errors import NotConfigured
from .middleware.errors import ErrorEnvelopeMiddleware
from .settings import ConfigurationError, Settings, load_settings

logger = logging.getLogger("maas_middleware")


class MaaSMiddleware:
    """Turns the inference app that it is wrapped round into a Models-as-a-Service.

    It answers `/v1/tokens` and `/v1/models` (also below `/maas-api`), and lets through to the app the endpoints of
    the catalogue for whoever has an access token and quota, its administrative routes for administrators, and its
    public paths for everyone.

    A configuration that is refused fails the app's startup; where the server runs no lifespan, every guarded request
    is answered with 503. Applied twice, the second one lets pass what the first has let through, and logs a warning.

    Args:
        settings: default: those of the `MAAS_*` environment variables, and of the file that `MAAS_CONFIG` names.
        clock: seconds, by which limits are counted where they are counted in memory; a test's own, for example.
    """

    def __init__(
        self, app: ASGIApp, *, settings: Settings | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app = app
        self._service: ASGIApp
        self._twice = _Twice(app)
        try:
            self._service = mounted_in(app, Parts(load_settings() if settings is None else settings, clock))
        except ConfigurationError as error:
            self._service = _Unconfigured(app, error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._twice if GUARDED in scope else self._service
        if scope["type"] == "lifespan":
            scope = {**scope, GUARDED: True}
        await service(scope, receive, send)

    async def aclose(self) -> None:
        """Close what the service holds open. It is for mount points: a lifespan that gets here does so at its end."""
        if isinstance(self._service, Service):
            await self._service.aclose()


def gateway(settings: Settings | None = None, *, clock: Callable[[], float] = time.monotonic) -> ASGIApp:
    """Make an app that serves the configured models from their upstreams. Any ASGI server runs it.

    Args:
        settings: default: those of the `MAAS_*` environment variables, and of the file that `MAAS_CONFIG` names.
        clock: seconds, by which limits are counted where they are counted in memory; a test's own, for example.

    Raises:
        ConfigurationError: naming every problem.
    """
    return Parts(load_settings() if settings is None else settings, clock).gateway()


class _Twice:
    """Stands in for a service inside of another one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._warnings = ["MaaSMiddleware is applied twice: the inner one lets pass what the outer one has let through"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while self._warnings:
            logger.warning(self._warnings.pop())
        await self._app(scope, receive, send)


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
