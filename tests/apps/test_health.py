from __future__ import annotations

import httpx
import pytest

from maas_middleware.apps.health import DocumentApp, ReadyApp, health_app
from maas_middleware.testing.converse import converse

from ..servers import serving


async def test_health_is_healthy() -> None:
    conversation = await converse(health_app())

    assert conversation.status == 200
    assert conversation.headers == [("content-length", "20"), ("content-type", "application/json")]
    assert conversation.body == b'{"status":"healthy"}'
    assert conversation.complete


@pytest.mark.parametrize(
    ("troubles", "document"),
    [
        pytest.param([], {"status": "ready"}, id="nothing is wrong"),
        pytest.param(["tiers"], {"status": "ready", "degraded": ["tiers"]}, id="something is wrong"),
        pytest.param(("tiers", "counters"), {"status": "ready", "degraded": ["tiers", "counters"]}, id="more"),
    ],
)
async def test_ready_names_what_works_only_in_part(troubles: list[str], document: dict[str, object]) -> None:
    conversation = await converse(ReadyApp(degraded=lambda: troubles))

    assert conversation.status == 200
    assert conversation.json() == document


async def test_document_is_made_anew_for_every_request() -> None:
    troubles: list[str] = []
    app = ReadyApp(degraded=lambda: troubles)

    before = await converse(app)
    troubles.append("counters")
    during = await converse(app)
    troubles.clear()
    after = await converse(app)

    assert [conversation.json() for conversation in (before, during, after)] == [
        {"status": "ready"},
        {"status": "ready", "degraded": ["counters"]},
        {"status": "ready"},
    ]


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    async with serving(health_app(), lifespan="off") as url, httpx.AsyncClient(trust_env=False) as client:
        head = await client.head(url)

    assert head.status_code == 200
    assert head.headers["content-type"] == "application/json"
    assert head.headers["content-length"] == "20"
    assert head.content == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"])
async def test_other_methods_are_405_and_make_no_document(method: str) -> None:
    made: list[int] = []

    def document() -> dict[str, object]:
        made.append(1)
        return {}

    conversation = await converse(DocumentApp(document), method, body=b"{}")

    assert conversation.status == 405
    assert conversation.header("allow") == "GET, HEAD"
    assert conversation.json()["error"]["code"] == "method_not_allowed"
    assert made == []


async def test_ready_is_503_while_nobody_can_be_served() -> None:
    usable = [True, False, True]

    async def is_usable() -> bool:
        return usable.pop()

    app = ReadyApp(degraded=lambda: ["counters"], is_usable=is_usable)
    before, during, after = [await converse(app) for _ in range(3)]

    assert before.status == after.status == 200
    assert before.json() == {"status": "ready", "degraded": ["counters"]}
    assert during.status == 503
    assert during.json()["error"]["code"] == "store_unavailable"
    assert during.header("retry-after") == "2"


async def test_ready_asks_nothing_for_other_methods() -> None:
    async def is_usable() -> bool:
        raise AssertionError("asked")

    conversation = await converse(ReadyApp(degraded=list, is_usable=is_usable), "POST", body=b"{}")

    assert conversation.status == 405
