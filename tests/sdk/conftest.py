from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from .scripted import scripted_site
from .site import Site, sited


@pytest.fixture(scope="package")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="package")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with sited(tmp_path_factory.mktemp("keys")) as site:
        yield site


@pytest.fixture(scope="package")
async def troubled(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with scripted_site(tmp_path_factory.mktemp("keys")) as site:
        yield site
