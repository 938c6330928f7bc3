r"""`ProxyApp` behind the shells: a small gateway before the servers of one model, such as vLLM.

    uvicorn examples.stand_ins:model --port 8002 &
    uvicorn examples.stand_ins:model --port 8003 &
    uvicorn examples.proxy:app

    curl -N localhost:8000/v1/chat/completions -H "Authorization: Bearer bob-token" \
        --json '{"model": "chat", "stream": true, "messages": [{"role": "user", "content": "Hello there!"}]}'

Users ask for `chat`, which its servers know as `simulator`. Neither users' credentials nor servers' addresses get
through. Stop one of the two servers: no request fails. While a stream is silent, its client is sent a comment every 15
seconds.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

import maas_middleware as maas
from maas_middleware.testing import StaticIdentityProvider

model = maas.Model(
    id="chat",
    name="Chat",
    path="/chat",
    upstream_model="simulator",
    upstreams=os.environ.get("MODEL_URLS", "http://127.0.0.1:8002 http://127.0.0.1:8003").split(),
)
provider = StaticIdentityProvider({"bob-token": maas.Identity("example", "bob", ("everyone",))})
free = maas.Tier("free", groups=("everyone",), requests=maas.parse_limits("5/minute"))
transport = maas.upstream_transport()


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    yield
    await transport.aclose()


gateway = maas.stack(
    maas.ProxyApp(transport=transport, first_byte_timeout=30, keepalive_interval=15),
    Middleware(maas.ErrorEnvelopeMiddleware),
    Middleware(maas.IdentityMiddleware, provider=provider),
    Middleware(maas.TierMiddleware, resolver=maas.GroupTierResolver([free]), catalogue=maas.Catalogue([model])),
    Middleware(maas.RateLimitMiddleware, ledger=maas.MemoryLedger()),
    Middleware(maas.UsageMiddleware),
)
app = Starlette(routes=[Mount("/", gateway)], lifespan=lifespan)
