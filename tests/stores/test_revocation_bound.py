"""What one of three processes revokes is refused by the two others within a second, and how soon is measured here.

Many other tokens are revoked, and the two are always about to read all of them again.

Each of them is this file, run as `python -m tests.stores.test_revocation_bound ROLE URL`. It reads and writes JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from maas_middleware.revocations import Snapshot
from maas_middleware.stores.followed import FollowedTokenStore
from maas_middleware.stores.sql import SQLDatabase, SQLTokenStore
from maas_middleware.token_store import TokenRecord
from maas_middleware.tokens import Claims

from .postgres_server import running_postgres

ROOT = Path(__file__).parent.parent.parent
BOUND_SECONDS = 1.0
OTHERS = 200_000
TOKENS = {
    "openshift/alice": ["a1", "a2", "a3", "a4"],  # revoked one by one
    "openshift/bob": ["b1", "b2"],  # revoked all at once
    "openshift/carol": ["c1", "c2"],  # the same
    "openshift/dave": ["d1"],  # not revoked
}
REVOCATIONS: list[tuple[str, str | None]] = [  # a token of an owner, or all
    ("openshift/alice", "a1"),
    ("openshift/bob", None),
    ("openshift/alice", "a2"),
    ("openshift/alice", "a3"),
    ("openshift/carol", None),
    ("openshift/alice", "a4"),
]


REVOKED_BEFORE = (
    "INSERT INTO maas_tokens (id, owner, generation, kind, name, description, groups, issued_at, expires_at,"
    " forgotten_at, revoked_at) SELECT 'other-' || n, 'openshift/erin', 0, 'access_token', '', '', '[]', {now},"
    " {now} + 900, {now} + 900, {now} FROM (WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers"
    " WHERE n < {count}) SELECT n FROM numbers) AS numbered"
)


class ReadTokenStore(SQLTokenStore):
    """Counts how often everything that is revoked is read, or a page of it."""

    reads = 0

    async def snapshot(self, after: str | None = None, /) -> Snapshot:
        self.reads += 1
        return await super().snapshot(after)


def tell(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def told() -> Any:
    return json.loads(await asyncio.to_thread(sys.stdin.readline))


async def revoke(database: SQLDatabase) -> None:
    """Mint what it is told to, and then revoke what it is told to; tells when it began to."""
    store = SQLTokenStore(database)
    revoked_before = REVOKED_BEFORE.format(count=OTHERS, now=int(time.time()))
    await database.write(lambda transaction: transaction.run(revoked_before))
    for claims in await told():
        await store.record(TokenRecord(Claims(**claims)))
    tell("minted")
    while True:
        owner, token_id = await told()
        began_at = time.monotonic()
        if token_id is None:
            await store.revoke_all(owner)
        else:
            await store.revoke(owner, token_id)
        tell(began_at)


async def ask(followed: FollowedTokenStore, store: ReadTokenStore) -> None:
    """Ask after tokens again and again; tells when one is refused for the first time, and what was read until then."""
    valid = [Claims(**claims) for claims in await told()]
    await known(followed)
    assert not any([await followed.is_revoked(claims) for claims in valid])
    tell("asking")
    while True:
        for claims in list(valid):
            if await followed.is_revoked(claims):
                tell([claims.id, time.monotonic(), store.reads])
                valid.remove(claims)
        await anyio.sleep(0.001)


async def known(followed: FollowedTokenStore) -> None:
    """Wait for the first load."""
    await followed.refresh()
    while not followed.usable:
        await followed.refresh()
        await anyio.sleep(0.01)


async def ask_with_follower(followed: FollowedTokenStore, store: ReadTokenStore) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(followed.run)
        await ask(followed, store)


async def work(role: str, url: str) -> None:
    database = SQLDatabase(url, timeout=25)
    if role == "revokes":
        await revoke(database)
        return
    store = ReadTokenStore(database)
    followed = FollowedTokenStore(store, timeout=10, reload_after=0.001)
    await (ask_with_follower if role == "follows" else ask)(followed, store)


class Replica:
    """Such a process, seen from the test. It works until it is killed."""

    def __init__(self, role: str, url: str) -> None:
        self.role = role
        command = [sys.executable, "-m", "tests.stores.test_revocation_bound", role, url]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def told(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process has ended"
        return json.loads(line)

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait(timeout=5)
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'maas.db'}"
        return
    with running_postgres() as server:
        yield asyncio.run(server.new_database())


@pytest.fixture
def replicas(url: str) -> Iterator[list[Replica]]:
    """Three processes: one that revokes, one that follows, and one that looks at the store when it is asked."""
    with ExitStack() as stack:
        replicas = [Replica(role, url) for role in ("revokes", "follows", "looks on access")]
        for replica in replicas:
            stack.callback(replica.end)
        yield replicas


def minted() -> list[dict[str, object]]:
    now = int(time.time())
    return [asdict(Claims(each, owner, 0, now, now + 900)) for owner, ids in TOKENS.items() for each in ids]


@dataclass
class Measured:
    """How long after they were revoked tokens were refused, and how much was read until then, of everything."""

    seconds: list[float] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)

    def take(self, replica: Replica, began_at: float, expected: list[str]) -> None:
        told = [replica.told() for _ in expected]
        assert sorted(token_id for token_id, _, _ in told) == expected
        self.seconds += [at - began_at for _, at, _ in told]
        self.reads += [reads for _, _, reads in told]


def test_what_is_revoked_anywhere_is_refused_everywhere_within_a_second(replicas: list[Replica]) -> None:
    revoker, *others = replicas
    claims = minted()
    revoker.tell(claims)
    assert revoker.told() == "minted"
    for replica in others:
        replica.tell(claims)
    assert [replica.told() for replica in others] == ["asking", "asking"]

    measured = {replica.role: Measured() for replica in others}
    for owner, token_id in REVOCATIONS:
        revoker.tell([owner, token_id])
        began_at = revoker.told()  # which is before the commit
        for replica in others:
            expected = TOKENS[owner] if token_id is None else [token_id]
            measured[replica.role].take(replica, began_at, expected)

    for role, each in measured.items():
        sys.stdout.write(f"{role}: refused after {min(each.seconds):.3f} to {max(each.seconds):.3f} s\n")
        assert max(each.seconds) < BOUND_SECONDS
        assert each.reads[-1] > each.reads[0]


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2]))
