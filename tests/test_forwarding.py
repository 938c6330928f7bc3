"""Which headers pass, name by name: what a model reads of its callers, and what they read of it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from maas_middleware.apps.proxy import ProxyApp
from maas_middleware.catalogue import Model
from maas_middleware.context import MaaSContext, ensure_context
from maas_middleware.testing.converse import converse

from .deployments import Deployment, bearer, chat, deployed
from .raw_upstream import LAST_CHUNK, Connection, Request, chunk, raw_upstream

PATH = "/v1/chat/completions"
TLS = ssl.create_default_context()  # takes longer to make than most tests take
KEPT, TELLTALE = ("x-kept", "kept"), "telltale"
BODY = b'{"choices": [], "usage": {"total_tokens": 1}}'

OF_THE_CONNECTION = (
    *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection"),
    *("proxy-authenticate", "proxy-authorization"),
)
NOT_FORWARDED = (
    *OF_THE_CONNECTION,
    *("host", "authorization", "x-api-key", "api-key", "cookie", "expect", "forwarded", "via", "x-real-ip"),
    *("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix", "x-forwarded-user"),
    *("x-original-url", "x-rewrite-url", "x-http-method", "x-http-method-override", "x-method-override"),
    *("range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"),
    "x-data-parallel-rank",
)
NOT_RETURNED = (
    *OF_THE_CONNECTION,
    *("server", "date", "set-cookie", "via", "location", "content-location", "link", "alt-svc"),
    *("www-authenticate", "retry-after", "x-powered-by", "x-request-id"),
    *("x-ratelimit-limit-requests", "x-ratelimit-remaining-tokens", "ratelimit", "ratelimit-policy"),
    *("x-odhu-usage-total-tokens", "x-odhu-anything", "x-envoy-upstream-service-time", "x-envoy-decorator-operation"),
    *("x-upstream", "x-upstream-addr", "x-served-by", "x-served-by-host"),
)


@dataclass
class RawModel:
    """A model server on a bare socket, which remembers what it read and answers with the headers that a test sets."""

    url: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    async def serve(self, connection: Connection) -> None:
        while True:
            request = await connection.read_request()
            self.requests.append(request)
            given = [("Content-Type", "application/json"), KEPT, *self.headers]
            if not any(name == "transfer-encoding" for name, _ in given):
                given.append(("Transfer-Encoding", "chunked"))
            lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in given), "", ""]
            await connection.send("\r\n".join(lines).encode() + chunk(BODY) + LAST_CHUNK)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def model() -> AsyncIterator[RawModel]:
    model = RawModel()
    async with raw_upstream(model.serve) as upstream:
        model.url = upstream.url
        yield model


@pytest.fixture(scope="module")
async def transport() -> AsyncIterator[httpx.AsyncHTTPTransport]:
    async with httpx.AsyncHTTPTransport(verify=TLS) as transport:
        yield transport


@pytest.fixture(scope="module")
async def gateway(model: RawModel) -> AsyncIterator[Deployment]:
    async with deployed(models=[{"id": "m", "tiers": "all", "upstreams": [model.url]}]) as gateway:
        yield gateway


class Proxy:
    """A `ProxyApp` alone: outer shells drop some headers, too."""

    def __init__(self, model: RawModel, transport: httpx.AsyncHTTPTransport) -> None:
        self._model = Model("m", upstreams=(model.url,))
        self._app = ProxyApp(transport=transport)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ensure_context(scope).model = self._model
        await self._app(scope, receive, send)


@pytest.fixture
def proxy(model: RawModel, transport: httpx.AsyncHTTPTransport) -> Proxy:
    model.headers, model.requests = [], []
    return Proxy(model, transport)


def values(request: Request) -> str:
    return ", ".join(value.decode() for _, value in request.headers)


@pytest.mark.parametrize("name", NOT_FORWARDED)
async def test_header_of_the_caller_stops_here(model: RawModel, proxy: Proxy, name: str) -> None:
    headers = [("content-length", "2"), KEPT, (name.title(), TELLTALE)]

    answer = await converse(proxy, "POST", PATH, headers=headers, body=b"{}")

    (request,) = model.requests
    assert answer.status == 200
    assert request.values(b"x-kept") == [b"kept"]
    assert TELLTALE not in values(request)


@pytest.mark.parametrize("name", NOT_RETURNED)
async def test_header_of_the_model_stops_here(model: RawModel, proxy: Proxy, name: str) -> None:
    model.headers = [(name, "chunked" if name == "transfer-encoding" else TELLTALE)]

    answer = await converse(proxy, "POST", PATH, headers=[("content-length", "2")], body=b"{}")

    assert answer.headers == [("content-type", "application/json"), KEPT]
    assert answer.body == BODY


async def test_gateway_forwards_none_of_them(model: RawModel, gateway: Deployment) -> None:
    model.headers, model.requests = [], []
    ours = bearer(await gateway.mint())
    theirs = {name: TELLTALE for name in NOT_FORWARDED if name not in ("transfer-encoding", "authorization")}

    answer = await gateway.client.post(PATH, json=chat("m"), headers=theirs | ours | dict([KEPT]))

    (request,) = model.requests
    assert answer.status_code == 200
    assert request.values(b"x-kept") == [b"kept"]
    assert request.values(b"host") == [model.url.removeprefix("http://").encode()]
    assert TELLTALE not in values(request)
    assert ours["authorization"].removeprefix("Bearer ") not in values(request)


async def test_gateway_returns_none_of_them(model: RawModel, gateway: Deployment) -> None:
    model.headers = [(name, TELLTALE) for name in NOT_RETURNED if name != "transfer-encoding"]

    answer = await gateway.client.post(PATH, json=chat("m"), headers=bearer(await gateway.mint()))

    assert answer.status_code == 200
    assert answer.headers["x-kept"] == "kept"
    assert TELLTALE not in ", ".join(answer.headers.values())


class Telling(httpx.AsyncBaseTransport):
    """Answers with headers that a stricter client would refuse."""

    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        self._headers = list(headers)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=self._headers, stream=httpx.ByteStream(BODY))


async def answered(*headers: tuple[bytes, bytes]) -> list[tuple[str, str]]:
    """What a client reads where the model answers with these headers."""
    context = MaaSContext(model=Model("m", upstreams=("http://model",)))
    app = ProxyApp(transport=Telling(*headers))
    return (await converse(app, "POST", PATH, scope={"state": {"maas": context}})).headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-a", b"a\r\nx-b: b"),
        (b"x-a", b"\0"),
        (b"x-a", b"\x7f"),
        (b"x-a", b"\x08"),
        (b"x-a", b"\x1f"),
        (b"x\n", b"a"),
    ],
)
async def test_header_that_cannot_be_sent_stops_here(name: bytes, value: bytes) -> None:
    assert await answered((b"x-kept", b"a\tb\xff "), (name, value)) == [("x-kept", "a\tb\xff ")]


async def test_what_an_event_stream_is_called_has_no_case() -> None:
    assert await answered((b"Content-Type", b"Text/Event-Stream"), (b"Cache-Control", b"max-age=9")) == [
        ("content-type", "Text/Event-Stream"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
    ]


async def test_models_behind_one_url_have_a_credential_each(
    model: RawModel, transport: httpx.AsyncHTTPTransport
) -> None:
    model.headers, model.requests = [], []
    app = ProxyApp(transport=transport)

    for key in ("one", "two", None, "one"):
        context = MaaSContext(model=Model("m", upstreams=(model.url,), api_key=key))
        await converse(app, "POST", PATH, scope={"state": {"maas": context}})

    credentials = [request.values(b"authorization") for request in model.requests]
    assert credentials == [[b"Bearer one"], [b"Bearer two"], [], [b"Bearer one"]]
