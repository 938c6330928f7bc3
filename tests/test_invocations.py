"""`/invocations`, as SageMaker's clients ask it, in a gateway and in an app that it is mounted in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from maas_middleware import MaaSMiddleware, load_settings
from maas_middleware.testing.cluster import StandInCluster
from maas_middleware.testing.model import SimulatedModel

from .deployments import UNTHROTTLED, USERS, bearer, chat, deployed
from .servers import serving

MESSAGES = chat()["messages"]
TIER = {
    "name": "free",
    "groups": ["system:authenticated"],
    "limits": {"requests": "50/minute", "tokens": "5000/minute"},
}
ONE_MODEL = [{"id": "simulator", "tiers": "all"}]


@dataclass
class Site:
    """An app that the service is mounted in, and who asks it."""

    model: SimulatedModel
    client: httpx.AsyncClient

    async def invoke(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/invocations", json=fields)

    @property
    def reached(self) -> list[str]:
        """The paths that reached the host."""
        return [seen.path for seen in self.model.requests]

    @property
    def body(self) -> dict[str, Any]:
        """The last that reached it."""
        body = json.loads(self.model.requests[-1].body)
        assert isinstance(body, dict)
        return body


@asynccontextmanager
async def site(*, root: str = "", tier: dict[str, Any] | None = None, **overrides: Any) -> AsyncIterator[Site]:
    """A host with an access token for it."""
    model = SimulatedModel("simulator")
    async with serving(StandInCluster(USERS)) as cluster:
        overrides = {"throttles": UNTHROTTLED, "tiers": [{**TIER, **(tier or {})}], **overrides}
        settings = load_settings({"MAAS_OPENSHIFT_API_URL": cluster}, config=None, **overrides)
        host: ASGIApp = MaaSMiddleware(model, settings=settings)
        async with serving(host, lifespan="on") as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            minted = await client.post("/v1/tokens", headers=bearer("sha256~free"))
            client.headers["authorization"] = f"Bearer {minted.json()['token']}"
            yield Site(model, client)


def charged(answer: httpx.Response) -> int:
    return int(answer.headers["x-odhu-usage-total-tokens"])


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        pytest.param("/v1/chat/completions", {"messages": MESSAGES}, id="chat"),
        pytest.param("/v1/completions", {"prompt": "Once upon a time"}, id="completions"),
        pytest.param("/v1/embeddings", {"input": "Once upon a time"}, id="embeddings"),
        pytest.param("/rerank", {"query": "What?", "documents": ["this", "that"]}, id="rerank"),
        pytest.param("/score", {"text_1": "What?", "text_2": ["this", "that"]}, id="score"),
    ],
)
async def test_answer_and_its_cost_are_those_of_the_endpoint_that_the_fields_tell_of(
    path: str, fields: dict[str, Any]
) -> None:
    async with site() as host:
        direct = await host.client.post(path, json={"model": "simulator", **fields})

        invoked = await host.invoke(model="simulator", **fields)

        assert invoked.status_code == direct.status_code == 200
        assert invoked.json().keys() == direct.json().keys()
        assert invoked.json()["usage"] == direct.json()["usage"]
        assert charged(invoked) == charged(direct) == direct.json()["usage"]["total_tokens"]
        assert int(invoked.headers["x-ratelimit-remaining-tokens"]) < int(
            direct.headers["x-ratelimit-remaining-tokens"]
        )
        assert host.reached == [path, path]


async def test_stream_tells_its_usage_to_the_ledger_and_only_to_a_client_that_asks() -> None:
    question = {"model": "simulator", "messages": MESSAGES, "stream": True}
    async with site() as host:
        plain = await host.invoke(**question)
        asked = await host.invoke(**question, stream_options={"include_usage": True})
        left = await host.client.head("/invocations")

        assert plain.headers["content-type"] == asked.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert plain.text.endswith("data: [DONE]\n\n")
        assert '"usage"' not in plain.text
        used = json.loads(asked.text.split("\n\n")[-3].removeprefix("data: "))["usage"]["total_tokens"]
        assert int(left.headers["x-ratelimit-remaining-tokens"]) == 5000 - 2 * used
        assert host.body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("feature", "fields"),
    [
        pytest.param("embeddings", {"input": "a"}, id="embeddings"),
        pytest.param("rerank", {"query": "a", "documents": ["b"]}, id="rerank"),
        pytest.param("rerank", {"queries": "a", "documents": ["b"]}, id="score"),
        pytest.param("pooling", {"data": "a"}, id="pooling"),
        pytest.param("streaming", {"prompt": "a", "stream": True}, id="streaming"),
    ],
)
async def test_feature_that_the_tier_lacks_is_not_to_be_had_by_invoking_it(
    feature: str, fields: dict[str, Any]
) -> None:
    async with site(tier={"features": ["tools"]}) as host:
        refused = await host.invoke(model="simulator", **fields)
        served = await host.invoke(model="simulator", messages=MESSAGES)

        assert code_of(refused) == (403, "feature_not_available")
        assert refused.json()["error"]["details"] == {"feature": feature, "tier": "free"}
        assert served.status_code == 200
        assert host.reached == ["/v1/chat/completions"]


@pytest.mark.parametrize(
    "fields",
    [pytest.param({"messages": MESSAGES}, id="chat"), pytest.param({"prompt": "a", "n": 2}, id="completions")],
)
async def test_cap_of_the_tier_holds(fields: dict[str, Any]) -> None:
    async with site(tier={"max_tokens_per_request": 10}) as host:
        within = await host.invoke(model="simulator", max_completion_tokens=5, **fields)
        over = await host.invoke(model="simulator", max_tokens=11, **fields)

        assert within.status_code == 200
        assert code_of(over) == (400, "max_tokens_exceeded")
        assert len(host.reached) == 1


async def test_cap_that_is_not_named_is_put_into_the_field_of_the_dialect() -> None:
    models = [{"id": "simulator", "tiers": "all", "context_length": 8192}]
    async with site(tier={"max_tokens_per_request": 10}, models=models) as host:
        await host.invoke(model="simulator", prompt="a")
        await host.invoke(model="simulator", input="a")

        bodies = [json.loads(seen.body) for seen in host.model.requests]
        assert [body.get("max_tokens") for body in bodies] == [10, None]


@pytest.mark.parametrize(
    "header", ["x-amzn-sagemaker-adapter-identifier", "x-amzn-sagemaker-session-id", "x-amzn-sagemaker-adapter-alias"]
)
async def test_header_of_sagemaker_does_not_choose_another_model(header: str) -> None:
    async with site() as host:
        answer = await host.client.post(
            "/invocations", json={"model": "simulator", "messages": MESSAGES}, headers={header: "another-adapter"}
        )

        assert (answer.status_code, answer.json()["model"]) == (200, "simulator")
        assert (host.reached, host.body["model"]) == (["/v1/chat/completions"], "simulator")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        pytest.param({"model": "simulator"}, 400, "missing_required_parameter", id="nothing-asked"),
        pytest.param({"model": "simulator", "prompt": "a", "input": "b"}, 400, "ambiguous_request", id="ambiguous"),
        pytest.param({"prompt": "a"}, 400, "missing_required_parameter", id="no-model"),
        pytest.param({"model": "simulator", "requestType": "CLOSE"}, 400, "missing_required_parameter", id="session"),
    ],
)
async def test_invocation_that_nobody_can_judge_reaches_nobody_and_costs_nothing(
    fields: dict[str, Any], status: int, code: str
) -> None:
    async with site() as host:
        answer = await host.invoke(**fields)

        assert code_of(answer) == (status, code)
        assert answer.headers["x-ratelimit-remaining-requests"] == "50"
        assert host.reached == []


async def test_body_that_is_no_json_object_is_refused() -> None:
    async with site() as host:
        listed = await host.client.post("/invocations", content=b'["a"]')
        octets = await host.client.post(
            "/invocations", content=b"\x93NUMPY", headers={"content-type": "application/x-npy"}
        )

        assert code_of(listed) == code_of(octets) == (400, "invalid_json")
        assert host.reached == []


async def test_request_without_a_model_is_for_the_only_one_of_the_catalogue() -> None:
    async with site(models=ONE_MODEL) as host:
        served = await host.invoke(messages=MESSAGES)
        elsewhere = await host.client.post("/v1/chat/completions", json={"messages": MESSAGES})
        unknown = await host.invoke(model="nobody", messages=MESSAGES)

        assert (served.status_code, host.body["model"]) == (200, "simulator")
        assert code_of(elsewhere) == (400, "missing_required_parameter")
        assert code_of(unknown) == (404, "model_not_found")


async def test_request_without_a_model_is_refused_where_there_are_several() -> None:
    async with site(models=[*ONE_MODEL, {"id": "other", "tiers": "all"}]) as host:
        answer = await host.invoke(messages=MESSAGES)

        assert code_of(answer) == (400, "missing_required_parameter")


async def test_only_model_is_still_for_its_tiers_alone() -> None:
    async with site(
        models=[{"id": "simulator", "tiers": ["nobody"]}], tiers=[TIER, {**TIER, "name": "nobody"}]
    ) as host:
        answer = await host.invoke(messages=MESSAGES)

        assert code_of(answer) == (403, "access_denied")
        assert host.reached == []


async def test_head_tells_the_limits_for_free_and_other_methods_are_refused() -> None:
    async with site() as host:
        head = await host.client.head("/invocations")
        get = await host.client.get("/invocations")

        assert (head.status_code, head.headers["x-ratelimit-remaining-requests"]) == (200, "50")
        assert (code_of(get), get.headers["allow"]) == ((405, "method_not_allowed"), "HEAD, POST")
        assert host.reached == []


async def test_gateway_asks_the_models_own_endpoint() -> None:
    async with deployed() as service:
        service.client.headers["authorization"] = f"Bearer {await service.mint('sha256~premium')}"

        named = await service.client.post("/invocations", json=chat("qwen3"))
        below = await service.client.post("/qwen3/invocations", json={"input": "Once upon a time"})
        stranger = await service.client.post("/invocations", json=chat("qwen3"), headers=bearer("nobody"))

        assert (named.status_code, named.json()["object"]) == (200, "chat.completion")
        assert (below.status_code, below.json()["data"][0]["object"]) == (200, "embedding")
        assert code_of(stranger) == (401, "invalid_api_key")
        assert [seen.path for seen in service.qwen3.requests] == ["/v1/chat/completions", "/v1/embeddings"]
