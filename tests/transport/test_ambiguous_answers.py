"""Answers that can be read in two ways, or never end: refused, and their connections with them."""

from __future__ import annotations

import httpx
import pytest

from ..raw_upstream import LAST_CHUNK, chunk, chunked_head
from .asking import Kind, ask
from .scripts import OK, send_apart
from .upstreams import Peer, hostile, soon

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = chunked_head("text/plain")
END = b"\r\n\r\n"
LENIENT = "h11 takes it"  # httpx reads with h11, whose leniency is not ours to change


# how bytes are read does not depend on the event loop
pytestmark = pytest.mark.parametrize("kind", [Kind("httpx"), Kind("http11")], ids=["httpx", "http11"])


def heads() -> list[tuple[str, bytes, str | None]]:
    length, coding = b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n"
    return [
        ("both-lengths", HEAD + length + coding + b"\r\n" + chunk(b"ok") + LAST_CHUNK, LENIENT),
        ("both-lengths-turned", HEAD + coding + length + b"\r\n" + chunk(b"ok") + LAST_CHUNK, LENIENT),
        ("differing-lengths", HEAD + length + b"Content-Length: 3\r\n\r\nokk", None),
        ("same-length-twice", HEAD + length + length + b"\r\nok", LENIENT),
        ("list-of-lengths", HEAD + b"Content-Length: 2, 2\r\n\r\nok", LENIENT),
        *(
            (f"length-{name}", HEAD + b"Content-Length: " + value + b"\r\n\r\nok", None)
            for name, value in {
                "with-a-plus": b"+2",
                "negative": b"-2",
                "hexadecimal": b"0x2",
                "with-underscore": b"1_0",
                "empty": b"",
                "with-a-blank": b"1 0",
                "fraction": b"2.0",
                "word": b"two",
                "in-other-digits": "٢".encode(),
                "quoted": b'"2"',
                "of-21-digits": b"1" * 21,
            }.items()
        ),
        ("length-beyond-64-bits", HEAD + b"Content-Length: 18446744073709551618\r\n\r\nok", "h11 waits for it"),
        *(
            (f"coding-{name}", HEAD + b"Transfer-Encoding: " + value + END + chunk(b"ok") + LAST_CHUNK, None)
            for name, value in {
                "gzip": b"gzip",
                "gzip-and-chunked": b"gzip, chunked",
                "chunked-and-gzip": b"chunked, gzip",
                "identity": b"identity",
                "chunked-twice": b"chunked, chunked",
                "with-parameter": b"chunked;q=1",
                "quoted": b'"chunked"',
                "with-vertical-tab": b"\x0bchunked",
                "empty": b"",
                "nearly-chunked": b"xchunked",
                "starts-chunked": b"chunkedx",
            }.items()
        ),
        ("two-codings", HEAD + coding + coding + b"\r\n" + chunk(b"ok") + LAST_CHUNK, None),
        ("coding-in-http-1.0", b"HTTP/1.0 200 OK\r\n" + coding + b"\r\n" + chunk(b"ok") + LAST_CHUNK, LENIENT),
        ("obs-fold", HEAD + length + b"X-Fold: a\r\n b\r\n\r\nok", LENIENT),
        ("obs-fold-with-a-tab", HEAD + length + b"X-Fold: a\r\n\tb\r\n\r\nok", LENIENT),
        ("obs-fold-of-a-length", HEAD + b"Content-Length:\r\n 2\r\n\r\nok", LENIENT),
        ("fold-of-the-status-line", HEAD + b" X: y\r\n" + length + b"\r\nok", None),
        ("bare-lf-in-the-status-line", b"HTTP/1.1 200 OK\n" + length + b"\r\nok", LENIENT),
        ("bare-lf-behind-a-header", HEAD + b"X: y\n" + length + b"\r\nok", LENIENT),
        ("bare-lf-at-the-end", HEAD + length + b"\nok", LENIENT),
        ("bare-lf-twice", HEAD + b"Content-Length: 2\n\nok", LENIENT),
        ("bare-cr-in-a-value", HEAD + length + b"X: a\rb\r\n\r\nok", None),
        ("bare-cr-before-the-end", HEAD + length + b"X: a\r\r\n\r\nok", None),
        ("bare-cr-in-the-reason", b"HTTP/1.1 200 O\rK\r\n" + length + b"\r\nok", None),
        ("bare-cr-instead-of-an-end", HEAD + b"X: a\rContent-Length: 2\r\n\r\nok", None),
        ("blank-before-the-colon", HEAD + b"Content-Length : 2\r\n\r\nok", None),
        ("tab-before-the-colon", HEAD + length + b"X\t: 2\r\n\r\nok", None),
        ("blank-in-a-name", HEAD + length + b"X Y: 2\r\n\r\nok", None),
        ("no-name", HEAD + length + b": 2\r\n\r\nok", None),
        ("no-colon", HEAD + length + b"X\r\n\r\nok", None),
        ("brackets-in-a-name", HEAD + length + b"X(Y): 2\r\n\r\nok", None),
        ("non-ascii-name", HEAD + length + b"X\xe9: 2\r\n\r\nok", None),
        ("nul-in-a-name", HEAD + length + b"X\0Y: 2\r\n\r\nok", None),
        ("nul-in-a-value", HEAD + length + b"X: a\0b\r\n\r\nok", None),
        ("control-byte-in-a-value", HEAD + length + b"X: a\x01b\r\n\r\nok", LENIENT),
        ("escape-in-a-value", HEAD + length + b"X: \x1b[31m\r\n\r\nok", LENIENT),
        ("delete-in-a-value", HEAD + length + b"X: a\x7fb\r\n\r\nok", LENIENT),
        ("nul-in-the-reason", b"HTTP/1.1 200 O\0K\r\n" + length + b"\r\nok", None),
        *(
            (f"status-line-{name}", line + b"\r\n" + length + b"\r\nok", lenient)
            for name, line, lenient in [
                ("of-http-0.9", b"HTTP/0.9 200 OK", LENIENT),
                ("of-http-1.2", b"HTTP/1.2 200 OK", LENIENT),
                ("of-http-2.0", b"HTTP/2.0 200 OK", LENIENT),
                ("of-http-1", b"HTTP/1 200 OK", None),
                ("of-http-1.10", b"HTTP/1.10 200 OK", None),
                ("in-small-letters", b"http/1.1 200 OK", None),
                ("of-icy", b"ICY 200 OK", None),
                ("of-rtsp", b"RTSP/1.0 200 OK", None),
                ("without-a-code", b"HTTP/1.1 OK", None),
                ("with-two-digits", b"HTTP/1.1 20 OK", None),
                ("with-four-digits", b"HTTP/1.1 2000 OK", None),
                ("with-a-signed-code", b"HTTP/1.1 +20 OK", None),
                ("with-code-000", b"HTTP/1.1 000 OK", None),
                ("with-code-099", b"HTTP/1.1 099 OK", None),
                ("with-two-blanks", b"HTTP/1.1  200 OK", None),
                ("with-a-tab", b"HTTP/1.1\t200 OK", None),
                ("with-a-leading-blank", b" HTTP/1.1 200 OK", None),
            ]
        ),
        ("empty-line-first", b"\r\n" + OK, None),
        ("junk-first", b"x" + OK, None),
        ("another-protocol", b"SSH-2.0-OpenSSH_9.9\r\n\r\n", None),
        ("upgrade", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", None),
    ]


def bodies() -> list[tuple[str, bytes, str | None]]:
    return [
        *(
            (f"size-{name}", CHUNKED + size + b"\r\nok\r\n" + LAST_CHUNK, None)
            for name, size in {
                "with-a-plus": b"+2",
                "negative": b"-2",
                "hexadecimal-prefix": b"0x2",
                "with-underscore": b"0_2",
                "empty": b"",
                "with-a-leading-blank": b" 2",
                "with-a-leading-tab": b"\t2",
                "with-junk": b"2z",
                "letter": b"g",
                "with-a-blank-inside": b"0 2",
                "only-extension": b";a=b",
                "of-21-digits": b"1" * 21,
            }.items()
        ),
        ("size-beyond-64-bits", CHUNKED + b"10000000000000002\r\nok\r\n" + LAST_CHUNK, "h11 waits for it"),
        ("size-with-a-trailing-blank", CHUNKED + b"2 \r\nok\r\n" + LAST_CHUNK, LENIENT),
        ("size-with-a-trailing-tab", CHUNKED + b"2\t\r\nok\r\n" + LAST_CHUNK, LENIENT),
        ("bare-lf-behind-a-size", CHUNKED + b"2\nok\r\n" + LAST_CHUNK, None),
        ("bare-cr-behind-a-size", CHUNKED + b"2\rok\r\n" + LAST_CHUNK, None),
        ("bare-lf-behind-a-chunk", CHUNKED + b"2\r\nok\n" + LAST_CHUNK, None),
        ("bare-lf-in-an-extension", CHUNKED + b"2;a\nb\r\nok\r\n" + LAST_CHUNK, None),
        ("bare-cr-in-an-extension", CHUNKED + b"2;a\rb\r\nok\r\n" + LAST_CHUNK, LENIENT),
        ("nul-in-an-extension", CHUNKED + b"2;a\0b\r\nok\r\n" + LAST_CHUNK, LENIENT),
        ("chunk-longer-than-its-size", CHUNKED + b"2\r\nokk\r\n" + LAST_CHUNK, None),
        ("chunk-shorter-than-its-size", CHUNKED + b"3\r\nok\r\n" + LAST_CHUNK, None),
        ("bare-lf-behind-the-last-size", CHUNKED + chunk(b"ok") + b"0\n\r\n", None),
        ("bare-lf-at-the-end", CHUNKED + chunk(b"ok") + b"0\r\n\n", LENIENT),
        ("bare-lf-behind-a-trailer", CHUNKED + chunk(b"ok") + b"0\r\nX: y\n\r\n", LENIENT),
        ("bare-cr-in-a-trailer", CHUNKED + chunk(b"ok") + b"0\r\nX: a\rb\r\n\r\n", None),
        ("trailer-without-a-colon", CHUNKED + chunk(b"ok") + b"0\r\nX\r\n\r\n", None),
        ("blank-before-the-colon-of-a-trailer", CHUNKED + chunk(b"ok") + b"0\r\nX : y\r\n\r\n", None),
        ("fold-of-a-trailer", CHUNKED + chunk(b"ok") + b"0\r\nX: y\r\n z\r\n\r\n", LENIENT),
        ("nul-in-a-trailer", CHUNKED + chunk(b"ok") + b"0\r\nX: a\0b\r\n\r\n", None),
    ]


def endless() -> list[tuple[str, bytes, str | None]]:
    """More than anybody may have to hold: h11 bounds the bytes of a head, and neither their number nor extensions."""
    unbounded = "h11 bounds no number of lines"
    return [
        ("header", HEAD + b"Content-Length: 2\r\nX: " + b"x" * 300_000 + END + b"ok", None),
        ("header-without-an-end", HEAD + b"X: " + b"x" * 300_000, None),
        ("reason", b"HTTP/1.1 200 " + b"x" * 300_000 + b"\r\nContent-Length: 2\r\n\r\nok", None),
        ("headers", HEAD + b"X: " + b"\r\nX: ".join([b"x" * 50] * 9000) + b"\r\nContent-Length: 2\r\n\r\nok", None),
        ("small-headers", HEAD + b"a:\r\n" * 12_000 + b"Content-Length: 2\r\n\r\nok", unbounded),
        ("size", CHUNKED + b"0" * 300_000, None),
        ("extension", CHUNKED + b"2;" + b"x" * 300_000, None),
        ("extensions", CHUNKED + (b"1;" + b"x" * 15_000 + b"\r\nx\r\n") * 100 + LAST_CHUNK, unbounded),
        ("trailer", CHUNKED + b"0\r\nX: " + b"x" * 300_000, None),
        ("trailers", CHUNKED + b"0\r\n" + b"X: y\r\n" * 60_000 + b"\r\n", None),
        ("interim-answers", b"HTTP/1.1 100 Continue\r\n\r\n" * 5000 + OK, unbounded),
    ]


def cases(rows: list[tuple[str, bytes, str | None]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("said", "lenient"), [pytest.param(said, why, id=name) for name, said, why in rows])


async def refused(kind: Kind, said: bytes, lenient: str | None) -> None:
    """Both refuse, and close; but what h11 is lenient about reaches the caller of httpx, or is waited for."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        for start in range(0, len(said), 65536):
            await send_apart(peer, said[start : start + 65536])
        await peer.until_client_left()

    async with hostile(script) as upstream, kind.open(max_connections=1) as transport:
        if lenient and kind.name == "httpx":
            if "waits" in lenient:
                with pytest.raises(httpx.ReadTimeout):
                    await ask(transport, upstream.url, read=0.05)
            else:
                assert (await ask(transport, upstream.url)).status == 200
        else:
            with pytest.raises(httpx.RemoteProtocolError):
                await ask(transport, upstream.url)
            assert await soon(upstream.peers[0].over)


@cases(heads())
async def test_ambiguous_head_is_refused_and_its_connection_closed(
    kind: Kind, said: bytes, lenient: str | None
) -> None:
    await refused(kind, said, lenient)


@cases(bodies())
async def test_ambiguous_body_is_refused_and_its_connection_closed(
    kind: Kind, said: bytes, lenient: str | None
) -> None:
    await refused(kind, said, lenient)


@cases(endless())
async def test_head_and_framing_are_bounded(kind: Kind, said: bytes, lenient: str | None) -> None:
    await refused(kind, said, lenient)
