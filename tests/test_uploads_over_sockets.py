"""Uploads through the whole gateway, byte by byte: what its model's server has of them, and when."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute, SocketStream

from .hostile.attack import Answer
from .hostile.scripts import Changing, hanging_up, said
from .raw_upstream import LAST_CHUNK, Connection, Request, Script, answer, raw_upstream
from .sdk.site import Site, User, sited

PATH = "/whisper/v1/audio/transcriptions"
FORM, OCTETS = "multipart/form-data; boundary=client", "application/octet-stream"
KIBIBYTE, MEBIBYTE = 1 << 10, 1 << 20
BODY_BYTES = 30 * MEBIBYTE
JSON, CLOSE = b"Content-Type: application/json", b"Connection: close"
HEARD = answer("200 OK", b'{"text":"hello","usage":{"type":"tokens","input_tokens":5,"total_tokens":7}}', JSON)

FILE = b'--client\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF'
END = b"\r\n--client--\r\n"

server = Changing(hanging_up)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=["http11", "httpx"])
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
async def site(transport: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A gateway to two servers of a model that knows itself as `w-1`."""
    directory = tmp_path_factory.mktemp("keys")
    async with raw_upstream(server) as one, raw_upstream(server) as other:
        whisper = {"id": "whisper", "upstream_model": "w-1", "tiers": "all", "upstreams": [one.url, other.url]}
        async with sited(directory, [whisper], proxy={"transport": transport}) as site:
            yield site


def field(name: str, value: str) -> bytes:
    return f'--client\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


@asynccontextmanager
async def uploading(
    site: Site, user: User, content_type: str, length: int | None = None
) -> AsyncIterator[SocketStream]:
    """A connection on which the head of an upload was sent; without a length it is chunked."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    head = (f"POST {PATH} HTTP/1.1", "Host: gateway", "Connection: close", f"Authorization: Bearer {user.token}")
    port = site.http.base_url.port
    assert port is not None
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send("\r\n".join([*head, f"Content-Type: {content_type}", framing, "", ""]).encode())
        yield stream


async def answered(stream: SocketStream) -> Answer:
    received = b""
    with anyio.fail_after(10):
        try:
            while True:
                received += await stream.receive()
        except anyio.EndOfStream:
            return Answer.parse(received, "POST")


def dechunked(body: bytes) -> bytes:
    data = b""
    while body != LAST_CHUNK:
        size, _, body = body.partition(b"\r\n")
        data, body = data + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return data


class Reached:
    """A script that reads until something came, and then until the client is gone."""

    def __init__(self, mark: bytes) -> None:
        self.connections: list[Connection] = []
        self.reached = anyio.Event()
        self._mark = mark

    async def __call__(self, connection: Connection) -> None:
        self.connections.append(connection)
        await connection.read_until(self._mark)
        self.reached.set()
        await connection.until_client_left()

    async def broken_off(self) -> bytes:
        """What came until the client was gone."""
        (connection,) = self.connections
        with anyio.fail_after(5):
            await connection.client_left.wait()
        return connection.received


def small(stream: ByteStream, buffer: int) -> None:
    """Let the kernel hold no more than it must at this end; what it holds for the gateway may be some megabytes."""
    stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, buffer, 64 * KIBIBYTE)


async def stuff(stream: SocketStream, data: bytes) -> int:
    """Send until nobody reads any more; returns how many bytes of it are on their way."""
    for sent in range(0, len(data), 64 * KIBIBYTE):
        with anyio.move_on_after(0.3) as patience:
            await stream.send(data[sent : sent + 64 * KIBIBYTE])
        if patience.cancelled_caught:
            return sent + 64 * KIBIBYTE
    return len(data)


# memory and time


@pytest.mark.parametrize("content_type", [FORM, OCTETS])
async def test_upload_reaches_the_server_while_it_is_sent_and_is_held_by_nobody(site: Site, content_type: str) -> None:
    head, end = (FILE, END) if content_type == FORM else (b"RIFF", b"")
    came, go_on = anyio.Event(), anyio.Event()
    received = 0

    async def script(connection: Connection) -> None:
        nonlocal received
        small(connection.stream, socket.SO_RCVBUF)
        await connection.read_until(b"RIFF")
        came.set()
        await go_on.wait()
        ending = connection.received[-20:]
        while not ending.endswith((b"--\r\n\r\n0\r\n\r\n", b"last")):
            piece = await connection.stream.receive()
            received += len(piece)
            ending = (ending + piece)[-20:]
        await connection.send(HEARD)

    server.script = script
    user = await site.user()
    media = b"\0" * BODY_BYTES + b"last"
    async with uploading(site, user, content_type, len(head) + len(media) + len(end)) as stream:
        small(stream, socket.SO_SNDBUF)
        await stream.send(head)
        with anyio.fail_after(5):
            await came.wait()
        accepted = await stuff(stream, media)
        go_on.set()
        await stream.send(media[accepted:] + end)
        heard = await answered(stream)

    assert accepted < BODY_BYTES / 2  # some megabytes are in the buffers of the kernel
    assert received > BODY_BYTES - MEBIBYTE
    assert (heard.status, heard.whole) == (200, True)
    assert await user.used() == (1, 7)


# what is wrong is told, and never looks whole


@pytest.mark.parametrize(
    ("rest", "status", "code"),
    [
        pytest.param(b"WAVE", 400, "invalid_form", id="no-end"),
        pytest.param(b"\r\n" + field("model", "qwen3") + END, 404, "model_not_found", id="another-model"),
        pytest.param(b"\r\n" + field("n", "x") + END, 400, "invalid_value", id="bad-field"),
        pytest.param(b"\r\n--client\r\nno header\r\n\r\n" + END, 400, "invalid_form", id="bad-header"),
    ],
)
async def test_form_that_is_refused_on_its_way_is_broken_off_and_costs_nothing(
    site: Site, rest: bytes, status: int, code: str
) -> None:
    server.script = script = Reached(b"RIFF")
    user = await site.user()

    async with uploading(site, user, FORM, len(FILE) + len(rest)) as stream:
        await stream.send(FILE)
        await script.reached.wait()
        await stream.send(rest)
        refused = await answered(stream)
    seen = await script.broken_off()

    refused.refusal(status, code)
    assert LAST_CHUNK not in seen
    assert b"--\r\n" not in seen
    assert await user.used() == (0, 0)


async def test_feature_that_the_tier_lacks_is_told_where_it_is_asked_for(
    transport: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server.script = script = Reached(b"RIFF")
    async with raw_upstream(server) as upstream:
        whisper = {"id": "whisper", "tiers": "all", "upstreams": [upstream.url]}
        tiers = [{"name": "premium", "groups": ["premium"], "features": ["audio"]}]
        directory = tmp_path_factory.mktemp("keys")
        async with sited(directory, [whisper], tiers=tiers, proxy={"transport": transport}) as site:
            rest = b"\r\n" + field("stream", "true") + END
            async with uploading(site, await site.user(), FORM, len(FILE) + len(rest)) as stream:
                await stream.send(FILE)
                await script.reached.wait()
                await stream.send(rest)
                refused = await answered(stream)
            seen = await script.broken_off()

    refused.refusal(403, "feature_not_available")
    assert LAST_CHUNK not in seen


@pytest.mark.parametrize("content_type", [FORM, OCTETS])
async def test_body_that_is_too_large_or_too_slow_is_broken_off_and_told(
    transport: str, content_type: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    head = FILE if content_type == FORM else b"RIFF"
    limits = {"transport": transport, "max_body_bytes": 20_000, "body_timeout": 0.2}
    async with raw_upstream(server) as upstream:
        whisper = {"id": "whisper", "tiers": "all", "upstreams": [upstream.url]}
        async with sited(tmp_path_factory.mktemp("keys"), [whisper], proxy=limits) as site:
            user = await site.user()
            for status, code, rest in ((413, "request_too_large", b"0" * 20_000), (408, "request_timeout", b"")):
                server.script = script = Reached(b"RIFF")
                async with uploading(site, user, content_type) as stream:
                    await stream.send(b"%x\r\n%b\r\n" % (len(head), head))
                    await script.reached.wait()
                    if rest:
                        await stream.send(b"%x\r\n%b\r\n" % (len(rest), rest))
                    refused = await answered(stream)
                seen = await script.broken_off()

                refused.refusal(status, code)
                assert LAST_CHUNK not in seen
            assert await user.used() == (0, 0)


@pytest.mark.parametrize("content_type", [FORM, OCTETS])
async def test_client_that_leaves_an_upload_breaks_it_off(site: Site, content_type: str) -> None:
    server.script = script = Reached(b"RIFF")

    async with uploading(site, await site.user(), content_type) as stream:
        head = FILE if content_type == FORM else b"RIFF"
        await stream.send(b"%x\r\n%b\r\n" % (len(head), head))
        await script.reached.wait()
    seen = await script.broken_off()

    assert LAST_CHUNK not in seen


# what a server answers


async def test_server_that_refuses_early_is_heard(site: Site, transport: str) -> None:
    async def script(connection: Connection) -> None:
        await connection.read_until(b"RIFF")
        await connection.send(answer("413 Content Too Large", b'{"error":{"message":"too long"}}', JSON, CLOSE))
        await connection.until_client_left()

    server.script = script
    user = await site.user()
    async with uploading(site, user, FORM, len(FILE) + len(END)) as stream:
        await stream.send(FILE)
        if transport == "httpx":  # it listens when it has sent all
            await stream.send(END)
        refused = await answered(stream)

    assert (refused.status, refused.whole) == (413, True)
    assert b"too long" in refused.body
    assert await user.used() == (1, 0)


def counting(connections: list[Connection], script: Script) -> Script:
    async def counted(connection: Connection) -> None:
        connections.append(connection)
        await script(connection)

    return counted


async def test_upload_is_never_sent_to_another_server(site: Site) -> None:
    asked: list[Connection] = []
    server.script = counting(asked, said(answer("503 Service Unavailable")))

    async with uploading(site, await site.user(), FORM, len(FILE) + len(END)) as stream:
        await stream.send(FILE + END)
        refused = await answered(stream)

    refused.refusal(503, "upstream_unavailable")
    assert len(asked) == 1


async def test_octets_keep_the_length_that_the_client_told(site: Site) -> None:
    seen: list[Request] = []

    async def script(connection: Connection) -> None:
        seen.append(await connection.read_request())
        await connection.send(HEARD)

    server.script = script
    async with uploading(site, await site.user(), OCTETS, 6) as stream:
        await stream.send(b"RIFF\0\xff")
        heard = await answered(stream)

    (request,) = seen
    assert heard.status == 200
    assert request.line == b"POST /v1/audio/transcriptions HTTP/1.1"
    assert request.values(b"content-type") == [OCTETS.encode()]
    assert (request.values(b"content-length"), request.values(b"transfer-encoding")) == ([b"6"], [])
    assert request.body == b"RIFF\0\xff"


async def test_sdk_uploads_below_the_path_of_a_model(site: Site) -> None:
    seen: list[Request] = []

    async def script(connection: Connection) -> None:
        seen.append(await connection.read_request())
        await connection.send(HEARD)

    server.script = script
    user, sound = await site.user(), bytes(range(256)) * KIBIBYTE
    heard = await user.openai("/whisper").audio.transcriptions.create(
        model="whisper", file=("say.wav", sound), prompt="Zoë", timestamp_granularities=["word", "segment"]
    )

    (request,) = seen
    body = dechunked(request.body)
    assert heard.text == "hello"
    assert body.count(b'name="model"') == 1
    assert b'name="model"\r\n\r\nw-1\r\n' in body
    assert 'name="prompt"\r\n\r\nZoë\r\n'.encode() in body
    assert sound in body
    assert request.values(b"content-length") == []
    assert await user.used() == (1, 7)


# what it costs


@pytest.mark.parametrize("is_told", [True, False], ids=["length", "no-length"])
async def test_answer_without_usage_costs_what_was_asked_for_in_the_end(site: Site, is_told: bool) -> None:
    reached = anyio.Event()

    async def script(connection: Connection) -> None:
        await connection.read_until(b"RIFF")
        reached.set()
        await connection.read_until(LAST_CHUNK)
        await connection.send(answer("200 OK", b'{"text":"hello"}', JSON))

    server.script = script
    user = await site.user()
    rest = b"\r\n" + field("n", "3") + END
    async with uploading(site, user, FORM, len(FILE) + len(rest) if is_told else None) as stream:
        for piece in (FILE, rest):
            await stream.send(piece if is_told else b"%x\r\n%b\r\n" % (len(piece), piece))
            await reached.wait()
        await stream.send(b"" if is_told else LAST_CHUNK)
        heard = await answered(stream)

    assert heard.status == 200
    assert await user.used() == (1, 1 + 1 + 3 * 512)  # `w-1` and `3`, four bytes of a file, and three answers
