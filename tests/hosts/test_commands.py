"""A host app under the servers' own commands, as processes: started, asked, and ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from maas_middleware.endpoints import CHAT_COMPLETIONS
from maas_middleware.testing.cluster import StandInCluster
from tests.deployments import USERS, bearer, chat
from tests.hosts.inference import MODEL
from tests.processes import ROOT
from tests.servers import serving_in_thread

APP = "tests.hosts.module_app:app"
COMMANDS = {
    "uvicorn": f"uvicorn {APP} --port {{port}}",
    "granian": f"granian --interface asgi {APP} --port {{port}}",
    "hypercorn": f"hypercorn {APP} --bind 127.0.0.1:{{port}}",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_host_starts_serves_and_ends_neatly(command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    program, *arguments = command.format(port=port).split()

    with serving_in_thread(StandInCluster(USERS)) as cluster:
        process = subprocess.Popen(
            [Path(sys.executable).with_name(program), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MAAS_OPENSHIFT_API_URL": cluster},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            transport = httpx.HTTPTransport(retries=6)
            with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                health = client.get("/health")
                token = client.post("/v1/tokens", headers=bearer("sha256~free")).json()["token"]
                answer = client.post(CHAT_COMPLETIONS, json=chat(MODEL), headers=bearer(token))
                stranger = client.post(CHAT_COMPLETIONS, json=chat(MODEL))
        finally:
            process.terminate()
            _, printed = process.communicate(timeout=20)

    assert health.json() == "the host's own"
    assert answer.headers["x-odhu-usage-total-tokens"] == "5"
    assert stranger.status_code == 401
    assert printed.index("the host is up") < printed.index("the host is down")
    assert "Traceback" not in printed
