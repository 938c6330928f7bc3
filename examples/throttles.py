r"""Throttles: how often a user may do what no tier counts, and how often an address may fail to say who it is.

    uvicorn examples.stand_ins:cluster --port 8001 &
    uvicorn examples.throttles:app

    curl -i localhost:8000/hello -H "Authorization: Bearer sha256~alice"
    curl -i -X POST localhost:8000/invitations -H "Authorization: Bearer sha256~alice"
    curl -i localhost:8000/hello -H "Authorization: Bearer sha256~a-guess"

Each user has five requests a minute, and two invitations of one's own making among them. After three credentials that
nobody knows, an address gets 429 for the next, and the cluster is asked about none of its; who is known to the service
already goes on from there. With `REDIS_URL=redis://localhost:6379` replicas count together, and each on its own while
Redis is away.
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

redis_url = os.environ.get("REDIS_URL")
storage = None if redis_url is None else maas.ThrottleStorage(redis_url)
requests = maas.MovingWindowThrottle("5/minute", name="control_requests", storage=storage)
invitations = maas.MovingWindowThrottle("2/minute;20/day", name="invitations", storage=storage)
failures = maas.MovingWindowThrottle("3/minute", name="failed_credentials", storage=storage)

logins = maas.OpenShiftProvider(
    api_url=os.environ.get("CLUSTER_URL", "http://127.0.0.1:8001"),
    failures=failures,  # asks the cluster nothing for an address that failed too often
)


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"Hello, {request.user.display_name}!\n")


async def invite(request: Request) -> PlainTextResponse:
    # what it raises is answered by ErrorEnvelopeMiddleware
    await maas.check_throttle(invitations, request.user.identity, "invitations")
    return PlainTextResponse(f"A friend of {request.user.display_name} may come in.\n", 201)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    yield
    await logins.aclose()
    if storage is not None:
        await storage.aclose()


app = Starlette(
    routes=[Route("/hello", hello), Route("/invitations", invite, methods=["POST"])],
    middleware=[
        Middleware(maas.ForwardedMiddleware, trusted=["10.0.0.0/8"]),  # whose word on addresses counts
        Middleware(maas.ErrorEnvelopeMiddleware),
        Middleware(maas.IdentityMiddleware, provider=logins, failures=failures),  # the same throttle: here it counts
        Middleware(maas.ThrottleMiddleware, throttle=requests),
    ],
    lifespan=lifespan,
)
