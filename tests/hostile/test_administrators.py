"""Administrators and those who would like to be: what they may, over a socket, and what is recorded of it."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import pytest

from maas_middleware.testing.cluster import ClusterUser

from ..deployments import bearer
from ..fleet import ADMIN, FAY, USERS, fleet
from .attack import Target, request
from .test_keys_and_leaks import (
    ADMIN_TOKENS,
    ADMIN_USERS,
    KEYS,
    REVOKED,
    TOKENS,
    is_untouched,
    minted,
    newcomer,
    on_sqlite,
    reason,
    told,
    writing,
)

ACTS = [("GET", ADMIN_USERS), ("HEAD", ADMIN_USERS), ("GET", ADMIN_TOKENS), ("HEAD", ADMIN_TOKENS)]
ACTS += [("DELETE", ADMIN_TOKENS)]
EVENTS = {
    ("GET", ADMIN_USERS): "admin.users.read",
    ("HEAD", ADMIN_USERS): "admin.users.read",
    ("GET", ADMIN_TOKENS): "admin.tokens.read",
    ("HEAD", ADMIN_TOKENS): "admin.tokens.read",
    ("DELETE", ADMIN_TOKENS): "admin.tokens.revoke",
}


@pytest.fixture(scope="module", params=["gateway-in-memory", "gateway", "mounted"])
async def besieged_target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Target]:
    form, _, memory = request.param.partition("-")
    store = {"store": "memory://"} if memory else {}
    async with on_sqlite(tmp_path_factory.mktemp("site"), form, **store) as target:
        yield target


class Trail:
    """The audit records, as the log has them."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self._log = log

    def lines(self) -> list[str]:
        return [one.getMessage() for one in self._log.records if one.name == "maas_middleware.audit"]

    def take(self) -> list[dict[str, Any]]:
        """What was recorded since; every record is one line of JSON in ASCII that is fit for a terminal."""
        lines = self.lines()
        self._log.clear()
        for line in lines:
            assert line.isascii()
            assert line.isprintable()
        return [json.loads(line) for line in lines]


@pytest.fixture
def trail(target: Target, caplog: pytest.LogCaptureFixture) -> Trail:
    caplog.set_level(logging.INFO, logger="maas_middleware.audit")
    caplog.clear()
    return Trail(caplog)


async def administrator(target: Target) -> str:
    """A login of somebody whom nobody has seen before."""
    return target.newcomer("crew", "wardens")


def name_of(target: Target, login: str) -> str:
    return target.service.cluster.users[login].name


@pytest.mark.parametrize("prefix", ["", "/maas-api"])
async def test_administrator_looks_at_a_user_and_revokes_and_each_act_is_one_record(
    target: Target, trail: Trail, prefix: str
) -> None:
    admin, owner, other = await administrator(target), await newcomer(target), await newcomer(target)
    before = list(trail.take())

    answers = {
        act: await target.ask(act[0], f"{prefix}{act[1]}?user={owner.name}", "X-Request-Id: of-the-admin", token=admin)
        for act in ACTS
    }
    records = trail.take()

    assert before == []
    assert [answer.status for answer in answers.values()] == [200, 200, 200, 200, 204]
    shown = json.loads(answers["GET", ADMIN_USERS].body)
    assert (shown["user"], shown["apiKeys"]["active"], shown["accessTokens"]["active"]) == (owner.name, 1, 1)
    listed = json.loads(answers["GET", ADMIN_TOKENS].body)
    assert {row["id"] for row in listed} == {owner.token_id, owner.key_id}
    assert await reason(target, owner.token) == await reason(target, owner.key) == REVOKED
    assert await is_untouched(target, other)
    assert [record.pop("event") for record in records] == list(EVENTS.values())
    assert {re.sub(r"\d", "0", record.pop("time")) for record in records} == {"0000-00-00T00:00:00.000Z"}
    expected = {
        "actor": f"openshift/{name_of(target, admin)}",
        "subject": f"openshift/{owner.name}",
        "request_id": "of-the-admin",
        "outcome": "done",
    }
    assert records == [expected] * 5


@pytest.mark.parametrize("who", ["somebody", "administrators-token", "administrators-key", "administrators-alike"])
async def test_nobody_else_may_and_the_attempt_is_recorded(target: Target, trail: Trail, who: str) -> None:
    owner = await newcomer(target)
    if who == "somebody":
        login = target.newcomer()
        credential = login
    elif who == "administrators-alike":
        login = credential = target.newcomer("crew", "Wardens", "wardens ", "wardens,crew", "system:masters", "warden")
    else:
        actor = await newcomer(target, "crew", "wardens")
        login, credential = actor.login, actor.token if who.endswith("token") else actor.key
    trail.take()

    for method, path in ACTS:
        answer = await target.ask(method, f"{path}?user={owner.name}", "X-Remote-Group: wardens", token=credential)
        assert answer.status == 403
        (record,) = trail.take()
        assert (record["event"], record["outcome"]) == (EVENTS[method, path], "denied")
        assert record["actor"] == f"openshift/{name_of(target, login)}"
        assert record["subject"] == f"openshift/{owner.name}"

    assert await is_untouched(target, owner)


async def test_who_may_not_learns_nothing_of_which_users_there_are(target: Target) -> None:
    owner, login = await newcomer(target), target.newcomer()
    queries = [f"?user={owner.name}", "?user=nobody-has-this-name", "", "?user=", "?user=a&user=b", "?user=%ff", "?x"]
    queries += [f"?user={owner.name}&provider=github", "?user=" + "x" * 5000, f"?user={owner.name}&limit=no"]

    for method, path in ACTS:
        answers = [await target.ask(method, path + query, token=login) for query in queries]
        strangers = [await target.ask(method, path + query) for query in queries]
        assert {repr(told(answer)) for answer in answers} == {repr(told(answers[0]))}
        assert {repr(told(answer)) for answer in strangers} == {repr(told(await target.ask(method, "/v1/nothing")))}
        assert (answers[0].status, strangers[0].status) == (403, 401)


NAMELESS = [
    *(
        "",
        "?",
        "?user",
        "?user=",
        "?User={0}",
        "?users={0}",
        "?user[]={0}",
        "?user%00={0}",
        "?;user={0}",
        "?user={0}%ff",
    ),
    *("?user={0}&user={0}", "?user={0}&user=", "?user=&user={0}", "?user={0}&%75ser=x", "?user={0}&provider="),
    *("?user={0}&provider=a/b", "?user={0}&provider=openshift&provider=openshift", "?user={0}&provider=[x"),
    pytest.param("?user=" + "x" * 1025, id="1025-characters"),
    pytest.param("?user=" + "%F0%9F%92%A9" * 1025, id="1025-characters-of-4-bytes"),
    pytest.param("?user={0}&provider=" + "x" * 1025, id="provider-of-1025-characters"),
]


@pytest.mark.parametrize("query", NAMELESS)
async def test_request_that_names_no_one_user_does_nothing(target: Target, trail: Trail, query: str) -> None:
    admin, owner = await administrator(target), await newcomer(target)

    for method, path in ACTS:
        answer = await target.ask(method, path + query.format(owner.name), token=admin)
        (record,) = trail.take()
        assert answer.status == 400
        if method != "HEAD":
            assert answer.refusal(400, "invalid_value")["param"] == "user"
        assert (record["subject"], record["outcome"]) == (None, "failed")

    assert await is_untouched(target, owner)


STRANGERS = ["{0}%00", "{0}%20", "%20{0}", "{0}%0a", "{0}/", "openshift/{0}", "{0}%2f..", "*", "%25", "{0}%C2%A0"]
STRANGERS += ["' OR '1'='1", "{0}' --", "{0}%5C", "%5Csha256:00", "{0}%E2%80%8B", "{1}", "_", "null", "\\{0}"]


@pytest.mark.parametrize("name", STRANGERS)
async def test_user_is_who_is_named_exactly_and_nobody_alike(target: Target, trail: Trail, name: str) -> None:
    admin, owner = await administrator(target), await newcomer(target)
    query = "?user=" + quote(name.format(owner.name, owner.name.upper()), "%")

    shown = await target.ask("GET", ADMIN_USERS + query, token=admin)
    listed = await target.ask("GET", ADMIN_TOKENS + query, token=admin)
    page = await target.ask("GET", f"{ADMIN_TOKENS}{query}&after={owner.key_id}", token=admin)
    revoked = await target.ask("DELETE", ADMIN_TOKENS + query, token=admin)

    shown.refusal(404, "not_found")
    assert json.loads(listed.body) == []
    page.refusal(400, "invalid_value")
    assert revoked.status == 204
    assert len({record["subject"] for record in trail.take()}) == 1
    assert await is_untouched(target, owner)


@pytest.mark.parametrize("provider", ["github", "OpenShift", "openshift%20", "openshift%00"])
async def test_user_of_the_same_name_at_another_provider_is_another(target: Target, provider: str) -> None:
    admin, owner = await administrator(target), await newcomer(target)

    revoked = await target.ask("DELETE", f"{ADMIN_TOKENS}?user={owner.name}&provider={provider}", token=admin)

    assert revoked.status == 204
    assert await is_untouched(target, owner)


@pytest.mark.parametrize("name", ["system:serviceaccount:a:b", "a/b", "a b", 'é\' "☃"', "-", "\\", "100%", "x" * 1014])
async def test_user_of_whatever_name_can_be_revoked(target: Target, trail: Trail, name: str) -> None:
    admin, token = await administrator(target), target.access(name)
    assert (await target.ask("GET", "/v1/models", token=token)).status == 200

    answer = await target.ask("DELETE", f"{ADMIN_TOKENS}?user={quote(name, '')}", token=admin)

    assert answer.status == 204
    assert [record["subject"] for record in trail.take()] == [f"openshift/{name}"]
    assert await reason(target, token) == REVOKED


FORGING = [
    'x\n{"event": "admin.tokens.revoke", "outcome": "done"}',
    *(
        "x\r\nINFO: forged",
        "x\x1b[2K\x1b[1A",
        "x\x9b2K",
        'x", "outcome": "done',
        "x\\",
        "x\u2028y",
        "x\u202ey",
        "x\x00",
    ),
    *("x\x08\x08\x08", "x%s%d%n", "{0}{1}", "x\x7f", "x\x85y"),
]


@pytest.mark.parametrize("name", FORGING, ids=ascii)
async def test_no_name_forges_a_record(target: Target, trail: Trail, name: str) -> None:
    actor = target.newcomer("crew", "wardens")
    target.service.cluster.users[actor] = ClusterUser(name, ("crew", "wardens"))
    forged_id = 'X-Request-Id: x", "outcome": "done'

    for login in (actor, target.newcomer()):
        await target.ask("DELETE", f"{ADMIN_TOKENS}?user={quote(name, '')}", forged_id, token=login)
        (record,) = trail.take()
        assert list(record) == ["event", "actor", "subject", "time", "request_id", "outcome"]
        assert record["actor"] == f"openshift/{name_of(target, login)}"
        assert record["subject"] == f"openshift/{name}"
        assert record["outcome"] == ("done" if login == actor else "denied")
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", record["request_id"])


async def test_administrator_whose_group_is_taken_away_is_none_at_the_next_login(target: Target, trail: Trail) -> None:
    admin, owner = await administrator(target), await newcomer(target)
    assert (await target.ask("GET", f"{ADMIN_USERS}?user={owner.name}", token=admin)).status == 200

    next_login = target.newcomer("crew")
    target.service.cluster.users[next_login] = ClusterUser(name_of(target, admin), ("crew",))
    trail.take()
    answer = await target.ask("DELETE", f"{ADMIN_TOKENS}?user={owner.name}", token=next_login)

    answer.refusal(403, "access_denied")
    assert [record["outcome"] for record in trail.take()] == ["denied"]
    assert await is_untouched(target, owner)


@pytest.mark.parametrize("scopes", [["user:info"], ["user:check-access"], []])
async def test_login_that_is_not_a_full_one_is_no_administrator(
    target: Target, trail: Trail, scopes: list[str]
) -> None:
    login, owner = target.newcomer(), await newcomer(target)
    extra = {"scopes.authorization.openshift.io": scopes}
    target.service.cluster.users[login] = ClusterUser("a-warden", ("crew", "wardens"), extra=extra)

    answers = [await target.ask(method, f"{path}?user={owner.name}", token=login) for method, path in ACTS]

    assert [answer.status for answer in answers] == [403] * 5
    assert {record["outcome"] for record in trail.take()} == {"denied"}
    assert await is_untouched(target, owner)


async def test_administrator_is_not_locked_out_by_revoking_for_themselves(target: Target) -> None:
    actor = await newcomer(target, "crew", "wardens")

    answer = await target.ask("DELETE", f"{ADMIN_TOKENS}?user={actor.name}", token=actor.login)
    again = (await minted(target, actor.login))["token"]

    assert answer.status == 204
    assert await reason(target, actor.key) == REVOKED
    assert (await target.chat(again)).status == 200


async def test_administrator_may_see_and_revoke_and_not_mint_or_take_for_others(target: Target) -> None:
    admin, owner = await administrator(target), await newcomer(target)

    for method, path in (
        *(("POST", f"{ADMIN_TOKENS}?user={owner.name}"), ("POST", f"{ADMIN_USERS}?user={owner.name}")),
        *(("PUT", f"{ADMIN_TOKENS}?user={owner.name}"), ("DELETE", f"{ADMIN_USERS}?user={owner.name}")),
    ):
        (await target.ask(method, path, token=admin, body="{}")).refusal(405, "method_not_allowed")
    for path in (f"{ADMIN_TOKENS}/{owner.key_id}?user={owner.name}", f"/v1/admin/api-keys?user={owner.name}"):
        (await target.ask("DELETE", path, token=admin)).refusal(404, "not_found")
    of_owner = await target.ask("DELETE", f"{KEYS}/{owner.key_id}?user={owner.name}", token=admin)
    everything = await target.ask("DELETE", f"{TOKENS}?user={owner.name}", token=admin)  # the administrator's own
    rows = await target.ask("GET", f"{KEYS}?user={owner.name}", token=admin)

    of_owner.refusal(404, "not_found")
    assert everything.status == 204
    assert json.loads(rows.body) == []
    assert await is_untouched(target, owner)


async def test_act_of_an_administrator_who_hangs_up_is_done_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="maas_middleware.audit")
    trail = Trail(caplog)
    async with on_sqlite(tmp_path) as target:
        admin, owner = await administrator(target), await newcomer(target)
        with writing(tmp_path):
            stream = await anyio.connect_tcp("127.0.0.1", target.port)
            await stream.send(request("DELETE", f"{ADMIN_TOKENS}?user={owner.name}", token=admin))
            for _ in range(3):
                assert (await target.ask("GET", "/v1/models", token=owner.key)).status == 200
            await stream.aclose()
        with anyio.fail_after(10):
            while not trail.lines():
                await target.ask("GET", "/health")

        (record,) = trail.take()
        assert (record["event"], record["outcome"]) == ("admin.tokens.revoke", "done")
        assert await reason(target, owner.key) == REVOKED


async def test_act_that_fails_is_recorded_as_one_that_may_not_have_happened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="maas_middleware.audit")
    async with on_sqlite(tmp_path, store_timeout="300ms") as target:
        admin, owner = await administrator(target), await newcomer(target)
        with writing(tmp_path):
            answer = await target.ask("DELETE", f"{ADMIN_TOKENS}?user={owner.name}", token=admin)

        answer.refusal(503, "store_unavailable")
        assert [record["outcome"] for record in Trail(caplog).take()] == ["failed"]
        assert await is_untouched(target, owner)


@contextmanager
def served(config: Path, workers: int, output: Path) -> Iterator[str]:
    """A gateway of the command line; yields its URL. What it prints is in the file at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    options = ["--config", str(config), "--port", port, "--workers", str(workers)]
    with output.open("w") as file:
        command = [sys.executable, "-m", "maas_middleware", "serve", *options]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=15)


async def until_it_answers(client: httpx.AsyncClient) -> None:
    with anyio.fail_after(20):
        while True:
            try:
                await client.get("/health")
                return
            except httpx.TransportError:
                await anyio.lowlevel.checkpoint()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [1, 2])
async def test_served_gateway_prints_what_administrators_do_and_no_token(tmp_path: Path, workers: int) -> None:
    async with fleet(f"sqlite:///{tmp_path}/maas.db", tmp_path) as site:
        config, output = tmp_path / "maas.json", tmp_path / "output"
        with served(config, workers, output) as url:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                await until_it_answers(client)
                token = (await client.post(TOKENS, headers=bearer(FAY))).json()["token"]
                done = await client.delete(f"{ADMIN_TOKENS}?user=fay", headers=bearer(ADMIN))
                denied = await client.delete(f"{ADMIN_TOKENS}?user=fay", headers=bearer(FAY))
        assert site.simulator.requests == []

    printed = output.read_text()
    records = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert (done.status_code, denied.status_code) == (204, 403)
    assert [(record["actor"], record["outcome"]) for record in records] == [
        ("openshift/ada", "done"),
        ("openshift/fay", "denied"),
    ]
    assert [secret for secret in (token, *USERS) if secret in printed] == []
