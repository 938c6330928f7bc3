from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from .attack import Target, besieged_behind, watched


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> str:
    parser: str = request.param
    return parser


@pytest.fixture(scope="module")
async def besieged_target(http: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """One model behind each of the two parsers; most modules have a deployment of their own."""
    async with besieged_behind(http, tmp_path_factory.mktemp("keys")) as target:
        yield target


@pytest.fixture
def target(besieged_target: Target, caplog: pytest.LogCaptureFixture) -> Iterator[Target]:
    """The deployment of the module, watched."""
    with watched(besieged_target, caplog):
        yield besieged_target
