from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from itertools import count

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from maas_middleware.errors import StoreUnavailable
from maas_middleware.limiting import Charge
from maas_middleware.recorder import UsageRecorder
from maas_middleware.stores.memory import MemoryTokenStore, MemoryUsageStore
from maas_middleware.testing.clock import FakeClock
from maas_middleware.token_store import TokenRecord
from maas_middleware.tokens import Claims
from maas_middleware.usage_store import UsageRecord

NOON = 1_795_435_200.0  # of 2026-11-23 in UTC
DAY = date(2026, 11, 23)
ALICE, BOB = "test/alice", "test/bob"
ONE = Charge(1)


class Store(MemoryUsageStore):
    """A store in memory that remembers what it was sent, and is told how often to fail, before or after it took it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, list[UsageRecord]]] = []
        self.failures: list[str] = []
        self.poison = ""
        self.meanwhile: Callable[[], None] = lambda: None
        self.wrote = anyio.Event()

    async def add(self, batch_id: str, records: Sequence[UsageRecord], /) -> None:
        await checkpoint()
        self.meanwhile()
        self.sent.append((batch_id, list(records)))
        failure = self.failures.pop(0) if self.failures else ""
        if failure == "hanging":
            await anyio.sleep_forever()
        if failure == "before" or any(record.owner == self.poison for record in records):
            raise StoreUnavailable
        await super().add(batch_id, records)
        if failure == "after":
            raise StoreUnavailable
        self.wrote.set()

    async def total(self, owner: str = ALICE) -> tuple[int, int, int]:
        """Requests, input and output tokens of a user."""
        records = await self.usage(owner, date.min, date.max)
        requests = sum(record.requests for record in records)
        return requests, sum(record.input_tokens for record in records), sum(record.output_tokens for record in records)


class Marks(MemoryTokenStore):
    """A store of tokens that remembers what it was told of their use, and may fail."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: NOON)
        self.told: list[dict[str, int]] = []
        self.failures = 0

    async def mark_used(self, last_used_at: Mapping[str, int], /) -> None:
        await checkpoint()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable
        self.told.append(dict(last_used_at))
        await super().mark_used(last_used_at)


def recorder_of(
    store: MemoryUsageStore, clock: FakeClock | None = None, *, tokens: Marks | None = None, maximum: int = 100_000
) -> UsageRecorder:
    ids = count(1)
    return UsageRecorder(
        store,
        tokens=tokens,
        clock=clock or FakeClock(NOON),
        id_factory=lambda: f"batch-{next(ids)}",
        maximum=maximum,
    )


async def attempt(recorder: UsageRecorder) -> None:
    with pytest.raises(StoreUnavailable):
        await recorder.flush()


async def test_charges_are_summed_up_by_user_model_and_day() -> None:
    store, clock = Store(), FakeClock(NOON)
    recorder = recorder_of(store, clock)

    recorder.note(ALICE, "simulator", Charge(30), 10)
    recorder.note(ALICE, "simulator", Charge(5), 5)
    recorder.note(ALICE, "qwen", Charge(7), 0)
    recorder.note(BOB, "simulator", Charge(0), 0)
    clock.advance(86_400)
    recorder.note(ALICE, "simulator", Charge(3, request=False), 1)
    await recorder.flush()

    assert store.sent == [
        (
            "batch-1",
            [
                UsageRecord(ALICE, DAY, "simulator", 2, 15, 20),
                UsageRecord(ALICE, DAY, "qwen", 1, 0, 7),
                UsageRecord(BOB, DAY, "simulator", 1, 0, 0),
                UsageRecord(ALICE, date(2026, 11, 24), "simulator", 0, 1, 2),
            ],
        )
    ]


async def test_nothing_is_noted_where_nothing_was_charged() -> None:
    store = Store()
    recorder = recorder_of(store)

    recorder.note(ALICE, "simulator", Charge(0, request=False), 0)
    await recorder.flush()

    assert store.sent == []


@pytest.mark.parametrize(
    ("seconds", "day"),
    [
        pytest.param(-0.001, date(2026, 11, 22), id="before midnight"),
        pytest.param(0.0, date(2026, 11, 23), id="midnight"),
        pytest.param(86_399.999, date(2026, 11, 23), id="before the next"),
    ],
)
async def test_day_is_that_of_utc(seconds: float, day: date) -> None:
    store = Store()
    recorder = recorder_of(store, FakeClock(NOON - 43_200 + seconds))

    recorder.note(ALICE, "simulator", ONE, 0)
    await recorder.flush()

    assert store.sent[0][1] == [UsageRecord(ALICE, day, "simulator", 1, 0, 1)]


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        pytest.param("org/modèle 7", "org/modèle 7", id="any that can be read"),
        pytest.param("m" * 256, "m" * 256, id="long"),
        pytest.param("m" * 257, "", id="too long"),
        pytest.param("m\0", "", id="nul"),
        pytest.param("m\n", "", id="end of line"),
        pytest.param("m\ud800", "", id="half a character"),
        pytest.param("", "", id="none"),
    ],
)
async def test_name_that_no_model_has_is_not_recorded(name: str, recorded: str) -> None:
    store = Store()
    recorder = recorder_of(store)

    recorder.note(ALICE, name, ONE, 0)
    recorder.note(ALICE, recorded, ONE, 0)
    await recorder.flush()

    assert store.sent[0][1] == [UsageRecord(ALICE, DAY, recorded, 2, 0, 2)]


async def test_what_was_written_is_not_written_again() -> None:
    store = Store()
    recorder = recorder_of(store)

    recorder.note(ALICE, "simulator", Charge(5), 2)
    await recorder.flush()
    await recorder.flush()
    recorder.note(ALICE, "simulator", Charge(7), 3)
    await recorder.flush()

    assert [batch_id for batch_id, _ in store.sent] == ["batch-1", "batch-2"]
    assert await store.total() == (2, 5, 7)


@pytest.mark.parametrize("failure", ["before", "after"])
async def test_batch_in_doubt_is_sent_again_under_its_id_and_new_use_under_another(failure: str) -> None:
    store = Store()
    recorder = recorder_of(store)
    store.failures = [failure]

    recorder.note(ALICE, "simulator", Charge(5), 2)
    await attempt(recorder)
    failing = recorder.is_failing
    recorder.note(ALICE, "simulator", Charge(7), 3)
    await recorder.flush()

    first, second = (UsageRecord(ALICE, DAY, "simulator", 1, *split) for split in ((2, 3), (3, 4)))
    assert sorted(store.sent, key=lambda batch: batch[0]) == [
        ("batch-1", [first]),
        ("batch-1", [first]),
        ("batch-2", [second]),
    ]
    assert failing
    assert not recorder.is_failing
    assert await store.total() == (2, 5, 7)


async def test_write_that_hangs_is_in_doubt() -> None:
    store = Store()
    store.failures = ["hanging"]
    recorder = UsageRecorder(store, timeout=0.01, clock=lambda: NOON)
    recorder.note(ALICE, "simulator", Charge(5), 2)

    with anyio.fail_after(5):
        await attempt(recorder)
        await recorder.flush()

    assert store.sent[0] == store.sent[1]
    assert await store.total() == (1, 2, 3)


async def test_totals_are_exact_through_a_long_outage() -> None:
    store = Store()
    recorder = recorder_of(store)
    store.failures = ["before", "after"] * 20

    for number in range(40):
        recorder.note(ALICE, "simulator", Charge(number), number // 2)
        recorder.note(BOB, "qwen", ONE, 0)
        await attempt(recorder)
    during = {batch_id for batch_id, _ in store.sent}
    await recorder.flush()

    assert len(during) == 8  # no more are kept in doubt, so that memory is bounded
    assert await store.total() == (40, 380, 400)
    assert await store.total(BOB) == (40, 0, 40)


async def test_batch_that_is_never_taken_keeps_nothing_else_back() -> None:
    store = Store()
    recorder = recorder_of(store)
    store.poison = BOB

    recorder.note(BOB, "simulator", ONE, 0)
    await attempt(recorder)
    for _ in range(20):
        recorder.note(ALICE, "simulator", ONE, 0)
        await attempt(recorder)

    assert await store.total() == (20, 0, 20)


async def test_batches_that_are_never_taken_are_tried_in_turn() -> None:
    store = Store()
    recorder = recorder_of(store)
    store.failures = ["before"] * 8
    for _ in range(8):
        recorder.note(ALICE, "simulator", ONE, 0)
        await attempt(recorder)
    store.sent.clear()
    store.failures = ["before"] * 8
    for _ in range(8):
        await attempt(recorder)

    assert {batch_id for batch_id, _ in store.sent} == {f"batch-{number}" for number in range(1, 9)}


async def test_batches_are_small_enough_to_be_taken_in_time() -> None:
    store = Store()
    recorder = recorder_of(store)

    for number in range(1001):
        recorder.note(f"test/user-{number}", "simulator", ONE, 0)
    await recorder.flush()

    assert [len(records) for _, records in store.sent] == [500, 500, 1]
    assert len({record.owner for _, records in store.sent for record in records}) == 1001


async def test_use_that_is_noted_during_a_write_is_in_the_next() -> None:
    store = Store()
    recorder = recorder_of(store)

    def note_more() -> None:
        store.meanwhile = lambda: None
        recorder.note(ALICE, "simulator", Charge(7), 3)
        recorder.note(BOB, "simulator", ONE, 0)

    store.meanwhile = note_more
    recorder.note(ALICE, "simulator", Charge(5), 2)
    await recorder.flush()
    written = await store.total()
    await recorder.flush()

    assert written == (1, 2, 3)
    assert [len(records) for _, records in store.sent] == [1, 2]
    assert await store.total() == (2, 5, 7)


async def test_too_much_use_is_dropped_with_a_count_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    recorder = recorder_of(store, maximum=3)
    store.failures = ["before"]
    recorder.note("test/a", "simulator", ONE, 0)
    recorder.note("test/b", "simulator", ONE, 0)
    await attempt(recorder)

    with caplog.at_level(logging.INFO, "maas_middleware"):
        for owner in ("c", "d", "c", "e"):
            recorder.note(f"test/{owner}", "simulator", ONE, 0)
    dropped = recorder.dropped
    await recorder.flush()

    assert dropped == recorder.dropped == 2
    assert [record.message for record in caplog.records if "kept" not in record.message] == [
        "too much recorded use is waiting for the store: no more users, models and days are recorded",
        "there is room for recorded use again; 2 charges are not recorded so far",
        "recorded use is written again",
    ]
    assert [await store.total(f"test/{owner}") for owner in "abcde"] == [
        (1, 0, 1),
        (1, 0, 1),
        (2, 0, 2),
        *[(0, 0, 0)] * 2,
    ]


async def test_what_has_a_sum_already_needs_no_room() -> None:
    store = Store()
    recorder = recorder_of(store, maximum=2)

    for model in ("simulator", "x" * 300, "y" * 300, "simulator"):
        recorder.note(ALICE, model, ONE, 0)
    await recorder.flush()

    assert recorder.dropped == 0
    assert await store.total(ALICE) == (4, 0, 4)


async def test_there_is_room_again_after_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    recorder = recorder_of(store, maximum=2)
    owners = ("test/a", "test/b", "test/c")

    for failure in ("before", "after"):
        store.failures = [failure]
        for owner in owners:
            recorder.note(owner, "simulator", ONE, 0)
        await attempt(recorder)
        await recorder.flush()

    assert recorder.dropped == 2
    assert [await store.total(owner) for owner in owners] == [(2, 0, 2), (2, 0, 2), (0, 0, 0)]
    assert sum("too much" in record.message for record in caplog.records) == 2  # one an outage


async def test_two_processes_sum_up_in_one_store() -> None:
    store = Store()
    one, other = (UsageRecorder(store, clock=lambda: NOON) for _ in range(2))

    for recorder in (one, other, one):
        recorder.note(ALICE, "simulator", Charge(5), 2)
        await recorder.flush()

    assert await store.total() == (3, 6, 9)


async def test_totals_are_exact_whatever_happens_at_once() -> None:
    dice, store = random.Random(5), Store()
    recorder = recorder_of(store)
    tokens = 0

    async def request() -> None:
        nonlocal tokens
        for _ in range(dice.randrange(6)):
            await checkpoint()
        charged = dice.randrange(100)
        tokens += charged
        recorder.note(ALICE, dice.choice(("simulator", "qwen")), Charge(charged), charged // 3)
        store.failures = store.failures or dice.choices(["", "before", "after"], [8, 1, 1], k=4)
        with anyio.CancelScope() as scope:
            if dice.random() < 0.2:
                scope.cancel()
            await recorder.after_request()

    for _ in range(40):
        async with anyio.create_task_group() as group:
            for _ in range(25):
                group.start_soon(request)
    store.failures = []
    await recorder.aclose()

    requests, given, produced = await store.total()
    assert (requests, given + produced) == (1000, tokens)
    assert len(store.sent) < 900  # many a request wrote for others


async def test_a_request_that_has_ended_writes_where_nothing_runs() -> None:
    store = Store()
    recorder = recorder_of(store)

    recorder.note(ALICE, "simulator", Charge(5), 2)
    await recorder.after_request()

    assert await store.total() == (1, 2, 3)


async def test_no_request_is_told_of_failures() -> None:
    store = Store()
    recorder = recorder_of(store)
    store.failures = ["before"]

    recorder.note(ALICE, "simulator", Charge(5), 2)
    await recorder.after_request()

    assert await store.total() == (0, 0, 0)
    assert recorder.is_failing


async def test_while_it_runs_it_writes_and_requests_do_not() -> None:
    store = Store()
    recorder = UsageRecorder(store, interval=0.01, clock=lambda: NOON)

    async with anyio.create_task_group() as group:
        group.start_soon(recorder.run)
        await wait_all_tasks_blocked()
        recorder.note(ALICE, "simulator", Charge(5), 2)
        await recorder.after_request()
        at_once = list(store.sent)
        with anyio.fail_after(5):
            await store.wrote.wait()
        store.wrote = anyio.Event()
        recorder.note(ALICE, "simulator", Charge(7), 3)
        with anyio.fail_after(5):
            await store.wrote.wait()
        group.cancel_scope.cancel()

    assert at_once == []
    assert await store.total() == (2, 5, 7)


async def test_running_goes_on_through_failures() -> None:
    store = Store()
    store.failures = ["before", "after", "before"]
    recorder = UsageRecorder(store, interval=0.001, clock=lambda: NOON)
    recorder.note(ALICE, "simulator", Charge(5), 2)

    async with anyio.create_task_group() as group:
        group.start_soon(recorder.run)
        with anyio.fail_after(5):
            await store.wrote.wait()
        group.cancel_scope.cancel()

    assert await store.total() == (1, 2, 3)


async def test_requests_write_again_when_it_does_not_run_any_more() -> None:
    store = Store()
    recorder = recorder_of(store)
    async with anyio.create_task_group() as group:
        group.start_soon(recorder.run)
        await wait_all_tasks_blocked()
        group.cancel_scope.cancel()

    recorder.note(ALICE, "simulator", Charge(5), 2)
    await recorder.after_request()

    assert await store.total() == (1, 2, 3)


async def test_closing_writes_what_is_left_trying_again(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    recorder = recorder_of(store)
    store.failures = ["before", "after"]

    recorder.note(ALICE, "simulator", Charge(5), 2)
    with anyio.fail_after(5):
        await recorder.aclose()

    assert await store.total() == (1, 2, 3)
    assert not any("lost" in record.message for record in caplog.records)


async def test_closing_tells_what_it_could_not_write(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    recorder = UsageRecorder(store, clock=lambda: NOON)
    store.failures = ["before"]
    recorder.note(ALICE, "simulator", Charge(5), 2)
    await attempt(recorder)
    recorder.note(ALICE, "simulator", Charge(5), 2)
    recorder.note(BOB, "simulator", ONE, 0)
    store.failures = ["hanging"]

    with anyio.fail_after(5):
        await recorder.aclose(0.05)

    assert caplog.records[-1].message == "recorded use is lost with this process: 3 sums could not be written"


async def test_closing_without_any_use_writes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()

    await recorder_of(store).aclose()

    assert store.sent == []
    assert caplog.records == []


async def test_use_of_a_token_is_written_at_most_once_a_minute() -> None:
    clock, marks = FakeClock(NOON + 0.9), Marks()
    recorder = recorder_of(Store(), clock, tokens=marks)

    for seconds in (0.0, 0.0, 59.9, 0.1, 30.0):
        clock.advance(seconds)
        recorder.note_token("a")
        await recorder.flush()

    assert marks.told == [{"a": int(NOON)}, {"a": int(NOON) + 60}]


async def test_use_of_a_token_reaches_its_record() -> None:
    marks = Marks()
    claims = Claims("a", ALICE, 0, int(NOON) - 60, int(NOON) + 600)
    await marks.record(TokenRecord(claims))
    recorder = recorder_of(Store(), tokens=marks)

    recorder.note_token("a")
    await recorder.flush()

    found = await marks.find(ALICE, "a")
    assert found is not None
    assert found.last_used_at == int(NOON)


async def test_uses_of_tokens_are_written_together() -> None:
    marks = Marks()
    recorder = recorder_of(Store(), tokens=marks)

    for number in range(501):
        recorder.note_token(f"token-{number}")
    await recorder.after_request()

    assert [len(told) for told in marks.told] == [500, 1]
    assert marks.told[1] == {"token-500": int(NOON)}


async def test_uses_of_tokens_are_kept_while_the_store_fails() -> None:
    store, marks = Store(), Marks()
    recorder = recorder_of(store, tokens=marks)
    marks.failures = 1

    recorder.note_token("a")
    recorder.note(ALICE, "simulator", Charge(5), 2)
    await attempt(recorder)
    written = await store.total()
    await recorder.flush()

    assert written == (1, 2, 3)
    assert marks.told == [{"a": int(NOON)}]
    assert len(store.sent) == 1


async def test_uses_of_tokens_are_noted_nowhere_without_their_store() -> None:
    store = Store()
    recorder = recorder_of(store)

    recorder.note_token("a")
    await recorder.flush()

    assert store.sent == []


async def test_uses_of_tokens_that_wait_are_bounded() -> None:
    clock, marks = FakeClock(NOON), Marks()
    recorder = recorder_of(Store(), clock, tokens=marks, maximum=2)
    marks.failures = 1

    for token_id in "abc":
        recorder.note_token(token_id)
    await attempt(recorder)
    clock.advance(60)
    recorder.note_token("a")  # which is waiting already
    await recorder.flush()

    assert marks.told == [{"a": int(NOON) + 60, "b": int(NOON)}]


async def test_of_too_many_tokens_the_one_noted_longest_ago_is_forgotten() -> None:
    clock, marks = FakeClock(NOON), Marks()
    recorder = recorder_of(Store(), clock, tokens=marks, maximum=3)

    for seconds, token_id in ((0, "a"), (50, "b"), (10, "a"), (0, "c"), (0, "d"), (0, "a"), (0, "c"), (0, "b")):
        clock.advance(seconds)
        recorder.note_token(token_id)
        await recorder.flush()

    assert [token_id for told in marks.told for token_id in told] == ["a", "b", "a", "c", "d", "b"]
