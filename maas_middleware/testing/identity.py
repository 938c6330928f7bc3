"""Callers that are known from the start."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InvalidCredentials
from ..identity import Identity, Scope, credential


class StaticIdentityProvider:
    """Knows the identities of fixed tokens.

    Args:
        identities: by token.
    """

    def __init__(self, identities: Mapping[str, Identity]) -> None:
        self._identities = dict(identities)

    async def identify(self, scope: Scope, /) -> Identity | None:
        """Return the identity of the request's token; None where there is no token.

        Raises:
            InvalidRequest: a header is repeated.
            InvalidCredentials: `malformed`, or `unknown`.
        """
        token = credential(scope)
        if token is None:
            return None
        if token not in self._identities:
            raise InvalidCredentials("unknown")
        return self._identities[token]
