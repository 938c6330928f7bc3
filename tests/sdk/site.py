"""A gateway with its models, and users who reach it by the SDKs of OpenAI and Anthropic."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai

from maas_middleware import gateway, load_settings
from maas_middleware.identity import Identity
from maas_middleware.providers.jwt import JWTMinter
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.testing.cluster import ClusterUser, StandInCluster
from maas_middleware.testing.model import SimulatedModel

from ..deployments import UNTHROTTLED, bearer
from ..servers import serving

CHAT = "/v1/chat/completions"
REQUESTS, TOKENS = 1000, 100_000
MAXIMUM_BODY_BYTES = 100_000
_AMPLE = {"requests": f"{REQUESTS}/hour", "tokens": f"{TOKENS}/hour"}
_TIERS: dict[str, dict[str, object]] = {
    "premium": {},
    "basic": {"features": []},
    "capped": {"max_tokens_per_request": 20},
    "small": {"limits": {"requests": "1/hour", "tokens": "unlimited"}},
    "thrifty": {"limits": {"requests": f"{REQUESTS}/hour", "tokens": "10/hour"}},
    "brisk": {"limits": {"requests": "1/second", "tokens": "unlimited"}},
}
TIERS = [{"name": name, "groups": [name], "limits": _AMPLE, **more} for name, more in _TIERS.items()]


@dataclass(frozen=True)
class SDKs:
    """Clients of both SDKs, each kind over one pool of connections."""

    url: str
    openai_pool: openai.DefaultAsyncHttpxClient
    anthropic_pool: anthropic.DefaultAsyncHttpxClient

    def openai(self, token: str, path: str = "", **options: Any) -> openai.AsyncOpenAI:
        """A client that never retries unless told to; `path` is a model's."""
        options = {"max_retries": 0, "timeout": 10, **options}
        url = f"{self.url}{path}/v1"
        return openai.AsyncOpenAI(base_url=url, api_key=token, http_client=self.openai_pool, **options)

    def anthropic(self, token: str, path: str = "", **options: Any) -> anthropic.AsyncAnthropic:
        """The same of Anthropic's."""
        options = {"api_key": token, "max_retries": 0, "timeout": 10, **options}
        return anthropic.AsyncAnthropic(base_url=f"{self.url}{path}", http_client=self.anthropic_pool, **options)


@dataclass(frozen=True)
class User:
    """Somebody with an access token."""

    token: str
    _sdks: SDKs
    _http: httpx.AsyncClient

    def openai(self, path: str = "", **options: Any) -> openai.AsyncOpenAI:
        return self._sdks.openai(self.token, path, **options)

    def anthropic(self, path: str = "", **options: Any) -> anthropic.AsyncAnthropic:
        return self._sdks.anthropic(self.token, path, **options)

    async def post(self, path: str, **body: object) -> httpx.Response:
        """Ask what the SDKs have no call for."""
        return await self._http.post(path, json=body, headers=bearer(self.token))

    async def used(self) -> tuple[int, int]:
        """The requests and the tokens that HEAD says are used."""
        answer = await self._http.head(CHAT, headers=bearer(self.token))
        assert answer.status_code == 200
        requests, tokens = (int(answer.headers[f"x-ratelimit-remaining-{unit}"]) for unit in ("requests", "tokens"))
        return REQUESTS - requests, TOKENS - tokens


@dataclass(frozen=True)
class Site:
    """Where everything is.

    Attributes:
        http: an HTTP client of the gateway, without credentials.
        models: the simulated ones by the names that they know themselves by, and the SDKs pointed at them directly.
    """

    http: httpx.AsyncClient
    sdks: SDKs
    models: Mapping[str, tuple[SimulatedModel, SDKs]]
    cluster: StandInCluster
    _keys: SigningKeys
    _numbers: itertools.count[int]

    async def user(self, tier: str = "premium") -> User:
        """Somebody new, who has logged in and minted an access token."""
        name = f"user-{next(self._numbers)}"
        login = f"sha256~{name}"
        self.cluster.users[login] = ClusterUser(name, (tier,))
        response = await self.http.post("/maas-api/v1/tokens", headers=bearer(login))
        assert response.status_code == 201, response.text
        return User(response.json()["token"], self.sdks, self.http)

    def expired_token(self) -> str:
        """A token that was good an hour ago."""
        minter = JWTMinter(keys=self._keys, clock=lambda: time.time() - 7200)
        return minter.mint(Identity("openshift", "old-hand", ("premium",)), 3600, 0).token


@asynccontextmanager
async def sited(
    directory: Path, models: Sequence[Mapping[str, object]] | None = None, **overrides: object
) -> AsyncIterator[Site]:
    """Start everything; `overrides` go to `load_settings`."""
    (keys := SigningKeys.generate()).save(file := directory / "keys.json")
    cluster = StandInCluster({})
    simulated = [SimulatedModel(name, clock=lambda: 1_700_000_000) for name in ("simulator", "qwen3")]
    async with AsyncExitStack() as opened:
        openai_pool = await opened.enter_async_context(openai.DefaultAsyncHttpxClient())
        anthropic_pool = await opened.enter_async_context(anthropic.DefaultAsyncHttpxClient())
        cluster_url = await opened.enter_async_context(serving(cluster))
        urls = {model.model: await opened.enter_async_context(serving(model)) for model in simulated}
        config: dict[str, Any] = {
            "openshift": {"api_url": cluster_url},
            "models": _models(urls) if models is None else models,
            "tokens": {"signing_keys_file": str(file)},
            "tiers": TIERS,
            "proxy": {"max_body_bytes": MAXIMUM_BODY_BYTES},
            "throttles": UNTHROTTLED,
            **overrides,
        }
        settings = load_settings({}, **config)
        url = await opened.enter_async_context(serving(gateway(settings), lifespan="on"))
        http = await opened.enter_async_context(httpx.AsyncClient(base_url=url, timeout=10))
        direct = {model.model: (model, SDKs(urls[model.model], openai_pool, anthropic_pool)) for model in simulated}
        yield Site(http, SDKs(url, openai_pool, anthropic_pool), direct, cluster, keys, itertools.count(1))


def _models(urls: Mapping[str, str]) -> list[dict[str, object]]:
    return [
        {"id": "simulator", "tiers": "all", "upstreams": [urls["simulator"]]},
        {"id": "qwen3", "tiers": ["premium"], "upstreams": [urls["qwen3"]]},
        {
            "id": "acme/large",
            "aliases": ["gpt-4o", "claude"],
            "upstream_model": "qwen3",
            "tiers": "all",
            "upstreams": [urls["qwen3"]],
        },
    ]


def tampered(token: str) -> str:
    """The same token with another signature."""
    return f"{token[:-8]}{'A' * 8}"
