"""From Settings to what speaks to model servers."""

from __future__ import annotations

from collections.abc import Iterator

from ._asserting import signers_of
from .apps.proxy import ProxyApp
from .balancing import Balancer
from .settings import ConfigurationError, Problem, Settings
from .transports import LoopTransport, upstream_transport


def missing_upstreams(settings: Settings) -> Iterator[Problem]:
    """The models that a gateway could not serve."""
    for index, model in enumerate(settings.models or ()):
        if not model.upstreams:
            yield Problem(f"models[{index}].upstreams", "the gateway needs one")


def transport_of(settings: Settings) -> LoopTransport:
    """The HTTP client for all model servers.

    Raises:
        ConfigurationError: what it needs is not installed, or the certificate authorities cannot be read any more.
    """
    try:
        return upstream_transport(settings.proxy.transport, settings.proxy.ca_file)
    except ValueError as error:
        raise ConfigurationError([Problem("proxy.transport", str(error))]) from None
    except OSError as error:
        message = f"{settings.proxy.ca_file} cannot be read: {error.strerror}"
        raise ConfigurationError([Problem("proxy.ca_file", message)]) from None


def proxy_of(settings: Settings, transport: LoopTransport, balancer: Balancer) -> ProxyApp:
    """The app inside the gateway.

    Raises:
        ConfigurationError: keys of assertions cannot be read any more.
    """
    proxy = settings.proxy
    return ProxyApp(
        transport=transport,
        balancer=balancer,
        signers=signers_of(settings),
        connect_timeout=proxy.connect_timeout,
        first_byte_timeout=proxy.first_byte_timeout,
        idle_timeout=proxy.idle_timeout,
        total_timeout=proxy.total_timeout,
        keepalive_interval=proxy.keepalive_interval,
    )
