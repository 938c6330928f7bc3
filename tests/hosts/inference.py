"""Inference apps as their authors write them with FastAPI and Starlette, and the ways to put something round them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware import MaaSMiddleware, Settings
from maas_middleware.endpoints import CHAT_COMPLETIONS

MODEL = "tiny"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ENDLESS = "and so on"


@dataclass
class Notes:
    """What the author of a host app can see.

    Attributes:
        lifespan: what happened to the app: `up`, `down`.
        seen: the caller of every inference request, as the app knows them.
        cancelled: set when the generator of a stream that would not end was cancelled.
        served: set when a request for such a stream is over, as the server sees it.
    """

    lifespan: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    cancelled: anyio.Event = field(default_factory=anyio.Event)
    served: anyio.Event = field(default_factory=anyio.Event)


class Question(BaseModel):
    model: str
    messages: list[dict[str, Any]]
    stream: bool = False
    stream_options: dict[str, Any] | None = None

    @property
    def is_endless(self) -> bool:
        return bool(self.messages[-1]["content"] == ENDLESS)


def completion(question: Question) -> dict[str, Any]:
    message = {"role": "assistant", "content": "Well, fine."}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "c", "object": "chat.completion", "model": question.model, "choices": choices, "usage": USAGE}


def _event(question: Question, choices: list[dict[str, Any]], **more: Any) -> str:
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": question.model, "choices": choices, **more}
    return f"data: {json.dumps(chunk)}\n\n"


def answer(question: Question, notes: Notes) -> Response:
    """A whole answer, or a stream that ends, or one that goes on for ever."""
    if not question.stream:
        return JSONResponse(completion(question))

    async def generate() -> AsyncIterator[str]:
        for word in ("Well, ", "fine."):
            yield _event(question, [{"index": 0, "delta": {"content": word}}])
        if question.is_endless:
            try:
                await anyio.sleep_forever()
            finally:
                notes.cancelled.set()
        if (question.stream_options or {}).get("include_usage"):
            yield _event(question, [], usage=USAGE)
        yield "data: [DONE]\n\n"

    return StreamingResponse(generate(), media_type="text/event-stream")


def routes(notes: Notes, prefix: str = "/v1") -> APIRouter:
    router = APIRouter()

    @router.post(f"{prefix}/chat/completions")
    async def chat(question: Question, request: Request) -> Response:
        notes.seen.append(request.state.maas.identity.name)
        return answer(question, notes)

    @router.get("/health")
    async def health() -> str:
        return "the host's own"

    @router.get("/page")
    async def page() -> str:
        return "a page"

    return router


def _noting(notes: Notes) -> Callable[[Any], Any]:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        notes.lifespan.append("up")
        yield
        notes.lifespan.append("down")

    return lifespan


def fastapi_app(notes: Notes, prefix: str = "/v1", **options: Any) -> FastAPI:
    app = FastAPI(lifespan=_noting(notes), **options)
    app.include_router(routes(notes, prefix))
    return app


def starlette_app(notes: Notes, **options: Any) -> Starlette:
    async def chat(request: Request) -> Response:
        notes.seen.append(request.state.maas.identity.name)
        return answer(Question.model_validate(await request.json()), notes)

    async def health(request: Request) -> Response:
        return JSONResponse("the host's own")

    async def page(request: Request) -> Response:
        return JSONResponse("a page")

    own = [Route(CHAT_COMPLETIONS, chat, methods=["POST"]), Route("/health", health), Route("/page", page)]
    return Starlette(routes=own, lifespan=_noting(notes), **options)


Pattern = Callable[[Notes, Settings], ASGIApp]


def added(notes: Notes, settings: Settings) -> ASGIApp:
    app = fastapi_app(notes)
    app.add_middleware(MaaSMiddleware, settings=settings)
    return app


def listed(notes: Notes, settings: Settings) -> ASGIApp:
    return starlette_app(notes, middleware=[Middleware(MaaSMiddleware, settings=settings)])


def wrapped(notes: Notes, settings: Settings) -> ASGIApp:
    return MaaSMiddleware(fastapi_app(notes), settings=settings)


def added_below(notes: Notes, settings: Settings) -> ASGIApp:
    outer, inner = FastAPI(lifespan=_noting(notes)), FastAPI()
    inner.include_router(routes(notes))
    inner.add_middleware(MaaSMiddleware, settings=settings)
    outer.mount("/llm", inner)
    return outer


def wrapped_below(notes: Notes, settings: Settings) -> ASGIApp:
    inner = MaaSMiddleware(fastapi_app(Notes(seen=notes.seen, cancelled=notes.cancelled)), settings=settings)
    return Starlette(routes=[Mount("/llm", app=inner)], lifespan=_noting(notes))


def listed_below(notes: Notes, settings: Settings) -> ASGIApp:
    inner = starlette_app(Notes(seen=notes.seen, cancelled=notes.cancelled))
    mount = Mount("/llm", routes=inner.routes, middleware=[Middleware(MaaSMiddleware, settings=settings)])
    return Starlette(routes=[mount], lifespan=_noting(notes))


def versioned_below(notes: Notes, settings: Settings) -> ASGIApp:
    """An app whose routes are `/chat/completions`, below `/v1`."""
    outer, inner = FastAPI(lifespan=_noting(notes)), FastAPI()
    inner.include_router(routes(notes, ""))
    inner.add_middleware(MaaSMiddleware, settings=settings)
    outer.mount("/v1", inner)
    return outer


def behind_a_stripping_proxy(notes: Notes, settings: Settings) -> ASGIApp:
    app = fastapi_app(notes)
    app.root_path = "/srv"  # as `FastAPI(root_path=)` does, whose newest version warns of it
    app.add_middleware(MaaSMiddleware, settings=settings)
    return app


# with what comes before `/v1` in its URLs
PATTERNS: dict[str, tuple[Pattern, str]] = {
    "add_middleware": (added, ""),
    "middleware-list": (listed, ""),
    "wrapped": (wrapped, ""),
    "added-below-a-mount": (added_below, "/llm"),
    "wrapped-below-a-mount": (wrapped_below, "/llm"),
    "listed-below-a-mount": (listed_below, "/llm"),
    "mounted-at-v1": (versioned_below, ""),
    "fastapi-root-path": (behind_a_stripping_proxy, ""),
}


class Served:
    """An app, and when its endless streams are over for the server."""

    def __init__(self, app: ASGIApp, notes: Notes) -> None:
        self.app = app
        self._notes = notes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            if self._notes.cancelled.is_set():
                self._notes.served.set()
