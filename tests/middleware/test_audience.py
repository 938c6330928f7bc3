from __future__ import annotations

from typing import Any

import pytest
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from maas_middleware import (
    AssertedTierResolver,
    AssertionKeys,
    AssertionSigner,
    AudienceMiddleware,
    Catalogue,
    ErrorEnvelopeMiddleware,
    IdentityMiddleware,
    Model,
    NoTier,
    SignedProvider,
    TierMiddleware,
    stack,
)
from maas_middleware.testing.converse import Conversation, converse
from tests.parts import ALICE, Answering, identified, json_answer, knock, start_up, starting_up

KEYS = AssertionKeys((b"k" * 32,))
CATALOGUE = Catalogue([Model("granite", aliases=("g",)), Model("llama")])
CHAT = {"messages": [{"role": "user", "content": "Hello!"}]}


def behind_a_gateway(app: ASGIApp) -> ASGIApp:
    return stack(
        app,
        Middleware(ErrorEnvelopeMiddleware),
        Middleware(IdentityMiddleware, provider=SignedProvider(keys=KEYS, audiences=["granite", "g", "llama", "gone"])),
        Middleware(AudienceMiddleware, catalogue=CATALOGUE),
        Middleware(TierMiddleware, resolver=AssertedTierResolver(), catalogue=CATALOGUE),
    )


def assertion(audience: str = "granite") -> tuple[str, str]:
    signed = AssertionSigner(keys=KEYS).sign(ALICE, tier="free", audience=audience, request_id="r1")
    return "x-maas-assertion", signed.decode()


async def ask(app: ASGIApp, path: str, body: dict[str, Any], audience: str = "granite") -> Conversation:
    return await converse(behind_a_gateway(app), "POST", path, headers=[assertion(audience)], json=body)


@pytest.mark.parametrize(
    ("path", "body", "audience"),
    [
        pytest.param("/v1/chat/completions", CHAT | {"model": "granite"}, "granite", id="body"),
        pytest.param("/v1/chat/completions", CHAT, "granite", id="nothing"),
        pytest.param("/granite/v1/chat/completions", CHAT, "g", id="path"),
    ],
)
async def test_request_is_for_the_model_of_its_assertion(path: str, body: dict[str, Any], audience: str) -> None:
    app = Answering(*json_answer(b"{}"))

    answer = await ask(app, path, body, audience)

    assert answer.status == 200
    assert app.scopes[0]["state"]["maas"].model.id == "granite"
    assert app.scopes[0]["state"]["maas"].tier.name == "free"


@pytest.mark.parametrize(
    ("path", "body", "audience", "status"),
    [
        pytest.param("/v1/chat/completions", CHAT | {"model": "llama"}, "granite", 404, id="another-in-the-body"),
        pytest.param("/llama/v1/chat/completions", CHAT, "granite", 403, id="another-in-the-path"),
        pytest.param("/v1/chat/completions", CHAT, "gone", 404, id="model-that-is-not-there"),
    ],
)
async def test_request_for_another_model_is_refused(
    path: str, body: dict[str, Any], audience: str, status: int
) -> None:
    app = Answering(*json_answer(b"{}"))

    answer = await ask(app, path, body, audience)

    assert answer.status == status
    assert app.scopes == []


async def test_websocket_is_refused() -> None:
    app = Answering()

    messages = await knock(behind_a_gateway(app), headers=[assertion()])

    assert (messages[0]["status"], app.scopes) == (404, [])


async def test_caller_without_an_assertion_is_a_mistake_of_whoever_composed() -> None:
    app = identified(AudienceMiddleware(Answering(), catalogue=CATALOGUE))

    answer = await converse(app, headers=[("authorization", "Bearer alice-token")])

    assert isinstance(answer.exception, LookupError)
    with pytest.raises(NoTier):
        await AssertedTierResolver().resolve(ALICE)


async def test_lifespan_is_the_apps() -> None:
    assert await start_up(AudienceMiddleware(starting_up, catalogue=CATALOGUE)) == [
        {"type": "lifespan.startup.complete"}
    ]
