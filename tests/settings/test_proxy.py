from __future__ import annotations

import pytest

from maas_middleware.settings import ConfigurationError, ProxySettings, load_settings


def test_deadlines_of_whole_answers_and_comments_in_silent_streams_are_off_by_default() -> None:
    proxy = load_settings({}).proxy

    assert (proxy.transport, proxy.total_timeout, proxy.keepalive_interval) == ("auto", None, None)


def test_the_proxy_is_configured_by_variables() -> None:
    variables = {
        "MAAS_PROXY_TRANSPORT": "http11",
        "MAAS_PROXY_TOTAL_TIMEOUT": "1h",
        "MAAS_PROXY_KEEPALIVE_INTERVAL": "15s",
    }

    assert load_settings(variables).proxy == ProxySettings(
        transport="http11", total_timeout=3600.0, keepalive_interval=15.0
    )


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        pytest.param("TRANSPORT", "h2", "has to be auto or http11 or httpx", id="transport"),
        pytest.param("TOTAL_TIMEOUT", "0s", "has to be positive and finite", id="no-time"),
        pytest.param(
            "KEEPALIVE_INTERVAL",
            "15",
            "has to be a duration such as 30s or 1h30m: missing unit in duration",
            id="no-unit",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_settings({f"MAAS_PROXY_{name}": text})

    assert str(refused.value) == f"MAAS_PROXY_{name}: {problem}"
