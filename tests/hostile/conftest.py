from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from .attack import Target


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def target(besieged_target: Target, caplog: pytest.LogCaptureFixture) -> Iterator[Target]:
    """The deployment of the module. After each test, nothing in the log may be of use to an attacker."""
    server = logging.getLogger("uvicorn.error")  # does not propagate
    caplog.set_level(logging.DEBUG, logger="maas_middleware")
    server.addHandler(caplog.handler)
    yield besieged_target
    server.removeHandler(caplog.handler)
    besieged_target.logs_nothing_of_it(caplog)
