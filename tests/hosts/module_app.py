"""A host app as a server's command imports it: `uvicorn tests.hosts.module_app:app`, by environment alone."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from maas_middleware import MaaSMiddleware
from tests.hosts.inference import Notes, routes


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    sys.stderr.write("the host is up\n")
    yield
    sys.stderr.write("the host is down\n")


app = FastAPI(lifespan=lifespan)
app.include_router(routes(Notes()))
app.add_middleware(MaaSMiddleware)
