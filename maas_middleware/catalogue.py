"""What is served: the models, and the one table of endpoints."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from .errors import AccessDenied, ModelNotFound
from .tiers import Tier

CHAT_COMPLETIONS = "/v1/chat/completions"
MODELS = "/v1/models"
_MAXIMUM_DOUBLINGS = 4
RESERVED_SEGMENTS = frozenset({"maas-api", "v1", ".well-known"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route of an inference server that is billable: its answer is metered, and charged to the caller.

    Whatever is no endpoint is refused.
    """

    method: str
    path: str


ENDPOINTS = (
    Endpoint("POST", CHAT_COMPLETIONS),
    Endpoint("POST", "/v1/completions"),
)

_NO_ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType({})
_BY_PATH: Mapping[str, Mapping[str, Endpoint]] = {
    path: MappingProxyType({endpoint.method: endpoint for endpoint in ENDPOINTS if endpoint.path == path})
    for path in {endpoint.path for endpoint in ENDPOINTS}
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model as users see it, and where it is served.

    Attributes:
        id: what requests name; may contain `/`.
        name: for people; default: the id.
        upstream_model: the name that the server knows it by; default: the id.
        path: the prefix below which requests need not name it; default: `/<id>`.
        tiers: the names of the tiers that may use it; None means every tier.
        upstreams: base URLs of its servers (`http://host:8000`, without `/v1`); empty in a mounted app.
        api_key: the credential that its server wants, if any.
    """

    id: str
    name: str = ""
    upstream_model: str = ""
    path: str = ""
    tiers: Collection[str] | None = None
    upstreams: Sequence[str] = ()
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, default in (("name", self.id), ("upstream_model", self.id), ("path", f"/{self.id}")):
            object.__setattr__(self, name, getattr(self, name) or default)

    def is_for(self, tier: Tier) -> bool:
        return self.tiers is None or tier.name in self.tiers


@dataclass(frozen=True, slots=True)
class Location:
    """Where a request's path leads: the model it names, the canonical path behind that, and its endpoints by method."""

    path: str
    model: Model | None
    endpoints: Mapping[str, Endpoint]


class Catalogue:
    """The models, in the order of the configuration.

    Args:
        models: None leaves it to the inner app which models there are: every id is taken for a model for every tier.
    """

    def __init__(self, models: Sequence[Model] | None = None) -> None:
        self.models = tuple(models or ())
        self._closed = models is not None
        self._by_id = {model.id: model for model in self.models}
        self._by_path = {model.path: model for model in self.models}
        self._longest_path = max(map(len, self._by_path), default=0)

    @property
    def is_open(self) -> bool:
        """Whether the inner app decides which models there are."""
        return not self._closed

    def model(self, model_id: str, tier: Tier) -> Model:
        """Return a model that the tier may use.

        Raises:
            ModelNotFound: there is none of that id.
            AccessDenied: it is not for the tier.
        """
        model = self._by_id.get(model_id)
        if model is None:
            if self._closed:
                raise ModelNotFound(model_id)
            return Model(model_id)
        if not model.is_for(tier):
            raise AccessDenied
        return model

    def models_for(self, tier: Tier) -> list[Model]:
        return [model for model in self.models if model.is_for(tier)]

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
        if endpoints := _BY_PATH.get(path):
            return Location(path, None, endpoints)
        cut = path.rfind("/", 0, self._longest_path + 1)  # a stranger's path may be long: no work in vain
        while cut > 0:
            if model := self._by_path.get(path[:cut]):
                return Location(path[cut:], model, _BY_PATH.get(path[cut:], _NO_ENDPOINTS))
            cut = path.rfind("/", 0, cut)
        return Location(path, None, _NO_ENDPOINTS)
