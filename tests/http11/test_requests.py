from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from maas_middleware.http11._requests import RequestHead

HOST = (b"host", b"model")


class Body(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"never read"


def head(*headers: tuple[bytes, bytes], method: str = "POST", url: str = "http://model/v1?a=b%20c") -> RequestHead:
    return RequestHead.of(httpx.Request(method, url, headers=list(headers), stream=Body()))


def test_head_is_sent_as_it_was_given() -> None:
    encoded = head(HOST, (b"X-Name", b"J\xf6rg\tX"), (b"x-name", b""), (b"Content-Length", b"5")).encoded

    assert encoded == (
        b"POST /v1?a=b%20c HTTP/1.1\r\nhost: model\r\nX-Name: J\xf6rg\tX\r\nx-name: \r\nContent-Length: 5\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("framing", "length"),
    [
        pytest.param([(b"Content-Length", b"5")], 5, id="length"),
        pytest.param([(b"content-length", b"007")], 7, id="padded length"),
        pytest.param([], 0, id="no body"),
        pytest.param([(b"Transfer-Encoding", b"Chunked")], None, id="chunked"),
    ],
)
def test_length_of_the_body_is_what_the_head_says(framing: list[tuple[bytes, bytes]], length: int | None) -> None:
    assert head(HOST, *framing).length == length


@pytest.mark.parametrize(
    "framing",
    [
        pytest.param([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], id="both"),
        pytest.param([(b"content-length", b"5"), (b"Content-Length", b"6")], id="two lengths"),
        pytest.param([(b"content-length", b"5"), (b"Content-Length", b"5")], id="one length twice"),
        pytest.param([(b"content-length", b"")], id="empty length"),
        pytest.param([(b"content-length", b"+5")], id="sign"),
        pytest.param([(b"content-length", b" 5")], id="space"),
        pytest.param([(b"content-length", b"1_0")], id="underscore"),
        pytest.param([(b"content-length", b"0x5")], id="hexadecimal"),
        pytest.param([(b"content-length", b"5.0")], id="fraction"),
        pytest.param([(b"content-length", "\u0665".encode())], id="digit of another script"),
        pytest.param([(b"content-length", b"1000000000000000000")], id="too long a length"),
        pytest.param([(b"transfer-encoding", b"gzip, chunked")], id="two codings"),
        pytest.param([(b"transfer-encoding", b"identity")], id="another coding"),
        pytest.param([(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], id="chunked twice"),
    ],
)
def test_body_of_unclear_length_is_refused(framing: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(httpx.LocalProtocolError, match="length of the body is not clear"):
        head(HOST, *framing)


@pytest.mark.parametrize("evil", [b"\r", b"\n", b"\r\n", b"\0", b"\x0b", b"\x7f", b"\r\nx: y", b"\n\r\nGET / HTTP/1.1"])
@pytest.mark.parametrize("where", ["name", "value", "method"])
def test_control_bytes_are_refused_wherever_they_are(evil: bytes, where: str) -> None:
    name, value, method = (b"x" + evil + b"y" if where == part else b"x" for part in ("name", "value", "method"))

    with pytest.raises(httpx.LocalProtocolError, match="Illegal"):
        head(HOST, (name, value), method=method.decode())


@pytest.mark.parametrize("name", [b"", b"x y", b"x:", b" x", b"\xc3\xa4", b"x\t"])
def test_name_that_is_no_token_is_refused(name: bytes) -> None:
    with pytest.raises(httpx.LocalProtocolError, match="Illegal"):
        head(HOST, (name, b"1"))


@pytest.mark.parametrize("method", ["", "G T", "GET/"])
def test_method_that_is_no_token_is_refused(method: str) -> None:
    with pytest.raises(httpx.LocalProtocolError, match="Illegal"):
        head(HOST, method=method)


def test_target_with_a_space_is_refused() -> None:
    request = httpx.Request("GET", "http://model/", headers=[HOST], stream=Body())
    request.url = _Spaced("http://model/")

    with pytest.raises(httpx.LocalProtocolError, match="Illegal"):
        RequestHead.of(request)


class _Spaced(httpx.URL):
    @property
    def raw_path(self) -> bytes:
        return b"/ HTTP/1.1\r\nx: y"


@pytest.mark.parametrize("hosts", [[], [HOST, HOST], [(b"host", b"a,b")]], ids=["none", "two", "list"])
def test_request_has_exactly_one_host(hosts: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(httpx.LocalProtocolError, match="one host"):
        head(*hosts)


def test_tunnel_is_refused() -> None:
    with pytest.raises(httpx.LocalProtocolError, match="Tunnels"):
        head(HOST, method="CONNECT")


@pytest.mark.parametrize(
    ("values", "keeps"),
    [
        pytest.param([], True, id="nothing"),
        pytest.param([b"keep-alive"], True, id="keep-alive"),
        pytest.param([b"Close"], False, id="close"),
        pytest.param([b"keep-alive", b"x-a ,\tclose "], False, id="in a list"),
        pytest.param([b"closed"], True, id="another word"),
    ],
)
def test_request_may_end_its_connection(values: list[bytes], keeps: bool) -> None:
    assert head(HOST, *((b"connection", value) for value in values)).keep_alive is keeps


def test_pieces_are_framed_as_the_head_says() -> None:
    counted, chunked = head(HOST, (b"content-length", b"9")), head(HOST, (b"transfer-encoding", b"chunked"))

    assert (counted.frame(b"piece"), counted.frame(b""), counted.ending) == (b"piece", b"", b"")
    assert (chunked.frame(b"p" * 26), chunked.frame(b""), chunked.ending) == (
        b"1a\r\n" + b"p" * 26 + b"\r\n",
        b"",
        b"0\r\n\r\n",
    )
