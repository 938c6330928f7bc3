"""Event streams that are silent for a while, and readers that are slow."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import SocketAttribute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.apps.proxy import ProxyApp
from maas_middleware.catalogue import Model
from maas_middleware.context import ensure_context
from maas_middleware.errors import UpstreamError, UpstreamTimeout
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.middleware.usage import UsageMiddleware
from maas_middleware.testing.converse import Conversation, converse, http_scope

from ..raw_upstream import LAST_CHUNK, Connection, chunk, chunked_head, raw_upstream
from ..servers import serving

PATH = "/v1/chat/completions"
SSE_HEAD = chunked_head("text/event-stream; charset=utf-8")
COMMENT = b": keep-alive\n\n"
EVENT = b"data: 1\n\n"
INTERVAL = 0.03
PATIENCE = 10.0


@pytest.fixture
async def transport() -> AsyncIterator[httpx.AsyncHTTPTransport]:
    async with httpx.AsyncHTTPTransport(verify=False, trust_env=False) as transport:
        yield transport


def proxied(url: str, transport: httpx.AsyncBaseTransport, **options: Any) -> ASGIApp:
    """The proxy, and what `TierMiddleware` leaves in the context."""
    model = Model("m", upstreams=(url,))
    proxy = ProxyApp(transport=transport, **{"keepalive_interval": INTERVAL, **options})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ensure_context(scope).model = model
        await proxy(scope, receive, send)

    return app


async def later(seconds: float) -> None:
    """Let time pass, for what is told apart by nothing else."""
    with anyio.move_on_after(seconds):
        await anyio.Event().wait()


class Pausing:
    """A script that sends the pieces, and is silent before each that follows another until a test lets it go on."""

    def __init__(self, *pieces: bytes) -> None:
        self.go_on = anyio.Event()
        self._pieces = pieces

    async def __call__(self, upstream: Connection) -> None:
        await upstream.read_request()
        for piece in self._pieces:
            await upstream.send(piece)
            if piece is not self._pieces[-1]:
                await self.go_on.wait()
                self.go_on = anyio.Event()
        await upstream.until_client_left()


async def listened(app: ASGIApp, heard: Callable[[bytes], None]) -> Conversation:
    """Ask, and hear at once what was read so far."""
    body = bytearray()

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def hearing(message: Message) -> None:
            await send(message)
            body.extend(message.get("body", b""))
            heard(bytes(body))

        await app(scope, receive, hearing)

    with anyio.fail_after(PATIENCE):
        return await converse(watched, "POST", PATH)


async def ask(app: ASGIApp) -> Conversation:
    with anyio.fail_after(PATIENCE):
        return await converse(app, "POST", PATH)


async def test_model_that_thinks_before_its_first_byte_keeps_its_client(transport: httpx.AsyncHTTPTransport) -> None:
    script = Pausing(SSE_HEAD, chunk(EVENT) + LAST_CHUNK)

    def heard(body: bytes) -> None:
        if body == COMMENT * 2:
            script.go_on.set()

    async with raw_upstream(script) as upstream:
        conversation = await listened(proxied(upstream.url, transport), heard)

    assert conversation.status == 200
    assert conversation.header("content-type") == "text/event-stream; charset=utf-8"
    assert conversation.body.startswith(COMMENT * 2)
    assert conversation.body.replace(COMMENT, b"") == EVENT
    assert conversation.complete


@pytest.mark.parametrize("event", [b"data: 1\n\n", b"data: 1\r\n\r\n", b"data: 1\r\r"], ids=["lf", "crlf", "cr"])
async def test_model_that_thinks_between_two_events_keeps_its_client(
    event: bytes, transport: httpx.AsyncHTTPTransport
) -> None:
    halves = (chunk(event[:-1]) + chunk(event[-1:]), chunk(event) + LAST_CHUNK)
    script = Pausing(SSE_HEAD + halves[0], halves[1])

    def heard(body: bytes) -> None:
        if body == event + COMMENT:
            script.go_on.set()

    async with raw_upstream(script) as upstream:
        conversation = await listened(proxied(upstream.url, transport), heard)

    assert conversation.body.startswith(event + COMMENT)
    assert conversation.body.replace(COMMENT, b"") == event * 2
    assert conversation.complete


@pytest.mark.parametrize(
    ("head", "first"),
    [
        pytest.param(SSE_HEAD, chunk(b"data: 1\n"), id="within an event"),
        pytest.param(SSE_HEAD, chunk(b"data: 1\r\n"), id="within an event of crlf"),
        pytest.param(SSE_HEAD, chunk(b"data: 1\r\n\r"), id="within the end of an event"),
        pytest.param(chunked_head("application/json"), chunk(b"{\n\n"), id="json"),
        pytest.param(
            chunked_head("application/json", b"X-Accel-Buffering: no"), chunk(b"{\n\n"), id="json that says so"
        ),
        pytest.param(chunked_head("text/event-stream", b"Content-Encoding: gzip"), chunk(b"\n\n"), id="compressed"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 10\r\n\r\n", EVENT, id="sized"
        ),
    ],
)
async def test_comment_stands_nowhere_else(head: bytes, first: bytes, transport: httpx.AsyncHTTPTransport) -> None:
    rest = b"\n" if first == EVENT else chunk(b"}") + LAST_CHUNK
    script = Pausing(head + first, rest)

    async with raw_upstream(script) as upstream, anyio.create_task_group() as group:
        app = proxied(upstream.url, transport)
        conversations = []

        async def talk() -> None:
            conversations.append(await ask(app))

        group.start_soon(talk)
        await later(INTERVAL * 5)
        script.go_on.set()

    (conversation,) = conversations
    assert b"keep-alive" not in conversation.body
    assert conversation.complete


@pytest.mark.parametrize("interval", [INTERVAL, None])
async def test_without_a_head_or_the_setting_there_is_no_comment(
    interval: float | None, transport: httpx.AsyncHTTPTransport
) -> None:
    script = Pausing(*(() if interval else (SSE_HEAD,)))
    async with raw_upstream(script) as upstream:
        app = proxied(upstream.url, transport, keepalive_interval=interval, first_byte_timeout=INTERVAL * 5)
        conversation = await ask(app)

    assert conversation.status == 504
    assert conversation.json()["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize("begun", [b"", chunk(EVENT)], ids=["before the first byte", "mid-stream"])
async def test_comments_do_not_make_a_silent_upstream_look_alive(
    begun: bytes, transport: httpx.AsyncHTTPTransport
) -> None:
    timeouts = {"first_byte_timeout": 0.2, "idle_timeout": 0.2}
    async with raw_upstream(Pausing(SSE_HEAD + begun)) as upstream:
        app = proxied(upstream.url, transport, **timeouts)
        conversation = await ask(app)
        with anyio.fail_after(PATIENCE):
            await upstream.connections[0].client_left.wait()
    said = conversation.body
    await later(INTERVAL * 4)

    assert conversation.status == 200
    assert conversation.body == said
    assert said.count(COMMENT) >= 2
    assert not conversation.complete
    assert type(conversation.exception) is UpstreamTimeout


async def test_upstream_that_dies_behind_a_comment_breaks_the_stream_off(transport: httpx.AsyncHTTPTransport) -> None:
    dying = anyio.Event()

    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await upstream.send(SSE_HEAD)
        await dying.wait()

    async with raw_upstream(script) as upstream:
        app = ErrorEnvelopeMiddleware(proxied(upstream.url, transport))
        conversation = await listened(app, lambda body: dying.set())

    assert conversation.status == 200
    assert conversation.body.startswith(COMMENT)
    assert conversation.body.count(b"data: ") == 1
    assert b'"code":"upstream_error"' in conversation.body
    assert not conversation.complete


class Reader:
    """A client that does not read on from one body on, until a test lets it."""

    def __init__(self, stops_at: bytes = COMMENT, *, raises: Exception | None = None) -> None:
        self.waiting = anyio.Event()
        self.reads = anyio.Event()
        self.received: list[Message] = []
        self.is_busy = False
        self._stops_at = stops_at
        self._raises = raises
        self._asked = False

    async def receive(self) -> Message:
        if self._asked:
            await anyio.Event().wait()
        self._asked = True
        return {"type": "http.request", "body": b""}

    async def send(self, message: Message) -> None:
        assert not self.is_busy, "two sends at once"
        if message.get("body") == self._stops_at:
            if self._raises is not None:
                raise self._raises
            self.is_busy = True
            self.waiting.set()
            try:
                await self.reads.wait()
            finally:
                self.is_busy = False
        self.received.append(message)

    async def converse(self, app: ASGIApp) -> None:
        await app(http_scope("POST", PATH), self.receive, self.send)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.received)


@pytest.mark.parametrize("rest", [chunk(EVENT) + LAST_CHUNK, LAST_CHUNK], ids=["event", "end"])
async def test_slow_reader_gets_one_comment_and_then_what_came_behind_it(
    rest: bytes, transport: httpx.AsyncHTTPTransport
) -> None:
    script, client = Pausing(SSE_HEAD, rest), Reader()
    async with raw_upstream(script) as upstream, anyio.create_task_group() as group:
        with anyio.fail_after(PATIENCE):
            group.start_soon(client.converse, proxied(upstream.url, transport))
            await client.waiting.wait()
            await later(INTERVAL * 4)
            script.go_on.set()
            await later(INTERVAL)
            client.reads.set()

    assert client.body == COMMENT + (EVENT if rest != LAST_CHUNK else b"")
    assert client.received[-1]["more_body"] is False


async def test_reader_that_does_not_even_read_a_comment_does_not_hold_the_upstream(
    transport: httpx.AsyncHTTPTransport,
) -> None:
    client = Reader()
    async with raw_upstream(Pausing(SSE_HEAD)) as upstream:
        app = proxied(upstream.url, transport, first_byte_timeout=0.15)
        with anyio.fail_after(PATIENCE):
            with pytest.raises(UpstreamTimeout):
                await client.converse(app)
            await upstream.connections[0].client_left.wait()

    assert client.body == b""
    assert not client.is_busy


async def test_reader_of_an_event_is_sent_nothing_meanwhile(transport: httpx.AsyncHTTPTransport) -> None:
    script, client = Pausing(SSE_HEAD + chunk(EVENT), LAST_CHUNK), Reader(EVENT)
    async with raw_upstream(script) as upstream, anyio.create_task_group() as group:
        with anyio.fail_after(PATIENCE):
            group.start_soon(client.converse, proxied(upstream.url, transport))
            await client.waiting.wait()
            await later(INTERVAL * 4)
            script.go_on.set()
            client.reads.set()

    assert client.received[1]["body"] == EVENT
    assert client.received[-1]["more_body"] is False


async def test_silence_begins_with_each_event_anew(transport: httpx.AsyncHTTPTransport) -> None:
    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await upstream.send(SSE_HEAD)
        for _ in range(8):
            await upstream.send(chunk(EVENT))
            await later(0.1)
        await upstream.send(LAST_CHUNK)

    async with raw_upstream(script) as upstream:
        conversation = await ask(proxied(upstream.url, transport, keepalive_interval=0.35))

    assert conversation.body == EVENT * 8


async def test_comment_that_cannot_be_sent_is_a_client_that_left(transport: httpx.AsyncHTTPTransport) -> None:
    client = Reader(raises=ConnectionResetError())
    async with raw_upstream(Pausing(SSE_HEAD)) as upstream:
        with anyio.fail_after(PATIENCE):
            await client.converse(proxied(upstream.url, transport))
            await upstream.connections[0].client_left.wait()


async def test_comment_that_an_outer_app_fails_on_fails_bare(transport: httpx.AsyncHTTPTransport) -> None:
    client = Reader(raises=UpstreamError())
    async with raw_upstream(Pausing(SSE_HEAD)) as upstream:
        with anyio.fail_after(PATIENCE), pytest.raises(UpstreamError):
            await client.converse(proxied(upstream.url, transport))


async def test_comments_pass_the_reading_of_usage(transport: httpx.AsyncHTTPTransport) -> None:
    event = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n'
    end = b"data: [DONE]\n\n"
    script = Pausing(SSE_HEAD, chunk(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'), chunk(event + end), b"")

    async def serve(upstream: Connection) -> None:
        await script(upstream)

    def heard(body: bytes) -> None:
        if body.endswith(COMMENT) or body.endswith(end):
            script.go_on.set()

    async with raw_upstream(serve) as upstream:
        asked = {"model": "m", "stream": True, "messages": [], "stream_options": {"include_usage": True}}
        scopes: list[Scope] = []
        inner = UsageMiddleware(proxied(upstream.url, transport, idle_timeout=0.5))
        body = bytearray()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def hearing(message: Message) -> None:
                await send(message)
                body.extend(message.get("body", b""))
                heard(bytes(body))

            scopes.append(scope)
            await inner(scope, receive, hearing)

        with anyio.fail_after(PATIENCE):
            await converse(app, "POST", PATH, json=asked)

    assert body.startswith(COMMENT + b"data: {")
    context = ensure_context(scopes[0])
    assert context.usage is not None
    assert (context.usage.total, context.produced) == (3, 1)


UNLIMITED = httpx.Limits(max_connections=None)
SMALL = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)]


async def test_sixty_four_slow_readers_hold_the_upstream_back() -> None:
    """What is held between is what the kernel buffers: it is the same however much the upstream has to say."""

    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        upstream.stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        await upstream.send(SSE_HEAD)
        piece = chunk(b"data: %b\n\n" % (b"x" * (64 << 10)))
        while True:
            await upstream.send(piece)

    async with (
        httpx.AsyncHTTPTransport(verify=False, trust_env=False, socket_options=SMALL, limits=UNLIMITED) as transport,
        raw_upstream(script) as upstream,
        serving(proxied(upstream.url, transport, idle_timeout=60), lifespan="off") as url,
        AsyncExitStack() as clients,
    ):
        for _ in range(64):
            bare = socket.socket()
            bare.setsockopt(*SMALL[0])
            bare.connect(("127.0.0.1", int(url.rpartition(":")[2])))
            bare.setblocking(False)
            client = await clients.enter_async_context(await anyio.abc.SocketStream.from_socket(bare))
            await client.send(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" % PATH.encode())
            await client.receive()
        with anyio.fail_after(PATIENCE * 2):
            before, now = -1, 0
            while now > before:
                for _ in range(20):
                    await anyio.wait_all_tasks_blocked()
                before, now = now, sum(connection.sent for connection in upstream.connections)

    assert 0 < now < 64 * (8 << 20)  # the kernel alone buffers more than 4 MiB
