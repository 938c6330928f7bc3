"""To be tests/hosts/test_mounting_page.py: sentences of docs/mounting.md that no other test holds."""

from __future__ import annotations

import json
import pickle
import re
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import starlette.middleware.gzip
import yaml
from fastapi import FastAPI, HTTPException
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware import MaaSMiddleware, Settings, load_settings
from maas_middleware.assertions import AssertionKeys
from maas_middleware.endpoints import CHAT_COMPLETIONS
from maas_middleware.providers.signed import AssertionSigner
from maas_middleware.settings import audiences_of
from maas_middleware.testing.converse import converse
from tests.deployments import bearer, chat
from tests.hosts.inference import MODEL, Notes, Question, added, completion, fastapi_app
from tests.hosts.servers import Serving, on_granian, on_hypercorn
from tests.hosts.sites import host_settings, hosted, hosting
from tests.hosts.test_vllm_options import both
from tests.hosts.vllm_arguments import parse
from tests.hosts.vllm_running import FAY, MIDDLEWARE, QUESTION, cluster, refused_start, vllm
from tests.parts import ALICE, knock
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "mounting.md").read_text()
ORIGIN = "https://ui.example.com"
HOSTS = ["FastAPI and Starlette", "vLLM", "LitServe", "infinity", "llama-cpp-python", "transformers serve", "BentoML"]


# the page itself


def test_page_has_one_section_per_host() -> None:
    assert re.findall(r"^## (.*)$", PAGE, re.M) == [*HOSTS, "Ray Serve", "SGLang", "Behind a gateway"]


def test_gateway_and_app_of_the_page_are_configurations_that_fit(tmp_path: Path) -> None:
    section = PAGE.partition("## Behind a gateway")[2]
    (command,) = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    before, behind = re.findall(r"^```yaml\n(.*?)^```", section, re.M | re.S)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=10)
    keys = tmp_path / "assertion-keys"

    edge, app = [yaml.safe_load(text.replace("/keys/", f"{tmp_path}/")) for text in (before, behind)]
    near, far = load_settings({}, **edge), load_settings({}, **app)
    del app["trusted_gateways"]["audiences"]  # "may be left out"

    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    (model,) = near.models or ()
    assert model.assertion_keys_file == far.trusted_gateways.keys_file == str(keys)
    assert set(audiences_of(far)) == set(audiences_of(load_settings({}, **app))) == {model.id}


# one line in an app


async def test_list_of_middlewares_of_fastapi_and_what_is_behind_a_wrapped_app() -> None:
    async with host_settings() as settings:
        app = fastapi_app(Notes(), middleware=[Middleware(MaaSMiddleware, settings=settings)])
        app.state.engine = "running"
        async with hosting(app) as site:
            answer, stranger = await site.ask(await site.headers()), await site.ask({})
        wrapped = MaaSMiddleware(app, settings=settings)

    assert (answer.status_code, stranger.status_code) == (200, 401)
    assert isinstance(wrapped.app, FastAPI)
    assert wrapped.app.state.engine == "running"


async def test_stack_that_is_built_more_than_once_serves_as_one(tmp_path: Path) -> None:
    """As vLLM's bootstrap may do it: the first is never asked, and sees no lifespan."""
    async with host_settings(store=f"sqlite:///{tmp_path}/maas.db") as settings:
        app = added(Notes(), settings)
        assert isinstance(app, FastAPI)
        discarded = app.build_middleware_stack()
        app.middleware_stack = app.build_middleware_stack()
        async with hosting(app) as site:
            headers = await site.headers()
            answer = await site.ask(headers)
            used = (await site.client.get("/v1/usage", headers=headers)).json()

    assert discarded is not app.middleware_stack
    assert answer.headers["x-ratelimit-remaining-requests"] == "19"
    assert answer.status_code == 200
    assert used["total"]["requests"] == 1


async def test_streams_stay_as_they_are_where_compression_is_outside() -> None:
    def make(settings: Settings) -> ASGIApp:
        app = fastapi_app(Notes())
        app.add_middleware(MaaSMiddleware, settings=settings)
        app.add_middleware(GZipMiddleware, minimum_size=1)
        return app

    async with hosted(make) as site:
        stream = await site.ask(await site.headers() | {"accept-encoding": "gzip"}, stream=True)

    excludes = hasattr(starlette.middleware.gzip, "DEFAULT_EXCLUDED_CONTENT_TYPES")  # 0.40 holds a stream to its end
    assert stream.headers.get("content-encoding") == (None if excludes else "gzip")


async def test_5xx_of_an_http_exception_loses_its_text_on_guarded_paths() -> None:
    app = FastAPI()

    @app.post(CHAT_COMPLETIONS)
    async def complete(question: Question) -> None:
        raise HTTPException(503, "engine 10.1.2.3 is down", {"retry-after": "7"})

    def make(settings: Settings) -> ASGIApp:
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make, scope="inference") as site:
        answer = await site.ask(await site.headers())

    assert answer.status_code == 503
    assert "10.1.2.3" not in answer.text
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("scope", ["all", "inference"])
async def test_public_path_passes_untouched(scope: str) -> None:
    seen: list[tuple[Scope, Receive, Send]] = []

    async def host(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        raise AssertionError

    async with host_settings(scope=scope, public_paths=["/docs", "/openapi.json"]) as settings:
        app = MaaSMiddleware(host, settings=settings)
        headers = [
            (b"authorization", b"Basic eDp5"),
            (b"x-maas-user", b"eve"),
            (b"cookie", b"a=1"),
            (b"accept-encoding", b"gzip"),
        ]
        request = {
            "type": "http",
            "method": "GET",
            "path": "/docs",
            "root_path": "",
            "headers": headers,
            "state": {"own": 1},
        }
        before = pickle.loads(pickle.dumps(request))
        await app(request, receive, send)
        if scope == "all":
            assert (await converse(app, "GET", "/metrics")).status == 401  # the defaults are replaced

    ((passed, own_receive, own_send),) = seen
    assert passed == before
    assert (own_receive, own_send) == (receive, send)


async def test_configured_catalogue_is_listed_and_the_app_is_not_asked() -> None:
    asked: list[str] = []
    app = fastapi_app(Notes())

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        asked.append("models")
        return {"object": "list", "data": [{"id": "secret-lora", "root": "/models/x"}]}

    def make(settings: Settings) -> ASGIApp:
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    catalogue = [{"id": MODEL, "tiers": "all"}, {"id": "big", "tiers": ["enterprise"]}]
    async with hosted(make, models=catalogue) as site:
        headers = await site.headers()
        listed = [
            (await site.client.get(path, headers=headers)).json() for path in ("/v1/models", "/maas-api/v1/models")
        ]
        one = await site.client.get("/v1/models/secret-lora", headers=headers)

    for one_list in listed:
        (row,) = one_list["data"]
        assert row["id"] == MODEL
        assert {"id", "name", "url", "tier", "object", "ready"} <= row.keys()
        assert "root" not in row
    assert one.status_code == 404
    assert asked == []


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_routes_below_a_mount_point_that_is_a_version_are_endpoints(version: str) -> None:
    inner = FastAPI()

    @inner.post("/rerank")
    async def rerank() -> dict[str, object]:
        return {"results": [], "usage": {"prompt_tokens": 1, "total_tokens": 1}}

    def make(settings: Settings) -> ASGIApp:
        return Starlette(routes=[Mount(f"/{version}", app=MaaSMiddleware(inner, settings=settings))])

    async with hosted(make, f"/{version}", scope="inference") as site:
        body = {"model": MODEL, "query": "a", "documents": ["b"]}
        answer = await site.client.post("/rerank", json=body, headers=await site.headers())
        stranger = await site.client.post("/rerank", json=body)

    assert (answer.status_code, stranger.status_code) == (200, 401)
    assert answer.headers["x-odhu-usage-total-tokens"] == "1"


async def test_v2_route_that_is_an_endpoint_only_by_its_mount_point() -> None:
    async with host_settings(scope="inference") as settings:
        app = Starlette(routes=[Mount("/v2", app=MaaSMiddleware(FastAPI(), settings=settings))])

        answer = await converse(app, "POST", "/v2/embed", json={"model": MODEL})  # of the table, and refused

    assert answer.status == 401


@pytest.mark.parametrize("scope", ["all", "inference"])
async def test_websocket_of_an_endpoint_is_1008_for_whoever_is_known_too(scope: str) -> None:
    async with host_settings(scope=scope) as settings:
        app = MaaSMiddleware(fastapi_app(Notes()), settings=settings)
        minted = await converse(app, "POST", "/v1/tokens", token="sha256~premium")
        headers = [("authorization", f"Bearer {minted.json()['token']}")]

        known = await knock(app, headers=headers, can_deny=False)
        denied = await knock(app, headers=headers)
        host = await knock(app, "/echo", headers=headers, can_deny=False) if scope == "all" else known

    assert [(message["type"], message.get("code")) for message in known] == [("websocket.close", 1008)]
    assert [(message["type"], message.get("code")) for message in host] == [("websocket.close", 1008)]
    assert denied[0]["status"] == 404


# mount points


async def test_mounted_app_is_closed_by_the_lifespan_of_the_outer_one(tmp_path: Path) -> None:
    database = tmp_path / "maas.db"
    async with host_settings(store=f"sqlite:///{database}") as settings:
        maas = MaaSMiddleware(fastapi_app(Notes()), settings=settings)

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await maas.aclose()

        async with hosting(Starlette(routes=[Mount("/llm", app=maas)], lifespan=lifespan), "/llm") as site:
            headers = await site.headers()
            assert (await site.ask(headers)).status_code == 200
        is_closed = not database.with_name("maas.db-wal").exists()  # SQLite puts it away with the last connection
        await maas.aclose()  # a second time is no trouble

    assert is_closed


async def test_refused_configuration_does_not_fail_the_outer_startup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAAS_COUNTERS", "etcd://localhost")
    notes = Notes()
    outer = fastapi_app(notes)
    outer.mount("/llm", MaaSMiddleware(fastapi_app(Notes())))

    async with hosting(outer) as site:
        page, guarded = (
            await site.client.get("/page"),
            await site.client.post("/llm/v1/chat/completions", json=chat(MODEL)),
        )
        health = await site.client.get("/llm/health")

    assert notes.lifespan == ["up", "down"]
    assert (page.status_code, guarded.status_code, health.status_code) == (200, 503, 200)
    assert guarded.json()["error"]["code"] == "not_configured"


@pytest.mark.parametrize("server", [on_granian, on_hypercorn], ids=["granian", "hypercorn"])
@pytest.mark.parametrize("mount_point", ["", "/srv"])
async def test_root_path_of_the_server_may_be_in_the_path_or_not(server: Serving, mount_point: str) -> None:
    async with (
        host_settings() as settings,
        hosting(added(Notes(), settings), mount_point, server=server, root_path="/srv") as site,
    ):
        headers = await site.headers()
        answer, listed = await site.ask(headers), await site.client.get("/v1/models", headers=headers)

    assert answer.status_code == 200
    assert listed.json()["data"][0]["url"].endswith(f"/srv/{MODEL}/v1/chat/completions")


@pytest.mark.parametrize("has_catalogue", [True, False])
async def test_public_url_replaces_the_root_path_too(has_catalogue: bool) -> None:
    app = fastapi_app(Notes())

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [{"id": MODEL}]}

    own = {} if has_catalogue else {"models": None}
    async with host_settings(public_url="https://maas.example.com/srv", **own) as settings:
        app.add_middleware(MaaSMiddleware, settings=settings)
        async with hosting(Starlette(routes=[Mount("/llm", app=app)]), "/llm") as site:
            (row,) = (await site.client.get("/v1/models", headers=await site.headers())).json()["data"]

    assert re.fullmatch(rf"https://maas\.example\.com/srv(/{MODEL})?/v1/chat/completions", row["url"]), row["url"]


# vLLM


def test_refusals_of_vllm_have_cors_headers_by_cors_origins_only() -> None:
    def refusal(**environ: str) -> httpx.Response:
        with vllm(*MIDDLEWARE, "--allowed-origins", json.dumps([ORIGIN]), **environ) as server:
            return server.http.post(CHAT_COMPLETIONS, json=QUESTION, headers={"origin": ORIGIN})

    with cluster() as environ:
        without, by_setting = refusal(**environ), refusal(**environ, MAAS_CORS_ORIGINS=ORIGIN)

    assert (without.status_code, by_setting.status_code) == (401, 401)
    assert "access-control-allow-origin" not in without.headers
    assert by_setting.headers.get_list("access-control-allow-origin") == [ORIGIN]


def test_list_of_two_middlewares_in_a_file_does_not_start(tmp_path: Path) -> None:
    (config := tmp_path / "vllm.yaml").write_text(
        "middleware:\n  - starlette.middleware.gzip.GZipMiddleware\n  - maas_middleware.MaaSMiddleware\n"
    )

    code, printed = refused_start("tiny", "--config", str(config))

    assert code != 0
    assert "unrecognized arguments" in printed
    one = tmp_path / "one.yaml"
    one.write_text("middleware: [maas_middleware.MaaSMiddleware]\n")
    assert parse(["serve", "tiny", "--config", str(one)]).middleware == ["maas_middleware.MaaSMiddleware"]


def test_token_of_one_api_server_is_unknown_to_the_other_in_memory() -> None:
    """So `counters: redis://...` is not enough: `store` and the signing keys have to be shared, too."""
    with (
        cluster() as environ,
        vllm(*MIDDLEWARE, "--api-server-count", "2", **environ) as server,
        ExitStack() as stack,
    ):
        first, second = both(server, stack)
        token = first.post("/maas-api/v1/tokens", headers=bearer(FAY)).json()["token"]
        statuses = [http.get("/v1/models", headers=bearer(token)).status_code for http in (first, second)]

    assert statuses == [200, 401]
    assert server.printed.count("tokens, revocations, recorded use and counters: kept by this process alone") == 2


# LitServe


async def test_app_without_a_list_of_models_is_502_and_zero_is_what_is_charged() -> None:
    app = FastAPI()

    @app.post(CHAT_COMPLETIONS)
    async def complete(question: Question) -> dict[str, object]:
        usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
        return completion(question) | {"usage": usage}

    def make(settings: Settings) -> ASGIApp:
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make, models=None) as site:
        headers = await site.headers("sha256~free")
        listed = await site.client.get("/v1/models", headers=headers)
        answers = [
            await site.client.post(CHAT_COMPLETIONS, json=chat(f"made-up-{n}"), headers=headers) for n in range(6)
        ]
        left = await site.tokens_left(headers)
        used = (await site.client.get("/v1/usage", headers=headers)).json()

    assert (listed.status_code, listed.json()["error"]["code"]) == (502, "upstream_error")
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert left == 100
    assert {row["model"] for row in used["data"]} == {f"made-up-{number}" for number in range(5)}


# Ray Serve


async def test_tiers_of_a_tiers_file_are_followed_after_pickling(tmp_path: Path) -> None:
    file = tmp_path / "tiers.yaml"

    def put(requests: str) -> None:
        limits = {"requests": requests, "tokens": "1000/minute"}
        new = tmp_path / "new"
        new.write_text(json.dumps([{"name": "all", "groups": ["system:authenticated"], "limits": limits}]))
        new.replace(file)

    put("7/minute")
    async with host_settings(tiers_file=str(file)) as settings:
        arrived = pickle.loads(pickle.dumps(settings))
        async with hosting(MaaSMiddleware(fastapi_app(Notes()), settings=arrived)) as site:
            headers = await site.headers()

            async def limit() -> str:
                return (await site.client.head(CHAT_COMPLETIONS, headers=headers)).headers["x-ratelimit-limit-requests"]

            before = await limit()
            put("9/minute")
            with anyio.fail_after(10):
                while await limit() == before:
                    pass
            after = await limit()

    assert (before, after) == ("7", "9")


# behind a gateway


async def test_assertion_is_nothing_to_an_app_that_trusts_no_gateway() -> None:
    seen: list[bytes] = []
    app = fastapi_app(Notes())

    @app.post("/v1/completions")
    async def complete(request: Request) -> dict[str, object]:
        seen.extend(name.lower() for name, _ in request.scope["headers"])
        return {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}

    def make(settings: Settings) -> ASGIApp:
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make) as site:
        headers = await site.headers() | {"x-maas-assertion": "anything"}
        answer = await site.client.post("/v1/completions", json={"model": MODEL, "prompt": "a"}, headers=headers)

    assert answer.status_code == 200
    assert b"x-maas-assertion" not in seen
    assert b"authorization" not in seen


async def test_features_and_caps_of_the_apps_own_tiers_are_not_asked_behind_a_gateway(tmp_path: Path) -> None:
    (keys := tmp_path / "keys").write_text("k" * 44)
    keys.chmod(0o600)
    tiers = [
        {
            "name": "free",
            "groups": ["system:authenticated"],
            "features": [],
            "max_tokens_per_request": 1,
            "limits": {"requests": "1/minute", "tokens": "1/minute"},
        }
    ]
    sent: list[dict[str, Any]] = []
    app = FastAPI()

    @app.post(CHAT_COMPLETIONS)
    async def complete(request: Request) -> dict[str, object]:
        sent.append(await request.json())
        return {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}

    def make(settings: Settings) -> ASGIApp:
        app.add_middleware(MaaSMiddleware, settings=settings)
        return app

    async with hosted(make, tiers=tiers, trusted_gateways={"keys_file": str(keys)}) as site:
        signer = AssertionSigner(keys=AssertionKeys((b"k" * 44,)))
        question = chat(MODEL, tools=[{"type": "function", "function": {"name": "f"}}], max_tokens=500)
        headers = {"x-maas-assertion": signer.sign(ALICE, tier="free", audience=MODEL, request_id="r").decode()}
        answers = [await site.client.post(CHAT_COMPLETIONS, json=question, headers=headers) for _ in range(3)]
        direct = await site.client.post(CHAT_COMPLETIONS, json=question, headers=await site.headers("sha256~free"))

    assert [answer.status_code for answer in answers] == [200] * 3
    assert [body["max_tokens"] for body in sent] == [500] * 3
    assert direct.status_code == 403
    assert not any(name.startswith("x-ratelimit") for name in answers[0].headers)
