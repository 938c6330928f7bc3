r"""A Models-as-a-Service round a FastAPI app, put together from its parts: change, leave out or put in what you like.

    uvicorn examples.stand_ins:cluster --port 8001 &
    uvicorn examples.compose_by_hand:app

    TOKEN=$(curl -sX POST localhost:8000/v1/tokens -H "Authorization: Bearer sha256~alice" | jq -r .token)
    curl -i localhost:8000/v1/completions -H "Authorization: Bearer $TOKEN" \
        --json '{"model": "echo", "prompt": "Hello!"}'
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

import maas_middleware as maas

free = maas.Tier("free", groups=("system:authenticated",), requests=maas.parse_limits("5/minute"))
premium = maas.Tier("premium", level=1, groups=("premium-group",), requests=maas.parse_limits("20/minute;500/day"))
resolver = maas.GroupTierResolver([free, premium])

keys, store = maas.SigningKeys.generate(), maas.MemoryTokenStore()
ISSUER, AUDIENCE = "https://maas.example.com", "maas"
minter = maas.JWTMinter(keys=keys, issuer=ISSUER, audience=AUDIENCE)
access_tokens = maas.JWTProvider(keys=keys, revocations=store, issuer=ISSUER, audience=AUDIENCE)
logins = maas.OpenShiftProvider(
    api_url=os.environ.get("CLUSTER_URL", "http://127.0.0.1:8001"),
    # in a pod also: token_file=, and transport=maas.cluster_transport(...), of what Kubernetes mounts there
)

api = FastAPI()


@api.post("/v1/completions")
async def completions(body: dict[str, Any]) -> dict[str, Any]:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"object": "text_completion", "choices": [{"index": 0, "text": body["prompt"]}], "usage": usage}


ledger = maas.MemoryLedger()
inference = maas.stack(
    api,  # and round it, outermost first:
    Middleware(maas.ErrorEnvelopeMiddleware),
    Middleware(maas.IdentityMiddleware, provider=access_tokens),
    Middleware(maas.TierMiddleware, resolver=resolver, ledger=ledger),
    Middleware(maas.RateLimitMiddleware, ledger=ledger),
    Middleware(maas.UsageMiddleware),
)
tokens = maas.stack(
    maas.TokensApp(minter=minter, store=store, resolver=resolver),
    Middleware(maas.ErrorEnvelopeMiddleware),
    Middleware(maas.IdentityMiddleware, provider=maas.FirstOf(access_tokens, logins)),
)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    yield
    await logins.aclose()


routes = [Route("/v1/tokens", tokens), Route("/v1/tokens/{id}", tokens), Mount("/", inference)]
app = Starlette(routes=routes, lifespan=lifespan)
