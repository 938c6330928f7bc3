"""Access tokens: what is in them, how long they may live, and the protocol of whoever mints them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from .durations import format_duration, parse_duration
from .errors import InvalidRequest
from .identity import Identity

MAXIMUM_GROUPS_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Claims:
    """What a minted token says.

    Attributes:
        id: unique (`jti`); what revoking one token names.
        owner: the `Identity.key` of whoever minted it.
        generation: the owner's generation at minting; revoking all tokens raises it.
        issued_at, expires_at: seconds since the epoch.
    """

    id: str
    owner: str
    generation: int
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class MintedToken:
    """A signed token (a secret), what it says, and the groups that it holds."""

    token: str
    claims: Claims
    groups: tuple[str, ...] = ()

    @property
    def expiration(self) -> str:
        """The granted lifetime in Go's notation: `15m0s`."""
        return format_duration((self.claims.expires_at - self.claims.issued_at) * 1000)


class TokenMinter(Protocol):
    """Signs tokens."""

    def mint(self, identity: Identity, lifetime: int, generation: int, /) -> MintedToken:
        """Sign a token for `lifetime` seconds."""
        ...


@dataclass(frozen=True, slots=True)
class LifetimePolicy:
    """How long a minted token may live: bounds and default, in seconds."""

    default: int = 4 * 3600
    minimum: int = 600
    maximum: int = 24 * 3600

    def grant(self, asked: object) -> int:
        """Turn the JSON value of `expiration` (text in Go's notation, or seconds) into a lifetime in whole seconds.

        Raises:
            InvalidRequest: `invalid_expiration`, saying what is wrong with it. Nothing is shortened silently.
        """
        if asked is None:
            return self.default
        seconds = _seconds(asked)
        if seconds <= 0:
            raise _invalid("expiration must be positive")
        if seconds < self.minimum:
            raise _invalid(f"token expiration must be at least {_in_words(self.minimum)}", asked)
        if seconds > self.maximum:
            raise _invalid(f"token expiration must be at most {_in_words(self.maximum)}", asked)
        return int(seconds)


def _seconds(asked: object) -> float:
    if asked == "":
        return 0.0
    if isinstance(asked, str):
        try:
            return parse_duration(asked)
        except ValueError as error:
            raise _invalid(str(error)) from None
    if isinstance(asked, int) and not isinstance(asked, bool):
        return asked
    if isinstance(asked, float) and math.isfinite(asked):
        return asked
    raise _invalid("invalid duration")


def _invalid(message: str, provided: object = None) -> InvalidRequest:
    details = None if provided is None else {"provided_expiration": provided}
    return InvalidRequest(message, code="invalid_expiration", param="expiration", details=details)


def _in_words(seconds: int) -> str:
    for size, unit in ((3600, "hour"), (60, "minute")):
        if seconds % size == 0:
            count = seconds // size
            return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
    return f"{seconds} seconds"


def fitting_groups(groups: tuple[str, ...], named: Collection[str]) -> tuple[str, ...]:
    """All groups where they fit into a token (4 KiB of JSON in ASCII), else those that the configuration names."""
    if len(json.dumps(groups, separators=(",", ":"))) <= MAXIMUM_GROUPS_BYTES:
        return groups
    return tuple(group for group in groups if group in named)
