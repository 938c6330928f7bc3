"""The service inside of the app that serves the models."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.types import ASGIApp

from ._asserting import asserted_inference
from ._lifespan import Service
from .apps.host_models import HostModelsApp
from .assembly import Parts
from .catalogue import Catalogue
from .dispatch import GuardedApp, Host
from .middleware.administrators import AdministratorsMiddleware
from .middleware.tier import TierMiddleware
from .settings import ConfigurationError, Problem, Settings, inner_api_key_of


def mounted_in(app: ASGIApp, parts: Parts) -> Service:
    """Wrap an app in the whole onion.

    Raises:
        ConfigurationError: an endpoint is to be public.
    """
    settings = parts.settings
    if problems := list(public_endpoints(settings, parts.catalogue)):
        raise ConfigurationError(problems)
    inner_key = inner_api_key_of(settings)
    guarded = GuardedApp(app)
    administration = AdministratorsMiddleware(guarded, administrators=settings.tokens.administrators)
    host = Host(
        app,
        administration=parts.readable(parts.control.known(administration, inner_key)),
        asserted=asserted_inference(settings, parts.catalogue, guarded, inner_key=inner_key),
        public_paths=frozenset(settings.public_paths),
        keeps_unlisted=settings.scope == "inference",
        answers_preflights=not settings.cors_origins,
    )
    models = None
    if parts.catalogue.is_open:
        listing = HostModelsApp(guarded, tiers=parts.tiers.current, public_url=settings.public_url)
        models = parts.control.known(TierMiddleware(listing, resolver=parts.resolver, unlisted="pass"), inner_key)
    return parts.service(parts.dispatch(parts.inference(guarded, inner_key), {}, host, models), app)


def public_endpoints(settings: Settings, catalogue: Catalogue) -> Iterator[Problem]:
    """What is wrong with the public paths: one of them leads to an endpoint."""
    for index, path in enumerate(settings.public_paths):
        if catalogue.locate(path).endpoints:
            message = f"{path} is in the table of endpoints, so it is not for everyone"
            yield Problem(f"public_paths[{index}]", message)
