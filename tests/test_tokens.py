from __future__ import annotations

import json
import math

import pytest

from maas_middleware.envelopes import envelope
from maas_middleware.errors import InvalidRequest
from maas_middleware.tokens import MAXIMUM_GROUPS_BYTES, Claims, LifetimePolicy, MintedToken, fitting_groups


def refusal(asked: object, policy: LifetimePolicy | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        (policy or LifetimePolicy()).grant(asked)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "invalid_expiration", "expiration")
    assert json.loads(envelope(error, None))["error"]["message"] == error.message
    return error


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        pytest.param("15m", 900, id="minutes"),
        pytest.param("601s", 601, id="seconds"),
        pytest.param("1.5h", 5400, id="fraction-of-an-hour"),
        pytest.param("1h30m45s", 5445, id="several-units"),
        pytest.param("1d", 86_400, id="a-day"),
        pytest.param("+15m", 900, id="with-a-plus"),
        pytest.param("900500ms", 900, id="milliseconds-are-rounded-down"),
        pytest.param(900, 900, id="number"),
        pytest.param(900.9, 900, id="fraction-is-rounded-down"),
        pytest.param("10m", 600, id="minimum"),
        pytest.param(600, 600, id="minimum-as-number"),
        pytest.param("24h", 86_400, id="maximum"),
        pytest.param(86_400, 86_400, id="maximum-as-number"),
    ],
)
def test_expiration_that_was_asked_for_is_granted(asked: object, seconds: int) -> None:
    granted = LifetimePolicy().grant(asked)

    assert granted == seconds
    assert type(granted) is int


def test_absent_expiration_is_four_hours() -> None:
    assert LifetimePolicy().grant(None) == 4 * 3600


def test_default_minimum_and_maximum_are_those_of_the_policy() -> None:
    policy = LifetimePolicy(default=30, minimum=10, maximum=60)

    assert policy.grant(None) == 30
    assert policy.grant("10s") == 10
    assert policy.grant("1m") == 60


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param("", id="empty"),
        pytest.param(0, id="zero"),
        pytest.param(0.0, id="zero-as-fraction"),
        pytest.param("0", id="zero-as-text"),
        pytest.param("0s", id="zero-seconds"),
        pytest.param("-0", id="minus-zero"),
        pytest.param(-1, id="negative"),
        pytest.param(-0.5, id="negative-fraction"),
        pytest.param("-15m", id="negative-text"),
        pytest.param(-(10**400), id="negative-400-digits"),
        pytest.param("-" + "9" * 400 + "h", id="negative-400-digits-as-text"),
    ],
)
def test_expiration_has_to_be_positive(asked: object) -> None:
    assert refusal(asked).message == "expiration must be positive"


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(599, id="number"),
        pytest.param(599.9, id="fraction"),
        pytest.param("9m59s", id="text"),
        pytest.param("599.999s", id="a-millisecond-less"),
        pytest.param("1ns", id="a-nanosecond"),
    ],
)
def test_expiration_under_the_minimum_is_refused_and_given_back(asked: object) -> None:
    error = refusal(asked)

    assert error.message == "token expiration must be at least 10 minutes"
    assert json.loads(envelope(error, None))["error"]["details"] == {"provided_expiration": asked}


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(86_401, id="number"),
        pytest.param(86_400.5, id="fraction"),
        pytest.param("24h1ns", id="text"),
        pytest.param(1e300, id="1e300"),
        pytest.param(10**30, id="31-digits"),
        pytest.param(10**400, id="401-digits"),
        pytest.param("9" * 400 + "h", id="400-digits-as-text"),
    ],
)
def test_expiration_over_the_maximum_is_refused_and_never_shortened(asked: object) -> None:
    error = refusal(asked)

    assert error.message == "token expiration must be at most 24 hours"
    assert json.loads(envelope(error, None))["error"]["details"] == {"provided_expiration": asked}


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param("30", id="whole"),
        pytest.param("1.5", id="fraction"),
        pytest.param("-30", id="negative"),
        pytest.param("1h30", id="behind-another"),
    ],
)
def test_number_as_text_needs_a_unit(asked: str) -> None:
    assert refusal(asked).message == "missing unit in duration"


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param("abc", id="word"),
        pytest.param("4hours", id="unknown-unit"),
        pytest.param("15M", id="uppercase-unit"),
        pytest.param("1 h", id="space"),
        pytest.param(" 1h", id="leading-space"),
        pytest.param("1h ", id="trailing-space"),
        pytest.param(" ", id="only-a-space"),
        pytest.param("-", id="only-a-sign"),
        pytest.param(".h", id="no-digits"),
        pytest.param("1e3s", id="exponent"),
        pytest.param("0x10s", id="hexadecimal"),
        pytest.param("\u0661h", id="other-digits"),
        pytest.param("\ud800", id="half-a-character"),
        pytest.param("1h\ud800", id="half-a-character-as-unit"),
        pytest.param(True, id="true"),
        pytest.param(False, id="false"),
        pytest.param([], id="list"),
        pytest.param({"a": 1}, id="object"),
        pytest.param(math.nan, id="nan"),
        pytest.param(math.inf, id="infinity"),
        pytest.param(-math.inf, id="minus-infinity"),
        pytest.param(json.loads("1e400"), id="1e400"),
    ],
)
def test_what_is_no_duration_is_refused(asked: object) -> None:
    assert refusal(asked).message == "invalid duration"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        pytest.param(3600, "1 hour", id="hour"),
        pytest.param(7200, "2 hours", id="hours"),
        pytest.param(60, "1 minute", id="minute"),
        pytest.param(5400, "90 minutes", id="minutes"),
        pytest.param(90, "90 seconds", id="seconds"),
    ],
)
def test_bounds_are_told_in_words(seconds: int, words: str) -> None:
    policy = LifetimePolicy(minimum=seconds, maximum=seconds)

    assert refusal(seconds - 1, policy).message == f"token expiration must be at least {words}"
    assert refusal(seconds + 1, policy).message == f"token expiration must be at most {words}"


@pytest.mark.parametrize(
    ("lifetime", "expiration"),
    [
        pytest.param(900, "15m0s", id="minutes"),
        pytest.param(14_400, "4h0m0s", id="hours"),
        pytest.param(5445, "1h30m45s", id="all"),
    ],
)
def test_granted_lifetime_is_written_as_go_does(lifetime: int, expiration: str) -> None:
    claims = Claims("id", "openshift/alice", 0, issued_at=1000, expires_at=1000 + lifetime)

    assert MintedToken("header.payload.signature", claims).expiration == expiration


# groups in a token


def test_groups_that_fit_are_all_kept() -> None:
    groups = ("system:authenticated", "premium-group")

    assert fitting_groups(groups, frozenset()) == groups
    assert fitting_groups((), frozenset()) == ()


def test_of_too_many_groups_only_those_that_the_configuration_names_are_kept() -> None:
    groups = tuple(f"team-{number:04}" for number in range(500))

    assert fitting_groups(groups, {"team-0400", "team-0007", "other"}) == ("team-0007", "team-0400")


def test_groups_fit_up_to_4_kib_of_json() -> None:
    largest = ("x" * (MAXIMUM_GROUPS_BYTES - len('[""]')),)

    assert fitting_groups(largest, ()) == largest
    assert fitting_groups((largest[0] + "x",), ()) == ()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("т" * 60, id="cyrillic"),
        pytest.param("\U0001f600" * 30, id="emoji"),
        pytest.param('"\\' * 60, id="quotes"),
    ],
)
def test_groups_count_as_large_as_they_are_in_the_token(name: str) -> None:
    groups = tuple(f"{name}{number}" for number in range(30))

    assert fitting_groups(groups, {groups[3]}) == (groups[3],)
