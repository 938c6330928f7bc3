"""Requests whose bodies are forwarded while they come."""

from __future__ import annotations

import asyncio

from python_multipart.multipart import parse_options_header
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._asgi import ClientLeft, content_length, header_value
from ._form_parts import form_headers, prompt_tokens
from ._streamed_forms import StreamedForm
from .catalogue import Model
from .context import ensure_context
from .entitlement import check_features
from .errors import MaaSError, ModelNotFound, RequestTimeout, RequestTooLarge
from .tiers import Tier

_MAXIMUM_HELD_BYTES = 64 << 10


class Upload:
    """An `InferenceRequest` that passes while it is read: a multipart form, which is judged on its way, or octets.

    For the app a body that is refused on its way is one whose client left: it breaks off whatever it has begun, and
    nothing of that ever looked whole. Then the client is told why. Once the answer has begun the rest of the body
    decides about nothing any more.

    Args:
        model: the one that the path names.
        limit: bytes that the body may have.
        seconds: for which the client may keep us waiting, all its pieces together. How long the app takes to read them
            is not the client's fault.

    Attributes:
        scope: what the app is called with.

    Raises:
        InvalidRequest: it is neither a form in UTF-8 nor octets.
        RequestTooLarge: as it says itself.
    """

    cap: None = None

    def __init__(self, scope: Scope, receive: Receive, model: Model, tier: Tier, *, limit: int, seconds: float) -> None:
        content_type = header_value(scope["headers"], b"content-type")
        self._form: StreamedForm | None = None
        self.scope = scope
        if parse_options_header(content_type)[0] != b"application/octet-stream":
            self._form = StreamedForm(content_type, model.upstream_model)
            headers = form_headers(scope, self._form.boundary, (b"transfer-encoding", b"chunked"))
            self.scope = {**scope, "headers": headers}
        self.model = model.upstream_model
        length = content_length(scope["headers"])
        self._expected = limit if length is None else length
        if self._expected > limit:
            raise RequestTooLarge
        self._receive = receive
        self._located = model
        self._tier = tier
        self._limit = limit
        self._seconds = seconds
        self._size = 0
        self._held = b""
        self._ending = b""
        self._is_over = False
        self._has_ended = False
        self._is_answered = False
        self._refusal: MaaSError | None = None

    @property
    def stream(self) -> bool:
        return self._form is not None and self._form.fields.stream

    @property
    def answers(self) -> int:
        return 1 if self._form is None else self._form.fields.answers

    @property
    def prompt_tokens(self) -> int:
        """What was read, and until the end what may still come, which is taken for media.

        Where the client does not say how much that is, it is all that it may send: a reservation takes no more than
        what is left, and whoever wants less of it reserved says the length.
        """
        unread = 0 if self._is_over else max(0, self._expected - self._size)
        text, media = (0, self._size) if self._form is None else (self._form.text_bytes, self._form.file_bytes)
        return prompt_tokens(text, media + unread)

    async def read_fields(self) -> None:
        """Read what stands in front of the first file, where clients say what they ask for.

        Raises:
            InvalidRequest, ModelNotFound, AccessDenied, RequestTooLarge, RequestTimeout: it is refused.
            ClientLeft: the connection closed first.
        """
        while not (self._form is None or self._form.has_file or self._is_over or len(self._held) > _MAXIMUM_HELD_BYTES):
            await self._read()

    async def run(self, app: ASGIApp, send: Send) -> MaaSError | None:
        """Call the app; returns the refusal that the client is to be answered with, if any."""

        async def watching_send(message: Message) -> None:
            if self._refusal is None:  # else it is about a client that left
                self._is_answered |= message["type"] == "http.response.start"
                await send(message)

        try:
            await app(self.scope, self._pass, watching_send)
        except Exception:
            if self._refusal is None:
                raise
        return self._refusal

    async def _pass(self) -> Message:
        self._expected = 0  # what might come was reserved; from here on what did counts
        if self._has_ended:
            return await self._receive()
        try:
            if self._refusal is None and not self._held and not self._is_over:
                await self._read()
        except ClientLeft:
            return {"type": "http.disconnect"}
        except MaaSError as error:
            if self._is_answered:
                return await self._until_client_leaves()
            self._refusal = error
            ensure_context(self.scope).refusal = error.code
        return self._next() if self._refusal is None else {"type": "http.disconnect"}

    def _next(self) -> Message:
        piece, self._held = self._held, b""
        if piece or not self._is_over:
            return {"type": "http.request", "body": piece, "more_body": True}
        self._has_ended = True
        return {"type": "http.request", "body": self._ending, "more_body": False}

    async def _until_client_leaves(self) -> Message:
        while (message := await self._receive())["type"] != "http.disconnect":
            pass
        return message

    async def _read(self) -> None:
        message = await self._wait()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body: bytes = message.get("body", b"")
        self._size += len(body)
        if self._size > self._limit:
            raise RequestTooLarge
        is_over = not message.get("more_body", False)
        self._held += body if self._form is None else self._judged(self._form, body, is_over)
        self._is_over = is_over

    async def _wait(self) -> Message:
        time = asyncio.get_running_loop().time
        began = time()
        try:
            async with asyncio.timeout(self._seconds):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout from None
        self._seconds -= time() - began
        return message

    def _judged(self, form: StreamedForm, body: bytes, is_over: bool) -> bytes:
        output = form.feed(body)
        if is_over:
            self._ending = form.end()
        named = form.fields.model
        if named is not None and not self._located.is_called(named):
            raise ModelNotFound(named)
        check_features(self, self._tier)
        return output
