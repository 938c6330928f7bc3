"""What the transport makes of an answer, compared with h11's client: made up answers, whole, bent and cut."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass

import anyio
import h11
import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from ..raw_upstream import answer
from .asking import Kind, ask, exchange, request
from .grammar import SAID
from .scripts import send_apart
from .upstreams import Peer, hostile, turns

SECOND = answer("200 OK", b"second")


@dataclass(frozen=True)
class Reading:
    """What somebody made of an answer, and whether its connection is used again."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    reused: bool
    ended: bool = False


def read_by_h11(method: str, said: bytes) -> Reading | None:
    """What h11 makes of an answer and, if it wants more, of the end of the connection; none if it refuses."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=65536)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "model")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(said)
    head, body, ended = None, b"", False
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return None
        if event is h11.NEED_DATA:
            connection.receive_data(b"")
            ended = True
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
        elif not isinstance(event, h11.InformationalResponse):
            return None
    assert head is not None
    reused = not ended and connection.their_state is h11.DONE and not connection.trailing_data[0]
    return Reading(head.status_code, list(head.headers), body, reused, ended)


EXTENSION = rb"[!#-'*+.^_`|~0-9a-z-]+(=([!#-'*+.^_`|~0-9a-z-]+|\"[^\"\\]*\"))?"
STRICTER = {
    "status code that there is not": rb"HTTP/1\.[01] [6-9]",
    "version that there is not": rb"HTTP/(?!1\.[01] )",
    "bare line feed": rb"(?<!\r)\n",
    "bare carriage return": rb"\r(?!\n)",
    "control character": rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]",
    "fold": rb"\r\n[ \t]",
    "both lengths": rb"(?is)content-length.*transfer-encoding|transfer-encoding.*content-length",
    "two lengths": rb"(?is)content-length.*content-length|content-length:[^\r]*,",
    "chunks of HTTP/1.0": rb"(?is)HTTP/1\.0.*transfer-encoding",
    "blank behind the size of a chunk": rb"(?i)\r\n[0-9a-f]+(;[^\r]*)?[ \t]+\r\n",
    "extension by no grammar": rb"(?i)\r\n[0-9a-f]+;(?!" + EXTENSION + rb"(;" + EXTENSION + rb")*\r\n)",
    "chunk of 64 bits": rb"(?i)\r\n[0-9a-f]{16}",
}
LAXER = {"size of a chunk with many zeros in front": rb"\r\n0{20}"}
KEPT = {"keep-alive of HTTP/1.0": rb"(?is)HTTP/1\.0.*keep-alive"}


def reasons(known: dict[str, bytes], said: bytes) -> list[str]:
    """Why the transport may do otherwise than h11."""
    return [reason for reason, pattern in known.items() if re.search(pattern, said)]


async def read_by_transport(method: str, pieces: list[bytes], *, end: bool) -> Reading | None:
    """What the transport makes of it; and a second request has to get its own answer, whatever the first one got."""
    sent = anyio.Event()

    async def script(peer: Peer) -> None:
        asked = await peer.read_request()
        if b"second" not in asked.line:
            try:
                await send_apart(peer, *pieces)
                if end:
                    await peer.plain.send_eof()
            finally:
                sent.set()
            await peer.read_request()
        await peer.send(SECOND)
        await peer.until_client_left()

    async with hostile(script) as upstream, Kind("http11").open(max_connections=1) as transport:
        found = None
        with suppress(httpx.RemoteProtocolError):
            found = await exchange(transport, request(upstream.url, method, read=5))
        await sent.wait()
        await turns(4)
        second = await ask(transport, f"{upstream.url}/second", pool=10, read=5)

    assert second.body == b"second"
    if found is None:
        assert len(upstream.peers) == 2
        return None
    headers = [(name.lower(), value) for name, value in found.headers]
    return Reading(found.status, headers, found.body, len(upstream.peers) == 1)


def compare(method: str, pieces: list[bytes]) -> None:
    """The two agree wherever both take an answer, and where one of them does not there is a reason on the list."""
    said = b"".join(pieces)
    expected = read_by_h11(method, said)
    found = asyncio.run(read_by_transport(method, pieces, end=expected is None or expected.ended))
    if expected is None or found is None:
        assert expected is found or reasons(STRICTER if found is None else LAXER, said), (expected, found)
    else:
        assert (found.status, found.headers, found.body) == (expected.status, expected.headers, expected.body)
        assert found.reused == expected.reused or (found.reused and reasons(KEPT, said))


@settings(derandomize=True, database=None, deadline=None, max_examples=400)
@given(st.sampled_from(["GET", "GET", "GET", "HEAD"]), SAID)
def test_answers_are_read_as_h11_reads_them_or_refused_for_a_reason(method: str, pieces: list[bytes]) -> None:
    compare(method, pieces)
