"""How much the caller may use."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from .._asgi import new_id, reject
from .._leases import LEDGER_SECONDS, Leases, peek
from ..admission import Admission, limit_exceeded
from ..charging import Estimate
from ..context import MaaSContext, ensure_context, required
from ..entitlement import subjects_of
from ..errors import AccessDenied, MaaSError
from ..limiting import Demand, Ledger, Subject, limit_headers
from ..recorder import UsageRecorder
from ..tiers import Tier
from ._metered import Metered, estimate_of


class RateLimitMiddleware:
    """Admits a request to an endpoint within the limits of the caller's tier, and settles what it really used.

    The limits are the user's own, those of the user on the model, and those of all users on the model: each is a
    budget, and all have to admit.

    Needs `IdentityMiddleware` and `TierMiddleware` outside, and `UsageMiddleware` inside, without which every answer
    is charged with its estimate. An unmetered endpoint costs a request and no tokens, what is no endpoint nothing;
    WebSockets are refused, since they cannot be counted. Every answer carries `x-ratelimit-*`, and `HEAD` gets them
    for free.

    Args:
        ietf_headers: whether answers also carry `RateLimit-Policy` and `RateLimit`
            (draft-ietf-httpapi-ratelimit-headers-10).
        jitter: a number from 0 to 1; up to 5 % of the wait is added to `retry-after-ms`, so that not all clients come
            back in one instant.
        strict: whether the whole estimate of a request has to be left; else one token is enough, and its last request
            may bring a user over the limit.
        ledger_timeout: seconds that a call of the ledger may take, which is one for each budget; a request that it
            does not admit by then is answered with 503.
        recorder: notes every charge as use of the caller, on the model; default: nothing is recorded.
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
        strict: bool = False,
        ledger_timeout: float = LEDGER_SECONDS,
        recorder: UsageRecorder | None = None,
    ) -> None:
        self.app = app
        self._ledger = ledger
        self._limit_headers = partial(limit_headers, ietf=ietf_headers)
        self._id_factory = id_factory
        self._jitter = jitter
        self._strict = strict
        self._ledger_timeout = ledger_timeout
        self._leases = Leases(ledger, clock, ledger_timeout)
        self._recorder = recorder

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
        subjects = subjects_of(tier, identity, context.model)
        if self._leases.may_be_due:
            await self._leases.renew_due()
        try:
            if scope["method"] == "HEAD":
                await self._tell(subjects, send)
                return
            estimate = estimate_of(context, tier)
            admission = await self._admit(context, tier, subjects, estimate)
        except MaaSError as error:
            await reject(scope, receive, send, error)
            return
        note = None if self._recorder is None else partial(self._recorder.note, identity.key)
        metered = Metered(context, tier, admission, estimate, self._leases, self._limit_headers, note)
        try:
            await metered.run(self.app, scope, receive, send)
        finally:
            if self._recorder is not None:
                await self._recorder.after_request()

    async def _tell(self, subjects: Sequence[Subject], send: Send) -> None:
        admission = await peek(self._ledger, subjects, self._ledger_timeout)
        headers = [*self._limit_headers(admission.shown), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _admit(
        self, context: MaaSContext, tier: Tier, subjects: Sequence[Subject], estimate: Estimate
    ) -> Admission:
        demand = Demand(self._id_factory(), estimate.total, self._strict)
        admission = await self._leases.admit(subjects, demand)
        context.verdict = admission.shown
        if admission.refusal is not None:
            error = limit_exceeded(*admission.refusal, tier.name, self._jitter())
            error.headers = (*self._limit_headers(admission.shown), *error.headers)
            raise error
        return admission
