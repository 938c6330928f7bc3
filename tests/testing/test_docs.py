"""What docs/testing.md shows works as it is pasted, and shows every public name."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

from maas_middleware import testing
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "testing.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


def test_every_snippet_is_a_file_of_tests_that_pass(tmp_path: Path) -> None:
    fixture, *files = BLOCKS
    (tmp_path / "conftest.py").write_text(fixture)
    for number, text in enumerate(files):
        (tmp_path / f"test_{number}.py").write_text(text)

    # Starlette 0.40 imports python-multipart by its old name
    strict = ("-W", "error", "-W", "ignore::PendingDeprecationWarning")
    command = [sys.executable, "-m", "pytest", *strict, "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAAS_", "COVERAGE_"))}
    environ["PYTHONPATH"] = str(ROOT)
    ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=28)

    assert ran.returncode == 0, ran.stdout
    assert f"{''.join(files).count('def test_')} passed" in ran.stdout


def test_every_public_name_is_in_the_table_and_in_a_snippet() -> None:
    table = re.findall(r"^\| (`[^|]+) \|", PAGE, re.M)

    assert sorted(re.findall(r"`([^`]+)`", "".join(table))) == sorted(testing.__all__)
    code = re.sub(r"^from .*\n", "", "".join(BLOCKS), flags=re.M)
    assert {name for name in testing.__all__ if not re.search(rf"\b{name}\b", code)} == set()


def test_public_names_are_sorted_exist_and_say_what_they_are() -> None:
    assert testing.__all__ == sorted(testing.__all__)
    for name in testing.__all__:
        assert inspect.getdoc(getattr(testing, name)), name
