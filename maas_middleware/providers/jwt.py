"""Access tokens as JWTs: signing and verifying them, with pyjwt."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import jwt
import msgspec

from ..errors import InvalidCredentials
from ..identity import Identity, Scope, credential
from ..tokens import Claims, MintedToken, Revocations, fitting_groups
from .keys import ALGORITHM, SigningKeys

if TYPE_CHECKING:
    from jwt.types import Options  # not in PyJWT 2.10

TOKEN_TYPE = "at+jwt"  # RFC 9068
_CLOCK_SKEW_SECONDS = 5
_RESTRICTION = "An access token cannot manage tokens: use the token that you logged in with"


class _Payload(msgspec.Struct):
    iss: str
    sub: str
    idp: str
    aud: str
    iat: int
    nbf: int
    exp: int
    jti: str
    gen: int
    groups: list[str]


def _new_id() -> str:
    return secrets.token_hex(16)


class JWTMinter:
    """Signs access tokens (RFC 9068): ES256, with `typ: at+jwt` and a `kid`. The tier is not in them.

    Args:
        named_groups: the groups that tiers and administrators are decided by. Where all groups of a user take more
            than 4 KiB, a token holds only those.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        keys: SigningKeys,
        issuer: str = "maas-middleware",
        audience: str = "maas",
        named_groups: Callable[[], Collection[str]] = frozenset,
        clock: Callable[[], float] = time.time,
        id_factory: Callable[[], str] = _new_id,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._named_groups = named_groups
        self._clock = clock
        self._id_factory = id_factory

    def mint(self, identity: Identity, lifetime: int, generation: int, /) -> MintedToken:
        now = int(self._clock())
        payload = _Payload(
            iss=self._issuer,
            sub=identity.name,
            idp=identity.provider,
            aud=self._audience,
            iat=now,
            nbf=now,
            exp=now + lifetime,
            jti=self._id_factory(),
            gen=generation,
            groups=list(fitting_groups(identity.groups, self._named_groups())),
        )
        headers = {"kid": self._keys.key_id, "typ": TOKEN_TYPE}
        token = jwt.encode(msgspec.to_builtins(payload), self._keys.key, ALGORITHM, headers=headers)
        return MintedToken(token, _claims(payload))


class JWTProvider:
    """Accepts the tokens that `JWTMinter` signed with the same keys, issuer and audience.

    A token whose unverified `iss` is another is left to the next provider; one of ours never is, however broken.

    Args:
        maximum_lifetime: seconds; a token that claims to live longer is not ours.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        keys: SigningKeys,
        issuer: str = "maas-middleware",
        audience: str = "maas",
        revocations: Revocations,
        maximum_lifetime: int = 24 * 3600,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._revocations = revocations
        self._maximum_lifetime = maximum_lifetime
        self._clock = clock

    async def identify(self, scope: Scope, /) -> Identity | None:
        token = credential(scope)
        if token is None or _unverified_issuer(token) != self._issuer:
            return None
        try:
            payload = self._verify(token)
            claims = _claims(payload)
        except (jwt.PyJWTError, msgspec.MsgspecError, ValueError, RecursionError):
            raise InvalidCredentials("malformed") from None
        self._check_times(payload)
        if await self._revocations.is_revoked(claims):
            raise InvalidCredentials("revoked")
        return Identity(payload.idp, payload.sub, tuple(payload.groups), restriction=_RESTRICTION)

    def _verify(self, token: str) -> _Payload:
        # what PyJWT checks against its own clock, or takes as text, is checked below
        options: Options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "strict_aud": True}
        header = jwt.get_unverified_header(token)
        key = self._keys.public(header.get("kid", ""))
        if key is None or header.get("typ") != TOKEN_TYPE:
            raise InvalidCredentials("unknown")
        claims = jwt.decode(token, key, [ALGORITHM], issuer=self._issuer, audience=self._audience, options=options)
        return msgspec.convert(claims, _Payload)

    def _check_times(self, payload: _Payload) -> None:
        now = self._clock()
        if payload.exp <= now:
            raise InvalidCredentials("expired")
        if (
            max(payload.nbf, payload.iat) > now + _CLOCK_SKEW_SECONDS
            or payload.exp - payload.iat > self._maximum_lifetime
        ):
            raise InvalidCredentials("malformed")


def _claims(payload: _Payload) -> Claims:
    owner = Identity(payload.idp, payload.sub).key
    return Claims(payload.jti, owner, payload.gen, payload.iat, payload.exp)


def _unverified_issuer(token: str) -> object:
    parts = token.split(".")
    if len(parts) < 2:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(payload, type=dict[str, Any]).get("iss")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
