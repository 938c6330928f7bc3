"""Changed tiers apply within a second, or not at all."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from maas_middleware.identity import Identity
from maas_middleware.settings import ConfigurationError, Settings, TierSettings, load_settings, validated
from maas_middleware.settings.watching import WatchedTiers
from maas_middleware.testing.clock import FakeClock
from maas_middleware.tiers import FEATURES, GroupTierResolver

FREE = "[{name: free, groups: [a]}]"
BOTH = "[{name: free, groups: [a]}, {name: premium, level: 1, groups: [a]}]"


def write(path: Path, text: str) -> str:
    """Write a file with a time of change of its own, however fast the tests are."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 1_000_000_000, before + 1_000_000_000))
    return str(path)


def names(tiers: WatchedTiers) -> list[str]:
    return [tier.name for tier in tiers.current()]


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_a_changed_file_applies_a_second_after_the_last_look(tmp_path: Path) -> None:
    clock, file = FakeClock(), tmp_path / "tiers.yaml"
    tiers = WatchedTiers(validated(Settings(tiers_file=write(file, FREE))), clock=clock)

    write(file, BOTH)
    clock.advance(0.99)
    early = names(tiers)
    clock.advance(0.01)

    assert (early, names(tiers)) == (["free"], ["free", "premium"])
    assert tiers.problem is None


async def test_the_resolver_sees_the_change(tmp_path: Path) -> None:
    clock, file = FakeClock(), tmp_path / "tiers.yaml"
    tiers = WatchedTiers(load_settings({"MAAS_TIERS_FILE": write(file, FREE)}), clock=clock)
    resolver = GroupTierResolver(tiers.current)
    alice = Identity("openshift", "alice", ("a",))

    before = await resolver.resolve(alice)
    write(file, BOTH)
    clock.advance(1)

    assert (before.name, (await resolver.resolve(alice)).name) == ("free", "premium")


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    clock, file = FakeClock(), tmp_path / "tiers.yaml"
    tiers = WatchedTiers(validated(Settings(tiers_file=write(file, FREE))), clock=clock)
    first = tiers.current()

    clock.advance(60)

    assert tiers.current() is first


def test_files_are_looked_at_once_a_second_at_most(tmp_path: Path) -> None:
    clock, file = FakeClock(), tmp_path / "tiers.yaml"
    tiers = WatchedTiers(validated(Settings(tiers_file=write(file, FREE))), clock=clock)
    clock.advance(1)
    tiers.current()

    write(file, BOTH)
    clock.advance(0.5)
    early = names(tiers)
    clock.advance(0.5)

    assert (early, names(tiers)) == (["free"], ["free", "premium"])


def test_an_exchanged_symbolic_link_is_a_change(tmp_path: Path) -> None:
    """Kubernetes writes a new directory, and lets `..data` point there; the file itself is a link into `..data`."""
    clock = FakeClock()
    for version, text in (("..v1", FREE), ("..v2", BOTH)):
        (tmp_path / version).mkdir()
        write(tmp_path / version / "tiers", text)
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "tiers").symlink_to("..data/tiers")
    tiers = WatchedTiers(load_settings({"MAAS_TIERS_FILE": str(tmp_path / "tiers")}), clock=clock)

    (tmp_path / "..new").symlink_to("..v2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    clock.advance(1)

    assert names(tiers) == ["free", "premium"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(
            "[{name: premium}, {name: gold}]",
            "tiers.yaml: [1].limits: tier gold has no limit on requests and tokens: "
            "write one here or in tier_limits.gold, or write unlimited",
            id="without-limits",
        ),
        pytest.param("[", "tiers_file: {file} is not valid YAML: ", id="no-yaml"),
        pytest.param("", "tiers.yaml: has to be a list", id="emptied"),
        pytest.param("[{}, 5]", "tiers.yaml: [0].name: is missing; tiers.yaml: [1]: has to be a mapping", id="several"),
        pytest.param(None, "tiers_file: {file} cannot be read: No such file or directory", id="removed"),
    ],
)
def test_a_bad_change_is_refused_whole_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None, problem: str
) -> None:
    clock, file = FakeClock(), tmp_path / "tiers.yaml"
    tiers = WatchedTiers(validated(Settings(tiers_file=write(file, FREE))), clock=clock)
    good = tiers.current()

    if text is None:
        file.unlink()
    else:
        write(file, text)
    for _ in range(5):
        clock.advance(1)
        assert tiers.current() is good

    assert tiers.problem is not None
    assert tiers.problem.startswith(problem.format(file=file))
    assert refusals(caplog) == [f"changed configuration is refused, the tiers stay as they were: {tiers.problem}"]


def test_a_second_bad_change_is_logged_again_and_a_good_one_ends_the_problem(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, file = FakeClock(), tmp_path / "tiers.yaml"
    tiers = WatchedTiers(validated(Settings(tiers_file=write(file, FREE))), clock=clock)

    for text in ("[5]", "[6, 7]"):
        write(file, text)
        clock.advance(1)
        assert names(tiers) == ["free"]
    write(file, BOTH)
    clock.advance(1)

    assert tiers.problem is None
    assert names(tiers) == ["free", "premium"]
    assert len(refusals(caplog)) == 2


def test_the_problem_is_known_without_any_request(tmp_path: Path) -> None:
    clock, file = FakeClock(), tmp_path / "tiers.yaml"
    tiers = WatchedTiers(validated(Settings(tiers_file=write(file, FREE))), clock=clock)

    file.unlink()
    clock.advance(1)

    assert tiers.problem == f"tiers_file: {file} cannot be read: No such file or directory"


def test_tiers_that_a_restart_would_refuse_are_refused(tmp_path: Path) -> None:
    clock, file = FakeClock(), tmp_path / "tiers.yaml"
    settings = load_settings(
        {"MAAS_TIERS_FILE": write(file, BOTH), "MAAS_MODELS": '[{"id": "m", "tiers": ["premium"]}]'}
    )
    tiers = WatchedTiers(settings, clock=clock)

    write(file, FREE)
    clock.advance(1)

    assert names(tiers) == ["free", "premium"]
    assert tiers.problem == "models[0].tiers: there is no tier premium"


def test_inline_tiers_of_the_config_file_are_watched(tmp_path: Path) -> None:
    clock, config = FakeClock(), tmp_path / "maas.yaml"
    settings = load_settings({"MAAS_CONFIG": write(config, f"tiers: {FREE}")})
    tiers = WatchedTiers(settings, clock=clock)

    write(config, f"tiers: {BOTH}\ntier_limits: {{premium: {{tokens: 7/minute}}}}")
    clock.advance(1)

    assert names(tiers) == ["free", "premium"]
    assert tiers.current()[1].tokens[0].amount == 7


def test_what_a_tier_may_do_changes_with_its_file(tmp_path: Path) -> None:
    clock, file = FakeClock(), tmp_path / "tiers.yaml"
    tiers = WatchedTiers(validated(Settings(tiers_file=write(file, FREE))), clock=clock)
    (before,) = tiers.current()

    write(file, "[{name: free, groups: [a], max_tokens_per_request: 64, features: [tools]}]")
    clock.advance(1)

    (after,) = tiers.current()
    assert (before.max_tokens_per_request, before.features) == (None, None)
    assert (after.max_tokens_per_request, after.features) == (64, frozenset({"tools"}))


def test_a_feature_that_nobody_knows_is_refused_at_run_time_too(tmp_path: Path) -> None:
    clock, file = FakeClock(), tmp_path / "tiers.yaml"
    tiers = WatchedTiers(validated(Settings(tiers_file=write(file, FREE))), clock=clock)

    write(file, "[{name: free, features: [tols]}]")
    clock.advance(1)

    assert tiers.current()[0].features is None
    assert tiers.problem == f"tiers.yaml: [0].features[0]: has to be {' or '.join(sorted(FEATURES))}"


def test_keywords_and_environment_still_go_before_a_changed_config_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, config = FakeClock(), tmp_path / "maas.yaml"
    environ = {"MAAS_TIER_LIMITS": '{"free": {"tokens": "7/minute"}}', "MAAS_STORE": "memory://", "MAAS_UNKNOWN": "x"}
    settings = load_settings(environ, config=write(config, f"tiers: {FREE}"), counters="memory://")
    tiers = WatchedTiers(settings, clock=clock)

    write(config, f"tiers: {BOTH}\ncounters: redis://x\nstore: redis://x\ntier_limits: {{}}")
    clock.advance(1)

    assert names(tiers) == ["free", "premium"]
    assert tiers.current()[0].tokens[0].amount == 7
    assert sum("MAAS_UNKNOWN" in record.getMessage() for record in caplog.records) == 1


def test_a_config_file_with_any_problem_changes_nothing(tmp_path: Path) -> None:
    clock, config = FakeClock(), tmp_path / "maas.yaml"
    tiers = WatchedTiers(load_settings({}, config=write(config, f"tiers: {FREE}")), clock=clock)

    write(config, f"tiers: {BOTH}\ncolour: red")
    clock.advance(1)

    assert names(tiers) == ["free"]
    assert tiers.problem == "maas.yaml: colour: is unknown to this version"


def test_a_config_file_that_names_another_tiers_file_is_followed(tmp_path: Path) -> None:
    clock, config, other = FakeClock(), tmp_path / "maas.yaml", tmp_path / "tiers.yaml"
    write(other, FREE)
    tiers = WatchedTiers(load_settings({}, config=write(config, f"tiers: {BOTH}")), clock=clock)

    write(config, f"tiers_file: {json.dumps(str(other))}")
    clock.advance(1)
    followed = names(tiers)
    write(other, BOTH)
    clock.advance(1)

    assert (followed, names(tiers)) == (["free"], ["free", "premium"])


@pytest.mark.parametrize(
    ("environ", "overrides"),
    [
        pytest.param({"MAAS_TIERS": '[{"name": "free"}]'}, {}, id="environment"),
        pytest.param({}, {"tiers": [TierSettings(name="free")]}, id="keyword"),
    ],
)
def test_tiers_from_elsewhere_than_a_file_are_not_watched(
    tmp_path: Path, environ: dict[str, str], overrides: dict[str, Any]
) -> None:
    clock, config = FakeClock(), tmp_path / "maas.yaml"
    tiers = WatchedTiers(load_settings(environ, config=write(config, "scope: all"), **overrides), clock=clock)

    config.unlink()
    clock.advance(1)

    assert names(tiers) == ["free"]
    assert tiers.problem is None


def test_settings_made_in_python_are_not_watched() -> None:
    assert names(WatchedTiers(Settings(tiers=[TierSettings(name="free")]))) == ["free"]
    assert names(WatchedTiers(Settings())) == ["free", "premium", "enterprise"]


def test_a_file_that_became_invalid_before_the_start_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tiers.yaml"
    settings = validated(Settings(tiers_file=write(file, FREE)))

    write(file, "[")

    with pytest.raises(ConfigurationError):
        WatchedTiers(settings)
