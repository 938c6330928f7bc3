"""The example gateway: `python -m examples.gateway`, or `scripts/gateway`.

The gateway itself is `maas-gateway serve` with maas.yaml; nothing in it knows that this is an example. Round it, a
stand-in cluster and two simulated model servers listen on free ports, in threads of this process.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from starlette.types import ASGIApp

from maas_middleware.cli import main
from maas_middleware.testing import ClusterUser, SimulatedModel, StandInCluster

CONFIG = Path(__file__).with_name("maas.yaml")
USERS = {
    "sha256~demo-free": ClusterUser("free-user", ("system:authenticated:oauth",)),
    "sha256~demo-premium": ClusterUser("premium-user", ("premium-group", "system:authenticated:oauth")),
    "sha256~demo-enterprise": ClusterUser("enterprise-user", ("enterprise-group", "system:authenticated:oauth")),
    "sha256~demo-admin": ClusterUser("admin-user", ("admin-group", "system:authenticated:oauth")),
}
SECONDS_PER_TOKEN = 0.05

WELCOME = """
Models-as-a-Service on {url}

Paste this into another shell. The later blocks of the guide (docs/self-service-model-access.md) then work as they are.
Other users: {users}

OC_TOKEN=sha256~demo-free
MAAS_API_URL={url}

TOKEN_RESPONSE=$(curl -sSk \\
  -H "Authorization: Bearer ${{OC_TOKEN}}" \\
  -H "Content-Type: application/json" \\
  -X POST \\
  -d '{{"expiration": "15m"}}' \\
  "${{MAAS_API_URL}}/maas-api/v1/tokens")
ACCESS_TOKEN=$(echo $TOKEN_RESPONSE | jq -r .token)

MODELS=$(curl -sSk "${{MAAS_API_URL}}/v1/models" \\
    -H "Authorization: Bearer ${{ACCESS_TOKEN}}")
MODEL_URL=$(echo $MODELS | jq -r '.data[0].url')
MODEL_NAME=$(echo $MODELS | jq -r '.data[0].id')

curl -sSk --no-buffer \\
  -H "Authorization: Bearer ${{ACCESS_TOKEN}}" \\
  -H "Content-Type: application/json" \\
  -d "{{
        \\"model\\": \\"${{MODEL_NAME}}\\",
        \\"messages\\": [{{\\"role\\": \\"user\\", \\"content\\": \\"Hello, how are you?\\"}}],
        \\"max_tokens\\": 100,
        \\"stream\\": true
      }}" \\
  "${{MODEL_URL}}"

# what is left of your limits, for free
curl -sSk -I -H "Authorization: Bearer ${{ACCESS_TOKEN}}" "${{MODEL_URL}}" | grep -i x-ratelimit

Ctrl-C ends all of it.
"""


def serve_in_thread(app: ASGIApp) -> str:
    """Serve an app on a free port for as long as the process lives; returns its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def upstreams_in_place(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The configured models, each with a simulated server of its own."""
    return [
        {**model, "upstreams": [serve_in_thread(SimulatedModel(model["id"], delay=SECONDS_PER_TOKEN))]}
        for model in config["models"]
    ]


def run() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the temporary folder goes
    port = os.environ.get("PORT", "8080")
    config = yaml.safe_load(CONFIG.read_text())
    with tempfile.TemporaryDirectory() as folder:
        reviewer = Path(folder, "token")
        reviewer.write_text(secrets.token_hex())
        os.environ["MAAS_OPENSHIFT_TOKEN_FILE"] = str(reviewer)
        os.environ["MAAS_OPENSHIFT_API_URL"] = serve_in_thread(
            StandInCluster(USERS, reviewer_token=reviewer.read_text())
        )
        # the stand-ins serve in threads of their own; the log is the gateway's
        logging.getLogger("uvicorn.access").addFilter(lambda record: record.threadName == "MainThread")
        os.environ["MAAS_MODELS"] = json.dumps(upstreams_in_place(config))
        scheme = "https" if "--ssl-certfile" in sys.argv else "http"
        print(WELCOME.format(url=f"{scheme}://127.0.0.1:{port}", users=", ".join(list(USERS)[1:])), flush=True)
        return main(["serve", "--config", str(CONFIG), "--port", port, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(run())
