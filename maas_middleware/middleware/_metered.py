"""A request from its admission to its settlement."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import anyio
from anyio.lowlevel import checkpoint
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._asgi import BODY_MESSAGES, with_headers
from .._leases import Leases
from .._uploads import Upload
from ..admission import Admission, after_failure, after_use
from ..charging import Estimate, Outcome, charge_for, estimated_tokens, input_tokens, is_failure
from ..context import MaaSContext
from ..errors import MaaSError
from ..limiting import Charge, Headers, Verdict
from ..tiers import Tier
from ..usage import TokenUsage

logger = logging.getLogger("maas_middleware")

_NOTHING = TokenUsage(0, 0, 0)
_LOOK_SECONDS = 0.01


class Metered:
    """One admitted request: what is sent for it gets the limits, and when it has ended, however, it is settled once.

    Args:
        estimate: what it was admitted for.
        limit_headers: tells a verdict.
        note: is told the model, the charge and how many of its tokens are the prompt's.
    """

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
        """Call the app. What it raises passes on: a `MaaSError` before the answer gets the limits into its headers."""
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
        except asyncio.CancelledError:  # by a server that stops, or by one that does so when the client left
            if self._status is None:
                await self._look_for_client()
            self._failed = True
            raise
        except Exception:
            self._failed = True
            raise
        finally:
            await self._settle()

    async def _look_for_client(self) -> None:
        with anyio.move_on_after(_LOOK_SECONDS, shield=True), suppress(Exception):
            while not self._client_left:
                await self.receive()  # which may have a body for us
                await checkpoint()

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
            estimate_of(context, self._tier) if isinstance(context.request, Upload) else self._estimate,
            context.reported_failure,
        )


def _is_unmetered(context: MaaSContext) -> bool:
    return context.endpoint is not None and context.endpoint.kind == "unmetered"


def estimate_of(context: MaaSContext, tier: Tier) -> Estimate:
    """What a request may use, as far as its body is known."""
    if _is_unmetered(context):
        return Estimate(0, 0)
    dialect = None if context.endpoint is None else context.endpoint.dialect
    if context.request is None or dialect is None:
        return Estimate(0, 1)
    return estimated_tokens(context.request, dialect, tier)
