from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.ledger", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.timeout(90)
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server on the PATH")
def test_ledger_benchmark_measures_everything_and_tells_it_twice(tmp_path: Path) -> None:
    results = tmp_path / "results.json"

    process = run("--quick", "--rounds", "1", "--json", str(results))

    assert (process.returncode, process.stderr) == (0, "")
    told: dict[str, Any] = json.loads(results.read_text())
    assert set(told) == {"versions", "rounds", "memory", "redis"}
    assert list(told["versions"]) == ["python", "maas-middleware", "limits", "redis", "redis-server"]
    assert all(re.match(r"\d+\.\d+", version) for version in told["versions"].values())
    assert told["rounds"] == 1
    first, *lines = process.stdout.splitlines()
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


def test_ledger_benchmark_refuses_to_measure_nothing() -> None:
    process = run("--quick", "--rounds", "0")

    assert process.returncode == 2
    assert "--rounds" in process.stderr
