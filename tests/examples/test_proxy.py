from __future__ import annotations

import json
import socket

import openai
import pytest

from maas_middleware.testing.model import SimulatedModel
from tests.servers import serving

from .running import running, sdk


async def test_the_model_streams_through() -> None:
    model = SimulatedModel("simulator")

    async with (
        serving(model) as model_url,
        running("proxy", MODEL_URLS=model_url) as client,
        sdk(client, "bob-token") as user,
    ):
        stream = await user.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "Hello there!"}], stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert text.endswith("You said: Hello there!")


async def test_the_server_sees_its_own_name_and_no_credential() -> None:
    model = SimulatedModel("simulator")

    async with (
        serving(model) as model_url,
        running("proxy", MODEL_URLS=model_url) as client,
        sdk(client, "bob-token") as user,
    ):
        await user.chat.completions.create(model="chat", messages=[{"role": "user", "content": "Hello there!"}])

    [seen] = model.requests
    assert json.loads(seen.body)["model"] == "simulator"
    assert not {b"authorization", b"x-api-key"} & {name for name, _ in seen.headers}


async def test_a_server_that_is_not_there_is_not_named() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # a port that nobody else gets, and nobody listens on
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        async with running("proxy", MODEL_URLS=f"http://{address}") as client, sdk(client, "bob-token") as user:
            with pytest.raises(openai.InternalServerError) as failure:
                await user.chat.completions.create(model="chat", messages=[{"role": "user", "content": "Hello"}])

    assert (failure.value.status_code, failure.value.code) == (503, "upstream_unavailable")
    assert address not in failure.value.response.text


async def test_a_server_that_is_not_there_fails_no_request_as_long_as_another_is() -> None:
    model = SimulatedModel("simulator")

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        async with (
            serving(model) as model_url,
            running("proxy", MODEL_URLS=f"http://127.0.0.1:{deaf.getsockname()[1]} {model_url}") as client,
            sdk(client, "bob-token") as user,
        ):
            for _ in range(4):
                await user.chat.completions.create(model="chat", messages=[{"role": "user", "content": "Hello there!"}])

    assert len(model.requests) == 4
