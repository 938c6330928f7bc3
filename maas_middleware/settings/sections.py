"""The configuration: keywords, environment and file become validated `Settings`, and these the values of the core.

Nothing else reads the environment. Every key is documented where it is declared.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from msgspec import Struct, field

from ..catalogue import Model
from ..tiers import Tier
from ..tokens import LifetimePolicy
from .counters import counters_from
from .loading import Given, Layer, read_secret, unknown_variables
from .models import ModelSettings, models_from
from .notation import CountersUrl, MemoryUrl, Peer, Positive, RoutePath, Seconds, Url
from .openshift import OpenShiftSettings
from .proxy import ProxySettings
from .reader import Reader
from .schema import leaves, schema_of
from .tiers import LimitsSettings, Tiers, tiers_from
from .tokens import TokenSettings, check_lifetimes, lifetimes

logger = logging.getLogger("maas_middleware")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where settings come from that were loaded with a file.

    Attributes:
        config: the path of the file.
        keys: the keys that the file decides, such as `tokens.audience`; keywords and the environment decide others.
        load: reads everything again.
    """

    config: str
    keys: frozenset[str]
    load: Callable[[], Settings]


class Settings(Struct, frozen=True, kw_only=True, dict=True):
    """The whole configuration. Made in Python it is not checked: pass it through `validated`.

    Attributes:
        public_url: the absolute URL that users see; None stands for the request's own.
        scope: `all` refuses what the endpoint table does not list; `inference` guards the table's paths only.
        public_paths: what a host app serves to anyone.
        counters: where use is counted: `memory://`, or `redis://` or `rediss://` for all replicas together.
        counters_file: holds the URL instead, as it may hold a password.
        counters_timeout: seconds that Redis may take for a call, connecting included.
        on_counters_failure: `local` counts in memory meanwhile, with limits divided by `replicas`; `closed` is 503.
        replicas: how many processes of this service there are, workers included.
        admission: `soft` admits whoever has a token left, `strict` whoever has as many as a request may use.
        store: where tokens are kept.
        tiers: None without `tiers_file` stands for free, premium and enterprise.
        tiers_file: holds the list of tiers, or `tiers: [...]`.
        tier_limits: by the name of a tier, for tiers that carry no limits themselves.
        models: None leaves it to the inner app which models there are.
        ietf_rate_limit_headers: whether answers carry `ratelimit-policy` and `ratelimit` beside `x-ratelimit-*`.
        trusted_proxies: addresses and networks whose `x-forwarded-*` count; `*` stands for everybody's.
        inner_api_key_file: holds what the inner app's own `--api-key` wants.
    """

    public_url: Url | None = None
    scope: Literal["all", "inference"] = "all"
    public_paths: tuple[RoutePath, ...] = ("/health", "/healthz", "/ready", "/ping", "/version", "/metrics")
    openshift: OpenShiftSettings = field(default_factory=OpenShiftSettings)
    tokens: TokenSettings = TokenSettings()
    counters: CountersUrl = "memory://"
    counters_file: str | None = None
    counters_timeout: Seconds = 0.25
    on_counters_failure: Literal["local", "closed"] = "local"
    replicas: Positive = 1
    admission: Literal["soft", "strict"] = "soft"
    store: MemoryUrl = "memory://"
    tiers_file: str | None = None
    tier_limits: Mapping[str, LimitsSettings] = field(default_factory=dict)
    tiers: Tiers | None = None
    models: Sequence[ModelSettings] | None = None
    ietf_rate_limit_headers: bool = False
    proxy: ProxySettings = ProxySettings()
    trusted_proxies: tuple[Peer, ...] = ()
    inner_api_key_file: str | None = None

    @property
    def origin(self) -> Origin | None:
        """Where `load_settings` found them; None without a file, and for what was made or changed in Python."""
        origin: Origin | None = self.__dict__.get("origin")
        return origin


def load_settings(
    environ: Mapping[str, str] | None = None, *, config: str | None = None, **overrides: object
) -> Settings:
    """Read the settings: a keyword goes before the environment, that before the file, and that before the default.

    Args:
        environ: default: the environment of the process. Every key has a variable: `tokens.audience` is
            `MAAS_TOKENS_AUDIENCE`; lists of texts are separated by commas, maps and other lists are JSON.
        config: the path of a YAML, TOML or JSON file; default: `MAAS_CONFIG`.
        overrides: any key. A mapping changes single keys of a section, a struct replaces the section.

    Raises:
        ConfigurationError: with all problems. Unknown variables are no problem, but one warning.
    """
    environ = dict(os.environ if environ is None else environ)
    if unknown := unknown_variables(dict(leaves(schema_of(Settings))), environ):
        logger.warning("unknown environment variables: %s", ", ".join(unknown))
    return _load(environ, config, overrides)


def _load(environ: Mapping[str, str], config: str | None, overrides: Mapping[str, object]) -> Settings:
    reader, schema = Reader(), schema_of(Settings)
    path = config or environ.get("MAAS_CONFIG")
    document = reader.document("config" if config else "MAAS_CONFIG", path) if path else None
    file = reader.keys(schema, document) if document else {}
    above = reader.environment(schema, environ) | reader.keys(schema, Given("", overrides))
    settings = _finished(reader, _in_cluster(environ) | file | above)
    if path:
        keys = frozenset(file.keys() - above.keys())
        settings.__dict__["origin"] = Origin(path, keys, partial(_load, environ, config, overrides))
    return settings


def _in_cluster(environ: Mapping[str, str]) -> Layer:
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        return {}
    host = f"[{host}]" if ":" in host else host
    return {"openshift.api_url": Given("KUBERNETES_SERVICE_HOST", f"https://{host}:{port}")}


def _finished(reader: Reader, layer: Layer) -> Settings:
    settings = reader.whole(schema_of(Settings), layer)
    assert isinstance(settings, Settings)
    tiers = _tiers(reader, settings)
    models_from(reader, settings.models, None if tiers is None else {tier.name for tier in tiers})
    counters_from(reader, settings.counters, settings.counters_file)
    _inner_api_key(reader, settings)
    check_lifetimes(reader, settings.tokens)
    if settings.openshift.audiences and settings.openshift.review == "users-self":
        reader.refuse(reader.place("openshift.audiences"), "cannot be checked by the review users-self")
    reader.finish()
    return settings


def validated(settings: Settings) -> Settings:
    """Check settings that were made in Python, and return them as the loader would: numbers for `3s`, `/` stripped.

    Raises:
        ConfigurationError: with all problems.
    """
    reader = Reader()
    checked = _finished(reader, reader.keys(schema_of(Settings), Given("", settings)))
    checked.__dict__.update(settings.__dict__)
    return checked


def _tiers(reader: Reader, settings: Settings) -> tuple[Tier, ...] | None:
    models = None if settings.models is None else {model.id for model in settings.models}
    models = None if models is None or "" in models else models  # what was refused has no id
    return tiers_from(reader, settings.tiers, settings.tiers_file, settings.tier_limits, models)


def _inner_api_key(reader: Reader, settings: Settings) -> str | None:
    path = settings.inner_api_key_file
    return None if path is None else reader.checked(reader.place("inner_api_key_file"), read_secret, path)


def tiers_of(settings: Settings) -> tuple[Tier, ...]:
    """The tiers as they are configured now; `tiers_file` is read.

    Raises:
        ConfigurationError: they cannot be used.
    """
    reader = Reader()
    tiers = _tiers(reader, settings)
    reader.finish()
    assert tiers is not None
    return tiers


def models_of(settings: Settings) -> tuple[Model, ...] | None:
    """The models, None where the inner app decides; the files of their credentials are read.

    Raises:
        ConfigurationError: they cannot be used.
    """
    reader = Reader()
    models = models_from(reader, settings.models, None)
    reader.finish()
    return models


def inner_api_key_of(settings: Settings) -> str | None:
    """The credential that the inner app wants, read from its file.

    Raises:
        ConfigurationError: the file cannot be read, or holds none.
    """
    reader = Reader()
    key = _inner_api_key(reader, settings)
    reader.finish()
    return key


def counters_of(settings: Settings) -> str:
    """The URL of the counters, which may hold a password; `counters_file` is read.

    Raises:
        ConfigurationError: that file cannot be read, or holds no such URL.
    """
    reader = Reader()
    url = counters_from(reader, settings.counters, settings.counters_file)
    reader.finish()
    return url


def issuer_of(settings: Settings) -> str:
    """What minted tokens carry as `iss`."""
    return settings.tokens.issuer or settings.public_url or "maas-middleware"


def lifetimes_of(settings: Settings) -> LifetimePolicy:
    """How long minted tokens may live."""
    return lifetimes(settings.tokens)
