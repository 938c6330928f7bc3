"""`maas-gateway new-key` and `maas-gateway rotate-key`: what they write, say and refuse."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from maas_middleware.cli import main
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.providers.rotation import KeyFile, KeyState
from maas_middleware.testing.clock import FakeClock

NOW = 1_700_000_000
DAYS = 86_400


@pytest.fixture
def file(tmp_path: Path) -> Path:
    assert main(["new-key", str(tmp_path / "keys.json")]) == 0
    return tmp_path / "keys.json"


def entries(file: Path) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = json.loads(file.read_text())["keys"]
    return keys


def key_ids(file: Path) -> list[str]:
    return [entry["kid"] for entry in entries(file)]


def rotate(file: Path, *arguments: str) -> int:
    return main(["rotate-key", str(file), *arguments])


def named(file: Path, *key_ids: str) -> None:
    """A file with keys of those ids, which nobody rotated with the command."""
    file.unlink()
    SigningKeys([(key_id, SigningKeys.generate().key) for key_id in key_ids]).save(file)


# the steps


def test_published_key_verifies_and_does_not_sign(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (old,) = entries(file)

    assert rotate(file, "publish") == 0

    kept, new = entries(file)
    printed = capsys.readouterr().out.splitlines()
    assert kept == old
    assert set(new) == set(old)
    assert SigningKeys.load(file).key_id == old["kid"]
    assert printed[0] == f"{new['kid']} was published: it verifies, and does not sign yet."
    assert "up to two\nminutes" in "\n".join(printed)
    assert printed[-1] == f"    maas-gateway rotate-key {file} sign"


def test_signing_key_moves_to_the_front_and_the_old_one_still_verifies(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rotate(file, "publish")
    old, new = key_ids(file)
    capsys.readouterr()

    assert rotate(file, "sign") == 0

    printed = capsys.readouterr().out.splitlines()
    assert key_ids(file) == [new, old]
    assert [set(entry) - {"d", "x", "y", "kty", "crv", "kid", "use", "alg"} for entry in entries(file)] == [
        set(),
        {"stopped_signing_at"},
    ]
    assert printed[0] == f"{new} signs from now on."
    assert "90 days" in "".join(printed)
    assert printed[-1] == f"    maas-gateway rotate-key {file} retire --key={old}"


def test_retired_key_is_gone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rotate(file, "publish")
    rotate(file, "sign")
    new, old = key_ids(file)
    capsys.readouterr()

    assert rotate(file, "retire", f"--key={old}") == 0

    assert key_ids(file) == [new]
    assert capsys.readouterr().out.startswith(f"{old} was dropped.\n")


def test_keys_are_listed_with_what_they_are_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named(file, "a", "b", "c")
    KeyFile(file, clock=FakeClock(NOW + 0.9)).sign("b")

    assert rotate(file, "list") == 0

    assert capsys.readouterr().out.splitlines() == [
        "b: signs",
        "a: verifies, stopped signing at 2023-11-14T22:13:20Z",
        "c: verifies, and has not signed as far as the file tells",
    ]


@pytest.mark.parametrize("steps", [("publish",), ("publish", "sign"), ("list",)])
def test_each_step_leaves_a_file_for_its_owner_alone_and_no_other(file: Path, steps: tuple[str, ...]) -> None:
    if os.geteuid() == 0:
        os.chown(file, 12345, -1)  # root must not take the file from whom the service runs as
    file.chmod(0o400)
    owner = file.stat().st_uid

    for step in steps:
        assert rotate(file, step) == 0

    assert file.stat().st_uid == owner
    assert file.stat().st_mode & 0o777 == (0o400 if steps == ("list",) else 0o600)
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_step_exchanges_the_file_behind_a_symbolic_link(file: Path) -> None:
    link = file.with_name("link.json")
    link.symlink_to(file.name)

    assert rotate(link, "publish") == 0

    assert link.is_symlink()
    assert len(key_ids(file)) == 2


def test_command_that_comes_next_can_be_copied_into_a_shell(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spaced = file.rename(file.with_name("my keys.json"))
    named(spaced, "a b", "-c")

    rotate(spaced, "publish")
    rotate(spaced, "sign")

    printed = capsys.readouterr().out
    assert f"maas-gateway rotate-key '{spaced}' sign\n" in printed
    assert f"maas-gateway rotate-key '{spaced}' retire --key='a b'\n" in printed


def test_key_whose_id_looks_like_an_option_can_be_named(file: Path) -> None:
    named(file, "a", "-c")

    assert [rotate(file, "sign", "--key=-c"), rotate(file, "retire", "--key=a")] == [0, 0]

    assert key_ids(file) == ["-c"]


# which key is meant


def test_key_that_was_published_last_signs_next(file: Path) -> None:
    (first,) = key_ids(file)
    rotate(file, "publish")
    rotate(file, "sign")
    rotate(file, "publish")
    third = key_ids(file)[-1]
    second = key_ids(file)[0]

    rotate(file, "sign")

    assert key_ids(file) == [third, second, first]


def test_of_several_published_keys_the_last_signs(file: Path) -> None:
    rotate(file, "publish")
    rotate(file, "publish")
    first, second, third = key_ids(file)

    rotate(file, "sign")

    assert key_ids(file) == [third, first, second]


def test_signing_twice_does_not_bring_the_old_key_back(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rotate(file, "publish")
    rotate(file, "sign")
    before = file.read_bytes()

    assert rotate(file, "sign") == 1

    assert file.read_bytes() == before
    assert capsys.readouterr().err == (
        f"{file}: there is no published key that has not signed yet: publish one first\n"
    )


def test_key_that_signs_again_has_not_stopped(file: Path) -> None:
    named(file, "a", "b")
    keys = KeyFile(file, clock=FakeClock(NOW))

    keys.sign("b")
    keys.sign("a")

    assert keys.states() == [KeyState("a", None), KeyState("b", NOW)]


def test_key_that_stopped_signing_first_is_retired_ninety_days_later(file: Path) -> None:
    clock = FakeClock(NOW)
    keys = KeyFile(file, clock=clock)
    (first,) = key_ids(file)
    for _ in range(3):
        keys.publish()
        keys.sign()
        clock.advance(30 * DAYS)
    fourth, third, second, _ = key_ids(file)

    assert keys.retire() == first

    assert key_ids(file) == [fourth, third, second]
    with pytest.raises(ValueError, match=f"{second} signed less than 90 days ago"):
        keys.retire()


def test_key_is_not_retired_a_second_before_the_ninety_days_unless_it_is_named(file: Path) -> None:
    clock = FakeClock(NOW)
    keys = KeyFile(file, clock=clock)
    keys.publish()
    keys.sign()
    old = key_ids(file)[1]

    clock.advance(90 * DAYS - 1)
    with pytest.raises(ValueError, match=f"{old} signed less than 90 days ago, and API keys may live as long"):
        keys.retire()
    clock.advance(1)

    assert keys.retire() == old


def test_published_key_is_not_retired_in_place_of_an_old_one(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rotate(file, "publish")

    assert rotate(file, "retire") == 1

    assert len(key_ids(file)) == 2
    reason = "no key is known to have stopped signing: name the one to drop with --key=KID"
    assert capsys.readouterr().err == f"{file}: {reason}\n"


@pytest.mark.parametrize("at", ["yesterday", -1, 1.5, None, 10**30])
def test_time_that_nobody_can_read_is_no_time(file: Path, at: object, capsys: pytest.CaptureFixture[str]) -> None:
    named(file, "a", "b")
    first, second = entries(file)
    file.write_text(json.dumps({"keys": [first, {**second, "stopped_signing_at": at}]}))

    assert rotate(file, "list") == 0

    assert capsys.readouterr().out.splitlines()[1] == "b: verifies, and has not signed as far as the file tells"


def test_what_else_a_key_says_of_itself_is_kept(file: Path) -> None:
    (entry,) = entries(file)
    file.write_text(json.dumps({"keys": [{**entry, "comment": "of the first cluster"}]}))

    rotate(file, "publish")
    rotate(file, "sign")

    assert [entry.get("comment") for entry in entries(file)] == [None, "of the first cluster"]


# what is refused


def test_only_key_is_never_dropped(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_bytes()
    (only,) = key_ids(file)

    assert [rotate(file, "retire"), rotate(file, "retire", f"--key={only}")] == [1, 1]

    assert file.read_bytes() == before
    assert capsys.readouterr().err == f"{file}: there is one key only, which cannot be dropped\n" * 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param(["retire", "--key=a"], "a signs: let another key sign first", id="retire-the-signing-one"),
        pytest.param(["sign", "--key=a"], "a signs already", id="sign-with-the-signing-one"),
        pytest.param(["sign", "--key=x"], "there is no key x", id="sign-unknown"),
        pytest.param(["retire", "--key=x"], "there is no key x", id="retire-unknown"),
    ],
)
def test_step_that_makes_no_sense_is_a_sentence_and_changes_nothing(
    file: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named(file, "a", "b")
    before = file.read_bytes()

    assert rotate(file, *arguments) == 1

    assert file.read_bytes() == before
    assert capsys.readouterr() == ("", f"{file}: {reason}\n")


@pytest.mark.parametrize("step", ["list", "publish", "sign", "retire"])
@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        pytest.param("{}", 0o600, "is not a JWK set of private P-256 keys with a kid each", id="no-keys"),
        pytest.param("\xff", 0o600, "is not a JWK set of private P-256 keys with a kid each", id="garbage"),
        pytest.param(None, 0o640, "may be read by others than its owner: its mode must be 0600", id="mode"),
        pytest.param(None, None, "No such file or directory", id="missing"),
    ],
)
def test_file_that_the_service_would_refuse_is_not_rotated(
    file: Path, step: str, content: str | None, mode: int | None, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        file.write_text(content, encoding="latin-1")
    if mode is None:
        file.unlink()
    else:
        file.chmod(mode)

    assert rotate(file, step) == 1

    assert capsys.readouterr() == ("", f"{file}: {reason}\n")


def test_new_key_overwrites_nothing_and_tells_so(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_bytes()

    assert main(["new-key", str(file)]) == 1

    assert file.read_bytes() == before
    assert capsys.readouterr() == ("", f"{file}: File exists\n")


def test_no_step_prints_a_private_key(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (["publish"], ["sign"], ["list"], ["retire"]):
        rotate(file, *step)

    printed = "".join(capsys.readouterr())
    assert len(entries(file)) == 2
    assert not any(entry["d"] in printed for entry in entries(file))


@pytest.mark.parametrize("arguments", [[], ["exchange"], ["publish", "--key=a"], ["list", "--key=a"]])
def test_what_is_no_step_is_refused_with_the_usage(
    file: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        rotate(file, *arguments)

    assert re.match(r"usage: maas-gateway", capsys.readouterr().err)
