"""An HTTP/1.1 client behind httpx's transport interface, on httptools and asyncio protocols. Needs httptools."""

from .transport import HTTP11Transport

__all__ = ["HTTP11Transport"]
