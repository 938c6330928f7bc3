from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from maas_middleware.apps.tokens import TokensApp
from maas_middleware.errors import InvalidCredentials
from maas_middleware.identity import MAXIMUM_TOKEN_BYTES, Identity
from maas_middleware.ledgers.throttles import MovingWindowThrottle
from maas_middleware.middleware.identity import IdentityMiddleware
from maas_middleware.providers.jwt import JWTMinter, JWTProvider
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.stores.memory import MemoryTokenStore
from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.converse import Conversation, converse, http_scope
from maas_middleware.testing.identity import StaticIdentityProvider
from maas_middleware.throttling import Throttle
from maas_middleware.tiers import GroupTierResolver, Tier
from maas_middleware.token_store import TokenRecord
from maas_middleware.tokens import Claims, LifetimePolicy

NOW = 1_790_000_000
KEYS = SigningKeys.generate()
ISSUER, AUDIENCE = "https://maas.example.com", "maas"
MANY_GROUPS = ("users", *(f"group-{number:04}" for number in range(1000)))
RESTRICTION = "An access token cannot manage tokens"

PROVIDER = StaticIdentityProvider(
    {
        "alice": Identity("openshift", "alice", ("users",)),
        "bob": Identity("openshift", "bob", ("users",)),
        "stranger": Identity("openshift", "stranger", ("visitors",)),
        "many": Identity("openshift", "many", MANY_GROUPS),
        "minted": Identity("openshift", "alice", ("users",), restriction=RESTRICTION),
    }
)


class Service:
    """The app with real parts round it."""

    def __init__(self, lifetimes: LifetimePolicy | None = None, throttle: Throttle | None = None) -> None:
        self.clock = FakeClock(NOW)
        self.store = MemoryTokenStore(clock=self.clock)
        minter = JWTMinter(
            keys=KEYS, issuer=ISSUER, audience=AUDIENCE, named_groups=lambda: frozenset(MANY_GROUPS), clock=self.clock
        )
        resolver = GroupTierResolver([Tier("free", groups=("users",))])
        app = TokensApp(minter=minter, store=self.store, resolver=resolver, lifetimes=lifetimes, throttle=throttle)
        self.app: ASGIApp = IdentityMiddleware(app, provider=PROVIDER)
        self._tokens = JWTProvider(
            keys=KEYS, issuer=ISSUER, audience=AUDIENCE, revocations=self.store, clock=self.clock
        )

    async def call(self, method: str, path: str = "", *, user: str = "alice", **options: Any) -> Conversation:
        return await converse(
            self.app,
            method,
            f"/v1/tokens{path}",
            headers=[("authorization", f"Bearer {user}")],
            scope={"root_path": "/v1/tokens"},
            **options,
        )

    async def mint(self, user: str = "alice") -> dict[str, Any]:
        conversation = await self.call("POST", user=user)
        assert conversation.status == 201
        minted = conversation.json()
        assert isinstance(minted, dict)
        return minted

    async def identify(self, token: str) -> Identity | str | None:
        """Whom a token stands for, or why it is refused."""
        try:
            return await self._tokens.identify(http_scope(headers=[("authorization", f"Bearer {token}")]))
        except InvalidCredentials as error:
            return str((error.details or {})["reason"])


@pytest.fixture
def service() -> Service:
    return Service()


def assert_refused(conversation: Conversation, status: int, code: str, message: str, **more: object) -> None:
    assert conversation.exception is None
    assert conversation.status == status
    assert conversation.header("content-type") == "application/json"
    assert conversation.header("cache-control") == "no-store"
    error = conversation.json()["error"]
    assert (error["code"], error["message"]) == (code, message)
    assert {key: error[key] for key in more} == more


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \r\n\t", id="blank"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="object"),
        pytest.param(b'{"expiration": null}', id="null expiration"),
        pytest.param(b'{"ttl": "15m", "name": "x", "nested": {"a": [1e400]}}', id="unknown fields"),
        pytest.param([b"{", b"", b"}"], id="in pieces"),
        pytest.param(b"{}" + b" " * ((64 << 10) - 2), id="as large as may be"),
    ],
)
async def test_token_lives_four_hours_where_nothing_else_is_asked_for(
    body: bytes | list[bytes], service: Service
) -> None:
    conversation = await service.call("POST", body=body)

    minted = conversation.json()
    assert conversation.status == 201
    assert conversation.header("content-type") == "application/json"
    assert conversation.header("cache-control") == "no-store"
    assert conversation.complete
    assert list(minted) == ["token", "expiration", "expiresAt", "issuedAt", "jti"]
    assert minted["expiration"] == "4h0m0s"
    assert (minted["issuedAt"], minted["expiresAt"]) == (NOW, NOW + 4 * 3600)


async def test_minted_token_stands_for_the_caller_and_cannot_mint(service: Service) -> None:
    identity = await service.identify((await service.mint())["token"])

    assert isinstance(identity, Identity)
    assert (identity.key, identity.groups) == ("openshift/alice", ("users",))
    assert identity.restriction is not None


async def test_groups_are_recorded_with_the_token(service: Service) -> None:
    record = await service.store.find("openshift/alice", (await service.mint())["jti"])

    assert record is not None
    assert (record.kind, record.name, record.groups) == ("access_token", "", ("users",))


async def test_every_token_has_an_id_of_its_own(service: Service) -> None:
    assert (await service.mint())["jti"] != (await service.mint())["jti"]


@pytest.mark.parametrize(
    ("expiration", "granted", "seconds"),
    [
        pytest.param(b'"15m"', "15m0s", 900, id="minutes"),
        pytest.param(b"900", "15m0s", 900, id="seconds"),
        pytest.param(b"900.0", "15m0s", 900, id="seconds as a float"),
        pytest.param(b'"601s"', "10m1s", 601, id="just over the minimum"),
        pytest.param(b'"10m"', "10m0s", 600, id="the minimum"),
        pytest.param(b'"1.5h"', "1h30m0s", 5400, id="fraction"),
        pytest.param(b'"1h30m45s"', "1h30m45s", 5445, id="several units"),
        pytest.param(b'"1d"', "24h0m0s", 86400, id="days, the maximum"),
    ],
)
async def test_expiration_is_granted_as_asked(expiration: bytes, granted: str, seconds: int, service: Service) -> None:
    conversation = await service.call("POST", body=b'{"expiration": ' + expiration + b"}")

    minted = conversation.json()
    assert conversation.status == 201
    assert minted["expiration"] == granted
    assert minted["expiresAt"] - minted["issuedAt"] == seconds


POSITIVE = "expiration must be positive"
MINIMUM = "token expiration must be at least 10 minutes"
MAXIMUM = "token expiration must be at most 24 hours"
NO_UNIT = "missing unit in duration"
INVALID = "invalid duration"


@pytest.mark.parametrize(
    ("expiration", "message", "provided"),
    [
        pytest.param(b'""', POSITIVE, None, id="empty"),
        pytest.param(b"0", POSITIVE, None, id="zero"),
        pytest.param(b'"0"', POSITIVE, None, id="zero as text"),
        pytest.param(b"-900", POSITIVE, None, id="negative"),
        pytest.param(b'"-15m"', POSITIVE, None, id="negative as text"),
        pytest.param(b'"5m"', MINIMUM, "5m", id="under the minimum"),
        pytest.param(b"599", MINIMUM, 599, id="seconds under the minimum"),
        pytest.param(b'"25h"', MAXIMUM, "25h", id="over the maximum"),
        pytest.param(b"86401", MAXIMUM, 86401, id="seconds over the maximum"),
        pytest.param(b'"30"', NO_UNIT, None, id="no unit"),
        pytest.param(b'"1.5"', NO_UNIT, None, id="fraction without a unit"),
        pytest.param(b'"abc"', INVALID, None, id="letters"),
        pytest.param(b'"4hours"', INVALID, None, id="another unit"),
        pytest.param(b'"1 h"', INVALID, None, id="space"),
        pytest.param(b"true", INVALID, None, id="true"),
        pytest.param(b"false", INVALID, None, id="false"),
        pytest.param(b"[]", INVALID, None, id="array"),
        pytest.param(b'{"a": 1}', INVALID, None, id="object"),
        pytest.param(b"NaN", INVALID, None, id="not a number"),
        pytest.param(b"Infinity", INVALID, None, id="infinity"),
        pytest.param(b"1e400", INVALID, None, id="exponent over any float"),
        pytest.param(b"-1e400", INVALID, None, id="exponent under any float"),
        pytest.param(b'"\\ud800"', INVALID, None, id="half a character"),
        pytest.param(b'"\\ud800m"', INVALID, None, id="half a character for a unit"),
    ],
)
async def test_expiration_that_cannot_be_granted_is_400(
    expiration: bytes, message: str, provided: object, service: Service
) -> None:
    conversation = await service.call("POST", body=b'{"expiration": ' + expiration + b"}")

    details = None if provided is None else {"provided_expiration": provided}
    assert_refused(conversation, 400, "invalid_expiration", message, param="expiration")
    assert conversation.json()["error"].get("details") == details


@pytest.mark.parametrize(
    "number",
    [
        pytest.param("9" * 19, id="over 63 bits"),
        pytest.param("9" * 25, id="over 64 bits"),
        pytest.param("9" * 400, id="over any float"),
        pytest.param("1e300", id="exponent"),
    ],
)
async def test_enormous_number_of_seconds_is_400(number: str, service: Service) -> None:
    conversation = await service.call("POST", body=f'{{"expiration": {number}}}'.encode())

    assert conversation.exception is None
    assert conversation.status == 400
    assert conversation.json()["error"]["code"] == "invalid_expiration"
    assert conversation.json()["error"]["message"] in (MAXIMUM, INVALID)


async def test_bounds_are_those_of_the_policy() -> None:
    service = Service(LifetimePolicy(default=60, minimum=1, maximum=90))

    default = await service.call("POST")
    refused = await service.call("POST", json={"expiration": "91s"})

    assert default.json()["expiration"] == "1m0s"
    assert_refused(refused, 400, "invalid_expiration", "token expiration must be at most 90 seconds")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"expiration=15m", "The request body is not JSON", id="form"),
        pytest.param(b'{"expiration": "15m"', "The request body is not JSON", id="truncated"),
        pytest.param(b'{"expiration": "15m"}}', "The request body is not JSON", id="something behind it"),
        pytest.param(b"\xff\xfe\xfa", "The request body is not JSON", id="no text"),
        pytest.param(b"9" * 5000, "The request body is not JSON", id="more digits than Python reads"),
        pytest.param(b"[" * 60_000, "The request body is not JSON", id="deep"),
        pytest.param(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "The request body is not JSON", id="deep and closed"),
        pytest.param(b'["15m"]', "The request body is not a JSON object", id="array"),
        pytest.param(b'"15m"', "The request body is not a JSON object", id="text"),
        pytest.param(b"900", "The request body is not a JSON object", id="number"),
        pytest.param(b"false", "The request body is not a JSON object", id="false"),
    ],
)
async def test_body_that_is_no_json_object_is_400(body: bytes, message: str, service: Service) -> None:
    assert_refused(await service.call("POST", body=body), 400, "invalid_json", message)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b" " * ((64 << 10) + 1), id="whole"),
        pytest.param([b" " * (64 << 10), b" "], id="in pieces"),
        pytest.param([b" " * (1 << 16), b" " * (1 << 16), b"{}"], id="not read to its end"),
    ],
)
async def test_body_over_64_kib_is_413(body: bytes | list[bytes], service: Service) -> None:
    assert_refused(await service.call("POST", body=body), 413, "request_too_large", "The request body is too large")


async def test_client_that_leaves_in_its_request_gets_no_token(service: Service) -> None:
    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"{", "more_body": True},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = http_scope("POST", "/v1/tokens", root_path="/v1/tokens", headers=[("authorization", "Bearer alice")])
    await service.app(scope, receive, send)

    assert sent == []


async def test_caller_in_no_tier_cannot_mint_and_can_revoke(service: Service) -> None:
    minting = await service.call("POST", user="stranger")
    revoking = await service.call("DELETE", user="stranger")

    assert_refused(minting, 403, "no_tier", "You are in no group that gives access to a tier", type="permission_error")
    assert revoking.status == 204


async def test_mints_of_a_user_are_throttled() -> None:
    service = Service(throttle=MovingWindowThrottle("2/hour", name="mints"))
    refused = [await service.call("POST", json={"expiration": "1s"}), await service.call("POST", user="stranger")]

    minted = [(await service.call("POST")).status for _ in range(2)]
    conversation = await service.call("POST")

    assert [answer.status for answer in refused] == [400, 403]
    assert minted == [201, 201]
    assert_refused(conversation, 429, "rate_limit_exceeded", "Rate limit exceeded", type="rate_limit_error")
    assert conversation.json()["error"]["details"]["limit"] == "mints"
    assert conversation.header("retry-after") is not None
    assert len(await service.store.list("openshift/alice")) == 2
    assert (await service.call("DELETE")).status == 204
    await service.mint("bob")


async def test_token_that_would_be_refused_for_its_size_is_not_minted(service: Service) -> None:
    conversation = await service.call("POST", user="many")

    assert_refused(
        conversation, 400, "too_many_groups", "You are in more groups than an access token can hold", param=None
    )
    assert len(conversation.body) < MAXIMUM_TOKEN_BYTES


async def test_revoked_token_is_refused_at_once(service: Service) -> None:
    revoked, kept = await service.mint(), await service.mint()

    conversation = await service.call("DELETE", f"/{revoked['jti']}")

    assert conversation.status == 204
    assert conversation.body == b""
    assert conversation.header("cache-control") == "no-store"
    assert conversation.header("content-length") is None
    assert await service.identify(revoked["token"]) == "revoked"
    assert isinstance(await service.identify(kept["token"]), Identity)


async def test_api_keys_are_revoked_with_the_tokens_and_by_their_ids(service: Service) -> None:
    keys = [Claims(f"key-{number}", "openshift/alice", 0, NOW, NOW + 3600) for number in range(3)]
    for claims in keys:
        await service.store.record(TokenRecord(claims, "api_key", "ci"))

    one = await service.call("DELETE", "/key-0")
    after_one = [await service.store.is_revoked(claims) for claims in keys]
    everything = await service.call("DELETE")

    assert (one.status, everything.status) == (204, 204)
    assert after_one == [True, False, False]
    assert [await service.store.is_revoked(claims) for claims in keys] == [True] * 3


async def test_trailing_slash_is_not_another_token(service: Service) -> None:
    minted = await service.mint()

    conversation = await service.call("DELETE", f"/{minted['jti']}/")

    assert conversation.status == 204
    assert await service.identify(minted["token"]) == "revoked"


async def test_app_may_be_routed_to(service: Service) -> None:
    routes = [Route("/v1/tokens", service.app), Route("/v1/tokens/{jti}", service.app)]
    app = Starlette(routes=routes)
    headers = [("authorization", "Bearer alice")]

    minted = (await converse(app, "POST", "/v1/tokens", headers=headers)).json()
    revoking = await converse(app, "DELETE", f"/v1/tokens/{minted['jti']}", headers=headers)

    assert revoking.status == 204
    assert await service.identify(minted["token"]) == "revoked"


async def test_token_can_be_revoked_again(service: Service) -> None:
    minted = await service.mint()

    statuses = [(await service.call("DELETE", f"/{minted['jti']}")).status for _ in range(2)]

    assert statuses == [204, 204]


async def test_revoking_all_ends_the_tokens_of_the_caller_alone(service: Service) -> None:
    of_alice, of_bob = [await service.mint(), await service.mint()], await service.mint("bob")

    conversation = await service.call("DELETE")
    new = await service.mint()

    assert conversation.status == 204
    assert conversation.body == b""
    assert [await service.identify(minted["token"]) for minted in of_alice] == ["revoked", "revoked"]
    assert isinstance(await service.identify(of_bob["token"]), Identity)
    assert isinstance(await service.identify(new["token"]), Identity)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(lambda jti: f"/{jti}", id="of somebody else"),
        pytest.param(lambda jti: "/unknown", id="unknown"),
        pytest.param(lambda jti: "/100%25", id="percent sign"),
        pytest.param(lambda jti: "/%2e%2e", id="not decoded twice"),
        pytest.param(lambda jti: "/..", id="dots"),
        pytest.param(lambda jti: "/" + "x" * 4000, id="long"),
    ],
)
async def test_id_that_is_not_of_the_caller_is_404(path: Callable[[str], str], service: Service) -> None:
    of_bob = await service.mint("bob")

    conversation = await service.call("DELETE", path(of_bob["jti"]))

    assert_refused(conversation, 404, "not_found", "You have no token of this id")
    assert isinstance(await service.identify(of_bob["token"]), Identity)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(lambda jti: f"/{jti}/x", id="below"),
        pytest.param(lambda jti: f"/x/../{jti}", id="dots"),
        pytest.param(lambda jti: f"//{jti}", id="two slashes before"),
        pytest.param(lambda jti: f"/{jti}//", id="two slashes behind"),
        pytest.param(lambda jti: "//", id="an id that was left out"),
        pytest.param(lambda jti: "///", id="nothing but slashes"),
        pytest.param(lambda jti: "/v1/tokens", id="the collection again"),
    ],
)
async def test_path_with_more_slashes_is_404_and_revokes_nothing(path: Callable[[str], str], service: Service) -> None:
    minted = await service.mint()

    conversation = await service.call("DELETE", path(minted["jti"]))

    assert_refused(conversation, 404, "not_found", "Not found")
    assert isinstance(await service.identify(minted["token"]), Identity)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "OPTIONS"])
async def test_other_methods_are_405(method: str, service: Service) -> None:
    collection = await service.call(method)
    token = await service.call(method, "/some-id")

    assert_refused(collection, 405, "method_not_allowed", "Method not allowed")
    assert collection.header("allow") == "DELETE, POST"
    assert_refused(token, 405, "method_not_allowed", "Method not allowed")
    assert token.header("allow") == "DELETE"


async def test_minting_below_a_token_is_405(service: Service) -> None:
    conversation = await service.call("POST", "/some-id")

    assert conversation.status == 405
    assert conversation.header("allow") == "DELETE"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("POST", "", id="mint"),
        pytest.param("DELETE", "", id="revoke all"),
        pytest.param("DELETE", "/some-id", id="revoke one"),
        pytest.param("GET", "", id="anything else"),
    ],
)
async def test_minted_token_may_not_manage_tokens(method: str, path: str, service: Service) -> None:
    of_alice = await service.mint()

    conversation = await service.call(method, path.replace("some-id", of_alice["jti"]), user="minted")

    assert_refused(conversation, 403, "access_denied", RESTRICTION, type="permission_error")
    assert isinstance(await service.identify(of_alice["token"]), Identity)


async def test_app_without_an_identity_says_what_is_missing(service: Service) -> None:
    assert isinstance(service.app, IdentityMiddleware)

    conversation = await converse(service.app.app, "POST")

    assert isinstance(conversation.exception, LookupError)
    assert str(conversation.exception) == "TokensApp needs to know the identity: wrap it in IdentityMiddleware"
    assert conversation.messages == []
