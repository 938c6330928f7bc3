"""Where use is counted, and how much of it there may be: what is valid, and what is said of the rest."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maas_middleware import GuardedLedger, MemoryLedger, gateway
from maas_middleware._counting import ledger_of, throttles_of
from maas_middleware.cli import main
from maas_middleware.limiting import Limit, Limits
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.settings import (
    Settings,
    WatchedTiers,
    counters_of,
    models_of,
    tiers_of,
    validated,
    warnings_of,
)
from maas_middleware.settings import load_settings as load
from maas_middleware.testing.clock import FakeClock

from . import Write, problems_of

SECRET = "hunter2"
SUPPORTED = "is not like memory://, redis://HOST:PORT/DATABASE or rediss://..."
LIKE_REDIS = "the url of Redis has to be like redis://[user:password@]host[:port][/database]"
MISSING = "redis is missing or too old: pip install 'maas-middleware[redis]'"
SHARES = "is 1: while Redis is away each process gives everybody the whole limit; say how many there are"
LIMITS = "{requests: 9/minute, tokens: unlimited}"


def with_tier(more: str, *, models: str = "[{id: m}]") -> str:
    return f"models: {models}\ntiers: [{{name: gold, limits: {LIMITS}, {more}}}]"


def with_model(more: str) -> str:
    return f"models: [{{id: m, {more}}}]"


KEYS = "MAAS_TOKENS_SIGNING_KEYS_FILE"  # what counters that are shared need besides
_environ: dict[str, str] = {}


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SigningKeys.generate().save(tmp_path / "keys.json")
    monkeypatch.setitem(_environ, KEYS, str(tmp_path / "keys.json"))
    monkeypatch.setenv(KEYS, str(tmp_path / "keys.json"))


def load_settings(environ: dict[str, str], **options: Any) -> Settings:
    return load({**_environ, **environ}, **options)


# the URL


@pytest.mark.parametrize(
    "url",
    [
        "memory://",
        "redis://localhost",
        f"redis://:{SECRET}@redis:6379/3",
        f"rediss://maas:{SECRET}@redis.example.com:6380/0?ssl_ca_certs=/etc/ca.crt",
        "redis://[::1]:6379",
    ],
)
def test_urls_that_are_supported_are_taken_from_wherever_they_stand(write: Write, url: str) -> None:
    in_a_file = write(f"{url}\n", "url")

    assert counters_of(load_settings({}, config=write(f"counters: '{url}'"))) == url
    assert counters_of(load_settings({"MAAS_COUNTERS": url})) == url
    assert counters_of(load_settings({}, counters_file=in_a_file)) == url
    assert counters_of(load_settings({"MAAS_COUNTERS_FILE": in_a_file})) == url


@pytest.mark.parametrize(
    ("url", "named"),
    [
        pytest.param(f"memcached://:{SECRET}@cache", "memcached://...", id="other-store"),
        pytest.param(f"redis+cluster://:{SECRET}@redis", "redis+cluster://...", id="cluster"),
        pytest.param(f"unix://{SECRET}@/run/redis.sock", "unix://...", id="unix-socket"),
        pytest.param(f"redis://:{SECRET}@redis:70000/0", "redis://...", id="port-out-of-range"),
        pytest.param(f"redis://:{SECRET}@redis:0", "redis://...", id="port-zero"),
        pytest.param(f"redis://:{SECRET}@redis/abc", "redis://...", id="database-that-is-no-number"),
        pytest.param(f"redis://:{SECRET}@redis/1/2", "redis://...", id="two-databases"),
        pytest.param(f"redis://redis:{SECRET}", "redis://...", id="port-that-is-no-number"),
        pytest.param(f"redis://:{SECRET}@[::1", "redis://...", id="broken-address"),
        pytest.param(f"redis:///0?password={SECRET}", "redis://...", id="no-host"),
        pytest.param(f"redis://:{SECRET} @redis", "redis://...", id="space"),
        pytest.param(f"redis://:{SECRET}é@redis", "redis://...", id="not-ascii"),
        pytest.param(f"{SECRET}@redis://x", "this", id="no-scheme"),
        pytest.param(f"redis:{SECRET}@redis", "this", id="no-slashes"),
        pytest.param("memory://x", "memory://...", id="memory-of-another"),
        pytest.param("", "this", id="empty"),
    ],
)
def test_other_urls_are_refused_and_not_quoted(write: Write, url: str, named: str) -> None:
    config = write(f"counters: {json.dumps(url)}")

    assert problems_of(lambda: load_settings({}, config=config)) == [f"maas.yaml: counters: {named} {SUPPORTED}"]
    assert problems_of(lambda: load_settings({"MAAS_COUNTERS": url})) == [f"MAAS_COUNTERS: {named} {SUPPORTED}"]
    assert problems_of(lambda: load_settings({}, counters=url)) == [f"counters: {named} {SUPPORTED}"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param("\n", "{file} is empty", id="empty"),
        pytest.param(f"etcd://:{SECRET}@etcd\n", f"etcd://... {SUPPORTED}", id="other-store"),
        pytest.param(f"redis://:{SECRET}@redis:6379\nredis://x\n", "{file} holds", id="two-lines"),
    ],
)
def test_what_the_file_holds_is_checked_as_if_it_stood_there(write: Write, content: str, problem: str) -> None:
    file = write(content, "url")

    (told,) = problems_of(lambda: load_settings({"MAAS_COUNTERS_FILE": file}))
    (below,) = problems_of(lambda: load_settings({}, config=write(f"counters_file: {file}")))

    assert told.startswith(f"MAAS_COUNTERS_FILE: {problem.format(file=file)}")
    assert below == told.replace("MAAS_COUNTERS_FILE", "maas.yaml: counters_file")
    assert SECRET not in told


def test_a_file_that_is_missing_is_a_problem(write: Write) -> None:
    config = write("counters_file: /nowhere/url")

    assert problems_of(lambda: load_settings({}, config=config)) == [
        "maas.yaml: counters_file: /nowhere/url cannot be read: No such file or directory"
    ]


def test_a_url_and_a_file_are_one_too_many(write: Write) -> None:
    file = write("redis://localhost", "url")
    config = write(f"counters: redis://:{SECRET}@redis\ncounters_file: {file}")
    environ = {"MAAS_COUNTERS": f"redis://:{SECRET}@redis"}

    assert problems_of(lambda: load_settings({}, config=config)) == [
        "maas.yaml: counters_file: cannot be set together with maas.yaml: counters"
    ]
    assert problems_of(lambda: load_settings(environ, counters_file=file)) == [
        "counters_file: cannot be set together with MAAS_COUNTERS"
    ]


def test_a_file_that_has_become_invalid_is_found_when_it_is_used(write: Write) -> None:
    settings = load_settings({}, counters_file=write("redis://localhost", "url"))
    write(f"ftp://:{SECRET}@redis", "url")

    assert problems_of(lambda: counters_of(settings)) == [f"counters_file: ftp://... {SUPPORTED}"]


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(f"redis://redis?unknown={SECRET}", id="unknown-option"),
        pytest.param(f"redis://redis?socket_timeout={SECRET}", id="option-of-another-type"),
        pytest.param(f"rediss://:{SECRET}@redis?ssl_cert_reqs={SECRET}", id="option-of-no-meaning"),
        pytest.param(f"redis://:{SECRET}@redis?decode_responses=true", id="option-that-cannot-be"),
    ],
)
def test_options_that_redis_py_refuses_are_found_before_anything_is_served(url: str) -> None:
    problems = problems_of(lambda: gateway(load_settings({}, counters=url)))

    assert problems == [f"counters: {LIKE_REDIS}"]
    assert problems_of(lambda: throttles_of(load_settings({}, counters=url))) == problems


def test_options_in_a_file_are_refused_by_its_name(write: Write) -> None:
    file = write(f"redis://redis?unknown={SECRET}", "url")

    problems = problems_of(lambda: gateway(load_settings({}, counters_file=file)))

    assert problems == [f"counters_file: {LIKE_REDIS}"]


def test_the_ledger_is_as_configured(write: Write) -> None:
    in_memory = ledger_of(load_settings({}))
    on_redis = ledger_of(load_settings({}, counters_file=write("redis://localhost", "url")))

    assert isinstance(in_memory, MemoryLedger)
    assert isinstance(on_redis, GuardedLedger)
    assert not on_redis.degraded  # nothing is connected yet


# single keys


def test_the_defaults() -> None:
    settings = load_settings({})

    assert (settings.counters, settings.counters_file) == ("memory://", None)
    assert (settings.on_counters_failure, settings.replicas, settings.admission) == ("local", 1, "soft")


@pytest.mark.parametrize(
    ("environ", "name", "value"),
    [
        pytest.param({"MAAS_ON_COUNTERS_FAILURE": "closed"}, "on_counters_failure", "closed", id="closed"),
        pytest.param({"MAAS_ON_COUNTERS_FAILURE": "local"}, "on_counters_failure", "local", id="local"),
        pytest.param({"MAAS_REPLICAS": "3"}, "replicas", 3, id="replicas"),
        pytest.param({"MAAS_ADMISSION": "strict"}, "admission", "strict", id="strict"),
        pytest.param({"MAAS_ADMISSION": "soft"}, "admission", "soft", id="soft"),
        pytest.param({"MAAS_COUNTERS_FILE": ""}, "counters_file", None, id="no-file"),
    ],
)
def test_every_key_has_a_variable(environ: dict[str, str], name: str, value: object) -> None:
    assert getattr(load_settings(environ), name) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("on_counters_failure: open", "on_counters_failure: has to be closed or local", id="policy"),
        pytest.param("replicas: 0", "replicas: has to be more than 0", id="no-replica"),
        pytest.param("replicas: two", "replicas: has to be a whole number", id="replicas-in-words"),
        pytest.param("replicas: true", "replicas: has to be a whole number", id="replicas-yes"),
        pytest.param("replicas: 1.5", "replicas: has to be a whole number", id="half-a-replica"),
        pytest.param("admission: hard", "admission: has to be soft or strict", id="admission"),
        pytest.param(f"counters: ['redis://:{SECRET}@redis']", "counters: has to be text", id="list-of-counters"),
        pytest.param("counters_file: 5", "counters_file: has to be text", id="file-that-is-a-number"),
        pytest.param(with_tier("concurrency: 0"), "tiers[0].concurrency: has to be more than 0", id="no-call"),
        pytest.param(
            with_tier("concurrency: many"), "tiers[0].concurrency: has to be a whole number", id="calls-in-words"
        ),
        pytest.param(
            with_tier("model_limits: {m: {tokens: 1/minute}}", models="[{id: ' m'}]"),
            "models[0].id: has to be a name: printable, not empty, without spaces around it",
            id="model-of-a-bad-name-is-one-problem",
        ),
        pytest.param(with_tier("model_limits: [m]"), "tiers[0].model_limits: has to be a mapping", id="list-of-models"),
        pytest.param(
            with_tier("model_limits: {m: 5/minute}"),
            "tiers[0].model_limits.m: has to be a mapping",
            id="limit-without-a-kind",
        ),
        pytest.param(
            with_tier("model_limits: {m: {requests: 5}}"),
            "tiers[0].model_limits.m.requests: has to be text",
            id="number-as-limit",
        ),
        pytest.param(
            with_tier("model_limits: {m: {tokens: 0/minute}}"),
            "tiers[0].model_limits.m.tokens: '0/minute' would let nothing pass",
            id="nothing-would-pass",
        ),
        pytest.param(
            with_tier("model_limits: {m: {requests: 5/fortnight}}"),
            "tiers[0].model_limits.m.requests: '5/fortnight' is not a limit such as 5/minute or 100/minute;5000/day",
            id="window-of-another-name",
        ),
        pytest.param(
            with_tier("model_limits: {m: {concurrency: -1}}"),
            "tiers[0].model_limits.m.concurrency: has to be more than 0",
            id="fewer-calls-than-none",
        ),
        pytest.param(
            with_tier("model_limits: {m: {burst: 5}}"),
            "tiers[0].model_limits.m.burst: is unknown to this version",
            id="unknown-kind",
        ),
        pytest.param(
            with_model("limits: {requests: 5/month}"),
            "models[0].limits.requests: '5/month' has a window of more than a day",
            id="month",
        ),
        pytest.param(
            with_model("limits: {concurrency: 0}"),
            "models[0].limits.concurrency: has to be more than 0",
            id="no-call-all",
        ),
        pytest.param(with_model("limits: 5/minute"), "models[0].limits: has to be a mapping", id="limits-as-text"),
        pytest.param(
            with_model("limits: {burst: 5}"), "models[0].limits.burst: is unknown to this version", id="unknown-limit"
        ),
        pytest.param(with_model("engine: sglang"), "models[0].engine: has to be vllm", id="other-engine"),
    ],
)
def test_bad_values_are_named_with_their_place(write: Write, text: str, problem: str) -> None:
    config = write(text)

    problems = problems_of(lambda: load_settings({}, config=config))

    assert problems == [f"maas.yaml: {problem}"]
    assert SECRET not in problems[0]


def test_bad_variables_are_named() -> None:
    environ = {"MAAS_REPLICAS": "two", "MAAS_ADMISSION": "hard", "MAAS_ON_COUNTERS_FAILURE": ""}

    assert sorted(problems_of(lambda: load_settings(environ))) == [
        "MAAS_ADMISSION: has to be soft or strict",
        "MAAS_ON_COUNTERS_FAILURE: has to be closed or local",
        "MAAS_REPLICAS: has to be a whole number",
    ]


# limits of tiers and of models


def test_the_core_gets_the_limits_as_they_are_written(write: Write) -> None:
    tier = "concurrency: 4, model_limits: {m: {requests: 2/minute;9/day, tokens: 50/minute, concurrency: 1}, n: {}}"
    models = "[{id: m, engine: vllm, limits: {requests: 7/second, concurrency: 3}}, {id: n}]"

    settings = load_settings({}, config=write(with_tier(tier, models=models)))
    (gold,), models_made = tiers_of(settings), models_of(settings)
    assert models_made is not None
    m, n = models_made

    assert gold.concurrency == 4
    assert gold.models["m"] == Limits((Limit(2, 60), Limit(9, 86400)), (Limit(50, 60),), 1)
    assert gold.models["n"] == Limits()
    assert (m.engine, m.limits) == ("vllm", Limits(requests=(Limit(7, 1),), concurrency=3))
    assert (n.engine, n.limits) == (None, Limits())
    assert validated(settings) == settings


def test_limits_on_a_model_that_is_not_there_are_a_problem(write: Write) -> None:
    tier = "model_limits: {m: {requests: 2/minute}, nope: {requests: 2/minute}, alias: {concurrency: 1}}"
    config = write(with_tier(tier, models="[{id: m, aliases: [alias]}]"))
    listed = [{"name": "gold", "limits": {"requests": "9/minute", "tokens": "unlimited"}, "model_limits": {"nope": {}}}]
    environ = {"MAAS_TIERS": json.dumps(listed), "MAAS_MODELS": '[{"id": "m"}]'}

    assert problems_of(lambda: load_settings({}, config=config)) == [
        "maas.yaml: tiers[0].model_limits.nope: there is no model nope",
        "maas.yaml: tiers[0].model_limits.alias: there is no model alias",
    ]
    assert problems_of(lambda: load_settings(environ)) == ["MAAS_TIERS[0].model_limits.nope: there is no model nope"]


def test_so_they_are_in_a_file_of_tiers(write: Write) -> None:
    tiers = f"- {{name: gold, limits: {LIMITS}, model_limits: {{nope: {{requests: 2/minute}}}}}}"
    models = [{"id": "m"}]

    assert problems_of(lambda: load_settings({}, models=models, tiers_file=write(tiers, "tiers.yaml"))) == [
        "tiers.yaml: [0].model_limits.nope: there is no model nope"
    ]
    nested = write(f"tiers:\n{tiers}", "nested.yaml")
    assert problems_of(lambda: load_settings({}, models=models, tiers_file=nested)) == [
        "nested.yaml: tiers[0].model_limits.nope: there is no model nope"
    ]


def test_where_the_inner_app_has_the_models_any_may_be_limited(write: Write) -> None:
    tiers = write(f"- {{name: gold, limits: {LIMITS}, model_limits: {{theirs: {{requests: 2/minute}}}}}}", "tiers.yaml")

    (gold,) = tiers_of(load_settings({}, tiers_file=tiers))

    assert gold.models == {"theirs": Limits(requests=(Limit(2, 60),))}


def test_reloaded_tiers_may_name_no_other_models_either(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def write(model: str, at: int) -> str:
        file = tmp_path / "tiers.yaml"
        file.write_text(f"- {{name: gold, limits: {LIMITS}, model_limits: {{{model}: {{requests: 2/minute}}}}}}")
        os.utime(file, (at, at))
        return str(file)

    clock = FakeClock()
    settings = load_settings({}, models=[{"id": "m"}], tiers_file=write("m", 1))
    tiers = WatchedTiers(settings, clock=clock)

    write("nope", 2)
    clock.advance(1)
    kept = tiers.current()[0].models
    problem = tiers.problem
    write("m", 3)
    clock.advance(1)

    assert (list(kept), problem) == (["m"], "tiers.yaml: [0].model_limits.nope: there is no model nope")
    assert (list(tiers.current()[0].models), tiers.problem) == (["m"], None)
    (refusal,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert refusal.getMessage().endswith(": tiers.yaml: [0].model_limits.nope: there is no model nope")


# the command


CHECKED = f"""
on_counters_failure: closed
replicas: 3
admission: strict
tiers:
  - name: gold
    limits: {LIMITS}
    concurrency: 2
    model_limits: {{m: {{requests: 2/minute}}}}
models:
  - {{id: m, tiers: all, upstreams: [http://127.0.0.1:9], engine: vllm, limits: {{concurrency: 9}}}}
"""


def test_check_accepts_it_all_and_asks_no_redis(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(f"counters_file: {write(f'redis://:{SECRET}@127.0.0.1:1/0', 'url')}\n{CHECKED}")

    assert main(["check", "--config", config]) == 0

    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "The configuration is valid."
    assert SECRET not in printed.out + printed.err


def test_check_refuses_options_that_serve_would_refuse(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(f"counters: redis://:{SECRET}@127.0.0.1?unknown={SECRET}\n{CHECKED}")

    assert main(["check", "--config", config]) == 1

    assert capsys.readouterr().err.splitlines() == [f"counters: {LIKE_REDIS}"]


WITHOUT_REDIS = """
import sys
sys.modules["redis"] = None  # as where it is not installed
from maas_middleware.cli import main
sys.exit(main(["check", "--config", sys.argv[1]]) * 2 + main(["check", "--config", sys.argv[2]]))
"""


def test_without_redis_py_there_is_a_sentence_that_says_what_to_install(write: Write) -> None:
    with_it = write(f"counters: redis://:{SECRET}@redis\n{CHECKED}", "redis.yaml")
    without = write(f"counters: memory://\n{CHECKED}", "memory.yaml")

    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_REDIS, with_it, without], capture_output=True, text=True, timeout=20
    )

    assert ran.returncode == 2, ran.stderr  # the first is refused, the second is not
    lines = [line for line in ran.stderr.splitlines() if "redis" in line]
    assert lines == [f"counters: {MISSING}"]
    assert "Traceback" not in ran.stderr
    assert SECRET not in ran.stdout + ran.stderr


def test_settings_made_in_python_are_checked_too() -> None:
    made = Settings(counters=f"etcd://:{SECRET}@x", replicas=0)

    assert problems_of(lambda: gateway(made)) == [
        f"counters: etcd://... {SUPPORTED}",
        "replicas: has to be more than 0",
    ]


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        pytest.param("counters: redis://x", True, id="redis"),
        pytest.param("counters_file: {file}", True, id="redis-in-a-file"),
        pytest.param("counters: redis://x\nreplicas: 2", False, id="replicas"),
        pytest.param("counters: redis://x\non_counters_failure: closed", False, id="closed"),
        pytest.param("counters: memory://", False, id="memory"),
    ],
)
def test_whole_shares_are_warned_of(text: str, warned: bool, write: Write) -> None:
    settings = load_settings({}, config=write(text.format(file=write("redis://x", "url"))))

    warnings = [str(warning) for warning in warnings_of(settings)]

    assert warnings == ["replicas: " + SHARES] * warned
