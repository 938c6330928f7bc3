from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_middleware.revocations import Change, GenerationRaised, KnownRevocations, Snapshot, TokenRevoked
from maas_middleware.tokens import Claims

ALICE = "openshift/alice"
BOB = "openshift/bob"
NOW = 1_000_000


def token(token_id: str = "a", owner: str = ALICE, generation: int = 0) -> Claims:
    return Claims(token_id, owner, generation, NOW, NOW + 900)


def knowing(*changes: Change) -> KnownRevocations:
    known = KnownRevocations()
    known.follow(changes)
    return known


def test_nothing_is_revoked_at_first() -> None:
    known = KnownRevocations()

    assert not known.covers(token())
    assert known.sequence == 0


def test_a_revoked_token_is_covered_and_no_other() -> None:
    known = knowing(TokenRevoked(1, "a", NOW + 900))

    assert known.covers(token("a"))
    assert not known.covers(token("b"))


def test_tokens_of_older_generations_of_the_owner_are_covered() -> None:
    known = knowing(GenerationRaised(1, ALICE, 2))

    assert known.covers(token(generation=1))
    assert not known.covers(token(generation=2))
    assert not known.covers(token(generation=3))
    assert not known.covers(token(owner=BOB))


def test_what_is_revoked_here_is_covered_and_leaves_the_sequence_alone() -> None:
    known = knowing(TokenRevoked(3, "a", NOW + 900))

    known.revoke("b", NOW + 900)
    known.raise_generation(BOB, 1)

    assert known.covers(token("b"))
    assert known.covers(token("c", BOB))
    assert known.sequence == 3


@pytest.mark.parametrize(
    "generations", [pytest.param((1, 2), id="in order"), pytest.param((2, 1), id="the older one later")]
)
def test_a_generation_never_falls(generations: tuple[int, int]) -> None:
    known = knowing(*(GenerationRaised(number, ALICE, raised) for number, raised in enumerate(generations, 1)))

    assert known.covers(token(generation=1))


def test_the_sequence_is_that_of_the_last_change() -> None:
    known = knowing(TokenRevoked(4, "a", NOW), GenerationRaised(7, ALICE, 1))

    assert known.sequence == 7

    known.follow([TokenRevoked(5, "b", NOW)])
    assert known.sequence == 7
    known.follow([])
    assert known.sequence == 7


def test_a_snapshot_adds_to_what_is_known() -> None:
    known = knowing(TokenRevoked(1, "a", NOW + 900), GenerationRaised(2, ALICE, 1))

    known.load(Snapshot(5, {BOB: 1}, {"b": NOW + 900}), NOW)

    assert known.covers(token("a", generation=1))
    assert known.covers(token("b", generation=1))
    assert known.covers(token("c", ALICE))
    assert known.covers(token("c", BOB))
    assert known.sequence == 5


def test_an_older_snapshot_makes_nothing_valid() -> None:
    known = knowing(TokenRevoked(1, "a", NOW + 900), GenerationRaised(2, ALICE, 2), GenerationRaised(3, BOB, 3))

    known.load(Snapshot(1, {ALICE: 1, BOB: 3}, {}), NOW)

    assert known.covers(token("a", generation=2))
    assert known.covers(token("b", generation=1))
    assert known.covers(token("c", BOB, generation=2))


def test_after_a_snapshot_of_a_lower_sequence_the_changes_follow_from_there() -> None:
    """A store that was restored from a backup counts on from a lower one."""
    known = knowing(TokenRevoked(500, "a", NOW + 900))

    known.load(Snapshot(3, {}, {}), NOW)

    assert known.sequence == 3


def test_revocations_are_forgotten_at_a_snapshot_once_their_tokens_have_expired() -> None:
    known = knowing(TokenRevoked(1, "a", NOW), TokenRevoked(2, "b", NOW + 1))
    known.raise_generation(ALICE, 1)

    known.load(Snapshot(2, {}, {"c": NOW, "d": NOW + 1}), NOW)

    assert [known.covers(token(token_id, generation=1)) for token_id in "abcd"] == [False, True, False, True]
    assert known.covers(token("e"))


SEQUENCES = st.integers(1, 20)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(TokenRevoked, SEQUENCES, st.sampled_from("abc"), st.just(NOW + 900)),
    st.builds(GenerationRaised, SEQUENCES, st.sampled_from([ALICE, BOB]), st.integers(1, 3)),
)
SNAPSHOTS = st.builds(
    Snapshot,
    SEQUENCES,
    st.dictionaries(st.sampled_from([ALICE, BOB]), st.integers(1, 3)),
    st.dictionaries(st.sampled_from("abc"), st.just(NOW + 900)),
)
TOKENS = [token(token_id, owner, generation) for token_id in "abc" for owner in (ALICE, BOB) for generation in range(4)]


@given(st.lists(st.one_of(st.lists(CHANGES, max_size=3), SNAPSHOTS), max_size=6))
def test_nothing_becomes_valid_again_in_whatever_order_it_comes(steps: list[list[Change] | Snapshot]) -> None:
    known = KnownRevocations()
    covered: set[Claims] = set()
    for step in steps:
        if isinstance(step, Snapshot):
            known.load(step, NOW)
        else:
            known.follow(step)

        now_covered = {claims for claims in TOKENS if known.covers(claims)}
        assert covered <= now_covered
        covered = now_covered
