"""What /proc tells about a process and its descendants, and processes that are ended with their group."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LAST_WORDS = 2000


def cpu_seconds(pid: int) -> float:
    """Of a process and its living descendants, in user and kernel mode."""
    return sum(map(_ticks, _tree(pid))) / _TICKS


def resident_bytes(pid: int) -> int:
    """Of a process and its descendants; pages that they share count for each."""
    return sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in _tree(pid)) * _PAGE_BYTES


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def serving(command: Sequence[str], environ: Mapping[str, str], port: int, log: Path, patience: float) -> Iterator[int]:
    """Run a server until the end, from when it listens; gives its process id.

    Raises:
        RuntimeError: it does not listen within `patience` seconds.
    """
    with log.open("wb") as written:
        process = subprocess.Popen(
            command, env={**os.environ, **environ}, stdout=written, stderr=written, start_new_session=True
        )
    try:
        deadline = time.monotonic() + patience
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not listen:\n{tail(log)}")
            time.sleep(0.05)  # servers of others have no common way to tell that they listen
        yield process.pid
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # with its workers; what it would tidy up is in our folder
            process.wait()


def tail(log: Path) -> str:
    """What a server wrote at last."""
    return log.read_text()[-_LAST_WORDS:]


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
