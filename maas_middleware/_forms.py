"""Multipart requests: judged like JSON ones, with their files on disk instead of in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, replace

import anyio
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Message, Receive, Scope

from ._asgi import BODY_SECONDS, ClientLeft, header_value, new_id
from ._form_parts import (
    MAXIMUM_FIELDS,
    MAXIMUM_FILES,
    JudgedFields,
    field_head,
    file_head,
    form_headers,
    form_options,
    prompt_tokens,
    unreadable,
)
from .errors import InvalidRequest, RequestTimeout, RequestTooLarge

_PIECE_BYTES = 64 << 10

Part = tuple[str, str | UploadFile]


@dataclass(frozen=True, slots=True)
class FormRequest:
    """An `InferenceRequest` that is a multipart form. Its files have to be closed."""

    parts: tuple[Part, ...]
    model: str | None
    stream: bool
    answers: int
    cap: None = None

    @classmethod
    def judge(cls, parts: Iterable[Part]) -> FormRequest:
        """Judge a form.

        Raises:
            InvalidRequest: `invalid_value` for a field that is repeated, a file, of another case, or no number.
        """
        parts, fields = tuple(parts), JudgedFields()
        for name, value in parts:
            fields.take(name, value if isinstance(value, str) else None)
        return cls(parts, fields.model, fields.stream, fields.answers)

    def naming(self, model: str) -> FormRequest:
        """The same form for the server that knows the model by another name, without a `request_id`."""
        others = [part for part in self.parts if part[0] not in ("model", "request_id")]
        return replace(self, parts=(("model", model), *others), model=model)

    @property
    def prompt_tokens(self) -> int:
        text = sum(len(value.encode()) for _, value in self.parts if isinstance(value, str))
        media = sum(value.size or 0 for _, value in self.parts if isinstance(value, UploadFile))
        return prompt_tokens(text, media)

    async def aclose(self) -> None:
        """Delete the files, also when the request is cancelled."""
        with anyio.CancelScope(shield=True):
            for _, value in self.parts:
                if isinstance(value, UploadFile):
                    await value.close()


async def read_form(scope: Scope, receive: Receive, limit: int, seconds: float = BODY_SECONDS) -> FormRequest:
    """Read a multipart form; files of more than a megabyte go to disk.

    Raises:
        InvalidRequest: it is none, or cannot be read.
        RequestTooLarge: over `limit` bytes, counted as they come.
        RequestTimeout: it takes longer than so many seconds.
        ClientLeft: the connection closed first.
    """
    content_type = header_value(scope["headers"], b"content-type")
    form_options(content_type)
    try:
        with anyio.fail_after(seconds):
            form = await _Parser(content_type, receive, limit).parse()
    except TimeoutError:
        raise RequestTimeout from None
    except (MultiPartException, ValueError):
        raise unreadable() from None
    try:
        return FormRequest.judge(form.multi_items())
    except InvalidRequest:
        await form.close()
        raise


class _Parser(MultiPartParser):
    def __init__(self, content_type: bytes, receive: Receive, limit: int) -> None:
        headers = Headers(raw=[(b"content-type", content_type)])
        pieces = self._pieces(receive, limit)
        super().__init__(headers, pieces, max_files=MAXIMUM_FILES, max_fields=MAXIMUM_FIELDS)
        self._is_whole = False

    def on_end(self) -> None:
        self._is_whole = True

    async def _pieces(self, receive: Receive, limit: int) -> AsyncGenerator[bytes, None]:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            body = message.get("body", b"")
            size += len(body)
            if size > limit:
                raise RequestTooLarge
            yield body
            more = message.get("more_body", False)
        if not self._is_whole:  # raised in here, so that the parser deletes the files
            raise MultiPartException("the last boundary is missing")


def with_form(scope: Scope, receive: Receive, form: FormRequest) -> tuple[Scope, Receive]:
    """The scope and `receive` of the same request with this form as its body, read from its files piece by piece."""
    boundary = new_id().encode()
    heads = [_head(boundary, name, value) for name, value in form.parts]
    end = b"--" + boundary + b"--\r\n"
    length = len(end) + sum(len(head) + _size(value) + 2 for head, (_, value) in zip(heads, form.parts, strict=True))
    headers = form_headers(scope, boundary, (b"content-length", b"%d" % length))
    bodies = [value.encode() if isinstance(value, str) else value for _, value in form.parts]
    sources: list[bytes | UploadFile] = [end]
    for head, body in reversed(list(zip(heads, bodies, strict=True))):
        sources += [b"\r\n", body, head]

    async def form_receive() -> Message:
        while sources:
            source = sources[-1]
            if isinstance(source, bytes):
                sources.pop()
                return {"type": "http.request", "body": source, "more_body": bool(sources)}
            if piece := await source.read(_PIECE_BYTES):
                return {"type": "http.request", "body": piece, "more_body": True}
            sources.pop()
        return await receive()

    return {**scope, "headers": headers}, form_receive


def _head(boundary: bytes, name: str, value: str | UploadFile) -> bytes:
    if isinstance(value, str):
        return field_head(boundary, name)
    return file_head(boundary, name, value.filename, value.content_type)


def _size(value: str | UploadFile) -> int:
    return len(value.encode()) if isinstance(value, str) else value.size or 0
