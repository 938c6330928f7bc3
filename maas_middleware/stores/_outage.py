"""What the log has of a store of tokens that fails."""

from __future__ import annotations

import logging

from ..errors import StoreUnavailable

logger = logging.getLogger("maas_middleware")


class Outage:
    """Tells each thing once in an outage, and its end; what is no outage but a fault of the store with its stack."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._is_reloading_told = False

    def tell(self, error: Exception, *, is_over: bool, refuses: bool) -> None:
        """A look failed; `is_over` where the grace is, and `refuses` if requests are, then."""
        what = "bug" if _is_bug(error) else "failure"
        if not self._told & {what, "bug"}:
            logger.warning(
                "the token store fails (%s): revocations are not followed", _name(error), exc_info=_trace(error)
            )
        self._told.add(what)
        if is_over and "end of the grace" not in self._told:
            policy = "requests with access tokens are refused" if refuses else "going on with it"
            logger.error("what is known of revocations is too old: %s", policy)
            self._told.add("end of the grace")

    def end(self) -> None:
        """A look succeeded."""
        if self._told:
            logger.warning("the token store answers again: revocations are followed")
        self._told.clear()

    def tell_of_reloading(self, error: Exception) -> None:
        """Not everything could be read again, which is no outage."""
        if not self._is_reloading_told:
            told = "revocations cannot be read again as a whole (%s): new ones are followed"
            logger.warning(told, _name(error), exc_info=_trace(error))
        self._is_reloading_told = True

    def end_of_reloading(self) -> None:
        """Everything was read again."""
        self._is_reloading_told = False


def _is_bug(error: Exception) -> bool:
    return not isinstance(error, StoreUnavailable | TimeoutError)


def _trace(error: Exception) -> Exception | None:
    return error if _is_bug(error) else None


def _name(error: BaseException) -> str:
    """The kind of what began it; its text may tell where the store is."""
    while error.__cause__ is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    return type(error).__name__
