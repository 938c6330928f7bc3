"""What every store of recorded use promises. A test module imports all of it, and has a fixture `usage`, empty."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import anyio
import pytest

from maas_middleware.usage_store import UsageRecord, UsageStore

DAY = date(2026, 2, 28)
NEXT = DAY + timedelta(days=1)
RECORD = UsageRecord("openshift/alice", DAY, "model", 1, 20, 300)


async def of_day(usage: UsageStore, owner: str = RECORD.owner, day: date = DAY) -> list[UsageRecord]:
    return list(await usage.usage(owner, day, day))


async def test_use_is_told_as_it_was_recorded(usage: UsageStore) -> None:
    await usage.add("batch", [RECORD])

    assert await of_day(usage) == [RECORD]


async def test_use_of_one_user_day_and_model_adds_up(usage: UsageStore) -> None:
    await usage.add("one", [RECORD])
    await usage.add("two", [replace(RECORD, requests=2, input_tokens=5, output_tokens=7)])

    assert await of_day(usage) == [replace(RECORD, requests=3, input_tokens=25, output_tokens=307)]


async def test_batch_that_was_added_adds_nothing_again(usage: UsageStore) -> None:
    await usage.add("one", [RECORD])
    await usage.add("two", [RECORD])

    await usage.add("one", [RECORD, replace(RECORD, model="other")])

    assert await of_day(usage) == [replace(RECORD, requests=2, input_tokens=40, output_tokens=600)]


async def test_batch_that_is_added_twice_at_once_counts_once(usage: UsageStore) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(usage.add, "batch", [RECORD])

    assert await of_day(usage) == [RECORD]


async def test_batches_that_are_added_at_once_all_count(usage: UsageStore) -> None:
    records = [replace(RECORD, model=model) for model in "abc"]

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(usage.add, str(number), records[:: -1 if number % 2 else 1])

    totals = [(record.model, record.requests, record.output_tokens) for record in await of_day(usage)]
    assert totals == [("a", 8, 2400), ("b", 8, 2400), ("c", 8, 2400)]


async def test_batch_without_records_is_no_error(usage: UsageStore) -> None:
    await usage.add("batch", [])

    assert await of_day(usage) == []


async def test_use_is_told_by_day_and_then_model(usage: UsageStore) -> None:
    records = [replace(RECORD, day=day, model=model) for day in (DAY, NEXT) for model in ("", "B", "a", "é")]

    await usage.add("batch", records[::-1])

    assert list(await usage.usage(RECORD.owner, DAY, NEXT)) == records


@pytest.mark.parametrize(
    ("first", "last", "days"),
    [(DAY, DAY, [DAY]), (DAY, NEXT, [DAY, NEXT]), (NEXT, DAY, []), (date.min, DAY, [DAY]), (NEXT, date.max, [NEXT])],
)
async def test_days_are_told_from_the_first_to_the_last(
    usage: UsageStore, first: date, last: date, days: list[date]
) -> None:
    await usage.add("batch", [replace(RECORD, day=day) for day in (DAY, NEXT)])

    assert [record.day for record in await usage.usage(RECORD.owner, first, last)] == days


@pytest.mark.parametrize("other", ["openshift/Alice", "openshift/alice ", "openshift/alicé", "openshift/%", ""])
async def test_use_of_others_is_not_told(usage: UsageStore, other: str) -> None:
    await usage.add("batch", [RECORD, replace(RECORD, owner=other, requests=5)])

    assert await of_day(usage) == [RECORD]
    assert await of_day(usage, other) == [replace(RECORD, owner=other, requests=5)]


async def test_counts_may_be_large(usage: UsageStore) -> None:
    await usage.add("one", [replace(RECORD, output_tokens=1 << 40)])
    await usage.add("two", [replace(RECORD, output_tokens=1 << 61)])

    assert [record.output_tokens for record in await of_day(usage)] == [(1 << 40) + (1 << 61)]


@pytest.mark.parametrize("text", ["\0", "\ud800", "\\", "\\0", "\U0001f600", "x" * 2000, "'\"%:a{b}"])
async def test_owners_and_models_have_names_of_any_kind(usage: UsageStore, text: str) -> None:
    record = replace(RECORD, owner=f"openshift/{text}", model=text)

    await usage.add(text, [record, RECORD])

    assert await of_day(usage, record.owner) == [record]
