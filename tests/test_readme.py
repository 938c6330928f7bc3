"""What the README says of settings, commands and code is so."""

from __future__ import annotations

import ast
import re

import pytest

import maas_middleware
from maas_middleware.settings import Settings
from maas_middleware.settings.schema import leaves, schema_of

from .processes import ROOT

README = (ROOT / "README.md").read_text()


def documented_keys() -> set[str]:
    keys: set[str] = set()
    for row in re.findall(r"^\| (`[^|]+) \|", README.partition("## Settings")[2].partition("## Semantics")[0], re.M):
        first, *others = re.findall(r"`([^`]+)`", row)
        section, _, name = first.rpartition(".")
        _, _, suffix = name.partition("_")
        keys.add(first)
        for other in others:
            full = other + suffix if other.endswith("_") else other
            keys.add(f"{section}.{full}" if section else full)
    return keys


def test_settings_table_has_every_key_and_no_other() -> None:
    assert documented_keys() == {path for path, _ in leaves(schema_of(Settings))}


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", README, re.M | re.S))
def test_python_blocks_are_python_and_import_what_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module == "maas_middleware":
            assert {alias.name for alias in node.names} <= set(maas_middleware.__all__)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http|#)[^)#]+)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
