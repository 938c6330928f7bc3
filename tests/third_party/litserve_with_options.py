"""The parrot of the example, which may fail, in two API servers that are threads of one process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import litserve

from examples.litserve_app import Parrot
from maas_middleware import MaaSMiddleware, load_settings


class FailingParrot(Parrot):
    """Fails at the word `fail`."""

    def predict(self, words: list[str]) -> Iterator[str]:
        for word in words:
            if word == "fail":
                raise RuntimeError("out of memory at 10.1.2.3")
            yield word


if __name__ == "__main__":
    litserve.LitServer(
        FailingParrot(spec=litserve.OpenAISpec()),
        accelerator="cpu",
        max_payload_size=100_000,
        track_requests=True,
        middlewares=[(MaaSMiddleware, {"settings": load_settings(models=[{"id": "parrot", "tiers": "all"}])})],
    ).run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=2,
        api_server_worker_type="thread",
        generate_client_file=False,
        proxy_headers=False,
    )
