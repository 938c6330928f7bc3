"""The kinds of databases: what each does in a way of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ._postgresql import PostgreSQL
from ._sqlite import SQLite

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


class Backend(Protocol):
    """A kind of database.

    Attributes:
        words: those that it has of its own in the statements of the schema.
        has_version: a statement whose only value tells whether there is a table `maas_schema`.
        writers: how many transactions of a process may write at once.
        failures: what the driver raises.
    """

    words: Mapping[str, str]
    has_version: str
    writers: int
    failures: tuple[type[Exception], ...]

    def engine(self) -> AsyncEngine:
        """Make an engine; nothing is connected yet."""
        ...

    async def prepare(self) -> None:
        """Do what has to be done before the first connection."""
        ...

    async def begin(self, connection: AsyncConnection, *, writes: bool) -> None:
        """Begin a transaction that waits, and holds what it has, no longer than the cancel scope that it is in."""
        ...

    async def lock(self, connection: AsyncConnection, name: str) -> None:
        """Wait until no other transaction that took the lock of that name is open."""
        ...

    def abort(self, driver_connection: Any) -> None:
        """Break off whatever the connection does, at once."""
        ...

    def abort_all(self) -> None:
        """Break off all connections of which closing could take long."""
        ...


def open_backend(url: str) -> Backend:
    """Make the backend that a URL names.

    Raises:
        ValueError: with a sentence that has nothing of the URL, where a package is missing or the URL is wrong.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        if rest in ("", "/", "/:memory:"):
            raise ValueError("a SQLite database has to be a file; memory:// keeps everything in memory")
        if not rest.startswith("/") or rest.endswith("/") or "?" in rest or "#" in rest:
            raise ValueError("the url of SQLite has to be like sqlite:///relative.db or sqlite:////absolute.db")
        return SQLite(rest[1:])
    if scheme in ("postgresql", "postgres"):
        return PostgreSQL(url)
    raise ValueError("the url of a database has to begin with sqlite:/// or postgresql://")
