"""From Settings to what a gateway tells the apps behind it, and what such an app makes of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from starlette.middleware import Middleware
from starlette.types import ASGIApp

from .assertions import AssertionKeys
from .catalogue import Catalogue
from .middleware import stack
from .middleware.audience import AudienceMiddleware
from .middleware.errors import ErrorEnvelopeMiddleware
from .middleware.identity import IdentityMiddleware
from .middleware.tier import TierMiddleware
from .middleware.usage import UsageMiddleware
from .providers.signed import AssertionSigner, SignedProvider
from .providers.watching import WatchedAssertionKeys
from .settings import ConfigurationError, Problem, Settings, audiences_of
from .tiers import AssertedTierResolver


def signers_of(settings: Settings) -> dict[str, AssertionSigner]:
    """Who vouches for callers before the apps behind a gateway, by the ids of their models.

    Raises:
        ConfigurationError: keys cannot be used any more.
    """
    return {
        model.id: AssertionSigner(keys=_keys(f"models[{index}].assertion_keys_file", model.assertion_keys_file))
        for index, model in enumerate(settings.models or ())
        if model.assertion_keys_file is not None
    }


def asserted_inference(
    settings: Settings, catalogue: Catalogue, app: ASGIApp, *, inner_key: str | None
) -> ASGIApp | None:
    """A mounted app for callers whom a trusted gateway vouches for; None where no gateway is trusted.

    The gateway has found the tier and judged the request by it, and it counts: here nothing is limited or recorded,
    and models are for every tier.

    Raises:
        ConfigurationError: the keys cannot be used any more.
    """
    gateways, limits = settings.trusted_gateways, settings.proxy
    if gateways.keys_file is None:
        return None
    keys = _keys("trusted_gateways.keys_file", gateways.keys_file)
    provider = SignedProvider(keys=keys, audiences=audiences_of(settings))
    models = None if catalogue.is_open else [replace(model, tiers=None) for model in catalogue.models]
    if any(model.upstream_model != model.id for model in models or ()):  # a name that the gateway does not know
        app = UsageMiddleware(app, max_body_bytes=limits.max_body_bytes)
    catalogue = Catalogue(models)
    return stack(
        app,
        Middleware(ErrorEnvelopeMiddleware),
        Middleware(IdentityMiddleware, provider=provider, inner_key=inner_key),
        Middleware(AudienceMiddleware, catalogue=catalogue),
        Middleware(
            TierMiddleware,
            resolver=AssertedTierResolver(),
            catalogue=catalogue,
            max_body_bytes=limits.max_body_bytes,
            body_timeout=limits.body_timeout,
        ),
    )


def _keys(place: str, path: str) -> Callable[[], AssertionKeys]:
    try:
        return WatchedAssertionKeys(Path(path)).current
    except OSError as error:
        raise ConfigurationError([Problem(place, f"{path} cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        raise ConfigurationError([Problem(place, f"{path} {error}")]) from None
