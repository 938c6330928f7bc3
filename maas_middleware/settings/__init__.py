"""The configuration: keywords, environment and file become validated `Settings`, and these the values of the core."""

from .loading import ConfigurationError, Problem
from .models import ModelSettings
from .openshift import OpenShiftSettings
from .proxy import ProxySettings
from .sections import (
    Origin,
    Settings,
    counters_of,
    inner_api_key_of,
    issuer_of,
    lifetimes_of,
    load_settings,
    models_of,
    tiers_of,
    validated,
)
from .tiers import LimitsSettings, ModelLimitsSettings, TierSettings
from .tokens import TokenSettings
from .warnings import warnings_of
from .watching import WatchedTiers

__all__ = [
    "ConfigurationError",
    "LimitsSettings",
    "ModelLimitsSettings",
    "ModelSettings",
    "OpenShiftSettings",
    "Origin",
    "Problem",
    "ProxySettings",
    "Settings",
    "TierSettings",
    "TokenSettings",
    "WatchedTiers",
    "counters_of",
    "inner_api_key_of",
    "issuer_of",
    "lifetimes_of",
    "load_settings",
    "models_of",
    "tiers_of",
    "validated",
    "warnings_of",
]
