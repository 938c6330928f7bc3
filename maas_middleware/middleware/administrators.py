"""Who may ask a model server for more than inference."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._asgi import reject, route_path
from ..audit import AuditRecord, Outcome, write_audit_record
from ..context import ensure_context, required
from ..entitlement import check_administrator
from ..errors import MaaSError, NotFound


class AdministratorsMiddleware:
    """Lets administrators pass, and nobody else. `IdentityMiddleware` is outside.

    It guards the administrative routes of a model server: loading adapters, scaling, profiling, putting it to sleep.
    Every request becomes an `AuditRecord` in the log `maas_middleware.audit`, with the method and the path; it is
    `done` when the app answered with a success, or sent the client elsewhere.

    Args:
        administrators: the groups that may; whoever comes with another credential than a full login is answered with
            403.
        clock: seconds since the epoch.
    """

    def __init__(
        self, app: ASGIApp, *, administrators: Collection[str], clock: Callable[[], float] = time.time
    ) -> None:
        self.app = app
        self._administrators = administrators
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await reject(scope, receive, send, NotFound())
            return
        context = ensure_context(scope)
        actor = required(context.identity, "AdministratorsMiddleware", "identity", "IdentityMiddleware")
        event = f"admin.server {scope['method']} {route_path(scope)}"
        outcome: Outcome = "denied"

        async def send_watched(message: Message) -> None:
            nonlocal outcome
            if message["type"] == "http.response.start" and message["status"] < 400:
                outcome = "done"
            await send(message)

        try:
            check_administrator(actor, self._administrators)
            outcome = "failed"
            await self.app(scope, receive, send_watched)
        except MaaSError as error:
            if outcome != "denied":
                raise
            await reject(scope, receive, send, error)
        finally:
            write_audit_record(AuditRecord(event, actor.key, None, self._clock(), context.request_id, outcome))
