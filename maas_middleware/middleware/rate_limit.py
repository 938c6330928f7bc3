"""How much the caller may use."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._asgi import BODY_MESSAGES, LEDGER_SECONDS, in_time, new_id, reject, required, with_headers
from ..charging import Outcome, charge_for, estimated_tokens, is_failure
from ..context import MaaSContext, ensure_context
from ..errors import AccessDenied, MaaSError
from ..limiting import (
    Charge,
    Demand,
    Headers,
    Lease,
    Ledger,
    Subject,
    Verdict,
    after_failure,
    after_use,
    limit_exceeded,
    limit_headers,
)
from ..tiers import Tier

logger = logging.getLogger("maas_middleware")

RENEWAL_SECONDS = 30.0


class RateLimitMiddleware:
    """Admits a request to an endpoint within the limits of the caller's tier, and settles what it really used.

    Needs `IdentityMiddleware` and `TierMiddleware` outside, and `UsageMiddleware` inside, without which every answer
    is charged with its estimate. An unmetered endpoint costs a request and no tokens, what is no endpoint nothing;
    WebSockets are refused, since they cannot be counted. Every answer carries `x-ratelimit-*`, and `HEAD` gets them
    for free.

    Args:
        ietf_headers: whether answers also carry `RateLimit-Policy` and `RateLimit`
            (draft-ietf-httpapi-ratelimit-headers-10).
        jitter: a number from 0 to 1; up to 5 % of the wait is added to `retry-after-ms`, so that not all clients come
            back in one instant.
        ledger_timeout: seconds that a ledger may take; a request that it does not admit by then is answered with 503.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        ledger: Ledger,
        ietf_headers: bool = False,
        id_factory: Callable[[], str] = new_id,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        ledger_timeout: float = LEDGER_SECONDS,
    ) -> None:
        self.app = app
        self._ledger = ledger
        self._limit_headers = partial(limit_headers, ietf=ietf_headers)
        self._id_factory = id_factory
        self._jitter = jitter
        self._ledger_timeout = ledger_timeout
        self._live = _LiveLeases(ledger, clock, ledger_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await reject(scope, receive, send, AccessDenied("WebSockets cannot be metered and are not served"))
            return
        context = ensure_context(scope)
        identity = required(context.identity, "RateLimitMiddleware", "identity", "IdentityMiddleware")
        tier = required(context.tier, "RateLimitMiddleware", "tier", "TierMiddleware")
        if context.endpoint is None:
            await self.app(scope, receive, send)
            return
        subject = tier.subject(identity)
        await self._live.renew_due()
        try:
            if scope["method"] == "HEAD":
                await self._tell(subject, send)
                return
            estimate = _estimate(context, tier)
            verdict, lease = await self._admit(context, tier, subject, estimate)
        except MaaSError as error:
            await reject(scope, receive, send, error)
            return
        metered = _Metered(context, verdict, lease, estimate, self._live, self._limit_headers)
        await metered.run(self.app, scope, receive, send)

    async def _tell(self, subject: Subject, send: Send) -> None:
        verdict = await in_time(self._ledger.peek(subject), self._ledger_timeout)
        headers = [*self._limit_headers(verdict), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _admit(self, context: MaaSContext, tier: Tier, subject: Subject, estimate: int) -> tuple[Verdict, Lease]:
        demand = Demand(self._id_factory(), estimate)
        verdict = context.verdict = await in_time(self._ledger.admit(subject, demand), self._ledger_timeout)
        if verdict.lease is None:
            error = limit_exceeded(verdict, tier.name, self._jitter())
            error.headers = (*self._limit_headers(verdict), *error.headers)
            raise error
        context.lease = verdict.lease
        return verdict, verdict.lease


class _LiveLeases:
    """Keeps the leases of calls that are under way from lapsing, also of those that are silent for long.

    There is no task for it: whenever a request or a piece of an answer passes, those that are due are renewed. Until
    then nobody has seen them lapse in this process, and the ledger brings them back.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float], timeout: float) -> None:
        self._ledger = ledger
        self._clock = clock
        self._timeout = timeout
        self._due: dict[str, tuple[float, Lease]] = {}  # soonest first

    def add(self, lease: Lease) -> None:
        self._due[lease.id] = (self._clock() + RENEWAL_SECONDS, lease)

    async def settle(self, lease: Lease, charge: Charge) -> None:
        self._due.pop(lease.id, None)
        await self._count(self._ledger.settle(lease, charge))

    async def renew_due(self) -> None:
        now = self._clock()
        while self._due:
            due_at, lease = next(iter(self._due.values()))
            if due_at > now:
                return
            del self._due[lease.id]
            self.add(lease)
            await self._count(self._ledger.renew(lease))

    async def _count(self, operation: Awaitable[None]) -> None:
        try:
            await in_time(operation, self._timeout)
        except Exception:  # a ledger in trouble must not break an answer off
            logger.exception("the ledger failed")


class _Metered:
    """One admitted request, from admission to settlement."""

    def __init__(
        self,
        context: MaaSContext,
        verdict: Verdict,
        lease: Lease,
        estimate: int,
        live: _LiveLeases,
        limit_headers: Callable[[Verdict], Headers],
    ) -> None:
        self._context = context
        self._verdict = verdict
        self._lease = lease
        self._estimate = estimate
        self._live = live
        self._limit_headers = limit_headers
        self._status: int | None = None
        self._complete = False
        self._client_left = False
        self._failed = False
        self._settled = False

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def watching_receive() -> Message:
            message = await receive()
            self._client_left |= message["type"] == "http.disconnect"
            return message

        async def metering_send(message: Message) -> None:
            await send(await self._meter(message))

        self._live.add(self._lease)
        try:
            await app(scope, watching_receive, metering_send)
            self._failed = self._status is None
        except MaaSError as error:
            self._failed = True
            if self._status is None:
                error.headers = (*error.headers, *self._limit_headers(after_failure(self._verdict)))
            raise
        except Exception:
            self._failed = True
            raise
        finally:
            await self._settle()

    async def _meter(self, message: Message) -> Message:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = self._limit_headers(self._verdict_of(message["status"]))
            return {**message, "headers": with_headers(message.get("headers", ()), headers)}
        if message["type"] in BODY_MESSAGES and not message.get("more_body", False):
            self._complete = True
            await self._settle()
        await self._live.renew_due()
        return message

    def _verdict_of(self, status: int) -> Verdict:
        if is_failure(status) or self._context.refusal is not None:
            return after_failure(self._verdict)
        if status >= 400:
            return after_use(self._verdict, 0)
        usage = self._context.usage  # known by now, unless the answer is a stream
        return self._verdict if usage is None else after_use(self._verdict, usage.total)

    async def _settle(self) -> None:
        if not self._settled:
            self._settled = True
            outcome = self._outcome()
            if outcome.lacks_usage:
                logger.info("request %s was answered without usage", self._context.request_id)
            await self._live.settle(self._lease, charge_for(outcome))

    def _outcome(self) -> Outcome:
        context = self._context
        used = None if context.usage is None else context.usage.total
        return Outcome(
            status=self._status,
            refused=context.refusal is not None,
            failed=self._failed,
            complete=self._complete,
            client_left=self._client_left,
            used=0 if _is_unmetered(context) else used,
            produced=context.produced,
            prompt=0 if context.request is None else context.request.prompt_tokens,
            estimate=self._estimate,
            reported_failure=context.reported_failure,
        )


def _is_unmetered(context: MaaSContext) -> bool:
    return context.endpoint is not None and context.endpoint.kind == "unmetered"


def _estimate(context: MaaSContext, tier: Tier) -> int:
    if _is_unmetered(context):
        return 0
    dialect = None if context.endpoint is None else context.endpoint.dialect
    if context.request is None or dialect is None:
        return 1
    return estimated_tokens(context.request, dialect, tier)
