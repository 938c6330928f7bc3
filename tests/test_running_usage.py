"""Models that vLLM serves: they are asked for usage in every event of a stream, and nobody else can tell."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import pytest

from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.model import SeenRequest, SimulatedModel

from .deployments import Deployment, bearer, deployed
from .raw_upstream import Connection, Script, chunk, chunked_head, raw_upstream
from .servers import serving
from .streams import events

TOKENS = 10_000_000
LEASED = 600  # at least, while a request is under way
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SAID = [{"role": "user", "content": "Hello, how are you?"}]
QUESTIONS: dict[str, dict[str, Any]] = {CHAT: {"messages": SAID}, TEXT: {"prompt": "Hello, how are you?"}}
PROMPT = 4  # in the tokens of the model; from its bytes it would be taken for more
ANSWER = 18
BOTH = {"include_usage": True, "continuous_usage_stats": True}
LAST = {"include_usage": True}

EACH_PATH = pytest.mark.parametrize("path", [CHAT, TEXT], ids=["chat", "completions"])
OPTIONS: list[Any] = [
    pytest.param({}, id="nothing"),
    pytest.param({"stream_options": None}, id="null"),
    pytest.param({"stream_options": {}}, id="empty"),
    pytest.param({"stream_options": {"include_usage": False}}, id="no-usage"),
    pytest.param({"stream_options": {"include_usage": False, "continuous_usage_stats": True}}, id="running-alone"),
    pytest.param({"stream_options": {"continuous_usage_stats": True}}, id="running-without-usage"),
    pytest.param({"stream_options": LAST}, id="usage"),
    pytest.param({"stream_options": {**LAST, "continuous_usage_stats": False}}, id="usage-and-not-running"),
    pytest.param({"stream_options": BOTH}, id="running"),
    pytest.param({"n": 2}, id="two-choices"),
    pytest.param({"n": 2, "stream_options": LAST}, id="two-choices-and-usage"),
]


@dataclass
class Gateway:
    """A gateway with one user, to models that are one: `simulator` and `renamed` run in vLLM, `plain` elsewhere."""

    service: Deployment
    headers: dict[str, str]
    model: SimulatedModel
    model_url: str

    @asynccontextmanager
    async def streaming(self, path: str, model: str = "simulator", **more: Any) -> AsyncIterator[httpx.Response]:
        """A stream that has begun; whoever does not read it leaves."""
        body = {"model": model, "stream": True, "max_tokens": LEASED, **QUESTIONS[path], **more}
        async with self.service.client.stream("POST", path, json=body, headers=self.headers) as response:
            yield response

    async def ask(self, path: str, model: str = "simulator", **more: Any) -> bytes:
        async with self.streaming(path, model, **more) as response:
            assert response.status_code == 200
            return await response.aread()

    async def ask_model(self, path: str, **more: Any) -> bytes:
        """Ask the model itself, under the id that it was asked with last."""
        headers = {"x-request-id": dict(self.last.headers)[b"x-request-id"].decode()}
        body = {"model": "simulator", "stream": True, "max_tokens": LEASED, **QUESTIONS[path], **more}
        response = await self.service.client.post(self.model_url + path, json=body, headers=headers)
        return response.content

    @property
    def last(self) -> SeenRequest:
        return self.model.requests[-1]

    @property
    def asked(self) -> Any:
        """What the model was asked for last."""
        return json.loads(self.last.body).get("stream_options")

    async def spent(self) -> int:
        """All tokens so far, those that are leased included."""
        response = await self.service.client.head(CHAT, headers=self.headers)
        return TOKENS - int(response.headers["x-ratelimit-remaining-tokens"])

    async def charged(self, since: int) -> int:
        """What was charged since, when nothing is leased any more; bounded by the time-out of the test."""
        while (spent := await self.spent() - since) >= LEASED:
            await anyio.lowlevel.checkpoint()
        return spent


@asynccontextmanager
async def gateway_to(url: str, model: SimulatedModel) -> AsyncIterator[Gateway]:
    models = [
        {"id": "simulator", "tiers": "all", "upstreams": [url], "engine": "vllm"},
        {"id": "renamed", "tiers": "all", "upstreams": [url], "engine": "vllm", "upstream_model": "simulator"},
        {"id": "plain", "tiers": "all", "upstreams": [url], "upstream_model": "simulator"},
    ]
    limits = {"requests": "unlimited", "tokens": f"{TOKENS}/day"}
    tiers = [{"name": "free", "groups": ["system:authenticated"], "limits": limits}]
    async with deployed(models=models, tiers=tiers) as service:
        yield Gateway(service, bearer(await service.mint()), model, url)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def started() -> AsyncIterator[Gateway]:
    """One for all, since it takes longer to start than most tests take."""
    model = SimulatedModel(clock=FakeClock())
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(model))
        yield await stack.enter_async_context(gateway_to(url, model))


@pytest.fixture
def gateway(started: Gateway) -> Gateway:
    started.model.gate = None
    return started


# what clients read


@EACH_PATH
@pytest.mark.parametrize("more", OPTIONS)
async def test_client_reads_what_it_would_read_of_the_model_itself(
    path: str, more: dict[str, Any], gateway: Gateway
) -> None:
    read = await gateway.ask(path, **more)
    asked = gateway.asked
    untouched = await gateway.ask_model(path, **more)

    assert asked == BOTH
    assert gateway.asked == more.get("stream_options")
    assert read == untouched
    assert read.endswith(b"data: [DONE]\n\n")


@EACH_PATH
@pytest.mark.parametrize(
    ("options", "total", "running"),
    [
        pytest.param(None, 0, 0, id="nothing"),
        pytest.param(LAST, 1, 0, id="usage"),
        pytest.param(BOTH, 1, ANSWER + 1, id="running"),
    ],
)
async def test_usage_is_in_the_events_in_which_it_was_asked_for(
    path: str, options: object, total: int, running: int, gateway: Gateway
) -> None:
    read = await gateway.ask(path, "renamed", max_tokens=LEASED, stream_options=options)

    chunks = [data for _, data in events(read) if isinstance(data, dict)]
    (with_choices, without) = [[one for one in chunks if bool(one["choices"]) is has] for has in (True, False)]
    opening = int(path == CHAT)  # with the role
    assert len(with_choices) == opening + ANSWER + 1
    assert [one["usage"]["total_tokens"] for one in without] == [PROMPT + ANSWER] * total
    assert len([one for one in with_choices if "usage" in one]) == (running + opening if running else 0)
    assert {one["model"] for one in chunks} == {"renamed"}


@pytest.mark.parametrize("more", OPTIONS)
async def test_others_are_not_asked_for_what_they_may_refuse(more: dict[str, Any], gateway: Gateway) -> None:
    read = await gateway.ask(CHAT, "plain", **more)
    asked = gateway.asked
    untouched = await gateway.ask_model(CHAT, **more)

    given = more.get("stream_options") or {}
    expected = given if given.get("include_usage") else LAST
    assert asked == expected
    assert events(read.replace(b'"plain"', b'"simulator"')) == events(untouched)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT, QUESTIONS[CHAT], id="whole-answer"),
        pytest.param("/v1/messages", {"messages": SAID, "max_tokens": 9, "stream": True}, id="messages"),
        pytest.param("/v1/responses", {"input": "Hello", "stream": True}, id="responses"),
        pytest.param("/v1/embeddings", {"input": "Hello"}, id="embeddings"),
    ],
)
async def test_what_has_no_stream_options_gets_none(path: str, body: dict[str, Any], gateway: Gateway) -> None:
    response = await gateway.service.client.post(path, json={"model": "simulator", **body}, headers=gateway.headers)

    assert response.status_code == 200
    assert gateway.asked is None


# what is charged


@EACH_PATH
@pytest.mark.parametrize("more", [OPTIONS[0], OPTIONS[-3], OPTIONS[-1]])
async def test_whole_stream_is_charged_its_last_usage_and_not_the_sum(
    path: str, more: dict[str, Any], gateway: Gateway
) -> None:
    before = await gateway.spent()

    await gateway.ask(path, **more)

    assert await gateway.charged(before) == PROMPT + ANSWER * more.get("n", 1)


async def left_after_three_tokens(gateway: Gateway, path: str, model: str, **more: Any) -> int:
    """Leave a stream in its middle; returns what was charged when the model knows it too."""
    before = await gateway.spent()
    gateway.model.gate, gateway.model.hold_after = anyio.Event(), 3
    async with gateway.streaming(path, model, **more) as response:
        read = b""
        async for piece in response.aiter_raw():
            read += piece
            if read.count(b'"content":"') + read.count(b'"text":"') >= (3 + (path == CHAT)) * more.get("n", 1):
                break
    await gateway.last.done.wait()
    assert gateway.last.outcome == "cancelled"
    return await gateway.charged(before)


@EACH_PATH
@pytest.mark.parametrize("more", OPTIONS)
async def test_client_that_leaves_is_charged_the_running_usage_and_the_model_stops(
    path: str, more: dict[str, Any], gateway: Gateway
) -> None:
    charged = await left_after_three_tokens(gateway, path, "simulator", **more)

    assert charged == PROMPT + 3 * more.get("n", 1)


async def test_without_running_usage_it_is_charged_an_estimate_of_its_prompt(gateway: Gateway) -> None:
    charged = await left_after_three_tokens(gateway, TEXT, "plain")

    assert charged == len('"Hello, how are you?"') // 4 + 1 + 3


def running(text: str, total: int, **more: Any) -> bytes:
    usage = {"prompt_tokens": 5, "completion_tokens": total - 5, "total_tokens": total}
    chunk = {"id": "a", "choices": [{"index": 0, "delta": {"content": text}}], "usage": usage, **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def said(*pieces: bytes, hangs: bool) -> Script:
    """A server that sends these, and then hangs or breaks off."""

    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await upstream.send(chunked_head("text/event-stream"), *map(chunk, pieces))
        if hangs:
            await upstream.until_client_left()

    return script


async def test_several_tokens_in_one_event_are_charged_as_many_to_whoever_leaves() -> None:
    first, second = running("One two three four", 12), running(" five six seven", 17)
    cut = len(second) // 2

    async with (
        raw_upstream(said(first, second[:cut], second[cut:], hangs=True)) as upstream,
        gateway_to(upstream.url, SimulatedModel()) as gateway,
    ):
        async with gateway.streaming(CHAT) as response:
            read = await read_until(response, b"seven")
        await upstream.connections[0].client_left.wait()
        charged = await gateway.charged(0)

    assert b"usage" not in read
    assert charged == 17


async def test_stream_that_the_model_breaks_off_is_charged_its_running_usage() -> None:
    async with (
        raw_upstream(said(running("One", 6), running(" two", 11), hangs=False)) as upstream,
        gateway_to(upstream.url, SimulatedModel()) as gateway,
    ):
        async with gateway.streaming(CHAT) as response:
            read = await read_until(response, b"\0")
        charged = await gateway.charged(0)

    *_, (_, error) = events(read)
    assert isinstance(error, dict)
    assert error["error"]["code"] == "upstream_error"
    assert charged == 11


async def read_until(response: httpx.Response, ending: bytes) -> bytes:
    """Read until that has come, or the connection breaks off."""
    read = b""
    with suppress(httpx.RemoteProtocolError):
        async for piece in response.aiter_raw():
            read += piece
            if ending in read:
                break
    return read
