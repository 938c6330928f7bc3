"""Which chain of shells a request goes through."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from ._asgi import DESCRIBING_HEADERS, replay, route_path, with_route_path, without_headers
from .assertions import ASSERTION_HEADER
from .catalogue import Catalogue, Location
from .context import GUARDED, MOUNT_POINT, ensure_context
from .endpoints import MODELS

# below a mount point of such a name the routes of an app are `/chat/completions` and `/models`
_VERSIONS = frozenset({"v1", "v2"})


@dataclass(frozen=True, slots=True)
class Host:
    """The app that we are mounted in.

    Attributes:
        administration: it, for administrators alone.
        asserted: it, for callers whom a trusted gateway vouches for; None where no gateway is trusted.
        public_paths: what it serves to anyone, exactly.
        keeps_unlisted: whether every path that is not ours is the host's own.
        answers_preflights: whether browsers that ask before a request (CORS) to one of our paths ask the host.
    """

    app: ASGIApp
    administration: ASGIApp
    asserted: ASGIApp | None
    public_paths: Collection[str]
    keeps_unlisted: bool
    answers_preflights: bool

    def is_asked_before(self, scope: Scope) -> bool:
        """Whether it is the host that a browser asks before a request (CORS)."""
        is_asking = self.answers_preflights and scope.get("method") == "OPTIONS"
        return is_asking and _has(scope, b"access-control-request-method")


class _Bodiless:
    """The host, for preflights: an app that looks at no method (a `Route` to an ASGI app) answers nothing then."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, replay(b"", receive), send)


class GuardedApp:
    """The host app behind our shells: it sees its own mount point, and the scope says that the request was judged."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root_path = scope.get(MOUNT_POINT, scope.get("root_path", ""))
        await self.app({**scope, "root_path": root_path, GUARDED: True}, receive, send)


class Dispatch:
    """Finds the app for a request by its path, decoded and without `root_path`. What is found nowhere is `unknown`.

    Below a mount point that ends in a version, `/v1`, the path is looked up with it too.

    Args:
        inference: guards the endpoints of the catalogue.
        documents: apps by exact path.
        collections: apps by a path below which everything is theirs; they see it as their `root_path`.
        host: None in the gateway.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        inference: ASGIApp,
        documents: Mapping[str, ASGIApp],
        collections: Mapping[str, ASGIApp],
        unknown: ASGIApp,
        host: Host | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._inference = inference
        self._documents = documents
        self._collections = collections
        self._unknown = unknown
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, scope = self._find(scope)
        await app(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[ASGIApp, Scope]:
        path, host = route_path(scope), self._host
        if host is None:
            return self._ours(scope, path) or (self._unknown, scope)
        if path in host.public_paths:
            return host.app, scope
        if host.is_asked_before(scope):
            return _Bodiless(host.app), {**scope, "headers": without_headers(scope["headers"], *DESCRIBING_HEADERS)}
        if found := self._ours(scope, path):
            return found
        versioned = _with_version(scope, path)
        if versioned is not None and (found := self._ours(versioned, route_path(versioned))):
            return found
        if host.keeps_unlisted and not any(map(self._is_disguised, (scope, versioned))):
            return host.app, scope
        return self._unknown, scope

    def _ours(self, scope: Scope, path: str) -> tuple[ASGIApp, Scope] | None:
        location = self._catalogue.locate(path)
        if location.endpoints:
            return self._guard(scope, location)
        if location.model is not None and location.path == MODELS:
            ensure_context(scope).model = location.model
            return self._collections[MODELS], _mounted(with_route_path(scope, MODELS), MODELS)
        if app := self._documents.get(path.removesuffix("/") or "/"):
            return app, scope
        for prefix, app in self._collections.items():
            if path == prefix or path.startswith(prefix + "/"):
                return app, _mounted(scope, prefix)
        return None

    def _guard(self, scope: Scope, location: Location) -> tuple[ASGIApp, Scope]:
        host = self._host
        if host is not None and location.is_administrative:
            return host.administration, with_route_path(scope, location.path)
        if host is not None and host.asserted is not None and _has(scope, ASSERTION_HEADER):
            return host.asserted, scope
        return self._inference, scope

    def _is_disguised(self, scope: Scope | None) -> bool:
        return scope is not None and self._catalogue.is_disguised(route_path(scope))


def _has(scope: Scope, header: bytes) -> bool:
    return any(name.lower() == header for name, _ in scope["headers"])


def _mounted(scope: Scope, prefix: str) -> Scope:
    root = scope.get("root_path", "").rstrip("/")
    rest = route_path(scope)[len(prefix) :]
    return {**scope, "app_root_path": root, "root_path": root + prefix, "path": root + prefix + rest}


def _with_version(scope: Scope, path: str) -> Scope | None:
    """The scope with the version at the end of its mount point as the beginning of its route path; None without one."""
    mount_point: str = scope.get("root_path", "").rstrip("/")
    above, _, version = mount_point.rpartition("/")
    if version not in _VERSIONS:
        return None
    return {**scope, "path": mount_point + path, "root_path": above, MOUNT_POINT: mount_point}
