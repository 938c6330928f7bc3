from __future__ import annotations

from collections.abc import Callable

import pytest

from maas_middleware import ConfigurationError

Write = Callable[..., str]


def problems_of(load: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load()
    return str(caught.value).splitlines()
