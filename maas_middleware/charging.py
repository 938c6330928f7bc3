"""What a request costs, by how it ended."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from .dialects import Dialect
from .limiting import Charge
from .requests import InferenceRequest
from .tiers import Tier
from .usage import TokenUsage

_MAXIMUM_ESTIMATE = 2**53 - 1  # the integers of any ledger


class Estimate(NamedTuple):
    """How many tokens a request may use: its prompt, and prompt and output together."""

    prompt: int
    total: int


def estimated_tokens(request: InferenceRequest, dialect: Dialect, tier: Tier) -> Estimate:
    """What a request may use. An output without a cap is taken for the tier's cap, or else for the dialect's."""
    prompt = request.prompt_tokens
    return Estimate(prompt, min(prompt + _output_tokens(request, dialect, tier), _MAXIMUM_ESTIMATE))


def _output_tokens(request: InferenceRequest, dialect: Dialect, tier: Tier) -> int:
    if request.cap is not None or not dialect.output_tokens:
        return (request.cap or 0) * request.answers
    if tier.max_tokens_per_request is not None:
        return tier.max_tokens_per_request
    return dialect.output_tokens * request.answers


def is_failure(status: int) -> bool:
    """Whether the model failed: 401 and 403 are about a credential of ours."""
    return status >= 500 or status in (401, 403)


class Outcome(msgspec.Struct, frozen=True):
    """How an admitted request ended.

    Attributes:
        status: of the answer; None where none began.
        refused: whether one of our own shells answered.
        failed: whether the app raised or answered nothing.
        complete: whether the answer was ended.
        client_left: whether the client left before that.
        used: the last usage that the model reported; None is unknown.
        produced: pieces of content seen in a stream.
        estimate: what it was taken for before.
        reported_failure: whether the model itself said, in an answer that began as a success, that it failed.
    """

    status: int | None
    refused: bool
    failed: bool
    complete: bool
    client_left: bool
    used: TokenUsage | None
    produced: int
    estimate: Estimate
    reported_failure: bool

    @property
    def cost_nothing(self) -> bool:
        """Whether the caller got nothing that the model worked for."""
        if self.refused or (self.reported_failure and not self.produced and self.used is None):
            return True
        if self.status is None:
            return self.failed and not self.client_left
        return is_failure(self.status)

    @property
    def lacks_usage(self) -> bool:
        """Whether a whole answer came without usage, so that its estimate has to do."""
        if self.used is not None or not self.complete or self.client_left:
            return False
        return not self.cost_nothing and not self.is_refusal

    @property
    def is_refusal(self) -> bool:
        """Whether the app refused the request, or failed."""
        return self.status is not None and self.status >= 400


def charge_for(outcome: Outcome) -> Charge:
    """What a request costs: the usage; without it prompt and pieces of content, at least 1; without these the estimate.

    A refusal of ours, a 5xx, a failure before the answer began, and one that is reported instead of an answer cost
    nothing, a 4xx of the app the request alone.
    """
    if outcome.cost_nothing:
        return Charge(0, request=False)
    if outcome.is_refusal:
        return Charge(0)
    if outcome.used is not None:
        # where usage is told at the begin and at the end, a stream that was cut has only the first
        return Charge(max(outcome.used.total, outcome.used.input + (0 if outcome.complete else outcome.produced)))
    if outcome.lacks_usage and not outcome.produced:
        return Charge(outcome.estimate.total)
    return Charge(max(1, outcome.estimate.prompt + outcome.produced))


def input_tokens(charge: Charge, outcome: Outcome) -> int:
    """How many of the tokens of a charge are the prompt's: as the model told, else as estimated."""
    return min(charge.tokens, outcome.estimate.prompt if outcome.used is None else outcome.used.input)
