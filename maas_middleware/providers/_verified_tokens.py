"""What was verified not long ago."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from ..identity import Identity
from ..tokens import Claims
from .keys import SigningKeys


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """What a token says whose signature is right.

    Attributes:
        not_before: seconds since the epoch.
    """

    claims: Claims
    not_before: int
    identity: Identity


class VerifiedTokens:
    """Remembers what tokens say, by their hash, and never past the keys that verified them.

    Whether they are expired or revoked is not remembered: it has to be looked at each time.

    Args:
        maximum: how many are remembered; above it the one that was not asked for the longest goes.
        seconds: for which one is remembered, however often it is asked for.
        clock: seconds; where it goes back, nothing from the time ahead is used.
    """

    def __init__(self, *, maximum: int, seconds: float, clock: Callable[[], float]) -> None:
        self._maximum = maximum
        self._seconds = seconds
        self._clock = clock
        self._entries: dict[bytes, _Entry] = {}

    def get(self, token: str, keys: SigningKeys) -> VerifiedToken | None:
        """What those very keys verified."""
        digest = _digest(token)
        entry = self._entries.pop(digest, None)
        if entry is None or entry.keys is not keys or not 0 <= self._clock() - entry.since < self._seconds:
            return None
        self._entries[digest] = entry
        return entry.verified

    def keep(self, token: str, keys: SigningKeys, verified: VerifiedToken) -> None:
        while len(self._entries) >= self._maximum:
            del self._entries[next(iter(self._entries))]
        self._entries[_digest(token)] = _Entry(verified, keys, self._clock())


@dataclass(frozen=True, slots=True)
class _Entry:
    verified: VerifiedToken
    keys: SigningKeys
    since: float


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
