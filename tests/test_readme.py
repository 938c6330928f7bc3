"""What the README says of settings and code is so, and links on all pages lead somewhere."""

from __future__ import annotations

import ast
import re

import pytest

import maas_middleware
from maas_middleware.settings import Settings
from maas_middleware.settings.schema import leaves, schema_of

from .processes import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}


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


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", "".join(PAGES.values()), re.M | re.S))
def test_python_blocks_are_python_and_import_what_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module == "maas_middleware":
            assert {alias.name for alias in node.names} <= set(maas_middleware.__all__)


def links() -> list[tuple[str, str]]:
    """Every link within the repository, with the page that has it."""
    return [
        (page, link)
        for page, text in PAGES.items()
        for link in sorted(
            set(re.findall(r"\]\(((?!http)[^)]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)))
        )
    ]


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links, as GitHub does it."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "link"), links())
def test_links_lead_somewhere(page: str, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page

    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text())


def test_readme_links_to_every_page() -> None:
    linked = {link.partition("#")[0] for page, link in links() if page == "README.md"}

    assert PAGES.keys() - {"README.md"} <= linked
