"""`/v1/me` and `/v1/usage`: what callers may do, and what they did."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._asgi import path_below, serve
from .._leases import LEDGER_SECONDS, peek
from ..catalogue import Catalogue
from ..context import ensure_context, required
from ..errors import InvalidRequest, MethodNotAllowed, NotFound, NoTier, StoreUnavailable
from ..identity import Identity
from ..limiting import NO_LIMITS, Budget, Ledger, Limit
from ..recorder import UsageRecorder
from ..tiers import FEATURES, Tier, TierResolver
from ..usage_store import UsageRecord, UsageStore
from ._listing import Query
from ._objects import uncached, usage_row

logger = logging.getLogger("maas_middleware")

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DEFAULT_DAYS = 30
_MAXIMUM_DAYS = 366

_Data = dict[str, Any]


class MeApp:
    """Tells callers who they are, and what they may use. `IdentityMiddleware` is outside.

    Mounted at `/v1/me`, or routed to.

    `GET /` answers `{"user", "provider", "groups", "tier": {"name", "displayName", "description"?, "level", "group"},
    "limits": {"requests": [{"limit", "window_seconds"}], "tokens", "concurrency", "max_tokens_per_request",
    "features"}, "remaining": {"requests": {"limit", "window_seconds", "remaining", "reset_seconds"}, "tokens"},
    "models": [{"id", "limits"?}], "degraded"?}`. What is not limited is an empty list or null, and all features are
    `"all"`; `group` is the first of the tier's groups that the caller is in, null where it was another reason. The
    limits of a model are the caller's further ones on it. Callers in no tier have null for tier, limits and remaining.
    Where the counters cannot be reached, remaining is null and `degraded` is `["counters"]`.

    Args:
        catalogue: an open one leaves `models` null, as only the inner app knows them.
        ledger_timeout: seconds that the ledger may take.
    """

    def __init__(
        self,
        *,
        resolver: TierResolver,
        catalogue: Catalogue,
        ledger: Ledger,
        ledger_timeout: float = LEDGER_SECONDS,
    ) -> None:
        self._resolver = resolver
        self._catalogue = catalogue
        self._ledger = ledger
        self._ledger_timeout = ledger_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, uncached(send), self._respond)

    async def _respond(self, request: Request) -> Response:
        identity = _caller(request, "/v1/me", "MeApp")
        content: _Data = {"user": identity.name, "provider": identity.provider, "groups": identity.groups}
        try:
            tier = await self._resolver.resolve(identity)
        except NoTier:
            return JSONResponse({**content, "tier": None, "limits": None, "remaining": None, "models": []})
        content |= {"tier": _tier(tier, identity), "limits": _tier_limits(tier)}
        content |= await self._remaining(tier, identity)
        return JSONResponse({**content, "models": self._models(tier)})

    async def _remaining(self, tier: Tier, identity: Identity) -> _Data:
        try:
            shown = (await peek(self._ledger, [tier.subject(identity)], self._ledger_timeout)).shown
        except StoreUnavailable:  # who knows of it logs it
            return {"remaining": None, "degraded": ["counters"]}
        except Exception:  # who they are does not depend on it
            logger.exception("the ledger failed")
            return {"remaining": None, "degraded": ["counters"]}
        return {"remaining": {"requests": _budget(shown.requests), "tokens": _budget(shown.tokens)}}

    def _models(self, tier: Tier) -> list[_Data] | None:
        if self._catalogue.is_open:
            return None
        return [_model(model.id, tier) for model in self._catalogue.models_for(tier)]


class UsageApp:
    """Tells callers their own recorded use. `IdentityMiddleware` is outside.

    Mounted at `/v1/usage`, or routed to.

    `GET /?from=2026-11-01&to=2026-11-23` (days in UTC, both included, at most 366; default: the last 30 days) answers
    `{"object": "list", "from", "to", "data": [{"date", "model", "requests", "input_tokens", "output_tokens",
    "total_tokens"}], "total"}`. What was used before the request is in it, that of other processes a second later.

    Args:
        recorder: that of this process, which is made to write first.
        clock: seconds since the epoch.
    """

    def __init__(
        self, *, store: UsageStore, recorder: UsageRecorder | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, uncached(send), self._respond)

    async def _respond(self, request: Request) -> Response:
        identity = _caller(request, "/v1/usage", "UsageApp")
        first, last = _days(Query(request.scope), datetime.fromtimestamp(self._clock(), UTC).date())
        if self._recorder is not None:
            await self._recorder.flush()
        records = await self._store.usage(identity.key, first, last)
        content = {
            "object": "list",
            "from": first.isoformat(),
            "to": last.isoformat(),
            "data": [usage_row(record) for record in records],
            "total": _total(records),
        }
        return JSONResponse(content)


def _caller(request: Request, path: str, shell: str) -> Identity:
    identity = required(ensure_context(request.scope).identity, shell, "identity", "IdentityMiddleware")
    if path_below(request.scope, path) not in ("", "/"):
        raise NotFound
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed("GET", "HEAD")
    return identity


def _tier(tier: Tier, identity: Identity) -> _Data:
    description = {"description": tier.description} if tier.description else {}
    return {
        "name": tier.name,
        "displayName": tier.display_name,
        **description,
        "level": tier.level,
        "group": next((group for group in tier.groups if group in identity.groups), None),
    }


def _tier_limits(tier: Tier) -> _Data:
    return {
        "requests": _limits(tier.requests),
        "tokens": _limits(tier.tokens),
        "concurrency": tier.concurrency,
        "max_tokens_per_request": tier.max_tokens_per_request,
        "features": "all" if tier.features is None else [feature for feature in FEATURES if tier.has(feature)],
    }


def _model(model_id: str, tier: Tier) -> _Data:
    limits = tier.models.get(model_id, NO_LIMITS)
    if limits == NO_LIMITS:
        return {"id": model_id}
    own = {
        "requests": _limits(limits.requests),
        "tokens": _limits(limits.tokens),
        "concurrency": limits.concurrency,
    }
    return {"id": model_id, "limits": own}


def _limits(limits: Iterable[Limit]) -> list[_Data]:
    return [{"limit": limit.amount, "window_seconds": limit.seconds} for limit in limits]


def _budget(budget: Budget | None) -> _Data | None:
    if budget is None:
        return None
    return {
        "limit": budget.limit.amount,
        "window_seconds": budget.limit.seconds,
        "remaining": budget.remaining,
        "reset_seconds": budget.reset_ms / 1000,
    }


def _days(query: Query, today: date) -> tuple[date, date]:
    last = _day(query, "to") or today
    first = _day(query, "from") or date.fromordinal(max(1, last.toordinal() - _DEFAULT_DAYS + 1))
    if first > last:
        raise _wrong("from", "`from` is after `to`, which is today where it is left out")
    if (last - first).days >= _MAXIMUM_DAYS:
        raise _wrong("from", f"At most {_MAXIMUM_DAYS} days can be asked for at once")
    return first, last


def _day(query: Query, name: str) -> date | None:
    text = query.one(name)
    if text is None:
        return None
    try:
        return date.fromisoformat(text if _DAY.fullmatch(text) else "")
    except ValueError:
        raise _wrong(name, f"`{name}` has to be a day like 2026-11-23") from None


def _wrong(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_value", param=name)


def _total(records: Sequence[UsageRecord]) -> dict[str, int]:
    given, produced = (sum(record.input_tokens for record in records), sum(record.output_tokens for record in records))
    requests = sum(record.requests for record in records)
    return {
        "requests": requests,
        "input_tokens": given,
        "output_tokens": produced,
        "total_tokens": given + produced,
    }
