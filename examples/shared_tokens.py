r"""Tokens that replicas share: in a database, with a key file that all of them have, and recorded use.

    uvicorn examples.stand_ins:cluster --port 8001 &
    maas-gateway new-key keys.json
    uvicorn examples.shared_tokens:app --port 8002 &
    uvicorn examples.shared_tokens:app --port 8003

    TOKEN=$(curl -sX POST localhost:8002/v1/tokens -H "Authorization: Bearer sha256~bob" | jq -r .token)
    curl localhost:8003/v1/completions -H "Authorization: Bearer $TOKEN" \
        --json '{"model": "simulator", "prompt": "Hi", "max_tokens": 5}'
    sleep 1 && curl localhost:8002/v1/usage -H "Authorization: Bearer $TOKEN"
    curl -X DELETE localhost:8002/v1/tokens -H "Authorization: Bearer sha256~bob"

What one has minted the other accepts, and a second after the last line it does not any more. With
`DATABASE_URL=postgresql://user:password@host/database` they may be on different machines.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

import maas_middleware as maas
from maas_middleware.testing import SimulatedModel

database = maas.SQLDatabase(os.environ.get("DATABASE_URL", "sqlite:///tokens.db"))
store = maas.FollowedTokenStore(maas.SQLTokenStore(database), grace=30.0, on_failure="refuse")
usage = maas.SQLUsageStore(database)
recorder = maas.UsageRecorder(usage, tokens=store)

keys = maas.WatchedKeys(Path(os.environ.get("KEYS_FILE", "keys.json")))
access_tokens = maas.JWTProvider(keys=keys.current, revocations=store, used=recorder.note_token)
logins = maas.OpenShiftProvider(api_url=os.environ.get("CLUSTER_URL", "http://127.0.0.1:8001"))
everyone = maas.Tier("everyone", groups=("system:authenticated",), requests=maas.parse_limits("60/minute"))
resolver, ledger = maas.GroupTierResolver([everyone]), maas.MemoryLedger()
either = [Middleware(maas.IdentityMiddleware, provider=maas.FirstOf(access_tokens, logins))]
tokens = maas.TokensApp(minter=maas.JWTMinter(keys=keys.current), store=store, resolver=resolver)


inference = maas.stack(
    SimulatedModel(),  # any ASGI inference app
    Middleware(maas.ErrorEnvelopeMiddleware),
    Middleware(maas.IdentityMiddleware, provider=access_tokens),
    Middleware(maas.TierMiddleware, resolver=resolver, ledger=ledger),
    Middleware(maas.RateLimitMiddleware, ledger=ledger, recorder=recorder),
    Middleware(maas.UsageMiddleware),
)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(store.run)  # without these two, requests do their work
        group.start_soon(recorder.run)
        yield
        group.cancel_scope.cancel()
    for resource in (recorder, database, logins):
        await resource.aclose()


app = Starlette(
    routes=[
        Route("/v1/tokens", tokens, middleware=either),
        Route("/v1/usage", maas.UsageApp(store=usage, recorder=recorder), middleware=either),
        Mount("/", inference),
    ],
    lifespan=lifespan,
)
