"""One database, and transactions in it that end in time."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TypeVar

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from ..errors import StoreUnavailable
from . import _schema
from ._backends import Backend, open_backend
from ._engines import CONNECTIONS, Unusable
from ._transaction import Transaction

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

logger = logging.getLogger("maas_middleware")

_FORGET_SECONDS = 60.0
_CLOSING_SECONDS = 1.0

T = TypeVar("T")
Mode = Literal["read", "write"]


class SQLDatabase:
    """A SQLite file or a PostgreSQL database that stores share, and its tables, which it makes and brings up to date.

    Nothing is connected before the first call. A database that does not answer is asked again by the next call. The log
    has one line when it begins to fail, and one when what failed, reading or writing, works again. A SQLite file has to
    be on a disk of this machine. All calls have to be made in one event loop.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://user:password@host:port/database`, the
            latter with `?sslmode=` and `&sslrootcert=` as libpq knows them.
        timeout: seconds that a call may take, and one more to break off what it did. A call that has begun is not
            cancelled before.
        clock: seconds since the epoch.
        steps, usable_from: how the tables came to be; others than the library's are for tests.

    Raises:
        ValueError: with a sentence that has nothing of the url, where that is wrong or a package is missing.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 2.0,
        clock: Callable[[], float] = time.time,
        steps: _schema.Steps = _schema.STEPS,
        usable_from: int = _schema.USABLE_FROM,
    ) -> None:
        self.clock = clock
        self._timeout = timeout
        self._steps = steps
        self._usable_from = usable_from
        self._backend = open_backend(url)
        self._engine = self._backend.engine()
        self._connections = anyio.Semaphore(CONNECTIONS)
        self._writers = anyio.Semaphore(self._backend.writers)
        self._failures = _failures(self._backend)
        self._is_prepared = False
        self._forget_at = clock() + _FORGET_SECONDS
        self._outage = _Outage()

    async def open(self, seconds: float = 30.0) -> None:
        """Make the tables or bring them up to date, which may take longer than a call.

        What fails is left to the next call.
        """
        with suppress(StoreUnavailable):
            await self._run(self._nothing, "write", seconds)

    async def read(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Do work that changes nothing. Each of its statements sees the database at one moment.

        Raises:
            StoreUnavailable: it failed, or took too long.
        """
        return await self._run(lambda: self._transact(work, writes=False), "read", self._timeout)

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Do work whole or not at all. Once a minute what is old is forgotten after it.

        Raises:
            StoreUnavailable: it failed, or took too long; it is not known, then, whether it was done.
        """

        async def write() -> T:
            result = await self._transact(work, writes=True)
            await self._forget()
            return result

        return await self._run(write, "write", self._timeout)

    async def aclose(self) -> None:
        """Close all connections, whether the database takes leave or not; calls in flight fail."""
        self._backend.abort_all()
        with anyio.move_on_after(self._timeout, shield=True):
            await self._engine.dispose()

    async def _nothing(self) -> None:
        """The work of nobody."""

    async def _run(self, work: Callable[[], Awaitable[T]], mode: Mode, seconds: float) -> T:
        await checkpoint_if_cancelled()
        results: list[T] = []
        try:
            with anyio.move_on_after(seconds, shield=True):
                if not self._is_prepared:
                    await self._prepare()
                results.append(await work())
            if not results:
                raise TimeoutError
        except self._failures as error:
            self._is_prepared = False  # as far as we know
            self._outage.tell(mode, error)
            raise StoreUnavailable from error
        self._outage.end(mode)
        return results[0]

    async def _transact(self, work: Callable[[Transaction], Awaitable[T]], *, writes: bool) -> T:
        if writes:
            async with self._writers:
                return await self._connect(work, writes=True)
        return await self._connect(work, writes=False)

    async def _connect(self, work: Callable[[Transaction], Awaitable[T]], *, writes: bool) -> T:
        async with self._connections:
            connection = await self._engine.connect()
            try:
                await self._backend.begin(connection, writes=writes)
                result = await work(Transaction(connection, self._backend))
                await connection.commit()
            except BaseException:
                with anyio.move_on_after(_CLOSING_SECONDS, shield=True):
                    await self._discard(connection)
                raise
            finally:
                with anyio.move_on_after(_CLOSING_SECONDS, shield=True):
                    await connection.close()
            return result

    async def _discard(self, connection: AsyncConnection) -> None:
        """Leave nothing of it in the pool: nobody knows what state it is in."""
        if not connection.invalidated:
            self._backend.abort((await connection.get_raw_connection()).driver_connection)
            await connection.invalidate()

    async def _prepare(self) -> None:
        await self._backend.prepare()
        if await self._transact(self._version, writes=False) < len(self._steps):
            await self._transact(self._migrate, writes=True)
        self._is_prepared = True

    async def _version(self, transaction: Transaction) -> int:
        [[has_version]] = await transaction.run(self._backend.has_version)
        rows = await transaction.run("SELECT version, usable_from FROM maas_schema") if has_version else []
        if any(row.usable_from > len(self._steps) for row in rows):
            raise Unusable("its tables need a newer maas-middleware")
        return max((int(row.version) for row in rows), default=0)

    async def _migrate(self, transaction: Transaction) -> None:
        await transaction.lock("schema")
        version = await self._version(transaction)
        if version == 0:
            await transaction.run("CREATE TABLE maas_schema (version BIGINT NOT NULL, usable_from BIGINT NOT NULL)")
            await transaction.run("INSERT INTO maas_schema (version, usable_from) VALUES (0, 0)")
        for step in self._steps[version:]:
            for statement in step:
                await transaction.run(statement.format_map(self._backend.words))
        if version < len(self._steps):
            now = {"version": len(self._steps), "usable_from": self._usable_from}
            await transaction.run("UPDATE maas_schema SET version = :version, usable_from = :usable_from", **now)

    async def _forget(self) -> None:
        now = self.clock()
        if now >= self._forget_at:
            self._forget_at = now + _FORGET_SECONDS
            try:
                await self._transact(self._forget_old, writes=True)
            except self._failures as error:
                logger.debug("old rows stay for another minute: %s", _reason(error))

    async def _forget_old(self, transaction: Transaction) -> None:
        before, limit = int(self.clock()) - _schema.FORGOTTEN_AFTER_SECONDS, _schema.FORGOTTEN_AT_ONCE
        for statement in _schema.FORGETTING:
            sql = statement.format_map(self._backend.words)
            if await transaction.change(sql, before=before, limit=limit) >= limit:
                self._forget_at = 0.0  # there may be more: with the next write


class _Outage:
    """What the log has of a database that fails: each reason once, and when all that failed works again."""

    def __init__(self) -> None:
        self._failing: set[Mode] = set()
        self._told: set[str] = set()

    def tell(self, mode: Mode, error: Exception) -> None:
        self._failing.add(mode)
        reason = _reason(error)
        if reason not in self._told:
            logger.warning("the database fails: %s", reason)
        self._told.add(reason)

    def end(self, mode: Mode) -> None:
        self._failing -= {mode, "read"}  # what can be written can be read
        if self._told and not self._failing:
            self._told.clear()
            logger.warning("the database answers again")


def _reason(error: BaseException) -> str:
    """What began it, in words that tell neither where the database is nor what is in it."""
    if isinstance(error, Unusable):
        return str(error)
    while error.__cause__ is not None:
        error = error.__cause__
    return str(getattr(error, "sqlite_errorname", type(error).__name__))


def _failures(backend: Backend) -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import SQLAlchemyError

    return (SQLAlchemyError, OSError, Unusable, *backend.failures)
