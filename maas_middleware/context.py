"""What travels with a request: one `MaaSContext` in `scope["state"]["maas"]` (`request.state.maas` in Starlette)."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, TypeVar

import msgspec

from .catalogue import Model
from .endpoints import Endpoint
from .identity import Identity
from .limiting import Verdict
from .requests import InferenceRequest
from .tiers import Tier
from .usage import TokenUsage

# in the scope: it has been through a `MaaSMiddleware`
GUARDED = "maas_guarded"
# in the scope: the mount point of the host app, while the version at its end is taken for a part of the route
MOUNT_POINT = "maas_mount_point"

T = TypeVar("T")


class MaaSContext(msgspec.Struct):
    """What is known of a request so far; None means that it is not known.

    Each field has one writer: `ErrorEnvelopeMiddleware` writes `request_id`; `IdentityMiddleware` `identity`;
    `TierMiddleware` `tier` and `endpoint`; whoever finds the model, in a path or a body, `model`; whoever reads or
    changes the body `request`; `RateLimitMiddleware` `verdict`; `UsageMiddleware` `usage`, `produced`, `events` and
    `reported_failure`; whoever refuses the request `refusal`.

    Attributes:
        verdict: what the client is told of its limits; its lease is what it holds of the tokens that it is told of.
        usage: the last usage that the model reported; None is unknown, never 0.
        produced: pieces of content seen in a stream, about one a token.
        events: events with data that were passed on in a stream.
        reported_failure: whether the model reported an error in an answer that began as a success.
        refusal: the code of the error that one of our own shells answered with.
    """

    request_id: str | None = None
    identity: Identity | None = None
    tier: Tier | None = None
    endpoint: Endpoint | None = None
    model: Model | None = None
    request: InferenceRequest | None = None
    verdict: Verdict | None = None
    usage: TokenUsage | None = None
    produced: int = 0
    events: int = 0
    reported_failure: bool = False
    refusal: str | None = None


def ensure_context(scope: MutableMapping[str, Any]) -> MaaSContext:
    """Return the request's context, made now if it has none."""
    try:
        context = scope["state"]["maas"]
    except KeyError:
        context = None
    if not isinstance(context, MaaSContext):  # the host's own lifespan may have left something of that name
        context = scope.setdefault("state", {})["maas"] = MaaSContext()
    return context


def get_context(scope: MutableMapping[str, Any]) -> MaaSContext:
    """Return the request's context.

    Raises:
        LookupError: no middleware of ours is wrapped around the app.
    """
    context = scope.get("state", {}).get("maas")
    if not isinstance(context, MaaSContext):
        raise LookupError("no MaaSContext in this scope: wrap the app in IdentityMiddleware or MaaSMiddleware")
    return context


def required(value: T | None, shell: str, missing: str, outer: str) -> T:
    """Return what an outer shell should have left in the context.

    Raises:
        LookupError: it did not, because it is not there.
    """
    if value is None:
        raise LookupError(f"{shell} needs to know the {missing}: wrap it in {outer}")
    return value
