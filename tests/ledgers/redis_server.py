"""Real Redis servers: on a free port, with nothing on the disk, and gone with the test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

BINARY = shutil.which("redis-server") or shutil.which("valkey-server")
FIRST_ANSWER_SECONDS = 10


@dataclass
class RedisServer:
    """A server that runs, and what a test may do to it from outside."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def freeze(self) -> None:
        """It answers nothing any more, and its connections stay."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)

    def do(self, *words: str) -> bytes:
        """Run a command; what it answers is given as it comes, which is enough for short answers."""
        return ask(self.port, *words)


def ask(port: int, *words: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=FIRST_ANSWER_SECONDS) as connection:
        parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
        connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
        return connection.recv(1 << 16)


@contextmanager
def running_redis(*options: str, port: int | None = None) -> Iterator[RedisServer]:
    """Run a server until the end of the block, with options as on its command line.

    Without the binary the test is skipped, and says so.
    """
    if BINARY is None:
        pytest.skip("needs redis-server on the PATH")
    with socket.create_server(("127.0.0.1", port or 0)) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        command = [BINARY, "--port", f"{port}", "--bind", "127.0.0.1", "--dir", directory, "--save", "", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if b"Ready to accept connections" in line:
                    break
            else:
                raise AssertionError("the server did not start")
            yield RedisServer(process, port)
        finally:
            process.kill()
            process.wait(timeout=10)
            process.stdout.close()
