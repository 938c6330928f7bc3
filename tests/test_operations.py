"""What docs/operations.md tells operators to write and to run works, and what it quotes is so."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import asyncpg  # type: ignore[import-untyped]  # it has no types of its own
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware

from maas_middleware import (
    FollowedTokenStore,
    MaaSMiddleware,
    MovingWindowThrottle,
    RedisLedger,
    Settings,
    SQLDatabase,
    SQLTokenStore,
    SQLUsageStore,
    StoreUnavailable,
    ThrottleStorage,
    TokenRecord,
    UsageRecord,
    gateway,
    load_settings,
)
from maas_middleware.audit import AuditRecord
from maas_middleware.cli import main
from maas_middleware.ledgers._storage import MAXIMUM_CONNECTIONS
from maas_middleware.limiting import Demand, Subject, parse_limits
from maas_middleware.settings import counters_of, signing_keys_path, store_of
from maas_middleware.stores._engines import CONNECTIONS
from maas_middleware.testing.clock import FakeClock
from maas_middleware.tokens import Claims

from .ledgers.redis_server import running_redis
from .processes import ROOT
from .servers import serving
from .stores.postgres_server import PostgresServer, running_postgres

PAGE = (ROOT / "docs" / "operations.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.M | re.S)
SECRET_FILES = re.findall(r"`(/etc/maas-secrets/[a-z-]+-url)`", PAGE)
LOGGED = PAGE.partition("## Logs")[2].partition("**The audit log**")[0]
ALICE = "openshift/alice"


def block(language: str, words: str = "") -> str:
    """The one block of that language which has these words."""
    (found,) = [text for kind, text in BLOCKS if kind == language and words in text]
    return found


def whole(url: str, database: str, password: str = "change-me") -> str:
    """The URL of that server, as the page's service has it."""
    return f"postgresql://maas_service:{password}@{url.rpartition('@')[2].rpartition('/')[0]}/{database}"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's configuration, with the files that it names, in another folder."""
    for name in [name for name in os.environ if name.startswith("MAAS_")]:
        monkeypatch.delenv(name)
    text = block("yaml", "store_file:").replace("/etc/maas-secrets", str(tmp_path)).replace("/keys/", f"{tmp_path}/")
    for path, url in zip(SECRET_FILES, block("text").splitlines(), strict=True):
        (tmp_path / Path(path).name).write_text(f"{url}\n")
    (tmp_path / "qwen3-api-key").write_text("upstream-key\n")
    assert main(["new-key", str(tmp_path / "keys.json")]) == 0
    (file := tmp_path / "maas.yaml").write_text(text)
    return file


def test_configuration_is_valid_and_nothing_in_it_is_probably_not_meant(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--config", str(config)]) == 0

    printed = capsys.readouterr().out
    assert printed.endswith("The configuration is valid.\n")
    assert "warning" not in printed
    assert "\nFor `maas-gateway serve`: every model has upstreams.\n" in printed


def test_configuration_says_what_the_page_says(config: Path) -> None:
    settings = load_settings({}, config=str(config))

    assert [store_of(settings), counters_of(settings)] == block("text").splitlines()
    assert signing_keys_path(settings) == config.with_name("keys.json")
    assert (settings.replicas, settings.on_counters_failure) == (3, "local")
    assert settings.tokens.administrators == ("maas-admins",)
    assert settings.models is not None
    assert [model.id for model in settings.models] == ["granite", "qwen3"]


async def test_probes_are_answered() -> None:
    await assert_answered(gateway(settings_of("memory://")), re.findall(r"^\|[^|]*\| `(/[a-z]+)` \|", PAGE, re.M))
    inner = Starlette(middleware=[Middleware(MaaSMiddleware, settings=settings_of("memory://"))])
    await assert_answered(inner, re.findall(r"`(/maas-api/[a-z]+)` \|$", PAGE, re.M))


def settings_of(store: str) -> Settings:
    models = [{"id": "one", "tiers": "all", "upstreams": ["http://127.0.0.1:9"]}]
    return load_settings({}, store=store, models=models)


async def assert_answered(app: Any, paths: list[str]) -> None:
    async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        assert [(await client.get(path)).status_code for path in paths] == [200, 200]


@pytest.mark.parametrize("sample", re.findall(r"`([^`]+)` is written `[^`]+`", PAGE))
async def test_passwords_in_urls_are_percent_encoded(sample: str, postgres: PostgresServer) -> None:
    (encoded,) = re.findall(r"is written `([^`]+)`", PAGE)
    command = ["bash", "-c", block("bash", "quote(input()").replace("python3", sys.executable)]
    ran = await anyio.run_process(command, input=sample.encode())
    url = await prepared(postgres, "encoded", "CREATE DATABASE {} OWNER maas_service", password=sample)

    assert ran.stdout.decode().strip() == encoded == quote(sample, safe="")
    await work(url.replace("change-me", encoded))
    with running_redis("--requirepass", sample) as redis:
        await count(f"redis://:{encoded}@127.0.0.1:{redis.port}/0")


async def count(url: str) -> None:
    """Use Redis for what the service uses it for; raises where it is refused."""
    ledger, storage = RedisLedger(url, timeout=5), ThrottleStorage(url, timeout=5)
    throttle = MovingWindowThrottle("1/minute", name="mints", storage=storage)
    verdict = await ledger.admit(Subject(ALICE, parse_limits("5/minute")), Demand("lease", 0))
    assert verdict.lease is not None
    assert [await throttle.hit(ALICE) is None for _ in range(2)] == [True, False]
    assert not storage.degraded
    await storage.aclose()
    await ledger.aclose()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


async def run_sql(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def prepared(server: PostgresServer, database: str, create: str, *, password: str = "change-me") -> str:
    """Make a database, and the page's role where there is none; returns the service's URL of it."""
    role, _ = block("sql", "CREATE ROLE").splitlines()
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        if not await connection.fetchval("SELECT COUNT(*) FROM pg_roles WHERE rolname = 'maas_service'"):
            await connection.execute(role)
        await connection.execute(f"ALTER ROLE maas_service PASSWORD '{password}'")
        await connection.execute(create.format(database))
    finally:
        await connection.close()
    return whole(server.url(database), database)


@asynccontextmanager
async def connected(url: str, clock: FakeClock | None = None) -> AsyncIterator[SQLDatabase]:
    database = SQLDatabase(url, timeout=10, clock=clock or FakeClock())
    try:
        yield database
    finally:
        await database.aclose()


async def work(url: str) -> None:
    """Do all that the service does in a database: make tables, mint, revoke, follow, record use, forget."""
    clock = FakeClock()
    async with connected(url, clock) as database:
        tokens, usage = SQLTokenStore(database), SQLUsageStore(database)
        for number in ("1", "2"):
            now = int(clock())
            claims = Claims(f"{number}-{url[-9:]}-{await tokens.generation(ALICE)}", ALICE, 9, now, now + 60)
            assert await tokens.record(TokenRecord(claims), maximum=99)
            await tokens.mark_used({claims.id: now})
            assert await tokens.revoke(ALICE, claims.id)
            await tokens.revoke_all(ALICE)
            await FollowedTokenStore(tokens).refresh()
            await usage.add(f"batch {claims.id}", [UsageRecord(ALICE, date(2025, 12, 31), "one", 1, 2, 3)])
            clock.advance(9000)
        await tokens.revoke_all(ALICE)  # and what is old is forgotten
        [left] = await database.read(lambda transaction: transaction.run("SELECT COUNT(*) AS tokens FROM maas_tokens"))
        assert left.tokens == 0
        assert len(await usage.usage(ALICE, date(2025, 12, 1), date(2026, 1, 1))) == 1


async def test_service_that_owns_its_database_needs_nothing_more(postgres: PostgresServer) -> None:
    _, create = block("sql", "CREATE ROLE").splitlines()

    url = await prepared(postgres, "owned", create.replace("maas ", "{} "))

    await work(url)


async def test_right_to_create_is_needed_for_the_first_start_only(postgres: PostgresServer) -> None:
    url = await prepared(postgres, "granted", "CREATE DATABASE {}")
    with pytest.raises(StoreUnavailable):
        await work(url)

    await run_sql(postgres.url("granted"), block("sql", "GRANT USAGE, CREATE"))
    await work(url)
    await run_sql(postgres.url("granted"), block("sql", "REVOKE CREATE"))

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await run_sql(url, "CREATE TABLE another ()")
    await work(url)


async def test_service_may_use_tables_that_another_user_made(postgres: PostgresServer) -> None:
    url = await prepared(postgres, "lent", "CREATE DATABASE {}")
    await work(postgres.url("lent"))
    with pytest.raises(StoreUnavailable):
        await work(url)

    await run_sql(postgres.url("lent"), block("sql", "GRANT SELECT"))

    await work(url)


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
async def test_old_use_is_deleted_and_no_other(kind: str, postgres: PostgresServer, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/maas.db" if kind == "sqlite" else await postgres.new_database()
    days = (date(2025, 12, 31), date(2026, 1, 1))

    async with connected(url) as database:
        usage = SQLUsageStore(database)
        await usage.add("batch", [UsageRecord(ALICE, day, "one", 1, 2, 3) for day in days])
        if kind == "sqlite":
            with closing(sqlite3.connect(tmp_path / "maas.db")) as connection, connection:
                connection.execute(block("sql", "DELETE FROM"))
        else:
            await run_sql(url, block("sql", "DELETE FROM"))

        assert [record.day for record in await usage.usage(ALICE, days[0], days[1])] == [days[1]]


async def back_up(url: str, folder: Path) -> None:
    """As the page says; it is put back by `restore`."""
    if url.startswith("sqlite"):
        (statement,) = re.findall(r"`(VACUUM INTO [^`]+)`", PAGE)
        with closing(sqlite3.connect(folder / "maas.db")) as connection:
            connection.execute(statement.replace("maas-copy.db", str(folder / "maas-copy.db")))
    else:
        shell(block("bash", "pg_dump").splitlines()[0], url, folder)


def restore(url: str, folder: Path) -> None:
    if url.startswith("sqlite"):
        for file in folder.glob("maas.db*"):
            file.unlink()
        (folder / "maas-copy.db").rename(folder / "maas.db")
    else:
        shell(block("bash", "pg_dump").splitlines()[1], url, folder)


def shell(command: str, url: str, folder: Path) -> None:
    environ = {**os.environ, "DATABASE_URL": url}
    subprocess.run(["bash", "-c", command], cwd=folder, env=environ, check=True, capture_output=True, timeout=20)


@pytest.mark.skipif(shutil.which("pg_dump") is None, reason="needs pg_dump on the PATH")
@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
async def test_restored_backup_has_what_was_revoked_before_it_and_needs_the_rest_again(
    kind: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/maas.db" if kind == "sqlite" else await postgres.new_database()
    clock = FakeClock()
    before, after, late = [Claims(name, ALICE, 0, int(clock()), int(clock()) + 900) for name in ("a", "b", "c")]
    async with connected(url, clock) as database:
        tokens = SQLTokenStore(database)
        for claims in (before, after):
            await tokens.record(TokenRecord(claims))
        await tokens.revoke(ALICE, before.id)
        await back_up(url, tmp_path)
        running = FollowedTokenStore(tokens, clock=clock, wall_clock=clock)
        await tokens.record(TokenRecord(late))
        await tokens.revoke(ALICE, after.id)
        await tokens.revoke_all(ALICE)
        await running.refresh()

    restore(url, tmp_path)

    async with connected(url, clock) as database:
        fresh = FollowedTokenStore(SQLTokenStore(database), wall_clock=clock)
        anew = Claims("d", ALICE, await fresh.generation(ALICE), int(clock()), int(clock()) + 900)
        assert [await running.is_revoked(claims) for claims in (before, after, anew)] == [True, True, True]
        assert [await fresh.is_revoked(claims) for claims in (before, after, late)] == [True, False, False]
        assert await fresh.revoke(ALICE, after.id)
        assert await fresh.revoke(ALICE, late.id) is None  # it is not in the list any more
        assert [await fresh.is_revoked(claims) for claims in (after, late)] == [True, False]
        await fresh.revoke_all(ALICE)
        assert await fresh.is_revoked(late)


def test_numbers_of_connections_are_those_of_the_code() -> None:
    assert re.findall(r"Four a process at most: (\d+) for three replicas", PAGE) == [str(3 * CONNECTIONS)]
    assert re.findall(r"at most (\d+) connections to it", PAGE) == [str(2 * MAXIMUM_CONNECTIONS)]


def logged() -> Iterator[tuple[str, str]]:
    """The level and the text of each line that the package may log as a warning or worse."""
    for path in (ROOT / "maas_middleware").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            level = {"warning": "WARNING", "error": "ERROR", "exception": "ERROR"}.get(node.func.attr)
            if level and isinstance(node.func.value, ast.Name) and node.func.value.id == "logger":
                yield level, texts_of(node.args[0], path)


def texts_of(argument: ast.expr, path: Path) -> str:
    """What it says, or where it is a variable, what its module says."""
    if isinstance(argument, ast.Constant):
        return str(argument.value)
    constants = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    return "\n".join(str(constant.value) for constant in constants)


@pytest.mark.parametrize(
    ("level", "part"),
    [
        (level, part)
        for level, parts in re.findall(r"^\| (ERROR|WARNING) \| ([^|]+) \|", LOGGED, re.M)
        for part in re.findall(r"`([^`]+)`", parts)
    ],
)
def test_lines_to_alert_on_are_logged(level: str, part: str) -> None:
    assert any(level == logged_as and part in text for logged_as, text in logged())


def test_every_warning_and_error_is_on_the_page() -> None:
    quoted = re.findall(r"`([^`]+)`", LOGGED)

    assert [text for _, text in logged() if not any(part in text for part in quoted)] == []


def test_reasons_that_the_page_quotes_are_given() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "maas_middleware" / "stores").glob("*.py"))

    for reason in ("its tables need a newer maas-middleware", "it is a standby"):
        assert f"`{reason}`" in PAGE
        assert reason in sources


def test_audit_record_looks_as_on_the_page() -> None:
    record = AuditRecord("admin.tokens.revoke", "openshift/ada", "openshift/fay", 1_769_897_600.5, "r1", "done")

    assert block("json").strip() == str(record)


def test_commands_are_those_of_the_gateway() -> None:
    commands = re.findall(r"^maas-gateway (\S+)(.*?)(?:#.*)?$", block("bash", "maas-gateway serve"), re.M)

    assert [name for name, _ in commands] == ["new-key", "check", "serve"]
    for name, arguments in commands:
        with pytest.raises(SystemExit) as ended:
            main([name, *arguments.split(), "--help"])
        assert ended.value.code == 0
