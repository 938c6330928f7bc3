"""Header fields that frame a message."""

from __future__ import annotations

import re
from collections.abc import Iterable

Fields = list[tuple[bytes, bytes]]

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
LENGTH = re.compile(rb"[0-9]{1,18}")
_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})


def framing_fields(fields: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The values by lowercase name; repeated ones joined with a comma, which no length or coding that counts has."""
    found: dict[bytes, bytes] = {}
    for name, value in fields:
        if (key := name.lower()) in _FRAMING:
            found[key] = found[key] + b"," + value if key in found else value
    return found


def connection_options(framing: dict[bytes, bytes]) -> set[bytes]:
    """The lowercase options of the connection header (RFC 9110, section 7.6.1)."""
    if (options := framing.get(b"connection")) is None:
        return set()
    return {option.strip(b" \t").lower() for option in options.split(b",")}
