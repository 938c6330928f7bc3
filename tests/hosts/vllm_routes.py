"""The routes of vLLM 0.33, with what is behind them as far as a client can see it."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from .vllm_engine import Engine, captured

Handler = Callable[..., Awaitable[Response]]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str | None = None
    stream: bool | None = False


class _Chat(_Asked):
    messages: list[dict[str, Any]]


class _Completion(_Asked):
    prompt: str | list[Any]


class _Input(_Asked):
    input: str | list[Any]


class _Rerank(_Asked):
    query: str
    documents: list[Any]


class _Score(_Asked):
    text_1: str | list[Any]
    text_2: str | list[Any]


class _Untokenized(_Asked):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


class _Tokens(_Asked):
    tokens: list[int]


_JSON_ROUTES: dict[str, type[_Asked]] = {
    "/v1/chat/completions": _Chat,
    "/v1/completions": _Completion,
    "/v1/messages": _Chat,
    "/v1/messages/count_tokens": _Chat,
    "/v1/responses": _Input,
    "/v1/embeddings": _Input,
    "/pooling": _Input,
    "/classify": _Input,
    **dict.fromkeys(("/score", "/v1/score"), _Score),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), _Rerank),
    "/tokenize": _Untokenized,
    "/detokenize": _Tokens,
}
# in vLLM's order: the first shape that the body fits decides
_INVOCATIONS: tuple[tuple[type[_Asked], str], ...] = (
    (_Chat, "/v1/chat/completions"),
    (_Completion, "/v1/completions"),
    (_Input, "/v1/embeddings"),
    (_Rerank, "/rerank"),
    (_Score, "/score"),
)


class _Streamed(Response):
    """An answer that is written as it comes, and listens for the client itself."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def add_routes(app: FastAPI, engine: Engine, *, force_include_usage: bool) -> None:
    """Add everything that vLLM serves with all tasks."""
    _add_inference(app, engine, force_include_usage)
    _add_information(app, engine)
    _add_administration(app, engine)
    for kind in (HTTPException, RequestValidationError, ValueError, Exception):
        app.exception_handler(kind)(_tell)


def _add_inference(app: FastAPI, engine: Engine, force_include_usage: bool) -> None:
    async def answer(path: str, asked: _Asked, request: Request) -> Response:
        body = await request.body()
        if asked.stream and force_include_usage:
            everything = {"include_usage": True, "continuous_usage_stats": True}
            body = json.dumps({**json.loads(body), "stream_options": everything}).encode()
        scope = {**request.scope, "path": request.scope.get("root_path", "") + path}
        generation = engine.asking(body, asked.model)
        if asked.stream:
            return _Streamed(lambda _, receive, send: generation(scope, receive, send))
        return await captured(generation, scope, _never)

    def add_json(path: str, kind: type[_Asked]) -> None:
        async def endpoint(asked: _Asked, request: Request) -> Response:
            return await answer(path, asked, request)

        endpoint.__annotations__["asked"] = kind  # as FastAPI reads it
        app.post(path, dependencies=[Depends(_json_only)])(_with_cancellation(endpoint))

    def add_form(path: str) -> None:
        @app.post(path)
        async def endpoint(request: Request) -> Response:
            return _Streamed(engine.asking(await request.body()))

    for path, kind in _JSON_ROUTES.items():
        add_json(path, kind)
    for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        add_form(path)

    @app.post("/invocations", dependencies=[Depends(_json_only)])
    async def invocations(request: Request) -> Response:
        body = await request.json()
        for kind, path in _INVOCATIONS:
            try:
                asked = kind.model_validate(body)
            except ValidationError:
                continue
            return await answer(path, asked, request)
        raise ValueError("Cannot find suitable handler for request.")

    @app.websocket("/v1/realtime")
    async def realtime(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json({"type": "session.created"})
        await websocket.close()


def _add_information(app: FastAPI, engine: Engine) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        adapters = [(adapter, path, engine.name) for adapter, path in engine.adapters.items()]
        known = [(engine.name, f"/models/{engine.name}", None), *adapters]
        return JSONResponse({"object": "list", "data": [_card(*model) for model in known]})

    @app.get("/v1/responses/{response_id}")
    async def stored(response_id: str) -> dict[str, str]:
        return {"id": response_id, "object": "response"}

    @app.get("/health")
    @app.get("/ping")
    @app.post("/ping")
    async def health() -> Response:
        return Response()

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": "0.33.0"}

    async def metrics(scope: Scope, receive: Receive, send: Send) -> None:
        counts = {**engine.counts, "vllm:num_requests_running": len(engine.under_way), "process_id": os.getpid()}
        text = "".join(f"{name} {value}\n" for name, value in counts.items())
        await PlainTextResponse(text)(scope, receive, send)

    mount = Mount("/metrics", metrics)
    mount.path_regex = re.compile("^/metrics(?P<path>.*)$")
    app.routes.append(mount)


def _add_administration(app: FastAPI, engine: Engine) -> None:
    @app.get("/load")
    async def load() -> dict[str, int]:
        return {"server_load": len(engine.under_way)}

    @app.get("/kv_event_sources")
    async def sources() -> dict[str, str]:
        return {}

    @app.post("/scale_elastic_ep")
    async def scale() -> dict[str, str]:
        return {"message": "Scaled"}

    @app.post("/is_scaling_elastic_ep")
    async def is_scaling() -> dict[str, bool]:
        return {"is_scaling_elastic_ep": False}

    @app.post("/v1/load_lora_adapter")
    async def load_adapter(asked: Annotated[dict[str, str], Body()]) -> Response:
        engine.load(asked["lora_name"], asked["lora_path"])
        return PlainTextResponse(f"Success: LoRA adapter '{asked['lora_name']}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload_adapter(asked: Annotated[dict[str, str], Body()]) -> Response:
        engine.unload(asked["lora_name"])
        return PlainTextResponse(f"Success: LoRA adapter '{asked['lora_name']}' removed successfully.")

    @app.post("/sleep")
    async def sleep() -> Response:
        return Response()

    @app.get("/server_info")
    async def server_info() -> dict[str, object]:
        return {"vllm_config": "...", "environment": dict(os.environ)}


async def _json_only(request: Request) -> None:
    if request.headers.get("content-type", "").lower().partition(";")[0] != "application/json":
        raise RequestValidationError([{"msg": "Unsupported Media Type: Only 'application/json' is allowed", "loc": ()}])


def _with_cancellation(handler: Handler) -> Handler:
    """Ends what nobody waits for any more; the answer is empty then, and its status 200."""

    @functools.wraps(handler)
    async def wrapper(asked: Any, request: Request) -> Response:
        answering = asyncio.ensure_future(handler(asked, request))
        leaving = asyncio.ensure_future(_left(request))
        done, pending = await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return answering.result() if answering in done else Response()

    return wrapper


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _never() -> Any:
    await asyncio.get_running_loop().create_future()


async def _tell(request: Request, error: Exception) -> Response:
    status, param, kind, message = 500, None, "InternalServerError", str(error)
    if isinstance(error, HTTPException):
        status, kind, message = error.status_code, HTTPStatus(error.status_code).phrase, error.detail
    elif isinstance(error, RequestValidationError):
        status, kind, message = 400, "Bad Request", str(error.errors())
        param = ".".join(map(str, error.errors()[0]["loc"]))
    elif isinstance(error, ValueError):
        status, kind = 400, "BadRequestError"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)


def _card(name: str, root: str, parent: str | None) -> dict[str, Any]:
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "vllm", "root": root}
    permission = {"id": "modelperm-1", "object": "model_permission", "allow_sampling": True, "organization": "*"}
    return {**card, "parent": parent, "max_model_len": 32768 if parent is None else None, "permission": [permission]}
