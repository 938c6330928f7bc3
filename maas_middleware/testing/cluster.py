"""A cluster's API server that vouches for tokens as a real one does, for tests and demonstrations."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

API_AUDIENCE = "https://kubernetes.default.svc"
REVIEWS_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
OWN_USER_PATH = "/apis/user.openshift.io/v1/users/~"
_SCOPES = "scopes.authorization.openshift.io"


@dataclass(frozen=True, slots=True)
class ClusterUser:
    """Who a token belongs to.

    Attributes:
        groups: `system:authenticated` is added to them, as every API server does.
        uid: left out of answers where it is None.
        extra: such as `{"scopes.authorization.openshift.io": ["user:info"]}`.
    """

    name: str
    groups: tuple[str, ...] = ()
    uid: str | None = None
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Review:
    """A request for a review that came in.

    Attributes:
        reviewer: the bearer token of whoever asked; None where there was none.
        token: what was to be reviewed; None where the request could not be read or was refused.
        audiences: which audiences it was to be reviewed for.
    """

    reviewer: str | None
    token: str | None = None
    audiences: tuple[str, ...] = ()


class _Spec(msgspec.Struct):
    token: str = ""
    audiences: list[str] | None = None


class _TokenReview(msgspec.Struct):
    spec: _Spec = msgspec.field(default_factory=_Spec)


class StandInCluster:
    """An ASGI app with two routes: TokenReview v1, and a token's own user.

    These are `POST /apis/authentication.k8s.io/v1/tokenreviews` and `GET /apis/user.openshift.io/v1/users/~`. The
    latter leaves `system:authenticated` out of the groups, as OpenShift does, and is forbidden to tokens whose scopes
    have neither `user:info` nor `user:full` among them.

    A token with two dots is taken for a JWT: its audiences are its `aud`, and it is accepted until its `exp`. Other
    tokens have the audience of the API server. Signatures are not looked at: a token is known or it is not.

    Args:
        users: by token. May be changed at any time.
        reviewer_token: the credential of whoever may review tokens; tokens of users are refused with 403, all others
            with 401. None lets everybody review.
        has_users_api: whether there are users to read at all, as on OpenShift; else 404. May be changed at any time.
        clock: seconds since the epoch, which an `exp` is compared to.

    Attributes:
        reviews: every request for a review, in order.
        own_user_reads: the bearer token of every request for its own user, in order; None where there was none.
        failure: the app that answers instead of both, where it is set, such as `JSONResponse({}, 500)`.
        gate: an event that every answer waits for, where it is set.
    """

    def __init__(
        self,
        users: Mapping[str, ClusterUser],
        *,
        reviewer_token: str | None = None,
        has_users_api: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.users = dict(users)
        self.reviewer_token = reviewer_token
        self.has_users_api = has_users_api
        self.reviews: list[Review] = []
        self.own_user_reads: list[str | None] = []
        self.failure: ASGIApp | None = None
        self.gate: anyio.Event | None = None
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope, receive)
            response = await self._respond(request, await request.body())
            await response(scope, receive, send)

    async def _respond(self, request: Request, body: bytes) -> ASGIApp:
        method = {REVIEWS_PATH: "POST", OWN_USER_PATH: "GET"}.get(request.url.path)
        if method is None:
            return _not_found()
        if request.method != method:
            return _failure(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        bearer = token if scheme.lower() == "bearer" else None
        if method == "GET":
            response = self._own_user(bearer)
            self.own_user_reads.append(bearer)
        else:
            response, review = self._review(bearer, body)
            self.reviews.append(review)
        if self.gate is not None:
            await self.gate.wait()
        return self.failure or response

    def _own_user(self, bearer: str | None) -> Response:
        if bearer is None:
            return _forbidden("get", "users", "user.openshift.io", "system:anonymous", name="~")
        if "authenticated" not in self._status(bearer, (API_AUDIENCE,)):
            return _failure(401, "Unauthorized", "Unauthorized")
        if not self.has_users_api:
            return _not_found()
        user = self.users[bearer]
        scopes = user.extra.get(_SCOPES)
        if scopes is not None and {"user:info", "user:full"}.isdisjoint(scopes):
            why = f": scopes [{' '.join(scopes)}] prevent this action"
            return _forbidden("get", "users", "user.openshift.io", user.name, name="~", why=why)
        metadata = {"name": user.name} | ({} if user.uid is None else {"uid": user.uid})
        answer = {
            "kind": "User",
            "apiVersion": "user.openshift.io/v1",
            "metadata": metadata | {"creationTimestamp": None},
            "groups": sorted({*user.groups} - {"system:authenticated"}),
        }
        return JSONResponse(answer)

    def _review(self, reviewer: str | None, body: bytes) -> tuple[Response, Review]:
        if (refusal := self._refusal(reviewer)) is not None:
            return refusal, Review(reviewer)
        try:
            spec = msgspec.json.decode(body, type=_TokenReview).spec
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            message = f'TokenReview in version "v1" cannot be handled as a TokenReview: {error}'
            return _failure(400, "BadRequest", message), Review(reviewer)
        audiences = tuple(spec.audiences or ())
        review = Review(reviewer, spec.token, audiences)
        if not spec.token:
            return _failure(400, "BadRequest", "token is required for TokenReview in authentication"), review
        answer = {
            "kind": "TokenReview",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"creationTimestamp": None},
            "spec": {"token": spec.token} | ({"audiences": list(audiences)} if audiences else {}),
            "status": self._status(spec.token, audiences or (API_AUDIENCE,)),
        }
        return JSONResponse(answer, 201), review

    def _refusal(self, reviewer: str | None) -> Response | None:
        if self.reviewer_token is None or reviewer == self.reviewer_token:
            return None
        if reviewer is not None and reviewer not in self.users:
            return _failure(401, "Unauthorized", "Unauthorized")
        name = "system:anonymous" if reviewer is None else self.users[reviewer].name
        return _forbidden("create", "tokenreviews", "authentication.k8s.io", name)

    def _status(self, token: str, wanted: tuple[str, ...]) -> dict[str, Any]:
        claims = _claims(token)
        user = self.users.get(token)
        if user is None or claims.get("exp", self._clock() + 1) <= self._clock():
            return _not_authenticated("invalid bearer token")
        own = _audiences(claims)
        if audiences := [audience for audience in wanted if audience in own]:
            return {"authenticated": True, "user": _user(user), "audiences": audiences}
        if not claims:
            return _not_authenticated("invalid bearer token")
        sets = f"{_quoted(own)} is invalid for the target audiences {_quoted(wanted)}"
        return _not_authenticated(f"[invalid bearer token, token audiences {sets}]")


def _user(user: ClusterUser) -> dict[str, Any]:
    groups = [*user.groups] if "system:authenticated" in user.groups else [*user.groups, "system:authenticated"]
    answer: dict[str, Any] = {"username": user.name}
    if user.uid is not None:
        answer["uid"] = user.uid
    answer["groups"] = groups
    if user.extra:
        answer["extra"] = {key: list(values) for key, values in user.extra.items()}
    return answer


def _claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1] if token.count(".") == 2 else ""
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=dict[str, Any])
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return {}


def _audiences(claims: dict[str, Any]) -> tuple[str, ...]:
    audience = claims.get("aud", API_AUDIENCE)
    return (audience,) if isinstance(audience, str) else tuple(audience)


def _quoted(audiences: tuple[str, ...]) -> str:
    return "[" + " ".join(json.dumps(audience) for audience in audiences) + "]"


def _not_authenticated(error: str) -> dict[str, Any]:
    return {"user": {}, "error": error}


def _not_found() -> Response:
    return _failure(404, "NotFound", "the server could not find the requested resource")


def _forbidden(verb: str, resource: str, group: str, user: str, *, name: str | None = None, why: str = "") -> Response:
    named, details = ("", {}) if name is None else (f' "{name}"', {"name": name})
    message = (
        f'{resource}.{group}{named} is forbidden: User "{user}" cannot {verb} resource "{resource}" '
        f'in API group "{group}" at the cluster scope{why}'
    )
    return _failure(403, "Forbidden", message, {**details, "group": group, "kind": resource})


def _failure(status: int, reason: str, message: str, details: dict[str, Any] | None = None) -> Response:
    answer: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
    }
    if details is not None:
        answer["details"] = details
    answer["code"] = status
    return JSONResponse(answer, status)
