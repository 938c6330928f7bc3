from __future__ import annotations

import pytest

from maas_middleware.charging import Outcome, charge_for
from maas_middleware.limiting import Charge


def outcome(
    status: int | None = 200,
    *,
    refused: bool = False,
    failed: bool = False,
    complete: bool = True,
    client_left: bool = False,
    used: int | None = None,
    produced: int = 7,
) -> Outcome:
    return Outcome(status, refused, failed, complete, client_left, used, produced, prompt=20, estimate=120)


@pytest.mark.parametrize(
    ("ended", "charge", "lacks_usage"),
    [
        pytest.param(outcome(used=33), Charge(33), False, id="usage"),
        pytest.param(outcome(used=0), Charge(0), False, id="explicit-usage-of-0"),
        pytest.param(outcome(produced=0), Charge(120), True, id="whole-answer-without-usage"),
        pytest.param(outcome(), Charge(27), True, id="whole-stream-without-usage"),
        pytest.param(outcome(complete=False, client_left=True, used=25), Charge(25), False, id="cut-with-usage"),
        pytest.param(outcome(complete=False, client_left=True), Charge(27), False, id="cut-without-usage"),
        pytest.param(outcome(complete=False, failed=True), Charge(27), False, id="broken-after-it-began"),
        pytest.param(outcome(None, complete=False, client_left=True), Charge(27), False, id="left-before-the-answer"),
        pytest.param(
            outcome(None, failed=True, complete=False, client_left=True), Charge(27), False, id="left-and-then-failed"
        ),
        pytest.param(outcome(400, used=9), Charge(0), False, id="4xx-keeps-the-request-counted"),
        pytest.param(outcome(499), Charge(0), False, id="last-4xx"),
        pytest.param(outcome(500), Charge(0, request=False), False, id="5xx-gives-the-request-back"),
        pytest.param(outcome(503, used=9), Charge(0, request=False), False, id="5xx-with-usage"),
        pytest.param(
            outcome(None, failed=True, complete=False), Charge(0, request=False), False, id="failed-before-the-answer"
        ),
        pytest.param(outcome(429, refused=True), Charge(0, request=False), False, id="our-own-refusal"),
    ],
)
def test_outcome_is_charged_as_the_ledger_says(ended: Outcome, charge: Charge, lacks_usage: bool) -> None:
    assert charge_for(ended) == charge
    assert ended.lacks_usage is lacks_usage


def test_cut_stream_is_never_free() -> None:
    nothing = Outcome(200, False, False, False, True, None, produced=0, prompt=0, estimate=120)

    assert charge_for(nothing) == Charge(1)
