"""Every route of vLLM is in the table of endpoints on purpose, or left out of it on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maas_middleware import Settings
from maas_middleware.catalogue import Catalogue
from maas_middleware.endpoints import MODELS, invoked
from maas_middleware.errors import InvalidRequest, MethodNotAllowed
from maas_middleware.requests import JSONRequest

LINES = (Path(__file__).parent / "vllm_routes.txt").read_text().splitlines()
ROUTES = [tuple(line.split()) for line in LINES if line and not line.startswith("#")]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def classified(method: str, path: str) -> str:
    """What happens to a route, or to a path that a parameter of it stands for."""
    path = path.partition("{")[0] + "x" if "{" in path else path
    if endpoints := Catalogue().locate(path).endpoints:
        return (endpoints.get(method) or endpoints["*"]).kind
    if path == MODELS:
        return "ours"
    return "public" if path in Settings().public_paths else "unlisted"


@pytest.mark.parametrize(("method", "path", "kind"), ROUTES, ids=lambda part: part)
def test_route_of_vllm_is_what_it_is_meant_to_be(method: str, path: str, kind: str) -> None:
    assert classified(method, path) == kind


@pytest.mark.parametrize("path", [path for _, path, kind in ROUTES if kind in ("billable", "unmetered")])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "POST"])
def test_route_that_is_served_has_no_other_method(method: str, path: str) -> None:
    with pytest.raises(MethodNotAllowed):
        Catalogue().locate(path).endpoint(method)


def request(**fields: Any) -> JSONRequest:
    return JSONRequest.parse(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        pytest.param({"messages": [{"role": "user"}]}, "/v1/chat/completions", id="chat"),
        pytest.param(
            {"messages": [{}], "documents": [{"text": "a"}]}, "/v1/chat/completions", id="chat-with-documents"
        ),
        pytest.param({"messages": [{}], "prompt": None}, "/v1/chat/completions", id="the-other-is-null"),
        pytest.param({"prompt": "a"}, "/v1/completions", id="prompt"),
        pytest.param({"prompt": [1, 2]}, "/v1/completions", id="token-ids"),
        pytest.param({"prompt_embeds": "AAAA"}, "/v1/completions", id="embedded-prompt"),
        pytest.param({"prompt": "a", "prompt_embeds": "AAAA"}, "/v1/completions", id="both-of-one-endpoint"),
        pytest.param({"input": "a"}, "/v1/embeddings", id="text"),
        pytest.param({"input": [[1], [2]]}, "/v1/embeddings", id="texts-in-token-ids"),
        pytest.param({"query": "a", "documents": ["b"]}, "/rerank", id="rerank"),
        pytest.param({"queries": "a", "documents": ["b"]}, "/score", id="queries"),
        pytest.param({"queries": "a", "items": ["b"]}, "/score", id="queries-and-items"),
        pytest.param({"text_1": "a", "text_2": "b"}, "/score", id="texts"),
        pytest.param({"data_1": "a", "data_2": "b"}, "/score", id="data-pairs"),
        pytest.param({"data": {"image": "a"}, "task": "plugin"}, "/pooling", id="plugin"),
    ],
)
def test_invocation_is_for_the_endpoint_that_its_fields_tell_of(fields: dict[str, Any], path: str) -> None:
    endpoint = invoked(request(model="m", **fields))

    assert (endpoint.path, endpoint.method, endpoint.kind) == (path, "POST", "billable")


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"messages": [{}], "prompt": "a"}, id="chat-or-completions"),
        pytest.param({"messages": [{}], "input": "a"}, id="chat-or-embeddings"),
        pytest.param({"prompt": "a", "input": "b"}, id="completions-or-embeddings"),
        pytest.param({"query": "a", "queries": "a", "documents": ["b"]}, id="rerank-or-score"),
        pytest.param({"input": "a", "data": 1}, id="embeddings-or-plugin"),
        pytest.param({"messages": "no list", "prompt": "a"}, id="one-of-them-is-wrong"),
    ],
)
def test_invocation_that_may_be_for_several_endpoints_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        invoked(request(model="m", **fields))

    assert (refused.value.status, refused.value.code) == (400, "ambiguous_request")
    assert refused.value.message.startswith("The request may be for /")


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"messages": []}, id="empty"),
        pytest.param({"prompt": None}, id="null"),
        pytest.param({"documents": ["a"]}, id="half-a-rerank"),
        pytest.param({"requestType": "NEW_SESSION"}, id="a-session"),
        pytest.param({"inputs": "a", "parameters": {}}, id="another-servers"),
    ],
)
def test_invocation_that_is_for_no_endpoint_is_told_what_there_is(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        invoked(request(model="m", **fields))

    assert (refused.value.status, refused.value.code) == (400, "missing_required_parameter")
    assert "`messages`, `prompt`" in refused.value.message
