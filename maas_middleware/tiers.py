"""What a caller may use: tiers, and how groups lead to one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from .errors import NoTier
from .identity import AssertedIdentity, Identity
from .limiting import NO_LIMITS, Limit, Limits, Subject

Feature = Literal[
    "streaming", "tools", "vision", "audio", "embeddings", "rerank", "pooling", "images", "messages", "responses"
]
FEATURES: tuple[Feature, ...] = get_args(Feature)


@dataclass(frozen=True, slots=True)
class Tier:
    """A level of service.

    Attributes:
        name: unique; what models name in `tiers`.
        level: where a caller is in several tiers the highest level wins; equal levels keep their order.
        groups: whoever is in one of them is in the tier.
        requests: limits on requests per user, all of them binding; empty means unlimited.
        tokens: the same for tokens.
        models: further limits per user on single models, by the id of the model.
        concurrency: how many requests a user may have in flight; None is no cap.
        max_tokens_per_request: the most tokens that one request may have generated; None is no cap.
        features: what requests of the tier may use; None means all features.
    """

    name: str
    display_name: str = ""
    description: str = ""
    level: int = 0
    groups: tuple[str, ...] = ()
    requests: tuple[Limit, ...] = ()
    tokens: tuple[Limit, ...] = ()
    models: Mapping[str, Limits] = field(default_factory=dict)
    concurrency: int | None = None
    max_tokens_per_request: int | None = None
    features: Collection[Feature] | None = None

    def has(self, feature: Feature) -> bool:
        """Whether requests of the tier may use a feature."""
        return self.features is None or feature in self.features

    def subject(self, identity: Identity) -> Subject:
        """The budget of a caller in this tier: one per user, over all tokens and models."""
        return Subject(identity.key, self.requests, self.tokens, self.concurrency)

    def subject_on(self, model: str, identity: Identity) -> Subject | None:
        """The budget that a caller has on one model besides; None where there is none."""
        limits = self.models.get(model)
        # no key of an identity begins with a bracket
        return None if limits in (None, NO_LIMITS) else limits.subject(f"[{identity.key!r}, {model!r}]")


class TierResolver(Protocol):
    """Tells the tier of a caller."""

    async def resolve(self, identity: Identity, /) -> Tier:
        """Return the caller's tier as it is now.

        Raises:
            NoTier: the caller is in none.
        """
        ...


class GroupTierResolver:
    """The tier of the highest level that names one of the caller's groups.

    `tiers` is a sequence, or a function that returns the one in force (called on every request, so it has to be fast).
    """

    def __init__(self, tiers: Sequence[Tier] | Callable[[], Sequence[Tier]]) -> None:
        self._tiers = tiers if callable(tiers) else lambda: tiers

    async def resolve(self, identity: Identity, /) -> Tier:
        groups, highest = set(identity.groups), None
        for tier in self._tiers():
            if (highest is None or tier.level > highest.level) and not groups.isdisjoint(tier.groups):
                highest = tier
        if highest is None:
            raise NoTier
        return highest


class AssertedTierResolver:
    """The tier that a gateway found, by its name alone: it has judged the request, so nothing is limited here.

    Raises:
        NoTier: the caller is no `AssertedIdentity`.
    """

    async def resolve(self, identity: Identity, /) -> Tier:
        if not isinstance(identity, AssertedIdentity):
            raise NoTier
        return Tier(identity.tier)
