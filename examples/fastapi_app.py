r"""One line turns a FastAPI inference app into a Models-as-a-Service: logins, access tokens, models, tiers and limits.

    uvicorn examples.stand_ins:cluster --port 8001 &
    uvicorn examples.fastapi_app:app

    TOKEN=$(curl -sX POST localhost:8000/v1/tokens -H "Authorization: Bearer sha256~bob" | jq -r .token)
    curl localhost:8000/v1/models -H "Authorization: Bearer $TOKEN"
    curl -i localhost:8000/v1/chat/completions -H "Authorization: Bearer $TOKEN" \
        --json '{"model": "parrot", "messages": [{"role": "user", "content": "Hello there!"}]}'

Whatever is not set here is read from the `MAAS_*` environment variables; the tiers are those of the user guide.
"""

from __future__ import annotations

import os
import time
from typing import Any

from fastapi import FastAPI

from maas_middleware import MaaSMiddleware, load_settings

app = FastAPI()


@app.post("/v1/chat/completions")
async def chat_completions(body: dict[str, Any]) -> dict[str, Any]:
    """Says what it was told. A word is a token."""
    text = body["messages"][-1]["content"]
    tokens = len(text.split())
    return {
        "id": "chatcmpl-parrot",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": 2 * tokens},
    }


@app.get("/health")
async def health() -> dict[str, str]:
    """One of the `public_paths`: it needs no token."""
    return {"status": "parroting"}


app.add_middleware(
    MaaSMiddleware,
    settings=load_settings(
        openshift={"api_url": os.environ.get("CLUSTER_URL", "http://127.0.0.1:8001")},
        models=[{"id": "parrot", "name": "Parrot", "tiers": "all"}],
    ),
)
