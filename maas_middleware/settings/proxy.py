"""How requests are read, and model servers asked, as it is configured."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .notation import CAFile, Positive, Seconds


class ProxySettings(Struct, frozen=True, kw_only=True):
    """How requests are read, mounted too, and how the gateway speaks to model servers.

    Attributes:
        transport: the HTTP client: `http11` on httptools, `httpx` with its own, `auto` is the first where it can be.
        ca_file: the certificate authorities of servers with https; None: those of the system.
        connect_timeout, first_byte_timeout, idle_timeout: seconds to connect to a server, until its answer begins, and
            between two pieces of it.
        total_timeout: seconds for a whole answer; None is no limit.
        keepalive_interval: seconds of silence after which a stream gets a comment; None is none.
        body_timeout: seconds that the body of a request may take to arrive.
        max_body_bytes: the largest body of a request.
    """

    transport: Literal["auto", "http11", "httpx"] = "auto"
    ca_file: CAFile | None = None
    connect_timeout: Seconds = 5.0
    first_byte_timeout: Seconds = 120.0
    idle_timeout: Seconds = 60.0
    total_timeout: Seconds | None = None
    keepalive_interval: Seconds | None = None
    body_timeout: Seconds = 60.0
    max_body_bytes: Positive = 32 * 1024 * 1024
