"""A whole service on loopback: stand-in cluster, simulated models, and the gateway, each a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from maas_middleware import gateway, load_settings
from maas_middleware.testing.cluster import ClusterUser, StandInCluster
from maas_middleware.testing.model import SimulatedModel

from .servers import serving

# a test asks from one address more often than people do
UNTHROTTLED = dict.fromkeys(("mints", "failed_credentials", "control_requests"), "unlimited")
USERS = {
    "sha256~free": ClusterUser("fay", ("system:authenticated:oauth",)),
    "sha256~premium": ClusterUser("pat", ("premium-group", "system:authenticated:oauth")),
    "sha256~other": ClusterUser("otto", ("premium-group", "system:authenticated:oauth")),
}


@dataclass
class Deployment:
    """Where everything is.

    Attributes:
        url: of the gateway.
        client: an HTTP client of the gateway, without credentials.
    """

    url: str
    client: httpx.AsyncClient
    cluster: StandInCluster
    simulator: SimulatedModel
    qwen3: SimulatedModel

    async def mint(self, login: str = "sha256~free") -> str:
        """Log in and mint an access token."""
        response = await self.client.post("/maas-api/v1/tokens", headers=bearer(login))
        assert response.status_code == 201, response.text
        token = response.json()["token"]
        assert isinstance(token, str)
        return token


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def chat(model: str = "simulator", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello, how are you?"}], **more}


@asynccontextmanager
async def deployed(
    *, qwen3_tiers: object = ("premium", "enterprise"), **overrides: object
) -> AsyncIterator[Deployment]:
    """Start everything; `overrides` go to `load_settings`."""
    cluster, simulator, qwen3 = StandInCluster(USERS), SimulatedModel("simulator"), SimulatedModel("qwen3")
    async with AsyncExitStack() as servers:
        cluster_url, simulator_url, qwen3_url = [
            await servers.enter_async_context(serving(app)) for app in (cluster, simulator, qwen3)
        ]
        models = [
            {"id": "simulator", "name": "Simulator Model", "tiers": "all", "upstreams": [simulator_url]},
            {"id": "qwen3", "tiers": qwen3_tiers, "upstreams": [qwen3_url]},
        ]
        config: dict[str, Any] = {
            "openshift": {"api_url": cluster_url},
            "models": models,
            "throttles": UNTHROTTLED,
            **overrides,
        }
        settings = load_settings({}, **config)
        url = await servers.enter_async_context(serving(gateway(settings), lifespan="on"))
        client = await servers.enter_async_context(httpx.AsyncClient(base_url=url, timeout=10))
        yield Deployment(url, client, cluster, simulator, qwen3)


async def minted(site: Deployment, login: str = "sha256~free", **body: object) -> httpx.Response:
    return await site.client.post("/v1/tokens", headers=bearer(login), json=body)


async def made(site: Deployment, login: str = "sha256~free", **body: object) -> httpx.Response:
    return await site.client.post("/v1/api-keys", headers=bearer(login), json={"name": "ci", **body})


async def statuses(site: Deployment, login: str, *paths: str) -> list[int]:
    return [(await site.client.get(path, headers=bearer(login))).status_code for path in paths]


def throttled(answer: httpx.Response) -> tuple[str, int, int]:
    """Which throttle refused, and how many it admits in how many seconds."""
    assert answer.status_code == 429, answer.text
    assert "retry-after" in answer.headers
    details = answer.json()["error"]["details"]
    return details["limit"], details["quota"], details["window_seconds"]
