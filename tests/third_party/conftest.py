from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from .apps import App, running_app

HOST_KEY = "the-key-of-the-host"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
async def litserve() -> AsyncIterator[App]:
    """The example, as its docstring says."""
    async with running_app("litserve", "examples.litserve_app") as app:
        yield app


@pytest.fixture(scope="session")
async def litserve_with_options(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    """LitServe with two API servers, a key of its own, a maximum of its own, and a model that fails."""
    folder = tmp_path_factory.mktemp("litserve")
    (folder / "key").write_text(HOST_KEY)
    environ = {
        "LIT_SERVER_API_KEY": HOST_KEY,
        "MAAS_INNER_API_KEY_FILE": str(folder / "key"),
        "MAAS_STORE": f"sqlite:///{folder}/maas.db",
    }
    async with running_app("litserve", "tests.third_party.litserve_with_options", **environ) as app:
        yield app


@pytest.fixture(scope="session")
async def infinity() -> AsyncIterator[App]:
    """infinity behind a proxy that takes `/srv` away, with its own list of models."""
    async with running_app("infinity", "tests.third_party.infinity_app") as app:
        yield app


@pytest.fixture(scope="session")
async def infinity_with_options(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    """infinity with a key of its own, for pages of every origin, and with models that are named."""
    file = tmp_path_factory.mktemp("infinity") / "key"
    file.write_text(HOST_KEY)
    environ = {
        "INFINITY_API_KEY": HOST_KEY,
        "INFINITY_PERMISSIVE_CORS": "true",
        "MAAS_INNER_API_KEY_FILE": str(file),
        "MAAS_MODELS": json.dumps([{"id": "debug", "name": "Debug", "tiers": ["enterprise"]}]),
    }
    async with running_app("infinity", "tests.third_party.infinity_app", **environ) as app:
        yield app
