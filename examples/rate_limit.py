r"""`RateLimitMiddleware` with counters in memory: three requests and 100 tokens a minute, for each user.

    uvicorn examples.rate_limit:app

    curl -i localhost:8000/v1/completions -H "Authorization: Bearer bob-token" \
        --json '{"model": "simulator", "prompt": "Hi"}'
    curl -I localhost:8000/v1/completions -H "Authorization: Bearer bob-token"

The fourth request within a minute is answered with 429 and `retry-after`. `curl -I` shows what is left, for free.
"""

from __future__ import annotations

from starlette.middleware import Middleware

from maas_middleware import (
    GroupTierResolver,
    Identity,
    IdentityMiddleware,
    MemoryLedger,
    RateLimitMiddleware,
    Tier,
    TierMiddleware,
    UsageMiddleware,
    parse_limits,
    stack,
)
from maas_middleware.testing import SimulatedModel, StaticIdentityProvider

provider = StaticIdentityProvider(  # a real service takes OpenShiftProvider, JWTProvider, or one of its own
    {
        "alice-token": Identity("example", "alice", ("everyone",)),
        "bob-token": Identity("example", "bob", ("everyone",)),
    }
)
free = Tier(
    "free",
    groups=("everyone",),
    requests=parse_limits("3/minute"),
    tokens=parse_limits("100/minute"),
)

app = stack(
    SimulatedModel(),  # any ASGI inference app
    Middleware(IdentityMiddleware, provider=provider),
    Middleware(TierMiddleware, resolver=GroupTierResolver([free])),
    Middleware(RateLimitMiddleware, ledger=MemoryLedger()),
    Middleware(UsageMiddleware),  # inside: what it reads is what is charged
)
