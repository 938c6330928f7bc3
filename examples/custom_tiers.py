"""A `TierResolver` of one's own: a class with one method. Here everybody has a limit of their own, out of a table.

    uvicorn examples.custom_tiers:app

    curl -I localhost:8000/v1/completions -H "Authorization: Bearer alice-token"
    curl -i localhost:8000/v1/completions -H "Authorization: Bearer carol-token" -X POST

alice has 40 requests a minute, bob has 2, and carol reads in her 403 what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.middleware import Middleware

import maas_middleware as maas
from maas_middleware.testing import SimulatedModel, StaticIdentityProvider

provider = StaticIdentityProvider(  # a real service takes OpenShiftProvider, JWTProvider, or one of its own
    {f"{name}-token": maas.Identity("example", name) for name in ("alice", "bob", "carol")}
)
PLANS = {"alice": "40/minute;1000/day", "bob": "2/minute"}


class PlanResolver:
    """Looks a user's plan up on every request, so that a changed plan is in force at once.

    Args:
        plans: limits on requests by user name. A real one would ask a database, and remember its answer for a while.
    """

    def __init__(self, plans: Mapping[str, str]) -> None:
        self._plans = plans

    async def resolve(self, identity: maas.Identity, /) -> maas.Tier:
        plan = self._plans.get(identity.name)
        if plan is None:
            raise maas.NoTier("You have no plan yet: choose one at https://example.com/plans")
        return maas.Tier("personal", requests=maas.parse_limits(plan))


app = maas.stack(
    SimulatedModel(),  # any ASGI inference app
    Middleware(maas.IdentityMiddleware, provider=provider),
    Middleware(maas.TierMiddleware, resolver=PlanResolver(PLANS)),
    Middleware(maas.RateLimitMiddleware, ledger=maas.MemoryLedger()),
    Middleware(maas.UsageMiddleware),
)
