"""From Settings to the apps that are served."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ._asgi import reject, with_route_path
from ._counting import ledger_of
from ._lifespan import Service
from .apps.health import DocumentApp, health_app, ready_app
from .apps.models import ModelsApp
from .apps.openapi import openapi_document
from .apps.proxy import ProxyApp
from .apps.tier_lookup import TierLookupApp
from .apps.tokens import TokensApp
from .catalogue import Catalogue
from .dispatch import Dispatch, Host
from .endpoints import MODELS
from .errors import NotFound
from .identity import FirstOf
from .ledgers.guarded import GuardedLedger
from .middleware import stack
from .middleware.errors import ErrorEnvelopeMiddleware
from .middleware.forwarded import ForwardedMiddleware
from .middleware.identity import IdentityMiddleware
from .middleware.rate_limit import RateLimitMiddleware
from .middleware.tier import TierMiddleware
from .middleware.usage import UsageMiddleware
from .providers.jwt import JWTMinter, JWTProvider
from .providers.keys import SigningKeys
from .providers.openshift import OpenShiftProvider, cluster_transport
from .settings import (
    ConfigurationError,
    Problem,
    Settings,
    WatchedTiers,
    inner_api_key_of,
    issuer_of,
    lifetimes_of,
    models_of,
    validated,
)
from .stores.memory import MemoryTokenStore
from .tiers import GroupTierResolver
from .transports import upstream_transport

logger = logging.getLogger("maas_middleware")


class Parts:
    """What both forms of the service are made of.

    Raises:
        ConfigurationError: naming every problem.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings = validated(settings)
        self.tiers = WatchedTiers(settings)
        self.resolver = GroupTierResolver(self.tiers.current)
        self.catalogue = Catalogue(models_of(settings))
        self.ledger = ledger_of(settings)
        self.store = MemoryTokenStore()
        self.keys = _signing_keys(settings)
        tokens = settings.tokens
        self.lifetimes = lifetimes_of(settings)
        issuer = issuer_of(settings)
        self.minter = JWTMinter(
            keys=self.keys, issuer=issuer, audience=tokens.audience, named_groups=self._named_groups
        )
        self.access_tokens = JWTProvider(
            keys=self.keys,
            issuer=issuer,
            audience=tokens.audience,
            revocations=self.store,
            maximum_lifetime=self.lifetimes.maximum,
        )
        openshift = settings.openshift
        self.logins = OpenShiftProvider(
            api_url=openshift.api_url,
            token_file=openshift.token_file,
            transport=cluster_transport(openshift.ca_file),
            audiences=openshift.audiences,
            timeout=openshift.timeout,
            allow_service_accounts=openshift.allow_service_accounts,
            review=openshift.review,
        )
        kept = (
            "tokens and revocations" if isinstance(self.ledger, GuardedLedger) else "tokens, revocations and counters"
        )
        logger.warning("%s are kept by this process alone, and end with it", kept)

    def gateway(self) -> Service:
        _check_gateway(self.catalogue)
        transport = upstream_transport()
        proxy = self.settings.proxy
        inner = ProxyApp(
            transport=transport,
            connect_timeout=proxy.connect_timeout,
            first_byte_timeout=proxy.first_byte_timeout,
            idle_timeout=proxy.idle_timeout,
        )
        own = {"/health": _open(health_app()), "/healthz": _open(health_app()), "/ready": _open(self._ready())}
        own["/openapi.json"] = _open(DocumentApp(openapi_document))
        dispatch = self._dispatch(self._inference(inner), own)
        return Service(dispatch, _no_lifespan, [*self._closing(), transport.aclose])

    def mounted_in(self, app: ASGIApp) -> Service:
        _check_public_paths(self.settings, self.catalogue)
        inner_key = inner_api_key_of(self.settings)
        host = Host(app, frozenset(self.settings.public_paths), keeps_unlisted=self.settings.scope == "inference")
        own: dict[str, ASGIApp] = {}
        if self.catalogue.is_open:
            own = dict.fromkeys((MODELS, f"/maas-api{MODELS}"), self._known(_models_app(app), inner_key))
        dispatch = self._dispatch(self._inference(app, inner_key), own, host)
        return Service(dispatch, app, self._closing())

    def _closing(self) -> list[Callable[[], Awaitable[None]]]:
        counters = [self.ledger.aclose] if isinstance(self.ledger, GuardedLedger) else []
        return [self.logins.aclose, *counters]

    def _dispatch(self, inference: ASGIApp, documents: dict[str, ASGIApp], host: Host | None = None) -> ASGIApp:
        tokens = TokensApp(minter=self.minter, store=self.store, resolver=self.resolver, lifetimes=self.lifetimes)
        collections = {
            "/v1/tokens": self._known(tokens),
            "/v1/tiers/lookup": self._known(TierLookupApp(resolver=self.resolver)),
        }
        if not self.catalogue.is_open:
            collections[MODELS] = self._models()
        dispatch = Dispatch(
            catalogue=self.catalogue,
            inference=inference,
            documents={
                "/.well-known/jwks.json": _open(DocumentApp(self.keys.jwks)),
                "/maas-api/.well-known/jwks.json": _open(DocumentApp(self.keys.jwks)),
                "/maas-api/health": _open(health_app()),
                "/maas-api/healthz": _open(health_app()),
                "/maas-api/ready": _open(self._ready()),
                "/maas-api/openapi.json": _open(DocumentApp(openapi_document)),
                **documents,
            },
            collections=collections | {f"/maas-api{path}": app for path, app in collections.items()},
            unknown=self._known(_not_found),
            host=host,
        )
        trusted = self.settings.trusted_proxies
        return ForwardedMiddleware(dispatch, trusted=trusted) if trusted else dispatch

    def _inference(self, inner: ASGIApp, inner_key: str | None = None) -> ASGIApp:
        limits, ietf_headers = self.settings.proxy, self.settings.ietf_rate_limit_headers
        return stack(
            inner,
            Middleware(ErrorEnvelopeMiddleware),
            Middleware(IdentityMiddleware, provider=self.access_tokens, inner_key=inner_key),
            Middleware(
                TierMiddleware,
                resolver=self.resolver,
                catalogue=self.catalogue,
                ledger=self.ledger,
                max_body_bytes=limits.max_body_bytes,
                body_timeout=limits.body_timeout,
                ietf_headers=ietf_headers,
            ),
            Middleware(
                RateLimitMiddleware,
                ledger=self.ledger,
                ietf_headers=ietf_headers,
                strict=self.settings.admission == "strict",
            ),
            Middleware(UsageMiddleware, max_body_bytes=limits.max_body_bytes),
        )

    def _known(self, app: ASGIApp, inner_key: str | None = None) -> ASGIApp:
        """For whoever can be identified, by a login or by an access token."""
        provider = FirstOf(self.access_tokens, self.logins)
        return _open(IdentityMiddleware(app, provider=provider, inner_key=inner_key))

    def _models(self) -> ASGIApp:
        app = ModelsApp(catalogue=self.catalogue, tiers=self.tiers.current, public_url=self.settings.public_url)
        return self._known(TierMiddleware(app, resolver=self.resolver, unlisted="pass"))

    def _ready(self) -> ASGIApp:
        return ready_app(self._degraded)

    def _degraded(self) -> list[str]:
        is_alone = isinstance(self.ledger, GuardedLedger) and self.ledger.degraded
        troubles = {"tiers": self.tiers.problem is not None, "counters": is_alone}
        return [name for name, is_so in troubles.items() if is_so]

    def _named_groups(self) -> frozenset[str]:
        return frozenset(group for tier in self.tiers.current() for group in tier.groups)


def _signing_keys(settings: Settings) -> SigningKeys:
    path = settings.tokens.signing_keys_file
    if path is None:
        return SigningKeys.generate()
    try:
        return SigningKeys.load(Path(path))
    except (ValueError, OSError) as error:
        raise ConfigurationError([Problem("tokens.signing_keys_file", str(error))]) from None


def _check_gateway(catalogue: Catalogue) -> None:
    problems = [
        Problem(f"models[{index}].upstreams", "the gateway needs one")
        for index, model in enumerate(catalogue.models)
        if not model.upstreams
    ]
    if not catalogue.models:
        problems.append(Problem("models", "the gateway needs at least one model"))
    if problems:
        raise ConfigurationError(problems)


def _check_public_paths(settings: Settings, catalogue: Catalogue) -> None:
    problems = [
        Problem(f"public_paths[{index}]", f"{path} is in the table of endpoints, so it is not for everyone")
        for index, path in enumerate(settings.public_paths)
        if catalogue.locate(path).endpoints
    ]
    if problems:
        raise ConfigurationError(problems)


def _open(app: ASGIApp) -> ASGIApp:
    return ErrorEnvelopeMiddleware(app)


def _models_app(app: ASGIApp) -> ASGIApp:
    """An inner app's own list of its models, under its own path."""

    async def models(scope: Scope, receive: Receive, send: Send) -> None:
        await app(with_route_path(scope, MODELS), receive, send)

    return models


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await reject(scope, receive, send, NotFound())


async def _no_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """The app inside a gateway, as far as its lifespan is concerned."""
