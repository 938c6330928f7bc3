"""An `IdentityProvider` of one's own: a class with one method. This one knows API keys by their SHA-256 digests.

    uvicorn examples.custom_identity:app

    curl localhost:8000/ -H "Authorization: Bearer acme-7b1f2c"
    curl -i localhost:8000/ -H "Authorization: Bearer acme-guessed"

`FirstOf` asks several in turn: `OpenShiftProvider` or `JWTProvider` may stand behind this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Scope

from maas_middleware import FirstOf, Identity, IdentityMiddleware, InvalidCredentials, credential

# printf %s acme-7b1f2c | sha256sum
KEYS = {
    "505d24649f387d1821994849636839b52a221c6697dbd647925b6c3b030e8358": Identity("acme", "alice", ("researchers",)),
}


class KeyDigestProvider:
    """Knows callers by API keys that begin with `acme-`, without keeping the keys.

    Args:
        identities: by the SHA-256 digest of the key, in hexadecimal.
    """

    def __init__(self, identities: Mapping[str, Identity]) -> None:
        self._identities = identities

    async def identify(self, scope: Scope, /) -> Identity | None:
        key = credential(scope)
        if key is None or not key.startswith("acme-"):
            return None  # not ours: the next provider is asked
        identity = self._identities.get(sha256(key.encode()).hexdigest())
        if identity is None:
            raise InvalidCredentials("unknown")  # ours, and wrong
        return identity


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"Hello, {request.user.display_name}!\n")


app = Starlette(
    routes=[Route("/", hello)],
    middleware=[Middleware(IdentityMiddleware, provider=FirstOf(KeyDigestProvider(KEYS)))],
)
