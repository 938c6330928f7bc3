"""The tiers in force: read again when the file that they come from changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from .._fingerprint import LOOK_SECONDS, Fingerprint, fingerprint
from ..tiers import Tier
from .assembling import validated
from .loading import ConfigurationError
from .sections import Settings
from .values import tiers_of

logger = logging.getLogger("maas_middleware")


class WatchedTiers:
    """Keeps the tiers of `tiers_file`, or of the file that the settings were loaded from, as they are now.

    Pass `current` to GroupTierResolver. At most once a second the files are looked at (a `stat` that follows symbolic
    links, since Kubernetes exchanges those), and read where they changed. A change applies whole, and only if a restart
    would accept it; else the tiers stay as they were, and `problem` and one line in the log tell why. Tiers that were
    given in Python or by the environment are not watched.

    Args:
        settings: from `load_settings` or `validated`.
        clock: seconds that never go back.

    Raises:
        ConfigurationError: the files have become invalid since the settings were made.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._problem: str | None = None
        self._next_look = clock() + LOOK_SECONDS
        self._seen = _fingerprints(settings)  # before reading: what changes meanwhile is read again
        self._tiers = self._read() if self._seen else tiers_of(settings)

    def current(self) -> tuple[Tier, ...]:
        """The tiers in force."""
        self._look()
        return self._tiers

    @property
    def problem(self) -> str | None:
        """Why the files as they are now are refused, None where they are in force."""
        self._look()
        return self._problem

    def _look(self) -> None:
        if not self._seen or (now := self._clock()) < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        seen = _fingerprints(self._settings)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._tiers, self._problem = self._read(), None
        except ConfigurationError as error:
            self._problem = "; ".join(map(str, error.problems))
            logger.error("changed configuration is refused, the tiers stay as they were: %s", self._problem)
        else:
            logger.info("tiers read again: %s", ", ".join(tier.name for tier in self._tiers))

    def _read(self) -> tuple[Tier, ...]:
        origin = self._settings.origin
        settings = validated(self._settings) if origin is None else origin.load()
        tiers = tiers_of(settings)
        self._settings = settings
        return tiers


def _fingerprints(settings: Settings) -> dict[str, Fingerprint]:
    origin = settings.origin
    if settings.tiers is not None and (origin is None or "tiers" not in origin.keys):
        return {}
    files = (settings.tiers_file, None if origin is None else origin.config)
    return {path: fingerprint(path) for path in files if path is not None}
