from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT

from .running import bearer, running

EXAMPLE = ROOT / "examples" / "testing_an_app.py"
QUESTION = {"model": "simulator", "messages": [{"role": "user", "content": "Hello!"}]}


def test_its_tests_pass_in_a_project_that_has_nothing_but_pytest(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path / "test_app.py")

    ran = _pytest(tmp_path)

    assert ran.returncode == 0, ran.stdout
    assert "4 passed" in ran.stdout


def test_its_tests_notice_an_app_that_counts_nothing(tmp_path: Path) -> None:
    source = EXAMPLE.read_text()
    line = "        Middleware(maas.RateLimitMiddleware, ledger=ledger),\n"
    assert line in source
    (tmp_path / "test_app.py").write_text(source.replace(line, ""))

    ran = _pytest(tmp_path)

    assert "3 failed, 1 passed" in ran.stdout


async def test_its_app_is_served_as_it_says() -> None:
    async with running("testing_an_app") as client:
        answer = await client.post("/v1/chat/completions", headers=bearer("alice-token"), json=QUESTION)

    assert answer.json()["object"] == "chat.completion"
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"


def _pytest(folder: Path) -> subprocess.CompletedProcess[str]:
    warnings = ["-W", "error", "-W", "ignore::PendingDeprecationWarning"]
    command = [sys.executable, "-m", "pytest", *warnings, "-p", "no:cacheprovider", "--rootdir", str(folder)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environ["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=25)
