from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
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
        asked: what it was asked, in order.
        error, snapshot_error: what whoever asks for anything, or for a snapshot, gets.
        gate, snapshot_gate: what was asked is read, and answered when the gate is open.
        page: so many revoked ids are in one page of a snapshot.
        on_page: called before a page is answered.
    """

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.snapshot_error: Exception | None = None
        self.gate, self.snapshot_gate = anyio.Event(), anyio.Event()
        self.gate.set()
        self.snapshot_gate.set()
        self.page = 1000
        self.on_page: Callable[[], None] = lambda: None
        self._log: list[Change] = []
        self._sequence = 0
        self._expiries: dict[str, int] = {}
        self._raised: dict[str, int] = {}

    @property
    def looks(self) -> list[str]:
        """The questions after changes, with which every look ends."""
        return [question for question in self.asked if question.startswith("changes")]

    @property
    def pages(self) -> list[str]:
        """The questions after snapshots."""
        return [question for question in self.asked if question.startswith("snapshot")]

    async def mint(self, token_id: str, owner: str = ALICE) -> Claims:
        now = int(self._clock())
        claims = Claims(token_id, owner, await self.generation(owner), now, now + LIFETIME)
        await self.record(TokenRecord(claims))
        return claims

    async def mint_revoked(self, count: int) -> list[Claims]:
        tokens = [await self.mint(f"{number:03d}") for number in range(count)]
        for token in tokens:
            await self.revoke(ALICE, token.id)
        return tokens

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
        del self._log[:-1]

    def set_back(self, sequence: int) -> None:
        """Lose the changes after that one, as a server may whose last transactions had no time to be copied."""
        self._log = [change for change in self._log if change.sequence <= sequence]
        self._sequence = sequence
        ids = {change.token_id for change in self._log if isinstance(change, TokenRevoked)}
        self._expiries = {token_id: at for token_id, at in self._expiries.items() if token_id in ids}

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    async def snapshot(self, after: str | None = None, /) -> Snapshot:
        ids = sorted(token_id for token_id in self._expiries if after is None or token_id > after)
        following, ids = ids[self.page :], ids[: self.page]
        revoked = {token_id: self._expiries[token_id] for token_id in ids}
        answer = Snapshot(self._sequence, dict(self._raised), revoked, ids[-1] if following else None)
        await self._looked("snapshot" if after is None else f"snapshot after {after}")
        await self.snapshot_gate.wait()
        if self.snapshot_error is not None:
            raise self.snapshot_error
        self.on_page()
        return answer

    async def changes(self, after: int, /) -> Iterable[Change]:
        answer = [change for change in self._log if change.sequence > after][:CHANGES_AT_ONCE]
        await self._looked(f"changes after {after}")
        return iter(answer)

    async def _looked(self, at: str) -> None:
        self.asked.append(at)
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


async def until_asked(store: SharedStore, times: int) -> None:
    """Wait for so many more questions."""
    wanted = len(store.asked) + times
    while len(store.asked) < wanted:
        await checkpoint()


async def test_the_first_request_loads_everything_that_is_revoked(
    store: SharedStore, followed: FollowedTokenStore
) -> None:
    revoked, valid, old = await store.mint("a"), await store.mint("b"), await store.mint("c", BOB)
    await store.revoke(ALICE, "a")
    await store.revoke_all(BOB)

    answers = [await followed.is_revoked(claims) for claims in (revoked, valid, old)]

    assert answers == [True, False, True]
    assert store.asked == ["snapshot", "changes after 1"]


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
    assert store.asked == ["snapshot", "changes after 0", "changes after 0"]


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
    assert store.asked == ["snapshot", "changes after 0", "changes after 0"]


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
    await followed.refresh()
    clock.advance(5)
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
    await followed.refresh()
    clock.advance(5)
    with closed(store):
        async with asking(followed, token) as [leader]:
            await store.revoke(ALICE, "a")
            clock.advance(1.01)
            async with asking(followed, token, 5) as waiting:
                store.gate.set()

    assert leader.answer is False  # it asked before the token was revoked
    assert [question.answer for question in waiting] == [True] * 5
    assert len(store.looks) == 3


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
            assert store.asked[-1].startswith(look)
            store.gate.set()

    assert await followed.is_revoked(token)
    assert await followed.is_revoked(other)


@pytest.mark.parametrize("page", [1, 2])
async def test_what_is_revoked_while_pages_of_a_snapshot_are_read_is_known_with_them(
    store: SharedStore, followed: FollowedTokenStore, page: int
) -> None:
    token = await store.mint("0")  # which comes in a page that was read before
    await store.mint_revoked(2)
    store.page = page
    with closed(store):
        async with asking(followed, token) as [leader]:
            await store.revoke(ALICE, "0")
            store.gate.set()

    assert leader.answer is True
    assert store.asked == ["snapshot", *["snapshot after 000"] * (2 - page), "changes after 1"]


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

    assert store.asked == ["snapshot", *["changes after 0"] * 121, "snapshot", *["changes after 0"] * 119]


CLOCKS = pytest.mark.parametrize("by_wall_clock", [pytest.param(False, id="idle"), pytest.param(True, id="suspended")])


@CLOCKS
async def test_where_changes_may_have_been_forgotten_nobody_is_answered_before_everything_is_read(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, wall_clock: FakeClock, by_wall_clock: bool
) -> None:
    """A monotonic clock stands still while a machine is suspended."""
    token = await store.mint("a")
    await followed.refresh()
    await store.revoke(ALICE, "a")
    await store.revoke_all(BOB)
    store.forget_changes()

    (wall_clock if by_wall_clock else clock).advance(3000)
    with closed(store):
        async with asking(followed, token, 5) as questions:
            assert {question.answer for question in questions} == {None}
            store.gate.set()

    assert [question.answer for question in questions] == [True] * 5
    assert store.asked[2:] == ["snapshot", "changes after 1"]


async def test_the_load_before_is_good_enough_while_changes_are_kept(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    await store.revoke(ALICE, "a")

    clock.advance(2999)

    assert await followed.is_revoked(token)
    assert store.asked[2:] == ["changes after 0", "snapshot"]


@CLOCKS
async def test_what_was_known_before_a_pause_is_looked_at_again(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, wall_clock: FakeClock, by_wall_clock: bool
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    await store.revoke(ALICE, "a")

    (wall_clock if by_wall_clock else clock).advance(0.5)

    assert await followed.is_revoked(token)


@CLOCKS
async def test_the_grace_ends_in_a_pause_too(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, wall_clock: FakeClock, by_wall_clock: bool
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    store.error = failure()

    (wall_clock if by_wall_clock else clock).advance(31)

    with pytest.raises(StoreUnavailable):
        await followed.is_revoked(token)


async def load_a_page(store: SharedStore, followed: FollowedTokenStore) -> None:
    """Look for the first time, until the second of three pages takes longer than the look may."""
    store.page, store.snapshot_gate = 1, anyio.Event()
    store.on_page = lambda: setattr(store, "snapshot_gate", anyio.Event())
    async with anyio.create_task_group() as group:
        group.start_soon(followed.refresh)
        await until_asked(store, 1)
        store.snapshot_gate.set()
    store.on_page = lambda: None
    store.snapshot_gate.set()


async def test_a_first_load_that_takes_longer_than_a_look_may_refuses_and_is_gone_on_with(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    followed = following(store, clock, wall_clock, timeout=0.05)
    tokens, valid = await store.mint_revoked(3), await store.mint("valid")

    await load_a_page(store, followed)
    assert followed.degraded
    assert not followed.usable
    with pytest.raises(StoreUnavailable):
        await followed.is_revoked(tokens[0])
    assert store.asked == ["snapshot", "snapshot after 000"]

    clock.advance(0.5)
    assert [await followed.is_revoked(claims) for claims in tokens] == [True] * 3
    assert not await followed.is_revoked(valid)
    assert store.asked[2:] == ["snapshot after 000", "snapshot after 001", "changes after 2"]
    assert lines(caplog) == ["the token store fails (TimeoutError): revocations are not followed", REFUSES, ANSWERS]


async def test_what_is_revoked_between_two_parts_of_the_first_load_is_known(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    followed = following(store, clock, wall_clock, timeout=0.05)
    token = await store.mint("0")  # which comes in the page that was read before
    await store.mint_revoked(3)
    await load_a_page(store, followed)
    await store.revoke(ALICE, "0")

    clock.advance(2999)

    assert await followed.is_revoked(token)
    assert store.looks == ["changes after 2"]


@CLOCKS
async def test_a_first_load_that_was_left_for_long_begins_again(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock, by_wall_clock: bool
) -> None:
    followed = following(store, clock, wall_clock, timeout=0.05)
    token = await store.mint("0")
    await store.mint_revoked(3)
    await load_a_page(store, followed)
    await store.revoke(ALICE, "0")
    await store.revoke_all(BOB)
    store.forget_changes()

    clock.advance(0.5)
    (wall_clock if by_wall_clock else clock).advance(3000)

    assert await followed.is_revoked(token)
    assert store.asked[2] == "snapshot"


async def test_changes_that_take_longer_than_a_look_may_are_gone_on_with(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    followed = following(store, clock, wall_clock, timeout=0.05)
    await followed.refresh()
    for _ in range(CHANGES_AT_ONCE):
        await store.revoke_all(BOB)
    clock.advance(0.5)
    with closed(store):
        async with anyio.create_task_group() as group:
            group.start_soon(followed.refresh)
            await until_asked(store, 1)
            store.gate.set()
            await checkpoint()
            store.gate = anyio.Event()
    store.gate.set()
    assert followed.degraded

    clock.advance(0.5)
    await followed.refresh()

    assert not followed.degraded
    assert store.asked[-2:] == ["changes after 999"] * 2


@asynccontextmanager
async def reloading(store: SharedStore, followed: FollowedTokenStore, claims: Claims) -> AsyncIterator[Question]:
    """A request has looked, and reads a page of everything, which waits until the end of the block."""
    store.snapshot_gate = anyio.Event()
    async with asking(followed, claims) as [leader]:
        assert store.asked[-1].startswith("snapshot")
        yield leader
        store.snapshot_gate.set()


async def test_what_others_revoke_is_known_while_everything_is_read_again(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.refresh()

    clock.advance(60)
    async with reloading(store, followed, token):
        await store.revoke(ALICE, "a")
        clock.advance(0.5)
        assert await followed.is_revoked(token)
        assert not followed.degraded

    assert len(store.pages) == 2  # one at a time
    assert store.looks == ["changes after 0"] * 3


async def test_the_follower_looks_while_everything_is_read_again(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    followed = following(store, clock, wall_clock, interval=0.001)
    token = await store.mint("a")
    await followed.refresh()

    clock.advance(60)
    store.snapshot_gate = anyio.Event()
    async with running(followed):
        while len(store.pages) == 1:
            await checkpoint()
        await store.revoke(ALICE, "a")
        await until_asked(store, 2)
        assert await followed.is_revoked(token)

    assert len(store.pages) == 2
    assert not followed.degraded


async def test_what_is_revoked_here_while_everything_is_read_again_stays_so(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token, old = await store.mint("a"), await store.mint("b", BOB)
    await store.revoke_all(BOB)
    await followed.refresh()

    clock.advance(60)
    async with reloading(store, followed, token):
        await followed.revoke(ALICE, "a")
        await followed.revoke_all(BOB)

    assert await followed.is_revoked(token)
    assert await followed.is_revoked(old)


async def test_everything_is_read_again_for_a_tenth_of_the_time(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    followed = following(store, clock, wall_clock, interval=0.625)
    await store.mint_revoked(5)
    store.page = 1
    await followed.refresh()
    store.on_page = lambda: clock.advance(0.03125)
    asked = []

    clock.advance(60)
    for _ in range(4):
        store.asked.clear()
        await followed.refresh()
        asked.append(store.asked[1:])
        clock.advance(1.0)

    assert asked == [
        ["snapshot", "snapshot after 000"],
        ["snapshot after 001", "snapshot after 002"],
        ["snapshot after 003"],
        [],
    ]


async def test_reading_everything_again_is_not_begun_again_before_it_has_ended(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    await store.mint_revoked(3)
    store.page = 1
    await followed.refresh()
    store.on_page = lambda: clock.advance(61)

    clock.advance(60)
    for _ in range(3):
        await followed.refresh()

    assert store.pages[3:] == ["snapshot", "snapshot after 000", "snapshot after 001"]


async def test_a_leader_whose_client_leaves_reads_what_it_began_to(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    [token, _] = await store.mint_revoked(2)
    store.page = 1
    await followed.refresh()

    clock.advance(60)
    async with reloading(store, followed, token) as leader:
        leader.scope.cancel()
        await anyio.wait_all_tasks_blocked()

    assert store.pages[2:] == ["snapshot", "snapshot after 000"]


async def test_a_store_that_cannot_be_read_as_a_whole_is_followed_all_the_same(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    store.snapshot_error = failure()

    for _ in range(100):
        clock.advance(60)
        assert not await followed.is_revoked(token)
        assert not followed.degraded


async def test_what_was_loaded_is_not_loaded_again_where_only_the_changes_failed(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    store.on_page = lambda: setattr(store, "error", failure())
    await followed.refresh()
    assert followed.degraded
    store.error = None

    clock.advance(0.5)
    await followed.refresh()

    assert store.asked == ["snapshot", "changes after 0", "changes after 0"]


async def test_changes_are_followed_from_the_beginning_of_a_load(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    def fail() -> None:
        clock.advance(10)
        store.error = failure()

    store.on_page = fail
    await followed.refresh()
    store.error = None

    clock.advance(2990)
    await followed.refresh()

    assert store.asked[2] == "snapshot"


async def test_failing_to_read_everything_again_is_no_outage_and_is_told_once(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    [token] = await store.mint_revoked(1)
    await followed.refresh()
    store.snapshot_error = failure()
    for _ in range(2):
        clock.advance(60)
        for _ in range(3):
            assert await followed.is_revoked(token)
            assert followed.usable
            assert not followed.degraded
            clock.advance(0.5)
        store.snapshot_error = None
        await followed.refresh()
        store.snapshot_error = failure()

    assert lines(caplog) == [UNREAD] * 2
    assert store.asked[2:] == ["changes after 0", "snapshot"] * 8
    assert {record.exc_info for record in caplog.records} == {None}


async def test_a_page_that_hangs_is_broken_off_and_read_after_the_next_look(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    followed = following(store, clock, wall_clock, timeout=0.05)
    await store.mint_revoked(2)
    store.page = 1
    await followed.refresh()
    store.on_page = lambda: setattr(store, "snapshot_gate", anyio.Event())

    clock.advance(60)
    with anyio.fail_after(5):
        await followed.refresh()
    clock.advance(0.5)
    store.snapshot_gate.set()
    await followed.refresh()

    assert store.pages[2:] == ["snapshot", *["snapshot after 000"] * 2]
    assert lines(caplog) == ["revocations cannot be read again as a whole (TimeoutError): new ones are followed"]
    assert not followed.degraded


async def test_a_fault_in_reading_everything_again_is_told_with_its_stack(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    await followed.refresh()
    store.snapshot_error = KeyError("generation")

    clock.advance(60)
    await followed.refresh()

    [record] = caplog.records
    assert record.getMessage() == "revocations cannot be read again as a whole (KeyError): new ones are followed"
    assert record.exc_info is not None
    assert not followed.degraded


async def test_nothing_is_read_again_from_a_store_that_fails(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    await followed.refresh()
    store.error = failure()

    clock.advance(60)
    await followed.refresh()

    assert len(store.pages) == 1


async def test_reading_everything_again_goes_on_where_a_task_was_torn_down(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.refresh()
    clock.advance(60)
    timeout = asyncio.timeout(None)

    async def lead() -> None:
        with pytest.raises(TimeoutError):
            async with timeout:
                await followed.is_revoked(token)

    store.snapshot_gate = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await until_asked(store, 2)
        timeout.reschedule(asyncio.get_running_loop().time())
    store.snapshot_gate.set()
    clock.advance(0.5)
    await followed.refresh()

    assert len(store.pages) == 3


@pytest.mark.parametrize(
    ("sequence", "again"),
    [
        pytest.param(2, 1, id="to a lower sequence"),
        pytest.param(2, 2, id="to the same sequence"),
        pytest.param(2, 3, id="to a higher sequence"),
        pytest.param(0, 1, id="to nothing"),
    ],
)
async def test_what_is_revoked_after_a_store_was_set_back_is_known_with_the_next_look(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, sequence: int, again: int
) -> None:
    tokens = [await store.mint(token_id) for token_id in "abc"]
    before = await store.mint_revoked(3)
    await followed.refresh()
    store.set_back(sequence)
    for token in tokens[:again]:
        await store.revoke(ALICE, token.id)

    clock.advance(0.5)

    assert [await followed.is_revoked(token) for token in tokens] == [True] * again + [False] * (3 - again)
    assert [await followed.is_revoked(token) for token in before] == [True] * 3
    assert store.asked[-1] == "snapshot"


async def test_a_store_that_is_set_back_in_the_first_load_is_found_out(
    store: SharedStore, followed: FollowedTokenStore
) -> None:
    token = await store.mint("a")
    lost = await store.mint_revoked(3)
    with closed(store):
        async with asking(followed, token) as [leader]:
            store.set_back(1)
            await store.revoke(ALICE, "a")
            store.gate.set()

    assert leader.answer is True
    assert [await followed.is_revoked(claims) for claims in lost] == [True] * 3
    assert store.asked == ["snapshot", "changes after 2", "changes after 0", "snapshot"]


async def test_expired_revocations_are_forgotten_by_the_time_of_day(
    store: SharedStore, followed: FollowedTokenStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    token = await store.mint("a")
    await followed.revoke(ALICE, "a")
    await store.revoke_all(BOB)

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
            await until_asked(store, 1)
            async with asking(followed, token, 3) as others:
                timeout.reschedule(asyncio.get_running_loop().time())
                await until_asked(store, 1)
                store.gate.set()

    assert [question.answer for question in others] == [False] * 3
    assert store.asked == ["snapshot", "snapshot", "changes after 0"]
    assert not followed.degraded


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(1, id="in the first load"),
        pytest.param(2, id="in the first look"),
        pytest.param(4, id="when everything is read again"),
    ],
)
def test_what_an_event_loop_left_behind_is_in_nobodys_way(wall_clock: FakeClock, clock: FakeClock, asked: int) -> None:
    store = SharedStore(wall_clock)
    followed = following(store, clock, wall_clock)
    left = LeftBehind(followed)
    left.ask(store, clock, asked)

    async def go_on() -> None:
        for _ in range(2):
            clock.advance(60)
            pages = len(store.pages)
            assert not await followed.is_revoked(left.token)
            assert len(store.pages) > pages

    asyncio.run(asyncio.wait_for(go_on(), 5))
    left.end()


def test_a_look_that_was_left_behind_does_not_end_another(wall_clock: FakeClock, clock: FakeClock) -> None:
    store = SharedStore(wall_clock)
    followed = following(store, clock, wall_clock)
    left = LeftBehind(followed)
    left.ask(store, clock, 1)

    async def go_on() -> None:
        with closed(store):
            async with asking(followed, left.token) as [leader]:
                gate, store.gate = store.gate, anyio.Event()
                store.gate.set()
                await anyio.to_thread.run_sync(left.end)
                asked = len(store.asked)
                async with asking(followed, left.token) as [other]:
                    assert len(store.asked) == asked
                    assert (leader.answer, other.answer) == (None, None)
                    gate.set()

    clock.advance(5)
    asyncio.run(asyncio.wait_for(go_on(), 5))


class LeftBehind:
    """A question in an event loop that has stopped before the answer."""

    def __init__(self, followed: FollowedTokenStore) -> None:
        self.token = Claims("a", ALICE, 0, 0, 1)
        self._followed = followed
        self._loop = asyncio.new_event_loop()

    def ask(self, store: SharedStore, clock: FakeClock, asked: int) -> None:
        """Leave it when the store was asked so often."""
        if asked > 2:
            self._loop.run_until_complete(self._followed.refresh())
            clock.advance(60)
        self._question = self._loop.create_task(self._followed.is_revoked(self.token))
        self._loop.run_until_complete(self._until(store, asked))

    async def _until(self, store: SharedStore, asked: int) -> None:
        while len(store.asked) < asked:
            await checkpoint()

    def end(self) -> None:
        assert self._loop.run_until_complete(self._question) is False
        self._loop.close()


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
UNREAD = "revocations cannot be read again as a whole (ConnectionRefusedError): new ones are followed"
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
        await until_asked(store, 2)
        await store.revoke(ALICE, "a")
        await until_asked(store, 2)
        assert await followed.is_revoked(token)
        assert store.asked[:3] == ["snapshot", "changes after 0", "changes after 0"]


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
            await until_asked(store, 1)
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
            ends_at = anyio.current_time() + 0.01
            while anyio.current_time() < ends_at:
                await checkpoint()
            assert store.asked == ["snapshot"]
            store.gate.set()
            await until_asked(store, 2)


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
            await until_asked(store, 1)
            async with asking(followed, token, 3) as questions:
                scope.cancel()
                await until_asked(store, 1)
                while not scope.cancelled_caught:
                    await checkpoint()
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
        await until_asked(store, 3)
        store.error = error
        await until_asked(store, 5)
        assert followed.degraded
        store.error = None
        await until_asked(store, 2)
        assert not followed.degraded

    assert len(caplog.records) == 2
    assert lines(caplog)[-1] == ANSWERS


async def test_the_follower_rests_for_the_interval_after_a_failure(
    store: SharedStore, clock: FakeClock, wall_clock: FakeClock
) -> None:
    followed = following(store, clock, wall_clock, interval=0.05, timeout=0.1)
    ends: list[float] = []
    begins: list[float] = []

    async def read(after: str | None = None, /) -> Snapshot:
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
    await store.revoke_all(BOB)

    assert not await followed.is_revoked(token)  # by that time it has expired long ago, and is not kept
    assert store.asked == ["snapshot", "changes after 1"]


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
