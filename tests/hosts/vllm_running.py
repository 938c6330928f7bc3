"""Stand-ins for vLLM as processes, and who asks them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from maas_middleware.testing.cluster import ClusterUser, StandInCluster

from ..deployments import bearer
from ..servers import serving_in_thread

MIDDLEWARE = ("--middleware", "maas_middleware.MaaSMiddleware")
FAY, OTTO, ADA, TINA = "sha256~fay", "sha256~otto", "sha256~ada", "sha256~tina"
EVERYBODY = "system:authenticated:oauth"
USERS = {
    FAY: ClusterUser("fay", (EVERYBODY,)),
    OTTO: ClusterUser("otto", (EVERYBODY,)),
    ADA: ClusterUser("ada", (EVERYBODY, "maas-admins")),
    TINA: ClusterUser("tina", (EVERYBODY, "tiny-group")),
}
QUOTA = 1000
_AMPLE = {"requests": f"{QUOTA}/hour", "tokens": f"{QUOTA}/hour"}
TIERS = [
    {"name": "crew", "groups": ["system:authenticated"], "limits": _AMPLE},
    {"name": "small", "level": 1, "groups": ["tiny-group"], "limits": {"requests": "1/hour", "tokens": "10/hour"}},
]
UNTHROTTLED = {f"MAAS_THROTTLES_{name}": "unlimited" for name in ("MINTS", "FAILED_CREDENTIALS", "CONTROL_REQUESTS")}
CHAT = "/v1/chat/completions"
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hello, how are you?"}]}


@dataclass
class VLLM:
    """A process, and what it printed until now.

    Attributes:
        url: of the server, without its root path.
        http: a client of it, without credentials.
    """

    process: subprocess.Popen[str]
    url: str
    http: httpx.Client
    lines: list[str] = field(default_factory=list)

    @property
    def printed(self) -> str:
        return "".join(self.lines)

    def mint(self, login: str = FAY, root: str = "") -> str:
        """An access token of somebody who has logged in."""
        answer = self.http.post(f"{root}/maas-api/v1/tokens", headers=bearer(login))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    def ask(self, token: str, path: str = CHAT, http: httpx.Client | None = None, **more: object) -> httpx.Response:
        """Ask the model."""
        return (http or self.http).post(path, headers=bearer(token), json={**QUESTION, **more})

    def used(self, token: str, root: str = "") -> tuple[int, int]:
        """The requests and the tokens that HEAD says are used."""
        answer = self.http.head(f"{root}{CHAT}", headers=bearer(token))
        assert answer.status_code == 200, answer.headers
        requests, tokens = (int(answer.headers[f"x-ratelimit-remaining-{unit}"]) for unit in ("requests", "tokens"))
        return QUOTA - requests, QUOTA - tokens

    def stop(self) -> int:
        """End it as a cluster does; returns the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=10)

    def metrics(self, http: httpx.Client | None = None) -> dict[str, int]:
        """What the engine and its middlewares counted."""
        lines = (http or self.http).get("/metrics").text.splitlines()
        return {name: int(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@contextmanager
def vllm(*arguments: str, **environ: str) -> Iterator[VLLM]:
    """Run `vllm serve` with these arguments, and nothing of `MAAS_*` in its environment but what is given.

    Without a model among the arguments it is `tiny`.
    """
    count = int(arguments[arguments.index("--api-server-count") + 1]) if "--api-server-count" in arguments else 1
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    if arguments[0].startswith("-"):
        arguments = ("tiny", *arguments)
    command = [sys.executable, "-m", "tests.hosts.vllm_app", "serve", *arguments]
    process = _started([*command, "--host", "127.0.0.1", "--port", str(port)], environ)
    assert process.stdout is not None
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as http:
        server = VLLM(process, url, http)
        started = threading.Semaphore(0)
        reading = threading.Thread(target=_read, args=(process, server.lines, started))
        reading.start()
        try:
            for _ in range(count):  # of API servers
                assert started.acquire(timeout=20), f"it did not start:\n{server.printed}"
            assert process.poll() is None, server.printed
            yield server
        finally:
            process.terminate()
            process.wait(timeout=10)
            reading.join(timeout=10)
            process.stdout.close()


def refused_start(*arguments: str, **environ: str) -> tuple[int, str]:
    """Run what is not to start: its exit code, and what it printed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    command = [sys.executable, "-m", "tests.hosts.vllm_app", "serve", *arguments, "--host", "127.0.0.1", "--port", port]
    with _started(command, environ) as process:
        printed, _ = process.communicate(timeout=20)
    return process.returncode, printed


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """A stand-in for OpenShift; yields the environment of a vLLM whose users are its."""
    with serving_in_thread(StandInCluster(USERS)) as url:
        yield {
            "MAAS_OPENSHIFT_API_URL": url,
            "MAAS_TIERS": json.dumps(TIERS),
            "MAAS_TOKENS_ADMINISTRATORS": "maas-admins",
            **UNTHROTTLED,
        }


def until(condition: Callable[[], bool], tries: int = 2000) -> None:
    """Ask until it is so."""
    for _ in range(tries):
        if condition():
            return
    raise AssertionError("it did not become so")


def _started(command: list[str], environ: dict[str, str]) -> subprocess.Popen[str]:
    # what is covered here is covered in the test's own process, too; measuring takes these far longer to start
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MAAS_", "COVERAGE_"))}
    return subprocess.Popen(
        command,
        cwd=Path(__file__).parent.parent.parent,
        env={**others, "PYTHONUNBUFFERED": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _read(process: subprocess.Popen[str], lines: list[str], started: threading.Semaphore) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if "Application startup complete." in line:
            started.release()
    started.release()  # whoever waits still sees that it ended
