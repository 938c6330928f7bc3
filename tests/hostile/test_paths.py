"""Paths that look like others: only what is in the table of endpoints reaches a model, and strangers learn nothing."""

from __future__ import annotations

import json

import pytest

from ..deployments import chat
from .attack import CHAT, Answer, Target

GOOD = json.dumps(chat()).encode()


def seen(target: Target) -> list[str]:
    return [f"{request.method} {request.path}" for request in target.service.simulator.requests]


def without_id(answer: Answer) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    unequal = (b"x-request-id", b"date")
    return answer.status, [(name, value) for name, value in answer.headers if name not in unequal], answer.body


@pytest.mark.parametrize(
    "path",
    [
        CHAT,
        f"{CHAT}/",
        f"{CHAT}?path=/../v1/load_lora_adapter",
        "/%76%31/chat/completions",
        "/v1%2Fchat%2fcompletions",
        f"%2F{CHAT[1:]}",
        f"{CHAT}%2f",
        f"/simulator{CHAT}",
        f"/%73imulat%6fr{CHAT}/",
        f"/simulator{CHAT}{CHAT}",
        f"{CHAT}{CHAT}{CHAT}/",
    ],
)
async def test_path_of_an_endpoint_is_forwarded_as_the_canonical_one(target: Target, path: str) -> None:
    known = await target.ask("POST", path, token=target.access(), body=GOOD)
    stranger = await target.ask("POST", path, body=GOOD)

    if not path.startswith("/"):  # some parsers want a slash
        assert known.status in (200, 400, 404)
        assert stranger.status in (400, 401)
        assert set(seen(target)) <= {f"POST {CHAT}"}
        return
    assert known.status == 200
    assert stranger.refusal(401, "invalid_api_key")["details"] == {"reason": "missing"}
    assert seen(target) == [f"POST {CHAT}"]


LOST = [
    *("/", "/nothing", "/simulator", "/simulator/", "/simulator/nothing", "/v1", "/v1/", "/v1/chat", "/maas-api"),
    *("/metrics", "/docs", "/redoc", "/simulator/metrics", "/simulator/health", "/simulator/docs", "/v1/files"),
    *(f"/maas-api{CHAT}", f"/maas-api/simulator{CHAT}", f"/simulator/simulator{CHAT}", f"/simulator/maas-api{CHAT}"),
    *("/v1/../v1/chat/completions", f"{CHAT}/..", "/v1/./chat/completions", f"/..{CHAT}", f"/simulator/..{CHAT}"),
    *(f"/%2e%2e{CHAT}", "/v1/%2e%2e/v1/chat/completions", "/v1/%2E/chat/completions", f"/.%2e{CHAT}", f"{CHAT}%2f.."),
    *("/v1/chat/completions/../../load_lora_adapter", "/v1/chat/completions%2f..%2f..%2fload_lora_adapter"),
    *(f"/{CHAT}", "/v1//chat/completions", f"{CHAT}//", f"//gateway{CHAT}", f"/simulator/{CHAT}", f"{CHAT}/%2f"),
    *(f"{CHAT};x=1", "/v1;x=1/chat/completions", f"{CHAT};/v1/load_lora_adapter", f"/simulator;x{CHAT}", f"{CHAT}%3b"),
    *("/v1\\chat\\completions", "/v1%5cchat%5ccompletions", f"\\..{CHAT}", f"/%5c..%5c{CHAT}"),
    *(
        f"{CHAT}%00",
        f"{CHAT}%00/v1/load_lora_adapter",
        f"/%00{CHAT}",
        f"{CHAT}%0d%0aX:%201",
        f"{CHAT}%20",
        f"{CHAT}%09",
    ),
    *("/V1/chat/completions", "/v1/Chat/Completions", "/v1/chat/completionS", f"/SIMULATOR{CHAT}", "/MAAS-API/health"),
    *("/v1%252fchat%252fcompletions", "/%2576%2531/chat/completions", f"{CHAT}%3fx=1", f"{CHAT}%23x", "/v1%u002fchat"),
    *(f"{CHAT}%ff", "/v1%c0%afchat%c0%afcompletions", "/v1%ef%bc%8fchat/completions", "/%ef%bd%961/chat/completions"),
    *(f"{CHAT}.json", f"{CHAT}/1", f"{CHAT}&x=1", f"{CHAT}%", f"{CHAT}%2", f"{CHAT}%zz", "/v1/chat/completions*"),
    *("/health/../v1/chat/completions", "/health/x", "//health", "/HEALTH", "/health%00", "/health;x", "/healthy"),
    *("/maas-api/../health", "/.well-known/../health", "/.well-known/jwks.json/x", "/.well-known", "/v1/health"),
    pytest.param("/" + "x" * 20_000, id="20-kb"),
    pytest.param("/x" * 10_000, id="10000-segments"),
    pytest.param("/%2e%2e" * 2_000 + CHAT, id="2000-times-up"),
    pytest.param(CHAT * 1_000, id="1000-times-the-same"),
    pytest.param("/v1" * 5_000 + CHAT, id="5000-versions"),
]


@pytest.mark.parametrize("path", LOST)
async def test_path_that_is_none_reaches_nobody_and_tells_strangers_nothing(target: Target, path: str) -> None:
    there = await target.ask("POST", CHAT, body=GOOD)
    known = await target.ask("POST", path, token=target.access(), body=GOOD)
    stranger = await target.ask("POST", path, body=GOOD)

    if stranger.header("content-type") == "application/json":
        known.refusal(404, "not_found")
        assert without_id(stranger) == without_id(there)
    else:  # the server takes it for no HTTP at all
        assert (known.status, stranger.status) == (400, 400)
    assert seen(target) == []
    assert target.service.cluster.reviews == []


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/load_lora_adapter", "/simulator/v1/load_lora_adapter", "/v1%2fload_lora_adapter", "/collective_rpc"),
        *(f"{CHAT}/v1/load_lora_adapter", f"/simulator{CHAT}{CHAT}/v1/unload_lora_adapter", "/simulator/sleep"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS", "HEAD"])
async def test_route_of_the_models_operators_is_refused_and_hidden_from_strangers(
    target: Target, method: str, path: str
) -> None:
    there = await target.ask(method, CHAT, body=GOOD)
    known = await target.ask(method, path, token=target.access(), body=GOOD)
    stranger = await target.ask(method, path, body=GOOD)

    assert known.status in (403, 404)
    assert without_id(stranger) == without_id(there)
    assert stranger.status == 401
    assert seen(target) == []


@pytest.mark.parametrize(
    "line",
    [
        *(f"http://elsewhere.example.com{CHAT}", "http://gateway/v1/load_lora_adapter", f"HTTPS://gateway{CHAT}"),
        *(f"file://{CHAT}", f"http:{CHAT}", f"http:///{CHAT}", f"//{CHAT}", f"http://user:password@gateway{CHAT}"),
        *("v1/chat/completions", "*", "gateway:80", "?model=simulator", "#", f"{CHAT}#/v1/load_lora_adapter", ""),
        *(f"{CHAT} /v1/load_lora_adapter", f"{CHAT}\t", f"{CHAT}\x00", f"{CHAT}\xa0", f"{CHAT}?\xff", f"{CHAT}?a b"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "CONNECT", "OPTIONS"])
async def test_target_in_another_form_reaches_the_endpoint_or_nobody(target: Target, method: str, line: str) -> None:
    known = await target.ask(method, line, token=target.access(), body=GOOD)
    stranger = await target.ask(method, line, body=GOOD)

    assert known.status in (200, 400, 403, 404, 405)
    assert known.status == 200 or seen(target) == []
    assert set(seen(target)) <= {f"POST {CHAT}"}
    assert stranger.status in (400, 401)
    for answer in (known, stranger):
        assert answer.header("x-request-id") or answer.body == b"Invalid HTTP request received."


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "QUERY", "post"])
async def test_other_method_reaches_nobody(target: Target, method: str) -> None:
    override = "X-HTTP-Method-Override: POST"

    known = await target.ask(method, CHAT, override, token=target.access(), body=GOOD)
    stranger = await target.ask(method, CHAT, override, body=GOOD)

    if stranger.status == 401:
        known.refusal(405, "method_not_allowed")
        assert known.header("allow") == "HEAD, POST"
    else:  # the server knows no such method
        assert (known.status, stranger.status) == (400, 400)
    assert seen(target) == []


@pytest.mark.parametrize("header", ["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Path", "X-Forwarded-Prefix"])
async def test_header_that_names_another_path_changes_nothing(target: Target, header: str) -> None:
    there = await target.ask("POST", "/nothing", f"{header}: {CHAT}", token=target.access(), body=GOOD)
    open_to_all = await target.ask("POST", CHAT, f"{header}: /health", body=GOOD)
    away = await target.ask("POST", CHAT, f"{header}: /v1/load_lora_adapter", token=target.access(), body=GOOD)

    there.refusal(404, "not_found")
    open_to_all.refusal(401, "invalid_api_key")
    assert away.status == 200
    (request,) = target.service.simulator.requests
    assert b"load_lora_adapter" not in b"".join(value for _, value in request.headers)
