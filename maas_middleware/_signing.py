"""From Settings to the keys that sign tokens."""

from __future__ import annotations

from functools import cached_property

from .providers.keys import SigningKeys
from .providers.watching import WatchedKeys
from .settings import ConfigurationError, Problem, Settings, signing_keys_path


class KeptKeys:
    """The keys in force: of the configured file, of one beside the SQLite file, or of this process alone.

    Raises:
        ConfigurationError: the configured file is refused, or cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._path = signing_keys_path(settings)
        self._is_configured = settings.tokens.signing_keys_file is not None
        if self._is_configured or (self._path is not None and self._path.exists()):
            self.open()

    def open(self) -> None:
        """Read the keys, or make them where none are there yet: to check a configuration leaves no key behind.

        Raises:
            ConfigurationError: they can be neither read nor made.
        """
        self.current()

    def current(self) -> SigningKeys:
        """The keys in force."""
        return self._own if self._watched is None else self._watched.current()

    @property
    def has_problem(self) -> bool:
        """Whether a changed file is refused."""
        return self._watched is not None and self._watched.problem is not None

    @cached_property
    def _own(self) -> SigningKeys:
        return SigningKeys.generate()

    @cached_property
    def _watched(self) -> WatchedKeys | None:
        if self._path is None:
            return None
        try:
            if not self._is_configured:
                SigningKeys.load_or_make(self._path)
            return WatchedKeys(self._path)
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigurationError([Problem("tokens.signing_keys_file", f"{self._path}: {reason}")]) from None
