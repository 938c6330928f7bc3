"""Which web pages may read our answers (CORS)."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

_METHODS = ("GET", "HEAD", "POST", "DELETE")
_COUNTED = ("requests", "tokens")
_EXPOSED = (
    *("x-request-id", "request-id", "retry-after", "retry-after-ms", "x-should-retry", "www-authenticate", "link"),
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in _COUNTED),
    *("ratelimit-policy", "ratelimit"),
    *(f"x-odhu-usage-{kind}-tokens" for kind in ("input", "output", "total")),
)


def readable_from(origins: Sequence[str], app: ASGIApp) -> ASGIApp:
    """The app, readable for pages of these origins; `*` is every page. Its preflights are answered here.

    Bearer tokens are no credentials in the sense of CORS: cookies are not asked for.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=_METHODS, allow_headers=["*"], expose_headers=_EXPOSED
    )
