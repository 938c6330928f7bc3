"""What every store of tokens promises. A test module imports all of it, and has fixtures `store` and `clock`.

The store tells the time by the clock, and is empty.
"""

from __future__ import annotations

import anyio
import pytest

from maas_middleware.testing.clock import FakeClock
from maas_middleware.tokens import Claims, TokenStore

ALICE = "openshift/alice"
BOB = "openshift/bob"
LIFETIME = 900


def claims(
    clock: FakeClock, token_id: str, owner: str = ALICE, generation: int = 0, lifetime: int = LIFETIME
) -> Claims:
    now = int(clock())
    return Claims(token_id, owner, generation, issued_at=now, expires_at=now + lifetime)


async def minted(store: TokenStore, clock: FakeClock, token_id: str, owner: str = ALICE) -> Claims:
    """What a token says that was minted now, and recorded."""
    said = claims(clock, token_id, owner, await store.generation(owner))
    await store.record(said)
    return said


async def test_minted_token_is_not_revoked(store: TokenStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a")

    assert not await store.is_revoked(token)


async def test_owner_who_never_revoked_anything_has_a_generation(store: TokenStore) -> None:
    assert await store.generation(ALICE) == await store.generation(ALICE) >= 0


async def test_revoked_token_is_revoked_and_no_other(store: TokenStore, clock: FakeClock) -> None:
    token, other = await minted(store, clock, "a"), await minted(store, clock, "b")

    assert await store.revoke(ALICE, "a")

    assert await store.is_revoked(token)
    assert not await store.is_revoked(other)
    assert await store.generation(ALICE) == other.generation


async def test_token_stays_revoked_until_it_expires(store: TokenStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a")
    await store.revoke(ALICE, "a")

    clock.advance(LIFETIME - 1)
    await minted(store, clock, "b")
    await store.revoke(ALICE, "b")

    assert await store.is_revoked(token)


async def test_token_revoked_twice_is_revoked(store: TokenStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a")

    await store.revoke(ALICE, "a")
    await store.revoke(ALICE, "a")

    assert await store.is_revoked(token)


async def test_token_of_somebody_else_cannot_be_revoked(store: TokenStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a")
    await minted(store, clock, "b", BOB)

    assert not await store.revoke(BOB, "a")

    assert not await store.is_revoked(token)


@pytest.mark.parametrize("token_id", ["unknown", "", "%", "a'--", "ключ"])
async def test_token_that_was_never_minted_cannot_be_revoked(
    store: TokenStore, clock: FakeClock, token_id: str
) -> None:
    token = await minted(store, clock, "a")

    assert not await store.revoke(ALICE, token_id)

    assert not await store.is_revoked(token)


async def test_revoking_all_revokes_everything_that_was_minted_until_now(store: TokenStore, clock: FakeClock) -> None:
    tokens = [await minted(store, clock, token_id) for token_id in "abc"]
    unrecorded = claims(clock, "d", generation=await store.generation(ALICE))

    await store.revoke_all(ALICE)

    assert all([await store.is_revoked(token) for token in [*tokens, unrecorded]])


async def test_token_minted_in_the_second_of_the_revocation_is_valid(store: TokenStore, clock: FakeClock) -> None:
    old = await minted(store, clock, "old")
    await store.revoke_all(ALICE)

    new = await minted(store, clock, "new")

    assert await store.is_revoked(old)
    assert not await store.is_revoked(new)


async def test_revoking_all_again_revokes_what_was_minted_in_between(store: TokenStore, clock: FakeClock) -> None:
    await store.revoke_all(ALICE)
    between = await minted(store, clock, "a")

    await store.revoke_all(ALICE)

    assert await store.is_revoked(between)
    assert not await store.is_revoked(await minted(store, clock, "b"))


async def test_revoking_all_leaves_other_users_alone(store: TokenStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a", BOB)

    await store.revoke_all(ALICE)

    assert not await store.is_revoked(token)


async def test_tokens_stay_revoked_however_much_time_passes(store: TokenStore, clock: FakeClock) -> None:
    long_lived = claims(clock, "a", lifetime=90 * 86_400)
    await store.record(long_lived)
    await store.revoke_all(ALICE)

    clock.advance(89 * 86_400)
    await minted(store, clock, "b")

    assert await store.is_revoked(long_lived)


async def test_revocations_at_the_same_time_each_count(store: TokenStore, clock: FakeClock) -> None:
    before = await store.generation(ALICE)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(store.revoke_all, ALICE)

    assert await store.generation(ALICE) > before
    assert await store.is_revoked(claims(clock, "a", generation=before))
    assert not await store.is_revoked(await minted(store, clock, "b"))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param("openshift/Alice", id="case"),
        pytest.param("openshift/alice ", id="trailing-space"),
        pytest.param("openshift/alicé", id="accent"),
        pytest.param("openshift/alice/", id="slash"),
        pytest.param("keycloak/alice", id="provider"),
        pytest.param("openshift/%", id="wildcard"),
    ],
)
async def test_users_whose_names_look_alike_are_not_the_same(store: TokenStore, clock: FakeClock, other: str) -> None:
    token = await minted(store, clock, "a")

    assert not await store.revoke(other, "a")
    await store.revoke_all(other)

    assert not await store.is_revoked(token)


async def test_tokens_of_users_with_names_of_any_script_are_revoked(store: TokenStore, clock: FakeClock) -> None:
    owner = "openshift/алиса \U0001f600 'o\"" + "x" * 300
    one, two = await minted(store, clock, "a", owner), await minted(store, clock, "b", owner)

    assert await store.revoke(owner, "a")
    assert await store.is_revoked(one)
    assert not await store.is_revoked(two)

    await store.revoke_all(owner)
    assert await store.is_revoked(two)
