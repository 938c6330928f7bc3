"""Access tokens as JWTs: signing and verifying them, with pyjwt."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Annotated, Any

import jwt
import msgspec

from ..errors import InvalidCredentials
from ..identity import Identity, Scope, credential
from ..token_store import Revocations
from ..tokens import Claims, MintedToken, fitting_groups
from ._verified_tokens import VerifiedToken, VerifiedTokens
from .keys import ALGORITHM, SigningKeys

if TYPE_CHECKING:
    from jwt.types import Options  # not in PyJWT 2.10

TOKEN_TYPE = "at+jwt"  # RFC 9068
_CLOCK_SKEW_SECONDS = 5
_REMEMBERED_SECONDS = 30.0
_REMEMBERED_TOKENS = 10_000
_RESTRICTION = "An access token cannot manage tokens: use the token that you logged in with"


class _Payload(msgspec.Struct):
    iss: str
    sub: str
    idp: str
    aud: str
    iat: int
    nbf: int
    exp: int
    jti: Annotated[str, msgspec.Meta(min_length=1)]
    gen: Annotated[int, msgspec.Meta(ge=0)]
    groups: list[str]


def _new_id() -> str:
    return secrets.token_hex(16)


class JWTMinter:
    """Signs access tokens (RFC 9068): ES256, with `typ: at+jwt` and a `kid`. The tier is not in them.

    Args:
        keys: the first of them signs; a function returns those in force, as `WatchedKeys.current` does.
        named_groups: the groups that tiers and administrators are decided by. Where all groups of a user take more
            than 4 KiB, a token holds only those.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        keys: SigningKeys | Callable[[], SigningKeys],
        issuer: str = "maas-middleware",
        audience: str = "maas",
        named_groups: Callable[[], Collection[str]] = frozenset,
        clock: Callable[[], float] = time.time,
        id_factory: Callable[[], str] = _new_id,
    ) -> None:
        self._keys = keys if callable(keys) else lambda: keys
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
        keys = self._keys()
        headers = {"kid": keys.key_id, "typ": TOKEN_TYPE}
        token = jwt.encode(msgspec.to_builtins(payload), keys.key, ALGORITHM, headers=headers)
        return MintedToken(token, _claims(payload), tuple(payload.groups))


class JWTProvider:
    """Accepts the tokens that `JWTMinter` signed with the same keys, issuer and audience.

    A token whose unverified `iss` is another is left to the next provider; one of ours never is, however broken. A
    signature is verified once in 30 seconds; expiry and revocation are looked at on every request.

    Args:
        keys: any of them verifies; a function returns those in force, the same object until they change.
        maximum_lifetime: seconds; a token that claims to live longer is not ours.
        used: called with the id of each token that was accepted (on every request, so it has to be fast).
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        keys: SigningKeys | Callable[[], SigningKeys],
        issuer: str = "maas-middleware",
        audience: str = "maas",
        revocations: Revocations,
        maximum_lifetime: int = 24 * 3600,
        used: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys if callable(keys) else lambda: keys
        self._issuer = issuer
        self._audience = audience
        self._revocations = revocations
        self._maximum_lifetime = maximum_lifetime
        self._used = used
        self._clock = clock
        self._verified = VerifiedTokens(maximum=_REMEMBERED_TOKENS, seconds=_REMEMBERED_SECONDS, clock=clock)

    async def identify(self, scope: Scope, /) -> Identity | None:
        token = credential(scope)
        if token is None or (verified := self._known(token)) is None:
            return None
        if await self._revocations.is_revoked(verified.claims):
            raise InvalidCredentials("revoked")
        if self._used is not None:
            self._used(verified.claims.id)
        return verified.identity

    def _known(self, token: str) -> VerifiedToken | None:
        keys = self._keys()
        if (remembered := self._verified.get(token, keys)) is not None:
            self._check_times(remembered)
            return remembered
        if _unverified_issuer(token) != self._issuer:
            return None
        verified = self._verify(token, keys)
        self._check_times(verified)
        self._verified.keep(token, keys, verified)
        return verified

    def _verify(self, token: str, keys: SigningKeys) -> VerifiedToken:
        try:
            payload = self._payload(token, keys)
            identity = Identity(payload.idp, payload.sub, tuple(payload.groups), restriction=_RESTRICTION)
        except (jwt.PyJWTError, msgspec.MsgspecError, ValueError, RecursionError):
            raise InvalidCredentials("malformed") from None
        return VerifiedToken(_claims(payload), max(payload.nbf, payload.iat), identity)

    def _payload(self, token: str, keys: SigningKeys) -> _Payload:
        # what PyJWT checks against its own clock, or takes as text, is checked below
        options: Options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "strict_aud": True}
        header = jwt.get_unverified_header(token)
        key = keys.public(header.get("kid", ""))
        if key is None or header.get("typ") != TOKEN_TYPE:
            raise InvalidCredentials("unknown")
        # not every PyJWT that we take refuses what is critical and unknown to it (RFC 7515, section 4.1.11)
        if "crit" in header or not _is_canonical(token.rpartition(".")[2]):
            raise InvalidCredentials("malformed")
        claims = jwt.decode(token, key, [ALGORITHM], issuer=self._issuer, audience=self._audience, options=options)
        return msgspec.convert(claims, _Payload)

    def _check_times(self, token: VerifiedToken) -> None:
        now, claims = self._clock(), token.claims
        if claims.expires_at <= now:
            raise InvalidCredentials("expired")
        if (
            token.not_before > now + _CLOCK_SKEW_SECONDS
            or claims.expires_at - claims.issued_at > self._maximum_lifetime
        ):
            raise InvalidCredentials("malformed")


def _claims(payload: _Payload) -> Claims:
    owner = Identity(payload.idp, payload.sub).key
    return Claims(payload.jti, owner, payload.gen, payload.iat, payload.exp)


# a signature does not cover how itself is written
def _is_canonical(segment: str) -> bool:
    decoded = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    return base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() == segment


def _unverified_issuer(token: str) -> object:
    parts = token.split(".")
    if len(parts) < 2:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(payload, type=dict[str, Any]).get("iss")
    except RecursionError:  # of whatever issuer it is
        raise InvalidCredentials("malformed") from None
    except (msgspec.MsgspecError, ValueError):
        return None
