"""PostgreSQL as the stores use it."""

from __future__ import annotations

import secrets
import ssl
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit
from weakref import WeakSet

from ._engines import CONNECTIONS, Unusable, make_engine, require, seconds_left

if TYPE_CHECKING:
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_LOCKS = 0x6D616173  # which of the advisory locks of a database are ours
_LOCK = "SELECT pg_advisory_xact_lock(:space, :number)"
_LIMITS = (
    "SELECT set_config('statement_timeout', :milliseconds, true),"
    " set_config('idle_in_transaction_session_timeout', :milliseconds, true), pg_is_in_recovery() AS is_standby"
)
# no statement stays prepared on a connection: behind PgBouncer the next transaction may have another
_POOLED = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: f"maas_{secrets.token_hex(8)}",
}
_PARAMETERS = {"sslmode", "sslrootcert"}
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


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
        require("asyncpg")
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

        engine = make_engine(self._url, {"ssl": self._ssl, **_POOLED}, isolation_level="READ COMMITTED")
        event.listen(engine.sync_engine, "connect", lambda made, _: self._connections.add(made.driver_connection))
        return engine

    async def prepare(self) -> None:
        """Nothing."""

    async def begin(self, connection: AsyncConnection, *, writes: bool) -> None:
        """Have the server end what this process does not: others may wait for the locks of one that stands still.

        A connection that was lost since it was used is replaced.

        Raises:
            Unusable: a standby answers, which may be late with what is revoked.
        """
        from sqlalchemy import text
        from sqlalchemy.exc import DBAPIError

        limits, milliseconds = text(_LIMITS), f"{int(seconds_left() * 1000) + 1}"
        try:
            result = await connection.execute(limits, {"milliseconds": milliseconds})
        except DBAPIError:
            await connection.rollback()
            result = await connection.execute(limits, {"milliseconds": milliseconds})
        if result.one().is_standby:
            raise Unusable("it is a standby, which follows another server")

    async def lock(self, connection: AsyncConnection, name: str) -> None:
        from sqlalchemy import text

        number = zlib.crc32(name.encode()) - (1 << 31)
        await connection.execute(text(_LOCK), {"space": _LOCKS, "number": number})

    def abort(self, driver_connection: Any) -> None:
        driver_connection.terminate()

    def abort_all(self) -> None:
        for driver_connection in self._connections:
            self.abort(driver_connection)


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
        if authorities is not None:
            raise ValueError("sslrootcert in the url of PostgreSQL needs sslmode=verify-full, or verify-ca")
        return mode
    try:
        context = ssl.create_default_context(cafile=authorities)
    except OSError:
        raise ValueError("the file that sslrootcert names in the url of PostgreSQL holds no certificates") from None
    context.check_hostname = mode == "verify-full"
    return context
