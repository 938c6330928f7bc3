from __future__ import annotations

import openai
import pytest

from tests.deployments import bearer

from .apps import App

EMBEDDINGS = "/v1/embeddings"
ORIGIN = {"origin": "https://pages.example"}


@pytest.mark.parametrize("prefix", ["", "/srv"])
async def test_login_mints_a_token_that_lists_and_uses_the_model(infinity: App, prefix: str) -> None:
    async with infinity.user(prefix=prefix) as user:
        models = await user.models.list()
        raw = await user.embeddings.with_raw_response.create(model="debug", input=["Hello", "there!"])

    answer = raw.parse()
    assert [model.id for model in models.data] == ["debug"]
    assert [row.embedding[0] for row in answer.data] == [5.0, 6.0]  # it embeds the length
    assert answer.usage.total_tokens == 11
    assert raw.headers["x-odhu-usage-total-tokens"] == "11"
    assert raw.headers["x-ratelimit-remaining-tokens"] == "99989"


async def test_requests_over_the_limit_of_the_tier_are_refused(infinity: App) -> None:
    async with infinity.user("tier-free-users") as user:
        for _ in range(5):
            await user.embeddings.create(model="debug", input="Hello")
        with pytest.raises(openai.RateLimitError) as refused:
            await user.embeddings.create(model="debug", input="Hello")

    assert refused.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("route", ["rerank", "classify"])
async def test_other_routes_of_the_model_are_served_and_their_refusals_translated(infinity: App, route: str) -> None:
    token = await infinity.token()
    body = {"model": "debug", "query": "a", "documents": ["a"], "input": ["a"]}

    answer = await infinity.http.post(f"/v1/{route}", headers=bearer(token), json=body)

    assert answer.status_code == 400
    assert f"does not support `{route}`" in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "invalid_request"


async def test_bad_request_is_told_in_the_envelope(infinity: App) -> None:
    async with infinity.user() as user:
        with pytest.raises(openai.UnprocessableEntityError) as invalid:
            await user.embeddings.create(model="debug", input=[])

    assert invalid.value.type == "invalid_request_error"
    assert invalid.value.code == "unprocessable_entity"


@pytest.mark.parametrize("credential", ["nonsense", "sha256~0"], ids=["wrong", "a-login"])
async def test_other_credentials_than_access_tokens_are_refused(infinity: App, credential: str) -> None:
    await infinity.token()

    answer = await infinity.http.post(EMBEDDINGS, headers=bearer(credential), json={"model": "debug", "input": "a"})

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/", "/v1/docs", "/v1/openapi.json", "/docs", "/srv/v1/docs"])
async def test_other_routes_of_the_host_are_closed(infinity: App, path: str) -> None:
    token = await infinity.token()

    stranger = await infinity.http.get(path)
    known = await infinity.http.get(path, headers=bearer(token))

    assert (stranger.status_code, known.status_code) == (401, 404)


async def test_deprecated_routes_that_bypass_the_meter_are_closed(infinity: App) -> None:
    token = await infinity.token()

    answer = await infinity.http.post("/v1/embeddings_image", headers=bearer(token), json={"model": "debug"})

    assert answer.status_code == 404


async def test_health_and_metrics_are_those_of_the_host(infinity: App) -> None:
    health = await infinity.http.get("/health")
    metrics = await infinity.http.get("/metrics")

    assert "unix" in health.json()
    assert "http_requests_total" in metrics.text


async def test_key_of_the_host_is_given_to_it(infinity_with_options: App) -> None:
    async with infinity_with_options.user() as user:
        answer = await user.embeddings.create(model="debug", input="Hello")

    assert answer.usage.total_tokens == 5


async def test_models_that_are_named_are_those_of_the_tier(infinity_with_options: App) -> None:
    async with infinity_with_options.user() as user:
        mine = await user.models.list()
        with pytest.raises(openai.NotFoundError) as unknown:
            await user.embeddings.create(model="nope", input="Hello")
    async with infinity_with_options.user("tier-free-users") as other:
        theirs = await other.models.list()
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await other.embeddings.create(model="debug", input="Hello")

    assert ([model.id for model in mine.data], theirs.data) == (["debug"], [])
    assert (unknown.value.code, refused.value.code) == ("model_not_found", "access_denied")


async def test_browser_asks_the_host_before_a_request(infinity_with_options: App) -> None:
    asking = {**ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}

    answer = await infinity_with_options.http.options(EMBEDDINGS, headers=asking)

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
