"""How streams of a vLLM with MaaSMiddleware in it end before their time, and how the whole server does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import httpx
import openai
import pytest

from ..deployments import bearer
from .vllm_running import CHAT, FAY, MIDDLEWARE, QUESTION, VLLM, cluster, until, vllm

pytestmark = pytest.mark.timeout(60)
ABORTED = 'vllm:request_success_total{finished_reason="abort"}'
PIECES = 3
HELD = ("--hold-after", str(PIECES))
MODELS = json.dumps([{"id": "tiny", "tiers": "all", "engine": "vllm", "context_length": 32768}])


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    with cluster() as environ:
        yield environ


@contextmanager
def held_stream(server: VLLM, token: str) -> Iterator[tuple[httpx.Response, Iterator[str]]]:
    """A stream whose first pieces have come, and the lines that are still to come."""
    with server.http.stream("POST", CHAT, headers=bearer(token), json={**QUESTION, "stream": True}) as answer:
        lines = answer.iter_lines()
        for _ in range(1 + PIECES):  # the role first
            next(line for line in lines if line.startswith("data: "))
        yield answer, lines


@pytest.mark.parametrize("models", [{}, {"MAAS_MODELS": MODELS}], ids=["vllms-own-models", "configured-models"])
def test_a_client_who_leaves_ends_the_generation_and_pays_for_what_was_produced(
    environ: dict[str, str], models: dict[str, str]
) -> None:
    with vllm(*MIDDLEWARE, *HELD, **environ, **models) as server:
        token = server.mint()

        with held_stream(server, token):
            running = server.metrics()["vllm:num_requests_running"]
        until(lambda: server.metrics().get(ABORTED) == 1)
        until(lambda: server.used(token)[1] < 100)  # what was reserved is given back

        prompt = 4 if models else len(json.dumps(QUESTION["messages"])) // 4
        assert running == 1
        assert server.metrics()["vllm:num_requests_running"] == 0
        requests, tokens = server.used(token)
        assert requests == 1
        assert PIECES < tokens <= prompt + 1 + PIECES
        assert not models or tokens == prompt + PIECES
    assert "Traceback" not in server.printed


async def test_a_client_who_leaves_before_a_whole_answer_ends_the_generation(environ: dict[str, str]) -> None:
    with vllm(*MIDDLEWARE, *HELD, **environ) as server:
        token = server.mint()

        async with httpx.AsyncClient(base_url=server.url) as http, anyio.create_task_group() as group:
            group.start_soon(partial(http.post, CHAT, headers=bearer(token), json=QUESTION))
            while server.metrics()["vllm:num_requests_running"] != 1:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        until(lambda: server.metrics().get(ABORTED) == 1)
        until(lambda: server.used(token)[1] < 100)

        assert server.used(token)[0] == 1
    assert "Traceback" not in server.printed


def test_sigterm_ends_neatly_while_a_stream_runs_and_loses_no_use(environ: dict[str, str], tmp_path: Path) -> None:
    environ = {**environ, "MAAS_STORE": f"sqlite:///{tmp_path}/maas.db"}
    with vllm(*MIDDLEWARE, *HELD, **environ) as server:
        with held_stream(server, server.mint()) as (_, lines):
            server.process.terminate()
            rest: list[str] = []
            with pytest.raises(httpx.RemoteProtocolError):  # nobody takes it for whole
                rest.extend(lines)
        code = server.process.wait(timeout=10)
    with vllm(*MIDDLEWARE, **environ) as server:
        recorded = server.http.get("/v1/usage", headers=bearer(FAY)).json()["total"]

    assert code == 0
    assert "Traceback" not in server.printed
    assert "EngineCore" not in "".join(rest)
    assert recorded["requests"] == 1
    assert recorded["output_tokens"] == PIECES


def test_sigterm_lets_a_stream_end_where_vllm_does(environ: dict[str, str]) -> None:
    with vllm(*MIDDLEWARE, "--token-seconds", "0.05", "--shutdown-timeout", "10", **environ) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.mint(), max_retries=0) as sdk:
            stream = sdk.chat.completions.create(**QUESTION, stream=True)  # type: ignore[call-overload]
            first = next(stream)
            server.process.terminate()
            chunks = [first, *stream]
        code = server.process.wait(timeout=10)

    assert chunks[-1].choices[0].finish_reason == "stop"
    assert code == 0
    assert "Traceback" not in server.printed


def test_several_api_servers_end_neatly(environ: dict[str, str]) -> None:
    with vllm(*MIDDLEWARE, "--api-server-count", "2", **environ) as server:
        server.stop()

    assert "Traceback" not in server.printed
    assert server.printed.count("Application shutdown complete.") == 2


def test_a_start_without_the_cluster_is_a_start(environ: dict[str, str]) -> None:
    environ = {**environ, "MAAS_OPENSHIFT_API_URL": "http://127.0.0.1:9"}
    with vllm(*MIDDLEWARE, **environ) as server:
        health = server.http.get("/health")
        minting = server.http.post("/maas-api/v1/tokens", headers=bearer(FAY))

    assert health.status_code == 200
    assert (minting.status_code, minting.json()["error"]["code"]) == (503, "auth_unavailable")
    assert "retry-after" in minting.headers
