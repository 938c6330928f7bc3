from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware._lifespan import Service, run_lifespan
from tests.servers import serving

STARTUP_COMPLETE: Message = {"type": "lifespan.startup.complete"}
STARTUP_FAILED: Message = {"type": "lifespan.startup.failed", "message": "no model"}
SHUTDOWN_COMPLETE: Message = {"type": "lifespan.shutdown.complete"}
SHUTDOWN_FAILED: Message = {"type": "lifespan.shutdown.failed", "message": "stuck"}


RunWith = Callable[[ASGIApp, Scope, Receive, Send, Callable[[], Awaitable[None]]], Awaitable[None]]


async def plainly(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, close: Callable[[], Awaitable[None]]
) -> None:
    await run_lifespan(app, scope, receive, send, close=close)


async def as_a_service(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, close: Callable[[], Awaitable[None]]
) -> None:
    await Service(app, app, running=[anyio.sleep_forever], closing=[close])(scope, receive, send)


async def lifespan_of(app: ASGIApp, run_with: RunWith = plainly) -> list[str]:
    """Serve an app's lifespan as a server does; what happened, in order: what the server heard, `serving`, `close`."""
    journal: list[str] = []
    scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    started = anyio.Event()
    to_app, from_server = anyio.create_memory_object_stream[Message](2)

    async def send(message: Message) -> None:
        journal.append(message["type"].removeprefix("lifespan."))
        started.set()

    async def close() -> None:
        await anyio.lowlevel.checkpoint()
        journal.append("close")

    async def run() -> None:
        try:
            await run_with(app, scope, from_server.receive, send, close)
        except RuntimeError:
            journal.append("raised")
        started.set()

    with to_app, from_server, anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await to_app.send({"type": "lifespan.startup"})
            await started.wait()
            if journal == ["startup.complete"]:
                journal.append("serving")
            await to_app.send({"type": "lifespan.shutdown"})
    return journal


# apps by what they do with a lifespan


async def raises_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("I speak only http")


async def returns_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    return


async def raises_after_receiving(scope: Scope, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    raise RuntimeError("I speak only http, and read before I look")


async def returns_after_receiving(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()


async def completes(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send(STARTUP_COMPLETE)
    assert (await receive())["type"] == "lifespan.shutdown"
    await send(SHUTDOWN_COMPLETE)


async def fails_to_start(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send(STARTUP_FAILED)


async def fails_to_start_and_raises(scope: Scope, receive: Receive, send: Send) -> None:
    await fails_to_start(scope, receive, send)
    raise RuntimeError("as Starlette does")


async def starts_and_raises(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send(STARTUP_COMPLETE)
    raise RuntimeError("while serving")


async def raises_in_shutdown(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send(STARTUP_COMPLETE)
    await receive()
    raise RuntimeError("while shutting down")


async def fails_to_shut_down(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send(STARTUP_COMPLETE)
    await receive()
    await send(SHUTDOWN_FAILED)


async def fails_to_shut_down_and_raises(scope: Scope, receive: Receive, send: Send) -> None:
    await fails_to_shut_down(scope, receive, send)
    raise RuntimeError("as Starlette does")


async def only_starts(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send(STARTUP_COMPLETE)


async def starts_unasked(scope: Scope, receive: Receive, send: Send) -> None:
    await send(STARTUP_COMPLETE)


async def shuts_down_without_a_word(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send(STARTUP_COMPLETE)
    await receive()


async def raises_behind_everything(scope: Scope, receive: Receive, send: Send) -> None:
    await completes(scope, receive, send)
    raise RuntimeError("too late")


@pytest.fixture(params=[plainly, as_a_service], ids=["plainly", "as-a-service"])
def run_with(request: pytest.FixtureRequest) -> RunWith:
    chosen: RunWith = request.param
    return chosen


WHOLE = ["startup.complete", "serving", "close", "shutdown.complete"]


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        pytest.param(raises_at_once, WHOLE, id="raises-at-once"),
        pytest.param(returns_at_once, WHOLE, id="returns-at-once"),
        pytest.param(raises_after_receiving, WHOLE, id="raises-after-receiving-startup"),
        pytest.param(returns_after_receiving, WHOLE, id="returns-after-receiving-startup"),
        pytest.param(completes, WHOLE, id="startup-and-shutdown-complete"),
        pytest.param(only_starts, WHOLE, id="returns-after-startup"),
        pytest.param(starts_unasked, WHOLE, id="starts-without-receiving"),
        pytest.param(shuts_down_without_a_word, WHOLE, id="returns-after-receiving-shutdown"),
        pytest.param(raises_behind_everything, [*WHOLE, "raised"], id="raises-after-shutdown-complete"),
        pytest.param(fails_to_start, ["close", "startup.failed"], id="startup-failed"),
        pytest.param(fails_to_start_and_raises, ["close", "startup.failed", "raised"], id="startup-failed-and-raises"),
        pytest.param(starts_and_raises, ["startup.complete", "serving", "close", "raised"], id="raises-after-startup"),
        pytest.param(raises_in_shutdown, ["startup.complete", "serving", "close", "raised"], id="raises-in-shutdown"),
        pytest.param(
            fails_to_shut_down, ["startup.complete", "serving", "close", "shutdown.failed"], id="shutdown-failed"
        ),
        pytest.param(
            fails_to_shut_down_and_raises,
            ["startup.complete", "serving", "close", "shutdown.failed", "raised"],
            id="shutdown-failed-and-raises",
        ),
    ],
)
async def test_resources_are_closed_exactly_once_and_before_the_server_hears_of_the_shutdown(
    app: ASGIApp, expected: list[str], run_with: RunWith
) -> None:
    journal = await lifespan_of(app, run_with)

    assert journal == expected
    assert journal.count("close") == 1


async def test_why_a_start_or_a_shutdown_failed_reaches_the_server() -> None:
    heard: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        heard.append(message)

    async def close() -> None:
        return

    await run_lifespan(fails_to_start, {"type": "lifespan"}, receive, send, close=close)

    assert heard == [STARTUP_FAILED]


async def test_inner_app_sees_the_scope_of_the_server() -> None:
    scope: Scope = {"type": "lifespan", "state": {}}
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await fails_to_start(scope, receive, send)

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def ignore(*_: Message) -> None:
        return

    await run_lifespan(app, scope, receive, ignore, close=ignore)

    assert seen[0] is scope


# on a real server


def with_lifespan(journal: list[str]) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        journal.append("startup")
        yield
        journal.append("shutdown")

    return Starlette(lifespan=lifespan)


def without_lifespan(journal: list[str]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "no lifespan here"
        await PlainTextResponse("no such path", 404)(scope, receive, send)

    return app


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        pytest.param(with_lifespan, ["startup", "request", "shutdown", "close"], id="with-lifespan"),
        pytest.param(without_lifespan, ["request", "close"], id="without-lifespan"),
    ],
)
async def test_resources_are_open_while_uvicorn_serves_and_closed_before_it_ends(
    inner: Callable[[list[str]], ASGIApp], expected: list[str]
) -> None:
    journal: list[str] = []
    app = inner(journal)

    async def close() -> None:
        journal.append("close")

    async def shell(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(app, scope, receive, send, close=close)
            return
        journal.append("request")
        await app(scope, receive, send)

    async with serving(shell, lifespan="on") as url, httpx.AsyncClient() as client:
        assert (await client.get(url)).status_code == 404

    assert journal == expected


class Running:
    """Something that runs in the background, and tells when."""

    def __init__(self, journal: list[str]) -> None:
        self._journal = journal

    async def __call__(self) -> None:
        self._journal.append("runs")
        try:
            await anyio.sleep_forever()
        finally:
            self._journal.append("ends")


async def test_what_runs_while_a_service_lives_ends_before_anything_is_closed() -> None:
    journal: list[str] = []

    async def close() -> None:
        journal.append("close")

    async def run_with(app: ASGIApp, scope: Scope, receive: Receive, send: Send, _: object) -> None:
        await Service(app, app, running=[Running(journal), Running(journal)], closing=[close])(scope, receive, send)

    heard = await lifespan_of(completes, run_with)

    assert heard == ["startup.complete", "serving", "shutdown.complete"]
    assert journal == ["runs", "runs", "ends", "ends", "close"]


async def test_service_is_ready_before_the_server_hears_that_it_has_started() -> None:
    journal: list[str] = []

    async def start() -> None:
        await anyio.lowlevel.checkpoint()
        journal.append("start")

    async def run_with(app: ASGIApp, scope: Scope, receive: Receive, send: Send, _: object) -> None:
        async def noting_send(message: Message) -> None:
            journal.append(message["type"])
            await send(message)

        await Service(app, app, starting=[start, start], running=[Running(journal)])(scope, receive, noting_send)

    await lifespan_of(completes, run_with)

    assert journal[:2] == ["start", "start"]
    assert journal.index("lifespan.startup.complete") > 1


async def test_service_whose_server_gives_it_up_ends_what_runs_and_closes() -> None:
    journal: list[str] = []

    async def close() -> None:
        await anyio.lowlevel.checkpoint()
        journal.append("close")

    service = Service(completes, completes, running=[Running(journal)], closing=[close])

    async def receive() -> Message:
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
        await anyio.sleep_forever()
        raise AssertionError("not reached")

    async def send(message: Message) -> None:
        raise AssertionError("nothing was begun")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(service, {"type": "lifespan"}, receive, send)

    assert journal == ["runs", "ends", "close"]


# servers that stop in the middle of something


async def torn_down(lifespan: Callable[[Receive, Send], Awaitable[None]]) -> list[str]:
    """Cancel a lifespan as soon as it waits for the shutdown, as asyncio does at its own end; what was sent."""
    heard: list[str] = []
    messages: list[Message] = [{"type": "lifespan.startup"}]
    waiting = anyio.Event()

    async def receive() -> Message:
        if not messages:
            waiting.set()
            await anyio.sleep_forever()
        return messages.pop()

    async def send(message: Message) -> None:
        heard.append(message["type"].removeprefix("lifespan."))

    async def live() -> None:
        await lifespan(receive, send)

    with anyio.fail_after(5):
        task = asyncio.create_task(live())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    return heard


@pytest.mark.parametrize("app", [returns_at_once, completes, shuts_down_without_a_word])
async def test_resources_are_closed_when_a_server_ends_without_a_shutdown(app: ASGIApp, run_with: RunWith) -> None:
    journal: list[str] = []

    async def close() -> None:
        await anyio.lowlevel.checkpoint()
        journal.append("close")

    heard = await torn_down(lambda receive, send: run_with(app, {"type": "lifespan"}, receive, send, close))

    assert heard == ["startup.complete"]
    assert journal == ["close"]


def to_be_cancelled(journal: list[str], times: int) -> tuple[Callable[[], Awaitable[None]], list[anyio.Event]]:
    """A closing that waits for its task to be cancelled so many times, and is done the next time."""
    waiting = [anyio.Event() for _ in range(times)]

    async def close() -> None:
        if (number := journal.count("begun")) < times:
            journal.append("begun")
            waiting[number].set()
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        journal.append("closed")

    return close, waiting


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("app", [returns_at_once, completes, shuts_down_without_a_word])
async def test_closing_that_is_cancelled_is_begun_again_until_it_is_done(
    app: ASGIApp, times: int, run_with: RunWith
) -> None:
    journal: list[str] = []
    close, waiting = to_be_cancelled(journal, times)
    messages: list[Message] = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        assert message == STARTUP_COMPLETE

    async def live() -> None:
        await run_with(app, {"type": "lifespan"}, receive, send, close)

    with anyio.fail_after(5):
        task = asyncio.create_task(live())
        for event in waiting:
            await event.wait()
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert journal == ["begun"] * times + ["closed"]


async def test_closing_that_fails_is_not_begun_again(run_with: RunWith) -> None:
    journal: list[str] = []

    async def close() -> None:
        journal.append("close")
        raise RuntimeError("cannot be closed")

    async def run(app: ASGIApp, scope: Scope, receive: Receive, send: Send, _: object) -> None:
        await run_with(app, scope, receive, send, close)

    heard = await lifespan_of(completes, run)

    assert heard == ["startup.complete", "serving", "raised"]
    assert journal == ["close"]


async def test_closing_that_cancels_itself_is_not_begun_for_ever(run_with: RunWith) -> None:
    journal: list[str] = []

    async def close() -> None:
        journal.append("close")
        raise asyncio.CancelledError

    heard = await torn_down(lambda receive, send: run_with(completes, {"type": "lifespan"}, receive, send, close))

    assert heard == ["startup.complete"]
    assert journal == ["close"]


class Settling:
    """An app whose requests run until they are cancelled, and settle then, each when it is told to."""

    def __init__(self, journal: list[str], *requests: str) -> None:
        self.settled = {name: anyio.Event() for name in requests}
        self.begun = anyio.Event()
        self.cancelled = anyio.Event()
        self._journal = journal
        self._waiting = list(requests)
        self._running = list(requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        name = self._waiting.pop(0)
        if not self._waiting:
            self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            self._running.remove(name)
            if not self._running:
                self.cancelled.set()
            with anyio.CancelScope(shield=True):
                await self.settled[name].wait()
            self._journal.append(name)


async def test_nothing_is_closed_while_requests_that_uvicorn_cancelled_still_settle() -> None:
    journal: list[str] = []
    app = Settling(journal, "one", "other")

    async def close() -> None:
        journal.append("close")

    async def ask(url: str) -> None:
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(url)

    async def settle() -> None:
        await app.cancelled.wait()
        for event in app.settled.values():
            await anyio.wait_all_tasks_blocked()
            journal.append("waited")
            event.set()

    service = Service(app, returns_at_once, running=[Running(journal)], closing=[close], patience=60)
    server = serving(service, lifespan="on", timeout_graceful_shutdown=0, log_level="critical")
    async with anyio.create_task_group() as group, server as url:
        group.start_soon(settle)
        for _ in app.settled:
            group.start_soon(ask, url)
        await app.begun.wait()

    assert journal == ["runs", "waited", "one", "waited", "other", "ends", "close"]


async def test_request_that_does_not_end_holds_the_end_of_a_service_for_a_while_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal: list[str] = []
    app = Settling(journal, "request")

    async def close() -> None:
        journal.append("close")

    async def ignore(*_: Message) -> None:
        return

    async def never() -> Message:
        raise AssertionError("nobody reads")

    async def run_with(_: ASGIApp, scope: Scope, receive: Receive, send: Send, __: object) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(service, {"type": "http"}, never, ignore)
            await app.begun.wait()
            await service(scope, receive, send)
            group.cancel_scope.cancel()
            app.settled["request"].set()

    service = Service(app, returns_at_once, closing=[close], patience=0.01)

    heard = await lifespan_of(completes, run_with)

    assert heard == ["startup.complete", "serving", "shutdown.complete"]
    assert journal == ["close", "request"]
    assert caplog.messages == ["1 requests are under way while everything closes"]


async def test_requests_that_have_ended_hold_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def raising(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("while answering")

    async def run_with(app: ASGIApp, scope: Scope, receive: Receive, send: Send, _: object) -> None:
        service = Service(raising, app, patience=60)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="while answering"):
                await service({"type": "http"}, receive, send)
        await service(scope, receive, send)

    heard = await lifespan_of(completes, run_with)

    assert heard == ["startup.complete", "serving", "shutdown.complete"]
    assert caplog.messages == []


async def test_resources_are_closed_the_last_first_whatever_happens_to_another() -> None:
    journal: list[str] = []

    def closing(name: str) -> Callable[[], Awaitable[None]]:
        async def close() -> None:
            journal.append(name)
            raise OSError(name)

        return close

    with pytest.raises(OSError, match="first"):
        await Service(completes, completes, closing=[closing("first"), closing("last")]).aclose()

    assert journal == ["last", "first"]
