"""Examples, run as their docstrings say: by uvicorn, with addresses in the environment."""

from __future__ import annotations

import runpy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import openai
import pytest
from starlette.types import ASGIApp

from tests.servers import serving

ALICE = {"authorization": "Bearer sha256~alice"}
BOB = {"authorization": "Bearer sha256~bob"}


def loaded(name: str, **environ: str) -> ASGIApp:
    """The app of an example, made anew with these variables in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environ.items():
            patch.setenv(variable, value)
        app: ASGIApp = runpy.run_module(f"examples.{name}")["app"]
        return app


@asynccontextmanager
async def running(name: str, **environ: str) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an example; yields a client that speaks to it."""
    async with serving(loaded(name, **environ)) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


def sdk(client: httpx.AsyncClient, key: str) -> openai.AsyncOpenAI:
    """The openai SDK, for the server that a client speaks to."""
    return openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key=key, max_retries=0)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}
