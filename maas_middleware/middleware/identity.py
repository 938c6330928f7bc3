"""Who is calling."""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio
from starlette.authentication import AuthCredentials, BaseUser
from starlette.types import ASGIApp, Receive, Scope, Send

from .._asgi import Headers, reject
from ..context import ensure_context
from ..errors import InvalidCredentials, MaaSError
from ..identity import Identity, IdentityProvider, credential, header
from ..throttling import Throttle, address_of, check_throttle

_CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key"})
# what somebody guesses or makes up; what has expired or is revoked was ours, and who sends nothing tries nothing
_FAILURES = frozenset({"malformed", "unknown"})
# headers by which proxies tell who somebody is; from outside they are forgeries
_IDENTITY_PREFIXES = (
    b"x-maas-",
    b"x-remote-",
    b"x-auth-request-",
    b"x-forwarded-user",
    b"x-forwarded-email",
    b"x-forwarded-groups",
    b"x-forwarded-preferred-username",
    b"x-forwarded-access-token",
)


class IdentityUser(BaseUser):
    """`request.user` for Starlette: the caller's name, and the whole `Identity`."""

    def __init__(self, identity: Identity) -> None:
        self.maas_identity = identity

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def display_name(self) -> str:
        return self.maas_identity.name

    @property
    def identity(self) -> str:
        return self.maas_identity.key


class IdentityMiddleware:
    """Lets nobody pass whom the provider does not know, over HTTP or WebSocket.

    The caller is in `context.identity`, and in `scope["user"]` and `scope["auth"]` for Starlette's `@requires`.
    The credential ends here, as do identity headers from outside (`x-maas-*`, `x-remote-*`, `x-forwarded-user`, ...).

    Args:
        inner_key: what the inner app wants as `Authorization: Bearer`, if it has a key of its own.
        failures: counts credentials that are malformed or unknown by the address that they come from, an IPv6 address
            with its /64. Above the limit they are answered with 429; one that is accepted passes from any address.
            Behind proxies `ForwardedMiddleware` has to be outside, else everybody has the same address.
        jitter: a number from 0 to 1; up to 5 % of the wait is added to `retry-after-ms`, so that not all clients come
            back in one instant.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        provider: IdentityProvider,
        inner_key: str | None = None,
        failures: Throttle | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.app = app
        self._provider = provider
        self._failures = failures
        self._jitter = jitter
        self._inner_headers: Headers = []
        if inner_key is not None:
            self._inner_headers.append((b"authorization", b"Bearer " + inner_key.encode("latin-1")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            identity = await self._identify_or_count(scope)
        except MaaSError as error:
            await reject(scope, receive, send, error)
            return
        ensure_context(scope).identity = identity
        headers = [pair for pair in scope["headers"] if _is_harmless(pair[0].lower())]
        scope = {
            **scope,
            "headers": headers + self._inner_headers,
            "user": IdentityUser(identity),
            "auth": AuthCredentials(["authenticated"]),
        }
        await self.app(scope, receive, send)

    async def _identify_or_count(self, scope: Scope) -> Identity:
        try:
            return await self._identify(scope)
        except InvalidCredentials as error:
            if (error.details or {}).get("reason") in _FAILURES:
                with anyio.CancelScope(shield=True):  # whoever hangs up at once is counted too
                    await check_throttle(self._failures, address_of(scope), "failed_credentials", jitter=self._jitter)
            raise

    async def _identify(self, scope: Scope) -> Identity:
        presented = credential(scope)
        identity = await self._provider.identify(scope)
        if identity is not None:
            return identity
        if presented is not None:
            raise InvalidCredentials("unknown")
        raise InvalidCredentials("missing" if header(scope, b"authorization") is None else "malformed")


def _is_harmless(name: bytes) -> bool:
    return name not in _CREDENTIALS and not name.startswith(_IDENTITY_PREFIXES)
