"""How often the caller may ask."""

from __future__ import annotations

import random
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from .._asgi import reject
from ..context import ensure_context, required
from ..errors import RateLimitExceeded
from ..throttling import Throttle, check_throttle


class ThrottleMiddleware:
    """Lets each user pass so many times, over HTTP or WebSocket and with any method, and answers 429 above that.

    It is for control routes, which the limits of a tier do not count. Needs `IdentityMiddleware` outside.

    Args:
        limit: what the limit is called in the answer.
        jitter: a number from 0 to 1; up to 5 % of the wait is added to `retry-after-ms`, so that not all clients come
            back in one instant.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        throttle: Throttle,
        limit: str = "control_requests",
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.app = app
        self._throttle = throttle
        self._limit = limit
        self._jitter = jitter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        identity = required(ensure_context(scope).identity, "ThrottleMiddleware", "identity", "IdentityMiddleware")
        try:
            # a login that has to revoke a leaked token is not held up by whoever asks with that
            key = identity.key if identity.restriction is None else f"[restricted]{identity.key}"
            await check_throttle(self._throttle, key, self._limit, jitter=self._jitter)
        except RateLimitExceeded as error:
            await reject(scope, receive, send, error)
            return
        await self.app(scope, receive, send)
