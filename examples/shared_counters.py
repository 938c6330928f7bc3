r"""Counters that processes share: `RedisLedger` inside `GuardedLedger`; or, of requests only, `LimitsLedger`.

    redis-server --port 6379 &
    uvicorn examples.shared_counters:app --port 8001 &
    uvicorn examples.shared_counters:app --port 8002

    curl -i localhost:8001/v1/completions -H "Authorization: Bearer bob-token" \
        --json '{"model": "simulator", "prompt": "Hi"}'
    curl -I localhost:8002/v1/completions -H "Authorization: Bearer bob-token"

Both count as one: what was used at the first is missing at the second. Without Redis each of them goes on with its
share of the limits, and `curl localhost:8001/ready` says so. Whoever has a storage of `limits` already, such as
memcached, can have requests counted there: `uvicorn examples.shared_counters:by_requests`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from limits.aio.strategies import MovingWindowRateLimiter
from limits.storage import storage_from_string
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

import maas_middleware as maas
from maas_middleware.testing import SimulatedModel, StaticIdentityProvider

identity = maas.Identity("example", "bob", ("everyone",))
provider = StaticIdentityProvider({"bob-token": identity})  # a real service takes OpenShiftProvider or JWTProvider


def metered(ledger: maas.Ledger, tier: maas.Tier) -> ASGIApp:
    return maas.stack(
        SimulatedModel(),  # any ASGI inference app
        Middleware(maas.ErrorEnvelopeMiddleware),
        Middleware(maas.IdentityMiddleware, provider=provider),
        Middleware(maas.TierMiddleware, resolver=maas.GroupTierResolver([tier]), ledger=ledger),
        Middleware(maas.RateLimitMiddleware, ledger=ledger),
        Middleware(maas.UsageMiddleware),
    )


ledger = maas.GuardedLedger(
    maas.RedisLedger(os.environ.get("REDIS_URL", "redis://localhost:6379/0"), timeout=0.2),
    fallback=maas.MemoryLedger(),  # None refuses with 503 while Redis is away
    replicas=2,
)
everyone = maas.Tier(
    "everyone", groups=("everyone",), requests=maas.parse_limits("4/minute"), tokens=maas.parse_limits("200/minute")
)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    yield
    await ledger.aclose()  # what Redis has not taken yet is sent once more


ready = maas.ReadyApp(degraded=lambda: ["counters"] if ledger.degraded else [])
app = Starlette(routes=[Route("/ready", ready), Mount("/", metered(ledger, everyone))], lifespan=lifespan)

storage = storage_from_string(os.environ.get("LIMITS_STORAGE", "async+memory://"), wrap_exceptions=True)
by_requests = metered(
    maas.LimitsLedger(MovingWindowRateLimiter(storage)),
    maas.Tier("everyone", groups=("everyone",), requests=maas.parse_limits("3/minute;10/day")),  # and none on tokens
)
