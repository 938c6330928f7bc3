from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from maas_middleware.errors import StoreUnavailable
from maas_middleware.revocations import CHANGES_AT_ONCE, Change, GenerationRaised, Snapshot, TokenRevoked
from maas_middleware.stores.followed import FollowedTokenStore
from maas_middleware.stores.memory import MemoryTokenStore
from maas_middleware.stores.sql import SQLDatabase, SQLTokenStore
from maas_middleware.testing.clock import FakeClock
from maas_middleware.token_store import TokenRecord
from maas_middleware.tokens import Claims

from .postgres_server import running_postgres

ALICE = "openshift/alice"
BOB = "openshift/bob"
LIFETIME = 86_400
HOUR = 3600.0


class SharedStore(MemoryTokenStore):
    """A store that several replicas share, within this process. It can fail, and let a look wait for its answer.

    Attributes:
        looks: at what it was looked, in order.
        error: what a look raises.
        gate: a look has read what it answers, and answers when the gate is open.
    """

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.looks: list[str] = []
        self.error: Exception | None = None
        self.gate = anyio.Event()
        self.gate.set()
        self._log: list[Change] = []
        self._sequence = 0
        self._expiries: dict[str, int] = {}
        self._raised: dict[str, int] = {}

    async def mint(self, token_id: str, owner: str = ALICE) -> Claims:
        now = int(self._clock())
        claims = Claims(token_id, owner, await self.generation(owner), now, now + LIFETIME)
        await self.record(TokenRecord(claims))
        return claims

    async def revoke(self, owner: str, token_id: str, /) -> TokenRecord | None:
        record = await super().revoke(owner, token_id)
        if record is not None:
            self._expiries[token_id] = record.claims.expires_at
            self._log.append(TokenRevoked(self._next(), token_id, record.claims.expires_at))
        return record

    async def revoke_all(self, owner: str, /) -> int:
        generation = self._raised[owner] = await super().revoke_all(owner)
        self._log.append(GenerationRaised(self._next(), owner, generation))
        return generation

    def forget_changes(self) -> None:
        self._log.clear()

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    async def snapshot(self) -> Snapshot:
        answer = Snapshot(self._sequence, dict(self._raised), dict(self._expiries))
        await self._looked("snapshot")
        return answer

    async def changes(self, after: int, /) -> Iterable[Change]:
        answer = [change for change in self._log if change.sequence > after][:CHANGES_AT_ONCE]
        await self._looked(f"changes after {after}")
        return iter(answer)

    async def _looked(self, at: str) -> None:
        self.looks.append(at)
        await checkpoint()
        await self.gate.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def wall_clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(wall_clock: FakeClock) -> SharedStore:
    return SharedStore(wall_clock)


@pytest.fixture
def followed(store: SharedStore, clock: FakeClock, wall_clock: FakeClock) -> FollowedTokenStore:
    return following(store, clock, wall_clock)


def following(store: SharedStore, clock: FakeClock, wall_clock: FakeClock, **options: Any) -> FollowedTokenStore:
    return FollowedTokenStore(store, **{"timeout": 25.0, "clock": clock, "wall_clock": wall_clock, **options})


@asynccontextmanager
async def running(followed: FollowedTokenStore) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(followed.run)
        yield
        group.cancel_scope.cancel()


class Question:
    """Whether a token is revoked, asked in a task of its own."""

    def __init__(self, followed: FollowedTokenStore, claims: Claims) -> None:
        self._followed = followed
        self._claims = claims
        self.scope = anyio.CancelScope()
        self.answer: bool | None = None

    async def ask(self) -> None:
        with self.scope:
            self.answer = await self._followed.is_revoked(self._claims)


@asynccontextmanager
async def asking(followed: FollowedTokenStore, claims: Claims, count: int = 1) -> AsyncIterator[list[Question]]:
    """Ask so many times at once, and then go on with the block; all are answered after it."""
    questions = [Question(followed, claims) for _ in range(count)]
    async with anyio.create_task_group() as group:
        for question in questions:
            group.start_soon(question.ask)
        await anyio.wait_all_tasks_blocked()
        yield questions


@contextmanager
def closed(store: SharedStore) -> Iterator[None]:
    """Let looks wait for their answers until the end of the block."""
    store.gate = anyio.Event()
    try:
        yield
    finally:
        store.gate.set()


async def until_looked(store: SharedStore, times: int) -> None:
    """Wait for so many more looks."""
    wanted = len(store.looks) + times
    while len(store.looks) < wanted:
        await checkpoint()


async def test_the_first_request_loads_everything_that_is_revoked(
    store: SharedStore, followed: FollowedTokenStore
) -> None:
    revoked, valid, old = await store.mint("a"), await store.mint("b"), await store.mint("c", BOB)
    await store.revoke(ALICE, "a")
    await store.revoke_all(BOB)

    answers = [await followed.is_revoked(claims) for claims in (revoked, valid, old)]

    assert answers == [True, False, True]
    assert store.looks == ["snapshot"]


async def test_what_others_revoked_is_refused_after_the_interval(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token, other = await store.mint("a"), await store.mint("b", BOB)
    await followed.is_revoked(token)
    await store.revoke(ALICE, "a")
    await store.revoke_all(BOB)

    clock.advance(0.5)

    assert await followed.is_revoked(token)
    assert await followed.is_revoked(other)
    assert store.looks == ["snapshot", "changes after 0"]


async def test_within_the_interval_no_request_looks_at_the_store(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.is_revoked(token)

    clock.advance(0.49)
    for _ in range(10):
        await followed.is_revoked(token)

    assert len(store.looks) == 1


async def test_one_request_looks_and_the_others_do_not_wait_while_what_is_known_is_within_the_bound(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.is_revoked(token)

    clock.advance(1.0)
    with closed(store):
        async with asking(followed, token) as [leader]:
            answers = [await followed.is_revoked(token) for _ in range(10)]
            assert leader.answer is None
            store.gate.set()

    assert answers == [False] * 10
    assert leader.answer is False
    assert store.looks == ["snapshot", "changes after 0"]


@pytest.mark.parametrize("idle", [pytest.param(1.01, id="just over the bound"), pytest.param(HOUR, id="an hour")])
async def test_nobody_slips_through_after_idle_time(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, idle: float
) -> None:
    token = await store.mint("a")
    await followed.is_revoked(token)
    await store.revoke(ALICE, "a")

    clock.advance(idle)
    with closed(store):
        async with asking(followed, token, 20) as questions:
            assert {question.answer for question in questions} == {None}
            store.gate.set()

    assert [question.answer for question in questions] == [True] * 20
    assert len(store.looks) == 2


async def test_age_counts_from_the_beginning_of_a_look(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    with closed(store):
        async with asking(followed, token) as [leader]:
            await store.revoke(ALICE, "a")  # after what the look has read
            clock.advance(0.6)
            store.gate.set()

    assert leader.answer is False
    assert await followed.is_revoked(token)


async def test_an_answer_that_was_read_before_the_bound_is_not_enough_for_who_waited_for_it(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    with closed(store):
        async with asking(followed, token) as [leader]:
            await store.revoke(ALICE, "a")
            clock.advance(1.01)
            async with asking(followed, token, 5) as waiting:
                store.gate.set()

    assert leader.answer is False  # it asked before the token was revoked
    assert [question.answer for question in waiting] == [True] * 5
    assert len(store.looks) == 2


async def test_who_waited_is_content_with_an_answer_that_was_read_within_the_bound(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    with closed(store):
        async with asking(followed, token):
            clock.advance(0.4)
            async with asking(followed, token, 5) as waiting:
                store.gate.set()

    assert [question.answer for question in waiting] == [False] * 5
    assert len(store.looks) == 1


async def test_who_leads_is_content_with_its_own_look_however_long_it_took(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    with closed(store):
        async with asking(followed, token) as [leader]:
            clock.advance(10)
            store.gate.set()

    assert leader.answer is False
    assert len(store.looks) == 1


async def test_what_is_revoked_here_is_refused_at_once(store: SharedStore, followed: FollowedTokenStore) -> None:
    token, other, old = await store.mint("a"), await store.mint("b"), await store.mint("c", BOB)
    await followed.is_revoked(token)

    record = await followed.revoke(ALICE, "a")
    generation = await followed.revoke_all(BOB)

    assert record is not None
    assert record.is_revoked
    assert generation == await store.generation(BOB)
    assert [await followed.is_revoked(claims) for claims in (token, other, old)] == [True, False, True]
    assert len(store.looks) == 1


async def test_nobody_revokes_what_is_not_theirs(store: SharedStore, followed: FollowedTokenStore) -> None:
    token = await store.mint("a")

    assert await followed.revoke(BOB, "a") is None

    assert not await followed.is_revoked(token)


@pytest.mark.parametrize("look", ["snapshot", "changes"])
async def test_a_look_that_began_before_a_revocation_here_does_not_undo_it(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, look: str
) -> None:
    token, other = await store.mint("a"), await store.mint("b", BOB)
    if look == "changes":
        await followed.is_revoked(token)
        clock.advance(0.5)
    with closed(store):
        async with asking(followed, token):
            await followed.revoke(ALICE, "a")
            await followed.revoke_all(BOB)
            store.gate.set()

    assert store.looks[-1].startswith(look)
    assert await followed.is_revoked(token)
    assert await followed.is_revoked(other)


async def test_what_is_revoked_while_a_snapshot_is_read_comes_with_the_next_changes(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await store.revoke_all(BOB)
    with closed(store):
        async with asking(followed, token):
            await store.revoke(ALICE, "a")
            store.gate.set()

    clock.advance(0.5)

    assert await followed.is_revoked(token)
    assert store.looks == ["snapshot", "changes after 1"]


@pytest.mark.parametrize(
    ("count", "looks"),
    [
        pytest.param(CHANGES_AT_ONCE - 1, 1, id="less than a page"),
        pytest.param(CHANGES_AT_ONCE, 2, id="a page exactly"),
        pytest.param(2 * CHANGES_AT_ONCE + 1, 3, id="more than two pages"),
    ],
)
async def test_a_look_goes_on_until_all_changes_are_known(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, count: int, looks: int
) -> None:
    last = await store.mint("last")
    await followed.refresh()
    for _ in range(count - 1):
        await store.revoke_all(BOB)
    await store.revoke(ALICE, "last")

    clock.advance(0.5)

    assert await followed.is_revoked(last)
    assert len(store.looks) == 1 + looks


async def test_everything_is_read_again_each_minute(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    for _ in range(240):
        await followed.refresh()
        clock.advance(0.5)
        wall_clock.advance(0.5)

    assert store.looks == ["snapshot", *["changes after 0"] * 119] * 2


@pytest.mark.parametrize(
    ("seconds", "wall_seconds"),
    [pytest.param(60.0, 0.0, id="idle"), pytest.param(0.5, 60.0, id="suspended")],
)
async def test_after_a_minute_changes_are_not_relied_on(
    store: SharedStore,
    followed: FollowedTokenStore,
    clock: FakeClock,
    wall_clock: FakeClock,
    seconds: float,
    wall_seconds: float,
) -> None:
    """A monotonic clock stands still while a machine is suspended."""
    token = await store.mint("a")
    await followed.refresh()
    await store.revoke(ALICE, "a")
    store.forget_changes()

    clock.advance(seconds)
    wall_clock.advance(wall_seconds)

    assert await followed.is_revoked(token)


async def test_expired_revocations_are_forgotten_by_the_time_of_day(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.revoke(ALICE, "a")

    wall_clock.advance(LIFETIME - 1)
    await followed.refresh()
    assert await followed.is_revoked(token)

    clock.advance(HOUR)
    wall_clock.advance(1)
    assert not await followed.is_revoked(token)  # whoever asks has judged its expiry


async def test_a_leader_whose_client_leaves_looks_on_for_the_others(
    store: SharedStore, followed: FollowedTokenStore
) -> None:
    token = await store.mint("a")
    with closed(store):
        async with asking(followed, token) as [leader], asking(followed, token, 3) as others:
            leader.scope.cancel()
            await anyio.wait_all_tasks_blocked()
            store.gate.set()

    assert [question.answer for question in others] == [False] * 3
    assert len(store.looks) == 1


async def test_who_waits_can_leave(store: SharedStore, followed: FollowedTokenStore) -> None:
    token = await store.mint("a")
    with closed(store):
        async with asking(followed, token) as [leader], asking(followed, token) as [other]:
            other.scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert other.scope.cancelled_caught
            store.gate.set()

    assert (leader.answer, other.answer) == (False, None)


async def test_another_looks_where_the_task_of_the_leader_is_torn_down(
    store: SharedStore, followed: FollowedTokenStore
) -> None:
    """Task.cancel(), which some servers call, reaches through the shield of a cancel scope."""
    token = await store.mint("a")
    timeout = asyncio.timeout(None)

    async def lead() -> None:
        with pytest.raises(TimeoutError):
            async with timeout:
                await followed.is_revoked(token)

    with closed(store):
        async with anyio.create_task_group() as group:
            group.start_soon(lead)
            await until_looked(store, 1)
            async with asking(followed, token, 3) as others:
                timeout.reschedule(asyncio.get_running_loop().time())
                await until_looked(store, 1)
                store.gate.set()

    assert [question.answer for question in others] == [False] * 3
    assert len(store.looks) == 2
    assert not followed.degraded


async def test_nobody_waits_for_a_look_in_another_event_loop(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    looking, done = threading.Event(), threading.Event()
    read, answers = store.snapshot, list[bool]()

    async def snapshot() -> Snapshot:
        if not looking.is_set():
            looking.set()
            await anyio.to_thread.run_sync(done.wait)
        return await read()

    async def run_another_loop() -> None:
        answers.append(await anyio.to_thread.run_sync(lambda: asyncio.run(followed.is_revoked(token))))

    store.snapshot = snapshot  # type: ignore[method-assign] # slow at first
    async with anyio.create_task_group() as group:
        group.start_soon(run_another_loop)
        await anyio.to_thread.run_sync(looking.wait)
        clock.advance(0.4)
        answers.append(await followed.is_revoked(token))
        assert answers == [False]
        done.set()

    assert answers == [False, False]
    clock.advance(0.4)
    await followed.refresh()
    assert len(store.looks) == 2  # what was known last counts, whatever came last


URL = "postgresql://maas:secret@database.internal:5432/maas"


def failure() -> StoreUnavailable:
    error = StoreUnavailable()
    error.__cause__ = ConnectionRefusedError(f"cannot connect to {URL}")
    return error


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


FAILS = "the token store fails (ConnectionRefusedError): revocations are not followed"
REFUSES = "what is known of revocations is too old: requests with access tokens are refused"
CONTINUES = "what is known of revocations is too old: going on with it"
ANSWERS = "the token store answers again: revocations are followed"


async def test_within_the_grace_what_is_known_is_used(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    revoked, valid = await store.mint("a"), await store.mint("b")
    await followed.revoke(ALICE, "a")
    await followed.refresh()
    store.error = failure()

    clock.advance(30)

    assert [await followed.is_revoked(claims) for claims in (revoked, valid)] == [True, False]
    assert followed.degraded
    assert followed.usable


async def test_after_the_grace_requests_are_refused(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    store.error = failure()

    clock.advance(30.01)
    with pytest.raises(StoreUnavailable) as refusal:
        await followed.is_revoked(token)

    assert (refusal.value.status, refusal.value.headers) == (503, ((b"retry-after", b"2"),))
    assert followed.degraded
    assert not followed.usable


async def test_a_service_becomes_unusable_when_the_grace_ends_without_another_look(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    await followed.refresh()
    store.error = failure()

    clock.advance(29.9)
    await followed.refresh()
    assert followed.usable
    clock.advance(0.11)
    assert not followed.usable


async def test_after_the_grace_it_goes_on_where_it_is_told_to(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    followed = following(store, clock, wall_clock, on_failure="continue")
    revoked, valid = await store.mint("a"), await store.mint("b")
    await store.revoke(ALICE, "a")
    await followed.refresh()
    store.error = failure()

    clock.advance(HOUR)

    assert [await followed.is_revoked(claims) for claims in (revoked, valid)] == [True, False]
    assert followed.degraded
    assert followed.usable


@pytest.mark.parametrize("on_failure", ["refuse", "continue"])
async def test_without_any_knowledge_requests_are_refused(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock, caplog: pytest.LogCaptureFixture, on_failure: str
) -> None:
    followed = following(store, clock, wall_clock, on_failure=on_failure)
    token = await store.mint("a")
    store.error = failure()

    with pytest.raises(StoreUnavailable):
        await followed.is_revoked(token)

    assert not followed.usable
    assert lines(caplog) == [FAILS, REFUSES]

    store.error = None
    clock.advance(0.5)
    assert not await followed.is_revoked(token)
    assert followed.usable


async def test_what_is_known_within_the_bound_is_used_without_any_grace(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    followed = following(store, clock, wall_clock, grace=0)
    token = await store.mint("a")
    await followed.refresh()
    store.error = failure()

    clock.advance(1.0)
    assert not await followed.is_revoked(token)
    clock.advance(0.5)
    with pytest.raises(StoreUnavailable):
        await followed.is_revoked(token)


async def test_it_is_usable_and_not_degraded_until_a_look_fails(followed: FollowedTokenStore, clock: FakeClock) -> None:
    assert (followed.usable, followed.degraded) == (True, False)

    await followed.refresh()
    clock.advance(HOUR)

    assert (followed.usable, followed.degraded) == (True, False)


async def test_a_look_that_failed_is_not_repeated_within_the_interval(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    store.error = failure()

    clock.advance(5)
    for _ in range(10):
        await followed.is_revoked(token)
    clock.advance(0.49)
    await followed.is_revoked(token)
    assert len(store.looks) == 2

    clock.advance(0.01)
    await followed.is_revoked(token)
    assert len(store.looks) == 3


async def test_the_interval_counts_from_the_end_of_a_look_that_failed(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    store.error = failure()
    clock.advance(5)
    with closed(store):
        async with asking(followed, token):
            clock.advance(2)
            store.gate.set()

    clock.advance(0.49)
    await followed.is_revoked(token)

    assert len(store.looks) == 2


async def test_who_waits_for_a_look_that_fails_does_not_look_as_well(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    store.error = failure()
    clock.advance(5)
    with closed(store):
        async with asking(followed, token, 20) as questions:
            assert {question.answer for question in questions} == {None}
            clock.advance(1)
            store.gate.set()

    assert [question.answer for question in questions] == [False] * 20
    assert len(store.looks) == 2


@pytest.mark.parametrize("pause", [0.5, 1.49])
async def test_nobody_but_who_looks_waits_while_the_store_is_known_to_fail(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, pause: float
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    store.error = failure()
    clock.advance(5)
    await followed.refresh()

    clock.advance(pause)
    with closed(store):
        async with asking(followed, token) as [leader]:
            answers = [await followed.is_revoked(token) for _ in range(10)]
            assert leader.answer is None
            clock.advance(30)
            with pytest.raises(StoreUnavailable):
                await followed.is_revoked(token)
            leader.scope.cancel()
            store.error = None
            store.gate.set()

    assert answers == [False] * 10


@pytest.mark.parametrize("on_failure", ["refuse", "continue"])
async def test_nobody_slips_through_where_the_failure_is_long_past(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock, on_failure: str
) -> None:
    followed = following(store, clock, wall_clock, on_failure=on_failure)
    token = await store.mint("a")
    await followed.refresh()
    store.error = failure()
    clock.advance(5)
    await followed.refresh()
    await store.revoke(ALICE, "a")
    store.error = None

    clock.advance(1.5)
    with closed(store):
        async with asking(followed, token, 5) as questions:
            store.gate.set()

    assert [question.answer for question in questions] == [True] * 5


@pytest.mark.parametrize("knows", [True, False])
async def test_a_look_that_hangs_is_broken_off(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock, caplog: pytest.LogCaptureFixture, knows: bool
) -> None:
    followed = following(store, clock, wall_clock, timeout=0.01)
    token = await store.mint("a")
    if knows:
        await followed.refresh()
    clock.advance(5)
    with closed(store), anyio.fail_after(5):
        if knows:
            assert not await followed.is_revoked(token)
        else:
            with pytest.raises(StoreUnavailable):
                await followed.is_revoked(token)

    assert followed.degraded
    assert lines(caplog)[0] == "the token store fails (TimeoutError): revocations are not followed"
    assert caplog.records[0].exc_info is None


async def test_a_time_out_is_told_as_such_however_it_came_about(
    store: SharedStore, followed: FollowedTokenStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.error, timeout = StoreUnavailable(), TimeoutError()
    store.error.__cause__, timeout.__cause__ = timeout, asyncio.CancelledError()

    await followed.refresh()

    assert lines(caplog)[0] == "the token store fails (TimeoutError): revocations are not followed"


async def test_an_outage_is_told_in_three_lines_without_stack_or_address(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    await followed.refresh()
    store.error = failure()
    for _ in range(62):
        clock.advance(0.5)
        await followed.refresh()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", FAILS),
        ("ERROR", REFUSES),
    ]

    store.error = None
    for _ in range(3):
        clock.advance(0.5)
        await followed.refresh()

    assert lines(caplog) == [FAILS, REFUSES, ANSWERS]
    assert not followed.degraded
    assert {record.exc_info for record in caplog.records} == {None}


async def test_an_outage_within_the_grace_and_the_next_are_told_each(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    await followed.refresh()
    for _ in range(2):
        for store.error in (failure(), None):
            clock.advance(0.5)
            await followed.refresh()

    assert lines(caplog) == [FAILS, ANSWERS] * 2


async def test_going_on_after_the_grace_is_told(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    followed = following(store, clock, wall_clock, on_failure="continue")
    await followed.refresh()
    store.error = failure()

    clock.advance(31)
    await followed.refresh()

    assert lines(caplog) == [FAILS, CONTINUES]


async def test_after_an_outage_longer_than_the_log_of_changes_nothing_is_missed(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    await store.revoke(ALICE, "a")
    store.forget_changes()
    store.error = failure()
    for _ in range(100):
        clock.advance(60)
        await followed.refresh()

    store.error = None
    clock.advance(0.5)

    assert await followed.is_revoked(token)


@pytest.mark.parametrize("before", [pytest.param(None, id="at first"), pytest.param(failure(), id="in an outage")])
async def test_a_fault_of_the_store_is_told_once_and_with_its_stack(
    store: SharedStore,
    followed: FollowedTokenStore,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    before: Exception | None,
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    for store.error in (before, KeyError("sequence"), KeyError("sequence"), failure()):
        clock.advance(1.0)
        assert not await followed.is_revoked(token)

    told = [record.levelno >= logging.WARNING and record.exc_info is not None for record in caplog.records]
    assert told == ([True] if before is None else [False, True])
    assert lines(caplog)[-1] == "the token store fails (KeyError): revocations are not followed"
    assert followed.degraded


async def test_the_follower_looks_by_itself(store: SharedStore, clock: FakeClock, wall_clock: FakeClock) -> None:
    followed = following(store, clock, wall_clock, interval=0.001)
    token = await store.mint("a")
    async with running(followed):
        await until_looked(store, 1)
        await store.revoke(ALICE, "a")
        await until_looked(store, 2)
        assert await followed.is_revoked(token)
        assert store.looks[:2] == ["snapshot", "changes after 0"]


async def test_with_a_follower_no_request_looks_before_the_bound(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    followed = following(store, clock, wall_clock, interval=25.0, bound=30.0)
    token = await store.mint("a")
    async with running(followed):
        await anyio.wait_all_tasks_blocked()
        clock.advance(29.9)
        assert not await followed.is_revoked(token)
        assert len(store.looks) == 1

        clock.advance(0.1)
        await followed.is_revoked(token)
        assert len(store.looks) == 2

    clock.advance(25)
    await followed.is_revoked(token)
    assert len(store.looks) == 3


async def test_requests_look_while_the_follower_is_late(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    async with running(followed):
        await anyio.wait_all_tasks_blocked()
        await store.revoke(ALICE, "a")
        clock.advance(1.01)

        assert await followed.is_revoked(token)


async def test_the_look_of_the_follower_is_everybodys(store: SharedStore, followed: FollowedTokenStore) -> None:
    token = await store.mint("a")
    with closed(store):
        async with running(followed):
            await until_looked(store, 1)
            async with asking(followed, token, 3) as questions:
                assert {question.answer for question in questions} == {None}
                store.gate.set()
            assert len(store.looks) == 1

    assert [question.answer for question in questions] == [False] * 3


async def test_the_follower_does_not_look_while_a_request_does(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    followed = following(store, clock, wall_clock, interval=0.001)
    token = await store.mint("a")
    with closed(store):
        async with asking(followed, token), running(followed):
            for _ in range(3):
                await anyio.wait_all_tasks_blocked()
            assert len(store.looks) == 1
            store.gate.set()
            await until_looked(store, 1)


async def test_the_follower_ends_at_once_and_leaves_its_look_to_who_waits(
    store: SharedStore, followed: FollowedTokenStore
) -> None:
    token = await store.mint("a")
    scope = anyio.CancelScope()

    async def follow() -> None:
        with scope:
            await followed.run()

    with closed(store), anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await until_looked(store, 1)
            async with asking(followed, token, 3) as questions:
                scope.cancel()
                await until_looked(store, 1)
                assert scope.cancelled_caught
                store.gate.set()

    assert [question.answer for question in questions] == [False] * 3


@pytest.mark.parametrize(
    "error", [pytest.param(failure(), id="outage"), pytest.param(RuntimeError("a fault"), id="fault")]
)
async def test_the_follower_survives_and_recovers(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    followed = following(store, clock, wall_clock, interval=0.001)
    async with running(followed):
        await until_looked(store, 2)
        store.error = error
        await until_looked(store, 5)
        assert followed.degraded
        store.error = None
        await until_looked(store, 2)
        assert not followed.degraded

    assert len(caplog.records) == 2
    assert lines(caplog)[-1] == ANSWERS


async def test_the_follower_rests_for_the_interval_after_a_failure(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    followed = following(store, clock, wall_clock, interval=0.05, timeout=0.1)
    ends: list[float] = []
    begins: list[float] = []

    async def read() -> Snapshot:
        begins.append(anyio.current_time())
        try:
            await anyio.sleep_forever()
        finally:
            ends.append(anyio.current_time())
        raise AssertionError

    store.snapshot = read  # type: ignore[method-assign] # as a store that hangs
    async with running(followed):
        while len(begins) < 3:
            await checkpoint()

    assert min(begin - end for begin, end in zip(begins[1:], ends, strict=False)) >= 0.049


async def test_everything_else_is_the_stores(store: SharedStore, followed: FollowedTokenStore) -> None:
    token = await store.mint("a")
    key = TokenRecord(Claims("k", ALICE, 0, token.issued_at + 1, token.expires_at), "api_key", name="ci")

    assert await followed.record(key, maximum=1)
    assert not await followed.record(TokenRecord(Claims("l", ALICE, 0, 0, token.expires_at), "api_key"), maximum=1)
    await followed.mark_used({"k": 7})
    await followed.revoke_all(BOB)

    assert await followed.generation(BOB) == await store.generation(BOB) > await followed.generation(ALICE)
    found = await followed.find(ALICE, "k")
    assert found is not None
    assert (found.name, found.last_used_at) == ("ci", 7)
    assert [record.claims.id for record in await followed.list(ALICE)] == ["k", "a"]
    assert [record.claims.id for record in await followed.list(ALICE, kind="access_token")] == ["a"]
    assert [record.claims.id for record in await followed.list(ALICE, limit=1)] == ["k"]
    assert [record.claims.id for record in await followed.list(ALICE, after="k")] == ["a"]


@pytest.mark.parametrize("interval", [0, -1, 1.01, math.nan])
async def test_an_interval_has_to_keep_the_bound(store: SharedStore, interval: float) -> None:
    with pytest.raises(ValueError, match="the interval has to be more than 0, and not more than the bound"):
        FollowedTokenStore(store, interval=interval)


async def test_time_is_that_of_the_computer_unless_another_is_given(store: SharedStore) -> None:
    followed = FollowedTokenStore(store)
    token = await store.mint("a")
    await store.revoke(ALICE, "a")

    assert not await followed.is_revoked(token)  # by that time it has expired long ago, and is not kept
    assert store.looks == ["snapshot"]


async def test_a_database_that_freezes_is_done_without_and_followed_again_when_it_thaws() -> None:
    with running_postgres() as server:
        url = await server.new_database()
        here, elsewhere = (SQLDatabase(url, timeout=seconds) for seconds in (0.3, 10.0))
        store = SQLTokenStore(elsewhere)
        followed = FollowedTokenStore(SQLTokenStore(here), interval=0.05, timeout=1.0, grace=HOUR)
        now = int(time.time())
        revoked, valid = (Claims(token_id, ALICE, 0, now, now + 900) for token_id in "ab")
        for claims in (revoked, valid):
            await store.record(TokenRecord(claims))
        await followed.revoke(ALICE, "a")
        async with running(followed):
            assert not await followed.is_revoked(valid)
            server.freeze()
            while not followed.degraded:
                await anyio.wait_all_tasks_blocked()
            assert [await followed.is_revoked(claims) for claims in (revoked, valid)] == [True, False]
            server.thaw()
            await store.revoke(ALICE, "b")
            while not await followed.is_revoked(valid):
                await anyio.wait_all_tasks_blocked()
            assert not followed.degraded
        await here.aclose()
        await elsewhere.aclose()
