"""Minting, as access tokens and API keys have it in common."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidRequest
from ..identity import MAXIMUM_TOKEN_BYTES, Identity
from ..throttling import Throttle, check_throttle
from ..tiers import TierResolver
from ..token_store import TokenKind, TokenRecord, TokenStore
from ..tokens import LifetimePolicy, MintedToken, TokenMinter


class Minting:
    """Mints what its callers may have, and keeps a record of it."""

    def __init__(
        self,
        *,
        minter: TokenMinter,
        store: TokenStore,
        resolver: TierResolver,
        lifetimes: LifetimePolicy,
        throttle: Throttle | None,
    ) -> None:
        self._minter = minter
        self._store = store
        self._resolver = resolver
        self._lifetimes = lifetimes
        self._throttle = throttle

    async def mint(
        self,
        identity: Identity,
        expiration: object,
        *,
        kind: TokenKind = "access_token",
        name: str = "",
        description: str = "",
        maximum: int | None = None,
    ) -> MintedToken | None:
        """Mint a token for as long as was asked for; None where the caller has `maximum` active ones of this kind.

        Raises:
            NoTier: the caller is in none.
            InvalidRequest: `invalid_expiration`, or `too_many_groups` for a token.
            RateLimitExceeded: the caller mints too often.
            StoreUnavailable: it could not be recorded, and nobody will see it.
        """
        await self._resolver.resolve(identity)
        lifetime = self._lifetimes.grant(expiration)
        await check_throttle(self._throttle, identity.key, "mints")
        minted = self._minter.mint(identity, lifetime, await self._store.generation(identity.key))
        if len(minted.token) > MAXIMUM_TOKEN_BYTES:
            raise InvalidRequest("You are in more groups than an access token can hold", code="too_many_groups")
        record = TokenRecord(minted.claims, kind, name, description, minted.groups)
        return minted if await self._store.record(record, maximum=maximum) else None


def minted_object(minted: MintedToken) -> dict[str, Any]:
    """What its owner is told of a token, once: the token itself, and what was granted."""
    return {
        "token": minted.token,
        "expiration": minted.expiration,
        "expiresAt": minted.claims.expires_at,
        "issuedAt": minted.claims.issued_at,
        "jti": minted.claims.id,
    }
