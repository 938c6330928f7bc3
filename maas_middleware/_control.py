"""The control routes: everything that people and administrators ask beside inference."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from ._counting import Throttles
from ._storing import Stores
from .apps.account import MeApp, UsageApp
from .apps.admin import AdminApp
from .apps.api_keys import APIKeysApp
from .apps.models import ModelsApp
from .apps.tier_lookup import TierLookupApp
from .apps.tokens import TokensApp
from .balancing import Balancer
from .catalogue import Catalogue
from .endpoints import MODELS
from .identity import IdentityProvider
from .limiting import Ledger
from .middleware.errors import ErrorEnvelopeMiddleware
from .middleware.identity import IdentityMiddleware
from .middleware.throttle import ThrottleMiddleware
from .middleware.tier import TierMiddleware
from .recorder import UsageRecorder
from .settings import Settings, WatchedTiers, api_key_lifetimes_of, lifetimes_of
from .tiers import TierResolver
from .tokens import TokenMinter


class Control:
    """Makes the apps of the control routes.

    Args:
        provider: knows whoever may ask, by a login or by an access token.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        provider: IdentityProvider,
        throttles: Throttles,
        resolver: TierResolver,
        tiers: WatchedTiers,
        catalogue: Catalogue,
        balancer: Balancer,
        ledger: Ledger,
        stores: Stores,
        minter: TokenMinter,
    ) -> None:
        self._settings = settings
        self._provider = provider
        self._throttles = throttles
        self._resolver = resolver
        self._tiers = tiers
        self._catalogue = catalogue
        self._balancer = balancer
        self._ledger = ledger
        self._stores = stores
        self.minter = minter

    def known(self, app: ASGIApp, inner_key: str | None = None) -> ASGIApp:
        """For whoever can be identified."""
        if self._throttles.control_requests is not None:
            app = ThrottleMiddleware(app, throttle=self._throttles.control_requests)
        failures = self._throttles.failed_credentials
        app = _written(app, self._stores.recorder)
        app = IdentityMiddleware(app, provider=self._provider, inner_key=inner_key, failures=failures)
        return ErrorEnvelopeMiddleware(app)

    def collections(self) -> dict[str, ASGIApp]:
        """The apps by the path below which everything is theirs."""
        apps: dict[str, ASGIApp] = {
            **self._minting(),
            "/v1/tiers/lookup": TierLookupApp(resolver=self._resolver),
            "/v1/me": MeApp(resolver=self._resolver, catalogue=self._catalogue, ledger=self._ledger),
            "/v1/usage": UsageApp(store=self._stores.usage, recorder=self._stores.recorder),
            "/v1/admin": self._admin(),
        }
        if not self._catalogue.is_open:
            apps[MODELS] = self._models()
        return {path: self.known(app) for path, app in apps.items()}

    def _minting(self) -> dict[str, ASGIApp]:
        tokens = TokensApp(
            minter=self.minter,
            store=self._stores.tokens,
            resolver=self._resolver,
            lifetimes=lifetimes_of(self._settings),
            throttle=self._throttles.mints,
        )
        api_keys = APIKeysApp(
            minter=self.minter,
            store=self._stores.tokens,
            resolver=self._resolver,
            lifetimes=api_key_lifetimes_of(self._settings),
            maximum_count=self._settings.api_keys.maximum_count,
            throttle=self._throttles.mints,
        )
        return {"/v1/tokens": tokens, "/v1/api-keys": api_keys}

    def _admin(self) -> ASGIApp:
        return AdminApp(
            administrators=self._settings.tokens.administrators,
            tokens=self._stores.tokens,
            usage=self._stores.usage,
            resolver=self._resolver,
        )

    def _models(self) -> ASGIApp:
        app = ModelsApp(
            catalogue=self._catalogue,
            tiers=self._tiers.current,
            public_url=self._settings.public_url,
            is_ready=self._balancer.is_ready,
        )
        return TierMiddleware(app, resolver=self._resolver, unlisted="pass")


def _written(app: ASGIApp, recorder: UsageRecorder) -> ASGIApp:
    """The app, and after it what a request leaves behind, where no lifespan writes it."""

    async def writing(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        finally:
            await recorder.after_request()

    return writing
