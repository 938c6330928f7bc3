"""`/v1/admin`: what administrators see of other users, and revoke."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._asgi import path_below, serve
from ..audit import AuditRecord, Outcome, write_audit_record
from ..context import ensure_context, required
from ..entitlement import check_administrator
from ..errors import InvalidRequest, MethodNotAllowed, NotFound, NoTier, StoreUnavailable
from ..identity import Identity
from ..tiers import TierResolver
from ..token_store import TokenKind, TokenRecord, TokenStatus, TokenStore
from ..usage_store import UsageRecord, UsageStore
from ._listing import MAXIMUM_LIMIT, Query, date_time, list_tokens, token_row
from ._objects import uncached, usage_row

_MAXIMUM_COUNTED = 5 * MAXIMUM_LIMIT  # tokens of a kind
_MAXIMUM_NAME = 1024
_USAGE_DAYS = 30

_Act = Callable[[Request, Identity], Awaitable[Response]]


class AdminApp:
    """Shows administrators what other users have, and revokes it. `IdentityMiddleware` is outside.

    Mounted at `/v1/admin`, or routed to for `/v1/admin/users` and `/v1/admin/tokens`.

    The user is named by `?user=` and `?provider=`, which is the administrator's own where it is left out.
    `GET /users` answers `{"user", "provider", "generation", "tier", "groups", "accessTokens": {"active"}, "apiKeys":
    {"active", "revoked", "expired"}, "truncated", "lastIssuedDate", "lastUsedDate", "usage"}`: tier (null for none) and
    groups are those of the newest active token, use is that of the last 30 days. Tokens are counted up to 5000 of each
    kind, the newest; `truncated` tells that there are more. Of whom nothing is known: 404.
    `GET /tokens` answers an array as that of API keys, with `kind` (`access_token` or `api_key`).
    `DELETE /tokens` revokes all tokens and API keys of the user at once: 204, also where none is known.

    Every act and every attempt becomes an `AuditRecord` in the log `maas_middleware.audit`.

    Args:
        administrators: the groups that may, or a function that returns them; everybody else, and whoever comes with
            another credential than a full login, is answered with 403.
        timeout: seconds that a revocation may take. It goes on if the administrator's client leaves.
        clock: seconds since the epoch.

    Raises:
        ValueError: `administrators` is a text instead of a collection.
    """

    def __init__(
        self,
        *,
        administrators: Collection[str] | Callable[[], Collection[str]],
        tokens: TokenStore,
        usage: UsageStore,
        resolver: TierResolver,
        timeout: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if isinstance(administrators, str):
            raise ValueError("administrators are a collection of groups")
        self._administrators = administrators if callable(administrators) else lambda: administrators
        self._tokens = tokens
        self._usage = usage
        self._resolver = resolver
        self._timeout = timeout
        self._clock = clock
        user, listing = ("admin.users.read", self._show_user), ("admin.tokens.read", self._list_tokens)
        self._acts: dict[str, dict[str, tuple[str, _Act]]] = {
            "/users": {"GET": user, "HEAD": user},
            "/tokens": {"GET": listing, "HEAD": listing, "DELETE": ("admin.tokens.revoke", self._revoke)},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, uncached(send), self._respond)

    async def _respond(self, request: Request) -> Response:
        context = ensure_context(request.scope)
        actor = required(context.identity, "AdminApp", "identity", "IdentityMiddleware")
        acts = self._acts.get(path_below(request.scope, "/v1/admin").removesuffix("/"))
        if acts is None:
            raise NotFound
        if request.method not in acts:
            raise MethodNotAllowed(*acts)
        event, act = acts[request.method]
        subject = _subject(request.scope, actor.provider)
        outcome: Outcome = "denied"
        try:
            check_administrator(actor, self._administrators())
            outcome = "failed"
            response = await act(request, _named(subject))
            outcome = "done"
            return response
        except NotFound:  # is what was asked
            outcome = "done"
            raise
        finally:
            key = None if subject is None else subject.key
            write_audit_record(AuditRecord(event, actor.key, key, self._clock(), context.request_id, outcome))

    async def _list_tokens(self, request: Request, subject: Identity) -> Response:
        now = self._clock()

        def row(record: TokenRecord) -> dict[str, Any]:
            return {**token_row(record, now), "kind": record.kind}

        return await list_tokens(request, self._tokens, subject.key, row)

    async def _revoke(self, _: Request, subject: Identity) -> Response:
        # whoever began to revoke wants it done, and recorded as what it was, whether they wait or not
        with anyio.move_on_after(self._timeout, shield=True):
            await self._tokens.revoke_all(subject.key)
            return Response(status_code=204)
        raise StoreUnavailable

    async def _show_user(self, _: Request, subject: Identity) -> Response:
        access_tokens, more_access_tokens = await self._newest(subject.key, "access_token")
        api_keys, more_api_keys = await self._newest(subject.key, "api_key")
        generation, usage = await self._tokens.generation(subject.key), await self._recent_usage(subject.key)
        if not (generation or access_tokens or api_keys or usage):
            raise NotFound("Nothing is known of this user")
        now = self._clock()
        groups = _groups([record for record in (*access_tokens, *api_keys) if record.status(now) == "active"])
        content = {
            "user": subject.name,
            "provider": subject.provider,
            "generation": generation,
            "tier": await self._tier(Identity(subject.provider, subject.name, groups)),
            "groups": groups,
            "accessTokens": _counts(access_tokens, now, "active"),
            "apiKeys": _counts(api_keys, now, "active", "revoked", "expired"),
            "truncated": more_access_tokens or more_api_keys,
            "lastIssuedDate": _latest(record.claims.issued_at for record in (*access_tokens, *api_keys)),
            "lastUsedDate": _latest(record.last_used_at for record in (*access_tokens, *api_keys)),
            "usage": [usage_row(record) for record in usage],
        }
        return JSONResponse(content)

    async def _recent_usage(self, owner: str) -> Sequence[UsageRecord]:
        today = datetime.fromtimestamp(self._clock(), UTC).date()
        return await self._usage.usage(owner, today - timedelta(days=_USAGE_DAYS - 1), today)

    async def _newest(self, owner: str, kind: TokenKind) -> tuple[list[TokenRecord], bool]:
        records: list[TokenRecord] = []
        after: str | None = None
        while len(records) < _MAXIMUM_COUNTED:
            page = await self._tokens.list(owner, kind=kind, limit=MAXIMUM_LIMIT, after=after)
            records += page
            if len(page) < MAXIMUM_LIMIT:
                return records, False
            after = page[-1].claims.id
        return records, bool(await self._tokens.list(owner, kind=kind, limit=1, after=after))

    async def _tier(self, identity: Identity) -> str | None:
        try:
            return (await self._resolver.resolve(identity)).name
        except NoTier:
            return None


def _subject(scope: Scope, provider: str) -> Identity | None:
    """Whom a query names; None where it does not name one user."""
    try:
        query = Query(scope)
        named_provider, name = query.one("provider"), query.one("user") or ""
        subject = Identity(provider if named_provider is None else named_provider, name)
    except (InvalidRequest, ValueError):
        return None
    return subject if len(subject.key) <= _MAXIMUM_NAME else None


def _named(subject: Identity | None) -> Identity:
    if subject is None:
        message = "`user` has to name one user, and `provider`, if it is given, one provider"
        raise InvalidRequest(message, code="invalid_value", param="user")
    return subject


def _groups(active: Sequence[TokenRecord]) -> tuple[str, ...]:
    return max(active, key=lambda record: record.claims.issued_at).groups if active else ()


def _counts(records: Sequence[TokenRecord], now: float, *statuses: TokenStatus) -> dict[str, int]:
    found = Counter(record.status(now) for record in records)
    return {status: found[status] for status in statuses}


def _latest(times: Iterable[int | None]) -> str | None:
    known = [one for one in times if one is not None]
    return date_time(max(known)) if known else None
