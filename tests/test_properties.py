"""Whatever is thrown at the gateway: its answers keep the grammar, its errors the envelope, its ledger the law."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp

from maas_middleware import load_settings
from maas_middleware.assembly import Parts
from maas_middleware.endpoints import ENDPOINTS, error_format
from maas_middleware.identity import Identity
from maas_middleware.limiting import Charge, Demand, Lease, Subject, Verdict
from maas_middleware.testing import Conversation, SimulatedModel, StandInCluster, converse

from .deployments import USERS
from .servers import serving_in_thread

DEADLINE_SECONDS = 10


class WatchedLedger:
    """A ledger that remembers how often each lease was granted and settled."""

    def __init__(self, ledger: Any) -> None:
        self.admitted: Counter[str] = Counter()
        self.settled: Counter[str] = Counter()
        self._ledger = ledger

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        verdict: Verdict = await self._ledger.admit(subject, demand)
        if verdict.lease is not None:
            self.admitted[verdict.lease.id] += 1
        return verdict

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        self.settled[lease.id] += 1
        await self._ledger.settle(lease, charge)

    async def renew(self, lease: Lease, /) -> None:
        await self._ledger.renew(lease)

    async def peek(self, subject: Subject, /) -> Verdict:
        verdict: Verdict = await self._ledger.peek(subject)
        return verdict


@dataclass
class Gateway:
    app: ASGIApp
    portal: BlockingPortal
    ledger: WatchedLedger
    tokens: tuple[str, ...]


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with ExitStack() as servers:
        cluster = servers.enter_context(serving_in_thread(StandInCluster(USERS)))
        upstream = servers.enter_context(serving_in_thread(SimulatedModel("simulator")))
        model = {"tiers": "all", "upstreams": [upstream], "upstream_model": "simulator", "context_length": 500}
        limits = {"requests": "1000000/minute", "tokens": "100000000/minute"}
        tiers = [
            {"name": "free", "groups": ["f"], "limits": limits, "features": ["tools"], "max_tokens_per_request": 50},
            {"name": "few", "groups": ["few"], "limits": {"requests": "5/second", "tokens": "50/second"}},
            {"name": "all", "level": 1, "groups": ["system:authenticated"], "limits": limits},
        ]
        models: list[dict[str, Any]] = [{"id": "one", "aliases": ["eins"], **model}, {"id": "org/two", **model}]
        models.append({**model, "id": "gold", "tiers": ["all"]})
        config = load_settings({}, openshift={"api_url": cluster}, tiers=tiers, models=models)
        parts = Parts(config)
        ledger = WatchedLedger(parts.ledger)
        parts.ledger = ledger  # type: ignore[assignment]  # of the same protocol
        tokens = tuple(
            parts.control.minter.mint(Identity("openshift", group, (group,)), 3600, 0).token
            for group in ("f", "few", "system:authenticated")
        )
        portal = servers.enter_context(start_blocking_portal())  # one event loop for all requests, as servers have
        app = parts.gateway()
        yield Gateway(app, portal, ledger, tokens)
        portal.call(app.aclose)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.lists(
    st.sampled_from(
        [
            {"type": "text", "text": "Hello you"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "input_text", "text": "Hi"},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        ]
    ),
    max_size=3,
)
TEXT = st.text(max_size=200) | PARTS
PLAUSIBLE = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["one", "eins", "org/two", "gold"]),
        "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": TEXT}), min_size=1, max_size=3),
        "prompt": st.text(max_size=99) | st.lists(st.text(max_size=9), min_size=1, max_size=3),
        "input": st.text(max_size=99) | st.lists(st.text(max_size=9), min_size=1, max_size=3),
        "query": st.text(max_size=9),
        "documents": st.lists(st.text(max_size=9), max_size=3),
        "text_1": st.text(max_size=9),
        "text_2": st.text(max_size=9),
        "max_tokens": st.integers(1, 60),
    },
    optional={
        "stream": st.booleans(),
        "stream_options": st.sampled_from([None, {}, {"include_usage": True}]),
        "max_output_tokens": st.integers(1, 60),
        "tools": st.sampled_from([[], None, [{"type": "function", "function": {"name": "f"}}]]),
        "n": st.integers(1, 3),
        "request_id": st.text(max_size=9),
    },
)
WILD = st.fixed_dictionaries(
    {"model": st.sampled_from(["one", "simulator", "none", "", None, 1]) | st.text(max_size=9)},
    optional={
        "messages": ANY_JSON,
        "prompt": ANY_JSON,
        "tools": ANY_JSON,
        "stream": ANY_JSON,
        "stream_options": ANY_JSON,
        "max_tokens": ANY_JSON,
        "n": ANY_JSON,
        "previous_response_id": ANY_JSON,
        "Model": st.just("gold"),
    },
)
BODIES = st.one_of(
    PLAUSIBLE.map(lambda fields: json.dumps(fields).encode()),
    WILD.map(lambda fields: json.dumps(fields).encode()),
    ANY_JSON.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=100),
)
SERVED = st.sampled_from([endpoint.path for endpoint in ENDPOINTS if endpoint.is_served])
LISTED = st.sampled_from([endpoint.path.replace("*", "some") for endpoint in ENDPOINTS])
CONTROL = ["/v1/models", "/v1/models/one", "/v1/tokens", "/v1/tokens/x", "/v1/tiers/lookup", "/health", "/ready", "/"]
PATHS = st.one_of(
    SERVED,
    LISTED,
    SERVED.map(lambda path: f"/one{path}"),
    SERVED.map(lambda path: f"/org/two{path}/"),
    SERVED.map(lambda path: f"/v1/chat/completions{path}"),
    LISTED.map(lambda path: f"/{path}/../.."),
    st.sampled_from([*CONTROL, *(f"/maas-api{path}" for path in CONTROL)]),
    st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20).map(lambda text: f"/{text}"),
)
METHODS = st.sampled_from(["POST"] * 3 + ["GET", "HEAD", "DELETE", "PUT", "OPTIONS", "BREW"])
HEADER_TEXT = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=30)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["x-request-id", "x-api-key", "content-type", "content-length", "expect", "x-maas-user", "cookie"]
        ),
        HEADER_TEXT | st.sampled_from(["application/json", "multipart/form-data; boundary=b", "7"]),
    ),
    max_size=3,
)
CREDENTIALS = st.sampled_from(["token", "login", "none", "wrong", "basic", "repeated"])


def credentials(kind: str, token: str) -> list[tuple[str, str]]:
    bearer = ("authorization", f"Bearer {token}")
    return {
        "token": [bearer],
        "login": [("authorization", "Bearer sha256~premium")],
        "none": [],
        "wrong": [("authorization", f"Bearer {token[:-2]}")],
        "basic": [("authorization", "Basic YTpi")],
        "repeated": [bearer, bearer],
    }[kind]


def assert_is_ours(conversation: Conversation, path: str) -> None:
    assert conversation.exception is None
    assert conversation.started
    assert conversation.complete
    assert conversation.status != 500
    assert conversation.header("x-request-id")
    if conversation.status < 400:
        return
    document = conversation.json()
    if error_format(path) == "anthropic":
        assert set(document) == {"type", "error", "request_id"}
        assert {"type", "message"} <= set(document["error"]) <= {"type", "message", "details"}
    else:
        assert list(document) == ["error"]
        assert set(document["error"]) - {"details"} == {"message", "type", "param", "code"}
        assert isinstance(document["error"]["code"], str)


LEAVES = st.sampled_from([None, None, None, 0, 1, 2, "sending"])
CUTS = st.lists(st.integers(0, 100), max_size=2)


@dataclass
class Request:
    """What a client sends, and when it leaves."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    cuts: list[int]
    leaves: int | str | None

    async def send(self, app: ASGIApp) -> Conversation:
        at = sorted(self.cuts)
        pieces = [self.body[start:end] for start, end in zip([0, *at], [*at, None], strict=True)]
        with anyio.fail_after(DEADLINE_SECONDS):
            return await converse(
                app,
                self.method,
                self.path,
                headers=self.headers,
                body=pieces,
                leave_while_sending=self.leaves == "sending",
                leave_after=self.leaves if isinstance(self.leaves, int) else None,
            )


def checked(served: Gateway, request: Request) -> Conversation:
    conversation: Conversation = served.portal.call(request.send, served.app)
    if request.leaves is None:
        assert_is_ours(conversation, request.path)
        event(f"status {conversation.status}")
    assert served.ledger.settled == served.ledger.admitted
    assert set(served.ledger.admitted.values()) <= {1}
    return conversation


def drawn(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@pytest.mark.timeout(120)
@drawn(1000)
@given(
    method=METHODS, path=PATHS, credential=CREDENTIALS, user=st.integers(0, 2), headers=HEADERS, body=BODIES,
    cuts=CUTS, leaves=LEAVES,
)  # fmt: skip
def test_any_request_is_answered_by_the_rules(
    served: Gateway,
    method: str,
    path: str,
    credential: str,
    user: int,
    headers: list[tuple[str, str]],
    body: bytes,
    cuts: list[int],
    leaves: int | str | None,
) -> None:
    checked(
        served, Request(method, path, [*credentials(credential, served.tokens[user]), *headers], body, cuts, leaves)
    )


@pytest.mark.timeout(120)
@drawn(500)
@given(path=SERVED, user=st.integers(0, 2), fields=PLAUSIBLE, cuts=CUTS, leaves=LEAVES)
def test_any_request_that_could_be_meant_settles_once(
    served: Gateway, path: str, user: int, fields: dict[str, Any], cuts: list[int], leaves: int | str | None
) -> None:
    headers = credentials("token", served.tokens[user])

    checked(served, Request("POST", path, headers, json.dumps(fields).encode(), cuts, leaves))


def test_many_of_these_requests_were_admitted(served: Gateway) -> None:
    assert sum(served.ledger.admitted.values()) > 50
