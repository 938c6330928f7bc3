"""What was verified is remembered for a while, and not for ever."""

from __future__ import annotations

import pytest

from maas_middleware.identity import Identity
from maas_middleware.providers._verified_tokens import VerifiedToken, VerifiedTokens
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.testing.clock import FakeClock
from maas_middleware.tokens import Claims

KEYS = SigningKeys.generate()


def verified(token_id: str = "a") -> VerifiedToken:
    return VerifiedToken(Claims(token_id, "openshift/alice", 0, 0, 900), 0, Identity("openshift", "alice"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def tokens(clock: FakeClock, maximum: int = 2) -> VerifiedTokens:
    return VerifiedTokens(maximum=maximum, seconds=30, clock=clock)


def known(remembered: VerifiedTokens, *names: str) -> str:
    return "".join(name for name in names if remembered.get(name, KEYS) is not None)


def test_verified_token_is_given_again_until_its_seconds_are_over(clock: FakeClock) -> None:
    remembered, alice = tokens(clock), verified()

    assert remembered.get("a", KEYS) is None
    remembered.keep("a", KEYS, alice)

    for _ in range(3):
        assert remembered.get("a", KEYS) is alice
        clock.advance(9.99)
    clock.advance(0.03)
    assert remembered.get("a", KEYS) is None


def test_verified_token_of_a_time_ahead_is_not_used(clock: FakeClock) -> None:
    remembered = tokens(clock)
    remembered.keep("a", KEYS, verified())

    clock.advance(-0.1)

    assert remembered.get("a", KEYS) is None


def test_verified_token_is_not_used_with_other_keys(clock: FakeClock) -> None:
    remembered = tokens(clock)
    remembered.keep("a", KEYS, verified())

    assert remembered.get("a", SigningKeys.from_jwks(str(KEYS.private_jwks()).replace("'", '"'))) is None
    assert remembered.get("a", KEYS) is None


def test_token_that_was_not_asked_for_the_longest_is_forgotten_first(clock: FakeClock) -> None:
    remembered = tokens(clock)
    remembered.keep("a", KEYS, verified("a"))
    remembered.keep("b", KEYS, verified("b"))
    assert known(remembered, "a") == "a"

    remembered.keep("c", KEYS, verified("c"))

    assert known(remembered, "a", "b", "c") == "ac"


def test_no_more_than_the_maximum_is_remembered(clock: FakeClock) -> None:
    remembered = tokens(clock, maximum=3)

    for name in "abcdefgh":
        remembered.keep(name, KEYS, verified(name))

    assert known(remembered, *"abcdefgh") == "fgh"


def test_tokens_themselves_are_not_remembered(clock: FakeClock) -> None:
    remembered = tokens(clock)

    remembered.keep("secret.secret.secret", KEYS, verified())

    assert "secret" not in repr(vars(remembered))
