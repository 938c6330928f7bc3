"""Streams of every dialect through the whole gateway, compared with what a client of the model itself reads."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from maas_middleware.catalogue import CHAT_COMPLETIONS
from maas_middleware.dialects import MESSAGES, TRANSCRIPTION, Dialect
from maas_middleware.requests import JSONRequest

from .deployments import Deployment, bearer, deployed
from .raw_upstream import LAST_CHUNK, Connection, RawUpstream, Script, answer, chunk, chunked_head, raw_upstream
from .streams import CHATS, OTHERS, RECORDINGS, Recording, events, without_null_usage

TOKENS = 1_000_000
SAID = [{"role": "user", "content": "Hello, how are you?"}]
QUESTIONS: dict[str, dict[str, Any]] = {
    "chat": {"messages": SAID},
    "completions": {"prompt": "Hello"},
    "messages": {"messages": SAID, "max_tokens": 100},
    "responses": {"input": "Hello"},
    "images": {"prompt": "A hello"},
    "speech": {"input": "Hello", "voice": "alloy", "stream_format": "sse"},
}
FORM_PROMPT = 3  # `tiny`, `true` and a small file, in tokens

DIALECTS = {recording.dialect.name: recording.dialect for recording in RECORDINGS}
EACH_DIALECT = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


def recordings_of(dialect: Dialect) -> list[Recording]:
    return [recording for recording in (*CHATS, *OTHERS) if recording.dialect is dialect]


async def replay(upstream: Connection) -> None:
    """Stream the recording that a header names, in pieces that have nothing to do with its events."""
    request = await upstream.read_request()
    (name,) = request.values(b"x-recording")
    recording = next(recording for recording in RECORDINGS if recording.name.encode() == name)
    asked = b'"include_usage":true' in request.body.replace(b" ", b"")
    stream = recording.asked if asked else recording.plain
    if request.values(b"x-broken"):
        stream = stream[: stream.index(recording.end)]
    chunks = [chunk(stream[at : at + 61]) for at in range(0, len(stream), 61)]
    await upstream.send(b"".join([chunked_head("text/event-stream", b"Connection: close"), *chunks, LAST_CHUNK]))


@dataclass
class Gateway:
    """A gateway to a model under two names, a client, and the model's own address."""

    service: Deployment
    upstream: RawUpstream
    headers: dict[str, str]

    async def ask(self, recording: Recording, **more: Any) -> httpx.Response:
        return await self._ask(self.service.url, recording, self.headers, **more)

    async def ask_model(self, recording: Recording) -> httpx.Response:
        """Ask the model itself."""
        return await self._ask(self.upstream.url, recording, {})

    async def _ask(self, url: str, recording: Recording, headers: dict[str, str], **more: Any) -> httpx.Response:
        asked = question(recording, **more)
        return await self.service.client.post(url + recording.path, **asked | {"headers": asked["headers"] | headers})

    async def spent(self) -> int:
        """All tokens so far."""
        response = await self.service.client.head(CHAT_COMPLETIONS, headers=self.headers)
        return TOKENS - int(response.headers["x-ratelimit-remaining-tokens"])


@asynccontextmanager
async def gateway_to(script: Script) -> AsyncIterator[Gateway]:
    async with raw_upstream(script) as upstream:
        models = [
            {"id": "tiny", "tiers": "all", "upstreams": [upstream.url]},
            {"id": "org/simulator", "upstream_model": "tiny", "tiers": "all", "upstreams": [upstream.url]},
        ]
        limits = {"requests": "1000/minute", "tokens": f"{TOKENS}/minute"}
        tiers = [{"name": "free", "groups": ["system:authenticated"], "limits": limits}]
        async with deployed(models=models, tiers=tiers) as service:
            yield Gateway(service, upstream, bearer(await service.mint()))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def gateway() -> AsyncIterator[Gateway]:
    """One for all, since it takes longer to start than most tests take."""
    async with gateway_to(replay) as gateway:
        yield gateway


def question(recording: Recording, *, model: str = "tiny", **more: Any) -> dict[str, Any]:
    """What `httpx` is to send."""
    headers = {"x-recording": recording.name}
    if recording.dialect is TRANSCRIPTION:
        return {"headers": headers, "data": {"model": model, "stream": "true"}, "files": {"file": b"RIFF"}}
    return {"headers": headers, "json": {"model": model, "stream": True, **QUESTIONS[recording.dialect.name], **more}}


def expected_charge(recording: Recording) -> int:
    if recording.usage is not None:
        return recording.usage.total
    return prompt(recording) + recording.produced if recording.produced else 0


def prompt(recording: Recording) -> int:
    asked = question(recording)
    if "json" not in asked:
        return FORM_PROMPT
    return JSONRequest.parse(httpx.Request("POST", "http://a", json=asked["json"]).content).prompt_tokens


async def keep(response: httpx.Response, received: bytearray) -> None:
    async for piece in response.aiter_raw():
        received += piece


@EACH_DIALECT
async def test_client_of_the_gateway_reads_what_a_client_of_the_model_reads_and_pays_its_usage(
    gateway: Gateway, dialect: Dialect
) -> None:
    charged = {}

    for recording in recordings_of(dialect):
        before = await gateway.spent()
        direct, through = await gateway.ask_model(recording), await gateway.ask(recording)
        charged[recording.name] = await gateway.spent() - before

        assert events(through.content) == list(map(without_null_usage, events(direct.content))), recording.name
        assert (direct.status_code, through.status_code) == (200, 200)
        assert through.headers["content-type"] == direct.headers["content-type"]

    assert charged == {recording.name: expected_charge(recording) for recording in recordings_of(dialect)}


@EACH_DIALECT
async def test_client_that_needs_nothing_taken_out_reads_every_byte(gateway: Gateway, dialect: Dialect) -> None:
    asking = {"stream_options": {"include_usage": True}} if dialect.asks_for_usage else {}

    for recording in recordings_of(dialect):
        through = await gateway.ask(recording, **asking)

        assert through.content == recording.asked, recording.name


@EACH_DIALECT
async def test_model_has_one_name_for_its_users(gateway: Gateway, dialect: Dialect) -> None:
    for recording in recordings_of(dialect):
        direct, through = await gateway.ask_model(recording), await gateway.ask(recording, model="org/simulator")

        named = through.content.replace(b'"org/simulator"', b'"tiny"')
        assert b'"tiny"' not in through.content
        assert events(named) == list(map(without_null_usage, events(direct.content))), recording.name


@EACH_DIALECT
async def test_stream_that_breaks_off_is_never_taken_for_a_whole_one_and_costs_what_came(
    gateway: Gateway, dialect: Dialect
) -> None:
    recording = next(recording for recording in recordings_of(dialect) if recording.produced and not recording.failed)
    came = recording.plain[: recording.plain.index(recording.end)]
    asked = question(recording)
    sent = asked | {"headers": asked["headers"] | gateway.headers | {"x-broken": "1"}}
    received = bytearray()

    before = await gateway.spent()
    async with gateway.service.client.stream("POST", recording.path, **sent) as response:
        with pytest.raises(httpx.RemoteProtocolError):
            await keep(response, received)
    charged = await gateway.spent() - before

    assert response.status_code == 200
    assert received.startswith(came + b"\n\n")
    ((_, data),) = events(bytes(received[len(came) :]))
    assert isinstance(data, dict)
    assert "The model failed to answer" in str(data)
    told = recording.usage if dialect is MESSAGES else None  # which tell of it before they end
    assert charged == (prompt(recording) + recording.produced if told is None else told.total)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param(b"text/event-stream", CHATS[0].asked, id="stream"),
        pytest.param(b"application/json", b'{"usage":{"prompt_tokens":1,"total_tokens":1}}', id="json"),
    ],
)
async def test_answer_that_is_compressed_though_nobody_asked_passes_unread_and_costs_its_estimate(
    content_type: bytes, body: bytes
) -> None:
    compressed = gzip.compress(body)
    encodings = []
    received = bytearray()

    async def compressing(upstream: Connection) -> None:
        encodings.append((await upstream.read_request()).values(b"accept-encoding"))
        described = [b"Content-Type: " + content_type, b"Content-Encoding: gzip", b"Connection: close"]
        await upstream.send(answer("200 OK", compressed, *described))

    async with gateway_to(compressing) as gateway:
        asked = question(CHATS[0], max_tokens=40)["json"]
        async with gateway.service.client.stream(
            "POST", CHATS[0].path, json=asked, headers=gateway.headers
        ) as response:
            await keep(response, received)
        charged = await gateway.spent()

    assert encodings == [[b"identity"]]
    assert received == compressed
    assert response.headers["content-encoding"] == "gzip"
    assert not any(name.startswith("x-odhu-usage-") for name in response.headers)
    assert charged == prompt(CHATS[0]) + 40
