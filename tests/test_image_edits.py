"""Images that are edited and varied, which is asked for by forms: what is forwarded, metered, charged and reserved."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from .deployments import bearer
from .hostile.scripts import Changing, hanging_up, said
from .raw_upstream import LAST_CHUNK, Connection, Request, answer, chunk, chunked_head, raw_upstream
from .sdk.site import Site, User, sited

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"
EACH_PATH = pytest.mark.parametrize("path", [EDITS, VARIATIONS])
JSON = b"Content-Type: application/json"
PICTURE = ("hat.png", b"\x89PNG\r\n\x1a\n" + bytes(1600), "image/png")
ASKED = {"model": "painter", "prompt": "A red hat"}
ESTIMATE = 4 + 2 + 1024  # 16 bytes of text, 1608 of a picture, and the dialect's own for an image
DOCUMENT = (
    b'{"created":1767000000,"data":[{"b64_json":"iVBORw0KGgo="}],'
    b'"usage":{"total_tokens":130,"input_tokens":80,"output_tokens":50,'
    b'"input_tokens_details":{"text_tokens":30,"image_tokens":50}}}'
)
DRAWN = answer("200 OK", DOCUMENT, JSON)
STREAM = (Path(__file__).parent / "streams" / "images.edit.sse").read_bytes()
STREAM_TOKENS = 484  # as it tells
PARTIAL_IMAGES = 2
EVENTS = chunked_head("text/event-stream", b"Connection: close")

model = Changing(hanging_up)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A gateway to a server that knows the model `painter` as `brush-1`."""
    async with raw_upstream(model) as upstream:
        painter = {"id": "painter", "upstream_model": "brush-1", "tiers": "all", "upstreams": [upstream.url]}
        async with sited(tmp_path_factory.mktemp("keys"), [painter]) as site:
            yield site


def pieces(stream: bytes) -> bytes:
    """The chunks of a stream, cut with no regard to its events."""
    return b"".join(chunk(stream[at : at + 61]) for at in range(0, len(stream), 61))


async def ask(site: Site, user: User, path: str, **fields: str) -> httpx.Response:
    files = {"image": PICTURE}
    return await site.http.post(path, data=ASKED | fields, files=files, headers=bearer(user.token))


@EACH_PATH
async def test_answer_is_metered_and_charged(site: Site, path: str) -> None:
    model.script = said(DRAWN)
    user = await site.user()

    drawn = await ask(site, user, path)

    used = {name: drawn.headers[f"x-odhu-usage-{name}-tokens"] for name in ("input", "output", "total")}
    assert (drawn.status_code, drawn.content) == (200, DOCUMENT)
    assert used == {"input": "80", "output": "50", "total": "130"}
    assert drawn.headers["x-ratelimit-remaining-tokens"] == str(100_000 - 130)
    assert await user.used() == (1, 130)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
@pytest.mark.parametrize("call", ["edit", "create_variation"])
async def test_sdk_reads_the_images(site: Site, call: str) -> None:
    model.script = said(DRAWN)
    user = await site.user()
    asked: dict[str, Any] = {"model": "painter", "image": PICTURE, "n": 1}

    create = getattr(user.openai().images.with_raw_response, call)
    raw = await create(**asked, **({"prompt": "A red hat"} if call == "edit" else {}))

    assert raw.parse().data[0].b64_json == "iVBORw0KGgo="
    assert raw.headers["x-odhu-usage-total-tokens"] == "130"
    assert await user.used() == (1, 130)


@EACH_PATH
async def test_model_reads_the_form_under_its_own_name(site: Site, path: str) -> None:
    seen: list[Request] = []

    async def script(connection: Connection) -> None:
        seen.append(await connection.read_request())
        await connection.send(DRAWN)

    model.script = script
    await ask(site, await site.user(), f"/painter{path}", n="1", request_id="mine")

    (request,) = seen
    assert request.line == f"POST {path} HTTP/1.1".encode()
    assert request.values(b"transfer-encoding") == [b"chunked"]
    assert b'name="model"\r\n\r\nbrush-1\r\n' in request.body
    assert b'name="prompt"\r\n\r\nA red hat\r\n' in request.body
    assert b'filename="hat.png"\r\nContent-Type: image/png\r\n\r\n' + PICTURE[1] + b"\r\n" in request.body
    assert b"painter" not in request.body
    assert b"request_id" not in request.body


@EACH_PATH
async def test_stream_is_passed_on_as_it_is_and_charged_what_it_tells(site: Site, path: str) -> None:
    model.script = said(EVENTS, pieces(STREAM), LAST_CHUNK)
    user = await site.user()

    drawn = await ask(site, user, path, stream="true", partial_images="2")

    assert drawn.headers["content-type"] == "text/event-stream"
    assert drawn.content == STREAM
    assert await user.used() == (1, STREAM_TOKENS)


async def test_sdk_reads_the_stream(site: Site) -> None:
    model.script = said(EVENTS, pieces(STREAM), LAST_CHUNK)
    user = await site.user()

    stream = await user.openai().images.edit(model="painter", image=PICTURE, prompt="A red hat", stream=True)
    kinds = [event.type async for event in stream]

    assert kinds == ["image_edit.partial_image"] * PARTIAL_IMAGES + ["image_edit.completed"]
    assert await user.used() == (1, STREAM_TOKENS)


@EACH_PATH
async def test_stream_that_is_cut_says_so_and_costs_what_was_drawn(site: Site, path: str) -> None:
    model.script = said(EVENTS, pieces(STREAM[: STREAM.index(b"event: image_edit.completed")]), LAST_CHUNK)
    user, read, is_broken = await site.user(), b"", False

    asked: dict[str, Any] = {"data": ASKED | {"stream": "true"}, "files": {"image": PICTURE}}
    async with site.http.stream("POST", path, **asked, headers=bearer(user.token)) as drawn:
        try:
            async for piece in drawn.aiter_raw():
                read += piece
        except httpx.RemoteProtocolError:
            is_broken = True

    prompt = ESTIMATE - 1024 + 1  # and the word `true`
    assert is_broken
    assert b'"code":"upstream_error"' in read
    assert await user.used() == (1, prompt + PARTIAL_IMAGES)


@EACH_PATH
@pytest.mark.parametrize(("images", "more"), [(1, {}), (3, {"n": "3"})])
@pytest.mark.parametrize("prefix", ["", "/painter"], ids=["held", "streamed"])
async def test_estimate_is_reserved_and_is_the_price_where_no_usage_is_told(
    site: Site, prefix: str, path: str, images: int, more: dict[str, str]
) -> None:
    asked, go_on = anyio.Event(), anyio.Event()
    answers: list[httpx.Response] = []

    async def script(connection: Connection) -> None:
        await connection.read_request()
        asked.set()
        await go_on.wait()
        await connection.send(answer("200 OK", b'{"created":1767000000,"data":[]}', JSON))

    async def call() -> None:
        answers.append(await ask(site, user, prefix + path, **more))

    model.script = script
    user = await site.user()
    estimate = ESTIMATE + (images - 1) * 1024 + len(more)
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await asked.wait()
        reserved = await user.used()
        go_on.set()

    assert reserved == (1, estimate)
    assert answers[0].status_code == 200
    assert "x-odhu-usage-total-tokens" not in answers[0].headers
    assert await user.used() == (1, estimate)


@EACH_PATH
async def test_who_is_over_the_limit_is_refused(site: Site, path: str) -> None:
    model.script = said(DRAWN)
    user = await site.user("thrifty")
    await ask(site, user, path)

    refused = await ask(site, user, path)

    assert refused.status_code == 429
    assert refused.json()["error"]["details"]["limit"] == "tokens"


@EACH_PATH
async def test_feature_that_the_tier_lacks(site: Site, path: str) -> None:
    user = await site.user("basic")

    refused = await ask(site, user, path)

    assert refused.status_code == 403
    assert refused.json()["error"]["details"] == {"feature": "images", "tier": "basic"}
    assert await user.used() == (0, 0)


@EACH_PATH
async def test_answer_that_is_no_json_is_none(site: Site, path: str) -> None:
    model.script = said(answer("200 OK", b"<html>10.0.0.1</html>", b"Content-Type: text/html"))
    user = await site.user()

    refused = await ask(site, user, path)

    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "upstream_error")
    assert await user.used() == (0, 0)
