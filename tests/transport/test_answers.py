"""Answers: how they are framed, in how many pieces they arrive, and what stands before and behind them."""

from __future__ import annotations

import anyio
import pytest

from ..raw_upstream import LAST_CHUNK, Connection, answer, chunk, chunked_head
from .asking import Answer, Kind, ask, exchange, pieces, read, request
from .scripts import OK, answering, answering_in_turn, ending
from .upstreams import Peer, hostile, soon, turns

CHUNKED = chunked_head("text/plain")
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("said", "body"),
    [
        pytest.param(answer("200 OK", b"hello"), b"hello", id="length"),
        pytest.param(answer("200 OK"), b"", id="length-of-zero"),
        pytest.param(HEAD + b"CONTENT-LENGTH:5\r\n\r\nhello", b"hello", id="no-space-behind-the-colon"),
        pytest.param(HEAD + b"Content-Length: \t 5 \t\r\n\r\nhello", b"hello", id="blanks-around-a-value"),
        pytest.param(HEAD + b"Content-Length: 05\r\n\r\nhello", b"hello", id="length-with-a-leading-zero"),
        pytest.param(CHUNKED + chunk(b"hel") + chunk(b"lo") + LAST_CHUNK, b"hello", id="chunks"),
        pytest.param(CHUNKED + LAST_CHUNK, b"", id="no-chunks"),
        pytest.param(CHUNKED + b"000a\r\n0123456789\r\n00\r\n\r\n", b"0123456789", id="sizes-with-leading-zeros"),
        pytest.param(CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", id="size-in-capitals"),
        pytest.param(CHUNKED + b'3;a=b;c="d;e"\r\nabc\r\n0;last\r\n\r\n', b"abc", id="extensions"),
        pytest.param(CHUNKED + b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n", b"abc", id="trailers"),
        pytest.param(HEAD + b"transfer-encoding: Chunked\r\n\r\n" + LAST_CHUNK, b"", id="coding-in-capitals"),
        pytest.param(CHUNKED + chunk(b"0\r\n\r\n") + LAST_CHUNK, b"0\r\n\r\n", id="body-that-looks-like-its-end"),
        pytest.param(CHUNKED + chunk(bytes(range(256)) * 999) + LAST_CHUNK, bytes(range(256)) * 999, id="long-chunk"),
        pytest.param(b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", b"ok", id="empty-reason"),
    ],
)
async def test_answer_is_read_whole_and_its_connection_is_used_again(kind: Kind, said: bytes, body: bytes) -> None:
    async with hostile(answering(said)) as upstream, kind.open() as transport:
        answers = [await ask(transport, upstream.url) for _ in range(2)]

    assert [(found.status, found.body) for found in answers] == [(200, body)] * 2
    assert len(upstream.peers) == 1


async def test_header_bytes_and_duplicates_are_kept_in_their_order_and_trailers_are_dropped(kind: Kind) -> None:
    lines = [b"Set-Cookie: a=1", b"X-Bytes: caf\xe9 \xff", b"set-cookie: b=2", b"X-Empty:", b"X-Blanks: a \t b"]
    said = chunked_head("text/plain", *lines) + chunk(b"x") + b"0\r\nX-Trailer: 1\r\n\r\n"
    async with hostile(answering(said)) as upstream, kind.open() as transport:
        found = await ask(transport, upstream.url)

    assert found.headers == [
        (b"Content-Type", b"text/plain"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Set-Cookie", b"a=1"),
        (b"X-Bytes", b"caf\xe9 \xff"),
        (b"set-cookie", b"b=2"),
        (b"X-Empty", b""),
        (b"X-Blanks", b"a \t b"),
    ]


async def test_status_line_is_told(kind: Kind) -> None:
    said = [
        (b"HTTP/1.1 299 Fine \xe9 enough", (299, b"HTTP/1.1", b"Fine \xe9 enough")),
        (b"HTTP/1.1 500 ", (500, b"HTTP/1.1", b"")),
        (b"HTTP/1.0 404 No", (404, b"HTTP/1.0", b"No")),
    ]
    told = []
    for line, _ in said:
        async with hostile(answering(line + b"\r\nContent-Length: 0\r\n\r\n")) as upstream, kind.open() as transport:
            response = await transport.handle_async_request(request(upstream.url))
            await read(response)
        extensions = response.extensions
        told.append((response.status_code, extensions["http_version"], extensions["reason_phrase"]))

    assert told == [expected for _, expected in said]


RECORDED = [
    pytest.param(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\nX-Empty:\r\n\r\n"
        b"3;a=b\r\nabc\r\n0010\r\n0123456789\r\nABC\r" + b"\r\n0\r\nX-Trailer: 1\r\n\r\n",
        b"abc0123456789\r\nABC\r",
        id="chunked",
    ),
    pytest.param(answer("200 OK", b"0123\r\n\r\n456", b"X-Header: \t value "), b"0123\r\n\r\n456", id="length"),
]


@pytest.mark.parametrize(("recorded", "body"), RECORDED)
async def test_answer_is_the_same_wherever_it_is_cut(kind: Kind, recorded: bytes, body: bytes) -> None:
    halves = [[recorded[:cut], recorded[cut:]] for cut in range(1, len(recorded))]
    single = [recorded[place : place + 1] for place in range(len(recorded))]
    by_turn = iter([[recorded], *halves, single])

    async def script(peer: Peer) -> None:
        for apart in by_turn:
            await peer.read_request()
            for piece in apart:
                await peer.send(piece)
                await turns(3)
        await peer.until_client_left()

    async with hostile(script) as upstream, kind.open() as transport:
        answers = [await ask(transport, upstream.url) for _ in range(len(recorded) + 1)]

    assert answers == [answers[0]] * len(answers)
    assert (answers[0].status, answers[0].body) == (200, body)
    assert len(upstream.peers) == 1


@pytest.mark.parametrize(
    ("method", "head"),
    [
        pytest.param("HEAD", HEAD + b"Content-Length: 5\r\n\r\n", id="head-with-a-length"),
        pytest.param("HEAD", HEAD + b"Transfer-Encoding: chunked\r\n\r\n", id="head-with-chunks"),
        pytest.param("HEAD", HEAD + b"\r\n", id="head-without-either"),
        pytest.param("GET", b"HTTP/1.1 204 No Content\r\n\r\n", id="204"),
        pytest.param("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", id="304-with-a-length"),
        pytest.param("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", id="304-with-chunks"),
        pytest.param("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", id="204-with-a-length"),
    ],
)
async def test_answer_that_has_no_body_ends_with_its_head(kind: Kind, method: str, head: bytes) -> None:
    async with hostile(answering_in_turn(head, OK)) as upstream, kind.open() as transport:
        first = await exchange(transport, request(upstream.url, method))
        second = await ask(transport, upstream.url)

    assert (first.body, second.body) == (b"", b"ok")
    assert len(upstream.peers) == 1


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="no-length"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n", id="http-1.0"),
        pytest.param(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", id="http-1.0-keep-alive-without-length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", id="connection-close"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"until the end\r\n\r\n"], ids=["empty", "body"])
async def test_answer_without_a_length_ends_with_its_connection(kind: Kind, head: bytes, body: bytes) -> None:
    async with hostile(ending(head, body[:5], body[5:])) as upstream, kind.open() as transport:
        answers = [await ask(transport, upstream.url) for _ in range(2)]

    assert [(found.status, found.body) for found in answers] == [(200, body)] * 2
    assert len(upstream.peers) == 2


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\n", id="close"),
        pytest.param(b"HTTP/1.1 200 OK\r\nconnection: x, CLOSE\r\n", id="close-in-a-list"),
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: x\r\nConnection: close\r\n", id="close-in-a-second-header"),
        pytest.param(b"HTTP/1.0 200 OK\r\n", id="http-1.0"),
    ],
)
async def test_connection_that_will_be_closed_is_not_used_again(kind: Kind, head: bytes) -> None:
    said = head + b"Content-Length: 2\r\n\r\nok"
    async with hostile(answering_in_turn(said)) as upstream, kind.open() as transport:
        answers = [await ask(transport, upstream.url) for _ in range(2)]
        closed = await soon(upstream.peers[1].over)

    assert [found.body for found in answers] == [b"ok"] * 2
    assert len(upstream.peers) == 2
    assert closed


async def test_keep_alive_of_http_1_0_is_honoured(kind: Kind) -> None:
    said = b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok"
    async with hostile(answering(said)) as upstream, kind.open() as transport:
        answers = [await ask(transport, upstream.url) for _ in range(2)]

    assert [found.body for found in answers] == [b"ok"] * 2
    assert len(upstream.peers) == kind.of(http11=1, httpx=2)  # h11 never keeps a connection of HTTP/1.0


async def test_answers_in_between_are_skipped(kind: Kind) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 9\r\n\r\n"
    between = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + hints
    async with hostile(answering(between, OK, b"")) as upstream, kind.open() as transport:
        answers = [await ask(transport, upstream.url) for _ in range(2)]

    assert [(found.status, found.body) for found in answers] == [(200, b"ok")] * 2
    assert answers[0].values(b"link") == []
    assert len(upstream.peers) == 1


async def test_first_byte_of_a_body_is_delivered_before_the_second_is_sent(kind: Kind) -> None:
    seen = {name: anyio.Event() for name in ("head", "1", "2")}

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(CHUNKED)
        await seen["head"].wait()
        for digit in ("1", "2"):
            await connection.send(chunk(digit.encode()))
            await seen[digit].wait()
        await connection.send(LAST_CHUNK)

    got = []
    async with hostile(script) as upstream, kind.open() as transport:
        response = await transport.handle_async_request(request(upstream.url))
        seen["head"].set()
        async for piece in pieces(response):
            got.append(piece)
            seen[piece.decode()].set()
        await response.aclose()

    assert got == [b"1", b"2"]


async def test_a_byte_of_an_unfinished_chunk_is_delivered(kind: Kind) -> None:
    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(CHUNKED + b"5\r\nh")
        await connection.until_client_left()

    async with hostile(script) as upstream, kind.open() as transport:
        response = await transport.handle_async_request(request(upstream.url))
        body = pieces(response)
        first = await anext(body)
        await response.aclose()

    assert first == b"h"


async def test_answer_of_a_megabyte_is_whole(kind: Kind) -> None:
    body = bytes(range(256)) * 4096
    async with hostile(answering(answer("200 OK", body))) as upstream, kind.open() as transport:
        found = await ask(transport, upstream.url)

    assert found == Answer(200, found.headers, body, b"OK")
