"""A Redis of our own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def running_redis() -> Iterator[tuple[str, str]]:
    """Run a server on a free port, with nothing on the disk; gives its url and its version.

    Raises:
        FileNotFoundError: there is no redis-server on the PATH.
    """
    binary = shutil.which("redis-server")
    if binary is None:
        raise FileNotFoundError("redis-server is not on the PATH")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        command = [binary, "--port", f"{port}", "--bind", "127.0.0.1", "--dir", directory, "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            yield f"redis://127.0.0.1:{port}", _version(process)
        finally:
            process.kill()
            process.communicate()


def _version(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    printed, version = "", "unknown"
    for line in process.stdout:
        printed += line
        if "Redis version=" in line:
            version = line.partition("Redis version=")[2].partition(",")[0]
        if "Ready to accept connections" in line:
            return version
    raise RuntimeError(f"redis-server did not start:\n{printed}")
