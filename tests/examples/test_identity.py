from __future__ import annotations

import pytest

from examples.stand_ins import cluster
from tests.servers import serving

from .running import ALICE, bearer, running


async def test_a_route_knows_who_is_logged_in() -> None:
    async with serving(cluster) as cluster_url, running("identity", CLUSTER_URL=cluster_url) as client:
        answer = await client.get("/whoami", headers=ALICE)

    assert answer.status_code == 200
    assert answer.json() == {
        "name": "alice",
        "groups": ["premium-group", "system:authenticated:oauth", "system:authenticated"],
    }


@pytest.mark.parametrize(
    ("headers", "reason"),
    [pytest.param({}, "missing", id="no token"), pytest.param(bearer("sha256~eve"), "unknown", id="unknown token")],
)
async def test_nobody_else_gets_in(headers: dict[str, str], reason: str) -> None:
    async with serving(cluster) as cluster_url, running("identity", CLUSTER_URL=cluster_url) as client:
        answer = await client.get("/whoami", headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {
        "error": {
            "message": "Invalid authentication token",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
            "details": {"reason": reason},
        }
    }
