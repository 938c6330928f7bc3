"""Certificate authorities of upstreams that are gone when the gateway is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from msgspec import structs

from maas_middleware import ConfigurationError, ProxySettings, Settings
from maas_middleware._proxying import transport_of


def test_authorities_that_vanished_are_a_problem_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    settings = structs.replace(Settings(), proxy=ProxySettings(ca_file=str(file)))
    transport_of(settings)

    file.unlink()
    with pytest.raises(ConfigurationError) as caught:
        transport_of(settings)

    assert str(caught.value) == f"proxy.ca_file: {file} cannot be read: No such file or directory"
