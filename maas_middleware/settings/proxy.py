"""Requests and model servers as they are configured."""

from __future__ import annotations

from msgspec import Struct

from .notation import Positive, Seconds


class ProxySettings(Struct, frozen=True, kw_only=True):
    """How requests are read, mounted too, and how the gateway speaks to model servers.

    Attributes:
        connect_timeout, first_byte_timeout, idle_timeout: seconds to connect to a server, until its answer begins, and
            between two pieces of it.
        body_timeout: seconds that the body of a request may take to arrive.
        max_body_bytes: the largest body of a request.
    """

    connect_timeout: Seconds = 5.0
    first_byte_timeout: Seconds = 120.0
    idle_timeout: Seconds = 60.0
    body_timeout: Seconds = 60.0
    max_body_bytes: Positive = 32 * 1024 * 1024
