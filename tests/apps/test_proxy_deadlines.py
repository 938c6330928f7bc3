"""How long the proxy waits, for whom, and how it ends when somebody waits no longer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.apps.proxy import ProxyApp
from maas_middleware.balancing import Balancer
from maas_middleware.catalogue import Model
from maas_middleware.context import ensure_context
from maas_middleware.errors import MaaSError, RequestTooLarge, UpstreamTimeout
from maas_middleware.http11 import HTTP11Transport
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.testing.converse import Conversation, converse, http_scope

from ..raw_upstream import LAST_CHUNK, Connection, Script, answer, chunk, chunked_head, raw_upstream, stalling

PATH = "/v1/chat/completions"
SSE_HEAD = chunked_head("text/event-stream")
EVENT = chunk(b"data: 1\n\n")
CHUNKED = [("transfer-encoding", "chunked")]
PATIENCE = 10.0


@pytest.fixture
async def transport() -> AsyncIterator[httpx.AsyncHTTPTransport]:
    """A real transport; at the end of the test no connection of it may be in use."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncHTTPTransport(verify=False, trust_env=False, limits=limits) as transport:
        yield transport
        assert [connection for connection in transport._pool.connections if not connection.is_idle()] == []


class Proxied:
    """The proxy, and what `TierMiddleware` leaves in the context."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport, **options: Any) -> None:
        self.model = Model("m", upstreams=(url,))
        self.balancer = Balancer(failures=1)
        self._app = ProxyApp(transport=transport, balancer=self.balancer, **options)

    @property
    def is_blamed(self) -> bool:
        """Whether the upstream is taken for failing."""
        return not self.balancer.is_ready(self.model)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ensure_context(scope).model = self.model
        await self._app(scope, receive, send)
        assert self.outstanding == 0

    @property
    def outstanding(self) -> int:
        return sum(server.outstanding for server in self.balancer._servers.values())  # which nothing else shows


async def streaming(upstream: Connection) -> None:
    """Send events without an end."""
    await upstream.read_request()
    await upstream.send(SSE_HEAD)
    while True:
        await upstream.send(EVENT)
        await anyio.lowlevel.checkpoint()


async def later(seconds: float) -> None:
    """Let time pass, for what is told apart by nothing else."""
    with anyio.move_on_after(seconds):
        await anyio.Event().wait()


class Client:
    """A client that sends its messages one by one, and reads as long as a test lets it."""

    def __init__(self, *messages: Message, pauses: Sequence[float] = ()) -> None:
        self.received: list[Message] = []
        self.reads = anyio.Event()
        self.reads.set()
        self.asked = 0
        self.is_asked = False
        self._messages = list(messages)
        self._pauses = list(pauses)

    async def receive(self) -> Message:
        self.asked += 1
        self.is_asked = True
        try:
            if self._pauses:
                await later(self._pauses.pop(0))
            if not self._messages:
                await anyio.Event().wait()
            return self._messages.pop(0)
        finally:
            self.is_asked = False

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.received.append(message)

    async def converse(self, app: ASGIApp, **scope: Any) -> None:
        headers = scope.pop("headers", ())
        with anyio.fail_after(PATIENCE):
            await app(http_scope("POST", PATH, headers=headers, **scope), self.receive, self.send)

    @property
    def status(self) -> int:
        status = self.received[0]["status"]
        assert isinstance(status, int)
        return status

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.received)


def piece(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def ask(app: ASGIApp) -> Conversation:
    with anyio.fail_after(PATIENCE):
        return await converse(app, "POST", PATH)


async def test_answer_that_does_not_begin_in_the_total_time_is_504(transport: httpx.AsyncHTTPTransport) -> None:
    async with raw_upstream(stalling()) as upstream:
        app = Proxied(upstream.url, transport, total_timeout=0.1)
        conversation = await ask(app)
        with anyio.fail_after(PATIENCE):
            await upstream.connections[0].client_left.wait()

    assert (conversation.status, conversation.json()["error"]["code"]) == (504, "upstream_timeout")
    assert app.is_blamed


@pytest.mark.parametrize(
    "script",
    [pytest.param(stalling(SSE_HEAD, EVENT), id="silent"), pytest.param(streaming, id="still streaming")],
)
async def test_answer_that_does_not_end_in_the_total_time_is_broken_off_and_its_upstream_not_blamed(
    script: Script, transport: httpx.AsyncHTTPTransport
) -> None:
    async with raw_upstream(script) as upstream:
        app = Proxied(upstream.url, transport, total_timeout=0.2)
        conversation = await ask(app)
        with anyio.fail_after(PATIENCE):
            await upstream.connections[0].client_left.wait()

    assert conversation.status == 200
    assert conversation.body.startswith(b"data: 1\n\n")
    assert not conversation.complete
    assert type(conversation.exception) is UpstreamTimeout
    assert not app.is_blamed


async def test_client_of_an_event_stream_is_told_that_the_total_time_is_over(
    transport: httpx.AsyncHTTPTransport,
) -> None:
    async with raw_upstream(streaming) as upstream:
        conversation = await ask(ErrorEnvelopeMiddleware(Proxied(upstream.url, transport, total_timeout=0.1)))

    assert conversation.body.count(b'"code":"upstream_timeout"') == 1
    assert not conversation.complete


async def test_answer_within_the_total_time_is_whole(transport: httpx.AsyncHTTPTransport) -> None:
    async with raw_upstream(stalling(SSE_HEAD, EVENT, LAST_CHUNK)) as upstream:
        conversation = await ask(Proxied(upstream.url, transport, total_timeout=PATIENCE))

    assert (conversation.body, conversation.complete) == (b"data: 1\n\n", True)


@pytest.mark.parametrize(
    ("pieces", "is_blamed"),
    [
        pytest.param((), True, id="first byte"),
        pytest.param((SSE_HEAD,), True, id="first byte behind the head"),
        pytest.param((SSE_HEAD, EVENT), True, id="next byte"),
        pytest.param((b"HTTP/1.1 400 Bad\r\nContent-Length: 9\r\n\r\n{",), True, id="rest of an error"),
    ],
)
async def test_upstream_that_is_silent_for_too_long_is_blamed(
    pieces: tuple[bytes, ...], is_blamed: bool, transport: httpx.AsyncHTTPTransport
) -> None:
    async with raw_upstream(stalling(*pieces)) as upstream:
        app = Proxied(upstream.url, transport, first_byte_timeout=0.1, idle_timeout=0.1)
        await ask(app)

    assert app.is_blamed == is_blamed


async def test_first_byte_has_its_own_deadline(transport: httpx.AsyncHTTPTransport) -> None:
    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await later(0.3)
        await upstream.send(answer("200 OK", b"done"))

    async with raw_upstream(script) as upstream:
        conversation = await ask(Proxied(upstream.url, transport, idle_timeout=0.1))

    assert conversation.body == b"done"


async def test_time_in_which_the_client_sends_its_body_is_not_the_upstreams(
    transport: httpx.AsyncHTTPTransport,
) -> None:
    requests = []

    async def script(upstream: Connection) -> None:
        requests.append(await upstream.read_request())
        await upstream.send(answer("200 OK", b"done"))

    client = Client(piece(b"a", more=True), piece(b"b", more=True), piece(b"c"), pauses=(0.15, 0.15, 0.15))
    async with raw_upstream(script) as upstream:
        app = Proxied(upstream.url, transport, first_byte_timeout=0.2, idle_timeout=PATIENCE)
        await client.converse(app, headers=CHUNKED)

    assert (client.status, client.body) == (200, b"done")
    assert requests[0].body == chunk(b"a") + chunk(b"b") + chunk(b"c") + LAST_CHUNK


async def test_upstream_is_waited_for_from_the_end_of_the_body_on(transport: httpx.AsyncHTTPTransport) -> None:
    client = Client(piece(b"a", more=True), piece(b"b"), pauses=(0.0, 0.1))
    async with raw_upstream(stalling()) as upstream:
        app = Proxied(upstream.url, transport, first_byte_timeout=0.1, idle_timeout=PATIENCE)
        await client.converse(app, headers=CHUNKED)

    assert client.status == 504
    assert app.is_blamed


@pytest.mark.parametrize("first", [(), (piece(b"half", more=True),)], ids=["nothing", "half"])
@pytest.mark.parametrize("timeouts", [{"idle_timeout": 0.1}, {"total_timeout": 0.1}], ids=["idle", "total"])
async def test_client_that_does_not_send_its_body_is_answered_408(
    first: Sequence[Message], timeouts: dict[str, float], transport: httpx.AsyncHTTPTransport
) -> None:
    client = Client(*first)
    async with raw_upstream(stalling()) as upstream:
        app = Proxied(upstream.url, transport, **timeouts)
        await client.converse(app, headers=CHUNKED)
        for connection in upstream.connections:
            with anyio.fail_after(PATIENCE):
                await connection.client_left.wait()

    assert client.status == 408
    assert b'"code":"request_timeout"' in client.body
    assert len(upstream.connections) == len(first)
    assert all(LAST_CHUNK not in connection.received for connection in upstream.connections)
    assert not app.is_blamed


async def test_body_that_an_outer_app_refuses_half_way_is_refused_in_its_words(
    transport: httpx.AsyncHTTPTransport,
) -> None:
    half_read = anyio.Event()

    async def script(upstream: Connection) -> None:
        await upstream.read_until(b"half")
        half_read.set()
        await upstream.until_client_left()

    scope = http_scope("POST", PATH, headers=CHUNKED)
    messages, received = [piece(b"half", more=True)], []

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await half_read.wait()
        raise RequestTooLarge

    async def send(message: Message) -> None:
        received.append(message)

    async with raw_upstream(script) as upstream:
        app = Proxied(upstream.url, transport)
        with anyio.fail_after(PATIENCE):
            await app(scope, receive, send)
            await upstream.connections[0].client_left.wait()

    assert received[0]["status"] == 413
    assert ensure_context(scope).refusal == "request_too_large"
    assert not app.is_blamed


@pytest.mark.parametrize("head", [SSE_HEAD, chunked_head("application/json")], ids=["event stream", "json"])
async def test_client_that_reads_nothing_is_taken_for_one_that_left(
    head: bytes, transport: httpx.AsyncHTTPTransport
) -> None:
    client = Client(piece(b""))
    client.reads = anyio.Event()
    async with raw_upstream(stalling(head, EVENT)) as upstream:
        app = Proxied(upstream.url, transport, idle_timeout=0.1)
        await client.converse(app)
        with anyio.fail_after(PATIENCE):
            await upstream.connections[0].client_left.wait()

    assert client.received == []
    assert not app.is_blamed


async def test_client_that_does_not_read_its_error_is_left_alone(transport: httpx.AsyncHTTPTransport) -> None:
    client = Client(piece(b""))
    client.reads = anyio.Event()
    async with raw_upstream(stalling(answer("429 Too Many Requests"))) as upstream:
        await client.converse(Proxied(upstream.url, transport, idle_timeout=0.1))

    assert client.received == []


async def test_client_that_is_gone_before_its_error_is_nobodys_failure(transport: httpx.AsyncHTTPTransport) -> None:
    async with raw_upstream(stalling(answer("429 Too Many Requests"))) as upstream:
        app = Proxied(upstream.url, transport)

        async def send(message: Message) -> None:
            raise ConnectionResetError

        with anyio.fail_after(PATIENCE):
            await app(http_scope("POST", PATH), Client(piece(b"")).receive, send)


async def test_slow_reader_reads_on_for_the_total_time(transport: httpx.AsyncHTTPTransport) -> None:
    """It is told of the end when it has read what there is: no piece is cut."""
    client = Client(piece(b""))
    client.reads = anyio.Event()
    async with raw_upstream(streaming) as upstream, anyio.create_task_group() as group:
        app = Proxied(upstream.url, transport, total_timeout=0.1)

        async def talk() -> None:
            with pytest.raises(UpstreamTimeout):
                await client.converse(app)

        group.start_soon(talk)
        await later(0.3)
        assert client.received == []
        client.reads.set()

    assert client.body.startswith(b"data: 1\n\n")


async def test_fast_answer_needs_nobody_who_watches_the_client(transport: httpx.AsyncHTTPTransport) -> None:
    async def script(upstream: Connection) -> None:
        while True:
            await upstream.read_request()
            await upstream.send(answer("200 OK", b"done"))

    client = Client(piece(b"{}"))
    async with raw_upstream(script) as upstream:
        app = Proxied(upstream.url, transport)
        await ask(app)  # connects
        await client.converse(app, headers=[("content-length", "2")])
        await later(0.1)  # nor later on

    assert client.body == b"done"
    assert client.asked == 1


async def test_what_a_client_sends_behind_its_body_is_nothing(transport: httpx.AsyncHTTPTransport) -> None:
    client = Client(piece(b""), piece(b""), piece(b""))

    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        with anyio.fail_after(PATIENCE):
            while client.asked < 4:
                await anyio.lowlevel.checkpoint()
        await upstream.send(answer("200 OK", b"done"))

    async with raw_upstream(script) as upstream:
        await client.converse(Proxied(upstream.url, transport))

    assert client.body == b"done"
    assert not client.is_asked  # any more


async def test_receive_that_fails_while_the_client_is_watched_fails_bare(transport: httpx.AsyncHTTPTransport) -> None:
    messages = [piece(b"")]

    async def receive() -> Message:
        if not messages:
            raise RuntimeError("no more")
        return messages.pop()

    async def send(message: Message) -> None: ...

    async with raw_upstream(stalling()) as upstream:
        with anyio.fail_after(PATIENCE):
            with pytest.raises(RuntimeError, match="no more"):
                await Proxied(upstream.url, transport)(http_scope("POST", PATH), receive, send)
            await upstream.connections[0].client_left.wait()


class TwoReaders(httpx.AsyncBaseTransport):
    """Reads the request in a task of its own, as clients do that take early answers."""

    def __init__(self) -> None:
        self.read: list[bytes] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._tasks.append(asyncio.ensure_future(self._read(request)))
        await anyio.Event().wait()
        raise AssertionError

    async def _read(self, request: httpx.Request) -> None:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for body in request.stream:
            self.read.append(body)

    async def outcome(self) -> BaseException | None:
        await asyncio.wait(self._tasks)
        return self._tasks[0].exception()


async def test_client_that_leaves_is_noticed_whoever_reads_its_body() -> None:
    transport = TwoReaders()
    client = Client(piece(b"half", more=True), {"type": "http.disconnect"})

    await client.converse(Proxied("http://upstream", transport), headers=CHUNKED)

    assert transport.read == [b"half"]
    assert await transport.outcome() is not None
    assert client.received == []


@pytest.mark.parametrize(
    "pieces",
    [pytest.param((), id="no head"), pytest.param((SSE_HEAD,), id="head"), pytest.param((SSE_HEAD, EVENT), id="event")],
)
async def test_cancelled_task_is_cancelled_and_closes_the_upstream(
    pieces: tuple[bytes, ...], transport: httpx.AsyncHTTPTransport
) -> None:
    stalled = anyio.Event()

    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await upstream.send(*pieces)
        stalled.set()
        await upstream.until_client_left()

    client = Client(piece(b""))
    async with raw_upstream(script) as upstream:
        app = Proxied(upstream.url, transport)
        task = asyncio.ensure_future(client.converse(app))
        with anyio.fail_after(PATIENCE):
            await stalled.wait()
            await anyio.wait_all_tasks_blocked()
            task.cancel()
            await asyncio.wait((task,))
            await upstream.connections[0].client_left.wait()

    assert task.cancelled()
    assert app.outstanding == 0
    assert not app.is_blamed


class Closing(httpx.AsyncByteStream):
    def __init__(self) -> None:
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await anyio.Event().wait()

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()  # is not reached by a cancellation
        self.closed = True


class Streaming(httpx.AsyncBaseTransport):
    def __init__(self) -> None:
        self.stream = Closing()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=self.stream)


@pytest.mark.parametrize("ending", ["client leaves", "deadline", "cancelled"])
async def test_closing_the_upstream_is_not_cancelled(ending: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="maas_middleware")
    transport = Streaming()
    app = Proxied("http://upstream", transport, idle_timeout=0.1 if ending == "deadline" else PATIENCE)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            if ending == "cancelled":
                group.start_soon(converse, app, "POST", PATH)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
            else:
                leave_after = 1 if ending == "client leaves" else None
                conversation = await converse(app, "POST", PATH, leave_after=leave_after)
                assert isinstance(conversation.exception, MaaSError) == (ending == "deadline")

    assert transport.stream.closed
    assert app.is_blamed == (ending == "deadline")


async def test_deadline_that_is_nearer_than_the_one_before_is_kept(transport: httpx.AsyncHTTPTransport) -> None:
    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await later(0.15)  # by now it is the first byte that the timer is set for
        await upstream.send(SSE_HEAD, EVENT)
        await upstream.until_client_left()

    async with raw_upstream(script) as upstream:
        conversation = await ask(Proxied(upstream.url, transport, first_byte_timeout=60.0, idle_timeout=0.1))

    assert type(conversation.exception) is UpstreamTimeout


async def test_head_does_not_put_the_first_byte_off(transport: httpx.AsyncHTTPTransport) -> None:
    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await later(0.4)
        await upstream.send(SSE_HEAD)
        await upstream.until_client_left()

    async with raw_upstream(script) as upstream:
        began = anyio.current_time()
        conversation = await ask(Proxied(upstream.url, transport, first_byte_timeout=0.5))

    assert conversation.status == 504
    assert anyio.current_time() - began < 0.8


class SlowReader(httpx.AsyncBaseTransport):
    """Takes its time between two pieces of a request."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        body = b""
        async for piece in request.stream:
            body += piece
            await later(0.15)
        return httpx.Response(200, stream=httpx.ByteStream(body))


async def test_body_that_is_read_slowly_is_read_by_nobody_else() -> None:
    client = Client(piece(b"a", more=True), piece(b"b", more=True), piece(b"c"))

    await client.converse(Proxied("http://upstream", SlowReader(), idle_timeout=1.0), headers=CHUNKED)

    assert client.body == b"abc"


async def test_client_whose_body_took_its_time_is_watched_from_its_end_on(transport: httpx.AsyncHTTPTransport) -> None:
    left: Message = {"type": "http.disconnect"}
    client = Client(piece(b"a", more=True), piece(b"b"), left, pauses=(0.0, 0.15, 0.0))

    async with raw_upstream(stalling()) as upstream:
        await client.converse(Proxied(upstream.url, transport), headers=CHUNKED)
        with anyio.fail_after(PATIENCE):
            await upstream.connections[0].client_left.wait()

    assert client.received == []


async def test_client_that_does_not_read_the_end_is_not_the_upstreams_failure(
    transport: httpx.AsyncHTTPTransport,
) -> None:
    received = []

    async def send(message: Message) -> None:
        if message.get("more_body", True):
            received.append(message)
        else:
            await anyio.Event().wait()

    async with raw_upstream(stalling(answer("200 OK", b"done"))) as upstream:
        app = Proxied(upstream.url, transport, idle_timeout=0.1)
        with anyio.fail_after(PATIENCE):
            await app(http_scope("POST", PATH), Client(piece(b"")).receive, send)

    assert received[-1]["body"] == b"done"
    assert not app.is_blamed


async def test_upstream_that_answers_early_is_waited_for_and_not_the_rest_of_the_body() -> None:
    async def script(upstream: Connection) -> None:
        await upstream.read_until(b"half")
        await upstream.send(SSE_HEAD)
        await upstream.until_client_left()

    client = Client(piece(b"half", more=True))
    async with HTTP11Transport() as transport, raw_upstream(script) as upstream:
        app = Proxied(upstream.url, transport, first_byte_timeout=0.1, idle_timeout=60.0)
        await client.converse(app, headers=CHUNKED)

    assert client.status == 504


async def test_client_that_leaves_behind_an_early_answer_is_noticed() -> None:
    async def script(upstream: Connection) -> None:
        await upstream.read_until(b"half")
        await upstream.send(SSE_HEAD)
        await upstream.until_client_left()

    left: Message = {"type": "http.disconnect"}
    client = Client(piece(b"half", more=True), piece(b"more", more=True), left, pauses=(0.0, 0.15, 0.0))
    async with HTTP11Transport() as transport, raw_upstream(script) as upstream:
        await client.converse(Proxied(upstream.url, transport, idle_timeout=60.0), headers=CHUNKED)
        with anyio.fail_after(PATIENCE):
            await upstream.connections[0].client_left.wait()

    assert client.received == []


class Noting(httpx.AsyncBaseTransport):
    """Notes the pieces of a request."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        self.pieces += [piece async for piece in request.stream]
        return httpx.Response(200, stream=httpx.ByteStream(b"done"))


async def test_piece_without_content_could_be_taken_for_the_last_chunk_and_is_not_sent() -> None:
    transport = Noting()
    client = Client(
        piece(b"", more=True), piece(b"a", more=True), piece(b"", more=True), piece(b"b", more=True), piece(b"")
    )

    await client.converse(Proxied("http://upstream", transport), headers=CHUNKED)

    assert transport.pieces == [b"a", b"b"]


class Failing(httpx.AsyncBaseTransport):
    def __init__(self, failure: httpx.TransportError) -> None:
        self._failure = failure

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self._failure


@pytest.mark.parametrize(
    ("failure", "status", "is_blamed"),
    [
        (httpx.ConnectError("a"), 503, True),
        (httpx.ConnectTimeout("a"), 503, True),
        (httpx.PoolTimeout("a"), 503, False),
        (httpx.ReadTimeout("a"), 504, True),
        (httpx.WriteTimeout("a"), 504, True),
        (httpx.ReadError("a"), 502, True),
        (httpx.WriteError("a"), 502, True),
        (httpx.RemoteProtocolError("a"), 502, True),
        (httpx.LocalProtocolError("a"), 502, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_failure_of_a_transport_is_the_upstreams_or_not(
    failure: httpx.TransportError, status: int, is_blamed: bool
) -> None:
    app = Proxied("http://upstream", Failing(failure))

    conversation = await ask(app)

    assert conversation.status == status
    assert app.is_blamed == is_blamed
