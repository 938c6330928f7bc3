"""Tokens, their revocations and recorded use in SQLite or PostgreSQL. What they need is the extra `sql`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..revocations import CHANGES_AT_ONCE, Change, GenerationRaised, Snapshot, TokenRevoked
from ..token_store import TokenKind, TokenRecord
from ..tokens import Claims
from ._database import SQLDatabase
from ._schema import key, read, written
from ._transaction import Row, Transaction
from ._usage import SQLUsageStore

__all__ = ["SQLDatabase", "SQLTokenStore", "SQLUsageStore"]

_GENERATION = "SELECT generation FROM maas_owners WHERE owner = :owner"
_RAISE = (
    "INSERT INTO maas_owners (owner, name, generation) VALUES (:owner, :name, 1)"
    " ON CONFLICT (owner) DO UPDATE SET generation = maas_owners.generation + 1"
)
_RECORD = (
    "INSERT INTO maas_tokens (id, owner, generation, kind, name, description, groups, issued_at, expires_at,"
    " forgotten_at, last_used_at) VALUES (:id, :owner, :generation, :kind, :name, :description, :groups, :issued_at,"
    " :expires_at, :forgotten_at, :last_used_at)"
)
_ACTIVE = (
    "SELECT COUNT(*) AS active FROM maas_tokens WHERE owner = :owner AND kind = :kind AND expires_at > :now"
    " AND revoked_at IS NULL AND generation >= COALESCE((SELECT generation FROM maas_owners WHERE owner = :owner), 0)"
)
_OF_OWNER = (
    "SELECT t.id, t.generation, t.kind, t.name, t.description, t.groups, t.issued_at, t.expires_at, t.last_used_at,"
    " t.revoked_at IS NOT NULL OR t.generation < COALESCE(o.generation, 0) AS is_revoked"
    " FROM maas_tokens AS t LEFT JOIN maas_owners AS o ON o.owner = t.owner"
    " WHERE t.owner = :owner AND t.forgotten_at > :now"
)
_FIND = f"{_OF_OWNER} AND t.id = :id"
_OF_KIND = " AND t.kind = :kind"
_AFTER = " AND t.issued_at <= :issued_at AND (t.issued_at < :issued_at OR t.id > :after)"
_IN_ORDER = " ORDER BY t.issued_at DESC, t.id LIMIT :limit"
_REVOKE = "UPDATE maas_tokens SET revoked_at = :now WHERE id = :id AND revoked_at IS NULL"
_MARK_USED = (
    "UPDATE maas_tokens SET last_used_at = :used_at WHERE id = :id AND COALESCE(last_used_at, :used_at - 1) < :used_at"
)
_CHANGE = (
    "INSERT INTO maas_changes (made_at, token_id, expires_at, owner_name, generation)"
    " VALUES (:made_at, :token_id, :expires_at, :owner_name, :generation)"
)
_CHANGES = (
    "SELECT sequence, token_id, expires_at, owner_name, generation FROM maas_changes WHERE sequence > :after"
    " ORDER BY sequence LIMIT :limit"
)
_SEQUENCE = "SELECT COALESCE(MAX(sequence), 0) AS sequence FROM maas_changes"
_RAISED = "SELECT owner AS id, name, generation FROM maas_owners WHERE owner > :after ORDER BY owner LIMIT :limit"
_REVOKED = (
    "SELECT id, expires_at FROM maas_tokens WHERE revoked_at IS NOT NULL AND expires_at > :now"
    " AND id > :after ORDER BY id LIMIT :limit"
)


class SQLTokenStore:
    """Keeps what was minted and revoked in a database, and lets those who share it follow the revocations.

    It is a `TokenStore` and a `ChangeLog`: changes are numbered in the order in which they are committed.

    Args:
        page: how many rows of a snapshot are read at once; 2000 take a few milliseconds, so that other calls need not
            wait.
    """

    def __init__(self, database: SQLDatabase, *, page: int = 2_000) -> None:
        self._database = database
        self._page = page

    async def generation(self, owner: str, /) -> int:
        return await self._database.read(lambda transaction: _generation(transaction, owner))

    async def record(self, record: TokenRecord, /, *, maximum: int | None = None) -> bool:
        row, now = _row(record), self._now()

        async def work(transaction: Transaction) -> bool:
            if maximum is not None:
                await transaction.lock(f"tokens of {row['owner']}")
                [found] = await transaction.run(_ACTIVE, owner=row["owner"], kind=record.kind, now=now)
                if found.active >= maximum:
                    return False
            await transaction.run(_RECORD, **row)
            return True

        return await self._database.write(work)

    async def find(self, owner: str, token_id: str, /) -> TokenRecord | None:
        return await self._database.read(lambda transaction: self._find(transaction, owner, token_id))

    async def list(
        self, owner: str, /, *, kind: TokenKind | None = None, limit: int = 100, after: str | None = None
    ) -> Sequence[TokenRecord]:
        async def work(transaction: Transaction) -> Sequence[TokenRecord]:
            sql, parameters = _OF_OWNER, {"owner": key(owner), "now": self._now(), "limit": limit}
            if kind is not None:
                sql, parameters = sql + _OF_KIND, parameters | {"kind": kind}
            if after is not None:
                if (last := await self._find(transaction, owner, after)) is None:
                    return []
                sql, parameters = sql + _AFTER, parameters | {"after": key(after), "issued_at": last.claims.issued_at}
            return [_record(owner, row) for row in await transaction.run(sql + _IN_ORDER, **parameters)]

        return await self._database.read(work)

    async def revoke(self, owner: str, token_id: str, /) -> TokenRecord | None:
        found = await self.find(owner, token_id)  # whoever asks for the ids of others holds nobody up
        if found is None or found.claims.expires_at <= self._database.clock():
            return None

        async def work(transaction: Transaction) -> TokenRecord | None:
            await transaction.lock("changes")
            if await transaction.change(_REVOKE, id=key(token_id), now=self._now()):
                await self._announce(transaction, token_id=key(token_id), expires_at=found.claims.expires_at)
            return await self._find(transaction, owner, token_id)

        return await self._database.write(work)

    async def revoke_all(self, owner: str, /) -> int:
        async def work(transaction: Transaction) -> int:
            await transaction.lock("changes")
            await transaction.run(_RAISE, owner=key(owner), name=written(owner))
            generation = await _generation(transaction, owner)
            await self._announce(transaction, owner_name=written(owner), generation=generation)
            return generation

        return await self._database.write(work)

    async def mark_used(self, last_used_at: Mapping[str, int], /) -> None:
        rows = [{"id": key(token_id), "used_at": used_at} for token_id, used_at in last_used_at.items()]
        in_order = sorted(rows, key=lambda row: str(row["id"]))  # two who do so never wait for each other
        await self._database.write(lambda transaction: transaction.run_each(_MARK_USED, in_order))

    async def snapshot(self, after: str | None = None, /) -> Snapshot:
        async def work(transaction: Transaction) -> Snapshot:
            [last] = await transaction.run(_SEQUENCE)
            kind, _, key_before = ("owner " if after is None else after).partition(" ")
            page = {"after": key_before, "limit": self._page}
            if kind == "owner":
                rows = await transaction.run(_RAISED, **page)
                following: str | None = f"owner {rows[-1].id}" if len(rows) == self._page else "token "
                return Snapshot(last.sequence, {read(row.name): row.generation for row in rows}, {}, following)
            rows = await transaction.run(_REVOKED, now=self._now(), **page)
            following = f"token {rows[-1].id}" if len(rows) == self._page else None
            return Snapshot(last.sequence, {}, {read(row.id): row.expires_at for row in rows}, following)

        return await self._database.read(work)

    async def changes(self, after: int, /) -> Sequence[Change]:
        rows = await self._database.read(
            lambda transaction: transaction.run(_CHANGES, after=after, limit=CHANGES_AT_ONCE)
        )
        return [_change(row) for row in rows]

    def _now(self) -> int:
        return int(self._database.clock())

    async def _find(self, transaction: Transaction, owner: str, token_id: str) -> TokenRecord | None:
        rows = await transaction.run(_FIND, owner=key(owner), id=key(token_id), now=self._now())
        return next((_record(owner, row) for row in rows), None)

    async def _announce(self, transaction: Transaction, **change: str | int) -> None:
        """Number a change. The lock is taken before, so that no lower number is committed after it."""
        nothing = dict.fromkeys(("token_id", "expires_at", "owner_name", "generation"))
        await transaction.run(_CHANGE, made_at=self._now(), **{**nothing, **change})


async def _generation(transaction: Transaction, owner: str) -> int:
    rows = await transaction.run(_GENERATION, owner=key(owner))
    return rows[0].generation if rows else 0


def _row(record: TokenRecord) -> dict[str, str | int | None]:
    claims = record.claims
    return {
        "id": key(claims.id),
        "owner": key(claims.owner),
        "generation": claims.generation,
        "kind": record.kind,
        "name": written(record.name),
        "description": written(record.description),
        "groups": json.dumps(record.groups),
        "issued_at": claims.issued_at,
        "expires_at": claims.expires_at,
        "forgotten_at": record.forgotten_at,
        "last_used_at": record.last_used_at,
    }


def _record(owner: str, row: Row) -> TokenRecord:
    return TokenRecord(
        Claims(read(row.id), owner, row.generation, issued_at=row.issued_at, expires_at=row.expires_at),
        kind="api_key" if row.kind == "api_key" else "access_token",
        name=read(row.name),
        description=read(row.description),
        groups=tuple(json.loads(row.groups)),
        is_revoked=bool(row.is_revoked),
        last_used_at=row.last_used_at,
    )


def _change(row: Row) -> Change:
    if row.token_id is not None:
        return TokenRevoked(row.sequence, read(row.token_id), row.expires_at)
    return GenerationRaised(row.sequence, read(row.owner_name), row.generation)
