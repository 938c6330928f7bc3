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
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from maas_middleware.cli import main
from maas_middleware.testing import ClusterUser, SimulatedModel, StandInCluster, serving_in_thread

CONFIG = Path(__file__).with_name("maas.yaml")
USERS = {
    "sha256~demo-free": ClusterUser("free-user", ("system:authenticated:oauth",)),
    "sha256~demo-premium": ClusterUser("premium-user", ("premium-group", "system:authenticated:oauth")),
    "sha256~demo-enterprise": ClusterUser("enterprise-user", ("enterprise-group", "system:authenticated:oauth")),
    "sha256~demo-admin": ClusterUser("admin-user", ("admin-group", "system:authenticated:oauth")),
}
DELAY = 0.05  # seconds between two tokens

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


def upstreams_in_place(config: dict[str, Any], servers: ExitStack) -> list[dict[str, Any]]:
    """The configured models, each with a simulated server of its own."""
    return [
        {**model, "upstreams": [servers.enter_context(serving_in_thread(SimulatedModel(model["id"], delay=DELAY)))]}
        for model in config["models"]
    ]


def run() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the temporary folder goes
    port = os.environ.get("PORT", "8080")
    config = yaml.safe_load(CONFIG.read_text())
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        reviewer = Path(folder, "token")
        reviewer.write_text(secrets.token_hex())
        cluster = StandInCluster(USERS, reviewer_token=reviewer.read_text())
        os.environ["MAAS_OPENSHIFT_TOKEN_FILE"] = str(reviewer)
        os.environ["MAAS_OPENSHIFT_API_URL"] = servers.enter_context(serving_in_thread(cluster))
        # the stand-ins serve in threads of their own; the log is the gateway's
        for name in ("uvicorn.access", "uvicorn.error"):
            logging.getLogger(name).addFilter(lambda record: record.threadName == "MainThread")
        os.environ["MAAS_MODELS"] = json.dumps(upstreams_in_place(config, servers))
        scheme = "https" if "--ssl-certfile" in sys.argv else "http"
        print(WELCOME.format(url=f"{scheme}://127.0.0.1:{port}", users=", ".join(list(USERS)[1:])), flush=True)
        return main(["serve", "--config", str(CONFIG), "--port", port, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(run())
