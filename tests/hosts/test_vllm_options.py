"""MaaSMiddleware together with the options of `vllm serve`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from maas_middleware import MaaSMiddleware

from ..deployments import bearer
from ..ledgers.redis_server import running_redis
from .vllm_app import build_app
from .vllm_arguments import parse
from .vllm_engine import Engine
from .vllm_running import ADA, CHAT, FAY, MIDDLEWARE, QUESTION, VLLM, cluster, refused_start, vllm

pytestmark = pytest.mark.timeout(60)
TWICE = "MaaSMiddleware is applied twice"


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    with cluster() as environ:
        yield environ


async def test_the_stand_in_builds_the_stack_of_vllm() -> None:
    first, last = "starlette.middleware.gzip.GZipMiddleware", "starlette.middleware.sessions.SessionMiddleware"
    options = ["--middleware", first, "--api-key", "k", "--enable-request-id-headers"]

    app = build_app(
        parse(["serve", "tiny", *options, "--middleware", "maas_middleware.MaaSMiddleware"]), Engine("tiny")
    )

    names, layer = [], app.middleware_stack
    while layer is not None:
        names.append(type(layer).__name__)
        layer = getattr(layer, "app", None)
    assert names[0] == "ServerErrorMiddleware"
    ours = names.index("MaaSMiddleware")
    assert names[ours : ours + 8] == [
        *("MaaSMiddleware", "GZipMiddleware", "WebSocketMetricsMiddleware", "ScalingMiddleware"),
        *("XRequestIdMiddleware", "AuthenticationMiddleware", "CORSMiddleware", "PrometheusMiddleware"),
    ]
    with pytest.raises(RuntimeError, match="Cannot add middleware after an application has started"):
        app.add_middleware(MaaSMiddleware)
    with pytest.raises(TypeError):
        build_app(parse(["serve", "tiny", "--middleware", last]), Engine("tiny"))


@pytest.mark.parametrize("root", ["", "/srv"], ids=["stripped", "kept"])
def test_root_path_may_be_in_the_paths_or_not(rooted: VLLM, root: str) -> None:
    token = rooted.mint(root=root)

    answer = rooted.ask(token, f"{root}{CHAT}")
    (model,) = rooted.http.get(f"{root}/v1/models", headers=bearer(token)).json()["data"]
    again = rooted.http.post(f"{root}/v1/chat/completions{CHAT}", headers=bearer(token), json=QUESTION)
    health = rooted.http.get(f"{root}/health")
    stranger = rooted.http.get(f"{root}/load")

    assert [answer.status_code, again.status_code, health.status_code, stranger.status_code] == [200, 200, 200, 401]
    assert model["url"] == f"{rooted.url}/srv{CHAT}"


@pytest.fixture(scope="module")
def rooted(environ: dict[str, str]) -> Iterator[VLLM]:
    with vllm(*MIDDLEWARE, "--root-path", "/srv", **environ) as server:
        yield server


@pytest.mark.parametrize("path", ["/srvx/v1/models", "/srv/srv/v1/models", "/srv/load", "/srv/metricsfoo"])
def test_root_path_opens_nothing(rooted: VLLM, path: str) -> None:
    assert rooted.http.get(path).status_code == 401


def test_vllms_own_key_is_put_in_for_whoever_was_let_through(environ: dict[str, str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sesame\n")
    environ = {**environ, "MAAS_INNER_API_KEY_FILE": str(key)}
    with vllm(*MIDDLEWARE, "--api-key", "sesame", **environ) as server:
        token = server.mint()

        answers = [
            server.ask(token),
            server.http.get("/v1/models", headers=bearer(token)),
            server.http.get("/load", headers=bearer(ADA)),
            server.http.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "/a"}, headers=bearer(ADA)),
        ]
        with_the_inner_key = server.ask("sesame")

    assert [answer.status_code for answer in answers] == [200, 200, 200, 200]
    assert with_the_inner_key.status_code == 401
    assert "sesame" not in "".join([server.printed, *(answer.text for answer in answers)])


def test_vllms_own_key_that_is_not_put_in_is_no_fault_of_the_user(environ: dict[str, str]) -> None:
    with vllm(*MIDDLEWARE, "--api-key", "sesame", **environ) as server:
        token = server.mint()

        answer = server.ask(token)
        listed = server.http.get("/v1/models", headers=bearer(token))

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert (listed.status_code, listed.json()["error"]["code"]) == (502, "upstream_error")


def test_every_answer_has_one_request_id_where_vllm_sets_it_too(environ: dict[str, str]) -> None:
    with vllm(*MIDDLEWARE, "--enable-request-id-headers", **environ) as server:
        headers = bearer(server.mint()) | {"x-request-id": "mine-1"}
        post, get = server.http.post, server.http.get

        answers = [
            post(CHAT, json=QUESTION, headers=headers),
            post(CHAT, json={**QUESTION, "stream": True}, headers=headers),
            post(CHAT, json={"model": "tiny"}, headers=headers),
            post(CHAT, json={**QUESTION, "model": "nope"}, headers=headers),
            post(CHAT, json=QUESTION, headers={"x-request-id": "mine-1"}),
            post("/v1/messages", json={**QUESTION, "max_tokens": 3}, headers=headers),
            get("/v1/models", headers=headers),
            get("/maas-api/v1/me", headers=headers),
            get("/load", headers=bearer(ADA) | {"x-request-id": "mine-1"}),
            get("/health", headers={"x-request-id": "mine-1"}),
            get("/nothing", headers=headers),
        ]

    assert [answer.status_code for answer in answers] == [200, 200, 400, 404, 401, 200, 200, 200, 200, 200, 404]
    assert [answer.headers.get_list("x-request-id") for answer in answers] == [["mine-1"]] * len(answers)


def test_usage_that_vllm_always_sends_is_charged_once_and_adds_no_event_without_a_choice(
    environ: dict[str, str],
) -> None:
    with vllm(*MIDDLEWARE, "--enable-force-include-usage", **environ) as server:
        token = server.mint()

        plain = chunks(server.ask(token, stream=True))
        used = server.used(token)
        asked = chunks(server.ask(token, stream=True, stream_options={"include_usage": True}))
        used_twice = server.used(token)

    assert all(chunk["choices"] and chunk["usage"] for chunk in plain)
    assert asked[-1]["choices"] == []
    total = asked[-1]["usage"]["total_tokens"]
    assert (used, used_twice) == ((1, total), (2, 2 * total))


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n")]
    assert events[-2:] == ["[DONE]", ""]
    return [json.loads(event) for event in events[:-2]]


def test_middleware_may_be_named_in_the_configuration_file(environ: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text("middleware: maas_middleware.MaaSMiddleware\nenable-request-id-headers: true\n")
    with vllm("--config", str(config), **environ) as server:
        answer = server.ask(server.mint())
        stranger = server.http.post(CHAT, json=QUESTION)

    assert (answer.status_code, stranger.status_code) == (200, 401)
    assert TWICE not in server.printed


def test_named_twice_it_works_once_and_warns_once(environ: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text("middleware: maas_middleware.MaaSMiddleware\n")
    with vllm("--config", str(config), *MIDDLEWARE, **environ) as server:
        token = server.mint()

        total = server.ask(token).json()["usage"]["total_tokens"]
        stream = server.ask(token, stream=True)
        revoked = server.http.delete("/maas-api/v1/tokens", headers=bearer(FAY))
        refused = server.ask(token)
        fresh = server.mint()
        used = server.used(fresh)

    assert stream.text.endswith("data: [DONE]\n\n")
    assert (revoked.status_code, refused.status_code) == (204, 401)
    assert used[0] == 2
    assert total < used[1] <= 3 * total
    assert server.printed.count(TWICE) == 1


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_refused_configuration_ends_the_start_with_its_sentences(count: str) -> None:
    bad = {"MAAS_COUNTERS": "etcd://:secret@localhost", "MAAS_TOKENS_MINIMUM_EXPIRATION": "soon"}

    code, printed = refused_start("tiny", *MIDDLEWARE, "--api-server-count", count, **bad)

    assert code != 0
    assert "MAAS_COUNTERS: etcd://... is not like" in printed
    assert "MAAS_TOKENS_MINIMUM_EXPIRATION: " in printed
    assert "secret" not in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        pytest.param("maas_middleware.gateway", "Invalid middleware maas_middleware.gateway", id="function"),
        pytest.param("maas_middleware:MaaSMiddleware", "not enough values to unpack", id="colon"),
        pytest.param("maas_middleware.MaaSMiddlewares", "has no attribute", id="misspelt"),
    ],
)
def test_whatever_is_not_the_class_does_not_start(named: str, sentence: str) -> None:
    code, printed = refused_start("tiny", "--middleware", named)

    assert code != 0
    assert sentence in printed


def test_api_servers_count_for_themselves_in_memory_and_say_so(environ: dict[str, str], tmp_path: Path) -> None:
    environ = {**environ, "MAAS_STORE": f"sqlite:///{tmp_path}/maas.db"}
    with vllm(*MIDDLEWARE, "--api-server-count", "2", **environ) as server, ExitStack() as stack:
        first, second = both(server, stack)
        token = server.mint()

        answers = [server.ask(token, http=http) for http in (first, second, second)]

    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["999", "999", "998"]
    assert server.printed.count("by this process alone") == 2


def test_api_servers_share_one_limit_in_redis(environ: dict[str, str], tmp_path: Path) -> None:
    with running_redis() as redis, ExitStack() as stack:
        environ = {**environ, "MAAS_COUNTERS": f"{redis.url}/0", "MAAS_STORE": f"sqlite:///{tmp_path}/maas.db"}
        server = stack.enter_context(vllm(*MIDDLEWARE, "--api-server-count", "2", **environ))
        first, second = both(server, stack)
        token = server.mint()

        answers = [server.ask(token, http=http) for http in (first, second, second)]

    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["999", "998", "997"]
    assert "by this process alone" not in server.printed


def test_api_servers_know_at_once_or_in_a_second_what_the_other_revoked(
    environ: dict[str, str], tmp_path: Path
) -> None:
    environ = {**environ, "MAAS_STORE": f"sqlite:///{tmp_path}/maas.db"}
    with vllm(*MIDDLEWARE, "--api-server-count", "2", **environ) as server, ExitStack() as stack:
        first, second = both(server, stack)
        token = server.mint()
        before = [server.ask(token, http=http).status_code for http in (first, second)]

        first.delete("/maas-api/v1/tokens", headers=bearer(FAY))

        at_once = first.get("/v1/models", headers=bearer(token)).status_code
        while second.get("/v1/models", headers=bearer(token)).status_code == 200:
            pass  # how long it may take is told in tests/test_fleet.py
    assert (before, at_once) == ([200, 200], 401)


def both(server: VLLM, stack: ExitStack) -> list[httpx.Client]:
    """A client of each of two API servers: one keeps its connection."""
    found: dict[int, httpx.Client] = {}
    while len(found) < 2:
        http = stack.enter_context(httpx.Client(base_url=server.url, timeout=10, trust_env=False))
        found.setdefault(server.metrics(http)["process_id"], http)
    return list(found.values())
