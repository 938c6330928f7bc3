"""Each refusal is the exception that the anthropic SDK has for it, with the fields that it reads, and costs nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import anyio
import httpx
import pytest

from .calls import ANTHROPIC_CALLS, TURNS, count_tokens, message, message_stream
from .site import MAXIMUM_BODY_BYTES, Site, User, tampered

KINDS = list(ANTHROPIC_CALLS)
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
ASKED: dict[str, Any] = {"model": "simulator", "messages": TURNS, "max_tokens": 15}


async def refusal(call: Awaitable[object], status: int) -> anthropic.APIStatusError:
    """The exception that a call raises, after a look at what all of them have."""
    with pytest.raises(anthropic.APIStatusError) as caught:
        await call
    error = caught.value
    assert error.status_code == status
    assert error.type == TYPES.get(status, "invalid_request_error")
    assert error.request_id
    assert isinstance(error.body, dict)
    assert error.body["type"] == "error"
    assert error.body["request_id"] == error.request_id == error.response.headers["x-request-id"]
    return error


def details(error: anthropic.APIStatusError) -> Any:
    assert isinstance(error.body, dict)
    return error.body["error"]["details"]


async def costs_nothing(user: User, error: anthropic.APIStatusError) -> None:
    assert error.response.headers["x-ratelimit-remaining-requests"] == "1000"
    assert await user.used() == (0, 0)


@pytest.mark.parametrize("reason", ["missing", "expired", "malformed", "unknown"])
@pytest.mark.parametrize("kind", KINDS)
async def test_credential_that_is_none(site: Site, kind: str, reason: str) -> None:
    good = (await site.user()).token
    tokens = {"expired": site.expired_token(), "malformed": tampered(good), "unknown": "sha256~user-1"}
    headers: Any = {"Authorization": anthropic.omit} if reason == "missing" else {}
    client = site.sdks.anthropic(tokens.get(reason, "none"))

    error = await refusal(ANTHROPIC_CALLS[kind](client, "simulator", extra_headers=headers), 401)

    assert isinstance(error, anthropic.AuthenticationError)
    assert error.api_message == "Invalid authentication token"
    assert details(error) == {"reason": reason}
    assert error.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["", "/qwen3"])
@pytest.mark.parametrize("kind", KINDS)
async def test_model_of_another_tier(site: Site, kind: str, path: str) -> None:
    user = await site.user("capped")

    error = await refusal(ANTHROPIC_CALLS[kind](user.anthropic(path), "qwen3"), 403)

    assert isinstance(error, anthropic.PermissionDeniedError)
    assert error.api_message == "Insufficient permissions for this model"
    await costs_nothing(user, error)


@pytest.mark.parametrize("path", ["", "/simulator"])
@pytest.mark.parametrize("kind", KINDS)
async def test_feature_that_the_tier_lacks(site: Site, kind: str, path: str) -> None:
    user = await site.user("basic")

    error = await refusal(ANTHROPIC_CALLS[kind](user.anthropic(path), "simulator"), 403)

    assert isinstance(error, anthropic.PermissionDeniedError)
    assert error.api_message == "`messages` is not available in your tier"
    assert details(error) == {"feature": "messages", "tier": "basic"}
    await costs_nothing(user, error)


@pytest.mark.parametrize("kind", KINDS)
async def test_unknown_model(site: Site, kind: str) -> None:
    user = await site.user()

    error = await refusal(ANTHROPIC_CALLS[kind](user.anthropic(), "claude-7"), 404)

    assert isinstance(error, anthropic.NotFoundError)
    assert error.api_message == "The model `claude-7` does not exist"
    await costs_nothing(user, error)


@pytest.mark.parametrize("kind", KINDS)
async def test_other_model_than_that_of_the_path(site: Site, kind: str) -> None:
    user = await site.user()

    error = await refusal(ANTHROPIC_CALLS[kind](user.anthropic("/acme/large"), "simulator"), 404)

    assert isinstance(error, anthropic.NotFoundError)
    await costs_nothing(user, error)


@pytest.mark.parametrize("kind", KINDS)
async def test_path_of_no_model(site: Site, kind: str) -> None:
    user = await site.user()

    error = await refusal(ANTHROPIC_CALLS[kind](user.anthropic("/nothing"), "simulator"), 404)

    assert isinstance(error, anthropic.NotFoundError)
    assert error.api_message == "Not found"


async def test_batches_are_not_served(site: Site) -> None:
    client = (await site.user()).anthropic()

    error = await refusal(client.messages.batches.retrieve("msgbatch_1"), 404)

    assert isinstance(error, anthropic.NotFoundError)
    assert error.api_message == "Not found"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"extra_body": {"max_tokens": "many"}}, "max_tokens"),
        ({"extra_body": {"max_tokens": 1.5}}, "max_tokens"),
        ({"extra_body": {"stream": "yes"}}, "stream"),
        ({"extra_body": {"Model": "qwen3"}}, "Model"),
    ],
)
@pytest.mark.parametrize("call", [message, message_stream])
async def test_invalid_value(site: Site, call: Callable[..., Any], more: dict[str, Any], named: str) -> None:
    user = await site.user()

    error = await refusal(call(user.anthropic(), "simulator", **more), 400)

    assert isinstance(error, anthropic.BadRequestError)
    assert f"`{named}` has" in (error.api_message or "")
    await costs_nothing(user, error)


@pytest.mark.parametrize("kind", KINDS)
async def test_no_model(site: Site, kind: str) -> None:
    user = await site.user()

    error = await refusal(ANTHROPIC_CALLS[kind](user.anthropic(), ""), 400)

    assert isinstance(error, anthropic.BadRequestError)
    assert error.api_message == "`model` is required"
    await costs_nothing(user, error)


async def test_refusal_of_the_model_keeps_its_message(site: Site) -> None:
    user = await site.user()

    error = await refusal(message(user.anthropic(), "simulator", max_tokens=0), 400)

    assert isinstance(error, anthropic.BadRequestError)
    assert error.api_message == "Expected `int` >= 1 - at `$.max_tokens`"
    assert await user.used() == (1, 0)


@pytest.mark.parametrize("call", [message, message_stream])
async def test_more_tokens_than_the_tier_allows(site: Site, call: Callable[..., Any]) -> None:
    user = await site.user("capped")

    error = await refusal(call(user.anthropic(), "simulator", max_tokens=21), 400)

    assert isinstance(error, anthropic.BadRequestError)
    assert error.api_message == "Your tier allows a request to generate at most 20 tokens"
    assert details(error) == {"maximum": 20}
    await costs_nothing(user, error)


async def test_as_many_tokens_as_the_tier_allows(site: Site) -> None:
    user = await site.user("capped")

    reply = await message(user.anthropic(), "simulator", max_tokens=20)

    assert reply.data["type"] == "message"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/acme/large/v1/messages"])
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_other_method(site: Site, path: str, method: str) -> None:
    user = await site.user()

    async with httpx.AsyncClient(base_url=site.sdks.url, headers={"x-api-key": user.token}) as client:
        answer = await client.request(method, path)

    assert (answer.status_code, answer.headers["allow"]) == (405, "HEAD, POST")
    assert answer.json() == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "Method not allowed"},
        "request_id": answer.headers["request-id"],
    }
    assert await user.used() == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_body_that_is_too_large(site: Site, kind: str) -> None:
    user = await site.user()
    padding = {"padding": "x" * MAXIMUM_BODY_BYTES}

    error = await refusal(ANTHROPIC_CALLS[kind](user.anthropic(), "simulator", extra_body=padding), 413)

    assert error.api_message == "The request body is too large"
    await costs_nothing(user, error)


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_over_the_limit(site: Site, kind: str) -> None:
    user = await site.user("small")
    await count_tokens(user.anthropic(), "simulator")

    error = await refusal(ANTHROPIC_CALLS[kind](user.anthropic(), "simulator"), 429)

    headers = error.response.headers
    assert isinstance(error, anthropic.RateLimitError)
    assert error.api_message == "Rate limit exceeded"
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


@pytest.mark.parametrize("call", [message, message_stream])
async def test_tokens_over_the_limit(site: Site, call: Callable[..., Any]) -> None:
    user = await site.user("thrifty")
    await message(user.anthropic(), "simulator")  # past the limit: what was used counts

    error = await refusal(call(user.anthropic(), "simulator"), 429)
    counted = await count_tokens(user.anthropic(), "simulator")

    assert isinstance(error, anthropic.RateLimitError)
    assert details(error)["limit"] == "tokens"
    assert error.response.headers["x-ratelimit-remaining-tokens"] == "0"
    assert counted.data == {"input_tokens": 6}  # counting needs no tokens


async def test_stream_over_the_limit_raises_before_its_first_event(site: Site) -> None:
    client = (await site.user("small")).anthropic()
    await count_tokens(client, "simulator")

    with pytest.raises(anthropic.RateLimitError, match="Rate limit exceeded"):
        async with client.messages.stream(**ASKED):
            pytest.fail("there is no stream")


async def test_sdk_does_not_sleep_for_an_hour(site: Site) -> None:
    client = (await site.user("small")).anthropic(max_retries=2, timeout=None)
    await message(client, "simulator")

    with anyio.fail_after(5), pytest.raises(anthropic.RateLimitError) as caught:
        await message(client, "simulator")

    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_sdk_waits_as_long_as_it_is_told_and_then_passes(site: Site) -> None:
    client = (await site.user("brisk")).anthropic(max_retries=1)

    with anyio.fail_after(10):
        await count_tokens(client, "simulator")
        answered = await client.messages.with_raw_response.create(**ASKED)

    assert answered.retries_taken == 1
