r"""API keys: tokens with a name that live for weeks, and administrators who end those of others.

    uvicorn examples.stand_ins:cluster --port 8001 &
    uvicorn examples.api_keys:app

    KEY=$(curl -s localhost:8000/v1/api-keys -H "Authorization: Bearer sha256~bob" \
        --json '{"name": "nightly build", "expiration": "30d"}' | jq -r .token)
    curl localhost:8000/hello -H "Authorization: Bearer $KEY"
    curl localhost:8000/v1/api-keys -H "Authorization: Bearer sha256~bob"

    curl "localhost:8000/v1/admin/users?user=bob" -H "Authorization: Bearer sha256~alice"
    curl -X DELETE "localhost:8000/v1/admin/tokens?user=bob" -H "Authorization: Bearer sha256~alice"

alice is in the group of administrators; what she does is on stderr, in JSON. After the last line bob's key is refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import maas_middleware as maas

audit = logging.getLogger("maas_middleware.audit")
audit.setLevel(logging.INFO)  # Python leaves out everything below WARNING
audit.addHandler(logging.StreamHandler())

THIRTY_DAYS = 30 * 24 * 3600
keys, store = maas.SigningKeys.generate(), maas.MemoryTokenStore()
resolver = maas.GroupTierResolver([maas.Tier("everyone", groups=("system:authenticated",))])
tokens = maas.JWTProvider(keys=keys, revocations=store, maximum_lifetime=THIRTY_DAYS)
logins = maas.OpenShiftProvider(api_url=os.environ.get("CLUSTER_URL", "http://127.0.0.1:8001"))
api_keys = maas.APIKeysApp(
    minter=maas.JWTMinter(keys=keys),
    store=store,
    resolver=resolver,
    lifetimes=maas.LifetimePolicy(default=THIRTY_DAYS, minimum=600, maximum=THIRTY_DAYS),
    maximum_count=5,
)
admin = maas.AdminApp(administrators={"premium-group"}, tokens=store, usage=maas.MemoryUsageStore(), resolver=resolver)


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"Hello, {request.user.display_name}!\n")


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    yield
    await logins.aclose()


either = Middleware(maas.IdentityMiddleware, provider=maas.FirstOf(tokens, logins))
app = Starlette(
    routes=[
        Route("/v1/api-keys", api_keys, middleware=[either]),
        Route("/v1/api-keys/{id}", api_keys, middleware=[either]),
        Mount("/v1/admin", admin, middleware=[either]),
        Route("/hello", hello, middleware=[Middleware(maas.IdentityMiddleware, provider=tokens)]),
    ],
    lifespan=lifespan,
)
