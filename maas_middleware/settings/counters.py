"""Where use is counted, as it is configured."""

from __future__ import annotations

from .loading import read_secret
from .notation import counters_url
from .reader import Reader


def counters_from(reader: Reader, counters: str, counters_file: str | None) -> str:
    """The URL of the counters; what a file holds is checked as if it stood there."""
    if counters_file is None:
        return counters
    place = reader.place("counters_file")
    if counters != "memory://":
        reader.refuse(place, f"cannot be set together with {reader.place('counters')}")
    return str(reader.checked(place, _url_in, counters_file))


def _url_in(path: str) -> str:
    return counters_url(read_secret(path))
