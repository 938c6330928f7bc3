from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint
from starlette.responses import HTMLResponse

from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.cluster import (
    API_AUDIENCE,
    OWN_USER_PATH,
    REVIEWS_PATH,
    ClusterUser,
    Review,
    StandInCluster,
)
from tests.servers import serving

ALICE = "sha256~alice0123456789abcdefghijklmnopqrstuvwxyz0"
NESTED_DEEPLY = base64.urlsafe_b64encode(b'{"x":' + b"[" * 5000).decode()
GATEWAY = ClusterUser(
    "system:serviceaccount:maas:maas-gateway",
    ("system:serviceaccounts", "system:serviceaccounts:maas", "system:authenticated"),
    "41865c02-cf49-4881-a582-81e76ff43f04",
)
USERS = {ALICE: ClusterUser("alice", ("premium-users", "system:authenticated:oauth"), "uid-alice")}


def token_of(claims: Mapping[str, Any]) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"eyJhbGciOiJSUzI1NiJ9.{payload}.c2lnbmF0dXJl"


async def post(
    cluster: StandInCluster, body: bytes, bearer: str | None = None, path: str = REVIEWS_PATH
) -> httpx.Response:
    headers = {} if bearer is None else {"authorization": f"Bearer {bearer}"}
    async with serving(cluster) as url, httpx.AsyncClient(base_url=url) as client:
        return await client.post(path, content=body, headers=headers)


async def own_user(cluster: StandInCluster, bearer: str | None = None) -> httpx.Response:
    headers = {} if bearer is None else {"authorization": f"Bearer {bearer}"}
    async with serving(cluster) as url, httpx.AsyncClient(base_url=url) as client:
        return await client.get(OWN_USER_PATH, headers=headers)


def review_of(token: str, *audiences: str) -> bytes:
    spec = {"token": token, "audiences": audiences} if audiences else {"token": token}
    return json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}).encode()


async def status_of(cluster: StandInCluster, token: str, *audiences: str) -> Any:
    response = await post(cluster, review_of(token, *audiences))
    assert response.status_code == 201
    return response.json()["status"]


async def test_a_known_opaque_token() -> None:
    response = await post(StandInCluster(USERS), review_of(ALICE))

    assert response.status_code == 201
    assert response.json() == {
        "kind": "TokenReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"creationTimestamp": None},
        "spec": {"token": ALICE},
        "status": {
            "authenticated": True,
            "user": {
                "username": "alice",
                "uid": "uid-alice",
                "groups": ["premium-users", "system:authenticated:oauth", "system:authenticated"],
            },
            "audiences": ["https://kubernetes.default.svc"],
        },
    }


async def test_a_user_without_uid_and_with_scopes() -> None:
    bob = ClusterUser("bob", extra={"scopes.authorization.openshift.io": ("user:info",)})

    status = await status_of(StandInCluster({"token": bob}), "token")

    assert status["user"] == {
        "username": "bob",
        "groups": ["system:authenticated"],
        "extra": {"scopes.authorization.openshift.io": ["user:info"]},
    }


@pytest.mark.parametrize(
    "token", [pytest.param("nonsense", id="opaque"), pytest.param(token_of({"aud": ["x"]}), id="jwt")]
)
async def test_an_unknown_token_leaves_authenticated_out(token: str) -> None:
    assert await status_of(StandInCluster(USERS), token) == {"user": {}, "error": "invalid bearer token"}


async def test_an_opaque_token_is_for_no_custom_audience() -> None:
    response = await post(StandInCluster(USERS), review_of(ALICE, "maas-default-gateway-sa"))

    assert response.json()["spec"] == {"token": ALICE, "audiences": ["maas-default-gateway-sa"]}
    assert response.json()["status"] == {"user": {}, "error": "invalid bearer token"}


@pytest.mark.parametrize(
    ("claims", "asked", "audiences"),
    [
        pytest.param({}, (), [API_AUDIENCE], id="no audience is the API server's"),
        pytest.param({"aud": [API_AUDIENCE]}, (), [API_AUDIENCE], id="the API server's"),
        pytest.param({"aud": API_AUDIENCE}, (), [API_AUDIENCE], id="one audience as text"),
        pytest.param({"aud": ["ours", "more"]}, ("ours", "other"), ["ours"], id="what is in both"),
    ],
)
async def test_a_jwt_that_is_for_one_of_the_audiences(
    claims: dict[str, Any], asked: tuple[str, ...], audiences: list[str]
) -> None:
    token = token_of(claims)

    status = await status_of(StandInCluster({token: GATEWAY}), token, *asked)

    assert status["authenticated"] is True
    assert status["user"]["groups"] == list(GATEWAY.groups)
    assert status["audiences"] == audiences


async def test_a_jwt_that_is_for_another_audience() -> None:
    token = token_of({"aud": ["maas-default-gateway-sa"]})

    status = await status_of(StandInCluster({token: GATEWAY}), token)

    assert status == {
        "user": {},
        "error": '[invalid bearer token, token audiences ["maas-default-gateway-sa"] is invalid for the target '
        'audiences ["https://kubernetes.default.svc"]]',
    }


async def test_a_jwt_ends_at_its_exp() -> None:
    clock = FakeClock()
    token = token_of({"exp": clock.now + 10})
    cluster = StandInCluster({token: GATEWAY}, clock=clock)

    before = await status_of(cluster, token)
    clock.advance(10)
    after = await status_of(cluster, token)

    assert before["authenticated"] is True
    assert after == {"user": {}, "error": "invalid bearer token"}


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("a.b.c", id="no base64"),
        pytest.param("a.W10.c", id="no object"),
        pytest.param("a._w.c", id="no text"),
        pytest.param(f"a.{NESTED_DEEPLY}.c", id="nested deeply"),
    ],
)
async def test_a_token_that_only_looks_like_a_jwt(token: str) -> None:
    assert (await status_of(StandInCluster({token: GATEWAY}), token))["authenticated"] is True


@pytest.mark.parametrize("body", [pytest.param(review_of(""), id="empty"), pytest.param(b"{}", id="absent")])
async def test_no_token(body: bytes) -> None:
    response = await post(StandInCluster(USERS), body)

    assert response.status_code == 400
    assert response.json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "token is required for TokenReview in authentication",
        "reason": "BadRequest",
        "code": 400,
    }


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"spec":{"token":5}}', id="a number for a token"),
        pytest.param(b"<html>", id="no JSON"),
        pytest.param(b'{"spec":{"token":"\xff"}}', id="no text"),
        pytest.param(b'{"x":' + b"[" * 5000, id="nested deeply"),
    ],
)
async def test_a_malformed_review(body: bytes) -> None:
    response = await post(StandInCluster(USERS), body)

    answer = response.json()
    assert (response.status_code, answer["code"], answer["reason"]) == (400, 400, "BadRequest")
    assert answer["message"].startswith('TokenReview in version "v1" cannot be handled as a TokenReview: ')


async def test_a_reviewer_with_the_right() -> None:
    cluster = StandInCluster(USERS, reviewer_token="ours")

    response = await post(cluster, review_of(ALICE), "ours")

    assert response.status_code == 201
    assert cluster.reviews == [Review("ours", ALICE)]


async def test_a_reviewer_that_is_unknown() -> None:
    response = await post(StandInCluster(USERS, reviewer_token="ours"), review_of(ALICE), "old")

    assert response.status_code == 401
    assert response.json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "Unauthorized",
        "reason": "Unauthorized",
        "code": 401,
    }


@pytest.mark.parametrize(
    ("bearer", "name"), [pytest.param(ALICE, "alice", id="a user"), pytest.param(None, "system:anonymous", id="nobody")]
)
async def test_a_reviewer_without_the_right(bearer: str | None, name: str) -> None:
    cluster = StandInCluster(USERS, reviewer_token="ours")

    response = await post(cluster, review_of(ALICE), bearer)

    assert response.status_code == 403
    assert response.json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f'tokenreviews.authentication.k8s.io is forbidden: User "{name}" cannot create resource '
        '"tokenreviews" in API group "authentication.k8s.io" at the cluster scope',
        "reason": "Forbidden",
        "details": {"group": "authentication.k8s.io", "kind": "tokenreviews"},
        "code": 403,
    }
    assert cluster.reviews == [Review(bearer)]


async def test_other_resources_and_methods() -> None:
    cluster = StandInCluster(USERS)

    async with serving(cluster) as url, httpx.AsyncClient(base_url=url) as client:
        resource = await client.post("/api/v1/pods")
        methods = [await client.get(REVIEWS_PATH), await client.post(OWN_USER_PATH)]

    assert (resource.status_code, resource.json()["reason"]) == (404, "NotFound")
    assert [(method.status_code, method.json()["reason"]) for method in methods] == [(405, "MethodNotAllowed")] * 2
    assert (cluster.reviews, cluster.own_user_reads) == ([], [])


async def test_another_app_can_answer_instead_of_reviews() -> None:
    cluster = StandInCluster(USERS)
    cluster.failure = HTMLResponse("<h1>maintenance</h1>", 503)

    response = await post(cluster, review_of(ALICE))

    assert (response.status_code, response.text) == (503, "<h1>maintenance</h1>")
    assert cluster.reviews == [Review(None, ALICE)]


async def test_reviews_wait_at_the_gate() -> None:
    cluster = StandInCluster(USERS)
    cluster.gate = anyio.Event()
    statuses: list[Any] = []

    async def ask(client: httpx.AsyncClient) -> None:
        statuses.append((await client.post(REVIEWS_PATH, content=review_of(ALICE))).status_code)

    async with serving(cluster) as url, httpx.AsyncClient(base_url=url) as client, anyio.create_task_group() as group:
        group.start_soon(ask, client)
        while not cluster.reviews:
            await checkpoint()
        assert statuses == []
        cluster.gate.set()

    assert statuses == [201]


async def test_the_own_user_of_a_token() -> None:
    cluster = StandInCluster({ALICE: ClusterUser("alice", ("b", "a", "system:authenticated"), "uid-alice")})

    response = await own_user(cluster, ALICE)

    assert response.status_code == 200
    assert response.json() == {
        "kind": "User",
        "apiVersion": "user.openshift.io/v1",
        "metadata": {"name": "alice", "uid": "uid-alice", "creationTimestamp": None},
        "groups": ["a", "b"],
    }
    assert (cluster.own_user_reads, cluster.reviews) == ([ALICE], [])


async def test_the_own_user_without_uid() -> None:
    response = await own_user(StandInCluster({"token": ClusterUser("bob")}), "token")

    assert response.json()["metadata"] == {"name": "bob", "creationTimestamp": None}


@pytest.mark.parametrize(
    ("token", "has_users_api"),
    [
        pytest.param("nonsense", True, id="unknown"),
        pytest.param("nonsense", False, id="unknown, and no users API"),
        pytest.param(token_of({"exp": 1}), True, id="expired"),
        pytest.param(token_of({"aud": ["ours"]}), True, id="for another audience"),
    ],
)
async def test_the_own_user_of_a_token_that_is_not_accepted(token: str, has_users_api: bool) -> None:
    users = {**USERS, token_of({"exp": 1}): GATEWAY, token_of({"aud": ["ours"]}): GATEWAY}
    cluster = StandInCluster(users, has_users_api=has_users_api)

    response = await own_user(cluster, token)

    assert response.status_code == 401
    assert response.json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "Unauthorized",
        "reason": "Unauthorized",
        "code": 401,
    }
    assert cluster.own_user_reads == [token]


@pytest.mark.parametrize(
    ("scopes", "status"),
    [
        pytest.param(["user:full"], 200, id="full"),
        pytest.param(["user:info"], 200, id="info"),
        pytest.param(["user:check-access", "user:info"], 200, id="info among others"),
        pytest.param(["user:check-access"], 403, id="another"),
        pytest.param([], 403, id="none"),
    ],
)
async def test_the_own_user_needs_a_scope_that_may_read_it(scopes: list[str], status: int) -> None:
    alice = ClusterUser("alice", extra={"scopes.authorization.openshift.io": scopes})

    response = await own_user(StandInCluster({ALICE: alice}), ALICE)

    assert response.status_code == status


@pytest.mark.parametrize(
    ("bearer", "name", "why"),
    [
        pytest.param(ALICE, "alice", ": scopes [user:list-projects role:x] prevent this action", id="narrow scopes"),
        pytest.param(None, "system:anonymous", "", id="no token"),
    ],
)
async def test_the_own_user_is_forbidden(bearer: str | None, name: str, why: str) -> None:
    scopes = {"scopes.authorization.openshift.io": ("user:list-projects", "role:x")}
    cluster = StandInCluster({ALICE: ClusterUser("alice", extra=scopes)})

    response = await own_user(cluster, bearer)

    assert response.status_code == 403
    assert response.json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f'users.user.openshift.io "~" is forbidden: User "{name}" cannot get resource "users" in API group '
        f'"user.openshift.io" at the cluster scope{why}',
        "reason": "Forbidden",
        "details": {"name": "~", "group": "user.openshift.io", "kind": "users"},
        "code": 403,
    }
    assert cluster.own_user_reads == [bearer]


async def test_a_cluster_can_be_without_users() -> None:
    cluster = StandInCluster(USERS)
    cluster.has_users_api = False

    response = await own_user(cluster, ALICE)

    assert (response.status_code, response.json()["reason"]) == (404, "NotFound")
    assert cluster.own_user_reads == [ALICE]


async def test_another_app_can_answer_instead_of_own_users() -> None:
    cluster = StandInCluster(USERS)
    cluster.failure = HTMLResponse("<h1>maintenance</h1>", 503)

    response = await own_user(cluster, ALICE)

    assert (response.status_code, response.text) == (503, "<h1>maintenance</h1>")


async def test_own_users_wait_at_the_gate() -> None:
    cluster = StandInCluster(USERS)
    cluster.gate = anyio.Event()
    statuses: list[Any] = []

    async def ask() -> None:
        statuses.append((await own_user(cluster, ALICE)).status_code)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        while not cluster.own_user_reads:
            await checkpoint()
        assert statuses == []
        cluster.gate.set()

    assert statuses == [200]
