"""What a configuration may say, and probably does not mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from .loading import Problem
from .openshift import OpenShiftSettings
from .reader import Reader
from .sections import Settings
from .tiers import TierSettings, entries_from


def warnings_of(settings: Settings) -> list[Problem]:
    """What is valid and probably not meant, each with its place: sentences for whoever runs the service.

    Args:
        settings: from `load_settings` or `validated`; `tiers_file` is read.

    Raises:
        ConfigurationError: that file has become invalid since.
    """
    reader = Reader()
    place, tiers = entries_from(reader, settings.tiers, settings.tiers_file)
    reader.finish()
    if settings.tiers_file is None:
        place = _place(settings, "tiers")
    return [
        *_caps_that_need_a_context_length(settings, place, tiers),
        *_shares_that_are_whole(settings),
        *_reviews_without_a_credential(settings),
        *_doubtful_assertion_keys(settings),
    ]


def _place(settings: Settings, key: str) -> str:
    origin = settings.origin
    return key if origin is None or key not in origin.keys else f"{Path(origin.config).name}: {key}"


def _shares_that_are_whole(settings: Settings) -> Iterator[Problem]:
    is_shared = settings.counters != "memory://" or settings.counters_file is not None
    if is_shared and settings.on_counters_failure == "local" and settings.replicas == 1:
        message = "is 1: while Redis is away each process gives everybody the whole limit; say how many there are"
        yield Problem(_place(settings, "replicas"), message)


def _reviews_without_a_credential(settings: Settings) -> Iterator[Problem]:
    openshift = settings.openshift
    # without TLS it is `oc proxy`, which has a credential; and in a pod nothing need be said
    is_elsewhere = openshift.api_url.startswith("https:") and openshift.api_url != OpenShiftSettings().api_url
    if is_elsewhere and openshift.review == "tokenreview" and openshift.token_file is None:
        message = "is not set: without a credential no cluster reviews logins; or set openshift.review to users-self"
        yield Problem(_place(settings, "openshift.token_file"), message)


def _doubtful_assertion_keys(settings: Settings) -> Iterator[Problem]:
    models, first = _place(settings, "models"), dict[str, tuple[int, frozenset[str]]]()
    for index, model in enumerate(settings.models or ()):
        if (keys := model.assertion_keys_file) is None:
            continue
        place = f"{models}[{index}].assertion_keys_file"
        if not (servers := frozenset(model.upstreams)):
            yield Problem(place, "is for a gateway, and the model has no upstreams")
            continue
        other, others = first.setdefault(keys, (index, servers))
        if servers.isdisjoint(others):
            message = f"is that of {models}[{other}] too: each of the apps can pass for this gateway at the other"
            yield Problem(place, message)


def _caps_that_need_a_context_length(
    settings: Settings, place: str, tiers: Sequence[TierSettings]
) -> Iterator[Problem]:
    for index, tier in enumerate(tiers):
        if tier.max_tokens_per_request is not None and (reason := _why_nothing_is_capped(settings, tier)):
            message = f"binds only requests that name a cap themselves, for {reason}"
            yield Problem(f"{place}[{index}].max_tokens_per_request", message)


def _why_nothing_is_capped(settings: Settings, tier: TierSettings) -> str | None:
    if settings.models is None:
        return "without models no context_length is known"
    models = _place(settings, "models")
    lacking = [
        f"{models}[{index}]"
        for index, model in enumerate(settings.models)
        if model.context_length is None and (model.tiers == "all" or tier.name in model.tiers)
    ]
    return f"there is no context_length in {', '.join(lacking)}" if lacking else None
