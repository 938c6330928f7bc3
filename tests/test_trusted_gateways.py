"""A gateway before an app that has the middleware in it: the app believes what the gateway says, and nobody else."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.authentication import requires
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware import (
    Catalogue,
    ConfigurationError,
    ErrorEnvelopeMiddleware,
    IdentityMiddleware,
    MaaSMiddleware,
    Model,
    ProxyApp,
    TierMiddleware,
    gateway,
    load_settings,
    stack,
)
from maas_middleware._asserting import asserted_inference, signers_of
from maas_middleware.assertions import AssertionKeys
from maas_middleware.context import ensure_context
from maas_middleware.identity import AssertedIdentity, Identity
from maas_middleware.providers.signed import AssertionSigner, SignedProvider
from maas_middleware.providers.watching import WatchedAssertionKeys
from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.cluster import StandInCluster
from maas_middleware.testing.converse import converse
from maas_middleware.testing.model import SimulatedModel

from .deployments import UNTHROTTLED, USERS, bearer, chat
from .parts import ALICE, AS_ALICE, FREE, PROVIDER, RESOLVER, knock
from .raw_upstream import Connection, answer, raw_upstream
from .servers import serving

OLD, NEW, FOREIGN = "o" * 44, "n" * 44, "f" * 44
HEADER = "x-maas-assertion"
FREE_USER, PREMIUM_USER = "sha256~free", "sha256~premium"
QUESTION = {"model": "granite", "prompt": "Hello"}
ROOMY = {"requests": "unlimited", "tokens": "unlimited"}
UNLIMITED = [
    {"name": "free", "groups": ["system:authenticated"], "limits": ROOMY},
    {"name": "premium", "level": 1, "groups": ["premium-group"], "limits": ROOMY},
]
CONTROL = [
    ("POST", "/v1/tokens"),
    ("DELETE", "/v1/tokens"),
    ("GET", "/v1/api-keys"),
    ("GET", "/v1/models"),
    ("GET", "/v1/me"),
    ("GET", "/v1/usage"),
    ("POST", "/v1/tiers/lookup"),
    ("GET", "/v1/admin/users?user=fay"),
    ("GET", "/granite/v1/models"),
    ("POST", "/v1/load_lora_adapter"),
    ("GET", "/unknown"),
]


@dataclass
class HostApp:
    """An inference app with a route of its own, which tells whom it sees; all else answers a simulated model."""

    model: SimulatedModel = field(default_factory=lambda: SimulatedModel("granite"))
    scopes: list[Scope] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/completions")
        @requires("authenticated")
        async def complete(request: Request) -> dict[str, Any]:
            identity = request.state.maas.identity
            seen = {"user": request.user.display_name, "key": identity.key, "groups": identity.groups}
            if isinstance(identity, AssertedIdentity):
                seen |= {"tier": identity.tier, "audience": identity.audience, "request_id": identity.request_id}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            return {"choices": [], "usage": usage, "model": (await request.json())["model"], "seen": seen}

        app.mount("/", self._noted)
        return app

    async def _noted(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        await self.model(scope, receive, send)


@dataclass
class Site:
    """A gateway, and the app behind it, each with keys of its own.

    Attributes:
        edge, app: HTTP clients of either.
        far_keys: what the app has; `near_keys`: what the gateway has.
    """

    edge: httpx.AsyncClient
    app: httpx.AsyncClient
    host: HostApp
    near_keys: Path
    far_keys: Path

    async def mint(self, login: str = FREE_USER, *, directly: bool = False) -> dict[str, str]:
        client = self.app if directly else self.edge
        minted = await client.post("/maas-api/v1/tokens", headers=bearer(login))
        assert minted.status_code == 201, minted.text
        return bearer(minted.json()["token"])

    async def ask(self, login: str = FREE_USER, **more: Any) -> httpx.Response:
        return await self.edge.post("/v1/completions", json=QUESTION, headers=await self.mint(login), **more)

    def asserted(self, key: str = OLD, audience: str = "granite", age: float = 0) -> dict[str, str]:
        """The header of whoever has that key."""
        signer = AssertionSigner(keys=AssertionKeys((key.encode(),)), clock=lambda: time.time() - age)
        return {HEADER: signer.sign(ALICE, tier="premium", audience=audience, request_id="r").decode()}


def put(path: Path, *secrets: str) -> Path:
    new = path.with_name("new")
    new.write_text("\n".join(["# shared with the app behind", *secrets, ""]))
    new.chmod(0o640)
    return new.replace(path)


@asynccontextmanager
async def site_of(
    folder: Path,
    *,
    model: dict[str, Any] | None = None,
    mount: dict[str, Any] | None = None,
    near: tuple[str, ...] = (OLD,),
    far: tuple[str, ...] = (OLD,),
    trusts: bool = True,
    tiers: object = None,
) -> AsyncIterator[Site]:
    """Start everything. The app gives direct users one request a minute.

    Args:
        model: settings of the model at the gateway.
        mount: settings of the app.
        tiers: those of the gateway.
    """
    host, near_keys, far_keys = HostApp(), put(folder / "near", *near), put(folder / "far", *far)
    tier = {
        "name": "direct",
        "groups": ["system:authenticated"],
        "limits": {"requests": "1/minute", "tokens": "9/minute"},
    }
    trusted = {"trusted_gateways": {"keys_file": str(far_keys)}} if trusts else {}
    async with AsyncExitStack() as servers:
        cluster = await servers.enter_async_context(serving(StandInCluster(USERS)))
        common: dict[str, Any] = {"openshift": {"api_url": cluster}, "throttles": UNTHROTTLED}
        inner: dict[str, Any] = {"models": [{"id": "granite", "tiers": ["direct"]}], "tiers": [tier], **trusted}
        app = host.app()
        app.add_middleware(MaaSMiddleware, settings=load_settings({}, **common, **{**inner, **(mount or {})}))
        app_url = await servers.enter_async_context(serving(app, lifespan="on"))
        behind = {"id": "granite", "tiers": "all", "upstreams": [app_url], "assertion_keys_file": str(near_keys)}
        edge = gateway(load_settings({}, **common, tiers=tiers, models=[{**behind, **(model or {})}]))
        edge_url = await servers.enter_async_context(serving(edge, lifespan="on"))
        near_client, far_client = [
            await servers.enter_async_context(httpx.AsyncClient(base_url=url, timeout=10, trust_env=False))
            for url in (edge_url, app_url)
        ]
        yield Site(near_client, far_client, host, near_keys, far_keys)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with site_of(tmp_path_factory.mktemp("site"), tiers=UNLIMITED) as site:
        yield site


@pytest.fixture
def site(shared: Site) -> Site:
    """One for all tests that leave nothing behind: limits are not in their way."""
    shared.host.model.gate = shared.host.model.failure = None
    shared.host.model.requests.clear()
    shared.host.scopes.clear()
    return shared


def refused(answered: httpx.Response) -> tuple[int, str]:
    return answered.status_code, answered.json()["error"]["code"]


# who is there


async def test_app_sees_the_person_the_tier_and_the_id_of_the_request(site: Site) -> None:
    plain = await site.ask(PREMIUM_USER)
    named = await site.edge.post(
        "/granite/v1/completions", json={"prompt": "Hello"}, headers={**await site.mint(), "x-request-id": "mine-1"}
    )

    assert (plain.status_code, named.status_code) == (200, 200)
    assert plain.json()["seen"] == {
        "user": "pat",
        "key": "openshift/pat",
        "groups": ["premium-group", "system:authenticated:oauth", "system:authenticated"],
        "tier": "premium",
        "audience": "granite",
        "request_id": plain.headers["x-request-id"],
    }
    assert named.headers["x-request-id"] == named.json()["seen"]["request_id"] == "mine-1"
    assert named.json()["seen"]["tier"] == "free"


async def test_request_counts_once_at_the_gateway(tmp_path: Path) -> None:
    async with site_of(tmp_path) as site:
        token = await site.mint()
        answers = [await site.edge.post("/v1/completions", json=QUESTION, headers=token) for _ in range(6)]
        directly = await site.mint(directly=True)
        own = (await site.app.get("/v1/usage", headers=directly)).json()
        left = (await site.app.head("/v1/completions", headers=directly)).headers
        used = (await site.edge.get("/v1/usage", headers=token)).json()

    assert [one.status_code for one in answers] == [200] * 5 + [429]
    assert [one.headers["x-ratelimit-remaining-requests"] for one in answers] == ["4", "3", "2", "1", "0", "0"]
    assert [one.headers.get("x-odhu-usage-total-tokens") for one in answers] == ["2"] * 5 + [None]
    assert (used["total"]["requests"], own["total"]["requests"]) == (5, 0)
    assert (left["x-ratelimit-remaining-requests"], left["x-ratelimit-remaining-tokens"]) == ("1", "9")


async def test_direct_user_is_served_and_limited_beside_the_gateway(tmp_path: Path) -> None:
    async with site_of(tmp_path) as site:
        token = await site.mint(directly=True)
        first, second = [await site.app.post("/v1/completions", json=QUESTION, headers=token) for _ in range(2)]
        behind = await site.ask()

    assert (first.status_code, first.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    assert "tier" not in first.json()["seen"]
    assert refused(second) == (429, "rate_limit_exceeded")
    assert behind.status_code == 200


async def test_tokens_of_the_gateway_are_none_of_the_app(site: Site) -> None:
    token = await site.mint()

    assert (await site.app.post("/v1/completions", json=QUESTION, headers=token)).status_code == 401


async def test_stream_passes_event_by_event_and_tells_its_usage(site: Site) -> None:
    site.host.model.gate = anyio.Event()
    question = chat("granite", stream=True, stream_options={"include_usage": True})
    events = []

    async with site.edge.stream("POST", "/v1/chat/completions", json=question, headers=await site.mint()) as stream:
        async for line in stream.aiter_lines():
            if line:
                site.host.model.gate.set()  # not before something has come
                events.append(line.removeprefix("data: "))

    assert stream.status_code == 200
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["total_tokens"] > 0


async def test_client_that_leaves_the_gateway_ends_the_answer_in_the_app(site: Site) -> None:
    site.host.model.gate = anyio.Event()
    question, token = chat("granite", stream=True), await site.mint()

    async with site.edge.stream("POST", "/v1/chat/completions", json=question, headers=token) as stream:
        await anext(stream.aiter_raw())
    (seen,) = site.host.model.requests
    with anyio.fail_after(5):
        await seen.done.wait()

    assert seen.outcome == "cancelled"


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/granite/v1/audio/transcriptions"])
async def test_forms_reach_the_app(site: Site, path: str) -> None:
    file, fields = {"file": ("a.wav", b"\0" * 100)}, {"model": "granite"}

    answered = await site.edge.post(path, headers=await site.mint(PREMIUM_USER), files=file, data=fields)

    assert answered.status_code == 200, answered.text
    assert answered.headers["x-odhu-usage-total-tokens"] > "0"


async def test_octets_reach_the_app_though_they_name_no_model(site: Site) -> None:
    site.host.model.failure = transcribe
    headers = {**await site.mint(PREMIUM_USER), "content-type": "application/octet-stream"}

    answered = await site.edge.post("/granite/v1/audio/transcriptions", headers=headers, content=b"\0" * 100)

    assert answered.status_code == 200, answered.text
    assert site.host.model.requests[-1].body == b"\0" * 100


async def transcribe(scope: Scope, receive: Receive, send: Send) -> None:
    body = b'{"text": "", "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}}'
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


async def test_error_of_the_app_keeps_its_message(site: Site) -> None:
    answered = await site.edge.post(
        "/v1/chat/completions", json={**chat("granite"), "messages": "x"}, headers=await site.mint()
    )

    assert answered.status_code == 400
    assert "messages" in answered.json()["error"]["message"]


async def test_gateway_has_judged_what_tiers_may_do(tmp_path: Path) -> None:
    """The app has no such tier, and would let nobody use the model."""
    async with site_of(tmp_path, mount={"models": [{"id": "granite"}]}) as site:
        answered = await site.ask(PREMIUM_USER)
        directly = await site.app.post("/v1/completions", json=QUESTION, headers=await site.mint(directly=True))

    assert answered.json()["seen"]["tier"] == "premium"
    assert refused(directly) == (403, "access_denied")


async def test_each_side_may_have_a_name_of_its_own_for_the_model(tmp_path: Path) -> None:
    here = {"id": "granite", "upstream_model": "ibm/granite"}
    there = {"id": "ibm/granite", "upstream_model": "/models/granite", "path": "/g"}
    async with site_of(tmp_path, model=here, mount={"models": [there]}) as site:
        answered = await site.ask()
        site.host.model.model = "/models/granite"  # it quotes that, too
        streamed = await site.edge.post(
            "/v1/chat/completions", json=chat("granite", stream=True), headers=await site.mint()
        )

    assert answered.json()["seen"]["audience"] == "ibm/granite"
    assert answered.json()["model"] == "granite"
    assert json.loads(streamed.text.splitlines()[0].removeprefix("data: "))["model"] == "granite"
    assert '"/models/granite"' not in streamed.text


async def test_app_that_knows_its_models_itself_names_its_audiences(tmp_path: Path) -> None:
    keys = tmp_path / "far"
    mount = {"models": None, "trusted_gateways": {"keys_file": str(keys), "audiences": ["granite"]}}
    async with site_of(tmp_path, mount=mount) as site:
        answered = await site.ask()
        other = await site.app.post("/v1/completions", json=QUESTION, headers=site.asserted(audience="qwen3"))
        body = await site.app.post("/v1/completions", json={**QUESTION, "model": "lora"}, headers=site.asserted())

    assert answered.json()["seen"]["audience"] == "granite"
    assert refused(other) == (401, "invalid_api_key")
    assert refused(body) == (404, "model_not_found")


async def test_inner_key_of_the_app_replaces_the_gateways_credential(tmp_path: Path) -> None:
    inner, upstream = tmp_path / "inner", tmp_path / "upstream"
    inner.write_text("inner-secret")
    upstream.write_text("what-the-gateway-sends")
    async with site_of(
        tmp_path, model={"api_key_file": str(upstream)}, mount={"inner_api_key_file": str(inner)}
    ) as site:
        answered = await site.edge.post("/v1/chat/completions", json=chat("granite"), headers=await site.mint())

    ((_, headers),) = [(one.path, one.headers) for one in site.host.model.requests]
    assert answered.status_code == 200
    assert [value for name, value in headers if name == b"authorization"] == [b"Bearer inner-secret"]
    assert HEADER.encode() not in dict(headers)


# who is refused


@pytest.mark.parametrize(
    ("options", "status"),
    [
        pytest.param({"near": (FOREIGN,)}, 401, id="key-that-the-app-does-not-have"),
        pytest.param({"near": (FOREIGN, OLD)}, 401, id="only-the-second-key-is-shared"),
        pytest.param({"model": {"upstream_model": "qwen3"}}, 401, id="made-for-another-model"),
        pytest.param({"model": {"assertion_keys_file": None}}, 401, id="gateway-that-says-nothing"),
        pytest.param({"trusts": False}, 401, id="app-that-trusts-nobody"),
    ],
)
async def test_gateway_that_is_not_believed_answers_502_and_the_app_sees_nothing(
    tmp_path: Path, options: dict[str, Any], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with site_of(tmp_path, **options) as site:
        answered = await site.edge.post("/v1/chat/completions", json=chat("granite"), headers=await site.mint())

    assert refused(answered) == (502, "upstream_error")
    assert site.host.scopes == []
    assert f"the upstream of model granite answered {status}" in caplog.messages
    assert not any(secret in caplog.text + answered.text for secret in (OLD, FOREIGN, site.near_keys.name, "eyJ"))


async def test_gateway_whose_clock_is_wrong_is_not_believed(site: Site) -> None:
    now = FakeClock(time.time() - 40)
    signer = AssertionSigner(keys=AssertionKeys((OLD.encode(),)), clock=now)
    model = Model("signed", upstreams=[str(site.app.base_url)], upstream_model="granite")
    async with httpx.AsyncHTTPTransport() as transport:
        app = small_gateway(transport, signer, model)

        late = await converse(app, "POST", "/v1/chat/completions", json=chat("signed"), headers=[AS_ALICE])
        seen = len(site.host.scopes)
        now.advance(10)
        later = await converse(app, "POST", "/v1/chat/completions", json=chat("signed"), headers=[AS_ALICE])

    assert (late.status, late.json()["error"]["code"], seen) == (502, "upstream_error", 0)
    assert later.status == 200


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        pytest.param({"key": FOREIGN}, "unknown", id="foreign-key"),
        pytest.param({"audience": "qwen3"}, "unknown", id="made-for-another-app"),
        pytest.param({"age": 40}, "expired", id="expired"),
        pytest.param({"age": -40}, "malformed", id="from-the-future"),
    ],
)
async def test_assertion_that_is_stolen_guessed_or_old_opens_nothing(
    site: Site, headers: dict[str, Any], reason: str
) -> None:
    answered = await site.app.post("/v1/chat/completions", json=chat("granite"), headers=site.asserted(**headers))

    assert refused(answered) == (401, "invalid_api_key")
    assert answered.json()["error"]["details"] == {"reason": reason}
    assert site.host.scopes == []


async def test_bad_assertion_is_not_made_up_for_by_a_token(site: Site) -> None:
    token = await site.mint(directly=True)

    bad = await site.app.post("/v1/completions", json=QUESTION, headers={**token, HEADER: "x"})
    twice = await site.app.post(
        "/v1/completions", json=QUESTION, headers=[*token.items(), *list(site.asserted().items()) * 2]
    )
    free = await site.app.post("/v1/completions", json=QUESTION, headers=token)

    assert refused(bad) == (401, "invalid_api_key")
    assert refused(twice) == (400, "repeated_header")
    assert free.status_code == 200


@pytest.mark.parametrize(("method", "path"), CONTROL)
async def test_control_routes_accept_no_assertion(site: Site, method: str, path: str) -> None:
    for prefix in ("", "/maas-api"):
        answered = await site.app.request(method, prefix + path, headers=site.asserted(), json={})

        assert refused(answered) == (401, "invalid_api_key"), prefix


async def test_assertion_for_one_model_is_none_for_another_of_the_same_app(tmp_path: Path) -> None:
    models = [{"id": "granite"}, {"id": "qwen3"}]
    async with site_of(tmp_path, mount={"models": models}) as site:
        headers = site.asserted(audience="qwen3")
        body = await site.app.post("/v1/chat/completions", json=chat("granite"), headers=headers)
        path = await site.app.post("/granite/v1/chat/completions", json=chat("granite"), headers=headers)
        nameless = await site.app.post("/granite/v1/completions", json={"prompt": "x"}, headers=headers)
        own = await site.app.post("/qwen3/v1/completions", json={"prompt": "x"}, headers=headers)

    assert [refused(one) for one in (body, path, nameless)] == [
        (404, "model_not_found"),
        (403, "access_denied"),
        (403, "access_denied"),
    ]
    assert own.json()["seen"]["audience"] == "qwen3"
    assert site.host.scopes == []


async def test_websocket_is_refused_with_an_assertion_too(tmp_path: Path) -> None:
    reached: list[Scope] = []

    async def host(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope)

    settings = load_settings(
        {}, models=[{"id": "granite"}], trusted_gateways={"keys_file": str(put(tmp_path / "keys", OLD))}
    )
    app = asserted_inference(settings, Catalogue([Model("granite")]), host, inner_key=None)
    assert app is not None
    value = AssertionSigner(keys=AssertionKeys((OLD.encode(),))).sign(
        ALICE, tier="free", audience="granite", request_id="r"
    )

    messages = await knock(app, headers=[(HEADER, value.decode())])

    assert messages[0]["type"] == "websocket.http.response.start"
    assert messages[0]["status"] == 404
    assert reached == []


# what the gateway sends


async def echo(connection: Connection) -> None:
    """Answer each request with the assertions that it carries."""
    while True:
        request = await connection.read_request()
        values = [value.decode() for name, value in request.headers if name == HEADER.encode()]
        await connection.send(
            answer("200 OK", json.dumps({"assertions": values}).encode(), b"Content-Type: application/json")
        )


class Numbered:
    """A `Signer` whose assertions are numbers."""

    def __init__(self) -> None:
        self.said: list[tuple[Identity, str, str, str]] = []

    def sign(self, identity: Identity, /, *, tier: str, audience: str, request_id: str) -> bytes:
        self.said.append((identity, tier, audience, request_id))
        return b"%d" % len(self.said)


def small_gateway(transport: httpx.AsyncBaseTransport, signer: Any, *models: Model) -> ASGIApp:
    return stack(
        ProxyApp(transport=transport, signers={"signed": signer}),
        Middleware(ErrorEnvelopeMiddleware),
        Middleware(IdentityMiddleware, provider=PROVIDER),
        Middleware(TierMiddleware, resolver=RESOLVER, catalogue=Catalogue(models)),
    )


@pytest.mark.parametrize("connection", ["keep-alive", "x-maas-assertion", "close, X-MaaS-Assertion"])
async def test_only_the_app_behind_its_model_is_told_and_never_by_the_client(connection: str) -> None:
    signer = Numbered()
    headers = [AS_ALICE, ("X-MaaS-Assertion", "forged"), ("connection", connection), ("x-request-id", "mine")]
    async with raw_upstream(echo) as upstream, httpx.AsyncHTTPTransport() as transport:
        models = [Model(name, upstreams=[upstream.url], upstream_model=f"{name}-there") for name in ("signed", "other")]
        app = small_gateway(transport, signer, *models)

        told, other = [
            (await converse(app, "POST", "/v1/completions", json={"model": one.id}, headers=headers)).json()
            for one in models
        ]

    assert (told, other) == ({"assertions": ["1"]}, {"assertions": []})
    assert signer.said == [(ALICE, FREE.name, "signed-there", "mine")]


async def test_proxy_alone_forwards_no_assertion_of_a_client() -> None:
    async with raw_upstream(echo) as upstream, httpx.AsyncHTTPTransport() as transport:
        model, proxy = Model("other", upstreams=[upstream.url]), ProxyApp(transport=transport)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            ensure_context(scope).model = model
            await proxy(scope, receive, send)

        headers = [("content-length", "2"), ("X-MaaS-Assertion", "forged")]
        told = await converse(app, "POST", "/v1/completions", json={}, headers=headers)

    assert told.json() == {"assertions": []}


async def test_each_attempt_carries_a_fresh_assertion() -> None:
    signer = Numbered()
    seen: list[bytes] = []

    async def busy(connection: Connection) -> None:
        request = await connection.read_request()
        seen.extend(value for name, value in request.headers if name == HEADER.encode())
        await connection.send(answer("503 Service Unavailable", b"{}", b"Content-Type: application/json"))

    async with raw_upstream(busy) as one, raw_upstream(busy) as two, httpx.AsyncHTTPTransport() as transport:
        app = small_gateway(transport, signer, Model("signed", upstreams=[one.url, two.url]))

        answered = await converse(app, "POST", "/v1/completions", json={"model": "signed"}, headers=[AS_ALICE])

    assert answered.status == 503
    assert seen == [b"1", b"2"]


async def test_proxy_that_is_to_sign_says_what_it_lacks() -> None:
    async with httpx.AsyncHTTPTransport() as transport:
        app = stack(
            ProxyApp(transport=transport, signers={"signed": Numbered()}),
            Middleware(IdentityMiddleware, provider=PROVIDER),
            Middleware(
                TierMiddleware,
                resolver=RESOLVER,
                catalogue=Catalogue([Model("signed", upstreams=["http://127.0.0.1:9"])]),
            ),
        )

        told = await converse(app, "POST", "/v1/completions", json={"model": "signed"}, headers=[AS_ALICE])

    assert str(told.exception) == ("ProxyApp needs to know the request id: wrap it in ErrorEnvelopeMiddleware")


# keys that change


STEPS = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]


@pytest.mark.parametrize("first", ["near", "far"])
async def test_rotation_refuses_nothing_whoever_reads_the_file_first(tmp_path: Path, first: str) -> None:
    """Append the new key, let it sign, drop the old one: each side may be late by a step."""
    clock = FakeClock()
    files = {side: put(tmp_path / side, *STEPS[0]) for side in ("near", "far")}
    near, far = [WatchedAssertionKeys(files[side], clock=clock) for side in ("near", "far")]
    signer = AssertionSigner(keys=near.current, clock=clock)
    provider = SignedProvider(keys=far.current, audiences=["m"], clock=clock)

    async def is_accepted() -> bool:
        assertion = signer.sign(ALICE, tier="t", audience="m", request_id="r")
        scope = {"type": "http", "headers": [(HEADER.encode(), assertion)]}
        return await provider.identify(scope) is not None

    for keys in STEPS[1:]:
        for side in (first, "far" if first == "near" else "near"):
            put(files[side], *keys)
            clock.advance(1)
            assert await is_accepted(), (keys, side)

    assert near.current().secrets == far.current().secrets == (NEW.encode(),)


async def test_keys_are_exchanged_while_requests_run_and_without_a_restart(tmp_path: Path) -> None:
    async with site_of(tmp_path, tiers=UNLIMITED) as site:
        token, dropped = await site.mint(), site.asserted(OLD)

        async def asked() -> int:
            return (await site.edge.post("/v1/completions", json=QUESTION, headers=token)).status_code

        async def accepts(key: str) -> bool:
            return (await site.app.post("/v1/completions", json=QUESTION, headers=site.asserted(key))).is_success

        put(site.far_keys, OLD, NEW)
        with anyio.fail_after(5):
            while not await accepts(NEW):
                assert await asked() == 200
        put(site.near_keys, NEW)
        put(site.far_keys, NEW, OLD)
        before = time.monotonic()
        while time.monotonic() < before + 1.1:  # either has looked at its file by then
            assert await asked() == 200
        put(site.far_keys, NEW)
        with anyio.fail_after(5):
            while await accepts(OLD):
                assert await asked() == 200

        assert await asked() == 200
        assert refused(await site.app.post("/v1/completions", json=QUESTION, headers=dropped)) == (
            401,
            "invalid_api_key",
        )


async def test_bad_change_of_the_keys_is_refused_and_the_app_serves_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site_of(tmp_path) as site:
        put(site.far_keys, "short")
        with anyio.fail_after(5):
            while not any("changed assertion keys are refused" in line for line in caplog.messages):
                answered = await site.app.post("/v1/completions", json=QUESTION, headers=site.asserted())
                assert answered.status_code == 200
        served = await site.ask()

    assert served.status_code == 200
    assert "short" not in caplog.text


async def test_keys_that_are_gone_when_the_service_is_made_are_a_problem_with_its_place(tmp_path: Path) -> None:
    keys = put(tmp_path / "keys", OLD)
    models = [{"id": "m", "assertion_keys_file": str(keys)}]
    settings = load_settings({}, models=models, trusted_gateways={"keys_file": str(keys)})

    keys.unlink()
    with pytest.raises(ConfigurationError) as gone_behind:
        asserted_inference(settings, Catalogue([]), HostApp().app(), inner_key=None)
    put(keys, "short")
    with pytest.raises(ConfigurationError) as short_before:
        signers_of(settings)

    assert str(gone_behind.value) == f"trusted_gateways.keys_file: {keys} cannot be read: No such file or directory"
    assert str(short_before.value) == (
        f"models[0].assertion_keys_file: {keys} holds a key of less than 32 bytes: the 1. one"
    )
