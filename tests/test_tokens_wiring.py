"""What is configured of tokens, keys and administrators reaches its part, in both forms of the service."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from starlette.types import ASGIApp

from maas_middleware import MaaSMiddleware, gateway, load_settings
from maas_middleware.cli import main
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.settings import ConfigurationError
from maas_middleware.testing.cluster import ClusterUser, StandInCluster

from .deployments import USERS, Deployment, bearer, chat, deployed, made, minted, statuses, throttled
from .parts import Answering, json_answer, start_up
from .servers import serving

FAY, PAT, OTTO = USERS
CAPTAIN, STRANGER, MANY = "sha256~captain", "sha256~stranger", "sha256~many"
CHAT = "/v1/chat/completions"
ROOMY = [{"name": "crew", "groups": ["system:authenticated"], "limits": {"requests": "999/day", "tokens": "unlimited"}}]
PEOPLE = {
    **USERS,
    CAPTAIN: ClusterUser("cara", ("system:authenticated:oauth", "captains")),
    STRANGER: ClusterUser("stan", ("system:authenticated:oauth", "maas-admins")),
    MANY: ClusterUser("mia", ("captains", "mates", "system:authenticated:oauth", *(f"g-{n:04}" for n in range(900)))),
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the keys that all gateways here sign with."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    SigningKeys.generate().save(file)
    return file


@pytest.fixture(scope="module")
async def tuned(keys: Path) -> AsyncIterator[Deployment]:
    """A gateway that throttles nothing, with administrators, and lifetimes and a number of keys of its own."""
    async with deployed(
        qwen3_tiers="all",
        tiers=ROOMY,
        tokens={
            "signing_keys_file": str(keys),
            "minimum_expiration": "1m",
            "administrators": ["mates-of-nobody", "captains"],
        },
        api_keys={"default_expiration": "1h", "maximum_expiration": "2h", "maximum_count": 2},
    ) as site:
        site.cluster.users |= PEOPLE
        yield site


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# api keys


async def test_api_keys_live_as_long_as_is_configured(tuned: Deployment) -> None:
    default, least, most = (
        await made(tuned),
        await made(tuned, PAT, expiration="1m"),
        await made(tuned, PAT, expiration="2h"),
    )
    below, above = await made(tuned, OTTO, expiration="59s"), await made(tuned, OTTO, expiration="7201s")

    assert [answer.json()["expiration"] for answer in (default, least, most)] == ["1h0m0s", "1m0s", "2h0m0s"]
    assert code_of(below) == code_of(above) == (400, "invalid_expiration")
    for answer in (default, least, most):
        assert await statuses(tuned, answer.json()["token"], "/v1/models", "/v1/me") == [200, 200]


async def test_user_has_no_more_active_keys_than_is_configured(tuned: Deployment) -> None:
    first, second, third = [await made(tuned, CAPTAIN) for _ in range(3)]
    await tuned.client.delete(f"/v1/api-keys/{first.json()['jti']}", headers=bearer(CAPTAIN))
    again = await made(tuned, CAPTAIN)

    assert [answer.status_code for answer in (first, second, third, again)] == [201, 201, 400, 201]
    assert third.json()["error"]["details"] == {"maximum": 2}


async def test_keys_and_tokens_of_a_user_end_together(tuned: Deployment) -> None:
    token, key = (await minted(tuned, STRANGER)).json(), (await made(tuned, STRANGER)).json()

    revoked = await tuned.client.delete("/maas-api/v1/tokens", headers=bearer(STRANGER))
    after = [await statuses(tuned, one["token"], CHAT, "/v1/models", "/v1/usage", "/x") for one in (token, key)]
    (row,) = (await tuned.client.get("/v1/api-keys", headers=bearer(STRANGER))).json()

    assert revoked.status_code == 204
    assert after == [[401] * 4] * 2
    assert (row["id"], row["status"]) == (key["jti"], "revoked")


# administrators


async def test_administrators_are_the_configured_groups_and_no_others(tuned: Deployment) -> None:
    token = (await minted(tuned, CAPTAIN)).json()["token"]

    paths = [f"{prefix}/v1/admin/{what}?user=fay" for prefix in ("", "/maas-api") for what in ("users", "tokens")]

    assert await statuses(tuned, CAPTAIN, *paths) == [200] * 4
    assert await statuses(tuned, STRANGER, *paths) == [403] * 4
    assert await statuses(tuned, token, *paths) == [403] * 4


async def test_administrator_sees_tier_keys_and_use_of_a_user_and_ends_them(tuned: Deployment) -> None:
    login = "sha256~una"
    tuned.cluster.users[login] = ClusterUser("una", ("system:authenticated:oauth",))
    key = (await made(tuned, login, name="nightly")).json()
    used = (await tuned.client.post(CHAT, json=chat(), headers=bearer(key["token"]))).json()["usage"]
    await tuned.client.get("/v1/usage", headers=bearer(login))  # which writes it

    shown = (await tuned.client.get("/v1/admin/users?user=una", headers=bearer(CAPTAIN))).json()
    (listed,) = (await tuned.client.get("/v1/admin/tokens?user=una", headers=bearer(CAPTAIN))).json()
    ended = await tuned.client.delete("/maas-api/v1/admin/tokens?user=una", headers=bearer(CAPTAIN))

    assert (shown["tier"], shown["apiKeys"]["active"], shown["accessTokens"]["active"]) == ("crew", 1, 0)
    assert [(row["model"], row["requests"], row["total_tokens"]) for row in shown["usage"]] == [
        ("simulator", 1, used["total_tokens"])
    ]
    assert datetime.fromisoformat(shown["lastUsedDate"]).timestamp() == pytest.approx(key["issuedAt"], abs=30)
    assert (listed["id"], listed["name"], listed["kind"]) == (key["jti"], "nightly", "api_key")
    assert ended.status_code == 204
    assert await statuses(tuned, key["token"], CHAT, "/v1/me") == [401, 401]


async def test_of_many_groups_a_token_keeps_those_that_tiers_and_administrators_name(tuned: Deployment) -> None:
    token = (await minted(tuned, MANY)).json()["token"]

    claims = jwt.decode(token, options={"verify_signature": False})

    assert sorted(claims["groups"]) == ["captains", "system:authenticated"]


# recorded use, and what is left


async def test_use_of_a_moment_ago_is_told_at_both_prefixes(tuned: Deployment) -> None:
    token = (await minted(tuned, MANY)).json()["token"]
    limits = (await tuned.client.head(CHAT, headers=bearer(token))).headers
    used = (await tuned.client.post(CHAT, json=chat(), headers=bearer(token))).json()["usage"]

    totals = [
        (await tuned.client.get(f"{prefix}/v1/usage", headers=bearer(credential))).json()["total"]
        for prefix in ("", "/maas-api")
        for credential in (token, MANY)
    ]
    me = [(await tuned.client.get(f"{prefix}/v1/me", headers=bearer(token))).json() for prefix in ("", "/maas-api")]

    assert [total["requests"] for total in totals] == [1] * 4
    assert [total["total_tokens"] for total in totals] == [used["total_tokens"]] * 4
    left = int(limits["x-ratelimit-remaining-requests"]) - 1
    assert [one["remaining"]["requests"]["remaining"] for one in me] == [left] * 2
    assert [(one["user"], one["tier"]["name"]) for one in me] == [("mia", "crew")] * 2


# mounted


@asynccontextmanager
async def mounted(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(app, lifespan="on") as url, httpx.AsyncClient(base_url=url, timeout=10) as http:
        yield http


@pytest.mark.parametrize("prefix", ["", "/maas-api"])
async def test_mounted_service_answers_every_control_route(prefix: str) -> None:
    host = Answering(*json_answer(b'{"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 5}}'))
    async with serving(StandInCluster(PEOPLE)) as cluster_url:
        settings = load_settings(
            {},
            openshift={"api_url": cluster_url},
            tokens={"administrators": ["captains"]},
            api_keys={"maximum_count": 1},
            throttles={"mints": "3/hour"},
        )
        async with mounted(MaaSMiddleware(_without_lifespan(host), settings=settings)) as http:
            key, too_many = [
                await http.post(f"{prefix}/v1/api-keys", headers=bearer(FAY), json={"name": name}) for name in "ab"
            ]
            as_fay = bearer(key.json()["token"])
            used = await http.post(CHAT, headers=as_fay, json=chat("any"))
            usage = (await http.get(f"{prefix}/v1/usage", headers=as_fay)).json()
            me = (await http.get(f"{prefix}/v1/me", headers=as_fay)).json()
            row = (await http.get(f"{prefix}/v1/api-keys/{key.json()['jti']}", headers=bearer(FAY))).json()
            last, one_too_many = [await http.post(f"{prefix}/v1/tokens", headers=bearer(FAY)) for _ in range(2)]
            jwks = (await http.get(f"{prefix}/.well-known/jwks.json")).json()
            ended = await http.delete(f"{prefix}/v1/admin/tokens?user=fay", headers=bearer(CAPTAIN))
            after = [await http.get(f"{prefix}/v1/me", headers=bearer(one.json()["token"])) for one in (key, last)]
            unguarded = await http.get("/ready")

    assert code_of(too_many) == (400, "too_many_api_keys")
    assert (used.status_code, last.status_code) == (200, 201)
    assert throttled(one_too_many) == ("mints", 3, 3600)
    assert usage["total"] == {"requests": 1, "input_tokens": 2, "output_tokens": 5, "total_tokens": 7}
    assert (me["user"], me["models"], me["remaining"]["requests"]["remaining"]) == ("fay", None, 4)
    assert (row["name"], row["status"]) == ("a", "active")
    assert jwt.get_unverified_header(key.json()["token"])["kid"] in [one["kid"] for one in jwks["keys"]]
    assert ended.status_code == 204
    assert [answer.status_code for answer in after] == [401, 401]
    assert "choices" in unguarded.json(), "the host's own"


def _without_lifespan(app: ASGIApp) -> ASGIApp:
    """The app, as one that speaks HTTP only."""

    async def host(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)

    return host


# the key that is made


def test_check_makes_no_key_and_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "maas.yaml"
    config.write_text(
        f"store: 'sqlite:///{tmp_path}/maas.db'\nmodels: [{{id: a, tiers: all, upstreams: ['http://127.0.0.1:9']}}]\n"
    )

    assert main(["check", "--config", str(config)]) == 0

    assert capsys.readouterr().out.endswith("The configuration is valid.\n")
    assert list(tmp_path.iterdir()) == [config]


async def test_key_is_made_beside_the_database_before_anybody_asks_and_is_that_of_all_processes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path}/maas.db"}
    file = tmp_path / "maas.keys.json"

    gateway(load_settings({}, **settings, models=[{"id": "a", "tiers": "all", "upstreams": ["http://127.0.0.1:9"]}]))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kid = SigningKeys.load(file).key_id

    async with deployed(**settings) as one, deployed(**settings) as other:
        token = await one.mint()
        accepted = await statuses(other, token, "/v1/models")
    assert (jwt.get_unverified_header(token)["kid"], accepted) == (kid, [200])


async def test_key_beside_the_database_that_others_may_read_is_refused_at_the_start(tmp_path: Path) -> None:
    SigningKeys.generate().save(file := tmp_path / "maas.keys.json")
    file.chmod(0o640)
    store = f"sqlite:///{tmp_path}/maas.db"

    with pytest.raises(ConfigurationError, match=r"^tokens\.signing_keys_file: .*maas\.keys\.json"):
        gateway(load_settings({}, store=store, models=[{"id": "a", "upstreams": ["http://127.0.0.1:9"]}]))
    (failed,) = await start_up(MaaSMiddleware(Answering(), settings=load_settings({}, store=store)))

    assert failed["type"] == "lifespan.startup.failed"
    assert "tokens.signing_keys_file" in failed["message"]
