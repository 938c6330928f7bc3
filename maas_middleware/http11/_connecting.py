"""Opening of connections to one origin."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import httpx

from ._connection import Connection

# what event loops read at once by themselves is 256 KiB, and a reader that is slow holds some of that
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections go to.

    Attributes:
        host: a name or an address; a TLS server has to be certified for it.
        uds: the path of a unix socket, which then takes the place of host and port.
        ssl_context: None without TLS.
    """

    host: str
    port: int
    uds: str | None
    ssl_context: ssl.SSLContext | None
    _buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(_READ_BYTES)), init=False, repr=False)

    async def connect(self, lost: Callable[[Connection], None], seconds: float | None) -> Connection:
        """Open a connection.

        Raises:
            httpx.ConnectTimeout: not within so many seconds.
            httpx.ConnectError: nobody listens, or TLS fails.
        """
        try:
            with anyio.fail_after(seconds):
                return await self._connect(lambda: Connection(lost, self._buffer))
        except TimeoutError as error:
            raise httpx.ConnectTimeout("Connecting timed out.") from error
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError("Connecting failed.") from error

    async def _connect(self, factory: Callable[[], Connection]) -> Connection:
        loop, name = asyncio.get_running_loop(), self.host if self.ssl_context else None
        if self.uds is not None:
            _, connection = await loop.create_unix_connection(
                factory, self.uds, ssl=self.ssl_context, server_hostname=name
            )
        else:
            _, connection = await loop.create_connection(
                factory, self.host, self.port, ssl=self.ssl_context, server_hostname=name
            )
        return connection
