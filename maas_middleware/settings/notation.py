"""How single values are written in a configuration: the types that settings are made of, each with its check."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from msgspec import Meta

from ..durations import parse_duration
from ..limiting import parse_limits
from .loading import read_bytes

_HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


def _checked(check: Callable[[Any], Any]) -> Meta:
    return Meta(extra={"check": check})


def _name(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("has to be a name: printable, not empty, without spaces around it")
    return text


def _is_host(parts: SplitResult) -> bool:
    name = parts.hostname or ""
    if "[" in parts.netloc:
        return ip_address(name).version == 6
    name.encode("ascii").decode("idna")
    return _HOST.fullmatch(name) is not None


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        absolute = parts.scheme in ("http", "https") and _is_host(parts) and parts.port != 0
    except ValueError:
        absolute = False
    if not absolute or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("has to be an absolute http or https URL")
    if "@" in parts.netloc or "?" in text or "#" in text:
        raise ValueError("has to be a URL without credentials, query and fragment")
    return text.rstrip("/")


def _page_origin(text: str) -> str:
    if text != "*" and (urlsplit(_url(text)).path or text.endswith("/") or text != text.lower()):
        raise ValueError("has to be * or an origin as browsers send it, such as https://ui.example.com")
    return text


def _upstream(text: str) -> str:
    url = _url(text)
    for end in ("/v1", "/"):
        if url.endswith(end) or text.endswith(end):
            raise ValueError(f"ends in {end}: write the base URL, such as http://host:8000, without a slash or /v1")
    return url


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("has to start with a slash")
    return text


def _seconds(value: str | float) -> float:
    try:
        seconds = parse_duration(value) if isinstance(value, str) else float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"has to be a duration such as 30s or 1h30m: {error}") from None
    if not 0 < seconds < math.inf:
        raise ValueError("has to be positive and finite")
    return seconds


def _whole_seconds(value: str | float) -> float:
    seconds = _seconds(value)
    if seconds != int(seconds):
        raise ValueError("has to be in whole seconds")
    return seconds


def _positive(number: int) -> int:
    if number <= 0:
        raise ValueError("has to be more than 0")
    return number


def _not_negative(number: int) -> int:
    if number < 0:
        raise ValueError("has to be 0 or more")
    return number


def _peer(text: str) -> str:
    try:
        if text != "*":
            ip_network(text)
    except ValueError as error:
        raise ValueError(f"has to be an IP address, a network such as 10.0.0.0/8, or *: {error}") from None
    return text


def _limits(text: str) -> str:
    parse_limits(text)
    return text


def counters_url(url: str) -> str:
    """Check where use is counted. What is refused is not quoted: it may hold a password."""
    if url == "memory://" or _is_server(url, {"redis", "rediss"}, r"(/\d*)?"):
        return url
    raise ValueError(f"{_named(url)} is not like memory://, redis://HOST:PORT/DATABASE or rediss://...")


def store_url(url: str) -> str:
    """Check where tokens are kept. What is refused is not quoted: it may hold a password."""
    if url == "memory://" or re.fullmatch(r"sqlite:///[^?#]*[^?#/]", url):
        return url
    if _is_server(url, {"postgresql", "postgres"}, r"/[^/]+"):
        return url
    raise ValueError(f"{_named(url)} is not like memory://, sqlite:///PATH or postgresql://HOST:PORT/DATABASE")


def _is_server(url: str, schemes: set[str], path: str) -> bool:
    try:
        parts = urlsplit(url)
        is_there = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    is_written = url.isascii() and url.isprintable() and " " not in url
    return is_there and is_written and re.fullmatch(path, parts.path) is not None


def shown_url(url: str) -> str:
    """The URL as it may be shown: of one that may hold a password no more than the scheme."""
    return url if url == "memory://" or url.startswith("sqlite:///") else _named(url)


def _named(url: str) -> str:
    scheme, found, _ = url.partition("://")  # the rest may hold a password
    return f"{scheme}://..." if found and _SCHEME.fullmatch(scheme) else "this"


def _file(path: str) -> str:
    read_bytes(path)
    return path


def _authorities(path: str) -> str:
    read_bytes(path)
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"{path} holds no certificate") from None
    return path


Name = Annotated[str, _checked(_name)]
Url = Annotated[str, _checked(_url)]
PageOrigin = Annotated[str, _checked(_page_origin)]
Upstream = Annotated[str, _checked(_upstream)]
RoutePath = Annotated[str, _checked(_path)]
Seconds = Annotated[float, _checked(_seconds)]
WholeSeconds = Annotated[float, _checked(_whole_seconds)]
Positive = Annotated[int, _checked(_positive)]
NotNegative = Annotated[int, _checked(_not_negative)]
Peer = Annotated[str, _checked(_peer)]
LimitText = Annotated[str, _checked(_limits)]
CountersUrl = Annotated[str, _checked(counters_url)]
StoreUrl = Annotated[str, _checked(store_url)]
File = Annotated[str, _checked(_file)]
CAFile = Annotated[str, _checked(_authorities)]
