"""Answers that break off, and bytes behind an answer that nobody asked for."""

from __future__ import annotations

import httpx
import pytest
import trustme

from ..raw_upstream import LAST_CHUNK, answer, chunk, chunked_head
from .asking import Kind, ask, exchange, pieces, request
from .scripts import OK, ending, proven, send_apart, trusted
from .upstreams import Peer, PeerScript, hostile, turns, until_still

CHUNKED = chunked_head("text/plain")

BROKEN = [
    pytest.param(answer("200 OK", b"12345")[:-1], id="length-short-by-one"),
    pytest.param(answer("200 OK", b"12345")[:-5], id="length-without-a-byte"),
    pytest.param(CHUNKED, id="chunked-without-a-chunk"),
    pytest.param(CHUNKED + b"5\r\n12", id="within-a-chunk"),
    pytest.param(CHUNKED + b"5", id="within-a-size"),
    pytest.param(CHUNKED + b"5\r\n12345", id="before-the-end-of-a-chunk"),
    pytest.param(CHUNKED + chunk(b"12345"), id="between-chunks"),
    pytest.param(CHUNKED + chunk(b"12345") + b"0\r\n", id="before-the-last-line"),
    pytest.param(CHUNKED + chunk(b"12345") + b"0\r\nX: y\r\n", id="behind-a-trailer"),
    pytest.param(CHUNKED + chunk(b"12345") + b"0\r\n\r", id="within-the-last-line"),
]


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("said", BROKEN)
async def test_answer_that_breaks_off_is_never_taken_for_a_whole_one(kind: Kind, said: bytes, reset: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await send_apart(peer, said)
        if reset:
            peer.reset_now()

    got: list[bytes] = []

    async def keep(response: httpx.Response) -> None:
        async for piece in pieces(response):
            got.append(piece)

    async with hostile(script) as upstream, kind.open(max_connections=1) as transport:
        response = await transport.handle_async_request(request(upstream.url))
        with pytest.raises(httpx.ReadError if reset else httpx.RemoteProtocolError):
            await keep(response)
        await response.aclose()

    assert b"12345".startswith(b"".join(got))


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", id="half-a-head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r", id="nearly-a-head"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="interim-answer-only"),
    ],
)
@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
async def test_connection_that_ends_before_the_head_is_an_error(kind: Kind, said: bytes, reset: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await send_apart(peer, said)
        if reset:
            peer.reset_now()

    async with hostile(script) as upstream, kind.open() as transport:
        with pytest.raises(httpx.ReadError if reset else httpx.RemoteProtocolError):
            await ask(transport, upstream.url)

    assert len(upstream.peers) == 1


SURPLUS = {
    # what is behind an answer, and what h11 makes of it: the next answer, or its beginning
    "answer": (answer("200 OK", b"not yours"), b"not yours"),
    "byte": (b"x", None),
    "empty-line": (b"\r\n", None),
    "interim-answer": (b"HTTP/1.1 100 Continue\r\n\r\n", b"ok"),
    "408": (b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", b""),
}
surplus_cases = pytest.mark.parametrize(
    ("surplus", "taken"), [pytest.param(surplus, taken, id=name) for name, (surplus, taken) in SURPLUS.items()]
)
complete_answers = pytest.mark.parametrize(
    ("method", "said", "body"),
    [
        pytest.param("GET", OK, b"ok", id="length"),
        pytest.param("GET", CHUNKED + chunk(b"ok") + LAST_CHUNK, b"ok", id="chunks"),
        pytest.param("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"", id="204"),
        pytest.param("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", b"", id="304"),
        pytest.param("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"", id="head"),
    ],
)


def saying_too_much(said: bytes) -> PeerScript:
    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.read_request()
            await peer.send(OK if b"second" in asked.line else said)

    return script


@surplus_cases
@complete_answers
async def test_bytes_sent_with_an_answer_never_answer_the_next_request(
    kind: Kind, method: str, said: bytes, body: bytes, surplus: bytes, taken: bytes | None
) -> None:
    async with hostile(saying_too_much(said + surplus)) as upstream, kind.open(max_connections=1) as transport:
        first = await exchange(transport, request(upstream.url, method))
        try:
            second = (await ask(transport, f"{upstream.url}/second")).body
        except httpx.RemoteProtocolError:
            second = None

    assert first.body == body
    # httpcore starts the next cycle with what h11 has left of the last one
    assert (second, len(upstream.peers)) == kind.of(http11=(b"ok", 2), httpx=(taken, 1))


@surplus_cases
@pytest.mark.parametrize("noticed", [0, 20], ids=["in-this-turn", "some-turns-ago"])
async def test_bytes_sent_to_an_idle_connection_never_answer_the_next_request(
    kind: Kind, surplus: bytes, taken: bytes | None, noticed: int
) -> None:
    async with hostile(saying_too_much(OK)) as upstream, kind.open(max_connections=1) as transport:
        await ask(transport, upstream.url)
        upstream.peers[0].say_now(surplus)
        await turns(noticed)
        second = await ask(transport, f"{upstream.url}/second")

    assert (second.body, len(upstream.peers)) == (b"ok", 2)


LONG = b"0123456789abcdef" * (1 << 16)  # more than is read ahead
late_heads = pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="until-the-end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LONG), id="length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(LONG) + 1), id="length-short-by-one"),
    ],
)


@late_heads
@pytest.mark.parametrize("secret", [False, True], ids=["plain", "tls"])
async def test_slow_reader_of_a_connection_that_ended_long_ago_gets_all_of_it(
    kind: Kind, authority: trustme.CA, head: bytes, secret: bool
) -> None:
    async with (
        hostile(ending(head, LONG), tls=proven(authority, "127.0.0.1") if secret else None) as upstream,
        kind.open(ssl_context=trusted(authority), max_connections=1) as transport,
    ):
        response = await transport.handle_async_request(request(upstream.url))
        got: list[bytes] = []
        whole = True
        try:
            async for piece in pieces(response):
                got.append(piece)
                await until_still(lambda: upstream.peers[0].sent, number=5)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            whole = False
        await response.aclose()

    assert b"".join(got) == LONG
    assert whole == (b"%d" % (len(LONG) + 1) not in head)


async def test_answer_is_whole_although_its_connection_ends_with_it(kind: Kind) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        peer.hang_up_now()

    async with hostile(script) as upstream, kind.open() as transport:
        answers = []
        for _ in range(2):
            answers.append(await ask(transport, upstream.url))
            await turns(5)

    assert [found.body for found in answers] == [b"ok"] * 2
    assert len(upstream.peers) == 2
