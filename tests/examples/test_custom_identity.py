from __future__ import annotations

import pytest

from .running import bearer, running


async def test_a_key_is_known_by_its_digest() -> None:
    async with running("custom_identity") as client:
        answer = await client.get("/", headers=bearer("acme-7b1f2c"))

    assert (answer.status_code, answer.text) == (200, "Hello, alice!\n")


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        pytest.param(bearer("acme-guessed"), "unknown", id="a wrong key of ours"),
        pytest.param(bearer("other-7b1f2c"), "unknown", id="a key of somebody else"),
        pytest.param({}, "missing", id="no key"),
    ],
)
async def test_other_keys_are_refused(headers: dict[str, str], reason: str) -> None:
    async with running("custom_identity") as client:
        answer = await client.get("/", headers=headers)

    assert (answer.status_code, answer.json()["error"]["details"]) == (401, {"reason": reason})
