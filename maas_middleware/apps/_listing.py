"""Lists of tokens, a page at a time, and the parameters of a query that ask for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from .._asgi import route_path
from ..errors import InvalidRequest
from ..token_store import TokenKind, TokenRecord, TokenStore

DEFAULT_LIMIT = 100
MAXIMUM_LIMIT = 1000
_NUMBER = re.compile(r"[0-9]{1,4}")

Row = dict[str, Any]


class Query:
    """The parameters of a request's query string, as forms encode them (a `+` is a space).

    Raises:
        InvalidRequest: it is not UTF-8.
    """

    def __init__(self, scope: Scope) -> None:
        try:
            text = scope["query_string"].decode("ascii")
            self.pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
        except ValueError:
            raise InvalidRequest("The query of the URL is not UTF-8", code="invalid_value") from None

    def one(self, name: str) -> str | None:
        """The value of a parameter that may stand there once.

        Raises:
            InvalidRequest: it is repeated.
        """
        values = [value for key, value in self.pairs if key == name]
        if len(values) > 1:
            raise InvalidRequest(f"The parameter `{name}` is repeated", code="invalid_value", param=name)
        return values[0] if values else None

    def limit(self) -> int:
        """How many rows are wanted, 100 where nothing is said.

        Raises:
            InvalidRequest: not 1 to 1000.
        """
        text = self.one("limit")
        if text is None:
            return DEFAULT_LIMIT
        if _NUMBER.fullmatch(text) and 1 <= int(text) <= MAXIMUM_LIMIT:
            return int(text)
        message = f"`limit` has to be a whole number from 1 to {MAXIMUM_LIMIT}"
        raise InvalidRequest(message, code="invalid_value", param="limit")


async def list_tokens(
    request: Request,
    store: TokenStore,
    owner: str,
    row: Callable[[TokenRecord], Row],
    *,
    kind: TokenKind | None = None,
) -> Response:
    """Answer with an array of the owner's tokens, newest first, as `limit` and `after` of the query ask for it.

    Where more follow, a `Link` header (RFC 8288) has the URL of the next page.

    Raises:
        InvalidRequest: a parameter is wrong; `after` is if it is not the id of one of these tokens (any more).
    """
    query = Query(request.scope)
    limit, after = query.limit(), query.one("after")
    if after is not None:
        last = await store.find(owner, after)
        if last is None or kind not in (None, last.kind):
            raise InvalidRequest("`after` is not an id of this list", code="invalid_value", param="after")
    records = await store.list(owner, kind=kind, limit=limit + 1, after=after)
    headers = {}
    if len(records) > limit:
        headers["link"] = f'<{_next_url(request.scope, query, limit, records[limit - 1].claims.id)}>; rel="next"'
    return JSONResponse([row(record) for record in records[:limit]], headers=headers)


def _next_url(scope: Scope, query: Query, limit: int, after: str) -> str:
    path = f"{scope.get('root_path', '').rstrip('/')}{route_path(scope)}".strip("/")  # of `//` a host would be made
    kept = [(name, value) for name, value in query.pairs if name not in ("limit", "after")]
    return f"/{quote(path)}?{urlencode([*kept, ('limit', limit), ('after', after)])}"


def token_row(record: TokenRecord, now: float) -> Row:
    """What lists tell of a token; `now` in seconds since the epoch."""
    row: Row = {"id": record.claims.id}
    if record.name:
        row["name"] = record.name
    if record.description:
        row["description"] = record.description
    row["creationDate"] = date_time(record.claims.issued_at)
    row["expirationDate"] = date_time(record.claims.expires_at)
    if record.last_used_at is not None:
        row["lastUsedDate"] = date_time(record.last_used_at)
    return {**row, "status": record.status(now)}


def date_time(seconds: int) -> str:
    """Seconds since the epoch as a date and time of RFC 3339, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
