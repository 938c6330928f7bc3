"""What is served: the models, and where a path leads."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from posixpath import normpath
from typing import Literal

from .endpoints import CHAT_COMPLETIONS, MODELS, NO_ENDPOINTS, Endpoint, endpoints_at
from .errors import AccessDenied, MethodNotAllowed, ModelNotFound, NotFound
from .limiting import NO_LIMITS, Limits, Subject
from .tiers import Tier

_MAXIMUM_DOUBLINGS = 4
_REMEMBERED_PATHS = 1024
_INVISIBLE = re.compile(r"[\s\x00-\x1f\x7f]+")
_BELOW_A_PATH = re.compile(r"/.*(/v[12]/.*)")  # to be matched: a search takes the square of the time


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
        upstreams: base URLs of its servers (`http://host:8000`, without `/v1`), all of which serve the same; empty in a
            mounted app.
        api_key: the credential that its server wants, if any.
        context_length: how many tokens prompt and output may have together; None where it is not known.
        audio_tokens_per_second: what a second of audio is charged where its server reports seconds instead of tokens.
        engine: what serves it. `vllm` is asked to tell its usage while a stream runs; others might refuse that.
        limits: what all users together may ask of it, because its servers bear no more.

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
    engine: Literal["vllm"] | None = None
    limits: Limits = NO_LIMITS

    def __post_init__(self) -> None:
        if isinstance(self.aliases, str) or isinstance(self.tiers, str):
            raise ValueError("aliases and tiers are collections of names")
        for name, default in (("name", self.id), ("upstream_model", self.id), ("path", f"/{self.id}")):
            object.__setattr__(self, name, getattr(self, name) or default)

    def is_for(self, tier: Tier) -> bool:
        return self.tiers is None or tier.name in self.tiers

    @property
    def subject(self) -> Subject | None:
        """The budget of all users together; None where there is none."""
        return None if self.limits == NO_LIMITS else self.limits.subject(f"[{self.id!r}]", shared=True)

    def is_called(self, name: str) -> bool:
        """Whether requests may call it by that name."""
        return name == self.id or name in self.aliases


@dataclass(frozen=True, slots=True)
class Location:
    """Where a request's path leads: the model it names, the canonical path behind that, and its endpoints by method."""

    path: str
    model: Model | None
    endpoints: Mapping[str, Endpoint]

    @property
    def is_administrative(self) -> bool:
        """Whether it is a route for those who run the model server."""
        return any(endpoint.kind == "administrative" for endpoint in self.endpoints.values())

    def endpoint(self, method: str) -> Endpoint:
        """The endpoint of a method; `HEAD` asks about whichever there is.

        Raises:
            NotFound: there is none at all.
            MethodNotAllowed: only of other methods.
        """
        if (endpoint := self.endpoints.get(method) or self.endpoints.get("*")) is not None:
            return endpoint
        if method == "HEAD" and self.endpoints:
            return next(iter(self.endpoints.values()))
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
        self._located: dict[str, Location] = {}

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
        visible = _INVISIBLE.sub("", path)  # `$` in the routes of Starlette matches before a last line feed too
        plain = "/" + normpath(f"/{visible}".lower().replace("\\", "/")).lstrip("/")
        location = self.locate(plain)
        if location.endpoints or (location.path == MODELS and plain != path):
            return True
        # in an app that is mounted inside, or of a root path that only the app knows
        below = _BELOW_A_PATH.match(plain)
        return below is not None and bool(endpoints_at(below[1]))

    def locate(self, path: str) -> Location:
        """Normalise a decoded path and look it up: a model's prefix (the longest wins) and the endpoints behind it.

        A trailing slash is not another resource, and `/v1/chat/completions` before another `/v1/...` is dropped:
        clients append a path to URLs that have one already.
        """
        location = self._located.get(path)
        return self._search(path) if location is None else location

    def _search(self, path: str) -> Location:
        location = self._find(path)
        # what leads to a model is never long, and there is not much of it
        if any(endpoint.is_served for endpoint in location.endpoints.values()):
            if len(self._located) >= _REMEMBERED_PATHS:
                del self._located[next(iter(self._located))]
            self._located[path] = location
        return location

    def _find(self, path: str) -> Location:
        if path.endswith("/") and len(path) > 1:
            path = path[:-1]
        for _ in range(_MAXIMUM_DOUBLINGS):
            if (doubled := path.find(CHAT_COMPLETIONS + "/v1/")) < 0:
                break
            path = path[:doubled] + path[doubled + len(CHAT_COMPLETIONS) :]
        if endpoints := endpoints_at(path):
            return Location(path, None, endpoints)
        cut = path.rfind("/", 0, self._longest_path + 1)  # a stranger's path may be long: no work in vain
        while cut > 0:
            if model := self._by_path.get(path[:cut]):
                return Location(path[cut:], model, endpoints_at(path[cut:]))
            cut = path.rfind("/", 0, cut)
        return Location(path, None, NO_ENDPOINTS)


def _unique(pairs: Iterable[tuple[str, Model]]) -> dict[str, Model]:
    found: dict[str, Model] = {}
    for name, model in pairs:
        if found.setdefault(name, model) is not model:
            raise ValueError(f"{name} stands for two models")
    return found
