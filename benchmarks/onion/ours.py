"""Our middlewares, each alone with what outer ones would have left, and all of them."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

import maas_middleware as maas

from ..gateway.wire import MODEL
from .contender import Contender

ONION = "MaaSMiddleware, the whole onion"
_LIMITS = {"requests": "1000000000/minute", "tokens": "1000000000000/minute"}  # that nobody reaches
_GROUP = "system:authenticated"
_SECONDS = 3600


def minted(folder: Path) -> str:
    """An access token, signed with a key that is kept there."""
    minter = maas.JWTMinter(keys=maas.SigningKeys.load_or_make(folder / "keys.json"), named_groups=lambda: {_GROUP})
    return minter.mint(maas.Identity("openshift", "alice", groups=(_GROUP,)), _SECONDS, 0).token


def ours(folder: Path) -> Iterator[Contender]:
    """What accepts the tokens that were signed with the key there."""
    requests, tokens = map(maas.parse_limits, _LIMITS.values())
    tier = maas.Tier("free", groups=(_GROUP,), requests=requests, tokens=tokens)
    ledger = maas.MemoryLedger()
    provider = maas.JWTProvider(keys=maas.SigningKeys.load(folder / "keys.json"), revocations=maas.MemoryTokenStore())
    catalogue = maas.Catalogue([maas.Model(MODEL)])
    outer = (
        Middleware(maas.ErrorEnvelopeMiddleware),
        Middleware(maas.IdentityMiddleware, provider=provider),
        Middleware(maas.TierMiddleware, resolver=maas.GroupTierResolver([tier]), catalogue=catalogue, ledger=ledger),
    )
    inner = (Middleware(maas.RateLimitMiddleware, ledger=ledger), Middleware(maas.UsageMiddleware))
    for one in (Middleware(maas.ForwardedMiddleware, trusted=["127.0.0.1"]), *outer, *inner):
        yield Contender(_name(one), _Known(outer, one), _Known(outer))
    yield Contender(ONION, lambda app: maas.MaaSMiddleware(app, settings=_settings(folder)), has_lifespan=True)


def _name(middleware: Middleware) -> str:
    return str(getattr(middleware.cls, "__name__", ""))


def _settings(folder: Path) -> maas.Settings:
    config: dict[str, Any] = {
        "tokens": {"signing_keys_file": str(folder / "keys.json")},
        "tiers": [{"name": "free", "level": 0, "groups": [_GROUP], "limits": _LIMITS}],
        "models": [{"id": MODEL, "tiers": "all"}],
    }
    return maas.load_settings({}, **config)


class _Known:
    """Puts a middleware round an app, in requests of which everything is known already.

    What is known is what `outer` found out on the first request; each later one has a copy.
    """

    def __init__(self, outer: tuple[Middleware, ...], *inner: Middleware) -> None:
        self._outer = outer
        self._inner = inner

    def __call__(self, app: ASGIApp) -> ASGIApp:
        measured = maas.stack(app, *self._inner)
        known: list[maas.MaaSContext] = []

        async def remember(scope: Scope, receive: Receive, send: Send) -> None:
            known.append(copy(maas.get_context(scope)))
            await app(scope, receive, send)

        find_out = maas.stack(remember, *self._outer)

        async def knowing(scope: Scope, receive: Receive, send: Send) -> None:
            if not known:
                await find_out(scope, receive, send)
                return
            scope["state"]["maas"] = copy(known[0])
            await measured(scope, receive, send)

        return knowing
