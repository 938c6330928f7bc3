"""Assertions of a gateway: signing and verifying them, with itsdangerous."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Annotated

import msgspec
from itsdangerous import BadPayload, BadSignature, URLSafeSerializer
from msgspec import Meta

from ..assertions import ASSERTION_HEADER, AssertionKeys
from ..errors import InvalidCredentials
from ..identity import MAXIMUM_TOKEN_BYTES, AssertedIdentity, Identity, Scope, header

_LIFETIME_SECONDS = 30
_CLOCK_SKEW_SECONDS = 5
_SALT = b"maas_middleware.assertion"
# with the 256 bits of a signature in the one way in which base64 writes them: they do not cover how they are written
_WRITTEN = re.compile(rb"\.?[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
_RESTRICTION = "An assertion of a gateway cannot manage tokens: use the token that you logged in with"

_Name = Annotated[str, Meta(min_length=1, max_length=4096)]


class _Claims(msgspec.Struct):
    idp: _Name
    sub: _Name
    groups: Annotated[list[Annotated[str, Meta(max_length=4096)]], Meta(max_length=1024)]
    tier: _Name
    aud: _Name
    iat: int
    exp: int
    rid: _Name


def _serializer(keys: AssertionKeys) -> URLSafeSerializer:
    newest_last = tuple(reversed(keys.secrets))
    return URLSafeSerializer(
        newest_last, salt=_SALT, signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"}
    )


class AssertionSigner:
    """A `Signer` whose assertions `SignedProvider` accepts: HMAC-SHA-256, for 30 seconds.

    Args:
        keys: the first of them signs; a function returns those in force, as `WatchedAssertionKeys.current` does.
        clock: seconds since the epoch.
    """

    def __init__(
        self, *, keys: AssertionKeys | Callable[[], AssertionKeys], clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys if callable(keys) else lambda: keys
        self._clock = clock
        self._serializer = lru_cache(maxsize=1)(_serializer)

    def sign(self, identity: Identity, /, *, tier: str, audience: str, request_id: str) -> bytes:
        """The value of `x-maas-assertion` for one request.

        Raises:
            ValueError: it would be refused, as there is too much to say about the caller: 8 KiB are the bound.
        """
        now = int(self._clock())
        claims = {
            "idp": identity.provider,
            "sub": identity.name,
            "groups": list(identity.groups),
            "tier": tier,
            "aud": audience,
            "iat": now,
            "exp": now + _LIFETIME_SECONDS,
            "rid": request_id,
        }
        try:
            msgspec.convert(claims, _Claims)
        except msgspec.ValidationError as error:  # which is a ValueError since msgspec 0.21 only
            raise ValueError(str(error)) from None
        assertion = self._serializer(self._keys()).dumps(claims).encode()
        if len(assertion) > MAXIMUM_TOKEN_BYTES:
            raise ValueError(f"an assertion would take more than {MAXIMUM_TOKEN_BYTES} bytes: too many groups")
        return assertion


class SignedProvider:
    """Knows whom a gateway vouches for in `x-maas-assertion`: an `AssertedIdentity`. Without that header it is None.

    It looks at no path and no body: `AudienceMiddleware` inside holds the request to the model of the assertion.

    Whoever can read an assertion on its way can use it for its 30 seconds, with another request too: let only the
    gateway reach the app, or speak TLS with it.

    Args:
        keys: any of them verifies; a function returns those in force, as `WatchedAssertionKeys.current` does.
        audiences: the names of the models that assertions may be made for. Each app needs keys of its own all the same:
            whoever can verify an assertion can make one.
        clock: seconds since the epoch; five of them it may differ from the clock of the gateway.

    Raises:
        ValueError: there is no audience, or it is a text instead of a collection of them.
    """

    def __init__(
        self,
        *,
        keys: AssertionKeys | Callable[[], AssertionKeys],
        audiences: Collection[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        if isinstance(audiences, str) or not audiences:
            raise ValueError("audiences are the names of models, at least one")
        self._keys = keys if callable(keys) else lambda: keys
        self._audiences = frozenset(audiences)
        self._clock = clock
        self._serializer = lru_cache(maxsize=1)(_serializer)

    async def identify(self, scope: Scope, /) -> Identity | None:
        assertion = header(scope, ASSERTION_HEADER)
        if assertion is None:
            return None
        claims = self._verified(assertion)
        if claims.aud not in self._audiences:
            raise InvalidCredentials("unknown")
        self._check_times(claims)
        return _identity(claims)

    def _verified(self, assertion: bytes) -> _Claims:
        if len(assertion) > MAXIMUM_TOKEN_BYTES or _WRITTEN.fullmatch(assertion) is None:
            raise InvalidCredentials("malformed")
        try:
            return msgspec.convert(self._serializer(self._keys()).loads(assertion), _Claims)
        except BadSignature:
            raise InvalidCredentials("unknown") from None
        except (BadPayload, msgspec.ValidationError):
            raise InvalidCredentials("malformed") from None

    def _check_times(self, claims: _Claims) -> None:
        now = self._clock()
        if claims.exp <= now - _CLOCK_SKEW_SECONDS:
            raise InvalidCredentials("expired")
        if claims.iat > now + _CLOCK_SKEW_SECONDS or not 0 < claims.exp - claims.iat <= _LIFETIME_SECONDS:
            raise InvalidCredentials("malformed")


def _identity(claims: _Claims) -> AssertedIdentity:
    try:
        return AssertedIdentity(
            claims.idp,
            claims.sub,
            tuple(claims.groups),
            _RESTRICTION,
            tier=claims.tier,
            audience=claims.aud,
            request_id=claims.rid,
        )
    except ValueError:
        raise InvalidCredentials("malformed") from None
