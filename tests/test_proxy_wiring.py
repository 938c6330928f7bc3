"""What is configured about the proxy reaches it, and what it learns of its upstreams reaches everybody who asks."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx
import pytest
import trustme

from maas_middleware.testing import SimulatedModel
from maas_middleware.transports import upstream_transport

from .deployments import Deployment, bearer, chat, deployed
from .raw_upstream import LAST_CHUNK, Connection, answer, chunk, chunked_head, raw_upstream
from .servers import serving

CHAT = "/v1/chat/completions"
JSON = b"Content-Type: application/json"
WHOLE = answer("200 OK", b'{"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}', JSON)
BOTH_LENGTHS = chunked_head("application/json", b"Content-Length: 2") + chunk(b"{}") + LAST_CHUNK
HEAD = chunked_head("text/event-stream")
EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
IDS = ("m", "n")
PATIENCE = 10.0  # far less than the default of any deadline


def saying(*pieces: bytes) -> Callable[[Connection], Awaitable[None]]:
    """A script that answers each request of a connection with the same."""

    async def script(connection: Connection) -> None:
        while True:
            await connection.read_request()
            await connection.send(*pieces)

    return script


def models(*urls: str) -> list[dict[str, Any]]:
    """Two models on the same servers."""
    return [{"id": name, "tiers": "all", "upstreams": list(urls)} for name in IDS]


async def ask(site: Deployment, token: str, model: str = "m") -> httpx.Response:
    return await site.client.post(CHAT, json=chat(model), headers=bearer(token))


async def state(site: Deployment, token: str) -> tuple[object, list[bool]]:
    """What `/ready` calls degraded, and which models are ready."""
    listed = (await site.client.get("/v1/models", headers=bearer(token))).json()["data"]
    return (await site.client.get("/ready")).json().get("degraded"), [row["ready"] for row in listed]


async def read_until(site: Deployment, token: str, part: bytes) -> bytes:
    """Read a stream until it has said something."""
    read = b""
    with anyio.fail_after(PATIENCE):
        async with site.client.stream("POST", CHAT, json=chat("m", stream=True), headers=bearer(token)) as stream:
            async for piece in stream.aiter_bytes():
                read += piece
                if part in read:
                    break
    return read


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("proxy", "status"),
    [
        pytest.param({}, 502, id="by-default"),
        pytest.param({"transport": "auto"}, 502, id="auto"),
        pytest.param({"transport": "http11"}, 502, id="http11"),
        pytest.param({"transport": "httpx"}, 200, id="httpx"),
    ],
)
async def test_client_is_the_configured_one_and_ours_takes_no_answer_of_two_lengths(
    proxy: dict[str, str], status: int
) -> None:
    async with (
        raw_upstream(saying(BOTH_LENGTHS)) as upstream,
        deployed(models=models(upstream.url), proxy=proxy) as site,
    ):
        answered = await ask(site, await site.mint())

    assert answered.status_code == status


async def test_answers_end_after_the_configured_total_time() -> None:
    async with (
        raw_upstream(saying(HEAD, chunk(EVENT))) as upstream,
        deployed(models=models(upstream.url), proxy={"total_timeout": "200ms"}) as site,
    ):
        read = await read_until(site, await site.mint(), b"upstream_timeout")

    assert read.startswith(b"data: {")
    assert b'"upstream_timeout"' in read


@pytest.mark.parametrize(
    "said", [pytest.param((), id="before-the-first-event"), pytest.param((EVENT,), id="between-events")]
)
async def test_silent_streams_get_comments_at_the_configured_interval(said: tuple[bytes, ...]) -> None:
    async with (
        raw_upstream(saying(HEAD, *map(chunk, said))) as upstream,
        deployed(models=models(upstream.url), proxy={"keepalive_interval": "50ms"}) as site,
    ):
        read = await read_until(site, await site.mint(), b": keep-alive\n\n")

    assert read == b"".join(said) + b": keep-alive\n\n"


async def test_models_without_a_server_that_works_are_told_until_it_answers_again() -> None:
    said = [answer("503 Service Unavailable")]

    async def script(connection: Connection) -> None:
        while True:
            await connection.read_request()
            await connection.send(said[0])

    async with raw_upstream(script) as upstream, deployed(models=models(upstream.url)) as site:
        token = await site.mint("sha256~premium")
        before = await state(site, token)
        failures = [(await ask(site, token, model)).status_code for model in (*IDS, "m")]
        meanwhile = await state(site, token)
        said[0] = WHOLE
        answered = await ask(site, token)
        after = await state(site, token)

    assert before == (None, [True, True])
    assert failures == [503, 503, 503]
    assert meanwhile == (["models"], [False, False])
    assert (answered.status_code, after) == (200, before)


async def test_model_whose_first_server_is_gone_is_served_by_its_second() -> None:
    gone = f"http://127.0.0.1:{closed_port()}"
    async with raw_upstream(saying(WHOLE)) as upstream, deployed(models=models(gone, upstream.url)) as site:
        token = await site.mint("sha256~premium")
        answers = [(await ask(site, token)).status_code for _ in range(8)]
        told = await state(site, token)

    assert answers == [200] * 8
    assert told == (None, [True, True])


async def test_refusal_of_a_busy_server_passes_with_its_wait_and_does_not_leave_it_out() -> None:
    busy = answer("429 Too Many Requests", b'{"error":{"message":"busy"}}', JSON, b"Retry-After: 7")
    async with raw_upstream(saying(busy)) as upstream, deployed(models=models(upstream.url)) as site:
        token = await site.mint("sha256~premium")
        answers = [await ask(site, token) for _ in range(4)]
        told = await state(site, token)

    assert [(one.status_code, one.headers["retry-after"]) for one in answers] == [(429, "7")] * 4
    assert answers[0].json()["error"]["message"] == "busy"
    assert told == (None, [True, True])


@pytest.mark.parametrize("transport", ["http11", "httpx"])
@pytest.mark.parametrize("said", [pytest.param((), id="thinking"), pytest.param((HEAD, chunk(EVENT)), id="streaming")])
async def test_client_of_the_gateway_that_leaves_reaches_the_server_within_100_ms(
    said: tuple[bytes, ...], transport: str
) -> None:
    reached = anyio.Event()

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(*said)
        reached.set()
        await connection.until_client_left()

    async with (
        raw_upstream(script) as upstream,
        deployed(models=models(upstream.url), proxy={"transport": transport}) as site,
    ):
        token, body = await site.mint("sha256~premium"), json.dumps(chat("m", stream=True)).encode()
        sent = b"POST %b HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b"
        took = []
        for _ in range(3):  # a busy machine may be late once
            reached = anyio.Event()
            client = await anyio.connect_tcp("127.0.0.1", int(site.url.rpartition(":")[2]))
            await client.send(sent % (CHAT.encode(), token.encode(), len(body), body))
            await reached.wait()
            left = anyio.current_time()
            await client.aclose()
            await upstream.connections[-1].client_left.wait()
            took.append(anyio.current_time() - left)

    assert min(took) < 0.1


@pytest.mark.parametrize("transport", ["http11", "httpx"])
async def test_gateway_that_stops_closes_its_connections_to_model_servers(transport: str) -> None:
    async with raw_upstream(saying(WHOLE)) as upstream:
        async with deployed(models=models(upstream.url), proxy={"transport": transport}) as site:
            answered = await ask(site, await site.mint())
            [connection] = upstream.connections
            was_kept = not connection.client_left.is_set()
        with anyio.fail_after(1):  # it would be given up by itself after three
            await connection.client_left.wait()

    assert answered.status_code == 200
    assert was_kept


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        pytest.param("http11", 110, id="http11"),
        pytest.param("httpx", 30, id="httpx"),  # it takes long for more
    ],
)
async def test_many_requests_at_once_have_a_connection_each_and_all_are_kept(
    kind: Literal["http11", "httpx"], count: int
) -> None:
    arrived = 0
    all_there = anyio.Event()

    async def script(connection: Connection) -> None:
        nonlocal arrived
        while True:
            await connection.read_request()
            arrived += 1
            if arrived % count == 0:
                all_there.set()
            await all_there.wait()
            await connection.send(WHOLE)

    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(raw_upstream(script))
        transport = await stack.enter_async_context(upstream_transport(kind))

        async def get() -> None:
            response = await transport.handle_async_request(httpx.Request("GET", upstream.url))
            await response.aread()

        for _ in range(2):
            all_there = anyio.Event()
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(get)

    assert (arrived, len(upstream.connections)) == (2 * count, count)


async def test_idle_connections_are_given_up_before_model_servers_close_them() -> None:
    """After 3 seconds: vLLM closes them after 5."""
    async with (
        raw_upstream(saying(WHOLE)) as upstream,
        raw_upstream(saying(WHOLE)) as other,
        upstream_transport("http11") as ours,
        upstream_transport("httpx") as theirs,
    ):
        await (await theirs.handle_async_request(httpx.Request("GET", other.url))).aread()
        await (await ours.handle_async_request(httpx.Request("GET", upstream.url))).aread()
        with anyio.fail_after(4.5):
            await upstream.connections[0].client_left.wait()
        await (await theirs.handle_async_request(httpx.Request("GET", other.url))).aread()

    assert len(other.connections) == 2


@pytest.mark.parametrize("transport", ["http11", "httpx"])
@pytest.mark.parametrize("is_trusted", [True, False])
async def test_https_servers_are_trusted_by_the_configured_authorities(
    tmp_path: Path, transport: str, is_trusted: bool
) -> None:
    authority, other = trustme.CA(), trustme.CA()
    files = {name: str(tmp_path / name) for name in ("ca", "cert", "key")}
    (authority if is_trusted else other).cert_pem.write_to_path(files["ca"])
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(files["key"])
    certificate.cert_chain_pems[0].write_to_path(files["cert"])
    server = serving(SimulatedModel("m"), ssl_certfile=files["cert"], ssl_keyfile=files["key"])

    proxy = {"transport": transport, "ca_file": files["ca"]}
    async with server as url, deployed(models=models(url), proxy=proxy) as site:
        answered = await ask(site, await site.mint("sha256~premium"))

    assert answered.status_code == (200 if is_trusted else 503)
