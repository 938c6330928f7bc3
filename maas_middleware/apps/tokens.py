"""`/v1/tokens`: minting and revoking access tokens."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._asgi import path_below, serve
from ..context import ensure_context, required
from ..errors import AccessDenied, InvalidRequest, MethodNotAllowed, NotFound
from ..identity import MAXIMUM_TOKEN_BYTES, Identity
from ..tiers import TierResolver
from ..tokens import LifetimePolicy, TokenMinter, TokenStore
from ._objects import read_object


class TokensApp:
    """Mints and revokes access tokens for callers who logged in. `IdentityMiddleware` is outside.

    Mounted at `/v1/tokens`, or routed to for `/v1/tokens` and `/v1/tokens/{jti}`.

    `POST /` with `{"expiration": "15m"}` (or seconds, or nothing) answers 201 `{"token", "expiration", "expiresAt",
    "issuedAt", "jti"}`; `DELETE /` revokes all of the caller's tokens, `DELETE /{jti}` one: 204.

    Args:
        resolver: callers who are in no tier may not mint.
        lifetimes: default: 4 hours, at least 10 minutes and at most 24 hours.
    """

    def __init__(
        self,
        *,
        minter: TokenMinter,
        store: TokenStore,
        resolver: TierResolver,
        lifetimes: LifetimePolicy | None = None,
    ) -> None:
        self._minter = minter
        self._store = store
        self._resolver = resolver
        self._lifetimes = LifetimePolicy() if lifetimes is None else lifetimes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, send, self._respond)

    async def _respond(self, request: Request) -> Response:
        identity = required(ensure_context(request.scope).identity, "TokensApp", "identity", "IdentityMiddleware")
        if identity.restriction is not None:
            raise AccessDenied(identity.restriction)
        token_id = path_below(request.scope, "/v1/tokens").removeprefix("/")
        if len(token_id) > 1:  # of `//` a slash stays: an id that was left out must not revoke everything
            token_id = token_id.removesuffix("/")
        if "/" in token_id:
            raise NotFound
        if token_id:
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
        if not await self._store.revoke(identity.key, token_id):
            raise NotFound("You have no token of this id")
        return Response(status_code=204)

    async def _mint(self, request: Request, identity: Identity) -> Response:
        asked = await read_object(request.receive)
        await self._resolver.resolve(identity)
        lifetime = self._lifetimes.grant(asked.get("expiration"))
        minted = self._minter.mint(identity, lifetime, await self._store.generation(identity.key))
        if len(minted.token) > MAXIMUM_TOKEN_BYTES:
            raise InvalidRequest("You are in more groups than an access token can hold", code="too_many_groups")
        await self._store.record(minted.claims)
        content = {
            "token": minted.token,
            "expiration": minted.expiration,
            "expiresAt": minted.claims.expires_at,
            "issuedAt": minted.claims.issued_at,
            "jti": minted.claims.id,
        }
        return JSONResponse(content, 201, headers={"cache-control": "no-store"})
