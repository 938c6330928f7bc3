"""`/v1/api-keys`: tokens that have a name and live long."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._asgi import serve
from ..errors import InvalidRequest, MethodNotAllowed, NotFound
from ..identity import Identity
from ..throttling import Throttle
from ..tiers import TierResolver
from ..token_store import TokenStore
from ..tokens import LifetimePolicy, TokenMinter
from ._listing import list_tokens, token_row
from ._minting import Minting, minted_object
from ._objects import item_below, login_of, read_object, uncached

DEFAULT_LIFETIMES = LifetimePolicy(default=30 * 86_400, minimum=600, maximum=90 * 86_400)
_MAXIMUM_NAME = 128
_MAXIMUM_DESCRIPTION = 1024
# control characters, half characters, and the ends of lines and paragraphs
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_INVISIBLE = _UNPRINTABLE | {"Cf", "Zs"}
# what turns the direction of the text behind it, so that a name reads as another
_TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


class APIKeysApp:
    """Creates, lists and revokes API keys for callers who logged in. `IdentityMiddleware` is outside.

    Mounted at `/v1/api-keys`, or routed to for `/v1/api-keys` and `/v1/api-keys/{id}`.

    `POST /` with `{"name", "description"?, "expiration"?}` answers 201 `{"token", "expiration", "expiresAt",
    "issuedAt", "jti", "name", "description"?}`; the token is never shown again, `jti` is the id of the key.
    `GET /` answers an array of the caller's keys, newest first: `{"id", "name", "description"?, "creationDate",
    "expirationDate", "lastUsedDate"?, "status"}`, of which `?limit=` (100, at most 1000) and `?after=ID` choose a page;
    where more follow, `Link` has the next one. `GET /{id}` answers one; `DELETE /{id}` revokes it: 204, however often,
    and also where it has expired.

    Names are for people: at most 128 characters, without spaces at their ends, and two keys may have the same.
    Descriptions have at most 1024.

    Args:
        resolver: callers who are in no tier get no keys.
        lifetimes: default: 30 days, at least 10 minutes and at most 90 days; `JWTProvider.maximum_lifetime` has to be
            as long as the longest.
        maximum_count: how many active keys a user may have.
        throttle: how often a user may mint; to be shared with `TokensApp`.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        minter: TokenMinter,
        store: TokenStore,
        resolver: TierResolver,
        lifetimes: LifetimePolicy = DEFAULT_LIFETIMES,
        maximum_count: int = 20,
        throttle: Throttle | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._minting = Minting(minter=minter, store=store, resolver=resolver, lifetimes=lifetimes, throttle=throttle)
        self._maximum_count = maximum_count
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, uncached(send), self._respond)

    async def _respond(self, request: Request) -> Response:
        identity = login_of(request, "APIKeysApp")
        if key_id := item_below(request.scope, "/v1/api-keys"):
            return await self._one(request, identity, key_id)
        if request.method == "POST":
            return await self._create(request, identity)
        if request.method in ("GET", "HEAD"):
            row = partial(token_row, now=self._clock())
            return await list_tokens(request, self._store, identity.key, row, kind="api_key")
        raise MethodNotAllowed("GET", "HEAD", "POST")

    async def _one(self, request: Request, identity: Identity, key_id: str) -> Response:
        if request.method not in ("GET", "HEAD", "DELETE"):
            raise MethodNotAllowed("GET", "HEAD", "DELETE")
        record = await self._store.find(identity.key, key_id)
        if record is None or record.kind != "api_key":
            raise NotFound("You have no API key of this id")
        if request.method != "DELETE":
            return JSONResponse(token_row(record, self._clock()))
        await self._store.revoke(identity.key, key_id)
        return Response(status_code=204)

    async def _create(self, request: Request, identity: Identity) -> Response:
        asked = await read_object(request.receive)
        name, description = _name(asked), _description(asked)
        minted = await self._minting.mint(
            identity,
            asked.get("expiration"),
            kind="api_key",
            name=name,
            description=description,
            maximum=self._maximum_count,
        )
        if minted is None:
            message = f"You have {self._maximum_count} active API keys, and may not have more: revoke one first"
            raise InvalidRequest(message, code="too_many_api_keys", details={"maximum": self._maximum_count})
        described = {"description": description} if description else {}
        return JSONResponse({**minted_object(minted), "name": name, **described}, 201)


def _name(asked: Mapping[str, Any]) -> str:
    name = asked.get("name")
    if not isinstance(name, str) or _INVISIBLE.issuperset(map(unicodedata.category, name)):
        raise InvalidRequest("token name is required for api keys", code="missing_name", param="name")
    return _checked("name", name.strip(), _MAXIMUM_NAME)


def _description(asked: Mapping[str, Any]) -> str:
    description = asked.get("description")
    if description is None:
        return ""
    if not isinstance(description, str):
        raise InvalidRequest("`description` has to be text", code="invalid_value", param="description")
    return _checked("description", description.strip(), _MAXIMUM_DESCRIPTION)


def _checked(param: str, text: str, maximum: int) -> str:
    if len(text) > maximum:
        raise InvalidRequest(f"`{param}` has more than {maximum} characters", code="invalid_value", param=param)
    if any(map(_is_unprintable, text)):
        raise InvalidRequest(f"`{param}` has control characters in it", code="invalid_value", param=param)
    return text


def _is_unprintable(character: str) -> bool:
    return unicodedata.category(character) in _UNPRINTABLE or unicodedata.bidirectional(character) in _TURNING
