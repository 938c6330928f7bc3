from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import date
from typing import Any

import anyio
import httpx
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.catalogue import Catalogue, Model
from maas_middleware.context import ensure_context
from maas_middleware.dialects import CHAT as CHAT_DIALECT
from maas_middleware.endpoints import CHAT_COMPLETIONS, Endpoint
from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.limiting import Charge, Lease, Limits, parse_limits
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.middleware.rate_limit import RateLimitMiddleware
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.middleware.usage import UsageMiddleware
from maas_middleware.recorder import UsageRecorder
from maas_middleware.requests import JSONRequest
from maas_middleware.stores.memory import MemoryUsageStore
from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.converse import Conversation, converse
from maas_middleware.tiers import GroupTierResolver, Tier
from maas_middleware.usage_store import UsageRecord
from tests.middleware.metering import delta
from tests.parts import (
    ALICE,
    AS_ALICE,
    AS_BOB,
    BOB,
    EVENT_STREAM,
    PREMIUM,
    Answering,
    identified,
    json_answer,
    last,
    piece,
    start,
)
from tests.servers import serving

MIDNIGHT = 1_795_392_000.0  # the begin of 2026-11-23 in UTC
DAY = date(2026, 11, 23)
ROOMY = Tier("roomy", groups=("free-users",), requests=parse_limits("50/minute"), tokens=parse_limits("100000/minute"))
CATALOGUE = Catalogue([Model("simulator", upstream_model="sim"), Model("org/qwen3", aliases=("qwen",))])
CHAT: dict[str, Any] = {"model": "simulator", "messages": [{"role": "user", "content": "Hi?"}], "max_tokens": 1000}
STREAM = {**CHAT, "stream": True}
PROMPT = JSONRequest.parse(json.dumps(CHAT).encode()).prompt_tokens
DONE = b"data: [DONE]\n\n"

NOTHING = (0, 0, 0)


class Counting(MemoryLedger):
    """A ledger in memory that remembers what each request was charged, whatever budgets it took from."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        self.charges: dict[str, Charge] = {}

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        await checkpoint()
        self.charges[lease.id] = charge
        await super().settle(lease, charge)

    @property
    def total(self) -> tuple[int, int]:
        """How many requests and tokens were charged."""
        charges = self.charges.values()
        return sum(charge.request for charge in charges), sum(charge.tokens for charge in charges)


class Recorded:
    """A ledger, a store and a recorder, and the shells in which an app is metered by them."""

    def __init__(self, *, clock: FakeClock | None = None) -> None:
        self.ledger = Counting()
        self.store = MemoryUsageStore()
        self.recorder = UsageRecorder(self.store, clock=clock or FakeClock(MIDNIGHT))

    def metering(self, app: ASGIApp, *, tier: Tier = ROOMY, catalogue: Catalogue = CATALOGUE) -> ASGIApp:
        shells = RateLimitMiddleware(UsageMiddleware(app), ledger=self.ledger, recorder=self.recorder)
        return identified(TierMiddleware(shells, resolver=GroupTierResolver([tier, PREMIUM]), catalogue=catalogue))

    async def use(self, owner: str = ALICE.key) -> list[UsageRecord]:
        return list(await self.store.usage(owner, date.min, date.max))

    async def total(self) -> tuple[int, int, int]:
        """Requests, input and output tokens of Alice."""
        use = await self.use()
        given, produced = sum(record.input_tokens for record in use), sum(record.output_tokens for record in use)
        return sum(record.requests for record in use), given, produced


def usage(given: int, produced: int) -> bytes:
    counts = {"prompt_tokens": given, "completion_tokens": produced, "total_tokens": given + produced}
    return json.dumps({"choices": [], "usage": counts}).encode()


async def chat(app: ASGIApp, path: str = CHAT_COMPLETIONS, method: str = "POST", **more: Any) -> Conversation:
    with anyio.fail_after(5):
        return await converse(app, method, path, **{"headers": [AS_ALICE], "json": CHAT, **more})


@pytest.mark.parametrize(
    ("messages", "body", "recorded"),
    [
        pytest.param(json_answer(usage(12, 18)), CHAT, (1, 12, 18), id="usage-of-a-json-answer"),
        pytest.param(json_answer(b'{"choices":[]}'), CHAT, (1, PROMPT, 1000), id="estimate-without-usage"),
        pytest.param(json_answer(usage(0, 0)), CHAT, (1, 0, 0), id="usage-of-0"),
        pytest.param(
            json_answer(b'{"usage":{"prompt_tokens":50,"completion_tokens":1,"total_tokens":20}}'),
            CHAT,
            (1, 50, 0),
            id="more-input-than-total",
        ),
        pytest.param(
            [EVENT_STREAM, piece(delta("a")), piece(b"data: " + usage(12, 18) + b"\n\n"), last(DONE)],
            STREAM,
            (1, 12, 18),
            id="usage-of-a-stream",
        ),
        pytest.param(
            [EVENT_STREAM, piece(delta("a")), piece(delta("b")), last(DONE)],
            STREAM,
            (1, PROMPT, 2),
            id="pieces-of-a-stream-without-usage",
        ),
        pytest.param([EVENT_STREAM, piece(delta("a")), last()], STREAM, (1, PROMPT, 1), id="stream-is-cut"),
        pytest.param(json_answer(b'{"detail":"no"}', 400), CHAT, (1, 0, 0), id="400-is-a-request"),
        pytest.param(json_answer(b'{"detail":"no"}', 500), CHAT, NOTHING, id="500-is-nothing"),
        pytest.param([start(502), piece(b"bad"), last()], CHAT, NOTHING, id="502-is-nothing"),
        pytest.param([], CHAT, NOTHING, id="no-answer-is-nothing"),
    ],
)
async def test_use_that_is_recorded_is_what_was_charged(
    messages: list[Message], body: dict[str, Any], recorded: tuple[int, int, int]
) -> None:
    parts = Recorded()

    await chat(parts.metering(Answering(*messages)), json=body)

    total = await parts.total()
    assert total == recorded
    assert (total[0], total[1] + total[2]) == parts.ledger.total


@pytest.mark.parametrize(
    "model",
    [pytest.param(None, id="before-the-answer"), pytest.param(piece(delta("a")), id="in-the-stream")],
)
async def test_app_that_raises_is_recorded_as_it_is_charged(model: Message | None) -> None:
    parts = Recorded()
    messages = [] if model is None else [EVENT_STREAM, model]

    conversation = await chat(parts.metering(Answering(*messages, raises=ValueError("oops"))), json=STREAM)

    total = await parts.total()
    assert isinstance(conversation.exception, ValueError)
    assert total == (NOTHING if model is None else (1, PROMPT, 1))
    assert (total[0], total[1] + total[2]) == parts.ledger.total


async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that streams until its client has left."""
    await receive()
    await send(EVENT_STREAM)
    await send(piece(delta("a")))
    await receive()


async def test_client_who_leaves_is_recorded_as_it_is_charged() -> None:
    parts = Recorded()

    await chat(parts.metering(streaming), json=STREAM, leave_after=1)

    assert parts.ledger.total == (1, PROMPT + 1)
    assert await parts.total() == (1, PROMPT, 1)


@pytest.mark.parametrize("by", ["scope", "asyncio"])
async def test_request_that_is_cancelled_is_recorded_as_it_is_charged(by: str) -> None:
    parts = Recorded()
    reached = anyio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENT_STREAM)
        await send(piece(delta("a")))
        reached.set()
        await anyio.sleep_forever()

    app = parts.metering(endless)
    with anyio.fail_after(5):
        if by == "asyncio":
            task = asyncio.ensure_future(chat(app, json=STREAM))
            await reached.wait()
            task.cancel()
            await asyncio.wait([task])
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: chat(app, json=STREAM))
                await reached.wait()
                group.cancel_scope.cancel()

    assert parts.ledger.total == (1, PROMPT + 1)
    assert await parts.total() == (1, PROMPT, 1)


async def test_refused_requests_are_not_recorded() -> None:
    parts = Recorded()
    app = parts.metering(Answering(*json_answer(usage(1, 2))), tier=replace(ROOMY, requests=parse_limits("1/minute")))

    statuses = [(await chat(app)).status for _ in range(3)]
    statuses.append((await chat(app, json={**CHAT, "model": "nope"})).status)

    assert statuses == [200, 429, 429, 404]
    assert await parts.total() == (1, 1, 2)


async def test_head_is_not_recorded() -> None:
    parts = Recorded()

    conversation = await chat(parts.metering(Answering()), method="HEAD", json=None)

    assert conversation.status == 200
    assert await parts.use() == []


async def test_use_is_recorded_by_model_under_its_id_and_by_user() -> None:
    parts = Recorded()
    app = parts.metering(Answering(*json_answer(usage(1, 2))))

    await chat(app)
    await chat(app, json={**CHAT, "model": "qwen"})
    await chat(app, "/org/qwen3/v1/chat/completions")
    await chat(app, json={**CHAT, "model": "qwen"}, headers=[AS_BOB])

    assert await parts.use() == [
        UsageRecord(ALICE.key, DAY, "org/qwen3", 1, 1, 2),
        UsageRecord(ALICE.key, DAY, "simulator", 1, 1, 2),
    ]
    assert await parts.use(BOB.key) == [UsageRecord(BOB.key, DAY, "org/qwen3", 1, 1, 2)]


@pytest.mark.parametrize("catalogue", [Catalogue(), CATALOGUE], ids=["open", "closed"])
async def test_name_of_a_model_that_refused_is_not_recorded_since_anybody_can_make_one_up(catalogue: Catalogue) -> None:
    recorded = Recorded()
    app = recorded.metering(Answering(*json_answer(b'{"error":{"message":"no"}}', 400)), catalogue=catalogue)

    await chat(app)

    await recorded.recorder.flush()
    assert [(record.model, record.requests, record.output_tokens) for record in await recorded.use()] == [("", 1, 0)]


async def test_use_before_and_after_midnight_is_of_two_days() -> None:
    clock = FakeClock(MIDNIGHT - 1)
    parts = Recorded(clock=clock)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await Answering(EVENT_STREAM, piece(delta("a")))(scope, receive, send)
        clock.advance(2)
        await send(last(DONE))

    await chat(parts.metering(Answering(*json_answer(usage(1, 2)))))
    await chat(parts.metering(slow), json=STREAM)

    assert await parts.use() == [
        UsageRecord(ALICE.key, date(2026, 11, 22), "simulator", 1, 1, 2),
        UsageRecord(ALICE.key, DAY, "simulator", 1, PROMPT, 1),
    ]


async def test_request_that_takes_from_several_budgets_is_recorded_once() -> None:
    parts = Recorded()
    limits = Limits(requests=parse_limits("9/minute"))
    catalogue = Catalogue([Model("simulator", limits=limits)])
    tier = replace(ROOMY, models={"simulator": limits})

    await chat(parts.metering(Answering(*json_answer(usage(1, 2))), tier=tier, catalogue=catalogue))

    assert await parts.total() == (1, 1, 2)
    assert parts.ledger.total == (1, 3)


@pytest.mark.parametrize("model", [pytest.param(None, id="no-model"), pytest.param(Model("m"), id="model")])
async def test_unmetered_request_is_recorded_without_tokens(model: Model | None) -> None:
    parts = Recorded()
    endpoint = Endpoint("POST", CHAT_COMPLETIONS, "unmetered", CHAT_DIALECT)

    async def unmetered(scope: Scope, receive: Receive, send: Send) -> None:
        context = ensure_context(scope)
        context.tier, context.endpoint, context.model = ROOMY, endpoint, model
        shell = RateLimitMiddleware(
            Answering(*json_answer(usage(12, 18))), ledger=parts.ledger, recorder=parts.recorder
        )
        await shell(scope, receive, send)

    await chat(identified(unmetered))

    assert await parts.use() == [UsageRecord(ALICE.key, DAY, "" if model is None else "m", 1, 0, 0)]
    assert parts.ledger.total == (1, 0)


async def test_use_is_recorded_though_the_ledger_fails() -> None:
    class Failing(Counting):
        async def settle(self, lease: Lease, charge: Charge, /) -> None:
            raise OSError("counters are away")

    parts = Recorded()
    parts.ledger = Failing()

    conversation = await chat(parts.metering(Answering(*json_answer(usage(12, 18)))))

    assert conversation.status == 200
    assert await parts.total() == (1, 12, 18)


async def test_use_is_recorded_though_asyncio_cancels_the_settlement() -> None:
    class Hanging(Counting):
        async def settle(self, lease: Lease, charge: Charge, /) -> None:
            reached.set()
            await anyio.sleep_forever()

    reached, parts = anyio.Event(), Recorded()
    parts.ledger = Hanging()

    task = asyncio.ensure_future(chat(parts.metering(Answering(*json_answer(usage(12, 18))))))
    with anyio.fail_after(5):
        await reached.wait()
        task.cancel()
        await asyncio.wait([task])

    assert await parts.total() == (1, 12, 18)


async def test_answer_has_left_before_its_use_is_written() -> None:
    written: list[bool] = []

    class Slow(MemoryUsageStore):
        async def add(self, *batch: Any) -> None:
            await gate.wait()
            await super().add(*batch)
            written.append(True)

    gate, parts = anyio.Event(), Recorded()
    parts.recorder = UsageRecorder(Slow(), clock=FakeClock(MIDNIGHT))
    app = ErrorEnvelopeMiddleware(parts.metering(Answering(*json_answer(usage(12, 18)))))

    with anyio.fail_after(5):
        async with serving(app, lifespan="off") as url, httpx.AsyncClient(trust_env=False) as client:
            headers = dict([AS_ALICE])
            answers = [await client.post(url + CHAT_COMPLETIONS, json=CHAT, headers=headers) for _ in range(3)]
            too_early = list(written)
            gate.set()
            await wait_all_tasks_blocked()

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert too_early == []
    assert written == [True, True]  # the first, and the others together


async def test_totals_are_those_of_the_ledger_over_sockets_whatever_clients_do() -> None:
    parts = Recorded()

    async def pouring(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(EVENT_STREAM)
        async with anyio.create_task_group() as group:
            group.start_soon(pour, send)
            await receive()
            group.cancel_scope.cancel()

    async def pour(send: Send) -> None:
        while True:
            await send(piece(delta("a")))
            await checkpoint()

    app = ErrorEnvelopeMiddleware(parts.metering(pouring))
    async with serving(app, lifespan="off") as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:

        async def leave_early(pieces: int) -> None:
            headers = dict([AS_ALICE])
            async with client.stream("POST", CHAT_COMPLETIONS, json=STREAM, headers=headers) as answer:
                async for line in answer.aiter_lines():
                    pieces -= line.startswith("data")
                    if pieces <= 0:
                        return

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for pieces in range(10):
                    group.start_soon(leave_early, pieces)
            while len(parts.ledger.charges) < 10:
                await checkpoint()
    await parts.recorder.aclose()

    requests, given, produced = await parts.total()
    assert (requests, given + produced) == parts.ledger.total
    assert (requests, given) == (10, 10 * PROMPT)


async def test_requests_write_nothing_themselves_while_the_recorder_runs() -> None:
    parts = Recorded()

    async with anyio.create_task_group() as group:
        group.start_soon(parts.recorder.run)
        await wait_all_tasks_blocked()
        await chat(parts.metering(Answering(*json_answer(usage(12, 18)))))
        at_once = await parts.use()
        await parts.recorder.flush()
        group.cancel_scope.cancel()

    assert at_once == []
    assert await parts.total() == (1, 12, 18)
