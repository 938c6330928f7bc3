from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from maas_middleware.apps.api_keys import APIKeysApp
from maas_middleware.errors import InvalidCredentials
from maas_middleware.identity import Identity
from maas_middleware.ledgers.throttles import MovingWindowThrottle
from maas_middleware.middleware.identity import IdentityMiddleware
from maas_middleware.providers.jwt import JWTMinter, JWTProvider
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.stores.memory import MemoryTokenStore
from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.converse import Conversation, converse, http_scope
from maas_middleware.testing.identity import StaticIdentityProvider
from maas_middleware.tiers import GroupTierResolver, Tier
from maas_middleware.token_store import TokenRecord
from maas_middleware.tokens import Claims
from tests.servers import serving

NOW = 1_795_446_245  # 2026-11-23T15:04:05Z
DAY = 86_400
KEYS = SigningKeys.generate()
RESTRICTION = "An access token cannot manage tokens"
NO_KEY = "You have no API key of this id"
ALICE = {"authorization": "Bearer alice"}
AS_ALICE = list(ALICE.items())

PROVIDER = StaticIdentityProvider(
    {
        "alice": Identity("openshift", "alice", ("users",)),
        "bob": Identity("openshift", "bob", ("users",)),
        "stranger": Identity("openshift", "stranger", ("visitors",)),
        "minted": Identity("openshift", "alice", ("users",), restriction=RESTRICTION),
    }
)


class Service:
    """The app with real parts round it."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock(NOW)
        self.store = MemoryTokenStore(clock=self.clock)
        app = APIKeysApp(
            minter=JWTMinter(keys=KEYS, clock=self.clock),
            store=self.store,
            resolver=GroupTierResolver([Tier("free", groups=("users",))]),
            clock=self.clock,
            **options,
        )
        self.app: ASGIApp = IdentityMiddleware(app, provider=PROVIDER)
        self._tokens = JWTProvider(keys=KEYS, revocations=self.store, maximum_lifetime=90 * DAY, clock=self.clock)

    async def call(
        self, method: str, path: str = "", *, user: str = "alice", query: str = "", **options: Any
    ) -> Conversation:
        return await converse(
            self.app,
            method,
            f"/v1/api-keys{path}",
            headers=[("authorization", f"Bearer {user}")],
            scope={"root_path": "/v1/api-keys", "query_string": query.encode()},
            **options,
        )

    async def create(self, name: str = "ci", user: str = "alice", **asked: object) -> dict[str, Any]:
        conversation = await self.call("POST", user=user, json={"name": name, **asked})
        assert conversation.status == 201
        created = conversation.json()
        assert isinstance(created, dict)
        return created

    async def rows(self, query: str = "", user: str = "alice") -> list[dict[str, Any]]:
        conversation = await self.call("GET", user=user, query=query)
        assert conversation.status == 200
        rows = conversation.json()
        assert isinstance(rows, list)
        return rows

    async def identify(self, token: str) -> Identity | str | None:
        """Whom a token stands for, or why it is refused."""
        try:
            return await self._tokens.identify(http_scope(headers=[("authorization", f"Bearer {token}")]))
        except InvalidCredentials as error:
            return str((error.details or {})["reason"])

    async def record_access_token(self, token_id: str, owner: str = "openshift/alice") -> Claims:
        claims = Claims(token_id, owner, 0, int(self.clock()), int(self.clock()) + 3600)
        await self.store.record(TokenRecord(claims))
        return claims


@pytest.fixture
def service() -> Service:
    return Service()


def assert_refused(conversation: Conversation, status: int, code: str, message: str, param: str | None = None) -> None:
    assert conversation.exception is None
    assert conversation.status == status
    assert conversation.header("cache-control") == "no-store"
    error = conversation.json()["error"]
    assert (error["code"], error["message"], error["param"]) == (code, message, param)


async def test_api_key_lives_thirty_days_where_nothing_else_is_asked_for(service: Service) -> None:
    conversation = await service.call("POST", json={"name": "ci", "ttl": "1h", "id": "mine", "status": "revoked"})

    created = conversation.json()
    assert conversation.status == 201
    assert conversation.header("content-type") == "application/json"
    assert conversation.header("cache-control") == "no-store"
    assert list(created) == ["token", "expiration", "expiresAt", "issuedAt", "jti", "name"]
    assert created["expiration"] == "720h0m0s"
    assert (created["issuedAt"], created["expiresAt"]) == (NOW, NOW + 30 * DAY)
    assert created["name"] == "ci"


async def test_api_key_stands_for_its_owner_and_cannot_manage_keys(service: Service) -> None:
    identity = await service.identify((await service.create())["token"])

    assert isinstance(identity, Identity)
    assert (identity.key, identity.groups) == ("openshift/alice", ("users",))
    assert identity.restriction is not None


async def test_groups_are_recorded_with_the_key(service: Service) -> None:
    created = await service.create()

    record = await service.store.find("openshift/alice", created["jti"])

    assert record is not None
    assert (record.kind, record.groups) == ("api_key", ("users",))


@pytest.mark.parametrize(
    ("expiration", "seconds"),
    [
        pytest.param("10m", 600, id="the minimum"),
        pytest.param(3600, 3600, id="seconds"),
        pytest.param("90d", 90 * DAY, id="the maximum"),
        pytest.param(None, 30 * DAY, id="null"),
    ],
)
async def test_expiration_is_granted_as_asked(expiration: object, seconds: int, service: Service) -> None:
    created = await service.create(expiration=expiration)

    assert created["expiresAt"] - created["issuedAt"] == seconds


@pytest.mark.parametrize(
    ("expiration", "message"),
    [
        pytest.param("9m", "token expiration must be at least 10 minutes", id="under the minimum"),
        pytest.param("90d1s", "token expiration must be at most 2160 hours", id="over the maximum"),
        pytest.param("", "expiration must be positive", id="empty"),
        pytest.param([1], "invalid duration", id="array"),
    ],
)
async def test_expiration_that_cannot_be_granted_is_400(expiration: object, message: str, service: Service) -> None:
    conversation = await service.call("POST", json={"name": "ci", "expiration": expiration})

    assert_refused(conversation, 400, "invalid_expiration", message, "expiration")
    assert await service.rows() == []


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="no body"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no name"),
        pytest.param(b'{"name": null}', id="null name"),
        pytest.param(b'{"name": ""}', id="empty"),
        pytest.param(b'{"name": " \\t\\n\\u3000"}', id="spaces"),
        pytest.param(b'{"name": "\\u200b\\u2060"}', id="nothing that is seen"),
        pytest.param(b'{"name": 1}', id="number"),
        pytest.param(b'{"name": true}', id="true"),
        pytest.param(b'{"name": ["ci"]}', id="array"),
        pytest.param(b'{"name": {"ci": 1}}', id="object"),
        pytest.param(b'{"Name": "ci"}', id="another field"),
    ],
)
async def test_key_without_a_name_is_400(body: bytes, service: Service) -> None:
    conversation = await service.call("POST", body=body)

    assert_refused(conversation, 400, "missing_name", "token name is required for api keys", "name")
    assert await service.rows() == []


TOO_LONG = "`name` has more than 128 characters"
CONTROL = "`name` has control characters in it"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("x" * 129, TOO_LONG, id="long"),
        pytest.param("\U0001f511" * 129, TOO_LONG, id="long in emoji"),
        pytest.param("a\nb", CONTROL, id="newline"),
        pytest.param('a\r\nINFO: {"event": "x"}', CONTROL, id="forged log line"),
        pytest.param("a\x00b", CONTROL, id="nul"),
        pytest.param("a\x1b[31mb", CONTROL, id="escape"),
        pytest.param("a\x7f", CONTROL, id="delete"),
        pytest.param("a\u0085b", CONTROL, id="next line"),
        pytest.param("a\u2028b", CONTROL, id="line separator"),
        pytest.param("a\u2029b", CONTROL, id="paragraph separator"),
        pytest.param("a\ud800b", CONTROL, id="half a character"),
        pytest.param("a\u202egnp.b", CONTROL, id="turned around"),
        pytest.param("a\u2066b\u2069", CONTROL, id="isolated"),
    ],
)
async def test_name_that_cannot_be_shown_is_400(name: str, message: str, service: Service) -> None:
    conversation = await service.call("POST", json={"name": name})

    assert_refused(conversation, 400, "invalid_value", message, "name")
    assert await service.rows() == []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("x" * 128, id="as long as may be"),
        pytest.param('laptop of <b>Fay</b> & "co"; \'--', id="quotes and tags"),
        pytest.param("Schlüssel für é", id="accents"),
        pytest.param("\u958b\u767a\u3000\u30ad\u30fc", id="wide space"),
        pytest.param("\U0001f469\u200d\U0001f4bb \u2764\ufe0f", id="emoji of several characters"),
        pytest.param("\u0646\u0627\u0645\u0647\u200c\u0627\u06cc", id="from right to left"),
    ],
)
async def test_name_in_any_script_is_kept_as_it_is(name: str, service: Service) -> None:
    created = await service.create(name)

    assert created["name"] == name
    assert [row["name"] for row in await service.rows()] == [name]


async def test_name_is_kept_without_spaces_at_its_ends(service: Service) -> None:
    created = await service.create(" \n my  key\t ")
    longest = await service.create(" " + "x" * 128 + " ")

    assert (created["name"], longest["name"]) == ("my  key", "x" * 128)
    assert {row["name"] for row in await service.rows()} == {"my  key", "x" * 128}


async def test_two_keys_may_have_the_same_name(service: Service) -> None:
    first, second = await service.create("ci"), await service.create("ci")

    assert first["jti"] != second["jti"]
    assert [row["name"] for row in await service.rows()] == ["ci", "ci"]


async def test_description_is_told_where_there_is_one(service: Service) -> None:
    created = await service.create(description=" Nightly " + "x" * 1000 + " ")

    assert created["description"] == "Nightly " + "x" * 1000
    assert [row["description"] for row in await service.rows()] == ["Nightly " + "x" * 1000]


@pytest.mark.parametrize("description", [None, "", " \n"])
async def test_empty_description_is_none(description: str | None, service: Service) -> None:
    created = await service.create(description=description)

    assert "description" not in created
    assert "description" not in (await service.rows())[0]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        pytest.param("x" * 1025, "`description` has more than 1024 characters", id="long"),
        pytest.param("a\nb", "`description` has control characters in it", id="newline"),
        pytest.param("\ud800", "`description` has control characters in it", id="half a character"),
        pytest.param(1, "`description` has to be text", id="number"),
        pytest.param(["x"], "`description` has to be text", id="array"),
        pytest.param(False, "`description` has to be text", id="false"),
    ],
)
async def test_description_that_cannot_be_shown_is_400(description: object, message: str, service: Service) -> None:
    conversation = await service.call("POST", json={"name": "ci", "description": description})

    assert_refused(conversation, 400, "invalid_value", message, "description")
    assert await service.rows() == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b"name=ci", 400, "invalid_json", id="form"),
        pytest.param(b'["ci"]', 400, "invalid_json", id="array"),
        pytest.param(b'{"name": "ci"', 400, "invalid_json", id="truncated"),
        pytest.param(b'{"name": "ci", "x": "' + b"x" * (64 << 10) + b'"}', 413, "request_too_large", id="huge"),
        pytest.param(b'{"name": "' + b"x" * 60_000 + b'"}', 400, "invalid_value", id="huge name"),
    ],
)
async def test_body_that_cannot_be_read_creates_nothing(body: bytes, status: int, code: str, service: Service) -> None:
    conversation = await service.call("POST", body=body)

    assert conversation.exception is None
    assert (conversation.status, conversation.json()["error"]["code"]) == (status, code)
    assert conversation.header("cache-control") == "no-store"
    assert await service.rows() == []


async def test_caller_in_no_tier_gets_no_key(service: Service) -> None:
    conversation = await service.call("POST", user="stranger", json={"name": "ci"})

    assert_refused(conversation, 403, "no_tier", "You are in no group that gives access to a tier")
    assert await service.rows(user="stranger") == []


async def test_creations_of_a_user_are_throttled() -> None:
    service = Service(throttle=MovingWindowThrottle("2/hour", name="mints"))
    refused = await service.call("POST", json={"name": ""})

    created = [(await service.call("POST", json={"name": "ci"})).status for _ in range(2)]
    conversation = await service.call("POST", json={"name": "ci"})

    assert (refused.status, created) == (400, [201, 201])
    assert_refused(conversation, 429, "rate_limit_exceeded", "Rate limit exceeded")
    assert conversation.json()["error"]["details"]["limit"] == "mints"
    assert conversation.header("retry-after") is not None
    assert len(await service.rows()) == 2
    await service.create(user="bob")


async def test_active_keys_have_a_maximum_count() -> None:
    service = Service(maximum_count=2)
    first, _ = await service.create(), await service.create()
    await service.record_access_token("not-a-key")
    await service.create(user="bob")

    refused = await service.call("POST", json={"name": "ci"})
    await service.call("DELETE", f"/{first['jti']}")
    after_revocation = await service.call("POST", json={"name": "ci"})

    message = "You have 2 active API keys, and may not have more: revoke one first"
    assert_refused(refused, 400, "too_many_api_keys", message)
    assert refused.json()["error"]["details"] == {"maximum": 2}
    assert b"eyJ" not in refused.body
    assert after_revocation.status == 201


async def test_twenty_keys_are_the_maximum_where_nothing_else_is_said(service: Service) -> None:
    for number in range(20):
        await service.create(f"key {number}")

    assert (await service.call("POST", json={"name": "ci"})).json()["error"]["details"] == {"maximum": 20}


async def test_expired_keys_make_room() -> None:
    service = Service(maximum_count=1)
    await service.create(expiration="10m")

    service.clock.advance(600)

    await service.create()


async def test_maximum_holds_for_creations_at_the_same_time() -> None:
    service = Service(maximum_count=3)
    statuses: list[int] = []

    async with serving(service.app) as url, httpx.AsyncClient(base_url=url, headers=ALICE) as client:

        async def create() -> None:
            statuses.append((await client.post("/v1/api-keys", json={"name": "ci"})).status_code)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(create)
        listed = (await client.get("/v1/api-keys")).json()

    assert sorted(statuses) == [201] * 3 + [400] * 7
    assert len(listed) == 3


async def test_keys_are_listed_newest_first_and_those_of_the_caller_alone(service: Service) -> None:
    first = await service.create("first", description="The first", expiration="1d")
    service.clock.advance(60)
    second = await service.create("second")
    await service.create("of bob", user="bob")
    await service.record_access_token("access")
    await service.store.mark_used({first["jti"]: NOW + 30})

    conversation = await service.call("GET")

    assert conversation.header("content-type") == "application/json"
    assert conversation.header("cache-control") == "no-store"
    assert conversation.header("link") is None
    assert conversation.json() == [
        {
            "id": second["jti"],
            "name": "second",
            "creationDate": "2026-11-23T15:05:05Z",
            "expirationDate": "2026-12-23T15:05:05Z",
            "status": "active",
        },
        {
            "id": first["jti"],
            "name": "first",
            "description": "The first",
            "creationDate": "2026-11-23T15:04:05Z",
            "expirationDate": "2026-11-24T15:04:05Z",
            "lastUsedDate": "2026-11-23T15:04:35Z",
            "status": "active",
        },
    ]
    assert b"eyJ" not in conversation.body


async def test_one_key_is_shown_as_in_the_list(service: Service) -> None:
    created = await service.create()

    conversation = await service.call("GET", f"/{created['jti']}")
    with_slash = await service.call("GET", f"/{created['jti']}/")

    assert conversation.status == 200
    assert conversation.header("cache-control") == "no-store"
    assert [conversation.json()] == await service.rows()
    assert with_slash.json() == conversation.json()


async def test_status_tells_what_became_of_a_key(service: Service) -> None:
    active, revoked, expired = await service.create(), await service.create(), await service.create(expiration="10m")
    await service.call("DELETE", f"/{revoked['jti']}")
    service.clock.advance(600)

    statuses = {row["id"]: row["status"] for row in await service.rows()}
    shown = [(await service.call("GET", f"/{key['jti']}")).json()["status"] for key in (active, revoked, expired)]

    assert statuses == {active["jti"]: "active", revoked["jti"]: "revoked", expired["jti"]: "expired"}
    assert shown == ["active", "revoked", "expired"]


async def test_head_is_answered_like_get(service: Service) -> None:
    created = await service.create()

    for path in ("", f"/{created['jti']}"):
        asked, shown = await service.call("HEAD", path), await service.call("GET", path)
        assert (asked.status, asked.headers) == (200, shown.headers)


async def pages(service: Service, limit: int) -> list[list[str]]:
    found, query = [], f"limit={limit}"
    while query:
        conversation = await service.call("GET", query=query)
        found.append([row["id"] for row in conversation.json()])
        link = conversation.header("link")
        assert link is None or re.fullmatch(rf'</v1/api-keys\?limit={limit}&after=[0-9a-f]{{32}}>; rel="next"', link)
        query = "" if link is None else link.split("?")[1].split(">")[0]
    return found


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [(1, [1] * 6), (2, [2, 2, 2]), (4, [4, 2]), (5, [5, 1]), (6, [6]), (1000, [6])],
)
async def test_pages_follow_each_other_to_the_last(limit: int, sizes: list[int], service: Service) -> None:
    created = []
    for number in range(6):
        created.append((await service.create())["jti"])
        service.clock.advance(number % 2)
    await service.create(user="bob")

    found = await pages(service, limit)

    assert [len(page) for page in found] == sizes
    listed = [row["id"] for row in await service.rows()]
    assert [id_ for page in found for id_ in page] == listed
    assert sorted(listed) == sorted(created)


async def test_a_hundred_keys_are_a_page_where_nothing_else_is_asked_for() -> None:
    service = Service(maximum_count=200)
    for _ in range(101):
        await service.create()

    conversation = await service.call("GET")

    assert len(conversation.json()) == 100
    assert "limit=100&after=" in str(conversation.header("link"))
    assert len(await service.rows("limit=1000")) == 101


@pytest.mark.parametrize(
    "limit", ["", "0", "-1", "+5", "1001", "10000", "1.0", "1e2", "ten", "%201", "0x10", "\u0665", "9" * 5000]
)
async def test_limit_that_is_no_size_of_a_page_is_400(limit: str, service: Service) -> None:
    conversation = await service.call("GET", query=f"limit={quote(limit, safe='%')}")

    message = "`limit` has to be a whole number from 1 to 1000"
    assert_refused(conversation, 400, "invalid_value", message, "limit")


@pytest.mark.parametrize(
    ("query", "param"), [("limit=1&limit=2", "limit"), ("after=x&after=x", "after"), ("limit=1&%6Cimit=1", "limit")]
)
async def test_repeated_parameter_is_400(query: str, param: str, service: Service) -> None:
    conversation = await service.call("GET", query=query)

    assert_refused(conversation, 400, "invalid_value", f"The parameter `{param}` is repeated", param)


@pytest.mark.parametrize("query", ["after=%ff", "x=%ff", "after=\u00e9"])
async def test_query_that_is_not_utf_8_is_400(query: str, service: Service) -> None:
    conversation = await service.call("GET", query=query)

    assert_refused(conversation, 400, "invalid_value", "The query of the URL is not UTF-8")


async def test_after_has_to_be_a_key_of_the_caller(service: Service) -> None:
    of_bob = await service.create(user="bob")
    await service.create()
    await service.record_access_token("access")

    asked = ["", of_bob["jti"], "access", "unknown", "%00", "%F0%9F%94%91", "' OR 1=1 --"]
    answers = [await service.call("GET", query=f"after={after}") for after in asked]

    for answer in answers:
        assert_refused(answer, 400, "invalid_value", "`after` is not an id of this list", "after")


async def test_link_is_the_path_that_the_client_sees_and_keeps_the_rest_of_the_query(service: Service) -> None:
    for _ in range(2):
        await service.create()
    routes = [Mount("/maas api/v1/api-keys", service.app), Route("/v1/api-keys", service.app)]
    query = "limit=1&after-all=a%26b"

    app = Starlette(routes=routes)

    async with serving(app, root_path="/a b") as url, httpx.AsyncClient(base_url=url, headers=ALICE) as client:
        mounted = await client.get(f"/maas%20api/v1/api-keys/?{query}")
        routed = await client.get(f"/v1/api-keys?{query}")

    id_ = routed.json()[0]["id"]
    rest = f"after-all=a%26b&limit=1&after={id_}"
    assert mounted.links["next"]["url"] == f"/a%20b/maas%20api/v1/api-keys?{rest}"
    assert routed.links["next"]["url"] == f"/a%20b/v1/api-keys?{rest}"


async def test_link_never_names_another_host(service: Service) -> None:
    for _ in range(2):
        await service.create()
    options: Mapping[str, Any] = {"root_path": "//evil.example/v1/api-keys", "query_string": b"limit=1"}

    conversation = await converse(service.app, path="//evil.example/v1/api-keys", headers=AS_ALICE, scope=options)

    assert str(conversation.header("link")).startswith("</evil.example/v1/api-keys?")


async def test_links_can_be_followed_over_a_socket(service: Service) -> None:
    created = {(await service.create())["jti"] for _ in range(5)}
    found: list[str] = []

    async with serving(service.app) as url, httpx.AsyncClient(base_url=url, headers=ALICE) as client:
        page = await client.get("/v1/api-keys", params={"limit": 2})
        found += [row["id"] for row in page.json()]
        while "next" in page.links:
            page = await client.get(page.links["next"]["url"])
            found += [row["id"] for row in page.json()]
        head = await client.head("/v1/api-keys", params={"limit": 2})

    assert (len(found), set(found)) == (5, created)
    assert (head.status_code, head.content) == (200, b"")
    assert "next" in head.links


async def test_revoked_key_is_refused_at_once_and_stays_in_the_list(service: Service) -> None:
    revoked, kept = await service.create(), await service.create()

    conversation = await service.call("DELETE", f"/{revoked['jti']}")

    assert (conversation.status, conversation.body) == (204, b"")
    assert conversation.header("cache-control") == "no-store"
    assert await service.identify(revoked["token"]) == "revoked"
    assert isinstance(await service.identify(kept["token"]), Identity)
    assert {row["id"]: row["status"] for row in await service.rows()} == {
        revoked["jti"]: "revoked",
        kept["jti"]: "active",
    }


async def test_key_can_be_revoked_again_and_after_it_expired(service: Service) -> None:
    created = await service.create(expiration="10m")
    revoked, again = [await service.call("DELETE", f"/{created['jti']}") for _ in range(2)]
    expired = await service.create(expiration="10m")
    service.clock.advance(600)

    late = await service.call("DELETE", f"/{expired['jti']}")

    assert (revoked.status, again.status, late.status) == (204, 204, 204)
    assert {row["status"] for row in await service.rows()} == {"revoked", "expired"}


async def test_key_is_forgotten_in_the_end(service: Service) -> None:
    created = await service.create(expiration="10m")
    service.clock.advance(600 + 30 * DAY)

    for method in ("GET", "DELETE"):
        assert_refused(await service.call(method, f"/{created['jti']}"), 404, "not_found", NO_KEY)
    assert await service.rows() == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(lambda of_bob: f"/{of_bob}", id="of somebody else"),
        pytest.param(lambda of_bob: "/access", id="an access token of the caller"),
        pytest.param(lambda of_bob: "/unknown", id="unknown"),
        pytest.param(lambda of_bob: "/%", id="percent sign"),
        pytest.param(lambda of_bob: "/%2e%2e", id="not decoded twice"),
        pytest.param(lambda of_bob: "/..", id="dots"),
        pytest.param(lambda of_bob: "/\U0001f511", id="emoji"),
        pytest.param(lambda of_bob: "/\x00", id="nul"),
        pytest.param(lambda of_bob: "/\r\nx-evil: 1", id="header"),
        pytest.param(lambda of_bob: "/*", id="asterisk"),
        pytest.param(lambda of_bob: "/" + "x" * 10_000, id="long"),
    ],
)
async def test_id_that_is_no_key_of_the_caller_is_404(
    path: Callable[[str], str], method: str, service: Service
) -> None:
    of_bob = await service.create(user="bob")
    access = await service.record_access_token("access")

    conversation = await service.call(method, path(of_bob["jti"]))

    assert_refused(conversation, 404, "not_found", NO_KEY)
    assert isinstance(await service.identify(of_bob["token"]), Identity)
    assert not await service.store.is_revoked(access)


@pytest.mark.parametrize("path", ["/{id}/x", "//{id}", "/{id}//", "//", "/v1/api-keys", "/x/../{id}"])
async def test_path_with_more_slashes_is_404_and_revokes_nothing(path: str, service: Service) -> None:
    created = await service.create()

    conversation = await service.call("DELETE", path.format(id=created["jti"]))

    assert_refused(conversation, 404, "not_found", "Not found")
    assert isinstance(await service.identify(created["token"]), Identity)


ATTACKS = ["%2F", "..%2F..", "%252e", "%F0%9F%94%91", "%00", "%0d%0a", "%ff", "a" * 5000, "';--", "?user=bob", "{id}"]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda value: str(value)[:12])
async def test_strange_ids_over_a_socket_reveal_and_revoke_nothing(attack: str, service: Service) -> None:
    of_bob = await service.create("secret name", user="bob")
    routes = [Route("/v1/api-keys", service.app), Mount("/v1/api-keys", service.app)]

    async with serving(Starlette(routes=routes)) as url, httpx.AsyncClient(headers=ALICE) as client:
        path = f"{url}/v1/api-keys/{attack.format(id=of_bob['jti'])}"
        answers = [await client.get(path), await client.delete(path)]

    assert {answer.status_code for answer in answers} <= {200, 404, 405}
    assert all("secret name" not in answer.text for answer in answers)
    assert all(answer.json() == [] for answer in answers if answer.status_code == 200)
    assert isinstance(await service.identify(of_bob["token"]), Identity)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "DELETE"])
async def test_other_methods_on_the_list_are_405_and_revoke_nothing(method: str, service: Service) -> None:
    created = await service.create()

    for path in ("", "/"):
        conversation = await service.call(method, path)
        assert_refused(conversation, 405, "method_not_allowed", "Method not allowed")
        assert conversation.header("allow") == "GET, HEAD, POST"
    assert isinstance(await service.identify(created["token"]), Identity)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "OPTIONS"])
async def test_other_methods_on_a_key_are_405(method: str, service: Service) -> None:
    created = await service.create()

    for key_id in (created["jti"], "unknown"):
        conversation = await service.call(method, f"/{key_id}", json={"name": "another"})
        assert_refused(conversation, 405, "method_not_allowed", "Method not allowed")
        assert conversation.header("allow") == "DELETE, GET, HEAD"
    assert [row["name"] for row in await service.rows()] == ["ci"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", ""), ("GET", ""), ("GET", "/{id}"), ("DELETE", "/{id}"), ("PUT", ""), ("GET", "//")]
)
async def test_minted_token_may_not_manage_keys(method: str, path: str, service: Service) -> None:
    created = await service.create()

    conversation = await service.call(
        method, path.format(id=created["jti"]), user="minted", json={"name": "from a leaked token"}
    )

    assert_refused(conversation, 403, "access_denied", RESTRICTION)
    assert [row["status"] for row in await service.rows()] == ["active"]


async def test_app_may_be_routed_to(service: Service) -> None:
    app = Starlette(routes=[Route("/v1/api-keys", service.app), Route("/v1/api-keys/{id}", service.app)])

    created = (await converse(app, "POST", "/v1/api-keys", headers=AS_ALICE, json={"name": "ci"})).json()
    shown = await converse(app, "GET", f"/v1/api-keys/{created['jti']}", headers=AS_ALICE)
    revoking = await converse(app, "DELETE", f"/v1/api-keys/{created['jti']}", headers=AS_ALICE)

    assert shown.json()["name"] == "ci"
    assert revoking.status == 204
    assert await service.identify(created["token"]) == "revoked"


async def test_app_without_an_identity_says_what_is_missing(service: Service) -> None:
    assert isinstance(service.app, IdentityMiddleware)

    conversation = await converse(service.app.app)

    assert isinstance(conversation.exception, LookupError)
    assert str(conversation.exception) == "APIKeysApp needs to know the identity: wrap it in IdentityMiddleware"
    assert conversation.messages == []
