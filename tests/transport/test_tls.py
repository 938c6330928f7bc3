"""TLS: who is trusted, and how a connection ends."""

from __future__ import annotations

import ssl

import httpx
import pytest
import trustme

from ..raw_upstream import answer, chunk, chunked_head
from .asking import Kind, ask, pieces, post, request
from .scripts import OK, Farewell, answering, answering_in_turn, ending, farewells, proven, send_apart, silent, trusted
from .upstreams import Peer, hostile, listening, soon, turns


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    return trusted(authority)


async def test_tls_is_verified_and_its_connection_used_again(
    kind: Kind, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    tls = proven(authority, "127.0.0.1")
    body = bytes(range(256)) * 2048
    async with (
        hostile(answering(answer("200 OK", body)), tls=tls) as upstream,
        kind.open(ssl_context=trusting) as transport,
    ):
        answers = [await post(transport, upstream.url, body) for _ in range(2)]

    assert [found.body for found in answers] == [body, body]
    assert len(upstream.peers) == 1
    assert upstream.log.count(body) == 2


async def test_name_of_the_url_is_asked_for_and_verified(
    kind: Kind, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    tls, names = proven(authority, "localhost"), []
    tls.sni_callback = lambda connection, name, context: names.append(name)
    async with hostile(answering(OK), tls=tls) as upstream, kind.open(ssl_context=trusting) as transport:
        found = await ask(transport, upstream.url.replace("127.0.0.1", "localhost"))

    assert (found.body, names) == (b"ok", ["localhost"])


@pytest.mark.parametrize("names", [["model.example"], ["127.0.0.2"]], ids=["another-name", "another-address"])
async def test_certificate_of_another_host_is_refused_before_a_byte_is_sent(
    kind: Kind, authority: trustme.CA, trusting: ssl.SSLContext, names: list[str]
) -> None:
    async with (
        hostile(silent, tls=proven(authority, *names)) as upstream,
        kind.open(ssl_context=trusting, max_connections=1) as transport,
    ):
        for _ in range(2):
            with pytest.raises(httpx.ConnectError):
                await ask(transport, upstream.url, pool=5)
        closed = await soon(upstream.peers[0].over)

    assert closed
    assert upstream.log == b""


async def test_certificate_of_an_unknown_authority_is_refused(kind: Kind, trusting: ssl.SSLContext) -> None:
    async with (
        hostile(silent, tls=proven(trustme.CA(), "127.0.0.1")) as upstream,
        kind.open(ssl_context=trusting) as transport,
    ):
        with pytest.raises(httpx.ConnectError):
            await ask(transport, upstream.url)

    assert upstream.log == b""


async def test_certificates_are_verified_without_being_asked_to(kind: Kind, authority: trustme.CA) -> None:
    async with hostile(silent, tls=proven(authority, "127.0.0.1")) as upstream, kind.open() as transport:
        with pytest.raises(httpx.ConnectError):
            await ask(transport, upstream.url)

    assert upstream.log == b""


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["closes", "plain"])
async def test_upstream_that_speaks_no_tls_is_a_connect_error(kind: Kind, said: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(said)

    async with hostile(script) as upstream, kind.open(max_connections=1) as transport:
        for _ in range(2):
            with pytest.raises(httpx.ConnectError):
                await ask(transport, upstream.url.replace("http:", "https:"), pool=5)


async def test_tls_that_ends_without_a_farewell_leaves_a_framed_answer_whole(
    kind: Kind, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        peer.hang_up_now()

    async with (
        hostile(script, tls=proven(authority, "127.0.0.1")) as upstream,
        kind.open(ssl_context=trusting) as transport,
    ):
        bodies = []
        for _ in range(3):
            bodies.append((await ask(transport, upstream.url)).body)
            await turns(20)

    assert (bodies, len(upstream.peers)) == ([b"ok"] * 3, 3)


@farewells
@pytest.mark.parametrize(
    "said",
    [
        pytest.param(answer("200 OK", b"12345")[:-1], id="length"),
        pytest.param(chunked_head("text/plain") + chunk(b"1234"), id="chunks"),
    ],
)
async def test_tls_that_breaks_off_is_never_taken_for_a_whole_answer(
    kind: Kind, authority: trustme.CA, trusting: ssl.SSLContext, said: bytes, farewell: Farewell
) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(said)
        await turns(20)
        farewell(peer)

    got = []
    async with (
        hostile(script, tls=proven(authority, "127.0.0.1")) as upstream,
        kind.open(ssl_context=trusting) as transport,
    ):
        response = await transport.handle_async_request(request(upstream.url))
        body = pieces(response)
        got.append(await anext(body))
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await anext(body)
        await response.aclose()

    assert got == [b"1234"]


@pytest.mark.parametrize("noticed", [0, 20], ids=["in-this-turn", "some-turns-ago"])
@farewells
async def test_idle_tls_connection_that_was_closed_is_replaced_silently(
    kind: Kind, authority: trustme.CA, trusting: ssl.SSLContext, noticed: int, farewell: Farewell
) -> None:
    async with (
        hostile(answering_in_turn(OK), tls=proven(authority, "127.0.0.1")) as upstream,
        kind.open(ssl_context=trusting, max_connections=1) as transport,
    ):
        await ask(transport, upstream.url)
        await turns(20)  # session tickets have arrived
        farewell(upstream.peers[0])
        await turns(noticed)
        found = await post(transport, upstream.url, b"once only")

    assert (found.body, len(upstream.peers)) == (b"ok", 2)
    assert upstream.log.count(b"once only") == 1


async def test_answer_without_a_length_ends_with_its_tls_connection(
    kind: Kind, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    script = ending(b"HTTP/1.1 200 OK\r\n\r\n", b"until ", b"the end")
    async with (
        hostile(script, tls=proven(authority, "127.0.0.1")) as upstream,
        kind.open(ssl_context=trusting) as transport,
    ):
        found = await ask(transport, upstream.url)

    assert found.body == b"until the end"


async def test_answer_without_a_length_is_not_whole_when_nobody_said_farewell(
    kind: Kind, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await send_apart(peer, b"HTTP/1.1 200 OK\r\n\r\nuntil")
        peer.hang_up_now()

    async with (
        hostile(script, tls=proven(authority, "127.0.0.1")) as upstream,
        kind.open(ssl_context=trusting) as transport,
    ):
        outcome: object
        try:
            outcome = (await ask(transport, upstream.url)).body
        except httpx.RemoteProtocolError as error:
            outcome = type(error)

    # RFC 9112, section 9.8: anybody between can end it so; httpcore takes the end for one
    assert outcome == kind.of(http11=httpx.RemoteProtocolError, httpx=b"until")


async def test_closing_a_tls_answer_is_seen_by_the_server_at_once(
    kind: Kind, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    script = answering_in_turn(chunked_head("text/plain") + chunk(b"x"))
    async with (
        hostile(script, tls=proven(authority, "127.0.0.1")) as upstream,
        kind.open(ssl_context=trusting) as transport,
    ):
        response = await transport.handle_async_request(request(upstream.url))
        await response.aclose()
        closed = await soon(upstream.peers[0].over)

    assert closed


async def test_ipv6_address_is_verified(kind: Kind, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    async with (
        hostile(answering(OK), listening("::1"), tls=proven(authority, "::1")) as upstream,
        kind.open(ssl_context=trusting) as transport,
    ):
        found = await ask(transport, upstream.url)

    assert found.body == b"ok"
