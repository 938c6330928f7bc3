"""A cluster that is down, slow, hostile or out of its mind: logins wait, inference goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import anyio
import pytest

from ..raw_upstream import Connection, RawUpstream, Script, answer, chunk, chunked_head, raw_upstream
from .attack import Answer, Target, besieged
from .scripts import Changing, for_ever, hanging_up, said

LOGIN_ROUTES = (("POST", "/v1/tokens"), ("DELETE", "/v1/tokens"), ("DELETE", "/v1/tokens/x"), ("GET", "/v1/models"))
TIMEOUT = 0.2
JSON = b"Content-Type: application/json"


def review(**status: object) -> bytes:
    return json.dumps({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status}).encode()


ACCEPTED = review(authenticated=True, user={"username": "ulla", "groups": ["crew"]})
healthy = said(answer("201 Created", ACCEPTED, JSON))
cluster = Changing(healthy)


async def repeating_the_token(connection: Connection) -> None:
    request = await connection.read_request()
    await connection.send(answer("500 Internal Server Error", request.body + request.body, JSON))


@pytest.fixture(scope="module")
async def api() -> AsyncIterator[RawUpstream]:
    async with raw_upstream(cluster) as api:
        yield api


@pytest.fixture(scope="module")
async def besieged_target(api: RawUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    openshift = {"api_url": api.url, "timeout": TIMEOUT}
    async with besieged(tmp_path_factory.mktemp("keys"), openshift=openshift) as target:
        yield target


async def at_the_door(target: Target, login: str) -> list[Answer]:
    answers: dict[tuple[str, str], Answer] = {}

    async def knock(route: tuple[str, str]) -> None:
        answers[route] = await target.ask(*route, token=login)

    async with anyio.create_task_group() as group:
        for route in LOGIN_ROUTES:
            group.start_soon(knock, route)
    return list(answers.values())


STATUS = b'{"kind": "Status", "status": "Failure", "message": "ulla at https://10.0.0.1:6443", "reason": "Unknown"}'
TROUBLES = [
    pytest.param(hanging_up, id="hangs-up"),
    pytest.param(said(), id="closes-without-an-answer"),
    pytest.param(said(then_hang=True), id="slow"),
    pytest.param(said(b"HTTP/1.1 201 Created\r\nContent-", then_hang=True), id="slow-in-its-headers"),
    pytest.param(said(answer("201 Created", ACCEPTED)[:-9], then_hang=True), id="slow-in-its-body"),
    *(pytest.param(said(answer(f"{status} X", STATUS, JSON)), id=f"{status}") for status in (400, 401, 403, 404, 409)),
    *(pytest.param(said(answer(f"{status} X", STATUS, JSON)), id=f"{status}") for status in (429, 500, 502, 503, 504)),
    pytest.param(repeating_the_token, id="500-with-the-token"),
    pytest.param(said(answer("200 OK", b"<html>Log in!</html>", b"Content-Type: text/html")), id="html"),
    pytest.param(said(answer("201 Created", b"", JSON)), id="empty"),
    pytest.param(said(answer("204 No Content")), id="no-content"),
    pytest.param(said(answer("201 Created", b"null", JSON)), id="null"),
    pytest.param(said(answer("201 Created", b"[]", JSON)), id="list"),
    pytest.param(said(answer("201 Created", STATUS, JSON)), id="another-kind"),
    pytest.param(said(answer("201 Created", b'{"kind": "TokenReview"}', JSON)), id="no-status"),
    pytest.param(said(answer("201 Created", ACCEPTED[:-1], JSON)), id="truncated-json"),
    pytest.param(said(answer("201 Created", ACCEPTED.replace(b"u", b"\xff"), JSON)), id="invalid-utf-8"),
    pytest.param(said(answer("201 Created", b"[" * 50_000, JSON)), id="deep"),
    pytest.param(said(answer("201 Created", review(authenticated="yes"), JSON)), id="authenticated-as-text"),
    pytest.param(said(answer("201 Created", review(authenticated=True), JSON)), id="nobody"),
    pytest.param(said(answer("201 Created", review(authenticated=True, user={"username": ""}), JSON)), id="no-name"),
    pytest.param(said(answer("201 Created", review(authenticated=True, user="ulla"), JSON)), id="user-as-text"),
    pytest.param(said(answer("201 Created", ACCEPTED).replace(b"Length: ", b"Length: 9")), id="cut-by-its-length"),
    pytest.param(said(chunked_head("application/json"), chunk(ACCEPTED)), id="cut-in-chunks"),
    pytest.param(said(chunked_head("application/json"), b"zz\r\n"), id="broken-chunk"),
    pytest.param(said(b"SSH-2.0-OpenSSH_9.9\r\n"), id="another-protocol"),
    pytest.param(said(b"\x16\x03\x01\x00\xff" * 100), id="bytes"),
    pytest.param(said(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), id="upgrade"),
    pytest.param(for_ever(b"HTTP/1.1 201 Created\r\n", b"X-Header: x\r\n" * 100), id="endless-headers"),
    pytest.param(for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), id="endless-interim-answers"),
    pytest.param(for_ever(chunked_head("application/json"), chunk(b" " * 10)), id="endless-body"),
]


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_cluster_in_trouble_is_503_at_the_door_and_inference_goes_on(target: Target, trouble: Script) -> None:
    login, token, cluster.script = target.newcomer(), target.access(), trouble

    refused = await at_the_door(target, login)
    chatted = await target.chat(token)
    listed = await target.ask("GET", "/v1/models", token=token)
    cluster.script = healthy
    again = await target.ask("POST", "/v1/tokens", token=login)

    assert [answer.refusal(503, "auth_unavailable")["param"] for answer in refused] == [None] * 4
    assert (chatted.status, listed.status) == (200, 200)
    assert again.status == 201  # trouble is not remembered
    assert b"ulla" not in b"".join(answer.received for answer in refused)


async def test_cluster_that_throttles_says_when_to_come_back(target: Target) -> None:
    cluster.script = said(answer("429 Too Many Requests", STATUS, b"Retry-After: 7"))

    answers = await at_the_door(target, target.newcomer())

    assert {answer.refusal(503, "auth_unavailable")["code"] for answer in answers} == {"auth_unavailable"}
    assert {answer.header("retry-after") for answer in answers} == {"7"}


@pytest.mark.parametrize("wait", [b"0", b"-1", b"soon", b"1e9", b"9" * 30, b"Wed, 21 Oct 2015 07:28:00 GMT", b"7, 8"])
async def test_senseless_wait_is_replaced_by_one_that_makes_sense(target: Target, wait: bytes) -> None:
    cluster.script = said(answer("429 Too Many Requests", STATUS, b"Retry-After: " + wait))

    refused = await target.ask("POST", "/v1/tokens", token=target.newcomer())

    refused.refusal(503, "auth_unavailable")
    assert 1 <= int(refused.header("retry-after") or 0) <= 60


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_redirect_is_not_followed_with_somebodys_token(target: Target, status: str) -> None:
    async with raw_upstream(said(answer("201 Created", ACCEPTED, JSON))) as trap:
        cluster.script = said(answer(status, b"", f"Location: {trap.url}/steal".encode()))
        answers = await at_the_door(target, target.newcomer())

    assert [answer.refusal(503, "auth_unavailable")["param"] for answer in answers] == [None] * 4
    assert trap.connections == []


async def test_cluster_that_is_down_is_503_and_inference_goes_on(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_upstream(hanging_up) as closed:
        pass
    async with besieged(tmp_path_factory.mktemp("keys"), openshift={"api_url": closed.url}) as target:
        refused = await at_the_door(target, target.newcomer())
        chatted = await target.chat(target.access())

    assert [answer.refusal(503, "auth_unavailable")["param"] for answer in refused] == [None] * 4
    assert chatted.status == 200
    target.logs_nothing_of_it(caplog)


async def test_slow_cluster_holds_up_nobody_else(target: Target) -> None:
    asked = anyio.Event()

    async def slow(connection: Connection) -> None:
        await connection.read_request()
        asked.set()
        await connection.until_client_left()

    cluster.script = slow
    refused: list[Answer] = []

    async def log_in() -> None:
        refused.extend(await at_the_door(target, login))

    login, token = target.newcomer(), target.access()
    async with anyio.create_task_group() as group:
        group.start_soon(log_in)
        await asked.wait()
        chatted = await target.chat(token)
        assert refused == []

    assert chatted.status == 200
    assert [answer.refusal(503, "auth_unavailable")["param"] for answer in refused] == [None] * 4
