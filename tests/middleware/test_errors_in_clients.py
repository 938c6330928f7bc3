"""What the clients of OpenAI and Anthropic make of our errors, over a socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anthropic
import openai
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware.context import ensure_context
from maas_middleware.errors import (
    AccessDenied,
    InvalidRequest,
    MaaSError,
    RateLimitExceeded,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from tests.parts import EVENT_STREAM, Answering
from tests.servers import serving

FRESH = "0123456789abcdef"


def enveloped(app: ASGIApp) -> ErrorEnvelopeMiddleware:
    return ErrorEnvelopeMiddleware(app, id_factory=lambda: FRESH)


async def break_off(scope: Scope, receive: Receive, send: Send) -> None:
    """A stream that breaks off when an inner shell has seen seven events."""
    await send(EVENT_STREAM)
    ensure_context(scope).events = 7
    raise UpstreamTimeout


async def chat(client: openai.AsyncOpenAI) -> object:
    return await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}])


async def respond(client: openai.AsyncOpenAI) -> object:
    return await client.responses.create(model="m", input="Hello")


TURN: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(InvalidRequest("no"), openai.BadRequestError, id="400"),
        pytest.param(AccessDenied(), openai.PermissionDeniedError, id="403"),
        pytest.param(RateLimitExceeded(), openai.RateLimitError, id="429"),
        pytest.param(UpstreamUnavailable(), openai.InternalServerError, id="503"),
    ],
)
@pytest.mark.parametrize("ask", [pytest.param(chat, id="chat"), pytest.param(respond, id="responses")])
async def test_openai_client_reads_every_field_of_an_error(
    ask: Callable[[openai.AsyncOpenAI], Awaitable[object]], error: MaaSError, kind: type[openai.APIStatusError]
) -> None:
    async with (
        serving(enveloped(Answering(raises=error)), lifespan="off") as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0) as client,
    ):
        with pytest.raises(kind) as caught:
            await ask(client)

    raised = caught.value
    assert (raised.status_code, raised.code, raised.type, raised.param) == (
        error.status,
        error.code,
        error.type,
        error.param,
    )
    assert (error.message in raised.message, raised.request_id) == (True, FRESH)


@pytest.mark.parametrize(
    ("error", "kind", "type_"),
    [
        pytest.param(InvalidRequest("no"), anthropic.BadRequestError, "invalid_request_error", id="400"),
        pytest.param(AccessDenied(), anthropic.PermissionDeniedError, "permission_error", id="403"),
        pytest.param(RateLimitExceeded(), anthropic.RateLimitError, "rate_limit_error", id="429"),
        pytest.param(UpstreamUnavailable(), anthropic.InternalServerError, "overloaded_error", id="503"),
    ],
)
async def test_anthropic_client_reads_every_field_of_an_error(
    error: MaaSError, kind: type[anthropic.APIStatusError], type_: str
) -> None:
    async with (
        serving(enveloped(Answering(raises=error)), lifespan="off") as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="key", max_retries=0) as client,
    ):
        with pytest.raises(kind) as caught:
            await client.messages.create(model="m", max_tokens=9, messages=TURN)

    raised = caught.value
    assert (raised.status_code, raised.type, raised.request_id) == (error.status, type_, FRESH)
    assert (raised.api_message or "").startswith(error.message)


async def test_openai_client_raises_the_error_that_breaks_a_chat_off() -> None:
    async with (
        serving(enveloped(break_off), lifespan="off") as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        with pytest.raises(openai.APIError, match="The model took too long to answer") as caught:
            await anext(stream)

    assert (caught.value.code, caught.value.type) == ("upstream_timeout", "server_error")


async def test_openai_client_shows_the_error_that_breaks_a_response_off_and_never_ends_it() -> None:
    async with (
        serving(enveloped(break_off), lifespan="off") as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0) as client,
    ):
        stream = await client.responses.create(model="m", input="Hello", stream=True)
        event = await anext(stream)
        with pytest.raises(openai.APIConnectionError):
            await anext(stream)

    assert event.type == "error"
    assert (event.code, event.param, event.sequence_number) == ("upstream_timeout", None, 7)
    assert event.message == f"The model took too long to answer (request {FRESH})"


async def test_anthropic_client_raises_the_error_that_breaks_a_message_off() -> None:
    async with (
        serving(enveloped(break_off), lifespan="off") as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="key", max_retries=0) as client,
    ):
        stream = await client.messages.create(model="m", max_tokens=9, messages=TURN, stream=True)
        with pytest.raises(anthropic.APIStatusError) as caught:
            await anext(stream)

    assert (caught.value.type, caught.value.request_id) == ("timeout_error", FRESH)
    assert caught.value.api_message == f"The model took too long to answer (request {FRESH})"
