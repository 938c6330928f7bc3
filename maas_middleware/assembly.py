"""From Settings to the apps that are served."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ._asgi import reject
from ._browsers import readable_from
from ._control import Control
from ._counting import ledger_of, throttles_of
from ._lifespan import Service
from ._proxying import missing_upstreams, proxy_of, transport_of
from ._signing import KeptKeys
from ._storing import stores_of, warn_of_what_ends
from .apps.health import DocumentApp, ReadyApp, health_app
from .apps.openapi import openapi_document
from .balancing import Balancer
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
from .providers.openshift import OpenShiftProvider, cluster_transport
from .settings import (
    ConfigurationError,
    Problem,
    Settings,
    WatchedTiers,
    api_key_lifetimes_of,
    issuer_of,
    lifetimes_of,
    models_of,
    validated,
)
from .tiers import GroupTierResolver


class Parts:
    """What both forms of the service are made of.

    Raises:
        ConfigurationError: naming every problem.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings = validated(settings)
        self.tiers = WatchedTiers(settings)
        self.resolver = GroupTierResolver(self.tiers.current)
        self.catalogue = Catalogue(models_of(settings))
        self.balancer = Balancer()
        self.ledger = ledger_of(settings, clock)
        self.stores = stores_of(settings)
        self.throttles = throttles_of(settings)
        self.keys = KeptKeys(settings)
        issuer, audience = issuer_of(settings), settings.tokens.audience
        self.access_tokens = JWTProvider(
            keys=self.keys.current,
            issuer=issuer,
            audience=audience,
            revocations=self.stores.tokens,
            maximum_lifetime=max(lifetimes_of(settings).maximum, api_key_lifetimes_of(settings).maximum),
            used=self.stores.recorder.note_token,
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
            failures=self.throttles.failed_credentials,
        )
        self.control = Control(
            settings,
            provider=FirstOf(self.access_tokens, self.logins),
            throttles=self.throttles,
            resolver=self.resolver,
            tiers=self.tiers,
            catalogue=self.catalogue,
            balancer=self.balancer,
            ledger=self.ledger,
            stores=self.stores,
            minter=JWTMinter(keys=self.keys.current, issuer=issuer, audience=audience, named_groups=self._named_groups),
        )
        warn_of_what_ends(self.stores, has_counters=isinstance(self.ledger, GuardedLedger))

    def gateway(self) -> Service:
        """The gateway.

        Raises:
            ConfigurationError: this is fit to be mounted only.
        """
        problems = [*missing_upstreams(self.settings)]
        if not self.catalogue.models:
            problems.append(Problem("models", "the gateway needs at least one model"))
        if problems:
            raise ConfigurationError(problems)
        transport = transport_of(self.settings)
        inner = proxy_of(self.settings, transport, self.balancer)
        own = {"/health": _open(health_app()), "/healthz": _open(health_app()), "/ready": _open(self._ready())}
        own["/openapi.json"] = _open(DocumentApp(openapi_document))
        dispatch = self.dispatch(self.inference(inner), own)
        return self.service(dispatch, _no_lifespan, transport.aclose)

    def service(self, dispatch: ASGIApp, inner: ASGIApp, *closing: Callable[[], Awaitable[None]]) -> Service:
        """What is served, with all that has to run and to be closed round it."""
        self.keys.open()
        counters = [self.ledger.aclose] if isinstance(self.ledger, GuardedLedger) else []
        closing = (self.logins.aclose, *counters, *self.throttles.closing, *self.stores.closing, *closing)
        return Service(dispatch, inner, starting=self.stores.starting, running=self.stores.running, closing=closing)

    def readable(self, app: ASGIApp) -> ASGIApp:
        """The app, for the web pages that may read its answers."""
        return readable_from(self.settings.cors_origins, app)

    def dispatch(
        self,
        inference: ASGIApp,
        documents: dict[str, ASGIApp],
        host: Host | None = None,
        models: ASGIApp | None = None,
    ) -> ASGIApp:
        """What leads each request to its app: `inference`, control routes, and documents by exact path.

        Args:
            models: lists the models where no catalogue says which there are.
        """
        collections = self.control.collections()
        if models is not None:
            collections[MODELS] = models
        key_set = _open(DocumentApp(lambda: self.keys.current().jwks()))
        documents = {
            "/.well-known/jwks.json": key_set,
            "/maas-api/.well-known/jwks.json": key_set,
            "/maas-api/health": _open(health_app()),
            "/maas-api/healthz": _open(health_app()),
            "/maas-api/ready": _open(self._ready()),
            "/maas-api/openapi.json": _open(DocumentApp(openapi_document)),
            **documents,
        }
        collections |= {f"/maas-api{path}": app for path, app in collections.items()}
        dispatch = Dispatch(
            catalogue=self.catalogue,
            inference=self.readable(inference),
            documents={path: self.readable(app) for path, app in documents.items()},
            collections={path: self.readable(app) for path, app in collections.items()},
            unknown=self.readable(self.control.known(_not_found)),
            host=host,
        )
        trusted = self.settings.trusted_proxies
        return ForwardedMiddleware(dispatch, trusted=trusted) if trusted else dispatch

    def inference(self, inner: ASGIApp, inner_key: str | None = None) -> ASGIApp:
        """The onion round what answers: envelope, identity, tier, limits, usage."""
        limits, ietf_headers = self.settings.proxy, self.settings.ietf_rate_limit_headers
        return stack(
            inner,
            Middleware(ErrorEnvelopeMiddleware),
            Middleware(
                IdentityMiddleware,
                provider=self.access_tokens,
                inner_key=inner_key,
                failures=self.throttles.failed_credentials,
            ),
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
                recorder=self.stores.recorder,
            ),
            Middleware(UsageMiddleware, max_body_bytes=limits.max_body_bytes),
        )

    def _ready(self) -> ASGIApp:
        return ReadyApp(degraded=self._degraded, is_usable=self.stores.is_usable)

    def _degraded(self) -> list[str]:
        is_alone = isinstance(self.ledger, GuardedLedger) and self.ledger.degraded
        troubles = {
            "tiers": self.tiers.problem is not None,
            "counters": is_alone,
            "store": self.stores.degraded,
            "signing_keys": self.keys.has_problem,
            "models": not all(map(self.balancer.is_ready, self.catalogue.models)),
        }
        return [name for name, is_so in troubles.items() if is_so]

    def _named_groups(self) -> frozenset[str]:
        of_tiers = (group for tier in self.tiers.current() for group in tier.groups)
        return frozenset((*of_tiers, *self.settings.tokens.administrators))


def _open(app: ASGIApp) -> ASGIApp:
    return ErrorEnvelopeMiddleware(app)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await reject(scope, receive, send, NotFound())


async def _no_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """The app inside a gateway, as far as its lifespan is concerned."""
