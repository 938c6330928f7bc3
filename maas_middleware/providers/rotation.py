"""Changing the signing keys in their file, one step at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _private_files
from .keys import SigningKeys, read_private

LONGEST_LIFETIME_DAYS = 90  # of an API key, where `api_keys.maximum_expiration` says nothing else

_STOPPED = "stopped_signing_at"  # RFC 7517, section 4: a member that is not understood is ignored
_LAST_SECOND = 253_402_300_799  # of the year 9999


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key of the file.

    Attributes:
        stopped_signing_at: seconds since the epoch; None where it signs, never did, or nobody knows.
    """

    key_id: str
    stopped_signing_at: int | None


class KeyFile:
    """A JWK set as `SigningKeys.load` takes it, whose keys are exchanged without a token being refused.

    `publish`, wait until every replica has read the file, `sign`, wait until what the old key signed has expired,
    `retire`. Each step exchanges the file whole; one at a time may be under way.

    All of it may raise ValueError (the file, or the step, is refused; the message says why) and OSError (the file can
    be neither read nor written).

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    def states(self) -> list[KeyState]:
        """All keys in the order of the file; the first signs."""
        return [KeyState(entry["kid"], _stopped_at(entry)) for entry in self._read()]

    def publish(self) -> str:
        """Add a fresh key that verifies, and does not sign yet; returns its id."""
        fresh = SigningKeys.generate()
        self._write([*self._read(), *fresh.private_jwks()["keys"]])
        return fresh.key_id

    def sign(self, key_id: str | None = None) -> str:
        """Let another key sign: that of the id, or the one that was published last and has not signed yet."""
        first, *others = entries = self._read()
        chosen = _last_unsigned(others) if key_id is None else _named(entries, key_id)
        if chosen is first:
            raise ValueError(f"{first['kid']} signs already")
        signing = {name: value for name, value in chosen.items() if name != _STOPPED}
        stopped = {**first, _STOPPED: int(self._clock())}
        self._write([signing, stopped, *(entry for entry in others if entry is not chosen)])
        return str(chosen["kid"])

    def retire(self, key_id: str | None = None) -> str:
        """Drop a key: that of the id, or the one that stopped signing first, if that was more than 90 days ago."""
        first, *others = entries = self._read()
        if not others:
            raise ValueError("there is one key only, which cannot be dropped")
        chosen = self._outlived(others) if key_id is None else _named(entries, key_id)
        if chosen is first:
            raise ValueError(f"{first['kid']} signs: let another key sign first")
        self._write([entry for entry in entries if entry is not chosen])
        return str(chosen["kid"])

    def _outlived(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        stopped = [(at, entry) for entry in entries if (at := _stopped_at(entry)) is not None]
        if not stopped:
            raise ValueError("no key is known to have stopped signing: name the one to drop with --key=KID")
        at, oldest = min(stopped, key=lambda pair: pair[0])
        if self._clock() - at < LONGEST_LIFETIME_DAYS * 86_400:
            raise ValueError(
                f"{oldest['kid']} signed less than {LONGEST_LIFETIME_DAYS} days ago, and API keys may live as long: "
                "if none of its tokens is needed any more, name it with --key=KID"
            )
        return oldest

    def _read(self) -> list[dict[str, Any]]:
        text = read_private(self._path)
        SigningKeys.from_jwks(text)
        entries: list[dict[str, Any]] = json.loads(text)["keys"]
        return entries

    def _write(self, entries: list[dict[str, Any]]) -> None:
        _private_files.replace(self._path, json.dumps({"keys": entries}, indent=2))


def _last_unsigned(entries: list[dict[str, Any]]) -> dict[str, Any]:
    unsigned = [entry for entry in entries if _stopped_at(entry) is None]
    if not unsigned:
        raise ValueError("there is no published key that has not signed yet: publish one first")
    return unsigned[-1]


def _named(entries: list[dict[str, Any]], key_id: str) -> dict[str, Any]:
    for entry in entries:
        if entry["kid"] == key_id:
            return entry
    raise ValueError(f"there is no key {key_id}")


def _stopped_at(entry: dict[str, Any]) -> int | None:
    at = entry.get(_STOPPED)
    return at if isinstance(at, int) and 0 <= at <= _LAST_SECOND else None
