"""What multipart forms consist of, whether they are held or not: judged in one way, and written in one."""

from __future__ import annotations

import re

from python_multipart.multipart import parse_options_header
from starlette.types import Scope

from ._asgi import DESCRIBING_HEADERS, Headers, without_headers
from .errors import InvalidRequest
from .requests import BYTES_PER_TOKEN

MAXIMUM_FIELDS = 100
MAXIMUM_FILES = 20
_BYTES_PER_MEDIA_TOKEN = 1600  # a second of audio at 128 kbit/s is taken for 10 tokens
_JUDGED = ("model", "stream", "n", "request_id")
_COUNT = re.compile(r"[0-9]{1,5}")
# HTML, "Multipart form data", and what parsers take for an escape: a name must mean the same to all of them
_ESCAPES = {code: f"%{code:02X}" for code in (*range(32), ord('"'), ord("\\"), 127)}
_MEDIA_TYPE = re.compile(r"[ -~]+")


class JudgedFields:
    """The fields that decide about a form, as far as it was read."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def take(self, name: str, value: str | None) -> None:
        """Judge the next field; None is a file.

        Raises:
            InvalidRequest: `invalid_value` for one that is repeated, a file, of another case, or no number.
        """
        if name.casefold() not in _JUDGED:
            return
        if name not in _JUDGED or name in self._values or value is None:
            raise _invalid(name)
        if name == "n" and _COUNT.fullmatch(value) is None:
            raise _invalid(name)
        self._values[name] = value

    @property
    def model(self) -> str | None:
        return self._values.get("model")

    @property
    def stream(self) -> bool:
        return self._values.get("stream", "").strip().lower() in ("true", "1", "on", "yes", "t", "y")

    @property
    def answers(self) -> int:
        return max(1, int(self._values.get("n", "1")))


def _invalid(name: str) -> InvalidRequest:
    return InvalidRequest(f"`{name}` has an invalid value", code="invalid_value", param=name)


def unreadable() -> InvalidRequest:
    """What is raised for a form that cannot be parsed."""
    return InvalidRequest("The request body is not a readable form", code="invalid_form")


def form_options(content_type: bytes) -> dict[bytes, bytes]:
    """The parameters of a content type, such as `boundary`.

    Raises:
        InvalidRequest: `unsupported_media_type` where it is no form in UTF-8.
    """
    kind, options = parse_options_header(content_type)
    # other charsets would be decoders of the client's choice
    if kind != b"multipart/form-data" or options.get(b"charset", b"utf-8").lower() != b"utf-8":
        message = "The request body has to be multipart/form-data in UTF-8"
        raise InvalidRequest(message, code="unsupported_media_type", status=415)
    return options


def prompt_tokens(text: int, media: int) -> int:
    """What a model is to read: 4 bytes of text are taken for a token, and 1,600 bytes of a file."""
    return -(-text // BYTES_PER_TOKEN) + -(-media // _BYTES_PER_MEDIA_TOKEN)


def form_headers(scope: Scope, boundary: bytes, framing: tuple[bytes, bytes]) -> Headers:
    """The headers of the same request with a form of another boundary as its body."""
    return [
        *without_headers(scope["headers"], *DESCRIBING_HEADERS),
        (b"content-type", b"multipart/form-data; boundary=" + boundary),
        framing,
    ]


def field_head(boundary: bytes, name: str) -> bytes:
    """What stands before the text of a field."""
    return b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % (boundary, _quoted(name))


def file_head(boundary: bytes, name: str, filename: str | None, media_type: str | None) -> bytes:
    """What stands before a file; what is no media type becomes `application/octet-stream`."""
    media_type = media_type or ""
    known = media_type if _MEDIA_TYPE.fullmatch(media_type) else "application/octet-stream"
    lines = (
        b"--" + boundary,
        b'Content-Disposition: form-data; name="%b"; filename="%b"' % (_quoted(name), _quoted(filename or "")),
        b"Content-Type: " + known.encode(),
    )
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _quoted(text: str) -> bytes:
    return text.translate(_ESCAPES).encode()
