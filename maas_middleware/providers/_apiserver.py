"""The API server of a cluster: TokenReview v1, spoken over an httpx transport."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anyio
import httpx
import msgspec

from ..errors import AuthUnavailable, Headers

logger = logging.getLogger("maas_middleware")

_CREDENTIAL_SECONDS = 60.0
_MAXIMUM_WAIT_SECONDS = 60
_HEADERS = (
    (b"content-type", b"application/json"),
    (b"accept", b"application/json"),
    # a connection that is kept belongs to its event loop, and fails when that has ended: costs 2 ms a review
    (b"connection", b"close"),
)
_VISIBLE = re.compile(rb"[!-~]+")
_SECONDS = re.compile(r"0*[1-9][0-9]{0,8}")
_HINTS = {
    401: "401, our own credential is not accepted",
    403: "403, our own credential may not create tokenreviews: bind it to system:auth-delegator",
}


class User(msgspec.Struct):
    """Whose token it is."""

    username: str = ""
    groups: tuple[str, ...] | None = None
    extra: dict[str, tuple[str, ...] | None] | None = None


class Status(msgspec.Struct):
    """What the API server says of a token. `authenticated` is absent where it is false."""

    authenticated: bool = False
    user: User | None = None
    audiences: tuple[str, ...] | None = None


class _TokenReview(msgspec.Struct):
    kind: Literal["TokenReview"]
    status: Status


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    retry_after: str
    body: bytes


_encode = msgspec.json.Encoder().encode
_reviews = msgspec.json.Decoder(_TokenReview)


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
    """Creates TokenReviews.

    Args:
        url: the API server's base URL; credentials in it are not used.
        credential: what it knows us by; None sends none.
        transport: how it is reached.
        timeout: seconds for a whole review, its retry included.

    Raises:
        ValueError: the URL is not one of http or https.
    """

    def __init__(
        self, url: str, credential: CredentialFile | None, transport: httpx.AsyncBaseTransport, timeout: float
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"the API server's URL cannot be read: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError("the API server's URL needs http:// or https:// and a host")
        path = parsed.path.rstrip("/") + "/apis/authentication.k8s.io/v1/tokenreviews"
        self._url = parsed.copy_with(path=path, query=None, fragment=None)
        self._credential = credential
        self._transport = transport
        self._timeout = timeout

    async def review(self, token: str, audiences: tuple[str, ...]) -> Status:
        """Ask whose token it is, for certain audiences or for the API server's own.

        Raises:
            AuthUnavailable: no answer, or none that is a TokenReview. One line of the log says why.
        """
        spec = {"token": token, "audiences": audiences} if audiences else {"token": token}
        body = _encode({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec})
        try:
            with anyio.fail_after(self._timeout):
                answer = await self._post(body)
                if answer.status == 401 and self._credential is not None:
                    answer = await self._post(body, anew=True)
        except TimeoutError:
            raise self._unavailable(f"no answer within {self._timeout:g} s") from None
        if answer.status not in (200, 201):
            raise self._unavailable(_HINTS.get(answer.status, str(answer.status)), _wait(answer))
        return self._read(answer.body)

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()

    async def _post(self, body: bytes, *, anew: bool = False) -> _Answer:
        headers = list(_HEADERS)
        try:
            if self._credential is not None:
                headers.append((b"authorization", b"Bearer " + await self._credential.content(anew=anew)))
        except OSError as error:
            raise self._unavailable(f"cannot read our own credential: {error}") from None
        try:
            return await self._exchange(httpx.Request("POST", self._url, headers=headers, content=body))
        except (httpx.HTTPError, OSError) as error:
            # only before anything is sent, the text of an error is certain to quote no credential
            text = f": {error}" if isinstance(error, httpx.ConnectError) else ""
            raise self._unavailable(type(error).__name__ + text) from None

    async def _exchange(self, request: httpx.Request) -> _Answer:
        response = await self._transport.handle_async_request(request)
        try:
            content = await response.aread()
        finally:
            with anyio.move_on_after(1, shield=True):
                await response.aclose()
        return _Answer(response.status_code, response.headers.get("retry-after", ""), content)

    def _read(self, body: bytes) -> Status:
        try:
            status = _reviews.decode(body).status
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise self._unavailable("its answer is no TokenReview") from None
        if status.authenticated and (status.user is None or not status.user.username):
            raise self._unavailable("its answer names no user")
        return status

    def _unavailable(self, reason: str, headers: Headers = ()) -> AuthUnavailable:
        logger.warning("token review at %s://%s failed: %s", self._url.scheme, self._url.netloc.decode(), reason)
        return AuthUnavailable(headers=headers)


def _wait(answer: _Answer) -> Headers:
    if answer.status not in (429, 503) or not _SECONDS.fullmatch(answer.retry_after):
        return ()
    return ((b"retry-after", b"%d" % min(int(answer.retry_after), _MAXIMUM_WAIT_SECONDS)),)
