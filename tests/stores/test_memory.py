from __future__ import annotations

import pytest

from maas_middleware.stores.memory import MemoryTokenStore, MemoryUsageStore
from maas_middleware.testing.clock import FakeClock
from maas_middleware.token_store import TokenRecord
from maas_middleware.tokens import Claims
from maas_middleware.usage_store import UsageStore
from tests.stores.contract import *  # noqa: F403 the contract's tests are collected here
from tests.stores.usage_contract import *  # noqa: F403 as above
from tests.stores.usage_contract import RECORD, of_day


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryTokenStore:
    return MemoryTokenStore(clock=clock)


@pytest.fixture
def usage() -> UsageStore:
    return MemoryUsageStore()


def access_token(token_id: str, issued_at: float, owner: str = "openshift/alice") -> TokenRecord:
    return TokenRecord(Claims(token_id, owner, 0, int(issued_at), int(issued_at) + 900))


async def test_expired_tokens_and_their_revocations_are_forgotten(store: MemoryTokenStore, clock: FakeClock) -> None:
    revoked, kept = (access_token(token_id, clock()) for token_id in "ab")
    for record in (revoked, kept):
        await store.record(record)
    await store.revoke("openshift/alice", "a")

    clock.advance(900)
    await store.record(access_token("c", clock(), "openshift/bob"))

    assert not await store.revoke("openshift/alice", "b")
    assert not await store.is_revoked(revoked.claims)
    await store.mark_used({"a": 1, "b": 1})


async def test_tokens_of_an_owner_expire_one_by_one(store: MemoryTokenStore, clock: FakeClock) -> None:
    await store.record(access_token("a", clock()))
    clock.advance(600)
    await store.record(access_token("b", clock()))

    clock.advance(300)
    await store.record(access_token("c", clock()))

    assert [record.claims.id for record in await store.list("openshift/alice")] == ["c", "b"]
    assert await store.revoke("openshift/alice", "b")


async def test_looking_for_expired_tokens_is_done_once_a_minute(store: MemoryTokenStore, clock: FakeClock) -> None:
    revoked = access_token("a", clock() - 870)
    await store.record(revoked)
    await store.revoke("openshift/alice", "a")

    clock.advance(59)
    await store.record(access_token("b", clock()))
    assert await store.is_revoked(revoked.claims)

    clock.advance(1)
    await store.record(access_token("c", clock()))
    assert not await store.is_revoked(revoked.claims)


async def test_time_is_that_of_the_computer_unless_another_is_given() -> None:
    store = MemoryTokenStore()
    await store.record(TokenRecord(Claims("old", "openshift/alice", 0, 0, 900)))
    await store.record(TokenRecord(Claims("new", "openshift/alice", 0, 0, 1 << 40)))

    assert not await store.revoke("openshift/alice", "old")
    assert await store.revoke("openshift/alice", "new")


async def test_ids_of_batches_are_remembered_for_an_hour_of_them(usage: UsageStore) -> None:
    for number in range(10_000):
        await usage.add(str(number), [RECORD])

    await usage.add("0", [RECORD])
    assert [record.requests for record in await of_day(usage)] == [10_000]

    await usage.add("10000", [RECORD])
    await usage.add("0", [RECORD])
    assert [record.requests for record in await of_day(usage)] == [10_002]
