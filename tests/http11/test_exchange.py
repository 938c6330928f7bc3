from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
import pytest
import trustme

from maas_middleware.http11 import HTTP11Transport
from maas_middleware.http11._connecting import Origin
from maas_middleware.http11._exchange import MAXIMUM_BUFFERED_BYTES, PIECE_BYTES, Exchange
from maas_middleware.http11._pool import Pool
from maas_middleware.http11._requests import RequestHead

from ..raw_upstream import LAST_CHUNK, answer, chunk, chunked_head
from ..transport.scripts import ending, silent
from ..transport.upstreams import Peer, hostile, soon, until_still
from .asking import Pieces, answering, ask, reached, read, request

LARGE = bytes(range(256)) * 4096  # 1 MiB
TOO_LARGE = answer("413 Too Large", b"no")


async def test_head_and_small_body_are_sent_at_once_and_answered() -> None:
    reads: list[bytes] = []

    async def script(peer: Peer) -> None:
        reads.append(await peer.read())
        await peer.send(answer("200 Fine", b"body", b"X-A: 1", b"x-a: 2"))
        await peer.until_client_left()

    async with reached(script) as (transport, upstream):
        response = await transport.handle_async_request(request(upstream.url + "/v1?a=b", Pieces(b"{}", length=2)))

        host = httpx.URL(upstream.url).netloc
        assert reads == [b"POST /v1?a=b HTTP/1.1\r\nhost: %b\r\ncontent-length: 2\r\n\r\n{}" % host]
        assert response.status_code == 200
        assert response.headers.raw == [(b"Content-Length", b"4"), (b"X-A", b"1"), (b"x-a", b"2")]
        assert response.extensions == {"http_version": b"HTTP/1.1", "reason_phrase": b"Fine"}
        assert await read(response) == b"body"


@pytest.mark.parametrize(
    ("pieces", "length"),
    [
        pytest.param([LARGE], len(LARGE), id="one large piece"),
        pytest.param([LARGE], None, id="one large piece in chunks"),
        pytest.param([b"", b"a", b"", LARGE[:PIECE_BYTES], b"b"], PIECE_BYTES + 2, id="pieces"),
        pytest.param([b"", b"a", b"", LARGE[: PIECE_BYTES + 1], b"b"], None, id="pieces in chunks"),
        pytest.param([], None, id="nothing in chunks"),
        pytest.param([], 0, id="nothing"),
        pytest.param([b"ab", b"", b""], 2, id="nothing at the end"),
    ],
)
async def test_body_is_sent_piece_by_piece(pieces: list[bytes], length: int | None) -> None:
    bodies: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            body = (await peer.read_request()).body
            bodies.append(body if length is not None else dechunked(body))
            await peer.send(answer("200 OK"))

    async with reached(script) as (transport, upstream):
        for _ in range(2):
            await read(await transport.handle_async_request(request(upstream.url, Pieces(*pieces, length=length))))

        assert bodies == [b"".join(pieces)] * 2
        assert len(upstream.peers) == 1


def dechunked(data: bytes) -> bytes:
    body = b""
    while (size := int(data.partition(b"\r\n")[0], 16)) > 0:
        data = data.partition(b"\r\n")[2]
        body, data = body + data[:size], data[size + 2 :]
    return body


@pytest.mark.parametrize(
    ("pieces", "length"),
    [
        pytest.param([b"abc"], 2, id="too much at once"),
        pytest.param([b"ab", b"c"], 2, id="too much in the end"),
        pytest.param([b"a", b"bc"], 2, id="too much on the way"),
        pytest.param([b"a"], 2, id="too little"),
        pytest.param([], 2, id="nothing"),
    ],
)
async def test_body_of_another_length_is_refused_and_its_connection_closed(pieces: list[bytes], length: int) -> None:
    async with reached(silent, max_connections=1) as (transport, upstream):
        for _ in range(2):
            body = Pieces(*pieces, length=length)
            with pytest.raises(httpx.LocalProtocolError, match="for declared Content-Length"):
                await transport.handle_async_request(request(upstream.url, body, pool=0.001))
            assert body.is_closed

        assert all([await soon(peer.over) for peer in upstream.peers])


async def test_answer_before_the_body_was_sent_is_given_at_once_and_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(TOO_LARGE)
        await peer.until_client_left()

    async with reached(script, max_connections=1) as (transport, upstream):
        for number in (1, 2):
            body = Pieces(b"first", length=10, then=anyio.sleep_forever)
            response = await transport.handle_async_request(request(upstream.url, body, pool=0.001))

            assert (response.status_code, await read(response), body.is_closed) == (413, b"no", True)
            assert len(upstream.peers) == number
            assert await soon(upstream.peers[-1].over)


async def test_interim_answer_does_not_end_the_sending() -> None:
    sent = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_until(b"first")
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        sent.set()
        await peer.read_until(b"0\r\n\r\n")
        await peer.send(answer("200 OK", b"all"))

    class Waiting(Pieces):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"first"
            await sent.wait()
            await anyio.wait_all_tasks_blocked()
            yield b"second"

    async with reached(script) as (transport, upstream):
        assert await read(await transport.handle_async_request(request(upstream.url, Waiting()))) == b"all"
        assert b"second" in upstream.log


async def test_answer_is_read_before_more_is_written_into_a_closed_connection() -> None:
    """Writing would fail, and what came before would be lost."""

    async def script(peer: Peer) -> None:
        await peer.read_until(b"first")
        await peer.client_left.wait()

    async with reached(script) as (transport, upstream):

        class Blind(Pieces):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                yield b"first"
                await until_still(lambda: len(upstream.log))
                upstream.peers[0].say_now(TOO_LARGE)
                upstream.peers[0].plain.raw.close()
                for _ in range(100):
                    self.read += 1
                    yield LARGE

        body = Blind()
        response = await transport.handle_async_request(request(upstream.url, body))

        assert (response.status_code, await read(response), body.read) == (413, b"no", 1)
        upstream.peers[0].client_left.set()


async def test_connection_is_not_used_again_while_a_body_is_still_on_its_way() -> None:
    async def script(peer: Peer) -> None:
        await peer.read()
        await answered.wait()
        await peer.send(answer("200 OK", b"enough"))
        await peer.client_left.wait()

    answered = anyio.Event()
    async with hostile(script) as upstream:
        origin = Origin("127.0.0.1", httpx.URL(upstream.url).port or 0, uds=None, ssl_context=None)
        pool = Pool(origin.connect, maximum=1, maximum_idle=None, idle_seconds=1000)
        connection = await pool.acquire(None, None)

        class Filling(Pieces):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                while connection.is_flushed:
                    yield LARGE[: PIECE_BYTES // 2]
                answered.set()

        asked = request(upstream.url, Filling())
        exchange = Exchange(pool, connection, RequestHead.of(asked), {})
        assert isinstance(asked.stream, httpx.AsyncByteStream)
        await exchange.perform(asked.stream)

        assert [piece async for piece in exchange] == [b"enough"]
        assert pool.is_empty
        upstream.peers[0].client_left.set()


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(answer("200 OK", b"ok", b"Connection: close"), id="closing"),
        pytest.param(answer("200 OK", b"ok") + b"\r\n", id="more than asked for"),
        pytest.param(answer("200 OK", b"ok").replace(b"/1.1", b"/1.0"), id="old"),
    ],
)
async def test_connection_is_not_used_again_if_the_answer_says_so(said: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(said)
        await peer.until_client_left()

    async with reached(script, max_connections=1) as (transport, upstream):
        for number in (1, 2):
            assert await ask(transport, upstream.url, pool=0.001) == b"ok"
            assert await soon(upstream.peers[-1].over)
            assert len(upstream.peers) == number


async def test_server_may_read_on_after_its_early_answer() -> None:
    reading_on = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nenough")
        await reading_on.wait()
        await peer.until_client_left()

    async with reached(script) as (transport, upstream):
        response = await transport.handle_async_request(request(upstream.url, LARGE * 8))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        assert await anext(aiter(response.stream)) == b"enough"
        reading_on.set()
        await until_still(lambda: len(upstream.log))
        await response.aclose()

        await upstream.peers[0].over.wait()
        assert PIECE_BYTES < len(upstream.log) < len(LARGE) * 8


async def test_sending_waits_for_a_server_that_does_not_read() -> None:
    async def script(peer: Peer) -> None:
        await anyio.sleep_forever()

    async with reached(script) as (transport, upstream):
        body = Pieces(*[LARGE] * 100)
        with pytest.raises(httpx.WriteTimeout):
            await transport.handle_async_request(request(upstream.url, body, write=0.05))

        assert body.read < 20
        assert body.is_closed


async def test_sending_goes_on_when_the_server_reads_on() -> None:
    body = Pieces(*[LARGE] * 32, length=32 * len(LARGE))

    async def script(peer: Peer) -> None:
        head = await peer.read_until(b"\r\n\r\n")
        received = len(head.partition(b"\r\n\r\n")[2])
        await until_still(lambda: body.read)
        assert body.read < 32
        while received < 32 * len(LARGE):
            received += len(await peer.stream.receive())
        await peer.send(answer("200 OK", b"%d" % received))

    async with reached(script) as (transport, upstream):
        response = await transport.handle_async_request(request(upstream.url, body, write=10))

        assert await read(response) == b"%d" % (32 * len(LARGE))


async def test_server_waits_for_a_reader_that_does_not_read(tmp_path: Path) -> None:
    pieces, size = 200, 1 << 16

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(chunked_head("text/plain"), *[chunk(LARGE[:size])] * pieces, LAST_CHUNK)

    path = str(tmp_path / "socket")  # whose bytes move within a turn of the event loop
    listener = socket.socket(socket.AF_UNIX)
    listener.setblocking(False)
    listener.bind(path)
    listener.listen()
    async with hostile(script, listener) as upstream, HTTP11Transport(uds=path) as transport:
        response = await transport.handle_async_request(request("http://model"))
        await until_still(lambda: upstream.peers[0].sent)
        assert upstream.peers[0].sent < 32 * MAXIMUM_BUFFERED_BYTES < pieces * size

        assert len(await read(response)) == pieces * size


async def test_reader_is_told_what_came_before_a_failure() -> None:
    async with reached(ending(chunked_head("text/plain") + chunk(b"some"))) as (transport, upstream):
        response = await transport.handle_async_request(request(upstream.url))
        await until_still(lambda: upstream.peers[0].over.is_set())
        assert isinstance(response.stream, httpx.AsyncByteStream)
        pieces = aiter(response.stream)

        assert await anext(pieces) == b"some"
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(pieces)


async def test_large_body_that_breaks_off_is_given_as_far_as_it_came() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(chunked_head("text/plain"))
        await peer.send(chunk(LARGE))
        peer.reset_now()

    async with reached(script) as (transport, upstream):
        response = await transport.handle_async_request(request(upstream.url))
        with pytest.raises(httpx.TransportError):
            await read(response)


@pytest.mark.parametrize("farewell", ["eof", "reset"])
async def test_connection_that_ends_before_the_answer_is_an_error(farewell: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        if farewell == "reset":
            peer.reset_now()

    error = httpx.ReadError if farewell == "reset" else httpx.RemoteProtocolError
    async with reached(script, max_connections=1) as (transport, upstream):
        for _ in range(2):
            with pytest.raises(error):
                await transport.handle_async_request(request(upstream.url, b"a", pool=0.001))

        assert upstream.log.count(b"POST") == 2


async def test_connection_that_ends_while_a_body_is_sent_is_an_error() -> None:
    async def script(peer: Peer) -> None:
        await peer.read()

    async with reached(script) as (transport, upstream):
        body = Pieces(b"first", then=anyio.sleep_forever)
        with pytest.raises(httpx.TransportError):
            await transport.handle_async_request(request(upstream.url, body))

        assert body.is_closed


def certified() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority, trusting = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trusting)
    proving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(proving)
    return trusting, proving


async def test_end_of_a_body_without_a_length_has_to_be_announced_below_tls() -> None:
    trusting, proving = certified()

    async def script(peer: Peer) -> None:
        line = (await peer.read_request()).line
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nall")
        if b"broken" in line:
            peer.hang_up_now()

    async with hostile(script, tls=proving) as upstream, HTTP11Transport(ssl_context=trusting) as transport:
        assert await ask(transport, upstream.url + "/announced") == b"all"
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(transport, upstream.url + "/broken")


async def test_answer_that_is_no_http_is_an_error_and_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"220 smtp.example ESMTP\r\n")
        await peer.until_client_left()

    async with reached(script, max_connections=1) as (transport, upstream):
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await ask(transport, upstream.url, pool=0.001)

        assert all([await soon(peer.over) for peer in upstream.peers])


async def test_answer_that_goes_wrong_in_its_body_is_an_error_and_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(chunked_head("text/plain") + b"x\r\n")
        await peer.until_client_left()

    async with reached(script) as (transport, upstream):
        response = await transport.handle_async_request(request(upstream.url))
        with pytest.raises(httpx.RemoteProtocolError):
            await read(response)

        assert await soon(upstream.peers[0].over)


async def test_body_without_a_length_ends_with_its_connection() -> None:
    async with reached(ending(b"HTTP/1.1 200 OK\r\n\r\n", b"so", b"me")) as (transport, upstream):
        assert await ask(transport, upstream.url) == b"some"


async def test_body_of_an_iterator_that_cannot_be_closed_is_sent() -> None:
    class Letters:
        def __init__(self) -> None:
            self.rest = [b"x", b"y"]

        def __aiter__(self) -> Letters:
            return self

        async def __anext__(self) -> bytes:
            if not self.rest:
                raise StopAsyncIteration
            return self.rest.pop()

    class Body(Pieces):
        def __aiter__(self) -> AsyncIterator[bytes]:
            return Letters()

    async with reached(answering) as (transport, upstream):
        body = Body(length=2)
        assert await read(await transport.handle_async_request(request(upstream.url, body))) == b"POST / HTTP/1.1"
        assert upstream.log.endswith(b"\r\n\r\nyx")


@pytest.mark.parametrize("ending_with", ["nothing", "bytes", "reset"])
async def test_connection_that_went_bad_before_anything_was_sent_is_replaced(ending_with: str) -> None:
    async with reached(answering) as (transport, upstream):

        async def spoil() -> None:
            """The connection was taken, and the body is awaited."""
            peer = upstream.peers[0]
            if ending_with == "nothing":
                peer.hang_up_now()
            elif ending_with == "bytes":
                peer.say_now(answer("200 OK", b"for nobody"))
            else:
                peer.reset_now()

        class Late(Pieces):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                await spoil()
                yield b"x"

        assert await ask(transport, upstream.url) == b"GET / HTTP/1.1"
        assert await read(await transport.handle_async_request(request(upstream.url, Late(length=1)))) == (
            b"POST / HTTP/1.1"
        )

        assert [peer.log.count(b"HTTP/1.1") for peer in upstream.peers] == [1, 1]
        assert await soon(upstream.peers[0].over)


async def test_connection_that_went_bad_while_the_body_was_awaited_is_replaced() -> None:
    others: list[socket.socket] = []

    async with reached(answering) as (transport, upstream):

        class Late(Pieces):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                upstream.peers[0].hang_up_now()
                await until_still(upstream.peers[0].over.is_set)
                others.extend(socket.socketpair())  # one has the number that the connection's socket had
                yield b"x"

        await ask(transport, upstream.url)
        await transport.handle_async_request(request(upstream.url, Late(length=1)))

        assert [peer.log.count(b"HTTP/1.1") for peer in upstream.peers] == [1, 1]
    for other in others:
        other.close()


async def test_tls_connection_on_which_half_a_record_came_is_replaced_and_closed() -> None:
    trusting, proving = certified()
    async with hostile(answering, tls=proving) as upstream, HTTP11Transport(ssl_context=trusting) as transport:

        class Late(Pieces):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                upstream.peers[0].say_now(b"\x17\x03\x03")
                yield b"x"

        await ask(transport, upstream.url)
        await transport.handle_async_request(request(upstream.url, Late(length=1)))

        assert [peer.log.count(b"HTTP/1.1") for peer in upstream.peers] == [1, 1]
        assert await soon(upstream.peers[0].over)


async def test_server_that_closes_whatever_it_accepts_is_an_error() -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.aclose()

    async with reached(script, max_connections=1) as (transport, upstream):

        class Late(Pieces):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                await until_still(lambda: len(upstream.peers))
                yield b"x"

        for _ in range(5):
            with pytest.raises(httpx.TransportError):
                await transport.handle_async_request(request(upstream.url, Late(length=1), pool=0.001))
