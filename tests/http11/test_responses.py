from __future__ import annotations

from dataclasses import dataclass, field

import httpx
import pytest

from maas_middleware.http11._fields import Fields
from maas_middleware.http11._responses import (
    MAXIMUM_EXCESS_BYTES,
    MAXIMUM_FIELDS,
    MAXIMUM_HEAD_BYTES,
    MAXIMUM_INTERIM_RESPONSES,
    ResponseParser,
)

OK = b"HTTP/1.1 200 OK\r\n"
COUNTED = OK + b"Content-Length: 3\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass
class Parsed:
    """What came out: None for what did not."""

    status: int | None = None
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    complete: bool = False
    keep_alive: bool = False


def parse(*pieces: bytes, has_body: bool = True, keep_alive: bool = True, eof: bool = False) -> Parsed:
    parser, parsed = ResponseParser(has_body=has_body, keep_alive=keep_alive), Parsed()
    for piece in pieces:
        parser.feed(piece)
        parsed.body += parser.take()
    if eof:
        parser.feed_eof()
    if parser.head is not None:
        parsed.status, parsed.fields = parser.head.status, parser.head.fields
    parsed.complete, parsed.keep_alive = parser.is_complete, parser.is_complete and parser.keep_alive
    return parsed


def bytewise(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


RESPONSES = {
    "counted": (COUNTED + b"\r\nabc", b"abc", True),
    "empty": (OK + b"Content-Length: 0\r\n\r\n", b"", True),
    "chunked": (CHUNKED + b"3\r\nabc\r\n00A\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789", True),
    "extensions": (CHUNKED + b'3;a=b;c="d e";f\r\nabc\r\n0;z\r\n\r\n', b"abc", True),
    "trailers": (CHUNKED + b"3\r\nabc\r\n0\r\nX-A: b\r\nx-b: c\r\n\r\n", b"abc", True),
    "body of line breaks": (CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", True),
    "coding in capitals": (OK + b"transfer-encoding: CHUNKED\r\n\r\n0\r\n\r\n", b"", True),
    "closing": (COUNTED + b"Connection: x, Close\r\n\r\nabc", b"abc", False),
    "old": (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc", False),
    "old but lasting": (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: Keep-Alive\r\n\r\nabc", b"abc", True),
    "interim": (b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 100\r\n\r\n" + COUNTED + b"\r\nabc", b"abc", True),
    "no content": (b"HTTP/1.1 204 No\r\n\r\n", b"", True),
    "no content of a length": (b"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", b"", True),
    "not modified": (b"HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\n", b"", True),
    "not modified in chunks": (b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"", True),
    "spaced length": (OK + b"Content-Length: \t3  \r\n\r\nabc", b"abc", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc", b"abc", True),
}


@pytest.mark.parametrize(("data", "body", "keeps"), RESPONSES.values(), ids=RESPONSES)
def test_response_is_parsed_wherever_it_is_cut(data: bytes, body: bytes, keeps: bool) -> None:
    whole = parse(data)

    assert (whole.body, whole.complete, whole.keep_alive) == (body, True, keeps)
    assert parse(*bytewise(data)) == whole
    for cut in range(1, len(data)):
        assert parse(data[:cut], data[cut:]) == whole


@pytest.mark.parametrize(("data", "body"), [(data, body) for data, body, _ in RESPONSES.values()], ids=RESPONSES)
@pytest.mark.parametrize("extra", [b"\n", b"\r\n", b"\0", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxyz"])
def test_what_follows_a_response_is_no_part_of_it_and_ends_the_connection(
    data: bytes, body: bytes, extra: bytes
) -> None:
    for pieces in ([data + extra], [data[:-1], data[-1:] + extra]):
        parsed = parse(*pieces)

        assert (parsed.body, parsed.complete, parsed.keep_alive) == (body, True, False)


@pytest.mark.parametrize(("data", "body"), [(data, body) for data, body, _ in RESPONSES.values()], ids=RESPONSES)
def test_response_that_is_cut_short_is_never_complete(data: bytes, body: bytes) -> None:
    for cut in range(1, len(data)):
        with pytest.raises(httpx.RemoteProtocolError, match="disconnected without sending"):
            parse(data[:cut], eof=True)


def test_fields_are_kept_as_they_came_and_trailers_dropped() -> None:
    data = OK + b"X-A:b\r\nx-a: \t c \t\r\nEmpty:\r\nN: \xc3\xa4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: 1\r\n\r\n"

    assert parse(data).fields == [
        *[(b"X-A", b"b"), (b"x-a", b"c"), (b"Empty", b""), (b"N", b"\xc3\xa4"), (b"Transfer-Encoding", b"chunked")]
    ]


def test_head_tells_version_and_reason() -> None:
    parser = ResponseParser(has_body=True, keep_alive=True)

    parser.feed(b"HTTP/1.0 599 Very\tB\xe4d \r\n\r\n")

    assert parser.head is not None
    assert (parser.head.version, parser.head.status, parser.head.reason) == (b"1.0", 599, b"Very\tB\xe4d ")


@pytest.mark.parametrize("framing", [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b""])
def test_response_to_head_has_no_body(framing: bytes) -> None:
    parsed = parse(OK + framing + b"\r\n", has_body=False)

    assert (parsed.body, parsed.complete, parsed.keep_alive) == (b"", True, True)


def test_response_without_a_length_ends_with_the_connection() -> None:
    data = OK + b"\r\nabc"

    assert parse(data).complete is False
    assert parse(data, b"d", eof=True) == Parsed(200, [], b"abcd", complete=True, keep_alive=False)


def test_connection_ends_with_a_response_if_the_request_said_so() -> None:
    assert parse(COUNTED + b"\r\nabc", keep_alive=False).keep_alive is False


REFUSED_HEADS = {
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 3\n\n",
    "bare line feed after a value": OK + b"a: b\nContent-Length: 3\r\n\r\n",
    "bare carriage return in a value": OK + b"a: b\rc\r\n\r\n",
    "bare carriage return in the reason": b"HTTP/1.1 200 O\rK\r\n\r\n",
    "control byte in the reason": b"HTTP/1.1 200 O\x01K\r\n\r\n",
    "nul in a value": OK + b"a: b\0c\r\n\r\n",
    "control byte in a value": OK + b"a: b\x01c\r\n\r\n",
    "delete in a value": OK + b"a: b\x7f\r\n\r\n",
    "nul in a name": OK + b"a\0: b\r\n\r\n",
    "folded value": OK + b"a: b\r\n c\r\n\r\n",
    "folded first line": OK + b" a: b\r\n\r\n",
    "space before the colon": OK + b"Content-Length : 3\r\n\r\n",
    "no colon": OK + b"Content-Length\r\n\r\n",
    "no name": OK + b": x\r\n\r\n",
    "both lengths": COUNTED + b"Transfer-Encoding: chunked\r\n\r\n",
    "both lengths in the other order": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    "two lengths": COUNTED + b"Content-Length: 4\r\n\r\n",
    "one length twice": COUNTED + b"Content-Length: 3\r\n\r\n",
    "list of lengths": OK + b"Content-Length: 3, 3\r\n\r\n",
    "length with a sign": OK + b"Content-Length: +3\r\n\r\n",
    "negative length": OK + b"Content-Length: -3\r\n\r\n",
    "hexadecimal length": OK + b"Content-Length: 0x3\r\n\r\n",
    "length with an underscore": OK + b"Content-Length: 1_0\r\n\r\n",
    "two numbers as length": OK + b"Content-Length: 1 0\r\n\r\n",
    "empty length": OK + b"Content-Length:\r\n\r\n",
    "length of 19 digits": OK + b"Content-Length: 1000000000000000000\r\n\r\n",
    "length over 64 bits": OK + b"Content-Length: 99999999999999999999\r\n\r\n",
    "another coding": OK + b"Transfer-Encoding: gzip\r\n\r\n",
    "another coding before chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "something like chunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n",
    "quoted chunked": OK + b'Transfer-Encoding: "chunked"\r\n\r\n',
    "vertical tab before chunked": OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked in two ways": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
    "chunked of an old server": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "empty lines in front": b"\r\n" + COUNTED + b"\r\n",
    "version 0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "version 1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "version 2": b"HTTP/2.0 200 OK\r\n\r\n",
    "version of one digit": b"HTTP/2 200 OK\r\n\r\n",
    "another protocol": b"HTTQ/1.1 200 OK\r\n\r\n",
    "protocol in small letters": b"http/1.1 200 OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 99 x\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 x\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 x\r\n\r\n",
    "status over 599": b"HTTP/1.1 600 x\r\n\r\n",
    "status that is no number": b"HTTP/1.1 2xx x\r\n\r\n",
    "two spaces before the status": b"HTTP/1.1  200 OK\r\n\r\n",
    "another protocol from now on": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("data", REFUSED_HEADS.values(), ids=REFUSED_HEADS)
def test_head_that_can_be_read_in_two_ways_is_refused(data: bytes) -> None:
    for pieces in ([data], bytewise(data), [b"HTTP/1.1 100\r\n\r\n" + data]):
        with pytest.raises(httpx.RemoteProtocolError):
            parse(*pieces, b"abc")


@pytest.mark.parametrize("data", [b"HTTP/1.1 200 OK\n", OK + b"a: b\n", OK + b"a: b\rc", OK + b" a"])
def test_bad_byte_of_a_head_is_refused_before_its_end(data: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        parse(data + b"x")


REFUSED_CHUNKS = {
    "sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "underscore": b"0_3\r\nabc\r\n0\r\n\r\n",
    "space in front": b" 3\r\nabc\r\n0\r\n\r\n",
    "space behind": b"3 \r\nabc\r\n0\r\n\r\n",
    "space before an extension": b"3 ;a\r\nabc\r\n0\r\n\r\n",
    "empty size": b"\r\nabc\r\n0\r\n\r\n",
    "no size but an extension": b";a\r\nabc\r\n0\r\n\r\n",
    "no hexadecimal digit": b"g\r\nabc\r\n0\r\n\r\n",
    "size over 64 bits": b"1" + b"0" * 16 + b"\r\nabc",
    "bare line feed behind the size": b"3\nabc\r\n0\r\n\r\n",
    "bare line feed in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "bare carriage return in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "nul in an extension": b"3;a\0\r\nabc\r\n0\r\n\r\n",
    "bare line feed behind the data": b"3\r\nabc\n0\r\n\r\n",
    "too much data": b"3\r\nabcd\r\n0\r\n\r\n",
    "too little data": b"3\r\nab\r\n0\r\n\r\n",
    "bare line feed behind the last chunk": b"0\n\n",
    "bare line feed in a trailer": b"0\r\na: b\nc: d\r\n\r\n",
    "folded trailer": b"0\r\na: b\r\n c\r\n\r\n",
    "space before the colon of a trailer": b"0\r\na : b\r\n\r\n",
    "control byte in a trailer": b"0\r\na: \x01\r\n\r\n",
    "length as trailer": b"0\r\nContent-Length: 3\r\n\r\n",
}


@pytest.mark.parametrize("data", REFUSED_CHUNKS.values(), ids=REFUSED_CHUNKS)
def test_chunks_that_can_be_read_in_two_ways_are_refused(data: bytes) -> None:
    for pieces in ([CHUNKED + data], [CHUNKED, *bytewise(data)], [CHUNKED + b"1\r\nx\r\n", data]):
        with pytest.raises(httpx.RemoteProtocolError):
            parse(*pieces, b"\r\n\r\n")


def test_head_may_be_long_but_not_endless() -> None:
    room = MAXIMUM_HEAD_BYTES - len(OK + b"a: ")

    assert parse(OK + b"a: " + b"x" * room + b"\r\n\r\n").status == 200
    for data in (OK + b"a: " + b"x" * (room + 1) + b"\r\n\r\n", OK + b"a: " + b"x" * (room + 1)):
        with pytest.raises(httpx.RemoteProtocolError, match="too long"):
            parse(data)


def test_head_may_have_many_fields_but_not_endlessly_many() -> None:
    fields = b"a: b\r\n" * MAXIMUM_FIELDS

    assert len(parse(OK + fields + b"\r\n").fields) == MAXIMUM_FIELDS
    with pytest.raises(httpx.RemoteProtocolError, match="too many headers"):
        parse(OK + fields + b"a: b\r\n\r\n")


def test_interim_responses_may_be_many_but_not_endless() -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n" * MAXIMUM_INTERIM_RESPONSES

    assert parse(interim + COUNTED + b"\r\nabc").body == b"abc"
    with pytest.raises(httpx.RemoteProtocolError, match="interim"):
        parse(interim + b"HTTP/1.1 102 Processing\r\n\r\n")


@pytest.mark.parametrize("around", [b"3;%b\r\nabc\r\n", b"%b3\r\nabc\r\n", b"0\r\na: %b\r\n"])
def test_overhead_of_chunks_is_bounded(around: bytes) -> None:
    filling = b"0" * MAXIMUM_EXCESS_BYTES

    parse(CHUNKED + around % filling[:-16])
    with pytest.raises(httpx.RemoteProtocolError, match="Too much around"):
        parse(CHUNKED + around % (filling * 2))
    with pytest.raises(httpx.RemoteProtocolError, match="Too much around"):
        parse(CHUNKED, *bytewise(around % (filling * 2)))


def test_overhead_of_small_chunks_is_none() -> None:
    count = 4 * MAXIMUM_EXCESS_BYTES

    assert parse(CHUNKED, *[b"00000001\r\nx\r\n" * 8] * (count // 8)).body == b"x" * count


def test_unread_body_is_counted() -> None:
    parser = ResponseParser(has_body=True, keep_alive=True)

    parser.feed(CHUNKED + b"3\r\nabc\r\n")
    parser.feed(b"3\r\ndef\r\n3\r\ngh")

    assert (parser.buffered, parser.take(), parser.buffered, parser.pieces) == (8, b"abcdefgh", 0, [])
