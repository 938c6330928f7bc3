"""What is revoked, as it is remembered between looks at a store that others write, too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .tokens import Claims

CHANGES_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class TokenRevoked:
    """One token was revoked; nobody needs to know any more once it has expired.

    Attributes:
        sequence: grows with every change of a store, in the order in which changes are seen.
        expires_at: seconds since the epoch.
    """

    sequence: int
    token_id: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class GenerationRaised:
    """All tokens of an owner were revoked: those of an older generation."""

    sequence: int
    owner: str
    generation: int


Change = TokenRevoked | GenerationRaised


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is revoked.

    Attributes:
        sequence: of the last change that is in it; 0 where there was none.
        generations: of all owners who have another than 0.
        revoked: the expiry, in seconds since the epoch, of revoked tokens by id.
    """

    sequence: int
    generations: Mapping[str, int]
    revoked: Mapping[str, int]


class ChangeLog(Protocol):
    """A store of tokens whose revocations can be followed. May raise StoreUnavailable."""

    async def snapshot(self) -> Snapshot:
        """Everything that was revoked before it was asked for, as of one moment."""
        ...

    async def changes(self, after: int, /) -> Iterable[Change]:
        """The changes after that sequence, in order; `CHANGES_AT_ONCE` of them where there may be more, else all.

        A change that was seen once is never followed by one of a lower sequence, whatever transactions were open.
        Changes may be forgotten after an hour: whoever has not asked for so long needs a snapshot. The sequence goes
        on where it was, even if all are forgotten.
        """
        ...


class KnownRevocations:
    """A memory of changes and snapshots. Nothing that was revoked becomes valid again, in whatever order they come."""

    def __init__(self) -> None:
        self._sequence = 0
        self._generations: dict[str, int] = {}
        self._revoked: dict[str, int] = {}

    @property
    def sequence(self) -> int:
        """Up to which all changes are known."""
        return self._sequence

    def covers(self, claims: Claims) -> bool:
        """Whether the token is revoked."""
        return claims.id in self._revoked or claims.generation < self._generations.get(claims.owner, 0)

    def revoke(self, token_id: str, expires_at: int) -> None:
        """Take in that a token was revoked, which may be forgotten when it has expired (seconds since the epoch)."""
        self._revoked[token_id] = expires_at

    def raise_generation(self, owner: str, generation: int) -> None:
        """Take in that the owner's tokens of older generations were revoked."""
        self._generations[owner] = max(generation, self._generations.get(owner, 0))

    def follow(self, changes: Iterable[Change]) -> None:
        """Take in what follows on what is known."""
        for change in changes:
            if isinstance(change, TokenRevoked):
                self.revoke(change.token_id, change.expires_at)
            else:
                self.raise_generation(change.owner, change.generation)
            self._sequence = max(change.sequence, self._sequence)

    def load(self, snapshot: Snapshot, now: float) -> None:
        """Take in everything that is revoked, and forget what has expired by now (seconds since the epoch).

        What follows is what follows on the snapshot, also where more was known: a store that was restored from a
        backup counts on from a lower sequence.
        """
        known = self._generations.get
        self._generations.update(
            {owner: generation for owner, generation in snapshot.generations.items() if generation > known(owner, 0)}
        )
        self._revoked.update(snapshot.revoked)
        for token_id in [token_id for token_id, expires_at in self._revoked.items() if expires_at <= now]:
            del self._revoked[token_id]
        self._sequence = snapshot.sequence
