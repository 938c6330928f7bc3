"""`/v1/tokens`: minting access tokens, and revoking them and API keys."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._asgi import serve
from ..errors import MethodNotAllowed, NotFound
from ..identity import Identity
from ..throttling import Throttle
from ..tiers import TierResolver
from ..token_store import TokenStore
from ..tokens import LifetimePolicy, TokenMinter
from ._minting import Minting, minted_object
from ._objects import item_below, login_of, read_object, uncached


class TokensApp:
    """Mints and revokes access tokens for callers who logged in. `IdentityMiddleware` is outside.

    Mounted at `/v1/tokens`, or routed to for `/v1/tokens` and `/v1/tokens/{jti}`.

    `POST /` with `{"expiration": "15m"}` (or seconds, or nothing) answers 201 `{"token", "expiration", "expiresAt",
    "issuedAt", "jti"}`; `DELETE /` revokes all of the caller's tokens and API keys, `DELETE /{jti}` one: 204.

    Args:
        resolver: callers who are in no tier may not mint.
        lifetimes: default: 4 hours, at least 10 minutes and at most 24 hours.
        throttle: how often a user may mint.
    """

    def __init__(
        self,
        *,
        minter: TokenMinter,
        store: TokenStore,
        resolver: TierResolver,
        lifetimes: LifetimePolicy | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        lifetimes = LifetimePolicy() if lifetimes is None else lifetimes
        self._store = store
        self._minting = Minting(minter=minter, store=store, resolver=resolver, lifetimes=lifetimes, throttle=throttle)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, uncached(send), self._respond)

    async def _respond(self, request: Request) -> Response:
        identity = login_of(request, "TokensApp")
        if token_id := item_below(request.scope, "/v1/tokens"):
            return await self._revoke(request, identity, token_id)
        if request.method == "POST":
            return await self._mint(request, identity)
        if request.method == "DELETE":
            await self._store.revoke_all(identity.key)
            return Response(status_code=204)
        raise MethodNotAllowed("POST", "DELETE")

    async def _revoke(self, request: Request, identity: Identity, token_id: str) -> Response:
        if request.method != "DELETE":
            raise MethodNotAllowed("DELETE")
        if await self._store.revoke(identity.key, token_id) is None:
            raise NotFound("You have no token of this id")
        return Response(status_code=204)

    async def _mint(self, request: Request, identity: Identity) -> Response:
        asked = await read_object(request.receive)
        minted = await self._minting.mint(identity, asked.get("expiration"))
        assert minted is not None  # there is no maximum
        return JSONResponse(minted_object(minted), 201)
