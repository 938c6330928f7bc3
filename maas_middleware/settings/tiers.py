"""Tiers as they are configured, and how they become the ones that are used."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, field

from ..limiting import NO_LIMITS, Limits, parse_limits
from ..tiers import Feature, Tier
from .notation import LimitText, Name, Positive
from .reader import Reader
from .schema import schema_of


class LimitsSettings(Struct, frozen=True, kw_only=True):
    """Limits on requests and on tokens, such as `100/minute;5000/day` or `unlimited`; None where it is left out."""

    requests: LimitText | None = None
    tokens: LimitText | None = None


class ModelLimitsSettings(Struct, frozen=True, kw_only=True):
    """Limits on a model; unlimited where they are left out.

    Attributes:
        requests, tokens: such as `100/minute;5000/day`.
        concurrency: how many requests may be in flight.
    """

    requests: LimitText = "unlimited"
    tokens: LimitText = "unlimited"
    concurrency: Positive | None = None

    def limits(self) -> Limits:
        limits = Limits(parse_limits(self.requests), parse_limits(self.tokens), self.concurrency)
        return NO_LIMITS if limits == NO_LIMITS else limits  # what is the same object needs no look at what is in it


class TierSettings(Struct, frozen=True, kw_only=True):
    """A tier as the reference writes it, with what it may do.

    Attributes:
        limits: on requests and on tokens, per user.
        model_limits: further limits per user on single models, by the id of the model.
        concurrency: how many requests a user may have in flight; None is no cap.
        max_tokens_per_request: the most tokens that one request may have generated; None is no cap.
        features: what its requests may use: names, or `all`.
    """

    name: Name
    display_name: str = field(default="", name="displayName")
    description: str = ""
    level: int = 0
    groups: tuple[str, ...] = ()
    limits: LimitsSettings = LimitsSettings()
    model_limits: Mapping[str, ModelLimitsSettings] = field(default_factory=dict)
    concurrency: Positive | None = None
    max_tokens_per_request: Positive | None = None
    features: tuple[Feature, ...] | Literal["all"] = "all"


def _some(tiers: Sequence[TierSettings]) -> Sequence[TierSettings]:
    if not tiers:
        raise ValueError("names no tier; where it is left out there are free, premium and enterprise")
    return tiers


Tiers = Annotated[Sequence[TierSettings], Meta(extra={"check": _some})]


class _TiersFile(Struct, frozen=True):
    tiers: Tiers


_NO_LIMITS = LimitsSettings()
_GUIDE_LIMITS: Mapping[str, LimitsSettings] = {
    "free": LimitsSettings(requests="5/minute", tokens="100/minute"),
    "premium": LimitsSettings(requests="20/minute", tokens="50000/minute"),
    "enterprise": LimitsSettings(requests="50/minute", tokens="100000/minute"),
}
_GUIDE_GROUPS = {
    "free": ("system:authenticated", "tier-free-users"),
    "premium": ("premium-group", "tier-premium-users"),
    "enterprise": ("enterprise-group", "admin-group", "tier-enterprise-users"),
}
_GUIDE_TIERS = tuple(
    TierSettings(name=name, display_name=f"{name.title()} Tier", level=level, groups=groups)
    for level, (name, groups) in enumerate(_GUIDE_GROUPS.items())
)


def tiers_from(
    reader: Reader,
    tiers: Sequence[TierSettings] | None,
    tiers_file: str | None,
    tier_limits: Mapping[str, LimitsSettings],
    models: Collection[str] | None,
) -> tuple[Tier, ...] | None:
    """The tiers to be used, in the order of the configuration; None where they cannot be known.

    Models that are None are not known, and not checked.
    """
    place, entries = entries_from(reader, tiers, tiers_file)
    if reader.has_refused(place) or reader.has_refused(reader.place("tiers_file")):
        return None
    reader.unique((f"{place}[{index}].name", entry.name) for index, entry in enumerate(entries))
    for name in tier_limits:
        if name not in {entry.name for entry in entries}:
            reader.refuse(f"{reader.place('tier_limits')}.{name}", f"there is no tier {name}")
    for index, entry in enumerate(entries):
        for name in entry.model_limits:
            if models is not None and name not in models:
                reader.refuse(f"{place}[{index}].model_limits.{name}", f"there is no model {name}")
    return tuple(_tier(reader, f"{place}[{index}]", entry, tier_limits) for index, entry in enumerate(entries))


def entries_from(
    reader: Reader, tiers: Sequence[TierSettings] | None, tiers_file: str | None
) -> tuple[str, Sequence[TierSettings]]:
    """The tiers as they are written, and the place of that list."""
    place, entries = reader.place("tiers"), _GUIDE_TIERS if tiers is None else tiers
    if tiers_file is not None and tiers is not None:
        reader.refuse(reader.place("tiers_file"), f"cannot be set together with {place}")
    elif tiers_file is not None:
        return _in_file(reader, tiers_file)
    return place, entries


def _in_file(reader: Reader, path: str) -> tuple[str, Sequence[TierSettings]]:
    place = reader.place("tiers_file")
    content = reader.document(place, path)
    if content is None:
        return place, ()
    if isinstance(content.value, Mapping):
        file = reader.read(schema_of(_TiersFile), content)
        return content.below("tiers", UNSET).place, file.tiers
    entries = reader.read(schema_of(_TiersFile).fields[0].type, content)
    return content.place, () if entries is UNSET else entries


def _tier(reader: Reader, place: str, entry: TierSettings, tier_limits: Mapping[str, LimitsSettings]) -> Tier:
    chain = (
        entry.limits,
        tier_limits.get(entry.name, _NO_LIMITS),
        _GUIDE_LIMITS.get(entry.name, _NO_LIMITS),
    )
    texts = {
        "requests": next((limits.requests for limits in chain if limits.requests is not None), None),
        "tokens": next((limits.tokens for limits in chain if limits.tokens is not None), None),
    }
    missing = [what for what, text in texts.items() if text is None]
    elsewhere = reader.place("tier_limits")
    read = reader.is_sound(f"{place}.limits") and reader.is_sound(f"{elsewhere}.{entry.name}")
    if entry.name and missing and read and not reader.has_refused(elsewhere):
        reader.refuse(
            f"{place}.limits",
            f"tier {entry.name} has no limit on {' and '.join(missing)}: "
            f"write one here or in tier_limits.{entry.name}, or write unlimited",
        )
    return Tier(
        name=entry.name,
        display_name=entry.display_name,
        description=entry.description,
        level=entry.level,
        groups=entry.groups,
        requests=parse_limits(texts["requests"] or "unlimited"),
        tokens=parse_limits(texts["tokens"] or "unlimited"),
        models={name: limits.limits() for name, limits in entry.model_limits.items()},
        concurrency=entry.concurrency,
        max_tokens_per_request=entry.max_tokens_per_request,
        features=None if entry.features == "all" else frozenset(entry.features),
    )
