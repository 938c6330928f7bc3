"""Apps without a server: requests that are dictionaries, and what they cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter, process_time

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.testing.converse import http_scope

from ..gateway.wire import DONE, PATH, Stream, answer, last_events, request, text_events

_MOST_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and the answer of the app that every middleware is wrapped round.

    Attributes:
        stream: of so many chunks; None is a single answer.
        token: what the caller presents.
    """

    stream: Stream | None
    token: str

    def app(self) -> ASGIApp:
        """Make the app: it sends bytes that were made before."""
        kind = b"application/json" if self.stream is None else b"text/event-stream"
        pieces = self._pieces()

        async def answering(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                raise NotImplementedError("the app itself has none")
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        return answering

    async def spent(self, app: ASGIApp, calls: int) -> float:
        """Microseconds of the processor a call, none of which begins after a tenth of a second.

        Raises:
            ValueError: the answer is not what it has to be.
        """
        head, _, body = request(self.stream, self.token).partition(b"\r\n\r\n")
        lines = (line.partition(": ") for line in head.decode().split("\r\n")[1:])
        scope = http_scope("POST", PATH, headers=[(name, value) for name, _, value in lines])
        self._check(await _called(app, scope, body))
        done, deadline, started = 0, perf_counter() + _MOST_SECONDS, process_time()
        while done < calls and perf_counter() < deadline:
            await _called(app, scope, body)
            done += 1
        return (process_time() - started) / done * 1e6

    def _pieces(self) -> list[bytes]:
        if self.stream is None:
            return [answer()]
        text, size = text_events(self.stream, self.stream.chunks), self.stream.size
        return [*(text[index : index + size] for index in range(0, len(text), size)), last_events(True)]

    def _check(self, messages: list[Message]) -> None:
        body = b"".join(message.get("body", b"") for message in messages)
        text = answer() if self.stream is None else text_events(self.stream, self.stream.chunks)
        is_whole = body.startswith(text) and (body == text if self.stream is None else body.endswith(DONE))
        if messages[0]["status"] != 200 or not is_whole:
            raise ValueError(f"answered {messages[0]['status']}: {body[:300]!r}")


@asynccontextmanager
async def alive(app: ASGIApp) -> AsyncIterator[None]:
    """Run the lifespan of an app, as servers do."""
    asked: list[Message] = [{"type": "lifespan.startup"}]
    started, ended = anyio.Event(), anyio.Event()

    async def receive() -> Message:
        if not asked:
            await ended.wait()
            return {"type": "lifespan.shutdown"}
        return asked.pop()

    async def send(message: Message) -> None:
        started.set()
        assert message["type"] in ("lifespan.startup.complete", "lifespan.shutdown.complete"), message

    async def live() -> None:
        await app({"type": "lifespan", "state": {}}, receive, send)

    async with anyio.create_task_group() as group:
        group.start_soon(live)
        await started.wait()
        yield
        ended.set()


async def _called(app: ASGIApp, scope: Scope, body: bytes) -> list[Message]:
    asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not asked:
            await asyncio.Event().wait()  # the client stays
        return asked.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    await app({**scope, "headers": list(scope["headers"]), "state": {}}, receive, send)
    return sent
