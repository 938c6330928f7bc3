from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import anyio
import httpx
import pytest
import trustme
from anyio.lowlevel import checkpoint
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware.errors import AuthUnavailable, InvalidCredentials, InvalidRequest, RateLimitExceeded
from maas_middleware.identity import Identity
from maas_middleware.ledgers.throttles import MovingWindowThrottle
from maas_middleware.providers.openshift import OpenShiftProvider, cluster_transport
from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.cluster import ClusterUser, Review, StandInCluster
from tests.servers import serving

# every credential has this in it, and the log is searched for it after each test
SECRET = "SECRET"
ALICE = f"sha256~{SECRET}-alice"
BOB = f"sha256~{SECRET}-bob"
USERS = {
    ALICE: ClusterUser("alice", ("premium-users", "system:authenticated:oauth"), "uid-alice"),
    BOB: ClusterUser("bob"),
}
NESTED_DEEPLY = base64.urlsafe_b64encode(b'{"x":' + b"[" * 5000).decode()
SCOPES = "scopes.authorization.openshift.io"
MAY_NOT_REVIEW = "403, our own credential may not create tokenreviews: bind it to system:auth-delegator"
NOT_ACCEPTED = "401, our own credential is not accepted"
NO_USERS_API = "404, this cluster has no users API: use the review tokenreview"
MAY_NOT_READ = "403, it may not read its own user: its scopes are too narrow, or the cluster has no users API for it"
in_either_way = pytest.mark.parametrize("review", ["tokenreview", "users-self"])


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Everything that anybody logs, down to debug messages; there must be no credential in it."""
    with caplog.at_level(logging.DEBUG):
        yield caplog
    for record in caplog.get_records("call"):
        assert SECRET not in record.getMessage()
        assert SECRET not in str(record.exc_info)


def jwt_of(**claims: object) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"{SECRET}.{payload}.{SECRET}"


def scope_of(token: str) -> dict[str, Any]:
    return {"type": "http", "headers": [(b"authorization", b"Bearer " + token.encode("latin-1"))]}


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.name == "maas_middleware"]


@asynccontextmanager
async def asking(url: str, ca_file: Path | None = None, **options: Any) -> AsyncIterator[OpenShiftProvider]:
    transport = cluster_transport(None if ca_file is None else str(ca_file))
    provider = OpenShiftProvider(api_url=url, transport=transport, **{"token_file": None, **options})
    try:
        yield provider
    finally:
        await provider.aclose()


@asynccontextmanager
async def provider_for(
    cluster: ASGIApp, token_file: Path | None = None, **options: Any
) -> AsyncIterator[OpenShiftProvider]:
    path = None if token_file is None else str(token_file)
    async with serving(cluster) as url, asking(url, token_file=path, **options) as provider:
        yield provider


async def identify(provider: OpenShiftProvider, token: str) -> Identity:
    identity = await provider.identify(scope_of(token))
    assert identity is not None
    return identity


def calls_to(cluster: StandInCluster) -> int:
    return len(cluster.reviews) + len(cluster.own_user_reads)


async def refusal_of(provider: OpenShiftProvider, token: str) -> object:
    with pytest.raises(InvalidCredentials) as refusal:
        await provider.identify(scope_of(token))
    return refusal.value.details


async def failure_of(provider: OpenShiftProvider, token: str = ALICE) -> AuthUnavailable:
    with pytest.raises(AuthUnavailable) as failure:
        await provider.identify(scope_of(token))
    assert (failure.value.status, failure.value.code) == (503, "auth_unavailable")
    return failure.value


async def test_a_user_is_who_the_cluster_says() -> None:
    cluster = StandInCluster(USERS)

    async with provider_for(cluster) as provider:
        identity = await identify(provider, ALICE)

    groups = ("premium-users", "system:authenticated:oauth", "system:authenticated")
    assert identity == Identity("openshift", "alice", groups, restriction=None)
    assert cluster.reviews == [Review(None, ALICE)]


async def test_an_unknown_token_is_refused() -> None:
    async with provider_for(StandInCluster(USERS)) as provider:
        assert await refusal_of(provider, f"sha256~{SECRET}-eve") == {"reason": "unknown"}


async def test_no_credential_is_left_to_others() -> None:
    cluster = StandInCluster(USERS)

    async with provider_for(cluster) as provider:
        assert await provider.identify({"type": "http", "headers": []}) is None

    assert cluster.reviews == []


@in_either_way
@pytest.mark.parametrize(
    "token",
    [
        pytest.param("x" * 8193, id="over 8192 bytes"),
        pytest.param(f"{ALICE} more", id="a space in it"),
        pytest.param(f"{ALICE}\tmore", id="a tab in it"),
        pytest.param("sha256~\xe4", id="no ASCII"),
        pytest.param("", id="empty"),
    ],
)
async def test_what_is_no_token_is_refused_without_asking(token: str, review: str) -> None:
    cluster = StandInCluster(USERS)

    async with provider_for(cluster, review=review) as provider:
        assert await refusal_of(provider, token) == {"reason": "malformed"}

    assert calls_to(cluster) == 0


async def test_the_longest_token_is_asked_for() -> None:
    token = "x" * 8192

    async with provider_for(StandInCluster({token: ClusterUser("long")})) as provider:
        assert (await identify(provider, token)).name == "long"


async def test_a_repeated_header_is_an_invalid_request() -> None:
    headers = [(b"authorization", b"Bearer a"), (b"Authorization", b"Bearer b")]

    async with provider_for(StandInCluster(USERS)) as provider:
        with pytest.raises(InvalidRequest):
            await provider.identify({"type": "http", "headers": headers})


@pytest.mark.parametrize(
    ("scopes", "may"),
    [
        pytest.param(["user:full"], True, id="full"),
        pytest.param(["user:info", "user:full"], True, id="full among others"),
        pytest.param(["user:info"], False, id="info"),
        pytest.param(["role:admin:user:full"], False, id="another that ends like it"),
        pytest.param([], False, id="none"),
    ],
)
async def test_a_token_with_scopes_needs_the_full_one(scopes: list[str], may: bool) -> None:
    users = {ALICE: ClusterUser("alice", extra={SCOPES: scopes, "other": ["x"]})}

    async with provider_for(StandInCluster(users)) as provider:
        restriction = (await identify(provider, ALICE)).restriction

    assert restriction == (None if may else "A token without the scope user:full may not manage access tokens")


@in_either_way
@pytest.mark.parametrize("allowed", [True, False])
async def test_service_accounts_are_restricted_unless_they_are_allowed(allowed: bool, review: str) -> None:
    users = {ALICE: ClusterUser("system:serviceaccount:maas:job", ("system:serviceaccounts",))}

    async with provider_for(StandInCluster(users), review=review, allow_service_accounts=allowed) as provider:
        identity = await identify(provider, ALICE)

    assert identity.name == "system:serviceaccount:maas:job"
    assert identity.restriction == (None if allowed else "Service accounts may not manage access tokens")


@pytest.mark.parametrize(
    ("claim", "known"),
    [
        pytest.param(["ours"], True, id="ours"),
        pytest.param(["theirs", "also-ours"], True, id="one of ours among others"),
        pytest.param(["theirs"], False, id="another"),
        pytest.param(["https://kubernetes.default.svc"], False, id="the API server's"),
    ],
)
async def test_a_jwt_must_be_for_one_of_our_audiences(claim: list[str], known: bool) -> None:
    token = jwt_of(aud=claim)
    cluster = StandInCluster({token: ClusterUser("job")})

    async with provider_for(cluster, audiences=("ours", "also-ours")) as provider:
        if known:
            assert (await identify(provider, token)).name == "job"
        else:
            assert await refusal_of(provider, token) == {"reason": "unknown"}

    assert cluster.reviews == [Review(None, token, ("ours", "also-ours"))]


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(ALICE, id="OpenShift's"),
        pytest.param(f"{SECRET}.x", id="one dot"),
        pytest.param(f"{SECRET}.a.b.c", id="three dots"),
    ],
)
async def test_audiences_are_not_sent_with_an_opaque_token(token: str) -> None:
    cluster = StandInCluster({token: ClusterUser("alice")})

    async with provider_for(cluster, audiences=("ours",)) as provider:
        assert (await identify(provider, token)).name == "alice"

    assert cluster.reviews == [Review(None, token, ())]


async def test_audiences_are_not_sent_unless_configured() -> None:
    token = jwt_of(aud=["https://kubernetes.default.svc"])
    cluster = StandInCluster({token: ClusterUser("job")})

    async with provider_for(cluster) as provider:
        assert (await identify(provider, token)).name == "job"

    assert cluster.reviews == [Review(None, token, ())]


@pytest.mark.parametrize(
    "audiences",
    [
        pytest.param({}, id="absent"),
        pytest.param({"audiences": None}, id="null"),
        pytest.param({"audiences": []}, id="none"),
        pytest.param({"audiences": ["theirs"]}, id="another"),
    ],
)
async def test_an_api_server_that_does_not_look_at_audiences_is_not_believed(audiences: dict[str, Any]) -> None:
    cluster = StandInCluster(USERS)
    status = {"authenticated": True, "user": {"username": "job"}, **audiences}
    cluster.failure = JSONResponse({"kind": "TokenReview", "status": status}, 201)

    async with provider_for(cluster, audiences=("ours",)) as provider:
        assert await refusal_of(provider, jwt_of(aud="ours")) == {"reason": "unknown"}


@in_either_way
async def test_a_success_is_kept_for_60_seconds(review: str) -> None:
    cluster, clock = StandInCluster(USERS), FakeClock()

    async with provider_for(cluster, review=review, clock=clock) as provider:
        first = await identify(provider, ALICE)
        clock.advance(59.9)
        cluster.users.clear()
        second = await identify(provider, ALICE)
        clock.advance(0.1)
        refusal = await refusal_of(provider, ALICE)

    assert second == first
    assert refusal == {"reason": "unknown"}
    assert calls_to(cluster) == 2


@in_either_way
async def test_a_refusal_is_kept_for_5_seconds(review: str) -> None:
    cluster, clock = StandInCluster({}), FakeClock()

    async with provider_for(cluster, review=review, clock=clock) as provider:
        await refusal_of(provider, ALICE)
        cluster.users = USERS
        clock.advance(4.9)
        await refusal_of(provider, ALICE)
        reviews = calls_to(cluster)
        clock.advance(0.1)
        identity = await identify(provider, ALICE)

    assert reviews == 1
    assert identity.name == "alice"


@in_either_way
async def test_a_success_is_not_kept_past_the_exp_of_a_jwt(review: str) -> None:
    clock = FakeClock()
    token = jwt_of(exp=clock.now + 10)
    cluster = StandInCluster({token: ClusterUser("job")}, clock=clock)

    async with provider_for(cluster, review=review, clock=clock, wall_clock=clock) as provider:
        await identify(provider, token)
        clock.advance(9.9)
        await identify(provider, token)
        reviews = calls_to(cluster)
        clock.advance(0.1)
        await refusal_of(provider, token)

    assert reviews == 1


async def test_a_success_is_not_kept_at_all_where_our_clock_is_past_the_exp() -> None:
    clock = FakeClock()
    token = jwt_of(exp=clock.now - 1)
    cluster = StandInCluster({token: ClusterUser("job")}, clock=FakeClock(clock.now - 30))

    async with provider_for(cluster, clock=clock, wall_clock=clock) as provider:
        await identify(provider, token)
        await identify(provider, token)

    assert len(cluster.reviews) == 2


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(jwt_of(exp=10**12), id="far ahead"),
        pytest.param(jwt_of(exp=10**400), id="too large for a float"),
        pytest.param(jwt_of(exp="1"), id="text"),
        pytest.param(jwt_of(exp=None), id="null"),
        pytest.param(jwt_of(), id="absent"),
        pytest.param(f"{SECRET}.W10.", id="no object"),
        pytest.param(f"{SECRET}._w.", id="no text"),
        pytest.param(f"{SECRET}.a.", id="no base64"),
        pytest.param(f"{SECRET}..", id="empty"),
        pytest.param(f"{SECRET}.{NESTED_DEEPLY}.", id="nested deeply"),
        pytest.param(f"{SECRET}.a.b.c", id="too many parts"),
    ],
)
async def test_an_exp_that_makes_no_sense_changes_nothing(token: str) -> None:
    clock = FakeClock()
    # who knows what the cluster takes for a token; the stand-in must not stumble over this one
    cluster = StandInCluster(USERS)
    status = {"authenticated": True, "user": {"username": "job"}}
    cluster.failure = JSONResponse({"kind": "TokenReview", "status": status}, 201)

    async with provider_for(cluster, clock=clock, wall_clock=clock) as provider:
        await identify(provider, token)
        clock.advance(59.9)
        await identify(provider, token)
        reviews = len(cluster.reviews)
        clock.advance(0.1)
        await identify(provider, token)

    assert (reviews, len(cluster.reviews)) == (1, 2)


@in_either_way
async def test_no_more_answers_are_kept_than_allowed(review: str) -> None:
    cluster = StandInCluster(USERS)

    async with provider_for(cluster, review=review, maximum_cached=1) as provider:
        for token in (ALICE, BOB, ALICE):
            await identify(provider, token)

    assert calls_to(cluster) == 3


@in_either_way
async def test_a_failure_is_not_kept(review: str) -> None:
    cluster = StandInCluster(USERS)
    cluster.failure = JSONResponse({}, 500)

    async with provider_for(cluster, review=review) as provider:
        await failure_of(provider)
        cluster.failure = None
        identity = await identify(provider, ALICE)

    assert identity.name == "alice"


@in_either_way
async def test_no_token_is_kept(review: str) -> None:
    async with provider_for(StandInCluster(USERS), review=review) as provider:
        await identify(provider, ALICE)
        await refusal_of(provider, f"sha256~{SECRET}-eve")

        kept = [repr(thing) for thing in everything_in(provider) if isinstance(thing, str | bytes)]

    assert "'alice'" in kept
    assert [text for text in kept if SECRET in text] == []


def everything_in(provider: OpenShiftProvider) -> list[object]:
    """Whatever the provider refers to, the transport and its connections left out."""
    found: dict[int, object] = {}
    pending: list[object] = [provider]
    while pending:
        thing = pending.pop()
        skipped = isinstance(thing, type | ModuleType | FunctionType | httpx.AsyncBaseTransport)
        if not skipped and id(thing) not in found:
            found[id(thing)] = thing
            pending += gc.get_referents(thing)
    return list(found.values())


@in_either_way
async def test_twenty_callers_share_one_review_although_the_first_one_leaves(review: str) -> None:
    cluster = StandInCluster(USERS)
    cluster.gate = anyio.Event()
    names: list[str] = []
    first = anyio.CancelScope()

    async with provider_for(cluster, review=review) as provider, anyio.create_task_group() as group:

        async def lead() -> None:
            with first:
                await identify(provider, ALICE)
                await checkpoint()

        async def follow() -> None:
            names.append((await identify(provider, ALICE)).name)

        group.start_soon(lead)
        while not calls_to(cluster):
            await checkpoint()
        for _ in range(20):
            group.start_soon(follow)
        await checkpoint()
        first.cancel()
        await checkpoint()
        cluster.gate.set()

    assert first.cancelled_caught
    assert names == ["alice"] * 20
    assert calls_to(cluster) == 1


@in_either_way
async def test_a_failure_reaches_all_callers_and_is_logged_once(log: pytest.LogCaptureFixture, review: str) -> None:
    cluster = StandInCluster(USERS)
    cluster.gate, cluster.failure = anyio.Event(), JSONResponse({}, 500)
    failures: list[AuthUnavailable] = []

    async with provider_for(cluster, review=review) as provider, anyio.create_task_group() as group:

        async def ask() -> None:
            failures.append(await failure_of(provider))

        for _ in range(20):
            group.start_soon(ask)
        while not calls_to(cluster):
            await checkpoint()
        cluster.gate.set()

    assert len(failures) == 20
    assert calls_to(cluster) == 1
    assert len(warnings(log)) == 1


async def test_our_credential_is_read_again_after_60_seconds(tmp_path: Path) -> None:
    cluster, clock = StandInCluster(USERS), FakeClock()
    file = tmp_path / "token"
    file.write_text(f"{SECRET}-1\n")

    async with provider_for(cluster, file, clock=clock) as provider:
        await identify(provider, ALICE)
        file.write_text(f"{SECRET}-2\n")
        clock.advance(59.9)
        await identify(provider, BOB)
        clock.advance(0.1)
        await identify(provider, ALICE)

    assert [review.reviewer for review in cluster.reviews] == [f"{SECRET}-1", f"{SECRET}-1", f"{SECRET}-2"]


async def test_a_credential_that_is_refused_is_read_again_at_once(tmp_path: Path) -> None:
    cluster = StandInCluster(USERS, reviewer_token=f"{SECRET}-1")
    file = tmp_path / "token"
    file.write_text(f"{SECRET}-1")

    async with provider_for(cluster, file) as provider:
        await identify(provider, ALICE)
        cluster.reviewer_token = f"{SECRET}-2"
        file.write_text(f"{SECRET}-2")
        identity = await identify(provider, BOB)

    assert identity.name == "bob"
    assert [review.reviewer for review in cluster.reviews] == [f"{SECRET}-1", f"{SECRET}-1", f"{SECRET}-2"]


async def test_a_credential_that_stays_refused_is_tried_twice(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    cluster = StandInCluster(USERS, reviewer_token=f"{SECRET}-1")
    file = tmp_path / "token"
    file.write_text(f"{SECRET}-2")

    async with provider_for(cluster, file) as provider:
        failure = await failure_of(provider)

    assert failure.headers == ((b"retry-after", b"2"),)
    assert len(cluster.reviews) == 2
    assert [line.endswith(NOT_ACCEPTED) for line in warnings(log)] == [True]


async def test_without_a_credential_there_is_nothing_to_try_again(log: pytest.LogCaptureFixture) -> None:
    cluster = StandInCluster(USERS)
    cluster.failure = JSONResponse({"kind": "Status", "code": 401}, 401)

    async with provider_for(cluster) as provider:
        await failure_of(provider)

    assert cluster.reviews == [Review(None, ALICE)]
    assert [
        line.endswith("401, and there is no credential of our own: set openshift.token_file") for line in warnings(log)
    ] == [True]


async def test_a_credential_without_the_right_to_review(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    cluster = StandInCluster(USERS, reviewer_token=f"{SECRET}-1")
    file = tmp_path / "token"
    file.write_text(BOB)

    async with provider_for(cluster, file) as provider:
        await failure_of(provider)

    assert cluster.reviews == [Review(BOB)]
    assert [line.endswith(MAY_NOT_REVIEW) for line in warnings(log)] == [True]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "cannot read our own credential: [Errno 2] No such file or directory", id="missing"),
        pytest.param(" \n", "cannot read our own credential: {path} holds no token", id="empty"),
        pytest.param(f"{SECRET}\nagain", "cannot read our own credential: {path} holds no token", id="two lines"),
    ],
)
async def test_a_credential_that_cannot_be_used(
    content: str | None, reason: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    cluster = StandInCluster(USERS)
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)

    async with provider_for(cluster, file) as provider:
        await failure_of(provider)

    assert cluster.reviews == []
    [line] = warnings(log)
    assert f" failed: {reason.format(path=file)}" in line


async def test_a_credential_that_cannot_be_read_any_more_is_used_on(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    cluster, clock = StandInCluster(USERS), FakeClock()
    file = tmp_path / "token"
    file.write_text(f"{SECRET}-1")

    async with provider_for(cluster, file, clock=clock) as provider:
        await identify(provider, ALICE)
        file.unlink()
        clock.advance(60)
        await identify(provider, BOB)
        file.write_text(f"{SECRET}-2")
        await refusal_of(provider, "other")

    assert [review.reviewer for review in cluster.reviews] == [f"{SECRET}-1", f"{SECRET}-1", f"{SECRET}-2"]
    assert [line.startswith("cannot read our own credential again: ") for line in warnings(log)] == [True]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(JSONResponse({"kind": "Status"}, 500), "500", id="500"),
        pytest.param(HTMLResponse("<h1>Bad Gateway</h1>", 502), "502", id="502"),
        pytest.param(JSONResponse({"kind": "Status"}, 400), "400", id="400"),
        pytest.param(HTMLResponse("not found", 404), "404", id="404"),
        pytest.param(RedirectResponse("https://elsewhere.example"), "307", id="redirect"),
        pytest.param(Response(status_code=204), "204", id="no content"),
        pytest.param(HTMLResponse("<h1>Log in</h1>"), "its answer is no TokenReview", id="HTML"),
        pytest.param(Response(), "its answer is no TokenReview", id="empty"),
        pytest.param(Response(b'{"kind": "\xff"}'), "its answer is no TokenReview", id="no text"),
        pytest.param(Response(b'{"x":' + b"[" * 100_000), "its answer is no TokenReview", id="nested deeply"),
        pytest.param(JSONResponse([]), "its answer is no TokenReview", id="array"),
        pytest.param(JSONResponse({}), "its answer is no TokenReview", id="empty object"),
        pytest.param(JSONResponse({"kind": "Status", "status": {}}), "its answer is no TokenReview", id="kind"),
        pytest.param(JSONResponse({"kind": "TokenReview"}), "its answer is no TokenReview", id="no status"),
        pytest.param(
            JSONResponse({"kind": "TokenReview", "status": {"authenticated": "true"}}),
            "its answer is no TokenReview",
            id="authenticated is text",
        ),
        pytest.param(
            JSONResponse({"kind": "TokenReview", "status": {"authenticated": True}}),
            "its answer names no user",
            id="no user",
        ),
        pytest.param(
            JSONResponse({"kind": "TokenReview", "status": {"authenticated": True, "user": {}}}),
            "its answer names no user",
            id="no name",
        ),
        pytest.param(
            JSONResponse({"kind": "TokenReview"}, headers={"content-encoding": "gzip"}),
            "DecodingError",
            id="compressed wrongly",
        ),
    ],
)
async def test_an_answer_that_is_no_review_is_a_failure(
    answer: Response, reason: str, log: pytest.LogCaptureFixture
) -> None:
    cluster = StandInCluster(USERS)
    cluster.failure = answer

    async with provider_for(cluster) as provider:
        failure = await failure_of(provider)

    assert failure.headers == ((b"retry-after", b"2"),)
    [line] = warnings(log)
    assert line.startswith("token review at http://127.0.0.1:")
    assert line.endswith(f" failed: {reason}")


@in_either_way
@pytest.mark.parametrize(
    ("status", "asked", "told"),
    [
        pytest.param(429, "7", b"7", id="429"),
        pytest.param(503, "7", b"7", id="503"),
        pytest.param(429, "60", b"60", id="the most"),
        pytest.param(429, "3600", b"60", id="more than the most"),
        pytest.param(429, "0", b"2", id="zero"),
        pytest.param(429, "-1", b"2", id="negative"),
        pytest.param(429, "1.5", b"2", id="a fraction"),
        pytest.param(429, "9" * 5000, b"2", id="a number without end"),
        pytest.param(429, "Wed, 21 Oct 2026 07:28:00 GMT", b"2", id="a date"),
        pytest.param(500, "7", b"2", id="500"),
    ],
)
async def test_the_time_to_wait_is_passed_on(status: int, asked: str, told: bytes, review: str) -> None:
    cluster = StandInCluster(USERS)
    cluster.failure = JSONResponse({}, status, {"retry-after": asked})

    async with provider_for(cluster, review=review) as provider:
        failure = await failure_of(provider)

    assert failure.headers == ((b"retry-after", told),)


@in_either_way
async def test_an_api_server_that_is_not_there(log: pytest.LogCaptureFixture, review: str) -> None:
    async with provider_for(StandInCluster(USERS), review=review) as provider:
        pass

    await failure_of(provider)

    [line] = warnings(log)
    assert line.endswith(" failed: ConnectError: All connection attempts failed")


@in_either_way
async def test_an_api_server_that_hangs_up(log: pytest.LogCaptureFixture, review: str) -> None:
    async def hang_up(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, hang_up)
        async with asking(url, review=review) as provider:
            await failure_of(provider)
        group.cancel_scope.cancel()

    [line] = warnings(log)
    assert line.endswith(" failed: RemoteProtocolError") or line.endswith(" failed: ReadError")


@in_either_way
async def test_an_api_server_that_hangs(log: pytest.LogCaptureFixture, review: str) -> None:
    cluster = StandInCluster(USERS)
    cluster.gate = anyio.Event()

    async with provider_for(cluster, review=review, timeout=0.1) as provider:
        await failure_of(provider)
        cluster.gate.set()
        identity = await identify(provider, ALICE)

    assert identity.name == "alice"
    [line] = warnings(log)
    assert line.endswith(" failed: no answer within 0.1 s")


@in_either_way
async def test_an_api_server_that_hangs_in_the_middle_of_its_answer(log: pytest.LogCaptureFixture, review: str) -> None:
    left = anyio.Event()

    async def begin(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b'{"kind": ', "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    cluster = StandInCluster(USERS)
    cluster.failure = begin

    async with provider_for(cluster, review=review, timeout=0.1) as provider:
        await failure_of(provider)
        await left.wait()

    [line] = warnings(log)
    assert line.endswith(" failed: no answer within 0.1 s")


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("kubernetes.default.svc", id="no scheme"),
        pytest.param("ftp://kubernetes.default.svc", id="another scheme"),
        pytest.param("https://", id="no host"),
        pytest.param("https://kubernetes.default.svc:port", id="no number for a port"),
        pytest.param("", id="empty"),
    ],
)
def test_an_api_server_needs_a_url(url: str) -> None:
    with pytest.raises(ValueError, match="the API server's URL"):
        OpenShiftProvider(api_url=url, token_file=None, transport=cluster_transport(None))


async def test_an_api_server_below_a_path_and_credentials_that_are_not_used(log: pytest.LogCaptureFixture) -> None:
    cluster = StandInCluster(USERS)
    seen: list[tuple[str, list[bytes]]] = []

    async def rancher(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["path"], [name for name, _ in scope["headers"]]))
        await cluster({**scope, "path": scope["path"].removeprefix("/k8s/clusters/c-1")}, receive, send)

    async with serving(rancher, lifespan="off") as url:
        address = url.removeprefix("http://")
        async with asking(f"http://user:{SECRET}@{address}/k8s/clusters/c-1/") as provider:
            identity = await identify(provider, ALICE)
            cluster.failure = JSONResponse({}, 500)
            await failure_of(provider, BOB)

    path = "/k8s/clusters/c-1/apis/authentication.k8s.io/v1/tokenreviews"
    names = [b"host", b"content-type", b"accept", b"connection", b"content-length"]
    assert identity.name == "alice"
    assert seen == [(path, names)] * 2
    assert warnings(log) == [f"token review at http://{address} failed: 500"]


@asynccontextmanager
async def serving_tls(cluster: StandInCluster, authority: trustme.CA, tmp_path: Path) -> AsyncIterator[str]:
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    async with serving(cluster, ssl_certfile=str(tmp_path / "server.pem")) as url:
        yield url


async def test_the_certificate_is_checked_with_the_authority_in_the_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")

    async with (
        serving_tls(StandInCluster(USERS), authority, tmp_path) as url,
        asking(url, tmp_path / "ca.crt") as provider,
    ):
        identity = await identify(provider, ALICE)

    assert identity.name == "alice"


async def test_a_certificate_of_another_authority_is_not_trusted(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.crt")
    cluster = StandInCluster(USERS)

    async with serving_tls(cluster, trustme.CA(), tmp_path) as url:
        for ca_file in (tmp_path / "ca.crt", None):
            async with asking(url, ca_file) as provider:
                await failure_of(provider)

    assert cluster.reviews == []
    assert ["CERTIFICATE_VERIFY_FAILED" in line for line in warnings(log)] == [True, True]


def test_an_authority_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nothing")

    with pytest.raises(FileNotFoundError):
        cluster_transport(str(tmp_path / "missing.crt"))
    with pytest.raises(ssl.SSLError):
        cluster_transport(str(tmp_path / "ca.crt"))


class Ports:
    """Notes from which ports an app is called."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: list[int] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope["client"][1])
        await self.app(scope, receive, send)


@in_either_way
async def test_each_review_has_a_connection_of_its_own(review: str) -> None:
    cluster = Ports(StandInCluster(USERS))

    async with serving(cluster, lifespan="off") as url, asking(url, review=review) as provider:
        await identify(provider, ALICE)
        await identify(provider, BOB)

    assert len(set(cluster.seen)) == 2


async def test_the_url_of_the_api_server_is_enough() -> None:
    async with serving(StandInCluster(USERS)) as url:
        provider = OpenShiftProvider(api_url=url)
        identity = await identify(provider, ALICE)
        await provider.aclose()

    assert identity.name == "alice"


async def test_a_provider_can_be_used_after_it_was_closed() -> None:
    async with provider_for(StandInCluster(USERS)) as provider:
        await identify(provider, ALICE)
        await provider.aclose()
        identity = await identify(provider, BOB)

    assert identity.name == "bob"


@in_either_way
async def test_one_provider_serves_one_event_loop_after_the_other(review: str) -> None:
    """As under a TestClient without `with`, which runs each request in a loop of its own and closes nothing."""
    users = {f"sha256~{SECRET}-{number}": ClusterUser(f"user-{number}") for number in range(6)}

    async with provider_for(StandInCluster(users), review=review) as provider:

        async def identify_elsewhere(token: str) -> Identity:
            return await anyio.to_thread.run_sync(lambda: asyncio.run(identify(provider, token)))

        identities = [await identify_elsewhere(token) for token in users]
    gc.collect()  # a connection that was left open would warn

    assert [identity.name for identity in identities] == [f"user-{number}" for number in range(6)]


async def test_a_user_is_who_the_own_token_says() -> None:
    cluster = StandInCluster(USERS)

    async with provider_for(cluster, review="users-self") as provider:
        identity = await identify(provider, ALICE)

    groups = ("premium-users", "system:authenticated:oauth", "system:authenticated")
    assert identity == Identity("openshift", "alice", groups, restriction=None)
    assert (cluster.own_user_reads, cluster.reviews) == ([ALICE], [])


@pytest.mark.parametrize(
    ("given", "groups"),
    [
        pytest.param({}, ("system:authenticated", "system:authenticated:oauth"), id="absent"),
        pytest.param({"groups": None}, ("system:authenticated", "system:authenticated:oauth"), id="null"),
        pytest.param({"groups": []}, ("system:authenticated", "system:authenticated:oauth"), id="none"),
        pytest.param(
            {"groups": ["a", "b"]}, ("a", "b", "system:authenticated", "system:authenticated:oauth"), id="two"
        ),
        pytest.param(
            {"groups": ["system:authenticated:oauth", "a", "a", "system:authenticated"]},
            ("system:authenticated:oauth", "a", "system:authenticated"),
            id="named already",
        ),
    ],
)
async def test_each_group_of_the_own_user_is_there_once(given: dict[str, Any], groups: tuple[str, ...]) -> None:
    cluster = StandInCluster({})
    cluster.failure = JSONResponse({"metadata": {"name": "alice", "uid": "uid-alice"}, **given})

    async with provider_for(cluster, review="users-self") as provider:
        identity = await identify(provider, ALICE)

    assert identity.groups == groups


async def test_the_own_user_is_read_with_no_credential_but_the_callers(tmp_path: Path) -> None:
    cluster = StandInCluster(USERS)
    file = tmp_path / "token"
    file.write_text(f"{SECRET}-ours")
    seen: list[Scope] = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await cluster({**scope, "path": scope["path"].removeprefix("/k8s/clusters/c-1")}, receive, send)

    async with serving(noting, lifespan="off") as url:
        address = url.removeprefix("http://")
        async with asking(
            f"http://user:{SECRET}@{address}/k8s/clusters/c-1/", review="users-self", token_file=str(file)
        ) as provider:
            await identify(provider, ALICE)

    [scope] = seen
    assert (scope["method"], scope["query_string"]) == ("GET", b"")
    assert scope["raw_path"] == b"/k8s/clusters/c-1/apis/user.openshift.io/v1/users/~"
    assert scope["headers"] == [
        (b"host", address.encode()),
        (b"authorization", b"Bearer " + ALICE.encode()),
        (b"accept", b"application/json"),
        (b"connection", b"close"),
    ]


async def test_the_own_user_needs_no_file_with_a_credential(tmp_path: Path) -> None:
    async with provider_for(StandInCluster(USERS), tmp_path / "missing", review="users-self") as provider:
        assert (await identify(provider, ALICE)).name == "alice"


async def test_a_token_that_the_users_api_does_not_know_is_refused_silently(log: pytest.LogCaptureFixture) -> None:
    async with provider_for(StandInCluster(USERS), review="users-self") as provider:
        assert await refusal_of(provider, f"sha256~{SECRET}-eve") == {"reason": "unknown"}

    assert warnings(log) == []


async def test_a_token_that_may_not_read_its_own_user_is_refused_and_the_log_says_why(
    log: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    cluster = StandInCluster({ALICE: ClusterUser("alice", extra={SCOPES: ["user:check-access"]})})

    async with provider_for(cluster, review="users-self", clock=clock) as provider:
        assert await refusal_of(provider, ALICE) == {"reason": "unknown"}
        clock.advance(4.9)
        assert await refusal_of(provider, ALICE) == {"reason": "unknown"}

    assert cluster.own_user_reads == [ALICE]
    [line] = warnings(log)
    assert line.startswith("token refused by http://127.0.0.1:")
    assert line.endswith(f": {MAY_NOT_READ}")


async def test_scopes_are_not_seen_where_the_own_user_is_read() -> None:
    users = {ALICE: ClusterUser("alice", extra={SCOPES: ["user:info"]})}

    async with provider_for(StandInCluster(users), review="users-self") as provider:
        assert (await identify(provider, ALICE)).restriction is None


async def test_a_cluster_without_users_api_is_a_failure(log: pytest.LogCaptureFixture) -> None:
    async with provider_for(StandInCluster(USERS, has_users_api=False), review="users-self") as provider:
        failure = await failure_of(provider)

    assert failure.headers == ((b"retry-after", b"2"),)
    [line] = warnings(log)
    assert line.endswith(f" failed: {NO_USERS_API}")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(JSONResponse({"kind": "Status"}, 500), "500", id="500"),
        pytest.param(JSONResponse({"kind": "Status"}, 429), "429", id="429"),
        pytest.param(HTMLResponse("<h1>Bad Gateway</h1>", 502), "502", id="502"),
        pytest.param(JSONResponse({"kind": "Status"}, 400), "400", id="400"),
        pytest.param(HTMLResponse("<h1>Log in</h1>", 401), "401", id="401 of somebody in front"),
        pytest.param(HTMLResponse("<h1>Blocked</h1>", 403), "403", id="403 of somebody in front"),
        pytest.param(HTMLResponse("not found", 404), NO_USERS_API, id="404"),
        pytest.param(RedirectResponse("https://elsewhere.example"), "307", id="redirect"),
        pytest.param(JSONResponse({"metadata": {"name": "alice"}}, 201), "201", id="created"),
        pytest.param(Response(status_code=204), "204", id="no content"),
        pytest.param(HTMLResponse("<h1>Log in</h1>"), "its answer is no User", id="HTML"),
        pytest.param(Response(), "its answer is no User", id="empty"),
        pytest.param(Response(b'{"metadata": {"name": "\xff"}}'), "its answer is no User", id="no text"),
        pytest.param(Response(b'{"x":' + b"[" * 100_000), "its answer is no User", id="nested deeply"),
        pytest.param(JSONResponse([]), "its answer is no User", id="array"),
        pytest.param(JSONResponse({}), "its answer is no User", id="empty object"),
        pytest.param(JSONResponse({"kind": "UserList", "metadata": {"name": "a"}}), "its answer is no User", id="kind"),
        pytest.param(JSONResponse({"metadata": {"name": 5}}), "its answer is no User", id="name is a number"),
        pytest.param(
            JSONResponse({"metadata": {"name": "a"}, "groups": "a"}), "its answer is no User", id="groups is text"
        ),
        pytest.param(JSONResponse({"metadata": {}}), "its answer names no user", id="no name"),
        pytest.param(JSONResponse({"metadata": {"name": ""}}), "its answer names no user", id="empty name"),
        pytest.param(
            JSONResponse({"kind": "User"}, headers={"content-encoding": "gzip"}),
            "DecodingError",
            id="compressed wrongly",
        ),
    ],
)
async def test_an_answer_that_is_no_user_is_a_failure(
    answer: Response, reason: str, log: pytest.LogCaptureFixture
) -> None:
    cluster = StandInCluster(USERS)
    cluster.failure = answer

    async with provider_for(cluster, review="users-self") as provider:
        failure = await failure_of(provider)

    assert failure.headers == ((b"retry-after", b"2"),)
    [line] = warnings(log)
    assert line.startswith("token review at http://127.0.0.1:")
    assert line.endswith(f" failed: {reason}")


@pytest.mark.parametrize("answer", [Response(status_code=401), JSONResponse({"kind": "Status"}, 401)])
async def test_a_401_of_any_shape_but_html_refuses_the_token(answer: Response) -> None:
    cluster = StandInCluster(USERS)
    cluster.failure = answer

    async with provider_for(cluster, review="users-self") as provider:
        assert await refusal_of(provider, ALICE) == {"reason": "unknown"}

    assert cluster.own_user_reads == [ALICE]


def test_there_are_two_ways_to_review() -> None:
    options: dict[str, Any] = {"review": "whoami"}

    with pytest.raises(ValueError, match="a review is tokenreview or users-self, not whoami"):
        OpenShiftProvider(api_url="https://kubernetes.default.svc", **options)


def test_audiences_are_refused_where_nobody_would_check_them() -> None:
    with pytest.raises(ValueError, match="audiences cannot be checked by the review users-self"):
        OpenShiftProvider(api_url="https://kubernetes.default.svc", review="users-self", audiences=("ours",))


def from_address(token: str, client: object = ("203.0.113.7", 40000)) -> dict[str, Any]:
    return {**scope_of(token), "client": client}


async def refusal_for(provider: OpenShiftProvider, scope: dict[str, Any]) -> RateLimitExceeded:
    with pytest.raises(RateLimitExceeded) as refusal:
        await provider.identify(scope)
    return refusal.value


@in_either_way
async def test_address_with_too_many_failures_has_nothing_reviewed_but_what_is_known_passes(review: str) -> None:
    cluster, failures = StandInCluster(USERS), MovingWindowThrottle("2/hour", name="failures")
    unknown = f"sha256~{SECRET}-eve"

    async with provider_for(cluster, review=review, failures=failures, jitter=lambda: 1.0) as provider:
        assert await provider.identify(from_address(ALICE)) is not None
        with pytest.raises(InvalidCredentials):
            await provider.identify(from_address(unknown))
        for _ in range(2):
            await failures.hit("203.0.113.7")

        refused = await refusal_for(provider, from_address(BOB))
        assert await provider.identify(from_address(ALICE)) is not None
        with pytest.raises(InvalidCredentials):  # that it is not known is known, too
            await provider.identify(from_address(unknown))
        assert calls_to(cluster) == 2
        elsewhere = await provider.identify(from_address(BOB, ("203.0.113.8", 40000)))

    assert refused.details is not None
    assert {key: refused.details[key] for key in ("limit", "quota", "window_seconds")} == {
        "limit": "failed_credentials",
        "quota": 2,
        "window_seconds": 3600,
    }
    assert 3_700_000 < int(dict(refused.headers)[b"retry-after-ms"]) <= 3_780_002
    assert elsewhere is not None
    assert calls_to(cluster) == 3


async def test_refusal_for_an_address_is_not_kept() -> None:
    cluster, failures = StandInCluster(USERS), MovingWindowThrottle("1/minute", name="failures")

    async with provider_for(cluster, failures=failures) as provider:
        await failures.hit("203.0.113.7")
        for _ in range(2):
            await refusal_for(provider, from_address(ALICE))
        elsewhere = await provider.identify(from_address(ALICE, ("203.0.113.8", 1)))
        here = await provider.identify(from_address(ALICE))

    assert elsewhere == here
    assert len(cluster.reviews) == 1


async def test_no_more_reviews_of_an_address_are_under_way_than_may_fail() -> None:
    cluster, failures = StandInCluster(USERS), MovingWindowThrottle("1/minute", name="failures")
    cluster.gate = anyio.Event()

    async with provider_for(cluster, failures=failures, jitter=lambda: 0.0) as provider:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(provider.identify, from_address(ALICE))
                group.start_soon(provider.identify, from_address(ALICE))  # waits for the same review
                while not cluster.reviews:
                    await checkpoint()
                refused = await refusal_for(provider, from_address(BOB))
                cluster.gate.set()
        assert await provider.identify(from_address(BOB)) is not None

    assert dict(refused.headers)[b"retry-after-ms"] == b"1000"
    assert len(cluster.reviews) == 2


@pytest.mark.parametrize("client", [None, ("", 0)])
async def test_client_without_an_address_is_reviewed_however_many_failed(client: object) -> None:
    failures = MovingWindowThrottle("1/minute", name="failures")

    async with provider_for(StandInCluster(USERS), failures=failures) as provider:
        for key in ("", "None"):
            await failures.hit(key)
        assert await provider.identify(from_address(ALICE, client)) is not None


async def test_provider_itself_counts_no_failures() -> None:
    failures = MovingWindowThrottle("1/minute", name="failures")

    async with provider_for(StandInCluster(USERS), failures=failures) as provider:
        for number in range(3):
            with pytest.raises(InvalidCredentials):
                await provider.identify(from_address(f"sha256~{SECRET}-{number}"))

    assert await failures.peek("203.0.113.7") is None
