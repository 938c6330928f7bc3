from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maas_middleware.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("0", 0, id="zero-needs-no-unit"),
        pytest.param("+0", 0, id="zero-with-plus"),
        pytest.param("-0", 0, id="zero-with-minus"),
        pytest.param("0s", 0, id="zero-seconds"),
        pytest.param("1ns", 1e-9, id="nanosecond"),
        pytest.param("1us", 1e-6, id="microsecond"),
        pytest.param("1\u00b5s", 1e-6, id="micro-sign"),
        pytest.param("1\u03bcs", 1e-6, id="greek-mu"),
        pytest.param("120ms", 0.12, id="milliseconds"),
        pytest.param("5s", 5, id="seconds"),
        pytest.param("15m", 900, id="minutes"),
        pytest.param("4h", 14_400, id="hours"),
        pytest.param("30d", 2_592_000, id="days-which-go-lacks"),
        pytest.param("1h30m45s", 5445, id="several-units"),
        pytest.param("1d12h", 129_600, id="days-and-hours"),
        pytest.param("10s5m", 310, id="units-in-any-order"),
        pytest.param("5s5s", 10, id="unit-twice"),
        pytest.param("1.5h", 5400, id="fraction"),
        pytest.param("1.s", 1, id="point-without-fraction"),
        pytest.param(".5s", 0.5, id="fraction-without-integer"),
        pytest.param("1h.5m", 3630, id="fraction-without-integer-in-the-middle"),
        pytest.param("007s", 7, id="leading-zeros"),
        pytest.param("+5s", 5, id="plus"),
        pytest.param("-2s", -2, id="minus"),
        pytest.param("-1m30s", -90, id="minus-is-for-all-of-it"),
        pytest.param("9223372036s", 9_223_372_036, id="longest-whole-seconds-of-go"),
    ],
)
def test_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("1.9ns", 1e-9, id="part-of-a-nanosecond"),
        pytest.param("0.9999999999s", 0.999999999, id="tenth-digit-of-a-second"),
        pytest.param("1.0000000019s", 1.000000001, id="tenth-digit-after-a-whole-second"),
        pytest.param("0.5" + "0" * 30 + "s", 0.5, id="more-digits-than-an-int64-holds"),
        pytest.param("0.9999999999999999999h", 3600.0, id="fraction-above-an-int64"),
        pytest.param("." + "3" * 40 + "h", 1200.0, id="long-fraction"),
    ],
)
def test_duration_is_rounded_down_to_a_nanosecond(text: str, seconds: float) -> None:
    read = parse_duration(text)

    assert read == pytest.approx(seconds, rel=0, abs=1.1e-9 if seconds > 100 else 1e-18)
    assert read <= seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("1" + "0" * 19 + "s", math.inf, id="twenty-digits"),
        pytest.param("-" + "9" * 5000 + "d", -math.inf, id="negative-beyond-what-int-reads"),
        pytest.param("0" * 5000 + "7s", 7, id="zeros-do-not-count"),
        pytest.param("9" * 19 + "ns", 9_999_999_999.999999999, id="nineteen-digits"),
    ],
)
def test_duration_of_too_many_digits_is_infinite(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("3", id="bare-number"),
        pytest.param("-3", id="bare-negative-number"),
        pytest.param("1.5", id="bare-fraction"),
        pytest.param("00", id="zero-twice"),
        pytest.param("0.0", id="zero-as-fraction"),
        pytest.param("1h30", id="bare-number-at-the-end"),
        pytest.param("1.2.3s", id="two-points"),
    ],
)
def test_number_without_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^missing unit in duration$"):
        parse_duration(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("+", id="plus-alone"),
        pytest.param("-", id="minus-alone"),
        pytest.param(".", id="point-alone"),
        pytest.param(".s", id="point-without-digits"),
        pytest.param("s", id="unit-alone"),
        pytest.param("--5s", id="two-signs"),
        pytest.param("+-5s", id="both-signs"),
        pytest.param("1h-5m", id="sign-in-the-middle"),
        pytest.param(" 5s", id="leading-space"),
        pytest.param("5s ", id="trailing-space"),
        pytest.param("5s\n", id="trailing-newline"),
        pytest.param("5 s", id="space-before-unit"),
        pytest.param("1h 5m", id="space-between-parts"),
        pytest.param("5S", id="upper-case-unit"),
        pytest.param("5x", id="unknown-unit"),
        pytest.param("5sec", id="unit-written-out"),
        pytest.param("2w", id="week"),
        pytest.param("1e3s", id="exponent"),
        pytest.param("1_000s", id="underscore"),
        pytest.param("1,5s", id="comma"),
        pytest.param("\u0665s", id="arabic-digit"),
        pytest.param("infs", id="infinity"),
        pytest.param("5s.", id="point-at-the-end"),
        pytest.param("never", id="word"),
    ],
)
def test_anything_else_is_an_invalid_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"^invalid duration$"):
        parse_duration(text)


@given(st.text(alphabet="0123456789.+-nu\u00b5msdh x\n", max_size=12))
@settings(derandomize=True, database=None, deadline=None)
def test_any_text_is_a_duration_or_refused_in_words(text: str) -> None:
    said = ""
    seconds = 0.0
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        said = str(error)

    assert said in {"", "missing unit in duration", "invalid duration"}
    assert seconds * (-1 if text.startswith("-") else 1) >= 0


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        pytest.param(0, "0s", id="zero"),
        pytest.param(1, "1ms", id="millisecond"),
        pytest.param(120, "120ms", id="milliseconds"),
        pytest.param(999, "999ms", id="just-below-a-second"),
        pytest.param(1000, "1s", id="second"),
        pytest.param(1001, "1.001s", id="three-digits"),
        pytest.param(1010, "1.01s", id="two-digits"),
        pytest.param(1500, "1.5s", id="one-digit"),
        pytest.param(10_000, "10s", id="zero-of-the-integer-stays"),
        pytest.param(10_500, "10.5s", id="zero-of-the-integer-stays-before-a-fraction"),
        pytest.param(59_999, "59.999s", id="just-below-a-minute"),
        pytest.param(60_000, "1m0s", id="minute"),
        pytest.param(60_001, "1m0.001s", id="minute-and-a-millisecond"),
        pytest.param(72_500, "1m12.5s", id="minute-and-fraction"),
        pytest.param(360_000, "6m0s", id="minutes"),
        pytest.param(3_599_999, "59m59.999s", id="just-below-an-hour"),
        pytest.param(3_600_000, "1h0m0s", id="hour"),
        pytest.param(3_601_500, "1h0m1.5s", id="hour-and-fraction"),
        pytest.param(87_840_000, "24h24m0s", id="no-days"),
        pytest.param(-1, "-1ms", id="negative-millisecond"),
        pytest.param(-72_500, "-1m12.5s", id="negative"),
    ],
)
def test_duration_is_written_as_go_does(milliseconds: int, text: str) -> None:
    assert format_duration(milliseconds) == text


@given(st.integers(min_value=-(10**10), max_value=10**10))
@settings(derandomize=True, database=None, deadline=None)
@example(999)
@example(60_010)
@example(3_600_000)
def test_written_duration_reads_back_as_itself(milliseconds: int) -> None:
    assert round(parse_duration(format_duration(milliseconds)) * 1000) == milliseconds
