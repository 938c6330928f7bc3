"""A model server that answers as a small vLLM does, for tests and demonstrations."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._completion import Answer, Chat, Text

_METHODS = {"/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/models": "GET", "/health": "GET"}

_encode = msgspec.json.Encoder().encode


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
    """An ASGI app with `/v1/chat/completions`, `/v1/completions`, `/v1/models` and `/health`.

    Its answers quote the question. A word is a token, and an answer has at most 30.

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
        seen = SeenRequest(request.method, scope["path"], request.headers.raw, await request.body())
        self.requests.append(seen)
        try:
            if await self._respond(request, seen.body, send):
                seen.outcome = "finished"
        finally:
            seen.outcome = seen.outcome or "cancelled"
            seen.done.set()

    async def _respond(self, request: Request, body: bytes, send: Send) -> bool:
        app = self.failure or self._route(request) or self._judge(request, body)
        if isinstance(app, Answer):
            return await self._generate(app, request, send)
        await app(request.scope, request.receive, send)
        return True

    def _route(self, request: Request) -> Response | None:
        path = _route_path(request.scope)
        method = _METHODS.get(path)
        if method is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        if request.method != method:
            return JSONResponse({"detail": "Method Not Allowed"}, 405, {"allow": method})
        if path == "/health":
            return Response()
        if path == "/v1/models":
            card = {"id": self.model, "object": "model", "created": int(self._clock()), "owned_by": "vllm"}
            return JSONResponse({"object": "list", "data": [{**card, "root": self.model, "max_model_len": 8192}]})
        return None

    def _judge(self, request: Request, body: bytes) -> Answer | Response:
        kind: type[Chat | Text] = Chat if _route_path(request.scope) == "/v1/chat/completions" else Text
        try:
            asked = msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _refusal(400, "BadRequestError", str(error))
        if asked.model not in (None, self.model):
            return _refusal(404, "NotFoundError", f"The model `{asked.model}` does not exist.", "model")
        if asked.stream_options is not None and not asked.stream:
            message = "Stream options can only be defined when `stream=True`."
            return _refusal(400, "BadRequestError", message, "stream_options")
        request_id = request.headers.get("x-request-id", str(len(self.requests)))
        return Answer(asked, self.model, request_id, int(self._clock()))

    async def _generate(self, answer: Answer, request: Request, send: Send) -> bool:
        finished = False
        async with anyio.create_task_group() as group:
            group.start_soon(_watch, request.receive, group.cancel_scope)
            with suppress(OSError):  # how servers of ASGI 2.4 tell that the client left
                await (self._stream(answer, send) if answer.asked.stream else self._send(answer, request, send))
                finished = True
            group.cancel_scope.cancel()
        return finished

    async def _send(self, answer: Answer, request: Request, send: Send) -> None:
        for position in range(len(answer.tokens)):
            await self._pace(position, gated=True)
        await JSONResponse(answer.document())(request.scope, request.receive, send)

    async def _stream(self, answer: Answer, send: Send) -> None:
        await self._pace(0, gated=self.hold_after == 0)
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for position, chunk in answer.chunks():
            await self._pace(position, gated=position >= self.hold_after)
            await send(_event(_encode(chunk)))
        await send(_event(b"[DONE]"))
        await send({"type": "http.response.body"})

    async def _pace(self, position: int, *, gated: bool) -> None:
        if gated and self.gate is not None:
            await self.gate.wait()
        if position > 0:
            await anyio.sleep(self.delay)


def _route_path(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


async def _watch(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _event(data: bytes) -> Message:
    return {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}


def _refusal(status: int, kind: str, message: str, param: str | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)
