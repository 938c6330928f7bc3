"""What is installed are the versions that pyproject.toml tells of; below `scripts/compat lowest` the lowest of them."""

from __future__ import annotations

import os
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def declared() -> list[Requirement]:
    project = PROJECT["project"]
    lines = [*project["dependencies"], *PROJECT["dependency-groups"]["host"]]
    lines += [line for extra in project["optional-dependencies"].values() for line in extra]
    return [one for one in map(Requirement, lines) if one.name != project["name"]]


def minimum(requirement: Requirement) -> Version:
    (bound,) = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
    return bound


def test_lowest_versions_are_those_that_the_tests_run_on() -> None:
    found = {one.name: (Version(version(one.name)), minimum(one)) for one in declared()}
    is_lowest = os.environ.get("VENV", "").endswith("-lowest")

    wrong = [f"{name}: {own}" for name, (own, low) in found.items() if own < low or (is_lowest and own != low)]
    assert wrong == []
