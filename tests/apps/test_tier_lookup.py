from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from maas_middleware.apps.tier_lookup import TierLookupApp
from maas_middleware.identity import Identity
from maas_middleware.middleware.identity import IdentityMiddleware
from maas_middleware.testing.converse import Conversation, converse
from maas_middleware.testing.identity import StaticIdentityProvider
from maas_middleware.tiers import GroupTierResolver, Tier

PATH = "/v1/tiers/lookup"
PROVIDER = StaticIdentityProvider(
    {
        "alice": Identity("openshift", "alice", ("users",)),
        "minted": Identity("openshift", "alice", ("users",), restriction="An access token cannot manage tokens"),
    }
)
RESOLVER = GroupTierResolver(
    [
        Tier("free", "Free Tier", groups=("users", "trial")),
        Tier("premium", "Premium Tier", level=1, groups=("paying",)),
        Tier("plain", level=2, groups=("staff",)),
    ]
)
APP = IdentityMiddleware(TierLookupApp(resolver=RESOLVER), provider=PROVIDER)


async def look_up(
    method: str = "POST", path: str = "", *, user: str = "alice", app: ASGIApp = APP, **options: Any
) -> Conversation:
    return await converse(app, method, PATH + path, headers=[("authorization", f"Bearer {user}")], **options)


def assert_refused(
    conversation: Conversation,
    status: int,
    code: str,
    message: str,
    *,
    kind: str = "invalid_request_error",
    **more: Any,
) -> None:
    assert conversation.exception is None
    assert conversation.status == status
    assert conversation.json() == {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


@pytest.mark.parametrize(
    ("groups", "answer"),
    [
        pytest.param(["trial"], {"tier": "free", "displayName": "Free Tier"}, id="one-group"),
        pytest.param(["users", "x", "paying"], {"tier": "premium", "displayName": "Premium Tier"}, id="highest-level"),
        pytest.param(["staff", "staff"], {"tier": "plain", "displayName": ""}, id="no-display-name"),
    ],
)
async def test_groups_lead_to_a_tier(groups: list[str], answer: dict[str, str]) -> None:
    conversation = await look_up(json={"groups": groups})

    assert conversation.status == 200
    assert conversation.header("content-type") == "application/json"
    assert conversation.json() == answer
    assert conversation.complete


async def test_groups_are_all_that_counts() -> None:
    conversation = await look_up(json={"groups": ["paying"], "user": "alice", "tier": "free"})

    assert conversation.json() == {"tier": "premium", "displayName": "Premium Tier"}


@pytest.mark.parametrize("groups", [pytest.param(["visitors"], id="unknown"), pytest.param([""], id="no-name")])
async def test_groups_that_lead_nowhere_are_404(groups: list[str]) -> None:
    conversation = await look_up(json={"groups": groups})

    assert_refused(conversation, 404, "not_found", "None of these groups gives access to a tier")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="no-body"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no-groups"),
        pytest.param(b'{"Groups": ["users"]}', id="another-key"),
        pytest.param(b'{"groups": null}', id="null-groups"),
        pytest.param(b'{"groups": []}', id="empty-list"),
        pytest.param(b'{"groups": "users"}', id="text"),
        pytest.param(b'{"groups": {"users": true}}', id="object"),
        pytest.param(b'{"groups": ["users", 5]}', id="number-in-it"),
        pytest.param(b'{"groups": [["users"]]}', id="list-in-it"),
        pytest.param(b'{"groups": [NaN]}', id="not-a-number-in-it"),
    ],
)
async def test_groups_that_are_no_list_of_names_are_400(body: bytes) -> None:
    message = "`groups` has to be a list of at least one name"

    assert_refused(await look_up(body=body), 400, "invalid_value", message, param="groups")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"groups=users", "The request body is not JSON", id="form"),
        pytest.param(b'{"groups": ["users"]', "The request body is not JSON", id="truncated"),
        pytest.param(b"[" * 60_000, "The request body is not JSON", id="deep"),
        pytest.param(b'["users"]', "The request body is not a JSON object", id="array"),
        pytest.param(b'"users"', "The request body is not a JSON object", id="text"),
    ],
)
async def test_body_that_is_no_json_object_is_400(body: bytes, message: str) -> None:
    assert_refused(await look_up(body=body), 400, "invalid_json", message)


async def test_body_over_64_kib_is_413() -> None:
    body = b'{"groups": ["users"]}'

    largest = await look_up(body=body.ljust(64 << 10))
    too_large = await look_up(body=[body.ljust(64 << 10), b" "])

    assert largest.status == 200
    assert_refused(too_large, 413, "request_too_large", "The request body is too large")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_other_methods_are_405(method: str) -> None:
    conversation = await look_up(method)

    assert_refused(conversation, 405, "method_not_allowed", "Method not allowed")
    assert conversation.header("allow") == "POST"


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_minted_token_may_not_look_up_tiers(method: str) -> None:
    conversation = await look_up(method, user="minted", json={"groups": ["users"]})

    assert_refused(conversation, 403, "access_denied", "Only a full login may look up tiers", kind="permission_error")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        pytest.param("", 200, id="itself"),
        pytest.param("/", 200, id="trailing-slash"),
        pytest.param("/x", 404, id="below"),
        pytest.param("//", 404, id="two-slashes"),
    ],
)
@pytest.mark.parametrize("root_path", [pytest.param("", id="routed"), pytest.param(PATH, id="mounted")])
async def test_nothing_is_below_it(path: str, status: int, root_path: str) -> None:
    conversation = await look_up(path=path, json={"groups": ["users"]}, scope={"root_path": root_path})

    assert conversation.status == status


async def test_app_may_be_routed_to() -> None:
    app = Starlette(routes=[Route(PATH, APP)])

    conversation = await look_up(app=app, json={"groups": ["users"]})

    assert conversation.json() == {"tier": "free", "displayName": "Free Tier"}


async def test_app_without_an_identity_says_what_is_missing() -> None:
    conversation = await converse(TierLookupApp(resolver=RESOLVER), "POST", PATH)

    assert isinstance(conversation.exception, LookupError)
    assert str(conversation.exception) == "TierLookupApp needs to know the identity: wrap it in IdentityMiddleware"
    assert conversation.messages == []
