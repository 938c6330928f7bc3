from __future__ import annotations

from .running import running


async def test_the_word_of_a_trusted_proxy_counts() -> None:
    told = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https", "x-forwarded-host": "ai.example.com"}
    async with running("trusted_proxies") as client:
        forwarded = await client.get("/", headers=told)
        direct = await client.get("/")

    assert forwarded.json() == {"client": "203.0.113.7", "url": "https://ai.example.com/"}
    assert direct.json() == {"client": "127.0.0.1", "url": f"{client.base_url}/"}
