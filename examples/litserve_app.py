r"""A LitServe server (OpenAISpec) as a Models-as-a-Service: logins, access tokens, models, tiers and limits.

    pip install litserve maas-middleware
    uvicorn examples.stand_ins:cluster --port 8001 &
    python -m examples.litserve_app

    TOKEN=$(curl -sX POST localhost:8000/v1/tokens -H "Authorization: Bearer sha256~bob" | jq -r .token)
    curl localhost:8000/v1/models -H "Authorization: Bearer $TOKEN"
    curl -i localhost:8000/v1/chat/completions -H "Authorization: Bearer $TOKEN" \
        --json '{"model": "parrot", "messages": [{"role": "user", "content": "Hello there!"}]}'

LitServe has no list of models: they are named here. It starts as many API servers as workers, each with counters,
tokens and a signing key of its own: one is asked for here, several have to share (`MAAS_COUNTERS`, `MAAS_STORE`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import litserve
from litserve.specs.openai import ChatCompletionRequest

from maas_middleware import MaaSMiddleware, load_settings


class Parrot(litserve.LitAPI):
    """Says what it was told. A word is a token."""

    def setup(self, device: str) -> None:
        """Where a model would be loaded."""

    def decode_request(self, request: ChatCompletionRequest) -> list[str]:
        return str(request.messages[-1].content).split()

    def predict(self, words: list[str]) -> Iterator[str]:
        yield from words

    def encode_response(self, words: Iterator[str]) -> Iterator[dict[str, Any]]:
        """Only the last piece tells the usage: LitServe adds it up in whole answers, and takes the last in streams."""
        tokens = 0
        for tokens, word in enumerate(words, start=1):
            yield {"role": "assistant", "content": f" {word}" if tokens > 1 else word}
        usage = {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": 2 * tokens}
        yield {"role": "assistant", "content": "", **usage}


def server() -> litserve.LitServer:
    """Make the server; its processes make the middleware, each for itself."""
    settings = load_settings(
        openshift={"api_url": os.environ.get("CLUSTER_URL", "http://127.0.0.1:8001")},
        models=[{"id": "parrot", "name": "Parrot", "tiers": "all"}],
    )
    return litserve.LitServer(
        Parrot(spec=litserve.OpenAISpec()),
        accelerator="cpu",
        middlewares=[(MaaSMiddleware, {"settings": settings})],
    )


if __name__ == "__main__":
    server().run(
        host="127.0.0.1",
        port=int(os.environ.get("PORT", "8000")),
        num_api_servers=1,
        generate_client_file=False,
        proxy_headers=False,  # uvicorn's own handling hides the peer; see `trusted_proxies`
    )
