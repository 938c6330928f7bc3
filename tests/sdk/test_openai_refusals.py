"""Each refusal is the exception that the openai SDK has for it, in each family of calls, and costs nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import openai
import pytest

from .calls import MESSAGES, OPENAI_CALLS, QUESTION, RECORDING, chat
from .site import MAXIMUM_BODY_BYTES, Site, User, tampered

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

# one of each family: of JSON, streamed and not; numbered events; forms; media
KINDS = ("chat", "chat-stream", "responses-stream", "embeddings", "transcriptions", "speech")
NO_CREDENTIAL = {"Authorization": openai.Omit()}


async def refusal(call: Awaitable[object], status: int, code: str) -> openai.APIStatusError:
    """The exception that a call raises, after a look at what all of them have."""
    with pytest.raises(openai.APIStatusError) as caught:
        await call
    error = caught.value
    assert (error.status_code, error.code) == (status, code)
    assert error.type == {403: "permission_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
    assert error.request_id
    assert error.request_id == error.response.headers["x-request-id"]
    return error


def details(error: openai.APIStatusError) -> Any:
    assert isinstance(error.body, dict)
    return error.body["details"]


async def costs_nothing(user: User, error: openai.APIStatusError) -> None:
    assert error.response.headers["x-ratelimit-remaining-requests"] == "1000"
    assert await user.used() == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_no_credential(site: Site, kind: str) -> None:
    call = OPENAI_CALLS[kind](site.sdks.openai("none"), "simulator", extra_headers=NO_CREDENTIAL)

    error = await refusal(call, 401, "invalid_api_key")

    assert isinstance(error, openai.AuthenticationError)
    assert "Invalid authentication token" in error.message
    assert details(error) == {"reason": "missing"}
    assert error.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("kind", KINDS)
async def test_expired_token(site: Site, kind: str) -> None:
    client = site.sdks.openai(site.expired_token())

    error = await refusal(OPENAI_CALLS[kind](client, "simulator"), 401, "invalid_api_key")

    assert isinstance(error, openai.AuthenticationError)
    assert details(error) == {"reason": "expired"}


@pytest.mark.parametrize("kind", KINDS)
async def test_tampered_token(site: Site, kind: str) -> None:
    client = site.sdks.openai(tampered((await site.user()).token))

    error = await refusal(OPENAI_CALLS[kind](client, "simulator"), 401, "invalid_api_key")

    assert isinstance(error, openai.AuthenticationError)
    assert details(error) == {"reason": "malformed"}


@pytest.mark.parametrize("kind", KINDS)
async def test_login_is_no_api_key_and_the_cluster_is_not_asked(site: Site, kind: str) -> None:
    await site.user()
    login, reviews = next(iter(site.cluster.users)), len(site.cluster.reviews)

    error = await refusal(OPENAI_CALLS[kind](site.sdks.openai(login), "simulator"), 401, "invalid_api_key")

    assert details(error) == {"reason": "unknown"}
    assert len(site.cluster.reviews) == reviews


@pytest.mark.parametrize("reason", ["missing", "expired", "malformed"])
async def test_models_are_not_for_strangers(site: Site, reason: str) -> None:
    tokens = {"missing": "none", "expired": site.expired_token(), "malformed": tampered((await site.user()).token)}
    models, more = site.sdks.openai(tokens[reason]).models, NO_CREDENTIAL if reason == "missing" else {}

    listing = await refusal(models.list(extra_headers=more), 401, "invalid_api_key")
    existing = await refusal(models.retrieve("simulator", extra_headers=more), 401, "invalid_api_key")
    unknown = await refusal(models.retrieve("gpt-7", extra_headers=more), 401, "invalid_api_key")

    assert [details(error) for error in (listing, existing, unknown)] == [{"reason": reason}] * 3


@pytest.mark.parametrize("path", ["", "/qwen3"])
@pytest.mark.parametrize("kind", KINDS)
async def test_model_of_another_tier(site: Site, kind: str, path: str) -> None:
    user = await site.user("capped")

    error = await refusal(OPENAI_CALLS[kind](user.openai(path), "qwen3"), 403, "access_denied")

    assert isinstance(error, openai.PermissionDeniedError)
    assert "Insufficient permissions for this model" in error.message
    await costs_nothing(user, error)


async def test_one_model_of_another_tier(site: Site) -> None:
    client = (await site.user("capped")).openai()

    error = await refusal(client.models.retrieve("qwen3"), 403, "access_denied")

    assert isinstance(error, openai.PermissionDeniedError)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
TOOL = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("kind", "more", "feature"),
    [
        ("chat-stream", {}, "streaming"),
        ("completions-stream", {}, "streaming"),
        ("chat", {"tools": [TOOL]}, "tools"),
        ("chat", {"messages": [{"role": "user", "content": [IMAGE]}]}, "vision"),
        ("chat", {"messages": [{"role": "user", "content": [SOUND]}]}, "audio"),
        ("responses", {}, "responses"),
        ("responses-stream", {}, "responses"),
        ("embeddings", {}, "embeddings"),
        ("transcriptions", {}, "audio"),
        ("transcriptions-stream", {}, "audio"),
        ("translations", {}, "audio"),
        ("speech", {}, "audio"),
        ("images", {}, "images"),
    ],
)
async def test_feature_that_the_tier_lacks(site: Site, kind: str, more: dict[str, Any], feature: str) -> None:
    user = await site.user("basic")

    error = await refusal(OPENAI_CALLS[kind](user.openai(), "simulator", **more), 403, "feature_not_available")

    assert isinstance(error, openai.PermissionDeniedError)
    assert f"`{feature}` is not available in your tier" in error.message
    assert details(error) == {"feature": feature, "tier": "basic"}
    await costs_nothing(user, error)


@pytest.mark.parametrize("kind", KINDS)
async def test_unknown_model(site: Site, kind: str) -> None:
    user = await site.user()

    error = await refusal(OPENAI_CALLS[kind](user.openai(), "gpt-7"), 404, "model_not_found")

    assert isinstance(error, openai.NotFoundError)
    assert "The model `gpt-7` does not exist" in error.message
    assert error.param == "model"
    await costs_nothing(user, error)


@pytest.mark.parametrize("kind", KINDS)
async def test_other_model_than_that_of_the_path(site: Site, kind: str) -> None:
    user = await site.user()

    error = await refusal(OPENAI_CALLS[kind](user.openai("/acme/large"), "simulator"), 404, "model_not_found")

    assert isinstance(error, openai.NotFoundError)
    await costs_nothing(user, error)


async def test_one_unknown_model(site: Site) -> None:
    client = (await site.user()).openai()

    error = await refusal(client.models.retrieve("gpt-7"), 404, "model_not_found")

    assert isinstance(error, openai.NotFoundError)
    assert error.param == "model"


UNSERVED: dict[str, Callable[[openai.AsyncOpenAI], Awaitable[object]]] = {
    "responses.retrieve": lambda client: client.responses.retrieve("resp_1"),
    "responses.cancel": lambda client: client.responses.cancel("resp_1"),
    "responses.delete": lambda client: client.responses.delete("resp_1"),
    "responses.input_items": lambda client: client.responses.input_items.list("resp_1"),
    "chat.completions.retrieve": lambda client: client.chat.completions.retrieve("chatcmpl-1"),
    "moderations": lambda client: client.moderations.create(input=QUESTION),
    "files": lambda client: client.files.list(),
    "batches": lambda client: client.batches.retrieve("batch_1"),
}


@pytest.mark.parametrize("call", UNSERVED.values(), ids=UNSERVED)
async def test_call_that_is_not_served(site: Site, call: Callable[[openai.AsyncOpenAI], Awaitable[object]]) -> None:
    user, model = await site.user(), site.models["simulator"][0]
    seen = len(model.requests)

    error = await refusal(call(user.openai()), 404, "not_found")

    assert isinstance(error, openai.NotFoundError)
    assert len(model.requests) == seen
    assert await user.used() == (0, 0)


async def test_route_for_operators(site: Site) -> None:
    client, model = (await site.user()).openai(), site.models["simulator"][0]
    seen = len(model.requests)

    call = client.post("/load_lora_adapter", cast_to=object, body={"lora_name": "x", "lora_path": "/x"})
    error = await refusal(call, 403, "access_denied")

    assert isinstance(error, openai.PermissionDeniedError)
    assert len(model.requests) == seen


@pytest.mark.parametrize(
    ("named", "value"),
    [("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("background", True)],
)
@pytest.mark.parametrize("kind", ["responses", "responses-stream"])
async def test_response_that_refers_to_what_nobody_owns(site: Site, kind: str, named: str, value: object) -> None:
    user = await site.user()

    call = OPENAI_CALLS[kind](user.openai(), "simulator", **{named: value})
    error = await refusal(call, 400, "unsupported_parameter")

    assert isinstance(error, openai.BadRequestError)
    assert error.param == named
    await costs_nothing(user, error)


@pytest.mark.parametrize(
    ("kind", "more", "param"),
    [
        ("chat", {"max_tokens": "many"}, "max_tokens"),
        ("chat-stream", {"stream_options": "all"}, "stream_options"),
        ("chat", {"extra_body": {"Model": "qwen3"}}, "Model"),
        ("completions", {"n": -1}, "n"),
        ("responses", {"max_output_tokens": -5}, "max_output_tokens"),
        ("responses-stream", {"max_output_tokens": 1.5}, "max_output_tokens"),
        ("embeddings", {"extra_body": {"stream": "yes"}}, "stream"),
        ("images", {"n": "two"}, "n"),
        ("speech", {"extra_body": {"stream": 1}}, "stream"),
        ("transcriptions", {"extra_body": {"n": "two"}}, "n"),
        ("translations", {"extra_body": {"MODEL": "qwen3"}}, "MODEL"),
    ],
)
async def test_invalid_value(site: Site, kind: str, more: dict[str, Any], param: str) -> None:
    user = await site.user()

    error = await refusal(OPENAI_CALLS[kind](user.openai(), "simulator", **more), 400, "invalid_value")

    assert isinstance(error, openai.BadRequestError)
    assert error.param == param
    await costs_nothing(user, error)


async def test_refusal_of_the_model_keeps_its_message(site: Site) -> None:
    user = await site.user()

    with pytest.raises(
        openai.BadRequestError, match=r"Stream options can only be defined when `stream=True`"
    ) as caught:
        await chat(user.openai(), "simulator", stream_options={"include_usage": True})

    assert caught.value.param == "stream_options"
    assert caught.value.code == "invalid_request"
    assert await user.used() == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_no_model(site: Site, kind: str) -> None:
    user = await site.user()

    error = await refusal(OPENAI_CALLS[kind](user.openai(), ""), 400, "missing_required_parameter")

    assert isinstance(error, openai.BadRequestError)
    assert error.param == "model"
    await costs_nothing(user, error)


@pytest.mark.parametrize(
    ("kind", "more", "param"),
    [
        ("chat", {"max_tokens": 21}, "max_tokens"),
        ("chat", {"max_completion_tokens": 21}, "max_tokens"),
        ("chat-stream", {"max_tokens": 7, "n": 3}, "max_tokens"),
        ("completions", {"max_tokens": 11, "prompt": [QUESTION, QUESTION]}, "max_tokens"),
        ("responses", {"max_output_tokens": 21}, "max_output_tokens"),
        ("responses-stream", {"max_output_tokens": 21}, "max_output_tokens"),
    ],
)
async def test_more_tokens_than_the_tier_allows(site: Site, kind: str, more: dict[str, Any], param: str) -> None:
    user = await site.user("capped")

    error = await refusal(OPENAI_CALLS[kind](user.openai(), "simulator", **more), 400, "max_tokens_exceeded")

    assert isinstance(error, openai.BadRequestError)
    assert "at most 20 tokens" in error.message
    assert (error.param, details(error)) == (param, {"maximum": 20})
    await costs_nothing(user, error)


@pytest.mark.parametrize(
    "path", ["/chat/completions", "/completions", "/responses", "/embeddings", "/audio/speech", "/images/generations"]
)
async def test_other_method(site: Site, path: str) -> None:
    user = await site.user()

    error = await refusal(user.openai().get(path, cast_to=object), 405, "method_not_allowed")

    assert error.response.headers["allow"] == "HEAD, POST"
    assert await user.used() == (0, 0)


async def test_other_method_on_models(site: Site) -> None:
    client = (await site.user()).openai()

    error = await refusal(client.models.delete("simulator"), 405, "method_not_allowed")

    assert error.response.headers["allow"]


@pytest.mark.parametrize("kind", KINDS)
async def test_body_that_is_too_large(site: Site, kind: str) -> None:
    user = await site.user()
    padding = {"padding": "x" * MAXIMUM_BODY_BYTES}

    call = OPENAI_CALLS[kind](user.openai(), "simulator", extra_body=padding)
    error = await refusal(call, 413, "request_too_large")

    await costs_nothing(user, error)


async def test_recording_that_is_too_large(site: Site) -> None:
    user = await site.user()
    recording = ("long.wav", b"x" * MAXIMUM_BODY_BYTES)

    call = user.openai().audio.transcriptions.create(model="simulator", file=recording)
    error = await refusal(call, 413, "request_too_large")

    await costs_nothing(user, error)


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_over_the_limit(site: Site, kind: str) -> None:
    user = await site.user("small")
    await chat(user.openai(), "simulator")

    error = await refusal(OPENAI_CALLS[kind](user.openai(), "simulator"), 429, "rate_limit_exceeded")

    headers = error.response.headers
    assert isinstance(error, openai.RateLimitError)
    assert "Rate limit exceeded" in error.message
    assert 3_599_000 < int(headers["retry-after-ms"]) <= 3_660_000 * 1.05  # a window is counted in sixtieths
    assert int(headers["retry-after"]) == -(-int(headers["retry-after-ms"]) // 1000)
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert details(error) == {
        "limit": "requests",
        "tier": "small",
        "quota": 1,
        "window_seconds": 3600,
        "retry_after_seconds": int(headers["retry-after"]),
    }


@pytest.mark.parametrize("kind", KINDS)
async def test_tokens_over_the_limit(site: Site, kind: str) -> None:
    user = await site.user("thrifty")
    await chat(user.openai(), "simulator")  # past the limit: what was used counts

    error = await refusal(OPENAI_CALLS[kind](user.openai(), "simulator"), 429, "rate_limit_exceeded")

    assert isinstance(error, openai.RateLimitError)
    assert error.response.headers["x-ratelimit-remaining-tokens"] == "0"
    assert details(error)["limit"] == "tokens"


async def test_sdk_does_not_sleep_for_an_hour(site: Site) -> None:
    client = (await site.user("small")).openai(max_retries=2, timeout=None)
    await chat(client, "simulator")

    with anyio.fail_after(5), pytest.raises(openai.RateLimitError) as caught:
        await chat(client, "simulator")

    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_sdk_waits_as_long_as_it_is_told_and_then_passes(site: Site) -> None:
    client = (await site.user("brisk")).openai(max_retries=1)
    files: Any = {"model": "simulator", "file": RECORDING}

    with anyio.fail_after(10):
        await client.audio.transcriptions.create(**files)
        chatted = await client.chat.completions.with_raw_response.create(model="simulator", messages=MESSAGES)

    assert chatted.retries_taken == 1


@pytest.mark.parametrize("call", ["edit", "create_variation"])
async def test_form_that_the_model_does_not_take(site: Site, call: str) -> None:
    user = await site.user()
    more = {"prompt": QUESTION} if call == "edit" else {}

    asked = getattr(user.openai().images, call)(model="simulator", image=("a.png", b"\x89PNG"), **more)
    error = await refusal(asked, 404, "not_found")

    assert isinstance(error, openai.NotFoundError)
    assert await user.used() == (1, 0)
    assert site.models["simulator"][0].requests[-1].path.startswith("/v1/images/")
