"""The API server of a cluster, reached over an httpx transport, and what it knows us by."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx

from ..errors import AuthUnavailable, Headers

logger = logging.getLogger("maas_middleware")

_CREDENTIAL_SECONDS = 60.0
_MAXIMUM_WAIT_SECONDS = 60
_HEADERS = (
    (b"accept", b"application/json"),
    # a connection that is kept belongs to its event loop, and fails when that has ended: costs 2 ms a review
    (b"connection", b"close"),
)
_VISIBLE = re.compile(rb"[!-~]+")
_SECONDS = re.compile(r"0*[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server answered, or whoever stands in front of it: that one is who sends HTML."""

    status: int
    body: bytes
    is_html: bool
    retry_after: str


class CredentialFile:
    """A credential that somebody else renews; it is read again every 60 seconds."""

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        self._path = Path(path)
        self._clock = clock
        self._content = b""
        self._fresh_until = float("-inf")

    async def content(self, *, anew: bool = False) -> bytes:
        """Return what the file holds; where it cannot be read any more, what it held.

        Raises:
            OSError: it cannot be read, and never could.
        """
        if anew or self._clock() >= self._fresh_until:
            try:
                self._content = await anyio.to_thread.run_sync(self._read, abandon_on_cancel=True)
                self._fresh_until = self._clock() + _CREDENTIAL_SECONDS
            except OSError as error:
                if not self._content:
                    raise
                logger.warning("cannot read our own credential again: %s", error)
        return self._content

    def _read(self) -> bytes:
        content = self._path.read_bytes().strip()
        if not _VISIBLE.fullmatch(content):  # else the transport quotes it in its complaint
            raise OSError(f"{self._path} holds no token")
        return content


class APIServer:
    """Answers requests about tokens, each within its time, or is unavailable: one line of the log says why.

    Args:
        url: the API server's base URL; credentials in it are not used.
        transport: how it is reached.
        timeout: seconds for a whole review, its retry included.

    Raises:
        ValueError: the URL is not one of http or https.
    """

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport, timeout: float) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"the API server's URL cannot be read: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError("the API server's URL needs http:// or https:// and a host")
        self._url = parsed.copy_with(query=None, fragment=None)
        self._transport = transport
        self._timeout = timeout

    @property
    def address(self) -> str:
        """Scheme, host and port, as logs name it."""
        return f"{self._url.scheme}://{self._url.netloc.decode()}"

    async def in_time(self, exchanges: Awaitable[Answer]) -> Answer:
        """Wait for the last answer of a review.

        Raises:
            AuthUnavailable: it does not come in time.
        """
        try:
            with anyio.fail_after(self._timeout):
                return await exchanges
        except TimeoutError:
            raise self.unavailable(f"no answer within {self._timeout:g} s") from None

    async def send(self, method: str, path: str, headers: Headers, body: bytes | None = None) -> Answer:
        """Send a request and read its answer whole; `accept` and `connection` are among its headers already.

        Raises:
            AuthUnavailable: the API server cannot be reached, or breaks off.
        """
        url = self._url.copy_with(path=self._url.path.rstrip("/") + path)
        try:
            return await self._exchange(httpx.Request(method, url, headers=[*headers, *_HEADERS], content=body))
        except (httpx.HTTPError, OSError) as error:
            # only before anything is sent, the text of an error is certain to quote no credential
            text = f": {error}" if isinstance(error, httpx.ConnectError) else ""
            raise self.unavailable(type(error).__name__ + text) from None

    async def _exchange(self, request: httpx.Request) -> Answer:
        response = await self._transport.handle_async_request(request)
        try:
            content = await response.aread()
        finally:
            with anyio.move_on_after(1, shield=True):
                await response.aclose()
        is_html = response.headers.get("content-type", "").lower().startswith("text/html")
        return Answer(response.status_code, content, is_html, response.headers.get("retry-after", ""))

    def unavailable(self, reason: str, headers: Headers = ()) -> AuthUnavailable:
        """Log why a review failed, and return the error to raise."""
        logger.warning("token review at %s failed: %s", self.address, reason)
        return AuthUnavailable(headers=headers)

    def failed(self, answer: Answer, hints: Mapping[int, str]) -> AuthUnavailable:
        """Log the status of an answer that says nothing of the token, with its hint; `retry-after` is passed on."""
        return self.unavailable(hints.get(answer.status, str(answer.status)), _wait(answer))

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()


def _wait(answer: Answer) -> Headers:
    if answer.status not in (429, 503) or not _SECONDS.fullmatch(answer.retry_after):
        return ()
    return ((b"retry-after", b"%d" % min(int(answer.retry_after), _MAXIMUM_WAIT_SECONDS)),)
