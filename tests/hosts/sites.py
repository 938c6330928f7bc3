"""A host app with the whole onion in it, on a server, beside a stand-in cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.types import ASGIApp

from maas_middleware import Settings, load_settings
from maas_middleware.endpoints import CHAT_COMPLETIONS
from maas_middleware.testing.cluster import StandInCluster
from tests.deployments import UNTHROTTLED, USERS, bearer, chat
from tests.hosts.inference import MODEL
from tests.hosts.servers import Serving, on_httptools
from tests.servers import serving


@dataclass
class Site:
    """Where a host app is served.

    Attributes:
        client: an HTTP client without credentials; its base URL has the mount point in it.
    """

    client: httpx.AsyncClient

    async def headers(self, login: str = "sha256~premium") -> dict[str, str]:
        """Log in, mint an access token, and carry it."""
        response = await self.client.post("/v1/tokens", headers=bearer(login))
        assert response.status_code == 201, response.text
        return bearer(response.json()["token"])

    async def ask(self, headers: Mapping[str, str], **more: Any) -> httpx.Response:
        return await self.client.post(CHAT_COMPLETIONS, json=chat(MODEL, **more), headers=headers)

    async def tokens_left(self, headers: Mapping[str, str]) -> int:
        response = await self.client.head(CHAT_COMPLETIONS, headers=headers)
        return int(response.headers["x-ratelimit-remaining-tokens"])


@asynccontextmanager
async def host_settings(**overrides: Any) -> AsyncIterator[Settings]:
    """Settings of a host with one model, whose logins are reviewed by a cluster on loopback."""
    async with serving(StandInCluster(USERS)) as url:
        config = {"models": [{"id": MODEL, "tiers": "all"}], "throttles": UNTHROTTLED, **overrides}
        yield load_settings({}, openshift={"api_url": url}, **config)


@asynccontextmanager
async def hosting(
    app: ASGIApp, mount_point: str = "", *, server: Serving = on_httptools, root_path: str = ""
) -> AsyncIterator[Site]:
    async with (
        server(app, root_path) as url,
        httpx.AsyncClient(base_url=url + mount_point, timeout=10) as client,
    ):
        yield Site(client)


@asynccontextmanager
async def hosted(
    make: Callable[[Settings], ASGIApp], mount_point: str = "", *, server: Serving = on_httptools, **overrides: Any
) -> AsyncIterator[Site]:
    """Serve what an author makes of the settings."""
    async with host_settings(**overrides) as settings, hosting(make(settings), mount_point, server=server) as site:
        yield site
