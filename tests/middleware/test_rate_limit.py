from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware._asgi import reject
from maas_middleware.context import ensure_context, get_context
from maas_middleware.dialects import SPEECH
from maas_middleware.endpoints import CHAT_COMPLETIONS, Endpoint
from maas_middleware.errors import AccessDenied, StoreUnavailable, UpstreamError
from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.limiting import Charge, Demand, Lease, Ledger, Subject, Verdict, parse_limits
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.middleware.rate_limit import RateLimitMiddleware
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.middleware.usage import UsageMiddleware
from maas_middleware.requests import JSONRequest
from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.converse import Conversation, converse
from maas_middleware.tiers import GroupTierResolver, Tier
from tests.parts import (
    ALICE,
    AS_ALICE,
    AS_BOB,
    BOB,
    CATALOGUE,
    EVENT_STREAM,
    FREE,
    PREMIUM,
    RESOLVER,
    Answering,
    identified,
    json_answer,
    knock,
    last,
    piece,
    start,
    start_up,
    starting_up,
    watched,
)
from tests.servers import serving

ROOMY = Tier("roomy", groups=("free-users",), requests=parse_limits("50/minute"), tokens=parse_limits("100000/minute"))
CAPPED = replace(ROOMY, max_tokens_per_request=50)
CHAT = {"model": "simulator", "messages": [{"role": "user", "content": "How are you?"}], "max_tokens": 1000}
STREAM = {**CHAT, "stream": True}
PROMPT = JSONRequest.parse(json.dumps(CHAT).encode()).prompt_tokens
ESTIMATE = PROMPT + 1000

NO_USAGE = b'{"choices":[]}'
DONE = b"data: [DONE]\n\n"


def usage(total: int) -> bytes:
    return b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}}' % (total - 1, total)


def delta(text: str, running: int | None = None) -> bytes:
    chunk: dict[str, Any] = {"choices": [{"delta": {"content": text}}]}
    if running is not None:
        chunk["usage"] = {"prompt_tokens": 1, "completion_tokens": running - 1, "total_tokens": running}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def metered(app: ASGIApp, ledger: Ledger, *, tier: Tier = ROOMY, **options: Any) -> ASGIApp:
    shells = RateLimitMiddleware(UsageMiddleware(app), ledger=ledger, **options)
    return identified(TierMiddleware(shells, resolver=GroupTierResolver([tier, PREMIUM]), catalogue=CATALOGUE))


async def chat(app: ASGIApp, **more: Any) -> Conversation:
    with anyio.fail_after(5):
        return await converse(app, "POST", CHAT_COMPLETIONS, **{"headers": [AS_ALICE], "json": CHAT, **more})


async def used(ledger: Ledger, tier: Tier = ROOMY) -> tuple[int, int]:
    """How many of Alice's requests and tokens are gone, those that are held included."""
    verdict = await ledger.peek(tier.subject(ALICE))
    assert verdict.requests is not None
    assert verdict.tokens is not None
    gone = [budget.limit.amount - budget.remaining for budget in (verdict.requests, verdict.tokens)]
    return gone[0], gone[1]


def memory(clock: FakeClock | None = None) -> MemoryLedger:
    return MemoryLedger(clock=clock or FakeClock())


class Noting(MemoryLedger):
    """A ledger in memory that lets others run first, as one on a network does, and remembers its calls."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        super().__init__(clock=clock or FakeClock())
        self.charges: list[Charge] = []
        self.renewals = 0

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        await checkpoint()
        return await super().admit(subject, demand)

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        await checkpoint()
        self.charges.append(charge)
        await super().settle(lease, charge)

    async def renew(self, lease: Lease, /) -> None:
        await checkpoint()
        self.renewals += 1
        await super().renew(lease)


class Failing(MemoryLedger):
    """A ledger that fails in the calls named."""

    def __init__(self, error: Exception, *calls: str) -> None:
        super().__init__(clock=FakeClock())
        self._error = error
        self._calls = calls

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        if "admit" in self._calls:
            raise self._error
        return await super().admit(subject, demand)

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        if "settle" in self._calls:
            raise self._error
        await super().settle(lease, charge)

    async def renew(self, lease: Lease, /) -> None:
        if "renew" in self._calls:
            raise self._error
        await super().renew(lease)

    async def peek(self, subject: Subject, /) -> Verdict:
        if "peek" in self._calls:
            raise self._error
        return await super().peek(subject)


class Hanging(MemoryLedger):
    """A ledger that never comes back from the call named."""

    def __init__(self, call: str) -> None:
        super().__init__(clock=FakeClock())
        self._call = call

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        if self._call == "admit":
            await anyio.sleep_forever()
        return await super().admit(subject, demand)

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        await anyio.sleep_forever()

    async def peek(self, subject: Subject, /) -> Verdict:
        if self._call == "peek":
            await anyio.sleep_forever()
        return await super().peek(subject)


@pytest.mark.parametrize(
    ("messages", "body", "charged"),
    [
        pytest.param(json_answer(usage(30)), CHAT, (1, 30), id="usage-of-a-json-answer"),
        pytest.param(json_answer(usage(5000)), CHAT, (1, 5000), id="usage-past-the-reservation"),
        pytest.param(json_answer(b'{"usage":{"prompt_tokens":0,"total_tokens":0}}'), CHAT, (1, 0), id="usage-of-0"),
        pytest.param(json_answer(NO_USAGE), CHAT, (1, ESTIMATE), id="json-without-usage"),
        pytest.param(json_answer(b"garbage"), CHAT, (0, 0), id="garbage-is-no-answer"),
        pytest.param([start(200), last(b"text")], CHAT, (0, 0), id="text-is-no-answer"),
        pytest.param([start(200), last(NO_USAGE)], CHAT, (1, ESTIMATE), id="json-without-usage-or-a-type"),
        pytest.param([EVENT_STREAM, last()], STREAM, (1, PROMPT), id="empty-stream-is-cut"),
        pytest.param(
            [EVENT_STREAM, piece(delta("a")), piece(b"data: " + usage(30) + b"\n\n"), piece(DONE), last()],
            STREAM,
            (1, 30),
            id="usage-of-a-stream",
        ),
        pytest.param(
            [EVENT_STREAM, piece(delta("a", 10)), piece(delta("b", 20)), piece(delta("c", 30)), last(DONE)],
            STREAM,
            (1, 30),
            id="running-usage-is-never-added",
        ),
        pytest.param(
            [EVENT_STREAM, piece(delta("a")), piece(delta("b")), last(DONE)],
            STREAM,
            (1, PROMPT + 2),
            id="stream-without-usage",
        ),
        pytest.param(json_answer(b'{"detail":"no"}', 400), CHAT, (1, 0), id="400-keeps-the-request"),
        pytest.param(json_answer(b'{"detail":"no"}', 404), CHAT, (1, 0), id="404-keeps-the-request"),
        pytest.param(json_answer(b'{"detail":"no"}', 429), CHAT, (1, 0), id="429-keeps-the-request"),
        pytest.param(json_answer(usage(30), 422), CHAT, (1, 0), id="422-costs-no-tokens-whatever-it-says"),
        pytest.param(json_answer(b'{"detail":"no"}', 401), CHAT, (0, 0), id="401-is-about-our-credential"),
        pytest.param(json_answer(b'{"detail":"no"}', 403), CHAT, (0, 0), id="403-is-about-our-credential"),
        pytest.param(json_answer(b'{"detail":"no"}', 500), CHAT, (0, 0), id="500-costs-nothing"),
        pytest.param([start(502), piece(b"bad"), last()], CHAT, (0, 0), id="502-costs-nothing"),
        pytest.param(json_answer(usage(30), 503), CHAT, (0, 0), id="503-costs-nothing-whatever-it-says"),
        pytest.param([], CHAT, (0, 0), id="no-answer-costs-nothing"),
    ],
)
async def test_charge_of_an_answer(messages: list[Message], body: dict[str, Any], charged: tuple[int, int]) -> None:
    ledger = memory()

    await chat(metered(Answering(*messages), ledger), json=body)

    assert await used(ledger) == charged


def events(*documents: bytes) -> list[Message]:
    return [EVENT_STREAM, *(piece(b"data: " + document + b"\n\n") for document in documents), last()]


MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
CHAT_ERROR = b'{"error":{"message":"overloaded","code":500}}'
CHAT_REFUSAL = b'{"error":{"message":"too long","code":400}}'
MESSAGES_ERROR = b'{"type":"error","error":{"type":"overloaded_error","message":"overloaded"}}'
FAILED = b'{"type":"response.failed","response":{"status":"failed","error":{"code":"server_error"},"usage":%b}}'
SOME_USAGE = b'{"input_tokens":10,"output_tokens":5,"total_tokens":15}'


@pytest.mark.parametrize(
    ("path", "messages", "charged"),
    [
        pytest.param(CHAT_COMPLETIONS, json_answer(CHAT_ERROR), (0, 0), id="json"),
        pytest.param(CHAT_COMPLETIONS, json_answer(CHAT_REFUSAL), (0, 0), id="json-refusal"),
        pytest.param(CHAT_COMPLETIONS, events(CHAT_REFUSAL, b"[DONE]"), (0, 0), id="refusal-in-a-stream"),
        pytest.param(CHAT_COMPLETIONS, events(CHAT_ERROR, b"[DONE]"), (0, 0), id="chat-stream"),
        pytest.param(MESSAGES, events(MESSAGES_ERROR), (0, 0), id="messages-stream"),
        pytest.param(RESPONSES, events(FAILED % b"null"), (0, 0), id="responses-stream"),
        pytest.param(RESPONSES, events(FAILED % SOME_USAGE), (1, 15), id="that-tells-its-usage"),
        pytest.param(
            CHAT_COMPLETIONS,
            [EVENT_STREAM, piece(delta("a")), piece(b"data: " + CHAT_ERROR + b"\n\n"), last(DONE)],
            (1, PROMPT + 1),
            id="behind-content",
        ),
        pytest.param(
            CHAT_COMPLETIONS,
            [EVENT_STREAM, piece(delta("a", 30)), piece(b"data: " + CHAT_ERROR + b"\n\n"), last(DONE)],
            (1, 30),
            id="behind-running-usage",
        ),
    ],
)
async def test_failure_that_a_model_reports_inside_a_200_is_charged_for_what_it_produced(
    path: str, messages: list[Message], charged: tuple[int, int]
) -> None:
    ledger = memory()

    await converse(metered(Answering(*messages), ledger), "POST", path, headers=[AS_ALICE], json=STREAM)

    assert await used(ledger) == charged


UNMETERED = ["/tokenize", "/detokenize", "/v1/messages/count_tokens"]


@pytest.mark.parametrize(
    ("messages", "charged"),
    [
        pytest.param(json_answer(b'{"count":3}'), (1, 0), id="answer"),
        pytest.param(json_answer(usage(30)), (1, 0), id="answer-with-usage"),
        pytest.param(json_answer(b"garbage"), (1, 0), id="answer-that-nobody-reads"),
        pytest.param(json_answer(b'{"detail":"no"}', 400), (1, 0), id="400"),
        pytest.param(json_answer(b'{"detail":"no"}', 500), (0, 0), id="500"),
        pytest.param([], (0, 0), id="no-answer"),
    ],
)
@pytest.mark.parametrize("path", UNMETERED)
async def test_unmetered_endpoint_costs_a_request_and_no_tokens(
    path: str, messages: list[Message], charged: tuple[int, int]
) -> None:
    ledger = Noting()

    await converse(metered(Answering(*messages), ledger), "POST", path, headers=[AS_ALICE], json=CHAT)

    assert await used(ledger) == charged
    assert [charge.tokens for charge in ledger.charges] == [0]


@pytest.mark.parametrize("path", UNMETERED)
async def test_unmetered_endpoint_is_served_where_no_token_is_left(path: str) -> None:
    app = Answering(*json_answer(usage(250)))
    shell = metered(app, memory(), tier=FREE)
    await chat(shell)

    refused = await chat(shell)
    answers = [await converse(shell, "POST", path, headers=[AS_ALICE], json=CHAT) for _ in range(5)]

    assert refused.status == 429
    assert [answer.status for answer in answers] == [200] * 4 + [429]
    assert answers[0].header("x-ratelimit-remaining-requests") == "3"
    assert answers[0].header("x-ratelimit-remaining-tokens") == "0"
    limited = answers[-1].json()["error"]
    assert limited.get("details", {}).get("limit") == "requests"
    context = get_context(app.scopes[-1])
    assert context.verdict is not None
    assert context.verdict.lease is not None
    assert context.verdict.lease.tokens == 0


async def test_client_that_leaves_an_unmetered_endpoint_pays_the_request() -> None:
    ledger = Noting()

    await converse(metered(give_up, ledger), "POST", "/tokenize", headers=[AS_ALICE], json=CHAT, leave_after=0)

    assert await used(ledger) == (1, 0)


@pytest.mark.parametrize(
    ("path", "tier", "body", "held"),
    [
        pytest.param(CHAT_COMPLETIONS, ROOMY, CHAT, ESTIMATE, id="cap"),
        pytest.param(CHAT_COMPLETIONS, ROOMY, {**CHAT, "max_tokens": None}, PROMPT + 512, id="no-cap"),
        pytest.param(CHAT_COMPLETIONS, CAPPED, {**CHAT, "max_tokens": None}, PROMPT + 50, id="the-tiers-cap"),
        pytest.param(CHAT_COMPLETIONS, CAPPED, {**CHAT, "max_tokens": None, "n": 2}, PROMPT + 50, id="for-all-answers"),
        pytest.param("/v1/embeddings", ROOMY, {**CHAT, "max_tokens": None}, PROMPT, id="embeddings"),
        pytest.param("/v1/images/generations", ROOMY, {**CHAT, "max_tokens": None}, PROMPT + 1024, id="images"),
        pytest.param("/v1/messages", ROOMY, CHAT, ESTIMATE, id="messages"),
    ],
)
async def test_request_holds_what_it_may_come_to(path: str, tier: Tier, body: dict[str, Any], held: int) -> None:
    app = Answering(*json_answer(usage(30)))

    await converse(metered(app, memory(), tier=tier), "POST", path, headers=[AS_ALICE], json=body)

    context = get_context(app.scopes[0])
    assert context.verdict is not None
    assert context.verdict.lease is not None
    assert context.verdict.lease.tokens == held


async def test_form_holds_and_costs_what_its_file_may_come_to() -> None:
    ledger, app = memory(), Answering(start(200, (b"content-type", b"text/plain")), last(b"Hello"))
    fields = b'--b\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    body = fields % (b"model", b"simulator") + fields % (b'file"; filename="a', bytes(16_000)) + b"--b--\r\n"
    headers = [AS_ALICE, ("content-type", "multipart/form-data; boundary=b")]

    await converse(metered(app, ledger), "POST", "/v1/audio/transcriptions", headers=headers, body=body)

    assert await used(ledger) == (1, 1 + 10 + 512)


@pytest.mark.parametrize(
    ("messages", "fault", "charged"),
    [
        pytest.param([], ZeroDivisionError(), (0, 0), id="before-the-answer"),
        pytest.param([], AccessDenied(), (0, 0), id="refused-before-the-answer"),
        pytest.param(
            [start(200, (b"content-type", b"application/json"))], UpstreamError(), (0, 0), id="json-held-back"
        ),
        pytest.param([EVENT_STREAM], UpstreamError(), (1, PROMPT), id="before-the-first-event"),
        pytest.param([EVENT_STREAM, piece(delta("a")), piece(delta("b"))], UpstreamError(), (1, PROMPT + 2), id="mid"),
        pytest.param(
            [EVENT_STREAM, piece(delta("a", 10)), piece(delta("b", 11))], UpstreamError(), (1, 11), id="usage"
        ),
    ],
)
async def test_charge_of_an_app_that_fails(messages: list[Message], fault: Exception, charged: tuple[int, int]) -> None:
    ledger = memory()

    answer = await chat(metered(Answering(*messages, raises=fault), ledger), json=STREAM)

    assert answer.exception is fault
    assert await used(ledger) == charged


@pytest.mark.parametrize(
    ("messages", "requests", "tokens"),
    [
        pytest.param(json_answer(usage(30)), "49", "99970", id="usage"),
        pytest.param(json_answer(b"{}", 400), "49", "100000", id="4xx-costs-the-request"),
        pytest.param([{"type": "http.response.start", "status": 404}, last(b"no")], "49", "100000", id="no-headers"),
        pytest.param(json_answer(b"{}", 401), "50", "100000", id="401-is-about-our-credential"),
        pytest.param(json_answer(b"{}", 500), "50", "100000", id="5xx"),
        pytest.param(json_answer(b"garbage"), "50", "100000", id="garbage"),
    ],
)
async def test_answer_tells_the_limits_as_they_are_once_it_is_settled(
    messages: list[Message], requests: str, tokens: str
) -> None:
    ledger = memory()

    answer = await chat(ErrorEnvelopeMiddleware(metered(Answering(*messages), ledger)))
    head = await converse(metered(Answering(), ledger), "HEAD", CHAT_COMPLETIONS, headers=[AS_ALICE])

    names = [f"x-ratelimit-{what}" for what in ("remaining-requests", "remaining-tokens", "reset-requests")]
    told = [answer.header(name) for name in names]
    assert told[:2] == [requests, tokens]
    assert told == [head.header(name) for name in names]


async def test_answer_without_usage_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        await chat(metered(Answering(*json_answer(NO_USAGE)), memory()))

    assert [record.getMessage() for record in caplog.records] == ["request None was answered without usage"]


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(json_answer(usage(30)), id="usage"),
        pytest.param(json_answer(b'{"usage":{"prompt_tokens":0,"total_tokens":0}}'), id="usage-of-0"),
        pytest.param(json_answer(b'{"detail":"no"}', 400), id="refusal-of-the-app"),
        pytest.param(json_answer(CHAT_ERROR), id="reported-failure"),
    ],
)
async def test_answer_that_is_charged_exactly_is_not_worth_a_line_in_the_log(
    messages: list[Message], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        await chat(metered(Answering(*messages), memory()))

    assert caplog.records == []


async def test_answer_that_cannot_be_read_is_charged_with_its_estimate() -> None:
    ledger = memory()
    zipped = [start(200, (b"content-type", b"application/json"), (b"content-encoding", b"gzip")), last(usage(30))]

    answer = await chat(metered(Answering(*zipped), ledger))

    assert answer.body == usage(30)
    assert await used(ledger) == (1, ESTIMATE)


async def test_file_that_the_server_sends_is_charged_with_the_estimate(tmp_path: Any) -> None:
    ledger = memory()
    page = tmp_path / "answer.json"
    page.write_bytes(usage(30))

    json = (b"content-type", b"application/json")
    app = Answering(start(200, json), {"type": "http.response.pathsend", "path": str(page)})

    answer = await chat(metered(app, ledger), scope={"extensions": {"http.response.pathsend": {}}})

    assert answer.complete
    assert await used(ledger) == (1, ESTIMATE)


class Generating:
    """A model that produces a delta at a time for as long as somebody listens, and notices when nobody does."""

    def __init__(self, *, usage_from: int | None = None) -> None:
        self.closed = False
        self._running = usage_from

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield delta("a", self._running)
                if self._running is not None:
                    self._running += 1
                await checkpoint()
        finally:
            self.closed = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        async with aclosing(self.events()) as events:
            await StreamingResponse(events, media_type="text/event-stream")(scope, receive, send)


ASGI_2_4 = {"asgi": {"version": "3.0", "spec_version": "2.4"}}


@pytest.mark.parametrize("server", [pytest.param({}, id="lost-sends"), pytest.param(ASGI_2_4, id="failing-sends")])
@pytest.mark.parametrize("leave_after", [pytest.param(1, id="after-1"), pytest.param(5, id="after-5")])
async def test_client_that_leaves_a_stream_pays_the_prompt_and_what_was_produced(
    leave_after: int, server: dict[str, Any]
) -> None:
    ledger, model = Noting(), Generating()

    answer = await chat(metered(model, ledger), json=STREAM, leave_after=leave_after, scope=server)

    requests, tokens = await used(ledger)
    assert requests == 1
    assert PROMPT + leave_after <= tokens <= PROMPT + leave_after + 2
    assert len(ledger.charges) == 1
    assert not answer.complete
    assert model.closed


async def test_client_that_leaves_a_stream_with_running_usage_pays_the_last_of_it() -> None:
    ledger = Noting()

    await chat(metered(Generating(usage_from=100), ledger), json=STREAM, leave_after=3)

    requests, tokens = await used(ledger)
    assert requests == 1
    assert 102 <= tokens <= 104


async def answer_late(scope: Scope, receive: Receive, send: Send) -> None:
    """What vLLM does when the client of a JSON answer left: it stops, and then answers `null` all the same."""
    while (await receive())["type"] != "http.disconnect":
        pass
    for message in json_answer(b"null"):
        await send(message)


async def give_up(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def fail_late(scope: Scope, receive: Receive, send: Send) -> None:
    await give_up(scope, receive, send)
    raise ConnectionError


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(answer_late, id="app-answers-all-the-same"),
        pytest.param(give_up, id="app-returns"),
        pytest.param(fail_late, id="app-raises"),
    ],
)
async def test_client_that_leaves_before_the_first_byte_pays_the_prompt(app: ASGIApp) -> None:
    ledger = Noting()

    answer = await chat(metered(app, ledger), leave_after=0)

    assert answer.messages == []
    assert await used(ledger) == (1, PROMPT)
    assert len(ledger.charges) == 1


@pytest.mark.parametrize("http", [pytest.param("h11", id="h11"), pytest.param("httptools", id="httptools")])
async def test_client_that_hangs_up_on_a_real_server_pays_what_was_produced(http: str) -> None:
    settled = anyio.Event()

    class Telling(Noting):
        async def settle(self, lease: Lease, charge: Charge, /) -> None:
            await super().settle(lease, charge)
            settled.set()

    ledger, model = Telling(), Generating()

    async with serving(metered(model, ledger), http=http, lifespan="off") as url, httpx.AsyncClient() as client:
        headers = {"authorization": "Bearer alice-token"}
        async with client.stream("POST", url + CHAT_COMPLETIONS, headers=headers, json=STREAM) as response:
            assert response.headers["x-ratelimit-remaining-requests"] == "49"
            async for _ in response.aiter_raw():
                break
        with anyio.fail_after(5):
            await settled.wait()

    requests, tokens = await used(ledger)
    assert (requests, len(ledger.charges), model.closed) == (1, 1, True)
    assert tokens > PROMPT


async def test_client_that_leaves_while_sending_pays_nothing() -> None:
    ledger, app = memory(), Answering(*json_answer(usage(30)))

    await chat(metered(app, ledger), json=None, body=[b'{"model":'], leave_while_sending=True)

    assert (await used(ledger), app.scopes) == ((0, 0), [])


async def test_client_that_leaves_never_pays_nothing() -> None:
    ledger = memory()

    await chat(metered(give_up, ledger), json={"model": "simulator", "messages": None}, leave_after=0)

    assert await used(ledger) == (1, 1)


async def test_client_that_nobody_misses_pays_what_the_model_reports() -> None:
    ledger = memory()
    app = Answering(EVENT_STREAM, piece(delta("a")), piece(delta("b")), last(b"data: " + usage(30) + b"\n\n"))

    await chat(metered(app, ledger), json=STREAM, leave_after=1)

    assert await used(ledger) == (1, 30)


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await reject(scope, receive, send, AccessDenied("The prompt is not allowed"))


async def test_refusal_of_our_own_behind_the_limits_costs_nothing() -> None:
    ledger = memory()

    answer = await chat(metered(refuse, ledger))

    assert answer.status == 403
    assert answer.header("x-ratelimit-remaining-requests") == "50"
    assert await used(ledger) == (0, 0)


class SpoilingTheBody:
    """A faulty middleware of somebody else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def spoiled_receive() -> Message:
            return {**await receive(), "body": b"no json"}

        await self.app(scope, spoiled_receive, send)


async def test_refusal_of_the_usage_middleware_costs_nothing() -> None:
    ledger = memory()
    shells = RateLimitMiddleware(SpoilingTheBody(UsageMiddleware(Answering())), ledger=ledger)
    app = TierMiddleware(shells, resolver=GroupTierResolver([ROOMY]), catalogue=CATALOGUE)

    answer = await chat(identified(app))

    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert await used(ledger) == (0, 0)


@pytest.mark.parametrize(
    ("messages", "charged"),
    [
        pytest.param([], (0, 0), id="before-the-answer"),
        pytest.param([EVENT_STREAM], (1, PROMPT), id="before-the-first-event"),
        pytest.param([EVENT_STREAM, piece(delta("a"))], (1, PROMPT + 1), id="within-a-stream"),
    ],
)
async def test_settlement_outlives_a_cancelled_request(messages: list[Message], charged: tuple[int, int]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        group.cancel_scope.cancel()
        await anyio.sleep_forever()

    ledger = Noting()

    async with anyio.create_task_group() as group:
        await chat(metered(app, ledger), json=STREAM)

    assert group.cancel_scope.cancelled_caught
    assert await used(ledger) == charged
    assert len(ledger.charges) == 1


async def test_settlement_outlives_a_task_that_asyncio_cancels() -> None:
    started = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await anyio.sleep_forever()

    ledger = Noting()
    task = asyncio.create_task(chat(metered(app, ledger)))

    await started.wait()
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert ledger.charges == [Charge(0, request=False)]


@pytest.mark.parametrize("leave_after", [None, 0], ids=["stays", "left"])
async def test_client_of_a_request_that_is_cancelled_pays_only_if_it_left(leave_after: int | None) -> None:
    """Also where the app never looked for it: there are servers that cancel those whose clients left."""
    ledger = Noting()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        group.cancel_scope.cancel()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        await chat(metered(app, ledger), leave_after=leave_after)

    assert ledger.charges == [Charge(0, request=False) if leave_after is None else Charge(PROMPT)]


def body_and_then(*messages: Message) -> Receive:
    """A server that has a body nobody has read, and then these messages, the last one for ever."""
    pending: list[Message] = [*reversed(messages), {"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive() -> Message:
        return pending.pop() if len(pending) > 1 else pending[0]

    return receive


async def broken() -> Message:
    raise RuntimeError("the connection is torn down")


@pytest.mark.parametrize(
    ("receive", "charge"),
    [
        pytest.param(body_and_then({"type": "http.disconnect"}), Charge(1), id="left-behind-its-body"),
        pytest.param(body_and_then({"type": "http.request"}), Charge(0, request=False), id="endless"),
        pytest.param(broken, Charge(0, request=False), id="cannot-tell"),
    ],
)
async def test_cancelled_request_whose_body_nobody_read_is_settled_at_once(receive: Receive, charge: Charge) -> None:
    ledger = Noting()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        task.cancel()
        await anyio.sleep_forever()

    async def shell(scope: Scope, _: Receive, send: Send) -> None:
        context = ensure_context(scope)
        context.tier, context.endpoint = ROOMY, Endpoint("POST", "/v1/audio/speech", "billable", SPEECH)
        await RateLimitMiddleware(app, ledger=ledger)(scope, receive, send)

    task = asyncio.create_task(converse(identified(shell), "POST", "/v1/audio/speech", headers=[AS_ALICE]))
    await asyncio.wait([task], timeout=5)

    assert task.cancelled()
    assert ledger.charges == [charge]


async def test_request_that_is_cancelled_while_it_is_admitted_is_settled() -> None:
    class Slow(Noting):
        async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
            verdict = await super().admit(subject, demand)
            group.cancel_scope.cancel()
            await checkpoint()  # the store has counted, and its answer is on the way
            return verdict

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    ledger = Slow()

    async with anyio.create_task_group() as group:
        await chat(metered(app, ledger))

    assert ledger.charges == [Charge(0, request=False)]
    assert await used(ledger) == (0, 0)


@pytest.mark.parametrize(
    ("messages", "settled_at_each"),
    [
        pytest.param(json_answer(usage(30)), [0, 1], id="json"),
        pytest.param([EVENT_STREAM, piece(delta("a")), piece(DONE), last()], [0, 0, 0, 1], id="stream"),
        pytest.param([EVENT_STREAM, piece(delta("a")), last(DONE)], [0, 0, 1], id="stream-ended-by-its-last-event"),
    ],
)
async def test_request_is_settled_once_and_before_the_last_byte_leaves(
    messages: list[Message], settled_at_each: list[int]
) -> None:
    ledger = Noting()
    settled: list[int] = []

    await chat(
        watched(metered(Answering(*messages), ledger), lambda _: settled.append(len(ledger.charges))),
        json={**STREAM, "stream_options": {"include_usage": True}},
    )

    assert settled == settled_at_each
    assert len(ledger.charges) == 1


async def test_background_task_runs_after_the_settlement_and_changes_nothing() -> None:
    ledger = Noting()
    settled_before: list[int] = []

    async def task() -> None:
        settled_before.append(len(ledger.charges))
        raise ZeroDivisionError

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = JSONResponse(json.loads(usage(30)), background=BackgroundTask(task))
        await response(scope, receive, send)

    answer = await chat(metered(app, ledger))

    assert (answer.status, answer.complete) == (200, True)
    assert isinstance(answer.exception, ZeroDivisionError)
    assert settled_before == [1]
    assert ledger.charges == [Charge(30)]


async def test_lease_of_a_long_stream_is_renewed_every_30_seconds() -> None:
    clock = FakeClock()
    ledger = Noting(clock)
    held: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENT_STREAM)
        for _ in range(20):
            clock.advance(15)
            await send(piece(delta("a")))
            held.append((await used(ledger))[1])
        await send(last(b"data: " + usage(30) + b"\n\n"))

    await chat(metered(app, ledger, clock=clock), json=STREAM)

    assert held == [ESTIMATE] * 20
    assert ledger.renewals == 10
    assert (await used(ledger))[1] == 30


async def test_ledger_that_fails_to_settle_or_renew_does_not_break_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENT_STREAM)
        clock.advance(31)
        await send(piece(delta("a")))
        await send(last(DONE))

    ledger = Failing(ConnectionError("redis is gone"), "settle", "renew")

    answer = await chat(metered(app, ledger, clock=clock), json={**STREAM, "stream_options": {"include_usage": True}})

    assert (answer.complete, answer.exception, answer.body) == (True, None, delta("a") + DONE)
    assert [record.getMessage() for record in caplog.records] == ["the ledger failed"] * 2


async def test_ledger_that_never_settles_does_not_hold_the_answer_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    answer = await chat(metered(Answering(*json_answer(usage(30))), Hanging("settle"), ledger_timeout=0.01))

    assert (answer.complete, answer.body) == (True, usage(30))
    assert [record.getMessage() for record in caplog.records] == ["the ledger failed"]


@pytest.mark.parametrize(
    ("ledger", "method"),
    [
        pytest.param(Failing(StoreUnavailable(), "admit"), "POST", id="admit-fails"),
        pytest.param(Failing(StoreUnavailable(), "peek"), "HEAD", id="peek-fails"),
        pytest.param(Hanging("admit"), "POST", id="admit-hangs"),
        pytest.param(Hanging("peek"), "HEAD", id="peek-hangs"),
    ],
)
async def test_ledger_that_cannot_tell_is_503(ledger: Ledger, method: str) -> None:
    app = Answering(*json_answer(usage(30)))
    shells = metered(app, ledger, ledger_timeout=0.01)

    answer = await converse(shells, method, CHAT_COMPLETIONS, headers=[AS_ALICE], json=CHAT)

    assert (answer.status, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert answer.header("retry-after") == "2"
    assert app.scopes == []


async def test_fault_of_the_ledger_lets_nobody_pass() -> None:
    app = Answering(*json_answer(usage(30)))

    answer = await chat(metered(app, Failing(ZeroDivisionError(), "admit")))

    assert isinstance(answer.exception, ZeroDivisionError)
    assert (answer.messages, app.scopes) == ([], [])


def limits(answer: Conversation) -> dict[str, str]:
    return {name: value for name, value in answer.headers if name.startswith(("x-ratelimit", "retry", "x-should"))}


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([EVENT_STREAM, piece(delta("a")), last()], id="stream"),
        pytest.param([{**start(200), "headers": ()}, last(b"{}")], id="headers-as-a-tuple"),
        pytest.param(
            [start(200, (b"X-RateLimit-Limit-Requests", b"9"), (b"x-ratelimit-reset-tokens", b"9s")), last(b"{}")],
            id="app-with-limits-of-its-own",
        ),
    ],
)
async def test_every_answer_tells_the_limits_as_they_are_after_this_request(messages: list[Message]) -> None:
    answer = await chat(metered(Answering(*messages), memory(), tier=FREE), json=STREAM)

    assert limits(answer) == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "1m1s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m1s",
    }


@pytest.mark.parametrize("body", [b"garbage", b'{"error":"no"}', b'{"error":{"message":"no","code":400}}'])
async def test_error_that_takes_the_place_of_an_answer_tells_the_limits_too(body: bytes) -> None:
    shells = ErrorEnvelopeMiddleware(metered(Answering(*json_answer(body)), memory(), tier=FREE))

    answer = await chat(shells)

    assert answer.status == (400 if b"400" in body else 502)
    assert answer.header("x-ratelimit-limit-requests") == "5"
    assert [name for name, _ in answer.headers].count("x-ratelimit-remaining-requests") == 1


async def test_answer_whose_usage_is_known_tells_what_is_really_left() -> None:
    answer = await chat(metered(Answering(*json_answer(usage(30))), memory(), tier=FREE))

    assert answer.header("x-ratelimit-remaining-tokens") == "70"


async def test_unlimited_tells_nothing() -> None:
    answer = await chat(metered(Answering(*json_answer(usage(30))), memory()), headers=[AS_BOB])

    assert [name for name in limits(answer) if name.endswith("tokens")] == []
    assert answer.header("x-ratelimit-limit-requests") == "20"


async def test_headers_of_a_response_that_an_app_reuses_do_not_grow() -> None:
    ledger, response = memory(), JSONResponse(json.loads(usage(30)))
    before = list(response.raw_headers)

    answers = [await chat(metered(response, ledger)) for _ in range(3)]

    assert response.raw_headers == before
    assert [answer.header("x-ratelimit-remaining-requests") for answer in answers] == ["49", "48", "47"]


async def test_requests_over_the_limit_are_429_and_cost_nothing() -> None:
    clock = FakeClock()
    ledger, app = memory(clock), Answering(*json_answer(usage(2)))
    shell = metered(app, ledger, tier=FREE, jitter=lambda: 0.0)

    passed = [(await chat(shell)).status for _ in range(5)]
    clock.advance(11)
    answer = await chat(shell)

    assert passed == [200] * 5
    assert (answer.status, answer.exception) == (429, None)
    assert answer.json() == {
        "error": {
            "message": "Rate limit exceeded",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
            "details": {
                "limit": "requests",
                "tier": "free",
                "quota": 5,
                "window_seconds": 60,
                "retry_after_seconds": 50,
            },
        }
    }
    assert limits(answer) == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "50s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "90",
        "x-ratelimit-reset-tokens": "50s",
        "retry-after-ms": "50000",
        "retry-after": "50",
    }
    assert len(app.scopes) == 5
    assert await used(ledger, FREE) == (5, 10)


async def test_request_passes_as_soon_as_the_429_said() -> None:
    clock = FakeClock()
    shell = metered(Answering(*json_answer(usage(2))), memory(clock), tier=FREE, jitter=lambda: 0.0)
    for _ in range(5):
        await chat(shell)
        clock.advance(0.123)

    refused = await chat(shell)
    clock.advance(int(refused.header("retry-after-ms") or "0") / 1000 - 0.001)
    early = await chat(shell)
    clock.advance(0.001)
    in_time = await chat(shell)

    assert (refused.status, early.status, in_time.status) == (429, 429, 200)


async def test_tokens_over_the_limit_are_429_and_name_the_tokens() -> None:
    clock = FakeClock()
    shell = metered(Answering(*json_answer(usage(250))), memory(clock), tier=FREE, jitter=lambda: 0.0)

    first = await chat(shell)
    second = await chat(shell)

    assert (first.status, second.status) == (200, 429)
    assert second.json()["error"]["details"] == {
        "limit": "tokens",
        "tier": "free",
        "quota": 100,
        "window_seconds": 60,
        "retry_after_seconds": 61,
    }
    assert second.header("x-ratelimit-remaining-requests") == "4"


async def test_answers_carry_the_headers_of_the_ietf_only_where_that_is_wished() -> None:
    app = Answering(*json_answer(usage(30)))
    shell = metered(app, memory(), tier=FREE, ietf_headers=True, jitter=lambda: 0.0)

    served = await chat(shell)
    head = await converse(shell, "HEAD", CHAT_COMPLETIONS, headers=[AS_ALICE])
    refused = [await chat(shell) for _ in range(5)][-1]
    plain = await chat(metered(app, memory(), tier=FREE))

    policy = '"requests";q=5;w=60,"tokens";q=100;w=60;qu="tokens"'
    answers = [served, head, refused]
    assert [answer.header("ratelimit-policy") for answer in answers] == [policy] * 3
    assert served.header("ratelimit") == head.header("ratelimit") == '"requests";r=4;t=61,"tokens";r=70;t=61'
    assert (refused.status, refused.header("retry-after")) == (429, "61")
    assert refused.header("ratelimit") == '"requests";r=1;t=61,"tokens";r=0;t=61'
    assert (plain.header("ratelimit-policy"), plain.header("ratelimit")) == (None, None)


async def test_limit_on_messages_is_told_in_the_shape_of_anthropic() -> None:
    shell = metered(Answering(*json_answer(usage(250))), memory(), tier=FREE, jitter=lambda: 0.0)
    body = {**CHAT, "max_tokens": 9}

    answers = [await converse(shell, "POST", MESSAGES, headers=[AS_ALICE], json=body) for _ in range(2)]

    assert (answers[0].status, answers[1].status) == (200, 429)
    assert answers[1].json() == {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "message": "Rate limit exceeded",
            "details": {
                "limit": "tokens",
                "tier": "free",
                "quota": 100,
                "window_seconds": 60,
                "retry_after_seconds": 61,
            },
        },
        "request_id": None,
    }
    assert answers[1].header("retry-after") == "61"


@pytest.mark.parametrize(
    ("jitter", "wait_ms", "seconds"),
    [
        pytest.param(0.0, "40000", "40", id="none"),
        pytest.param(0.5, "41000", "41", id="half"),
        pytest.param(1.0, "42000", "42", id="most"),
    ],
)
async def test_jitter_makes_the_wait_longer_and_never_shorter(jitter: float, wait_ms: str, seconds: str) -> None:
    clock = FakeClock()
    shell = metered(Answering(*json_answer(usage(2))), memory(clock), tier=FREE, jitter=lambda: jitter)
    for _ in range(5):
        await chat(shell)

    clock.advance(21)
    answer = await chat(shell)

    assert (answer.header("retry-after-ms"), answer.header("retry-after")) == (wait_ms, seconds)
    assert answer.json()["error"]["details"]["retry_after_seconds"] == int(seconds)


async def test_wait_of_more_than_a_minute_is_not_worth_a_retry() -> None:
    tier = Tier("slow", groups=("free-users",), requests=parse_limits("1/hour"), tokens=parse_limits("9/minute"))
    shell = metered(Answering(*json_answer(usage(2))), memory(), tier=tier, jitter=lambda: 0.0)

    await chat(shell)
    answer = await chat(shell)

    assert (answer.status, answer.header("x-should-retry")) == (429, "false")
    assert answer.header("retry-after") == "3620"


async def test_parallel_requests_cannot_overshoot_and_come_back_in_a_second() -> None:
    admitted, go_on = anyio.Event(), anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        admitted.set()
        await go_on.wait()
        for message in json_answer(usage(30)):
            await send(message)

    ledger = memory()
    shell = metered(app, ledger, tier=FREE, jitter=lambda: 0.0)

    async with anyio.create_task_group() as group:
        group.start_soon(chat, shell)
        await admitted.wait()
        second = await chat(shell)
        go_on.set()
    third = await chat(shell)

    assert (second.status, second.header("retry-after-ms"), second.header("retry-after")) == (429, "1000", "1")
    assert third.status == 200
    assert await used(ledger, FREE) == (2, 60)


async def test_ledger_that_does_not_say_what_is_in_the_way_is_429_all_the_same() -> None:
    class Closed(MemoryLedger):
        async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
            return Verdict(None, None, None, retry_after_ms=1)

    answer = await chat(metered(Answering(), Closed(), tier=FREE))

    assert (answer.status, limits(answer)) == (429, {"retry-after-ms": "1", "retry-after": "1"})
    assert answer.json()["error"]["details"] == {"limit": None, "tier": "free", "retry_after_seconds": 1}


@pytest.mark.parametrize(
    "path", [pytest.param(CHAT_COMPLETIONS, id="plain"), pytest.param(f"/simulator{CHAT_COMPLETIONS}/", id="model")]
)
async def test_head_tells_the_limits_and_consumes_nothing(path: str) -> None:
    ledger, app = memory(), Answering(*json_answer(usage(30)))
    shell = metered(app, ledger, tier=FREE)
    await chat(shell)

    answers = [await converse(shell, "HEAD", path, headers=[AS_ALICE]) for _ in range(6)]

    assert [(answer.status, answer.body, answer.complete) for answer in answers] == [(200, b"", True)] * 6
    assert limits(answers[-1]) == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "1m1s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "70",
        "x-ratelimit-reset-tokens": "1m1s",
    }
    assert answers[-1].header("content-length") == "0"
    assert len(app.scopes) == 1
    assert await used(ledger, FREE) == (1, 30)


async def test_head_is_200_where_nothing_is_left() -> None:
    shell = metered(Answering(*json_answer(usage(250))), memory(), tier=FREE)
    await chat(shell)

    answer = await converse(shell, "HEAD", CHAT_COMPLETIONS, headers=[AS_ALICE])

    assert (answer.status, answer.header("x-ratelimit-remaining-tokens")) == (200, "0")


async def test_users_do_not_share_their_limits_and_the_models_of_one_user_do() -> None:
    ledger = memory()
    shell = metered(Answering(*json_answer(usage(30))), ledger)

    await chat(shell)
    await chat(shell, json={"messages": []}, headers=[AS_ALICE, ("x-other", "1")])
    await converse(shell, "POST", f"/simulator{CHAT_COMPLETIONS}", headers=[AS_ALICE], json={"messages": []})
    await chat(shell, headers=[AS_BOB])

    assert await used(ledger) == (2, 60)
    bobs = (await ledger.peek(PREMIUM.subject(BOB))).requests
    assert bobs is not None
    assert bobs.remaining == 19


async def test_another_tier_keeps_what_was_used() -> None:
    ledger = memory()
    answering = Answering(*json_answer(usage(30)))

    await chat(metered(answering, ledger, tier=ROOMY))
    answer = await chat(metered(answering, ledger, tier=FREE))

    assert answer.header("x-ratelimit-remaining-requests") == "3"
    assert await used(ledger, FREE) == (2, 60)


async def test_verdict_and_its_lease_are_in_the_context() -> None:
    app = Answering(*json_answer(usage(30)))

    await chat(metered(app, memory(), tier=FREE, id_factory=lambda: "lease-1"))

    context = get_context(app.scopes[0])
    assert context.verdict is not None
    lease = context.verdict.lease
    assert lease is not None
    assert (lease.id, lease.tokens, lease.subject) == ("lease-1", 100, FREE.subject(ALICE))


async def test_request_whose_body_nobody_read_is_charged_with_one_token() -> None:
    ledger = memory()

    async def shell(scope: Scope, receive: Receive, send: Send) -> None:
        context = ensure_context(scope)
        context.tier, context.endpoint = ROOMY, Endpoint("POST", "/v1/audio/speech", "billable", SPEECH)
        await RateLimitMiddleware(Answering(start(200), last(b"noise")), ledger=ledger)(scope, receive, send)

    await converse(identified(shell), "POST", "/v1/audio/speech", headers=[AS_ALICE], body=b"\x00")

    assert await used(ledger) == (1, 1)


@dataclass
class Estimated:
    """An `InferenceRequest` that counts how often it was looked through."""

    model: str | None = "simulator"
    stream: bool = False
    answers: int = 1
    cap: int | None = 40
    estimates: int = 0

    @property
    def prompt_tokens(self) -> int:
        self.estimates += 1
        return 60


async def test_request_that_was_read_is_estimated_once_though_its_answer_has_no_usage() -> None:
    ledger, request = memory(), Estimated()

    async def shell(scope: Scope, receive: Receive, send: Send) -> None:
        context = ensure_context(scope)
        context.tier, context.endpoint = ROOMY, Endpoint("POST", "/v1/audio/speech", "billable", SPEECH)
        context.request = request
        await RateLimitMiddleware(Answering(start(200), last(b"noise")), ledger=ledger)(scope, receive, send)

    await converse(identified(shell), "POST", "/v1/audio/speech", headers=[AS_ALICE])

    assert await used(ledger) == (1, 100)
    assert request.estimates == 1


async def test_what_is_no_endpoint_passes_unmetered() -> None:
    ledger, app = memory(), Answering(*json_answer(usage(30)))
    shells = RateLimitMiddleware(app, ledger=ledger)

    answer = await converse(
        identified(TierMiddleware(shells, resolver=RESOLVER, unlisted="pass")),
        "GET",
        "/metrics",
        headers=[AS_ALICE],
    )

    assert (answer.status, limits(answer)) == (200, {})
    assert await used(ledger, FREE) == (0, 0)


@pytest.mark.parametrize(
    ("wrap", "complaint"),
    [
        pytest.param(
            lambda app: app,
            "RateLimitMiddleware needs to know the identity: wrap it in IdentityMiddleware",
            id="identity",
        ),
        pytest.param(identified, "RateLimitMiddleware needs to know the tier: wrap it in TierMiddleware", id="tier"),
    ],
)
async def test_missing_shell_outside_is_named_and_nothing_passes_unmetered(
    wrap: Callable[[ASGIApp], ASGIApp], complaint: str
) -> None:
    app = Answering(*json_answer(usage(30)))

    answer = await chat(wrap(RateLimitMiddleware(app, ledger=memory())))

    assert isinstance(answer.exception, LookupError)
    assert (str(answer.exception), app.scopes) == (complaint, [])


class Between(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-between"] = request.state.maas.verdict.lease.id
        return response


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(json_answer(usage(30)), id="json"),
        pytest.param(
            [EVENT_STREAM, piece(delta("a")), piece(b"data: " + usage(30) + b"\n\n"), last(DONE)], id="stream"
        ),
    ],
)
async def test_base_http_middleware_between_the_shells_changes_no_charge(messages: list[Message]) -> None:
    ledger = memory()
    shells = RateLimitMiddleware(
        Between(UsageMiddleware(Answering(*messages))), ledger=ledger, id_factory=lambda: "lease-1"
    )

    answer = await chat(
        identified(TierMiddleware(shells, resolver=GroupTierResolver([ROOMY]), catalogue=CATALOGUE)), json=STREAM
    )

    assert (answer.status, answer.header("x-between")) == (200, "lease-1")
    assert await used(ledger) == (1, 30)


async def test_messages_that_we_do_not_know_pass_and_are_no_end() -> None:
    hint: Message = {"type": "http.response.early_hint", "links": []}
    ledger = memory()
    app = metered(Answering(hint, *json_answer(usage(30))), ledger)

    answer = await chat(app, scope={"extensions": {hint["type"]: {}}})

    assert answer.messages[0] == hint
    assert await used(ledger) == (1, 30)


async def test_lifespan_passes() -> None:
    assert await start_up(RateLimitMiddleware(starting_up, ledger=memory())) == [{"type": "lifespan.startup.complete"}]


@pytest.mark.parametrize(
    ("can_deny", "denial"),
    [
        pytest.param(True, ["websocket.http.response.start", "websocket.http.response.body"], id="can-deny"),
        pytest.param(False, ["websocket.close"], id="cannot-deny"),
    ],
)
async def test_websocket_is_refused_because_it_cannot_be_counted(can_deny: bool, denial: list[str]) -> None:
    app = Answering()
    shells = TierMiddleware(RateLimitMiddleware(app, ledger=memory()), resolver=RESOLVER, unlisted="pass")

    messages = await knock(identified(shells), "/live", headers=[AS_ALICE], can_deny=can_deny)

    assert [message["type"] for message in messages] == denial
    assert messages[0].get("status", 403) == 403
    assert app.scopes == []


async def test_silent_call_keeps_its_reservation_however_long_it_takes() -> None:
    clock, answers = FakeClock(), []
    ledger = memory(clock)
    silent, done = anyio.Event(), anyio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        silent.set()
        await done.wait()
        await Answering(*json_answer(usage(900)))(scope, receive, send)

    async def call() -> None:
        answers.append(await chat(app))

    app = metered(slow, ledger, tier=FREE, clock=clock)
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await silent.wait()
        clock.advance(121)
        meanwhile = await chat(app)
        clock.advance(1000)
        head = await converse(app, "HEAD", CHAT_COMPLETIONS, headers=[AS_ALICE])
        done.set()

    assert (meanwhile.status, meanwhile.json()["error"]["details"]["limit"]) == (429, "tokens")
    assert head.header("x-ratelimit-remaining-tokens") == "0"
    assert answers[0].status == 200
