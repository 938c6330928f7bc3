"""SQLite as the stores use it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anyio

from ._engines import make_engine, require, seconds_left

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

_STEPS_UNWATCHED = 100_000  # of SQLite's machine: some milliseconds
_BUSY_SECONDS = 0.01


class SQLite:
    """A file. Transactions that write take turns as a whole."""

    words: Mapping[str, str] = {"text": "TEXT", "sequence": "INTEGER", "for_update": ""}
    has_version = "SELECT COUNT(*) FROM sqlite_master WHERE name = 'maas_schema'"
    writers = 1
    failures: tuple[type[Exception], ...] = (sqlite3.Error,)

    def __init__(self, path: str) -> None:
        require("aiosqlite")
        self._path = Path(path).absolute()

    def engine(self) -> AsyncEngine:
        from sqlalchemy import event
        from sqlalchemy.engine import URL

        # SQLite itself is not to make a file: others could read it
        database = f"file:{quote(str(self._path))}"
        url = URL.create("sqlite+aiosqlite", database=database, query={"mode": "rw", "uri": "true"})
        engine = make_engine(url, {"isolation_level": None, "timeout": 1.0})
        event.listen(engine.sync_engine, "connect", self._opened)
        event.listen(engine.sync_engine, "checkout", self._check)
        return engine

    async def prepare(self) -> None:
        """Make the file so that nobody else may read it; SQLite gives the files beside it the same rights."""
        await anyio.to_thread.run_sync(_prepare, self._path, 0.9 * seconds_left())

    async def begin(self, connection: AsyncConnection, *, writes: bool) -> None:
        """Have what takes too long, or waits too long for a lock, fail by itself: its thread cannot be stopped."""
        seconds = 0.9 * seconds_left()
        ends_at = time.monotonic() + seconds
        raw = await connection.get_raw_connection()
        assert raw.driver_connection is not None
        await raw.driver_connection.set_progress_handler(lambda: time.monotonic() > ends_at, _STEPS_UNWATCHED)
        await connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
        if writes:
            await connection.exec_driver_sql("BEGIN IMMEDIATE")

    async def lock(self, connection: AsyncConnection, name: str) -> None:
        """Nothing: no other transaction that writes is open."""

    def abort(self, driver_connection: Any) -> None:
        """Nothing: what it does ends in time by itself."""

    def abort_all(self) -> None:
        """Nothing: they have to be closed in order."""

    def _opened(self, connection: Any, record: ConnectionPoolEntry) -> None:
        _make_durable(connection)
        record.info["file"] = _file_at(self._path)

    def _check(self, _: Any, record: ConnectionPoolEntry, __: object) -> None:
        from sqlalchemy.exc import DisconnectionError

        if record.info["file"] != _file_at(self._path):  # what is written to a file without a name is lost
            raise DisconnectionError("the file was exchanged")


def _file_at(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _prepare(path: Path, seconds: float) -> None:
    """Make the file, and let readers and a writer work on it at the same time, whoever else does so now.

    It blocks, so it has to run in a thread.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    ends_at = time.monotonic() + seconds
    with closing(sqlite3.connect(path, timeout=0)) as connection:
        while not _has_log(connection, ends_at):
            time.sleep(_BUSY_SECONDS)  # nothing tells when the lock is free


def _has_log(connection: sqlite3.Connection, ends_at: float) -> bool:
    """Change to write-ahead logging, if that is possible now: SQLite does not wait for the locks of this."""
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > ends_at:
            raise
        return False
    return True


def _make_durable(connection: Any) -> None:
    """Write so that what was answered outlives a loss of power.

    With NORMAL it would outlive a crash of the process only, and a token that was revoked could be valid again.
    """
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()
