"""A gateway that is told to stop takes nothing new, lets streams run until the deadline, and settles all of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import SocketStream
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from maas_middleware import MaaSMiddleware, SigningKeys, load_settings
from maas_middleware.testing.cluster import ClusterUser, StandInCluster
from maas_middleware.testing.model import SimulatedModel

from .deployments import UNTHROTTLED, bearer, chat
from .ledgers.redis_server import RedisServer, running_redis
from .processes import GatewayProcess, running
from .raw_upstream import Connection, answer, chunk, chunked_head, raw_upstream
from .servers import serving
from .test_killed_gateway import standing

LOGIN = "sha256~alice"
CLUSTER = StandInCluster({LOGIN: ClusterUser("alice", ("system:authenticated",))})
CHAT = "/v1/chat/completions"
PROMPT, OUTPUT = 5, 7
USAGE = {"prompt_tokens": PROMPT, "completion_tokens": OUTPUT, "total_tokens": PROMPT + OUTPUT}
EVENT = (
    b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": USAGE}).encode() + b"\n\n"
)
COMMENT = b":" + b" " * 16_000 + b"\n\n"
WHOLE = json.dumps({"choices": [], "usage": USAGE}).encode()
SERVERS = {
    "uvicorn": "uvicorn --factory maas_middleware:gateway --http h11 --timeout-graceful-shutdown 10 --port {port}",
    "granian": "granian --interface asgi --factory maas_middleware:gateway --port {port}",
    "hypercorn": "hypercorn maas_middleware:gateway() --graceful-timeout 10 --bind 127.0.0.1:{port}",
}

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@dataclass
class Site:
    """Where a gateway finds everything, and what it left behind."""

    folder: Path
    redis: RedisServer

    @property
    def config(self) -> Path:
        return self.folder / "maas.json"

    def configure(self, cluster: str, model: str) -> None:
        self.redis.do("FLUSHALL")
        keys = self.folder / "keys.json"
        SigningKeys.generate().save(keys)
        limits = {"requests": "5/hour", "tokens": "1000/hour"}
        document = {
            "openshift": {"api_url": cluster},
            "store": f"sqlite:///{self.folder}/maas.db",
            "counters": f"{self.redis.url}/0",
            "counters_timeout": "5s",
            "tokens": {"signing_keys_file": str(keys)},
            "tiers": [{"name": "crew", "groups": ["system:authenticated"], "limits": limits, "concurrency": 8}],
            "models": [{"id": "simulator", "tiers": "all", "upstreams": [model], "engine": "vllm"}],
            "throttles": UNTHROTTLED,
        }
        self.config.write_text(json.dumps(document))

    @contextmanager
    def serving(self, *options: str) -> Iterator[GatewayProcess]:
        command = [sys.executable, "-m", "maas_middleware", "serve", "--port", "0", "--config", str(self.config)]
        with running(*command, *options) as gateway:
            yield gateway

    def recorded(self) -> tuple[int, int, int]:
        """Requests, input and output tokens in the database."""
        with closing(sqlite3.connect(self.folder / "maas.db")) as database:
            [row] = database.execute(
                "SELECT SUM(requests), SUM(input_tokens), SUM(output_tokens) FROM maas_usage"
            ).fetchall()
        requests, input_tokens, output_tokens = row
        return requests, input_tokens, output_tokens


@pytest.fixture
def site(tmp_path: Path, redis: RedisServer) -> Site:
    return Site(tmp_path, redis)


@asynccontextmanager
async def client_of(port: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a token, of a gateway that may begin to listen in a moment."""
    transport = httpx.AsyncHTTPTransport(retries=6)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        minted = await client.post("/v1/tokens", headers=bearer(LOGIN))
        client.headers.update(bearer(minted.json()["token"]))
        yield client


async def ended(process: subprocess.Popen[Any]) -> int:
    """The exit code, at the end."""
    return await anyio.to_thread.run_sync(lambda: process.wait(timeout=20))


async def refused(port: int) -> None:
    """Return as soon as nobody listens."""
    with anyio.fail_after(10):
        while True:
            try:
                async with await anyio.connect_tcp("127.0.0.1", port):
                    await anyio.lowlevel.checkpoint()
            except OSError as error:
                if isinstance(error.__cause__, ConnectionRefusedError):
                    return


async def connected(port: int, sent: bytes) -> SocketStream:
    stream = await anyio.connect_tcp("127.0.0.1", port)
    await stream.send(sent)
    return stream


async def closed(stream: SocketStream) -> None:
    """Return when the other side has closed the connection without a further byte."""
    with anyio.fail_after(10), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
        raise AssertionError(await stream.receive())
    await stream.aclose()


async def idle_connection(port: int) -> SocketStream:
    """A connection that stays open after a whole answer."""
    stream = await connected(port, b"GET /health HTTP/1.1\r\nhost: gateway\r\n\r\n")
    received = b""
    while not received.endswith(b"}"):
        received += await stream.receive()
    return stream


# streams that end in time


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_stopped_gateway_takes_nothing_new_and_lets_streams_end(site: Site, workers: str) -> None:
    simulator = SimulatedModel()
    async with serving(CLUSTER) as cluster, serving(simulator) as model:
        site.configure(cluster, model)
        with site.serving("--workers", workers) as gateway:
            async with client_of(gateway.port) as client:
                simulator.gate = anyio.Event()
                idle = await idle_connection(gateway.port)
                beginning = await connected(gateway.port, b"POST /v1/chat/completions HTTP/1.1\r\nhost:")
                async with client.stream("POST", CHAT, json=chat(stream=True, max_tokens=9)) as stream:
                    pieces = stream.aiter_bytes()
                    body = await anext(pieces)
                    gateway.process.terminate()
                    await closed(idle)
                    await closed(beginning)
                    await refused(gateway.port)
                    gateway.process.terminate()  # as who stops a whole group of processes does
                    simulator.gate.set()
                    body += b"".join([piece async for piece in pieces])
                exit_code = await ended(gateway.process)

    assert exit_code == 0
    assert "WARNING" not in gateway.printed
    assert gateway.printed.count("Terminated child process") == (0 if workers == "1" else int(workers))
    assert body.endswith(b"data: [DONE]\n\n")
    assert b'"error"' not in body
    requests, input_tokens, output_tokens = site.recorded()
    assert (requests, output_tokens) == (1, 9)
    assert await standing(site.redis) == (4, 1000 - input_tokens - output_tokens, None)


@contextmanager
def served_by(server: str, port: int, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway on another server than that of our command, until the end of the block."""
    program, *arguments = SERVERS[server].format(port=port).split()
    process = subprocess.Popen(
        [Path(sys.executable).with_name(program), *arguments],
        env={**os.environ, "MAAS_CONFIG": str(config)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.parametrize("server", SERVERS)
async def test_other_servers_let_streams_end_too(site: Site, server: str) -> None:
    simulator = SimulatedModel()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with serving(CLUSTER) as cluster, serving(simulator) as model:
        site.configure(cluster, model)
        with served_by(server, port, site.config) as process:
            async with client_of(port) as client:
                simulator.gate = anyio.Event()
                idle = await idle_connection(port)
                async with client.stream("POST", CHAT, json=chat(stream=True, max_tokens=9)) as stream:
                    pieces = stream.aiter_bytes()
                    body = await anext(pieces)
                    process.terminate()
                    await closed(idle)
                    simulator.gate.set()
                    body += b"".join([piece async for piece in pieces])
            await ended(process)

    assert body.endswith(b"data: [DONE]\n\n")
    requests, input_tokens, output_tokens = site.recorded()
    assert (requests, output_tokens) == (1, 9)
    assert await standing(site.redis) == (4, 1000 - input_tokens - output_tokens, None)


# what outlives the deadline


def question(kind: str, **more: Any) -> dict[str, Any]:
    return chat(user=kind, max_tokens=50, **more)


async def upstream(connection: Connection) -> None:
    """Answer as the request's `user` says, and keep the connection."""
    while True:
        kind = json.loads((await connection.read_request()).body)["user"]
        if kind == "whole":
            await connection.send(answer("200 OK", WHOLE, b"Content-Type: application/json"))
            continue
        if kind == "silent":
            await connection.until_client_left()
        await connection.send(chunked_head("text/event-stream"), chunk(EVENT))
        if kind == "stream":
            await connection.until_client_left()
        while True:
            await connection.send(chunk(COMMENT))


async def read_on(pieces: AsyncIterator[bytes], body: bytearray) -> None:
    async for piece in pieces:
        body += piece


async def broken_off(client: httpx.AsyncClient, body: bytearray, begun: anyio.Event) -> None:
    """Read a stream until it breaks off."""
    async with client.stream("POST", CHAT, json=question("stream", stream=True)) as stream:
        pieces = stream.aiter_bytes()
        body += await anext(pieces)
        begun.set()
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            await read_on(pieces, body)


async def unread(client: httpx.AsyncClient, port: int) -> SocketStream:
    """A stream without end of which only the beginning is read."""
    body = json.dumps(question("flood", stream=True)).encode()
    token = client.headers["authorization"].encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: %b\r\ncontent-length: %d\r\n\r\n"
    stream = await connected(port, head % (token, len(body)) + body)
    assert (await stream.receive(100)).startswith(b"HTTP/1.1 200 OK\r\n")
    return stream


def farewells(body: bytearray) -> list[dict[str, Any]]:
    """The errors among the events of a stream, which has none but whole ones."""
    assert body.endswith(b"\n\n")
    events = [json.loads(event.removeprefix(b"data: ")) for event in bytes(body).split(b"\n\n")[:-1]]
    return [event["error"] for event in events if "error" in event]


async def test_what_outlives_the_deadline_is_broken_off_and_settled(site: Site) -> None:
    body, begun = bytearray(), anyio.Event()
    refusals: list[tuple[httpx.Response, float]] = []

    async def ask_in_vain(client: httpx.AsyncClient) -> None:
        refusals.append((await client.post(CHAT, json=question("silent")), time.monotonic()))

    async with serving(CLUSTER) as cluster, raw_upstream(upstream) as model:
        site.configure(cluster, model.url)
        with site.serving("--shutdown-timeout", "1") as gateway:
            async with client_of(gateway.port) as client, anyio.create_task_group() as group:
                group.start_soon(broken_off, client, body, begun)
                group.start_soon(ask_in_vain, client)
                await begun.wait()
                while len(model.connections) < 2:
                    await anyio.lowlevel.checkpoint()
                slow_reader = await unread(client, gateway.port)
                whole = await client.post(CHAT, json=question("whole"))
                stopped_at = time.monotonic()
                gateway.process.terminate()
                exit_code = await ended(gateway.process)
                ended_at = time.monotonic()
            await slow_reader.aclose()
            with anyio.fail_after(5):
                for connection in model.connections:
                    await connection.client_left.wait()

    assert exit_code == 0
    assert whole.status_code == 200
    assert [error["code"] for error in farewells(body)] == ["upstream_unavailable"]
    [(refusal, refused_at)] = refusals
    assert 1 <= refused_at - stopped_at <= ended_at - stopped_at < 10
    assert (refusal.status_code, refusal.headers["connection"]) == (503, "close")
    assert refusal.json()["error"]["code"] == "upstream_unavailable"
    assert len(model.connections) == 4
    assert site.recorded() == (3, 3 * PROMPT, 3 * OUTPUT)  # whoever got no byte pays nothing
    assert await standing(site.redis) == (2, 1000 - 3 * (PROMPT + OUTPUT), None)


async def test_second_interrupt_breaks_streams_off_at_once_and_settles_them(site: Site) -> None:
    body, begun = bytearray(), anyio.Event()
    async with serving(CLUSTER) as cluster, raw_upstream(upstream) as model:
        site.configure(cluster, model.url)
        with site.serving("--shutdown-timeout", "60") as gateway:
            async with client_of(gateway.port) as client, anyio.create_task_group() as group:
                group.start_soon(broken_off, client, body, begun)
                await begun.wait()
                gateway.process.send_signal(signal.SIGINT)
                await refused(gateway.port)
                gateway.process.send_signal(signal.SIGINT)
                exit_code = await ended(gateway.process)
            with anyio.fail_after(5):
                await model.connections[0].client_left.wait()

    assert exit_code == 0
    assert [error["code"] for error in farewells(body)] == ["upstream_unavailable"]
    assert site.recorded() == (1, PROMPT, OUTPUT)
    assert await standing(site.redis) == (4, 1000 - PROMPT - OUTPUT, None)


# mounted in an app


def is_open(path: Path) -> bool:
    """Whether this process holds the file open."""
    descriptors = Path("/proc/self/fd").iterdir()
    return any(os.path.realpath(descriptor) == str(path) for descriptor in descriptors)


async def test_mounted_service_settles_and_closes_after_the_app(site: Site) -> None:
    database = site.folder / "maas.db"
    open_at_the_end_of_the_app: list[bool] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        open_at_the_end_of_the_app.append(is_open(database))

    async def tokens() -> AsyncIterator[bytes]:
        yield EVENT
        await anyio.sleep_forever()

    app = FastAPI(lifespan=lifespan)

    @app.post(CHAT)
    async def answer_chat() -> StreamingResponse:
        return StreamingResponse(tokens(), media_type="text/event-stream")

    body, begun = bytearray(), anyio.Event()
    async with serving(CLUSTER) as cluster, anyio.create_task_group() as group, AsyncExitStack() as client_stack:
        site.configure(cluster, "http://127.0.0.1:9")
        app.add_middleware(MaaSMiddleware, settings=load_settings({}, config=str(site.config)))
        async with serving(app, lifespan="on", log_level="critical") as url:
            client = await client_stack.enter_async_context(client_of(int(url.rpartition(":")[2])))
            group.start_soon(broken_off, client, body, begun)
            await begun.wait()

    assert len(farewells(body)) == 1
    assert open_at_the_end_of_the_app == [True]
    assert not is_open(database)
    assert site.recorded() == (1, PROMPT, OUTPUT)
    assert await standing(site.redis) == (4, 1000 - PROMPT - OUTPUT, None)
