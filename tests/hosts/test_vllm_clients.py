"""What the users of a vLLM with MaaSMiddleware in it see, by the SDKs and by HTTP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest

from ..deployments import bearer
from .vllm_running import ADA, CHAT, FAY, MIDDLEWARE, OTTO, QUESTION, TINA, VLLM, cluster, vllm

pytestmark = pytest.mark.timeout(60)
_GUIDED = """
TOKEN_RESPONSE=$(curl -sSk -H "Authorization: Bearer ${OC_TOKEN}" -H "Content-Type: application/json" \
  -X POST -d '{"expiration": "15m"}' "${MAAS_API_URL}/maas-api/v1/tokens")
ACCESS_TOKEN=$(echo $TOKEN_RESPONSE | jq -r .token)
MODELS=$(curl -s "${MAAS_API_URL}/v1/models" -H "Authorization: Bearer ${ACCESS_TOKEN}")
MODEL_URL=$(echo $MODELS | jq -r '.data[0].url')
MODEL_NAME=$(echo $MODELS | jq -r '.data[0].id')
curl -sSk -H "Authorization: Bearer ${ACCESS_TOKEN}" -H "Content-Type: application/json" \
  -d "{\\"model\\": \\"${MODEL_NAME}\\", \\"messages\\": [{\\"role\\": \\"user\\", \\"content\\": \\"Hello\\"}]}" \
  "${MODEL_URL}/v1/chat/completions"
"""


@pytest.fixture(scope="module")
def server() -> Iterator[VLLM]:
    with cluster() as environ, vllm(*MIDDLEWARE, "--lora-modules", "poet=/adapters/poet", **environ) as running:
        yield running


@pytest.fixture(scope="module")
def token(server: VLLM) -> str:
    return server.mint()


@pytest.fixture
def client(server: VLLM, token: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=token, max_retries=0, timeout=10) as sdk:
        yield sdk


def test_login_mints_a_token_as_the_guide_says(server: VLLM) -> None:
    answer = server.http.post("/maas-api/v1/tokens", headers=bearer(FAY), json={"expiration": "15m"})

    assert answer.status_code == 201
    assert answer.json()["expiration"] == "15m0s"
    assert answer.json()["token"].count(".") == 2


@pytest.mark.parametrize("login", [pytest.param(None, id="access-token"), pytest.param(FAY, id="login")])
def test_models_are_listed_with_the_guides_fields_and_without_paths(
    server: VLLM, token: str, login: str | None
) -> None:
    listed = server.http.get("/v1/models", headers=bearer(login or token)).json()

    base, adapter = listed["data"]
    assert (listed["object"], base["id"], adapter["id"]) == ("list", "tiny", "poet")
    assert base["object"] == "model"
    assert base["url"] == f"{server.url}/v1/chat/completions"
    assert base["tier"] == "crew"
    assert {"name", "created", "owned_by", "ready"} <= base.keys()
    assert base["max_model_len"] == 32768
    assert adapter["parent"] == "tiny"
    assert "/adapters" not in json.dumps(listed)
    assert all({"root", "permission"}.isdisjoint(model) for model in listed["data"])


def test_models_are_listed_by_the_sdk(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "poet"]
    assert client.models.retrieve("poet").id == "poet"


def test_guides_commands_work_as_pasted_although_they_double_the_path(server: VLLM) -> None:
    environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", "OC_TOKEN": FAY, "MAAS_API_URL": server.url}

    ran = subprocess.run(["bash", "-c", _GUIDED], env=environ, capture_output=True, text=True, timeout=20)

    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["choices"][0]["message"]["content"].startswith("Hello!")


def test_answer_tells_usage_and_limits(server: VLLM, token: str) -> None:
    answer = server.ask(token)

    usage = answer.json()["usage"]
    assert answer.headers["x-odhu-usage-total-tokens"] == str(usage["total_tokens"])
    assert answer.headers["x-odhu-usage-input-tokens"] == str(usage["prompt_tokens"])
    assert answer.headers["x-ratelimit-limit-requests"] == "1000"
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_what_the_model_reports_is_charged(server: VLLM) -> None:
    token = server.mint(OTTO)
    before = server.used(token)

    total = server.ask(token).json()["usage"]["total_tokens"]

    after = server.used(token)
    assert (after[0] - before[0], after[1] - before[1]) == (1, total)


def test_limit_of_a_small_tier_is_429_for_the_sdk(server: VLLM) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.mint(TINA), max_retries=0) as sdk:
        sdk.chat.completions.create(**QUESTION)  # type: ignore[call-overload]
        with pytest.raises(openai.RateLimitError) as refused:
            sdk.chat.completions.create(**QUESTION)  # type: ignore[call-overload]

    assert refused.value.code == "rate_limit_exceeded"
    assert "retry-after" in refused.value.response.headers
    assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_stream_is_what_an_untouched_vllm_sends_and_is_charged(server: VLLM, client: openai.OpenAI, token: str) -> None:
    before = server.used(token)

    chunks = list(client.chat.completions.create(**QUESTION, stream=True))  # type: ignore[call-overload]

    content = [chunk.choices[0].delta.content for chunk in chunks]
    assert "".join(content).startswith("Hello!")
    assert all(chunk.usage is None for chunk in chunks)
    assert server.used(token)[1] - before[1] >= len(content) - 2


def test_stream_tells_its_usage_where_that_is_asked_for(server: VLLM, client: openai.OpenAI, token: str) -> None:
    before = server.used(token)

    *chunks, last = client.chat.completions.create(  # type: ignore[call-overload]
        **QUESTION, stream=True, stream_options={"include_usage": True}
    )

    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert server.used(token)[1] - before[1] == last.usage.total_tokens


def test_bytes_of_a_stream_end_as_vllms(server: VLLM, token: str) -> None:
    answer = server.ask(token, stream=True)

    events = answer.text.split("\n\n")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[-3].removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"


def test_messages_are_for_the_sdk_of_anthropic(server: VLLM, token: str) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key=token, max_retries=0) as sdk:
        asked = {"model": "tiny", "max_tokens": 20, "messages": QUESTION["messages"]}
        message = sdk.messages.create(**asked)  # type: ignore[call-overload]
        with sdk.messages.stream(**asked) as stream:  # type: ignore[arg-type]
            streamed = stream.get_final_message()
        counted = sdk.messages.count_tokens(model="tiny", messages=asked["messages"])  # type: ignore[arg-type]

    assert [block.text for block in message.content] == [block.text for block in streamed.content]  # type: ignore[union-attr]
    assert message.usage.output_tokens == streamed.usage.output_tokens > 0
    assert counted.input_tokens > 0


def test_errors_of_messages_are_anthropics(server: VLLM) -> None:
    asked = {"model": "tiny", "max_tokens": 5, "messages": QUESTION["messages"]}

    answer = server.http.post("/v1/messages", json=asked, headers={"x-api-key": "nonsense"})

    error = {"type": "authentication_error", "message": "Invalid authentication token"}
    assert answer.status_code == 401
    assert answer.json() == {
        "type": "error",
        "error": {**error, "details": {"reason": "unknown"}},
        "request_id": answer.headers["request-id"],
    }


TEXTS = {"model": "tiny", "input": ["one two", "three"]}
SERVED = [
    pytest.param(CHAT, QUESTION, id="chat"),
    pytest.param("/v1/completions", {"model": "tiny", "prompt": "Once upon"}, id="completions"),
    pytest.param("/v1/responses", {"model": "tiny", "input": "Hello"}, id="responses"),
    pytest.param("/v1/messages", {**QUESTION, "max_tokens": 5}, id="messages"),
    pytest.param("/v1/embeddings", TEXTS, id="embeddings"),
    pytest.param("/pooling", TEXTS, id="pooling"),
    pytest.param("/classify", TEXTS, id="classify"),
    pytest.param("/v1/score", {"model": "tiny", "text_1": "one", "text_2": "two"}, id="v1-score"),
    pytest.param("/score", {"model": "tiny", "text_1": "one", "text_2": "two"}, id="score"),
    pytest.param("/rerank", {"model": "tiny", "query": "one", "documents": ["two"]}, id="rerank"),
    pytest.param("/v2/rerank", {"model": "tiny", "query": "one", "documents": ["two"]}, id="v2-rerank"),
    pytest.param("/invocations", QUESTION, id="invocations-chat"),
    pytest.param("/invocations", TEXTS, id="invocations-embeddings"),
]


@pytest.mark.parametrize(("path", "body"), SERVED)
def test_every_billable_route_is_served_and_charged(
    server: VLLM, token: str, path: str, body: dict[str, object]
) -> None:
    before = server.used(token)

    answer = server.http.post(path, json=body, headers=bearer(token))

    assert answer.status_code == 200, answer.text
    after = server.used(token)
    assert after[0] - before[0] == 1
    assert after[1] - before[1] == int(answer.headers["x-odhu-usage-total-tokens"]) > 0


def test_speech_is_transcribed_and_charged(server: VLLM, client: openai.OpenAI, token: str) -> None:
    before = server.used(token)

    client.audio.transcriptions.create(model="tiny", file=("a.wav", b"\0" * 48_000))
    translated = server.http.post(
        "/v1/audio/translations",
        data={"model": "tiny"},
        files={"file": ("a.wav", b"\0" * 48_000)},
        headers=bearer(token),
    )

    after = server.used(token)
    assert translated.status_code == 200
    assert after[0] - before[0] == 2
    assert after[1] > before[1]


def test_tokenizing_costs_a_request_and_no_tokens(server: VLLM, token: str) -> None:
    before = server.used(token)

    tokens = server.http.post("/tokenize", json={"model": "tiny", "prompt": "one two"}, headers=bearer(token)).json()
    asked = {"model": "tiny", "tokens": tokens["tokens"]}
    text = server.http.post("/detokenize", json=asked, headers=bearer(token)).json()

    assert tokens["count"] == 2
    assert len(text["prompt"].split()) == 2
    assert server.used(token) == (before[0] + 2, before[1])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param({**QUESTION, "model": "nope"}, 404, "model_not_found", id="unknown-model"),
        pytest.param({"model": "tiny"}, 400, "bad_request", id="no-messages"),
        pytest.param({**QUESTION, "stream_options": {"include_usage": True}}, 400, "bad_request", id="no-stream"),
    ],
)
def test_errors_of_vllm_come_in_the_envelope(
    server: VLLM, token: str, body: dict[str, object], status: int, code: str
) -> None:
    before = server.used(token)

    answer = server.http.post(CHAT, json=body, headers=bearer(token))

    error = answer.json()["error"]
    assert answer.status_code == status
    assert error.keys() >= {"message", "type", "param", "code"}
    assert isinstance(error["code"], str)
    assert error["type"] == "invalid_request_error"
    assert server.used(token)[1] == before[1]
    assert len(answer.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/v1/chat/completions/batch", "/docs", "/openapi.json", "/x"])
def test_what_the_table_does_not_serve_is_404_and_401_for_strangers(server: VLLM, token: str, path: str) -> None:
    known = server.http.get(path, headers=bearer(token))
    stranger = server.http.get(path)

    assert (known.status_code, known.json()["error"]["code"]) == (404, "not_found")
    assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/metricsfoo", "/metrics/foo", "/health/x", "/v1/models/../load"])
def test_neighbours_of_public_paths_are_not_public(server: VLLM, path: str) -> None:
    assert server.http.get(path).status_code == 401


@pytest.mark.parametrize(("path", "body"), [("/health", ""), ("/ping", ""), ("/version", '{"version":"0.33.0"}')])
def test_public_paths_are_vllms_own(server: VLLM, path: str, body: str) -> None:
    answer = server.http.get(path)

    assert (answer.status_code, answer.text) == (200, body)
    assert "x-request-id" not in answer.headers


def test_metrics_are_scraped_without_a_credential(server: VLLM) -> None:
    assert "http_requests_total" in server.http.get("/metrics").text


def test_ping_of_sagemaker_may_be_a_post(server: VLLM) -> None:
    assert server.http.post("/ping").status_code == 200


@pytest.mark.parametrize("known", [False, True])
def test_realtime_is_refused_before_a_websocket_is_open(server: VLLM, token: str, known: bool) -> None:
    handshake = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }

    answer = server.http.get("/v1/realtime", headers=handshake | (bearer(token) if known else {}))

    assert answer.status_code == (404 if known else 401)
    assert "error" in answer.json()
    assert server.metrics()["vllm:websocket_connections_total"] == 0


def test_refusals_do_not_reach_vllm(server: VLLM) -> None:
    before = server.metrics()

    answers = [server.http.post(CHAT, json=QUESTION), server.http.get("/load"), server.ask("nonsense")]

    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert server.metrics()['http_requests_total{status="2xx"}'] == before['http_requests_total{status="2xx"}'] + 1


def test_a_revoked_token_is_refused_at_once(server: VLLM) -> None:
    login = OTTO
    token = server.mint(login)

    revoked = server.http.delete("/maas-api/v1/tokens", headers=bearer(login))
    answer = server.ask(token)

    assert revoked.status_code == 204
    assert answer.status_code == 401
    assert answer.json()["error"]["details"] == {"reason": "revoked"}


ADMINISTRATIVE = [
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/is_scaling_elastic_ep"),
    ("GET", "/load"),
    ("GET", "/kv_event_sources"),
    ("POST", "/sleep"),
    ("GET", "/server_info"),
]


@pytest.mark.parametrize(("method", "path"), ADMINISTRATIVE)
def test_administrative_routes_are_for_administrators(server: VLLM, token: str, method: str, path: str) -> None:
    token_of_an_administrator = server.mint(ADA)

    statuses = [
        server.http.request(method, path, headers=headers).status_code
        for headers in ({}, bearer("nonsense"), bearer(token), bearer(token_of_an_administrator), bearer(FAY))
    ]

    assert statuses == [401, 401, 403, 403, 403]


def test_an_administrator_loads_an_adapter_which_users_then_ask(server: VLLM, token: str) -> None:
    adapter = {"lora_name": "bard", "lora_path": "/adapters/bard"}

    loaded = server.http.post("/v1/load_lora_adapter", json=adapter, headers=bearer(ADA))
    answer = server.ask(token, model="bard")
    listed = server.http.get("/v1/models", headers=bearer(token)).json()["data"]
    unloaded = server.http.post("/v1/unload_lora_adapter", json=adapter, headers=bearer(ADA))
    gone = server.ask(token, model="bard")

    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'bard' added successfully.")
    assert answer.json()["model"] == "bard"
    assert [model["id"] for model in listed] == ["tiny", "poet", "bard"]
    assert unloaded.status_code == 200
    assert gone.status_code == 404


def test_administrative_answers_are_vllms_own(server: VLLM) -> None:
    answers = [server.http.request(method, path, headers=bearer(ADA)) for method, path in ADMINISTRATIVE[2:6]]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 200]
    assert answers[2].json() == {"server_load": 0}


def test_an_adapter_is_a_model_of_its_own(server: VLLM, token: str) -> None:
    assert server.ask(token, model="poet").json()["model"] == "poet"


def test_head_tells_the_quota_and_reaches_nobody(server: VLLM, token: str) -> None:
    before = server.used(token)

    answer = httpx.head(f"{server.url}{CHAT}", headers=bearer(token))

    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
    assert server.used(token) == before
