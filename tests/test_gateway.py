"""The gateway as its users meet it, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.types import Receive, Scope, Send

from maas_middleware import ConfigurationError, gateway, load_settings
from maas_middleware.requests import JSONRequest
from maas_middleware.testing import SimulatedModel, StandInCluster

from .deployments import USERS, Deployment, bearer, chat, deployed
from .servers import serving


@pytest.fixture
async def service() -> AsyncIterator[Deployment]:
    async with deployed() as service:
        yield service


async def test_control_routes_answer_at_the_root_and_below_maas_api(service: Deployment) -> None:
    for path in ("/v1/models", "/maas-api/v1/models", "/v1/models/"):
        response = await service.client.get(path, headers=bearer("sha256~free"))
        assert [model["id"] for model in response.json()["data"]] == ["simulator"], path


async def test_health_is_for_everyone(service: Deployment) -> None:
    for path in ("/health", "/healthz", "/maas-api/health"):
        assert (await service.client.get(path)).json() == {"status": "healthy"}
    for path in ("/ready", "/maas-api/ready"):
        assert (await service.client.get(path)).json() == {"status": "ready"}


async def test_public_keys_verify_the_tokens(service: Deployment) -> None:
    (key,) = (await service.client.get("/.well-known/jwks.json")).json()["keys"]

    assert key["alg"] == "ES256"
    assert "d" not in key


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/keys", "/v1/files", "/maas-api/v1/chat/completions", "//v1/models", "/V1/models"]
)
async def test_unknown_paths_reveal_nothing_to_strangers(service: Deployment, path: str) -> None:
    stranger = await service.client.post(f"{service.url}{path}", json=chat())
    known = await service.client.post(f"{service.url}{path}", json=chat(), headers=bearer("sha256~free"))

    assert stranger.status_code == 401
    assert known.status_code == 404
    assert known.json()["error"]["code"] == "not_found"


async def test_all_forms_of_a_model_path_reach_the_canonical_one(service: Deployment) -> None:
    token = await service.mint("sha256~premium")
    forms = (
        "/v1/chat/completions",
        "/v1/chat/completions/",
        "/qwen3/v1/chat/completions",
        "/qwen3/v1/chat/completions/v1/chat/completions",
        "/%71wen3/v1/chat/completions",
    )

    statuses = [
        (await service.client.post(form, json=chat("qwen3"), headers=bearer(token))).status_code for form in forms
    ]

    assert statuses == [200] * len(forms)
    assert {request.path for request in service.qwen3.requests} == {"/v1/chat/completions"}


async def test_model_in_the_path_needs_none_in_the_body(service: Deployment) -> None:
    token = await service.mint()
    body = {key: value for key, value in chat().items() if key != "model"}

    without = await service.client.post("/simulator/v1/chat/completions", json=body, headers=bearer(token))
    other = await service.client.post("/simulator/v1/chat/completions", json=chat("qwen3"), headers=bearer(token))

    assert without.status_code == 200
    assert json.loads(service.simulator.requests[0].body)["model"] == "simulator"
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


async def test_models_below_a_model_are_that_one(service: Deployment) -> None:
    response = await service.client.get("/qwen3/v1/models", headers=bearer("sha256~premium"))
    refused = await service.client.get("/qwen3/v1/models", headers=bearer("sha256~free"))

    assert [model["id"] for model in response.json()["data"]] == ["qwen3"]
    assert refused.status_code == 403


JSON_PIECE = b"content-type: application/json\r\ncontent-length: 99\r\n\r\n{"
FORM_PIECE = b"content-type: multipart/form-data; boundary=x\r\ncontent-length: 99\r\n\r\n--x\r\n"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        pytest.param("/v1/chat/completions", JSON_PIECE, id="json"),
        pytest.param("/v1/audio/transcriptions", FORM_PIECE, id="form"),
    ],
)
async def test_body_has_to_come_in_the_time_that_is_configured(path: str, sent: bytes) -> None:
    received = b""

    async with deployed(proxy={"body_timeout": 0.1}) as service:
        request = f"POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {await service.mint()}\r\n"
        url = httpx.URL(service.url)
        assert url.port is not None
        async with await anyio.connect_tcp(url.host, url.port) as client:
            await client.send(request.encode() + sent)
            while b"request_timeout" not in received:
                received += await client.receive()

    assert received.startswith(b"HTTP/1.1 408 ")


async def test_head_shows_the_quota_and_consumes_nothing(service: Deployment) -> None:
    token = await service.mint()

    answers = [await service.client.head("/v1/chat/completions", headers=bearer(token)) for _ in range(7)]

    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-ratelimit-remaining-requests"] for answer in answers} == {"5"}
    assert {answer.headers["x-ratelimit-reset-requests"] for answer in answers} == {"0s"}


async def test_wrong_method_is_told_the_right_one(service: Deployment) -> None:
    response = await service.client.get("/v1/chat/completions", headers=bearer(await service.mint()))

    assert response.status_code == 405
    assert response.headers["allow"] == "HEAD, POST"
    assert response.json()["error"]["code"] == "method_not_allowed"


async def test_minted_token_cannot_mint_or_revoke(service: Deployment) -> None:
    token = await service.mint()

    answers = [
        await service.client.post("/v1/tokens", headers=bearer(token)),
        await service.client.delete("/v1/tokens", headers=bearer(token)),
        await service.client.delete("/v1/tokens/x", headers=bearer(token)),
    ]

    assert [answer.status_code for answer in answers] == [403] * 3


async def test_limits_are_the_users_own_over_all_tokens_and_models(service: Deployment) -> None:
    first, second, other = [await service.mint(login) for login in ("sha256~premium", "sha256~premium", "sha256~other")]

    await service.client.post("/v1/chat/completions", json=chat(), headers=bearer(first))
    await service.client.post("/v1/chat/completions", json=chat("qwen3"), headers=bearer(second))
    mine = await service.client.head("/v1/chat/completions", headers=bearer(first))
    theirs = await service.client.head("/v1/chat/completions", headers=bearer(other))

    assert mine.headers["x-ratelimit-remaining-requests"] == "18"
    assert theirs.headers["x-ratelimit-remaining-requests"] == "20"


async def test_upstream_never_sees_the_callers_credentials(service: Deployment) -> None:
    token = await service.mint()
    headers = {**bearer(token), "cookie": "session=1", "x-api-key": token, "x-maas-user": "root"}

    await service.client.post("/v1/chat/completions", json=chat(request_id="mine"), headers=headers)

    (seen,) = service.simulator.requests
    assert token not in str(seen)
    assert {name for name, _ in seen.headers} & {b"authorization", b"cookie", b"x-api-key", b"x-maas-user"} == set()
    assert b"request_id" not in seen.body


async def test_no_cluster_is_503_and_not_401(service: Deployment) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    service.cluster.failure = broken

    response = await service.client.post("/v1/tokens", headers=bearer("sha256~free"))

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "auth_unavailable"
    assert int(response.headers["retry-after"]) >= 1


async def test_inference_goes_on_while_the_cluster_is_down(service: Deployment) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body"})

    headers = bearer(await service.mint())
    service.cluster.failure = broken

    answer = await service.client.post("/v1/chat/completions", json=chat(), headers=headers)
    models = await service.client.get("/v1/models", headers=headers)
    login = await service.client.get("/v1/models", headers=bearer("sha256~premium"))

    assert (answer.status_code, models.status_code) == (200, 200)
    assert (login.status_code, login.json()["error"]["code"]) == (503, "auth_unavailable")


def test_needs_models_with_upstreams() -> None:
    with pytest.raises(ConfigurationError, match="models: the gateway needs at least one model"):
        gateway(load_settings({}))
    with pytest.raises(ConfigurationError, match=r"models\[0\].upstreams: the gateway needs one"):
        gateway(load_settings({}, models=[{"id": "m", "tiers": "all"}]))


def test_refuses_signing_keys_that_others_may_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text("{}")
    keys.chmod(0o644)

    with pytest.raises(ConfigurationError, match=r"tokens\.signing_keys_file: .*0600"):
        gateway(load_settings({"MAAS_TOKENS_SIGNING_KEYS_FILE": str(keys)}))


async def test_websockets_are_refused(service: Deployment) -> None:
    headers = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    headers |= {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}

    stranger = await service.client.get("/v1/realtime", headers=headers)
    known = await service.client.get("/v1/realtime", headers={**headers, **bearer(await service.mint())})

    assert stranger.status_code == 401
    assert known.status_code == 404


async def test_changed_tiers_apply_to_live_tokens(tmp_path: Path) -> None:
    tiers = tmp_path / "tiers.yaml"
    entry = "- {name: free, groups: [system:authenticated], limits: {requests: %s/minute, tokens: unlimited}}"
    tiers.write_text(entry % 5)
    async with deployed(tiers_file=str(tiers), qwen3_tiers=[]) as service:
        headers = bearer(await service.mint())

        before = await service.client.head("/v1/chat/completions", headers=headers)
        tiers.write_text(entry % 77)
        after = before
        while after.headers["x-ratelimit-limit-requests"] == "5":  # the test's deadline ends it
            after = await service.client.head("/v1/chat/completions", headers=headers)
        tiers.write_text("nonsense")
        ready = await service.client.get("/ready")
        while ready.json() == {"status": "ready"}:
            ready = await service.client.get("/ready")
        last = await service.client.head("/v1/chat/completions", headers=headers)

    assert before.headers["x-ratelimit-limit-requests"] == "5"
    assert after.headers["x-ratelimit-limit-requests"] == "77"
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "degraded": ["tiers"]})
    assert last.headers["x-ratelimit-limit-requests"] == "77"
    assert "x-ratelimit-limit-tokens" not in last.headers


async def test_client_that_leaves_mid_stream_is_charged_what_was_produced_and_the_upstream_is_closed(
    service: Deployment,
) -> None:
    headers = bearer(await service.mint())
    service.simulator.gate, service.simulator.hold_after = anyio.Event(), 4

    stream = service.client.stream("POST", "/v1/chat/completions", json=chat(stream=True), headers=headers)
    async with stream as answer:
        lines = answer.aiter_lines()
        while '"content":" simulator,"' not in await anext(lines):
            pass
    with anyio.fail_after(5):
        await service.simulator.requests[0].done.wait()
        remaining = "0"
        while remaining == "0":  # the reservation, until it is settled
            head = await service.client.head("/v1/chat/completions", headers=headers)
            remaining = head.headers["x-ratelimit-remaining-tokens"]

    prompt = JSONRequest.parse(service.simulator.requests[0].body).prompt_tokens
    assert service.simulator.requests[0].outcome == "cancelled"
    assert 100 - int(remaining) == prompt + 4
    assert head.headers["x-ratelimit-remaining-requests"] == "4"


async def test_parallel_requests_never_exceed_the_limit(service: Deployment) -> None:
    headers = bearer(await service.mint())
    statuses: list[int] = []

    async def call() -> None:
        response = await service.client.post("/v1/chat/completions", json=chat(max_tokens=1), headers=headers)
        statuses.append(response.status_code)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(call)

    assert statuses.count(200) == len(service.simulator.requests) <= 5
    assert set(statuses) <= {200, 429}


async def test_dead_upstream_costs_nothing(service: Deployment) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"<html>Traceback at 10.0.0.1"})

    headers = bearer(await service.mint())
    service.simulator.failure = broken

    answer = await service.client.post("/v1/chat/completions", json=chat(), headers=headers)
    head = await service.client.head("/v1/chat/completions", headers=headers)

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_error"
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "10.0.0.1" not in answer.text
    assert head.headers["x-ratelimit-remaining-requests"] == "5"
    assert head.headers["x-ratelimit-remaining-tokens"] == "100"


async def test_stream_that_outlives_the_shutdown_says_so_before_it_breaks_off() -> None:
    model, gate = SimulatedModel("simulator"), anyio.Event()
    model.gate, model.hold_after = gate, 2
    read, ended = b"", False
    async with (
        serving(StandInCluster(USERS)) as cluster_url,
        serving(model) as model_url,
        httpx.AsyncClient() as client,
    ):
        models = [{"id": "simulator", "tiers": "all", "upstreams": [model_url]}]
        settings = load_settings({"MAAS_OPENSHIFT_API_URL": cluster_url}, models=models)
        async with serving(gateway(settings)) as url:
            minted = await client.post(f"{url}/v1/tokens", headers=bearer("sha256~free"))
            headers = bearer(minted.json()["token"])
            request = client.build_request(
                "POST", f"{url}/v1/chat/completions", json=chat(stream=True), headers=headers
            )
            response = await client.send(request, stream=True)
        with suppress(httpx.RemoteProtocolError):
            async for piece in response.aiter_bytes():
                read += piece
            ended = True
        await response.aclose()
        gate.set()

    *_, last, _ = read.split(b"\n\n")
    assert not ended
    assert b'"content"' in read
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_unavailable"
