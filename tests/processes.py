"""Gateways as processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass
class GatewayProcess:
    """A running gateway, and what it printed until it listened."""

    process: subprocess.Popen[str]
    port: int
    printed: str

    def interrupt(self) -> int:
        """Press Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=10)


def running_gateway(*arguments: str) -> AbstractContextManager[GatewayProcess]:
    """Run the example gateway on a free port, and end it."""
    return running("examples.gateway", *arguments)


@contextmanager
def running(module: str, *arguments: str) -> Iterator[GatewayProcess]:
    """Run a module that serves a gateway, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield _listening(process)
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _listening(process: subprocess.Popen[str]) -> GatewayProcess:
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if found := re.search(r"Uvicorn running on \S+:(\d+) ", line):
            return GatewayProcess(process, int(found[1]), printed)
    raise AssertionError(f"the gateway did not start:\n{printed}")
