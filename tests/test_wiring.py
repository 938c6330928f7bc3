"""Every setting reaches the part that it is for: services whose settings all differ from the defaults, over sockets."""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trustme
from starlette.types import ASGIApp

from maas_middleware import MaaSMiddleware, gateway, load_settings
from maas_middleware.identity import Identity
from maas_middleware.providers.jwt import JWTMinter
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.testing.cluster import API_AUDIENCE, ClusterUser, StandInCluster
from maas_middleware.testing.model import SimulatedModel

from .deployments import UNTHROTTLED, USERS, bearer, chat
from .hostile.scripts import said
from .parts import Answering, json_answer
from .raw_upstream import chunk, chunked_head, raw_upstream
from .servers import serving

TLS = ssl.create_default_context()  # takes longer to make than most tests take
CHAT = "/v1/chat/completions"
MIB = 1 << 20
ROBOT = "sha256~robot"
MANY_GROUPS = tuple(f"group-{number:04}" for number in range(500))  # 6 KiB
LOGINS = {
    **USERS,
    ROBOT: ClusterUser("system:serviceaccount:ns:robot"),
    "sha256~many": ClusterUser("mia", (*MANY_GROUPS, "premium-group")),
}


@dataclass
class Service:
    """A client of a service, without credentials, and the cluster that it asks."""

    http: httpx.AsyncClient
    cluster: StandInCluster

    async def mint(self, login: str = "sha256~free", **body: object) -> httpx.Response:
        return await self.http.post("/v1/tokens", headers=bearer(login), json=body)

    async def token(self, login: str = "sha256~free") -> str:
        answer = await self.mint(login)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    async def chat(self, model: str) -> httpx.Response:
        return await self.http.post(CHAT, json=chat(model), headers=bearer(await self.token("sha256~premium")))


@dataclass
class Mounted(Service):
    """The same where the service is in front of an app."""

    host: Answering


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def keys(directory: Path) -> SigningKeys:
    """Those that both gateways sign with."""
    (keys := SigningKeys.generate()).save(directory / "keys.json")
    return keys


@asynccontextmanager
async def client_of(app: ASGIApp, lifespan: str = "on") -> AsyncIterator[httpx.AsyncClient]:
    async with serving(app, lifespan=lifespan) as url, httpx.AsyncClient(base_url=url, verify=TLS, timeout=10) as http:
        yield http


@pytest.fixture(scope="module")
async def tuned(directory: Path, keys: SigningKeys) -> AsyncIterator[Service]:
    """A gateway to a cluster with an authority and audiences of its own; limits and lifetimes are above the default."""
    (authority := trustme.CA()).issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        directory / "server.pem"
    )
    authority.cert_pem.write_to_path(directory / "ca.crt")
    (directory / "token").write_text("our-own")
    cluster = StandInCluster(LOGINS, reviewer_token="our-own")
    async with (
        serving(cluster, ssl_certfile=str(directory / "server.pem")) as cluster_url,
        serving(SimulatedModel("m")) as model_url,
    ):
        settings = load_settings(
            {},
            public_url="https://maas.test/llm",
            openshift={
                "api_url": cluster_url,
                "ca_file": str(directory / "ca.crt"),
                "token_file": str(directory / "token"),
                "audiences": ["maas-api"],
                "allow_service_accounts": True,
            },
            tokens={
                "issuer": "https://issuer.test",
                "audience": "crew",
                "signing_keys_file": str(directory / "keys.json"),
                "default_expiration": "20m",
                "minimum_expiration": "1m",
                "maximum_expiration": "48h",
            },
            api_keys={"default_expiration": "1h", "maximum_expiration": "2h", "maximum_count": 2},
            throttles=UNTHROTTLED,
            models=[{"id": "m", "tiers": "all", "upstreams": [model_url]}],
            ietf_rate_limit_headers=True,
        )
        async with client_of(gateway(settings)) as http:
            yield Service(http, cluster)


@pytest.fixture(scope="module")
async def plain(directory: Path, keys: SigningKeys) -> AsyncIterator[Service]:
    """A strict gateway whose cluster shows logins only themselves; waits and lifetimes are below the default.

    Its models are `m`, `closed`, which accepts no connection, `silent`, and `stalling`, which begins an answer.
    """
    cluster = StandInCluster(LOGINS)
    stalls = said(chunked_head("text/event-stream"), chunk(b'data: {"choices": []}\n\n'), then_hang=True)
    async with AsyncExitStack() as opened:
        servers = {
            "m": await opened.enter_async_context(serving(SimulatedModel("m"))),
            "closed": opened.enter_context(_unaccepting()),
            "silent": (await opened.enter_async_context(raw_upstream(said(then_hang=True)))).url,
            "stalling": (await opened.enter_async_context(raw_upstream(stalls))).url,
        }
        settings = load_settings(
            {},
            openshift={
                "api_url": await opened.enter_async_context(serving(cluster)),
                "review": "users-self",
                "timeout": 1,
            },
            tokens={"signing_keys_file": str(directory / "keys.json"), "maximum_expiration": "4h"},
            api_keys={"default_expiration": "4h", "maximum_expiration": "5h"},
            throttles=UNTHROTTLED,
            proxy={"connect_timeout": 0.3, "first_byte_timeout": 0.5, "idle_timeout": 0.4, "body_timeout": 0.2},
            models=[{"id": name, "tiers": "all", "upstreams": [url]} for name, url in servers.items()],
            trusted_proxies=["127.0.0.1"],
            admission="strict",
        )
        yield Service(await opened.enter_async_context(client_of(gateway(settings))), cluster)


@contextmanager
def _unaccepting() -> Iterator[str]:
    """The URL of a server whose queue of connections is full."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        socket.socket() as first,
        socket.socket() as second,
    ):
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
async def mounted(directory: Path) -> AsyncIterator[Mounted]:
    """The middleware round a host with a key of its own, to which models and bodies above the default are left."""
    (file := directory / "key").write_text("inner-secret\n")
    host = Answering(*json_answer(b'{"data": [], "choices": [], "usage": {"total_tokens": 1}}'))
    cluster = StandInCluster(LOGINS)
    async with serving(cluster) as cluster_url:
        settings = load_settings(
            {},
            openshift={"api_url": cluster_url},
            inner_api_key_file=str(file),
            proxy={"max_body_bytes": 34 * MIB},
        )
        async with client_of(MaaSMiddleware(host, settings=settings), lifespan="off") as http:
            yield Mounted(http, cluster, host)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def encoded(claims: Mapping[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()


def claims_of(token: str) -> Any:
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


async def test_login_that_was_made_for_another_audience_is_refused(tuned: Service) -> None:
    ours, others = (f"{encoded({'alg': 'none'})}.{encoded({'aud': [name]})}.x" for name in ("maas-api", API_AUDIENCE))
    tuned.cluster.users |= {login: ClusterUser("una") for login in (ours, others)}

    accepted, refused = await tuned.mint(ours), await tuned.mint(others)

    assert accepted.status_code == 201
    assert code_of(refused) == (401, "invalid_api_key")
    assert [review.audiences for review in tuned.cluster.reviews if review.token == others] == [("maas-api",)]


async def test_service_accounts_mint_only_where_they_are_allowed_to(tuned: Service, mounted: Mounted) -> None:
    allowed, refused = await tuned.mint(ROBOT), await mounted.mint(ROBOT)

    assert allowed.status_code == 201
    assert code_of(refused) == (403, "access_denied")


async def test_cluster_is_known_by_the_authority_in_the_file(tuned: Service) -> None:
    minted = await tuned.mint()

    assert minted.status_code == 201


async def test_cluster_has_to_answer_in_the_configured_time(plain: Service) -> None:
    plain.cluster.gate = anyio.Event()

    with anyio.fail_after(2.5):  # the default is 3 seconds
        refused = await plain.mint("sha256~slow")

    plain.cluster.gate.set()
    plain.cluster.gate = None
    assert code_of(refused) == (503, "auth_unavailable")


async def test_logins_are_reviewed_in_the_configured_way(tuned: Service, plain: Service) -> None:
    await tuned.token("sha256~other")
    await plain.token("sha256~other")

    assert ("our-own", "sha256~other") in {(review.reviewer, review.token) for review in tuned.cluster.reviews}
    assert (plain.cluster.reviews, plain.cluster.own_user_reads[-1]) == ([], "sha256~other")


async def test_lifetimes_are_the_configured_ones(tuned: Service) -> None:
    default = await tuned.mint()
    least, most = await tuned.mint(expiration="1m"), await tuned.mint(expiration="48h")
    below, above = await tuned.mint(expiration="59s"), await tuned.mint(expiration=f"{48 * 3600 + 1}s")

    assert default.json()["expiration"] == "20m0s"
    assert (least.status_code, most.status_code) == (201, 201)
    assert code_of(below) == code_of(above) == (400, "invalid_expiration")


async def test_no_token_lives_longer_than_the_configured_maximum(
    tuned: Service, plain: Service, keys: SigningKeys
) -> None:
    fay = Identity("openshift", "fay", ("system:authenticated",))
    long = JWTMinter(keys=keys, issuer="https://issuer.test", audience="crew")
    short = JWTMinter(keys=keys)

    answers = [
        await service.http.get("/v1/models", headers=bearer(minter.mint(fay, lifetime, 0).token))
        for service, minter, maximum in ((tuned, long, 48 * 3600), (plain, short, 5 * 3600))
        for lifetime in (maximum, maximum + 1)
    ]

    assert [answer.status_code for answer in answers] == [200, 401, 200, 401]


async def test_tokens_name_the_configured_issuer_and_audience(tuned: Service) -> None:
    token = await tuned.token()

    answer = await tuned.http.get("/v1/models", headers=bearer(token))

    assert (claims_of(token)["iss"], claims_of(token)["aud"]) == ("https://issuer.test", "crew")
    assert answer.status_code == 200


async def test_of_many_groups_a_token_keeps_those_that_tiers_name(tuned: Service) -> None:
    token = await tuned.token("sha256~many")

    head = await tuned.http.head(CHAT, headers=bearer(token))

    assert claims_of(token)["groups"] == ["premium-group", "system:authenticated"]
    assert head.headers["x-ratelimit-limit-requests"] == "20"


async def test_revoked_token_is_refused_on_every_route(tuned: Service) -> None:
    minted = (await tuned.mint("sha256~other")).json()

    await tuned.http.delete(f"/v1/tokens/{minted['jti']}", headers=bearer("sha256~other"))
    answers = [await tuned.http.get(path, headers=bearer(minted["token"])) for path in ("/v1/models", CHAT, "/x")]

    assert [answer.json()["error"]["details"] for answer in answers] == [{"reason": "revoked"}] * 3


async def test_urls_of_models_begin_with_the_public_one(tuned: Service) -> None:
    (model,) = (await tuned.http.get("/v1/models", headers=bearer(await tuned.token()))).json()["data"]

    assert (model["url"], model["tier"]) == (f"https://maas.test/llm/m{CHAT}", "free")


async def test_trusted_proxies_tell_what_urls_begin_with(plain: Service) -> None:
    headers = bearer(await plain.token()) | {"x-forwarded-host": "proxy.test", "x-forwarded-proto": "https"}

    model = (await plain.http.get("/v1/models/m", headers=headers)).json()

    assert model["url"] == f"https://proxy.test/m{CHAT}"


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        pytest.param("closed", 503, "upstream_unavailable", id="connect"),
        pytest.param("silent", 504, "upstream_timeout", id="first-byte"),
    ],
)
async def test_upstream_has_to_answer_in_the_configured_time(
    plain: Service, model: str, status: int, code: str
) -> None:
    with anyio.fail_after(4):  # the least of the defaults is 5 seconds
        answer = await plain.chat(model)

    assert code_of(answer) == (status, code)


async def test_upstream_has_to_go_on_in_the_configured_time(plain: Service) -> None:
    headers, read = bearer(await plain.token("sha256~premium")), b""
    stream = plain.http.stream("POST", CHAT, json=chat("stalling", stream=True), headers=headers)

    with anyio.fail_after(4):
        async with stream as answer:
            with suppress(httpx.RemoteProtocolError):
                async for piece in answer.aiter_bytes():
                    read += piece

    assert answer.status_code == 200
    assert b"upstream_timeout" in read


@pytest.mark.parametrize("path", [CHAT, "/v1/audio/transcriptions"])
async def test_body_has_to_arrive_in_the_configured_time(plain: Service, path: str) -> None:
    url, received = httpx.URL(str(plain.http.base_url)), b""
    form = "content-type: multipart/form-data; boundary=x\r\n"
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {await plain.token()}\r\n{form}"

    assert url.port is not None
    with anyio.fail_after(4):
        async with await anyio.connect_tcp(url.host, url.port) as client:
            await client.send(f"{head}content-length: 99\r\n\r\n--x\r\n".encode())
            while b"request_timeout" not in received:
                received += await client.receive()

    assert received.startswith(b"HTTP/1.1 408 ")


async def test_body_above_the_default_limit_passes_where_it_is_configured_so(mounted: Mounted) -> None:
    size = 33 * MIB
    body = json.dumps(chat("m", padding="")).encode()
    body = body[:-2] + b"x" * (size - len(body)) + body[-2:]

    answer = await mounted.http.post(CHAT, content=body, headers=bearer(await mounted.token()))

    assert answer.status_code == 200
    assert len(mounted.host.bodies[-1]) == pytest.approx(size, abs=100)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("GET", "/maas-api/v1/models"), ("POST", CHAT)])
async def test_host_reads_the_inner_key_and_not_the_callers(mounted: Mounted, method: str, path: str) -> None:
    headers = bearer(await mounted.token())

    answer = await mounted.http.request(method, path, headers=headers, json=chat("m"))

    assert answer.status_code == 200
    assert mounted.host.scopes[-1]["path"] == path.removeprefix("/maas-api")
    assert [value for name, value in mounted.host.headers if name == b"authorization"] == [b"Bearer inner-secret"]


async def test_limits_are_told_in_standard_headers_where_they_are_wanted(tuned: Service, mounted: Mounted) -> None:
    answers = [await service.chat(model) for service in (tuned, mounted) for model in ("m", "")]

    assert [answer.status_code for answer in answers] == [200, 400, 200, 400]
    assert ["x-ratelimit-limit-requests" in answer.headers for answer in answers] == [True] * 4
    assert ["ratelimit" in answer.headers for answer in answers] == [True, True, False, False]
    assert ["ratelimit-policy" in answer.headers for answer in answers] == [True, True, False, False]


async def test_whole_estimate_has_to_be_left_only_where_admission_is_strict(tuned: Service, plain: Service) -> None:
    asked = chat("m", max_tokens=200)  # of the 100 in a minute

    answers = [
        await service.http.post(CHAT, json=asked, headers=bearer(await service.token())) for service in (tuned, plain)
    ]

    assert answers[0].status_code == 200
    assert code_of(answers[1]) == (429, "rate_limit_exceeded")


async def test_service_without_a_configuration_answers_only_the_hosts_public_paths() -> None:
    host = Answering(*json_answer(b'"the host"'))
    app = MaaSMiddleware(host, settings=load_settings({}, public_paths=["/v1/completions"]))
    guarded = ("/maas-api/ready", "/maas-api/health", "/v1/models", "/v1/tokens", CHAT, "/nothing", "/ready/x")

    async with client_of(app, lifespan="off") as http:
        refused, public = [await http.get(path) for path in guarded], await http.get("/ready")

    assert {code_of(answer) for answer in refused} == {(503, "not_configured")}
    assert {answer.headers["retry-after"] for answer in refused} == {"2"}
    assert public.json() == "the host"
    assert [scope["path"] for scope in host.scopes] == ["/ready"]


METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
SERVED = (
    *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"),
    *("/v1/embeddings", "/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/classify", "/pooling"),
    *("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/audio/speech"),
    *("/v1/images/generations", "/v1/images/edits", "/v1/images/variations", "/tokenize", "/detokenize"),
)
DOCUMENTS = (
    *("/health", "/healthz", "/ready", "/openapi.json", "/.well-known/jwks.json"),
    *("/maas-api/health", "/maas-api/healthz", "/maas-api/ready", "/maas-api/openapi.json"),
)
ALLOWED = {
    **{prefix + path: "HEAD, POST" for path in SERVED for prefix in ("", "/m")},
    **dict.fromkeys((*DOCUMENTS, "/m/v1/models"), "GET, HEAD"),
    **{prefix + path: "GET, HEAD" for path in ("/v1/models", "/v1/models/m") for prefix in ("", "/maas-api")},
    **{prefix + "/v1/tokens": "DELETE, POST" for prefix in ("", "/maas-api")},
    **{prefix + "/v1/tokens/x": "DELETE" for prefix in ("", "/maas-api")},
    **{prefix + "/v1/tiers/lookup": "POST" for prefix in ("", "/maas-api")},
}


@pytest.mark.parametrize("path", ALLOWED)
async def test_wrong_method_is_always_told_the_right_ones(tuned: Service, path: str) -> None:
    login = "sha256~premium"
    headers = bearer(await tuned.token(login) if path.removeprefix("/m") in SERVED else login)

    answers = {method: await tuned.http.request(method, path, headers=headers) for method in METHODS}

    wrong = {method: answer for method, answer in answers.items() if answer.status_code == 405}
    assert set(wrong) == METHODS - set(ALLOWED[path].split(", "))
    assert {answer.headers.get("allow") for answer in wrong.values()} == {ALLOWED[path]}
