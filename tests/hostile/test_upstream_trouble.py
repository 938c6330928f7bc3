"""Model servers that are down, hang, answer garbage or tell too much: before the first byte of an answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from ..raw_upstream import Script, answer, chunk, chunked_head, raw_upstream
from .attack import Target, besieged
from .scripts import Changing, for_ever, hanging_up, said

JSON, SSE, HTML = b"Content-Type: application/json", b"Content-Type: text/event-stream", b"Content-Type: text/html"
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
DOCUMENT = json.dumps({"object": "chat.completion", "choices": [], "usage": USAGE}).encode()
TELLTALE = "Traceback (most recent call last): connect to http://10.0.0.1:8000 failed at 127.0.0.1:8000"
TELLING = json.dumps({"error": {"message": TELLTALE, "type": "Boom", "param": None, "code": 500}}).encode()
healthy = said(answer("200 OK", DOCUMENT, JSON))
model = Changing(healthy)


@pytest.fixture(scope="module")
async def besieged_target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with raw_upstream(hanging_up) as closed:
        pass
    model.script = healthy
    async with raw_upstream(model) as upstream:
        servers = {"simulator": upstream.url, "gone": closed.url}
        models = [{"id": id, "tiers": "all", "upstreams": [url]} for id, url in servers.items()]
        proxy = {"first_byte_timeout": 0.3, "idle_timeout": 0.3}
        async with besieged(tmp_path_factory.mktemp("keys"), models=models, proxy=proxy) as target:
            target.secrets += ["10.0.0.1", "Boom"]
            yield target


@pytest.mark.parametrize(
    "value", [b"a\x01b", b"a\x7fb", b"a\x0bb", b"\xff", b"x" * 60_000], ids=lambda value: repr(value[:3])
)
async def test_header_that_no_server_would_send_is_left_out_or_a_reason_to_refuse(target: Target, value: bytes) -> None:
    model.script = said(answer("200 OK", DOCUMENT, JSON, b"X-Name: " + value))

    answered = await target.chat(target.access())

    if answered.status == 200:
        assert (answered.whole, answered.body) == (True, DOCUMENT)
    else:
        answered.refusal(502, "upstream_error")


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(said(then_hang=True), id="no-answer"),
        pytest.param(said(b"HTTP/1.1 200 OK\r\nContent-", then_hang=True), id="in-its-headers"),
        pytest.param(said(chunked_head("application/json"), then_hang=True), id="behind-its-headers"),
        pytest.param(said(chunked_head("text/event-stream"), then_hang=True), id="behind-the-headers-of-a-stream"),
        pytest.param(said(chunked_head("application/json"), chunk(DOCUMENT[:9]), then_hang=True), id="in-its-body"),
        pytest.param(said(answer("500 X", TELLING, JSON)[:-9], then_hang=True), id="within-an-error"),
        pytest.param(for_ever(b"", b"HTTP/1.1 102 Processing\r\n\r\n"), id="endless-interim-answers"),
        pytest.param(said(answer("504 Gateway Timeout", TELLING, JSON)), id="its-own-504"),
    ],
)
async def test_upstream_that_hangs_is_504_and_costs_nothing(target: Target, trouble: Script) -> None:
    token, model.script = target.access(), trouble

    answered = await target.chat(token)

    answered.refusal(504, "upstream_timeout")
    assert await target.used(token) == (0, 0)


@pytest.mark.parametrize("name", ["gone", "simulator"])
async def test_upstream_that_is_down_is_503_and_costs_nothing(target: Target, name: str) -> None:
    token, model.script = target.access(), said(answer("503 Service Unavailable", TELLING, JSON))

    answered = await target.chat(token, model=name)

    answered.refusal(503, "upstream_unavailable")
    assert await target.used(token) == (0, 0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_502_and_not_followed(target: Target, status: int) -> None:
    async with raw_upstream(healthy) as trap:
        model.script = said(answer(f"{status} X", b"", f"Location: {trap.url}/v1/chat/completions".encode()))
        answered = await target.chat(target.access())

    answered.refusal(502, "upstream_error")
    assert answered.header("location") is None
    assert trap.connections == []
