from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import anyio
import httpx
import pytest
import trustme

from maas_middleware.http11 import HTTP11Transport
from maas_middleware.testing.clock import FakeClock

from ..raw_upstream import answer
from ..transport.upstreams import Peer, hostile, listening
from .asking import answering, ask, started


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def test_each_origin_has_places_and_connections_of_its_own() -> None:
    async with hostile(answering) as one, hostile(answering) as other, HTTP11Transport(max_connections=1) as transport:
        for _ in range(2):
            for url in (one.url + "/a", other.url + "/b", one.url.replace("127.0.0.1", "localhost") + "/c"):
                assert await ask(transport, url, pool=0.001) == b"GET /%b HTTP/1.1" % url[-1].encode()

        assert (len(one.peers), len(other.peers)) == (2, 1)


async def test_origin_without_connections_is_forgotten() -> None:
    transport = HTTP11Transport(max_keepalive_connections=0)
    async with hostile(answering) as one, hostile(answering) as other, transport:
        for url in (one.url, other.url, one.url):
            assert await ask(transport, url) == b"GET / HTTP/1.1"


async def test_connections_are_kept_for_a_time_by_the_given_clock() -> None:
    clock = FakeClock()
    async with hostile(answering) as upstream, HTTP11Transport(keepalive_expiry=60, clock=clock) as transport:
        for seconds in (59, 60, 0):
            await ask(transport, upstream.url)
            clock.advance(seconds)

        assert len(upstream.peers) == 2


async def test_ipv6_address_is_reached() -> None:
    async with hostile(answering, listening("::1")) as upstream, HTTP11Transport() as transport:
        assert "[::1]" in upstream.url
        assert await ask(transport, upstream.url) == b"GET / HTTP/1.1"


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "tls"])
async def test_unix_socket_is_reached_whatever_the_host(
    tmp_path: Path, authority: trustme.CA, trusting: ssl.SSLContext, is_encrypted: bool
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer("200 OK", line.strip()))
        await reader.read()
        writer.close()

    path = str(tmp_path / "socket")
    context = server_context(authority, "model.example") if is_encrypted else None
    url = f"http{'s' * is_encrypted}://model.example/v1"

    server, transport = (
        await asyncio.start_unix_server(serve, path, ssl=context),
        HTTP11Transport(uds=path, ssl_context=trusting),
    )
    async with server, transport:
        assert await ask(transport, url) == b"GET /v1 HTTP/1.1"


async def test_server_is_verified(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    async with hostile(answering, tls=server_context(authority, "127.0.0.1")) as upstream:
        async with HTTP11Transport(ssl_context=trusting) as transport:
            assert await ask(transport, upstream.url) == b"GET / HTTP/1.1"
            with pytest.raises(httpx.ConnectError):
                await ask(transport, upstream.url.replace("127.0.0.1", "localhost"))
        async with HTTP11Transport() as transport:
            with pytest.raises(httpx.ConnectError):
                await ask(transport, upstream.url)


async def test_tls_server_is_told_when_an_idle_connection_expires(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    farewells: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(answer("200 OK"))
        try:
            await peer.read()
        except anyio.EndOfStream:  # a broken end would be another error
            farewells.append("told")

    transport = HTTP11Transport(ssl_context=trusting, keepalive_expiry=0.001)
    async with hostile(script, tls=server_context(authority, "127.0.0.1")) as upstream, transport:
        await ask(transport, upstream.url)
        await upstream.peers[0].over.wait()

    assert farewells == ["told"]


@pytest.mark.parametrize("url", ["ftp://model/", "unix:///model", "http:///v1", "/v1"])
async def test_url_that_leads_nowhere_is_refused(url: str) -> None:
    async with HTTP11Transport() as transport:
        with pytest.raises(httpx.UnsupportedProtocol):
            await ask(transport, url)


@pytest.mark.parametrize("host", ["127.0.0.1:1", f"{'a' * 64}.example"])
async def test_failure_to_connect_tells_no_address(host: str) -> None:
    async with HTTP11Transport() as transport:
        with pytest.raises(httpx.ConnectError) as caught:
            await ask(transport, f"http://{host}")

    assert str(caught.value) == "Connecting failed."


async def test_connecting_ends_after_its_time() -> None:
    with listening(backlog=0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # which takes the only place
            async with HTTP11Transport() as transport:
                with pytest.raises(httpx.ConnectTimeout):
                    await ask(transport, f"http://127.0.0.1:{port}", connect=0.01)


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["connecting", "handshake"])
async def test_connecting_that_is_cancelled_leaves_no_socket(trusting: ssl.SSLContext, is_encrypted: bool) -> None:
    """A server that never accepts, or that says nothing in the handshake."""
    with listening(backlog=0) as listener:
        port = listener.getsockname()[1]
        blocker = None if is_encrypted else socket.create_connection(("127.0.0.1", port))
        transport = HTTP11Transport(ssl_context=trusting, max_connections=1)
        async with transport, anyio.create_task_group() as group:
            url = f"http{'s' * is_encrypted}://127.0.0.1:{port}"
            for _ in range(2):
                scope = await started(group, lambda: ask(transport, url, pool=0.01))
                scope.cancel()
        if blocker is not None:
            blocker.close()
