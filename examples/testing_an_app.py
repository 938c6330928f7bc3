r"""An app that is composed from our parts, and its tests: real parts, no server, and a clock that the tests move.

    pytest examples/testing_an_app.py
    uvicorn examples.testing_an_app:app

    curl -i localhost:8000/v1/chat/completions -H "Authorization: Bearer alice-token" \
        --json '{"model": "simulator", "messages": [{"role": "user", "content": "Hello!"}]}'

In a project of your own the first half is your app: a function of its provider and its clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from starlette.middleware import Middleware
from starlette.types import ASGIApp

import maas_middleware as maas
from maas_middleware.testing import Conversation, FakeClock, SimulatedModel, StaticIdentityProvider, converse

free = maas.Tier("free", groups=("all",), requests=maas.parse_limits("5/minute"), tokens=maas.parse_limits("1000/day"))
PEOPLE = StaticIdentityProvider({"alice-token": maas.Identity("example", "alice", ("all",))})


def service(provider: maas.IdentityProvider = PEOPLE, clock: Callable[[], float] = time.monotonic) -> ASGIApp:
    ledger = maas.MemoryLedger(clock=clock)
    return maas.stack(
        SimulatedModel(),  # any ASGI inference app
        Middleware(maas.ErrorEnvelopeMiddleware),
        Middleware(maas.IdentityMiddleware, provider=provider),
        Middleware(maas.TierMiddleware, resolver=maas.GroupTierResolver([free]), ledger=ledger),
        Middleware(maas.RateLimitMiddleware, ledger=ledger),
        Middleware(maas.UsageMiddleware),
    )


app = service()
QUESTION = {"model": "simulator", "messages": [{"role": "user", "content": "Hello, how are you?"}], "stream": True}
pytestmark = pytest.mark.anyio  # a plugin that comes with anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ask(app: ASGIApp, method: str = "POST", token: str = "alice-token", leave: int | None = None) -> Conversation:
    return await converse(app, method, "/v1/chat/completions", token=token, json=QUESTION, leave_after=leave)


async def test_five_calls_a_minute_and_then_429_until_the_minute_is_over() -> None:
    app = service(clock=(clock := FakeClock()))
    assert [(await ask(app)).status for _ in range(6)] == [200, 200, 200, 200, 200, 429]
    clock.advance(61)
    assert (await ask(app)).status == 200


async def test_wrong_token_is_401() -> None:
    answer = await ask(app, token="stolen")
    assert (answer.status, answer.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_stream_is_charged_with_what_it_used() -> None:
    app = service()
    assert (await ask(app)).complete
    assert (await ask(app, "HEAD")).header("x-ratelimit-remaining-tokens") == "978"  # 22 words, each a token


async def test_client_that_leaves_is_charged_with_what_it_got() -> None:
    app = service()
    assert not (await ask(app, leave=2)).complete
    assert 978 < int(str((await ask(app, "HEAD")).header("x-ratelimit-remaining-tokens"))) < 1000
