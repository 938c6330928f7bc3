"""Changed signing keys apply within a second, or not at all."""

from __future__ import annotations

import json
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from maas_middleware.assertions import AssertionKeys
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.providers.watching import WatchedAssertionKeys, WatchedKeys
from maas_middleware.testing.clock import FakeClock


class Site:
    """A key file, and whoever watches it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.clock = FakeClock()
        self.first = self.write()
        self.watched = WatchedKeys(file, clock=self.clock)

    def write(self, text: str | None = None, mode: int = 0o600) -> str:
        """Exchange the file for one with a fresh key, or with a text; returns the id of the key."""
        keys = SigningKeys.generate()
        new = self.file.with_name("new.json")
        new.write_text(json.dumps(keys.private_jwks()) if text is None else text)
        new.chmod(mode)
        new.replace(self.file)
        return keys.key_id

    @property
    def key_id(self) -> str:
        return self.watched.current().key_id


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "keys.json")


def logged(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_changed_keys_are_in_force_a_second_after_the_last_look(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    second = site.write()
    site.clock.advance(0.99)
    early = site.key_id
    site.clock.advance(0.01)

    assert (early, site.key_id) == (site.first, second)
    assert site.watched.problem is None
    assert logged(caplog, logging.INFO) == [f"signing keys read again: {second} signs, of 1"]


def test_key_file_is_looked_at_once_a_second_at_most(site: Site) -> None:
    site.clock.advance(1)
    assert site.key_id == site.first

    second = site.write()
    site.clock.advance(0.5)
    early = site.key_id
    site.clock.advance(0.5)

    assert (early, site.key_id) == (site.first, second)


def test_keys_of_an_unchanged_file_stay_the_same_object(site: Site) -> None:
    first = site.watched.current()
    site.clock.advance(60)
    unchanged = site.watched.current()
    site.write()
    site.clock.advance(1)
    second = site.watched.current()
    site.clock.advance(1)

    assert unchanged is first
    assert site.watched.current() is second is not first


def test_exchanged_symbolic_link_is_a_change_of_the_keys(tmp_path: Path) -> None:
    """Kubernetes writes a new directory, and lets `..data` point there; the file itself is a link into `..data`."""
    clock = FakeClock()
    rings = {version: SigningKeys.generate() for version in ("..v1", "..v2")}
    for version, keys in rings.items():
        (tmp_path / version).mkdir()
        keys.save(tmp_path / version / "keys.json")
        (tmp_path / version / "keys.json").chmod(0o400)
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    watched = WatchedKeys(tmp_path / "keys.json", clock=clock)
    before = watched.current().key_id

    (tmp_path / "..new").symlink_to("..v2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    clock.advance(1)

    assert (before, watched.current().key_id) == (rings["..v1"].key_id, rings["..v2"].key_id)


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        pytest.param("{", 0o600, "is not a JWK set of private P-256 keys with a kid each", id="half-a-file"),
        pytest.param("", 0o600, "is not a JWK set of private P-256 keys with a kid each", id="emptied"),
        pytest.param('{"keys": []}', 0o600, "is not a JWK set of private P-256 keys with a kid each", id="no-keys"),
        pytest.param(None, 0o640, "may be read by others than its owner: its mode must be 0600", id="group"),
        pytest.param(None, 0o604, "may be read by others than its owner: its mode must be 0600", id="others"),
        pytest.param(None, 0o660, "may be read by others than its owner: its mode must be 0600", id="group-writes"),
        pytest.param(None, 0o644, "may be read by others than its owner: its mode must be 0600", id="everybody"),
    ],
)
def test_bad_change_of_the_keys_is_refused_whole_and_logged_once(
    site: Site, caplog: pytest.LogCaptureFixture, text: str | None, mode: int, reason: str
) -> None:
    good = site.watched.current()

    site.write(text, mode)
    for _ in range(5):
        site.clock.advance(1)
        assert site.watched.current() is good

    assert site.watched.problem == f"{site.file} {reason}"
    assert logged(caplog) == [f"changed signing keys are refused, the keys stay as they were: {site.watched.problem}"]


def test_removed_key_file_is_refused_and_logged_once_until_it_is_back(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    aside = site.file.with_name("aside.json")
    site.file.rename(aside)
    for _ in range(5):
        site.clock.advance(1)
        assert site.key_id == site.first
    problem = site.watched.problem

    aside.rename(site.file)
    site.clock.advance(1)

    assert problem == f"{site.file} cannot be read: No such file or directory"
    assert logged(caplog) == [f"changed signing keys are refused, the keys stay as they were: {problem}"]
    assert (site.watched.problem, site.key_id) == (None, site.first)


def test_repaired_keys_are_in_force_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.write("{")
    site.clock.advance(1)
    refused = site.watched.problem

    second = site.write()
    site.clock.advance(1)

    assert refused is not None
    assert (site.watched.problem, site.key_id) == (None, second)


def test_mode_that_is_made_right_is_a_change_of_the_keys(site: Site) -> None:
    second = site.write(mode=0o644)
    site.clock.advance(1)
    refused = site.key_id

    site.file.chmod(0o600)
    site.clock.advance(1)

    assert (refused, site.key_id) == (site.first, second)


def test_mode_that_is_made_wrong_is_told_and_the_keys_stay(site: Site) -> None:
    site.file.chmod(0o640)
    site.clock.advance(1)

    assert site.watched.problem == f"{site.file} may be read by others than its owner: its mode must be 0600"
    assert site.key_id == site.first


def test_each_new_trouble_with_the_keys_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    for text, mode in (("{", 0o600), ("[", 0o600), ("[", 0o644), ("{", 0o600)):
        site.write(text, mode)
        site.clock.advance(1)
        assert site.key_id == site.first

    assert [line.rpartition("keys.json ")[2][:6] for line in logged(caplog)] == ["is not", "may be", "is not"]


@contextmanager
def no_more_files() -> Iterator[None]:
    """Nothing can be opened in this process, as where all descriptors are taken."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_keys_that_cannot_be_read_for_a_while_are_read_later_without_another_change(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    second = site.write()
    with no_more_files():
        for _ in range(3):
            site.clock.advance(1)
            assert site.key_id == site.first
        problem = site.watched.problem
    site.clock.advance(1)

    assert problem == f"{site.file} cannot be read: Too many open files"
    assert len(logged(caplog)) == 1
    assert (site.watched.problem, site.key_id) == (None, second)


def test_keys_that_change_while_they_are_read_are_read_again(tmp_path: Path) -> None:
    """The first look is from before the reading, so that what came in between is seen by the second."""
    file, late = tmp_path / "keys.json", SigningKeys.generate()
    SigningKeys.generate().save(file)
    late.save(tmp_path / "late.json")
    clock = FakeClock()

    class Slow(type(file)):  # type: ignore[misc]  # the class of paths differs between systems
        def open(self, *arguments: object, **keywords: object) -> object:
            opened = super().open(*arguments, **keywords)
            if (tmp_path / "late.json").exists():
                os.replace(tmp_path / "late.json", file)
            return opened

    watched = WatchedKeys(Slow(file), clock=clock)
    early = watched.current().key_id
    clock.advance(1)

    assert early != late.key_id
    assert watched.current().key_id == late.key_id


def test_keys_that_are_refused_at_the_start_are_not_watched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WatchedKeys(tmp_path / "keys.json")
    (tmp_path / "keys.json").write_text("{}")
    (tmp_path / "keys.json").chmod(0o600)
    with pytest.raises(ValueError, match="is not a JWK set"):
        WatchedKeys(tmp_path / "keys.json")


def test_keys_are_watched_by_the_clock_of_the_computer(site: Site) -> None:
    assert WatchedKeys(site.file).current().key_id == site.first


# keys of assertions


def put(file: Path, text: str, mode: int = 0o640) -> None:
    new = file.with_name("new")
    new.write_text(text)
    new.chmod(mode)
    new.replace(file)


def test_changed_keys_of_assertions_are_in_force_a_second_after_the_last_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock, file = FakeClock(), tmp_path / "assertion-keys"
    put(file, "a" * 32)
    watched = WatchedAssertionKeys(file, clock=clock)
    first = watched.current()

    put(file, f"{'b' * 32}\n{'a' * 32}\n")
    clock.advance(0.99)
    early = watched.current()
    clock.advance(0.01)
    later = watched.current()

    assert early is first
    assert first == AssertionKeys((b"a" * 32,))
    assert later == AssertionKeys((b"b" * 32, b"a" * 32))
    assert watched.problem is None
    assert logged(caplog, logging.INFO) == ["assertion keys read again: there are 2"]


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        pytest.param("", 0o600, "holds no key", id="emptied"),
        pytest.param("b" * 31, 0o600, "holds a key of less than 32 bytes: the 1. one", id="half-a-key"),
        pytest.param("b" * 32, 0o644, "is open to everybody: its mode must be 0640 or narrower", id="everybody"),
    ],
)
def test_bad_change_of_the_keys_of_assertions_is_refused_whole_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, mode: int, reason: str
) -> None:
    clock, file = FakeClock(), tmp_path / "assertion-keys"
    put(file, "a" * 32)
    watched = WatchedAssertionKeys(file, clock=clock)
    good = watched.current()

    put(file, text, mode)
    for _ in range(3):
        clock.advance(1)
        assert watched.current() is good
    problem = watched.problem
    put(file, "c" * 32)
    clock.advance(1)

    assert problem == f"{file} {reason}"
    assert logged(caplog) == [f"changed assertion keys are refused, the keys stay as they were: {problem}"]
    assert watched.current() == AssertionKeys((b"c" * 32,))
    assert watched.problem is None


def test_keys_of_assertions_that_are_refused_at_the_start_are_not_watched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WatchedAssertionKeys(tmp_path / "assertion-keys")
    put(tmp_path / "assertion-keys", "short")
    with pytest.raises(ValueError, match="holds a key of less than 32 bytes"):
        WatchedAssertionKeys(tmp_path / "assertion-keys")
