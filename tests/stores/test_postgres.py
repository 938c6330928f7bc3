from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from maas_middleware.errors import StoreUnavailable
from maas_middleware.stores._schema import FORGETTING, FORGOTTEN_AFTER_SECONDS
from maas_middleware.stores._transaction import Transaction
from maas_middleware.stores.sql import (
    _AFTER,
    _CHANGES,
    _FIND,
    _IN_ORDER,
    _OF_KIND,
    _OF_OWNER,
    _RAISED,
    _REVOKED,
    _SEQUENCE,
    SQLDatabase,
    SQLTokenStore,
    SQLUsageStore,
)
from maas_middleware.testing.clock import FakeClock
from maas_middleware.token_store import TokenRecord
from tests.stores.contract import *  # noqa: F403 the contract's tests are collected here
from tests.stores.contract import api_key, claims
from tests.stores.sql_contract import *  # noqa: F403 as above
from tests.stores.sql_contract import Connect, warnings
from tests.stores.usage_contract import *  # noqa: F403 as above
from tests.stores.usage_contract import RECORD

from .postgres_server import PASSWORD, PostgresServer, running_postgres
from .working import working

OWNER = "openshift/alice"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture
async def url(server: PostgresServer) -> str:
    return await server.new_database()


async def test_server_that_stands_still_is_not_waited_for_longer_than_the_timeout(
    server: PostgresServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    store = SQLTokenStore(connect(timeout=0.5))
    await store.generation(OWNER)

    server.freeze()
    try:
        for call in (store.generation, store.revoke_all, store.generation):
            began_at = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await call(OWNER)
            assert time.monotonic() - began_at < 0.8
    finally:
        server.thaw()

    assert await store.revoke_all(OWNER) >= 1
    assert warnings(caplog) == ["the database fails: TimeoutError", "the database answers again"]


async def test_many_calls_to_a_server_that_stands_still_all_end_in_time(
    server: PostgresServer, connect: Connect
) -> None:
    store = SQLTokenStore(connect(timeout=0.5))
    await store.generation(OWNER)

    async def fail() -> None:
        with pytest.raises(StoreUnavailable):
            await store.revoke_all(OWNER)

    server.freeze()
    try:
        began_at = time.monotonic()
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(fail)
        assert time.monotonic() - began_at < 1
    finally:
        server.thaw()

    assert await store.revoke_all(OWNER) >= 1


async def test_standby_is_refused_for_it_may_be_late_with_what_is_revoked(caplog: pytest.LogCaptureFixture) -> None:
    with running_postgres() as server:
        url = await server.new_database()
        for is_standby in (False, True):
            if is_standby:
                server.stop()
                server.make_standby()
                server.start()
            database = SQLDatabase(url, timeout=5.0)
            try:
                await SQLTokenStore(database).generation(OWNER)
                assert not is_standby
            except StoreUnavailable:
                assert is_standby
            finally:
                await database.aclose()

    assert warnings(caplog) == ["the database fails: it is a standby, which follows another server"]


async def test_killed_server_is_used_again_when_it_runs(
    server: PostgresServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    store = SQLTokenStore(connect())
    await store.revoke_all(OWNER)

    server.kill()
    try:
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.generation(OWNER)
    finally:
        server.start()

    assert await store.generation(OWNER) == 1
    assert warnings(caplog) == ["the database fails: ConnectionRefusedError", "the database answers again"]


async def test_server_that_was_restarted_is_not_noticed(
    server: PostgresServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    store = SQLTokenStore(connect())
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(store.revoke_all, OWNER)

    server.kill()
    server.start()

    assert await store.generation(OWNER) == 4
    assert await store.revoke_all(OWNER) == 5
    assert warnings(caplog) == []


async def test_server_that_is_down_at_the_start_is_used_when_it_runs(server: PostgresServer, connect: Connect) -> None:
    server.kill()
    try:
        store = SQLTokenStore(connect())
        with pytest.raises(StoreUnavailable):
            await store.revoke_all(OWNER)
    finally:
        server.start()

    assert await store.revoke_all(OWNER) == 1


async def test_process_that_stands_still_holds_others_up_for_its_timeout_only(url: str, connect: Connect) -> None:
    store = SQLTokenStore(connect(timeout=10))
    with working(url) as [worker]:
        worker.tell("hold", 1)
        assert worker.answer() == "held"
        worker.process.send_signal(signal.SIGSTOP)

        began_at = time.monotonic()
        assert await store.revoke_all(OWNER) == 1
        assert time.monotonic() - began_at < 3


async def test_statement_ends_on_the_server_when_its_time_is_over(url: str, connect: Connect) -> None:
    database = connect(timeout=1.0)

    with pytest.raises(StoreUnavailable):
        await database.write(lambda transaction: transaction.run("SELECT pg_sleep(20)"))

    running = "SELECT COUNT(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(20)%' AND pid <> pg_backend_pid()"
    with anyio.fail_after(5):
        while [tuple(row) for row in await database.read(lambda transaction: transaction.run(running))] != [(0,)]:
            pass


async def test_closing_waits_for_no_server_that_stands_still(server: PostgresServer, connect: Connect) -> None:
    database = connect()
    await SQLTokenStore(database).generation(OWNER)

    server.freeze()
    try:
        began_at = time.monotonic()
        await database.aclose()
        assert time.monotonic() - began_at < 1
    finally:
        server.thaw()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        pytest.param((PASSWORD, "falsch9"), "InvalidPasswordError", id="password"),
        pytest.param(("/test_", "/nowhere_"), "InvalidCatalogNameError", id="database"),
    ],
)
async def test_log_tells_what_is_wrong_and_nothing_of_the_url(
    url: str, clock: FakeClock, caplog: pytest.LogCaptureFixture, wrong: tuple[str, str], reason: str
) -> None:
    database = SQLDatabase(url.replace(*wrong), clock=clock)

    for _ in range(2):
        with pytest.raises(StoreUnavailable) as raised:
            await SQLTokenStore(database).generation(OWNER)

    await database.aclose()
    assert warnings(caplog) == [f"the database fails: {reason}"]
    assert "maas" not in str(raised.value)


async def test_encryption_that_the_server_does_not_offer_is_not_gone_without(
    url: str, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for mode, answers in (("disable", True), ("prefer", True), ("require", False), ("verify-full", False)):
        database = SQLDatabase(f"{url.partition('?')[0]}?sslmode={mode}", clock=clock)
        try:
            assert await SQLTokenStore(database).generation(OWNER) == 0
            assert answers
        except StoreUnavailable:
            assert not answers
        await database.aclose()

    assert warnings(caplog) == ["the database fails: ConnectionError"] * 2


async def waiting(database: SQLDatabase) -> None:
    """Return when a transaction waits for the lock of another."""
    sql = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while await count_of(database, sql) == 0:
        pass


async def count_of(database: SQLDatabase, sql: str) -> int:
    [[number]] = await database.read(lambda transaction: transaction.run(sql))
    return int(number)


async def mark(database: SQLDatabase) -> None:
    await SQLTokenStore(database).mark_used({"b": 1, "a": 1})


async def add(database: SQLDatabase) -> None:
    await SQLUsageStore(database).add("other", [replace(RECORD, model=model) for model in "ba"])


@pytest.mark.parametrize(
    ("write", "sql"),
    [
        pytest.param(mark, "UPDATE maas_tokens SET last_used_at = 5 WHERE id = :name", id="tokens"),
        pytest.param(add, "UPDATE maas_usage SET requests = 5 WHERE model = :name", id="usage"),
    ],
)
async def test_rows_are_written_in_an_order_in_which_nobody_blocks_another(
    connect: Connect, clock: FakeClock, write: Callable[[SQLDatabase], Coroutine[Any, Any, None]], sql: str
) -> None:
    one, other = connect(), connect()
    await SQLUsageStore(one).add("batch", [replace(RECORD, model=model) for model in "ab"])
    for token_id in "ab":
        await SQLTokenStore(one).record(api_key(clock, token_id))
    begun = anyio.Event()

    async def work(transaction: Transaction) -> None:
        await transaction.run(sql, name="a")
        begun.set()
        await waiting(other)
        await transaction.run(sql, name="b")

    async with anyio.create_task_group() as group:
        group.start_soon(one.write, work)
        await begun.wait()
        group.start_soon(write, other)


@pytest.mark.parametrize("table", ["maas_usage_batches", "maas_tokens", "maas_changes"])
async def test_what_another_holds_is_forgotten_later(connect: Connect, clock: FakeClock, table: str) -> None:
    database = connect()
    store, usage = SQLTokenStore(database), SQLUsageStore(database)
    await usage.add("batch", [])
    await store.record(TokenRecord(claims(clock, "a")))
    for _ in range(2):
        await store.revoke_all(OWNER)
    begun, done = anyio.Event(), anyio.Event()

    async def hold(transaction: Transaction) -> None:
        await transaction.run(f"SELECT * FROM {table} FOR UPDATE")
        begun.set()
        await done.wait()

    clock.advance(FORGOTTEN_AFTER_SECONDS * 2)
    async with anyio.create_task_group() as group:
        group.start_soon(database.write, hold)
        await begun.wait()
        began_at = time.monotonic()
        await usage.add("another", [])
        assert time.monotonic() - began_at < 3
        done.set()

    sizes = {name: await count_of(database, f"SELECT COUNT(*) FROM {name}") for name in SIZES}
    assert sizes == {**SIZES, table: SIZES[table] + 1}


SIZES = {"maas_usage_batches": 1, "maas_tokens": 0, "maas_changes": 1}  # when what is old is forgotten


async def test_words_of_the_url_may_be_encoded(url: str, clock: FakeClock) -> None:
    encoded = url.replace(PASSWORD, "%77iesel7").replace("/test_", "/%74est_").replace("postgresql:", "postgres:")
    database = SQLDatabase(encoded, clock=clock)

    assert await SQLTokenStore(database).generation(OWNER) == 0

    await database.aclose()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def encrypting_server(authority: trustme.CA) -> Iterator[PostgresServer]:
    with running_postgres(authority.issue_cert("localhost")) as server:  # which is not 127.0.0.1
        yield server


@pytest.mark.parametrize(
    ("host", "mode", "knows_authority", "answers"),
    [
        ("127.0.0.1", "require", False, True),
        ("127.0.0.1", "verify-ca", True, True),
        ("localhost", "verify-full", True, True),
        ("localhost", "verify-ca", False, False),
        ("localhost", "verify-full", False, False),
        ("127.0.0.1", "verify-full", True, False),
    ],
)
async def test_certificate_is_verified_as_the_url_says(
    encrypting_server: PostgresServer,
    authority: trustme.CA,
    clock: FakeClock,
    tmp_path: Path,
    host: str,
    mode: str,
    knows_authority: bool,
    answers: bool,
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca file.pem")
    url = f"{encrypting_server.url('postgres')}?sslmode={mode}".replace("127.0.0.1", host)
    database = SQLDatabase(url + f"&sslrootcert={tmp_path}/ca%20file.pem" * knows_authority, clock=clock)
    encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"

    try:
        assert [tuple(row) for row in await database.read(lambda transaction: transaction.run(encrypted))] == [(True,)]
        assert answers
    except StoreUnavailable:
        assert not answers
    finally:
        await database.aclose()


@pytest.mark.parametrize(
    "sql",
    [
        _OF_OWNER + _IN_ORDER,
        _OF_OWNER + _OF_KIND + _IN_ORDER,
        _OF_OWNER + _OF_KIND + _AFTER + _IN_ORDER,
        _FIND,
        _CHANGES,
        _SEQUENCE,
        _RAISED,
        _REVOKED,
        *FORGETTING,
    ],
)
async def test_what_is_asked_for_has_an_index(connect: Connect, sql: str) -> None:
    values = {"owner": "'x'", "kind": "'api_key'", "id": "'a'", "now": "1", "limit": "9", "issued_at": "1"}
    values |= {"after": "1" if sql == _CHANGES else "'a'", "before": "1"}
    told = re.sub(r":(\w+)", lambda found: values[found[1]], sql).format(for_update="FOR UPDATE SKIP LOCKED")

    async def plan(transaction: Transaction) -> str:
        for way in ("seqscan", "bitmapscan", "sort", "hashjoin", "hashagg"):
            await transaction.run(f"SET LOCAL enable_{way} = off")
        return "\n".join(row[0] for row in await transaction.run(f"EXPLAIN {told}"))

    planned = await connect().read(plan)

    assert "Index" in planned
    assert "Seq Scan" not in planned
    assert "Sort" not in planned
