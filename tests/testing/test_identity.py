from __future__ import annotations

from typing import Any

import pytest

from maas_middleware.errors import InvalidCredentials
from maas_middleware.identity import Identity
from maas_middleware.testing.identity import StaticIdentityProvider

ALICE = Identity("openshift", "alice", ("premium-group",))


def scope_with(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers)}


async def test_a_known_token_is_its_identity() -> None:
    provider = StaticIdentityProvider({"alice-token": ALICE})

    assert await provider.identify(scope_with((b"authorization", b"Bearer alice-token"))) == ALICE


async def test_no_token_is_nobody() -> None:
    assert await StaticIdentityProvider({"alice-token": ALICE}).identify(scope_with()) is None


async def test_an_unknown_token_is_refused() -> None:
    provider = StaticIdentityProvider({"alice-token": ALICE})

    with pytest.raises(InvalidCredentials) as refusal:
        await provider.identify(scope_with((b"authorization", b"Bearer other")))

    assert refusal.value.details == {"reason": "unknown"}
