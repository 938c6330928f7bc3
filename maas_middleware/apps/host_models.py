"""`/v1/models` of an app that serves the models itself: its own list, in our rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeGuard

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._asgi import path_below, replay, serve, without_headers
from ..context import ensure_context, required
from ..endpoints import MODELS
from ..errors import ModelNotFound, UpstreamError, UpstreamTimeout
from ..tiers import Tier
from ._model_rows import Row, Tiers, base_url, check_reading, listing, looked_up, model_row, quoted_path

logger = logging.getLogger("maas_middleware")

_MAXIMUM_LIST_BYTES = 4 << 20
_SECONDS = 30.0
# with them the list would come compressed, in part, or not at all
_ABOUT_THE_ANSWER = (
    *(b"accept-encoding", b"range", b"if-range", b"if-match", b"if-none-match", b"if-modified-since"),
    *(b"if-unmodified-since", b"expect", b"content-length", b"content-type", b"transfer-encoding"),
)

_decode = msgspec.json.Decoder().decode


class HostModelsApp:
    """Lists the models that another app says it serves. `IdentityMiddleware` and `TierMiddleware(unlisted="pass")` are
    outside.

    For an app that it is mounted in, where no catalogue says which models there are: every tier may use all of them.
    Mounted at `/v1/models`, or routed to for `/v1/models` and `/v1/models/{id:path}`, it answers in the rows of
    `ModelsApp`, with `max_model_len` and `parent` where the other app tells them, and nothing else of what that tells.

    Args:
        app: what is asked `GET /v1/models`, with the caller's own headers. An answer that is no list of models, or is
            over 4 MiB, is 502 `upstream_error`.
        tiers: those in force, of which every model has the lowest.
        public_url: what the URLs of the models begin with; default: the request's own scheme, host and mount point.
        timeout: seconds that the other app may take; then it is 504 `upstream_timeout`.
        clock: seconds since the epoch; a model's `created` is when this app was made, where the other app tells none.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tiers: Tiers,
        public_url: str | None = None,
        timeout: float = _SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        self._tiers = looked_up(tiers)
        self._public_url = public_url
        self._timeout = timeout
        self._created = int(clock())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, send, self._respond)

    async def _respond(self, request: Request) -> Response:
        tier = required(ensure_context(request.scope).tier, "HostModelsApp", "tier", "TierMiddleware")
        check_reading(request)
        url = base_url(request, self._public_url)
        rows = [self._row(model_id, told, tier, url) for model_id, told in _models(await self._list(request.scope))]
        if asked := path_below(request.scope, MODELS).strip("/"):
            return JSONResponse(_named(asked, rows))
        return JSONResponse(listing(rows))

    def _row(self, model_id: str, told: Mapping[str, Any], callers: Tier, url: str) -> Row:
        created, owner = told.get("created"), told.get("owned_by")  # some tell it with a fraction, or an empty one
        row = model_row(
            model_id,
            name=model_id,
            created=int(created) if _is_number(created) else self._created,
            owned_by=owner if isinstance(owner, str) and owner else "maas",
            url=url,
            tiers=self._tiers() or [callers],
        )
        if _is_number(length := told.get("max_model_len")):
            row["max_model_len"] = int(length)
        if isinstance(parent := told.get("parent"), str):
            row["parent"] = parent
        return row

    async def _list(self, scope: Scope) -> bytes:
        answer = _Answer()
        try:
            with anyio.fail_after(self._timeout):
                await self.app(_asking(scope), replay(b"", _nothing_more), answer.send)
        except TimeoutError:
            raise UpstreamTimeout from None
        except Exception as error:
            if not answer.is_too_large:
                logger.exception("the app failed to list its models")
            raise UpstreamError from error
        if answer.status != 200:
            logger.warning("the app answered %s to GET /v1/models: name its models in `models`", answer.status)
            raise UpstreamError
        return bytes(answer.body)


class _Answer:
    """What the other app says."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.body = bytearray()
        self.is_too_large = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.body += message.get("body", b"")
        if len(self.body) > _MAXIMUM_LIST_BYTES:
            self.is_too_large = True
            raise UpstreamError


async def _nothing_more() -> NoReturn:
    while True:
        await anyio.sleep_forever()


def _asking(scope: Scope) -> Scope:
    root = scope.get("app_root_path", scope.get("root_path", "")).rstrip("/")
    return {
        **scope,
        "method": "GET",
        "root_path": root,
        "path": root + MODELS,
        "raw_path": quoted_path(root + MODELS).encode(),
        "query_string": b"",
        "headers": without_headers(scope["headers"], *_ABOUT_THE_ANSWER),
        "extensions": {},
    }


def _models(body: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        told = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise UpstreamError from None
    if not isinstance(told, Mapping) or not isinstance(told.get("data"), list):
        raise UpstreamError
    for row in told["data"]:
        if isinstance(row, Mapping) and isinstance(model_id := row.get("id"), str):
            yield model_id, row


def _named(asked: str, rows: Iterable[Row]) -> Row:
    for row in rows:
        if row["id"].strip("/") == asked:
            return row
    raise ModelNotFound(asked)


def _is_number(value: object) -> TypeGuard[int | float]:
    return type(value) in (int, float)
