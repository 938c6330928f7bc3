"""The gateway's factory runs on the servers that the README names, by the README's own commands."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from .processes import ROOT

COMMANDS = re.findall(r"^((?:uvicorn|granian|hypercorn) .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.partition(" ")[0]))
def test_command_of_the_readme_serves_the_gateway(command: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    program, *arguments = shlex.split(command)
    bind = ["--bind", f"127.0.0.1:{port}"] if program == "hypercorn" else ["--port", port]
    environment = {
        **os.environ,
        "MAAS_CONFIG": "examples/gateway/maas.yaml",
        "MAAS_STORE": f"sqlite:///{tmp_path}/m.db",
    }
    process = subprocess.Popen(
        [Path(sys.executable).with_name(program), *arguments, *bind],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=6), base_url=f"http://127.0.0.1:{port}") as client:
            health, stranger = client.get("/health"), client.post("/v1/chat/completions", json={})
    finally:
        process.terminate()
        process.wait(timeout=20)

    assert health.json() == {"status": "healthy"}
    assert stranger.status_code == 401
    assert stranger.json()["error"]["code"] == "invalid_api_key"


def test_readme_names_the_three_servers() -> None:
    assert [command.partition(" ")[0] for command in COMMANDS] == ["uvicorn", "granian", "hypercorn"]
