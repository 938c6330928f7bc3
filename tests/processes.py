"""Gateways as processes of their own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass
class GatewayProcess:
    """A running gateway, and what it printed: until it listened, and when it has ended, all of it."""

    process: subprocess.Popen[str]
    port: int
    printed: str

    def interrupt(self) -> int:
        """Press Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=10)


@contextmanager
def running_gateway(*arguments: str, **environ: str) -> Iterator[GatewayProcess]:
    """Run the example gateway as its script does, on a free port and with a database of its own, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        script = str(ROOT / "scripts" / "gateway")
        with running(script, *arguments, MAAS_STORE=f"sqlite:///{folder}/maas.db", **environ) as gateway:
            yield gateway


@contextmanager
def running(*command: str, **environ: str) -> Iterator[GatewayProcess]:
    """Run a command that serves a gateway, and end it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PORT": str(port), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    rest: list[str] = []
    # whose output nobody reads stands still
    draining = threading.Thread(target=rest.extend, args=[process.stdout])
    try:
        gateway = _listening(process)
        draining.start()
        yield gateway
    finally:
        process.terminate()
        process.wait(timeout=10)
        if draining.ident is not None:
            draining.join(timeout=10)
            gateway.printed += "".join(rest)
        process.stdout.close()


def _listening(process: subprocess.Popen[str]) -> GatewayProcess:
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if found := re.search(r"Uvicorn running on \S+:(\d+) ", line):
            return GatewayProcess(process, int(found[1]), printed)
    raise AssertionError(f"the gateway did not start:\n{printed}")
