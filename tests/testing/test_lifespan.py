from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from maas_middleware import MaaSMiddleware, Settings
from maas_middleware.testing import converse, started


class Body(Exception):
    """What the block of a test raises."""


def living(journal: list[str], *, fails_at: str = "") -> Starlette:
    """An app with a lifespan, whose route changes the state and shows it."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, object]]:
        journal.append("up")
        if fails_at == "startup":
            raise ValueError("no engine")
        yield {"engine": "warm", "calls": 0}
        if fails_at == "shutdown":
            raise ValueError("no way out")
        journal.append("down")

    async def show(request: Request) -> JSONResponse:
        request.state.calls += 1
        return JSONResponse([request.state.engine, request.state.calls])

    return Starlette(routes=[Route("/", show)], lifespan=lifespan)


async def raises_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await JSONResponse("hello")(scope, receive, send)


async def returns_after_its_startup(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
    else:
        await JSONResponse("hello")(scope, receive, send)


async def test_an_app_is_started_and_shut_down() -> None:
    journal: list[str] = []

    async with started(living(journal)) as app:
        answer = await converse(app)
        assert journal == ["up"]

    assert answer.json() == ["warm", 1]
    assert journal == ["up", "down"]


async def test_each_request_has_a_copy_of_the_state() -> None:
    async with started(living([])) as app:
        answers = [await converse(app) for _ in range(2)]
        replaced = await converse(app, scope={"state": {"engine": "cold"}})

    assert [answer.json() for answer in answers] == [["warm", 1], ["warm", 1]]
    assert replaced.json() == ["cold", 1]


@pytest.mark.parametrize("app", [JSONResponse("hello"), raises_at_once, returns_after_its_startup])
async def test_an_app_with_less_of_a_lifespan_is_called_all_the_same(app: Starlette) -> None:
    async with started(app) as running:
        answer = await converse(running)

    assert answer.json() == "hello"


async def test_a_startup_that_fails_is_an_error_with_what_the_app_says() -> None:
    with pytest.raises(RuntimeError, match=r"the app's startup failed: (?s:.*)no engine"):
        async with started(living([], fails_at="startup")):
            pytest.fail("it is started")


async def test_a_configuration_that_is_refused_fails_the_startup() -> None:
    app = Starlette(middleware=[Middleware(MaaSMiddleware, settings=Settings(counters="etcd://"))])

    with pytest.raises(RuntimeError, match="the app's startup failed: counters: "):
        async with started(app):
            pytest.fail("it is started")


async def test_a_shutdown_that_fails_is_an_error_with_what_the_app_says() -> None:
    with pytest.raises(RuntimeError, match=r"the app's shutdown failed: (?s:.*)no way out"):
        async with started(living([], fails_at="shutdown")):
            pass


async def test_what_the_app_raises_while_it_lives_is_raised_at_the_end() -> None:
    async def dies(scope: Scope, receive: Receive, send: Send) -> None:
        await returns_after_its_startup(scope, receive, send)
        raise Body("the app's")

    with pytest.raises(Body, match="the app's"):
        async with started(dies):
            pass


async def test_what_the_block_raises_leaves_it_as_it_is() -> None:
    with pytest.raises(Body):
        async with started(living([])):
            raise Body
    with pytest.raises(pytest.skip.Exception):
        async with started(living([])):
            pytest.skip("which is no Exception")


async def test_after_a_block_that_raises_the_app_is_shut_down_too() -> None:
    journal: list[str] = []

    with pytest.raises(Body, match="the block's"):
        async with started(living(journal)):
            raise Body("the block's")
    with pytest.raises(Body, match="the block's"):
        async with started(living(journal, fails_at="shutdown")):
            raise Body("the block's")

    assert journal == ["up", "down", "up"]


async def test_an_app_that_hangs_in_its_startup_is_left_alone_when_the_block_is_cancelled() -> None:
    async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    with anyio.move_on_after(0.01) as scope:
        async with started(hangs):
            pytest.fail("it is started")

    assert scope.cancelled_caught


async def test_nothing_after_the_shutdown_is_waited_for() -> None:
    async def lingers(scope: Scope, receive: Receive, send: Send) -> None:
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with started(lingers):
            pass


async def test_a_block_that_is_cancelled_ends() -> None:
    with anyio.move_on_after(0.01) as scope:
        async with started(living([])):
            await anyio.sleep_forever()

    assert scope.cancelled_caught
