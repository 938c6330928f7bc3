from __future__ import annotations

import gzip
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import SocketAttribute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.apps.proxy import ProxyApp
from maas_middleware.catalogue import Model
from maas_middleware.context import MaaSContext, ensure_context
from maas_middleware.errors import UpstreamError, UpstreamTimeout
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.testing.converse import Conversation, converse, http_scope

from ..raw_upstream import LAST_CHUNK, Connection, Request, Script, answer, chunk, chunked_head, raw_upstream, stalling
from ..servers import serving

PATH = "/v1/chat/completions"
ALIAS = "sim-7b-internal"
JSON_HEAD = chunked_head("application/json")
SSE_HEAD = chunked_head("text/event-stream; charset=utf-8")
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\n"
PATIENCE = 10.0
TLS = ssl.create_default_context()  # takes longer to make than most tests take


@pytest.fixture
async def transport() -> AsyncIterator[httpx.AsyncHTTPTransport]:
    """A real transport; at the end of the test no connection of it may be in use."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncHTTPTransport(verify=TLS, limits=limits) as transport:
        yield transport
        assert busy_connections(transport) == []


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="maas_middleware")
    return caplog


def connections(transport: httpx.AsyncHTTPTransport) -> list[str]:
    return [connection.info() for connection in transport._pool.connections]


def busy_connections(transport: httpx.AsyncHTTPTransport) -> list[str]:
    return [connection.info() for connection in transport._pool.connections if not connection.is_idle()]


def proxied(url: str, transport: httpx.AsyncBaseTransport, *, api_key: str | None = None, **timeouts: Any) -> ASGIApp:
    """The proxy, and what `TierMiddleware` leaves in the context."""
    model = Model(id="simulator", upstream_model=ALIAS, upstreams=(url,), api_key=api_key)
    proxy = ProxyApp(transport=transport, **timeouts)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ensure_context(scope).model = model
        await proxy(scope, receive, send)

    return app


@asynccontextmanager
async def gateway_client(app: ASGIApp) -> AsyncIterator[Connection]:
    """A client's bare socket, connected to a real server of the app."""
    async with serving(app, lifespan="off") as url:
        port = int(url.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            yield Connection(stream)


def sending(*pieces: bytes) -> Script:
    """Read a request, send the pieces, and close."""

    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await upstream.send(*pieces)

    return script


async def resetting(upstream: Connection) -> None:
    await upstream.read_request()
    linger = b"\1\0\0\0\0\0\0\0"
    upstream.stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def error_of(conversation: Conversation) -> dict[str, Any]:
    assert conversation.exception is None
    assert conversation.complete
    assert conversation.header("content-type") == "application/json"
    assert conversation.header("content-length") == str(len(conversation.body))
    answered = conversation.json()
    assert list(answered) == ["error"]
    error = answered["error"]
    assert isinstance(error, dict)
    return error


def assert_secret(
    conversation: Conversation, logged: pytest.LogCaptureFixture, *secrets: str, also: Sequence[str] = ()
) -> None:
    """Neither the answer nor the log says anything of where, or by which name, the model is served."""
    said = f"{conversation.body!r}\n{conversation.headers}\n{logged.text}"
    assert [secret for secret in (*secrets, *also, "127.0.0.1", ALIAS, "Traceback") if secret in said] == []


async def test_answer_of_a_real_server_is_relayed_as_it_is(transport: httpx.AsyncHTTPTransport) -> None:
    async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
        request = await receive()
        headers = [(b"content-type", b"application/json"), (b"x-method", scope["method"].encode())]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": request["body"][::-1]})

    async with serving(upstream, lifespan="off") as url:
        conversation = await converse(
            proxied(url, transport), "POST", PATH, body=b'{"a":1}', headers=[("content-length", "7")]
        )

    assert conversation.status == 201
    assert conversation.body == b'}1:"a"{'
    assert conversation.headers == [("content-type", "application/json"), ("x-method", "POST")]
    assert conversation.complete


async def test_finished_connection_serves_the_next_request(transport: httpx.AsyncHTTPTransport) -> None:
    async def script(upstream: Connection) -> None:
        for number in (b"1", b"2"):
            await upstream.read_request()
            await upstream.send(answer("200 OK", number))
        await upstream.until_client_left()

    async with raw_upstream(script) as upstream:
        app = proxied(upstream.url, transport)
        conversations = [await converse(app, "POST", PATH) for _ in range(2)]

        assert [conversation.body for conversation in conversations] == [b"1", b"2"]
        assert len(upstream.connections) == 1
        assert len(connections(transport)) == 1


async def test_empty_answer_is_an_answer(transport: httpx.AsyncHTTPTransport) -> None:
    async with raw_upstream(sending(b"HTTP/1.1 204 No Content\r\n\r\n")) as upstream:
        conversation = await converse(proxied(upstream.url, transport), "POST", PATH)

    assert conversation.status == 204
    assert conversation.body == b""
    assert conversation.complete


async def test_interim_answers_are_passed_over(transport: httpx.AsyncHTTPTransport) -> None:
    hints = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with raw_upstream(sending(hints + answer("200 OK", b"done"))) as upstream:
        conversation = await converse(proxied(upstream.url, transport), "POST", PATH)

    assert conversation.status == 200
    assert conversation.headers == [("content-length", "4")]
    assert conversation.body == b"done"


async def test_fifty_requests_at_once_all_finish(transport: httpx.AsyncHTTPTransport) -> None:
    everybody_is_here = anyio.Event()
    arrived: list[Message] = []

    async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
        arrived.append(await receive())
        if len(arrived) == 50:
            everybody_is_here.set()
        await everybody_is_here.wait()
        await send({"type": "http.response.start", "status": 200})
        for piece in (b"<", scope["query_string"], b">"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    conversations: dict[int, Conversation] = {}

    async def call(app: ASGIApp, number: int) -> None:
        conversations[number] = await converse(
            app,
            "POST",
            PATH,
            body=b"x",
            headers=[("content-length", "1")],
            scope={"query_string": b"%d" % number},
        )

    with anyio.fail_after(PATIENCE):
        async with serving(upstream, lifespan="off") as url, anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(call, proxied(url, transport), number)

    assert len(conversations) == 50
    for number, conversation in conversations.items():
        assert conversation.complete
        assert conversation.body == b"<%d>" % number


async def test_chunk_reaches_the_client_before_the_upstream_sends_the_next(
    transport: httpx.AsyncHTTPTransport,
) -> None:
    seen = [anyio.Event() for _ in range(3)]

    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await upstream.send(SSE_HEAD)
        for number, event in enumerate(seen):
            await upstream.send(chunk(b"data: %d\n\n" % number))
            await event.wait()
        await upstream.send(LAST_CHUNK)

    async with raw_upstream(script) as upstream, gateway_client(proxied(upstream.url, transport)) as client:
        await client.send(POST + b"Content-Length: 0\r\n\r\n")
        with anyio.fail_after(PATIENCE):
            for number, event in enumerate(seen):
                received = await client.read_until(b"data: %d\n\n" % number)
                event.set()
            received = await client.read_until(LAST_CHUNK)

    assert received.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_piece_of_the_request_reaches_the_upstream_before_the_client_sends_the_next(
    transport: httpx.AsyncHTTPTransport,
) -> None:
    seen = anyio.Event()

    async def script(upstream: Connection) -> None:
        await upstream.read_until(chunk(b"first"))
        seen.set()
        await upstream.read_until(chunk(b"second") + LAST_CHUNK)
        await upstream.send(answer("200 OK", b"read"))

    async with raw_upstream(script) as upstream, gateway_client(proxied(upstream.url, transport)) as client:
        with anyio.fail_after(PATIENCE):
            await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"first"))
            await seen.wait()
            await client.send(chunk(b"second") + LAST_CHUNK)
            await client.read_until(b"\r\n\r\nread")


async def test_slow_reader_holds_the_upstream_back() -> None:
    total, piece, bound = 32 << 20, bytes(64 << 10), 16 << 20  # the kernel buffers up to 4 MiB, we next to nothing

    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        upstream.stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        for _ in range(total // len(piece)):
            await upstream.send(piece)

    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)]
    async with (
        httpx.AsyncHTTPTransport(verify=TLS, socket_options=options) as transport,
        raw_upstream(script) as upstream,
        serving(proxied(upstream.url, transport), lifespan="off") as url,
    ):
        bare = socket.socket()
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        bare.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        bare.setblocking(False)
        with anyio.fail_after(PATIENCE * 2):
            async with await anyio.abc.SocketStream.from_socket(bare) as stream:
                client = Connection(stream)
                await client.send(POST + b"Content-Length: 0\r\n\r\n")
                received = len(await client.read_until(b"\r\n\r\n"))
                before = -1
                while upstream.connections[0].sent > before:
                    before = upstream.connections[0].sent
                    for _ in range(20):
                        await anyio.wait_all_tasks_blocked()
                ahead = [before]
                while received < total:
                    received += len(await stream.receive())
                    ahead.append(upstream.connections[0].sent - received)

    assert max(ahead) < bound


@pytest.mark.parametrize(
    ("pieces", "seen"),
    [
        pytest.param((), b"", id="before the answer"),
        pytest.param((SSE_HEAD,), b"", id="before the first byte"),
        pytest.param((SSE_HEAD, chunk(b"data: 1\n\n")), b"data: 1\n\n", id="mid-stream"),
    ],
)
async def test_client_that_leaves_closes_the_upstream_at_once(
    pieces: tuple[bytes, ...], seen: bytes, transport: httpx.AsyncHTTPTransport, logged: pytest.LogCaptureFixture
) -> None:
    stalled, ended = anyio.Event(), anyio.Event()

    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await upstream.send(*pieces)
        stalled.set()
        await upstream.until_client_left()

    async with raw_upstream(script) as upstream:
        proxy = ErrorEnvelopeMiddleware(proxied(upstream.url, transport))

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await proxy(scope, receive, send)
            ended.set()

        async with gateway_client(app) as client:
            await client.send(POST + b"Content-Length: 2\r\n\r\n{}")
            with anyio.fail_after(PATIENCE):
                await stalled.wait()
                if seen:
                    await client.read_until(seen)
                await client.stream.aclose()
                await upstream.connections[0].client_left.wait()
                await ended.wait()

    assert connections(transport) == []
    assert logged.messages == []


@pytest.mark.parametrize(
    "half",
    [
        pytest.param(b"Content-Length: 8\r\n\r\nhalf", id="sized"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"half"), id="chunked"),
    ],
)
async def test_half_a_request_is_never_taken_for_whole(
    half: bytes, transport: httpx.AsyncHTTPTransport, logged: pytest.LogCaptureFixture
) -> None:
    half_read, ended = anyio.Event(), anyio.Event()

    async def script(upstream: Connection) -> None:
        await upstream.read_until(b"half")
        half_read.set()
        await upstream.until_client_left()

    async with raw_upstream(script) as upstream:
        proxy = proxied(upstream.url, transport)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await proxy(scope, receive, send)
            ended.set()

        async with gateway_client(app) as client:
            with anyio.fail_after(PATIENCE):
                await client.send(POST + half)
                await half_read.wait()
                await client.stream.aclose()
                await upstream.connections[0].client_left.wait()
                await ended.wait()

    assert LAST_CHUNK not in upstream.connections[0].received
    assert connections(transport) == []
    assert logged.messages == []


async def test_client_that_leaves_while_the_upstream_does_not_read_is_noticed(
    transport: httpx.AsyncHTTPTransport,
) -> None:
    async def script(upstream: Connection) -> None:
        await upstream.read_until(b"\r\n\r\n")
        await left.wait()
        await upstream.until_client_left()

    left = anyio.Event()
    body = bytes(16 << 20)
    async with raw_upstream(script) as upstream:
        with anyio.fail_after(PATIENCE):
            conversation = await converse(
                proxied(upstream.url, transport),
                "POST",
                PATH,
                body=body,
                headers=[("content-length", str(len(body)))],
                leave_after=0,
            )
            left.set()
            await upstream.connections[0].client_left.wait()

    assert conversation.messages == []
    assert conversation.exception is None


class _Endless(httpx.AsyncByteStream):
    def __init__(self, piece: bytes) -> None:
        self.closed = False
        self._piece = piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await anyio.lowlevel.checkpoint()
            yield self._piece

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True


class EagerTransport(httpx.AsyncBaseTransport):
    """Answers without reading the request, and without an end."""

    def __init__(self, status: int) -> None:
        self.stream = _Endless(b"more")
        self._status = status

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(self._status, stream=self.stream)


async def test_client_that_leaves_is_noticed_although_its_request_was_not_read() -> None:
    transport = EagerTransport(200)

    with anyio.fail_after(PATIENCE):
        conversation = await converse(
            proxied("http://upstream", transport), "POST", PATH, body=[b"a", b"b"], leave_after=3
        )

    assert conversation.chunks == [b"more"] * 3
    assert not conversation.complete
    assert transport.stream.closed


async def test_send_that_fails_is_a_client_that_left(
    transport: httpx.AsyncHTTPTransport, logged: pytest.LogCaptureFixture
) -> None:
    """ASGI 2.4: a server may raise OSError for what is sent to a client that is gone."""
    requests: list[Message] = [{"type": "http.request", "body": b""}]

    async def receive() -> Message:
        if not requests:
            await anyio.sleep_forever()
        return requests.pop()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise ConnectionResetError

    scope = http_scope("POST", PATH)
    async with raw_upstream(stalling(SSE_HEAD, chunk(b"data: 1\n\n"))) as upstream:
        with anyio.fail_after(PATIENCE):
            await proxied(upstream.url, transport)(scope, receive, send)
            await upstream.connections[0].client_left.wait()

    assert connections(transport) == []
    assert logged.messages == []


async def test_cancelled_request_closes_the_upstream(transport: httpx.AsyncHTTPTransport) -> None:
    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await upstream.send(SSE_HEAD, chunk(b"data: 1\n\n"))
        group.cancel_scope.cancel()
        await upstream.until_client_left()

    async with raw_upstream(script) as upstream:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(converse, proxied(upstream.url, transport), "POST", PATH)
            await upstream.connections[0].client_left.wait()

    assert connections(transport) == []


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(sending(b"SSH-2.0-OpenSSH_9.2p1 sim-7b-internal\r\n"), id="garbage"),
        pytest.param(sending(), id="closes before the headers"),
        pytest.param(resetting, id="resets before the headers"),
        pytest.param(sending(b"HTTP/1.1 200 OK\r\nContent-"), id="closes within the headers"),
        pytest.param(sending(JSON_HEAD), id="closes before the first chunk"),
        pytest.param(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"), id="closes before the first byte"),
        pytest.param(sending(JSON_HEAD + b"zz\r\nsim-7b-internal"), id="a chunk of no size"),
        pytest.param(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), id="two lengths"),
        pytest.param(sending(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000), id="headers without an end"),
        pytest.param(sending(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), id="another protocol"),
    ],
)
async def test_upstream_that_fails_before_the_first_byte_is_502(
    script: Script, transport: httpx.AsyncHTTPTransport, logged: pytest.LogCaptureFixture
) -> None:
    async with raw_upstream(script) as upstream:
        with anyio.fail_after(PATIENCE):
            conversation = await converse(proxied(upstream.url, transport), "POST", PATH)

    assert conversation.status == 502
    assert error_of(conversation) == {
        "message": "The model failed to answer",
        "type": "server_error",
        "param": None,
        "code": "upstream_error",
    }
    assert_secret(conversation, logged, upstream.address)
    assert connections(transport) == []


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(stalling(), id="no answer"),
        pytest.param(stalling(b"HTTP/1.1 200"), id="half a head"),
        pytest.param(stalling(SSE_HEAD), id="headers of a stream without a byte"),
        pytest.param(stalling(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"), id="headers of a body without a byte"),
        pytest.param(stalling(b"HTTP/1.1 400 Bad\r\nContent-Length: 9\r\n\r\n{"), id="half an error"),
    ],
)
async def test_upstream_that_stalls_before_the_first_byte_is_504(
    script: Script, transport: httpx.AsyncHTTPTransport, logged: pytest.LogCaptureFixture
) -> None:
    async with raw_upstream(script) as upstream:
        app = proxied(upstream.url, transport, first_byte_timeout=0.1, idle_timeout=0.1)
        with anyio.fail_after(PATIENCE):
            conversation = await converse(app, "POST", PATH)
            await upstream.connections[0].client_left.wait()

    assert conversation.status == 504
    assert error_of(conversation) == {
        "message": "The model took too long to answer",
        "type": "server_error",
        "param": None,
        "code": "upstream_timeout",
    }
    assert_secret(conversation, logged, upstream.address)
    assert connections(transport) == []


async def test_error_that_drips_is_504() -> None:
    app = proxied("http://upstream", EagerTransport(400), idle_timeout=0.01)

    with anyio.fail_after(PATIENCE):
        conversation = await converse(app, "POST", PATH)

    assert conversation.status == 504
    assert error_of(conversation)["code"] == "upstream_timeout"


async def test_status_that_is_no_answer_is_502() -> None:
    conversation = await converse(proxied("http://upstream", EagerTransport(101), idle_timeout=5), "POST", PATH)

    assert conversation.status == 502
    assert error_of(conversation)["code"] == "upstream_error"


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert isinstance(port, int)
        return port


async def test_upstream_that_refuses_the_connection_is_503(
    transport: httpx.AsyncHTTPTransport, logged: pytest.LogCaptureFixture
) -> None:
    port = unused_port()

    conversation = await converse(proxied(f"http://127.0.0.1:{port}", transport), "POST", PATH)

    assert conversation.status == 503
    assert error_of(conversation) == {
        "message": "The model is not available at the moment",
        "type": "server_error",
        "param": None,
        "code": "upstream_unavailable",
    }
    assert conversation.header("retry-after") == "2"
    assert_secret(conversation, logged, str(port))


async def test_upstream_that_does_not_exist_is_503(
    transport: httpx.AsyncHTTPTransport, logged: pytest.LogCaptureFixture
) -> None:
    conversation = await converse(proxied("http://model.invalid:8000", transport), "POST", PATH)

    assert conversation.status == 503
    assert error_of(conversation)["code"] == "upstream_unavailable"
    assert_secret(conversation, logged, "model.invalid")


async def test_upstream_that_does_not_accept_the_connection_is_503(transport: httpx.AsyncHTTPTransport) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with socket.socket() as first, socket.socket() as second:
            for filler in (first, second):
                filler.setblocking(False)
                filler.connect_ex(address)
            app = proxied(f"http://127.0.0.1:{address[1]}", transport, connect_timeout=0.1)
            with anyio.fail_after(PATIENCE):
                conversation = await converse(app, "POST", PATH)

    assert conversation.status == 503
    assert error_of(conversation)["code"] == "upstream_unavailable"


async def test_full_pool_is_503() -> None:
    limits = httpx.Limits(max_connections=1)
    async with (
        httpx.AsyncHTTPTransport(verify=TLS, limits=limits) as transport,
        raw_upstream(stalling()) as upstream,
        anyio.create_task_group() as group,
    ):
        app = proxied(upstream.url, transport, connect_timeout=0.1)
        group.start_soon(converse, app, "POST", PATH)
        await anyio.wait_all_tasks_blocked()

        with anyio.fail_after(PATIENCE):
            conversation = await converse(app, "POST", PATH)

        group.cancel_scope.cancel()

    assert conversation.status == 503
    assert error_of(conversation)["code"] == "upstream_unavailable"
    assert conversation.header("retry-after") == "2"


@pytest.mark.parametrize(
    ("head", "rest", "error"),
    [
        pytest.param(SSE_HEAD, b"", UpstreamError, id="closes between two chunks"),
        pytest.param(SSE_HEAD, b"5\r\nsi", UpstreamError, id="closes within a chunk"),
        pytest.param(SSE_HEAD, b"\xff\xfe127.0.0.1\r\n", UpstreamError, id="garbage instead of a chunk"),
        pytest.param(JSON_HEAD, b"", UpstreamError, id="json"),
        pytest.param(SSE_HEAD, None, UpstreamTimeout, id="stalls"),
        pytest.param(JSON_HEAD, None, UpstreamTimeout, id="json stalls"),
    ],
)
async def test_answer_that_breaks_off_stays_unfinished(
    head: bytes,
    rest: bytes | None,
    error: type[Exception],
    transport: httpx.AsyncHTTPTransport,
    logged: pytest.LogCaptureFixture,
) -> None:
    begun = (head, chunk(b"data: 1\n\n"))
    async with raw_upstream(stalling(*begun) if rest is None else sending(*begun, rest)) as upstream:
        with anyio.fail_after(PATIENCE):
            conversation = await converse(proxied(upstream.url, transport, idle_timeout=0.1), "POST", PATH)

    assert conversation.status == 200
    assert conversation.body.startswith(b"data: 1\n\n")
    assert not conversation.complete
    assert type(conversation.exception) is error
    assert conversation.exception.__suppress_context__
    assert_secret(conversation, logged, upstream.address)
    assert connections(transport) == []


async def test_body_shorter_than_its_length_stays_unfinished(transport: httpx.AsyncHTTPTransport) -> None:
    async with raw_upstream(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")) as upstream:
        conversation = await converse(proxied(upstream.url, transport), "POST", PATH)

    assert conversation.body == b"{"
    assert not conversation.complete
    assert isinstance(conversation.exception, UpstreamError)


async def read_broken(response: httpx.Response) -> bytes:
    """Read the body of an answer whose connection is broken off before its end."""
    body = b""
    try:
        async for piece in response.aiter_raw():
            body += piece
    except httpx.RemoteProtocolError:
        return body
    raise AssertionError("the answer has a proper end")


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        pytest.param(sending, "upstream_error", "The model failed to answer", id="dies"),
        pytest.param(stalling, "upstream_timeout", "The model took too long to answer", id="stalls"),
    ],
)
@pytest.mark.parametrize(
    ("said", "separator"),
    [
        pytest.param(b"data: 1\n\n", b"", id="between events"),
        pytest.param(b'data: 1\n\ndata: {"a', b"\n\n", id="within an event"),
    ],
)
async def test_event_stream_that_breaks_off_gets_one_error_event_and_then_the_connection_breaks(
    script: Any,
    code: str,
    message: str,
    said: bytes,
    separator: bytes,
    transport: httpx.AsyncHTTPTransport,
    logged: pytest.LogCaptureFixture,
) -> None:
    async with raw_upstream(script(SSE_HEAD, chunk(said))) as upstream, AsyncExitStack() as stack:
        app = ErrorEnvelopeMiddleware(proxied(upstream.url, transport, idle_timeout=0.1))
        url = await stack.enter_async_context(serving(app, lifespan="off"))
        client = await stack.enter_async_context(
            httpx.AsyncClient(verify=TLS, trust_env=False, headers={"x-request-id": "r1"})
        )
        with anyio.fail_after(PATIENCE):
            async with client.stream("POST", url + PATH) as response:
                body = await read_broken(response)

    assert response.status_code == 200
    assert body.startswith(said + separator + b"data: ")
    event = body.removeprefix(said + separator)
    assert event.count(b"\n") == 2
    assert event.endswith(b"\n\n")
    assert json.loads(event.removeprefix(b"data: "))["error"] == {
        "message": f"{message} (request r1)",
        "type": "server_error",
        "param": None,
        "code": code,
    }
    (record,) = [record for record in logged.records if record.name == "maas_middleware"]
    assert record.getMessage() == f"broke off the answer to request r1: {code}"
    assert record.exc_info is None


async def test_json_that_breaks_off_is_cut_and_then_the_connection_breaks(
    transport: httpx.AsyncHTTPTransport,
) -> None:
    async with raw_upstream(sending(JSON_HEAD, chunk(b'{"id": '))) as upstream, AsyncExitStack() as stack:
        app = ErrorEnvelopeMiddleware(proxied(upstream.url, transport))
        url = await stack.enter_async_context(serving(app, lifespan="off"))
        client = await stack.enter_async_context(httpx.AsyncClient(verify=TLS, trust_env=False))
        with anyio.fail_after(PATIENCE):
            async with client.stream("POST", url + PATH) as response:
                body = await read_broken(response)

    assert body == b'{"id": '


LONG = "x" * 200_000


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        pytest.param(
            "400 Bad Request",
            b'{"error": {"message": "bad prompt", "type": "BadRequestError", "param": "prompt", "code": 400}}',
            (400, "invalid_request_error", "invalid_request", "prompt", "bad prompt"),
            id="400 of vllm",
        ),
        pytest.param(
            "400 Bad Request",
            b'{"error": {"message": "too long", "type": "x", "param": null, "code": "context_length_exceeded"}}',
            (400, "invalid_request_error", "context_length_exceeded", None, "too long"),
            id="400 of openai",
        ),
        pytest.param(
            "422 Unprocessable Entity",
            b'{"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}]}',
            (422, "invalid_request_error", "unprocessable_entity", "messages", "Field required"),
            id="422 of fastapi",
        ),
        pytest.param(
            "413 Content Too Large",
            b"",
            (413, "invalid_request_error", "request_too_large", None, "The model refused the request"),
            id="413 without a body",
        ),
        pytest.param(
            "400 Bad Request",
            b"<html><h1>sim-7b-internal at 127.0.0.1</h1></html>",
            (400, "invalid_request_error", "invalid_request", None, "The model refused the request"),
            id="400 in html",
        ),
        pytest.param(
            "400 Bad Request",
            b'{"error": {"message": "' + LONG.encode() + b'"}}',
            (400, "invalid_request_error", "invalid_request", None, "The model refused the request"),
            id="400 of a huge body",
        ),
        pytest.param(
            "429 Too Many Requests",
            b'{"error": {"message": "slow down", "code": 429}}',
            (429, "rate_limit_error", "rate_limit_exceeded", None, "slow down"),
            id="429",
        ),
        pytest.param(
            "404 Not Found",
            b'{"error": {"message": "The model `x` does not exist. Valid aliases: sim-7b-internal.", "code": 404}}',
            (404, "invalid_request_error", "model_not_found", "model", "The model does not exist"),
            id="404 that names aliases",
        ),
        pytest.param(
            "401 Unauthorized",
            b'{"error": "Unauthorized by 127.0.0.1"}',
            (502, "server_error", "upstream_error", None, "The model failed to answer"),
            id="401 is ours",
        ),
        pytest.param(
            "403 Forbidden",
            b'{"error": {"message": "127.0.0.1 knows no such key"}}',
            (502, "server_error", "upstream_error", None, "The model failed to answer"),
            id="403 is ours",
        ),
        pytest.param(
            "307 Temporary Redirect",
            b"to 127.0.0.1",
            (502, "server_error", "upstream_error", None, "The model failed to answer"),
            id="redirect",
        ),
        pytest.param(
            "304 Not Modified",
            b"",
            (502, "server_error", "upstream_error", None, "The model failed to answer"),
            id="not modified",
        ),
        pytest.param(
            "500 Internal Server Error",
            b"Traceback (most recent call last): sim-7b-internal",
            (502, "server_error", "upstream_error", None, "The model failed to answer"),
            id="500 with a stack",
        ),
        pytest.param(
            "501 Not Implemented",
            b'{"error": {"message": "sim-7b-internal", "code": 501}}',
            (502, "server_error", "upstream_error", None, "The model failed to answer"),
            id="501",
        ),
        pytest.param(
            "503 Service Unavailable",
            b'{"error": {"message": "sim-7b-internal is loading"}}',
            (503, "server_error", "upstream_unavailable", None, "The model is not available at the moment"),
            id="503",
        ),
        pytest.param(
            "504 Gateway Timeout",
            b"<html>127.0.0.1</html>",
            (504, "server_error", "upstream_timeout", None, "The model took too long to answer"),
            id="504",
        ),
        pytest.param(
            "999 What",
            b"sim-7b-internal",
            (502, "server_error", "upstream_error", None, "The model failed to answer"),
            id="no status at all",
        ),
    ],
)
async def test_error_of_the_upstream_is_answered_in_our_envelope(
    status: str,
    body: bytes,
    expected: tuple[int, str, str, str | None, str],
    transport: httpx.AsyncHTTPTransport,
    logged: pytest.LogCaptureFixture,
) -> None:
    leaky = [b"Location: http://127.0.0.1/", b"Server: sim-7b-internal", b"Set-Cookie: a=1", b"WWW-Authenticate: Basic"]
    if status.startswith("304"):
        leaky.append(b"ETag: x")
    async with raw_upstream(sending(answer(status, body, *leaky))) as upstream:
        with anyio.fail_after(PATIENCE):
            conversation = await converse(proxied(upstream.url, transport), "POST", PATH)

    error = error_of(conversation)
    assert (conversation.status, error["type"], error["code"], error["param"], error["message"]) == expected
    names = {name for name, _ in conversation.headers}
    assert names == {"content-type", "content-length"} | ({"retry-after"} if conversation.status == 503 else set())
    assert_secret(conversation, logged, upstream.address, LONG[:1000])
    is_for_operators = conversation.status >= 500 or conversation.status == 404
    assert (f"the upstream of model simulator answered {status[:3]}" in logged.text) == is_for_operators


async def test_compressed_error_keeps_its_status(transport: httpx.AsyncHTTPTransport) -> None:
    body = gzip.compress(b'{"error": {"message": "bad prompt"}}')
    async with raw_upstream(sending(answer("400 Bad Request", body, b"Content-Encoding: gzip"))) as upstream:
        conversation = await converse(
            proxied(upstream.url, transport), "POST", PATH, headers=[("accept-encoding", "gzip")]
        )

    assert conversation.status == 400
    assert error_of(conversation)["message"] == "The model refused the request"
    assert conversation.header("content-encoding") is None


@pytest.mark.parametrize(
    ("status", "given", "expected"),
    [
        pytest.param("429 Too Many Requests", (b"Retry-After: 7",), [("retry-after", "7")], id="429"),
        pytest.param(
            "429 Too Many Requests",
            (b"Retry-After-Ms: 6500", b"Retry-After: 7", b"X-Should-Retry: false", b"X-RateLimit-Limit-Requests: 9"),
            [("retry-after-ms", "6500"), ("retry-after", "7"), ("x-should-retry", "false")],
            id="429 with all of them",
        ),
        pytest.param("503 Service Unavailable", (b"retry-after: 30",), [("retry-after", "30")], id="503"),
        pytest.param("503 Service Unavailable", (), [("retry-after", "2")], id="503 without one"),
        pytest.param(
            "503 Service Unavailable",
            (b"Retry-After-Ms: 500",),
            [("retry-after", "2"), ("retry-after-ms", "500")],
            id="503 with milliseconds only",
        ),
        pytest.param("500 Internal Server Error", (b"Retry-After: 7",), [], id="500"),
        pytest.param("200 OK", (b"Retry-After: 7",), [], id="200"),
    ],
)
async def test_retry_after_of_a_refusal_is_relayed(
    status: str, given: tuple[bytes, ...], expected: list[tuple[str, str]], transport: httpx.AsyncHTTPTransport
) -> None:
    async with raw_upstream(sending(answer(status, b"", *given))) as upstream:
        conversation = await converse(proxied(upstream.url, transport), "POST", PATH)

    assert conversation.complete
    headers = [pair for pair in conversation.headers if not pair[0].startswith("content-")]
    assert headers == expected


async def test_refusal_passes_the_error_middleware_as_it_is(transport: httpx.AsyncHTTPTransport) -> None:
    refusal = answer("429 Too Many Requests", b'{"error": {"message": "slow down"}}', b"Retry-After: 7")
    async with raw_upstream(sending(refusal)) as upstream:
        app = ErrorEnvelopeMiddleware(proxied(upstream.url, transport))
        conversation = await converse(app, "POST", PATH, headers=[("x-request-id", "r1")])

    assert conversation.status == 429
    assert error_of(conversation)["message"] == "slow down"
    assert conversation.header("retry-after") == "7"
    assert conversation.header("x-request-id") == "r1"


async def test_headers_of_the_upstream_are_its_own_business(transport: httpx.AsyncHTTPTransport) -> None:
    head = answer(
        "200 OK",
        b"{}",
        b"Content-Type: application/json",
        b"X-Many: 1",
        b"Connection: keep-alive, X-Hop",
        b"Connection: x-other-hop",
        b"X-Hop: 1",
        b"X-Other-Hop: 1",
        b"Keep-Alive: timeout=5",
        b"Proxy-Authenticate: Basic",
        b"Trailer: x",
        b"Upgrade: h2c",
        b"Set-Cookie: session=1",
        b"Set-Cookie: session=2",
        b"Server: sim-7b-internal",
        b"Date: Mon, 23 Nov 2026 06:00:00 GMT",
        b"Via: 1.1 127.0.0.1",
        b"Location: http://127.0.0.1/",
        b"X-Powered-By: vllm",
        b"X-Request-Id: theirs",
        b"X-RateLimit-Remaining-Requests: 9",
        b"RateLimit: x",
        b"RateLimit-Policy: x",
        b"X-ODHU-Usage-Total-Tokens: 1",
        b"x-many: 2",
    )
    async with raw_upstream(sending(head)) as upstream:
        conversation = await converse(proxied(upstream.url, transport), "POST", PATH)

    assert conversation.headers == [
        ("content-length", "2"),
        ("content-type", "application/json"),
        ("x-many", "1"),
        ("x-many", "2"),
    ]


async def test_event_stream_is_not_to_be_buffered_by_proxies(transport: httpx.AsyncHTTPTransport) -> None:
    head = chunked_head("text/event-stream", b"Cache-Control: max-age=60", b"X-Accel-Buffering: yes")
    async with raw_upstream(sending(head, chunk(b"data: 1\n\n"), LAST_CHUNK)) as upstream:
        conversation = await converse(proxied(upstream.url, transport), "POST", PATH)

    assert conversation.headers == [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
    ]
    assert conversation.body == b"data: 1\n\n"
    assert conversation.complete


async def forwarded(
    transport: httpx.AsyncHTTPTransport,
    method: str = "POST",
    path: str = PATH,
    *,
    base: str = "",
    api_key: str | None = None,
    **options: Any,
) -> Request:
    """The request that the upstream reads when a client sends this one."""
    requests: list[Request] = []

    async def script(upstream: Connection) -> None:
        requests.append(await upstream.read_request())
        await upstream.send(answer("200 OK"))

    async with raw_upstream(script) as upstream:
        app = proxied(upstream.url + base, transport, api_key=api_key)
        with anyio.fail_after(PATIENCE):
            conversation = await converse(app, method, path, **options)
        assert conversation.exception is None
        assert conversation.status == 200
        assert requests[0].values(b"host") == [upstream.address.encode()]
        requests[0].headers = [pair for pair in requests[0].headers if pair[0] != b"host"]
    return requests[0]


async def test_credentials_and_proxy_headers_of_the_caller_stop_here(transport: httpx.AsyncHTTPTransport) -> None:
    headers = [
        ("host", "gateway"),
        ("Authorization", "Bearer user"),
        ("X-Api-Key", "user"),
        ("api-key", "user"),
        ("Cookie", "a=1"),
        ("cookie", "b=2"),
        ("Proxy-Authorization", "Basic user"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("Expect", "100-continue"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Forwarded-Host", "gateway"),
        ("Forwarded", "for=10.0.0.1"),
        ("X-Real-IP", "10.0.0.1"),
        ("Via", "1.1 gateway"),
        ("X-Many", "1"),
        ("x-many", "2"),
        ("accept", "text/event-stream"),
    ]

    request = await forwarded(transport, headers=headers)

    assert request.headers == [
        (b"x-many", b"1"),
        (b"x-many", b"2"),
        (b"accept", b"text/event-stream"),
        (b"accept-encoding", b"identity"),
    ]


async def test_credential_of_the_model_is_put_in(transport: httpx.AsyncHTTPTransport) -> None:
    headers = [("authorization", "Bearer user"), ("connection", "authorization")]

    request = await forwarded(transport, api_key="model-key", headers=headers)

    assert request.values(b"authorization") == [b"Bearer model-key"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param([], [b"identity"], id="none is asked for"),
        pytest.param([("accept-encoding", "gzip")], [b"gzip"], id="the client asks for one"),
        pytest.param(
            [("accept-encoding", "gzip"), ("connection", "accept-encoding")], [b"identity"], id="for this hop only"
        ),
    ],
)
async def test_answer_is_compressed_only_if_the_client_asks(
    headers: list[tuple[str, str]], expected: list[bytes], transport: httpx.AsyncHTTPTransport
) -> None:
    request = await forwarded(transport, headers=headers)

    assert request.values(b"accept-encoding") == expected


async def test_cookies_of_the_upstream_do_not_travel_to_other_users(transport: httpx.AsyncHTTPTransport) -> None:
    requests: list[Request] = []

    async def script(upstream: Connection) -> None:
        for _ in range(2):
            requests.append(await upstream.read_request())
            await upstream.send(answer("200 OK", b"", b"Set-Cookie: session=of-alice; Path=/"))

    async with raw_upstream(script) as upstream:
        app = proxied(upstream.url, transport)
        for _ in range(2):
            await converse(app, "POST", PATH)

    assert [request.values(b"cookie") for request in requests] == [[], []]


@pytest.mark.parametrize(
    ("options", "framing", "body"),
    [
        pytest.param(
            {"headers": [("content-length", "4")], "body": b"abcd"}, {b"content-length": b"4"}, b"abcd", id="sized"
        ),
        pytest.param(
            {"headers": [("content-length", "4")], "body": [b"ab", b"", b"cd"]},
            {b"content-length": b"4"},
            b"abcd",
            id="sized, in pieces",
        ),
        pytest.param(
            {"headers": [("transfer-encoding", "chunked")], "body": [b"ab", b"", b"cd"]},
            {b"transfer-encoding": b"chunked"},
            chunk(b"ab") + chunk(b"cd") + LAST_CHUNK,
            id="chunked",
        ),
        pytest.param(
            {"headers": [("transfer-encoding", "chunked"), ("content-length", "9")], "body": b"ab"},
            {b"transfer-encoding": b"chunked"},
            chunk(b"ab") + LAST_CHUNK,
            id="chunked with a length too",
        ),
        pytest.param(
            {"headers": [("content-length", "2"), ("connection", "content-length")], "body": b"ab"},
            {b"content-length": b"2"},
            b"ab",
            id="length named by connection",
        ),
        pytest.param(
            {"scope": {"http_version": "2"}, "body": b"ab"},
            {b"transfer-encoding": b"chunked"},
            chunk(b"ab") + LAST_CHUNK,
            id="http/2 needs no length",
        ),
        pytest.param(
            {"scope": {"http_version": "2"}, "body": [b"", b"ab", b""]},
            {b"transfer-encoding": b"chunked"},
            chunk(b"ab") + LAST_CHUNK,
            id="http/2, with empty pieces",
        ),
        pytest.param(
            {"scope": {"http_version": "2"}, "body": b""},
            {b"transfer-encoding": b"chunked"},
            LAST_CHUNK,
            id="http/2, none",
        ),
        pytest.param({}, {}, b"", id="none"),
    ],
)
async def test_request_body_is_framed_as_it_came(
    options: dict[str, Any], framing: dict[bytes, bytes], body: bytes, transport: httpx.AsyncHTTPTransport
) -> None:
    request = await forwarded(transport, **options)

    assert request.line == b"POST /v1/chat/completions HTTP/1.1"
    assert dict(request.headers) == {b"accept-encoding": b"identity", **framing}
    assert request.body == body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_request_without_a_body_has_none(method: str, version: str, transport: httpx.AsyncHTTPTransport) -> None:
    request = await forwarded(transport, method, "/v1/models", scope={"http_version": version})

    assert request.line == method.encode() + b" /v1/models HTTP/1.1"
    assert request.headers == [(b"accept-encoding", b"identity")]
    assert request.body == b""


async def test_answer_to_head_has_no_body(transport: httpx.AsyncHTTPTransport) -> None:
    async with raw_upstream(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")) as upstream:
        conversation = await converse(proxied(upstream.url, transport), "HEAD", PATH)

    assert conversation.status == 200
    assert conversation.header("content-length") == "100"
    assert conversation.body == b""
    assert conversation.complete


@pytest.mark.parametrize(
    ("base", "scope", "target"),
    [
        pytest.param("", {}, b"/v1/chat/completions", id="plain"),
        pytest.param("/", {}, b"/v1/chat/completions", id="base with a slash"),
        pytest.param("/models/sim", {}, b"/models/sim/v1/chat/completions", id="base with a path"),
        pytest.param("/models/sim/", {}, b"/models/sim/v1/chat/completions", id="base with a path and a slash"),
        pytest.param("", {"root_path": "/srv", "path": f"/srv{PATH}"}, b"/v1/chat/completions", id="root path"),
        pytest.param("", {"raw_path": b"/else"}, b"/v1/chat/completions", id="raw path is not looked at"),
        pytest.param(
            "",
            {"query_string": b"a=b%20c&a=%C3%A9&d"},
            b"/v1/chat/completions?a=b%20c&a=%C3%A9&d",
            id="query",
        ),
        pytest.param("", {"path": "/v1/a?b=c#d"}, b"/v1/a%3Fb%3Dc%23d", id="path that looks like a query"),
        pytest.param("", {"path": "/v1/a b\u00e9\r\nX: y"}, b"/v1/a%20b%C3%A9%0D%0AX%3A%20y", id="path to be quoted"),
        pytest.param("", {"path": "/v1/%41"}, b"/v1/%2541", id="path with a percent sign"),
    ],
)
async def test_target_is_the_base_of_the_upstream_and_the_route_path(
    base: str, scope: dict[str, Any], target: bytes, transport: httpx.AsyncHTTPTransport
) -> None:
    request = await forwarded(transport, base=base, scope=scope)

    assert request.line == b"POST " + target + b" HTTP/1.1"


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(b"a=\0", id="control character"),
        pytest.param(b"a=\xff", id="not ascii"),
        pytest.param(b"a#b", id="fragment"),
        pytest.param(b"a=" + b"x" * 70_000, id="too long"),
    ],
)
async def test_malformed_query_is_400(query: bytes, transport: httpx.AsyncHTTPTransport) -> None:
    app = proxied(f"http://127.0.0.1:{unused_port()}", transport)

    conversation = await converse(app, "POST", PATH, scope={"query_string": query})

    assert conversation.status == 400
    assert error_of(conversation) == {
        "message": "The query of the URL is malformed",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_request",
    }


async def test_proxy_without_a_model_says_what_is_missing(transport: httpx.AsyncHTTPTransport) -> None:
    conversation = await converse(ProxyApp(transport=transport), "POST", PATH)

    assert isinstance(conversation.exception, LookupError)
    assert str(conversation.exception) == "ProxyApp needs to know the model: wrap it in TierMiddleware"
    assert conversation.messages == []


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_proxy_speaks_nothing_but_http(kind: str, transport: httpx.AsyncHTTPTransport) -> None:
    conversation = await converse(ProxyApp(transport=transport), scope={"type": kind})

    assert isinstance(conversation.exception, NotImplementedError)
    assert str(conversation.exception) == f"ProxyApp speaks HTTP, not {kind}"
    assert conversation.messages == []


async def test_model_without_an_upstream_is_a_lookup_error_that_names_the_catalogue(
    transport: httpx.AsyncHTTPTransport,
) -> None:
    context = MaaSContext(model=Model("tiny"))

    conversation = await converse(ProxyApp(transport=transport), "POST", PATH, scope={"state": {"maas": context}})

    assert isinstance(conversation.exception, LookupError)
    assert str(conversation.exception) == "model tiny has no upstream: TierMiddleware needs a Catalogue with upstreams"
    assert conversation.messages == []
