"""How groups lead to a tier, and a tier to a budget."""

from __future__ import annotations

import pytest

from maas_middleware.errors import NoTier
from maas_middleware.identity import Identity
from maas_middleware.limiting import Limit, Limits, Subject
from maas_middleware.tiers import GroupTierResolver, Tier

FREE = Tier("free", level=0, groups=("everyone", "trial"))
GOLD = Tier("gold", level=2, groups=("paying",), requests=(Limit(5, 60),), tokens=(Limit(100, 60), Limit(5000, 86_400)))
SILVER = Tier("silver", level=1, groups=("paying", "staff"))
BRONZE = Tier("bronze", level=1, groups=("staff",))


def somebody(*groups: str) -> Identity:
    return Identity("openshift", "alice", groups)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        pytest.param(("everyone",), FREE, id="one-group"),
        pytest.param(("nobody", "trial"), FREE, id="any-of-its-groups"),
        pytest.param(("everyone", "paying"), GOLD, id="the-highest-level-wins"),
        pytest.param(("staff",), SILVER, id="equal-levels-keep-their-order"),
    ],
)
async def test_groups_lead_to_a_tier(groups: tuple[str, ...], expected: Tier) -> None:
    resolver = GroupTierResolver([FREE, GOLD, SILVER, BRONZE])

    assert await resolver.resolve(somebody(*groups)) is expected


@pytest.mark.parametrize(
    ("tiers", "groups"),
    [
        pytest.param([FREE], ("paying",), id="other-groups"),
        pytest.param([FREE], (), id="no-group"),
        pytest.param([Tier("hidden")], ("everyone",), id="tier-without-groups"),
        pytest.param([], ("everyone",), id="no-tier"),
    ],
)
async def test_whoever_is_in_no_tier_is_refused(tiers: list[Tier], groups: tuple[str, ...]) -> None:
    resolver = GroupTierResolver(tiers)

    with pytest.raises(NoTier):
        await resolver.resolve(somebody(*groups))


async def test_tiers_from_a_function_are_those_of_the_moment() -> None:
    in_force = [FREE]
    resolver = GroupTierResolver(lambda: in_force)
    alice = somebody("everyone", "paying")

    before = await resolver.resolve(alice)
    in_force.append(GOLD)

    assert (before, await resolver.resolve(alice)) == (FREE, GOLD)


def test_a_budget_is_the_users_and_carries_the_limits_of_the_tier() -> None:
    assert GOLD.subject(somebody()) == Subject(
        "openshift/alice", requests=(Limit(5, 60),), tokens=(Limit(100, 60), Limit(5000, 86_400))
    )


def test_a_budget_on_a_model_is_one_more_beside_the_users() -> None:
    limits = Limits((Limit(2, 60),), (), concurrency=1)
    tier = Tier("gold", models={"big": limits, "any": Limits()}, concurrency=4)

    on_big = tier.subject_on("big", somebody())

    assert on_big == Subject(on_big.key if on_big else "", (Limit(2, 60),), (), 1)
    assert tier.subject(somebody()).concurrency == 4
    assert (tier.subject_on("any", somebody()), tier.subject_on("small", somebody())) == (None, None)


def test_budgets_on_models_are_never_confused() -> None:
    limits = Limits((Limit(2, 60),))
    tier = Tier("gold", models=dict.fromkeys(("a", "b", "a', 'b"), limits))
    callers = [Identity("openshift", name) for name in ("alice", "bob", "alice', 'a")]

    keys = [subject.key for caller in callers for model in tier.models if (subject := tier.subject_on(model, caller))]

    assert len(set(keys)) == 9
    assert not {caller.key for caller in callers} & set(keys)
