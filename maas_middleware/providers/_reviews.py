"""The two ways to ask an API server whose a token is: TokenReview v1, and the token's own user."""

from __future__ import annotations

import logging
from typing import Literal

import msgspec

from ..errors import Headers
from ._apiserver import Answer, APIServer, CredentialFile

logger = logging.getLogger("maas_middleware")

_TOKENREVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_OWN_USER = "/apis/user.openshift.io/v1/users/~"
_JSON = (b"content-type", b"application/json")
_TOKENREVIEW_HINTS = {
    401: "401, our own credential is not accepted",
    403: "403, our own credential may not create tokenreviews: bind it to system:auth-delegator",
}
_NO_CREDENTIAL_HINTS = {
    status: f"{status}, and there is no credential of our own: set openshift.token_file" for status in (401, 403)
}
_OWN_USER_HINTS = {404: "404, this cluster has no users API: use the review tokenreview"}
# what OpenShift leaves out of a user's own groups
_IMPLIED_GROUPS = ("system:authenticated", "system:authenticated:oauth")


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


class _Metadata(msgspec.Struct):
    name: str = ""


class _OwnUser(msgspec.Struct):
    metadata: _Metadata
    kind: Literal["User"] = "User"
    groups: tuple[str, ...] | None = None


_encode = msgspec.json.Encoder().encode
_reviews = msgspec.json.Decoder(_TokenReview)
_own_users = msgspec.json.Decoder(_OwnUser)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class TokenReviews:
    """Creates TokenReviews.

    Args:
        credential: what the API server knows us by; None sends none.
    """

    def __init__(self, api_server: APIServer, credential: CredentialFile | None) -> None:
        self._api_server = api_server
        self._credential = credential

    async def review(self, token: str, audiences: tuple[str, ...]) -> Status:
        """Ask whose token it is, for certain audiences or for the API server's own.

        Raises:
            AuthUnavailable: no answer, or none that is a TokenReview. One line of the log says why.
        """
        spec = {"token": token, "audiences": audiences} if audiences else {"token": token}
        body = _encode({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec})
        answer = await self._api_server.in_time(self._post(body))
        if answer.status not in (200, 201):
            hints = _NO_CREDENTIAL_HINTS if self._credential is None else _TOKENREVIEW_HINTS
            raise self._api_server.failed(answer, hints)
        try:
            status = _reviews.decode(answer.body).status
        except _UNREADABLE:
            raise self._api_server.unavailable("its answer is no TokenReview") from None
        if status.authenticated and (status.user is None or not status.user.username):
            raise self._api_server.unavailable("its answer names no user")
        return status

    async def _post(self, body: bytes) -> Answer:
        answer = await self._api_server.send("POST", _TOKENREVIEWS, await self._headers(), body)
        if answer.status == 401 and self._credential is not None:
            answer = await self._api_server.send("POST", _TOKENREVIEWS, await self._headers(anew=True), body)
        return answer

    async def _headers(self, *, anew: bool = False) -> Headers:
        if self._credential is None:
            return (_JSON,)
        try:
            return (_JSON, _bearer(await self._credential.content(anew=anew)))
        except OSError as error:
            raise self._api_server.unavailable(f"cannot read our own credential: {error}") from None


class UsersSelf:
    """Reads the user that a token belongs to, with that token and no credential of ours."""

    def __init__(self, api_server: APIServer) -> None:
        self._api_server = api_server

    async def review(self, token: str, _audiences: tuple[str, ...]) -> Status:
        """Ask whose token it is; audiences play no part, and the answer knows no scopes.

        Raises:
            AuthUnavailable: no answer, or none that is a User. One line of the log says why.
        """
        headers = (_bearer(token.encode("ascii")),)
        answer = await self._api_server.in_time(self._api_server.send("GET", _OWN_USER, headers))
        if answer.status in (401, 403) and not answer.is_html:
            if answer.status == 403:
                self._log_forbidden()
            return Status()
        if answer.status != 200:
            raise self._api_server.failed(answer, _OWN_USER_HINTS)
        return Status(authenticated=True, user=self._read(answer.body))

    def _read(self, body: bytes) -> User:
        try:
            user = _own_users.decode(body)
        except _UNREADABLE:
            raise self._api_server.unavailable("its answer is no User") from None
        if not user.metadata.name:
            raise self._api_server.unavailable("its answer names no user")
        return User(user.metadata.name, tuple(dict.fromkeys((*(user.groups or ()), *_IMPLIED_GROUPS))))

    def _log_forbidden(self) -> None:
        logger.warning(
            "token refused by %s: 403, it may not read its own user: its scopes are too narrow, or the cluster has no "
            "users API for it",
            self._api_server.address,
        )


def _bearer(credential: bytes) -> tuple[bytes, bytes]:
    return (b"authorization", b"Bearer " + credential)
