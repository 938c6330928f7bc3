"""Small real parts that the tests of several modules put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anyio
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.catalogue import Catalogue, Model
from maas_middleware.identity import Identity
from maas_middleware.limiting import parse_limits
from maas_middleware.middleware.identity import IdentityMiddleware
from maas_middleware.testing.converse import http_scope
from maas_middleware.testing.identity import StaticIdentityProvider
from maas_middleware.tiers import GroupTierResolver, Tier

HeaderPairs = Iterable[tuple[str, str]]

ALICE = Identity("test", "alice", ("free-users",))
BOB = Identity("test", "bob", ("premium-users",))
PROVIDER = StaticIdentityProvider({"alice-token": ALICE, "bob-token": BOB})
AS_ALICE = ("authorization", "Bearer alice-token")
AS_BOB = ("authorization", "Bearer bob-token")

FREE = Tier("free", groups=("free-users",), requests=parse_limits("5/minute"), tokens=parse_limits("100/minute"))
PREMIUM = Tier(
    "premium", level=1, groups=("premium-users",), requests=parse_limits("20/minute"), tokens=parse_limits("unlimited")
)
RESOLVER = GroupTierResolver([FREE, PREMIUM])

SIMULATOR = Model("simulator", name="Simulator", upstream_model="sim", path="/simulator")
QWEN = Model("org/qwen3", upstream_model="qwen3", path="/llm/qwen3", tiers=frozenset({"premium"}))
CATALOGUE = Catalogue([SIMULATOR, QWEN])


def start(status: int = 200, *headers: tuple[bytes, bytes], **more: object) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def piece(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def last(body: bytes = b"") -> Message:
    return {"type": "http.response.body", "body": body}


def json_answer(body: bytes, status: int = 200) -> list[Message]:
    length = str(len(body)).encode()
    return [start(status, (b"content-type", b"application/json"), (b"content-length", length)), last(body)]


EVENT_STREAM = start(200, (b"content-type", b"text/event-stream; charset=utf-8"))


class Answering:
    """An app that reads its request, sends these messages and then raises; it remembers what reached it."""

    def __init__(self, *messages: Message, raises: BaseException | None = None) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self._messages = messages
        self._raises = raises

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Those of the last request."""
        return list(self.scopes[-1]["headers"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        self.bodies.append(b"")
        more = True
        while more:
            message = await receive()
            self.bodies[-1] += message.get("body", b"")
            more = message.get("more_body", False)
        for answer in self._messages:
            await send(answer)
        if self._raises is not None:
            raise self._raises


def identified(app: ASGIApp) -> ASGIApp:
    """The app inside a real `IdentityMiddleware` that knows Alice and Bob."""
    return IdentityMiddleware(app, provider=PROVIDER)


class PassingOn(BaseHTTPMiddleware):
    """The common kind of middleware, which copies the scope, and streams through queues and tasks of its own."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


def watched(app: ASGIApp, note: Callable[[Message], None]) -> ASGIApp:
    """The app, with a look at each message just before it leaves."""

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def noting_send(message: Message) -> None:
            note(message)
            await send(message)

        await app(scope, receive, noting_send)

    return server


async def knock(
    app: ASGIApp, path: str = "/v1/realtime", *, headers: HeaderPairs = (), can_deny: bool = True
) -> list[Message]:
    """Ask for a WebSocket as a server does; returns everything that the app sent.

    Args:
        can_deny: whether the server offers to deny with an HTTP response.
    """
    messages: list[Message] = []
    scope = http_scope("GET", path, headers=headers, type="websocket", scheme="ws", subprotocols=[])
    del scope["method"]
    if can_deny:
        scope["extensions"] = {"websocket.http.response": {}}

    async def receive() -> Message:
        if messages:
            await anyio.sleep_forever()
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, send)
    return messages


async def start_up(app: ASGIApp) -> list[Message]:
    """Run the startup of an app's lifespan; returns everything that the app sent."""
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        messages.append(message)

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return messages


async def starting_up(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that has a lifespan and nothing else."""
    assert scope["type"] == "lifespan"
    assert await receive() == {"type": "lifespan.startup"}
    await send({"type": "lifespan.startup.complete"})
