"""All sides run at once, and each is measured in turn."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import uvicorn
from msgspec.structs import replace

from maas_middleware.testing import ClusterUser, StandInCluster

from .load import Order, Sample
from .metrics import DIRECT, Results
from .processes import free_port, serving, tail
from .scenarios import CROWD, FIRST_BYTE, PACED, REQUESTS, SLOW, UNPACED, Scenario, shortened
from .sides import LOGIN, Place, Side
from .wire import Stream

_START_SECONDS = 120
_WARMING = (
    Scenario(name="warming up", connections=4, seconds=0.3),
    Scenario(name="warming up, streams", connections=4, stream=Stream(10), seconds=0.3),
)
_EACH_ROUND = (*REQUESTS, UNPACED, FIRST_BYTE, PACED)


@dataclass(frozen=True, slots=True)
class _Target:
    """A side that listens."""

    port: int
    pid: int
    log: Path | None = None
    authorization: str | None = None
    is_exact: bool = True
    most_held: int = CROWD.connections


class _Bench:
    """Measures the targets by way of the load's process."""

    def __init__(self, load: subprocess.Popen[bytes], targets: dict[str, _Target], is_quick: bool) -> None:
        self._load = load
        self._targets = targets
        self._is_quick = is_quick
        self.results = Results()

    def measure(self, *scenarios: Scenario) -> None:
        """One scenario after the other, each with every target in turn."""
        for scenario in scenarios:
            for name, target in self._targets.items():
                self.results.add(name, scenario, self._sample(name, target, scenario))

    def _sample(self, name: str, target: _Target, scenario: Scenario) -> Sample:
        if scenario.is_held:
            scenario = replace(scenario, connections=min(target.most_held, scenario.connections))
        scenario = shortened(scenario) if self._is_quick else scenario
        order = Order(scenario, target.port, target.pid, target.authorization, target.is_exact)
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        self._load.stdin.write(msgspec.json.encode(order) + b"\n")
        self._load.stdin.flush()
        if not (line := self._load.stdout.readline()):
            raise RuntimeError(f"{name} failed: {scenario.name}\n{tail(target.log) if target.log else ''}")
        return msgspec.json.decode(line, type=Sample)


def measured(sides: Sequence[Side], rounds: int, is_quick: bool) -> Results:
    """Start everything, measure in so many rounds, and end it.

    Raises:
        RuntimeError: a side did not start, or an answer was not what it has to be.
    """
    with ExitStack() as stack:
        load = stack.enter_context(_process("load"))
        bench = _Bench(load, _started(sides, stack), is_quick)
        bench.measure(*_WARMING)
        _tell("memory")
        bench.measure(CROWD)
        for number in range(rounds):
            _tell(f"round {number + 1} of {rounds}")
            bench.measure(*_EACH_ROUND)
        _tell("slow readers")
        bench.measure(SLOW)
        return bench.results


def _started(sides: Sequence[Side], stack: ExitStack) -> dict[str, _Target]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    upstream = stack.enter_context(_process("upstream"))
    assert upstream.stdout is not None
    targets = {DIRECT: _Target(int(upstream.stdout.readline()), upstream.pid)}
    cluster = stack.enter_context(_cluster())
    for side in sides:
        _tell(f"starting {side.name}")
        place = Place(free_port(), folder / side.name, targets[DIRECT].port, cluster)
        place.folder.mkdir()
        command, environ = side.command(place)
        log = folder / f"{side.name}.log"
        pid = stack.enter_context(serving(command, environ, place.port, log, _START_SECONDS))
        targets[side.name] = _Target(place.port, pid, log, side.authorization(place), side.is_exact, side.most_held)
    return targets


@contextmanager
def _process(module: str) -> Iterator[subprocess.Popen[bytes]]:
    """A part of the benchmark in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.gateway.{module}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def _cluster() -> Iterator[int]:
    """Who vouches for the login that mints, in a thread; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = StandInCluster({LOGIN: ClusterUser("benchmark", ("system:authenticated:oauth",))})
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _tell(what: str) -> None:
    sys.stderr.write(f"{datetime.now():%H:%M:%S} {what}\n")
