from __future__ import annotations

from typing import Any

import pytest
import trustme

from .asking import Kind


@pytest.fixture(
    params=[
        pytest.param(Kind("httpx"), id="httpx"),
        pytest.param(Kind("http11"), id="http11"),
        pytest.param(Kind("http11", uvloop=True), id="http11-uvloop"),
    ]
)
def kind(request: pytest.FixtureRequest) -> Kind:
    assert isinstance(request.param, Kind)
    return request.param


@pytest.fixture
def anyio_backend(kind: Kind) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": kind.uvloop}


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()
