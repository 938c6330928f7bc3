"""Who is calling."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import anyio
from starlette.authentication import AuthCredentials, BaseUser
from starlette.types import ASGIApp, Receive, Scope, Send

from .._asgi import Headers, reject
from ..context import ensure_context
from ..errors import InvalidCredentials, MaaSError
from ..identity import Identity, IdentityProvider, credential, header
from ..throttling import Throttle, address_of, check_throttle

# what somebody guesses or makes up; what has expired or is revoked was ours, and who sends nothing tries nothing
_FAILURES = frozenset({"malformed", "unknown"})
# credentials, and headers by which proxies tell who somebody is: from outside they are forgeries; and by which vLLM is
# told another model or session than the body names, who is served first and where, or to tell how busy it is
_FORGED = re.compile(
    rb"(?:authorization|x-api-key|api-key|x-vllm-priority|x-data-parallel-rank|endpoint-load-metrics-format)\Z"
    rb"|x-(?:maas|remote|auth-request|amzn-sagemaker)-"
    rb"|x-forwarded-(?:user|email|groups|preferred-username|access-token)",
    re.IGNORECASE,
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
        inner_key: what the inner app wants as `Authorization: Bearer` or `X-API-Key`, if it has a key of its own.
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
            key = inner_key.encode("latin-1")
            self._inner_headers += [(b"authorization", b"Bearer " + key), (b"x-api-key", key)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = [pair for pair in scope["headers"] if _FORGED.match(pair[0]) is None]
        try:
            identity = await self._provider.identify(scope)
            if identity is None or len(headers) + 1 < len(scope["headers"]):
                identity = _checked(identity, scope)
        except MaaSError as error:
            if isinstance(error, InvalidCredentials):
                error = await self._counted(error, scope)
            await reject(scope, receive, send, error)
            return
        ensure_context(scope).identity = identity
        scope = {
            **scope,
            "headers": headers + self._inner_headers,
            "user": IdentityUser(identity),
            "auth": AuthCredentials(["authenticated"]),
        }
        await self.app(scope, receive, send)

    async def _counted(self, error: InvalidCredentials, scope: Scope) -> MaaSError:
        if (error.details or {}).get("reason") in _FAILURES:
            try:
                with anyio.CancelScope(shield=True):  # whoever hangs up at once is counted too
                    await check_throttle(self._failures, address_of(scope), "failed_credentials", jitter=self._jitter)
            except MaaSError as refusal:
                return refusal
        return error


def _checked(identity: Identity | None, scope: Scope) -> Identity:
    """The caller, unless nobody knows the credential, or there are several."""
    presented = credential(scope)
    if identity is not None:
        return identity
    if presented is not None:
        raise InvalidCredentials("unknown")
    raise InvalidCredentials("missing" if header(scope, b"authorization") is None else "malformed")
