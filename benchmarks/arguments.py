"""What the commands take."""

from __future__ import annotations


def positive(text: str) -> int:
    """A number of something; raises ValueError below 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number
