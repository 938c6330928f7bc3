"""The load generator: `python -m benchmarks.gateway.load` reads an order a line, and answers each with a sample.

It ends at the first answer that is not what it has to be: numbers that count failures mean nothing.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from itertools import chain
from time import perf_counter

import msgspec
import uvloop
from msgspec import Struct

from .connection import Connection, Expectation
from .processes import cpu_seconds, resident_bytes
from .scenarios import Scenario
from .wire import request

_PATIENCE_SECONDS = 180


class Order(Struct, frozen=True):
    """What is to be done to whom.

    Attributes:
        pid: whose processor time and memory are told.
        is_exact: whether the bytes of the upstream have to arrive as they are.
    """

    scenario: Scenario
    port: int
    pid: int
    authorization: str | None
    is_exact: bool


class Sample(Struct, frozen=True):
    """What was seen.

    Attributes:
        answers, chunks: how many arrived in `seconds`.
        cpu: seconds of the processor that the server took.
        first_byte, median, percentile99: seconds to the first byte of the body (the median), and to its end.
        grown: bytes by which the server's memory had grown for each stream that is held, early and at the end.
    """

    answers: int
    chunks: int
    seconds: float
    cpu: float
    first_byte: float
    median: float
    percentile99: float
    grown: tuple[float, float] = (0, 0)


class Load:
    """The connections of one scenario, and when each may ask."""

    def __init__(self, order: Order) -> None:
        self._loop = asyncio.get_running_loop()
        self._order = order
        self._scenario = scenario = order.scenario
        expectation = Expectation(scenario.stream, order.is_exact)
        self._wants_more = not scenario.is_held
        self._all_began, self._all_ended = asyncio.Event(), asyncio.Event()
        self._failed: asyncio.Future[None] = self._loop.create_future()
        self._loop.set_exception_handler(lambda _, context: self.failed(context.get("exception") or OSError(context)))
        asked = request(scenario.stream, order.authorization)
        self._connections = [
            Connection(self, asked, expectation, scenario.is_slow) for _ in range(scenario.connections)
        ]
        self._unbegun = self._busy = scenario.connections

    def began(self) -> None:
        """A first byte came."""
        self._unbegun -= 1
        if self._unbegun == 0:
            self._all_began.set()

    def ended(self, connection: Connection) -> None:
        """An answer came whole."""
        if self._wants_more and perf_counter() < self._until:
            connection.ask()
            return
        self._busy -= 1
        if self._busy == 0:
            self._all_ended.set()

    def failed(self, error: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)

    async def measure(self) -> Sample:
        """Do the scenario.

        Raises:
            ValueError: an answer is not what it has to be.
            ConnectionError: a connection broke.
            TimeoutError: it takes too long.
        """
        memory = resident_bytes(self._order.pid)
        await asyncio.gather(*(connection.open(self._order.port) for connection in self._connections))
        try:
            return await (self._held(memory) if self._scenario.is_held else self._repeated())
        finally:
            for connection in self._connections:
                connection.close()

    async def _repeated(self) -> Sample:
        """Ask on every connection, and again as soon as the answer is there."""
        cpu, started = cpu_seconds(self._order.pid), perf_counter()
        self._until = started + self._scenario.ramp + self._scenario.seconds
        self._ask_all()
        await self._unless_failed(self._all_ended)
        return self._sample(perf_counter() - started, cpu_seconds(self._order.pid) - cpu)

    async def _held(self, memory: int) -> Sample:
        """Open one stream on every connection, and look at them for a while."""
        self._ask_all()
        await self._unless_failed(self._all_began)
        cpu, started, chunks = cpu_seconds(self._order.pid), perf_counter(), self._chunks()
        await self._unless_failed(None, self._scenario.seconds / 3)
        early = self._grown(memory)
        await self._unless_failed(None, self._scenario.seconds * 2 / 3)
        for connection in self._connections:
            connection.check_beginning()
        seconds, cpu = perf_counter() - started, cpu_seconds(self._order.pid) - cpu
        return self._sample(seconds, cpu, self._chunks() - chunks, (early, self._grown(memory)))

    def _grown(self, memory: int) -> float:
        return (resident_bytes(self._order.pid) - memory) / len(self._connections)

    def _ask_all(self) -> None:
        """Begin everywhere, spread over the ramp."""
        for number, connection in enumerate(self._connections):
            self._loop.call_later(self._scenario.ramp * number / len(self._connections), connection.ask)

    async def _unless_failed(self, event: asyncio.Event | None, seconds: float = _PATIENCE_SECONDS) -> None:
        """Wait for what is to come; without an event, for the seconds to pass."""
        waiting = asyncio.ensure_future((event or asyncio.Event()).wait())
        await asyncio.wait((waiting, self._failed), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._failed.done():
            self._failed.result()
        if event is not None and not event.is_set():
            raise TimeoutError(f"not done after {seconds:g} seconds")

    def _chunks(self) -> int:
        return sum(connection.chunks for connection in self._connections)

    def _sample(
        self, seconds: float, cpu: float, chunks: int | None = None, grown: tuple[float, float] = (0, 0)
    ) -> Sample:
        latencies = sorted(chain.from_iterable(connection.latencies for connection in self._connections))
        first_bytes = sorted(chain.from_iterable(connection.first_bytes for connection in self._connections))
        chunks = self._chunks() if chunks is None else chunks
        told = (_quantile(first_bytes, 0.5), _quantile(latencies, 0.5), _quantile(latencies, 0.99))
        return Sample(len(latencies), chunks, seconds, cpu, *told, grown)


def _quantile(values: list[float], share: float) -> float:
    """Of sorted values; 0 where there are none, as of the ends of streams that are held."""
    return values[int(share * (len(values) - 1))] if values else 0.0


async def answered(line: bytes) -> bytes:
    order = msgspec.json.decode(line, type=Order)
    return msgspec.json.encode(await Load(order).measure())


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(uvloop.run(answered(line)) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
