r"""Access tokens of one's own: minted and revoked by who is logged in, accepted by one route, verifiable by anybody.

    uvicorn examples.stand_ins:cluster --port 8001 &
    uvicorn examples.access_tokens:app

    TOKEN=$(curl -s localhost:8000/v1/tokens -H "Authorization: Bearer sha256~alice" \
        --json '{"expiration": "15m"}' | jq -r .token)
    curl localhost:8000/hello -H "Authorization: Bearer $TOKEN"
    curl localhost:8000/.well-known/jwks.json
    curl -X DELETE localhost:8000/v1/tokens -H "Authorization: Bearer sha256~alice"

The last line revokes every token that alice has minted, at once. An access token cannot mint or revoke: 403.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import maas_middleware as maas

keys, store = maas.SigningKeys.generate(), maas.MemoryTokenStore()
ISSUER, AUDIENCE = "https://maas.example.com", "maas"
access_tokens = maas.JWTProvider(keys=keys, revocations=store, issuer=ISSUER, audience=AUDIENCE)
logins = maas.OpenShiftProvider(
    api_url=os.environ.get("CLUSTER_URL", "http://127.0.0.1:8001"),
    # in a pod also: token_file=, and transport=maas.cluster_transport(...), of what Kubernetes mounts there
)
tokens = maas.TokensApp(
    minter=maas.JWTMinter(keys=keys, issuer=ISSUER, audience=AUDIENCE),
    store=store,
    resolver=maas.GroupTierResolver([maas.Tier("everyone", groups=("system:authenticated",))]),
)


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"Hello, {request.user.display_name}!\n")


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    yield
    await logins.aclose()


# access tokens are asked first, so that one at /v1/tokens is told that it may not; the cluster never sees it
either = Middleware(maas.IdentityMiddleware, provider=maas.FirstOf(access_tokens, logins))
app = Starlette(
    routes=[
        Route("/v1/tokens", tokens, middleware=[either]),
        Route("/v1/tokens/{id}", tokens, middleware=[either]),
        Route("/hello", hello, middleware=[Middleware(maas.IdentityMiddleware, provider=access_tokens)]),
        Route("/.well-known/jwks.json", maas.DocumentApp(keys.jwks)),
    ],
    lifespan=lifespan,
)
