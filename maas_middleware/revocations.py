"""What is revoked, as it is remembered between looks at a store that others write, too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .tokens import Claims

CHANGES_AT_ONCE = 1000
FOLLOWABLE_SECONDS = 3000.0  # changes are kept for an hour, by clocks that differ

_LOOKED_THROUGH_AT_ONCE = 10_000


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
    """A page of everything that is revoked.

    Attributes:
        sequence: a change; those up to it are in this page, or in others of the same snapshot. 0 where there is none.
        generations: of owners who have another than 0.
        revoked: the expiry, in seconds since the epoch, of revoked tokens by id.
        next: what to ask the next page after; None where this is the last.
    """

    sequence: int
    generations: Mapping[str, int]
    revoked: Mapping[str, int]
    next: str | None = None


class ChangeLog(Protocol):
    """A store of tokens whose revocations can be followed. May raise StoreUnavailable."""

    async def snapshot(self, after: str | None = None, /) -> Snapshot:
        """The first page, or the one after a page that told this.

        All pages have everything that was revoked before the first was asked for. What is revoked later may be missing,
        but is in the changes after the sequence of the first.
        """
        ...

    async def changes(self, after: int, /) -> Iterable[Change]:
        """The changes after that sequence, in order; `CHANGES_AT_ONCE` of them where there may be more, else all.

        A change that was seen once is never followed by one of a lower sequence, whatever transactions were open.
        Changes may be forgotten after an hour: whoever has not asked for so long needs a snapshot. The last one is
        never forgotten. Where it is gone, or is another, the store was set back: to a backup, or by the loss of a
        server.
        """
        ...


class KnownRevocations:
    """A memory of changes and snapshots. Nothing that was revoked becomes valid again, in whatever order they come."""

    def __init__(self) -> None:
        self._sequence = 0
        self._last: Change | None = None  # of that sequence, where it was seen
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
            if change.sequence >= self._sequence:
                self._sequence, self._last = change.sequence, change

    def follow_from(self, sequence: int) -> None:
        """Follow the changes after that one from now on. What is known stays known."""
        self._sequence, self._last = sequence, None

    @property
    def asked_after(self) -> int:
        """What to ask changes after, so that the last one known comes again; see `is_continued_by`."""
        return max(self._sequence - 1, 0)

    def is_continued_by(self, changes: Sequence[Change]) -> bool:
        """Whether the changes begin with the last one known. If they do not, the store was set back."""
        if self._sequence == 0:
            return True
        if self._last is None:
            return bool(changes) and changes[0].sequence == self._sequence
        return bool(changes) and changes[0] == self._last

    def load(self, page: Snapshot) -> None:
        """Take in a page of what is revoked. What follows is what followed before."""
        for owner, generation in page.generations.items():
            self.raise_generation(owner, generation)
        self._revoked.update(page.revoked)

    def forget(self, now: float) -> Iterator[None]:
        """Forget what has expired by now (seconds since the epoch), a part of it with each step."""
        token_ids = list(self._revoked)
        for start in range(0, len(token_ids), _LOOKED_THROUGH_AT_ONCE):
            for token_id in token_ids[start : start + _LOOKED_THROUGH_AT_ONCE]:
                if self._revoked.get(token_id, math.inf) <= now:
                    del self._revoked[token_id]
            yield
