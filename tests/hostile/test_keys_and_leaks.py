"""Leaked access tokens and API keys, and users who want what is not theirs: on the gateway, and mounted in an app."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.responses import JSONResponse

from maas_middleware import MaaSMiddleware, load_settings
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.testing.cluster import ClusterUser, StandInCluster
from maas_middleware.testing.model import SimulatedModel

from ..deployments import UNTHROTTLED, Deployment, chat
from ..raw_upstream import LAST_CHUNK, Connection, answer, chunk, chunked_head, raw_upstream
from ..servers import serving
from .attack import BYSTANDER, CHAT, TIERS, Answer, Target, besieged, request
from .forgery import tampered

TOKENS, KEYS, ADMIN_USERS, ADMIN_TOKENS = "/v1/tokens", "/v1/api-keys", "/v1/admin/users", "/v1/admin/tokens"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
REVOKED = {"reason": "revoked"}


@asynccontextmanager
async def guarded_app(directory: Path, **overrides: object) -> AsyncIterator[Target]:
    """The same as `besieged`, but for the model: it is the app that everything is mounted in."""
    (keys := SigningKeys.generate()).save(directory / "keys.json")
    cluster, model = StandInCluster({}), SimulatedModel("simulator")
    async with serving(cluster) as cluster_url, httpx.AsyncClient() as client:
        config: dict[str, Any] = {
            "openshift": {"api_url": cluster_url},
            "models": [{"id": "simulator", "tiers": "all"}],
            "tiers": TIERS,
            "throttles": UNTHROTTLED,
            **overrides,
        }
        settings = load_settings({}, **config)
        async with serving(MaaSMiddleware(model, settings=settings), lifespan="on") as url:
            target = Target(Deployment(url, client, cluster, model, model), keys)
            assert (await target.chat(target.access(BYSTANDER))).status == 200
            yield target


@asynccontextmanager
async def on_sqlite(directory: Path, form: str = "gateway", **overrides: Any) -> AsyncIterator[Target]:
    """Everything on a database, with administrators."""
    tokens = {"signing_keys_file": str(directory / "keys.json"), "administrators": ["wardens"]}
    tokens |= overrides.pop("tokens", {})
    settings = {"store": f"sqlite:///{directory}/maas.db", **overrides, "tokens": tokens}
    async with (guarded_app if form == "mounted" else besieged)(directory, **settings) as target:
        yield target


@pytest.fixture(scope="module", params=["gateway-in-memory", "gateway", "mounted"])
async def besieged_target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Target]:
    directory = tmp_path_factory.mktemp("site")
    form, _, memory = request.param.partition("-")
    async with on_sqlite(directory, form, **({"store": "memory://"} if memory else {})) as target:
        yield target


@dataclass(frozen=True)
class Owner:
    """Somebody with a login, an access token and an API key."""

    name: str
    login: str
    token: str
    token_id: str
    key: str
    key_id: str


async def minted(target: Target, login: str, path: str = TOKENS, **body: Any) -> dict[str, Any]:
    """What minting answered; the token is a secret from then on."""
    answer = await target.ask("POST", path, token=login, body=json.dumps(body))
    assert answer.status == 201, answer.received
    document: dict[str, Any] = json.loads(answer.body)
    target.secrets.append(document["token"])
    return document


async def newcomer(target: Target, *groups: str) -> Owner:
    login = target.newcomer(*groups)
    token, key = await minted(target, login), await minted(target, login, KEYS, name="ci")
    name = target.service.cluster.users[login].name
    return Owner(name, login, token["token"], token["jti"], key["token"], key["jti"])


async def is_untouched(target: Target, owner: Owner) -> bool:
    """Whether the owner has an access token and one API key, and both are accepted."""
    statuses = [(await target.ask("GET", "/v1/models", token=token)).status for token in (owner.token, owner.key)]
    listed = json.loads((await target.ask("GET", KEYS, token=owner.login)).body)
    return statuses == [200, 200] and [(row["id"], row["status"]) for row in listed] == [(owner.key_id, "active")]


def told(answer: Answer) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    unequal = (b"x-request-id", b"date")
    return answer.status, [(name, value) for name, value in answer.headers if name not in unequal], answer.body


async def reason(target: Target, token: str) -> dict[str, Any]:
    """Why a token is refused."""
    refusal = (await target.ask("GET", "/v1/models", token=token)).refusal(401, "invalid_api_key")
    details: dict[str, Any] = refusal["details"]
    return details


# a leaked access token or API key


@pytest.mark.parametrize("prefix", ["", "/maas-api"])
@pytest.mark.parametrize("kind", ["token", "key"])
async def test_leaked_token_manages_nothing_on_any_route_with_any_method(
    target: Target, kind: str, prefix: str
) -> None:
    owner = await newcomer(target, "crew", "wardens")
    leaked: str = getattr(owner, kind)
    everything = [TOKENS, f"{TOKENS}/", f"{TOKENS}/{owner.token_id}", KEYS, f"{KEYS}/", f"{KEYS}/{owner.key_id}"]
    everything += [f"{ADMIN_USERS}?user={owner.name}", f"{ADMIN_TOKENS}?user={owner.name}", "/v1/tiers/lookup"]

    for path in everything:
        for method in METHODS:
            body = '{"name": "ci", "groups": ["crew"]}' if method == "POST" else None
            answers = [
                await target.ask(method, prefix + path, token=leaked, body=body),
                await target.ask(method, prefix + path, f"X-Api-Key: {leaked}", body=body),
            ]
            is_wrong_method = "/admin/" in path and method not in ("GET", "HEAD", *(["DELETE"] * ("tokens" in path)))
            assert {answer.status for answer in answers} == {405 if is_wrong_method else 403}, (method, path)
            if method != "HEAD" and not is_wrong_method:
                assert {answer.refusal(403, "access_denied")["code"] for answer in answers} == {"access_denied"}

    assert await is_untouched(target, owner)


@pytest.mark.parametrize("kind", ["token", "key"])
async def test_leaked_token_does_not_become_a_login_by_what_else_is_sent(target: Target, kind: str) -> None:
    owner = await newcomer(target, "crew", "wardens")
    leaked: str = getattr(owner, kind)
    forged = [
        *("X-Maas-User: root", "X-Maas-Restriction:", "X-Forwarded-User: root", "X-Remote-User: root"),
        *("X-Remote-Group: wardens", "Impersonate-User: root", "X-Forwarded-Access-Token: sha256~x", "Cookie: a=b"),
        *("X-HTTP-Method-Override: GET", "X-Original-URL: /v1/models", f"X-Api-Key: {owner.login}"),
    ]

    for line in forged:
        for method, path in (("POST", TOKENS), ("DELETE", TOKENS), ("GET", f"{ADMIN_USERS}?user={owner.name}")):
            (await target.ask(method, path, line, token=leaked)).refusal(403, "access_denied")

    assert await is_untouched(target, owner)


async def test_owner_can_revoke_however_often_somebody_asks_with_a_leaked_token(tmp_path: Path) -> None:
    throttles = {**UNTHROTTLED, "control_requests": "10/minute"}
    async with on_sqlite(tmp_path, throttles=throttles) as target:
        owner = await newcomer(target)
        flood = [(await target.ask("GET", "/v1/me", token=owner.token)).status for _ in range(20)]

        revoked = await target.ask("DELETE", TOKENS, token=owner.login)

        assert 429 in flood
        assert revoked.status == 204
        assert await reason(target, owner.token) == REVOKED


CONTROL = [
    *(("POST", TOKENS), ("DELETE", TOKENS), ("POST", KEYS), ("GET", KEYS), ("POST", "/v1/tiers/lookup")),
    *(("GET", "/v1/me"), ("GET", "/v1/usage"), ("GET", "/v1/models"), ("GET", f"{ADMIN_USERS}?user=x")),
    *(("DELETE", f"{ADMIN_TOKENS}?user=x"), ("GET", "/v1/nothing")),
]


@pytest.mark.parametrize("kind", ["login", "token", "key"])
async def test_credential_in_the_wrong_place_is_none(target: Target, kind: str) -> None:
    owner = await newcomer(target, "crew", "wardens")
    credential: str = getattr(owner, kind)
    places = ("access_token", "api_key", "api-key", "x-api-key", "token", "authorization", "key")
    there = {method: told(await target.ask(method, "/v1/nothing")) for method, _ in CONTROL}

    for method, path in CONTROL:
        mark = "&" if "?" in path else "?"
        answers = [await target.ask(method, f"{path}{mark}{place}={credential}") for place in places]
        answers += [await target.ask(method, path, f"Cookie: {place}={credential}") for place in places]
        answers += [
            await target.ask(method, path, f"{name}: {credential}")
            for name in ("Api-Key", "X-Auth-Token", "Proxy-Authorization: Bearer", "X-Forwarded-Access-Token")
        ]
        assert {json.dumps(told(answer), default=str) for answer in answers} == {json.dumps(there[method], default=str)}

    assert there["GET"][0] == 401
    assert await is_untouched(target, owner)


@pytest.mark.parametrize("kind", ["login", "token", "key"])
async def test_credential_that_is_repeated_is_400_on_every_control_route(target: Target, kind: str) -> None:
    owner = await newcomer(target, "crew", "wardens")
    line = f"Authorization: Bearer {getattr(owner, kind)}"

    for method, path in CONTROL:
        (await target.ask(method, path, line, line)).refusal(400, "repeated_header")

    assert await is_untouched(target, owner)


# paths and methods that look like others


STRANGE = [
    *(f"{TOKENS}//", f"{TOKENS}/..", f"{TOKENS}/.", "/v1//tokens", "//v1/tokens", f"{TOKENS};x", f"{TOKENS}%00"),
    *("/V1/tokens", "/v1/Tokens", f"{TOKENS}%2f%2f", "/v1/%2574okens", f"{TOKENS}%20", "/maas-api/maas-api/v1/tokens"),
    *("/simulator/v1/tokens", "/simulator/maas-api/v1/tokens", f"/maas-api/simulator{TOKENS}", "/maas-api//v1/tokens"),
    *(f"{TOKENS}/%2e%2e/api-keys", "/maas-api/v1/admin/../tokens", "/v1/./tokens", "/v1/x/../tokens", "/v1/tokens%5c"),
    *(f"{TOKENS}/{{0}}/..", f"{TOKENS}/{{0}}/x", f"{TOKENS}/{{0}}%00", f"{TOKENS}/{{0}};x", f"{TOKENS}/{{0}}%20"),
    *(f"{TOKENS}/{{0}}//", f"{TOKENS}//{{0}}", f"{TOKENS}/%2e/{{0}}", f"{TOKENS}/{{0}}%0a", f"{TOKENS}/x%2f..%2f{{0}}"),
    *(f"{KEYS}/{{1}}/..", f"{KEYS}//{{1}}", f"{KEYS}/{{1}}//", f"{KEYS}/{{1}}%00", f"{KEYS}/{{1}}.json", f"{KEYS}/*"),
    *(f"{KEYS}//", f"{KEYS}/%25", f"{KEYS}/'%20OR%20'1'='1", f"{TOKENS}/'%20OR%20'1'='1", f"{TOKENS}/%25"),
    *("/v1/admin", "/v1/admin/", "/v1/admin//tokens?user=x", "/v1/admin/tokens//?user=x", "/v1/admin/tokens/x?user=x"),
    *("/v1/Admin/tokens?user=x", "/v1/admin/tokens;x?user=x", "/v1/admin/../admin/tokens?user=x", "/v1/me/x"),
    *("/v1/me//", "/v1/usage/x", "/v1/usage//", "/v1/tokens-x", "/v1/tokensx", "/maas-api", "/maas-apix/v1/tokens"),
]


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_path_that_is_none_manages_nothing_and_tells_strangers_nothing(target: Target, method: str) -> None:
    owner = await newcomer(target, "crew", "wardens")
    there = told(await target.ask(method, "/v1/nothing"))

    for path in STRANGE:
        path = path.format(owner.token_id, owner.key_id)
        known = await target.ask(method, path, token=owner.login, body='{"name": "ci"}')
        leaked = await target.ask(method, path, token=owner.key, body='{"name": "ci"}')
        stranger = await target.ask(method, path, body='{"name": "ci"}')
        assert known.status in (404, 405), (path, known.received)
        assert leaked.status in (403, 404, 405), (path, leaked.received)
        assert told(stranger) == there, path

    assert await is_untouched(target, owner)


@pytest.mark.parametrize(
    "path", ["/v1/tokens/", "/%76%31/tokens", "/v1%2Ftokens", "/maas-api/v1/tokens", "/maas-api%2fv1/tokens%2f"]
)
async def test_other_spellings_of_a_path_have_the_same_guard(target: Target, path: str) -> None:
    owner = await newcomer(target)

    leaked = [await target.ask(method, path, token=owner.token) for method in ("POST", "DELETE")]
    stranger = await target.ask("DELETE", path)
    kept = await is_untouched(target, owner)
    revoked = await target.ask("DELETE", path, token=owner.login)

    assert [answer.refusal(403, "access_denied")["param"] for answer in leaked] == [None] * 2
    assert stranger.refusal(401, "invalid_api_key")["details"] == {"reason": "missing"}
    assert kept
    assert revoked.status == 204
    assert await reason(target, owner.token) == REVOKED


@pytest.mark.parametrize("override", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
async def test_method_is_the_one_of_the_request_line(target: Target, override: str) -> None:
    owner = await newcomer(target)

    for path in (TOKENS, f"{TOKENS}/{owner.token_id}", KEYS, f"{KEYS}/{owner.key_id}"):
        for method in ("HEAD", "OPTIONS", "GET", "PUT", "PATCH", "delete", "Delete"):
            answer = await target.ask(method, f"{path}?_method=DELETE", f"{override}: DELETE", token=owner.login)
            assert answer.status in (200, 400, 405), (method, path, answer.received)

    assert await is_untouched(target, owner)


# what belongs to others


async def test_ids_of_others_are_answered_as_those_that_nobody_has(target: Target) -> None:
    owner, thief = await newcomer(target), await newcomer(target)
    nobodys = "0" * len(owner.key_id)

    for method, path in (
        *(("GET", f"{KEYS}/{{}}"), ("HEAD", f"{KEYS}/{{}}"), ("DELETE", f"{KEYS}/{{}}")),
        *(("DELETE", f"{TOKENS}/{{}}"), ("GET", f"{KEYS}?after={{}}"), ("GET", f"{KEYS}?limit=1&after={{}}")),
    ):
        unknown = told(await target.ask(method, path.format(nobodys), token=thief.login))
        for there in (owner.key_id, owner.token_id):
            answer = await target.ask(method, path.format(there), token=thief.login)
            assert told(answer) == unknown, (method, path)
        assert unknown[0] == (400 if "after" in path else 404)

    assert await is_untouched(target, owner)
    assert await is_untouched(target, thief)


async def test_access_token_is_no_api_key_and_each_is_listed_to_its_owner_alone(target: Target) -> None:
    owner, other = await newcomer(target), await newcomer(target)

    of_token = await target.ask("GET", f"{KEYS}/{owner.token_id}", token=owner.login)
    deleted = await target.ask("DELETE", f"{KEYS}/{owner.token_id}", token=owner.login)
    listed = [json.loads((await target.ask("GET", KEYS, token=who.login)).body) for who in (owner, other)]

    of_token.refusal(404, "not_found")
    deleted.refusal(404, "not_found")
    assert [[row["id"] for row in rows] for rows in listed] == [[owner.key_id], [other.key_id]]


async def test_me_and_usage_are_the_callers_whatever_else_is_asked_for(target: Target) -> None:
    owner, thief = await newcomer(target), await newcomer(target)
    assert (await target.chat(owner.token)).status == 200
    asked = [f"?{name}={owner.name}" for name in ("user", "owner", "name", "provider", "sub", "u%73er")]
    forged = ["X-Maas-User: {0}", "X-Remote-User: {0}", "X-Forwarded-User: {0}", "Impersonate-User: {0}"]

    for credential in (thief.login, thief.token, thief.key):
        for query, line in [*((query, "Accept: */*") for query in asked), *(("", line) for line in forged)]:
            me, used = [
                json.loads((await target.ask("GET", path + query, line.format(owner.name), token=credential)).body)
                for path in ("/v1/me", "/v1/usage")
            ]
            assert (me["user"], used["data"], used["total"]["requests"]) == (thief.name, [], 0)

    own = json.loads((await target.ask("GET", "/v1/usage", token=owner.key)).body)
    assert own["total"]["requests"] == 1


async def test_models_that_a_caller_may_not_use_are_not_listed(tmp_path: Path) -> None:
    async with on_sqlite(tmp_path) as target:
        answers = {
            group: [
                await target.ask("GET", "/v1/models", token=token)
                for owner in [await newcomer(target, group)]
                for token in (owner.login, owner.token, owner.key)
            ]
            for group in ("crew", "captains")
        }
        hidden = await target.ask("GET", "/v1/models/qwen3", token=target.access())

    ids = {
        group: [[row["id"] for row in json.loads(answer.body)["data"]] for answer in there]
        for group, there in answers.items()
    }
    assert ids == {"crew": [["simulator"]] * 3, "captains": [["simulator", "qwen3"]] * 3}
    assert hidden.status in (403, 404)


# revocation, and what runs at the same time


async def test_what_is_revoked_is_refused_from_the_answer_on(target: Target) -> None:
    for method in ("token", "key", "everything"):
        owner = await newcomer(target)
        path = {"token": f"{TOKENS}/{owner.token_id}", "key": f"{KEYS}/{owner.key_id}", "everything": TOKENS}[method]
        late = list[int]()
        revoked = anyio.Event()

        async def use(token: str, revoked: anyio.Event = revoked, late: list[int] = late) -> None:
            while len(late) < 8:
                began_late = revoked.is_set()
                status = (await target.ask("GET", "/v1/models", token=token)).status
                assert began_late or status in (200, 401)
                late.extend([status] * began_late)

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(use, owner.key if method == "key" else owner.token)
                await target.ask("GET", "/v1/models", token=owner.token)
                assert (await target.ask("DELETE", path, token=owner.login)).status == 204
                revoked.set()

        assert set(late) == {401}


async def test_token_that_was_minted_before_everything_was_revoked_is_refused_whatever_went_on(target: Target) -> None:
    login = target.newcomer()
    made = list[str]()

    async def mint() -> None:
        made.append((await minted(target, login))["token"])

    async def revoke() -> None:
        assert (await target.ask("DELETE", TOKENS, token=login)).status == 204

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(revoke)
                for _ in range(4):
                    group.start_soon(mint)
        await revoke()
        later = (await minted(target, login))["token"]

    assert [await reason(target, token) for token in made] == [REVOKED] * 20
    assert (await target.chat(later)).status == 200


async def test_keys_at_once_are_never_more_than_the_maximum(target: Target) -> None:
    login = target.newcomer()
    answers = list[Answer]()

    async def create(number: int) -> None:
        answers.append(await target.ask("POST", KEYS, token=login, body=json.dumps({"name": f"key {number}"})))

    with anyio.fail_after(25):
        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(create, number)
    listed = json.loads((await target.ask("GET", f"{KEYS}?limit=1000", token=login)).body)

    statuses = Counter(answer.status for answer in answers)
    assert statuses[201] <= 20
    assert set(statuses) <= {201, 400, 503}  # a database of one writer may be given up on
    assert len(listed) == statuses[201] == 20
    refused = [answer for answer in answers if answer.status == 400]
    assert {answer.refusal(400, "too_many_api_keys")["details"]["maximum"] for answer in refused} == {20}


@pytest.mark.parametrize("path", [f"{KEYS}/{{0.key_id}}", f"{TOKENS}/{{0.key_id}}", TOKENS])
async def test_revoking_twice_at_once_is_no_error(target: Target, path: str) -> None:
    owner, statuses = await newcomer(target), list[int]()

    async def revoke() -> None:
        statuses.append((await target.ask("DELETE", path.format(owner), token=owner.login)).status)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(revoke)

    assert statuses == [204] * 10
    assert await reason(target, owner.key) == REVOKED
    listed = json.loads((await target.ask("GET", KEYS, token=owner.login)).body)
    assert [row["status"] for row in listed] == ["revoked"]


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Another process is in the middle of a write: everybody else's waits."""
    with closing(sqlite3.connect(directory / "maas.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.parametrize("path", [TOKENS, f"{TOKENS}/{{0.key_id}}", f"{KEYS}/{{0.key_id}}", ADMIN_TOKENS])
async def test_revocation_of_a_client_that_hangs_up_in_the_middle_happens(tmp_path: Path, path: str) -> None:
    async with on_sqlite(tmp_path) as target:
        owner = await newcomer(target, "crew", "wardens")
        query = f"?user={owner.name}" if "admin" in path else ""
        with writing(tmp_path):
            stream = await anyio.connect_tcp("127.0.0.1", target.port)
            await stream.send(request("DELETE", path.format(owner) + query, token=owner.login))
            for _ in range(3):  # answered after it, by the same process
                assert (await target.ask("GET", "/v1/models", token=owner.key)).status == 200
            await stream.aclose()
            assert (await target.ask("GET", "/v1/models", token=owner.key)).status == 200

        with anyio.fail_after(10):
            while (await target.ask("GET", "/v1/models", token=owner.key)).status != 401:
                pass
        assert await reason(target, owner.key) == REVOKED


# tiers and groups that change


async def test_removed_tier_ends_what_its_users_may_within_a_second_and_their_tokens_stay_theirs(
    tmp_path: Path,
) -> None:
    (tiers := tmp_path / "tiers.json").write_text(json.dumps(TIERS))
    async with on_sqlite(tmp_path, tiers=None, tiers_file=str(tiers)) as target:
        owner, captain = await newcomer(target), await newcomer(target, "captains")

        tiers.write_text(json.dumps(TIERS[1:]))
        with anyio.fail_after(3):
            while (await target.chat(owner.key)).status != 403:
                pass

        refused = await target.chat(owner.token)
        minting = await target.ask("POST", TOKENS, token=owner.login)
        me = json.loads((await target.ask("GET", "/v1/me", token=owner.key)).body)
        revoked = await target.ask("DELETE", TOKENS, token=owner.login)

        assert [answer.refusal(403, "no_tier")["code"] for answer in (refused, minting)] == ["no_tier"] * 2
        assert (me["tier"], me["models"]) == (None, [])
        assert (await target.chat(captain.token)).status == 200
        assert revoked.status == 204
        assert await reason(target, owner.token) == REVOKED


async def test_who_lost_a_group_has_it_no_more_in_what_is_minted_next(tmp_path: Path) -> None:
    async with on_sqlite(tmp_path) as target:
        captain = await newcomer(target, "captains")
        allowed = await target.chat(captain.token, model="qwen3")

        demoted = "sha256~login-of-somebody-who-was-a-captain"
        target.secrets.append(demoted)
        target.service.cluster.users[demoted] = ClusterUser(captain.name, ("crew",))
        later = (await minted(target, demoted))["token"]
        refused = await target.chat(later, model="qwen3")
        await target.ask("DELETE", TOKENS, token=demoted)

        assert allowed.status == 200
        refused.refusal(403, "access_denied")
        assert await reason(target, captain.key) == REVOKED


# keys that are exchanged


async def test_bad_key_file_changes_nothing_and_is_told_at_ready(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "site").mkdir()
    async with on_sqlite(tmp_path / "site") as target:
        owner, file = await newcomer(target), tmp_path / "site" / "keys.json"
        good = file.read_text()

        async def until_degraded(troubles: object) -> None:
            with anyio.fail_after(5):
                while json.loads((await target.ask("GET", "/ready")).body).get("degraded") != troubles:
                    pass

        for bad, mode in (
            *((good[:-20], 0o600), ('{"keys": []}', 0o600)),
            *((good, 0o604), (json.dumps(target.keys.jwks()), 0o600)),
        ):
            file.write_text(bad)
            file.chmod(mode)
            await until_degraded(["signing_keys"])
            assert await is_untouched(target, owner)
            assert (await minted(target, owner.login))["token"]

            file.write_text(good)
            file.chmod(0o600)
            await until_degraded(None)
        file.unlink()
        await until_degraded(["signing_keys"])
        assert await is_untouched(target, owner)
        private = {key["d"] for key in target.keys.private_jwks()["keys"]}
        lines = [record.getMessage() for record in caplog.records]
        assert [line for line in lines for secret in private if secret in line] == []
        published = (await target.ask("GET", "/.well-known/jwks.json")).body.decode()
        assert [secret for secret in private if secret in published] == []


# what leaves the service


@pytest.mark.parametrize("kind", ["token", "key"])
@pytest.mark.parametrize("header", ["Authorization: Bearer", "X-Api-Key:"])
async def test_nothing_that_the_caller_is_known_by_reaches_the_model(target: Target, kind: str, header: str) -> None:
    owner = await newcomer(target)
    credential = getattr(owner, kind)

    more = [f"Api-Key: {credential}", f"X-Forwarded-Access-Token: {credential}", f"Proxy-Authorization: {credential}"]
    answered = await target.ask("POST", CHAT, f"{header} {credential}", *more[:2], body=json.dumps(chat()))

    (seen,) = target.service.simulator.requests
    text = b" ".join([name + b": " + value for name, value in seen.headers] + [seen.body, seen.path.encode()])
    assert answered.status == 200
    assert credential.encode() not in text
    assert owner.name.encode() not in text


async def test_cookies_of_a_model_travel_to_no_other_user(tmp_path: Path) -> None:
    heads = list[bytes]()

    async def setting_cookies(connection: Connection) -> None:
        while True:
            heads.append(b" ".join(name + b":" + value for name, value in (await connection.read_request()).headers))
            document = b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}'
            cookie = b"Set-Cookie: session=of-the-first; Path=/"
            await connection.send(answer("200 OK", document, b"Content-Type: application/json", cookie))

    async with raw_upstream(setting_cookies) as upstream:
        models = [{"id": "simulator", "tiers": "all", "upstreams": [upstream.url]}]
        async with on_sqlite(tmp_path, models=models) as target:
            for owner in (await newcomer(target), await newcomer(target)):
                body = json.dumps(chat())
                answered = await target.ask("POST", CHAT, "Cookie: own=1", token=owner.token, body=body)
                assert (answered.status, answered.header("set-cookie")) == (200, None)

    assert len(heads) == 3
    assert [head for head in heads if b"cookie" in head.lower() or b"of-the-first" in head] == []


@contextmanager
def everything_logged(log: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every logger at DEBUG, those of the server too, which do not propagate."""
    log.set_level(logging.DEBUG)
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.access")]
    for logger in loggers:
        logger.addHandler(log.handler)
    yield
    for logger in loggers:
        logger.removeHandler(log.handler)


async def test_nothing_secret_is_in_any_line_of_any_log_or_in_any_other_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def garbage(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(chunked_head("text/event-stream"), chunk(b"data: {\n\n"), LAST_CHUNK)

    async with serving(SimulatedModel("simulator")) as healthy, raw_upstream(garbage) as broken:
        urls = {"simulator": healthy, "broken": broken.url, "down": "http://127.0.0.1:9"}
        models = [{"id": name, "tiers": "all", "upstreams": [url]} for name, url in urls.items()]
        async with on_sqlite(tmp_path, models=models) as target:
            with everything_logged(caplog):
                owner = await newcomer(target, "crew", "wardens")
                await every_kind_of_request(target, owner)
                target.service.cluster.failure = JSONResponse({"message": "no"}, 500)
                (await target.ask("POST", TOKENS, token=target.newcomer())).refusal(503, "auth_unavailable")
                (tmp_path / "maas.db").write_bytes(b"this is no database" * 1000)
                for method, path in CONTROL:
                    await target.ask(method, path, token=owner.login, body='{"name": "ci"}')

    known = {"maas_middleware", "maas_middleware.audit", "httpcore.http11", "aiosqlite"}
    assert known <= {record.name for record in caplog.records}
    lines = list(map(logging.Formatter().format, caplog.records))
    secrets = [*target.secrets, *(key["d"] for key in target.keys.private_jwks()["keys"])]
    harmless = {"Traceback", BYSTANDER}  # which drivers and servers tell at DEBUG
    assert [(line, secret) for line in lines for secret in {*secrets} - harmless if secret in line] == []
    ours = [line for line, record in zip(lines, caplog.records, strict=True) if record.name.startswith("maas_")]
    upstreams = {url.removeprefix("http://") for url in urls.values()}
    assert [line for line in ours for secret in harmless | upstreams if secret in line] == []


async def every_kind_of_request(target: Target, owner: Owner) -> None:
    bad = [tampered(2)(target), "sha256~nobody-has-this", "x" * 9000]
    target.secrets += bad
    for credential in (owner.login, owner.token, owner.key, *bad):
        for method, path in CONTROL[2:]:
            await target.ask(method, path, token=credential, body='{"name": "ci", "expiration": "1 x"}')
            await target.ask(method, path, f"X-Api-Key: {credential}", body="{")
        for model in ("simulator", "broken", "down", "nothing"):
            for stream in (True, False):
                await target.ask("POST", CHAT, token=credential, body=json.dumps(chat(model, stream=stream)))
    for who in (owner.login, owner.key):
        await target.ask("DELETE", f"{KEYS}/{owner.key_id}", token=who)
        await target.ask("DELETE", TOKENS, token=who)
    for credential in (owner.token, owner.key):
        assert await reason(target, credential) == REVOKED


# throttles


async def test_mints_are_counted_together_by_whatever_path_login_and_address_they_come(tmp_path: Path) -> None:
    trusted = ["127.0.0.1"]
    throttles = {**UNTHROTTLED, "mints": "5/minute"}
    async with on_sqlite(tmp_path, throttles=throttles, trusted_proxies=trusted) as target:
        logins = [target.newcomer() for _ in range(2)]
        target.service.cluster.users[logins[1]] = target.service.cluster.users[logins[0]]
        ways = [(path, login) for path in ("/v1/tokens", "/v1/api-keys") for login in logins]
        ways = [
            (f"{prefix}{path}{end}", one) for path, one in ways for prefix in ("", "/maas-api") for end in ("", "/")
        ]

        answers = [
            await target.ask(
                "POST",
                path,
                f"X-Forwarded-For: 192.0.2.{number}",
                token=login,
                body='{"name": "ci", "expiration": 900}',
            )
            for number, (path, login) in enumerate(ways)
        ]
        others = await minted(target, target.newcomer())
        listed = await target.ask("GET", KEYS, token=logins[0])
        revoked = await target.ask("DELETE", TOKENS, token=logins[0])

    assert [answer.status for answer in answers] == [201] * 5 + [429] * (len(ways) - 5)
    for refused in answers[5:]:
        assert_throttled(refused, "mints", 5)
    assert others["token"]
    assert (listed.status, revoked.status) == (200, 204)


def assert_throttled(answer: Answer, limit: str, quota: int) -> None:
    """It says what contract.md says of a 429."""
    error = answer.refusal(429, "rate_limit_exceeded")
    details = error["details"]
    milliseconds, seconds = (int(answer.header(name) or 0) for name in ("retry-after-ms", "retry-after"))
    assert error["message"] == "Rate limit exceeded"
    assert (details["limit"], details["quota"], details["window_seconds"]) == (limit, quota, 60)
    assert details["retry_after_seconds"] == seconds
    assert 0 < milliseconds <= 1000 * seconds < milliseconds + 1000
    assert seconds <= 64
    assert answer.header("x-should-retry") in (None, "false" if milliseconds > 60_000 else None)
    assert not {name for name, _ in answer.headers if name.startswith(b"x-ratelimit-")}


async def test_mint_that_was_refused_for_another_reason_costs_none(tmp_path: Path) -> None:
    async with on_sqlite(tmp_path, throttles={**UNTHROTTLED, "mints": "2/minute"}) as target:
        login, nobody = target.newcomer(), target.newcomer("nobodies")
        for body in ('{"expiration": "1s"}', "{", "[]", '{"expiration": "x"}'):
            assert (await target.ask("POST", TOKENS, token=login, body=body)).status == 400
        (await target.ask("POST", KEYS, token=login, body="{}")).refusal(400, "missing_name")
        (await target.ask("POST", TOKENS, token=nobody)).refusal(403, "no_tier")

        statuses = [(await target.ask("POST", TOKENS, token=login)).status for _ in range(3)]

    assert statuses == [201, 201, 429]


@pytest.mark.parametrize("trusted", [[], ["127.0.0.3"]])
async def test_guesses_lock_out_nobody_who_works_and_nobody_elsewhere_whatever_address_they_claim(
    tmp_path: Path, trusted: list[str]
) -> None:
    throttles = {**UNTHROTTLED, "failed_credentials": "10/minute"}
    async with on_sqlite(tmp_path, throttles=throttles, trusted_proxies=trusted) as target:
        owner, victim = await newcomer(target), "127.0.0.2"
        statuses = Counter[int]()

        async def guess(number: int) -> None:
            claims = [f"X-Forwarded-For: {address}" for address in (victim, f"192.0.2.{number}")]
            token = f"sha256~guess-{number}" if number % 2 else "x.y.z"
            method, path = (("POST", TOKENS), ("POST", CHAT), ("GET", "/v1/me"), ("DELETE", KEYS))[number % 4]
            statuses[
                (await target.ask(method, path, claims[number % 3 % 2], "Forwarded: for=1.2.3.4", token=token)).status
            ] += 1

        async def work() -> None:
            for _ in range(10):
                assert (await target.chat(owner.token)).status == 200
                assert (await target.ask("GET", "/v1/models", token=owner.key)).status == 200
                assert (await target.ask("GET", KEYS, token=owner.login)).status == 200

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for number in range(100):
                    group.start_soon(guess, number)
                group.start_soon(work)
        throttled = await target.ask("GET", "/v1/me", token="sha256~another-guess")
        transport = httpx.AsyncHTTPTransport(local_address=victim)
        async with httpx.AsyncClient(base_url=target.service.url, transport=transport) as client:
            elsewhere = await client.get("/v1/me", headers={"authorization": f"Bearer {target.newcomer()}"})
        owners = {user for user, known in target.service.cluster.users.items() if known.name == owner.name}

    assert statuses == {401: 10, 429: 90}
    assert_throttled(throttled, "failed_credentials", 10)
    assert elsewhere.status_code == 200
    assert len([review for review in target.service.cluster.reviews if review.token not in owners]) <= 11


async def test_control_requests_are_counted_together_by_whatever_path_they_come(tmp_path: Path) -> None:
    async with on_sqlite(tmp_path, throttles={**UNTHROTTLED, "control_requests": "6/minute"}) as target:
        login, other = target.newcomer(), target.newcomer()
        paths = [
            "/v1/me",
            "/maas-api/v1/me",
            "/v1/me/",
            "/v1/nothing",
            KEYS,
            f"{KEYS}/x",
            "/v1/usage",
            "/maas-api",
            "/v1/x/",
        ]

        answers = [await target.ask("GET", path, token=login) for path in paths]
        spared = await target.ask("GET", "/v1/me", token=other)
        token = target.access()
        inference = [(await target.chat(token)).status for _ in range(8)]

    assert [answer.status for answer in answers[:6]] == [200, 200, 200, 404, 200, 404]
    for refused in answers[6:]:
        assert_throttled(refused, "control_requests", 6)
    assert spared.status == 200
    assert inference == [200] * 8
