"""`IdentityMiddleware` alone: only who is logged in to the cluster gets into a Starlette app, which knows who it is.

    uvicorn examples.stand_ins:cluster --port 8001 &
    uvicorn examples.identity:app

    curl localhost:8000/whoami -H "Authorization: Bearer sha256~alice"
    curl -i localhost:8000/whoami

Without a login the answer is 401, in the envelope that OpenAI's clients read.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from maas_middleware import IdentityMiddleware, OpenShiftProvider

logins = OpenShiftProvider(
    api_url=os.environ.get("CLUSTER_URL", "http://127.0.0.1:8001"),
    # in a pod also: token_file=, and transport=cluster_transport(...), of what Kubernetes mounts there
)


@requires("authenticated")
async def whoami(request: Request) -> JSONResponse:
    return JSONResponse({"name": request.user.display_name, "groups": request.user.maas_identity.groups})


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    yield
    await logins.aclose()


app = Starlette(
    routes=[Route("/whoami", whoami)],
    middleware=[Middleware(IdentityMiddleware, provider=logins)],
    lifespan=lifespan,
)
