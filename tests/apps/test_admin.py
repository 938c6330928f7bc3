from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from maas_middleware.apps.admin import AdminApp
from maas_middleware.audit import AuditRecord, write_audit_record
from maas_middleware.errors import StoreUnavailable
from maas_middleware.identity import Identity
from maas_middleware.middleware.errors import ErrorEnvelopeMiddleware
from maas_middleware.middleware.identity import IdentityMiddleware
from maas_middleware.stores.memory import MemoryTokenStore, MemoryUsageStore
from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.converse import Conversation, converse
from maas_middleware.testing.identity import StaticIdentityProvider
from maas_middleware.tiers import GroupTierResolver, Tier
from maas_middleware.token_store import TokenKind, TokenRecord
from maas_middleware.tokens import Claims
from maas_middleware.usage_store import UsageRecord
from tests.servers import serving

NOW = 1_795_446_245  # 2026-11-23T15:04:05Z
DAY = 86_400
FAY = "openshift/fay"
ADMINISTRATOR = {"authorization": "Bearer root", "x-request-id": "request-1"}
REFUSAL = "Only administrators may do this, with a full login"
NOBODY = "`user` has to name one user, and `provider`, if it is given, one provider"
UNKNOWN = "Nothing is known of this user"
ROUTES = [("GET", "/users"), ("HEAD", "/users"), ("GET", "/tokens"), ("HEAD", "/tokens"), ("DELETE", "/tokens")]
EVENTS = {"/users": "admin.users.read", "/tokens": "admin.tokens.read"}

GROUPS = ("maas-admins", "users")
PROVIDER = StaticIdentityProvider(
    {
        "root": Identity("openshift", "root", GROUPS),
        "minted": Identity("openshift", "root", GROUPS, restriction="An access token cannot manage tokens"),
        "fay": Identity("openshift", "fay", ("users",)),
        "a": Identity("openshift", "a", ("m", "maas", "maas-admin", "maas-admins ", "MAAS-ADMINS")),
        "keycloak": Identity("keycloak", "root", GROUPS),
    }
)


class Store(MemoryTokenStore):
    """One whose revocations can be made to fail, or to wait."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.error: Exception | None = None
        self.begun, self.released = anyio.Event(), anyio.Event()
        self.released.set()

    async def revoke_all(self, owner: str, /) -> int:
        self.begun.set()
        await self.released.wait()
        if self.error is not None:
            raise self.error
        return await super().revoke_all(owner)


class Service:
    """The app with real parts round it."""

    def __init__(self, administrators: Sequence[str] = ("maas-admins", "ops"), *, timeout: float = 10.0) -> None:
        self.clock = FakeClock(NOW)
        self.store = Store(self.clock)
        self.usage = MemoryUsageStore()
        self.administrators = administrators
        resolver = GroupTierResolver([Tier("free", groups=("users",)), Tier("gold", level=1, groups=("gold-users",))])
        app = AdminApp(
            administrators=lambda: self.administrators,
            tokens=self.store,
            usage=self.usage,
            resolver=resolver,
            timeout=timeout,
            clock=self.clock,
        )
        self.app: ASGIApp = ErrorEnvelopeMiddleware(IdentityMiddleware(app, provider=PROVIDER))

    async def call(
        self, method: str, path: str, query: str = "user=fay", *, user: str = "root", **options: Any
    ) -> Conversation:
        return await converse(
            self.app,
            method,
            f"/v1/admin{path}",
            headers=[("authorization", f"Bearer {user}"), ("x-request-id", "request-1")],
            scope={"root_path": "/v1/admin", "query_string": query.encode()},
            **options,
        )

    async def show(self, query: str = "user=fay") -> dict[str, Any]:
        conversation = await self.call("GET", "/users", query)
        assert conversation.status == 200
        content = conversation.json()
        assert isinstance(content, dict)
        return content

    async def record(
        self,
        token_id: str,
        owner: str = FAY,
        *,
        kind: TokenKind = "access_token",
        lifetime: int = 3600,
        groups: tuple[str, ...] = ("users",),
        **more: Any,
    ) -> Claims:
        now = int(self.clock())
        claims = Claims(token_id, owner, await self.store.generation(owner), now, now + lifetime)
        await self.store.record(TokenRecord(claims, kind, groups=groups, **more))
        return claims


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "maas_middleware.audit")
    return caplog


def records(audit: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    """The audit records by their levels, each of which is one line of JSON in ASCII."""
    found = [record for record in audit.records if record.name == "maas_middleware.audit"]
    for record in found:
        message = record.getMessage()
        assert message.isascii()
        assert message.isprintable()
    return [(record.levelname, json.loads(record.getMessage())) for record in found]


def act(event: str, outcome: str, subject: str | None = FAY, actor: str = "openshift/root") -> dict[str, Any]:
    return {
        "event": event,
        "actor": actor,
        "subject": subject,
        "time": "2026-11-23T15:04:05.000Z",
        "request_id": "request-1",
        "outcome": outcome,
    }


def event_of(method: str, path: str) -> str:
    return "admin.tokens.revoke" if method == "DELETE" else EVENTS[path]


def assert_refused(conversation: Conversation, status: int, code: str, message: str, param: str | None = None) -> None:
    assert conversation.exception is None
    assert conversation.status == status
    assert conversation.header("cache-control") == "no-store"
    error = conversation.json()["error"]
    assert (error["code"], error["message"], error["param"]) == (code, message, param)


async def test_revoking_ends_all_that_the_user_has_at_once_and_nothing_else(
    service: Service, audit: pytest.LogCaptureFixture
) -> None:
    ended = [await service.record("a"), await service.record("b", kind="api_key", name="ci")]
    kept = [await service.record("c", "openshift/fay2"), await service.record("d", "keycloak/fay")]

    conversation = await service.call("DELETE", "/tokens")

    assert (conversation.status, conversation.body) == (204, b"")
    assert conversation.header("cache-control") == "no-store"
    assert [await service.store.is_revoked(claims) for claims in ended] == [True, True]
    assert [await service.store.is_revoked(claims) for claims in kept] == [False, False]
    assert not await service.store.is_revoked(await service.record("new"))
    assert records(audit) == [("INFO", act("admin.tokens.revoke", "done"))]


async def test_revoking_for_a_user_of_whom_nothing_is_known_ends_what_was_not_recorded(
    service: Service, audit: pytest.LogCaptureFixture
) -> None:
    unrecorded = Claims("x", FAY, 0, NOW, NOW + 3600)

    conversation = await service.call("DELETE", "/tokens")

    assert conversation.status == 204
    assert await service.store.is_revoked(unrecorded)
    assert records(audit) == [("INFO", act("admin.tokens.revoke", "done"))]


@pytest.mark.parametrize(
    ("query", "owner"),
    [
        pytest.param("user=fay", "openshift/fay", id="of the administrator's own provider"),
        pytest.param("user=fay&provider=keycloak", "keycloak/fay", id="of another provider"),
        pytest.param("user=system:serviceaccount:ns:bot", "openshift/system:serviceaccount:ns:bot", id="colons"),
        pytest.param("user=system%3Aserviceaccount%3Ans%3Abot", "openshift/system:serviceaccount:ns:bot", id="encoded"),
        pytest.param("user=a/b", "openshift/a/b", id="slash"),
        pytest.param("user=keycloak/fay", "openshift/keycloak/fay", id="what looks like a provider"),
        pytest.param("user=a%2Bb%40example.com", "openshift/a+b@example.com", id="plus"),
        pytest.param("user=a+b", "openshift/a b", id="space"),
        pytest.param("user=%F0%9F%94%91", "openshift/\U0001f511", id="emoji"),
        pytest.param("user=Fay%20", "openshift/Fay ", id="exactly"),
        pytest.param("user=fay&x=1&x=2", "openshift/fay", id="other parameters"),
        pytest.param(f"user={'x' * 1014}", f"openshift/{'x' * 1014}", id="long"),
    ],
)
async def test_user_is_who_is_named_exactly(
    query: str, owner: str, service: Service, audit: pytest.LogCaptureFixture
) -> None:
    of_user = await service.record("a", owner)
    of_others = [await service.record("b", "openshift/fay2"), await service.record("c", "openshift/Fay")]

    listed = await service.call("GET", "/tokens", query)
    shown = await service.call("GET", "/users", query)
    revoked = await service.call("DELETE", "/tokens", query)

    assert [row["id"] for row in listed.json()] == ["a"]
    assert f"{shown.json()['provider']}/{shown.json()['user']}" == owner
    assert revoked.status == 204
    assert await service.store.is_revoked(of_user)
    assert [await service.store.is_revoked(claims) for claims in of_others] == [False, False]
    assert {record["subject"] for _, record in records(audit)} == {owner}


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "query",
    [
        pytest.param("", id="none"),
        pytest.param("user=", id="empty"),
        pytest.param("user", id="without a value"),
        pytest.param("user=fay&user=gus", id="two"),
        pytest.param("user=fay&user=fay", id="twice"),
        pytest.param("user=fay&user=", id="one and none"),
        pytest.param("User=fay", id="another parameter"),
        pytest.param("user=fay&provider=", id="empty provider"),
        pytest.param("user=fay&provider=openshift&provider=openshift", id="provider twice"),
        pytest.param("user=fay&provider=a/b", id="provider with a slash"),
        pytest.param("user=fay&provider=[a", id="provider with a bracket"),
        pytest.param("user=%ff", id="no UTF-8"),
        pytest.param("user=f\u00e4y", id="not encoded"),
        pytest.param(f"user={'x' * 1015}", id="too long"),
    ],
)
async def test_request_that_names_no_user_does_nothing(
    query: str, method: str, path: str, service: Service, audit: pytest.LogCaptureFixture
) -> None:
    claims = [await service.record("a"), await service.record("b", "openshift/gus"), await service.record("c", "o/")]

    conversation = await service.call(method, path, query)

    assert_refused(conversation, 400, "invalid_value", NOBODY, "user")
    assert [await service.store.is_revoked(one) for one in claims] == [False] * 3
    assert await service.store.generation("openshift/") == 0
    assert records(audit) == [("WARNING", act(event_of(method, path), "failed", None))]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    ("user", "actor"),
    [
        pytest.param("fay", "openshift/fay", id="a user"),
        pytest.param("minted", "openshift/root", id="a minted token of an administrator's"),
        pytest.param("a", "openshift/a", id="groups that are almost right"),
    ],
)
async def test_only_administrators_who_logged_in_may(
    user: str, actor: str, method: str, path: str, service: Service, audit: pytest.LogCaptureFixture
) -> None:
    claims = await service.record("a")

    known = await service.call(method, path, user=user)
    unknown = await service.call(method, path, "user=nobody", user=user)
    no_user = await service.call(method, path, "", user=user)

    for conversation in (known, unknown, no_user):
        assert_refused(conversation, 403, "access_denied", REFUSAL)
        assert conversation.headers == known.headers
        assert conversation.body == known.body
    assert not await service.store.is_revoked(claims)
    assert records(audit) == [
        ("WARNING", act(event_of(method, path), "denied", subject, actor))
        for subject in (FAY, "openshift/nobody", None)
    ]


async def test_nobody_may_where_there_are_no_administrators(audit: pytest.LogCaptureFixture) -> None:
    service = Service(administrators=())

    conversations = [await service.call(method, path) for method, path in ROUTES]

    for conversation in conversations:
        assert_refused(conversation, 403, "access_denied", REFUSAL)
    assert [record["outcome"] for _, record in records(audit)] == ["denied"] * len(ROUTES)


async def test_groups_of_administrators_may_change(service: Service) -> None:
    service.administrators = ("others",)
    before = await service.call("DELETE", "/tokens")

    service.administrators = ("users",)
    after = await service.call("DELETE", "/tokens", user="fay")

    assert (before.status, after.status) == (403, 204)


async def test_administrators_are_a_collection_of_groups() -> None:
    service = Service()
    parts: dict[str, Any] = {"tokens": service.store, "usage": service.usage, "resolver": GroupTierResolver([])}

    with pytest.raises(ValueError, match="administrators are a collection of groups"):
        AdminApp(administrators="maas-admins", **parts)
    app = IdentityMiddleware(AdminApp(administrators=("maas-admins",), **parts), provider=PROVIDER)

    statuses = [
        (
            await converse(
                app,
                path="/v1/admin/tokens",
                headers=[("authorization", f"Bearer {user}")],
                scope={"query_string": b"user=fay"},
            )
        ).status
        for user in ("root", "fay")
    ]
    assert statuses == [200, 403]


async def test_who_is_not_known_is_not_told_what_there_is(service: Service, audit: pytest.LogCaptureFixture) -> None:
    for path in ("/users", "/nothing"):
        conversation = await service.call("GET", path, user="stranger")
        assert (conversation.status, conversation.json()["error"]["code"]) == (401, "invalid_api_key")
    assert records(audit) == []


@pytest.mark.parametrize(
    "path", ["", "/", "/user", "/users/fay", "/tokens/a", "//tokens", "/tokens//", "/v1/admin/tokens"]
)
async def test_other_paths_are_404_for_everybody(path: str, service: Service, audit: pytest.LogCaptureFixture) -> None:
    claims = await service.record("a")

    for user in ("root", "fay"):
        assert_refused(await service.call("DELETE", path, user=user), 404, "not_found", "Not found")
    assert not await service.store.is_revoked(claims)
    assert records(audit) == []


@pytest.mark.parametrize(
    ("path", "methods", "allow"),
    [
        ("/users", ("DELETE", "POST", "PUT", "OPTIONS"), "GET, HEAD"),
        ("/tokens", ("POST", "PUT", "PATCH", "OPTIONS"), "DELETE, GET, HEAD"),
    ],
)
async def test_other_methods_are_405(path: str, methods: Sequence[str], allow: str, service: Service) -> None:
    for method in methods:
        conversation = await service.call(method, path)
        assert_refused(conversation, 405, "method_not_allowed", "Method not allowed")
        assert conversation.header("allow") == allow


async def test_user_is_shown_with_everything_that_is_known(service: Service, audit: pytest.LogCaptureFixture) -> None:
    await service.record("expired-key", kind="api_key", name="old", lifetime=600, groups=("nobodies",))
    await service.record("older", groups=("users",), lifetime=7 * DAY)
    await service.record("revoked-key", kind="api_key", name="leaked", lifetime=7 * DAY)
    await service.store.revoke(FAY, "revoked-key")
    service.clock.advance(DAY)
    await service.record("key", kind="api_key", name="ci", lifetime=7 * DAY, groups=("gold-users", "x"))
    service.clock.advance(600)
    await service.record("revoked", groups=("nobodies",))
    await service.store.revoke(FAY, "revoked")
    await service.record("of-gus", "openshift/gus")
    await service.store.mark_used({"older": NOW + DAY + 60, "key": NOW + DAY + 30, "of-gus": NOW + 2 * DAY})
    today = date(2026, 11, 24)
    await service.usage.add(
        "batch",
        [
            UsageRecord(FAY, date(2026, 10, 25), "too old", 1, 1, 1),
            UsageRecord(FAY, date(2026, 10, 26), "simulator", 1, 10, 5),
            UsageRecord(FAY, today, "simulator", 2, 20, 30),
            UsageRecord(FAY, date(2026, 11, 25), "to come", 1, 1, 1),
            UsageRecord("openshift/gus", today, "simulator", 100, 100, 100),
        ],
    )

    conversation = await service.call("GET", "/users")

    assert conversation.header("cache-control") == "no-store"
    assert conversation.json() == {
        "user": "fay",
        "provider": "openshift",
        "generation": 0,
        "tier": "gold",
        "groups": ["gold-users", "x"],
        "accessTokens": {"active": 1},
        "apiKeys": {"active": 1, "revoked": 1, "expired": 1},
        "truncated": False,
        "lastIssuedDate": "2026-11-24T15:14:05Z",
        "lastUsedDate": "2026-11-24T15:05:05Z",
        "usage": [
            {
                "date": "2026-10-26",
                "model": "simulator",
                "requests": 1,
                "input_tokens": 10,
                "output_tokens": 5,
                "total_tokens": 15,
            },
            {
                "date": "2026-11-24",
                "model": "simulator",
                "requests": 2,
                "input_tokens": 20,
                "output_tokens": 30,
                "total_tokens": 50,
            },
        ],
    }
    at = datetime.fromtimestamp(service.clock(), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    assert records(audit) == [("INFO", {**act("admin.users.read", "done"), "time": at})]


async def test_user_without_active_tokens_has_no_tier(service: Service) -> None:
    await service.record("a", lifetime=600)
    await service.call("DELETE", "/tokens")

    shown = await service.show()

    assert (shown["generation"], shown["tier"], shown["groups"]) == (1, None, [])
    assert (shown["accessTokens"], shown["apiKeys"]["revoked"]) == ({"active": 0}, 0)
    assert (shown["lastIssuedDate"], shown["lastUsedDate"]) == ("2026-11-23T15:04:05Z", None)


async def test_user_whose_groups_lead_to_no_tier_has_none(service: Service) -> None:
    await service.record("a", groups=("visitors",))

    shown = await service.show()

    assert (shown["tier"], shown["groups"]) == (None, ["visitors"])


async def test_user_is_known_by_a_generation_or_by_use_alone(service: Service) -> None:
    await service.call("DELETE", "/tokens", "user=gus")
    await service.usage.add("batch", [UsageRecord("openshift/ida", date(2026, 11, 1), "simulator", 1, 1, 1)])

    gus, ida = await service.show("user=gus"), await service.show("user=ida")

    assert (gus["generation"], gus["lastIssuedDate"], gus["usage"]) == (1, None, [])
    assert (ida["generation"], ida["lastIssuedDate"], len(ida["usage"])) == (0, None, 1)


async def test_user_of_whom_nothing_is_known_is_404(service: Service, audit: pytest.LogCaptureFixture) -> None:
    await service.record("a", "openshift/gus")

    conversation = await service.call("GET", "/users")

    assert_refused(conversation, 404, "not_found", UNKNOWN)
    assert records(audit) == [("INFO", act("admin.users.read", "done"))]


@pytest.mark.parametrize(
    ("count", "counted", "truncated"), [(999, 999, False), (1001, 1001, False), (5000, 5000, False), (5001, 5000, True)]
)
async def test_counting_is_bounded_and_says_so(count: int, counted: int, truncated: bool, service: Service) -> None:
    for number in range(count):
        await service.record(f"{number:05}", kind="api_key", name="ci")
    await service.record("access")

    shown = await service.show()

    assert shown["apiKeys"] == {"active": counted, "revoked": 0, "expired": 0}
    assert (shown["accessTokens"], shown["truncated"]) == ({"active": 1}, truncated)


async def test_tokens_of_both_kinds_are_listed_newest_first(service: Service, audit: pytest.LogCaptureFixture) -> None:
    await service.record("key", kind="api_key", name="ci", description="Nightly", lifetime=DAY)
    service.clock.advance(1)
    await service.record("access")
    await service.record("of-gus", "openshift/gus")
    await service.store.revoke(FAY, "access")
    await service.store.mark_used({"key": NOW + 1})
    service.clock.now = NOW

    conversation = await service.call("GET", "/tokens")

    assert conversation.header("cache-control") == "no-store"
    assert conversation.json() == [
        {
            "id": "access",
            "creationDate": "2026-11-23T15:04:06Z",
            "expirationDate": "2026-11-23T16:04:06Z",
            "status": "revoked",
            "kind": "access_token",
        },
        {
            "id": "key",
            "name": "ci",
            "description": "Nightly",
            "creationDate": "2026-11-23T15:04:05Z",
            "expirationDate": "2026-11-24T15:04:05Z",
            "lastUsedDate": "2026-11-23T15:04:06Z",
            "status": "active",
            "kind": "api_key",
        },
    ]
    assert records(audit) == [("INFO", act("admin.tokens.read", "done"))]


async def test_user_of_whom_nothing_is_known_has_no_tokens(service: Service) -> None:
    conversation = await service.call("GET", "/tokens")

    assert (conversation.status, conversation.json()) == (200, [])


async def test_pages_of_tokens_stay_with_the_user(service: Service) -> None:
    owner = "keycloak/system:serviceaccount:ns:a&b"
    for number in range(5):
        await service.record(f"token {number}&", owner)
        await service.record(f"of-fay-{number}")
    found: list[str] = []
    link: str | None = "/v1/admin/tokens?provider=keycloak&user=system%3Aserviceaccount%3Ans%3Aa%26b&limit=2"

    while link is not None:
        assert link.startswith("/v1/admin/tokens?provider=keycloak&user=system%3Aserviceaccount%3Ans%3Aa%26b&limit=2")
        conversation = await service.call("GET", "/tokens", link.split("?")[1])
        found += [row["id"] for row in conversation.json()]
        links = conversation.header("link")
        link = None if links is None else links.removeprefix("<").split(">")[0]

    assert found == [f"token {number}&" for number in range(5)]


async def test_page_after_the_token_of_another_user_is_400(service: Service) -> None:
    await service.record("a")
    await service.record("b", "openshift/gus")

    answers = [await service.call("GET", "/tokens", f"user=fay&{wrong}") for wrong in ("after=b", "limit=0")]

    assert_refused(answers[0], 400, "invalid_value", "`after` is not an id of this list", "after")
    assert answers[1].json()["error"]["param"] == "limit"


async def test_head_is_answered_like_get(service: Service) -> None:
    await service.record("a")

    for path in ("/users", "/tokens", "/tokens/"):
        asked, shown = await service.call("HEAD", path), await service.call("GET", path)
        assert (asked.status, asked.headers) == (200, shown.headers)


@pytest.mark.parametrize("error", [StoreUnavailable(), RuntimeError("secret")])
async def test_revocation_that_fails_is_recorded(
    error: Exception, service: Service, audit: pytest.LogCaptureFixture
) -> None:
    service.store.error = error

    conversation = await service.call("DELETE", "/tokens")

    assert conversation.status in (500, 503)
    assert b"secret" not in conversation.body
    assert records(audit) == [("WARNING", act("admin.tokens.revoke", "failed"))]


async def test_revocation_is_done_and_recorded_when_the_client_leaves(
    service: Service, audit: pytest.LogCaptureFixture
) -> None:
    claims = await service.record("a")
    service.store.released = anyio.Event()

    with anyio.fail_after(10):
        async with serving(service.app) as url:
            async with await anyio.connect_tcp("127.0.0.1", int(url.rpartition(":")[2])) as client:
                await client.send(
                    b"DELETE /v1/admin/tokens?user=fay HTTP/1.1\r\nhost: x\r\n"
                    b"authorization: Bearer root\r\nx-request-id: request-1\r\n\r\n"
                )
                await service.store.begun.wait()
            await anyio.wait_all_tasks_blocked()
            service.store.released.set()
            while not records(audit):
                await checkpoint()

    assert await service.store.is_revoked(claims)
    assert records(audit) == [("INFO", act("admin.tokens.revoke", "done"))]


async def test_revocation_is_done_and_recorded_when_the_request_is_cancelled(
    service: Service, audit: pytest.LogCaptureFixture
) -> None:
    claims = await service.record("a")
    service.store.released = anyio.Event()
    scope = anyio.CancelScope()

    async def ask() -> None:
        with scope:
            await service.call("DELETE", "/tokens")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await service.store.begun.wait()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert records(audit) == []
            service.store.released.set()

    assert await service.store.is_revoked(claims)
    assert records(audit) == [("INFO", act("admin.tokens.revoke", "done"))]


async def test_revocation_that_hangs_is_given_up_and_recorded(audit: pytest.LogCaptureFixture) -> None:
    service = Service(timeout=0.01)
    service.store.released = anyio.Event()

    with anyio.fail_after(5):
        conversation = await service.call("DELETE", "/tokens")

    assert (conversation.status, conversation.json()["error"]["code"]) == (503, "store_unavailable")
    assert conversation.header("retry-after") is not None
    assert records(audit) == [("WARNING", act("admin.tokens.revoke", "failed"))]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param('fay\n{"event": "admin.tokens.revoke"}', id="newline"),
        pytest.param('fay", "outcome": "done', id="quote"),
        pytest.param("fay\r\n\x1b[2J\x00\x85\u2028\u202e", id="control characters"),
        pytest.param("%s %(name)s {}", id="format"),
        pytest.param("\U0001f511\u00e9", id="beyond ASCII"),
    ],
)
async def test_no_name_forges_a_record(name: str, service: Service, audit: pytest.LogCaptureFixture) -> None:
    query = str(httpx.QueryParams({"user": name}))

    for user in ("root", "fay"):
        await service.call("DELETE", "/tokens", query, user=user)

    subject = f"openshift/{name}"
    assert records(audit) == [
        ("INFO", act("admin.tokens.revoke", "done", subject)),
        ("WARNING", act("admin.tokens.revoke", "denied", subject, "openshift/fay")),
    ]


def test_record_survives_half_characters_and_an_act_without_a_request(audit: pytest.LogCaptureFixture) -> None:
    write_audit_record(AuditRecord("admin.users.read", "a/\ud800", None, 0.5, None, "done"))

    assert records(audit) == [
        (
            "INFO",
            {
                "event": "admin.users.read",
                "actor": "a/\ud800",
                "subject": None,
                "time": "1970-01-01T00:00:00.500Z",
                "request_id": None,
                "outcome": "done",
            },
        )
    ]


async def test_no_token_is_in_answers_or_records(service: Service, audit: pytest.LogCaptureFixture) -> None:
    await service.record("a")

    answers = [await service.call(method, path) for method, path in ROUTES]

    assert all(b"Bearer" not in answer.body for answer in answers)
    assert "Bearer" not in audit.text


async def test_administrators_of_two_providers_have_users_of_their_own(service: Service) -> None:
    of_openshift, of_keycloak = await service.record("a"), await service.record("b", "keycloak/fay")

    await service.call("DELETE", "/tokens", user="keycloak")

    assert not await service.store.is_revoked(of_openshift)
    assert await service.store.is_revoked(of_keycloak)


async def test_app_works_over_a_socket_wherever_it_is_mounted(
    service: Service, audit: pytest.LogCaptureFixture
) -> None:
    name = "system:serviceaccount:ns/\U0001f511+%41"
    claims = await service.record("a", f"openshift/{name}")
    await service.record("b", f"openshift/{name}")
    params = {"user": name}
    routes = [Mount("/maas-api/v1/admin", service.app), Route("/v1/admin/{what}", service.app)]

    async with (
        serving(Starlette(routes=routes)) as url,
        httpx.AsyncClient(base_url=url, headers=ADMINISTRATOR) as client,
    ):
        shown = await client.get("/v1/admin/users", params=params)
        listed = await client.get("/maas-api/v1/admin/tokens", params={**params, "limit": 1})
        following = await client.get(listed.links["next"]["url"])
        without_user = await client.delete("/maas-api/v1/admin/tokens/")
        revoked = await client.delete("/maas-api/v1/admin/tokens/", params=params)
        huge = await client.get("/v1/admin/users", params={"user": "x" * 50_000})

    assert (shown.status_code, shown.json()["user"]) == (200, name)
    assert [row["id"] for row in (*listed.json(), *following.json())] == ["a", "b"]
    assert "next" not in following.links
    assert (without_user.status_code, revoked.status_code, huge.status_code) == (400, 204, 400)
    assert await service.store.is_revoked(claims)
    assert [record["outcome"] for _, record in records(audit)] == ["done", "done", "done", "failed", "done", "failed"]
    assert max(len(record.getMessage()) for record in audit.records) < 10_000


async def test_app_without_an_identity_says_what_is_missing(service: Service) -> None:
    app = AdminApp(administrators=(), tokens=service.store, usage=service.usage, resolver=GroupTierResolver([]))

    conversation = await converse(app, path="/v1/admin/users")

    assert isinstance(conversation.exception, LookupError)
    assert str(conversation.exception) == "AdminApp needs to know the identity: wrap it in IdentityMiddleware"
    assert conversation.messages == []
