from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.gateway.connection import Expectation
from benchmarks.gateway.load import Order, Sample
from benchmarks.gateway.processes import free_port, serving
from benchmarks.gateway.scenarios import REQUESTS as REQUEST_SCENARIOS
from benchmarks.gateway.scenarios import Scenario
from benchmarks.gateway.wire import DONE, Stream, answer, text_event, whole_body

from .processes import ROOT

OPERATIONS = [f"RedisLedger, {operation}" for operation in ("admit", "renew", "peek", "settle")]
STRATEGIES = ["limits, fixed window", "limits, moving window", "limits, sliding counter"]
SETTINGS = {
    "memory": ["1 user", "100 in turn", "100 random", "1,000 in turn", "1,000 random"],
    "redis": ["1 task", "16 tasks", "64 tasks"],
}
ROWS = {
    "memory": ["MemoryLedger, admit + settle", *STRATEGIES],
    "redis": ["redis-py, PING", *OPERATIONS, *STRATEGIES],
}
GOALS = {"MemoryLedger, admit + settle": "< 10 us", **dict.fromkeys(OPERATIONS, "< 2.5 PING")}

REQUESTS = ["1 connection", "16 connections", "64 connections"]
STREAMS = ["64 unpaced streams", "64 paced streams", "1,000 paced streams"]
GATEWAY_METRICS = {
    "requests/s": REQUESTS,
    "median, us": REQUESTS,
    "99th percentile, us": REQUESTS,
    "added median, us": ["1 connection"],
    "us of CPU a request": REQUESTS,
    "streams/s": ["64 unpaced streams"],
    "us of CPU a chunk": STREAMS,
    "first byte, us": ["1 stream", "64 paced streams"],
    "added first byte, us": ["1 stream", "64 paced streams"],
    "kB a stream, early": ["1,000 paced streams", "64 slow readers"],
    "kB a stream, at the end": ["1,000 paced streams", "64 slow readers"],
}
WITHOUT_DIRECT = ["added median, us", "added first byte, us", "kB a stream, early", "kB a stream, at the end"]
GATEWAY_GOALS: dict[str, tuple[bool, float | None]] = {  # whether it is the least, and the bound where it is measured
    "requests/s, 64 connections: >= 60 x litellm": (True, None),
    "requests/s, 64 connections: >= 20 x httpx": (True, 20),
    "requests/s, 64 connections: >= 0.2 x nginx": (True, None),
    "added median, us, 1 connection: <= 4 x nginx": (False, None),
    "streams/s, 64 unpaced streams: >= 1 x nginx": (True, None),
    "us of CPU a chunk, 64 unpaced streams: <= 1.2 x nginx": (False, None),
    "first byte, us, 1 stream: <= 1.5 x nginx": (False, None),
    "kB a stream, at the end, 1,000 paced streams: <= 30": (False, 30),
}
MIDDLEWARES = ["Forwarded", "ErrorEnvelope", "Identity", "Tier", "RateLimit", "Usage"]
ONION = "MaaSMiddleware, the whole onion"
ONION_GOALS = {"requests": "< 25 us", "chunks": "< 2 us"}

TWO_EVENTS = b'"content": "aa" "content":"bb"'


def run(benchmark: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def measured(benchmark: str, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON of one quick round, and what was printed."""
    results = folder / "results.json"
    process = run(benchmark, "--quick", "--rounds", "1", *arguments, "--json", str(results))
    assert process.returncode == 0, process.stderr
    return json.loads(results.read_text()), process.stdout


@pytest.mark.timeout(90)
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server on the PATH")
def test_ledger_benchmark_measures_everything_and_tells_it_twice(tmp_path: Path) -> None:
    told, output = measured("ledger", tmp_path)

    assert set(told) == {"versions", "rounds", "memory", "redis"}
    assert list(told["versions"]) == ["python", "maas-middleware", "limits", "redis", "redis-server"]
    assert all(re.match(r"\d+\.\d+", version) for version in told["versions"].values())
    assert told["rounds"] == 1
    first, *lines = output.splitlines()
    assert first == ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    for part, settings in SETTINGS.items():
        expected = [(name, setting) for name in ROWS[part] for setting in settings]
        assert [(cell["name"], cell["setting"]) for cell in told[part]] == expected
        header = next(number for number, line in enumerate(lines) if settings[-1] in line)
        printed = lines[header + 2 :]
        for name, line in zip(ROWS[part], printed, strict=False):
            cells = [cell for cell in told[part] if cell["name"] == name]
            assert all(cell["microseconds"] > 0 and cell["ratio"] > 0 and cell["rounds"] == 1 for cell in cells)
            assert {cell["goal"] for cell in cells} == {GOALS.get(name)}
            assert {type(cell["is_met"]) for cell in cells} == {bool if name in GOALS else type(None)}
            numbers = re.findall(r"([\d,.]+) +x([\d,.]+)", line.removeprefix(name))
            assert len(numbers) == len(settings)
            for (microseconds, ratio), cell in zip(numbers, cells, strict=True):
                assert float(microseconds.replace(",", "")) == pytest.approx(cell["microseconds"], abs=0.06)
                assert float(ratio.replace(",", "")) == pytest.approx(cell["ratio"], abs=0.006)
            assert line.startswith(name)
            if name not in GOALS:
                assert not line.endswith(("met", "missed"))
                continue
            outcome = "met" if all(cell["is_met"] for cell in cells) else "missed"
            assert line.endswith(f"  {GOALS[name]}: {outcome}")
            figure, below = ("microseconds", 10) if part == "memory" else ("ratio", 2.5)
            for cell in cells:
                assert cell["is_met"] == (cell[figure] < below) or cell[figure] == pytest.approx(below, abs=0.01)


@pytest.fixture(scope="module")
def gateway_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return measured("gateway", tmp_path_factory.mktemp("gateway"), "--only", "gateway-uvicorn", "httpx")


@pytest.mark.timeout(90)
def test_gateway_benchmark_measures_every_scenario_of_every_side(gateway_run: tuple[dict[str, Any], str]) -> None:
    told, output = gateway_run

    assert set(told) == {"versions", "rounds", "sides", "left_out", "goals", "metrics"}
    assert {"python", "maas-middleware", "uvicorn", "uvloop", "httptools", "httpx"} <= set(told["versions"])
    assert list(told["sides"]) == ["direct", "gateway-uvicorn", "httpx"]
    assert told["left_out"] == ["nginx", "raw", "gateway-granian", "fastapi-proxy-lib", "litellm"]
    assert list(told["metrics"]) == list(GATEWAY_METRICS)
    for title, scenarios in GATEWAY_METRICS.items():
        sides = ["gateway-uvicorn", "httpx"] if title in WITHOUT_DIRECT else list(told["sides"])
        cells = told["metrics"][title]
        assert [(cell["name"], cell["setting"]) for cell in cells] == list(product(sides, scenarios))
        assert {cell["rounds"] for cell in cells} == {1}
        assert f"\n{title}" in output
    for title, unit in {"requests/s": "requests_per_second", "median, us": "microseconds"}.items():
        alone = {cell["setting"]: cell[unit] for cell in told["metrics"][title] if cell["name"] == "direct"}
        for cell in told["metrics"][title]:
            assert cell[unit] > 0
            assert cell["ratio"] == pytest.approx(cell[unit] / alone[cell["setting"]], rel=0.01, abs=0.001)
    assert all(cell["ratio"] == 1 for cell in told["metrics"]["streams/s"] if cell["name"] == "direct")
    assert all(cell["ratio"] is None for title in WITHOUT_DIRECT for cell in told["metrics"][title])


@pytest.mark.timeout(90)
def test_gateway_benchmark_takes_off_what_the_upstream_takes_alone(gateway_run: tuple[dict[str, Any], str]) -> None:
    told, _ = gateway_run

    for title in ("median, us", "first byte, us"):
        cells = {(cell["name"], cell["setting"]): cell["microseconds"] for cell in told["metrics"][title]}
        for cell in told["metrics"][f"added {title}"]:
            added = cells[cell["name"], cell["setting"]] - cells["direct", cell["setting"]]
            assert cell["microseconds"] == pytest.approx(added, abs=0.02)


@pytest.mark.timeout(90)
def test_gateway_benchmark_judges_the_goals_that_it_measured(gateway_run: tuple[dict[str, Any], str]) -> None:
    told, output = gateway_run

    assert [goal["goal"] for goal in told["goals"]] == list(GATEWAY_GOALS)
    assert {goal["side"] for goal in told["goals"]} == {"gateway-uvicorn"}
    for goal in told["goals"]:
        is_least, bound = GATEWAY_GOALS[goal["goal"]]
        line = next(line for line in output.splitlines() if line.startswith(f"{goal['goal']}, gateway-uvicorn"))
        if bound is None:
            assert (goal["reached"], goal["is_met"]) == (None, None)
            assert line.endswith(": not measured")
        else:
            assert goal["is_met"] == (goal["reached"] >= bound if is_least else goal["reached"] <= bound)
            assert line.endswith(": met" if goal["is_met"] else ": missed")
    rates = {cell["name"]: cell for cell in told["metrics"]["requests/s"] if cell["setting"] == "64 connections"}
    ratio = rates["gateway-uvicorn"]["requests_per_second"] / rates["httpx"]["requests_per_second"]
    assert told["goals"][1]["reached"] == pytest.approx(ratio, rel=0.01)
    memory = [cell for cell in told["metrics"]["kB a stream, at the end"] if cell["setting"] == "1,000 paced streams"]
    assert told["goals"][-1]["reached"] == pytest.approx(memory[0]["kilobytes"], abs=0.01)


@pytest.mark.parametrize(
    ("stream", "is_exact", "body", "wrong"),
    [
        pytest.param(None, True, answer(), answer()[:-1], id="single"),
        pytest.param(None, False, b'{"content": "aaa", "usage":{}}', b'{"content": "aaa"}', id="single-of-its-own"),
        pytest.param(None, False, b'{"content":"aaa","usage":{}}', b'{"usage":{}}', id="single-without-text"),
        pytest.param(Stream(12), True, whole_body(Stream(12)), whole_body(Stream(11)), id="stream"),
        pytest.param(Stream(2), False, TWO_EVENTS + DONE, TWO_EVENTS, id="stream-that-breaks-off"),
        pytest.param(Stream(2), False, TWO_EVENTS + DONE, TWO_EVENTS[14:] + DONE, id="stream-that-lacks-an-event"),
    ],
)
def test_load_takes_only_the_right_answers(stream: Stream | None, is_exact: bool, body: bytes, wrong: bytes) -> None:
    expectation = Expectation(stream, is_exact)

    expectation.check(200, body)
    for status, given in [(500, body), (200, wrong), (200, b"")]:
        with pytest.raises(ValueError, match=f"answered {status}, {len(given)} bytes"):
            expectation.check(status, given)


def test_load_compares_how_held_streams_begin() -> None:
    events = [text_event(200, number % 10) for number in range(12)]

    Expectation(Stream(100), True).check_beginning(b"".join(events)[:-1])
    with pytest.raises(ValueError, match="answered something else"):
        Expectation(Stream(100), True).check_beginning(events[0] + events[0])


def loaded(scenario: Scenario, *answers: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run the load against a server that gives these answers, each on a connection of its own that it then closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Thread(target=_answer, args=(listener, answers))
        answering.start()
        order = Order(scenario, listener.getsockname()[1], os.getpid(), None, True)
        command = [sys.executable, "-m", "benchmarks.gateway.load"]
        written = msgspec.json.encode(order) + b"\n"
        process = subprocess.run(command, cwd=ROOT, input=written, capture_output=True, timeout=20)
        answering.join()
    return process


def _answer(listener: socket.socket, answers: tuple[bytes, ...]) -> None:
    clients = [listener.accept()[0] for _ in answers]
    for client, given in zip(clients, answers, strict=True):
        with client, suppress(ConnectionError):
            client.recv(65536)
            client.sendall(given)
            client.shutdown(socket.SHUT_WR)
            client.recv(1)  # until the load has noticed


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        pytest.param(
            b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy", "answered 503, 4 bytes: b'busy'", id="busy"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-le", "the server closed the connection", id="closed"),
        pytest.param(b"220 mail\r\n", "HttpParser", id="no-http"),
    ],
)
def test_load_ends_at_the_first_answer_that_is_wrong(given: bytes, complaint: str) -> None:
    process = loaded(REQUEST_SCENARIOS[0], given)

    assert (process.returncode, process.stdout) == (1, b"")
    assert complaint in process.stderr.decode()


def test_load_does_not_mind_idle_connections_that_are_closed() -> None:
    right = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(answer()), answer())

    process = loaded(Scenario(name="once", connections=2, seconds=0), right, right)

    assert (process.returncode, process.stderr) == (0, b"")
    assert msgspec.json.decode(process.stdout, type=Sample).answers == 2


def test_side_that_does_not_start_fails_the_benchmark_with_what_it_wrote(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such setting')"]

    with (
        pytest.raises(RuntimeError, match="no such setting"),
        serving(command, {}, free_port(), tmp_path / "log", patience=60),
    ):
        pytest.fail("it listens")


@pytest.mark.timeout(90)
def test_onion_benchmark_measures_every_middleware_of_ours(tmp_path: Path) -> None:
    told, output = measured("onion", tmp_path)

    assert set(told) == {"versions", "rounds", "requests", "chunks"}
    ours = [f"{name}Middleware" for name in MIDDLEWARES]
    for part, goal in ONION_GOALS.items():
        cells = {cell["name"]: cell for cell in told[part]}
        assert list(cells)[:8] == ["a bare ASGI app", *ours, ONION]
        assert {"BaseHTTPMiddleware", "BaseHTTPMiddleware, three"} <= set(cells)
        assert cells["a bare ASGI app"]["microseconds"] > 0
        assert cells["a bare ASGI app"]["ratio"] == 1
        assert cells[ONION]["goal"] == goal
        assert cells[ONION]["is_met"] == (cells[ONION]["microseconds"] < float(goal.split()[1]))
        assert f"{goal}: {'met' if cells[ONION]['is_met'] else 'missed'}" in output


@pytest.mark.parametrize("benchmark", ["ledger", "gateway", "onion"])
def test_benchmark_refuses_to_measure_nothing(benchmark: str) -> None:
    process = run(benchmark, "--quick", "--rounds", "0")

    assert process.returncode == 2
    assert "--rounds" in process.stderr
