"""Logins of OpenShift and Kubernetes, as the cluster's own API server vouches for them."""

from __future__ import annotations

import base64
import hmac
import random
import re
import secrets
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import httpx
import msgspec

from .._cache import Loaded, SingleFlightCache
from ..errors import InvalidCredentials
from ..identity import Identity, Scope, credential
from ..throttling import Attempts, Throttle, address_of
from ._apiserver import APIServer, CredentialFile
from ._reviews import TokenReviews, User, UsersSelf

_ACCEPTED_SECONDS = 60.0
_REFUSED_SECONDS = 5.0
_SCOPES = "scopes.authorization.openshift.io"
_VISIBLE = re.compile(r"[!-~]+")


class _Claims(msgspec.Struct):
    exp: float | None = None


_claims = msgspec.json.Decoder(_Claims)


class OpenShiftProvider:
    """Asks the API server of a cluster whose token a request carries.

    Its answer is kept for 60 seconds, though never past the `exp` of a JWT; that a token is not known, for 5 seconds.
    One review a token is under way at a time. Tokens with scopes but without `user:full`, and service accounts unless
    they are allowed, become identities with a restriction.

    The review `users-self` needs no right of the service's own, but it cannot see a token's scopes: one without
    `user:full` that may read its user (`user:info` is enough) becomes an identity without a restriction, and could
    mint. It knows no audiences either, gives every caller the groups `system:authenticated` and
    `system:authenticated:oauth`, and exists on OpenShift only.

    Args:
        api_url: where the API server is: `https://kubernetes.default.svc`.
        review: `tokenreview` asks with the service's own credential (TokenReview v1); `users-self` asks with the
            caller's token for its own user (`GET /apis/user.openshift.io/v1/users/~`).
        token_file: holds the service's own credential, which must be allowed to create tokenreviews; it is read again
            every 60 seconds, and at once when it is refused. None sends none, nor does `users-self`.
        transport: how the API server is reached; default: `cluster_transport()`. No connection is kept between two
            reviews, so that it does not matter in which event loop they are.
        audiences: of which a JWT must name one; other tokens name none. Empty, and with `users-self`: those of the
            API server itself.
        timeout: seconds for everything that one review takes.
        allow_service_accounts: whether service accounts may mint as users may.
        maximum_cached: how many answers are kept.
        failures: the throttle by which `IdentityMiddleware` counts credentials that failed, by address. The API server
            is asked nothing for an address that is over the limit, or would be if all its reviews under way failed.
        jitter: a number from 0 to 1; up to 5 % is added to the wait of whoever is refused for that.
        clock: seconds, by which answers and the credential grow old.
        wall_clock: seconds since the epoch, which `exp` is compared to.

    Raises:
        ValueError: the `api_url` is not one of http or https, or there is no such review.
    """

    def __init__(
        self,
        *,
        api_url: str,
        review: Literal["tokenreview", "users-self"] = "tokenreview",
        token_file: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        audiences: tuple[str, ...] = (),
        timeout: float = 3.0,
        allow_service_accounts: bool = False,
        maximum_cached: int = 10_000,
        failures: Throttle | None = None,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if review not in ("tokenreview", "users-self"):
            raise ValueError(f"a review is tokenreview or users-self, not {review}")
        if audiences and review == "users-self":
            raise ValueError("audiences cannot be checked by the review users-self")
        self._api_server = APIServer(api_url, transport or cluster_transport(), timeout)
        self._reviews: TokenReviews | UsersSelf = UsersSelf(self._api_server)
        self._audiences: tuple[str, ...] = ()
        if review == "tokenreview":
            own_credential = None if token_file is None else CredentialFile(token_file, clock)
            self._reviews = TokenReviews(self._api_server, own_credential)
            self._audiences = audiences
        self._allow_service_accounts = allow_service_accounts
        self._wall_clock = wall_clock
        self._attempts = Attempts(failures, "failed_credentials", jitter=jitter)
        self._key = secrets.token_bytes(32)
        # a review keeps its own time; this deadline is there so that the cache's shield has an end in any case
        self._identities = SingleFlightCache[bytes, Identity | None](
            maximum=maximum_cached, deadline=timeout + 5, clock=clock
        )

    async def identify(self, scope: Scope, /) -> Identity | None:
        """Return the user or service account whose token the request carries; None where it carries no credential.

        Raises:
            InvalidRequest: a header is repeated.
            InvalidCredentials: `malformed`, or `unknown` to the cluster.
            AuthUnavailable: the API server cannot be reached, is slow, refuses us, or answers what is no review.
            RateLimitExceeded: too many credentials from the same address have failed, or are being reviewed.
        """
        token = credential(scope)
        if token is None:
            return None
        # the API server reads only up to a space: what follows would make one token many, and none of them a JWT
        if not _VISIBLE.fullmatch(token):
            raise InvalidCredentials("malformed")
        audiences = self._audiences if _is_jwt(token) else ()
        key = hmac.digest(self._key, msgspec.json.encode((token, audiences)), "sha256")
        identity = await self._identities.get(key, partial(self._ask, token, audiences, address_of(scope)))
        if identity is None:
            raise InvalidCredentials("unknown")
        return identity

    async def aclose(self) -> None:
        """Close the transport."""
        await self._api_server.aclose()

    async def _ask(self, token: str, audiences: tuple[str, ...], address: str | None) -> Loaded[Identity | None]:
        async with self._attempts.attempt(address):
            status = await self._reviews.review(token, audiences)
        meant_for_us = not audiences or not set(audiences).isdisjoint(status.audiences or ())
        if not status.authenticated or status.user is None or not meant_for_us:
            return Loaded(None, _REFUSED_SECONDS)
        return Loaded(self._identity(status.user), min(_ACCEPTED_SECONDS, _expiry(token) - self._wall_clock()))

    def _identity(self, user: User) -> Identity:
        restriction, extra = None, user.extra or {}
        if _SCOPES in extra and "user:full" not in (extra[_SCOPES] or ()):
            restriction = "A token without the scope user:full may not manage access tokens"
        elif user.username.startswith("system:serviceaccount:") and not self._allow_service_accounts:
            restriction = "Service accounts may not manage access tokens"
        return Identity("openshift", user.username, tuple(user.groups or ()), restriction)


def _is_jwt(token: str) -> bool:
    # all that the API server can take for a JWT has two dots, so that none gets past its audiences
    return token.count(".") == 2


def _expiry(token: str) -> float:
    payload = token.split(".")[1] if _is_jwt(token) else ""
    try:
        expiry = _claims.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))).exp
    except (ValueError, msgspec.MsgspecError, RecursionError):
        expiry = None
    return float("inf") if expiry is None else expiry


def cluster_transport(ca_file: str | None = None) -> httpx.AsyncHTTPTransport:
    """Make a transport that trusts the certificate authorities in a file; None: those of the system.

    Raises:
        OSError: the file cannot be read, or holds no certificate.
    """
    return httpx.AsyncHTTPTransport(verify=ssl.create_default_context(cafile=ca_file))
