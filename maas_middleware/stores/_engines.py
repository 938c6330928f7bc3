"""Engines of SQLAlchemy, which is imported on demand as its drivers are."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

CONNECTIONS = 4
_CONNECTION_SECONDS = 300  # some firewalls forget what is older


class Unusable(Exception):
    """A database that answers, and cannot be used; in words for the log."""


def require(driver: str) -> None:
    """Refuse to go on without the packages of a driver.

    Raises:
        ValueError: with what to install.
    """
    for package in ("sqlalchemy", "greenlet", driver):
        if find_spec(package) is None:
            raise ValueError(f"{package} is missing: pip install 'maas-middleware[sql]'")


def make_engine(url: URL, arguments: Mapping[str, Any], **options: Any) -> AsyncEngine:
    """Make an engine that connects with these arguments; nothing is connected yet."""
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import AsyncAdaptedQueuePool

    return create_async_engine(
        url,
        connect_args=dict(arguments),
        hide_parameters=True,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_use_lifo=True,
        pool_recycle=_CONNECTION_SECONDS,
        **options,
    )


def seconds_left() -> float:
    """Until the cancel scope that this is in ends."""
    return max(0.0, anyio.current_effective_deadline() - anyio.current_time())
