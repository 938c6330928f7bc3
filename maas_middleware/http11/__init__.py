"""An HTTP/1.1 client behind httpx's transport interface, on httptools and asyncio protocols. Needs httptools 0.6.4."""

import re

import httptools

from .transport import HTTP11Transport

__all__ = ["HTTP11Transport"]

if [int(number) for number in re.findall("[0-9]+", httptools.__version__)[:3]] < [0, 6, 4]:
    raise ImportError("httptools before 0.6.4 takes answers that could be read in two ways")
