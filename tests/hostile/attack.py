"""Somebody who attacks a deployment byte by byte, and what no answer and no line of the log may tell them."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import h11
import httpx
import pytest

from maas_middleware import gateway, load_settings
from maas_middleware.identity import Identity
from maas_middleware.providers.jwt import JWTMinter
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.testing.cluster import ClusterUser, StandInCluster
from maas_middleware.testing.model import SimulatedModel

from ..deployments import UNTHROTTLED, Deployment, chat, deployed
from ..servers import serving

CHAT = "/v1/chat/completions"
BYSTANDER = "olga-the-bystander"
PATIENCE = 5.0
REQUESTS, TOKENS = 10_000, 1_000_000
TIERS = [
    {"name": name, "groups": [group], "limits": {"requests": f"{REQUESTS}/hour", "tokens": f"{TOKENS}/hour"}}
    for name, group in (("crew", "crew"), ("captains", "captains"))
]
TYPES = {403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}

_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")
_OPERATORS_LINE = re.compile(
    r"token review at http://127\.0\.0\.1:\d+ failed"
)  # names the cluster, for those who run us


@dataclass(frozen=True)
class Answer:
    """What came back on a connection, up to its first answer's end.

    Attributes:
        status: 0 where there was no answer at all.
        whole: whether the answer was ended, and not broken off.
        interim: the statuses of the 1xx answers before it.
        received: every byte.
    """

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    whole: bool = False
    interim: tuple[int, ...] = ()
    received: bytes = b""

    @classmethod
    def parse(cls, received: bytes, method: str) -> Answer:
        status, headers, body, whole, interim = 0, list[tuple[bytes, bytes]](), b"", False, list[int]()
        client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        client.send(h11.Request(method=method, target="/", headers=[("host", "gateway")]))
        client.send(h11.EndOfMessage())
        client.receive_data(received)
        client.receive_data(b"")
        try:
            while not whole:
                event = client.next_event()
                if isinstance(event, h11.InformationalResponse):
                    interim.append(event.status_code)
                elif isinstance(event, h11.Response):
                    status, headers = event.status_code, list(event.headers)
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    whole = isinstance(event, h11.EndOfMessage)
                    break
        except h11.RemoteProtocolError:
            whole = False
        return cls(status, headers, body, whole, tuple(interim), received)

    def header(self, name: str) -> str | None:
        """The value of a header that stands there at most once."""
        values = [value.decode() for key, value in self.headers if key == name.encode()]
        assert len(values) <= 1, f"{name} is repeated"
        return values[0] if values else None

    def refusal(self, status: int, code: str) -> dict[str, Any]:
        """The error, after a look at everything that the contract says of such an answer."""
        assert (self.status, self.whole) == (status, True), self.received
        assert self.header("content-type") == "application/json"
        request_id, document = self.header("x-request-id") or "", json.loads(self.body)
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", request_id)
        assert list(document) == ["error"]
        error: dict[str, Any] = document["error"]
        assert set(error) - {"details"} == {"message", "type", "param", "code"}
        assert error["code"] == code
        assert error["type"] == ("server_error" if status >= 500 else TYPES.get(status, "invalid_request_error"))
        assert status < 500 or request_id in error["message"]
        assert status not in (429, 503) or int(self.header("retry-after") or 0) >= 1
        assert status != 405 or self.header("allow")
        if status == 401:
            assert error["message"] == "Invalid authentication token"
            assert self.header("www-authenticate") == "Bearer"
        return error


class Target:
    """A deployment under attack, whose signing keys the attacker's forgeries may need.

    Attributes:
        port: of the gateway; another may be set where several serve the same.
        secrets: what no answer and no line of the log may hold.
    """

    def __init__(self, service: Deployment, keys: SigningKeys) -> None:
        self.service = service
        self.keys = keys
        self.port = int(service.url.rpartition(":")[2])
        self.secrets = ["Traceback", BYSTANDER]
        self._minter = JWTMinter(keys=keys)
        self._numbers = itertools.count(1)

    def newcomer(self, *groups: str) -> str:
        """A login of somebody whom nobody has seen before, of the crew unless groups are named."""
        login = f"sha256~login-{next(self._numbers)}-of-somebody"
        self.service.cluster.users[login] = ClusterUser(login.removeprefix("sha256~"), groups or ("crew",))
        self.secrets.append(login)
        return login

    def access(self, name: str | None = None, *groups: str) -> str:
        """An access token of somebody whom nobody has seen before, minted without the cluster."""
        name = name or f"user-{next(self._numbers)}"
        token = self._minter.mint(Identity("openshift", name, groups or ("crew",)), 900, 0).token
        self.secrets.append(token)
        return token

    async def send(self, *pieces: bytes, method: str = "POST") -> Answer:
        """Send pieces over one connection and read until it is closed, within the deadline."""
        with anyio.fail_after(PATIENCE):
            async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
                received = bytearray()

                async def write() -> None:
                    try:
                        for piece in pieces:
                            await stream.send(piece)
                    except anyio.BrokenResourceError:  # it does not want to read all
                        pass

                async with anyio.create_task_group() as group:
                    group.start_soon(write)
                    try:
                        while True:
                            received += await stream.receive()
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        group.cancel_scope.cancel()
        answer = Answer.parse(bytes(received), method)
        self.keeps_quiet(answer)
        return answer

    async def ask(
        self, method: str, target: str, *headers: str, token: str | None = None, body: bytes | str | None = None
    ) -> Answer:
        """Send one request; headers are whole lines. What is there of them is sent as it is."""
        return await self.send(request(method, target, *headers, token=token, body=body), method=method)

    async def chat(self, token: str, **more: Any) -> Answer:
        return await self.ask("POST", CHAT, token=token, body=json.dumps(chat(**more)))

    async def used(self, token: str) -> tuple[int, int]:
        """The requests and the tokens that HEAD says are used or leased, and nothing consumed."""
        answer = await self.ask("HEAD", CHAT, token=token)
        assert (answer.status, answer.whole, answer.body) == (200, True, b"")
        requests, tokens = (answer.header(f"x-ratelimit-remaining-{which}") or "" for which in ("requests", "tokens"))
        return REQUESTS - int(requests), TOKENS - int(tokens)

    def keeps_quiet(self, answer: Answer) -> None:
        assert answer.status != 500, answer.received
        text = answer.received.decode("latin-1")
        assert [secret for secret in self.secrets if secret in text] == []
        assert {address for address in _ADDRESS.findall(text)} <= {f"127.0.0.1:{self.port}"}

    def logs_nothing_of_it(self, log: pytest.LogCaptureFixture) -> None:
        formatter, records = logging.Formatter(), [*log.get_records("setup"), *log.get_records("call")]
        lines = [_OPERATORS_LINE.sub("", formatter.format(record)) for record in records]
        assert [line for line in lines for secret in self.secrets if secret in line] == []
        assert [line for line in lines if _ADDRESS.search(line)] == []


@contextmanager
def watched(target: Target, log: pytest.LogCaptureFixture) -> Iterator[Target]:
    """The target, which nobody has asked for anything. In the end nothing in the log may be of use to an attacker."""
    target.service.simulator.requests.clear()
    target.service.cluster.reviews.clear()
    server = logging.getLogger("uvicorn.error")  # does not propagate
    log.set_level(logging.DEBUG, logger="maas_middleware")
    server.addHandler(log.handler)
    yield target
    server.removeHandler(log.handler)
    target.logs_nothing_of_it(log)


def request(
    method: str, target: str, *headers: str, token: str | None = None, body: bytes | str | None = None
) -> bytes:
    """A request that asks for the connection to be closed, its length right unless a header speaks of one."""
    lines = [f"{method} {target} HTTP/1.1", "Host: gateway", "Connection: close", *headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    data = body.encode() if isinstance(body, str) else body or b""
    if body is not None and not any(re.match("content-length|transfer-encoding", line, re.I) for line in headers):
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


@asynccontextmanager
async def besieged(directory: Path, **overrides: object) -> AsyncIterator[Target]:
    """Deploy everything, with somebody in it who works already."""
    (keys := SigningKeys.generate()).save(file := directory / "keys.json")
    settings = {"tokens": {"signing_keys_file": str(file)}, "tiers": TIERS, "qwen3_tiers": ["captains"], **overrides}
    async with deployed(**settings) as service:
        target = Target(service, keys)
        assert (await target.chat(target.access(BYSTANDER))).status == 200
        yield target


@asynccontextmanager
async def besieged_behind(http: str, directory: Path, **proxy: float) -> AsyncIterator[Target]:
    """The same with one model, behind one of the two HTTP parsers of uvicorn: they disagree about odd requests."""
    (keys := SigningKeys.generate()).save(file := directory / "keys.json")
    cluster, model = StandInCluster({}), SimulatedModel("simulator")
    async with serving(cluster) as cluster_url, serving(model) as model_url, httpx.AsyncClient() as client:
        settings = load_settings(
            {},
            openshift={"api_url": cluster_url},
            models=[{"id": "simulator", "tiers": "all", "upstreams": [model_url]}],
            tokens={"signing_keys_file": str(file)},
            tiers=TIERS,
            proxy=proxy,
            throttles=UNTHROTTLED,
        )
        async with serving(gateway(settings), lifespan="on", http=http) as url:
            yield Target(Deployment(url, client, cluster, model, model), keys)
