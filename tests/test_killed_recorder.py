"""A process that records use in a SQLite file, and is ended in both ways."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from maas_middleware._lifespan import Service
from maas_middleware.endpoints import CHAT_COMPLETIONS
from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.middleware.rate_limit import RateLimitMiddleware
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.middleware.usage import UsageMiddleware
from maas_middleware.recorder import UsageRecorder
from maas_middleware.stores.sql import SQLDatabase, SQLUsageStore
from maas_middleware.tiers import GroupTierResolver, Tier

from .parts import ALICE, AS_ALICE, Answering, identified, json_answer
from .processes import ROOT, GatewayProcess, running

PROMISED_SECONDS = 1.0
PROMPT, OUTPUT = 3, 4
CHAT = {"model": "simulator", "messages": []}


async def no_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """What is inside, as far as the lifespan is concerned."""


def serve(path: str, lifespan: str) -> None:
    database = SQLDatabase(f"sqlite:///{path}")
    recorder = UsageRecorder(SQLUsageStore(database))
    usage = {"prompt_tokens": PROMPT, "completion_tokens": OUTPUT, "total_tokens": PROMPT + OUTPUT}
    answering = Answering(*json_answer(json.dumps({"usage": usage}).encode()))
    metered = RateLimitMiddleware(UsageMiddleware(answering), ledger=MemoryLedger(), recorder=recorder)
    shells = identified(TierMiddleware(metered, resolver=GroupTierResolver([Tier("all", groups=ALICE.groups)])))
    service = Service(shells, no_lifespan, running=[recorder.run], closing=[database.aclose, recorder.aclose])
    assert lifespan in ("on", "off")
    uvicorn.run(service, port=int(os.environ["PORT"]), lifespan="on" if lifespan == "on" else "off")


@contextmanager
def recording(path: Path, *, lifespan: str) -> Iterator[GatewayProcess]:
    with running(sys.executable, "-m", "tests.test_killed_recorder", str(path), lifespan) as process:
        yield process


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)  # where the tests can be imported
    return tmp_path / "maas.db"


async def answered(process: GatewayProcess, *, seconds: float) -> list[float]:
    """Ask one request after the other for so long; returns when each was answered."""
    began = time.monotonic()
    times: list[float] = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.port}", trust_env=False) as client:
        while not times or times[-1] < began + seconds:
            answer = await client.post(CHAT_COMPLETIONS, json=CHAT, headers=dict([AS_ALICE]))
            assert answer.status_code == 200
            times.append(time.monotonic())
    return times


async def recorded(path: Path) -> int:
    """How many requests the file has, each with its tokens."""
    database = SQLDatabase(f"sqlite:///{path}")
    try:
        [record] = await SQLUsageStore(database).usage(ALICE.key, date.min, date.max)
    finally:
        await database.aclose()
    assert (record.input_tokens, record.output_tokens) == (record.requests * PROMPT, record.requests * OUTPUT)
    return record.requests


async def test_killed_process_loses_a_second_at_most(path: Path) -> None:
    with recording(path, lifespan="on") as process:
        times = await answered(process, seconds=2.5)
        process.process.kill()
        killed_at = time.monotonic()
        process.process.wait(timeout=10)

    kept = await recorded(path)
    assert sum(at < killed_at - PROMISED_SECONDS for at in times) <= kept <= len(times)


@pytest.mark.parametrize("lifespan", ["on", "off"])
async def test_process_that_is_asked_to_end_loses_nothing(path: Path, lifespan: str) -> None:
    with recording(path, lifespan=lifespan) as process:
        times = await answered(process, seconds=0.2)
        process.process.send_signal(signal.SIGTERM)
        process.process.wait(timeout=10)

    assert await recorded(path) == len(times)


async def test_killed_process_without_a_lifespan_loses_what_it_was_just_writing(path: Path) -> None:
    with recording(path, lifespan="off") as process:
        times = await answered(process, seconds=1.5)
        process.process.kill()
        killed_at = time.monotonic()
        process.process.wait(timeout=10)

    kept = await recorded(path)
    assert sum(at < killed_at - PROMISED_SECONDS for at in times) <= kept <= len(times)


if __name__ == "__main__":
    serve(*sys.argv[1:])
