"""Answers as hypothesis makes them up: some by the grammar, some bent here and there, each cut into pieces."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

TEXT = st.text("abcxyz 0123456789", max_size=12).map(str.encode)
NAMES = st.sampled_from(
    [b"X-A", b"x-a", b"Set-Cookie", b"Content-Type", b"Date", b"Keep-Alive", b"Trailer", b"Upgrade"]
)
STATUSES = st.sampled_from([*[200] * 9, 201, 204, 204, 206, 299, 304, 304, 400, 404, 413, 429, 500, 503, 599, 600, 999])
REASONS = st.sampled_from([b" OK", b" ", b" Not \xe9 Found", b""])
INTERIM = st.sampled_from(
    [b"", b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"]
)
CONNECTION = st.sampled_from([b"", b"", b"", b"close", b"keep-alive", b"Close, x", b"x"])
EXTENSIONS = st.sampled_from([b"", b"", b"", b";a", b";a=b", b';a="b;c"'])
TOKENS = [
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"\0",
        b"\x0b",
        b"\x7f",
        b"\xff",
        b":",
        b";",
        b",",
        b"-",
        b"+",
        b"_",
    ),
    *(b"0", b"1", b"9", b"f", b"g", b"0x", b"00000000000000000000", b"ffffffffffffffff", b"x", b"chunked", b"gzip, "),
    *(b"Content-Length: 1\r\n", b"content-length:0\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"0\r\n\r\n", b"\r\n X: y", b"HTTP/1.0", b"1.1"),
]


@st.composite
def whole(draw: st.DrawFn) -> bytes:
    """An answer by the grammar (RFC 9112), framed in one of the ways there are, or in two."""
    version = draw(st.sampled_from([b"HTTP/1.1"] * 5 + [b"HTTP/1.0"]))
    lines = draw(st.lists(st.builds(lambda name, text: name + b": " + text, NAMES, TEXT), max_size=3))
    if connection := draw(CONNECTION):
        lines.append(b"Connection: " + connection)
    body = draw(TEXT)
    framing = draw(st.sampled_from(["length", "length", "chunks", "chunks", "chunks", "close"]))
    if framing == "length":
        lines.append(draw(st.sampled_from([b"Content-Length: ", b"content-length:"])) + b"%d" % len(body))
    elif framing == "chunks":
        lines.append(b"Transfer-Encoding: chunked")
        body = draw(chunked(body))
    head = b"%b %d%b" % (version, draw(STATUSES), draw(REASONS))
    return draw(INTERIM) + b"\r\n".join([head, *draw(st.permutations(lines)), b"", b""]) + body


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    said = b""
    while body:
        length = draw(st.integers(1, len(body)))
        size = draw(st.sampled_from([b"%x", b"%X", b"%02x", b"%08x"])) % length
        said += size + draw(EXTENSIONS) + b"\r\n" + body[:length] + b"\r\n"
        body = body[length:]
    trailers = draw(st.sampled_from([b"", b"", b"", b"X-Sum: 1\r\n", b"X-Sum:\r\nX-More: 2\r\n"]))
    return said + draw(st.sampled_from([b"0", b"00"])) + draw(EXTENSIONS) + b"\r\n" + trailers + b"\r\n"


@st.composite
def bent(draw: st.DrawFn, answers: st.SearchStrategy[bytes]) -> bytes:
    """An answer with a few bytes changed, put in, left out or said twice."""
    said = draw(answers)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(said)))
        end = min(len(said), start + draw(st.integers(0, 6)))
        put = draw(
            st.one_of(st.sampled_from(TOKENS), st.just(b""), st.just(said[start:end] * 2), st.binary(max_size=2))
        )
        said = said[:start] + put + said[end:]
    return said


@st.composite
def broken(draw: st.DrawFn, answers: st.SearchStrategy[bytes]) -> bytes:
    """An answer that breaks off."""
    said = draw(answers)
    return said[: -draw(st.integers(1, len(said) - 1))]


@st.composite
def pieces(draw: st.DrawFn, answers: st.SearchStrategy[bytes]) -> list[bytes]:
    """An answer, cut where it may be cut."""
    said = draw(answers)
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(said) - 1)), max_size=3)))
    edges = [0, *(cut for cut in cuts if cut < len(said)), len(said)]
    return [said[start:end] for start, end in itertools.pairwise(edges)]


ANSWERS = whole()
SURPLUS = st.sampled_from([b"", b"", b"x", b"\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"])
FOLLOWED = st.builds(bytes.__add__, ANSWERS, SURPLUS)
SAID = pieces(st.one_of(FOLLOWED, bent(ANSWERS), ANSWERS, broken(ANSWERS), FOLLOWED, bent(ANSWERS)))
