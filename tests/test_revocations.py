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


@pytest.mark.parametrize(
    ("changes", "after"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param([TokenRevoked(1, "a", NOW)], 0, id="the first"),
        pytest.param([TokenRevoked(4, "a", NOW), GenerationRaised(7, ALICE, 1)], 6, id="several"),
    ],
)
def test_changes_are_asked_for_from_the_last_one_known(changes: list[Change], after: int) -> None:
    assert knowing(*changes).asked_after == after


LAST = TokenRevoked(7, "a", NOW)


@pytest.mark.parametrize(
    ("changes", "is_continued"),
    [
        pytest.param([LAST], True, id="the last alone"),
        pytest.param([LAST, TokenRevoked(8, "b", NOW)], True, id="one more"),
        pytest.param([], False, id="none"),
        pytest.param([TokenRevoked(8, "b", NOW)], False, id="another number"),
        pytest.param([TokenRevoked(7, "b", NOW)], False, id="another token"),
        pytest.param([GenerationRaised(7, ALICE, 1)], False, id="another kind"),
    ],
)
def test_a_store_was_set_back_where_its_changes_do_not_begin_with_the_last_one_known(
    changes: list[Change], is_continued: bool
) -> None:
    known = knowing(TokenRevoked(4, "c", NOW), LAST)
    known.follow([TokenRevoked(5, "d", NOW)])

    assert known.is_continued_by(changes) == is_continued


@pytest.mark.parametrize(("sequence", "is_continued"), [(6, False), (7, True), (8, False)])
def test_of_a_snapshot_the_number_of_the_last_change_is_known(sequence: int, is_continued: bool) -> None:
    known = knowing(LAST)
    known.follow_from(7)

    assert known.is_continued_by([TokenRevoked(sequence, "b", NOW)]) == is_continued
    assert not known.is_continued_by([])


def test_where_nothing_is_known_anything_continues_it() -> None:
    known = knowing(LAST)
    known.follow_from(0)

    assert known.is_continued_by([])
    assert known.is_continued_by([TokenRevoked(3, "b", NOW)])


def test_what_is_known_stays_so_wherever_it_is_followed_from() -> None:
    known = knowing(TokenRevoked(500, "a", NOW + 900))

    known.follow_from(3)

    assert known.covers(token("a"))
    assert known.sequence == 3


def test_a_page_adds_to_what_is_known() -> None:
    known = knowing(TokenRevoked(1, "a", NOW + 900), GenerationRaised(2, ALICE, 1))

    known.load(Snapshot(5, {BOB: 1}, {"b": NOW + 900}))

    assert known.covers(token("a", generation=1))
    assert known.covers(token("b", generation=1))
    assert known.covers(token("c", ALICE))
    assert known.covers(token("c", BOB))
    assert known.sequence == 2


def test_an_older_page_makes_nothing_valid() -> None:
    known = knowing(TokenRevoked(1, "a", NOW + 900), GenerationRaised(2, ALICE, 2), GenerationRaised(3, BOB, 3))

    known.load(Snapshot(1, {ALICE: 1, BOB: 3}, {}))

    assert known.covers(token("a", generation=2))
    assert known.covers(token("b", generation=1))
    assert known.covers(token("c", BOB, generation=2))


def test_revocations_are_forgotten_once_their_tokens_have_expired() -> None:
    known = knowing(TokenRevoked(1, "a", NOW), TokenRevoked(2, "b", NOW + 1))
    known.raise_generation(ALICE, 1)
    known.load(Snapshot(2, {}, {"c": NOW, "d": NOW + 1}))

    assert len(list(known.forget(NOW))) == 1

    assert [known.covers(token(token_id, generation=1)) for token_id in "abcd"] == [False, True, False, True]
    assert known.covers(token("e"))


def test_many_are_looked_through_in_parts_while_others_are_taken_in() -> None:
    count = 10_000
    known = KnownRevocations()
    known.load(Snapshot(1, {}, {str(number): NOW for number in range(2 * count + 1)}))
    left = [2 * count + 1]

    for _ in known.forget(NOW):
        known.revoke("new", NOW + 1)
        left.append(sum(known.covers(token(str(number))) for number in range(2 * count + 1)))

    assert left == [2 * count + 1, count + 1, 1, 0]
    assert known.covers(token("new"))


def test_two_who_look_through_it_at_once_are_not_in_each_others_way() -> None:
    known = knowing(TokenRevoked(1, "a", NOW + 1))
    known.load(Snapshot(1, {}, {str(number): NOW for number in range(30_000)}))
    one, other = known.forget(NOW), known.forget(NOW)

    next(one)
    list(other)
    list(one)

    assert known.covers(token("a"))
    assert not any(known.covers(token(str(number))) for number in range(30_000))


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
            known.load(step)
            list(known.forget(NOW))
        else:
            known.follow(step)

        now_covered = {claims for claims in TOKENS if known.covers(claims)}
        assert covered <= now_covered
        covered = now_covered
