"""Gateways behind a balancer are restarted one after the other under load, and their clients lose nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from .balancer import balancing
from .deployments import bearer, chat
from .fleet import Replica, fleet

CHAT = "/v1/chat/completions"
ANSWERS = 18  # between two steps
TOKENS = (5, 7, 9, 11, 13, 17)  # of each client's answers, so that they do not end together
# what a client may do again: a connection that was refused, or closed before a byte of the answer
RETRIED = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)

pytestmark = pytest.mark.timeout(90)


class Load:
    """Clients that ask one thing after the other, each on connections of its own that it keeps.

    Attributes:
        answers: how many were read to their end.
        tokens: what they say to have used.
        retries: how often a connection ended before an answer began.
        losses: what came instead of a whole answer.
    """

    def __init__(self, url: str, token: str) -> None:
        self.answers = 0
        self.tokens = 0
        self.retries = 0
        self.losses: list[str] = []
        self._url = url
        self._token = token
        self._is_over = False
        self._news = anyio.Event()

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            for number, tokens in enumerate(TOKENS):
                group.start_soon(self._ask, tokens, number % 3 > 0)

    async def goes_on(self) -> None:
        """Return after so many further answers, or a loss."""
        wanted = self.answers + ANSWERS
        while self.answers < wanted and not self.losses:
            self._news = anyio.Event()
            await self._news.wait()

    def end(self) -> None:
        """Let each client end with its next answer."""
        self._is_over = True

    async def _ask(self, tokens: int, stream: bool) -> None:
        async with httpx.AsyncClient(base_url=self._url, headers=bearer(self._token), timeout=20) as client:
            while not self._is_over:
                body = chat(stream=stream, max_tokens=tokens)
                if stream:
                    body["stream_options"] = {"include_usage": True}
                try:
                    used = await self._answer(client, body)
                    self.tokens += used
                    self.answers += 1
                except (httpx.HTTPError, AssertionError) as error:
                    self.losses.append(repr(error))
                self._news.set()

    async def _answer(self, client: httpx.AsyncClient, body: dict[str, Any]) -> int:
        while True:
            try:
                answer = await client.send(client.build_request("POST", CHAT, json=body), stream=True)
            except RETRIED:
                self.retries += 1
                continue
            try:
                return tokens_of(answer, await answer.aread(), body)
            finally:
                await answer.aclose()


def tokens_of(answer: httpx.Response, content: bytes, body: dict[str, Any]) -> int:
    """What a whole answer says to have used."""
    assert answer.status_code == 200, content
    if body["stream"]:
        *events, done, rest = content.split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b""), content
        content = events[-1].removeprefix(b"data: ")
    usage = json.loads(content)["usage"]
    assert usage["completion_tokens"] == body["max_tokens"]
    return int(usage["total_tokens"])


def recorded(path: Path) -> tuple[int, int]:
    """Requests and tokens in the database."""
    with closing(sqlite3.connect(path)) as database:
        [row] = database.execute("SELECT SUM(requests), SUM(input_tokens + output_tokens) FROM maas_usage").fetchall()
    requests, tokens = row
    return requests, tokens


async def stopped(replica: Replica) -> int:
    """Tell a gateway to stop; the exit code, at its end."""
    replica.process.process.terminate()
    return await anyio.to_thread.run_sync(lambda: replica.process.process.wait(timeout=30))


async def test_rolling_restart_under_load_loses_no_request(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with fleet(f"sqlite:///{tmp_path}/maas.db", tmp_path) as site:
        site.simulator.delay = 0.02
        replicas = await site.replicas(2)
        token = (await replicas[0].mint())["token"]
        async with balancing(*(replica.process.port for replica in replicas)) as balancer:
            load = Load(balancer.url, token)
            async with anyio.create_task_group() as group:
                group.start_soon(load.run)
                await load.goes_on()
                for place, replica in enumerate(replicas):
                    assert await stopped(replica) == 0
                    await load.goes_on()
                    replicas[place] = await site.replica()
                    balancer.backends[place] = replicas[place].process.port
                    await load.goes_on()
                load.end()
            exit_codes = [await stopped(replica) for replica in replicas]

    record_property("answers, retries, connections passed over", (load.answers, load.retries, balancer.passed_over))
    assert load.losses == []
    assert balancer.passed_over > 0
    assert exit_codes == [0, 0]
    assert recorded(tmp_path / "maas.db") == (load.answers, load.tokens), "nothing was processed twice"
