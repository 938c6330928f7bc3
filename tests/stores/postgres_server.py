"""Real PostgreSQL servers: on a free port, in a temporary folder, and gone with the test."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import glob
from itertools import count
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]  # it has no types of its own
import pytest
import trustme

PASSWORD = "wiesel7"
_FREE_OF_CARE = ("fsync=off", "full_page_writes=off")  # for a crash of the computer, not for one of the server


@dataclass
class PostgresServer:
    """A server that runs, and what a test may do to it from outside."""

    directory: Path
    port: int
    process: subprocess.Popen[str]

    def __post_init__(self) -> None:
        self._numbers = count(1)

    async def new_database(self) -> str:
        """The URL of a database that is empty."""
        name = f"test_{next(self._numbers)}"
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        # while it asks for TLS and is cancelled, asyncpg may leave a future that nobody looks at
        return f"{self.url(name)}?sslmode=disable"

    def url(self, database: str) -> str:
        return f"postgresql://maas:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def freeze(self) -> None:
        """It answers nothing any more, and its connections stay."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash does; its files stay."""
        self._signal(signal.SIGKILL)
        self.process.wait(timeout=10)

    def start(self) -> None:
        """Run it again, on its port."""
        self.process = _started(self.directory, self.port)

    def make_standby(self) -> None:
        """From its next start on it only follows, though there is no other server."""
        (self.directory / "standby.signal").touch()
        if (user := _user()) is not None:
            shutil.chown(self.directory / "standby.signal", user)

    def stop(self) -> None:
        self._signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(timeout=10)

    def _signal(self, number: int) -> None:
        """Send it to the server and to the processes that it has for its connections."""
        for process in [self.process.pid, *_children(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(process, number)


@contextmanager
def running_postgres(certificate: trustme.LeafCert | None = None) -> Iterator[PostgresServer]:
    """Run a server until the end of the block; with a certificate it offers encryption.

    Without the binaries the test is skipped, and says so.
    """
    if _binary("postgres") is None or _binary("initdb") is None:
        pytest.skip("needs postgres and initdb on the PATH or in /usr/lib/postgresql")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="maas-pg-") as directory:
        data = Path(directory)
        if (user := _user()) is not None:
            shutil.chown(data, user)
        _initialise(data)
        if certificate is not None:
            _encrypt(data / "data", certificate)
        server = PostgresServer(data / "data", port, _started(data / "data", port))
        try:
            yield server
        finally:
            server.stop()


def _initialise(directory: Path) -> None:
    secret = directory / "password"
    secret.write_text(PASSWORD)
    options = ["--username=maas", f"--pwfile={secret}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"]
    subprocess.run(
        [str(_binary("initdb")), *options, "--locale=C.UTF-8", "-D", str(directory / "data")],
        user=_user(),
        cwd=directory,
        check=True,
        capture_output=True,
        timeout=60,
    )


def _encrypt(data: Path, certificate: trustme.LeafCert) -> None:
    files = {"server.key": certificate.private_key_pem, "server.crt": certificate.cert_chain_pems[0]}
    for name, pem in files.items():
        pem.write_to_path(data / name)
        (data / name).chmod(0o600)
        if (user := _user()) is not None:
            shutil.chown(data / name, user)
    with (data / "postgresql.conf").open("a") as configuration:
        configuration.write("ssl = on\n")


def _started(data: Path, port: int) -> subprocess.Popen[str]:
    settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={data}", *_FREE_OF_CARE]
    command = [str(_binary("postgres")), "-D", str(data), *(word for one in settings for word in ("-c", one))]
    printed = "still in use"
    while "still in use" in printed:  # by processes of one that was killed, which end, too
        process = subprocess.Popen(
            command,
            user=_user(),
            cwd=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"LC_ALL": "C.UTF-8"},
        )
        printed = _printed_until(process, "database system is ready to accept")  # of a standby: read-only connections
        if process.poll() is None:
            threading.Thread(target=_drain, args=[process], daemon=True).start()
            return process
    raise AssertionError(f"the server did not start:\n{printed}")


def _printed_until(process: subprocess.Popen[str], words: str) -> str:
    """What it prints until these words, or until it has ended."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if words in line:
            return printed
    process.stdout.close()
    process.wait(timeout=10)
    return printed


def _drain(process: subprocess.Popen[str]) -> None:
    """Read on, as a server whose output nobody reads stands still."""
    assert process.stdout is not None
    with process.stdout as output:
        for _ in output:
            pass


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, timeout=10)
    return [int(number) for number in re.findall(r"\d+", found.stdout)]


def _binary(name: str) -> str | None:
    places = sorted(glob(f"/usr/lib/postgresql/*/bin/{name}"))
    return shutil.which(name) or (places[-1] if places else None)


def _user() -> str | None:
    """Whom to run it as: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
