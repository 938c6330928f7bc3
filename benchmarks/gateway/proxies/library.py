"""fastapi-proxy-lib's reverse proxy, with as many connections as there are requests."""

from __future__ import annotations

import os

import httpx
from fastapi import FastAPI
from fastapi_proxy_lib.fastapi.app import reverse_http_app  # type: ignore[import-not-found]  # only where it is measured


def app() -> FastAPI:
    """Make the app."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(timeout=None, limits=limits, trust_env=False)
    made = reverse_http_app(client, base_url=f"{os.environ['BENCHMARK_UPSTREAM']}/")
    assert isinstance(made, FastAPI)
    return made
