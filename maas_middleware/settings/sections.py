"""The whole configuration. Every key is documented where it is declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct, field

from .gateways import TrustedGatewaySettings
from .models import ModelSettings
from .notation import CountersUrl, PageOrigin, Peer, Positive, RoutePath, Seconds, StoreUrl, Url, shown_url
from .openshift import OpenShiftSettings
from .proxy import ProxySettings
from .throttles import ThrottleSettings
from .tiers import LimitsSettings, Tiers
from .tokens import APIKeySettings, TokenSettings


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
        store: where tokens, revocations and recorded use are kept: `memory://`, `sqlite:///PATH` or `postgresql://`.
        store_file: holds the URL instead, as it may hold a password.
        store_timeout: seconds that the database may take for a call, connecting included.
        tiers: None without `tiers_file` stands for free, premium and enterprise.
        tiers_file: holds the list of tiers, or `tiers: [...]`.
        tier_limits: by the name of a tier, for tiers that carry no limits themselves.
        models: None leaves it to the inner app which models there are.
        ietf_rate_limit_headers: whether answers carry `ratelimit-policy` and `ratelimit` beside `x-ratelimit-*`.
        cors_origins: `https://ui.example.com`, whose web pages may read our answers; `*` stands for every page.
        trusted_proxies: addresses and networks whose `x-forwarded-*` count; `*` stands for everybody's.
        inner_api_key_file: holds what the inner app's own `--api-key` wants.
    """

    public_url: Url | None = None
    scope: Literal["all", "inference"] = "all"
    public_paths: tuple[RoutePath, ...] = ("/health", "/healthz", "/ready", "/ping", "/version", "/metrics")
    openshift: OpenShiftSettings = field(default_factory=OpenShiftSettings)
    tokens: TokenSettings = TokenSettings()
    api_keys: APIKeySettings = APIKeySettings()
    throttles: ThrottleSettings = ThrottleSettings()
    counters: CountersUrl = "memory://"
    counters_file: str | None = None
    counters_timeout: Seconds = 0.25
    on_counters_failure: Literal["local", "closed"] = "local"
    replicas: Positive = 1
    admission: Literal["soft", "strict"] = "soft"
    store: StoreUrl = "memory://"
    store_file: str | None = None
    store_timeout: Seconds = 2.0
    tiers_file: str | None = None
    tier_limits: Mapping[str, LimitsSettings] = field(default_factory=dict)
    tiers: Tiers | None = None
    models: Sequence[ModelSettings] | None = None
    ietf_rate_limit_headers: bool = False
    proxy: ProxySettings = ProxySettings()
    trusted_gateways: TrustedGatewaySettings = TrustedGatewaySettings()
    cors_origins: tuple[PageOrigin, ...] = ()
    trusted_proxies: tuple[Peer, ...] = ()
    inner_api_key_file: str | None = None

    def __repr__(self) -> str:
        """As it is written in Python, but for URLs that may hold a password."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        values |= {name: shown_url(values[name]) for name in ("counters", "store")}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @property
    def origin(self) -> Origin | None:
        """Where `load_settings` found them; None without a file, and for what was made or changed in Python."""
        origin: Origin | None = self.__dict__.get("origin")
        return origin
