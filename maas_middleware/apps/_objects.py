"""The small JSON objects that our own endpoints are asked with, and what all of these endpoints have in common."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from .._asgi import path_below, read_body, with_headers
from ..context import ensure_context, required
from ..errors import AccessDenied, InvalidRequest, NotFound
from ..identity import Identity
from ..usage_store import UsageRecord

_MAXIMUM_BODY_BYTES = 64 << 10


async def read_object(receive: Receive) -> dict[str, Any]:
    """Read a request's body of at most 64 KiB as a JSON object; no body and `null` are an empty one.

    Raises:
        InvalidRequest: `invalid_json`.
        RequestTooLarge, RequestTimeout, ClientLeft: as `read_body`.
    """
    body = await read_body(receive, _MAXIMUM_BODY_BYTES)
    if not body.strip():
        return {}
    try:
        # the standard library reads NaN and 1e400 as numbers, so that the field that has them gets the blame
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request body is not JSON", code="invalid_json") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest("The request body is not a JSON object", code="invalid_json")
    return value


def login_of(request: Request, shell: str) -> Identity:
    """The caller, who logged in.

    Raises:
        AccessDenied: with another credential than a full login.
        LookupError: there is no IdentityMiddleware outside.
    """
    identity = required(ensure_context(request.scope).identity, shell, "identity", "IdentityMiddleware")
    if identity.restriction is not None:
        raise AccessDenied(identity.restriction)
    return identity


def item_below(scope: Scope, collection: str) -> str:
    """The id behind the path of a collection; empty for the collection itself. A trailing slash makes no difference.

    Raises:
        NotFound: there is more than an id.
    """
    item = path_below(scope, collection).removeprefix("/")
    if len(item) > 1:  # of `//` a slash stays: an id that was left out does not stand for the whole collection
        item = item.removesuffix("/")
    if "/" in item:
        raise NotFound
    return item


def uncached(send: Send) -> Send:
    """A `send` whose answers, errors as well, no cache keeps."""

    async def send_uncached(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = with_headers(message.get("headers", ()), [(b"cache-control", b"no-store")])
            message = {**message, "headers": headers}
        await send(message)

    return send_uncached


def usage_row(record: UsageRecord) -> dict[str, Any]:
    """What is told of the use of a model on a day."""
    return {
        "date": record.day.isoformat(),
        "model": record.model,
        "requests": record.requests,
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "total_tokens": record.input_tokens + record.output_tokens,
    }
