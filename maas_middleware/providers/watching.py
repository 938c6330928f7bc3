"""The signing keys in force: read again when their file changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from .._fingerprint import LOOK_SECONDS, fingerprint
from .keys import SigningKeys

logger = logging.getLogger("maas_middleware")


class WatchedKeys:
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
        self._path = path
        self._clock = clock
        self._problem: str | None = None
        self._next_look = clock() + LOOK_SECONDS
        self._seen = fingerprint(path)  # before reading: what changes meanwhile is read again
        self._keys = SigningKeys.load(path)

    def current(self) -> SigningKeys:
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
            self._keys, self._problem = SigningKeys.load(self._path), None
        except ValueError as error:
            self._refuse(str(error))
        except OSError as error:
            self._seen = None  # what cannot be read now may be read later, without a change
            self._refuse(f"cannot be read: {error.strerror}")
        else:
            logger.info("signing keys read again: %s signs, of %d", self._keys.key_id, len(self._keys.jwks()["keys"]))

    def _refuse(self, reason: str) -> None:
        problem = f"{self._path} {reason}"
        if problem != self._problem:
            logger.error("changed signing keys are refused, the keys stay as they were: %s", problem)
        self._problem = problem
