from __future__ import annotations

from pathlib import Path

import pytest

from . import Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "maas.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write
