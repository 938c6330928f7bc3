"""Durations in Go's notation: what clients send as `expiration`, and what the rate-limit headers say."""

from __future__ import annotations

import math
import re

_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # the micro sign
    "\u03bcs": 1_000,  # the Greek letter
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_PART = re.compile(r"(?=\.?[0-9])([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_INT64_DIGITS = 19


def parse_duration(text: str) -> float:
    """Read `15m`, `1h30m45s`, `1.5h`, `-2s` or `0` as seconds.

    The grammar, and the rounding down to a nanosecond, are those of Go's `time.ParseDuration`, with `d` (24 hours)
    added. What is too long for Go (292 years) is a duration here, infinite from 20 digits on: over any maximum.

    Raises:
        ValueError: `missing unit in duration` for a bare number, else `invalid duration`.
    """
    sign, rest = (-1, text[1:]) if text[:1] == "-" else (1, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    total: float = 0
    position = 0
    while part := _PART.match(rest, position):
        total += _nanoseconds(part[1], part[2] or "", part[3])
        position = part.end()
    if position != len(rest) or not rest:
        raise ValueError("invalid duration")
    return sign * total / 1_000_000_000


def _nanoseconds(whole: str, fraction: str, unit: str) -> float:
    if not unit:
        raise ValueError("missing unit in duration")
    if unit not in _UNITS_NS:
        raise ValueError("invalid duration")
    whole = whole.lstrip("0") or "0"
    if len(whole) > _INT64_DIGITS:
        return math.inf
    return int(whole) * _UNITS_NS[unit] + _fraction(fraction, _UNITS_NS[unit])


def _fraction(digits: str, unit_ns: int) -> int:
    digits = digits[:_INT64_DIGITS] or "0"
    if int(digits) > 1 << 63:
        digits = digits[:-1]
    return int(int(digits) * (unit_ns / 10 ** len(digits)))  # in floating point, as Go does it


def format_duration(milliseconds: int) -> str:
    """Write milliseconds as Go's `Duration.String` does: `0s`, `120ms`, `1s`, `1m12.5s`, `6m0s`, `1h0m0s`."""
    if milliseconds < 0:
        return f"-{format_duration(-milliseconds)}"
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    seconds, fraction = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    tail = f"{seconds}.{fraction:03}".rstrip("0").rstrip(".") if fraction else str(seconds)
    if hours:
        return f"{hours}h{minutes}m{tail}s"
    return f"{minutes}m{tail}s" if minutes else f"{tail}s"
