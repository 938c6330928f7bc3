"""Requests: what is on the wire, and what is refused before a byte is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator

import h11
import httpx
import pytest

from .asking import Headers, Kind, ask, exchange, post, request
from .scripts import OK, answering, answering_in_turn, silent
from .upstreams import Peer, hostile, soon, until_still


async def said(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_request_is_sent_as_it_was_given(kind: Kind) -> None:
    headers = [(b"X-Case", b"a"), (b"x-case", b"b"), (b"X-Bytes", b"caf\xe9"), (b"X-Empty", b"")]
    async with hostile(answering(OK)) as upstream, kind.open() as transport:
        asked = request(f"{upstream.url}/a%20b/c?d=e%2Ff&g", "PATCH", headers=headers, content=b"body")
        await exchange(transport, asked)

    head, _, body = upstream.log.partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    assert line == b"PATCH /a%20b/c?d=e%2Ff&g HTTP/1.1"
    assert lines == [b"%b: %b" % pair for pair in asked.headers.raw]
    assert body == b"body"


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "PROPFIND"])
async def test_request_without_a_body_has_no_length(kind: Kind, method: str) -> None:
    async with hostile(answering_in_turn(b"HTTP/1.1 204 No\r\n\r\n")) as upstream, kind.open() as transport:
        found = await exchange(transport, request(upstream.url, method))

    assert found.status == 204
    assert upstream.log.startswith(method.encode() + b" / HTTP/1.1\r\n")
    assert upstream.log.endswith(b"\r\n\r\n")
    assert b"ontent-" not in upstream.log


async def test_empty_post_says_so(kind: Kind) -> None:
    async with hostile(answering(OK)) as upstream, kind.open() as transport:
        await post(transport, upstream.url, b"")

    assert b"Content-Length: 0\r\n" in upstream.log


async def test_streamed_body_is_sent_in_chunks(kind: Kind) -> None:
    async with hostile(answering(OK)) as upstream, kind.open() as transport:
        await post(transport, upstream.url, said(b"hello ", b"", b"0123456789abcdef"))
        found = await ask(transport, upstream.url)

    body = upstream.log.partition(b"\r\n\r\n")[2].partition(b"GET")[0]
    assert body.lower() == b"6\r\nhello \r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"
    assert (found.body, len(upstream.peers)) == (b"ok", 1)


async def test_streamed_body_of_nothing_is_sent(kind: Kind) -> None:
    async with hostile(answering(OK)) as upstream, kind.open() as transport:
        await post(transport, upstream.url, said())

    assert upstream.log.endswith(b"\r\n\r\n0\r\n\r\n")


async def test_streamed_body_of_a_known_length_is_sent_as_it_is(kind: Kind) -> None:
    asked_with = [(b"Content-Length", b"8")]
    async with hostile(answering(OK)) as upstream, kind.open() as transport:
        for _ in range(2):
            asked = request(upstream.url, "POST", headers=asked_with, content=said(b"four", b"", b"more"))
            await exchange(transport, asked)

    assert upstream.log.count(b"\r\n\r\nfourmore") == 2
    assert b"hunked" not in upstream.log
    assert len(upstream.peers) == 1


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        pytest.param([b"four"], b"four", id="too-little"),
        pytest.param([], b"", id="nothing"),
        pytest.param([b"four", b"more", b"!"], b"fourmore", id="too-much"),
        pytest.param([b"four more"], b"", id="too-much-at-once"),
    ],
)
async def test_body_of_another_length_than_was_said_is_an_error_and_ends_the_connection(
    kind: Kind, content: list[bytes], kept: bytes
) -> None:
    async with hostile(silent) as upstream, kind.open(max_connections=1) as transport:
        asked = request(upstream.url, "POST", headers=[(b"Content-Length", b"8")], content=said(*content))
        # httpcore lets the error of h11 through
        with pytest.raises(kind.of(http11=httpx.LocalProtocolError, httpx=h11.LocalProtocolError)):
            await exchange(transport, asked)
        closed = not upstream.peers or await soon(upstream.peers[0].over)
        with pytest.raises(httpx.ReadTimeout):  # and no PoolTimeout
            await ask(transport, upstream.url, pool=0.5, read=0.02)

    assert closed
    assert kept.startswith(upstream.peers[0].log.partition(b"\r\n\r\n")[2]) or b"POST" not in upstream.log


SMUGGLED = b"x\r\nX-Smuggled: 1"
LENIENT = "h11 sends it"


def illegal() -> list[tuple[str, str, Headers, str | None]]:
    names = {
        "line-break": SMUGGLED,
        "lf": b"x\nX-Smuggled",
        "cr": b"x\rX-Smuggled",
        "nul": b"x\0X-Smuggled",
        "colon": b"x:X-Smuggled",
        "blank": b"x X-Smuggled",
        "blank-at-the-end": b"X-Smuggled ",
        "nothing": b"",
    }
    values = {
        "line-break": SMUGGLED,
        "lf": b"x\nX-Smuggled: 1",
        "cr": b"x\rX-Smuggled: 1",
        "nul": b"x\0X-Smuggled",
        "fold": b"x\r\n X-Smuggled",
        "line-break-at-the-end": b"x\r\n",
        "line-break-at-the-start": b"\r\nX-Smuggled: 1",
    }
    return [
        *((f"{name}-in-a-name", "GET", [(value, b"1")], None) for name, value in names.items()),
        *((f"{name}-in-a-value", "GET", [(b"X-Value", value)], None) for name, value in values.items()),
        *((f"{name}-in-the-host", "GET", [(b"Host", value)], None) for name, value in values.items()),
        ("line-break-in-the-method", "GET / HTTP/1.1\r\nX-SMUGGLED: 1\r\n\r\nGET", [], None),
        ("blank-in-the-method", "GET /X-SMUGGLED HTTP/1.1", [], None),
        ("nul-in-the-method", "GET\0X-SMUGGLED", [], None),
        ("no-method", "", [], None),
        ("both-lengths", "POST", [(b"Content-Length", b"4"), (b"Transfer-Encoding", b"chunked")], LENIENT),
        ("differing-lengths", "POST", [(b"Content-Length", b"4"), (b"Content-Length", b"5")], None),
        ("same-length-twice", "POST", [(b"Content-Length", b"4"), (b"Content-Length", b"4")], LENIENT),
        ("list-of-lengths", "POST", [(b"Content-Length", b"4, 4")], LENIENT),
        ("signed-length", "POST", [(b"Content-Length", b"+4")], None),
        ("word-of-length", "POST", [(b"Content-Length", b"four")], None),
        ("other-coding", "POST", [(b"Transfer-Encoding", b"gzip, chunked")], None),
        ("coding-twice", "POST", [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")], None),
        ("two-hosts", "GET", [(b"Host", b"a"), (b"Host", b"b")], None),
    ]


@pytest.mark.parametrize(
    ("method", "headers", "lenient"),
    [pytest.param(method, headers, lenient, id=name) for name, method, headers, lenient in illegal()],
)
async def test_request_that_could_be_read_in_two_ways_is_never_sent(
    kind: Kind, method: str, headers: Headers, lenient: str | None
) -> None:
    async with hostile(answering_in_turn(OK)) as upstream, kind.open(max_connections=1) as transport:
        asked = request(upstream.url, method, headers=headers, content=said(b"four") if method == "POST" else None)
        if lenient and kind.name == "httpx":
            await exchange(transport, asked)
        else:
            with pytest.raises(httpx.LocalProtocolError):
                await exchange(transport, asked)
            await until_still(lambda: upstream.log)
            assert upstream.log == b""
        found = await ask(transport, f"{upstream.url}/next", pool=5) if not lenient else None

    assert found is None or found.body == b"ok"


@pytest.mark.parametrize("break_", [b"\r\n", b"\n", b"\r", b"\0", b" "], ids=["crlf", "lf", "cr", "nul", "blank"])
async def test_target_never_breaks_out_of_its_line(kind: Kind, break_: bytes) -> None:
    target = b"/ HTTP/1.1" + break_ + b"X-Smuggled: 1"
    async with hostile(answering_in_turn(OK)) as upstream, kind.open() as transport:
        asked = request(upstream.url)
        asked.extensions["target"] = target
        outcome: object = None
        try:
            outcome = (await exchange(transport, asked)).status
        except httpx.LocalProtocolError as error:
            outcome = type(error)

    assert outcome in (200, httpx.LocalProtocolError)
    assert b"X-Smuggled" not in upstream.log


async def test_head_and_a_small_body_arrive_together(kind: Kind) -> None:
    arrived = []

    async def script(peer: Peer) -> None:
        arrived.append(await peer.read())
        await peer.read_until(b"small")
        await peer.send(OK)

    async with hostile(script) as upstream, kind.open() as transport:
        await post(transport, upstream.url, b"small")

    assert arrived[0].endswith(b"small") or kind.name == "httpx"  # httpcore writes them one by one


async def test_connection_that_the_request_says_to_close_is_not_used_again(kind: Kind) -> None:
    async with hostile(answering(OK)) as upstream, kind.open() as transport:
        asked = request(upstream.url, headers=[(b"Connection", b"close")])
        answers = [await exchange(transport, asked) for _ in range(2)]
        await until_still(lambda: upstream.standing)
        standing = upstream.standing

    assert [found.body for found in answers] == [b"ok"] * 2
    assert (len(upstream.peers), standing) == (2, 0)
