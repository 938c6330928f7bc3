"""A process that uses the stores of a database: it is told what to do, line by line, and tells what became of it.

It is run as `python -m tests.stores.working URL`, and reads and writes JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import anyio

from maas_middleware.errors import StoreUnavailable
from maas_middleware.stores.sql import SQLDatabase, SQLTokenStore, SQLUsageStore
from maas_middleware.token_store import TokenRecord
from maas_middleware.tokens import Claims
from maas_middleware.usage_store import UsageRecord

ROOT = Path(__file__).parent.parent.parent
DAY = date(2026, 1, 1)
END = 1 << 40  # when its tokens expire


class Working:
    """What the process can do."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._database = SQLDatabase(url, timeout=10.0)
        self._tokens = SQLTokenStore(self._database)
        self._usage = SQLUsageStore(self._database)

    async def mint(self, owner: str, ids: list[str], maximum: int | None) -> list[str]:
        """Record API keys, all at once; tells which were taken."""
        taken: list[str] = []

        async def mint(token_id: str) -> None:
            record = TokenRecord(Claims(token_id, owner, 0, 0, END), kind="api_key")
            if await self._tokens.record(record, maximum=maximum):
                taken.append(token_id)

        async with anyio.create_task_group() as group:
            for token_id in ids:
                group.start_soon(mint, token_id)
        return taken

    async def revoke_all(self, owner: str, times: int) -> list[int]:
        """Tells the generations that it made."""
        return [await self._tokens.revoke_all(owner) for _ in range(times)]

    async def revoke(self, owner: str, ids: list[str]) -> None:
        for token_id in ids:
            assert await self._tokens.revoke(owner, token_id)

    async def use(self, owners: list[str], batches: list[str]) -> None:
        for batch in batches:
            await self._usage.add(batch, [UsageRecord(owner, DAY, "model", 1, 2, 3) for owner in owners])

    async def mark(self, ids: list[str], times: list[int]) -> None:
        for time in times:
            await self._tokens.mark_used(dict.fromkeys(ids, time))

    async def hold(self, seconds: float) -> None:
        """Say so when the lock of the changes is taken, and do nothing then for so long, at the expense of others."""
        database = SQLDatabase(self._url, timeout=seconds)

        async def work(transaction: Any) -> None:
            await transaction.lock("changes")
            _tell("held")
            await anyio.sleep(seconds)

        await database.write(work)

    async def mint_for_ever(self, owner: str) -> None:
        """Tell each id when it has been taken."""
        for number in range(1 << 30):
            [taken] = await self.mint(owner, [f"{owner} {number}"], None)
            _tell(taken)

    async def become(self, user: str) -> None:
        """Go on as another user; it has to be root who says so."""
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)

    async def fail(self, owner: str) -> bool:
        """Tells whether nothing can be revoked."""
        try:
            await self._tokens.revoke_all(owner)
        except StoreUnavailable:
            return True
        return False


async def work(url: str) -> None:
    working = Working(url)
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, arguments = json.loads(line)
        _tell(await getattr(working, name)(*arguments))


def _tell(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class Worker:
    """A process as a test sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def tell(self, name: str, *arguments: object) -> None:
        assert self.process.stdin is not None
        print(json.dumps([name, arguments]), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, name: str, *arguments: object) -> Any:
        self.tell(name, *arguments)
        return self.answer()


@contextmanager
def working(url: str, number: int = 1) -> Iterator[list[Worker]]:
    """Run so many processes, which end with the block."""
    command = [sys.executable, "-m", "tests.stores.working", url]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        processes = []
        for _ in range(number):
            process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        yield [Worker(process) for process in processes]


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))
