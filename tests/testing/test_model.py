from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import openai
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount
from starlette.types import Message

from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.model import SimulatedModel
from tests.servers import serving

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO: dict[str, Any] = {"model": "simulator", "messages": [{"role": "user", "content": "Hello, how are you?"}]}
ANSWER = "Hello! I am simulator, a simulated model, and I am doing well. You said: Hello, how are you?"
TOKENS = [" " + word if position else word for position, word in enumerate(ANSWER.split(" "))]


@asynccontextmanager
async def client_of(model: SimulatedModel) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(model) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def post(model: SimulatedModel, body: Any, path: str = CHAT, **headers: str) -> httpx.Response:
    async with client_of(model) as client:
        return await client.post(path, content=body if isinstance(body, bytes) else json.dumps(body), headers=headers)


async def answer_of(body: dict[str, Any], path: str = CHAT) -> Any:
    response = await post(SimulatedModel(), body, path)
    assert response.status_code == 200
    return response.json()


async def events_of(body: dict[str, Any], path: str = CHAT) -> list[Any]:
    """The decoded chunks of a stream that ends as it should."""
    response = await post(SimulatedModel(), {"stream": True, **body}, path)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def error_of(body: Any, path: str = CHAT) -> Any:
    response = await post(SimulatedModel(), body, path)
    error = response.json()["error"]
    assert error["code"] == response.status_code
    return error


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


async def test_a_chat_completion() -> None:
    response = await post(SimulatedModel(clock=FakeClock(1_700_000_000.5)), HELLO)

    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "id": "chatcmpl-1",
        "created": 1_700_000_000,
        "model": "simulator",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ANSWER},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": usage(4, 18),
    }


async def test_a_text_completion_has_16_tokens_unless_told_otherwise() -> None:
    answer = await answer_of({"model": "simulator", "prompt": "Once upon a time"}, TEXT)

    assert (answer["id"], answer["object"]) == ("cmpl-1", "text_completion")
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "Hello! I am simulator, a simulated model, and I am doing well. You said: Once upon",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert answer["usage"] == usage(4, 16)


async def test_both_calls_of_the_guide_fit_into_100_tokens() -> None:
    whole = await answer_of({**HELLO, "max_tokens": 100})
    *_, last = await events_of({**HELLO, "max_tokens": 100, "stream_options": {"include_usage": True}})

    assert whole["usage"]["total_tokens"] + last["usage"]["total_tokens"] <= 100


async def test_an_answer_has_at_most_30_tokens() -> None:
    model = SimulatedModel("a model whose name is rather long " * 2)

    response = await post(model, {"messages": [{"role": "user", "content": "word " * 1000}]})

    answer = response.json()
    assert len(answer["choices"][0]["message"]["content"].split()) == 30
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == usage(1000, 30)


@pytest.mark.parametrize(
    ("caps", "completion", "reason"),
    [
        pytest.param({"max_tokens": 1}, 1, "length", id="max_tokens"),
        pytest.param({"max_completion_tokens": 2}, 2, "length", id="max_completion_tokens"),
        pytest.param({"max_tokens": 1, "max_completion_tokens": 2}, 2, "length", id="the newer one wins"),
        pytest.param({"max_tokens": 18}, 18, "stop", id="just enough"),
        pytest.param({"max_tokens": None}, 18, "stop", id="null"),
    ],
)
async def test_the_cap_of_a_request(caps: dict[str, Any], completion: int, reason: str) -> None:
    answer = await answer_of({**HELLO, **caps})

    assert answer["choices"][0]["message"]["content"] == "".join(TOKENS[:completion])
    assert answer["choices"][0]["finish_reason"] == reason
    assert answer["usage"] == usage(4, completion)


async def test_the_cap_of_a_text_request() -> None:
    answer = await answer_of({"prompt": "Hello, how are you?", "max_tokens": 30}, TEXT)

    assert answer["choices"][0]["text"] == ANSWER


async def test_every_choice_counts() -> None:
    answer = await answer_of({**HELLO, "n": 3, "max_tokens": 2})
    events = await events_of({**HELLO, "n": 3, "max_tokens": 2, "stream_options": {"include_usage": True}})

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"] == usage(4, 6)
    assert [choice["index"] for event in events for choice in event["choices"]] == [0, 1, 2] * 4
    assert events[-1]["usage"] == usage(4, 6)


@pytest.mark.parametrize(
    ("content", "said", "prompt"),
    [
        pytest.param(
            [{"type": "text", "text": "What is this?"}, {"type": "image_url"}], "What is this?", 3, id="parts"
        ),
        pytest.param(None, "nothing", 0, id="null"),
        pytest.param("", "nothing", 0, id="empty"),
        pytest.param("w " * 13, " ".join("w" * 12), 13, id="long"),
    ],
)
async def test_an_answer_quotes_the_question(content: Any, said: str, prompt: int) -> None:
    answer = await answer_of({"messages": [{"role": "user", "content": content}]})

    assert answer["choices"][0]["message"]["content"].endswith(f" You said: {said}")
    assert answer["usage"]["prompt_tokens"] == prompt


async def test_the_whole_conversation_is_the_prompt_and_its_end_the_question() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]

    answer = await answer_of({"messages": messages})

    assert answer["choices"][0]["message"]["content"].endswith(" You said: Why?")
    assert answer["usage"]["prompt_tokens"] == 3


async def test_the_request_id_becomes_the_id() -> None:
    response = await post(SimulatedModel(), HELLO, **{"x-request-id": "abc"})

    assert response.json()["id"] == "chatcmpl-abc"


async def test_a_stream_has_a_role_then_token_for_token_then_a_reason_to_end() -> None:
    events = await events_of(HELLO)

    choices = [event["choices"][0] for event in events]
    assert choices[0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    assert [choice["delta"] for choice in choices[1:-1]] == [{"content": token} for token in TOKENS]
    assert choices[-1] == {
        "index": 0,
        "delta": {"content": ""},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    assert {(event["id"], event["object"], event["model"]) for event in events} == {
        ("chatcmpl-1", "chat.completion.chunk", "simulator")
    }
    assert [event for event in events if "usage" in event] == []


async def test_a_stream_of_text_has_no_role() -> None:
    events = await events_of({"prompt": "Hello, how are you?", "max_tokens": 2}, TEXT)

    choices = [event["choices"][0] for event in events]
    assert [choice["text"] for choice in choices] == [*TOKENS[:2], ""]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]
    assert {event["object"] for event in events} == {"text_completion"}


async def test_usage_comes_last_for_those_who_ask() -> None:
    events = await events_of({**HELLO, "stream_options": {"include_usage": True}})

    assert [position for position, event in enumerate(events) if "usage" in event] == [len(events) - 1]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == usage(4, 18)


async def test_running_usage_is_on_every_chunk() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}

    events = await events_of({**HELLO, "max_tokens": 3, "stream_options": options})

    assert [event["usage"] for event in events] == [usage(4, count) for count in (0, 1, 2, 3, 3, 3)]
    assert events[-1]["choices"] == []


async def test_running_usage_of_several_choices_is_that_of_each_and_at_last_that_of_all() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}

    events = await events_of({**HELLO, "n": 2, "max_tokens": 2, "stream_options": options})

    assert [event["usage"] for event in events] == [usage(4, count) for count in (0, 0, 1, 1, 2, 2, 2, 2, 4)]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(None, id="null"),
        pytest.param({}, id="empty"),
        pytest.param({"include_usage": False, "continuous_usage_stats": True}, id="running usage alone"),
    ],
)
async def test_no_usage_for_those_who_do_not_ask(options: Any) -> None:
    events = await events_of({**HELLO, "stream_options": options})

    assert [event for event in events if "usage" in event] == []
    assert len(events) == 20


async def test_the_delay_is_between_tokens() -> None:
    async with client_of(SimulatedModel(delay=0.02)) as client:
        begin = anyio.current_time()
        await client.post(CHAT, json={**HELLO, "max_tokens": 4})

    assert anyio.current_time() - begin >= 0.06


async def test_an_unknown_model() -> None:
    assert await error_of({**HELLO, "model": "nope"}) == {
        "message": "The model `nope` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


async def test_a_request_need_not_name_the_model() -> None:
    assert (await answer_of({"messages": HELLO["messages"]}))["model"] == "simulator"


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        pytest.param(b"{", CHAT, "Input data was truncated", id="truncated"),
        pytest.param(b'{"prompt": "\xff"}', TEXT, "", id="no text"),
        pytest.param(b'{"x":' + b"[" * 100_000, CHAT, "", id="nested deeply"),
        pytest.param([], CHAT, "Expected `object`, got `array`", id="array"),
        pytest.param({}, CHAT, "Object missing required field `messages`", id="no messages"),
        pytest.param({"messages": []}, CHAT, "Expected `array` of length >= 1 - at `$.messages`", id="empty messages"),
        pytest.param({}, TEXT, "Object missing required field `prompt`", id="no prompt"),
        pytest.param({**HELLO, "max_tokens": 0}, CHAT, "Expected `int` >= 1 - at `$.max_tokens`", id="no tokens"),
        pytest.param({**HELLO, "n": 0}, CHAT, "Expected `int` >= 1 - at `$.n`", id="no choices"),
        pytest.param(
            {**HELLO, "stream_options": {"include_usage": True}},
            CHAT,
            "Stream options can only be defined when `stream=True`.",
            id="options without a stream",
        ),
    ],
)
async def test_a_request_that_makes_no_sense(body: Any, path: str, message: str) -> None:
    error = await error_of(body, path)

    assert (error["type"], error["code"]) == ("BadRequestError", 400)
    assert message in error["message"]


async def test_other_paths_and_methods() -> None:
    async with client_of(SimulatedModel()) as client:
        path = await client.post("/v1/nothing")
        method = await client.get(CHAT)

    assert (path.status_code, path.json()) == (404, {"detail": "Not Found"})
    assert (method.status_code, method.json()) == (405, {"detail": "Method Not Allowed"})
    assert method.headers["allow"] == "POST"


async def test_it_can_be_mounted() -> None:
    model = SimulatedModel()
    app = Starlette(routes=[Mount("/llm", model)])

    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.post(f"/llm{CHAT}", json=HELLO)

    assert response.status_code == 200
    assert model.requests[0].path == f"/llm{CHAT}"


async def test_health_and_models() -> None:
    async with client_of(SimulatedModel("qwen3", clock=FakeClock(5.0))) as client:
        health = await client.get("/health")
        models = await client.get("/v1/models")

    assert (health.status_code, health.content) == (200, b"")
    assert models.json() == {
        "object": "list",
        "data": [
            {
                "id": "qwen3",
                "object": "model",
                "created": 5,
                "owned_by": "vllm",
                "root": "qwen3",
                "max_model_len": 8192,
            }
        ],
    }


async def test_another_app_can_answer_instead_of_the_model() -> None:
    model = SimulatedModel()
    model.failure = HTMLResponse("<h1>Bad Gateway</h1>", 502)

    response = await post(model, HELLO)

    assert (response.status_code, response.text) == (502, "<h1>Bad Gateway</h1>")
    assert [seen.outcome for seen in model.requests] == ["finished"]


async def test_requests_are_written_down() -> None:
    model = SimulatedModel()

    await post(model, b'{"messages": []}', **{"X-Mine": "yes"})

    [seen] = model.requests
    assert (seen.method, seen.path, seen.body) == ("POST", CHAT, b'{"messages": []}')
    assert (b"x-mine", b"yes") in seen.headers
    assert (seen.outcome, seen.done.is_set()) == ("finished", True)


async def test_a_stream_waits_at_the_gate_after_its_first_token() -> None:
    model = SimulatedModel()
    model.gate = anyio.Event()

    async with client_of(model) as client, client.stream("POST", CHAT, json={**HELLO, "stream": True}) as response:
        lines = response.aiter_lines()
        seen = [await anext(lines) for _ in range(4)]
        outcome = model.requests[0].outcome
        model.gate.set()
        rest = [line async for line in lines]

    assert [line.startswith("data: ") for line in seen] == [True, False, True, False]
    assert '"content":"Hello!"' in seen[2]
    assert outcome is None
    assert rest[-2:] == ["data: [DONE]", ""]
    assert model.requests[0].outcome == "finished"


@pytest.mark.parametrize("stream", [pytest.param(True, id="stream"), pytest.param(False, id="whole")])
async def test_nothing_leaves_before_the_gate_opens(stream: bool) -> None:
    model = SimulatedModel()
    model.gate, model.hold_after = anyio.Event(), 0
    statuses: list[int] = []

    async with client_of(model) as client, anyio.create_task_group() as group:

        async def ask() -> None:
            async with client.stream("POST", CHAT, json={**HELLO, "stream": stream}) as response:
                statuses.append(response.status_code)
                await response.aread()

        group.start_soon(ask)
        while not model.requests:
            await checkpoint()
        for _ in range(100):
            await checkpoint()
        assert statuses == []
        model.gate.set()

    assert statuses == [200]


async def test_a_client_that_leaves_a_stream_ends_it() -> None:
    model = SimulatedModel()
    model.gate = anyio.Event()

    async with client_of(model) as client:
        async with client.stream("POST", CHAT, json={**HELLO, "stream": True}) as response:
            assert response.status_code == 200
        await model.requests[0].done.wait()

    assert model.requests[0].outcome == "cancelled"


async def test_a_client_that_does_not_wait_for_its_answer_ends_it() -> None:
    model = SimulatedModel()
    model.gate = anyio.Event()

    async with client_of(model) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: client.post(CHAT, json=HELLO))
            while not model.requests:
                await checkpoint()
            group.cancel_scope.cancel()
        await model.requests[0].done.wait()

    assert model.requests[0].outcome == "cancelled"


class Server:
    """Both ends of a connection: the question that it has, and what was sent; it may lose its client."""

    def __init__(self, **body: Any) -> None:
        encoded = json.dumps({**HELLO, "stream": True, **body}).encode()
        self.pending: list[Message] = [{"type": "http.request", "body": encoded}, {"type": "http.request"}]
        self.sent: list[Message] = []
        self.client_leaves_after: int | None = None
        # a proxy in front stripped the root path
        self.scope = {"type": "http", "method": "POST", "path": CHAT, "root_path": "/llm", "headers": []}

    async def receive(self) -> Message:
        if not self.pending:
            await anyio.sleep_forever()
        return self.pending.pop(0)

    async def send(self, message: Message) -> None:
        if len(self.sent) == self.client_leaves_after:
            raise OSError("the client has left")
        self.sent.append(message)


@pytest.mark.parametrize(
    ("tokens", "messages"),
    [
        pytest.param(0, 0, id="nothing"),
        pytest.param(1, 3, id="headers, role and a token"),
        pytest.param(3, 5, id="headers, role and three tokens"),
    ],
)
async def test_a_gate_lets_just_so_many_tokens_pass(tokens: int, messages: int) -> None:
    model, server = SimulatedModel(), Server()
    model.gate, model.hold_after = anyio.Event(), tokens

    async with anyio.create_task_group() as group:
        group.start_soon(model, server.scope, server.receive, server.send)
        await anyio.wait_all_tasks_blocked()
        passed = len(server.sent)
        model.gate.set()

    assert passed == messages
    assert server.sent[-2]["body"] == b"data: [DONE]\n\n"


async def test_a_server_that_raises_when_the_client_has_left() -> None:
    """ASGI 2.4: `send` raises an OSError."""
    model, server = SimulatedModel(), Server()
    server.client_leaves_after = 2

    await model(server.scope, server.receive, server.send)

    assert [message["type"] for message in server.sent] == ["http.response.start", "http.response.body"]
    assert model.requests[0].outcome == "cancelled"


async def test_it_is_no_websocket() -> None:
    async def fail(*_: object) -> Any:
        pytest.fail("nothing is said on a scope that is not served")

    await SimulatedModel()({"type": "websocket", "path": CHAT}, fail, fail)


@asynccontextmanager
async def sdk_for(model: SimulatedModel) -> AsyncIterator[openai.AsyncOpenAI]:
    async with serving(model) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0) as sdk:
        yield sdk


async def test_the_openai_sdk_understands_it() -> None:
    async with sdk_for(SimulatedModel()) as sdk:
        whole = await sdk.chat.completions.create(model="simulator", messages=[{"role": "user", "content": "Why?"}])
        text = await sdk.completions.create(model="simulator", prompt="Why?", max_tokens=30)
        models = [model.id async for model in sdk.models.list()]

    assert whole.choices[0].message.content == text.choices[0].text
    assert whole.usage is not None
    assert whole.usage.total_tokens == 16
    assert models == ["simulator"]


async def test_the_openai_sdk_understands_its_streams() -> None:
    async with sdk_for(SimulatedModel()) as sdk:
        stream = await sdk.chat.completions.create(
            model="simulator",
            messages=[{"role": "user", "content": "Hello, how are you?"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]

    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == ANSWER
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 18


async def test_the_openai_sdk_understands_its_errors() -> None:
    async with sdk_for(SimulatedModel()) as sdk:
        with pytest.raises(openai.NotFoundError) as refusal:
            await sdk.chat.completions.create(model="nope", messages=[{"role": "user", "content": "Why?"}])

    assert (refusal.value.type, refusal.value.param) == ("NotFoundError", "model")
