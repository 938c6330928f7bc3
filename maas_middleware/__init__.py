"""Models-as-a-Service for ASGI inference apps."""

from .apps.account import MeApp, UsageApp
from .apps.admin import AdminApp
from .apps.api_keys import APIKeysApp
from .apps.health import DocumentApp, ReadyApp, health_app
from .apps.host_models import HostModelsApp
from .apps.models import ModelsApp
from .apps.proxy import ProxyApp
from .apps.tier_lookup import TierLookupApp
from .apps.tokens import TokensApp
from .assertions import AssertionKeys, Signer
from .balancing import Balancer
from .catalogue import Catalogue, Model
from .context import MaaSContext, get_context
from .errors import AccessDenied, AuthUnavailable, InvalidCredentials, MaaSError, NoTier, StoreUnavailable
from .identity import AssertedIdentity, FirstOf, Identity, IdentityProvider, credential
from .ledgers.guarded import GuardedLedger
from .ledgers.memory import MemoryLedger
from .ledgers.redis import RedisLedger
from .ledgers.stock import LimitsLedger
from .ledgers.throttles import MovingWindowThrottle, ThrottleStorage
from .limiting import Budget, Charge, Demand, Lease, Ledger, Limit, Limits, Subject, Verdict, parse_limits
from .middleware import stack
from .middleware.administrators import AdministratorsMiddleware
from .middleware.audience import AudienceMiddleware
from .middleware.errors import ErrorEnvelopeMiddleware
from .middleware.forwarded import ForwardedMiddleware
from .middleware.identity import IdentityMiddleware
from .middleware.rate_limit import RateLimitMiddleware
from .middleware.throttle import ThrottleMiddleware
from .middleware.tier import TierMiddleware
from .middleware.usage import UsageMiddleware
from .preset import MaaSMiddleware, gateway
from .providers.jwt import JWTMinter, JWTProvider
from .providers.keys import SigningKeys
from .providers.openshift import OpenShiftProvider, cluster_transport
from .providers.signed import AssertionSigner, SignedProvider
from .providers.watching import WatchedAssertionKeys, WatchedKeys
from .recorder import UsageRecorder
from .revocations import ChangeLog, GenerationRaised, Snapshot, TokenRevoked
from .settings import (
    APIKeySettings,
    ConfigurationError,
    LimitsSettings,
    ModelLimitsSettings,
    ModelSettings,
    OpenShiftSettings,
    ProxySettings,
    Settings,
    ThrottleSettings,
    TierSettings,
    TokenSettings,
    TrustedGatewaySettings,
    load_settings,
)
from .stores.followed import FollowedTokenStore
from .stores.memory import MemoryTokenStore, MemoryUsageStore
from .stores.sql import SQLDatabase, SQLTokenStore, SQLUsageStore
from .throttling import Refusal, Throttle, check_throttle
from .tiers import AssertedTierResolver, GroupTierResolver, Tier, TierResolver
from .token_store import Revocations, TokenRecord, TokenStore
from .tokens import Claims, LifetimePolicy, MintedToken, TokenMinter
from .transports import upstream_transport
from .usage import TokenUsage
from .usage_store import UsageRecord, UsageStore

__version__ = "0.1.0"

__all__ = [
    "APIKeySettings",
    "APIKeysApp",
    "AccessDenied",
    "AdminApp",
    "AdministratorsMiddleware",
    "AssertedIdentity",
    "AssertedTierResolver",
    "AssertionKeys",
    "AssertionSigner",
    "AudienceMiddleware",
    "AuthUnavailable",
    "Balancer",
    "Budget",
    "Catalogue",
    "ChangeLog",
    "Charge",
    "Claims",
    "ConfigurationError",
    "Demand",
    "DocumentApp",
    "ErrorEnvelopeMiddleware",
    "FirstOf",
    "FollowedTokenStore",
    "ForwardedMiddleware",
    "GenerationRaised",
    "GroupTierResolver",
    "GuardedLedger",
    "HostModelsApp",
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
    "MeApp",
    "MemoryLedger",
    "MemoryTokenStore",
    "MemoryUsageStore",
    "MintedToken",
    "Model",
    "ModelLimitsSettings",
    "ModelSettings",
    "ModelsApp",
    "MovingWindowThrottle",
    "NoTier",
    "OpenShiftProvider",
    "OpenShiftSettings",
    "ProxyApp",
    "ProxySettings",
    "RateLimitMiddleware",
    "ReadyApp",
    "RedisLedger",
    "Refusal",
    "Revocations",
    "SQLDatabase",
    "SQLTokenStore",
    "SQLUsageStore",
    "Settings",
    "SignedProvider",
    "Signer",
    "SigningKeys",
    "Snapshot",
    "StoreUnavailable",
    "Subject",
    "Throttle",
    "ThrottleMiddleware",
    "ThrottleSettings",
    "ThrottleStorage",
    "Tier",
    "TierLookupApp",
    "TierMiddleware",
    "TierResolver",
    "TierSettings",
    "TokenMinter",
    "TokenRecord",
    "TokenRevoked",
    "TokenSettings",
    "TokenStore",
    "TokenUsage",
    "TokensApp",
    "TrustedGatewaySettings",
    "UsageApp",
    "UsageMiddleware",
    "UsageRecord",
    "UsageRecorder",
    "UsageStore",
    "Verdict",
    "WatchedAssertionKeys",
    "WatchedKeys",
    "check_throttle",
    "cluster_transport",
    "credential",
    "gateway",
    "get_context",
    "health_app",
    "load_settings",
    "parse_limits",
    "stack",
    "upstream_transport",
]
