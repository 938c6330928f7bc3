from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware.catalogue import Catalogue, Model
from maas_middleware.context import get_context
from maas_middleware.endpoints import CHAT_COMPLETIONS, ENDPOINTS, INVOCATIONS, Endpoint
from maas_middleware.errors import StoreUnavailable
from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.limiting import Charge, Demand, Subject, Verdict, parse_limits
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.requests import JSONRequest
from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.converse import converse, http_scope
from maas_middleware.tiers import FEATURES, GroupTierResolver, Tier
from tests.parts import (
    ALICE,
    AS_ALICE,
    AS_BOB,
    CATALOGUE,
    FREE,
    PREMIUM,
    QWEN,
    RESOLVER,
    SIMULATOR,
    Answering,
    identified,
    json_answer,
    knock,
    start_up,
    starting_up,
)

CHAT = {"model": "simulator", "messages": []}
CHAT_ENDPOINT = CATALOGUE.locate(CHAT_COMPLETIONS).endpoint("POST")


def tiered(app: ASGIApp, **options: Any) -> ASGIApp:
    return identified(TierMiddleware(app, **{"resolver": RESOLVER, "catalogue": CATALOGUE, **options}))


def inner() -> Answering:
    return Answering(*json_answer(b"{}"))


async def test_tier_endpoint_model_and_request_are_in_the_context() -> None:
    app = inner()

    await converse(tiered(app), "POST", CHAT_COMPLETIONS, headers=[AS_BOB], json={"model": "org/qwen3"})

    context = get_context(app.scopes[0])
    assert (context.tier, context.model) == (PREMIUM, QWEN)
    assert context.endpoint is CHAT_ENDPOINT
    assert isinstance(context.request, JSONRequest)
    assert context.request.model == "qwen3"
    assert context.request.encoded == app.bodies[0]


async def test_changed_tiers_apply_to_the_next_request() -> None:
    tiers = [Tier("free", groups=("free-users",))]
    app = inner()
    shell = tiered(app, resolver=GroupTierResolver(lambda: tiers))

    await converse(shell, "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], json=CHAT)
    tiers.append(Tier("gold", level=9, groups=("free-users",)))
    await converse(shell, "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], json=CHAT)

    seen = [get_context(scope).tier for scope in app.scopes]
    assert seen == tiers


async def test_caller_in_no_tier_is_told_so_before_the_body_is_read() -> None:
    async def receive() -> Message:
        raise AssertionError("the body was read")

    shell = tiered(inner(), resolver=GroupTierResolver([]))

    answer = await converse(
        lambda scope, _, send: shell(scope, receive, send), "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], json=CHAT
    )

    assert answer.status == 403
    assert answer.json()["error"] == {
        "message": "You are in no group that gives access to a tier",
        "type": "permission_error",
        "param": None,
        "code": "no_tier",
    }


async def test_missing_identity_middleware_is_named() -> None:
    answer = await converse(TierMiddleware(inner(), resolver=RESOLVER), "POST", CHAT_COMPLETIONS, json=CHAT)

    assert answer.messages == []
    assert isinstance(answer.exception, LookupError)
    assert str(answer.exception) == "TierMiddleware needs to know the identity: wrap it in IdentityMiddleware"


@pytest.mark.parametrize(
    ("path", "root", "forwarded"),
    [
        pytest.param("/v1/chat/completions", "", "/v1/chat/completions", id="canonical"),
        pytest.param("/v1/completions", "", "/v1/completions", id="completions"),
        pytest.param("/v1/chat/completions/", "", "/v1/chat/completions", id="trailing-slash"),
        pytest.param("/v1/chat/completions/v1/completions", "", "/v1/completions", id="doubled"),
        pytest.param("/v1/chat/completions/v1/chat/completions/", "", "/v1/chat/completions", id="doubled-and-slash"),
        pytest.param("/simulator/v1/chat/completions", "", "/v1/chat/completions", id="model-prefix"),
        pytest.param(
            "/simulator/v1/chat/completions/v1/chat/completions", "", "/v1/chat/completions", id="model-prefix-doubled"
        ),
        pytest.param("/srv/v1/chat/completions/", "/srv", "/srv/v1/chat/completions", id="root-in-the-path"),
        pytest.param("/v1/chat/completions/", "/srv", "/v1/chat/completions", id="root-absent-from-the-path"),
        pytest.param("/srv/simulator/v1/completions", "/srv", "/srv/v1/completions", id="root-and-model-prefix"),
        pytest.param("/simulator/v1/completions", "/simulator", "/simulator/v1/completions", id="root-like-a-model"),
    ],
)
async def test_canonical_path_is_what_is_forwarded(path: str, root: str, forwarded: str) -> None:
    app = inner()

    answer = await converse(
        tiered(app),
        "POST",
        path,
        headers=[AS_ALICE],
        json=CHAT,
        scope={"root_path": root, "raw_path": b"/v1/load_lora_adapter", "query_string": b"a=1"},
    )

    assert answer.status == 200
    assert app.scopes[0]["path"] == forwarded
    assert app.scopes[0]["raw_path"] == forwarded.encode()
    assert app.scopes[0]["root_path"] == root
    assert app.scopes[0]["query_string"] == b"a=1"


@pytest.mark.parametrize(
    ("path", "root"),
    [
        pytest.param("/", "", id="root"),
        pytest.param("/v1/embeddings/x", "", id="below-an-endpoint"),
        pytest.param("/v1x/chat/completions", "", id="v1x"),
        pytest.param("/v1x/chat/completions", "/v1", id="v1x-behind-a-root"),
        pytest.param("/srvx/v1/chat/completions", "/srv", id="root-is-no-segment"),
        pytest.param("/V1/chat/completions", "", id="upper-case"),
        pytest.param("//v1/chat/completions", "", id="two-slashes-before"),
        pytest.param("/v1//chat/completions", "", id="two-slashes-inside"),
        pytest.param("/v1/chat/completions//", "", id="two-slashes-behind"),
        pytest.param("/v1/chat/completions/../../load_lora_adapter", "", id="dots"),
        pytest.param("/v1/chat/completions/v1/tokens", "", id="doubled-to-something-else"),
        pytest.param("/simulatorx/v1/chat/completions", "", id="prefix-of-no-model"),
        pytest.param("/simulator/v1/tokens", "", id="nothing-behind-a-model"),
        pytest.param("/maas-api/v1/chat/completions", "", id="below-maas-api"),
    ],
)
async def test_what_is_no_endpoint_is_404_and_never_forwarded(path: str, root: str) -> None:
    app = inner()

    answer = await converse(tiered(app), "POST", path, headers=[AS_ALICE], json=CHAT, scope={"root_path": root})

    assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")
    assert app.scopes == []


CLOSED = {"administrative": (403, "access_denied"), "refused": (404, "not_found")}


@pytest.mark.parametrize(
    "endpoint", [endpoint for endpoint in ENDPOINTS if not endpoint.is_served], ids=lambda endpoint: endpoint.path
)
@pytest.mark.parametrize("unlisted", [pytest.param("refuse", id="refuse"), pytest.param("pass", id="pass")])
async def test_endpoint_that_is_not_served_is_refused_whatever_the_method_and_never_forwarded(
    endpoint: Endpoint, unlisted: str
) -> None:
    app = inner()
    shell = tiered(app, unlisted=unlisted, ledger=MemoryLedger(clock=FakeClock()))
    path = endpoint.path.replace("*", "some/thing")

    answers = [
        await converse(shell, method, prefix + path, headers=[AS_ALICE], body=b'{"model":"simulator"}')
        for method in ("GET", "POST", "DELETE", "OPTIONS")
        for prefix in ("", "/simulator")
    ]

    status, code = CLOSED[endpoint.kind]
    assert {answer.status for answer in answers} == {status}
    # Anthropic's errors have no code
    assert {answer.json()["error"].get("code", code) for answer in answers} == {code}
    assert {(await converse(shell, "HEAD", path, headers=[AS_ALICE])).status} == {CLOSED[endpoint.kind][0]}
    assert not any(name.startswith("x-ratelimit") for answer in answers for name, _ in answer.headers)
    assert app.scopes == []


async def test_route_of_operators_is_refused_in_words_that_name_nothing() -> None:
    answer = await converse(tiered(inner()), "POST", "/v1/load_lora_adapter", headers=[AS_ALICE], body=b"not read")

    assert answer.json()["error"] == {
        "message": "This route is for the operators of the model server alone",
        "type": "permission_error",
        "param": None,
        "code": "access_denied",
    }


@pytest.mark.parametrize(
    "endpoint",
    [row for row in ENDPOINTS if row.dialect is not None and not row.dialect.is_form and row is not INVOCATIONS],
    ids=lambda endpoint: endpoint.path,
)
@pytest.mark.parametrize(
    ("prefix", "fields"),
    [
        pytest.param("", {"model": "simulator"}, id="model-in-the-body"),
        pytest.param("/simulator", {}, id="in-the-path"),
    ],
)
async def test_every_json_endpoint_is_forwarded_under_its_path_and_the_models_own_name(
    endpoint: Endpoint, prefix: str, fields: dict[str, str]
) -> None:
    app = inner()

    answer = await converse(
        tiered(app), "POST", f"{prefix}{endpoint.path}/", headers=[AS_ALICE], json={**fields, "input": "Hi"}
    )

    assert answer.status == 200
    assert app.scopes[0]["path"] == endpoint.path
    assert json.loads(app.bodies[0]) == {"model": "sim", "input": "Hi"}
    context = get_context(app.scopes[0])
    assert (context.endpoint, context.model) == (endpoint, SIMULATOR)


async def test_what_is_no_endpoint_passes_as_it_is_where_that_is_wished() -> None:
    app = inner()
    body = b'{"a": 1, "a": 2}'

    await converse(
        tiered(app, unlisted="pass"),
        "PUT",
        "/other//path/",
        headers=[AS_ALICE, ("content-length", "16")],
        body=body,
    )

    assert (app.scopes[0]["path"], app.bodies[0]) == ("/other//path/", body)
    assert app.headers == [(b"content-length", b"16")]
    context = get_context(app.scopes[0])
    assert (context.tier, context.endpoint, context.model) == (FREE, None, None)


@pytest.mark.parametrize(
    "method",
    [pytest.param("GET", id="get"), pytest.param("OPTIONS", id="options"), pytest.param("DELETE", id="delete")],
)
@pytest.mark.parametrize("unlisted", [pytest.param("refuse", id="refuse"), pytest.param("pass", id="pass")])
async def test_wrong_method_is_405_with_those_that_are_right(method: str, unlisted: str) -> None:
    app = inner()

    answer = await converse(tiered(app, unlisted=unlisted), method, CHAT_COMPLETIONS, headers=[AS_ALICE])

    assert (answer.status, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.header("allow") == "HEAD, POST"
    assert app.scopes == []


async def test_head_passes_without_a_body_or_a_model() -> None:
    app = Answering(*json_answer(b""))

    answer = await converse(tiered(app), "HEAD", CHAT_COMPLETIONS + "/", headers=[AS_ALICE])

    assert answer.status == 200
    assert app.scopes[0]["path"] == CHAT_COMPLETIONS
    context = get_context(app.scopes[0])
    assert (context.endpoint, context.model) == (CHAT_ENDPOINT, None)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        pytest.param("/simulator/v1/chat/completions", 200, id="mine"),
        pytest.param("/llm/qwen3/v1/chat/completions", 403, id="not-for-the-tier"),
        pytest.param("/llm/nothing/v1/chat/completions", 404, id="unknown"),
    ],
)
async def test_head_below_a_model_is_for_those_who_may_use_it(path: str, status: int) -> None:
    answer = await converse(tiered(Answering(*json_answer(b""))), "HEAD", path, headers=[AS_ALICE])

    assert answer.status == status


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        pytest.param(CHAT_COMPLETIONS, {"model": "nothing"}, 404, "model_not_found", "model", id="unknown"),
        pytest.param(CHAT_COMPLETIONS, {"model": "org/qwen3"}, 403, "access_denied", None, id="of-another-tier"),
        pytest.param(f"/llm/qwen3{CHAT_COMPLETIONS}", {}, 403, "access_denied", None, id="of-another-tier-in-the-path"),
        pytest.param(
            f"/simulator{CHAT_COMPLETIONS}", {"model": "nothing"}, 404, "model_not_found", "model", id="not-the-paths"
        ),
        pytest.param(CHAT_COMPLETIONS, {"n": 1}, 400, "missing_required_parameter", "model", id="absent"),
        pytest.param(CHAT_COMPLETIONS, {"model": ""}, 400, "missing_required_parameter", "model", id="empty"),
        pytest.param(CHAT_COMPLETIONS, {"model": ["simulator"]}, 400, "invalid_value", "model", id="wrong-type"),
    ],
)
async def test_model_that_the_caller_may_not_use_is_refused(
    path: str, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    app = inner()

    answer = await converse(tiered(app), "POST", path, headers=[AS_ALICE], json=body)

    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (status, code, param)
    assert app.scopes == []


async def test_model_of_another_tier_is_refused_in_the_words_of_the_guide() -> None:
    answer = await converse(tiered(inner()), "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], json={"model": "org/qwen3"})

    assert answer.body == (
        b'{"error":{"message":"Insufficient permissions for this model","type":"permission_error","param":null,'
        b'"code":"access_denied"}}'
    )


@pytest.mark.parametrize(
    "body", [pytest.param(b"", id="empty"), pytest.param(b"[]", id="array"), pytest.param(b'{"model":', id="truncated")]
)
async def test_body_that_is_no_json_object_is_400(body: bytes) -> None:
    answer = await converse(tiered(inner()), "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], body=body)

    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT_COMPLETIONS, b'{"model":"simulator","n":1}', id="in-the-body"),
        pytest.param("/simulator/v1/chat/completions", b'{"n":1}', id="in-the-path"),
        pytest.param("/simulator/v1/chat/completions", b'{"model":"simulator","n":1}', id="in-both"),
        pytest.param("/simulator/v1/chat/completions", b'{"model":null,"n":1}', id="in-the-path-and-null"),
    ],
)
async def test_model_is_forwarded_under_the_name_that_its_server_knows(path: str, body: bytes) -> None:
    app = inner()

    await converse(tiered(app), "POST", path, headers=[AS_ALICE], body=body)

    assert json.loads(app.bodies[0]) == {"model": "sim", "n": 1}
    assert get_context(app.scopes[0]).model == SIMULATOR


ALIASED = Model("org/model", aliases=("gpt-4o", "model"), upstream_model="/models/m", path="/m")


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        pytest.param(CHAT_COMPLETIONS, {"model": "gpt-4o"}, 200, id="alias"),
        pytest.param(CHAT_COMPLETIONS, {"model": "org/model"}, 200, id="id"),
        pytest.param(f"/m{CHAT_COMPLETIONS}", {"model": "model"}, 200, id="alias-below-its-path"),
        pytest.param(f"/m{CHAT_COMPLETIONS}", {}, 200, id="path-alone"),
        pytest.param(CHAT_COMPLETIONS, {"model": "/models/m"}, 404, id="the-servers-own-name"),
        pytest.param(f"/m{CHAT_COMPLETIONS}", {"model": "gpt-4"}, 404, id="no-alias-below-its-path"),
        pytest.param(f"/gpt-4o{CHAT_COMPLETIONS}", {}, 404, id="alias-is-no-path"),
    ],
)
async def test_model_is_called_by_its_aliases(path: str, fields: dict[str, str], status: int) -> None:
    app = inner()

    answer = await converse(
        tiered(app, catalogue=Catalogue([ALIASED])), "POST", path, headers=[AS_ALICE], json={**fields, "n": 1}
    )

    assert answer.status == status
    if status == 200:
        assert json.loads(app.bodies[0]) == {"model": "/models/m", "n": 1}
        assert get_context(app.scopes[0]).model == ALIASED
    else:
        assert app.scopes == []


def resolving(**fields: Any) -> GroupTierResolver:
    return GroupTierResolver([replace(FREE, **fields)])


async def test_feature_that_the_tier_lacks_is_refused_with_the_limits() -> None:
    app = inner()
    shell = tiered(app, resolver=resolving(features=["tools"]), ledger=MemoryLedger(clock=FakeClock()))

    answer = await converse(shell, "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], json={**CHAT, "stream": True})

    assert answer.status == 403
    assert answer.json()["error"] == {
        "message": "`streaming` is not available in your tier",
        "type": "permission_error",
        "param": None,
        "code": "feature_not_available",
        "details": {"feature": "streaming", "tier": "free"},
    }
    assert answer.header("x-ratelimit-remaining-requests") == "5"
    assert app.scopes == []


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/audio/transcriptions", "/v1/messages/count_tokens"])
async def test_endpoint_that_the_tier_lacks_is_refused_before_the_body_is_read(path: str) -> None:
    async def receive() -> Message:
        raise AssertionError("the body was read")

    ledger = MemoryLedger(clock=FakeClock())
    shell = tiered(inner(), resolver=resolving(features=["streaming"]), ledger=ledger)

    answer = await converse(lambda scope, _, send: shell(scope, receive, send), "POST", path, headers=[AS_ALICE])

    assert (answer.status, answer.exception) == (403, None)
    assert "is not available in your tier" in answer.json()["error"]["message"]
    assert answer.header("x-ratelimit-remaining-requests") == "5"


async def test_head_to_an_endpoint_that_the_tier_lacks_passes() -> None:
    answer = await converse(
        tiered(inner(), resolver=resolving(features=[])), "HEAD", "/v1/embeddings", headers=[AS_ALICE]
    )

    assert answer.status == 200


async def test_feature_of_a_changed_tier_applies_to_the_next_request() -> None:
    tiers, app = [replace(FREE, features=[])], inner()
    shell = tiered(app, resolver=GroupTierResolver(lambda: tiers))

    refused = await converse(shell, "POST", "/v1/embeddings", headers=[AS_ALICE], json=CHAT)
    tiers[0] = replace(FREE, features=FEATURES)
    served = await converse(shell, "POST", "/v1/embeddings", headers=[AS_ALICE], json=CHAT)

    assert (refused.status, served.status) == (403, 200)


@pytest.mark.parametrize("field", ["previous_response_id", "conversation", "background"])
async def test_response_without_an_owner_is_refused(field: str) -> None:
    app = inner()

    answer = await converse(
        tiered(app), "POST", "/v1/responses", headers=[AS_ALICE], json={"model": "simulator", field: "resp_1"}
    )

    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "unsupported_parameter", field)
    assert app.scopes == []


LONG = Model("long", upstream_model="l", context_length=4096)


@pytest.mark.parametrize(
    ("path", "fields", "forwarded"),
    [
        pytest.param(CHAT_COMPLETIONS, {}, {"max_tokens": 50}, id="chat"),
        pytest.param(CHAT_COMPLETIONS, {"max_tokens": 7}, {"max_tokens": 7}, id="named"),
        pytest.param(
            "/v1/completions",
            {"max_completion_tokens": 7},
            {"max_completion_tokens": 7, "max_tokens": 7},
            id="named-where-nobody-reads",
        ),
        pytest.param("/v1/messages", {}, {"max_tokens": 50}, id="messages"),
        pytest.param("/v1/responses", {}, {"max_output_tokens": 50}, id="responses"),
        pytest.param("/v1/embeddings", {}, {}, id="embeddings"),
        pytest.param("/v1/messages/count_tokens", {}, {}, id="counting"),
        pytest.param("/tokenize", {}, {}, id="tokenize"),
    ],
)
async def test_cap_of_the_tier_is_forwarded(path: str, fields: dict[str, int], forwarded: dict[str, int]) -> None:
    app = inner()
    shell = tiered(app, resolver=resolving(max_tokens_per_request=50), catalogue=Catalogue([LONG]))

    answer = await converse(shell, "POST", path, headers=[AS_ALICE], json={"model": "long", **fields})

    assert answer.status == 200
    assert json.loads(app.bodies[0]) == {"model": "l", **forwarded}


async def test_tokens_of_a_prompt_that_fills_the_context_can_be_counted() -> None:
    shell = tiered(inner(), resolver=resolving(max_tokens_per_request=50), catalogue=Catalogue([LONG]))

    answer = await converse(
        shell, "POST", "/v1/messages/count_tokens", headers=[AS_ALICE], json={"model": "long", "messages": "x" * 9000}
    )

    assert answer.status == 200


async def test_more_tokens_than_the_tier_allows_are_refused_in_the_shape_of_the_dialect() -> None:
    app = inner()

    answer = await converse(
        tiered(app, resolver=resolving(max_tokens_per_request=50)),
        "POST",
        "/v1/messages",
        headers=[AS_ALICE],
        json={"model": "simulator", "max_tokens": 51},
    )

    assert (answer.status, app.scopes) == (400, [])
    assert answer.json() == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "Your tier allows a request to generate at most 50 tokens",
            "details": {"maximum": 50},
        },
        "request_id": None,
    }


async def test_without_a_catalogue_the_inner_app_knows_its_models() -> None:
    app = inner()

    await converse(tiered(app, catalogue=None), "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], json={"model": "any/1"})

    assert json.loads(app.bodies[0]) == {"model": "any/1"}


async def test_what_was_judged_is_what_is_forwarded() -> None:
    app = inner()
    body = [
        b'{ "model": "org/qwen3", "model": "simulator", "request_id": "mine",',
        b' "seed": 12345678901234567890, "temperature": 0.10000000000000000001, "unknown": {"a": [1e3, null]} }',
    ]
    headers = [AS_ALICE, ("Content-Length", "999"), ("transfer-encoding", "chunked"), ("x-other", "kept")]

    await converse(tiered(app), "POST", CHAT_COMPLETIONS, headers=headers, body=body)

    assert app.bodies[0] == (
        b'{"model":"sim","seed":12345678901234567890,"temperature":0.10000000000000000001,"unknown":{"a": [1e3, null]}}'
    )
    assert app.headers == [
        (b"x-other", b"kept"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(app.bodies[0])).encode()),
    ]


async def test_app_hears_the_client_itself_behind_the_body() -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([(await receive())["type"], (await receive())["type"]])

    await converse(tiered(app), "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], json=CHAT, leave_after=0)

    assert heard == ["http.request", "http.disconnect"]


async def test_client_that_leaves_while_sending_reaches_nobody_and_gets_no_answer() -> None:
    app = inner()

    answer = await converse(
        tiered(app), "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], body=[b'{"model":'], leave_while_sending=True
    )

    assert (answer.messages, answer.exception, app.scopes) == ([], None, [])


@pytest.mark.parametrize(
    ("size", "status"), [pytest.param(60, 200, id="at-the-limit"), pytest.param(61, 413, id="over-the-limit")]
)
async def test_body_over_the_limit_is_413_counted_as_it_comes(size: int, status: int) -> None:
    app = inner()
    body = b'{"model":"simulator"}'.ljust(size)

    answer = await converse(
        tiered(app, max_body_bytes=60),
        "POST",
        CHAT_COMPLETIONS,
        headers=[AS_ALICE, ("content-length", "1")],
        body=[body[:30], body[30:]],
    )

    assert answer.status == status
    assert len(app.scopes) == (status == 200)
    if status == 413:
        assert answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        pytest.param(CHAT_COMPLETIONS, b"no json", 400, id="400"),
        pytest.param(CHAT_COMPLETIONS, b'{"model":"org/qwen3"}', 403, id="403"),
        pytest.param(CHAT_COMPLETIONS, b'{"model":"nothing"}', 404, id="404"),
        pytest.param(CHAT_COMPLETIONS, b'{"model":"simulator","a":"%s"}' % (b"a" * 1000), 413, id="413"),
    ],
)
async def test_refusal_tells_the_limits_and_costs_nothing(path: str, body: bytes, status: int) -> None:
    ledger = MemoryLedger(clock=FakeClock())
    await ledger.admit(FREE.subject(ALICE), Demand("an earlier one", 30))
    before = await ledger.peek(FREE.subject(ALICE))

    answer = await converse(
        tiered(inner(), ledger=ledger, max_body_bytes=1000), "POST", path, headers=[AS_ALICE], body=body
    )

    assert answer.status == status
    assert answer.header("x-ratelimit-limit-requests") == "5"
    assert answer.header("x-ratelimit-remaining-requests") == "4"
    assert answer.header("x-ratelimit-limit-tokens") == "100"
    assert answer.header("x-ratelimit-remaining-tokens") == "70"
    assert await ledger.peek(FREE.subject(ALICE)) == before


@pytest.mark.parametrize(
    ("options", "names"),
    [
        pytest.param({"ietf_headers": True}, ["ratelimit-policy", "ratelimit"], id="wished"),
        pytest.param({}, [], id="not-wished"),
    ],
)
async def test_refusal_carries_the_headers_of_the_ietf_where_that_is_wished(
    options: dict[str, bool], names: list[str]
) -> None:
    shell = tiered(inner(), ledger=MemoryLedger(clock=FakeClock()), **options)

    headers = [AS_ALICE, ("content-length", "19")]

    answer = await converse(shell, "POST", CHAT_COMPLETIONS, headers=headers, body=b'{"model":"nothing"}')

    assert answer.status == 404
    assert [name for name, _ in answer.headers if name.startswith("ratelimit")] == names
    assert answer.header("x-ratelimit-remaining-requests") == "5"


@pytest.mark.parametrize(
    ("method", "path", "tiers", "status"),
    [
        pytest.param("POST", CHAT_COMPLETIONS, [], 403, id="no-tier"),
        pytest.param("POST", "/nothing", [FREE], 404, id="no-endpoint"),
        pytest.param("GET", CHAT_COMPLETIONS, [FREE], 405, id="wrong-method"),
    ],
)
async def test_refusal_of_what_is_not_limited_tells_no_limits(
    method: str, path: str, tiers: list[Tier], status: int
) -> None:
    shell = tiered(inner(), ledger=MemoryLedger(clock=FakeClock()), resolver=GroupTierResolver(tiers))

    answer = await converse(shell, method, path, headers=[AS_ALICE], json=CHAT)

    assert answer.status == status
    assert not any(name.startswith("x-ratelimit") for name, _ in answer.headers)


@pytest.mark.parametrize(
    ("trouble", "logged"),
    [
        pytest.param(StoreUnavailable(), [], id="that-it-tells"),
        pytest.param(ConnectionError("at 10.0.0.1"), ["the ledger failed on request None"], id="that-it-does-not"),
    ],
)
async def test_ledger_in_trouble_changes_nothing_about_a_refusal(
    trouble: Exception, logged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Down(MemoryLedger):
        async def peek(self, subject: Subject, /) -> Verdict:
            raise trouble

    answer = await converse(
        tiered(inner(), ledger=Down()), "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], json={"model": "nothing"}
    )

    assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert sorted({*caplog.messages}) == logged


async def test_refusal_without_a_ledger_tells_no_limits(caplog: pytest.LogCaptureFixture) -> None:
    answer = await converse(tiered(inner()), "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], json={"model": "nothing"})

    assert [name for name, _ in answer.headers] == ["content-type", "content-length"]
    assert caplog.records == []


async def test_scope_of_the_server_stays_as_it_is() -> None:
    scope = http_scope("POST", "/simulator/v1/completions/", headers=[AS_ALICE])
    before = dict(scope)

    await converse(
        lambda _, receive, send: tiered(inner())(scope, receive, send), body=b'{"model":"simulator","stream":true}'
    )

    assert scope == before


class Between(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        assert request.state.maas.identity == ALICE
        response = await call_next(request)
        response.headers["x-tier"] = request.state.maas.tier.name
        return response


async def test_base_http_middleware_between_the_shells_keeps_the_context() -> None:
    app = inner()
    shell = TierMiddleware(app, resolver=RESOLVER, catalogue=CATALOGUE)

    answer = await converse(identified(Between(shell)), "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], json=CHAT)

    assert (answer.status, answer.header("x-tier")) == (200, "free")
    assert json.loads(app.bodies[0]) == {"model": "sim", "messages": []}


async def test_lifespan_passes() -> None:
    assert await start_up(TierMiddleware(starting_up, resolver=RESOLVER)) == [{"type": "lifespan.startup.complete"}]


@pytest.mark.parametrize(
    ("can_deny", "denial"),
    [
        pytest.param(True, ["websocket.http.response.start", "websocket.http.response.body"], id="can-deny"),
        pytest.param(False, ["websocket.close"], id="cannot-deny"),
    ],
)
@pytest.mark.parametrize("path", [pytest.param(CHAT_COMPLETIONS, id="endpoint"), pytest.param("/live", id="any")])
async def test_websocket_is_refused(path: str, can_deny: bool, denial: list[str]) -> None:
    app = inner()

    messages = await knock(tiered(app), path, headers=[AS_ALICE], can_deny=can_deny)

    assert [message["type"] for message in messages] == denial
    assert messages[0].get("status", 404) == 404
    assert app.scopes == []


async def test_websocket_passes_where_unlisted_paths_do() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert get_context(scope).tier == FREE
        await send({"type": "websocket.accept"})

    messages = await knock(tiered(app, unlisted="pass"), "/live", headers=[AS_ALICE])

    assert messages == [{"type": "websocket.accept"}]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(CHAT_COMPLETIONS, id="served"),
        pytest.param("/v1/realtime", id="refused"),
        pytest.param("/v1/load_lora_adapter", id="administrative"),
        pytest.param(f"/simulator{CHAT_COMPLETIONS}", id="below-a-model"),
    ],
)
async def test_websocket_to_an_endpoint_is_refused_even_where_unlisted_paths_pass(path: str) -> None:
    app = inner()

    messages = await knock(tiered(app, unlisted="pass"), path, headers=[AS_ALICE])

    assert messages[0]["status"] == 404
    assert app.scopes == []


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("content-length", "65537")], id="length"),
        pytest.param([("content-length", "9" * 5000)], id="length-of-5000-digits"),
        pytest.param([("transfer-encoding", "chunked")], id="no-length"),
    ],
)
async def test_whoever_is_over_a_limit_is_refused_before_a_large_body_is_read(headers: list[tuple[str, str]]) -> None:
    ledger, app = MemoryLedger(clock=FakeClock()), inner()
    shell = tiered(app, ledger=ledger, resolver=GroupTierResolver([replace(FREE, requests=parse_limits("1/minute"))]))
    await ledger.admit(Subject(ALICE.key, parse_limits("1/minute"), ()), Demand("first", 1))

    async def receive() -> Message:
        raise AssertionError("the body was read")

    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await shell(http_scope("POST", CHAT_COMPLETIONS, headers=[AS_ALICE, *headers]), receive, send)

    error = json.loads(messages[1]["body"])["error"]
    names = [name for name, _ in messages[0]["headers"]]
    assert (messages[0]["status"], error["code"]) == (429, "rate_limit_exceeded")
    assert (error["details"]["limit"], error["details"]["quota"]) == ("requests", 1)
    assert names.count(b"retry-after") == names.count(b"x-ratelimit-remaining-requests") == 1
    assert app.scopes == []


async def test_small_body_is_read_before_anything_is_said_of_the_limits() -> None:
    ledger = MemoryLedger(clock=FakeClock())
    tier = replace(FREE, requests=parse_limits("1/minute"))
    await ledger.admit(tier.subject(ALICE), Demand("first", 1))
    shell = tiered(inner(), ledger=ledger, resolver=GroupTierResolver([tier]))

    headers = [AS_ALICE, ("content-length", "19")]

    answer = await converse(shell, "POST", CHAT_COMPLETIONS, headers=headers, body=b'{"model":"nothing"}')

    assert answer.status == 404


async def test_large_body_within_the_limits_is_read() -> None:
    app = inner()
    body = json.dumps({"model": "simulator", "messages": "x" * 70_000}).encode()

    answer = await converse(
        tiered(app, ledger=MemoryLedger(clock=FakeClock())), "POST", CHAT_COMPLETIONS, headers=[AS_ALICE], body=body
    )

    assert answer.status == 200


@pytest.mark.parametrize(
    ("path", "tokens", "requests", "status"),
    [
        pytest.param("/tokenize", 100, "5/minute", 200, id="unmetered-without-tokens"),
        pytest.param("/v1/messages/count_tokens", 100, "5/minute", 200, id="counting-without-tokens"),
        pytest.param("/tokenize", 100, "1/minute", 429, id="unmetered-without-requests"),
        pytest.param(CHAT_COMPLETIONS, 100, "5/minute", 429, id="billable-without-tokens"),
    ],
)
async def test_large_body_is_refused_early_for_what_the_endpoint_costs(
    path: str, tokens: int, requests: str, status: int
) -> None:
    ledger, app = MemoryLedger(clock=FakeClock()), inner()
    tier = replace(FREE, requests=parse_limits(requests))
    lease = (await ledger.admit(tier.subject(ALICE), Demand("first", 1))).lease
    assert lease is not None
    await ledger.settle(lease, Charge(tokens))

    answer = await converse(
        tiered(app, ledger=ledger, resolver=GroupTierResolver([tier])),
        "POST",
        path,
        headers=[AS_ALICE, ("transfer-encoding", "chunked")],
        json=CHAT,
    )

    assert answer.status == status
    assert len(app.scopes) == (status == 200)
