from __future__ import annotations

from .running import running, sdk

QUESTION = {"model": "simulator", "prompt": "Hi"}


async def test_answers_tell_their_usage_in_headers() -> None:
    async with running("usage_headers") as client:
        answer = await client.post("/v1/completions", json=QUESTION)

    usage = answer.json()["usage"]
    assert answer.headers["x-odhu-usage-input-tokens"] == str(usage["prompt_tokens"])
    assert answer.headers["x-odhu-usage-output-tokens"] == str(usage["completion_tokens"])
    assert answer.headers["x-odhu-usage-total-tokens"] == str(usage["total_tokens"])


async def test_a_stream_counts_without_the_client_having_asked_for_usage() -> None:
    async with running("usage_headers") as client, sdk(client, "any") as user:
        whole = await user.completions.create(model="simulator", prompt="Hi")
        raw = await user.completions.with_raw_response.create(model="simulator", prompt="Hi", stream=True)
        chunks = [chunk async for chunk in raw.parse()]
        total = (await client.get("/total")).json()

    assert whole.usage is not None
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert all(chunk.usage is None for chunk in chunks)
    assert not any(name.startswith("x-odhu-usage-") for name in raw.headers)
    assert total == {"tokens": 2 * whole.usage.total_tokens}
