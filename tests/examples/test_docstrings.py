from __future__ import annotations

import ast
from pathlib import Path

import pytest

import examples

TESTS = Path(__file__).parents[1]
EXAMPLES = sorted(path for path in Path(examples.__path__[0]).glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.stem))
def test_an_example_is_short_and_says_how_to_run_and_to_try_it(path: Path) -> None:
    source = path.read_text()

    docstring = ast.get_docstring(ast.parse(source)) or ""

    assert f"uvicorn examples.{path.stem}:" in docstring or f"python -m examples.{path.stem}" in docstring
    assert "curl " in docstring
    assert len(source.splitlines()) <= 75
    assert any((TESTS / folder / f"test_{path.stem}.py").exists() for folder in ("examples", "third_party"))
