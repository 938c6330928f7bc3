"""Several gateways, each a process of its own, on one database."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx

from maas_middleware.providers.keys import SigningKeys
from maas_middleware.testing.cluster import ClusterUser, StandInCluster
from maas_middleware.testing.model import SimulatedModel

from .deployments import UNTHROTTLED, bearer, chat
from .processes import GatewayProcess, running
from .servers import serving

ADMIN = "sha256~admin"
FAY = "sha256~fay"
PAT = "sha256~pat"
USERS = {
    ADMIN: ClusterUser("ada", ("system:authenticated:oauth", "maas-admins")),
    FAY: ClusterUser("fay", ("system:authenticated:oauth",)),
    PAT: ClusterUser("pat", ("system:authenticated:oauth",)),
}
ROOMY = {"requests": "100000/minute", "tokens": "unlimited"}


@dataclass
class Replica:
    """One gateway, and a client of it."""

    process: GatewayProcess
    http: httpx.AsyncClient

    async def mint(self, login: str = FAY) -> dict[str, Any]:
        """What minting answered."""
        answer = await self.http.post("/v1/tokens", headers=bearer(login))
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def api_key(self, name: str = "ci", login: str = FAY) -> dict[str, Any]:
        answer = await self.http.post("/v1/api-keys", headers=bearer(login), json={"name": name})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def models(self, token: str) -> httpx.Response:
        """The cheapest request that is for whoever has a valid token."""
        return await self.http.get("/v1/models", headers=bearer(token))

    async def call(self, token: str, **more: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", headers=bearer(token), json=chat(**more))

    async def usage(self, token: str) -> dict[str, int]:
        """The total of the caller's recorded use."""
        answer = await self.http.get("/v1/usage", headers=bearer(token))
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["total"])

    async def seconds_until_refused(self, token: str) -> float:
        """How long it takes from now on until the token is refused, and for the right reason."""
        since = time.monotonic()
        while True:
            answer = await self.models(token)
            if answer.status_code == 401:
                assert answer.json()["error"]["details"] == {"reason": "revoked"}
                return time.monotonic() - since
            assert answer.status_code == 200, answer.text


class Fleet:
    """Starts replicas that share a store, a key and a model."""

    def __init__(self, config: Path, stack: AsyncExitStack, simulator: SimulatedModel) -> None:
        self.simulator = simulator
        self._config = config
        self._stack = stack

    async def replica(self, **settings: object) -> Replica:
        """One more; settings go over those of the fleet."""
        config = self._config
        if settings:
            config = config.with_name(f"{len(list(config.parent.iterdir()))}.json")
            config.write_text(json.dumps({**json.loads(self._config.read_text()), **settings}))
        command = [sys.executable, "-m", "maas_middleware", "serve", "--port", "0", "--config", str(config)]
        process = await anyio.to_thread.run_sync(self._stack.enter_context, running(*command))
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.port}", timeout=10, trust_env=False)
        return Replica(process, await self._stack.enter_async_context(client))

    async def replicas(self, count: int) -> list[Replica]:
        return [await self.replica() for _ in range(count)]


@asynccontextmanager
async def fleet(store: str, folder: Path, **settings: object) -> AsyncIterator[Fleet]:
    """What replicas need, and they themselves until the end of the block."""
    simulator = SimulatedModel()
    keys, config = folder / "keys.json", folder / "maas.json"
    if not keys.exists():
        SigningKeys.generate().save(keys)
    tokens = {"signing_keys_file": str(keys), "administrators": ["maas-admins"]}
    async with AsyncExitStack() as stack:
        cluster_url = await stack.enter_async_context(serving(StandInCluster(USERS)))
        model_url = await stack.enter_async_context(serving(simulator))
        document = {
            "openshift": {"api_url": cluster_url},
            "store": store,
            "tiers": [{"name": "crew", "groups": ["system:authenticated"], "limits": ROOMY}],
            "models": [{"id": "simulator", "tiers": "all", "upstreams": [model_url]}],
            "throttles": UNTHROTTLED,
            **settings,
            "tokens": {**tokens, **dict(settings.get("tokens", {}))},  # type: ignore[call-overload]
        }
        config.write_text(json.dumps(document))
        yield Fleet(config, stack, simulator)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> float:
    """Ask until it is so; returns how long that took."""
    since = time.monotonic()
    with anyio.fail_after(seconds):
        while not await condition():
            await anyio.lowlevel.checkpoint()
    return time.monotonic() - since
