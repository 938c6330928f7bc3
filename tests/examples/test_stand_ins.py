from __future__ import annotations

import httpx

from examples.stand_ins import model
from tests.servers import serving


async def test_the_model_is_listed() -> None:
    async with serving(model) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/v1/models")

    assert [row["id"] for row in answer.json()["data"]] == ["simulator"]
