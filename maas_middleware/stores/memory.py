"""Tokens and revocations in the memory of one process."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

from ..tokens import Claims


class MemoryTokenStore:
    """Keeps what was minted and revoked until the tokens expire, or the process ends.

    Revocations are effective at once. Other processes do not see them.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._minted: dict[str, set[str]] = {}  # the ids of an owner's tokens
        self._revoked: set[str] = set()
        self._expiring: list[tuple[int, str, str]] = []  # a heap of expiry, owner and id
        self._generations: dict[str, int] = {}

    async def generation(self, owner: str, /) -> int:
        return self._generations.get(owner, 0)

    async def is_revoked(self, claims: Claims, /) -> bool:
        return claims.id in self._revoked or claims.generation < self._generations.get(claims.owner, 0)

    async def record(self, claims: Claims, /) -> None:
        self._forget_expired()
        self._minted.setdefault(claims.owner, set()).add(claims.id)
        heapq.heappush(self._expiring, (claims.expires_at, claims.owner, claims.id))

    async def revoke(self, owner: str, token_id: str, /) -> bool:
        self._forget_expired()
        is_owned = token_id in self._minted.get(owner, ())
        if is_owned:
            self._revoked.add(token_id)
        return is_owned

    async def revoke_all(self, owner: str, /) -> None:
        self._generations[owner] = self._generations.get(owner, 0) + 1
        self._minted.pop(owner, None)

    def _forget_expired(self) -> None:
        now = self._clock()
        while self._expiring and self._expiring[0][0] <= now:
            _, owner, token_id = heapq.heappop(self._expiring)
            self._revoked.discard(token_id)
            minted = self._minted.get(owner, set())
            minted.discard(token_id)
            if not minted:
                self._minted.pop(owner, None)
