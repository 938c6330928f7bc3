"""The small JSON objects that our own endpoints are asked with."""

from __future__ import annotations

import json
from typing import Any

from starlette.types import Receive

from .._asgi import read_body
from ..errors import InvalidRequest

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
