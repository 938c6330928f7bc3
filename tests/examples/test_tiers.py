from __future__ import annotations

import pytest

from .running import bearer, running, sdk


@pytest.mark.parametrize(
    ("token", "visible"),
    [pytest.param("alice-token", ["small", "large"], id="premium"), pytest.param("bob-token", ["small"], id="free")],
)
async def test_callers_see_the_models_of_their_tier(token: str, visible: list[str]) -> None:
    async with running("tiers") as client, sdk(client, token) as user:
        models = await user.models.list()

    assert [model.id for model in models.data] == visible


async def test_the_inner_app_reads_the_tier_and_gets_the_name_that_it_knows() -> None:
    async with running("tiers") as client:
        answer = await client.post(
            "/v1/completions", headers=bearer("bob-token"), json={"model": "small", "prompt": "Hi"}
        )

    assert answer.json() == {
        "tier": "free",
        "model": "small",
        "path": "/v1/completions",
        "body": {"model": "qwen3-0.6b", "prompt": "Hi"},
    }


async def test_a_path_names_the_model() -> None:
    async with running("tiers") as client:
        answer = await client.post("/large/v1/completions", headers=bearer("alice-token"), json={"prompt": "Hi"})

    assert answer.json() == {
        "tier": "premium",
        "model": "large",
        "path": "/v1/completions",
        "body": {"prompt": "Hi", "model": "qwen3-32b"},
    }


@pytest.mark.parametrize(
    ("token", "model", "refusal"),
    [
        pytest.param("bob-token", "large", (403, "access_denied"), id="not for the tier"),
        pytest.param("bob-token", "huge", (404, "model_not_found"), id="no such model"),
        pytest.param("carol-token", "small", (403, "no_tier"), id="in no tier"),
    ],
)
async def test_what_is_not_for_the_caller_is_refused(token: str, model: str, refusal: tuple[int, str]) -> None:
    async with running("tiers") as client:
        answer = await client.post("/v1/completions", headers=bearer(token), json={"model": model, "prompt": "Hi"})

    assert (answer.status_code, answer.json()["error"]["code"]) == refusal


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        pytest.param({"max_tokens": 101}, (400, "max_tokens_exceeded"), id="too many tokens"),
        pytest.param({"stream": True}, (403, "feature_not_available"), id="a stream"),
    ],
)
async def test_what_the_tier_lacks_is_refused(asked: dict[str, object], refusal: tuple[int, str]) -> None:
    async with running("tiers") as client:
        body = {"model": "mini", "prompt": "Hi", **asked}
        free = await client.post("/v1/completions", headers=bearer("bob-token"), json=body)
        premium = await client.post("/v1/completions", headers=bearer("alice-token"), json=body)

    assert (free.status_code, free.json()["error"]["code"]) == refusal
    assert premium.json()["model"] == "small"


async def test_groups_can_be_looked_up() -> None:
    async with running("tiers") as client:
        found = await client.post(
            "/v1/tiers/lookup", headers=bearer("bob-token"), json={"groups": ["everyone", "researchers"]}
        )

    assert found.json()["tier"] == "premium"
