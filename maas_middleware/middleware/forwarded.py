"""Who really is calling, where a trusted proxy says so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from .._asgi import with_headers

_MAXIMUM_PROXIES = 64
_REMEMBERED_HOSTS = 1024
_HOP = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)")
_HOST = re.compile(r"(?:[A-Za-z0-9._~-]+|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?")
_SCHEMES = {
    "http": {"http": "http", "https": "https"},
    "websocket": {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"},
}


class TrustedProxies:
    """Whose word on the client counts; arguments and errors are those of `ForwardedMiddleware`."""

    def __init__(self, trusted: Sequence[str]) -> None:
        if isinstance(trusted, str):
            raise ValueError(f"trusted proxies are a list of addresses and networks, not the text {trusted!r}")
        self._trusts_all = "*" in trusted
        try:
            self._networks = tuple(ip_network(text) for text in trusted if text != "*")
        except ValueError as error:
            raise ValueError(f"trusted proxies are addresses, networks such as 10.0.0.0/8, or *: {error}") from None

        self._trusts = lru_cache(maxsize=_REMEMBERED_HOSTS)(self._find)

    def __contains__(self, host: str | None) -> bool:
        return self._trusts(host)

    def _find(self, host: str | None) -> bool:
        if self._trusts_all or host is None or (address := _address(host)) is None:
            return self._trusts_all
        return any(address in network or _unmapped(address) in network for network in self._networks)

    def client(self, forwarded_for: str) -> str | None:
        """The client's address in an `x-forwarded-for`: from the right, the first hop that is not trusted.

        Where all are trusted, or the next is no address, it is the last one that was reached; None where none was.
        Ports and brackets are tolerated. Behind more than 64 proxies nothing is looked at.
        """
        reached = None
        for text in reversed(forwarded_for.rsplit(",", _MAXIMUM_PROXIES)):
            match = _HOP.fullmatch(text.strip(" \t"))
            address = _address(match[1] or match[2] or match[3]) if match else None
            if address is None:
                break
            reached = str(_unmapped(address))
            if str(address) not in self:
                break
        return reached


class ForwardedMiddleware:
    """Takes the client, the scheme and the host of a request from `x-forwarded-*`, where a trusted peer sent them.

    `x-forwarded-for` becomes `scope["client"]` as (address, 0), `x-forwarded-proto` the scheme, `x-forwarded-host` the
    `host` header; of several values the last counts for the latter two. What makes no sense is ignored. The headers
    themselves stay. A server that does the same hides the peer from us: run uvicorn with `--no-proxy-headers`.

    Args:
        trusted: IP addresses and networks (CIDR) of proxies that overwrite these headers or append to them; `*` for
            all. A peer without an address, as on a Unix socket, is trusted by `*` only.

    Raises:
        ValueError: one of them is neither an address nor a network.
    """

    def __init__(self, app: ASGIApp, *, trusted: Sequence[str]) -> None:
        self.app = app
        self._trusted = TrustedProxies(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in _SCHEMES and (scope.get("client") or [None])[0] in self._trusted:
            scope = {**scope, **self._changes(scope)}
        await self.app(scope, receive, send)

    def _changes(self, scope: Scope) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if (client := self._trusted.client(_joined(scope, b"x-forwarded-for"))) is not None:
            changes["client"] = (client, 0)
        schemes = _SCHEMES[scope["type"]]
        if (scheme := _last(_joined(scope, b"x-forwarded-proto")).lower()) in schemes:
            changes["scheme"] = schemes[scheme]
        if _is_host(host := _last(_joined(scope, b"x-forwarded-host"))):
            changes["headers"] = with_headers(scope["headers"], [(b"host", host.encode())])
        return changes


def _joined(scope: Scope, name: bytes) -> str:
    return b",".join(value for key, value in scope["headers"] if key.lower() == name).decode("latin-1")


def _last(values: str) -> str:
    return values.rpartition(",")[2].strip(" \t")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    # a socket for both families names 10.0.0.1 as ::ffff:10.0.0.1 (RFC 4291, section 2.5.5.2)
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _is_host(text: str) -> bool:
    match = _HOST.fullmatch(text)
    if match is None or int(match[2] or 0) > 65535:
        return False
    return match[1] is None or isinstance(_address(match[1]), IPv6Address)
