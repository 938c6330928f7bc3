"""Apps of others with our middleware, each a process of its own environment, and users who log in to them."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import anyio
import httpx
import openai

from maas_middleware.testing.cluster import ClusterUser, StandInCluster
from tests.deployments import bearer
from tests.processes import ROOT
from tests.servers import serving

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class App:
    """Where an app is.

    Attributes:
        http: an HTTP client of it, without credentials.
    """

    http: httpx.AsyncClient
    _cluster: StandInCluster
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def token(self, group: str = "enterprise-group") -> str:
        """Log somebody new in; returns their access token."""
        login = f"sha256~{next(self._numbers)}"
        self._cluster.users[login] = ClusterUser(f"user-{login}", (group,))
        answer = await self.http.post("/v1/tokens", headers=bearer(login))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    @asynccontextmanager
    async def user(self, group: str = "enterprise-group", prefix: str = "") -> AsyncIterator[openai.AsyncOpenAI]:
        """Somebody new, with the openai SDK."""
        url = f"{self.http.base_url}{prefix}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=await self.token(group), max_retries=0) as user:
            yield user

    async def left(self, token: str, path: str = CHAT) -> tuple[int, int]:
        """The requests and the tokens that HEAD says are left."""
        answer = await self.http.head(path, headers=bearer(token))
        assert answer.status_code == 200
        requests, tokens = (int(answer.headers[f"x-ratelimit-remaining-{unit}"]) for unit in ("requests", "tokens"))
        return requests, tokens


@asynccontextmanager
async def running_app(environment: str, module: str, **environ: str) -> AsyncIterator[App]:
    """Run a module with the Python of an environment of `scripts/test-apps`, behind a stand-in cluster, and end it."""
    cluster = StandInCluster({})
    async with serving(cluster) as cluster_url:
        with _process(
            environment, module, MAAS_OPENSHIFT_API_URL=cluster_url, CLUSTER_URL=cluster_url, **environ
        ) as port:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
                yield App(http, cluster)


@contextmanager
def _process(environment: str, module: str, **environ: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [ROOT / ".venv-apps" / environment / "bin" / "python", "-m", module],
        cwd=ROOT,
        env={**os.environ, "PORT": str(port), "PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # some end without the processes that they started
    )
    assert process.stdout is not None
    draining = threading.Thread(target=process.stdout.read)  # whose output nobody reads stands still
    try:
        printed = ""
        for line in process.stdout:  # some listen before they have started, others after it
            printed += line
            if all(sign in printed for sign in ("Uvicorn running on", "Application startup complete")):
                break
            assert "startup failed" not in line, printed  # some stay up then, and serve nobody
        else:
            raise AssertionError(f"{module} did not start:\n{printed}")
        draining.start()
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if draining.ident is not None:
            draining.join(timeout=10)
        process.stdout.close()


async def settled(app: App, token: str, path: str = CHAT) -> int:
    """The tokens that are left as soon as nothing is reserved any more."""
    with anyio.fail_after(10):
        while not (left := (await app.left(token, path))[1]):
            await anyio.lowlevel.checkpoint()
    return left
