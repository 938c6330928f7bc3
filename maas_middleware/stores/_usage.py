"""Recorded use in a database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from ..usage_store import UsageRecord
from ._database import SQLDatabase
from ._schema import key, read, written
from ._transaction import Transaction

_LARGEST = (1 << 63) - 1
_COUNTS = ("requests", "input_tokens", "output_tokens")

_ADD_BATCH = "INSERT INTO maas_usage_batches (id, added_at) VALUES (:id, :added_at) ON CONFLICT (id) DO NOTHING"
_SUMS = ", ".join(
    f"{count} = CASE WHEN maas_usage.{count} > {_LARGEST} - excluded.{count} THEN {_LARGEST}"
    f" ELSE maas_usage.{count} + excluded.{count} END"
    for count in _COUNTS
)
_ADD = (
    "INSERT INTO maas_usage (owner, day, model, requests, input_tokens, output_tokens)"
    " VALUES (:owner, :day, :model, :requests, :input_tokens, :output_tokens)"
    f" ON CONFLICT (owner, day, model) DO UPDATE SET {_SUMS}"
)
_USAGE = (
    "SELECT day, model, requests, input_tokens, output_tokens FROM maas_usage"
    " WHERE owner = :owner AND day BETWEEN :first AND :last ORDER BY day, model"
)


class SQLUsageStore:
    """Keeps recorded use in a database.

    Counts that would be over 2^63 - 1 stay there.
    """

    def __init__(self, database: SQLDatabase) -> None:
        self._database = database

    async def add(self, batch_id: str, records: Sequence[UsageRecord], /) -> None:
        rows = sorted((_row(record) for record in records), key=lambda row: (row["owner"], row["day"], row["model"]))

        async def work(transaction: Transaction) -> None:
            added_at = int(self._database.clock())
            if await transaction.change(_ADD_BATCH, id=key(batch_id), added_at=added_at):
                await transaction.run_each(_ADD, rows)

        await self._database.write(work)

    async def usage(self, owner: str, first: date, last: date, /) -> Sequence[UsageRecord]:
        days = {"first": first.isoformat(), "last": last.isoformat()}
        rows = await self._database.read(lambda transaction: transaction.run(_USAGE, owner=key(owner), **days))
        return [
            UsageRecord(
                owner, date.fromisoformat(row.day), read(row.model), row.requests, row.input_tokens, row.output_tokens
            )
            for row in rows
        ]


def _row(record: UsageRecord) -> dict[str, str | int]:
    row: dict[str, str | int] = {
        "owner": key(record.owner),
        "day": record.day.isoformat(),
        "model": written(record.model),
    }
    return row | {count: min(getattr(record, count), _LARGEST) for count in _COUNTS}
