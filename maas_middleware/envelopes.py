"""How errors look to clients, in every dialect, and what is read of the errors of others."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .dialects import ErrorFormat
from .errors import (
    InternalError,
    MaaSError,
    ModelNotFound,
    NotFound,
    UpstreamError,
    UpstreamRefusal,
    UpstreamTimeout,
    UpstreamUnavailable,
)

MAXIMUM_ERROR_BYTES = 64 << 10  # as much of a foreign error is read

# the types of Anthropic's API reference, "Errors"; what is not here is `invalid_request_error` or `api_error`
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

# what no user has to know: a stack, or where a server is
_TOO_MUCH = re.compile(
    rb"Traceback \(most recent call last\)|File \\?\"[^\"]+\", line \d"
    rb"|\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b"
    rb"|\.svc\b|\blocalhost\b|\bhttps?://[^/\s\"]+:\d"
)

_encode = msgspec.json.Encoder().encode


def envelope(error: MaaSError, request_id: str | None, errors: ErrorFormat = "openai") -> bytes:
    """The JSON body of an error: `{"error": {"message", "type", "param", "code", "details"?}}`.

    In Anthropic's shape `{"type": "error", "error": {"type", "message", "details"?}, "request_id"}`. The message of a
    5xx names the request.
    """
    details = {} if error.details is None else {"details": error.details}
    message = _message(error, request_id)
    if errors != "anthropic":
        body = {"message": message, "type": error.type, "param": error.param, "code": error.code, **details}
        return _encode({"error": body})
    other = "invalid_request_error" if error.status < 500 else "api_error"
    body = {"type": _ANTHROPIC_TYPES.get(error.status, other), "message": message, **details}
    return _encode({"type": "error", "error": body, "request_id": request_id})


def error_event(error: MaaSError, request_id: str | None, errors: ErrorFormat, sequence_number: int) -> bytes:
    """The server-sent event that ends a stream which broke off; `responses` numbers its events."""
    if errors == "openai":
        return b"data: " + envelope(error, request_id) + b"\n\n"
    data = envelope(error, request_id, errors)
    if errors == "responses":
        fields = {"code": error.code, "message": _message(error, request_id), "param": error.param}
        data = _encode({"type": "error", **fields, "sequence_number": sequence_number})
    return b"event: error\ndata: " + data + b"\n\n"


def _message(error: MaaSError, request_id: str | None) -> str:
    is_named = error.status >= 500 and request_id is not None
    return f"{error.message} (request {request_id})" if is_named else error.message


_SERVER_ERRORS: dict[int, type[MaaSError]] = {
    502: UpstreamError,
    503: UpstreamUnavailable,
    504: UpstreamTimeout,
    529: UpstreamUnavailable,  # Anthropic's "overloaded"
}
_REFUSALS: dict[int, tuple[str, str]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", "access_denied"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
    422: ("invalid_request_error", "unprocessable_entity"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


def inner_error(status: int, body: bytes, *, is_behind_us: bool = True) -> MaaSError:
    """Read the error answer of an upstream or an inner app, of whatever shape, as one of ours.

    A 4xx keeps its message, its `param` and a `code` that is a string, unless they hold a stack or an address. The
    messages of a 5xx and of a 404 are ours: theirs name paths and aliases. Behind us a 401 or 403 becomes a 502: the
    caller's credential was right, and the one that was refused is ours.
    """
    if status in (401, 403) and is_behind_us:
        return UpstreamError()
    if status >= 500:
        return _SERVER_ERRORS.get(status, InternalError)()
    try:
        answer = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        answer = {}
    error = answer.get("error", answer.get("detail", answer))  # vLLM up to 0.10 has its fields at the top level
    if isinstance(error, list) and error:  # FastAPI's 422 has a list of problems
        error = error[0]
    fields = error if isinstance(error, dict) else {"message": error}
    message = _text(fields.get("message", fields.get("msg")))
    code = _text(fields.get("code"))
    param = _text(fields.get("param")) or _text(_location(fields.get("loc")))
    if status == 404:
        is_about_a_model = param == "model" or "model" in f"{code} {message}".lower()
        if is_about_a_model or is_behind_us:
            return ModelNotFound() if is_about_a_model else NotFound()
    return _refusal(status, message, param, code)


def _location(value: object) -> str | None:
    """FastAPI's `["body", "messages", 0]` as a parameter: `messages.0`."""
    return ".".join(map(str, value[1:])) or None if isinstance(value, list) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value and not tells_too_much(value.encode()) else None


def _refusal(status: int, message: str | None, param: str | None, code: str | None) -> MaaSError:
    kind, default_code = _REFUSALS.get(status, ("invalid_request_error", "invalid_request"))
    return UpstreamRefusal(message, status=status, kind=kind, code=code or default_code, param=param)


def tells_too_much(text: bytes) -> bool:
    """Whether the text of somebody else's error holds a stack or an address of a server."""
    return _TOO_MUCH.search(text) is not None


def reported_error(document: bytes) -> MaaSError | None:
    """Read the error that a JSON answer or event is, though it was sent as a success; None where it is no error.

    Where its `code` is a status from 400 to 499 its message is kept, as in `inner_error`. A response of the Responses
    API that says why it failed is no such error, unless it tells too much.
    """
    try:
        answer = msgspec.json.decode(document, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    error = answer.get("error")
    if not error and "error" not in (answer.get("object"), answer.get("type")):
        response = answer.get("response")
        reason = response.get("error") if isinstance(response, dict) else None
        return UpstreamError() if reason and tells_too_much(_encode(reason)) else None
    code = (error if isinstance(error, dict) else answer).get("code")
    if isinstance(code, int) and 400 <= code < 500:
        return inner_error(code, document)
    return UpstreamError()
