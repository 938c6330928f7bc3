"""How much the caller may use."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._asgi import BODY_MESSAGES, new_id, reject, with_headers
from .._leases import LEDGER_SECONDS, Leases, peek
from ..admission import Admission, after_failure, after_use, limit_exceeded
from ..charging import Estimate, Outcome, charge_for, estimated_tokens, input_tokens, is_failure
from ..context import MaaSContext, ensure_context, required
from ..entitlement import subjects_of
from ..errors import AccessDenied, MaaSError
from ..limiting import Charge, Demand, Headers, Ledger, Subject, Verdict, limit_headers
from ..recorder import UsageRecorder
from ..tiers import Tier
from ..usage import TokenUsage

logger = logging.getLogger("maas_middleware")

_NOTHING = TokenUsage(0, 0, 0)


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
            estimate = _estimate(context, tier)
            admission = await self._admit(context, tier, subjects, estimate)
        except MaaSError as error:
            await reject(scope, receive, send, error)
            return
        note = None if self._recorder is None else partial(self._recorder.note, identity.key)
        metered = _Metered(context, tier, admission, estimate, self._leases, self._limit_headers, note)
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


class _Metered:
    """One admitted request, from admission to settlement."""

    _status: int | None = None
    _complete = False
    _client_left = False
    _failed = False
    _settled = False

    def __init__(
        self,
        context: MaaSContext,
        tier: Tier,
        admission: Admission,
        estimate: Estimate,
        leases: Leases,
        limit_headers: Callable[[Verdict], Headers],
        note: Callable[[str, Charge, int], None] | None,
    ) -> None:
        self._context = context
        self._tier = tier
        self._admission = admission
        self._estimate = estimate
        self._leases = leases
        self._limit_headers = limit_headers
        self._note = note

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        try:
            await app(scope, self.receive, self.send)
            self._failed = self._status is None
        except MaaSError as error:
            self._failed = True
            if self._status is None:
                error.headers = (*error.headers, *self._limit_headers(after_failure(self._admission.shown)))
            raise
        except Exception:
            self._failed = True
            raise
        finally:
            await self._settle()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._client_left = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            message = self._begun(message)
        elif kind in BODY_MESSAGES and not message.get("more_body", False):
            self._complete = True
            await self._settle()
        await self._send(message)
        if self._leases.may_be_due:
            await self._leases.renew_due()

    def _begun(self, message: Message) -> Message:
        status = self._status = message["status"]
        headers = self._limit_headers(self._verdict_of(status))
        return {**message, "headers": with_headers(message.get("headers", ()), headers)}

    def _verdict_of(self, status: int) -> Verdict:
        shown = self._admission.shown
        if is_failure(status) or self._context.refusal is not None:
            return after_failure(shown)
        if status >= 400:
            return after_use(shown, 0)
        usage = self._context.usage  # known by now, unless the answer is a stream
        return shown if usage is None else after_use(shown, usage.total)

    async def _settle(self) -> None:
        if self._settled:
            return
        self._settled = True
        outcome = self._outcome()
        if outcome.lacks_usage:
            logger.info("request %s was answered without usage", self._context.request_id)
        charge = charge_for(outcome)
        if self._note is not None:
            self._note(self._served_model(outcome), charge, input_tokens(charge, outcome))
        await self._leases.settle(self._admission.leases, charge)

    def _served_model(self, outcome: Outcome) -> str:
        model = self._context.model
        # the name in a request that was refused may be made up, where only the inner app knows its models
        return "" if model is None or outcome.is_refusal else model.id

    def _outcome(self) -> Outcome:
        context = self._context
        return Outcome(
            self._status,
            context.refusal is not None,
            self._failed,
            self._complete,
            self._client_left,
            _NOTHING if _is_unmetered(context) else context.usage,
            context.produced,
            # what a body that passes while it is read asks for is known by now
            self._estimate if context.usage is not None else _estimate(context, self._tier),
            context.reported_failure,
        )


def _is_unmetered(context: MaaSContext) -> bool:
    return context.endpoint is not None and context.endpoint.kind == "unmetered"


def _estimate(context: MaaSContext, tier: Tier) -> Estimate:
    if _is_unmetered(context):
        return Estimate(0, 0)
    dialect = None if context.endpoint is None else context.endpoint.dialect
    if context.request is None or dialect is None:
        return Estimate(0, 1)
    return estimated_tokens(context.request, dialect, tier)
