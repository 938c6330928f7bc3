"""The engine behind the routes of vLLM: a simulated model for each name, which can be stopped as the real one is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.testing.model import SimulatedModel

_DEAD = b'{"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","param":null,"code":500}}'
_LAST = {"type": "http.response.body", "body": b"", "more_body": False}


class Engine:
    """Generates.

    Attributes:
        adapters: the paths of LoRA adapters by their names.
        counts: what `/metrics` tells: how generations ended, and what the middlewares add.
        under_way: one event for each generation, which is set when that has ended.
    """

    def __init__(
        self,
        name: str,
        adapters: Mapping[str, str] | None = None,
        *,
        token_seconds: float = 0.0,
        hold_after: int | None = None,
    ) -> None:
        self.name = name
        self.adapters: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.under_way: set[anyio.Event] = set()
        self._token_seconds = token_seconds
        self._hold_after = hold_after
        self._models: dict[str, SimulatedModel] = {}
        self._stopped = anyio.Event()
        self._add(name)
        for adapter, path in (adapters or {}).items():
            self.load(adapter, path)

    def load(self, adapter: str, path: str) -> None:
        self.adapters[adapter] = path
        self._add(adapter)

    def unload(self, adapter: str) -> None:
        del self.adapters[adapter], self._models[adapter]

    def asking(self, body: bytes, model: object = None) -> ASGIApp:
        """The app that answers a request, whose body has been read, as this model."""
        found = self._models.get(str(model), self._models[self.name])
        return _Generation(self, found, body, self._stopped)

    async def stop(self, timeout: float) -> None:
        """End what runs: at once, or after so many seconds."""
        with anyio.move_on_after(timeout):
            for ended in tuple(self.under_way):
                await ended.wait()
        self._stopped.set()

    def _add(self, name: str) -> None:
        model = SimulatedModel(name, delay=self._token_seconds)
        if self._hold_after is not None:
            model.gate, model.hold_after = anyio.Event(), self._hold_after
        self._models[name] = model


class _Generation:
    def __init__(self, engine: Engine, model: SimulatedModel, body: bytes, stopped: anyio.Event) -> None:
        self._engine = engine
        self._model = model
        self._body: bytes | None = body
        self._stopped = stopped
        self._started = self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._engine.under_way.add(ended := anyio.Event())
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._generate, scope, receive, send, group.cancel_scope)
                await self._stopped.wait()
                group.cancel_scope.cancel()
            if self._stopped.is_set() and not self._ended:
                await self._die(scope, receive, send)
        finally:
            self._engine.under_way.remove(ended)
            ended.set()
            reason = "stop" if self._ended else "abort"
            self._engine.counts[f'vllm:request_success_total{{finished_reason="{reason}"}}'] += 1

    async def _generate(self, scope: Scope, receive: Receive, send: Send, others: anyio.CancelScope) -> None:
        async def replayed_receive() -> Message:
            if self._body is None:
                return await receive()
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}

        async def watched_send(message: Message) -> None:
            await send(message)
            self._started = True
            self._ended = message["type"] == "http.response.body" and not message.get("more_body", False)

        await self._model(scope, replayed_receive, watched_send)
        others.cancel()

    async def _die(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._started:
            await send({**_LAST, "body": b"data: " + _DEAD + b"\n\ndata: [DONE]\n\n"})
        else:
            await Response(_DEAD, 500, media_type="application/json")(scope, receive, send)


async def captured(app: ASGIApp, scope: Scope, receive: Receive) -> Response:
    """What an app answers, as a whole."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, send)
    response = Response(b"".join(message.get("body", b"") for message in messages), messages[0]["status"])
    headers: list[tuple[Any, Any]] = messages[0]["headers"]
    response.raw_headers = list(headers)
    return response
