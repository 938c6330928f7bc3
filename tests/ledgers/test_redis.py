from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import trustme
from limits._storage_scheme import SCHEMES
from limits.aio.storage import RedisStorage
from redis.asyncio import Redis

from maas_middleware.errors import StoreUnavailable
from maas_middleware.ledgers._storage import MAXIMUM_CONNECTIONS, LedgerStorage, open_storage
from maas_middleware.ledgers.redis import RedisLedger
from maas_middleware.limiting import Budget, Charge, Demand, Lease, Limit, Verdict
from maas_middleware.testing.clock import FakeClock

from .contract import LedgerContract, admitted, counted, remaining, spend, subject
from .redis_server import RedisServer, running_redis

PASSWORD = "top/secret@word"
QUOTED = "top%2Fsecret%40word"


@pytest.fixture(scope="module")
def running_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def server(running_server: RedisServer) -> RedisServer:
    running_server.do("FLUSHALL")
    return running_server


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as redis:
        yield redis


@pytest.fixture
async def make(server: RedisServer) -> AsyncIterator[Callable[..., RedisLedger]]:
    """Makes ledgers, of the server unless another url is given, that are closed in the end."""
    ledgers = []

    def make(url: str = server.url, *, timeout: float = 5, **options: object) -> RedisLedger:
        ledgers.append(RedisLedger(url, timeout=timeout, **options))  # type: ignore[arg-type] # as the caller says
        return ledgers[-1]

    yield make
    for ledger in ledgers:
        await ledger.aclose()


Make = Callable[..., RedisLedger]


class TestRedisLedger(LedgerContract):
    @pytest.fixture
    def ledger(self, make: Make, clock: FakeClock) -> RedisLedger:
        return make(clock=clock)


async def names(redis: Redis) -> list[bytes]:
    return [name async for name in redis.scan_iter()]


def chain(error: BaseException | None) -> str:
    """All that is told of an error and of what it came from."""
    texts = []
    while error is not None:
        texts.append(f"{error!r} {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


async def refusal(ledger: RedisLedger) -> StoreUnavailable:
    """What every call on a ledger without a store raises, in time."""
    lease = Lease("one", subject("5/minute", "100/minute"), 30, 0)
    with anyio.fail_after(10):
        with pytest.raises(StoreUnavailable):
            await ledger.settle(lease, Charge(20))
        with pytest.raises(StoreUnavailable):
            await ledger.renew(lease)
        with pytest.raises(StoreUnavailable) as refused:
            await ledger.admit(lease.subject, Demand("two", 30))
    return refused.value


# the time


async def test_server_tells_the_time(make: Make, redis: Redis) -> None:
    ledger, alice = make(), subject("5/minute", "100/minute")

    seconds, microseconds = await redis.time()
    lease = await admitted(ledger, alice, "one", 30)
    later_seconds, later_microseconds = await redis.time()
    await ledger.settle(lease, Charge(20))

    assert (
        seconds * 1000 + microseconds // 1000 <= lease.admitted_ms <= later_seconds * 1000 + later_microseconds // 1000
    )
    assert await counted(ledger) == (1, 20)


@pytest.mark.parametrize("step_back", [0.5, 30, 3600, 100 * 86_400])
async def test_nothing_that_was_used_is_lost_while_the_clock_goes_back(step_back: float, make: Make) -> None:
    clock = FakeClock(86_400.0 * 600)
    ledger, alice = make(clock=clock), subject("9/minute", "100/minute")
    await spend(ledger, alice, "one", 10)
    clock.advance(20)
    await spend(ledger, alice, "two", 10)
    clock.advance(-step_back)

    late = await admitted(ledger, alice, "three", 10)
    in_flight = (await ledger.peek(alice)).tokens
    await ledger.settle(late, Charge(10, request=False))
    await spend(ledger, alice, "four", 10)

    assert in_flight == Budget(Limit(100, 60), 70, int(step_back * 1000) + 61_000, int(step_back * 1000) + 41_000)
    requests, tokens = await counted(ledger)
    assert (requests in (3, 4), tokens) == (True, 40)
    clock.advance(step_back + 60)
    requests, tokens = await counted(ledger)
    assert (requests in (2, 3), tokens) == (True, 30)
    clock.advance(1)
    assert await counted(ledger) == (0, 0)


# scripts


async def test_script_is_sent_again_where_the_server_forgot_it(make: Make, redis: Redis) -> None:
    ledger, alice = make(), subject("9/minute", "1000/minute")
    for flushed in range(3):
        lease = await admitted(ledger, alice, f"{flushed}", 10)
        await redis.script_flush()
        await ledger.settle(lease, Charge(10))
        await redis.script_flush()
        await ledger.renew(lease)
        await redis.script_flush()

    assert await counted(ledger) == (3, 30)


async def test_script_is_sent_once_and_named_from_then_on(make: Make, redis: Redis) -> None:
    await redis.script_flush()
    await redis.config_resetstat()
    ledger = make()
    for number in range(3):
        await spend(ledger, subject("9/minute"), f"{number}")

    statistics = await redis.info("commandstats")

    assert {name: statistics[f"cmdstat_{name}"]["calls"] for name in ("eval", "evalsha")} == {"eval": 1, "evalsha": 6}


async def test_many_calls_at_once_share_the_connections_and_are_exact(make: Make, server: RedisServer) -> None:
    one, other = make(timeout=20), make(timeout=20)
    alice = subject("100/minute", "100000/minute")
    verdicts: list[Verdict] = []

    async def call(ledger: RedisLedger, number: int) -> None:
        verdict = await ledger.admit(alice, Demand(f"{number}", 10))
        verdicts.append(verdict)
        if verdict.lease is not None:
            await ledger.settle(verdict.lease, Charge(7))

    async with anyio.create_task_group() as calls:
        for number in range(300):
            calls.start_soon(call, (one, other)[number % 2], number)

    assert sum(verdict.lease is not None for verdict in verdicts) == 100
    assert await counted(one) == (100, 700)
    assert server.do("CLIENT", "LIST").count(b"name=maas-middleware") <= 2 * MAXIMUM_CONNECTIONS


# what is kept


async def test_every_key_expires_once_nothing_in_it_counts(make: Make, redis: Redis) -> None:
    ledger = make(lease_seconds=100)
    hourly, daily, unlimited = (subject("5/minute", "100/hour"), subject("9/day", key="bob"), subject(key="carol"))
    for alice in (hourly, daily, unlimited):
        await spend(ledger, alice, "settled", 10)
        await admitted(ledger, alice, "in flight", 10)
        await ledger.renew(Lease("foreign", alice, 10, 0))

    lives = {name: await redis.pttl(name) for name in await names(redis)}
    states = sorted(life for name, life in lives.items() if name.endswith(b"}") or name.endswith(b":l"))
    marks = [life for name, life in lives.items() if b":d:" in name]

    needed = [100_000, 100_000, 3_760_000, 3_760_000, 87_940_000, 87_940_000]
    assert [life >= least for life, least in zip(states, needed, strict=True)] == [True] * 6
    assert [life <= 1.1 * least + 110_000 for life, least in zip(states, needed, strict=True)] == [True] * 6
    assert [590_000 < life <= 600_000 for life in marks] == [True] * 3


async def test_life_of_a_key_is_never_shortened(make: Make, redis: Redis) -> None:
    long, short = make(lease_seconds=100_000), make(lease_seconds=10)
    await admitted(long, subject("5/day"), "long")
    before = {name: await redis.pttl(name) for name in await names(redis)}

    lease = await admitted(short, subject("5/minute"), "short")
    await short.settle(lease, Charge(0))
    after = {name: await redis.pttl(name) for name in before}

    assert len(before) == 2
    assert all(before[name] - 10_000 < after[name] <= before[name] for name in before)
    assert (await remaining(long, subject("5/day")))[0] == 4


async def test_keys_live_until_the_leases_lapse_that_were_renewed(make: Make, redis: Redis) -> None:
    ledger = make(lease_seconds=1000)
    lease = await admitted(ledger, subject(), "stream", 10)
    for name in await names(redis):
        await redis.pexpire(name, 50_000)

    await ledger.renew(lease)

    assert [await redis.pttl(name) >= 999_000 for name in await names(redis)] == [True, True]


async def test_state_of_a_subject_is_bounded(make: Make, redis: Redis) -> None:
    clock = FakeClock(86_400.0 * 600)
    ledger, alice = make(clock=clock), subject("100/minute", "1000/minute;100000/hour")
    for number in range(600):
        lease = await admitted(ledger, alice, f"{number}", 10)
        if number % 5:  # the others crash
            await ledger.settle(lease, Charge(5, request=number % 3 != 0))
        clock.advance(7.3)
    state = next(name for name in await names(redis) if name.endswith(b"}"))

    busy, leases = await redis.hlen(state), await redis.zcard(state + b":l")
    clock.advance(4000)
    await spend(ledger, alice, "last", 0)

    assert 3 * 60 > busy > 60
    assert leases <= 120 / 7.3
    assert {name for name in await redis.hgetall(state) if b":" not in name} == {b"r60"}
    assert await redis.hlen(state) == 1


@pytest.mark.parametrize("order", ["012", "021", "102", "120", "201", "210"])
async def test_nothing_is_left_of_calls_that_were_given_back(order: str, make: Make, redis: Redis) -> None:
    clock = FakeClock(86_400.0 * 600)
    ledger, alice = make(clock=clock), subject("100/minute;1000/day", "1000/minute")
    leases = []
    for number in range(3):
        leases.append(await admitted(ledger, alice, f"{number}", 10))
        clock.advance(10)

    for each in order:
        await ledger.settle(leases[int(each)], Charge(0, request=False))

    assert [name for name in await names(redis) if b":d:" not in name] == []


async def test_any_number_of_leases_lapses_at_once(make: Make, redis: Redis) -> None:
    clock = FakeClock(86_400.0 * 600)
    ledger, alice = make(clock=clock), subject(tokens="1000000/hour")
    await admitted(ledger, alice, "crashed", 10)
    state = next(name for name in await names(redis) if name.endswith(b"}"))
    lapses, held = await redis.zscore(state + b":l", "crashed"), await redis.hget(state, "lcrashed")
    assert lapses is not None
    assert held is not None
    crowd = [f"{number}" for number in range(9000)]
    await redis.zadd(state + b":l", dict.fromkeys(crowd, lapses))
    await redis.hset(state, mapping={"h": struct.pack("<q", 90_010), **{f"l{each}": held for each in crowd}})
    before = await ledger.peek(alice)
    clock.advance(120)

    await admitted(ledger, alice, "next", 30)

    assert before.tokens == Budget(Limit(1_000_000, 3600), 909_990, 3_660_000, 1000)
    assert await counted(ledger, seconds=3600) == (0, 30)
    assert (await redis.hlen(state), await redis.zcard(state + b":l")) == (2, 1)


async def test_refused_request_clears_away_what_counts_no_more(make: Make, redis: Redis) -> None:
    clock = FakeClock(86_400.0 * 600)
    ledger, alice = make(clock=clock), subject("2/day", "100/minute")
    for number in range(2):
        lease = await admitted(ledger, alice, f"{number}", 10)
        await ledger.renew(Lease(f"crashed {number}", alice, 10, 0))
        await ledger.settle(lease, Charge(10))
        clock.advance(10)
    clock.advance(120)

    refused = await ledger.admit(alice, Demand("refused", 10))

    state = next(name for name in await names(redis) if name.endswith(b"}"))
    assert refused.refused_by == "requests"
    assert list(await redis.hgetall(state)) == [b"r86400"]
    assert await redis.exists(state + b":l") == 0


async def test_no_sum_ever_overflows(make: Make) -> None:
    clock = FakeClock(86_400.0 * 600)
    ledger, alice = make(clock=clock, timeout=20), subject(tokens="100/minute")
    leases = [Lease(f"{number}", alice, 2**53, 0) for number in range(1024)]  # together 2 ** 63

    async def settle(some: list[Lease]) -> None:
        async with anyio.create_task_group() as calls:
            for lease in some:
                calls.start_soon(ledger.settle, lease, Charge(2**53))

    async with anyio.create_task_group() as calls:
        for lease in leases:
            calls.start_soon(ledger.renew, lease)
    held = await remaining(ledger, alice)
    clock.advance(60)
    await ledger.renew(Lease("stream", alice, 30, 0))
    clock.advance(60)
    lapsed = await remaining(ledger, alice)
    await settle(leases[:512])
    clock.advance(1)
    await settle(leases[512:])
    settled = await remaining(ledger, alice)
    clock.advance(1)
    await ledger.settle(Lease("last", alice, 0, 0), Charge(10))
    clock.advance(60)

    assert (held, settled) == ((None, 0), (None, 0))
    exact_and_forgetful = [(None, 70), (None, 100)]  # a sum that was cut is less than it was made of
    assert lapsed in exact_and_forgetful
    assert await remaining(ledger, alice) in [(None, 60), *exact_and_forgetful]


@pytest.mark.parametrize("lost", [pytest.param(b"}", id="counters"), pytest.param(b":l", id="leases")])
async def test_loss_of_a_key_locks_nobody_out(lost: bytes, make: Make, redis: Redis) -> None:
    ledger, alice = make(), subject("5/minute", "100/minute", concurrency=1)
    lease = await admitted(ledger, alice, "one", 100)
    await redis.delete(*[name for name in await names(redis) if name.endswith(lost)])

    await ledger.settle(lease, Charge(10))

    assert (await ledger.peek(alice)).refused_by is None
    assert (await counted(ledger))[1] == 10
    assert (await admitted(ledger, alice, "two", 100)).tokens == 90


async def test_keys_of_a_subject_have_one_tag_and_tell_nothing_of_it(make: Make, redis: Redis) -> None:
    ledger = make(key_prefix="gateway")
    await spend(ledger, subject("5/minute", key="openshift/alice"), "settled", 10)
    await admitted(ledger, subject("5/minute", key="openshift/alice"), "in flight", 10)

    found = sorted(await names(redis))

    (tag,) = {name.partition(b"{")[2].partition(b"}")[0] for name in found}
    assert len(tag) == 64
    assert [name.replace(tag, b"") for name in found] == [b"gateway:{}", b"gateway:{}:d:settled", b"gateway:{}:l"]


async def test_prefixes_are_counted_apart(make: Make) -> None:
    one, same, other = make(), make(), make(key_prefix="other")
    await spend(one, subject("5/minute", "100/minute"), "one", 10)

    assert await counted(same) == (1, 10)
    assert await counted(other) == (0, 0)


async def test_peek_writes_nothing(make: Make, redis: Redis) -> None:
    clock = FakeClock(86_400.0 * 600)
    ledger, alice = make(clock=clock), subject("9/minute", "100/minute")
    await admitted(ledger, alice, "crashed", 10)
    await spend(ledger, alice, "settled", 10)
    clock.advance(130)
    before = {name: await redis.dump(name) for name in await names(redis)}

    assert await remaining(ledger, alice) == (9, 100)

    assert {name: await redis.dump(name) for name in await names(redis)} == before


# urls


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis",
        "redis://",
        "redis://:topsecret@/0",
        "redis://host:topsecret",
        "redis://:top/secret@host:6379",
        "redis://[topsecret",
        "http://:topsecret@host:6379",
        "memory://topsecret",
        "redis+unix:///topsecret",
        "redis://host:1,host:2/0?topsecret",
        "redis://:topsecret@host?no_such_option=1",
        "redis://:topsecret@host?max_connections=topsecret",
        "redis://:topsecret@host?decode_responses=yes",
        "redis://:topsecret@host?protocol=topsecret",
        "rediss://:topsecret@host?ssl_cert_reqs=topsecret",
    ],
)
def test_wrong_url_is_told_in_a_sentence_without_it(url: str) -> None:
    with pytest.raises(ValueError, match="url of Redis") as refused:
        RedisLedger(url)

    assert "topsecret" not in f"{refused.value!r} {refused.value}"
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "place"),
    [
        pytest.param("redis://host", ("host", 6379, 0), id="host-alone"),
        pytest.param("redis://host:", ("host", 6379, 0), id="empty-port"),
        pytest.param("redis://host:7000/3", ("host", 7000, 3), id="port-and-database"),
        pytest.param("redis://[::1]/3", ("::1", 6379, 3), id="ipv6"),
        pytest.param("redis://host?db=4", ("host", 6379, 4), id="option"),
        pytest.param("rediss://host", ("host", 6379, 0), id="tls"),
    ],
)
def test_url_needs_no_more_than_a_host(url: str, place: tuple[str, int, int]) -> None:
    connection = open_storage(url, key_prefix="maas", timeout=1).bridge.storage.connection_pool.make_connection()  # type: ignore[attr-defined] # of redis-py

    assert (connection.host, connection.port, connection.db) == place
    assert type(connection).__name__ == ("SSLConnection" if url.startswith("rediss") else "Connection")


async def test_database_of_the_url_is_used(make: Make, server: RedisServer) -> None:
    await spend(make(f"{server.url}/3"), subject("5/minute"), "one")

    assert server.do("DBSIZE") == b":0\r\n"


def test_nothing_is_connected_before_the_first_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)

        RedisLedger(f"redis://127.0.0.1:{listener.getsockname()[1]}")

        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_closing_leaves_no_connection(server: RedisServer) -> None:
    ledger = RedisLedger(server.url, timeout=5)
    await spend(ledger, subject("5/minute"), "one")
    open_before = server.do("CLIENT", "LIST").count(b"name=maas-middleware")

    await ledger.aclose()

    while b"name=maas-middleware" in server.do("CLIENT", "LIST"):
        """Until the server has seen it."""
    assert open_before == 1


@contextmanager
def running_tls(directory: Path) -> Iterator[tuple[RedisServer, str]]:
    """A server with TLS, and its url without the CA, which is in the file `ca`."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(directory / "ca")
    certificate.cert_chain_pems[0].write_to_path(directory / "chain")
    certificate.private_key_pem.write_to_path(directory / "key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    files = {"--tls-cert-file": "chain", "--tls-key-file": "key", "--tls-ca-cert-file": "ca"}
    options = [word for option, name in files.items() for word in (option, str(directory / name))]
    with running_redis("--tls-port", f"{port}", "--tls-auth-clients", "no", *options) as server:
        yield server, f"rediss://127.0.0.1:{port}"


async def test_ledger_speaks_tls(tmp_path: Path, make: Make) -> None:
    with running_tls(tmp_path) as (_, url):
        trusting, distrusting = make(f"{url}?ssl_ca_certs={tmp_path / 'ca'}"), make(url)

        await spend(trusting, subject("5/minute", "100/minute"), "one", 10)

        assert await counted(trusting) == (1, 10)
        await refusal(distrusting)


async def test_closing_does_not_wait_for_a_server_that_takes_no_leave(tmp_path: Path) -> None:
    with running_tls(tmp_path) as (server, url):
        ledger = RedisLedger(f"{url}?ssl_ca_certs={tmp_path / 'ca'}", timeout=0.5)
        await ledger.peek(subject())
        server.freeze()

        with anyio.fail_after(4):
            await ledger.aclose()
        server.thaw()


@pytest.mark.parametrize("user", ["", "default"])
async def test_password_of_the_url_is_used_and_never_told(
    user: str, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    with running_redis("--requirepass", PASSWORD) as server:
        welcome = make(f"redis://{user}:{QUOTED}@127.0.0.1:{server.port}")
        await spend(welcome, subject("5/minute"), "one")
        mistaken = make(f"redis://{user}:{QUOTED}x@127.0.0.1:{server.port}")
        nameless = make(server.url)

        errors = [await refusal(mistaken), await refusal(nameless)]
        server.kill()
        errors.append(await refusal(welcome))

    told = "\n".join([*map(chain, errors), *(repr(each) for each in (welcome, mistaken)), caplog.text])
    assert "invalid" in told
    assert [secret for secret in (PASSWORD, QUOTED) if secret in told] == []


# failures


async def test_server_that_is_gone_is_told_at_once_and_found_again(make: Make) -> None:
    alice = subject("5/minute", "100/minute")
    with running_redis() as server:
        ledger = make(server.url, timeout=1)
        lease = await admitted(ledger, alice, "one", 30)
        server.kill()

        error = await refusal(ledger)

    assert "Error 111" in chain(error)
    with running_redis(port=server.port):
        await ledger.settle(lease, Charge(20))

        assert await counted(ledger) == (0, 20)


async def test_frozen_server_is_told_in_time_and_used_again_when_it_thaws(make: Make) -> None:
    alice = subject("9/minute", "1000/minute")
    with running_redis() as server:
        ledger, patient = make(server.url, timeout=0.05), make(server.url)
        lease = await admitted(patient, alice, "one", 30)
        await patient.peek(alice)
        server.freeze()

        with anyio.fail_after(5):
            error = await refusal(ledger)
        server.thaw()
        await patient.settle(lease, Charge(20))

        assert isinstance(error.__cause__, TimeoutError)
        _, tokens = await counted(patient)
        assert tokens in (20, 50)  # the admission that nobody waited for may have come through


async def test_calls_that_found_all_connections_taken_fail_in_time_too(make: Make) -> None:
    with running_redis() as server:
        ledger, errors = make(server.url, timeout=0.2), []
        server.freeze()

        async def call() -> None:
            with pytest.raises(StoreUnavailable) as refused:
                await ledger.peek(subject("5/minute"))
            errors.append(refused.value)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as calls:
                for _ in range(MAXIMUM_CONNECTIONS + 20):
                    calls.start_soon(call)
        server.thaw()

        assert len(errors) == MAXIMUM_CONNECTIONS + 20
        patient = make(server.url)
        await spend(patient, subject("5/minute"), "one")
        assert await counted(patient) == (1, 0)


async def test_call_that_is_cancelled_leaves_no_answer_for_the_next(make: Make) -> None:
    alice, bob = subject("5/minute", "100/minute"), subject("5/minute", "100/minute", key="bob")
    with running_redis() as server:
        ledger = make(server.url)
        await spend(ledger, alice, "one", 30)
        server.freeze()
        async with anyio.create_task_group() as calls:
            for _ in range(MAXIMUM_CONNECTIONS + 20):
                calls.start_soon(ledger.peek, alice)
            await anyio.wait_all_tasks_blocked()
            calls.cancel_scope.cancel()
        server.thaw()

        verdicts = [await ledger.peek(bob) for _ in range(MAXIMUM_CONNECTIONS)]

        assert {(verdict.requests and verdict.requests.remaining) for verdict in verdicts} == {5}
        assert await remaining(ledger, alice) == (4, 70)


async def test_random_cancellations_lose_no_connection(make: Make) -> None:
    ledger, alice = make(), subject("9999/minute", "9999/minute")
    for steps in range(60):
        async with anyio.create_task_group() as calls:
            for number in range(MAXIMUM_CONNECTIONS + 5):
                calls.start_soon(ledger.admit, alice, Demand(f"{steps} {number}", 1))
            for _ in range(steps // 4):
                await anyio.lowlevel.checkpoint()
            calls.cancel_scope.cancel()

    async with anyio.create_task_group() as calls:
        for number in range(MAXIMUM_CONNECTIONS * 3):
            calls.start_soon(spend, ledger, subject(key="bob"), f"{number}")

    assert (await remaining(ledger, subject("9/minute", key="carol")))[0] == 9


async def test_replica_refuses_to_count_and_can_be_looked_at(make: Make) -> None:
    with running_redis("--replicaof", "127.0.0.1", "1") as replica:
        ledger = make(replica.url)

        error = await refusal(ledger)

        assert "read only replica" in chain(error)
        assert await remaining(ledger, subject("5/minute", "100/minute")) == (5, 100)


async def test_server_without_memory_refuses_and_nothing_is_counted(make: Make) -> None:
    alice = subject("5/minute", "100/minute")
    with running_redis("--maxmemory-policy", "noeviction") as server:
        ledger = make(server.url)
        lease = await admitted(ledger, alice, "one", 30)
        server.do("CONFIG", "SET", "maxmemory", "1mb")

        with pytest.raises(StoreUnavailable) as refused:
            await ledger.admit(alice, Demand("two", 30))
        full = await remaining(ledger, alice)
        server.do("CONFIG", "SET", "maxmemory", "0")
        await ledger.settle(lease, Charge(20))

        assert "maxmemory" in chain(refused.value)
        assert full == (4, 70)
        assert await counted(ledger) == (1, 20)


async def test_host_that_cannot_be_is_a_failure_of_the_store(make: Make) -> None:
    await refusal(make(f"redis://{'x' * 64}.example"))


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """A server that greets as Redis does, and then answers every script in one way; nothing at all hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while received := await reader.read(1 << 16):
            if b"EVAL" in received:
                writer.write(answer)
                if not answer:
                    break
            else:
                writer.write(b"+OK\r\n" * received.count(b"CLIENT"))
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="hangs-up"),
        pytest.param(b"-LOADING Redis is loading the dataset in memory\r\n", id="loading"),
        pytest.param(b"-BUSY Redis is busy running a script\r\n", id="busy"),
        pytest.param(b"-MISCONF Errors writing to the AOF file\r\n", id="misconf"),
        pytest.param(b"-NOPERM no permissions\r\n", id="no-permission"),
        pytest.param(b"-NOSCRIPT No matching script\r\n", id="no-script-ever"),
        pytest.param(b"-ERR what\r\n", id="error"),
        pytest.param(b":5\r\n", id="a-number"),
        pytest.param(b":x\r\n", id="no-number"),
        pytest.param(b"$-1\r\n", id="nothing"),
        pytest.param(b"$3\r\nabc\r\n", id="short-text"),
        pytest.param(b"*1\r\n:1\r\n", id="a-list"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another-protocol"),
    ],
)
async def test_answer_that_is_none_is_a_failure_of_the_store(answer: bytes, make: Make) -> None:
    async with answering(answer) as url:
        ledger = make(url)

        with anyio.fail_after(10):
            for call in (ledger.peek(subject("5/minute")), ledger.admit(subject("5/minute"), Demand("one", 1))):
                with pytest.raises(StoreUnavailable) as refused:
                    await call
                assert refused.value.__cause__ is not None

        await ledger.aclose()


async def test_failed_call_is_not_tried_again(make: Make) -> None:
    calls = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        ledger = make(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(StoreUnavailable):
            await ledger.peek(subject("5/minute"))

    assert calls == 1


# packages


def test_importing_imports_no_client_and_replaces_no_storage() -> None:
    script = """if True:
        import sys, limits.aio.storage
        from limits._storage_scheme import SCHEMES
        before = dict(SCHEMES)
        import maas_middleware, maas_middleware.ledgers.redis
        print({name for name in sys.modules if name in ("redis", "coredis", "valkey")})
        print({name for name, storage in before.items() if SCHEMES[name] is not storage})
        print(sorted(set(SCHEMES) - set(before)))
    """

    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)

    assert told.stdout.split("\n") == ["set()", "set()", "['async+maas-redis', 'async+maas-rediss']", ""]


async def test_limits_has_what_the_storage_is_built_on(server: RedisServer) -> None:
    storage = open_storage(server.url, key_prefix="prefix", timeout=5)

    assert SCHEMES["async+redis"] is RedisStorage
    assert SCHEMES["async+maas-redis"] is SCHEMES["async+maas-rediss"] is LedgerStorage
    assert set(storage.dependencies) == {"redis"}
    assert storage.bridge.prefixed_key("key") == "prefix:key"
    assert storage.wrap_exceptions
    async with aclosing(storage):
        assert await storage.check()
        assert await storage.incr("stock", 60) == 1
