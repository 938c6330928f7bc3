"""Who is calling: the value, the protocol, and how several providers become one."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import InvalidCredentials, InvalidRequest

MAXIMUM_TOKEN_BYTES = 8192

Scope = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller, as an identity provider vouches for it.

    Attributes:
        provider: the name of the provider, without `/`. Provider and name together are the user.
        name: the user's name, as the provider spells it.
        groups: the groups that tiers and administrators are decided by.
        restriction: None for a login, which may mint and revoke tokens; else a sentence that says why it may not.
    """

    provider: str
    name: str
    groups: tuple[str, ...] = ()
    restriction: str | None = None

    def __post_init__(self) -> None:
        if "/" in self.provider or not self.provider or not self.name or self.provider.startswith("["):
            raise ValueError("an identity needs a name, and a provider that has no slash and begins with no bracket")

    @property
    def key(self) -> str:
        """The user, as limits, revocations and recorded usage know it. No two users share one."""
        return f"{self.provider}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssertedIdentity(Identity):
    """A caller whom a trusted gateway vouches for, and what it has judged about the request.

    Attributes:
        tier: the name of the tier that the gateway found.
        audience: the model that the request is for, by the name that it has behind the gateway.
        request_id: what the gateway's client reads in `x-request-id`.
    """

    tier: str
    audience: str
    request_id: str


class IdentityProvider(Protocol):
    """Tells who sent a request."""

    async def identify(self, scope: Scope, /) -> Identity | None:
        """Look at an ASGI scope (`http` or `websocket`); its headers are raw pairs of bytes.

        Returns None where the credential is absent or not of this provider's kind: the next one is asked.

        Raises:
            InvalidCredentials: the credential is of this provider's kind, and wrong.
            AuthUnavailable: the provider cannot tell at the moment.
        """
        ...


class FirstOf:
    """Asks providers in turn; the first that does not answer None decides."""

    def __init__(self, *providers: IdentityProvider) -> None:
        self._providers = providers

    async def identify(self, scope: Scope, /) -> Identity | None:
        for provider in self._providers:
            if (identity := await provider.identify(scope)) is not None:
                return identity
        return None


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a request header that may stand there once.

    Raises:
        InvalidRequest: it is repeated.
    """
    found: bytes | None = None
    for key, value in scope["headers"]:
        if key.lower() == name:
            found = _only(name, value, found)
    return found


def credential(scope: Scope) -> str | None:
    """The token in `Authorization: Bearer`, else in `x-api-key`; None where there is neither, or another scheme.

    Raises:
        InvalidRequest: a header is repeated.
        InvalidCredentials: `malformed`: no token behind the scheme, or one over 8 KiB.
    """
    authorization: bytes | None = None
    token: bytes | None = None
    for key, value in scope["headers"]:
        name = key.lower()
        if name == b"authorization":
            authorization = _only(name, value, authorization)
        elif name == b"x-api-key":
            token = _only(name, value, token)
    if authorization is not None:
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
    if token is None:
        return None
    if not (token := token.strip()) or len(token) > MAXIMUM_TOKEN_BYTES:
        raise InvalidCredentials("malformed")
    return token.decode("latin-1")


def _only(name: bytes, value: bytes, before: bytes | None) -> bytes:
    if before is not None:
        raise InvalidRequest(f"The header {name.decode()} is repeated", code="repeated_header")
    return value
