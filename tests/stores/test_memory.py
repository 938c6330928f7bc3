from __future__ import annotations

import pytest

from maas_middleware.stores.memory import MemoryTokenStore
from maas_middleware.testing.clock import FakeClock
from maas_middleware.tokens import Claims, TokenStore
from tests.stores.contract import *  # noqa: F403 the contract's tests are collected here


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> TokenStore:
    return MemoryTokenStore(clock=clock)


async def test_expired_tokens_and_their_revocations_are_forgotten(store: TokenStore, clock: FakeClock) -> None:
    now = int(clock())
    revoked, kept = (Claims(token_id, "openshift/alice", 0, now, now + 900) for token_id in "ab")
    for claims in (revoked, kept):
        await store.record(claims)
    await store.revoke("openshift/alice", "a")

    clock.advance(900)
    await store.record(Claims("c", "openshift/bob", 0, now + 900, now + 1800))

    assert not await store.revoke("openshift/alice", "b")
    assert not await store.is_revoked(revoked)


async def test_time_is_that_of_the_computer_unless_another_is_given() -> None:
    store = MemoryTokenStore()
    await store.record(Claims("old", "openshift/alice", 0, 0, 900))
    await store.record(Claims("new", "openshift/alice", 0, 0, 1 << 40))

    assert not await store.revoke("openshift/alice", "old")
    assert await store.revoke("openshift/alice", "new")
