"""What every store of tokens promises. A test module imports all of it, and has fixtures `store` and `clock`.

The store tells the time by the clock, and is empty. It also tells what is revoked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import anyio
import pytest

from maas_middleware.testing.clock import FakeClock
from maas_middleware.token_store import Revocations, TokenKind, TokenRecord, TokenStore
from maas_middleware.tokens import Claims

ALICE = "openshift/alice"
BOB = "openshift/bob"
LIFETIME = 900
MONTH = 30 * 86_400


class RevokingStore(TokenStore, Revocations, Protocol):
    """A store that tells what is revoked."""


def claims(
    clock: FakeClock, token_id: str, owner: str = ALICE, generation: int = 0, lifetime: int = LIFETIME
) -> Claims:
    now = int(clock())
    return Claims(token_id, owner, generation, issued_at=now, expires_at=now + lifetime)


async def minted(store: RevokingStore, clock: FakeClock, token_id: str, owner: str = ALICE) -> Claims:
    """What a token says that was minted now, and recorded."""
    said = claims(clock, token_id, owner, await store.generation(owner))
    await store.record(TokenRecord(said))
    return said


async def test_minted_token_is_not_revoked(store: RevokingStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a")

    assert not await store.is_revoked(token)


async def test_owner_who_never_revoked_anything_has_a_generation(store: RevokingStore) -> None:
    assert await store.generation(ALICE) == await store.generation(ALICE) >= 0


async def test_revoked_token_is_revoked_and_no_other(store: RevokingStore, clock: FakeClock) -> None:
    token, other = await minted(store, clock, "a"), await minted(store, clock, "b")

    assert await store.revoke(ALICE, "a")

    assert await store.is_revoked(token)
    assert not await store.is_revoked(other)
    assert await store.generation(ALICE) == other.generation


async def test_token_stays_revoked_until_it_expires(store: RevokingStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a")
    await store.revoke(ALICE, "a")

    clock.advance(LIFETIME - 1)
    await minted(store, clock, "b")
    await store.revoke(ALICE, "b")

    assert await store.is_revoked(token)


async def test_token_revoked_twice_is_revoked(store: RevokingStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a")

    await store.revoke(ALICE, "a")
    await store.revoke(ALICE, "a")

    assert await store.is_revoked(token)


async def test_token_of_somebody_else_cannot_be_revoked(store: RevokingStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a")
    await minted(store, clock, "b", BOB)

    assert not await store.revoke(BOB, "a")

    assert not await store.is_revoked(token)


@pytest.mark.parametrize("token_id", ["unknown", "", "%", "a'--", "ключ"])
async def test_token_that_was_never_minted_cannot_be_revoked(
    store: RevokingStore, clock: FakeClock, token_id: str
) -> None:
    token = await minted(store, clock, "a")

    assert not await store.revoke(ALICE, token_id)

    assert not await store.is_revoked(token)


async def test_revoking_all_revokes_everything_that_was_minted_until_now(
    store: RevokingStore, clock: FakeClock
) -> None:
    tokens = [await minted(store, clock, token_id) for token_id in "abc"]
    unrecorded = claims(clock, "d", generation=await store.generation(ALICE))

    await store.revoke_all(ALICE)

    assert all([await store.is_revoked(token) for token in [*tokens, unrecorded]])


async def test_token_minted_in_the_second_of_the_revocation_is_valid(store: RevokingStore, clock: FakeClock) -> None:
    old = await minted(store, clock, "old")
    await store.revoke_all(ALICE)

    new = await minted(store, clock, "new")

    assert await store.is_revoked(old)
    assert not await store.is_revoked(new)


async def test_revoking_all_again_revokes_what_was_minted_in_between(store: RevokingStore, clock: FakeClock) -> None:
    await store.revoke_all(ALICE)
    between = await minted(store, clock, "a")

    await store.revoke_all(ALICE)

    assert await store.is_revoked(between)
    assert not await store.is_revoked(await minted(store, clock, "b"))


async def test_revoking_all_leaves_other_users_alone(store: RevokingStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a", BOB)

    await store.revoke_all(ALICE)

    assert not await store.is_revoked(token)


async def test_tokens_stay_revoked_however_much_time_passes(store: RevokingStore, clock: FakeClock) -> None:
    long_lived = claims(clock, "a", lifetime=90 * 86_400)
    await store.record(TokenRecord(long_lived))
    await store.revoke_all(ALICE)

    clock.advance(89 * 86_400)
    await minted(store, clock, "b")

    assert await store.is_revoked(long_lived)


async def test_revocations_at_the_same_time_each_count(store: RevokingStore, clock: FakeClock) -> None:
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
async def test_users_whose_names_look_alike_are_not_the_same(
    store: RevokingStore, clock: FakeClock, other: str
) -> None:
    token = await minted(store, clock, "a")

    assert not await store.revoke(other, "a")
    await store.revoke_all(other)

    assert not await store.is_revoked(token)


async def test_tokens_of_users_with_names_of_any_script_are_revoked(store: RevokingStore, clock: FakeClock) -> None:
    owner = "openshift/алиса \U0001f600 'o\"" + "x" * 300
    one, two = await minted(store, clock, "a", owner), await minted(store, clock, "b", owner)

    assert await store.revoke(owner, "a")
    assert await store.is_revoked(one)
    assert not await store.is_revoked(two)

    await store.revoke_all(owner)
    assert await store.is_revoked(two)


def api_key(clock: FakeClock, token_id: str, owner: str = ALICE, lifetime: int = LIFETIME) -> TokenRecord:
    return TokenRecord(claims(clock, token_id, owner, lifetime=lifetime), kind="api_key", name=f"key {token_id}")


def ids(records: Sequence[TokenRecord]) -> str:
    """Their ids, each of which is a letter."""
    return "".join(record.claims.id for record in records)


async def test_token_is_found_as_it_was_recorded(store: RevokingStore, clock: FakeClock) -> None:
    record = TokenRecord(
        claims(clock, "a", generation=3),
        kind="api_key",
        name="laptop",
        description="for the\nnotebook",
        groups=("tier-premium-users", "команда", "a b, c"),
        last_used_at=7,
    )

    assert await store.record(record)

    assert await store.find(ALICE, "a") == record


async def test_access_token_has_neither_name_nor_last_use(store: RevokingStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a")

    assert await store.find(ALICE, "a") == TokenRecord(token, kind="access_token", last_used_at=None)


@pytest.mark.parametrize(("owner", "token_id"), [(BOB, "a"), (ALICE, "b"), (ALICE, "A"), (ALICE, "a "), (ALICE, "")])
async def test_token_is_found_by_its_owner_and_its_exact_id_only(
    store: RevokingStore, clock: FakeClock, owner: str, token_id: str
) -> None:
    await minted(store, clock, "a")

    assert await store.find(owner, token_id) is None


async def test_revoking_tells_what_was_revoked(store: RevokingStore, clock: FakeClock) -> None:
    record = api_key(clock, "a")
    await store.record(record)

    revoked = await store.revoke(ALICE, "a")

    assert revoked == replace(record, is_revoked=True) == await store.revoke(ALICE, "a")
    assert await store.find(ALICE, "a") == revoked


async def test_token_of_an_older_generation_is_found_as_revoked(store: RevokingStore, clock: FakeClock) -> None:
    await store.record(TokenRecord(claims(clock, "a", generation=await store.generation(ALICE))))
    generation = await store.revoke_all(ALICE)
    await store.record(TokenRecord(claims(clock, "b", generation=generation)))

    found = [await store.find(ALICE, token_id) for token_id in "ab"]

    assert [str(record.is_revoked) for record in found if record] == ["True", "False"]
    assert generation == await store.generation(ALICE) == 1
    assert await store.generation(BOB) == 0


async def test_expired_token_cannot_be_revoked(store: RevokingStore, clock: FakeClock) -> None:
    await minted(store, clock, "a")
    await store.record(api_key(clock, "b"))

    clock.advance(LIFETIME)

    assert await store.revoke(ALICE, "a") is None
    assert await store.revoke(ALICE, "b") is None


async def test_expired_access_token_is_not_told_of(store: RevokingStore, clock: FakeClock) -> None:
    await minted(store, clock, "a")

    clock.advance(LIFETIME - 0.5)
    assert ids(await store.list(ALICE)) == "a"

    clock.advance(0.5)
    assert ids(await store.list(ALICE)) == ""
    assert await store.find(ALICE, "a") is None


async def test_expired_api_key_is_told_of_for_thirty_days(store: RevokingStore, clock: FakeClock) -> None:
    await store.record(api_key(clock, "a"))

    clock.advance(LIFETIME + MONTH - 1)
    found = await store.find(ALICE, "a")
    assert found is not None
    assert found.status(clock()) == "expired"

    clock.advance(1)
    assert await store.find(ALICE, "a") is None
    assert ids(await store.list(ALICE)) == ""


async def test_revoked_api_key_is_told_of_as_revoked_after_its_expiry(store: RevokingStore, clock: FakeClock) -> None:
    await store.record(api_key(clock, "a"))
    await store.revoke(ALICE, "a")

    clock.advance(LIFETIME + 1)

    found = await store.find(ALICE, "a")
    assert found is not None
    assert found.status(clock()) == "revoked"


async def test_newest_tokens_are_listed_first_and_those_of_a_second_by_id(
    store: RevokingStore, clock: FakeClock
) -> None:
    for token_ids in ("c", "eda", "b"):
        for token_id in token_ids:
            await minted(store, clock, token_id)
        clock.advance(1)
    await minted(store, clock, "x", BOB)

    assert ids(await store.list(ALICE)) == "badec"
    assert ids(await store.list(BOB)) == "x"


@pytest.mark.parametrize(("kind", "expected"), [("api_key", "db"), ("access_token", "ca"), (None, "dcba")])
async def test_tokens_of_one_kind_are_listed(
    store: RevokingStore, clock: FakeClock, kind: TokenKind | None, expected: str
) -> None:
    for token_id in "abcd":
        record = api_key(clock, token_id)
        await store.record(replace(record, kind="api_key" if token_id in "bd" else "access_token"))
        clock.advance(1)

    assert ids(await store.list(ALICE, kind=kind)) == expected


@pytest.mark.parametrize("kind", [None, "api_key"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
async def test_pages_hold_every_token_once(
    store: RevokingStore, clock: FakeClock, size: int, kind: TokenKind | None
) -> None:
    for token_ids in ("c", "gda", "bf", "e"):
        for token_id in token_ids:
            await store.record(api_key(clock, token_id))
        clock.advance(1)

    seen, page = "", ids(await store.list(ALICE, limit=size, kind=kind))
    while page:
        seen += page
        page = ids(await store.list(ALICE, limit=size, kind=kind, after=page[-1]))

    assert seen == "ebfadgc"


async def test_tokens_that_were_minted_since_do_not_move_the_next_page(store: RevokingStore, clock: FakeClock) -> None:
    for token_id in "abc":
        await minted(store, clock, token_id)
        clock.advance(1)
    page = ids(await store.list(ALICE, limit=2))

    await minted(store, clock, "d")

    assert page == "cb"
    assert ids(await store.list(ALICE, limit=2, after="b")) == "a"


@pytest.mark.parametrize("after", ["unknown", "x", "", "A"])
async def test_after_a_token_that_is_not_the_owners_comes_none(
    store: RevokingStore, clock: FakeClock, after: str
) -> None:
    await minted(store, clock, "a")
    await minted(store, clock, "x", BOB)

    assert ids(await store.list(ALICE, after=after)) == ""


async def test_revoked_tokens_are_listed_as_such(store: RevokingStore, clock: FakeClock) -> None:
    for token_id in "ab":
        await minted(store, clock, token_id)
    await store.revoke(ALICE, "a")

    assert [record.status(clock()) for record in await store.list(ALICE)] == ["revoked", "active"]


async def test_no_more_than_the_maximum_is_active(store: RevokingStore, clock: FakeClock) -> None:
    taken = [await store.record(api_key(clock, token_id), maximum=2) for token_id in "abc"]

    assert taken == [True, True, False]
    assert ids(await store.list(ALICE)) == "ab"
    assert await store.find(ALICE, "c") is None


async def test_maximum_counts_neither_other_kinds_nor_other_users(store: RevokingStore, clock: FakeClock) -> None:
    await minted(store, clock, "a")
    await store.record(api_key(clock, "b", BOB))

    assert await store.record(api_key(clock, "c"), maximum=1)
    assert not await store.record(api_key(clock, "d"), maximum=1)


async def test_maximum_of_none_keeps_nothing(store: RevokingStore, clock: FakeClock) -> None:
    assert not await store.record(api_key(clock, "a"), maximum=0)


async def test_revoked_and_expired_keys_make_room(store: RevokingStore, clock: FakeClock) -> None:
    await store.record(api_key(clock, "a"), maximum=1)
    await store.revoke(ALICE, "a")
    assert await store.record(api_key(clock, "b"), maximum=1)

    clock.advance(LIFETIME)
    assert await store.record(api_key(clock, "c"), maximum=1)

    generation = await store.revoke_all(ALICE)
    record = TokenRecord(claims(clock, "d", generation=generation), kind="api_key")
    assert await store.record(record, maximum=1)
    assert not await store.record(replace(record, claims=replace(record.claims, id="e")), maximum=1)


async def test_keys_that_are_minted_at_the_same_time_are_counted(store: RevokingStore, clock: FakeClock) -> None:
    taken: list[bool] = []

    async def mint(token_id: str) -> None:
        taken.append(await store.record(api_key(clock, token_id), maximum=3))

    async with anyio.create_task_group() as group:
        for token_id in "abcdefgh":
            group.start_soon(mint, token_id)

    assert taken.count(True) == 3
    assert len(await store.list(ALICE)) == 3


async def test_last_use_is_remembered_and_never_goes_back(store: RevokingStore, clock: FakeClock) -> None:
    for token_id in "abc":
        await minted(store, clock, token_id)

    await store.mark_used({"b": 20, "a": 10, "unknown": 5})
    await store.mark_used({"a": 11, "b": 19})
    await store.mark_used({})

    assert [record.last_used_at for record in await store.list(ALICE)] == [11, 20, None]


async def test_using_a_revoked_token_does_not_revive_it(store: RevokingStore, clock: FakeClock) -> None:
    token = await minted(store, clock, "a")
    await store.revoke(ALICE, "a")

    await store.mark_used({"a": 10})

    assert await store.is_revoked(token)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\0", id="nul"),
        pytest.param("a\0b", id="nul-inside"),
        pytest.param("\ud800", id="lone-surrogate"),
        pytest.param("\udcff\ud83d", id="surrogates"),
        pytest.param("\\0 \\ \\\\ \\ud800 \\", id="backslashes"),
        pytest.param("\U0001f600", id="emoji"),
        pytest.param("e\u0301 \u00e9", id="combined-and-composed"),
        pytest.param("%_'\";--\n\t{0}:name", id="specials"),
        pytest.param("я" * 20_000, id="long"),
    ],
)
async def test_text_of_any_kind_is_kept_as_it_is(store: RevokingStore, clock: FakeClock, text: str) -> None:
    owner = f"openshift/{text}"
    record = TokenRecord(claims(clock, "a", owner), kind="api_key", name=text, description=text, groups=(text, "other"))

    assert await store.find(owner, text) is None
    assert await store.revoke(owner, text) is None
    assert await store.list(owner, after=text) == []
    await store.mark_used({text: 1})
    assert await store.record(record, maximum=1)

    assert await store.find(owner, "a") == record
    assert await store.revoke_all(owner) == 1
    assert await store.is_revoked(record.claims)
    assert not await store.is_revoked(claims(clock, "b", owner, generation=1))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("a\0", "a\\0", id="nul"),
        pytest.param("a\0b", "a", id="cut-at-nul"),
        pytest.param("\ud800", "\\ud800", id="surrogate"),
        pytest.param("\ud800", "\ud801", id="two-surrogates"),
        pytest.param("é", "e\u0301", id="composed"),
        pytest.param("x" * 5000, "x" * 5001, id="long"),
        pytest.param("ß", "ss", id="folded"),
    ],
)
async def test_owners_who_differ_by_a_character_are_two(
    store: RevokingStore, clock: FakeClock, one: str, other: str
) -> None:
    token = await minted(store, clock, "a", one)

    await store.revoke_all(other)

    assert not await store.is_revoked(token)
    assert await store.generation(one) == 0
    assert ids(await store.list(one)) == "a"
    assert ids(await store.list(other)) == ""
