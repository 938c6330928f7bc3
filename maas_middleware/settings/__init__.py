"""The configuration: keywords, environment and file become validated `Settings`, and these the values of the core."""

from .assembling import load_settings, validated
from .gateways import TrustedGatewaySettings
from .loading import ConfigurationError, Problem
from .models import ModelSettings
from .openshift import OpenShiftSettings
from .proxy import ProxySettings
from .sections import Origin, Settings
from .throttles import ThrottleSettings
from .tiers import LimitsSettings, ModelLimitsSettings, TierSettings
from .tokens import APIKeySettings, TokenSettings
from .values import (
    api_key_lifetimes_of,
    audiences_of,
    counters_of,
    inner_api_key_of,
    issuer_of,
    lifetimes_of,
    models_of,
    signing_keys_path,
    store_of,
    tiers_of,
)
from .warnings import warnings_of
from .watching import WatchedTiers

__all__ = [
    "APIKeySettings",
    "ConfigurationError",
    "LimitsSettings",
    "ModelLimitsSettings",
    "ModelSettings",
    "OpenShiftSettings",
    "Origin",
    "Problem",
    "ProxySettings",
    "Settings",
    "ThrottleSettings",
    "TierSettings",
    "TokenSettings",
    "TrustedGatewaySettings",
    "WatchedTiers",
    "api_key_lifetimes_of",
    "audiences_of",
    "counters_of",
    "inner_api_key_of",
    "issuer_of",
    "lifetimes_of",
    "load_settings",
    "models_of",
    "signing_keys_path",
    "store_of",
    "tiers_of",
    "validated",
    "warnings_of",
]
