from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from maas_middleware.apps.account import MeApp, UsageApp
from maas_middleware.apps.openapi import openapi_document
from maas_middleware.catalogue import Catalogue, Model
from maas_middleware.errors import StoreUnavailable
from maas_middleware.identity import Identity
from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.limiting import Charge, Demand, Ledger, Limits, Subject, Verdict, parse_limits
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.middleware.identity import IdentityMiddleware
from maas_middleware.middleware.rate_limit import RateLimitMiddleware
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.middleware.usage import UsageMiddleware
from maas_middleware.recorder import UsageRecorder
from maas_middleware.stores.memory import MemoryUsageStore
from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.converse import Conversation, converse
from maas_middleware.testing.identity import StaticIdentityProvider
from maas_middleware.tiers import GroupTierResolver, Tier
from maas_middleware.usage_store import UsageRecord
from tests.parts import Answering, json_answer, knock
from tests.servers import serving

NOON = 1_795_435_200.0  # of 2026-11-23 in UTC
FREE = Tier("free", "Free Tier", groups=("everyone", "testers"), requests=parse_limits("5/minute"))
PRO = Tier(
    "pro",
    "Pro Tier",
    "For those who pay",
    level=7,
    groups=("payers",),
    requests=parse_limits("5/minute;100/day"),
    tokens=parse_limits("1000/hour"),
    models={"qwen": Limits(parse_limits("2/minute"), parse_limits("50/minute"), 1), "simulator": Limits()},
    concurrency=4,
    max_tokens_per_request=500,
    features=frozenset({"tools", "streaming"}),
)
RESOLVER = GroupTierResolver([FREE, PRO])
CATALOGUE = Catalogue([Model("simulator"), Model("qwen", tiers=frozenset({"pro"}), limits=Limits(concurrency=9))])
FAY = Identity("openshift", "fay", ("testers", "everyone", "readers"))
PAT = Identity("openshift", "pat", ("payers",))
PROVIDER = StaticIdentityProvider(
    {
        "fay": FAY,
        "pat": PAT,
        "minted": replace(PAT, restriction="an access token"),
        "stranger": Identity("openshift", "stranger", ("nobodies",)),
        "other-fay": Identity("github", "fay", ("everyone",)),
    }
)


class Failing(MemoryLedger):
    """A ledger that cannot be asked."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(clock=FakeClock())
        self._error = error

    async def peek(self, subject: Subject, /) -> Verdict:
        if self._error is not None:
            raise self._error
        await anyio.sleep_forever()
        raise AssertionError


def as_user(user: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {user}")


async def ask(app: ASGIApp, path: str, query: str = "", *, method: str = "GET", user: str = "fay") -> Conversation:
    identified = ErrorEnvelopeMiddleware(IdentityMiddleware(app, provider=PROVIDER))
    with anyio.fail_after(5):
        return await converse(
            identified, method, path, headers=[as_user(user)], scope={"query_string": query.encode("latin-1")}
        )


def me(ledger: Ledger | None = None, *, catalogue: Catalogue = CATALOGUE, **options: Any) -> MeApp:
    counters = MemoryLedger(clock=FakeClock()) if ledger is None else ledger
    return MeApp(**{"resolver": RESOLVER, "catalogue": catalogue, "ledger": counters, **options})


def assert_refused(conversation: Conversation, status: int, code: str, param: str | None = None) -> None:
    assert conversation.exception is None
    assert conversation.status == status
    error = conversation.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert conversation.header("cache-control") == "no-store"


async def test_me_tells_who_the_caller_is_and_what_remains() -> None:
    conversation = await ask(me(), "/v1/me")

    assert conversation.status == 200
    assert conversation.header("cache-control") == "no-store"
    assert conversation.json() == {
        "user": "fay",
        "provider": "openshift",
        "groups": ["testers", "everyone", "readers"],
        "tier": {"name": "free", "displayName": "Free Tier", "level": 0, "group": "everyone"},
        "limits": {
            "requests": [{"limit": 5, "window_seconds": 60}],
            "tokens": [],
            "concurrency": None,
            "max_tokens_per_request": None,
            "features": "all",
        },
        "remaining": {
            "requests": {"limit": 5, "window_seconds": 60, "remaining": 5, "reset_seconds": 0},
            "tokens": None,
        },
        "models": [{"id": "simulator"}],
    }


@pytest.mark.parametrize("user", [pytest.param("pat", id="login"), pytest.param("minted", id="access token")])
async def test_me_tells_all_limits_and_further_ones_on_models(user: str) -> None:
    ledger = MemoryLedger(clock=FakeClock())
    verdict = await ledger.admit(PRO.subject(PAT), Demand("a", 100))
    assert verdict.lease is not None
    await ledger.settle(verdict.lease, Charge(40))

    answer = (await ask(me(ledger), "/v1/me", user=user)).json()

    assert answer["tier"] == {
        "name": "pro",
        "displayName": "Pro Tier",
        "description": "For those who pay",
        "level": 7,
        "group": "payers",
    }
    assert answer["limits"] == {
        "requests": [{"limit": 5, "window_seconds": 60}, {"limit": 100, "window_seconds": 86400}],
        "tokens": [{"limit": 1000, "window_seconds": 3600}],
        "concurrency": 4,
        "max_tokens_per_request": 500,
        "features": ["streaming", "tools"],
    }
    assert answer["remaining"]["requests"] | {"reset_seconds": 0} == {
        "limit": 5,
        "window_seconds": 60,
        "remaining": 4,
        "reset_seconds": 0,
    }
    assert answer["remaining"]["tokens"]["remaining"] == 960
    further = {
        "requests": [{"limit": 2, "window_seconds": 60}],
        "tokens": [{"limit": 50, "window_seconds": 60}],
        "concurrency": 1,
    }
    assert answer["models"] == [{"id": "simulator"}, {"id": "qwen", "limits": further}]


async def test_me_tells_what_the_headers_tell() -> None:
    clock = FakeClock()
    ledger = MemoryLedger(clock=clock)
    answering = Answering(*json_answer(b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'))
    metered = RateLimitMiddleware(UsageMiddleware(answering), ledger=ledger)
    inference = IdentityMiddleware(TierMiddleware(metered, resolver=RESOLVER, catalogue=CATALOGUE), provider=PROVIDER)
    body = {"model": "simulator", "messages": [], "max_tokens": 9}
    for seconds in (12.3456, 20.0):
        await converse(inference, "POST", "/v1/chat/completions", headers=[as_user("pat")], json=body)
        clock.advance(seconds)

    head = await converse(inference, "HEAD", "/v1/chat/completions", headers=[as_user("pat")])
    remaining = (await ask(me(ledger), "/v1/me", user="pat")).json()["remaining"]

    for unit in ("requests", "tokens"):
        assert str(remaining[unit]["limit"]) == head.header(f"x-ratelimit-limit-{unit}")
        assert str(remaining[unit]["remaining"]) == head.header(f"x-ratelimit-remaining-{unit}")
    assert head.header("x-ratelimit-reset-requests") == f"{remaining['requests']['reset_seconds']:g}s"
    assert remaining["requests"]["remaining"] == 3
    assert remaining["tokens"]["remaining"] == 986


async def test_me_of_a_caller_in_no_tier_is_no_error() -> None:
    conversation = await ask(me(), "/v1/me", user="stranger")

    assert conversation.status == 200
    assert conversation.json() == {
        "user": "stranger",
        "provider": "openshift",
        "groups": ["nobodies"],
        "tier": None,
        "limits": None,
        "remaining": None,
        "models": [],
    }


async def test_me_names_no_group_where_the_tier_has_another_reason() -> None:
    class Everybody:
        async def resolve(self, identity: Identity, /) -> Tier:
            return PRO

    answer = (await ask(me(resolver=Everybody()), "/v1/me")).json()

    assert (answer["tier"]["name"], answer["tier"]["group"]) == ("pro", None)


async def test_me_leaves_models_open_where_the_inner_app_knows_them() -> None:
    answer = (await ask(me(catalogue=Catalogue()), "/v1/me")).json()

    assert answer["models"] is None


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        pytest.param(StoreUnavailable(), [], id="away"),
        pytest.param(OSError("10.0.0.7"), ["the ledger failed"], id="fails"),
        pytest.param(None, [], id="hangs"),
    ],
)
async def test_me_does_without_the_counters(
    error: Exception | None, logged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    conversation = await ask(me(Failing(error), ledger_timeout=0.01), "/v1/me")

    answer = conversation.json()
    assert conversation.status == 200
    assert (answer["remaining"], answer["degraded"]) == (None, ["counters"])
    assert (answer["user"], answer["tier"]["name"], answer["models"]) == ("fay", "free", [{"id": "simulator"}])
    assert [record.message for record in caplog.records] == logged


async def test_me_tells_of_a_tier_that_has_no_features() -> None:
    plain = replace(FREE, features=frozenset())

    answer = (await ask(me(resolver=GroupTierResolver([plain])), "/v1/me")).json()

    assert answer["limits"]["features"] == []


async def test_me_consumes_nothing() -> None:
    app = me()

    for _ in range(9):
        answer = (await ask(app, "/v1/me")).json()

    assert answer["remaining"]["requests"]["remaining"] == 5


def usage(store: MemoryUsageStore | None = None, recorder: UsageRecorder | None = None) -> UsageApp:
    kept = MemoryUsageStore() if store is None else store
    return UsageApp(store=kept, recorder=recorder, clock=FakeClock(NOON))


async def kept(*records: UsageRecord) -> MemoryUsageStore:
    store = MemoryUsageStore()
    await store.add("batch", records)
    return store


def used(day: date, model: str = "simulator", owner: str = FAY.key) -> UsageRecord:
    return UsageRecord(owner, day, model, 2, 30, 12)


async def dates(store: MemoryUsageStore, query: str) -> tuple[str, str, Sequence[str]]:
    conversation = await ask(usage(store), "/v1/usage", query)
    assert conversation.status == 200, conversation.body
    answer = conversation.json()
    return answer["from"], answer["to"], [row["date"] for row in answer["data"]]


async def test_usage_is_the_callers_own_by_day_and_model() -> None:
    today, yesterday = date(2026, 11, 23), date(2026, 11, 22)
    store = await kept(
        used(today, "simulator"),
        used(yesterday, "simulator"),
        used(today, "qwen"),
        used(today, owner=PAT.key),
        used(today, owner="github/fay"),
    )

    conversation = await ask(usage(store), "/v1/usage")

    counts = {"requests": 2, "input_tokens": 30, "output_tokens": 12, "total_tokens": 42}
    assert conversation.status == 200
    assert conversation.header("cache-control") == "no-store"
    assert conversation.json() == {
        "object": "list",
        "from": "2026-10-25",
        "to": "2026-11-23",
        "data": [
            {"date": "2026-11-22", "model": "simulator", **counts},
            {"date": "2026-11-23", "model": "qwen", **counts},
            {"date": "2026-11-23", "model": "simulator", **counts},
        ],
        "total": {"requests": 6, "input_tokens": 90, "output_tokens": 36, "total_tokens": 126},
    }


async def test_usage_of_nothing_is_empty() -> None:
    conversation = await ask(usage(), "/v1/usage", user="stranger")

    assert conversation.json()["data"] == []
    assert conversation.json()["total"] == {"requests": 0, "input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param("", ("2026-10-25", "2026-11-23", ["2026-10-25", "2026-11-22", "2026-11-23"]), id="default"),
        pytest.param(
            "from=2026-10-24&to=2026-11-22",
            ("2026-10-24", "2026-11-22", ["2026-10-24", "2026-10-25", "2026-11-22"]),
            id="both days are included",
        ),
        pytest.param("from=2026-11-23&to=2026-11-23", ("2026-11-23", "2026-11-23", ["2026-11-23"]), id="one day"),
        pytest.param("from=2026-11-22", ("2026-11-22", "2026-11-23", ["2026-11-22", "2026-11-23"]), id="from"),
        pytest.param("to=2026-10-24", ("2026-09-25", "2026-10-24", ["2026-10-24"]), id="to"),
        pytest.param("to=0001-01-05", ("0001-01-01", "0001-01-05", []), id="the first days of all"),
        pytest.param("from=9999-12-30&to=9999-12-31", ("9999-12-30", "9999-12-31", []), id="the last days of all"),
        pytest.param("from=2024-01-01&to=2024-12-31", ("2024-01-01", "2024-12-31", []), id="366 days"),
        pytest.param("limit=1&from=2026-11-23", ("2026-11-23", "2026-11-23", ["2026-11-23"]), id="unknown parameter"),
    ],
)
async def test_usage_of_the_days_asked_for(query: str, expected: tuple[str, str, list[str]]) -> None:
    days = (date(2026, 10, 24), date(2026, 10, 25), date(2026, 11, 22), date(2026, 11, 23), date(2026, 11, 24))
    store = await kept(*map(used, days))

    assert await dates(store, query) == expected


@pytest.mark.parametrize(
    ("query", "param"),
    [
        *(
            pytest.param(f"{name}={value}", name, id=f"{name} is {value or 'empty'}")
            for name in ("from", "to")
            for value in ("", "20261101", "2026-11-31", "2026-W01-1", "2026-1-1", "2026-11-01T00:00:00Z", "yesterday")
        ),
        pytest.param("from=%D9%A2%D9%A0%D9%A2%D9%A6-11-01", "from", id="digits of another script"),
        pytest.param("from=0000-01-01", "from", id="year 0"),
        pytest.param("from=2026-11-01%0A", "from", id="end of line"),
        pytest.param("from=2026-11-24", "from", id="from tomorrow"),
        pytest.param("from=2026-11-02&to=2026-11-01", "from", id="from after to"),
        pytest.param("from=2025-11-22", "from", id="more than 366 days until today"),
        pytest.param("from=2023-12-31&to=2024-12-31", "from", id="367 days"),
        pytest.param("from=0001-01-01&to=9999-12-31", "from", id="always"),
        pytest.param("from=2026-11-01&from=2026-11-02", "from", id="repeated from"),
        pytest.param("to=2026-11-01&to=2026-11-02", "to", id="repeated to"),
        pytest.param("from=%FF", None, id="no text"),
    ],
)
async def test_days_that_are_none_are_400(query: str, param: str | None) -> None:
    assert_refused(await ask(usage(), "/v1/usage", query), 400, "invalid_value", param)


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clocks are 14 hours ahead of UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "EAST-14")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_east")
async def test_today_is_that_of_utc_wherever_the_machine_stands() -> None:
    assert (await dates(MemoryUsageStore(), ""))[1] == "2026-11-23"


async def test_usage_of_a_moment_ago_is_in_it() -> None:
    store = MemoryUsageStore()
    recorder = UsageRecorder(store, clock=FakeClock(NOON))
    recorder.note(FAY.key, "simulator", Charge(7), 3)

    answer = (await ask(usage(store, recorder), "/v1/usage")).json()

    assert answer["total"] == {"requests": 1, "input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


class Away(MemoryUsageStore):
    async def add(self, batch_id: str, records: Sequence[UsageRecord], /) -> None:
        raise StoreUnavailable

    async def usage(self, owner: str, first: date, last: date, /) -> Sequence[UsageRecord]:
        raise StoreUnavailable


async def test_usage_that_could_not_be_written_is_503_rather_than_too_little() -> None:
    class Full(MemoryUsageStore):
        add = Away.add

    recorder = UsageRecorder(Full(), clock=FakeClock(NOON))
    recorder.note(FAY.key, "simulator", Charge(7), 3)

    conversation = await ask(usage(Full(), recorder), "/v1/usage")

    assert_refused(conversation, 503, "store_unavailable")
    assert conversation.header("retry-after") == "2"


async def test_usage_that_cannot_be_read_is_503() -> None:
    assert_refused(await ask(usage(Away()), "/v1/usage"), 503, "store_unavailable")


BOTH = pytest.mark.parametrize(("app", "path"), [(me(), "/v1/me"), (usage(), "/v1/usage")], ids=["me", "usage"])


@BOTH
@pytest.mark.parametrize("user", ["fay", "minted", "stranger", "other-fay"])
@pytest.mark.parametrize("ending", ["", "/"])
async def test_whoever_is_known_may_ask(app: ASGIApp, path: str, user: str, ending: str) -> None:
    conversation = await ask(app, path + ending, user=user)

    assert conversation.status == 200
    assert conversation.header("content-type") == "application/json"


@BOTH
async def test_strangers_may_not(app: ASGIApp, path: str) -> None:
    conversation = await ask(app, path, user="unknown")

    assert conversation.status == 401


@BOTH
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_other_methods_are_405(app: ASGIApp, path: str, method: str) -> None:
    conversation = await ask(app, path, method=method)

    assert_refused(conversation, 405, "method_not_allowed")
    assert conversation.header("allow") == "GET, HEAD"


@BOTH
@pytest.mark.parametrize("below", ["/pat", "//", "/./", "/%2e"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_paths_below_are_404(app: ASGIApp, path: str, below: str, method: str) -> None:
    assert_refused(await ask(app, path + below, method=method), 404, "not_found")


@BOTH
async def test_websockets_are_refused(app: ASGIApp, path: str) -> None:
    messages = await knock(IdentityMiddleware(app, provider=PROVIDER), path, headers=[as_user("fay")])

    assert messages[0]["status"] == 404


@BOTH
async def test_app_without_an_identity_says_what_is_missing(app: ASGIApp, path: str) -> None:
    conversation = await converse(app, path=path)

    assert isinstance(conversation.exception, LookupError)
    assert str(conversation.exception).endswith("App needs to know the identity: wrap it in IdentityMiddleware")


@BOTH
async def test_apps_may_be_mounted_or_routed_to(app: ASGIApp, path: str) -> None:
    identified = IdentityMiddleware(app, provider=PROVIDER)
    routes = [Mount(f"/mounted{path}", identified), Route(path, identified)]

    answers = [
        await converse(Starlette(routes=routes), path=asked, headers=[as_user("fay")])
        for asked in (f"/mounted{path}/", path)
    ]

    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


@BOTH
async def test_head_has_the_headers_of_get_and_no_body(app: ASGIApp, path: str) -> None:
    identified = IdentityMiddleware(app, provider=PROVIDER)

    async with serving(identified, lifespan="off") as url, httpx.AsyncClient(trust_env=False) as client:
        client.headers["authorization"] = "Bearer fay"
        get, head = await client.get(url + path), await client.head(url + path)

    assert get.status_code == head.status_code == 200
    assert head.content == b""
    for name in ("content-type", "content-length", "cache-control"):
        assert head.headers[name] == get.headers[name]


@BOTH
async def test_answers_have_the_fields_that_are_documented(app: ASGIApp, path: str) -> None:
    schemas = openapi_document()["components"]["schemas"]

    answer = (await ask(app, path, user="pat")).json()

    schema = schemas["Me" if path == "/v1/me" else "Usage"]
    assert set(schema["required"]) <= set(answer) <= set(schema["properties"]), json.dumps(answer)
