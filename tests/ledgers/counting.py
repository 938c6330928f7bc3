"""A process that calls a ledger in a Redis: it is told what to do line by line, and tells what became of it.

It is run as `python -m tests.ledgers.counting URL`, and reads and writes JSON. As there are many of them at once, each
names its leases after its own number.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from redis.asyncio import Redis

from maas_middleware.ledgers.redis import RedisLedger
from maas_middleware.limiting import Charge, Demand, Lease, Limits, parse_limits

ROOT = Path(__file__).parent.parent.parent
TASKS = 4


@dataclass(frozen=True)
class Job:
    """Calls, one after another, in each of a few tasks: until so many were made, or one is refused for long.

    Attributes:
        used: what each call uses of its estimate, the least and the most.
        keeps: how many leases each task keeps to the end, unsettled.
        endless: whether to tell each time that a call has been settled, and never to end.
    """

    key: str
    requests: str = "unlimited"
    tokens: str = "unlimited"
    concurrency: int | None = None
    estimate: int = 1
    strict: bool = False
    used: tuple[int, int] = (1, 1)
    calls: int = 1_000_000
    keeps: int = 0
    endless: bool = False

    @property
    def limits(self) -> Limits:
        return Limits(parse_limits(self.requests), parse_limits(self.tokens), self.concurrency)


@dataclass
class Tally:
    """What became of the calls.

    Attributes:
        overruns: by how much each call used more than its lease had held, if it did.
        most_at_once: of the calls of all processes that were admitted and not yet settled.
    """

    admitted: int = 0
    settled_tokens: int = 0
    overruns: list[int] = field(default_factory=list)
    most_at_once: int = 0


class Counting:
    """One process at work."""

    def __init__(self, url: str) -> None:
        self._ledger = RedisLedger(url, timeout=10)
        self._redis = Redis.from_url(url)
        self._random = random.Random(os.getpid())
        self._ids = itertools.count()

    async def do(self, job: Job) -> Tally:
        tally = Tally()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(TASKS):
                tasks.create_task(self._call(job, tally))
        return tally

    async def _call(self, job: Job, tally: Tally) -> None:
        subject = job.limits.subject(job.key)
        for number in range(job.calls + job.keeps):
            demand = Demand(f"{os.getpid()} {next(self._ids)}", job.estimate, job.strict)
            verdict = await self._ledger.admit(subject, demand)
            if verdict.lease is not None:
                tally.admitted += 1
                if number >= job.keeps:
                    await self._use(verdict.lease, job, tally)
            elif verdict.retry_after_ms > 1000:
                return

    async def _use(self, lease: Lease, job: Job, tally: Tally) -> None:
        at_once = f"at once {job.key}"
        tally.most_at_once = max(tally.most_at_once, await self._redis.incr(at_once))
        await self._ledger.renew(lease)
        used = self._random.randint(*job.used)
        await self._redis.decr(at_once)
        await self._ledger.settle(lease, Charge(used))
        tally.settled_tokens += used
        if used > lease.tokens:
            tally.overruns.append(used - lease.tokens)
        if job.endless:
            tell({"settled": tally.settled_tokens})
        else:
            await self._ledger.settle(lease, Charge(10 * used))  # again, which does nothing


def tell(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def work(url: str) -> None:
    counting = Counting(url)
    await counting.do(Job("warm up", calls=1))
    tell("ready")
    while line := await asyncio.to_thread(sys.stdin.readline):
        tell(asdict(await counting.do(Job(**json.loads(line)))))


class Worker:
    """Such a process, seen from a test. It works until it is killed."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-m", "tests.ledgers.counting", url]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def start(self, job: Job) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(job)) + "\n")

    def told(self) -> object:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process has ended"
        return json.loads(line)

    def tally(self) -> Tally:
        told = self.told()
        assert isinstance(told, dict)
        return Tally(**told)

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait(timeout=5)
        self.process.stdin.close()
        self.process.stdout.close()


@contextmanager
def working(url: str, count: int) -> Iterator[list[Worker]]:
    """Run so many processes until the end of the block; all are ready to work at once."""
    with ExitStack() as stack:
        workers = [Worker(url) for _ in range(count)]
        for worker in workers:
            stack.callback(worker.end)
        assert [worker.told() for worker in workers] == ["ready"] * count
        yield workers


def at_once(workers: list[Worker], job: Job) -> list[Tally]:
    """Have all of them do the same at the same time."""
    for worker in workers:
        worker.start(job)
    return [worker.tally() for worker in workers]


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))
