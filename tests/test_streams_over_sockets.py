"""Answers in every dialect through the whole gateway, compared with what a client of the model itself reads."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from maas_middleware.dialects import MESSAGES, TRANSCRIPTION, Dialect
from maas_middleware.endpoints import CHAT_COMPLETIONS
from maas_middleware.requests import JSONRequest

from .deployments import Deployment, bearer, deployed
from .raw_upstream import LAST_CHUNK, Connection, RawUpstream, Script, answer, chunk, chunked_head, raw_upstream
from .streams import CHATS, OTHERS, RECORDINGS, Event, Recording, events, whole_events, without_null_usage

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
class Read:
    """What a client read of a stream, and whether the connection broke off behind it."""

    response: httpx.Response
    content: bytes
    is_broken: bool


@dataclass
class Gateway:
    """A gateway to a model under two names, a client, and the model's own address."""

    service: Deployment
    upstream: RawUpstream
    headers: dict[str, str]

    async def ask(self, recording: Recording, headers: dict[str, str] | None = None, **more: Any) -> Read:
        return await self._ask(self.service.url, recording, self.headers | (headers or {}), **more)

    async def ask_model(self, recording: Recording) -> Read:
        """Ask the model itself."""
        return await self._ask(self.upstream.url, recording, {})

    async def _ask(self, url: str, recording: Recording, headers: dict[str, str], **more: Any) -> Read:
        asked = question(recording, **more)
        sent = asked | {"headers": asked["headers"] | headers}
        received, is_broken = bytearray(), False
        async with self.service.client.stream("POST", url + recording.path, **sent) as response:
            try:
                async for piece in response.aiter_raw():
                    received += piece
            except httpx.RemoteProtocolError:
                is_broken = True
        return Read(response, bytes(received), is_broken)

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


def our_error(dialect: Dialect, request_id: str, sequence_number: int) -> Event:
    """The event that says that the model failed, as clients of the dialect know it."""
    message = f"The model failed to answer (request {request_id})"
    if dialect.errors == "anthropic":
        error = {"type": "api_error", "message": message}
        return {"event": "error"}, {"type": "error", "error": error, "request_id": request_id}
    fields = {"message": message, "param": None, "code": "upstream_error"}
    if dialect.errors == "responses":
        return {"event": "error"}, {"type": "error", **fields, "sequence_number": sequence_number}
    return {}, {"error": {**fields, "type": "server_error"}}


def check(read: Read, recording: Recording, given: list[Event], *, is_broken: bool | None = None) -> None:
    """Assert that these events were read, and behind them one error event of ours if the model failed."""
    is_broken = recording.is_error if is_broken is None else is_broken
    request_id = read.response.headers["x-request-id"]
    error = [our_error(recording.dialect, request_id, len(given))] if is_broken else []
    assert events(read.content) == [*given, *error], recording.name
    assert read.is_broken == is_broken, recording.name


@EACH_DIALECT
async def test_client_of_the_gateway_reads_what_a_client_of_the_model_reads_and_pays_its_usage(
    gateway: Gateway, dialect: Dialect
) -> None:
    charged = {}

    for recording in recordings_of(dialect):
        before = await gateway.spent()
        direct, through = await gateway.ask_model(recording), await gateway.ask(recording)
        charged[recording.name] = await gateway.spent() - before

        check(through, recording, list(map(without_null_usage, events(recording.given(direct.content)))))
        assert (direct.response.status_code, through.response.status_code) == (200, 200)
        assert through.response.headers["content-type"] == direct.response.headers["content-type"]

    assert charged == {recording.name: expected_charge(recording) for recording in recordings_of(dialect)}


@EACH_DIALECT
async def test_client_that_needs_nothing_taken_out_reads_every_byte(gateway: Gateway, dialect: Dialect) -> None:
    asking: dict[str, Any] = {"stream_options": {"include_usage": True}} if dialect.asks_for_usage else {}

    for recording in recordings_of(dialect):
        through, given = await gateway.ask(recording, **asking), recording.given(recording.asked)

        check(through, recording, events(given))
        assert through.content[: len(given)] == given, recording.name


@EACH_DIALECT
async def test_model_has_one_name_for_its_users(gateway: Gateway, dialect: Dialect) -> None:
    for recording in recordings_of(dialect):
        direct, through = await gateway.ask_model(recording), await gateway.ask(recording, model="org/simulator")

        assert b'"tiny"' not in through.content
        through.content = through.content.replace(b'"org/simulator"', b'"tiny"')
        check(through, recording, list(map(without_null_usage, events(recording.given(direct.content)))))


@EACH_DIALECT
async def test_stream_that_breaks_off_is_never_taken_for_a_whole_one_and_costs_what_came(
    gateway: Gateway, dialect: Dialect
) -> None:
    recording = next(recording for recording in recordings_of(dialect) if recording.produced and not recording.failed)
    came = whole_events(recording.plain, recording.plain.index(recording.end))

    before = await gateway.spent()
    through = await gateway.ask(recording, {"x-broken": "1"})
    charged = await gateway.spent() - before

    check(through, recording, events(came), is_broken=True)
    assert through.response.status_code == 200
    assert through.content.startswith(came)
    told = recording.usage if dialect is MESSAGES else None  # which tell of it before they end
    assert dialect.stream is not None
    assert charged == (prompt(recording) + len(dialect.stream.content.findall(came)) if told is None else told.total)


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

    async def compressing(upstream: Connection) -> None:
        encodings.append((await upstream.read_request()).values(b"accept-encoding"))
        described = [b"Content-Type: " + content_type, b"Content-Encoding: gzip", b"Connection: close"]
        await upstream.send(answer("200 OK", compressed, *described))

    async with gateway_to(compressing) as gateway:
        through = await gateway.ask(CHATS[0], max_tokens=40)
        charged = await gateway.spent()

    assert encodings == [[b"identity"]]
    assert (through.content, through.is_broken) == (compressed, False)
    assert through.response.headers["content-encoding"] == "gzip"
    assert not any(name.startswith("x-odhu-usage-") for name in through.response.headers)
    assert charged == prompt(CHATS[0]) + 40


JSON = b"Content-Type: application/json"
USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}'
NO_ANSWERS = {
    "html": answer("200 OK", b"<html>Bad gateway</html>", b"Content-Type: text/html"),
    "text": answer("200 OK", b"hello", b"Content-Type: text/plain; charset=utf-8"),
    "no-type": answer("200 OK", b"hello"),
    "nothing": answer("200 OK"),
    "nothing-as-json": answer("200 OK", b"", JSON),
    "no-utf-8": answer("200 OK", b'{"id":"\xff",' + USAGE + b"}", JSON),
    "no-utf-8-without-a-type": answer("200 OK", b'{"id":"\xff",' + USAGE + b"}"),
    "cut": answer("200 OK", b'{"id":"a",' + USAGE, JSON),
    "large": answer("200 OK", b"<html>" + b"a" * (5 << 20), b"Content-Type: text/html"),
    "large-as-json": answer("200 OK", b"hello" + b"a" * (5 << 20), JSON),
    "error": answer("200 OK", b'{"error":{"message":"dead at 10.0.0.7","code":500}}', JSON),
    "error-without-a-type": answer("200 OK", b'{"object":"error","message":"dead at 10.0.0.7"}'),
    "error-of-another-kind": answer("200 OK", b'{"type":"error","error":{"message":"dead at 10.0.0.7"}}', JSON),
}
REFUSED = b'{"error":{"message":"The prompt is too long","param":"messages","code":%d}}'
ANSWERS = NO_ANSWERS | {
    "json": answer("200 OK", b'{"id":"a",' + USAGE + b"}", JSON),
    "json-as-text": answer("200 OK", b'{"id":"a",' + USAGE + b"}", b"Content-Type: text/plain"),
    "json-without-a-type": answer("200 OK", b'{"id":"a",' + USAGE + b"}"),
    "refusal": answer("200 OK", REFUSED % 400, JSON),
    "refused-credential": answer("200 OK", REFUSED % 401, JSON),
}


async def give(upstream: Connection) -> None:
    """Answer as a header says."""
    (name,) = (await upstream.read_request()).values(b"x-answer")
    await upstream.send(ANSWERS[name.decode()])


@pytest.fixture(scope="module")
async def giving() -> AsyncIterator[Gateway]:
    async with gateway_to(give) as gateway:
        yield gateway


async def ask_plainly(gateway: Gateway, path: str, name: str) -> httpx.Response:
    asked = {"model": "tiny", "messages": SAID, "max_tokens": 100}
    return await gateway.service.client.post(path, json=asked, headers=gateway.headers | {"x-answer": name})


@pytest.mark.parametrize("path", [CHAT_COMPLETIONS, "/v1/messages"])
@pytest.mark.parametrize("name", [*NO_ANSWERS, "refused-credential"])
async def test_answer_that_is_none_is_a_failure_of_the_model_and_costs_nothing(
    giving: Gateway, name: str, path: str
) -> None:
    before = await giving.spent()
    response = await ask_plainly(giving, path, name)

    request_id = response.headers["x-request-id"]
    message = f"The model failed to answer (request {request_id})"
    fields = {"message": message, "type": "server_error", "param": None, "code": "upstream_error"}
    anthropic = {"type": "error", "error": {"type": "api_error", "message": message}, "request_id": request_id}
    assert response.status_code == 502
    assert response.json() == (anthropic if path == "/v1/messages" else {"error": fields})
    assert not any(name.startswith("x-odhu-usage-") for name in response.headers)
    assert await giving.spent() == before


@pytest.mark.parametrize("name", ["json", "json-as-text", "json-without-a-type"])
async def test_json_is_an_answer_whatever_its_type_says(giving: Gateway, name: str) -> None:
    before = await giving.spent()
    response = await ask_plainly(giving, CHAT_COMPLETIONS, name)

    assert (response.status_code, response.headers["x-odhu-usage-total-tokens"]) == (200, "7")
    assert response.content == b'{"id":"a",' + USAGE + b"}"
    assert await giving.spent() == before + 7


async def test_refusal_that_was_sent_as_a_success_is_one(giving: Gateway) -> None:
    before = await giving.spent()
    response = await ask_plainly(giving, CHAT_COMPLETIONS, "refusal")

    fields = {"message": "The prompt is too long", "param": "messages", "code": "invalid_request"}
    assert response.status_code == 400
    assert response.json()["error"] == {**fields, "type": "invalid_request_error"}
    assert await giving.spent() == before
