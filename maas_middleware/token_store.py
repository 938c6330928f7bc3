"""What is kept of minted tokens, and the protocol of those who keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .tokens import Claims

API_KEY_REMEMBERED_SECONDS = 30 * 86_400  # after its expiry, so that its owner sees what became of it

TokenKind = Literal["access_token", "api_key"]
TokenStatus = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A minted token as it is remembered, which is without the token itself.

    Attributes:
        name, description: as the owner of an API key wrote them; empty for access tokens.
        groups: those of the owner at minting, as far as the token holds them.
        is_revoked: by its id, or with all of its owner's.
        last_used_at: seconds since the epoch, to about a minute; None where it was never used.
    """

    claims: Claims
    kind: TokenKind = "access_token"
    name: str = ""
    description: str = ""
    groups: tuple[str, ...] = ()
    is_revoked: bool = False
    last_used_at: int | None = None

    @property
    def forgotten_at(self) -> int:
        """When it may be forgotten (seconds since the epoch): access tokens at their expiry, API keys later."""
        return self.claims.expires_at + (API_KEY_REMEMBERED_SECONDS if self.kind == "api_key" else 0)

    def status(self, now: float) -> TokenStatus:
        """Whether it is accepted at that time (seconds since the epoch), or why it is not."""
        if self.is_revoked:
            return "revoked"
        return "active" if now < self.claims.expires_at else "expired"


class Revocations(Protocol):
    """Tells which tokens are revoked. Asked on every request."""

    async def is_revoked(self, claims: Claims, /) -> bool:
        """Whether the token was revoked, by its id or with all of its owner's.

        Raises:
            StoreUnavailable: the answer is older than what may be relied on.
        """
        ...


class TokenStore(Protocol):
    """Keeps what was minted and what was revoked. All of it may raise StoreUnavailable.

    Expired access tokens may be forgotten at once, expired API keys after 30 days.
    """

    async def generation(self, owner: str, /) -> int:
        """The owner's generation as it is now, 0 at first. Tokens of an older one are revoked."""
        ...

    async def record(self, record: TokenRecord, /, *, maximum: int | None = None) -> bool:
        """Keep what was minted; False, and nothing kept, where the owner has `maximum` active ones of this kind."""
        ...

    async def find(self, owner: str, token_id: str, /) -> TokenRecord | None:
        """The token of that id, if it is the owner's."""
        ...

    async def list(
        self, owner: str, /, *, kind: TokenKind | None = None, limit: int = 100, after: str | None = None
    ) -> Sequence[TokenRecord]:
        """The owner's tokens, newest first (of the same second by id); those that come after the one of an id.

        An unknown `after` gives none.
        """
        ...

    async def revoke(self, owner: str, token_id: str, /) -> TokenRecord | None:
        """Revoke one token, however often; None where the owner has none of that id, or it has expired."""
        ...

    async def revoke_all(self, owner: str, /) -> int:
        """Revoke everything that was minted for the owner until now; returns the new generation."""
        ...

    async def mark_used(self, last_used_at: Mapping[str, int], /) -> None:
        """Remember when tokens, by their ids, were used for the last time. Unknown ids are ignored."""
        ...
