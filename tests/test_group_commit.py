from __future__ import annotations

import asyncio
import gc
import logging
from itertools import chain

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from maas_middleware._group_commit import GroupCommit
from maas_middleware.errors import StoreUnavailable


class Pile:
    """Things that wait to be written, and the writes as they were done; waits for `gate` in each if it is closed."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.writes: list[list[str]] = []
        self.began = 0
        self.gate = anyio.Event()
        self.gate.set()
        self.errors: list[Exception] = []

    def close_gate(self) -> anyio.Event:
        self.gate = anyio.Event()
        return self.gate

    async def write(self) -> None:
        self.began += 1
        taken, gate = list(self.waiting), self.gate
        await gate.wait()
        await checkpoint()
        if self.errors:
            raise self.errors.pop()
        self.waiting = self.waiting[len(taken) :]
        self.writes.append(taken)

    def commit(self, timeout: float = 5.0) -> GroupCommit:
        return GroupCommit(self.write, lambda: bool(self.waiting), timeout=timeout, subject="the pile")


async def test_nothing_is_written_where_nothing_waits() -> None:
    pile = Pile()
    commit = pile.commit()

    await commit.flush()
    await commit.leave()
    await commit.drain(1.0)

    assert pile.began == 0


async def test_whoever_leaves_alone_writes() -> None:
    pile = Pile()
    pile.waiting.append("a")

    await pile.commit().leave()

    assert pile.writes == [["a"]]


async def test_one_writes_for_all_who_leave_during_a_write() -> None:
    pile = Pile()
    commit, gate = pile.commit(), pile.close_gate()
    left: list[str] = []

    async def leave(name: str) -> None:
        pile.waiting.append(name)
        await commit.leave()
        left.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(leave, "a")
        await wait_all_tasks_blocked()
        for name in "bcd":
            group.start_soon(leave, name)
        await wait_all_tasks_blocked()
        left_early = sorted(left)
        gate.set()

    assert left_early == ["c", "d"]  # b writes for them
    assert pile.writes == [["a"], ["b", "c", "d"]]


async def test_whoever_leaves_while_the_successor_writes_succeeds_it() -> None:
    pile = Pile()
    commit = pile.commit()
    gates = [pile.close_gate()]

    async def leave(name: str) -> None:
        pile.waiting.append(name)
        await commit.leave()

    async with anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(leave, name)
            await wait_all_tasks_blocked()
            if name == "b":
                gates.append(pile.close_gate())
                gates[0].set()
                await wait_all_tasks_blocked()
        gates[1].set()

    assert pile.writes == [["a"], ["b"], ["c"]]


async def test_successor_waits_for_those_who_flush_before_it() -> None:
    pile = Pile()
    commit = pile.commit()
    gates = [pile.close_gate()]

    async def leave(name: str) -> None:
        pile.waiting.append(name)
        await commit.leave()

    async with anyio.create_task_group() as group:
        pile.waiting.append("a")
        group.start_soon(commit.flush)
        await wait_all_tasks_blocked()
        group.start_soon(commit.flush)
        await wait_all_tasks_blocked()
        group.start_soon(leave, "b")
        await wait_all_tasks_blocked()
        pile.waiting.append("c")
        gates.append(pile.close_gate())
        gates[0].set()
        await wait_all_tasks_blocked()
        group.start_soon(leave, "d")
        await wait_all_tasks_blocked()
        gates[1].set()

    assert list(chain(*pile.writes)) == ["a", "b", "c", "d"]
    assert pile.waiting == []


async def test_no_two_write_at_a_time() -> None:
    pile = Pile()
    commit, gate = pile.commit(), pile.close_gate()

    async with anyio.create_task_group() as group:
        for name in "abcd":
            pile.waiting.append(name)
            group.start_soon(commit.flush)
            group.start_soon(commit.leave)
            group.start_soon(commit.drain, 5.0)
        await wait_all_tasks_blocked()
        began = pile.began
        gate.set()

    assert began == 1
    assert list(chain(*pile.writes)) == ["a", "b", "c", "d"]


async def test_flush_waits_for_a_write_that_began_after_it() -> None:
    pile = Pile()
    commit = pile.commit()
    first = pile.close_gate()
    flushed = anyio.Event()

    async def flush() -> None:
        await commit.flush()
        flushed.set()

    async with anyio.create_task_group() as group:
        pile.waiting.append("a")
        group.start_soon(commit.flush)
        await wait_all_tasks_blocked()
        pile.waiting.append("b")
        group.start_soon(flush)
        await wait_all_tasks_blocked()
        second = pile.close_gate()
        first.set()
        await wait_all_tasks_blocked()
        too_early = flushed.is_set()
        second.set()

    assert not too_early
    assert pile.writes == [["a"], ["b"]]


async def test_all_who_flush_during_a_failing_write_share_the_next_failure() -> None:
    pile = Pile()
    commit, gate = pile.commit(), pile.close_gate()
    pile.waiting.append("a")
    pile.errors = [StoreUnavailable() for _ in range(9)]
    refused = 0

    async def flush() -> None:
        nonlocal refused
        with pytest.raises(StoreUnavailable):
            await commit.flush()
        refused += 1

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(flush)
        await wait_all_tasks_blocked()
        gate.set()

    assert refused == 20
    assert pile.began == 2
    assert pile.waiting == ["a"]


async def test_failure_of_the_write_before_is_not_that_of_a_flush() -> None:
    pile = Pile()
    commit, gate = pile.commit(), pile.close_gate()
    pile.waiting.append("a")
    pile.errors = [StoreUnavailable()]

    async with anyio.create_task_group() as group:
        group.start_soon(commit.leave)
        await wait_all_tasks_blocked()
        group.start_soon(commit.flush)
        await wait_all_tasks_blocked()
        gate.set()

    assert pile.writes == [["a"]]


async def test_flush_that_was_served_by_the_write_before_does_not_write_again() -> None:
    pile = Pile()
    commit, gate = pile.commit(), pile.close_gate()
    pile.waiting.append("a")

    async with anyio.create_task_group() as group:
        group.start_soon(commit.leave)
        await wait_all_tasks_blocked()
        group.start_soon(commit.flush)
        await wait_all_tasks_blocked()
        gate.set()

    assert pile.began == 1


@pytest.mark.parametrize("error", [pytest.param(StoreUnavailable(), id="store"), pytest.param(KeyError(), id="fault")])
async def test_whoever_leaves_is_not_told_of_failures(error: Exception) -> None:
    pile = Pile()
    commit = pile.commit()
    pile.waiting.append("a")
    pile.errors = [error]

    await commit.leave()
    failing = commit.is_failing
    await commit.leave()

    assert failing
    assert not commit.is_failing
    assert pile.writes == [["a"]]


async def test_write_that_hangs_is_broken_off() -> None:
    pile = Pile()
    pile.close_gate()
    pile.waiting.append("a")

    with anyio.fail_after(5), pytest.raises(StoreUnavailable):
        await pile.commit(timeout=0.01).flush()

    assert pile.waiting == ["a"]


async def test_failures_are_one_log_line_until_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    pile = Pile()
    commit = pile.commit()
    pile.waiting.append("a")
    pile.errors = [StoreUnavailable(), StoreUnavailable(), StoreUnavailable("postgresql://user:secret@db")]

    with caplog.at_level(logging.INFO, "maas_middleware"):
        for _ in range(4):
            await commit.leave()
        pile.waiting.append("b")
        await commit.leave()

    assert [record.message for record in caplog.records] == [
        "the pile cannot be written, and is kept for now: StoreUnavailable",
        "the pile is written again",
    ]
    assert not caplog.records[0].exc_info


@pytest.mark.parametrize("method", ["flush", "leave"])
async def test_write_goes_on_when_a_scope_cancels_whoever_began_it(method: str) -> None:
    pile = Pile()
    commit, gate = pile.commit(), pile.close_gate()
    pile.waiting.append("a")

    async with anyio.create_task_group() as others, anyio.create_task_group() as group:
        group.start_soon(getattr(commit, method))
        await wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        others.start_soon(open_later, gate)

    assert pile.writes == [["a"]]


async def open_later(gate: anyio.Event) -> None:
    for _ in range(20):
        await checkpoint()
    gate.set()


@pytest.mark.parametrize("method", ["flush", "leave"])
async def test_write_goes_on_when_asyncio_cancels_whoever_began_it(method: str) -> None:
    pile = Pile()
    commit, gate = pile.commit(), pile.close_gate()
    pile.waiting.append("a")

    task = asyncio.ensure_future(getattr(commit, method)())
    await wait_all_tasks_blocked()
    task.cancel()
    await wait_all_tasks_blocked()
    gate.set()
    await asyncio.wait([task])

    assert task.cancelled()
    assert pile.writes == [["a"]]


async def test_successor_writes_though_asyncio_cancels_it_while_it_waits() -> None:
    pile = Pile()
    commit, gate = pile.commit(), pile.close_gate()

    pile.waiting.append("a")
    leader = asyncio.ensure_future(commit.leave())
    await wait_all_tasks_blocked()
    pile.waiting.append("b")
    successor = asyncio.ensure_future(commit.leave())
    await wait_all_tasks_blocked()
    successor.cancel()
    await wait_all_tasks_blocked()
    gate.set()
    await asyncio.wait([leader, successor])

    assert pile.writes == [["a"], ["b"]]


async def test_whoever_is_cancelled_already_still_writes() -> None:
    pile = Pile()
    commit = pile.commit()
    pile.waiting.append("a")

    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        finally:
            await commit.leave()

    assert pile.writes == [["a"]]


def test_next_loop_writes_what_a_torn_down_one_left() -> None:
    pile = Pile()
    commit = pile.commit()
    pile.waiting.append("a")

    async def torn_down() -> None:
        pile.close_gate()
        for method in (commit.leave, commit.leave, commit.flush):
            task = asyncio.ensure_future(method())
            tasks.add(task)
            await wait_all_tasks_blocked()

    tasks: set[asyncio.Future[None]] = set()
    asyncio.run(torn_down())
    left = list(pile.waiting)
    pile.gate = anyio.Event()
    pile.gate.set()
    asyncio.run(commit.leave())

    assert left == ["a"]
    assert all(task.cancelled() for task in tasks)
    assert pile.writes == [["a"]]


@pytest.mark.parametrize("waiting", [pytest.param(0, id="alone"), pytest.param(2, id="others wait")])
async def test_what_a_torn_down_task_should_have_written_is_written(waiting: int) -> None:
    pile = Pile()
    commit = pile.commit()
    pile.close_gate()
    pile.waiting.append("a")

    async with anyio.create_task_group() as group:
        group.start_soon(commit.flush)
        await wait_all_tasks_blocked()
        others = asyncio.all_tasks()
        for _ in range(waiting):
            group.start_soon(commit.flush)
        await wait_all_tasks_blocked()
        writing = [task for task in others if task.get_name().endswith("._fly")]
        pile.gate = anyio.Event()
        pile.gate.set()
        assert len(writing) == 1
        writing[0].cancel()

    assert pile.writes == [["a"]]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # which is what is tested
@pytest.mark.parametrize("method", ["flush", "leave"])
async def test_somebody_else_writes_when_a_task_is_torn_down_before_it_began(method: str) -> None:
    pile = Pile()
    commit = pile.commit()
    pile.waiting.append("a")
    before = asyncio.all_tasks()

    task = asyncio.ensure_future(getattr(commit, method)())
    await asyncio.sleep(0)  # it has started the one that writes
    for young in asyncio.all_tasks() - before:
        young.cancel()
    await asyncio.wait([task])
    left = list(pile.waiting)
    gc.collect()
    with anyio.fail_after(5):
        await getattr(commit, method)()

    assert left == ["a"]
    assert pile.writes == [["a"]]


async def test_drain_tries_until_it_works() -> None:
    pile = Pile()
    pile.waiting.append("a")
    pile.errors = [StoreUnavailable()]

    with anyio.fail_after(5):
        await pile.commit().drain(4.0)

    assert pile.writes == [["a"]]


@pytest.mark.parametrize("hangs", [pytest.param(True, id="hangs"), pytest.param(False, id="fails")])
async def test_drain_ends_in_time(hangs: bool) -> None:
    pile = Pile()
    pile.waiting.append("a")
    if hangs:
        pile.close_gate()
    else:
        pile.errors = [StoreUnavailable() for _ in range(1000)]

    with anyio.fail_after(5):
        await pile.commit(timeout=60.0).drain(0.05)

    assert pile.waiting == ["a"]


async def test_drain_does_not_wait_for_a_write_of_others_that_hangs() -> None:
    pile = Pile()
    commit, gate = pile.commit(timeout=60.0), pile.close_gate()
    pile.waiting.append("a")

    async with anyio.create_task_group() as group:
        group.start_soon(commit.leave)
        await wait_all_tasks_blocked()
        with anyio.fail_after(5):
            await commit.drain(0.05)
        gate.set()

    assert pile.writes == [["a"]]


async def test_drain_is_not_cancelled() -> None:
    pile = Pile()
    commit = pile.commit()
    pile.waiting.append("a")
    pile.errors = [StoreUnavailable()]

    with anyio.CancelScope() as scope:
        scope.cancel()
        await commit.drain(5.0)

    assert pile.writes == [["a"]]
