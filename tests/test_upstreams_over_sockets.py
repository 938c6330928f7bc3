"""Several servers of one model, some of them in trouble, and clients of the gateway before them."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import SocketStream
from starlette.types import Receive, Scope, Send

from maas_middleware.apps.proxy import ProxyApp
from maas_middleware.balancing import Balancer
from maas_middleware.catalogue import Model
from maas_middleware.context import ensure_context
from maas_middleware.http11 import HTTP11Transport
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.converse import Conversation, converse

from .raw_upstream import LAST_CHUNK, Connection, Request, answer, chunk, chunked_head, raw_upstream
from .servers import serving

PATH = "/v1/chat/completions"
SSE_HEAD = chunked_head("text/event-stream")
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
EVENT = b"data: 1\n\n"
PATIENCE = 10.0
RETRY = "asking another upstream of model m"
CHUNKED = [("transfer-encoding", "chunked")]


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="maas_middleware")
    return caplog


@pytest.fixture(params=["http11", "httpx"])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncBaseTransport]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    if request.param == "http11":
        async with HTTP11Transport() as transport:
            yield transport
    else:
        async with httpx.AsyncHTTPTransport(verify=False, trust_env=False, limits=limits) as other:
            yield other


Says = Callable[[Connection], Awaitable[None]]


@dataclass
class Server:
    """A model server that says to every request what a test makes it say."""

    says: Says
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)

    async def serve(self, connection: Connection) -> None:
        self.connections.append(connection)
        while True:
            self.requests.append(await connection.read_request())
            await self.says(connection)


def saying(*pieces: bytes) -> Says:
    async def say(connection: Connection) -> None:
        await connection.send(*pieces)

    return say


def breaking_off(*pieces: bytes) -> Says:
    async def say(connection: Connection) -> None:
        await connection.send(*pieces)
        raise anyio.EndOfStream

    return say


async def frozen(connection: Connection) -> None:
    await connection.until_client_left()


fine = saying(answer("200 OK", b"fine"))
busy = saying(answer("503 Service Unavailable", b"", b"Retry-After: 9"))


class Site:
    """A proxy to some servers of one model."""

    def __init__(self, model: Model, transport: httpx.AsyncBaseTransport, balancer: Balancer, **options: Any) -> None:
        self.model = model
        self.balancer = balancer
        self._proxy = ProxyApp(transport=transport, balancer=balancer, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ensure_context(scope).model = self.model
        await self._proxy(scope, receive, send)

    async def ask(self, **options: Any) -> Conversation:
        with anyio.fail_after(PATIENCE):
            return await converse(self, "POST", PATH, **options)

    async def ask_often(self, times: int, **options: Any) -> list[int]:
        return [(await self.ask(**options)).status for _ in range(times)]

    @property
    def outstanding(self) -> list[int]:
        return [server.outstanding for server in self.balancer._servers.values()]  # which nothing else shows


class Sites:
    """Starts servers and proxies, and looks afterwards whether a request is still counted anywhere."""

    def __init__(self, stack: AsyncExitStack, transport: httpx.AsyncBaseTransport) -> None:
        self.clock = FakeClock()
        self._stack = stack
        self._transport = transport
        self._sites: list[Site] = []

    async def server(self, says: Says) -> Server:
        server = Server(says)
        server.url = (await self._stack.enter_async_context(raw_upstream(server.serve))).url
        return server

    def proxied(self, *urls: str, balancing: dict[str, Any] | None = None, **options: Any) -> Site:
        balancer = Balancer(clock=self.clock, jitter=lambda: 1.0, **(balancing or {}))
        site = Site(Model("m", upstreams=urls, api_key="key"), self._transport, balancer, **options)
        self._sites.append(site)
        return site

    def check(self) -> None:
        for site in self._sites:
            assert set(site.outstanding) <= {0}


@pytest.fixture
async def sites(transport: httpx.AsyncBaseTransport) -> AsyncIterator[Sites]:
    async with AsyncExitStack() as stack:
        sites = Sites(stack, transport)
        yield sites
        sites.check()


@pytest.fixture
def gone() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_killed_server_loses_no_request_and_is_not_asked_for_a_while(
    sites: Sites, gone: str, logged: pytest.LogCaptureFixture
) -> None:
    server = await sites.server(fine)
    site = sites.proxied(gone, server.url)

    statuses = await site.ask_often(20)

    assert statuses == [200] * 20
    assert logged.messages.count(RETRY) == 3
    assert len([message for message in logged.messages if "is left out" in message]) == 1
    assert {record.levelname for record in logged.records} == {"WARNING"}
    assert "127.0.0.1" not in logged.text


async def test_burst_that_meets_a_server_where_nobody_listens_is_served_by_the_other(sites: Sites, gone: str) -> None:
    server = await sites.server(fine)
    site = sites.proxied(gone, server.url, balancing={"minimum_retries": 0.0, "retry_ratio": 0.0})
    statuses: list[int] = []

    async def ask() -> None:
        statuses.append((await site.ask()).status)

    async with anyio.create_task_group() as clients:
        for _ in range(64):
            clients.start_soon(ask)

    assert statuses == [200] * 64  # asking where nobody listens takes no retry from an outage


async def test_each_server_reads_its_own_host_and_the_models_credential(sites: Sites, gone: str) -> None:
    servers = [await sites.server(busy), await sites.server(busy)]
    site = sites.proxied(gone, *(server.url for server in servers))

    await site.ask(body=b"{}", headers=[("content-length", "2")])

    for server in servers:
        (request,) = server.requests
        assert request.values(b"host") == [server.url.removeprefix("http://").encode()]
        assert request.values(b"authorization") == [b"Bearer key"]
        assert request.body == b"{}"


async def test_requests_go_to_the_server_with_the_fewest_under_way(sites: Sites) -> None:
    arrived, let_go = anyio.Event(), anyio.Event()

    async def slow(connection: Connection) -> None:
        arrived.set()
        await let_go.wait()
        await fine(connection)

    slow_server, fast_server = await sites.server(slow), await sites.server(fine)
    site = sites.proxied(slow_server.url, fast_server.url)

    async with anyio.create_task_group() as group:
        group.start_soon(site.ask)
        await arrived.wait()
        statuses = await site.ask_often(5)
        let_go.set()

    assert statuses == [200] * 5
    assert (len(slow_server.requests), len(fast_server.requests)) == (1, 5)


async def test_stream_counts_until_its_end(sites: Sites) -> None:
    begun, end = anyio.Event(), anyio.Event()

    async def streaming(connection: Connection) -> None:
        await connection.send(SSE_HEAD, chunk(EVENT))
        begun.set()
        await end.wait()
        await connection.send(LAST_CHUNK)

    site = sites.proxied((await sites.server(streaming)).url)

    async with anyio.create_task_group() as group:
        group.start_soon(site.ask)
        await begun.wait()
        during = site.outstanding
        end.set()

    assert (during, site.outstanding) == ([1], [0])


async def test_server_that_says_503_is_followed_by_another(sites: Sites, logged: pytest.LogCaptureFixture) -> None:
    servers = [await sites.server(busy), await sites.server(fine)]
    site = sites.proxied(*(server.url for server in servers))

    statuses = await site.ask_often(6)

    assert statuses == [200] * 6
    assert len(servers[0].requests) == logged.messages.count(RETRY) == 3  # and then it is left out


async def test_last_of_several_failures_is_what_the_client_reads(sites: Sites, gone: str) -> None:
    server = await sites.server(busy)

    first = await sites.proxied(gone, server.url).ask()
    second = await sites.proxied(server.url, gone).ask()

    assert [one.status for one in (first, second)] == [503, 503]
    assert [one.header("retry-after") for one in (first, second)] == ["9", "2"]
    assert len(server.requests) == 2


async def test_each_server_is_asked_once(sites: Sites, logged: pytest.LogCaptureFixture) -> None:
    servers = [await sites.server(busy) for _ in range(3)]

    conversation = await sites.proxied(*(server.url for server in servers)).ask()

    assert conversation.status == 503
    assert [len(server.requests) for server in servers] == [1, 1, 1]
    assert logged.messages.count(RETRY) == 2


async def test_servers_own_429_passes_with_its_wait_and_is_no_failure(
    sites: Sites, logged: pytest.LogCaptureFixture
) -> None:
    refusal = answer("429 Too Many Requests", b'{"error":{"message":"slow down"}}', b"Retry-After: 7")
    refusing, other = await sites.server(saying(refusal)), await sites.server(fine)
    site = sites.proxied(refusing.url, other.url)

    conversations = [await site.ask() for _ in range(8)]

    refused = [conversation for conversation in conversations if conversation.status == 429]
    assert len(refused) == len(refusing.requests) == 4
    assert {conversation.header("retry-after") for conversation in refused} == {"7"}
    assert logged.messages == []


@pytest.mark.parametrize(
    ("says", "status", "is_ejected"),
    [
        pytest.param(saying(answer("500 Oops")), 502, False, id="500"),
        pytest.param(saying(answer("502 Bad Gateway")), 502, True, id="502"),
        pytest.param(saying(answer("504 Gateway Timeout")), 504, True, id="504"),
        pytest.param(saying(answer("529 Overloaded")), 503, False, id="529"),
        pytest.param(saying(answer("404 Not Found")), 404, False, id="404"),
        pytest.param(breaking_off(), 502, True, id="closed"),
        pytest.param(breaking_off(b"HTTP/1.1 200 OK\r\n"), 502, True, id="closed within the head"),
        pytest.param(breaking_off(JSON_HEAD), 502, True, id="closed before the first byte"),
        pytest.param(breaking_off(b"SSH-2.0\r\n\r\n"), 502, True, id="garbage"),
    ],
)
async def test_what_may_have_been_processed_is_not_sent_again(
    says: Says, status: int, is_ejected: bool, sites: Sites, logged: pytest.LogCaptureFixture
) -> None:
    failing, other = await sites.server(says), await sites.server(fine)
    site = sites.proxied(failing.url, other.url)

    statuses = await site.ask_often(12)

    times = 3 if is_ejected else 6
    assert sorted(statuses) == [200] * (12 - times) + [status] * times
    assert len(failing.requests) == times
    assert len(other.requests) == 12 - times
    assert RETRY not in logged.messages


async def test_frozen_server_is_504_until_it_is_left_out(sites: Sites) -> None:
    server, other = await sites.server(frozen), await sites.server(fine)
    site = sites.proxied(server.url, other.url, first_byte_timeout=0.1)

    statuses = await site.ask_often(12)

    assert statuses.count(504) == len(server.requests) == 3
    assert statuses.count(200) == 9


async def test_streams_that_break_off_leave_their_server_out(sites: Sites) -> None:
    breaking = await sites.server(breaking_off(SSE_HEAD, chunk(EVENT)))
    other = await sites.server(saying(SSE_HEAD, chunk(EVENT), LAST_CHUNK))
    site = sites.proxied(breaking.url, other.url)

    conversations = [await site.ask() for _ in range(12)]

    assert [conversation.status for conversation in conversations] == [200] * 12
    assert [conversation.complete for conversation in conversations].count(False) == len(breaking.requests) == 3


async def test_answer_makes_earlier_failures_forgotten(sites: Sites, logged: pytest.LogCaptureFixture) -> None:
    server = await sites.server(busy)
    site = sites.proxied(server.url)

    statuses = []
    for says in (busy, busy, fine) * 3:
        server.says = says
        statuses.append((await site.ask()).status)

    assert statuses == [503, 503, 200] * 3
    assert "left out" not in logged.text


async def test_server_returns_by_one_probe(sites: Sites) -> None:
    probed, let_go = anyio.Event(), anyio.Event()

    async def probe(connection: Connection) -> None:
        probed.set()
        await let_go.wait()
        await fine(connection)

    server, other = await sites.server(busy), await sites.server(fine)
    site = sites.proxied(server.url, other.url, balancing={"ejection": 5.0})
    await site.ask_often(6)
    server.requests.clear()
    server.says = probe

    before = await site.ask_often(3)
    sites.clock.advance(5.0)
    async with anyio.create_task_group() as group:
        group.start_soon(site.ask)
        await probed.wait()
        meanwhile = await site.ask_often(5)
        asked = len(server.requests)
        let_go.set()
    server.says = fine
    after = await site.ask_often(4)

    assert before + meanwhile + after == [200] * 12
    assert asked == 1
    assert len(server.requests) == 3


async def test_long_stream_that_is_the_probe_lets_others_in_from_its_first_byte_on(sites: Sites) -> None:
    seen, end = anyio.Event(), anyio.Event()

    async def streaming(connection: Connection) -> None:
        await connection.send(SSE_HEAD, chunk(EVENT))
        await end.wait()
        raise anyio.EndOfStream

    server = await sites.server(busy)
    site = sites.proxied(server.url, balancing={"failures": 1})
    await site.ask()
    sites.clock.advance(60)
    server.says = streaming

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def seeing(message: Any) -> None:
            await send(message)
            seen.set()

        await site(scope, receive, seeing)

    async with anyio.create_task_group() as group:
        group.start_soon(converse, app, "POST", PATH)
        with anyio.fail_after(PATIENCE):
            await seen.wait()
        is_ready = site.balancer.is_ready(site.model)
        end.set()

    assert is_ready
    assert site.balancer.is_ready(site.model)  # it was judged by its first byte


async def test_probe_whose_client_left_is_followed_by_another(sites: Sites) -> None:
    server = await sites.server(busy)
    site = sites.proxied(server.url, balancing={"failures": 1})
    await site.ask()
    sites.clock.advance(60)
    server.says = frozen

    left = await site.ask(leave_after=0)

    assert left.messages == []
    assert site.balancer.is_ready(site.model)
    server.says = fine
    assert (await site.ask()).status == 200


async def test_outage_of_all_is_not_multiplied_by_retries(
    sites: Sites, gone: str, logged: pytest.LogCaptureFixture
) -> None:
    servers = [await sites.server(busy) for _ in range(3)]
    budget = {"minimum_retries": 5.0, "retry_ratio": 0.1}
    site = sites.proxied(*(server.url for server in servers), balancing=budget)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(site.ask)

    assert logged.messages.count(RETRY) <= 10
    assert sum(len(server.requests) for server in servers) <= 60


@pytest.mark.parametrize(
    "body",
    [pytest.param([b"ab", b"cd"], id="in pieces"), pytest.param(b"abcd", id="whole")],
)
async def test_body_that_was_not_read_by_anyone_is_sent_to_another_server(
    body: bytes | Sequence[bytes], sites: Sites, gone: str
) -> None:
    server = await sites.server(fine)

    conversation = await sites.proxied(gone, server.url).ask(body=body, headers=[("content-length", "4")])

    assert conversation.body == b"fine"
    assert server.requests[0].body == b"abcd"


async def test_body_of_which_a_piece_is_gone_is_not_sent_to_another_server(
    sites: Sites, logged: pytest.LogCaptureFixture
) -> None:
    server, other = await sites.server(busy), await sites.server(fine)

    conversation = await sites.proxied(server.url, other.url).ask(body=[b"ab", b"cd"], headers=CHUNKED)

    assert conversation.status == 503
    assert server.requests[0].body == chunk(b"ab") + chunk(b"cd") + LAST_CHUNK
    assert other.requests == []
    assert RETRY not in logged.messages


async def test_all_attempts_together_have_the_time_until_the_first_byte(sites: Sites) -> None:
    async def late(connection: Connection) -> None:
        with anyio.move_on_after(0.7):
            await connection.until_client_left()
        await busy(connection)

    servers = [await sites.server(late), await sites.server(frozen)]
    site = sites.proxied(*(server.url for server in servers), first_byte_timeout=1.0)
    began = anyio.current_time()

    conversation = await site.ask()

    assert conversation.status == 504
    assert anyio.current_time() - began < 1.5
    assert [len(server.requests) for server in servers] == [1, 1]


async def test_request_that_cannot_be_sent_is_no_failure_of_the_server(sites: Sites) -> None:
    server = await sites.server(fine)
    site = sites.proxied(server.url, balancing={"failures": 1})

    conversation = await site.ask(headers=[("x-bad", "a\nb")])

    assert conversation.status == 502
    assert site.balancer.is_ready(site.model)


async def test_full_pool_is_no_failure_of_the_server() -> None:
    async with HTTP11Transport(max_connections=1) as transport, AsyncExitStack() as stack:
        sites = Sites(stack, transport)
        server = await sites.server(frozen)
        site = sites.proxied(server.url, balancing={"failures": 1}, connect_timeout=0.1)
        async with anyio.create_task_group() as group:
            group.start_soon(site.ask)
            while not server.requests:
                await anyio.wait_all_tasks_blocked()
            conversation = await site.ask()
            is_ready = site.balancer.is_ready(site.model)
            group.cancel_scope.cancel()

    assert conversation.status == 503
    assert is_ready


async def test_client_that_leaves_ends_the_attempts(sites: Sites) -> None:
    servers = [await sites.server(frozen), await sites.server(frozen)]
    site = sites.proxied(*(server.url for server in servers))

    conversation = await site.ask(leave_after=0)
    for server in servers:
        for connection in server.connections:
            with anyio.fail_after(PATIENCE):
                await connection.client_left.wait()

    assert conversation.messages == []
    assert sum(len(server.requests) for server in servers) == 1


LEAVING = [
    pytest.param((b"Content-Length: 9\r\n\r\nhalf",), (), id="half a body"),
    pytest.param((b"Transfer-Encoding: chunked\r\n\r\n", chunk(b"half")), (), id="half a body in chunks"),
    pytest.param((b"Content-Length: 2\r\n\r\n{}",), (), id="the model thinks"),
    pytest.param((b"Content-Length: 2\r\n\r\n{}",), (b"HTTP/1.1 200",), id="half a head"),
    pytest.param((b"Content-Length: 2\r\n\r\n{}",), (SSE_HEAD,), id="no first byte"),
    pytest.param((b"Content-Length: 2\r\n\r\n{}",), (SSE_HEAD, chunk(EVENT)), id="streams"),
    pytest.param((b"Content-Length: 2\r\n\r\n{}",), (JSON_HEAD, b"{"), id="half a document"),
    pytest.param((b"Content-Length: 2\r\n\r\n{}",), (JSON_HEAD.replace(b"200", b"400"), b"{"), id="half an error"),
]


@pytest.mark.parametrize(("sent", "said"), LEAVING)
async def test_client_that_leaves_reaches_the_server_within_100_ms(
    sent: Sequence[bytes], said: Sequence[bytes], sites: Sites, logged: pytest.LogCaptureFixture
) -> None:
    stalled: list[Connection] = []

    async def script(upstream: Connection) -> None:
        await upstream.read_until(b"half" if b"half" in sent[-1] else b"{}")
        await upstream.send(*said)
        stalled.append(upstream)
        await upstream.until_client_left()

    async with raw_upstream(script) as upstream:
        site = sites.proxied(upstream.url)
        async with serving(ErrorEnvelopeMiddleware(site), lifespan="off") as url:
            # a busy machine may be late once
            took = [await time_to_leave(url, sent, stalled) for _ in range(3)]

    assert min(took) < 0.1
    assert logged.messages == []


async def time_to_leave(url: str, sent: Sequence[bytes], stalled: list[Connection]) -> float:
    stalled.clear()
    with anyio.fail_after(PATIENCE):
        client: SocketStream = await anyio.connect_tcp("127.0.0.1", int(url.rpartition(":")[2]))
        await client.send(b"POST %b HTTP/1.1\r\nHost: gateway\r\n" % PATH.encode() + b"".join(sent))
        while not stalled:
            await anyio.lowlevel.checkpoint()
        left = anyio.current_time()
        await client.aclose()
        await stalled[0].client_left.wait()
        return anyio.current_time() - left
