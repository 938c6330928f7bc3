"""Asking an app inside `UsageMiddleware`, and what there is to ask and to answer."""

from __future__ import annotations

from typing import Any

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware.catalogue import Model
from maas_middleware.context import MaaSContext, ensure_context, get_context
from maas_middleware.endpoints import CHAT_COMPLETIONS
from maas_middleware.testing.converse import Conversation, converse
from tests.parts import Answering

CHAT = {"model": "simulator", "messages": []}
STREAM = {**CHAT, "stream": True}
ASKED = {**STREAM, "stream_options": {"include_usage": True}}

USAGE = b'{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}'
JSON_ANSWER = b'{"choices":[{"message":{"content":"hi"}}],"usage":' + USAGE + b"}"
USAGE_EVENT = b'data: {"choices":[],"usage":' + USAGE + b"}\n\n"
DONE = b"data: [DONE]\n\n"
STOP = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'


def delta(text: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % text.encode()


async def ask(app: ASGIApp, path: str = CHAT_COMPLETIONS, **more: Any) -> Conversation:
    with anyio.fail_after(5):
        return await converse(app, "POST", path, **{"json": CHAT, **more})


def context_of(app: Answering) -> MaaSContext:
    return get_context(app.scopes[-1])


def serving_model(app: ASGIApp, model: Model) -> ASGIApp:
    """The app, and the model that `TierMiddleware` leaves in the context."""

    async def with_model(scope: Scope, receive: Receive, send: Send) -> None:
        ensure_context(scope).model = model
        await app(scope, receive, send)

    return with_model
