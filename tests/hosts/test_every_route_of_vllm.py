"""To be tests/hosts/test_every_route_of_vllm.py: what strangers, users and administrators get at each route of vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..deployments import bearer
from .vllm_running import ADA, CHAT, FAY, MIDDLEWARE, OTTO, QUESTION, TINA, VLLM, cluster, vllm

pytestmark = pytest.mark.timeout(60)
LINES = (Path(__file__).parent.parent / "vllm_routes.txt").read_text().splitlines()
ROUTES = [line.split() for line in LINES if line and not line.startswith("#")]
HTTP = [(method, path.partition("{")[0] + ("x" if "{" in path else ""), kind) for method, path, kind in ROUTES]
GUARDED = [(method, path) for method, path, kind in HTTP if kind != "public" and method != "WEBSOCKET"]
SERVED = [path for _, path, kind in HTTP if kind in ("billable", "unmetered")]
BILLABLE = [path for _, path, kind in HTTP if kind == "billable"]
FILE = {"file": ("a.wav", b"\0" * 48_000)}


@pytest.fixture(scope="module")
def server() -> Iterator[VLLM]:
    with cluster() as environ, vllm(*MIDDLEWARE, **environ) as running:
        yield running


@pytest.fixture(scope="module")
def token(server: VLLM) -> str:
    return server.mint()


def sent(path: str, **fields: Any) -> dict[str, Any]:
    """A request that names the model, in the form that the route takes."""
    if "/audio/" in path:
        return {"data": {"model": "tiny", **fields}, "files": FILE}
    question = QUESTION if path != "/invocations" else {**QUESTION, "max_tokens": 3}
    fill = {"prompt": "a", "input": "a", "text_1": "a", "text_2": "a", "query": "a", "documents": ["a"], "tokens": [1]}
    return {"json": {**({} if path == "/invocations" else fill), **question, "max_tokens": 3, **fields}}


def told(answer: Any) -> tuple[int, str]:
    """The status, and the code or (of Anthropic's) the type."""
    error = answer.json()["error"]
    return answer.status_code, error.get("code") or error["type"]


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_stranger_is_401_in_the_envelope_at_every_route(server: VLLM, method: str, path: str) -> None:
    for headers in ({}, bearer("nonsense"), {"x-api-key": "nonsense"}):
        answer = server.http.request(method, path, headers=headers)

        assert told(answer) in ((401, "invalid_api_key"), (401, "authentication_error"))
        assert len(answer.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize(
    ("method", "path"), [(method, path) for method, path, kind in HTTP if kind == "refused" and method != "WEBSOCKET"]
)
def test_what_is_refused_is_404_for_administrators_too(server: VLLM, token: str, method: str, path: str) -> None:
    for credential in (token, FAY, ADA):
        assert told(server.http.request(method, path, headers=bearer(credential), json={}))[0] in (401, 404)
    assert server.http.request(method, path, headers=bearer(token), json={}).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [(method, path) for method, path, kind in HTTP if kind == "administrative"]
)
def test_administrative_route_is_for_logins_of_administrators(server: VLLM, token: str, method: str, path: str) -> None:
    tokens = (token, server.mint(ADA), FAY)

    assert [server.http.request(method, path, headers=bearer(one)).status_code for one in tokens] == [403] * 3


@pytest.mark.parametrize("path", SERVED)
def test_every_served_route_tells_of_an_unknown_model_and_of_no_model_and_charges_nothing(
    server: VLLM, token: str, path: str
) -> None:
    before = server.used(token)
    unknown = server.http.post(path, headers=bearer(token), **sent(path, model="nope"))
    nothing = server.http.post(
        path,
        headers=bearer(token),
        content=b"{",
    )

    assert unknown.status_code in (200, 404), unknown.text  # forms are vLLM's to judge: it has one model there
    assert nothing.status_code in (400, 415)
    for answer in (unknown, nothing):
        if answer.is_error:
            assert isinstance(answer.json()["error"]["message"], str)
            assert isinstance(told(answer)[1], str)
    assert server.used(token)[1] == before[1] or unknown.is_success


@pytest.mark.parametrize("path", SERVED)
def test_every_served_route_is_closed_for_a_revoked_token(server: VLLM, path: str) -> None:
    token = server.mint(OTTO)
    assert server.http.post(path, headers=bearer(token), **sent(path)).is_success
    assert server.http.delete("/maas-api/v1/tokens", headers=bearer(OTTO)).status_code == 204

    answer = server.http.post(path, headers=bearer(token), **sent(path))

    assert answer.status_code == 401
    assert answer.json()["error"]["details"] == {"reason": "revoked"}


def test_no_served_route_is_a_way_round_the_limit(server: VLLM) -> None:
    token = server.mint(TINA)
    assert server.ask(token).status_code == 200

    refused = {path: server.http.post(path, headers=bearer(token), **sent(path)) for path in SERVED}

    assert {path: answer.status_code for path, answer in refused.items()} == dict.fromkeys(SERVED, 429)
    for path, answer in refused.items():
        code = "rate_limit_error" if path.startswith("/v1/messages") else "rate_limit_exceeded"
        assert told(answer) == (429, code), path
        assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("path", BILLABLE)
def test_head_tells_the_quota_at_every_billable_route(server: VLLM, token: str, path: str) -> None:
    before = server.used(token)

    answer = server.http.head(path, headers=bearer(token))

    assert answer.headers["x-ratelimit-limit-requests"] == "1000"
    assert server.used(token) == before


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, QUESTION), ("/v1/rerank", {"model": "tiny", "query": "a", "documents": ["b"]})]
)
def test_recorded_use_names_who_and_what(server: VLLM, path: str, body: dict[str, object]) -> None:
    token = server.mint(OTTO)
    before = server.http.get("/v1/usage", headers=bearer(token)).json()["total"]["requests"]

    assert server.http.post(path, json=body, headers=bearer(token)).status_code == 200

    used = server.http.get("/v1/usage", headers=bearer(token)).json()
    assert used["total"]["requests"] == before + 1
    assert {row["model"] for row in used["data"]} == {"tiny"}
