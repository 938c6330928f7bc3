"""A model server that answers as a small vLLM does, for tests and demonstrations."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ._answers import Call, RefusedError, Stream, Whole
from ._dialects import QUESTIONS, read
from ._responses import stored
from ._words import MAXIMUM_MODEL_LENGTH

_METHODS = {
    **dict.fromkeys(QUESTIONS, "POST"),
    "/v1/models": "GET",
    "/health": "GET",
    "/v1/responses/{id}": "GET",
    "/v1/responses/{id}/cancel": "POST",
    "/v1/load_lora_adapter": "POST",
}
_STORED = re.compile(r"/v1/responses/(?P<id>[^/]+)")


@dataclass(slots=True)
class SeenRequest:
    """A request that reached the model.

    Attributes:
        headers: in order, with lowercase names.
        outcome: `cancelled` where the client left before the end of the answer; None until there is an outcome.
        done: set when there is one.
    """

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    outcome: Literal["finished", "cancelled"] | None = None
    done: anyio.Event = field(default_factory=anyio.Event)


class SimulatedModel:
    """An ASGI app that speaks the dialects of OpenAI, Anthropic and vLLM itself, with one model that can do everything.

    - `POST /v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/messages`, `/v1/audio/transcriptions`,
      `/v1/audio/translations`: whole or streamed
    - `POST /v1/embeddings`, `/rerank`, `/score`, `/classify`, `/pooling` (some below `/v1` and `/v2`, too),
      `/v1/audio/speech`, `/v1/images/generations`, `/v1/messages/count_tokens`, `/tokenize`, `/detokenize`
    - `GET /v1/models`, `/health`
    - what no user should reach: `POST /v1/load_lora_adapter`, `GET /v1/responses/{id}` and
      `POST /v1/responses/{id}/cancel`, which answer for every id

    Its answers quote the question. A word is a token, and an answer has at most 30. A second of audio has 16,000 bytes.

    Args:
        model: the id of the one model it serves.
        delay: seconds between two tokens.
        clock: seconds since the epoch, for `created`.

    Attributes:
        requests: every request, in order.
        failure: the app that answers instead of the model, where it is set, such as `JSONResponse({}, 500)`.
        gate: an event that answers wait for, where it is set: streams after `hold_after` tokens, others as a whole.
        hold_after: how much of a stream passes a gate that is set; 0 holds back its headers, too.
    """

    def __init__(self, model: str = "simulator", *, delay: float = 0.0, clock: Callable[[], float] = time.time) -> None:
        self.model = model
        self.delay = delay
        self.requests: list[SeenRequest] = []
        self.failure: ASGIApp | None = None
        self.gate: anyio.Event | None = None
        self.hold_after = 1
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            body = await request.body()
        except ClientDisconnect:
            return
        seen = SeenRequest(request.method, scope["path"], request.headers.raw, body)
        self.requests.append(seen)
        try:
            if await self._respond(request, send):
                seen.outcome = "finished"
        finally:
            seen.outcome = seen.outcome or "cancelled"
            seen.done.set()

    async def _respond(self, request: Request, send: Send) -> bool:
        call = Call(self.model, request.headers.get("x-request-id", str(len(self.requests))), int(self._clock()))
        app = self.failure or self._route(request, call) or await self._ask(request, call)
        if isinstance(app, Whole | Stream):
            return await self._generate(app, request, send)
        await app(request.scope, request.receive, send)
        return True

    def _route(self, request: Request, call: Call) -> Response | None:
        path = _route_path(request.scope)
        route = _STORED.sub("/v1/responses/{id}", path)
        method = _METHODS.get(route)
        if method is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        if request.method != method:
            return JSONResponse({"detail": "Method Not Allowed"}, 405, {"allow": method})
        return None if route in QUESTIONS else self._look_up(route, path, call)

    def _look_up(self, route: str, path: str, call: Call) -> Response:
        if route == "/health":
            return Response()
        if route == "/v1/models":
            card = {"id": self.model, "object": "model", "created": call.created, "owned_by": "vllm"}
            card |= {"root": self.model, "max_model_len": MAXIMUM_MODEL_LENGTH}
            return JSONResponse({"object": "list", "data": [card]})
        if match := _STORED.match(path):
            return stored(call, match["id"], "cancelled" if route.endswith("/cancel") else "completed")
        return PlainTextResponse("Success")

    async def _ask(self, request: Request, call: Call) -> Whole | Stream | Response:
        path = _route_path(request.scope)
        try:
            question = await read(request, QUESTIONS[path])
            if question.model not in (None, self.model):
                message = f"The model `{question.model}` does not exist."
                raise RefusedError(message, status=404, param="model")
            return question.answer(call)
        except RefusedError as refusal:
            return refusal.response(is_anthropic=path.startswith("/v1/messages"))

    async def _generate(self, answer: Whole | Stream, request: Request, send: Send) -> bool:
        finished = False
        async with anyio.create_task_group() as group:
            group.start_soon(_watch, request.receive, group.cancel_scope)
            with suppress(OSError):  # how servers of ASGI 2.4 tell that the client left
                await (self._stream(answer, send) if isinstance(answer, Stream) else self._send(answer, request, send))
                finished = True
            group.cancel_scope.cancel()
        return finished

    async def _send(self, answer: Whole, request: Request, send: Send) -> None:
        await self._pace(0, gated=True)
        for _ in range(1, answer.tokens):
            await self._pace(1, gated=True)
        await answer.response(request.scope, request.receive, send)

    async def _stream(self, answer: Stream, send: Send) -> None:
        await self._pace(0, gated=self.hold_after == 0)
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        produced = 0
        for position, event in answer.events:
            await self._pace(position - produced, gated=position >= self.hold_after)
            produced = position
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body"})

    async def _pace(self, tokens: int, *, gated: bool) -> None:
        if gated and self.gate is not None:
            await self.gate.wait()
        if tokens > 0:
            await anyio.sleep(self.delay)


def _route_path(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


async def _watch(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
