"""docs/http.md says what the tables in the code say."""

from __future__ import annotations

import pytest

from .reference import PAGE, SECTIONS, written


def test_reference_is_up_to_date() -> None:
    page = PAGE.read_text()

    assert page == written(page), "run: .venv/bin/python -m tests.reference"


@pytest.mark.parametrize("name", SECTIONS)
def test_a_changed_table_would_be_noticed(name: str) -> None:
    page = PAGE.read_text()
    first_row = SECTIONS[name]().splitlines()[-1]

    assert written(page.replace(first_row, "| changed |")) == page
