"""What SQLite and PostgreSQL do each in a way of their own. SQLAlchemy and the drivers are imported on demand."""

from __future__ import annotations

import os
import sqlite3
import ssl
import zlib
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit
from weakref import WeakSet

import anyio

if TYPE_CHECKING:
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

CONNECTIONS = 4

_LOCKS = 0x6D616173  # which of the advisory locks of a database are ours
_LOCK = "SELECT pg_advisory_xact_lock(:space, :number)"
_LIMITS = (
    "SELECT set_config('statement_timeout', :milliseconds, true),"
    " set_config('idle_in_transaction_session_timeout', :milliseconds, true)"
)
_PARAMETERS = {"sslmode", "sslrootcert"}
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


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


class SQLite:
    """A file. Transactions that write take turns as a whole."""

    words: Mapping[str, str] = {"text": "TEXT", "sequence": "INTEGER", "for_update": ""}
    has_version = "SELECT COUNT(*) FROM sqlite_master WHERE name = 'maas_schema'"
    writers = 1
    failures: tuple[type[Exception], ...] = (sqlite3.Error,)

    def __init__(self, path: str) -> None:
        _require("aiosqlite")
        self._path = Path(path).absolute()

    def engine(self) -> AsyncEngine:
        from sqlalchemy import event
        from sqlalchemy.engine import URL

        url = URL.create("sqlite+aiosqlite", database=str(self._path))
        engine = _engine(url, {"isolation_level": None, "timeout": 1.0})
        event.listen(engine.sync_engine, "connect", _configure)
        return engine

    async def prepare(self) -> None:
        """Make the file so that nobody else may read it; SQLite gives the files beside it the same rights."""
        await anyio.to_thread.run_sync(_create, self._path)

    async def begin(self, connection: AsyncConnection, *, writes: bool) -> None:
        await connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(_seconds_left() * 900)}")  # an answer in time
        if writes:
            await connection.exec_driver_sql("BEGIN IMMEDIATE")

    async def lock(self, connection: AsyncConnection, name: str) -> None:
        """Nothing: no other transaction that writes is open."""

    def abort(self, driver_connection: Any) -> None:
        """Nothing: what it does ends in time by itself."""

    def abort_all(self) -> None:
        """Nothing: they have to be closed in order."""


class PostgreSQL:
    """A server. Texts are sorted by their bytes."""

    words: Mapping[str, str] = {
        "text": 'TEXT COLLATE "C"',
        "sequence": "BIGINT GENERATED ALWAYS AS IDENTITY",
        "for_update": "FOR UPDATE SKIP LOCKED",
    }
    # to_regclass() may remember that there was no table before the lock was waited for
    has_version = "SELECT COUNT(*) FROM pg_class WHERE relname = 'maas_schema' AND pg_table_is_visible(oid)"
    writers = CONNECTIONS - 1  # reading never waits for those who wait for a lock

    def __init__(self, url: str) -> None:
        _require("asyncpg")
        import asyncpg  # type: ignore[import-untyped]  # it has no types of its own

        self.failures: tuple[type[Exception], ...] = (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        )
        self._url, self._ssl = _server(url)
        self._connections: WeakSet[Any] = WeakSet()

    def engine(self) -> AsyncEngine:
        from sqlalchemy import event

        engine = _engine(self._url, {"ssl": self._ssl})
        event.listen(engine.sync_engine, "connect", lambda made, _: self._connections.add(made.driver_connection))
        return engine

    async def prepare(self) -> None:
        """Nothing."""

    async def begin(self, connection: AsyncConnection, *, writes: bool) -> None:
        """Have the server end what this process does not: others may wait for the locks of one that stands still.

        A connection that was lost since it was used is replaced.
        """
        from sqlalchemy import text
        from sqlalchemy.exc import DBAPIError

        limits, milliseconds = text(_LIMITS), f"{int(_seconds_left() * 1000) + 1}"
        try:
            await connection.execute(limits, {"milliseconds": milliseconds})
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            await connection.rollback()
            await connection.execute(limits, {"milliseconds": milliseconds})

    async def lock(self, connection: AsyncConnection, name: str) -> None:
        from sqlalchemy import text

        number = zlib.crc32(name.encode()) - (1 << 31)
        await connection.execute(text(_LOCK), {"space": _LOCKS, "number": number})

    def abort(self, driver_connection: Any) -> None:
        driver_connection.terminate()

    def abort_all(self) -> None:
        for driver_connection in self._connections:
            self.abort(driver_connection)


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


def _require(driver: str) -> None:
    for package in ("sqlalchemy", "greenlet", driver):
        if find_spec(package) is None:
            raise ValueError(f"{package} is missing: pip install 'maas-middleware[sql]'")


def _engine(url: URL, arguments: Mapping[str, Any]) -> AsyncEngine:
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
    )


def _seconds_left() -> float:
    return max(0.0, anyio.current_effective_deadline() - anyio.current_time())


def _create(path: Path) -> None:
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _configure(connection: Any, _: object) -> None:
    """Let readers and a writer work at the same time, and write so that what was answered outlives a loss of power.

    With synchronous=NORMAL it would outlive a crash of the process only, and a token that was revoked could be valid
    again.
    """
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _server(url: str) -> tuple[URL, ssl.SSLContext | str]:
    from sqlalchemy.engine import URL

    wrong = ValueError("the url of PostgreSQL has to be like postgresql://user:password@host[:port]/database")
    try:
        parts = urlsplit(url)
        port, parameters = (
            parts.port or 5432,
            dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))),
        )
    except ValueError:
        raise wrong from None
    database = unquote(parts.path.removeprefix("/"))
    if not parts.hostname or not database or "/" in parts.path[1:] or parts.fragment:
        raise wrong
    user, password = (None if word is None else unquote(word) for word in (parts.username, parts.password))
    return URL.create("postgresql+asyncpg", user, password, parts.hostname, port, database), _encryption(parameters)


def _encryption(parameters: dict[str, str]) -> ssl.SSLContext | str:
    """As libpq has it, but that certificates are verified by the authorities of the system where none are named."""
    mode = parameters.get("sslmode", "prefer")
    authorities = parameters.get("sslrootcert")
    if parameters.keys() - _PARAMETERS or mode not in _SSL_MODES:
        modes = ", ".join(_SSL_MODES)
        raise ValueError(f"the url of PostgreSQL may have sslrootcert=FILE, and sslmode, which is one of {modes}")
    if not mode.startswith("verify-"):
        return mode
    try:
        context = ssl.create_default_context(cafile=authorities)
    except OSError:
        raise ValueError("the file that sslrootcert names in the url of PostgreSQL holds no certificates") from None
    context.check_hostname = mode == "verify-full"
    return context
