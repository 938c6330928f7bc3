"""Tokens and revocations in the memory of one process."""

from __future__ import annotations

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
        self._minted: dict[str, dict[str, int]] = {}  # owner -> token id -> expiry
        self._revoked: dict[str, int] = {}  # token id -> expiry
        self._generations: dict[str, int] = {}

    async def generation(self, owner: str, /) -> int:
        return self._generations.get(owner, 0)

    async def is_revoked(self, claims: Claims, /) -> bool:
        return claims.id in self._revoked or claims.generation < self._generations.get(claims.owner, 0)

    async def record(self, claims: Claims, /) -> None:
        self._forget_expired(claims.owner)
        self._minted.setdefault(claims.owner, {})[claims.id] = claims.expires_at

    async def revoke(self, owner: str, token_id: str, /) -> bool:
        self._forget_expired(owner)
        expires_at = self._minted.get(owner, {}).get(token_id)
        if expires_at is not None:
            self._revoked[token_id] = expires_at
        return expires_at is not None

    async def revoke_all(self, owner: str, /) -> None:
        self._generations[owner] = self._generations.get(owner, 0) + 1
        self._minted.pop(owner, None)

    def _forget_expired(self, owner: str) -> None:
        now = self._clock()
        minted = self._minted.get(owner, {})
        for ids in (minted, self._revoked):
            for token_id in [token_id for token_id, expires_at in ids.items() if expires_at <= now]:
                del ids[token_id]
