"""Model servers in trouble before the first byte of an answer: the SDKs raise what they have for it."""

from __future__ import annotations

import json

import anthropic
import openai
import pytest

from ..hostile.scripts import hanging_up, reset_after, said
from ..raw_upstream import Connection, Script, answer, chunked_head
from .calls import ANTHROPIC_CALLS, OPENAI_CALLS, QUESTION, TURNS, message
from .scripted import JSON, model
from .site import Site

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

TELLTALE = json.dumps({"error": {"message": "Traceback: no route to 10.0.0.1:8000", "type": "Boom"}}).encode()
TROUBLE = [
    pytest.param(said(answer("500 X", TELLTALE, JSON)), 502, id="500"),
    pytest.param(said(answer("401 X", TELLTALE, JSON)), 502, id="401"),
    pytest.param(said(answer("302 X", b"", b"Location: http://10.0.0.1/")), 502, id="redirect"),
    pytest.param(hanging_up, 502, id="hangs-up"),
    pytest.param(reset_after(chunked_head("application/json")), 502, id="resets"),
    pytest.param(said(answer("503 X", TELLTALE, JSON)), 503, id="503"),
    pytest.param(said(answer("504 X", TELLTALE, JSON)), 504, id="504"),
]
HANGS = pytest.param(said(then_hang=True), 504, id="hangs")
GARBLED = [
    pytest.param(said(answer("200 OK", b'{"choices": [', JSON)), 502, id="cut-json"),
    pytest.param(said(answer("200 OK", b"<html>10.0.0.1</html>", JSON)), 502, id="html"),
    pytest.param(said(answer("200 OK", b"", JSON)), 502, id="empty"),
]
CODES = {502: "upstream_error", 503: "upstream_unavailable", 504: "upstream_timeout"}
MESSAGE_OF = {
    502: "The model failed to answer",
    503: "The model is not available at the moment",
    504: "The model took too long to answer",
}
TYPES = {502: "api_error", 503: "overloaded_error", 504: "timeout_error"}


async def check_openai(
    troubled: Site, kind: str, status: int, model_id: str = "scripted"
) -> openai.InternalServerError:
    user = await troubled.user()
    with pytest.raises(openai.InternalServerError) as caught:
        await OPENAI_CALLS[kind](user.openai(), model_id)
    error = caught.value
    assert (error.status_code, error.type, error.code) == (status, "server_error", CODES[status])
    assert error.message == f"Error code: {status} - {MESSAGE_OF[status]} (request {error.request_id})"
    assert "10.0.0.1" not in error.response.text
    assert await user.used() == (0, 0)
    return error


async def check_anthropic(
    troubled: Site, kind: str, status: int, model_id: str = "scripted"
) -> anthropic.InternalServerError:
    user = await troubled.user()
    with pytest.raises(anthropic.InternalServerError) as caught:
        await ANTHROPIC_CALLS[kind](user.anthropic(), model_id)
    error = caught.value
    assert (error.status_code, error.type) == (status, TYPES[status])
    assert error.request_id
    assert error.api_message == f"{MESSAGE_OF[status]} (request {error.request_id})"
    assert "10.0.0.1" not in error.response.text
    assert await user.used() == (0, 0)
    return error


@pytest.mark.parametrize(("script", "status"), TROUBLE)
@pytest.mark.parametrize("kind", ["chat", "responses-stream", "transcriptions", "speech"])
async def test_openai_before_the_first_byte(troubled: Site, kind: str, script: Script, status: int) -> None:
    model.script = script

    error = await check_openai(troubled, kind, status)

    assert ("retry-after" in error.response.headers) is (status == 503)


@pytest.mark.parametrize(("script", "status"), TROUBLE)
@pytest.mark.parametrize("kind", ["messages", "messages-stream"])
async def test_anthropic_before_the_first_byte(troubled: Site, kind: str, script: Script, status: int) -> None:
    model.script = script

    error = await check_anthropic(troubled, kind, status)

    assert ("retry-after" in error.response.headers) is (status == 503)


@pytest.mark.parametrize(("script", "status"), [*GARBLED, HANGS])
@pytest.mark.parametrize("kind", ["chat", "responses", "embeddings"])
async def test_openai_document_that_is_none(troubled: Site, kind: str, script: Script, status: int) -> None:
    model.script = script

    await check_openai(troubled, kind, status)


@pytest.mark.parametrize(("script", "status"), [*GARBLED, HANGS])
async def test_anthropic_document_that_is_none(troubled: Site, script: Script, status: int) -> None:
    model.script = script

    await check_anthropic(troubled, "messages", status)


@pytest.mark.parametrize("kind", ["transcriptions", "speech"])
async def test_openai_media_that_hang(troubled: Site, kind: str) -> None:
    model.script = said(then_hang=True)

    await check_openai(troubled, kind, 504)


async def test_server_that_is_gone(troubled: Site) -> None:
    refused = await check_openai(troubled, "transcriptions", 503, "gone")
    message_refused = await check_anthropic(troubled, "messages-stream", 503, "gone")

    assert isinstance(message_refused, anthropic.ServiceUnavailableError)
    assert refused.response.headers["retry-after"] == message_refused.response.headers["retry-after"] == "2"


async def test_overloaded_server_is_overloaded_for_the_client(troubled: Site) -> None:
    overloaded = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded at 10.0.0.1"}}'
    model.script = said(answer("529 Overloaded", overloaded, JSON))

    await check_anthropic(troubled, "messages", 503)


async def test_limit_of_the_server_keeps_its_message_and_its_wait(troubled: Site) -> None:
    slow_down = b'{"type":"error","error":{"type":"rate_limit_error","message":"Too many sequences"}}'
    model.script = said(answer("429 X", slow_down, JSON, b"retry-after: 7"))
    user = await troubled.user()

    with pytest.raises(anthropic.RateLimitError) as caught:
        await message(user.anthropic(), "scripted")
    with pytest.raises(openai.RateLimitError, match="Too many sequences") as openai_caught:
        await OPENAI_CALLS["responses"](user.openai(), "scripted")

    assert (caught.value.type, caught.value.api_message) == ("rate_limit_error", "Too many sequences")
    assert caught.value.response.headers["retry-after"] == "7"
    assert openai_caught.value.code == "rate_limit_exceeded"


class Recovering:
    """Asks once to come again soon, and then answers."""

    def __init__(self, document: bytes) -> None:
        self.asked = 0
        self._document = document

    async def __call__(self, connection: Connection) -> None:
        self.asked += 1
        busy = answer("503 X", b"{}", JSON, b"retry-after-ms: 20", b"retry-after: 1")
        await said(busy if self.asked == 1 else answer("200 OK", self._document, JSON))(connection)


async def test_sdks_come_again_when_the_server_wants_them_to(troubled: Site) -> None:
    user = await troubled.user()
    usage = b'"usage":{"input_tokens":1,"output_tokens":1,"total_tokens":2}'

    model.script = responding = Recovering(b'{"object":"response","output":[],' + usage + b"}")
    response = await user.openai(max_retries=1).responses.create(model="scripted", input=QUESTION)
    model.script = writing = Recovering(b'{"type":"message","content":[],' + usage + b"}")
    written = await user.anthropic(max_retries=1).messages.create(model="scripted", messages=TURNS, max_tokens=9)

    assert (responding.asked, writing.asked) == (2, 2)
    assert (response.object, written.type) == ("response", "message")
    assert await user.used() == (2, 4)
