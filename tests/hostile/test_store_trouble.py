"""A database in trouble: whoever asks is told to come back, nothing is told of it, and what was revoked stays so."""

from __future__ import annotations

import json
import logging
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from maas_middleware import ConfigurationError, Settings, gateway, load_settings
from maas_middleware.providers.keys import SigningKeys

from ..deployments import bearer
from ..fleet import ADMIN, FAY, fleet
from ..stores.postgres_server import PASSWORD, PostgresServer, running_postgres
from .attack import Answer, Target
from .test_keys_and_leaks import (
    ADMIN_TOKENS,
    ADMIN_USERS,
    KEYS,
    REVOKED,
    TOKENS,
    Owner,
    everything_logged,
    is_untouched,
    minted,
    newcomer,
    on_sqlite,
    reason,
    writing,
)

NEEDS_THE_STORE = [
    *(("POST", TOKENS), ("DELETE", TOKENS), ("DELETE", f"{TOKENS}/{{0.token_id}}"), ("POST", KEYS), ("GET", KEYS)),
    *(("GET", f"{KEYS}/{{0.key_id}}"), ("DELETE", f"{KEYS}/{{0.key_id}}"), ("GET", f"{KEYS}?after={{0.key_id}}")),
    *(("GET", "/v1/usage"), ("GET", f"{ADMIN_USERS}?user={{0.name}}"), ("GET", f"{ADMIN_TOKENS}?user={{0.name}}")),
    ("DELETE", f"{ADMIN_TOKENS}?user={{0.name}}"),
]
NEEDS_NO_STORE = [("GET", "/v1/me"), ("GET", "/v1/models"), ("GET", "/health"), ("GET", "/.well-known/jwks.json")]
TIMEOUT, BREAKING_OFF = 1.0, 1.0

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


async def asked(target: Target, method: str, path: str, owner: Owner) -> Answer:
    body = '{"name": "ci"}' if method == "POST" else None
    return await target.ask(method, path.format(owner), token=owner.login, body=body)


async def until(condition: Callable[[Answer], bool], target: Target, owner: Owner, path: str = "/ready") -> None:
    with anyio.fail_after(20):
        while not condition(await asked(target, "GET", path, owner)):
            pass


async def until_healthy(target: Target, owner: Owner) -> None:
    await until(lambda answer: json.loads(answer.body) == {"status": "ready"}, target, owner)


async def is_refused_in_time(target: Target, method: str, path: str, owner: Owner) -> None:
    began_at = time.monotonic()
    (await asked(target, method, path, owner)).refusal(503, "store_unavailable")
    assert time.monotonic() - began_at < TIMEOUT + BREAKING_OFF + 1, (method, path)


@pytest.mark.parametrize("trouble", ["frozen", "killed"])
async def test_server_that_goes_away_is_503_in_time_everywhere_and_tells_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    with running_postgres() as server:
        store = await server.new_database()
        async with on_sqlite(tmp_path, store=store, store_timeout=f"{TIMEOUT}s") as target:
            with everything_logged(caplog):
                target.secrets.append(PASSWORD)
                owner, gone = await newcomer(target, "crew", "wardens"), await newcomer(target)
                assert (await target.ask("DELETE", TOKENS, token=gone.login)).status == 204
                (server.freeze if trouble == "frozen" else server.kill)()

                async with anyio.create_task_group() as group:
                    for method, path in NEEDS_THE_STORE:
                        group.start_soon(is_refused_in_time, target, method, path, owner)
                for method, path in NEEDS_NO_STORE:
                    assert (await asked(target, method, path, owner)).status == 200, path
                assert (await target.chat(owner.key)).status == 200
                assert await reason(target, gone.key) == REVOKED
                (server.thaw if trouble == "frozen" else server.start)()
                await until_healthy(target, owner)

                # what was asked for in vain may have happened, as whoever asked was told
                fresh = await newcomer(target, "crew", "wardens")
                for method, path in NEEDS_THE_STORE:
                    answer = await asked(target, method, path, fresh)
                    assert answer.status in (200, 201, 204), (method, path)
                assert await reason(target, gone.key) == REVOKED

    lines = [logging.Formatter().format(record) for record in caplog.records]
    ours = [line for line, record in zip(lines, caplog.records, strict=True) if record.name.startswith("maas_")]
    assert [line for line in lines if PASSWORD in line] == []
    assert [line for line in ours if f":{server.port}" in line or "Traceback" in line] == []
    assert [line for line in ours if line.startswith("the database")] != []


async def test_server_that_is_killed_in_the_middle_of_each_request_is_503(tmp_path: Path) -> None:
    with running_postgres() as server:
        async with on_sqlite(tmp_path, store=await server.new_database(), store_timeout="5s") as target:
            owner = await newcomer(target, "crew", "wardens")
            answers = list[Answer]()
            server.freeze()

            async def ask(method: str, path: str) -> None:
                answers.append(await asked(target, method, path, owner))

            async with anyio.create_task_group() as group:
                for method, path in NEEDS_THE_STORE:
                    group.start_soon(ask, method, path)
                assert (await target.chat(owner.token)).status == 200  # they wait meanwhile
                assert answers == []
                server.kill()

            for answer in answers:
                answer.refusal(503, "store_unavailable")
            server.start()
            await until_healthy(target, owner)
            assert await is_untouched(target, owner)


@pytest.mark.parametrize("wrong", ["password", "user", "database", "port"])
async def test_server_that_does_not_let_us_in_is_503_and_its_url_is_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, postgres: PostgresServer, wrong: str
) -> None:
    secret = "hunter2-the-secret"
    good = await postgres.new_database()
    database = "maas-of-nobody" if wrong == "database" else good.rpartition("/")[2]
    user, password = ("nobody-here" if wrong == "user" else "maas"), PASSWORD if wrong == "database" else secret
    port = 9 if wrong == "port" else postgres.port
    store = f"postgresql://{user}:{password}@127.0.0.1:{port}/{database}"
    caplog.set_level(logging.DEBUG)

    with pytest.raises(AssertionError) as raised:  # of `besieged`, which asks for something to begin with
        async with on_sqlite(tmp_path, store=store):
            raise AssertionError("somebody was served")

    assert "somebody was served" not in str(raised.value)
    assert [one for one in caplog.messages if one.startswith("answered 503 store_unavailable to request")] != []
    lines = [logging.Formatter().format(record) for record in caplog.records]
    ours = [line for line, record in zip(lines, caplog.records, strict=True) if record.name.startswith("maas_")]
    assert [line for line in lines if password in line] == []
    assert [line for line in ours if "127.0.0.1" in line or database in line or user in line.split()] == []
    assert [line for line in ours if line.startswith("the database")] != []


# passwords in the configuration


URLS = {
    "store": "postgresql://maas:hunter2-the-secret@db.example.com/maas",
    "counters": "redis://maas:hunter2-the-secret@redis.example.com/0",
}
BAD_URLS = {
    "store": [
        *("postgresql://maas:hunter2-the-secret@db.example.com", "postgresql://maas:hunter2-the-secret@:99999/maas"),
        *("mysql://maas:hunter2-the-secret@db.example.com/maas", "postgresql://maas:hunter2-the-secret@db/maas?x=1"),
        *("postgresql:/maas:hunter2-the-secret@db/maas", "postgresql://maas:hunter2-the-secret@db/maas/x"),
    ],
    "counters": [
        *("redis://maas:hunter2-the-secret@redis/x", "redis:maas:hunter2-the-secret@redis", "hunter2-the-secret"),
        *("memcached://maas:hunter2-the-secret@redis", "redis://maas:hunter2-the-secret@redis/0?x=hunter2-the-secret"),
    ],
}


@pytest.fixture
def keys_file(tmp_path: Path) -> str:
    SigningKeys.generate().save(tmp_path / "keys.json")
    return str(tmp_path / "keys.json")


@pytest.mark.parametrize("key", ["store", "counters"])
def test_password_of_a_url_is_not_in_what_settings_look_like(key: str, keys_file: str) -> None:
    url: dict[str, Any] = {key: URLS[key]}
    settings = load_settings({}, **url, tokens={"signing_keys_file": keys_file})

    looks = [repr(settings), str(settings), f"{settings}", f"{[settings]!r}"]

    assert getattr(settings, key) == URLS[key]
    assert [look for look in looks if "hunter2" in look] == []


@pytest.mark.parametrize(("key", "url"), [(key, url) for key, urls in BAD_URLS.items() for url in urls])
@pytest.mark.parametrize("where", ["keyword", "file", "environment"])
def test_password_of_a_url_that_is_refused_is_not_quoted(
    key: str, url: str, where: str, keys_file: str, tmp_path: Path
) -> None:
    (secret := tmp_path / "url").write_text(url)
    environ = {f"MAAS_{key.upper()}": url} if where == "environment" else {}
    config: dict[str, Any] = {"keyword": {key: url}, "file": {f"{key}_file": str(secret)}}.get(where, {})

    with pytest.raises(ConfigurationError) as error:
        gateway(load_settings(environ, **config, tokens={"signing_keys_file": keys_file}))

    assert key in str(error.value).lower() or "models" in str(error.value)
    assert "hunter2" not in str(error.value) + repr(error.value)


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize("is_good", [True, False])
def test_password_of_a_url_is_in_nothing_that_the_command_line_prints(
    command: str, is_good: bool, keys_file: str, tmp_path: Path
) -> None:
    urls = URLS if is_good else {key: bad[0] for key, bad in BAD_URLS.items()}
    (config := tmp_path / "maas.json").write_text(
        json.dumps({**urls, "tokens": {"signing_keys_file": keys_file}, "replicas": 2})  # no models: serve refuses
    )

    done = subprocess.run(
        [sys.executable, "-m", "maas_middleware", command, "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.returncode == (0 if command == "check" and is_good else 1)
    assert done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_settings_of_a_file_look_like_its_path(tmp_path: Path, keys_file: str) -> None:
    (secret := tmp_path / "url").write_text(URLS["store"])

    settings = load_settings({}, store_file=str(secret), tokens={"signing_keys_file": keys_file})

    assert str(secret) in repr(settings)
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in repr(Settings(store=URLS["store"]))


# a SQLite file that others lay hands on


def overwrite(directory: Path) -> None:
    for file in directory.glob("maas.db*"):
        file.write_bytes(b"no database at all. " * 5000)


def delete(directory: Path) -> None:
    for file in directory.glob("maas.db*"):
        file.unlink()


async def test_file_that_another_process_writes_to_for_long_is_503_for_writers_and_readable(tmp_path: Path) -> None:
    async with on_sqlite(tmp_path, store_timeout=f"{TIMEOUT}s") as target:
        owner = await newcomer(target, "crew", "wardens")
        with writing(tmp_path):
            answers = {
                (method, path): await asked(target, method, path, owner)
                for method, path in NEEDS_THE_STORE
                if path != "/v1/usage"  # of which a part may be unwritten
            }
            still = [(await target.ask("GET", "/v1/models", token=token)).status for token in (owner.token, owner.key)]

        for (method, _), answer in answers.items():
            if method == "GET":
                assert answer.status == 200
            else:
                answer.refusal(503, "store_unavailable")
        assert still == [200, 200]
        assert await is_untouched(target, owner)
        assert (await minted(target, owner.login))["token"]


async def test_file_that_is_overwritten_is_503_and_what_was_revoked_stays_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="maas_middleware")
    async with on_sqlite(tmp_path) as target:
        owner, gone = await newcomer(target, "crew", "wardens"), await newcomer(target)
        assert (await target.ask("DELETE", TOKENS, token=gone.login)).status == 204

        overwrite(tmp_path)
        for method, path in NEEDS_THE_STORE:
            answer = await asked(target, method, path, owner)
            assert answer.status in (200, 201, 204, 404, 503), (method, path)
            assert answer.status != 503 or answer.refusal(503, "store_unavailable")
        assert await reason(target, gone.key) == REVOKED
        assert await reason(target, gone.token) == REVOKED

    lines = [logging.Formatter().format(one) for one in caplog.records if one.name == "maas_middleware"]
    assert [line for line in lines if "Traceback" in line or str(tmp_path) in line] == []


async def test_file_that_is_deleted_makes_nothing_valid_that_was_revoked(tmp_path: Path) -> None:
    async with on_sqlite(tmp_path) as target:
        owner, gone, once = await newcomer(target), await newcomer(target), await newcomer(target)
        assert (await target.ask("DELETE", TOKENS, token=gone.login)).status == 204
        assert (await target.ask("DELETE", f"{KEYS}/{once.key_id}", token=once.login)).status == 204

        delete(tmp_path)
        with anyio.fail_after(10):
            while (await target.ask("POST", TOKENS, token=owner.login)).status != 201:
                pass

        assert await reason(target, gone.key) == REVOKED
        assert await reason(target, once.key) == REVOKED
        assert (await target.ask("GET", "/v1/models", token=owner.key)).status == 200


async def test_disk_that_is_full_is_503_for_writers_and_works_again(tmp_path: Path) -> None:
    async with fleet(f"sqlite:///{tmp_path}/maas.db", tmp_path, store_timeout="500ms") as site:
        replica = await site.replica()
        token, key = (await replica.mint())["token"], await replica.api_key()
        pid = replica.process.process.pid

        unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        refused = [
            await replica.http.post("/v1/tokens", headers=bearer(FAY)),
            await replica.http.post("/v1/api-keys", headers=bearer(FAY), json={"name": "ci"}),
            await replica.http.delete(f"/v1/api-keys/{key['jti']}", headers=bearer(FAY)),
            await replica.http.delete("/v1/tokens", headers=bearer(FAY)),
            await replica.http.delete("/v1/admin/tokens?user=fay", headers=bearer(ADMIN)),
        ]
        meanwhile = await replica.call(token)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        again = await replica.mint()
        revoked = await replica.http.delete(f"/v1/api-keys/{key['jti']}", headers=bearer(FAY))
        refused_key = await replica.models(key["token"])

    assert [answer.status_code for answer in refused] == [503] * 5
    assert {answer.json()["error"]["code"] for answer in refused} == {"store_unavailable"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert meanwhile.status_code == 200
    assert again["token"]
    assert revoked.status_code == 204
    assert refused_key.status_code == 401


@pytest.mark.parametrize("how", ["deleted", "exchanged"])
async def test_revocation_that_was_answered_is_in_the_file_of_that_name_whatever_became_of_the_file_before(
    tmp_path: Path, how: str
) -> None:
    async with on_sqlite(tmp_path) as target:
        owner = await newcomer(target)
        exchange(tmp_path) if how == "exchanged" else delete(tmp_path)

        with anyio.fail_after(10):
            while (await target.ask("DELETE", TOKENS, token=owner.login)).status != 204:
                pass

        assert revocations_in(tmp_path) == {f"openshift/{owner.name}": 1}
        assert (tmp_path / "maas.db").stat().st_mode & 0o077 == 0
        assert await reason(target, owner.key) == REVOKED


def exchange(directory: Path) -> None:
    """Put a copy in its place, as one does who restores a backup."""
    copy = directory / "copy.db"
    with closing(sqlite3.connect(directory / "maas.db")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    copy.chmod(0o600)
    delete(directory)
    copy.rename(directory / "maas.db")


def revocations_in(directory: Path) -> dict[str, int]:
    with closing(sqlite3.connect(directory / "maas.db")) as connection:
        return dict(connection.execute("SELECT name, generation FROM maas_owners").fetchall())
