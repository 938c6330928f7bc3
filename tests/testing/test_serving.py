from __future__ import annotations

import logging
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from maas_middleware.testing import SimulatedModel, serving, serving_in_thread

CHAT = {"model": "simulator", "messages": [{"role": "user", "content": "Hello"}], "stream": True}


class Body(Exception):
    """What the block of a test raises."""


def living(journal: list[str], *, fails: bool = False) -> Starlette:
    """An app with a lifespan, whose state its route shows."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, str]]:
        journal.append("up")
        if fails:
            raise ValueError("no engine")
        yield {"engine": "warm"}
        journal.append("down")

    async def show(request: Request) -> JSONResponse:
        return JSONResponse(request.state.engine)

    return Starlette(routes=[Route("/", show)], lifespan=lifespan)


async def refuses_to_start(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no engine"})


async def test_an_app_is_started_served_and_shut_down() -> None:
    journal: list[str] = []

    async with serving(living(journal)) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/")
        assert journal == ["up"]

    assert answer.json() == "warm"
    assert "date" in answer.headers
    assert journal == ["up", "down"]
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


async def test_an_app_without_a_lifespan_is_served() -> None:
    async with serving(JSONResponse("hello")) as url, httpx.AsyncClient() as client:
        answer = await client.get(url)

    assert answer.json() == "hello"


async def test_a_stream_arrives_as_it_is_made() -> None:
    model = SimulatedModel()
    model.gate = anyio.Event()

    async with serving(model) as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
            first = await anext(answer.aiter_bytes())
        await model.requests[0].done.wait()

    assert b"assistant" in first
    assert model.requests[0].outcome == "cancelled"


@pytest.mark.parametrize("app", [living([], fails=True), refuses_to_start], ids=["raises", "says-so"])
async def test_a_startup_that_fails_is_an_error_at_once(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "uvicorn.error"), pytest.raises(RuntimeError, match="startup failed"):
        async with serving(app):
            pytest.fail("it is served")

    assert "no engine" in caplog.text


async def test_what_the_block_raises_leaves_it_as_it_is() -> None:
    journal: list[str] = []

    with pytest.raises(Body):
        async with serving(living(journal)):
            raise Body
    with pytest.raises(pytest.skip.Exception):
        async with serving(living(journal)):
            pytest.skip("which is no Exception")

    assert journal == ["up", "down"] * 2


async def test_a_block_that_is_cancelled_ends() -> None:
    with anyio.move_on_after(0.01) as scope:
        async with serving(JSONResponse("hello")) as url:
            await anyio.sleep_forever()

    assert scope.cancelled_caught
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


async def test_a_request_that_goes_on_is_ended_a_second_after_the_block() -> None:
    reached = anyio.Event()

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        reached.set()
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with httpx.AsyncClient(timeout=10) as client, anyio.create_task_group() as group:

            async def ask() -> None:
                assert (await client.get(url)).status_code == 500

            async with serving(silent) as url:
                group.start_soon(ask)
                await reached.wait()


async def test_options_are_those_of_uvicorn(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    trusted = ssl.create_default_context(cafile=tmp_path / "ca.pem")

    async with (
        serving(JSONResponse("hello"), ssl_certfile=str(tmp_path / "server.pem"), http="h11") as url,
        httpx.AsyncClient(verify=trusted) as client,
    ):
        answer = await client.get(url)

    assert url.startswith("https://127.0.0.1:")
    assert answer.json() == "hello"


async def test_a_wrong_option_is_an_error_of_its_own() -> None:
    with pytest.raises(TypeError, match="colour"):
        async with serving(JSONResponse("hello"), colour="red"):
            pytest.fail("it is served")
    with pytest.raises(FileNotFoundError):
        async with serving(JSONResponse("hello"), ssl_certfile="/nowhere/server.pem"):
            pytest.fail("it is served")


async def test_without_uvicorn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    with pytest.raises(ImportError, match=r"pip install 'maas-middleware\[gateway\]'"):
        async with serving(JSONResponse("hello")):
            pytest.fail("it is served")


def test_a_test_that_is_no_coroutine_is_served_from_a_thread() -> None:
    journal: list[str] = []

    with serving_in_thread(living(journal)) as url:
        answer = httpx.get(url)
    with pytest.raises(RuntimeError, match="startup failed"), serving_in_thread(refuses_to_start):
        pytest.fail("it is served")
    with pytest.raises(Body), serving_in_thread(living(journal)):
        raise Body

    assert answer.json() == "warm"
    assert journal == ["up", "down"] * 2


def test_ctrl_c_ends_the_test_and_not_only_the_server(tmp_path: Path) -> None:
    (test := tmp_path / "test_waiting.py").write_text(
        "import anyio\nimport pytest\nfrom starlette.responses import JSONResponse\n"
        "from maas_middleware.testing import serving\n\n"
        "@pytest.mark.anyio\nasync def test_waiting():\n"
        "    async with serving(JSONResponse('hello')):\n        print('READY', flush=True)\n"
        "        await anyio.sleep_forever()\n"
    )
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(test)]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            printed = next(line for line in process.stdout if "READY" in line)
            process.send_signal(signal.SIGINT)
            printed += process.communicate(timeout=10)[0]
        finally:
            process.kill()

    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in printed
