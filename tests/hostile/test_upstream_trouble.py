"""Model servers that are down, hang, answer garbage or tell too much: before the first byte of an answer."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator

import pytest

from ..raw_upstream import LAST_CHUNK, Script, answer, chunk, chunked_head, raw_upstream
from .attack import Target, besieged
from .scripts import Changing, for_ever, hanging_up, reset_after, said

JSON, HTML, TEXT = (b"Content-Type: " + kind for kind in (b"application/json", b"text/html", b"text/plain"))
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
DOCUMENT = json.dumps({"object": "chat.completion", "choices": [], "usage": USAGE}).encode()
TELLTALE = "Traceback (most recent call last): connect to http://10.0.0.1:8000 failed at 127.0.0.1:8000"
TELLING = json.dumps({"error": {"message": TELLTALE, "type": "Boom", "param": None, "code": 500}}).encode()
PAGE = f"<html><h1>Boom</h1><pre>{TELLTALE}</pre></html>".encode()
JSON_HEAD = chunked_head("application/json")
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
        proxy = {"first_byte_timeout": 0.8, "idle_timeout": 0.8}
        async with besieged(tmp_path_factory.mktemp("keys"), models=models, proxy=proxy) as target:
            target.secrets += ["10.0.0.1", "Boom", "/mnt/"]
            yield target


streamed = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])

GARBAGE = [
    pytest.param(hanging_up, id="hangs-up"),
    pytest.param(said(), id="closes-without-an-answer"),
    pytest.param(reset_after(), id="resets"),
    pytest.param(said(b"HTTP/1.1 200 OK\r\nContent-Le"), id="closes-in-its-headers"),
    pytest.param(said(JSON_HEAD), id="closes-behind-its-headers"),
    pytest.param(reset_after(JSON_HEAD), id="resets-behind-its-headers"),
    pytest.param(said(b"SSH-2.0-OpenSSH_9.9\r\n"), id="another-protocol"),
    pytest.param(said(b"\x16\x03\x01\x00\xff" * 100), id="bytes"),
    pytest.param(said(b"HTTP/1.1 OK\r\n\r\n"), id="no-status"),
    *(pytest.param(said(answer(f"{status} X", DOCUMENT, JSON)), id=f"status-{status}") for status in (99, 600, 999)),
    pytest.param(said(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), id="upgrade"),
    pytest.param(said(answer("200 OK", PAGE, HTML)), id="html"),
    pytest.param(said(answer("200 OK", PAGE, JSON)), id="html-said-to-be-json"),
    pytest.param(said(answer("200 OK", TELLTALE.encode(), TEXT)), id="plain-text"),
    pytest.param(said(answer("200 OK", TELLTALE.encode(), JSON)), id="text-said-to-be-json"),
    pytest.param(said(answer("200 OK", TELLTALE.encode())), id="text-of-no-content-type"),
    pytest.param(said(answer("200 OK", b"", JSON)), id="empty"),
    pytest.param(said(answer("200 OK", b"")), id="empty-of-no-content-type"),
    pytest.param(said(answer("200 OK", b" \r\n", JSON)), id="blank"),
    pytest.param(said(answer("200 OK", DOCUMENT[:-1], JSON)), id="truncated-json"),
    pytest.param(said(answer("200 OK", DOCUMENT[:-1])), id="truncated-json-of-no-content-type"),
    pytest.param(said(JSON_HEAD, chunk(DOCUMENT[:-1]), LAST_CHUNK), id="truncated-json-in-chunks"),
    pytest.param(said(answer("200 OK", b"[{1", JSON)), id="broken-array"),
    pytest.param(said(answer("200 OK", b"[" * 100_000 + b"]" * 100_000, JSON)), id="deep-array"),
    pytest.param(said(answer("200 OK", DOCUMENT * 2, JSON)), id="two-documents"),
    pytest.param(said(answer("200 OK", DOCUMENT.replace(b"chat", b"\xff"), JSON)), id="invalid-utf-8-with-usage"),
    pytest.param(said(answer("200 OK", DOCUMENT.decode().encode("utf-16"), JSON)), id="utf-16"),
    pytest.param(said(answer("200 OK", gzip.compress(DOCUMENT, mtime=0), JSON)), id="gzip-that-nobody-mentions"),
    pytest.param(said(chunked_head("text/html"), chunk(PAGE * 50_000), LAST_CHUNK), id="more-html-than-is-held"),
    pytest.param(
        said(answer("200 OK", DOCUMENT, JSON).replace(b"Length: ", b"Length: 9")), id="shorter-than-its-length"
    ),
    pytest.param(said(answer("200 OK", DOCUMENT, JSON, b"Content-Length: 5")), id="two-lengths"),
    pytest.param(said(answer("200 OK", DOCUMENT, JSON).replace(b"Length: ", b"Length: -")), id="negative-length"),
    pytest.param(said(JSON_HEAD, b"zz\r\n"), id="no-chunk"),
    pytest.param(said(JSON_HEAD, chunk(DOCUMENT[:9]), b"zz\r\n"), id="no-second-chunk"),
    pytest.param(said(JSON_HEAD, chunk(DOCUMENT)), id="no-last-chunk"),
    pytest.param(said(answer("200 OK", DOCUMENT, JSON, b"X-Huge: " + b"x" * 300_000)), id="huge-header"),
    pytest.param(for_ever(b"HTTP/1.1 200 OK\r\n", b"X-Header: x\r\n" * 1000), id="endless-headers"),
    pytest.param(for_ever(b"HTTP/1.1 200 OK\r\nX-Header: ", b"x" * 10_000), id="endless-header"),
    pytest.param(said(answer("200 OK", DOCUMENT, JSON, b"X(Name): a")), id="bracket-in-the-name-of-a-header"),
    *(pytest.param(said(answer(f"{status} X", TELLING, JSON)), id=f"{status}") for status in (401, 403, 500, 501, 599)),
    *(pytest.param(said(answer(f"{status} X", b"")), id=f"{status}-empty") for status in (300, 304, 401, 500)),
    pytest.param(said(answer("403 X", PAGE, HTML)), id="403-in-html"),
    pytest.param(said(answer("500 X", PAGE, HTML)), id="500-in-html"),
    pytest.param(said(answer("500 X", TELLTALE.encode())), id="500-in-plain-text"),
    pytest.param(said(answer("500 X", TELLING, JSON).replace(b"Length: ", b"Length: 9")), id="500-cut"),
]


@streamed
@pytest.mark.parametrize("trouble", GARBAGE)
async def test_garbage_is_502_and_costs_nothing(target: Target, trouble: Script, stream: bool) -> None:
    token, model.script = target.access(), trouble

    answered = await target.chat(token, stream=stream)

    answered.refusal(502, "upstream_error")
    assert await target.used(token) == (0, 0)


@streamed
@pytest.mark.parametrize("kind", [JSON, TEXT, HTML, None])
async def test_document_is_passed_byte_by_byte_whatever_it_says_it_is(
    target: Target, kind: bytes | None, stream: bool
) -> None:
    model.script = said(answer("200 OK", DOCUMENT, *([] if kind is None else [kind])))

    answered = await target.chat(target.access(), stream=stream)

    assert (answered.status, answered.whole, answered.body) == (200, True, DOCUMENT)
    assert answered.header("content-type") == (None if kind is None else kind.decode().removeprefix("Content-Type: "))


@streamed
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(json.loads(TELLING), id="vllm"),
        pytest.param(
            {"object": "error", "message": TELLTALE, "type": "Boom", "param": None, "code": 500}, id="old-vllm"
        ),
        pytest.param({"type": "error", "error": {"type": "Boom", "message": TELLTALE}}, id="anthropic"),
        pytest.param({"error": TELLTALE}, id="text"),
        pytest.param({"error": [TELLTALE]}, id="list"),
        pytest.param({"error": {"message": TELLTALE, "type": "Boom", "code": "400"}}, id="code-as-text"),
        pytest.param({"error": {"message": TELLTALE, "type": "Boom", "code": 401}}, id="401"),
        pytest.param({"error": {"message": TELLTALE, "code": 400.0}}, id="code-of-no-whole-number"),
        pytest.param(
            {"id": "chat-1", "choices": [], "error": {"message": "Boom", "code": None}}, id="beside-no-choices"
        ),
    ],
)
async def test_error_that_comes_as_a_success_tells_nothing_and_costs_nothing(
    target: Target, document: object, stream: bool
) -> None:
    token, model.script = target.access(), said(answer("200 OK", json.dumps(document).encode(), JSON))

    answered = await target.chat(token, stream=stream)

    answered.refusal(502, "upstream_error")
    assert await target.used(token) == (0, 0)


REFUSED = "The model refused the request"
BAD = {"message": "`temperature` is too hot", "type": "BadRequestError", "param": "temperature", "code": 400}
PROBLEM = {"loc": ["body", "messages", 0], "msg": "Input should be a valid dictionary", "type": "dict_type"}
REFUSALS = [
    pytest.param({"error": BAD}, BAD["message"], "temperature", id="vllm"),
    pytest.param({"object": "error", **BAD}, BAD["message"], "temperature", id="old-vllm"),
    pytest.param(
        {"error": BAD, "trace": TELLTALE, "server": "10.0.0.1"}, BAD["message"], "temperature", id="beside-it"
    ),
    pytest.param({"error": {**BAD, "message": TELLTALE}}, REFUSED, "temperature", id="stack-as-message"),
    pytest.param({"error": {**BAD, "message": f"{TELLTALE[:33]}:"}}, REFUSED, "temperature", id="stack-alone"),
    pytest.param({"error": {**BAD, "message": "cannot reach 10.0.0.1"}}, REFUSED, "temperature", id="address"),
    pytest.param({"error": {**BAD, "message": "see http://boom:8000/"}}, REFUSED, "temperature", id="url-with-port"),
    pytest.param({"error": {**BAD, "message": "no boom.models.svc"}}, REFUSED, "temperature", id="name-in-the-cluster"),
    pytest.param({"error": {**BAD, "message": "localhost is down"}}, REFUSED, "temperature", id="localhost"),
    pytest.param({"error": {**BAD, "param": TELLTALE}}, BAD["message"], None, id="stack-as-param"),
    pytest.param({"error": {**BAD, "code": TELLTALE}}, BAD["message"], "temperature", id="stack-as-code"),
    pytest.param({"error": "Too hot"}, "Too hot", None, id="text-as-error"),
    pytest.param({"error": TELLTALE}, REFUSED, None, id="stack-as-error"),
    pytest.param({"detail": [PROBLEM, {"msg": TELLTALE}]}, PROBLEM["msg"], "messages.0", id="fastapi"),
    pytest.param({"detail": "Too hot"}, "Too hot", None, id="text-as-detail"),
    pytest.param({"detail": TELLTALE}, REFUSED, None, id="stack-as-detail"),
    pytest.param({"stack": TELLTALE}, REFUSED, None, id="something-else"),
    pytest.param([{"error": {"message": TELLTALE}}], REFUSED, None, id="array"),
    pytest.param(TELLTALE, REFUSED, None, id="string"),
]


@pytest.mark.parametrize(
    ("status", "code", "stream"), [(400, "invalid_request", False), (422, "unprocessable_entity", True)]
)
@pytest.mark.parametrize(("document", "message", "param"), REFUSALS)
async def test_refusal_of_the_upstream_keeps_its_message_and_tells_nothing_else(
    target: Target, status: int, code: str, document: object, message: str, param: str | None, stream: bool
) -> None:
    token, model.script = target.access(), said(answer(f"{status} X", json.dumps(document).encode(), JSON))

    answered = await target.chat(token, stream=stream)

    error = answered.refusal(status, code)
    assert (error["message"], error["param"], "details" in error) == (message, param, False)
    assert await target.used(token) == (1, 0)


@pytest.mark.parametrize("headers", [[JSON], [HTML], []], ids=["json", "html", "nothing"])
@pytest.mark.parametrize("body", [TELLTALE.encode(), PAGE, b"Too hot", b"", b"\xff", TELLING[:-1]])
async def test_refusal_that_is_no_json_tells_nothing(target: Target, body: bytes, headers: list[bytes]) -> None:
    token, model.script = target.access(), said(answer("400 X", body, *headers))

    answered = await target.chat(token)

    assert answered.refusal(400, "invalid_request")["message"] == REFUSED
    assert await target.used(token) == (1, 0)


@streamed
async def test_refusal_that_comes_as_a_success_keeps_its_message_and_costs_nothing(
    target: Target, stream: bool
) -> None:
    token, model.script = target.access(), said(answer("200 OK", json.dumps({"error": BAD}).encode(), JSON))

    answered = await target.chat(token, stream=stream)

    assert answered.refusal(400, "invalid_request")["message"] == BAD["message"]
    assert await target.used(token) == (0, 0)


@pytest.mark.parametrize(
    ("message", "code"),
    [("The model `/mnt/models/boom` does not exist.", "model_not_found"), ("/mnt/boom is not here", "not_found")],
)
@pytest.mark.parametrize("status", [200, 404])
async def test_404_of_the_upstream_is_told_without_its_paths(
    target: Target, status: int, message: str, code: str
) -> None:
    document = {"error": {**BAD, "message": message, "param": None, "code": 404}}
    model.script = said(answer(f"{status} X", json.dumps(document).encode(), JSON))

    answered = await target.chat(target.access())

    answered.refusal(404, code)


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
        pytest.param(said(b"HTTP/1.1 102 Processing\r\n\r\n" * 3, then_hang=True), id="behind-interim-answers"),
        pytest.param(said(answer("504 Gateway Timeout", TELLING, JSON)), id="its-own-504"),
    ],
)
async def test_upstream_that_hangs_is_504_and_costs_nothing(target: Target, trouble: Script) -> None:
    token, model.script = target.access(), trouble

    answered = await target.chat(token)

    answered.refusal(504, "upstream_timeout")
    assert await target.used(token) == (0, 0)


async def test_endless_interim_answers_are_502_and_cost_nothing(target: Target) -> None:
    token, model.script = target.access(), for_ever(b"", b"HTTP/1.1 102 Processing\r\n\r\n")

    answered = await target.chat(token)

    answered.refusal(502, "upstream_error")
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
