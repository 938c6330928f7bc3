"""What work does in a database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._backends import Backend

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

Row = Any  # has the columns as attributes


class Transaction:
    """What work does in a database."""

    def __init__(self, connection: AsyncConnection, backend: Backend) -> None:
        self._connection = connection
        self._backend = backend

    async def run(self, sql: str, **parameters: object) -> Sequence[Row]:
        """Run a statement, with parameters as `:name`; returns its rows, if it has any."""
        result = await self._connection.execute(_text(sql), parameters)
        return result.all() if result.returns_rows else []

    async def change(self, sql: str, **parameters: object) -> int:
        """Run a statement that changes rows; returns how many."""
        return int((await self._connection.execute(_text(sql), parameters)).rowcount)

    async def run_each(self, sql: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Run a statement for each of these parameters, in their order."""
        if parameters := [dict(row) for row in rows]:
            await self._connection.execute(_text(sql), parameters)

    async def lock(self, name: str) -> None:
        """Wait for the other transactions that took the lock of this name; it is held until this one ends."""
        await self._backend.lock(self._connection, name)


def _text(sql: str) -> Any:
    from sqlalchemy import text

    return text(sql)
