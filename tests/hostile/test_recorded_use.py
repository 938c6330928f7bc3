"""Recorded use: exact whatever clients do, nobody else's, and no place to put what one likes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.responses import JSONResponse

from ..deployments import chat
from .attack import CHAT, Target, request
from .test_keys_and_leaks import ADMIN_USERS, TOKENS, newcomer, on_sqlite

USAGE = "/v1/usage"
STREAMS = 200
NAMES = 300


@pytest.fixture(scope="module")
async def besieged_target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with on_sqlite(tmp_path_factory.mktemp("site")) as target:
        yield target


async def used(target: Target, credential: str, query: str = "") -> dict[str, Any]:
    answer = await target.ask("GET", USAGE + query, token=credential)
    assert answer.status == 200, answer.received
    document: dict[str, Any] = json.loads(answer.body)
    return document


async def test_streams_at_once_of_which_half_are_cut_are_recorded_as_they_are_charged(tmp_path: Path) -> None:
    async with on_sqlite(tmp_path) as target:
        await exactly(target)


async def test_streams_of_a_mounted_app_are_recorded_as_they_are_charged(tmp_path: Path) -> None:
    async with on_sqlite(tmp_path, "mounted") as target:
        await exactly(target)


async def exactly(target: Target) -> None:
    simulator, owners = target.service.simulator, [await newcomer(target), await newcomer(target)]
    simulator.requests.clear()
    simulator.gate, simulator.hold_after = anyio.Event(), 3
    whole, cut, left = list[bytes](), list[int](), anyio.Event()
    body = json.dumps(chat(stream=True))

    async def stream(number: int) -> None:
        owner = owners[number % 2]
        async with await anyio.connect_tcp("127.0.0.1", target.port) as connection:
            await connection.send(request("POST", CHAT, token=owner.token if number % 3 else owner.key, body=body))
            received = b""
            while received.count(b"data: ") < 2:
                received += await connection.receive()
            if number % 4 < 2:
                cut.append(number)
                if len(cut) == STREAMS // 2:
                    left.set()
                return
            while b"[DONE]" not in received:
                received += await connection.receive()
            whole.append(received)

    with anyio.fail_after(25):
        async with anyio.create_task_group() as group:
            for number in range(STREAMS):
                group.start_soon(stream, number)
            await left.wait()
            while sum(seen.outcome == "cancelled" for seen in simulator.requests) < STREAMS // 2:
                await target.ask("GET", "/maas-api/health")
            simulator.gate.set()
        for seen in simulator.requests:
            await seen.done.wait()
    simulator.gate, simulator.hold_after = None, 1

    outcomes = [seen.outcome for seen in simulator.requests]
    assert (outcomes.count("cancelled"), outcomes.count("finished")) == (len(cut), len(whole)) == (100, 100)
    for owner in owners:
        requests, tokens = await target.used(owner.key)
        total = (await used(target, owner.token))["total"]
        assert (total["requests"], total["total_tokens"]) == (requests, tokens)
        assert requests == STREAMS // 2
        assert total["input_tokens"] + total["output_tokens"] == total["total_tokens"]


async def test_use_of_others_is_shown_to_nobody_but_administrators(target: Target) -> None:
    owner, thief, admin = await newcomer(target), await newcomer(target), target.newcomer("crew", "wardens")
    for token in (owner.token, owner.key):
        assert (await target.chat(token)).status == 200
    total = (await used(target, owner.login))["total"]

    of_thief = [await used(target, one, f"?user={owner.name}") for one in (thief.login, thief.token, thief.key)]
    of_admin = await used(target, admin, f"?user={owner.name}")
    denied = await target.ask("GET", f"{ADMIN_USERS}?user={owner.name}", token=thief.login)
    shown = json.loads((await target.ask("GET", f"{ADMIN_USERS}?user={owner.name}", token=admin)).body)

    assert total["requests"] == 2
    assert [one["data"] for one in (*of_thief, of_admin)] == [[]] * 4
    denied.refusal(403, "access_denied")
    assert [(row["requests"], row["total_tokens"]) for row in shown["usage"]] == [(2, total["total_tokens"])]


async def test_revoked_token_shows_no_use_and_the_use_stays(target: Target) -> None:
    owner = await newcomer(target)
    assert (await target.chat(owner.token)).status == 200
    assert (await target.ask("DELETE", TOKENS, token=owner.login)).status == 204

    refused = await target.ask("GET", USAGE, token=owner.token)

    assert refused.refusal(401, "invalid_api_key")["details"] == {"reason": "revoked"}
    assert (await used(target, owner.login))["total"]["requests"] == 1


SENSELESS = [
    *("from=-1", "from=NaN", "from=Infinity", "from=0", "from=1e9", "from=20261123", "from=", "to=", "from=today"),
    *(
        "from=2026-02-30",
        "from=0000-01-01",
        "from=2026-00-01",
        "from=10000-01-01",
        "from=-2026-01-01",
        "from=+2026-1-1",
    ),
    *(
        "from=2026-11-23T00:00:00",
        "from=2026-11-23%00",
        "from=2026-11-23%0a",
        "from=%EF%BC%92026-11-23",
        "to=2026-W48-1",
    ),
    *("from=%D9%A2%D9%A0%D9%A2%D9%A6-11-23", "from='%20OR%201=1", "from=2026-11-23&from=2026-11-23", "from=%ff"),
    *("from=2026-11-24&to=2026-11-23", "from=2025-01-01&to=2026-01-02", "from=0001-01-01&to=9999-12-31"),
    pytest.param("from=" + "9" * 20_000, id="20000-digits"),
]


@pytest.mark.parametrize("query", SENSELESS)
async def test_days_that_are_none_are_400(target: Target, query: str) -> None:
    answer = await target.ask("GET", f"{USAGE}?{query}", token=target.access())

    assert answer.refusal(400, "invalid_value")["param"] in ("from", "to", None)


@pytest.mark.parametrize(
    "query",
    ["from=0001-01-01&to=0001-12-31", "to=0001-01-01", "from=9999-12-31&to=9999-12-31", "to=9999-12-31&days=-1"],
)
async def test_days_on_which_nobody_used_anything_are_empty(target: Target, query: str) -> None:
    document = await used(target, target.access(), f"?{query}")

    assert (document["data"], document["total"]["requests"]) == ([], 0)


async def test_requests_that_are_refused_are_in_no_record(target: Target) -> None:
    owner = await newcomer(target)

    refused = [
        (await target.chat(owner.token, model="qwen3")).status,
        (await target.chat(owner.token, model="nothing")).status,
        (await target.chat(owner.token, messages=7)).status,
        (await target.ask("POST", CHAT, token=owner.token, body="{")).status,
        (await target.ask("GET", CHAT, token=owner.token)).status,
        (await target.ask("HEAD", CHAT, token=owner.token)).status,
        (await target.ask("POST", CHAT, token=owner.login, body=json.dumps(chat()))).status,
    ]

    assert refused[:2] == [403, 404]
    assert refused[3:] == [400, 405, 200, 401]
    total = (await used(target, owner.token))["total"]
    assert total["total_tokens"] == 0
    assert total["requests"] == (await target.used(owner.token))[0]


# an inner app that knows its models itself, so that clients may name what they like


NAMED = [
    *(
        "x'; DROP TABLE maas_usage; --",
        '"',
        "\\",
        "\\0",
        "\\u0000",
        "\\sha256:00",
        "%s%d",
        "{0}",
        "<script>",
        "🦀" * 64,
    ),
    *("a/b", "..", "?", "#", "null", "é", "e\u0301", "A", "a"),
]
NAMELESS = ["", " ", "x\0y", "x\ny", "\x1b[2J", "\ud800", "\u2028", "\u202e", "x" * 257, "x" * 100_000]


@asynccontextmanager
async def before_an_app_that_serves_whatever_name(directory: Path) -> AsyncIterator[Target]:
    """As some model servers do: they have one model, and look at no name."""
    async with on_sqlite(directory, "mounted", models=None) as target:
        usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        target.service.simulator.failure = JSONResponse({"choices": [], "usage": usage})
        yield target


async def test_whatever_clients_call_a_model_is_data_and_nothing_else(tmp_path: Path) -> None:
    async with before_an_app_that_serves_whatever_name(tmp_path) as target:
        owner, other = await newcomer(target), await newcomer(target)
        answers = [await target.chat(owner.token, model=name) for name in (*NAMED, *NAMELESS)]
        assert [answer.status for answer in answers[: len(NAMED)]] == [200] * len(NAMED)
        assert {answer.status for answer in answers} <= {200, 400, 404}
        assert (await target.chat(other.token)).status == 200

        document = await used(target, owner.login)
        of_other = await used(target, other.login)

    counts = {row["model"]: row["requests"] for row in document["data"]}
    assert {name: counts.pop(name) for name in NAMED} == dict.fromkeys(NAMED, 1)
    assert set(counts) <= {"", " "}
    assert document["total"]["requests"] == [answer.status for answer in answers].count(200)
    assert [(row["model"], row["requests"]) for row in of_other["data"]] == [("simulator", 1)]


async def test_names_that_clients_make_up_and_the_app_refuses_do_not_fill_the_table(tmp_path: Path) -> None:
    async with on_sqlite(tmp_path, "mounted", models=None) as target:
        await making_up_names(target)


async def test_names_that_clients_make_up_and_the_app_serves_do_not_fill_the_table(tmp_path: Path) -> None:
    async with before_an_app_that_serves_whatever_name(tmp_path) as target:
        await making_up_names(target)


async def making_up_names(target: Target) -> None:
    owner, other = await newcomer(target), await newcomer(target)
    for number in range(NAMES):
        await target.chat(owner.token, model=f"made-up-{number}")
    assert (await target.chat(other.token)).status == 200

    document, of_other = await used(target, owner.login), await used(target, other.login)

    assert document["total"]["requests"] == NAMES
    assert len(document["data"]) < NAMES
    assert [row["model"] for row in of_other["data"]] == ["simulator"]
