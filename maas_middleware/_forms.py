"""Multipart requests: judged like JSON ones, with their files on disk instead of in memory."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, replace

import anyio
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Message, Receive, Scope

from ._asgi import BODY_HEADERS, BODY_SECONDS, ClientLeft, header_value, new_id, without_headers
from .errors import InvalidRequest, RequestTimeout, RequestTooLarge
from .requests import BYTES_PER_TOKEN

_MAXIMUM_FIELDS = 100
_MAXIMUM_FILES = 20
_PIECE_BYTES = 64 << 10
_BYTES_PER_MEDIA_TOKEN = 1600  # a second of audio at 128 kbit/s is taken for 10 tokens
_JUDGED = ("model", "stream", "n", "request_id")
# HTML, "Multipart form data", and what parsers take for an escape: a name must mean the same to all of them
_ESCAPES = {code: f"%{code:02X}" for code in (*range(32), ord('"'), ord("\\"), 127)}
_MEDIA_TYPE = re.compile(r"[ -~]+")

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
        parts = tuple(parts)
        fields: dict[str, str] = {}
        for name, value in parts:
            if name.casefold() not in _JUDGED:
                continue
            if name not in _JUDGED or name in fields or not isinstance(value, str):
                raise _invalid(name)
            fields[name] = value
        count = fields.get("n", "1")
        if not (count.isascii() and count.isdigit() and len(count) < 6):
            raise _invalid("n")
        stream = fields.get("stream", "").strip().lower() in ("true", "1", "on", "yes", "t", "y")
        return cls(parts, fields.get("model"), stream, max(1, int(count)))

    def naming(self, model: str) -> FormRequest:
        """The same form for the server that knows the model by another name, without a `request_id`."""
        others = [part for part in self.parts if part[0] not in ("model", "request_id")]
        return replace(self, parts=(("model", model), *others), model=model)

    @property
    def prompt_tokens(self) -> int:
        """4 bytes of text are taken for a token, and 1,600 bytes of a file."""
        text = sum(len(value.encode()) for _, value in self.parts if isinstance(value, str))
        media = sum(value.size or 0 for _, value in self.parts if isinstance(value, UploadFile))
        return -(-text // BYTES_PER_TOKEN) + -(-media // _BYTES_PER_MEDIA_TOKEN)

    async def aclose(self) -> None:
        """Delete the files, also when the request is cancelled."""
        with anyio.CancelScope(shield=True):
            for _, value in self.parts:
                if isinstance(value, UploadFile):
                    await value.close()


def _invalid(name: str) -> InvalidRequest:
    return InvalidRequest(f"`{name}` has an invalid value", code="invalid_value", param=name)


async def read_form(scope: Scope, receive: Receive, limit: int, seconds: float = BODY_SECONDS) -> FormRequest:
    """Read a multipart form; files of more than a megabyte go to disk.

    Raises:
        InvalidRequest: it is none, or cannot be read.
        RequestTooLarge: over `limit` bytes, counted as they come.
        RequestTimeout: it takes longer than so many seconds.
        ClientLeft: the connection closed first.
    """
    content_type = header_value(scope["headers"], b"content-type")
    kind, options = parse_options_header(content_type)
    # other charsets would be decoders of the client's choice
    if kind != b"multipart/form-data" or options.get(b"charset", b"utf-8").lower() != b"utf-8":
        message = "The request body has to be multipart/form-data in UTF-8"
        raise InvalidRequest(message, code="unsupported_media_type", status=415)
    try:
        with anyio.fail_after(seconds):
            form = await _Parser(content_type, receive, limit).parse()
    except TimeoutError:
        raise RequestTimeout from None
    except (MultiPartException, ValueError):
        raise InvalidRequest("The request body is not a readable form", code="invalid_form") from None
    try:
        return FormRequest.judge(form.multi_items())
    except InvalidRequest:
        await form.close()
        raise


class _Parser(MultiPartParser):
    def __init__(self, content_type: bytes, receive: Receive, limit: int) -> None:
        headers = Headers(raw=[(b"content-type", content_type)])
        pieces = self._pieces(receive, limit)
        super().__init__(headers, pieces, max_files=_MAXIMUM_FILES, max_fields=_MAXIMUM_FIELDS)
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
    headers = [
        *without_headers(scope["headers"], b"content-type", b"content-encoding", *BODY_HEADERS),
        (b"content-type", b"multipart/form-data; boundary=" + boundary),
        (b"content-length", b"%d" % length),
    ]
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
    lines = [b"--" + boundary, b'Content-Disposition: form-data; name="%s"' % _quoted(name)]
    if isinstance(value, UploadFile):
        lines[1] += b'; filename="%s"' % _quoted(value.filename or "")
        media_type = value.content_type or ""
        known = media_type if _MEDIA_TYPE.fullmatch(media_type) else "application/octet-stream"
        lines.append(b"Content-Type: " + known.encode())
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _quoted(text: str) -> bytes:
    return text.translate(_ESCAPES).encode()


def _size(value: str | UploadFile) -> int:
    return len(value.encode()) if isinstance(value, str) else value.size or 0
