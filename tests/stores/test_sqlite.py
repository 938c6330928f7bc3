from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from maas_middleware.errors import StoreUnavailable
from maas_middleware.stores.sql import SQLDatabase, SQLTokenStore
from maas_middleware.testing.clock import FakeClock
from tests.stores.contract import *  # noqa: F403 the contract's tests are collected here
from tests.stores.sql_contract import *  # noqa: F403 as above
from tests.stores.sql_contract import Connect, count, warnings
from tests.stores.usage_contract import *  # noqa: F403 as above

from .working import ROOT, working

OWNER = "openshift/alice"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "maas tokens.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def content(path: Path) -> bytes:
    return path.read_bytes()


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.is_file())


async def test_nobody_else_may_read_the_file(path: Path, connect: Connect) -> None:
    before = os.umask(0)
    try:
        await SQLTokenStore(connect()).revoke_all(OWNER)
    finally:
        os.umask(before)

    made = [path.name, f"{path.name}-shm", f"{path.name}-wal"]
    assert files(path.parent) == made
    assert {rights(path.parent / name) for name in made} == {0o600}


async def test_rights_of_a_file_that_is_there_stay(path: Path, connect: Connect) -> None:
    os.close(os.open(path, os.O_CREAT, 0o640))

    await SQLTokenStore(connect()).revoke_all(OWNER)

    assert rights(path) == 0o640


async def test_nothing_is_made_before_the_first_call(path: Path, connect: Connect) -> None:
    connect()

    assert files(path.parent) == []


async def test_relative_file_is_that_of_the_folder_at_the_start(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    database = SQLDatabase("sqlite:///here.db", clock=clock)

    monkeypatch.chdir(elsewhere)
    await SQLTokenStore(database).revoke_all(OWNER)

    await database.aclose()
    assert files(tmp_path) == ["here.db"]
    assert files(elsewhere) == []


async def test_commits_outlive_a_loss_of_power(path: Path, connect: Connect) -> None:
    database = connect()

    [[journal]] = await database.read(lambda transaction: transaction.run("PRAGMA journal_mode"))
    [[synchronous]] = await database.read(lambda transaction: transaction.run("PRAGMA synchronous"))

    assert (journal, synchronous) == ("wal", 2)


async def test_file_that_another_process_writes_for_long_is_not_waited_for(
    url: str, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    database = connect(timeout=0.6)
    store = SQLTokenStore(database)
    await store.generation(OWNER)

    with working(url) as [worker]:
        worker.tell("hold", 60)
        assert worker.answer() == "held"
        for _ in range(2):
            began_at = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.revoke_all(OWNER)
            assert time.monotonic() - began_at < 0.9
            assert await count(database, "maas_owners") == 0  # who reads need not wait
        worker.process.kill()
        worker.process.wait(timeout=10)

    assert await store.revoke_all(OWNER) == 1
    # that reading succeeded in between is no news
    assert warnings(caplog) == ["the database fails: SQLITE_BUSY", "the database answers again"]


async def test_file_that_is_locked_before_it_has_a_log_is_waited_for(path: Path, connect: Connect) -> None:
    database = connect()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN IMMEDIATE")

        async with anyio.create_task_group() as group:
            group.start_soon(SQLTokenStore(database).revoke_all, OWNER)
            with anyio.move_on_after(0.2):
                await anyio.sleep_forever()  # while it is tried, which another thread does
            other.execute("COMMIT")

    assert await SQLTokenStore(database).generation(OWNER) == 1


async def test_file_that_stays_locked_before_it_has_a_log_is_an_outage(
    path: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    store = SQLTokenStore(connect(timeout=0.5))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN EXCLUSIVE")

        began_at = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.revoke_all(OWNER)
        assert time.monotonic() - began_at < 0.8

    assert await store.revoke_all(OWNER) == 1
    assert warnings(caplog) == ["the database fails: SQLITE_BUSY", "the database answers again"]


async def test_log_that_cannot_be_made_is_an_outage(
    path: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    store = SQLTokenStore(connect())
    in_the_way = f"{path}-wal"
    os.mkdir(in_the_way)

    began_at = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.revoke_all(OWNER)
    assert time.monotonic() - began_at < 2
    os.rmdir(in_the_way)

    assert await store.revoke_all(OWNER) == 1
    [failure, recovery] = warnings(caplog)
    assert failure.startswith("the database fails: SQLITE_")
    assert recovery == "the database answers again"


async def test_statement_without_end_is_ended(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    database = connect(timeout=0.5)
    await SQLTokenStore(database).generation(OWNER)
    threads = threading.active_count()
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"

    began_at = time.monotonic()
    for call in (database.read, database.write):
        with pytest.raises(StoreUnavailable):
            await call(lambda transaction: transaction.run(endless))

    assert time.monotonic() - began_at < 1.3
    assert threading.active_count() <= threads
    assert await SQLTokenStore(database).revoke_all(OWNER) == 1
    assert warnings(caplog) == ["the database fails: SQLITE_INTERRUPT", "the database answers again"]


async def test_writer_waits_for_another_process(url: str, connect: Connect) -> None:
    store = SQLTokenStore(connect())
    await store.generation(OWNER)

    with working(url) as [worker]:
        worker.tell("hold", 0.5)
        assert worker.answer() == "held"
        assert await store.revoke_all(OWNER) == 1


async def test_file_that_is_no_database_is_refused(
    path: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    overwrite(path, b"no database, but something else" * 100)
    store = SQLTokenStore(connect())

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.revoke_all(OWNER)

    assert warnings(caplog) == ["the database fails: SQLITE_NOTADB"]
    assert content(path) == b"no database, but something else" * 100


async def test_damaged_file_is_told_of_once_and_recovers_when_it_is_replaced(
    path: Path, connect: Connect, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    database = connect()
    store = SQLTokenStore(database)
    await store.revoke_all(OWNER)
    await database.aclose()
    whole = content(path)
    overwrite(path, whole[:4096] + b"\xa5" * (len(whole) - 4096))

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.generation(OWNER)

    overwrite(path, whole)
    assert await store.generation(OWNER) == 1
    assert warnings(caplog) == ["the database fails: SQLITE_CORRUPT", "the database answers again"]


async def test_folder_that_is_missing_is_an_outage(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    database = SQLDatabase(f"sqlite:///{folder}/maas.db", clock=clock)
    store = SQLTokenStore(database)

    with pytest.raises(StoreUnavailable):
        await store.generation(OWNER)
    folder.mkdir()

    assert await store.generation(OWNER) == 0
    await database.aclose()
    assert warnings(caplog) == ["the database fails: FileNotFoundError", "the database answers again"]


def test_file_that_may_not_be_written_is_an_outage_and_stays(clock: FakeClock) -> None:
    with tempfile.TemporaryDirectory() as folder:  # those of pytest are for one user only
        path = Path(folder, "maas.db")
        with working(f"sqlite:///{path}") as [worker]:
            assert worker.ask("fail", OWNER) is False
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
        before = path.read_bytes()
        path.chmod(0o444)
        Path(folder).chmod(0o555)

        with working(f"sqlite:///{path}") as [worker]:
            if os.getuid() == 0:  # who may write to everything
                worker.ask("become", "nobody")
            assert worker.ask("fail", OWNER) is True

        Path(folder).chmod(0o755)
        assert path.read_bytes() == before


def test_process_ends_that_did_not_close_its_database(url: str) -> None:
    program = (
        "import asyncio, sys\n"
        "from maas_middleware.stores.sql import SQLDatabase, SQLTokenStore\n"
        "print(asyncio.run(SQLTokenStore(SQLDatabase(sys.argv[1])).revoke_all('x')))\n"
    )

    done = subprocess.run([sys.executable, "-c", program, url], cwd=ROOT, capture_output=True, text=True, timeout=20)

    assert (done.returncode, done.stdout) == (0, "1\n")
