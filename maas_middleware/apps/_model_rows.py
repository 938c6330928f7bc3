"""How a model is told of in lists, whoever knows of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import quote

from starlette.requests import Request

from ..endpoints import CHAT_COMPLETIONS
from ..errors import MethodNotAllowed
from ..tiers import Tier

Tiers = Sequence[Tier] | Callable[[], Sequence[Tier]]
Row = dict[str, Any]

_HOST = re.compile(r"[A-Za-z0-9._~-]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?")
_PATH_CHARACTERS = "/:@!$&'()*+,;="  # RFC 3986 3.3


def looked_up(tiers: Tiers) -> Callable[[], Sequence[Tier]]:
    """Those in force, for every request anew."""
    return tiers if callable(tiers) else lambda: tiers


def check_reading(request: Request) -> None:
    """Refuse what is no `GET` and no `HEAD`.

    Raises:
        MethodNotAllowed: it is none.
    """
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed("GET", "HEAD")


def base_url(request: Request, public_url: str | None) -> str:
    """What the URLs of models begin with: the public one, or the request's own scheme, host and mount point."""
    if public_url:
        return public_url
    scope = request.scope
    root = scope.get("app_root_path", scope.get("root_path", "")).rstrip("/")
    host = request.headers.get("host", "localhost")
    return f"{scope.get('scheme', 'http')}://{host if _HOST.fullmatch(host) else 'localhost'}{root}"


def model_row(
    model_id: str, *, name: str, created: int, owned_by: str, url: str, tiers: Iterable[Tier], ready: bool = True
) -> Row:
    """A row that has the fields of OpenAI's API and the guide's.

    Args:
        url: of the model, without the endpoint behind it.
        tiers: those that may use it, of which the lowest is told.
    """
    return {
        "id": model_id,
        "object": "model",
        "created": created,
        "owned_by": owned_by,
        "name": name,
        "url": f"{url}{CHAT_COMPLETIONS}",
        "tier": min(tiers, key=lambda tier: tier.level).name,
        "ready": ready,
    }


def quoted_path(path: str) -> str:
    """A path as it stands in a URL."""
    return quote(path, _PATH_CHARACTERS)


def listing(rows: Iterable[Row]) -> Row:
    """The list of them."""
    return {"object": "list", "data": list(rows)}
