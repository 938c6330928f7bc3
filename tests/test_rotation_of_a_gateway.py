"""The documented way to another key, on running gateways that are asked all the time."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import jwt
import pytest

from maas_middleware.providers.keys import SigningKeys

from .fleet import Replica, fleet

BOUND_SECONDS = 1.0

pytestmark = pytest.mark.timeout(90)


class Asker:
    """Mints at each replica in turn, and uses what was minted at every one. All of it has to be accepted.

    Attributes:
        kept: the first token of each key that signed, used in every round.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.kept: dict[str, str] = {}
        self._replicas = replicas
        self._keeps = True
        self._round = anyio.Event()

    async def run(self) -> None:
        """Ask until it is cancelled."""
        while True:
            for replica in self._replicas:
                token = str((await replica.mint())["token"])
                if self._keeps:
                    self.kept.setdefault(key_of(token), token)
                for one in {token, *self.kept.values()}:
                    await self._use(one)
            self._round.set()
            self._round = anyio.Event()

    async def _use(self, token: str) -> None:
        for replica in self._replicas:
            answer = await replica.call(token)
            assert answer.status_code == 200, answer.text

    async def rounds(self, count: int) -> None:
        """Wait for so many rounds that begin from now on, and the one that is under way."""
        for _ in range(count + 1):
            await self._round.wait()

    async def forget(self) -> dict[str, str]:
        """Use fresh tokens only; returns those that were kept."""
        kept, self.kept, self._keeps = self.kept, {}, False
        await self.rounds(1)
        return kept


@asynccontextmanager
async def asking(*replicas: Replica) -> AsyncIterator[Asker]:
    asker = Asker(replicas)
    async with anyio.create_task_group() as group:
        group.start_soon(asker.run)
        yield asker
        group.cancel_scope.cancel()


def key_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


async def rotate(file: Path, *step: str) -> str:
    """Take a step; returns what the command printed."""
    command = [sys.executable, "-m", "maas_middleware", "rotate-key", str(file), *step]
    return (await anyio.run_process(command, stderr=None)).stdout.decode()


async def published(replica: Replica) -> list[str]:
    """The ids in its JWKS document."""
    answers = [await replica.http.get(f"{prefix}/.well-known/jwks.json") for prefix in ("", "/maas-api")]
    of_both = [[key["kid"] for key in answer.json()["keys"]] for answer in answers]
    assert "d" not in answers[0].json()["keys"][0]
    return of_both[0] if of_both[0] == of_both[1] else []


async def has_published(replica: Replica, *keys: str) -> bool:
    return await published(replica) == list(keys)


async def mints_with(replica: Replica, key: str) -> bool:
    return key_of((await replica.mint())["token"]) == key


async def refuses(replica: Replica, token: str) -> bool:
    answer = await replica.models(token)
    if answer.status_code == 401:
        assert answer.json()["error"]["details"] == {"reason": "unknown"}
        return True
    assert answer.status_code == 200, answer.text
    return False


async def last_no(is_so: Callable[[], Awaitable[bool]]) -> float:
    """Ask until it is so; when the last question began that got a no, in seconds from now on."""
    since, last = time.monotonic(), 0.0
    while True:
        began = time.monotonic() - since
        if await is_so():
            return last
        last = began


async def all_within_a_second(*questions: Callable[[], Awaitable[bool]]) -> None:
    latest = await asyncio.gather(*map(last_no, questions))
    assert max(latest) < BOUND_SECONDS, latest


async def test_key_is_exchanged_under_load_and_nothing_is_refused_before_the_old_one_is_retired(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    async with fleet(f"sqlite:///{tmp_path}/maas.db", tmp_path) as site:
        replicas = await site.replicas(2)
        [old] = await published(replicas[0])
        async with asking(*replicas) as asker:
            await asker.rounds(1)

            await rotate(file, "publish")
            new = SigningKeys.load(file).jwks()["keys"][1]["kid"]
            await all_within_a_second(*(partial(has_published, replica, old, new) for replica in replicas))
            await asker.rounds(1)
            assert set(asker.kept) == {old}, "the new one does not sign yet"

            await rotate(file, "sign")
            await all_within_a_second(*(partial(mints_with, replica, new) for replica in replicas))
            await asker.rounds(2)
            assert set(asker.kept) == {old, new}

            tokens = await asker.forget()
            printed = await rotate(file, "retire", f"--key={old}")
            await all_within_a_second(
                *(partial(refuses, replica, tokens[old]) for replica in replicas),
                *(partial(has_published, replica, new) for replica in replicas),
            )
            await asker.rounds(1)
            again = [(await replica.call(tokens[new])).status_code for replica in replicas]

    assert printed.startswith(f"{old} was dropped.\n")
    assert again == [200, 200]
