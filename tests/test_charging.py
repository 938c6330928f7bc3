from __future__ import annotations

import json
from typing import Any

import pytest

from maas_middleware.charging import Estimate, Outcome, charge_for, estimated_tokens
from maas_middleware.dialects import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    IMAGES,
    MESSAGES,
    POOLING,
    RERANK,
    RESPONSES,
    SPEECH,
    TRANSCRIPTION,
    Dialect,
)
from maas_middleware.limiting import Charge
from maas_middleware.requests import JSONRequest
from maas_middleware.tiers import Tier
from maas_middleware.usage import TokenUsage


def outcome(
    status: int | None = 200,
    *,
    refused: bool = False,
    failed: bool = False,
    complete: bool = True,
    client_left: bool = False,
    used: int | None = None,
    produced: int = 7,
    reported_failure: bool = False,
) -> Outcome:
    return Outcome(
        status,
        refused,
        failed,
        complete,
        client_left,
        None if used is None else TokenUsage(used, 0, used),
        produced,
        Estimate(20, 120),
        reported_failure=reported_failure,
    )


@pytest.mark.parametrize(
    ("ended", "charge", "lacks_usage"),
    [
        pytest.param(outcome(used=33), Charge(33), False, id="usage"),
        pytest.param(outcome(used=0), Charge(0), False, id="explicit-usage-of-0"),
        pytest.param(outcome(produced=0), Charge(120), True, id="whole-answer-without-usage"),
        pytest.param(outcome(), Charge(27), True, id="whole-stream-without-usage"),
        pytest.param(
            outcome(complete=False, client_left=True, used=25), Charge(32), False, id="cut-with-usage-of-the-prompt"
        ),
        pytest.param(
            outcome(complete=False, client_left=True, used=25, produced=0), Charge(25), False, id="cut-with-usage"
        ),
        pytest.param(outcome(complete=False, client_left=True), Charge(27), False, id="cut-without-usage"),
        pytest.param(outcome(complete=False, failed=True), Charge(27), False, id="broken-after-it-began"),
        pytest.param(outcome(None, complete=False, client_left=True), Charge(27), False, id="left-before-the-answer"),
        pytest.param(
            outcome(None, failed=True, complete=False, client_left=True), Charge(27), False, id="left-and-then-failed"
        ),
        pytest.param(outcome(400, used=9), Charge(0), False, id="4xx-keeps-the-request-counted"),
        pytest.param(outcome(400, produced=0), Charge(0), False, id="first-4xx"),
        pytest.param(outcome(499), Charge(0), False, id="last-4xx"),
        pytest.param(outcome(399, produced=0), Charge(120), True, id="last-that-is-no-error"),
        pytest.param(outcome(None, complete=False), Charge(27), False, id="cancelled-before-the-answer"),
        pytest.param(outcome(produced=0, client_left=True), Charge(20), False, id="ended-for-nobody"),
        pytest.param(outcome(500), Charge(0, request=False), False, id="5xx-gives-the-request-back"),
        pytest.param(outcome(503, used=9), Charge(0, request=False), False, id="5xx-with-usage"),
        pytest.param(
            outcome(None, failed=True, complete=False), Charge(0, request=False), False, id="failed-before-the-answer"
        ),
        pytest.param(outcome(429, refused=True), Charge(0, request=False), False, id="our-own-refusal"),
        pytest.param(outcome(401, used=9), Charge(0, request=False), False, id="401-is-about-our-credential"),
        pytest.param(outcome(403), Charge(0, request=False), False, id="403-is-about-our-credential"),
        pytest.param(
            outcome(produced=0, reported_failure=True), Charge(0, request=False), False, id="only-an-error-in-a-200"
        ),
        pytest.param(
            outcome(produced=0, complete=False, reported_failure=True),
            Charge(0, request=False),
            False,
            id="only-an-error-and-cut",
        ),
        pytest.param(
            outcome(produced=0, complete=False, client_left=True, reported_failure=True),
            Charge(0, request=False),
            False,
            id="only-an-error-and-the-client-left",
        ),
        pytest.param(outcome(reported_failure=True), Charge(27), True, id="an-error-behind-content"),
        pytest.param(
            outcome(produced=0, used=25, reported_failure=True), Charge(25), False, id="an-error-that-tells-its-usage"
        ),
        pytest.param(outcome(produced=0, used=0, reported_failure=True), Charge(0), False, id="an-error-and-no-usage"),
    ],
)
def test_outcome_is_charged_as_the_ledger_says(ended: Outcome, charge: Charge, lacks_usage: bool) -> None:
    assert charge_for(ended) == charge
    assert ended.lacks_usage is lacks_usage


def test_cut_stream_is_never_free() -> None:
    nothing = Outcome(200, False, False, False, True, None, 0, Estimate(0, 120), reported_failure=False)

    assert charge_for(nothing) == Charge(1)


def test_cut_stream_that_tells_its_usage_as_it_runs_costs_exactly_that() -> None:
    running = Outcome(
        200, False, False, False, True, TokenUsage(5, 9, 14), 8, Estimate(20, 120), reported_failure=False
    )

    assert charge_for(running) == Charge(14)


UNCAPPED, CAPPED = Tier("free"), Tier("free", max_tokens_per_request=60)


@pytest.mark.parametrize(
    ("fields", "dialect", "tier", "tokens"),
    [
        pytest.param({"max_tokens": 50}, CHAT, UNCAPPED, 150, id="a-cap"),
        pytest.param({"max_tokens": 50, "n": 2}, CHAT, UNCAPPED, 200, id="times-n"),
        pytest.param({"max_tokens": 50, "best_of": 3}, COMPLETIONS, UNCAPPED, 250, id="times-best-of"),
        pytest.param({"max_tokens": 0}, CHAT, UNCAPPED, 100, id="a-cap-of-0"),
        pytest.param({}, CHAT, UNCAPPED, 612, id="no-cap-in-chat"),
        pytest.param({"n": 2}, CHAT, UNCAPPED, 1124, id="no-cap-times-n"),
        pytest.param({}, COMPLETIONS, UNCAPPED, 612, id="no-cap-in-completions"),
        pytest.param({}, MESSAGES, UNCAPPED, 612, id="no-cap-in-messages"),
        pytest.param({}, RESPONSES, UNCAPPED, 612, id="no-cap-in-responses"),
        pytest.param({}, TRANSCRIPTION, UNCAPPED, 612, id="no-cap-in-transcriptions"),
        pytest.param({}, IMAGES, UNCAPPED, 1124, id="an-image"),
        pytest.param({"n": 3}, IMAGES, UNCAPPED, 3172, id="images"),
        pytest.param({}, EMBEDDINGS, UNCAPPED, 100, id="embeddings-generate-nothing"),
        pytest.param({}, RERANK, UNCAPPED, 100, id="rerank-generates-nothing"),
        pytest.param({}, POOLING, UNCAPPED, 100, id="pooling-generates-nothing"),
        pytest.param({}, SPEECH, UNCAPPED, 100, id="speech-is-its-text"),
        pytest.param({}, COUNT_TOKENS, UNCAPPED, 100, id="counting-generates-nothing"),
        pytest.param({"n": 9}, EMBEDDINGS, CAPPED, 100, id="embeddings-whatever-the-tier"),
        pytest.param({}, CHAT, CAPPED, 160, id="no-cap-but-the-tiers"),
        pytest.param({"n": 2}, CHAT, CAPPED, 160, id="the-tiers-cap-is-for-all-answers-together"),
        pytest.param({"max_tokens": 50}, CHAT, CAPPED, 150, id="a-cap-below-the-tiers"),
        pytest.param({"max_tokens": 2**31 - 1, "n": 2**31 - 1}, CHAT, UNCAPPED, 2**53 - 1, id="over-any-ledger"),
    ],
)
def test_estimate_is_prompt_and_output_together(
    fields: dict[str, Any], dialect: Dialect, tier: Tier, tokens: int
) -> None:
    request = JSONRequest.parse(json.dumps({"input": "x" * 398, **fields}).encode())

    assert estimated_tokens(request, dialect, tier) == (100, tokens)
