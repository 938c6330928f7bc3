"""Which headers a proxy forwards, and which it returns; and where it sends them."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import quote

import httpx
from starlette.types import Scope

from .._asgi import Headers, route_path
from .._event_streams import is_event_stream
from ..assertions import ASSERTION_HEADER
from ..errors import InvalidRequest

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
    ASSERTION_HEADER,
}
_NOT_RETURNED = _HOP_BY_HOP | {
    *(b"server", b"date", b"set-cookie", b"via", b"location", b"content-location", b"link", b"alt-svc"),
    *(b"www-authenticate", b"retry-after", b"x-powered-by", b"x-request-id"),
}
_NOT_RETURNED_PREFIXES = (b"x-ratelimit-", b"ratelimit", b"x-odhu-", b"x-envoy-", b"x-upstream", b"x-served-by")
_CONTROL = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])
_NAMING_NOTHING = frozenset({b"keep-alive", b"close"})  # what nearly all `connection` headers say
_WAITS = {
    b"retry-after": re.compile(rb"[0-9]{1,9}"),
    b"retry-after-ms": re.compile(rb"[0-9]{1,12}"),
    b"x-should-retry": re.compile(rb"true|false"),
}
_MAXIMUM_KEPT_URLS = 64


class Destination:
    """An upstream with the credential that it wants: what is the same in all requests to it is made once."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._base = httpx.URL(url)
        self._path = self._base.raw_path.rstrip(b"/")
        self._host = (b"host", self._base.netloc)
        self._credential = [] if api_key is None else [(b"authorization", b"Bearer " + api_key.encode())]
        self._url = lru_cache(maxsize=_MAXIMUM_KEPT_URLS)(self._joined)

    def url(self, scope: Scope) -> httpx.URL:
        """The route path below the base, with the query.

        Raises:
            InvalidRequest: a URL cannot have this query.
        """
        path, query = route_path(scope), scope.get("query_string", b"")
        try:
            return self._joined(path, query) if query else self._url(path)
        except (httpx.InvalidURL, UnicodeDecodeError):
            raise InvalidRequest("The query of the URL is malformed") from None

    def _joined(self, path: str, query: bytes = b"") -> httpx.URL:
        target = self._path + quote(path).encode() + (b"?" + query if query else b"")
        return self._base.copy_with(raw_path=target)

    def headers(self, scope: Scope) -> Headers:
        """What the upstream reads: the client's headers without its credentials and what concerns one connection."""
        headers, dropped, is_chunked = [self._host], [], False
        for name, value in scope["headers"]:
            name = name.lower()
            if name in _NOT_FORWARDED:
                if name == b"transfer-encoding":
                    is_chunked = True
                elif name == b"connection" and value not in _NAMING_NOTHING:
                    dropped += _tokens(value)
            elif name[:12] != b"x-forwarded-":
                headers.append((name, value))
        if dropped:  # whoever could take the length away by naming it would break the framing
            headers = _without(headers, [name for name in dropped if name not in (b"host", b"content-length")])
        names = {name for name, _ in headers}
        if b"accept-encoding" not in names:
            headers.append((b"accept-encoding", b"identity"))
        if is_chunked or (b"content-length" not in names and _is_framed_below(scope)):
            headers = _without(headers, [b"content-length"])  # RFC 9112 6.3
            headers.append((b"transfer-encoding", b"chunked"))
        return headers + self._credential


def _is_framed_below(scope: Scope) -> bool:
    """HTTP/2 and 3 frame bodies below their headers."""
    return scope["http_version"] not in ("1.0", "1.1") and scope["method"] not in ("GET", "HEAD")


def response_headers(given: Headers) -> Headers:
    """What the client reads: nothing that tells about the upstream; event streams are not to be buffered."""
    headers, dropped = [], []
    for name, value in given:
        name = name.lower()
        if name in _NOT_RETURNED or name.startswith(_NOT_RETURNED_PREFIXES):
            if name == b"connection" and value not in _NAMING_NOTHING:
                dropped += _tokens(value)
            elif name == b"transfer-encoding":
                dropped.append(b"content-length")  # RFC 9112 6.3: it counts for nothing
        else:
            headers.append((name, value))
    if dropped:
        headers = _without(headers, dropped)
    if _has_control(b"".join([part for pair in headers for part in pair])):
        # a server would refuse to send it, after we thought that we had answered
        headers = [pair for pair in headers if not _has_control(b"".join(pair))]
    if is_event_stream(headers):
        headers = _without(headers, (b"cache-control", b"x-accel-buffering"))
        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    return headers


def upstream_wait(given: Headers) -> Headers:
    """When the upstream wants to be asked again, each header once."""
    lowercase = ((name.lower(), value) for name, value in given)
    waits = {name: value for name, value in lowercase if name in _WAITS and _WAITS[name].fullmatch(value)}
    return list(waits.items())


def _has_control(text: bytes) -> bool:
    return len(text.translate(None, _CONTROL)) != len(text)


def _without(headers: Headers, names: Collection[bytes]) -> Headers:
    return [pair for pair in headers if pair[0] not in names]


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip().lower() for token in value.split(b",")]
