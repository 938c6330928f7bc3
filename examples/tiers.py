"""`TierMiddleware`: groups lead to a tier, and the tier to the models that a caller may see and use.

    uvicorn examples.tiers:app

    curl -L localhost:8000/v1/models -H "Authorization: Bearer bob-token"
    curl localhost:8000/v1/completions -H "Authorization: Bearer bob-token" --json '{"model": "large", "prompt": "Hi"}'
    curl localhost:8000/large/v1/completions -H "Authorization: Bearer alice-token" --json '{"prompt": "Hi"}'
    curl localhost:8000/v1/tiers/lookup -H "Authorization: Bearer bob-token" --json '{"groups": ["researchers"]}'

bob sees one model of two, and is refused the other (403), more than 100 tokens in one answer (400), and streams (403).
A path may name the model instead of the body.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from maas_middleware import (
    Catalogue,
    GroupTierResolver,
    Identity,
    IdentityMiddleware,
    Model,
    ModelsApp,
    Tier,
    TierLookupApp,
    TierMiddleware,
)
from maas_middleware.testing import StaticIdentityProvider

provider = StaticIdentityProvider(  # a real service takes OpenShiftProvider, JWTProvider, or one of its own
    {
        "alice-token": Identity("example", "alice", ("everyone", "researchers")),
        "bob-token": Identity("example", "bob", ("everyone",)),
        "carol-token": Identity("example", "carol"),
    }
)
tiers = [
    Tier("free", groups=("everyone",), max_tokens_per_request=100, features=frozenset({"tools"})),
    Tier("premium", level=1, groups=("researchers",)),
]
resolver = GroupTierResolver(tiers)
catalogue = Catalogue(
    [
        Model(id="small", name="Small", aliases=("mini",), upstream_model="qwen3-0.6b", path="/small"),
        Model(id="large", name="Large", upstream_model="qwen3-32b", path="/large", tiers=frozenset({"premium"})),
    ]
)


async def completions(request: Request) -> JSONResponse:
    """Tells what an inference app gets to see."""
    context, body = request.state.maas, await request.json()
    return JSONResponse({"tier": context.tier.name, "model": context.model.id, "path": request.url.path, "body": body})


app = Starlette(
    routes=[
        Route("/v1/completions", completions, methods=["POST"]),
        Mount("/v1/models", ModelsApp(catalogue=catalogue, tiers=lambda: tiers)),
        Route("/v1/tiers/lookup", TierLookupApp(resolver=resolver)),
    ],
    middleware=[
        Middleware(IdentityMiddleware, provider=provider),
        # `unlisted="pass"` lets /v1/models through, and whatever else is no inference; without it, that is refused
        Middleware(TierMiddleware, resolver=resolver, catalogue=catalogue, unlisted="pass"),
    ],
)
