"""The keys in force: read again when their file changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from .._fingerprint import LOOK_SECONDS, fingerprint
from ..assertions import AssertionKeys
from .keys import SigningKeys

logger = logging.getLogger("maas_middleware")

K = TypeVar("K")


class _WatchedFile(Generic[K]):
    def __init__(
        self,
        path: Path,
        *,
        load: Callable[[Path], K],
        changed: Callable[[K], None],
        refused: str,
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._load = load
        self._changed = changed
        self._refused = refused
        self._clock = clock
        self._problem: str | None = None
        self._next_look = clock() + LOOK_SECONDS
        self._seen = fingerprint(path)  # before reading: what changes meanwhile is read again
        self._keys = load(path)

    def current(self) -> K:
        """The keys in force: the same object until the file changes."""
        self._look()
        return self._keys

    @property
    def problem(self) -> str | None:
        """Why the file as it is now is refused, None where its keys are in force."""
        self._look()
        return self._problem

    def _look(self) -> None:
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        seen = fingerprint(self._path)
        if seen != self._seen:
            self._seen = seen
            self._read()

    def _read(self) -> None:
        try:
            self._keys, self._problem = self._load(self._path), None
        except ValueError as error:
            self._refuse(str(error))
        except OSError as error:
            self._seen = None  # what cannot be read now may be read later, without a change
            self._refuse(f"cannot be read: {error.strerror}")
        else:
            self._changed(self._keys)

    def _refuse(self, reason: str) -> None:
        problem = f"{self._path} {reason}"
        if problem != self._problem:
            logger.error(self._refused, problem)
        self._problem = problem


class WatchedKeys(_WatchedFile[SigningKeys]):
    """Keeps the signing keys of a file as they are now.

    Pass `current` to JWTMinter and JWTProvider. At most once a second the file is looked at (a `stat` that follows
    symbolic links, since Kubernetes exchanges those), and read where it changed. A change applies whole, and only if a
    restart would accept it; else the keys stay as they were, and `problem` and one line in the log tell why.

    Args:
        clock: seconds that never go back.

    Raises:
        ValueError: the file is refused, as by `SigningKeys.load`.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        refused = "changed signing keys are refused, the keys stay as they were: %s"
        super().__init__(path, load=SigningKeys.load, changed=_tell_signing_keys, refused=refused, clock=clock)


class WatchedAssertionKeys(_WatchedFile[AssertionKeys]):
    """Keeps the keys of assertions as they are now, as `WatchedKeys` does with those of tokens.

    Pass `current` to AssertionSigner and SignedProvider.

    Args:
        clock: seconds that never go back.

    Raises:
        ValueError: the file is refused, as by `AssertionKeys.load`.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        refused = "changed assertion keys are refused, the keys stay as they were: %s"
        super().__init__(path, load=AssertionKeys.load, changed=_tell_assertion_keys, refused=refused, clock=clock)


def _tell_signing_keys(keys: SigningKeys) -> None:
    logger.info("signing keys read again: %s signs, of %d", keys.key_id, len(keys.jwks()["keys"]))


def _tell_assertion_keys(keys: AssertionKeys) -> None:
    logger.info("assertion keys read again: there are %d", len(keys.secrets))
