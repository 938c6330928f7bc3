from __future__ import annotations

import base64
import json
from typing import Any

import anyio
import httpx
import pytest
from openai.types import ImagesResponse
from openai.types.audio import Transcription, Translation
from starlette.applications import Starlette
from starlette.routing import Mount

from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.converse import converse
from maas_middleware.testing.model import SimulatedModel
from tests.testing.test_model import CHAT, client_of, error_of, post, sdk_for

TRANSCRIPTIONS = "/v1/audio/transcriptions"
TRANSLATIONS = "/v1/audio/translations"
IMAGES = "/v1/images/generations"
SPEECH = "/v1/audio/speech"
AUDIO = bytes(range(256)) * 126  # 32,256 bytes: two seconds and a bit
TEXT = "This is a recording of 32256 bytes. You said: Hello, there!"


async def upload(path: str = TRANSCRIPTIONS, audio: bytes = AUDIO, **fields: str) -> httpx.Response:
    async with client_of(SimulatedModel(clock=FakeClock(5.0))) as client:
        return await client.post(path, data=fields, files={"file": ("hello.wav", audio, "audio/wav")})


async def test_the_openai_sdk_has_audio_transcribed() -> None:
    file = ("hello.wav", AUDIO)

    async with sdk_for(SimulatedModel()) as sdk:
        heard = await sdk.audio.transcriptions.create(model="simulator", file=file, prompt="Hello, there!")
        text = await sdk.audio.transcriptions.create(model="simulator", file=file, response_format="text")

    assert heard.text == TEXT
    assert heard.usage is not None
    assert heard.usage.to_dict() == {"type": "duration", "seconds": 3}
    assert str(text) == "This is a recording of 32256 bytes. You said: nothing"


@pytest.mark.parametrize(
    ("path", "model"), [pytest.param(TRANSCRIPTIONS, Transcription), pytest.param(TRANSLATIONS, Translation)]
)
async def test_a_recording_becomes_json(path: str, model: type[Transcription | Translation]) -> None:
    response = await upload(path, model="simulator", prompt="Hello, there!")

    assert response.json() == {"text": TEXT, "usage": {"type": "duration", "seconds": 3}}
    assert model.model_validate(response.json()).text == TEXT


@pytest.mark.parametrize(
    ("size", "seconds"), [pytest.param(0, 0), pytest.param(1, 1), pytest.param(16_000, 1), pytest.param(16_001, 2)]
)
async def test_every_second_of_audio_that_has_begun_counts(size: int, seconds: int) -> None:
    response = await upload(audio=bytes(size))

    assert response.json()["usage"]["seconds"] == seconds


async def test_a_large_recording_comes_through() -> None:
    response = await upload(audio=bytes(3_000_000))

    assert response.json()["text"].startswith("This is a recording of 3000000 bytes.")


@pytest.mark.parametrize(
    ("format_", "size", "text"),
    [
        pytest.param("text", 32_256, TEXT, id="text"),
        pytest.param("srt", 32_256, f"1\n00:00:00,000 --> 00:00:03,000\n{TEXT}\n\n", id="srt"),
    ],
)
@pytest.mark.parametrize("path", [TRANSCRIPTIONS, TRANSLATIONS])
async def test_a_recording_becomes_plain_text(path: str, format_: str, size: int, text: str) -> None:
    response = await upload(path, bytes(size), response_format=format_, prompt="Hello, there!")

    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == text


async def test_subtitles_of_a_recording_that_is_longer_than_an_hour() -> None:
    response = await upload(audio=bytes(3_725 * 16_000), response_format="srt")

    assert response.text.startswith("1\n00:00:00,000 --> 01:02:05,000\n")


@pytest.mark.parametrize(
    ("path", "prefix", "kind"),
    [
        pytest.param(TRANSCRIPTIONS, "trsc", "transcription.chunk", id="transcription"),
        pytest.param(TRANSLATIONS, "trsl", "translation.chunk", id="translation"),
    ],
)
async def test_a_recording_becomes_a_stream(path: str, prefix: str, kind: str) -> None:
    response = await upload(path, stream="true", prompt="Hello, there!")

    *events, done, rest = response.text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    choices = [choice for chunk in chunks for choice in chunk.pop("choices")]
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (done, rest) == ("data: [DONE]", "")
    assert chunks == [{"id": f"{prefix}-1", "object": kind, "created": 5, "model": "simulator"}] * 12
    assert "".join(choice["delta"]["content"] for choice in choices) == TEXT
    assert [choice["finish_reason"] for choice in choices] == [None] * 11 + ["stop"]


async def test_the_openai_sdk_has_audio_transcribed_in_a_stream() -> None:
    async with sdk_for(SimulatedModel()) as sdk:
        stream = await sdk.audio.transcriptions.create(model="simulator", file=("a.wav", AUDIO), stream=True)
        chunks: list[Any] = [chunk async for chunk in stream]

    assert {chunk.object for chunk in chunks} == {"transcription.chunk"}


@pytest.mark.parametrize(
    ("fields", "files", "message"),
    [
        pytest.param({}, {"other": b"RIFF"}, "Object missing required field `file`", id="no file"),
        pytest.param({"file": "UklGRg=="}, {"other": b""}, "Expected `object`, got `str`", id="a field for a file"),
        pytest.param({"response_format": "vtt"}, {"file": b""}, "Invalid enum value 'vtt'", id="format"),
        pytest.param({"stream": "perhaps"}, {"file": b""}, "Expected `bool`, got `str`", id="stream"),
    ],
)
async def test_a_form_that_makes_no_sense(fields: Any, files: Any, message: str) -> None:
    async with client_of(SimulatedModel()) as client:
        response = await client.post(TRANSCRIPTIONS, data=fields, files=files)

    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


async def test_a_form_for_an_unknown_model() -> None:
    response = await upload(model="nope")

    assert (response.status_code, response.json()["error"]["param"]) == (404, "model")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        pytest.param("application/json", "Object missing required field `file`", id="no form"),
        pytest.param("multipart/form-data", "Missing boundary in multipart.", id="no boundary"),
        pytest.param("multipart/form-data; boundary=b", "", id="no part"),
    ],
)
async def test_a_body_that_is_no_form(kind: str, message: str) -> None:
    response = await post(SimulatedModel(), b'{"file": "UklGRg=="}', TRANSCRIPTIONS, **{"content-type": kind})

    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


async def test_a_body_that_is_no_form_is_refused_below_other_apps_too() -> None:
    app = Starlette(routes=[Mount("/llm", SimulatedModel())])

    conversation = await converse(
        app, "POST", f"/llm{TRANSCRIPTIONS}", headers=[("content-type", "multipart/form-data")], body=b"RIFF"
    )

    assert (conversation.status, conversation.json()["error"]["type"]) == (400, "BadRequestError")


async def test_a_form_is_no_question_for_a_chat() -> None:
    async with client_of(SimulatedModel()) as client:
        response = await client.post(CHAT, data={"messages": "[]"}, files={"file": b""})

    assert response.status_code == 400


async def test_the_openai_sdk_has_a_text_spoken() -> None:
    async with sdk_for(SimulatedModel()) as sdk:
        spoken = await sdk.audio.speech.create(model="simulator", voice="alloy", input="Hello, how are you?")

    assert spoken.response.headers["content-type"] == "audio/mpeg"
    assert spoken.content.startswith(b"\xff\xfb")
    assert len(spoken.content) == 4 * 417


async def test_nothing_is_said_in_no_words() -> None:
    response = await post(SimulatedModel(), {"input": ""}, SPEECH)

    assert (response.status_code, response.content) == (200, b"")


async def test_the_openai_sdk_has_images_made() -> None:
    async with sdk_for(SimulatedModel(clock=FakeClock(5.0))) as sdk:
        answer = await sdk.images.generate(model="simulator", prompt="A cat, asleep", n=2)

    assert answer.data is not None
    assert [base64.b64decode(image.b64_json or "")[1:4] for image in answer.data] == [b"PNG", b"PNG"]
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (3, 32, 35)
    assert answer.created == 5


async def test_one_image_unless_told_otherwise() -> None:
    response = await post(SimulatedModel(), {"prompt": "A cat"}, IMAGES)

    answer = ImagesResponse.model_validate(response.json(), strict=True)
    assert answer.data is not None
    assert len(answer.data) == 1


@pytest.mark.parametrize(
    ("path", "asked", "tokens"),
    [
        pytest.param(SPEECH, {"input": "Hello, how are you?"}, 4, id="speech"),
        pytest.param(IMAGES, {"prompt": "A cat", "n": 2}, 32, id="images"),
    ],
)
async def test_the_delay_is_between_the_tokens_of_what_is_no_text(path: str, asked: Any, tokens: int) -> None:
    begin = anyio.current_time()
    conversation = await converse(SimulatedModel(delay=0.005), "POST", path, json=asked)

    assert conversation.complete
    assert anyio.current_time() - begin >= (tokens - 1) * 0.005


@pytest.mark.parametrize("path", [SPEECH, IMAGES])
async def test_nothing_comes_of_nothing(path: str) -> None:
    error = await error_of({"model": "simulator"}, path)

    assert error["message"].startswith("Object missing required field")
