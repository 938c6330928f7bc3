"""Models-as-a-Service for ASGI inference apps."""

from .apps.health import DocumentApp, health_app, ready_app
from .apps.models import ModelsApp
from .apps.proxy import ProxyApp
from .apps.tier_lookup import TierLookupApp
from .apps.tokens import TokensApp
from .catalogue import Catalogue, Model
from .context import MaaSContext, get_context
from .errors import AccessDenied, AuthUnavailable, InvalidCredentials, MaaSError, NoTier, StoreUnavailable
from .identity import FirstOf, Identity, IdentityProvider, credential
from .ledgers.guarded import GuardedLedger
from .ledgers.memory import MemoryLedger
from .ledgers.redis import RedisLedger
from .ledgers.stock import LimitsLedger
from .limiting import Budget, Charge, Demand, Lease, Ledger, Limit, Limits, Subject, Verdict, parse_limits
from .middleware import stack
from .middleware.errors import ErrorEnvelopeMiddleware
from .middleware.forwarded import ForwardedMiddleware
from .middleware.identity import IdentityMiddleware
from .middleware.rate_limit import RateLimitMiddleware
from .middleware.tier import TierMiddleware
from .middleware.usage import UsageMiddleware
from .preset import MaaSMiddleware, gateway
from .providers.jwt import JWTMinter, JWTProvider
from .providers.keys import SigningKeys
from .providers.openshift import OpenShiftProvider, cluster_transport
from .settings import (
    ConfigurationError,
    LimitsSettings,
    ModelLimitsSettings,
    ModelSettings,
    OpenShiftSettings,
    ProxySettings,
    Settings,
    TierSettings,
    TokenSettings,
    load_settings,
)
from .stores.memory import MemoryTokenStore
from .tiers import GroupTierResolver, Tier, TierResolver
from .tokens import Claims, LifetimePolicy, MintedToken, Revocations, TokenMinter, TokenStore
from .transports import upstream_transport
from .usage import TokenUsage

__version__ = "0.1.0"

__all__ = [
    "AccessDenied",
    "AuthUnavailable",
    "Budget",
    "Catalogue",
    "Charge",
    "Claims",
    "ConfigurationError",
    "Demand",
    "DocumentApp",
    "ErrorEnvelopeMiddleware",
    "FirstOf",
    "ForwardedMiddleware",
    "GroupTierResolver",
    "GuardedLedger",
    "Identity",
    "IdentityMiddleware",
    "IdentityProvider",
    "InvalidCredentials",
    "JWTMinter",
    "JWTProvider",
    "Lease",
    "Ledger",
    "LifetimePolicy",
    "Limit",
    "Limits",
    "LimitsLedger",
    "LimitsSettings",
    "MaaSContext",
    "MaaSError",
    "MaaSMiddleware",
    "MemoryLedger",
    "MemoryTokenStore",
    "MintedToken",
    "Model",
    "ModelLimitsSettings",
    "ModelSettings",
    "ModelsApp",
    "NoTier",
    "OpenShiftProvider",
    "OpenShiftSettings",
    "ProxyApp",
    "ProxySettings",
    "RateLimitMiddleware",
    "RedisLedger",
    "Revocations",
    "Settings",
    "SigningKeys",
    "StoreUnavailable",
    "Subject",
    "Tier",
    "TierLookupApp",
    "TierMiddleware",
    "TierResolver",
    "TierSettings",
    "TokenMinter",
    "TokenSettings",
    "TokenStore",
    "TokenUsage",
    "TokensApp",
    "UsageMiddleware",
    "Verdict",
    "cluster_transport",
    "credential",
    "gateway",
    "get_context",
    "health_app",
    "load_settings",
    "parse_limits",
    "ready_app",
    "stack",
    "upstream_transport",
]
