"""Which headers a proxy forwards, and which it returns."""

from __future__ import annotations

import re

from starlette.types import Scope

from .._asgi import Headers
from ..catalogue import Model

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection"}
    | {b"proxy-authenticate", b"proxy-authorization"}
)
_NOT_FORWARDED = _HOP_BY_HOP | {
    *(b"host", b"authorization", b"x-api-key", b"api-key", b"cookie"),
    *(b"expect", b"forwarded", b"via", b"x-real-ip"),
    # what would change the path or the method, ask for a part of the answer, or steer vLLM's routing
    *(b"x-original-url", b"x-rewrite-url", b"x-http-method", b"x-http-method-override", b"x-method-override"),
    *(b"range", b"if-range", b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"),
    b"x-data-parallel-rank",
}
_NOT_RETURNED = _HOP_BY_HOP | {
    *(b"server", b"date", b"set-cookie", b"via", b"location", b"content-location", b"link", b"alt-svc"),
    *(b"www-authenticate", b"retry-after", b"x-powered-by", b"x-request-id"),
}
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_WAITS = {
    b"retry-after": re.compile(rb"[0-9]{1,9}"),
    b"retry-after-ms": re.compile(rb"[0-9]{1,12}"),
    b"x-should-retry": re.compile(rb"true|false"),
}
_NOT_RETURNED_PREFIXES = (b"x-ratelimit-", b"ratelimit", b"x-odhu-", b"x-envoy-", b"x-upstream", b"x-served-by")


def request_headers(scope: Scope, host: bytes, model: Model) -> Headers:
    """What the upstream reads: the client's headers without its credentials and what only concerns one connection."""
    given = _lowercase(scope["headers"])
    # whoever could take the length away by naming it would break the framing
    dropped = _NOT_FORWARDED | (_named_by_connection(given) - {b"content-length"})
    is_chunked = _is_chunked(scope, {name for name, _ in given})
    if is_chunked:
        dropped |= {b"content-length"}  # RFC 9112 6.3
    headers = [pair for pair in given if pair[0] not in dropped and not pair[0].startswith(b"x-forwarded-")]
    headers.insert(0, (b"host", host))
    if not any(name == b"accept-encoding" for name, _ in headers):
        headers.append((b"accept-encoding", b"identity"))
    if is_chunked:
        headers.append((b"transfer-encoding", b"chunked"))
    if model.api_key is not None:
        headers.append((b"authorization", b"Bearer " + model.api_key.encode()))
    return headers


def _is_chunked(scope: Scope, names: set[bytes]) -> bool:
    if b"transfer-encoding" in names:
        return True
    # HTTP/2 and 3 frame bodies below their headers
    may_have_body = scope["http_version"] not in ("1.0", "1.1") and scope["method"] not in ("GET", "HEAD")
    return may_have_body and b"content-length" not in names


def response_headers(given: Headers) -> Headers:
    """What the client reads: nothing that tells about the upstream; event streams are not to be buffered."""
    given = _lowercase(given)
    dropped = _NOT_RETURNED | _named_by_connection(given)
    if any(name == b"transfer-encoding" for name, _ in given):
        dropped |= {b"content-length"}  # RFC 9112 6.3: it counts for nothing
    headers = [pair for pair in given if pair[0] not in dropped and _is_returned(*pair)]
    if not any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers):
        return headers
    headers = [pair for pair in headers if pair[0] not in (b"cache-control", b"x-accel-buffering")]
    return [*headers, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def _is_returned(name: bytes, value: bytes) -> bool:
    # a server would refuse to send control characters, after we thought that we had answered
    return not name.startswith(_NOT_RETURNED_PREFIXES) and _CONTROL.search(name + value) is None


def upstream_wait(given: Headers) -> Headers:
    """When the upstream wants to be asked again, each header once."""
    waits = {name: value for name, value in _lowercase(given) if name in _WAITS and _WAITS[name].fullmatch(value)}
    return list(waits.items())


def _lowercase(headers: Headers) -> Headers:
    return [(name.lower(), value) for name, value in headers]


def _named_by_connection(headers: Headers) -> set[bytes]:
    return {token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")}
