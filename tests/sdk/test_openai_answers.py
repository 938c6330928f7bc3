"""The openai SDK, pointed at the gateway: what is peculiar to one of its calls."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from openai.types.audio import Transcription
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from .calls import MESSAGES, OPENAI_STREAMS, OPENAI_WHOLE, QUESTION, RECORDING, document
from .site import Site

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")


def last_body(site: Site, model: str = "simulator") -> bytes:
    return site.models[model][0].requests[-1].body


@pytest.mark.parametrize("kind", OPENAI_WHOLE)
async def test_answer_tells_the_limits_the_usage_and_its_request(site: Site, kind: str) -> None:
    user = await site.user()

    reply = await OPENAI_WHOLE[kind](user.openai(), "simulator")

    assert reply.request_id == reply.headers["x-request-id"]
    assert reply.headers["x-ratelimit-limit-requests"] == "1000"
    assert reply.headers["x-ratelimit-remaining-requests"] == "999"
    assert reply.headers["x-ratelimit-limit-tokens"] == "100000"
    assert int(reply.headers["x-ratelimit-remaining-tokens"]) == 100_000 - (reply.tokens or 0)
    assert reply.headers["x-odhu-usage-total-tokens"] == str(reply.tokens)


@pytest.mark.parametrize("kind", OPENAI_STREAMS)
async def test_stream_tells_the_limits_and_not_yet_the_usage(site: Site, kind: str) -> None:
    user = await site.user()

    reply = await OPENAI_STREAMS[kind](user.openai(), "simulator")

    assert reply.headers["x-request-id"]
    assert reply.headers["x-ratelimit-remaining-requests"] == "999"
    assert int(reply.headers["x-ratelimit-remaining-tokens"]) < 100_000
    assert [name for name in reply.headers if name.startswith("x-odhu-")] == []
    assert reply.headers["content-type"].startswith("text/event-stream")


async def test_clients_own_request_id_is_kept(site: Site) -> None:
    user = await site.user()

    answer = await user.openai(default_headers={"x-request-id": "my-call_1"}).responses.create(
        model="simulator", input=QUESTION
    )

    assert answer._request_id == "my-call_1"
    assert "my-call_1" not in answer.id  # the model has an id of ours for it


async def test_stream_helper_puts_together_what_the_whole_completion_is(site: Site) -> None:
    client = (await site.user()).openai()

    whole = await client.chat.completions.create(model="simulator", messages=MESSAGES)
    async with client.chat.completions.stream(model="simulator", messages=MESSAGES) as stream:
        streamed = await stream.get_final_completion()

    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert (streamed.choices[0].finish_reason, streamed.usage) == ("stop", None)


@pytest.mark.parametrize("cap", [None, 5])
async def test_stream_helper_puts_together_what_the_whole_response_is(site: Site, cap: int | None) -> None:
    client = (await site.user()).openai()
    asked: dict[str, Any] = {"model": "simulator", "input": QUESTION, "extra_body": {"max_output_tokens": cap}}

    whole = await client.responses.create(**asked)
    stream = await client.responses.create(stream=True, **asked)
    last = [event async for event in stream][-1]

    assert last.type == ("response.completed" if cap is None else "response.incomplete")
    assert (last.response.output_text, last.response.usage) == (whole.output_text, whole.usage)
    assert last.response.status == whole.status


async def test_cap_reaches_the_model(site: Site) -> None:
    client = (await site.user()).openai()

    completed = await client.completions.create(model="simulator", prompt=QUESTION, max_tokens=5)
    chatted = await client.chat.completions.create(model="simulator", messages=MESSAGES, max_completion_tokens=3)
    responded = await client.responses.create(model="simulator", input=QUESTION, max_output_tokens=4)

    usages = (completed.usage, chatted.usage)
    assert [usage.completion_tokens for usage in usages if usage is not None] == [5, 3]
    assert responded.usage is not None
    assert responded.usage.output_tokens == 4


async def test_final_response_of_the_stream_helper(site: Site) -> None:
    client = (await site.user()).openai()

    whole = await client.responses.create(model="simulator", input=QUESTION)
    async with client.responses.stream(model="simulator", input=QUESTION) as stream:
        streamed = await stream.get_final_response()

    assert (streamed.output_text, streamed.usage) == (whole.output_text, whole.usage)


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"previous_response_id": None}, id="null"),
        pytest.param({"background": False}, id="false"),
        pytest.param({"store": False}, id="not-stored"),
    ],
)
async def test_response_that_refers_to_nothing_passes(site: Site, asked: dict[str, Any]) -> None:
    client = (await site.user()).openai()

    answer = await client.responses.create(model="simulator", input=QUESTION, extra_body=asked)

    assert answer.status == "completed"


async def test_vectors_are_the_same_in_every_encoding(site: Site) -> None:
    client = (await site.user()).openai()
    asked: dict[str, Any] = {"model": "simulator", "input": [QUESTION, "Well."]}

    default = await client.embeddings.create(**asked)
    default_body = json.loads(last_body(site))
    floats = await client.embeddings.create(encoding_format="float", **asked)
    encoded = await client.embeddings.create(encoding_format="base64", **asked)

    assert default_body["encoding_format"] == "base64"  # what the SDK asks for, unless told otherwise
    assert default.data == floats.data
    assert [len(item.embedding) for item in floats.data] == [8, 8]
    for item, other in zip(floats.data, encoded.data, strict=True):
        assert struct.unpack("<8f", base64.b64decode(str(other.embedding))) == tuple(item.embedding)


@pytest.mark.parametrize("is_file_first", [True, False], ids=["file-first", "model-first"])
@pytest.mark.parametrize("path", ["/audio/transcriptions", "/audio/translations"])
async def test_order_of_the_form_does_not_matter(site: Site, path: str, is_file_first: bool) -> None:
    client = (await site.user()).openai()
    parts: list[tuple[str, Any]] = [("file", RECORDING), ("model", (None, b"simulator")), ("prompt", (None, b"Fay"))]

    answer = await client.post(
        path,
        cast_to=Transcription,
        files=parts if is_file_first else parts[::-1],
        options={"headers": {"content-type": "multipart/form-data"}},
    )

    assert answer.text == "This is a recording of 40000 bytes. You said: Fay"


async def test_models_path_takes_a_form_that_names_no_model(site: Site) -> None:
    client = (await site.user()).openai("/acme/large")
    headers = {"content-type": "multipart/form-data"}

    answer = await client.post(
        "/audio/transcriptions", cast_to=Transcription, files=[("file", RECORDING)], options={"headers": headers}
    )

    assert answer.text.startswith("This is a recording of 40000 bytes.")
    assert b'name="model"\r\n\r\nqwen3\r\n' in last_body(site, "qwen3")


async def test_recording_reaches_the_model_byte_by_byte(site: Site) -> None:
    client = (await site.user()).openai()
    sound = bytes(range(256)) * 300

    await client.audio.transcriptions.create(
        model="simulator", file=('ä "b".wav', sound), timestamp_granularities=["word", "segment"]
    )

    body = last_body(site)
    assert sound in body
    assert body.index(b"word") < body.index(b"segment")


@pytest.mark.parametrize("response_format", ["text", "srt"])
async def test_transcription_may_be_plain_text(site: Site, response_format: Any) -> None:
    client = (await site.user()).openai()

    text = await client.audio.transcriptions.create(model="simulator", file=RECORDING, response_format=response_format)

    assert isinstance(text, str)
    assert "This is a recording of 40000 bytes." in text
    assert ("00:00:03,000" in text) is (response_format == "srt")


async def test_pieces_of_a_transcription_make_up_the_whole(site: Site) -> None:
    client = (await site.user()).openai()

    whole = await client.audio.transcriptions.create(model="simulator", file=RECORDING)
    stream = await client.audio.transcriptions.create(model="simulator", file=RECORDING, stream=True)
    choices = [document(event)["choices"][0] async for event in stream]

    assert "".join(choice["delta"]["content"] for choice in choices) == whole.text


async def test_speech_is_streamed_as_it_comes(site: Site) -> None:
    client = (await site.user()).openai()

    whole = await client.audio.speech.create(model="simulator", voice="alloy", input=QUESTION)
    async with client.audio.speech.with_streaming_response.create(
        model="simulator", voice="alloy", input=QUESTION
    ) as streamed:
        pieces = [piece async for piece in streamed.iter_bytes()]

    assert streamed.headers["content-type"] == "audio/mpeg"
    assert b"".join(pieces) == whole.content


async def test_as_many_images_as_were_asked_for(site: Site) -> None:
    client = (await site.user()).openai()

    answer = await client.images.generate(model="simulator", prompt=QUESTION, n=3)

    assert len(answer.data or ()) == 3
    assert all(base64.b64decode(image.b64_json or "").startswith(b"\x89PNG") for image in answer.data or ())


async def test_tools_reach_the_model_as_they_were_given(site: Site) -> None:
    client = (await site.user()).openai()
    parameters: dict[str, object] = {"type": "object", "properties": {"model": {"type": "string"}, "n": {"const": 1.0}}}
    tools: list[ChatCompletionToolParam] = [
        {"type": "function", "function": {"name": "weather", "description": "Überall", "parameters": parameters}}
    ]
    turns: list[ChatCompletionMessageParam] = [
        *MESSAGES,
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"n": 1.0}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ]

    answer = await client.chat.completions.create(
        model="simulator", messages=turns, tools=tools, tool_choice="auto", parallel_tool_calls=False
    )

    seen = json.loads(last_body(site))
    assert (seen["tools"], seen["messages"]) == (tools, turns)
    assert (seen["tool_choice"], seen["parallel_tool_calls"]) == ("auto", False)
    assert answer.choices[0].message.content


async def test_models_are_those_of_the_tier_with_the_guides_fields(site: Site) -> None:
    premium, basic = (await site.user()).openai(), (await site.user("basic")).openai()

    all_models = [model async for model in premium.models.list()]
    others = [model.id async for model in basic.models.list()]

    assert [model.id for model in all_models] == ["simulator", "qwen3", "acme/large"]
    assert others == ["simulator", "acme/large"]
    assert {model.object for model in all_models} == {"model"}
    assert document(all_models[1])["url"] == f"{site.sdks.url}/qwen3/v1/chat/completions"
    assert document(all_models[1])["tier"] == "premium"


@pytest.mark.parametrize("name", ["acme/large", "gpt-4o"])
async def test_model_is_found_by_its_id_and_by_its_aliases(site: Site, name: str) -> None:
    client = (await site.user("basic")).openai()

    model = await client.models.retrieve(name)

    assert model.id == "acme/large"
    assert model._request_id


async def test_models_below_a_models_path_are_that_one(site: Site) -> None:
    client = (await site.user()).openai("/acme/large")

    assert [model.id async for model in client.models.list()] == ["acme/large"]


async def test_base_url_may_be_the_one_that_the_guide_prints(site: Site) -> None:
    user = await site.user()
    client = user.openai("/acme/large/v1/chat/completions")

    answer = await client.chat.completions.create(model="acme/large", messages=MESSAGES)

    assert answer.model == "acme/large"
