"""What is the same in every dialect."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from starlette.responses import HTMLResponse
from starlette.types import Message, Receive, Scope, Send

from maas_middleware.testing.converse import Conversation, converse
from maas_middleware.testing.model import SimulatedModel
from tests.testing.test_model import HELLO, client_of

ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": HELLO,
    "/v1/completions": {"prompt": "Hello, how are you?", "max_tokens": 100},
    "/v1/messages": {**HELLO, "max_tokens": 100},
    "/v1/responses": {"input": "Hello, how are you?"},
    "/v1/messages/count_tokens": HELLO,
    "/v1/embeddings": {"input": "Hello"},
    "/rerank": {"query": "Hello", "documents": ["Hello"]},
    "/v1/rerank": {"query": "Hello", "documents": ["Hello"]},
    "/v2/rerank": {"query": "Hello", "documents": ["Hello"]},
    "/score": {"text_1": "Hello", "text_2": "Hello"},
    "/v1/score": {"text_1": "Hello", "text_2": "Hello"},
    "/classify": {"input": "Hello"},
    "/pooling": {"input": "Hello"},
    "/v1/audio/speech": {"input": "Hello"},
    "/v1/images/generations": {"prompt": "Hello"},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [1]},
}
FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations")
PATHS = (*ASKED, *FORMS)
OPENING_EVENTS = {
    "/v1/chat/completions": 1,
    "/v1/completions": 0,
    "/v1/messages": 2,
    "/v1/responses": 4,
    **dict.fromkeys(FORMS, 0),
}
TOKENS = {**dict.fromkeys(ASKED, 18), **dict.fromkeys(FORMS, 10)}  # of the answers that can be streamed


def asking(path: str, **more: Any) -> dict[str, Any]:
    """The arguments of a request for httpx, in the dialect of the path."""
    if path in FORMS:
        return {"data": {key: str(value) for key, value in more.items()}, "files": {"file": b"RIFF"}}
    return {"json": {**ASKED[path], **more}}


class Tap:
    """A model, and what it has sent so far."""

    def __init__(self, model: SimulatedModel) -> None:
        self.model = model
        self.sent: list[Message] = []
        self.conversation = Conversation()

    async def ask(self, path: str, *, leave_after: int | None = None, **more: Any) -> Conversation:
        request = httpx.Request("POST", f"http://model{path}", **asking(path, **more))
        headers, body = list(request.headers.items()), request.read()
        self.conversation = await converse(self._app, "POST", path, headers=headers, body=body, leave_after=leave_after)
        return self.conversation

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tapped(message: Message) -> None:
            self.sent.append(message)
            await send(message)

        await self.model(scope, receive, tapped)


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("path", OPENING_EVENTS)
async def test_a_gate_lets_just_so_many_tokens_of_a_stream_pass(path: str, tokens: int) -> None:
    tap = Tap(SimulatedModel())
    tap.model.gate, tap.model.hold_after = anyio.Event(), tokens

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: tap.ask(path, stream=True))
        await anyio.wait_all_tasks_blocked()
        passed, outcome = len(tap.sent), tap.model.requests[0].outcome
        tap.model.gate.set()

    assert passed == (1 + OPENING_EVENTS[path] + tokens if tokens else 0)
    assert outcome is None
    assert tap.conversation.complete
    assert tap.model.requests[0].outcome == "finished"


@pytest.mark.parametrize("path", PATHS)
async def test_no_answer_passes_a_gate_as_a_whole(path: str) -> None:
    tap = Tap(SimulatedModel())
    tap.model.gate = anyio.Event()

    async with anyio.create_task_group() as group:
        group.start_soon(tap.ask, path)
        await anyio.wait_all_tasks_blocked()
        passed, outcome = len(tap.sent), tap.model.requests[0].outcome
        tap.model.gate.set()

    assert (passed, outcome) == (0, None)
    assert (tap.conversation.status, tap.conversation.complete) == (200, True)
    assert tap.model.requests[0].outcome == "finished"


@pytest.mark.parametrize("path", OPENING_EVENTS)
async def test_a_gate_that_lets_all_tokens_pass_holds_the_end_of_a_stream(path: str) -> None:
    tap = Tap(SimulatedModel())
    tap.model.gate, tap.model.hold_after = anyio.Event(), TOKENS[path]

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: tap.ask(path, stream=True))
        await anyio.wait_all_tasks_blocked()
        passed = len(tap.sent)
        tap.model.gate.set()

    assert passed == 1 + OPENING_EVENTS[path] + TOKENS[path]
    assert tap.conversation.complete


@pytest.mark.parametrize("path", OPENING_EVENTS)
async def test_a_client_that_leaves_a_stream_ends_it_in_every_dialect(path: str) -> None:
    model = SimulatedModel()
    model.gate = anyio.Event()

    async with client_of(model) as client:
        async with client.stream("POST", path, **asking(path, stream=True)) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        await model.requests[0].done.wait()

    assert model.requests[0].outcome == "cancelled"


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_does_not_wait_ends_its_answer_in_every_dialect(path: str) -> None:
    tap = Tap(SimulatedModel())
    tap.model.gate = anyio.Event()

    conversation = await tap.ask(path, leave_after=0)

    assert not conversation.started
    assert tap.model.requests[0].outcome == "cancelled"


@pytest.mark.parametrize("stream", [pytest.param(True, id="stream"), pytest.param(False, id="whole")])
@pytest.mark.parametrize("path", OPENING_EVENTS)
async def test_the_delay_is_between_the_tokens_of_every_dialect(path: str, stream: bool) -> None:
    tap = Tap(SimulatedModel(delay=0.005))

    begin = anyio.current_time()
    conversation = await tap.ask(path, stream=stream)

    assert conversation.complete
    assert anyio.current_time() - begin >= (TOKENS[path] - 1) * 0.005


@pytest.mark.parametrize("path", PATHS)
async def test_no_dialect_has_an_answer_of_another_model(path: str) -> None:
    tap = Tap(SimulatedModel("qwen3"))

    named = await tap.ask(path, model="qwen3")
    other = await tap.ask(path, model="nope")

    assert (named.status, other.status) == (200, 404)
    assert other.json()["error"]["message"] == "The model `nope` does not exist."


@pytest.mark.parametrize("path", PATHS)
async def test_every_dialect_is_posted(path: str) -> None:
    conversation = await converse(SimulatedModel(), "GET", path)

    assert (conversation.status, conversation.header("allow")) == (405, "POST")


async def test_another_app_can_answer_a_form() -> None:
    model = SimulatedModel()
    model.failure = HTMLResponse("<h1>Bad Gateway</h1>", 502)

    async with client_of(model) as client:
        response = await client.post(FORMS[0], **asking(FORMS[0]))

    assert response.status_code == 502
    assert model.requests[0].body.count(b"RIFF") == 1


async def test_adapters_are_loaded_for_everybody() -> None:
    async with client_of(SimulatedModel()) as client:
        response = await client.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "/adapters/a"})
        method = await client.get("/v1/load_lora_adapter")

    assert (response.status_code, response.text) == (200, "Success")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        pytest.param({"prompt": "Hello, how are you?"}, 4, id="prompt"),
        pytest.param({"prompt": ""}, 0, id="empty"),
        pytest.param({"messages": [{"role": "system", "content": "Be brief."}, *HELLO["messages"]]}, 6, id="messages"),
    ],
)
async def test_a_word_is_a_token(asked: Any, count: int) -> None:
    async with client_of(SimulatedModel()) as client:
        answer = (await client.post("/tokenize", json=asked)).json()
        text = (await client.post("/detokenize", json={"tokens": answer["tokens"]})).json()
        again = (await client.post("/tokenize", json=text)).json()

    assert (answer["count"], answer["max_model_len"], len(answer["tokens"])) == (count, 8192, count)
    assert again["count"] == count


async def test_equal_words_are_equal_tokens() -> None:
    async with client_of(SimulatedModel()) as client:
        answer = (await client.post("/tokenize", json={"prompt": "so  so\nlala"})).json()

    first, second, third = answer["tokens"]
    assert first == second != third
