"""What a tier allows, what models are called and whom a proxy speaks for, over real sockets."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from maas_middleware import MaaSMiddleware, load_settings
from maas_middleware.testing import SimulatedModel

from .deployments import bearer, chat, deployed
from .servers import serving

GROUP = "system:authenticated"
LIMITS = {"requests": "100/minute", "tokens": "100000/minute"}


def tier(**more: Any) -> dict[str, Any]:
    return {"name": "free", "groups": [GROUP], "limits": LIMITS, **more}


async def test_feature_that_the_tier_lacks_is_refused_and_costs_nothing() -> None:
    async with deployed(tiers=[tier(features=["tools"])], qwen3_tiers=[]) as service:
        headers = bearer(await service.mint())
        refused = await service.client.post("/v1/chat/completions", headers=headers, json=chat(stream=True))
        unlisted = await service.client.post(
            "/v1/embeddings", headers=headers, json={"model": "simulator", "input": "x"}
        )
        allowed = await service.client.post("/v1/chat/completions", headers=headers, json=chat(tools=[{"type": "f"}]))

    assert refused.status_code == unlisted.status_code == 403
    assert refused.json()["error"] == {
        "message": "`streaming` is not available in your tier",
        "type": "permission_error",
        "param": None,
        "code": "feature_not_available",
        "details": {"feature": "streaming", "tier": "free"},
    }
    assert unlisted.json()["error"]["details"]["feature"] == "embeddings"
    assert allowed.status_code == 200
    assert allowed.headers["x-ratelimit-remaining-requests"] == "99"


async def test_tier_caps_what_a_request_generates() -> None:
    tiers = [tier(max_tokens_per_request=5)]
    async with serving(model := SimulatedModel()) as upstream:
        models = [{"id": "simulator", "tiers": "all", "upstreams": [upstream], "context_length": 8192}]
        async with deployed(tiers=tiers, models=models) as service:
            headers = bearer(await service.mint())
            over = await service.client.post("/v1/chat/completions", headers=headers, json=chat(max_tokens=6))
            absent = await service.client.post("/v1/chat/completions", headers=headers, json=chat())
            messages = await service.client.post("/v1/messages", headers=headers, json=chat(max_tokens=6))

    assert over.status_code == 400
    assert over.json()["error"]["code"] == "max_tokens_exceeded"
    assert over.json()["error"]["details"] == {"maximum": 5}
    assert absent.json()["usage"]["completion_tokens"] == 5
    assert len(model.requests) == 1
    assert messages.json()["error"]["type"] == "invalid_request_error"


async def test_model_answers_to_its_aliases_and_by_its_id() -> None:
    async with serving(model := SimulatedModel("/models/secret")) as upstream:
        entry = {"id": "public", "aliases": ["gpt-4"], "tiers": "all", "upstreams": [upstream]}
        async with deployed(models=[{**entry, "upstream_model": "/models/secret"}]) as service:
            headers = bearer(await service.mint("sha256~premium"))
            whole = await service.client.post("/v1/chat/completions", headers=headers, json=chat("gpt-4"))
            stream = await service.client.post("/v1/chat/completions", headers=headers, json=chat("gpt-4", stream=True))
            below = await service.client.post("/public/v1/chat/completions", headers=headers, json=chat("gpt-4"))
            row = await service.client.get("/v1/models/gpt-4", headers=headers)

    assert whole.json()["model"] == "public"
    assert int(whole.headers["content-length"]) == len(whole.content)
    assert '"model":"public"' in stream.text
    assert '"/models/secret"' not in stream.text + whole.text
    assert below.status_code == 200
    assert row.json()["id"] == "public"
    assert all(b'"/models/secret"' in request.body for request in model.requests)


async def test_login_may_look_up_tiers_and_an_access_token_may_not() -> None:
    async with deployed() as service:
        asked = {"groups": ["premium-group"]}
        token = await service.mint()
        found = await service.client.post("/v1/tiers/lookup", headers=bearer("sha256~free"), json=asked)
        below = await service.client.post("/maas-api/v1/tiers/lookup", headers=bearer("sha256~free"), json=asked)
        nobody = await service.client.post("/v1/tiers/lookup", headers=bearer("sha256~free"), json={"groups": ["x"]})
        minted = await service.client.post("/v1/tiers/lookup", headers=bearer(token), json=asked)

    assert found.json() == below.json() == {"tier": "premium", "displayName": "Premium Tier"}
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (404, "not_found")
    assert (minted.status_code, minted.json()["error"]["code"]) == (403, "access_denied")


@pytest.mark.parametrize(("setting", "there"), [(True, True), (False, False)])
async def test_fields_of_the_ietf_draft_are_there_where_they_are_wanted(setting: bool, there: bool) -> None:
    async with deployed(ietf_rate_limit_headers=setting) as service:
        headers = bearer(await service.mint())
        answers = [
            await service.client.head("/v1/chat/completions", headers=headers),
            await service.client.post("/v1/chat/completions", headers=headers, json=chat()),
            await service.client.post("/v1/chat/completions", headers=headers, json=chat("none")),
        ]
        while answers[-1].status_code != 429:
            answers.append(await service.client.post("/v1/chat/completions", headers=headers, json=chat()))

    assert all(("ratelimit" in answer.headers) is there for answer in answers)
    if there:
        assert answers[0].headers["ratelimit-policy"] == '"requests";q=5;w=60,"tokens";q=100;w=60;qu="tokens"'
        assert answers[0].headers["ratelimit"] == '"requests";r=5,"tokens";r=100'
        assert answers[1].headers["ratelimit"].startswith('"requests";r=4;t=')


@pytest.mark.parametrize(
    ("trusted", "base"),
    [
        pytest.param(["127.0.0.0/8"], "https://maas.example.com", id="trusted"),
        pytest.param(["10.0.0.0/8"], None, id="another"),
        pytest.param([], None, id="nobody"),
    ],
)
async def test_models_are_listed_as_a_trusted_proxy_serves_them(trusted: list[str], base: str | None) -> None:
    async with deployed(trusted_proxies=trusted) as service:
        told = {"x-forwarded-proto": "https", "x-forwarded-host": "maas.example.com"}
        listed = await service.client.get("/v1/models", headers={**bearer("sha256~free"), **told})

    assert listed.json()["data"][0]["url"] == f"{base or service.url}/simulator/v1/chat/completions"


async def test_logins_can_be_reviewed_with_nothing_but_themselves() -> None:
    async with deployed(openshift={"api_url": "http://127.0.0.1:9"}) as unreachable:
        down = await unreachable.client.post("/v1/tokens", headers=bearer("sha256~free"))
    async with deployed() as reviewed:
        cluster = reviewed.cluster
        async with serving(cluster) as api_url:
            config = load_settings({}, openshift={"api_url": api_url, "review": "users-self"})
            app = MaaSMiddleware(SimulatedModel(), settings=config)
            async with serving(app) as url, httpx.AsyncClient() as client:
                minted = await client.post(f"{url}/v1/tokens", headers=bearer("sha256~free"))
                unknown = await client.post(f"{url}/v1/tokens", headers=bearer("sha256~wrong"))

    assert (down.status_code, minted.status_code, unknown.status_code) == (503, 201, 401)
    assert cluster.reviews == []


async def test_administrative_routes_are_not_for_users_and_refused_ones_not_for_anybody() -> None:
    async with deployed() as service:
        headers = bearer(await service.mint())
        loading = await service.client.post("/v1/load_lora_adapter", headers=headers, json={"lora_name": "x"})
        below = await service.client.post("/simulator/v1/load_lora_adapter", headers=headers, json={})
        others = await service.client.get("/v1/responses/resp_1", headers=headers)
        cancelled = await service.client.post("/v1/responses/resp_1/cancel", headers=headers)
        stranger = await service.client.post("/v1/load_lora_adapter")

    assert [answer.status_code for answer in (loading, below, others, cancelled, stranger)] == [403, 403, 404, 404, 401]
    assert service.simulator.requests == []


async def test_unmetered_endpoints_cost_a_request_and_no_tokens() -> None:
    async with deployed() as service:
        headers = bearer(await service.mint())
        count = await service.client.post("/v1/messages/count_tokens", headers=headers, json=chat())
        tokens = await service.client.post("/tokenize", headers=headers, json={"model": "simulator", "prompt": "a b"})
        left = await service.client.head("/tokenize", headers=headers)

    assert count.json() == {"input_tokens": 4}
    assert tokens.json()["count"] == 2
    assert left.headers["x-ratelimit-remaining-requests"] == "3"
    assert left.headers["x-ratelimit-remaining-tokens"] == "100"
