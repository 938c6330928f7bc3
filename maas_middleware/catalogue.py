"""What is served: the models, and the one table of endpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from posixpath import normpath
from types import MappingProxyType
from typing import Literal

from .dialects import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    IMAGE_FORM,
    IMAGES,
    MESSAGES,
    POOLING,
    RERANK,
    RESPONSES,
    SPEECH,
    TOKENIZE,
    TRANSCRIPTION,
    Dialect,
    ErrorFormat,
)
from .errors import AccessDenied, MethodNotAllowed, ModelNotFound, NotFound
from .tiers import Feature, Tier

CHAT_COMPLETIONS = "/v1/chat/completions"
MODELS = "/v1/models"
_MAXIMUM_DOUBLINGS = 4
Kind = Literal["billable", "unmetered", "administrative", "refused"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route of an inference server, and what users may do with it.

    Attributes:
        method: `*` stands for every method.
        path: `/*` at its end stands for everything below.
        kind: `billable` routes are metered and charged, `unmetered` ones cost a request and no tokens;
            `administrative` ones are for the operator of the server, and `refused` ones cannot be metered, or would
            let users read each other's answers: neither is ever forwarded.
        dialect: None for what is never forwarded.
        feature: what a tier needs to use it; None: every tier has it.
    """

    method: str
    path: str
    kind: Kind
    dialect: Dialect | None = None
    feature: Feature | None = None

    @property
    def is_served(self) -> bool:
        """Whether users can reach it."""
        return self.dialect is not None


def _served(kind: Kind, dialect: Dialect, feature: Feature | None, *paths: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint("POST", path, kind, dialect, feature) for path in paths)


def _unserved(kind: Kind, *paths: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint("*", path, kind) for path in paths)


ENDPOINTS = (
    *_served("billable", CHAT, None, CHAT_COMPLETIONS),
    *_served("billable", COMPLETIONS, None, "/v1/completions"),
    *_served("billable", MESSAGES, "messages", "/v1/messages"),
    *_served("billable", RESPONSES, "responses", "/v1/responses"),
    *_served("billable", EMBEDDINGS, "embeddings", "/v1/embeddings"),
    *_served("billable", RERANK, "rerank", "/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"),
    *_served("billable", POOLING, "pooling", "/classify", "/pooling"),
    *_served("billable", TRANSCRIPTION, "audio", "/v1/audio/transcriptions", "/v1/audio/translations"),
    *_served("billable", SPEECH, "audio", "/v1/audio/speech"),
    *_served("billable", IMAGES, "images", "/v1/images/generations"),
    *_served("billable", IMAGE_FORM, "images", "/v1/images/edits", "/v1/images/variations"),
    *_served("unmetered", COUNT_TOKENS, "messages", "/v1/messages/count_tokens"),
    *_served("unmetered", TOKENIZE, None, "/tokenize", "/detokenize"),
    *_unserved(
        "administrative",
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/adapters/*"),
        *("/scale_elastic_ep", "/is_scaling_elastic_ep", "/inference/v1/abort_requests", "/abort_requests"),
        *("/start_profile", "/stop_profile", "/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/is_paused"),
        *("/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/server_info"),
        *("/tokenizer_info", "/kv_event_sources"),
    ),
    *_unserved(
        "refused",
        *("/v1/responses/*", "/v1/realtime", "/v1/realtime/*", "/invocations", "/generative_scoring"),
        *("/inference/v1/generate", "/v1/systemone", "/v1/decisions", "/v2/embed", "/cohere/v2/chat"),
        *("/v1/chat/completions/*", "/v1/completions/*", "/v1/messages/*"),
    ),
)

_NO_ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType({})
_BY_PATH: Mapping[str, Mapping[str, Endpoint]] = {
    path: MappingProxyType({endpoint.method: endpoint for endpoint in ENDPOINTS if endpoint.path == path})
    for path in dict.fromkeys(endpoint.path for endpoint in ENDPOINTS)
}
_BELOW = tuple(path.removesuffix("*") for path in _BY_PATH if path.endswith("/*"))
# a model of one of these names could not be reached, or would hide what is there
RESERVED_SEGMENTS = frozenset({"maas-api", "v1", ".well-known", *(path.split("/")[1] for path in _BELOW)})
_ERROR_FORMATS = {
    endpoint.path: endpoint.dialect.errors
    for endpoint in ENDPOINTS
    if endpoint.dialect is not None and endpoint.dialect.errors != "openai"
}


def error_format(path: str) -> ErrorFormat:
    """The shape of errors on a path and below it, also behind a model's prefix or a mount point."""
    path = path.rstrip("/") + "/"
    return next((errors for known, errors in _ERROR_FORMATS.items() if f"{known}/" in path), "openai")


def _endpoints(path: str) -> Mapping[str, Endpoint]:
    endpoints = _BY_PATH.get(path, _NO_ENDPOINTS)
    if not endpoints and path.startswith(_BELOW):
        return _BY_PATH[next(above for above in _BELOW if path.startswith(above)) + "*"]
    return endpoints


@dataclass(frozen=True, slots=True)
class Model:
    """A model as users see it, and where it is served.

    Attributes:
        id: what requests name; may contain `/`.
        name: for people; default: the id.
        aliases: other names by which requests may call it.
        upstream_model: the name that the server knows it by; default: the id.
        path: the prefix below which requests need not name it; default: `/<id>`.
        tiers: the names of the tiers that may use it; None means every tier.
        upstreams: base URLs of its servers (`http://host:8000`, without `/v1`); empty in a mounted app.
        api_key: the credential that its server wants, if any.
        context_length: how many tokens prompt and output may have together; None where it is not known.
        audio_tokens_per_second: what a second of audio is charged where its server reports seconds instead of tokens.

    Raises:
        ValueError: `aliases` or `tiers` is a text instead of a collection of them.
    """

    id: str
    name: str = ""
    aliases: Collection[str] = ()
    upstream_model: str = ""
    path: str = ""
    tiers: Collection[str] | None = None
    upstreams: Sequence[str] = ()
    api_key: str | None = field(default=None, repr=False)
    context_length: int | None = None
    audio_tokens_per_second: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.aliases, str) or isinstance(self.tiers, str):
            raise ValueError("aliases and tiers are collections of names")
        for name, default in (("name", self.id), ("upstream_model", self.id), ("path", f"/{self.id}")):
            object.__setattr__(self, name, getattr(self, name) or default)

    def is_for(self, tier: Tier) -> bool:
        return self.tiers is None or tier.name in self.tiers

    def is_called(self, name: str) -> bool:
        """Whether requests may call it by that name."""
        return name == self.id or name in self.aliases


@dataclass(frozen=True, slots=True)
class Location:
    """Where a request's path leads: the model it names, the canonical path behind that, and its endpoints by method."""

    path: str
    model: Model | None
    endpoints: Mapping[str, Endpoint]

    def endpoint(self, method: str) -> Endpoint:
        """The endpoint of a method; `HEAD` asks about whichever there is.

        Raises:
            NotFound: there is none at all.
            MethodNotAllowed: only of other methods.
        """
        for one in self.endpoints.values():
            if method in (one.method, "HEAD") or one.method == "*":
                return one
        if self.endpoints:
            raise MethodNotAllowed(*self.endpoints, "HEAD")
        raise NotFound


class Catalogue:
    """The models, in the order of the configuration.

    Args:
        models: None leaves it to the inner app which models there are: every id is taken for a model for every tier.

    Raises:
        ValueError: an id, an alias or a path stands for two models.
    """

    def __init__(self, models: Sequence[Model] | None = None) -> None:
        self.models = tuple(models or ())
        self._closed = models is not None
        self._by_name = _unique((name, model) for model in self.models for name in (*model.aliases, model.id))
        self._by_path = _unique((model.path, model) for model in self.models)
        self._longest_path = max(map(len, self._by_path), default=0)

    @property
    def is_open(self) -> bool:
        """Whether the inner app decides which models there are."""
        return not self._closed

    def model(self, name: str, tier: Tier) -> Model:
        """Return the model of an id or an alias, if the tier may use it.

        Raises:
            ModelNotFound: there is none.
            AccessDenied: it is not for the tier.
        """
        model = self._by_name.get(name)
        if model is None:
            if self._closed:
                raise ModelNotFound(name)
            return Model(name)
        if not model.is_for(tier):
            raise AccessDenied
        return model

    def models_for(self, tier: Tier) -> list[Model]:
        return [model for model in self.models if model.is_for(tier)]

    def is_disguised(self, path: str) -> bool:
        """Whether a path that leads nowhere would lead to an endpoint for a server that is less strict about paths."""
        plain = normpath(f"/{path}".lower().replace("\\", "/")).lstrip("/")
        return bool(self.locate(f"/{plain}").endpoints)

    def locate(self, path: str) -> Location:
        """Normalise a decoded path and look it up: a model's prefix (the longest wins) and the endpoints behind it.

        A trailing slash is not another resource, and `/v1/chat/completions` before another `/v1/...` is dropped:
        clients append a path to URLs that have one already.
        """
        if path.endswith("/") and len(path) > 1:
            path = path[:-1]
        for _ in range(_MAXIMUM_DOUBLINGS):
            if (doubled := path.find(CHAT_COMPLETIONS + "/v1/")) < 0:
                break
            path = path[:doubled] + path[doubled + len(CHAT_COMPLETIONS) :]
        if endpoints := _endpoints(path):
            return Location(path, None, endpoints)
        cut = path.rfind("/", 0, self._longest_path + 1)  # a stranger's path may be long: no work in vain
        while cut > 0:
            if model := self._by_path.get(path[:cut]):
                return Location(path[cut:], model, _endpoints(path[cut:]))
            cut = path.rfind("/", 0, cut)
        return Location(path, None, _NO_ENDPOINTS)


def _unique(pairs: Iterable[tuple[str, Model]]) -> dict[str, Model]:
    found: dict[str, Model] = {}
    for name, model in pairs:
        if found.setdefault(name, model) is not model:
            raise ValueError(f"{name} stands for two models")
    return found
