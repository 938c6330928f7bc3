"""Which chain of shells a request goes through."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from ._asgi import route_path, with_route_path
from .catalogue import Catalogue
from .context import ensure_context
from .endpoints import MODELS


@dataclass(frozen=True, slots=True)
class Host:
    """The app that we are mounted in.

    Attributes:
        public_paths: what it serves to anyone, exactly.
        keeps_unlisted: whether every path that is not ours is the host's own.
    """

    app: ASGIApp
    public_paths: Collection[str]
    keeps_unlisted: bool

    def is_asked(self, scope: Scope, path: str) -> bool:
        """Whether a request is the host's own: a public path, or a browser that asks before a request (CORS)."""
        if path in self.public_paths:
            return True
        return scope.get("method") == "OPTIONS" and any(
            name.lower() == b"access-control-request-method" for name, _ in scope["headers"]
        )


class Dispatch:
    """Finds the app for a request by its path, decoded and without `root_path`. What is found nowhere is `unknown`.

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
        path = route_path(scope)
        if self._host is not None and self._host.is_asked(scope, path):
            return self._host.app, scope
        location = self._catalogue.locate(path)
        if location.endpoints:
            return self._inference, scope
        if location.model is not None and location.path == MODELS:
            ensure_context(scope).model = location.model
            return self._collections[MODELS], _mounted(with_route_path(scope, MODELS), MODELS)
        if app := self._documents.get(path.removesuffix("/") or "/"):
            return app, scope
        for prefix, app in self._collections.items():
            if path == prefix or path.startswith(prefix + "/"):
                return app, _mounted(scope, prefix)
        if self._host is not None and self._host.keeps_unlisted and not self._catalogue.is_disguised(path):
            return self._host.app, scope
        return self._unknown, scope


def _mounted(scope: Scope, prefix: str) -> Scope:
    root = scope.get("root_path", "").rstrip("/")
    rest = route_path(scope)[len(prefix) :]
    return {**scope, "app_root_path": root, "root_path": root + prefix, "path": root + prefix + rest}
