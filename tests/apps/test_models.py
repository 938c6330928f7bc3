from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware.apps.models import ModelsApp
from maas_middleware.balancing import Balancer
from maas_middleware.catalogue import Catalogue, Model
from maas_middleware.context import ensure_context
from maas_middleware.identity import Identity
from maas_middleware.middleware.identity import IdentityMiddleware
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.testing.converse import Conversation, converse
from maas_middleware.testing.identity import StaticIdentityProvider
from maas_middleware.tiers import GroupTierResolver, Tier

from ..servers import serving

FREE = Tier("free", level=0, groups=("everyone",))
PREMIUM = Tier("premium", level=1, groups=("payers",))
ENTERPRISE = Tier("enterprise", level=2, groups=("companies",))
TIERS = (ENTERPRISE, FREE, PREMIUM)
CATALOGUE = Catalogue(
    [
        Model(
            "simulator", name="Simulator Model", upstream_model="sim-7b-internal", upstreams=("http://10.0.0.1:8000",)
        ),
        Model("qwen3", name="Qwen3 Model", tiers=frozenset({"premium", "enterprise"})),
        Model("org/llama", name="Llama", tiers=frozenset({"enterprise"})),
    ]
)
PROVIDER = StaticIdentityProvider(
    {
        "free": Identity("test", "free", ("everyone",)),
        "premium": Identity("test", "premium", ("payers",)),
        "enterprise": Identity("test", "enterprise", ("companies",)),
        "stranger": Identity("test", "stranger"),
        "minted": Identity("test", "minted", ("everyone",), restriction="an access token"),
    }
)
SIMULATOR = {
    "id": "simulator",
    "object": "model",
    "created": 1_790_000_000,
    "owned_by": "maas",
    "name": "Simulator Model",
    "url": "https://gateway.example.com/simulator/v1/chat/completions",
    "tier": "free",
    "ready": True,
}


def models(
    catalogue: Catalogue = CATALOGUE,
    public_url: str | None = "https://gateway.example.com",
    tiers: Sequence[Tier] | Callable[[], Sequence[Tier]] = TIERS,
    **options: Any,
) -> ASGIApp:
    """The app with real shells round it."""
    app = ModelsApp(catalogue=catalogue, tiers=tiers, public_url=public_url, clock=lambda: 1_790_000_000.9, **options)
    listing = TierMiddleware(app, resolver=GroupTierResolver(TIERS), unlisted="pass")
    return IdentityMiddleware(listing, provider=PROVIDER)


async def ask(
    app: ASGIApp, path: str = "", *, method: str = "GET", user: str = "free", host: str = "gw", **scope: Any
) -> Conversation:
    return await converse(
        app,
        method,
        f"/v1/models{path}",
        headers=[("authorization", f"Bearer {user}"), ("host", host)],
        scope={"root_path": "/v1/models", "app_root_path": "", **scope},
    )


def assert_refused(conversation: Conversation, status: int, code: str, message: str) -> None:
    assert conversation.exception is None
    assert conversation.status == status
    error = conversation.json()["error"]
    assert (error["code"], error["message"]) == (code, message)


@pytest.mark.parametrize("path", [pytest.param("", id="bare"), pytest.param("/", id="trailing slash")])
@pytest.mark.parametrize("user", [pytest.param("free", id="login"), pytest.param("minted", id="access token")])
async def test_list_has_the_fields_of_openai_and_of_the_guide(path: str, user: str) -> None:
    conversation = await ask(models(), path, user=user)

    assert conversation.status == 200
    assert conversation.header("content-type") == "application/json"
    assert conversation.json() == {"object": "list", "data": [SIMULATOR]}


@pytest.mark.parametrize(
    ("user", "rows"),
    [
        pytest.param("free", {"simulator": "free"}, id="free"),
        pytest.param("premium", {"simulator": "free", "qwen3": "premium"}, id="premium"),
        pytest.param(
            "enterprise", {"simulator": "free", "qwen3": "premium", "org/llama": "enterprise"}, id="enterprise"
        ),
    ],
)
async def test_models_of_the_tier_are_listed_with_the_lowest_tier_that_may_use_them(
    user: str, rows: dict[str, str]
) -> None:
    conversation = await ask(models(), user=user)

    assert {row["id"]: row["tier"] for row in conversation.json()["data"]} == rows
    assert b"internal" not in conversation.body
    assert b"10.0.0.1" not in conversation.body


async def test_tier_with_no_models_has_an_empty_list() -> None:
    catalogue = Catalogue([Model("qwen3", tiers=frozenset({"premium"}))])

    conversation = await ask(models(catalogue))

    assert conversation.status == 200
    assert conversation.json() == {"object": "list", "data": []}


async def test_tiers_are_looked_up_for_every_request() -> None:
    in_force = [PREMIUM]
    app = models(tiers=lambda: in_force)

    before = await ask(app, user="premium")
    in_force.append(FREE)
    after = await ask(app, user="premium")

    assert [row["tier"] for row in before.json()["data"]] == ["premium", "premium"]
    assert [row["tier"] for row in after.json()["data"]] == ["free", "premium"]


async def test_tier_that_was_taken_away_meanwhile_is_still_the_callers() -> None:
    conversation = await ask(models(tiers=lambda: [FREE]), user="premium")

    assert {row["id"]: row["tier"] for row in conversation.json()["data"]} == {"simulator": "free", "qwen3": "premium"}


@pytest.mark.parametrize(
    ("path", "model_id"),
    [
        pytest.param("/simulator", "simulator", id="plain"),
        pytest.param("/simulator/", "simulator", id="trailing slash"),
        pytest.param("/org/llama", "org/llama", id="id with a slash"),
        pytest.param("/org/llama/", "org/llama", id="id with a slash and a trailing slash"),
    ],
)
async def test_one_model_is_its_row_of_the_list(path: str, model_id: str) -> None:
    listed = await ask(models(), user="enterprise")

    conversation = await ask(models(), path, user="enterprise")

    assert conversation.status == 200
    assert conversation.json() == next(row for row in listed.json()["data"] if row["id"] == model_id)


async def test_model_is_ready_as_long_as_one_of_its_upstreams_is() -> None:
    balancer = Balancer(failures=1)
    catalogue = Catalogue([Model("m", upstreams=("http://a", "http://b")), Model("n", upstreams=("http://a",))])
    app = models(catalogue, is_ready=balancer.is_ready)
    seen = []

    for model in (*catalogue.models, catalogue.models[0]):
        upstream = balancer.choose(model)
        assert upstream is not None
        upstream.begin()
        upstream.failed()
        upstream.end()
        seen.append((await ask(app)).json()["data"])
    one = await ask(app, "/m")

    assert [[row["ready"] for row in rows] for rows in seen] == [[True, False], [True, False], [False, False]]
    assert one.json()["ready"] is False


@pytest.mark.parametrize("path", ["/qwen3", "/org/llama"])
async def test_model_of_another_tier_is_403(path: str) -> None:
    conversation = await ask(models(), path)

    assert_refused(conversation, 403, "access_denied", "Insufficient permissions for this model")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("/nope", "The model `nope` does not exist", id="plain"),
        pytest.param("/org", "The model `org` does not exist", id="part of an id"),
        pytest.param("/Simulator", "The model `Simulator` does not exist", id="another case"),
        pytest.param("/org%2Fllama", "The model `org%2Fllama` does not exist", id="not decoded twice"),
        pytest.param("/simulator/..", "The model `simulator/..` does not exist", id="dots"),
        pytest.param("/" + "x" * 200, "The model does not exist", id="long"),
    ],
)
async def test_unknown_model_is_404(path: str, message: str) -> None:
    conversation = await ask(models(), path, user="enterprise")

    assert_refused(conversation, 404, "model_not_found", message)


@pytest.mark.parametrize("path", ["", "/simulator"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_other_methods_are_405(method: str, path: str) -> None:
    conversation = await ask(models(), path, method=method)

    assert_refused(conversation, 405, "method_not_allowed", "Method not allowed")
    assert conversation.header("allow") == "GET, HEAD"


async def test_caller_in_no_tier_is_403() -> None:
    conversation = await ask(models(), user="stranger")

    assert_refused(conversation, 403, "no_tier", "You are in no group that gives access to a tier")


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    async with serving(models(), lifespan="off", root_path="") as url, httpx.AsyncClient(trust_env=False) as client:
        client.headers["authorization"] = "Bearer free"
        get = await client.get(url)
        head = await client.head(url)

    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"] == "application/json"
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))
    assert head.content == b""


@pytest.mark.parametrize(
    ("scope", "host", "base"),
    [
        pytest.param({}, "gw.example.com", "http://gw.example.com", id="host header"),
        pytest.param({}, "gw.example.com:8443", "http://gw.example.com:8443", id="port"),
        pytest.param({"scheme": "https"}, "gw.example.com", "https://gw.example.com", id="https"),
        pytest.param({"app_root_path": "/llm"}, "gw", "http://gw/llm", id="mount point"),
        pytest.param({"app_root_path": "/llm/"}, "gw", "http://gw/llm", id="mount point with a slash"),
        pytest.param({}, "[::1]:8000", "http://[::1]:8000", id="ipv6"),
    ],
)
async def test_url_begins_with_what_the_request_was_sent_to(scope: dict[str, str], host: str, base: str) -> None:
    conversation = await ask(models(public_url=None), "/simulator", host=host, **scope)

    assert conversation.json()["url"] == f"{base}/simulator/v1/chat/completions"


@pytest.mark.parametrize("host", ["[::1", "a/b", "a b", "a:b"])
async def test_host_that_is_none_is_no_error_of_ours(host: str) -> None:
    conversation = await ask(models(public_url=None), host=host)

    assert conversation.exception is None
    assert conversation.json()["data"][0]["url"] == "http://localhost/simulator/v1/chat/completions"


async def test_url_below_a_root_path_that_nothing_is_mounted_at() -> None:
    conversation = await converse(
        models(public_url=None),
        path="/srv/simulator",
        headers=[("authorization", "Bearer free"), ("host", "gw")],
        scope={"root_path": "/srv"},
    )

    assert conversation.json()["url"] == "http://gw/srv/simulator/v1/chat/completions"


async def test_url_where_starlette_mounts_the_app() -> None:
    app = Starlette(routes=[Mount("/v1/models", app=models(public_url=None))])

    headers = [("authorization", "Bearer free"), ("host", "gw")]
    conversation = await converse(app, path="/v1/models/simulator", headers=headers)

    assert conversation.json()["url"] == "http://gw/simulator/v1/chat/completions"


async def test_app_may_be_routed_to() -> None:
    app = models(public_url=None)
    starlette = Starlette(routes=[Route("/v1/models", app), Route("/v1/models/{id:path}", app)])
    headers = [("authorization", "Bearer enterprise"), ("host", "gw")]

    listing = await converse(starlette, path="/v1/models", headers=headers)
    one = await converse(starlette, path="/v1/models/org/llama", headers=headers)

    assert [row["id"] for row in listing.json()["data"]] == ["simulator", "qwen3", "org/llama"]
    assert one.json()["url"] == "http://gw/org/llama/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "url_path"),
    [
        pytest.param("/org/llama", "/org/llama", id="slash"),
        pytest.param("/llama3:8b@q4", "/llama3:8b@q4", id="colon"),
        pytest.param("/my model?", "/my%20model%3F", id="space"),
        pytest.param("/modèle", "/mod%C3%A8le", id="no ascii"),
    ],
)
async def test_url_is_one_that_can_be_requested(path: str, url_path: str) -> None:
    catalogue = Catalogue([Model("m", path=path)])

    conversation = await ask(models(catalogue), "/m")

    assert conversation.json()["url"] == f"https://gateway.example.com{url_path}/v1/chat/completions"


def below_prefix_of(model: Model, app: ASGIApp) -> ASGIApp:
    """What `Dispatch` does with `GET /{model}/v1/models`."""

    async def prefixed(scope: Scope, receive: Receive, send: Send) -> None:
        ensure_context(scope).model = model
        await app(scope, receive, send)

    return prefixed


async def test_model_in_the_context_is_the_only_one() -> None:
    conversation = await ask(below_prefix_of(CATALOGUE.models[1], models()), user="premium")

    assert [row["id"] for row in conversation.json()["data"]] == ["qwen3"]
    assert conversation.json()["object"] == "list"


async def test_model_in_the_context_of_another_tier_is_403() -> None:
    conversation = await ask(below_prefix_of(CATALOGUE.models[1], models()))

    assert_refused(conversation, 403, "access_denied", "Insufficient permissions for this model")


async def test_app_without_a_tier_says_what_is_missing() -> None:
    conversation = await converse(ModelsApp(catalogue=CATALOGUE, tiers=lambda: TIERS))

    assert isinstance(conversation.exception, LookupError)
    assert str(conversation.exception) == "ModelsApp needs to know the tier: wrap it in TierMiddleware"
    assert conversation.messages == []
