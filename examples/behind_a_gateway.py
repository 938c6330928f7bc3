r"""A gateway before a mounted app: the app knows who calls by the word of the gateway, and only that one counts.

    (umask 77; openssl rand -base64 32 > assertion-keys)
    uvicorn examples.stand_ins:cluster --port 8001 &
    uvicorn examples.behind_a_gateway:app --port 8002 &
    uvicorn examples.behind_a_gateway:edge

    TOKEN=$(curl -sX POST localhost:8000/v1/tokens -H "Authorization: Bearer sha256~bob" | jq -r .token)
    curl -i localhost:8000/v1/completions -H "Authorization: Bearer $TOKEN" \
        --json '{"model": "greeter", "prompt": "Hello"}'
    curl localhost:8002/v1/completions -H "Authorization: Bearer $TOKEN" \
        --json '{"model": "greeter", "prompt": "Hello"}'

The last one is refused: the gateway's tokens are none of the app, which mints its own for whoever comes directly.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI, Request

import maas_middleware as maas

CLUSTER = {"api_url": os.environ.get("CLUSTER_URL", "http://127.0.0.1:8001")}
KEYS_FILE = os.environ.get("ASSERTION_KEYS_FILE", "assertion-keys")

app = FastAPI()


@app.post("/v1/completions")
async def complete(request: Request) -> dict[str, Any]:
    """Greets the person, whom it knows whichever way the request came."""
    identity = request.state.maas.identity
    text = f"Hello, {request.user.display_name} of {', '.join(identity.groups)}!"
    usage = {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}
    return {"object": "text_completion", "model": "greeter", "choices": [{"index": 0, "text": text}], "usage": usage}


app.add_middleware(
    maas.MaaSMiddleware,
    settings=maas.load_settings(
        openshift=CLUSTER,
        models=[{"id": "greeter", "tiers": "all"}],
        trusted_gateways={"keys_file": KEYS_FILE},
    ),
)

upstream = os.environ.get("APP_URL", "http://127.0.0.1:8002")
edge = maas.gateway(
    maas.load_settings(
        openshift=CLUSTER,
        models=[{"id": "greeter", "tiers": "all", "upstreams": [upstream], "assertion_keys_file": KEYS_FILE}],
    )
)
