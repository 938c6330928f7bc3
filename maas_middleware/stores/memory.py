"""Tokens, revocations and recorded use in the memory of one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date

from ..token_store import TokenKind, TokenRecord
from ..tokens import Claims
from ..usage_store import UsageRecord

_SWEEP_SECONDS = 60.0
_BATCHES_REMEMBERED = 10_000  # of one a second for more than an hour


class MemoryTokenStore:
    """Keeps what was minted and revoked until the tokens expire, or the process ends.

    Revocations are effective at once. Other processes do not see them.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._records: dict[str, dict[str, TokenRecord]] = {}  # of an owner, by the id of the token
        self._owners: dict[str, str] = {}
        self._revoked: set[str] = set()
        self._generations: dict[str, int] = {}
        self._sweep_at = clock() + _SWEEP_SECONDS

    async def is_revoked(self, claims: Claims, /) -> bool:
        return claims.id in self._revoked or claims.generation < self._generations.get(claims.owner, 0)

    async def generation(self, owner: str, /) -> int:
        return self._generations.get(owner, 0)

    async def record(self, record: TokenRecord, /, *, maximum: int | None = None) -> bool:
        self._sweep()
        owner, now = record.claims.owner, self._clock()
        if maximum is not None:
            active = [one for one in self._of(owner) if one.kind == record.kind and one.status(now) == "active"]
            if len(active) >= maximum:
                return False
        self._records.setdefault(owner, {})[record.claims.id] = record
        self._owners[record.claims.id] = owner
        return True

    async def find(self, owner: str, token_id: str, /) -> TokenRecord | None:
        return next((record for record in self._of(owner) if record.claims.id == token_id), None)

    async def list(
        self, owner: str, /, *, kind: TokenKind | None = None, limit: int = 100, after: str | None = None
    ) -> Sequence[TokenRecord]:
        records = sorted(self._of(owner), key=lambda record: (-record.claims.issued_at, record.claims.id))
        if after is not None:
            ids = [record.claims.id for record in records]
            records = records[ids.index(after) + 1 :] if after in ids else []
        return [record for record in records if kind in (None, record.kind)][:limit]

    async def revoke(self, owner: str, token_id: str, /) -> TokenRecord | None:
        record = await self.find(owner, token_id)
        if record is None or record.claims.expires_at <= self._clock():
            return None
        self._revoked.add(token_id)
        return replace(record, is_revoked=True)

    async def revoke_all(self, owner: str, /) -> int:
        generation = self._generations[owner] = self._generations.get(owner, 0) + 1
        return generation

    async def mark_used(self, last_used_at: Mapping[str, int], /) -> None:
        for token_id, used_at in last_used_at.items():
            if token_id in self._owners:
                records = self._records[self._owners[token_id]]
                latest = max(used_at, records[token_id].last_used_at or 0)
                records[token_id] = replace(records[token_id], last_used_at=latest)

    def _of(self, owner: str) -> Iterator[TokenRecord]:
        now, generation = self._clock(), self._generations.get(owner, 0)
        for record in self._records.get(owner, {}).values():
            if now < record.forgotten_at:
                is_revoked = record.claims.id in self._revoked or record.claims.generation < generation
                yield replace(record, is_revoked=is_revoked)

    def _sweep(self) -> None:
        now = self._clock()
        if now < self._sweep_at:
            return
        self._sweep_at = now + _SWEEP_SECONDS
        for owner, records in list(self._records.items()):
            for token_id, record in list(records.items()):
                if record.forgotten_at <= now:
                    del records[token_id], self._owners[token_id]
                    self._revoked.discard(token_id)
            if not records:
                del self._records[owner]


class MemoryUsageStore:
    """Keeps recorded use until the process ends."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, date, str], UsageRecord] = {}
        self._batches: dict[str, None] = {}  # the oldest first

    async def add(self, batch_id: str, records: Sequence[UsageRecord], /) -> None:
        if batch_id in self._batches:
            return
        self._batches[batch_id] = None
        if len(self._batches) > _BATCHES_REMEMBERED:
            del self._batches[next(iter(self._batches))]
        for record in records:
            key = (record.owner, record.day, record.model)
            known = self._records.get(key)
            self._records[key] = record if known is None else _sum(known, record)

    async def usage(self, owner: str, first: date, last: date, /) -> Sequence[UsageRecord]:
        found = [record for record in self._records.values() if record.owner == owner and first <= record.day <= last]
        return sorted(found, key=lambda record: (record.day, record.model))


def _sum(one: UsageRecord, other: UsageRecord) -> UsageRecord:
    return replace(
        one,
        requests=one.requests + other.requests,
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
    )
