"""What the stores of a database promise beyond the contracts. A test module imports all of it, and has a fixture `url`.

The url is that of a database that is empty.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import date

import anyio
import pytest

from maas_middleware.errors import StoreUnavailable
from maas_middleware.revocations import (
    CHANGES_AT_ONCE,
    Change,
    GenerationRaised,
    KnownRevocations,
    Snapshot,
    TokenRevoked,
)
from maas_middleware.stores._schema import FORGOTTEN_AFTER_SECONDS, STEPS
from maas_middleware.stores._transaction import Transaction
from maas_middleware.stores.sql import SQLDatabase, SQLTokenStore, SQLUsageStore
from maas_middleware.testing.clock import FakeClock
from maas_middleware.token_store import TokenRecord
from maas_middleware.tokens import Claims
from maas_middleware.usage_store import UsageRecord

from .contract import ALICE, BOB, LIFETIME, api_key, claims, ids, minted
from .usage_contract import DAY, RECORD, of_day
from .working import DAY as WORKING_DAY
from .working import END, working

Connect = Callable[..., SQLDatabase]
PROCESSES = 3


class AskedTokenStore(SQLTokenStore):
    """A store that tells what is revoked as whoever follows it would: by a snapshot, and by all changes."""

    async def is_revoked(self, claims: Claims, /) -> bool:
        loaded, followed = KnownRevocations(), KnownRevocations()
        loaded.load(await everything(self))
        followed.follow(await self.changes(0))
        assert loaded.covers(claims) == followed.covers(claims)
        return loaded.covers(claims)


async def everything(store: SQLTokenStore) -> Snapshot:
    """All pages of a snapshot in one, with the sequence of the first."""
    page = whole = await store.snapshot()
    while page.next is not None:
        page = await store.snapshot(page.next)
        generations, revoked = {**whole.generations, **page.generations}, {**whole.revoked, **page.revoked}
        whole = Snapshot(whole.sequence, generations, revoked)
    return whole


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def connect(url: str, clock: FakeClock) -> AsyncIterator[Connect]:
    """Makes databases on the same url, which are closed at the end."""
    async with AsyncExitStack() as stack:

        def connect(**arguments: object) -> SQLDatabase:
            options: dict[str, object] = {"clock": clock, "timeout": 10.0, **arguments}
            database = SQLDatabase(url, **options)  # type: ignore[arg-type]  # tests know what they give
            stack.push_async_callback(database.aclose)
            return database

        yield connect


@pytest.fixture
async def database(connect: Connect) -> SQLDatabase:
    return connect()


@pytest.fixture
async def store(database: SQLDatabase) -> AskedTokenStore:
    return AskedTokenStore(database)


@pytest.fixture
async def usage(database: SQLDatabase) -> SQLUsageStore:
    return SQLUsageStore(database)


async def rows(database: SQLDatabase, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await database.read(lambda transaction: transaction.run(sql))]


async def count(database: SQLDatabase, table: str) -> int:
    [[number]] = await rows(database, f"SELECT COUNT(*) FROM {table}")
    assert isinstance(number, int)
    return number


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Our own; SQLAlchemy 2.1.0 logs a connection that it terminates."""
    ours = [record for record in caplog.records if record.name == "maas_middleware"]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


async def test_restart_loses_nothing(connect: Connect, clock: FakeClock) -> None:
    before = connect()
    store, record = SQLTokenStore(before), api_key(clock, "a")
    await store.record(record)
    await store.record(api_key(clock, "b"))
    await store.mark_used({"a": 5})
    await store.revoke(ALICE, "b")
    await store.revoke_all(BOB)
    await SQLUsageStore(before).add("batch", [RECORD])
    await before.aclose()

    after = connect()
    usage, store = SQLUsageStore(after), SQLTokenStore(after)
    await usage.add("batch", [RECORD])

    assert await store.find(ALICE, "a") == replace(record, last_used_at=5)
    assert await everything(store) == Snapshot(2, {BOB: 1}, {"b": int(clock()) + LIFETIME})
    assert await of_day(usage) == [RECORD]


async def test_database_is_usable_after_it_was_closed(store: AskedTokenStore, database: SQLDatabase) -> None:
    await store.revoke_all(ALICE)

    await database.aclose()

    assert await store.generation(ALICE) == 1


async def test_two_instances_see_what_the_other_does(connect: Connect, clock: FakeClock) -> None:
    one, other = (AskedTokenStore(connect()) for _ in range(2))
    assert await everything(other) == Snapshot(0, {}, {})

    await minted(one, clock, "a")
    assert await other.revoke(ALICE, "a")
    await other.revoke_all(ALICE)

    assert await one.generation(ALICE) == 1
    assert list(await one.changes(0)) == [
        TokenRevoked(1, "a", int(clock()) + LIFETIME),
        GenerationRaised(2, ALICE, 1),
    ]
    assert list(await one.changes(1)) == [GenerationRaised(2, ALICE, 1)]
    assert list(await one.changes(2)) == []


async def test_snapshot_has_what_is_revoked_and_has_not_expired(store: AskedTokenStore, clock: FakeClock) -> None:
    for token_id in "ab":
        await store.record(TokenRecord(claims(clock, token_id, lifetime=60 if token_id == "a" else 61)))
        await store.revoke(ALICE, token_id)
    await minted(store, clock, "c")

    clock.advance(60)

    assert await everything(store) == Snapshot(2, {}, {"b": int(clock()) + 1})


async def test_snapshot_has_the_revocations_that_were_committed_and_their_sequence(
    connect: Connect, clock: FakeClock
) -> None:
    store, other = SQLTokenStore(connect()), SQLTokenStore(connect())
    going_on = True

    async def revoke() -> None:
        number = 0
        while going_on:
            number += 1
            await other.revoke_all(f"openshift/{number}")

    async with anyio.create_task_group() as group:
        group.start_soon(revoke)
        for _ in range(30):
            snapshot = await everything(store)
            assert len(snapshot.generations) >= snapshot.sequence
        going_on = False


async def test_token_that_is_revoked_twice_is_one_change(store: AskedTokenStore, clock: FakeClock) -> None:
    await minted(store, clock, "a")

    for _ in range(3):
        await store.revoke(ALICE, "a")

    assert len(await store.changes(0)) == 1


async def test_changes_are_given_a_thousand_at_once(store: AskedTokenStore, database: SQLDatabase) -> None:
    sql = "INSERT INTO maas_changes (made_at, owner_name, generation) VALUES (0, :owner, 1)"
    owners = [{"owner": f"openshift/{number:04}"} for number in range(CHANGES_AT_ONCE + 5)]
    await database.write(lambda transaction: transaction.run_each(sql, owners))

    first = await store.changes(0)
    rest = await store.changes(first[-1].sequence)

    assert (len(first), len(rest)) == (CHANGES_AT_ONCE, 5)
    assert [change.owner for change in [*first, *rest] if isinstance(change, GenerationRaised)] == [
        row["owner"] for row in owners
    ]


@pytest.mark.parametrize("by", ["id", "generation"])
async def test_change_of_an_older_transaction_that_is_still_open_is_not_skipped(
    connect: Connect, clock: FakeClock, by: str
) -> None:
    older, store = connect(timeout=20), AskedTokenStore(connect(timeout=20))
    newer = await minted(store, clock, "newer", BOB)
    drawn, commit, committed = anyio.Event(), anyio.Event(), anyio.Event()

    async def revoke_slowly(transaction: Transaction) -> None:
        await transaction.lock("changes")
        await transaction.run("INSERT INTO maas_changes (made_at, owner_name, generation) VALUES (0, :o, 1)", o=ALICE)
        drawn.set()
        await commit.wait()

    async def revoke_quickly() -> None:
        await (store.revoke(BOB, "newer") if by == "id" else store.revoke_all(BOB))
        committed.set()

    known = KnownRevocations()
    async with anyio.create_task_group() as group:
        group.start_soon(older.write, revoke_slowly)
        await drawn.wait()
        group.start_soon(revoke_quickly)
        with anyio.move_on_after(0.3):  # what is not serialised has been committed by now
            await committed.wait()
        known.follow(await store.changes(known.sequence))
        assert known.sequence == 0
        commit.set()

    known.follow(await store.changes(known.sequence))
    assert known.covers(claims(clock, "a"))
    assert known.covers(newer)


async def test_transaction_that_fails_leaves_nothing(connect: Connect, clock: FakeClock) -> None:
    database = connect()
    store = SQLTokenStore(database)
    record = api_key(clock, "a")

    async def half(transaction: Transaction) -> None:
        await transaction.lock("changes")
        await transaction.run("INSERT INTO maas_changes (made_at, owner_name, generation) VALUES (0, 'x', 1)")
        await transaction.run("INSERT INTO nowhere (x) VALUES (1)")

    with pytest.raises(StoreUnavailable):
        await database.write(half)

    assert await everything(store) == Snapshot(0, {}, {})
    assert await store.record(record)


async def test_token_whose_id_is_taken_is_refused_and_the_other_stays(store: AskedTokenStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a")

    with pytest.raises(StoreUnavailable):
        await minted(store, clock, "a", BOB)

    assert await store.find(ALICE, "a") == TokenRecord(token)


async def test_call_that_is_cancelled_is_done_first(database: SQLDatabase, store: AskedTokenStore) -> None:
    with anyio.CancelScope() as scope:

        async def work(transaction: Transaction) -> None:
            scope.cancel()
            await transaction.run("INSERT INTO maas_owners (owner, name, generation) VALUES ('x', 'x', 5)")

        await database.write(work)
        await store.revoke_all("x")

    assert scope.cancelled_caught
    assert await store.generation("x") == 5


async def test_task_that_is_torn_out_of_its_work_leaves_no_half_transaction(connect: Connect) -> None:
    database = connect()
    store = SQLTokenStore(database)
    working = anyio.Event()

    async def work(transaction: Transaction) -> None:
        await transaction.lock("changes")
        await transaction.run("INSERT INTO maas_changes (made_at, owner_name, generation) VALUES (0, 'x', 1)")
        working.set()
        await anyio.sleep_forever()

    for _ in range(6):  # more than there are connections
        task = asyncio.ensure_future(database.write(work))
        await working.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        working = anyio.Event()

    assert await everything(store) == Snapshot(0, {}, {})
    assert await store.revoke_all(ALICE) == 1


async def test_work_that_takes_too_long_is_undone(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    database = connect(timeout=0.5)
    store = SQLTokenStore(database)
    await store.generation(ALICE)

    async def work(transaction: Transaction) -> None:
        await transaction.run("INSERT INTO maas_changes (made_at, owner_name, generation) VALUES (0, 'x', 1)")
        await anyio.sleep_forever()

    began_at = time.monotonic()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await database.write(work)

    assert time.monotonic() - began_at < 2
    assert await everything(store) == Snapshot(0, {}, {})
    assert warnings(caplog) == ["the database fails: TimeoutError"]  # what can be read need not be writable
    await store.revoke_all(ALICE)
    assert warnings(caplog) == ["the database fails: TimeoutError", "the database answers again"]


async def test_more_callers_than_connections_are_all_served(connect: Connect, clock: FakeClock) -> None:
    store = SQLTokenStore(connect())

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(store.record, api_key(clock, f"{number:02}"))
            group.start_soon(everything, store)

    assert len(await store.list(ALICE)) == 40


async def test_readers_do_not_wait_for_those_who_write(connect: Connect) -> None:
    database = connect(timeout=2.0)
    store = SQLTokenStore(database)
    await store.generation(ALICE)

    async def write() -> None:
        with pytest.raises(StoreUnavailable):
            await database.write(lambda transaction: anyio.sleep_forever())

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(write)
        await anyio.wait_all_tasks_blocked()
        began_at = time.monotonic()
        await everything(store)
        assert time.monotonic() - began_at < 1


async def test_what_is_old_is_forgotten_with_a_write(connect: Connect, clock: FakeClock) -> None:
    database = connect()
    store, usage = AskedTokenStore(database), SQLUsageStore(database)
    await minted(store, clock, "a")
    await store.record(api_key(clock, "b"))
    for token_id in "ab":
        await store.revoke(ALICE, token_id)
    await usage.add("batch", [RECORD])

    clock.advance(LIFETIME + FORGOTTEN_AFTER_SECONDS)
    await usage.add("in time", [RECORD])
    assert (await count(database, "maas_tokens"), await count(database, "maas_changes")) == (2, 1)
    assert await count(database, "maas_usage_batches") == 1

    clock.advance(60)
    await store.mark_used({})
    assert await rows(database, "SELECT id FROM maas_tokens") == [("b",)]
    assert (await everything(store)).sequence == 2  # is told for ever, so that no lower one follows

    clock.advance(30 * 86_400)
    await usage.add("another", [RECORD])
    assert await count(database, "maas_tokens") == 0
    assert await of_day(usage) == [replace(RECORD, requests=3, input_tokens=60, output_tokens=900)]


async def test_nothing_is_forgotten_before_its_time(connect: Connect, clock: FakeClock) -> None:
    database = connect()
    store, usage = AskedTokenStore(database), SQLUsageStore(database)
    await minted(store, clock, "a")
    for owner in (ALICE, BOB):
        await store.revoke_all(owner)
    await usage.add("batch", [RECORD])

    clock.advance(FORGOTTEN_AFTER_SECONDS)
    await store.mark_used({})

    assert [await count(database, f"maas_{table}") for table in ("tokens", "changes", "usage_batches")] == [1, 2, 1]


async def test_forgetting_is_tried_once_a_minute(connect: Connect, clock: FakeClock) -> None:
    database = connect()
    usage = SQLUsageStore(database)
    await usage.add("a", [])
    clock.advance(FORGOTTEN_AFTER_SECONDS + 1)
    await usage.add("b", [])
    assert await rows(database, "SELECT id FROM maas_usage_batches") == [("b",)]
    await database.write(
        lambda transaction: transaction.run("INSERT INTO maas_usage_batches (id, added_at) VALUES ('old', 0)")
    )

    clock.advance(59)
    await usage.add("c", [])
    assert await count(database, "maas_usage_batches") == 3

    clock.advance(1)
    await usage.add("d", [])
    assert await rows(database, "SELECT id FROM maas_usage_batches ORDER BY id") == [("b",), ("c",), ("d",)]


async def test_little_is_forgotten_at_once_and_the_rest_with_the_next_write(connect: Connect, clock: FakeClock) -> None:
    database = connect()
    usage = SQLUsageStore(database)
    old = [{"id": f"{number}"} for number in range(1003)]
    sql = "INSERT INTO maas_usage_batches (id, added_at) VALUES (:id, 0)"
    await database.write(lambda transaction: transaction.run_each(sql, old))

    clock.advance(60)
    await usage.add("a", [])

    assert await count(database, "maas_usage_batches") == 4

    await usage.add("b", [])

    assert await count(database, "maas_usage_batches") == 2


async def test_write_succeeds_where_forgetting_fails(
    connect: Connect, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    database = connect()
    store = SQLTokenStore(database)
    await store.record(api_key(clock, "a"))
    await database.write(lambda transaction: transaction.run("DROP TABLE maas_usage_batches"))

    clock.advance(60)

    assert await store.record(api_key(clock, "b"))
    assert ids(await store.list(ALICE)) == "ba"
    assert warnings(caplog) == []


async def test_counts_stay_at_the_largest_number(usage: SQLUsageStore) -> None:
    largest = (1 << 63) - 1
    for batch in ("one", "two"):
        await usage.add(batch, [replace(RECORD, requests=1 << 70, input_tokens=largest, output_tokens=largest - 600)])
    await usage.add("three", [replace(RECORD, requests=0, input_tokens=0, output_tokens=1)])

    assert await of_day(usage) == [replace(RECORD, requests=largest, input_tokens=largest, output_tokens=largest)]


async def test_sums_are_exact_up_to_the_largest_number(usage: SQLUsageStore) -> None:
    largest = (1 << 63) - 1
    await usage.add("one", [replace(RECORD, output_tokens=largest - 600)])
    await usage.add("two", [replace(RECORD, output_tokens=600)])

    assert [record.output_tokens for record in await of_day(usage)] == [largest]


async def test_snapshot_is_whole_though_it_is_read_in_pages(connect: Connect, clock: FakeClock) -> None:
    database = connect()
    store = SQLTokenStore(database)
    for number in range(5):
        record = api_key(clock, f"key {number}")
        await store.record(record)
        await store.revoke(record.claims.owner, record.claims.id)
        await store.revoke_all(f"openshift/user {number}")
    whole = await everything(store)

    for size in (1, 2, 5):
        assert await everything(SQLTokenStore(database, page=size)) == whole

    assert len(whole.revoked) == len(whole.generations) == 5
    assert whole.sequence == 10


async def test_tables_are_made_once_whoever_comes_first(connect: Connect) -> None:
    databases = [connect() for _ in range(8)]

    async with anyio.create_task_group() as group:
        for database in databases:
            group.start_soon(SQLTokenStore(database).revoke_all, ALICE)

    assert await SQLTokenStore(databases[0]).generation(ALICE) == 8
    assert await rows(databases[0], "SELECT version FROM maas_schema") == [(len(STEPS),)]


async def test_older_tables_are_brought_up_to_date(connect: Connect, clock: FakeClock) -> None:
    await SQLTokenStore(connect()).record(api_key(clock, "a"))
    steps = [
        *STEPS,
        ["ALTER TABLE maas_tokens ADD COLUMN colour {text}", "UPDATE maas_tokens SET colour = 'red'"],
        ["ALTER TABLE maas_tokens ADD COLUMN shape {text}"],
    ]

    newer = connect(steps=steps)
    store = SQLTokenStore(newer)

    assert ids(await store.list(ALICE)) == "a"
    assert await rows(newer, "SELECT colour, shape FROM maas_tokens") == [("red", None)]
    assert await rows(newer, "SELECT version FROM maas_schema") == [(len(STEPS) + 2,)]


async def test_step_that_fails_leaves_the_tables_as_they_were(connect: Connect, clock: FakeClock) -> None:
    database = connect()
    store = SQLTokenStore(database)
    await store.record(api_key(clock, "a"))

    with pytest.raises(StoreUnavailable):
        await SQLTokenStore(connect(steps=[*STEPS, ["DROP TABLE maas_usage", "NONSENSE"]])).generation(ALICE)

    assert await count(database, "maas_usage") == 0
    assert await rows(database, "SELECT version FROM maas_schema") == [(len(STEPS),)]


async def test_tables_of_a_newer_version_are_refused(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    await SQLTokenStore(connect(steps=[*STEPS, []], usable_from=len(STEPS) + 1)).revoke_all(ALICE)
    store = SQLTokenStore(connect())

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.generation(ALICE)

    assert warnings(caplog) == ["the database fails: its tables need a newer maas-middleware"]


async def test_tables_are_used_by_older_replicas_that_can_live_with_them(connect: Connect, clock: FakeClock) -> None:
    older = SQLTokenStore(connect())
    await older.revoke_all(ALICE)
    changed = ["ALTER TABLE maas_changes ADD COLUMN colour {text}", "ALTER TABLE maas_tokens ADD COLUMN colour {text}"]
    newer = connect(steps=[*STEPS, changed])
    await SQLTokenStore(newer).revoke_all(ALICE)
    started_later = SQLTokenStore(connect())

    for store in (older, started_later):
        assert len(list(await store.changes(0))) == 2
        assert await store.generation(ALICE) == 2
        assert await store.record(api_key(clock, f"by {id(store)}"))
    assert await rows(newer, "SELECT version FROM maas_schema") == [(len(STEPS) + 1,)]


async def test_tables_that_were_dropped_are_made_again(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    database = connect()
    store = SQLTokenStore(database)
    await store.revoke_all(ALICE)
    await database.write(lambda transaction: transaction.run("DROP TABLE maas_schema"))
    for table in ("tokens", "owners", "changes", "usage", "usage_batches"):
        sql = f"DROP TABLE maas_{table}"
        await database.write(lambda transaction, sql=sql: transaction.run(sql))  # type: ignore[misc]

    with pytest.raises(StoreUnavailable):
        await store.generation(ALICE)

    assert await store.generation(ALICE) == 0


async def test_processes_that_mint_at_once_never_exceed_the_maximum(url: str, connect: Connect) -> None:
    with working(url, PROCESSES) as workers:
        for number, worker in enumerate(workers):
            worker.tell("mint", ALICE, [f"{number} {token}" for token in range(20)], 7)
        taken = [token for worker in workers for token in worker.answer()]

    assert len(taken) == 7
    assert sorted(record.claims.id for record in await SQLTokenStore(connect()).list(ALICE)) == sorted(taken)


async def test_processes_that_revoke_at_once_number_their_changes_in_order(
    url: str, connect: Connect, clock: FakeClock
) -> None:
    store = SQLTokenStore(connect())
    with working(url, PROCESSES) as workers:
        for worker in workers:
            worker.tell("revoke_all", ALICE, 20)
        known, seen = KnownRevocations(), list[Change]()
        while len(seen) < 20 * PROCESSES:
            changes = await store.changes(known.sequence)
            known.follow(changes)
            seen += changes
        generations = [generation for worker in workers for generation in worker.answer()]

    assert sorted(generations) == list(range(1, 20 * PROCESSES + 1))
    assert [change.generation for change in seen if isinstance(change, GenerationRaised)] == sorted(generations)


async def test_processes_that_write_the_same_rows_do_not_stand_in_each_others_way(url: str, connect: Connect) -> None:
    owners, tokens = [f"openshift/{number}" for number in range(20)], [f"{number}" for number in range(20)]
    with working(url, PROCESSES) as workers:
        assert workers[0].ask("mint", ALICE, tokens, None) is not None
        for number, worker in enumerate(workers):
            worker.tell("use", owners[:: -1 if number % 2 else 1], [f"{number} {batch}" for batch in range(15)])
            worker.tell("mark", tokens[:: -1 if number % 2 else 1], [number, 100 - number, 50])
            worker.tell("revoke", ALICE, tokens[number::PROCESSES])
        for worker in workers:
            assert [worker.answer() for _ in range(3)] == [None, None, None]

    database = connect()
    store, usage = SQLTokenStore(database), SQLUsageStore(database)
    batches = 15 * PROCESSES
    for owner in owners:
        assert await of_day(usage, owner, WORKING_DAY) == [
            UsageRecord(owner, WORKING_DAY, "model", batches, 2 * batches, 3 * batches)
        ]
    assert {record.last_used_at for record in await store.list(ALICE)} == {100}
    assert (await everything(store)).revoked == dict.fromkeys(tokens, END)


async def test_batch_that_two_processes_add_counts_once(url: str, connect: Connect) -> None:
    with working(url, PROCESSES) as workers:
        for worker in workers:
            worker.tell("use", [ALICE], [f"{batch}" for batch in range(10)])
        for worker in workers:
            worker.answer()

    assert [record.requests for record in await of_day(SQLUsageStore(connect()), ALICE, WORKING_DAY)] == [10]


async def test_killed_process_loses_nothing_of_what_it_told(url: str, connect: Connect) -> None:
    with working(url) as [worker]:
        worker.tell("mint_for_ever", ALICE)
        told = [worker.answer() for _ in range(30)]
        worker.process.kill()

    kept = {record.claims.id for record in await SQLTokenStore(connect()).list(ALICE, limit=1000)}
    assert kept >= set(told)
    assert len(kept) <= len(told) + 1000


async def test_killed_process_leaves_no_lock(url: str, connect: Connect) -> None:
    store = SQLTokenStore(connect())
    with working(url) as [worker]:
        worker.tell("hold", 60)
        assert worker.answer() == "held"
        worker.process.kill()

        assert await store.revoke_all(ALICE) == 1


async def test_usage_of_many_days_is_told(usage: SQLUsageStore) -> None:
    days = [date.fromordinal(DAY.toordinal() + number) for number in range(200)]
    await usage.add("batch", [replace(RECORD, day=day) for day in reversed(days)])

    assert [record.day for record in await usage.usage(ALICE, days[3], days[150])] == days[3:151]
