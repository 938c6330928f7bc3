from __future__ import annotations

import copy
import json

import pytest
from starlette.requests import Request

from maas_middleware.catalogue import Catalogue, Model
from maas_middleware.context import MaaSContext, ensure_context, get_context
from maas_middleware.endpoints import CHAT_COMPLETIONS
from maas_middleware.identity import Identity
from maas_middleware.limiting import Budget, Lease, Limit, Subject, Verdict
from maas_middleware.requests import JSONRequest
from maas_middleware.testing.converse import http_scope
from maas_middleware.tiers import Tier
from maas_middleware.usage import TokenUsage


def full_context() -> MaaSContext:
    limit = Limit(5, 60)
    subject = Subject("openshift/alice", (limit,), ())
    lease = Lease("lease", subject, 100, 1000)
    return MaaSContext(
        request_id="req-1",
        identity=Identity("openshift", "alice", ("premium-group",)),
        tier=Tier("free", groups=("premium-group",), requests=(limit,)),
        endpoint=Catalogue().locate(CHAT_COMPLETIONS).endpoint("POST"),
        model=Model("tiny", aliases=("t",), tiers=frozenset({"free"}), api_key="secret"),
        request=JSONRequest.parse(json.dumps({"model": "tiny", "messages": [{"content": "Hi"}]}).encode()),
        verdict=Verdict(lease, Budget(limit, 4, 60_000, 60_000), None),
        usage=TokenUsage(1, 2, 3),
        produced=2,
        events=3,
        reported_failure=True,
        refusal="access_denied",
    )


def test_nothing_is_known_of_a_new_request() -> None:
    context = ensure_context(http_scope())

    assert context == MaaSContext()
    assert context.usage is None
    assert (context.produced, context.events, context.reported_failure) == (0, 0, False)


def test_context_is_made_once_a_request() -> None:
    scope = http_scope()

    context = ensure_context(scope)

    assert ensure_context(scope) is context
    assert get_context(scope) is context
    assert ensure_context(http_scope()) is not context


def test_context_works_where_the_scope_has_no_state() -> None:
    scope = http_scope()
    del scope["state"]

    context = ensure_context(scope)

    assert get_context(scope) is context
    assert scope["state"] == {"maas": context}


def test_context_leaves_the_rest_of_the_state_alone() -> None:
    scope = http_scope(state={"database": "theirs"})

    context = ensure_context(scope)

    assert scope["state"] == {"database": "theirs", "maas": context}


def test_context_is_seen_through_a_copied_scope_and_by_starlette() -> None:
    scope = http_scope()
    context = ensure_context(scope)
    inner = {**scope, "path": "/other"}

    ensure_context(inner).produced = 7

    assert context.produced == 7
    assert Request(inner).state.maas is context


def test_context_survives_a_deep_copy_of_the_scope() -> None:
    scope = http_scope()
    scope["state"]["maas"] = full_context()

    twin = get_context(copy.deepcopy(scope))

    assert twin == full_context()
    assert twin is not scope["state"]["maas"]
    assert isinstance(twin.request, JSONRequest)
    assert twin.request.naming("other").encoded == b'{"model":"other","messages":[{"content": "Hi"}]}'


def test_context_does_not_show_the_credential_of_the_model() -> None:
    assert "secret" not in repr(full_context())


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({}, id="empty-state"),
        pytest.param({"maas": None}, id="none"),
        pytest.param({"maas": "another-one"}, id="somebody-elses"),
    ],
)
def test_missing_context_says_what_to_wrap_the_app_in(state: dict[str, object]) -> None:
    with pytest.raises(LookupError, match="wrap the app in IdentityMiddleware or MaaSMiddleware"):
        get_context(http_scope(state=state))


def test_missing_state_says_what_to_wrap_the_app_in() -> None:
    scope = http_scope()
    del scope["state"]

    with pytest.raises(LookupError, match="no MaaSContext in this scope"):
        get_context(scope)


def test_what_the_lifespan_of_the_host_left_under_our_name_is_no_context() -> None:
    scope = {"type": "http", "state": {"maas": object()}}

    assert isinstance(ensure_context(scope), MaaSContext)
