"""Where tokens are kept, who may look at them, and what is slowed down: what is valid, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from maas_middleware.providers.keys import SigningKeys
from maas_middleware.settings import (
    Settings,
    api_key_lifetimes_of,
    lifetimes_of,
    load_settings,
    signing_keys_path,
    store_of,
    validated,
)
from maas_middleware.tokens import LifetimePolicy

from . import Write, problems_of

SECRET = "hunter2"
SUPPORTED = "is not like memory://, sqlite:///PATH or postgresql://HOST:PORT/DATABASE"


def loaded(write: Write, text: str) -> Settings:
    return load_settings({}, config=write(text))


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys.json"
    SigningKeys.generate().save(path)
    return str(path)


# the store


@pytest.mark.parametrize(
    "url",
    [
        "memory://",
        "sqlite:///maas.db",
        "sqlite:////var/lib/maas/maas.db",
        "postgresql://db/maas",
        f"postgresql://maas:{SECRET}@db.example.com:5432/maas?sslmode=verify-full",
        "postgres://[::1]:5432/maas",
    ],
)
def test_store_is_a_url(url: str, keys: str, write: Write) -> None:
    settings = loaded(write, f"store: '{url}'\ntokens: {{signing_keys_file: {keys}}}")

    assert store_of(settings) == settings.store == url


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("sqlite://", "sqlite://..."),
        ("sqlite:///", "sqlite://..."),
        ("sqlite:///folder/", "sqlite://..."),
        ("sqlite:///maas.db?mode=ro", "sqlite://..."),
        ("sqlite://maas.db", "sqlite://..."),
        (f"postgresql://maas:{SECRET}@/maas", "postgresql://..."),
        (f"postgresql://maas:{SECRET}@db", "postgresql://..."),
        (f"postgresql://maas:{SECRET}@db/", "postgresql://..."),
        (f"postgresql://maas:{SECRET}@db/one/two", "postgresql://..."),
        (f"postgresql://maas:{SECRET}@db:0/maas", "postgresql://..."),
        (f"postgresql://maas:{SECRET}@db:port/maas", "postgresql://..."),
        (f"postgresql://maas:{SECRET} @db/maas", "postgresql://..."),
        (f"postgresql://maas:{SECRET}ä@db/maas", "postgresql://..."),
        (f"mysql://maas:{SECRET}@db/maas", "mysql://..."),
        (f"{SECRET}", "this"),
    ],
)
def test_other_stores_are_refused_and_not_quoted(url: str, named: str, write: Write) -> None:
    assert problems_of(lambda: loaded(write, f"store: '{url}'")) == [f"maas.yaml: store: {named} {SUPPORTED}"]


def test_store_may_be_in_a_file_for_it_may_hold_a_password(keys: str, tmp_path: Path, write: Write) -> None:
    url = f"postgresql://maas:{SECRET}@db/maas"
    (tmp_path / "store").write_text(f"{url}\n")

    settings = loaded(write, f"store_file: {tmp_path}/store\ntokens: {{signing_keys_file: {keys}}}")

    assert store_of(settings) == url
    assert SECRET not in repr(settings)


def test_store_in_a_file_is_checked_like_any_other(tmp_path: Path, write: Write) -> None:
    (tmp_path / "store").write_text(f"mysql://maas:{SECRET}@db/maas")

    problems = problems_of(lambda: loaded(write, f"store_file: {tmp_path}/store"))

    assert problems == [f"maas.yaml: store_file: mysql://... {SUPPORTED}"]


def test_store_cannot_be_given_twice(tmp_path: Path, write: Write) -> None:
    (tmp_path / "store").write_text("sqlite:///other.db")

    problems = problems_of(lambda: loaded(write, f"store: sqlite:///maas.db\nstore_file: {tmp_path}/store"))

    assert problems == ["maas.yaml: store_file: cannot be set together with maas.yaml: store"]


# the keys that sign


def test_signing_keys_lie_beside_the_sqlite_file(write: Write) -> None:
    assert signing_keys_path(loaded(write, "store: sqlite:////var/lib/maas/maas.db")) == Path(
        "/var/lib/maas/maas.keys.json"
    )
    assert signing_keys_path(loaded(write, "store: sqlite:///maas.db")) == Path("maas.keys.json")


def test_signing_keys_lie_where_they_are_named(keys: str, write: Write) -> None:
    settings = loaded(write, f"store: sqlite:///maas.db\ntokens: {{signing_keys_file: {keys}}}")

    assert signing_keys_path(settings) == Path(keys)


def test_signing_key_of_a_store_in_memory_is_not_kept(write: Write) -> None:
    assert signing_keys_path(loaded(write, "")) is None


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("store: postgresql://db/maas", "store"),
        ("store: postgres://db/maas", "store"),
        ("counters: redis://redis", "counters"),
        ("counters: rediss://redis", "counters"),
        ("store: postgresql://db/maas\ncounters: redis://redis", "store"),
    ],
)
def test_replicas_that_share_something_need_the_same_keys(text: str, shared: str, write: Write) -> None:
    assert problems_of(lambda: loaded(write, text)) == [
        f"tokens.signing_keys_file: is needed: maas.yaml: {shared} is shared, and each process would refuse the tokens "
        "of the others"
    ]


def test_keys_that_cannot_be_read_are_one_problem(write: Write) -> None:
    problems = problems_of(lambda: loaded(write, "store: postgresql://db/maas\ntokens: {signing_keys_file: /nowhere}"))

    assert problems == ["maas.yaml: tokens.signing_keys_file: /nowhere cannot be read: No such file or directory"]


def test_processes_of_one_machine_share_the_key_beside_their_sqlite_file(write: Write) -> None:
    assert loaded(write, "store: sqlite:///maas.db\ncounters: redis://redis").tokens.signing_keys_file is None


# lifetimes


def test_api_keys_live_for_a_month_and_at_most_three() -> None:
    month = 30 * 86_400

    assert api_key_lifetimes_of(load_settings({})) == LifetimePolicy(default=month, minimum=600, maximum=3 * month)


def test_api_keys_have_lifetimes_of_their_own_and_the_minimum_of_all_tokens(write: Write) -> None:
    settings = loaded(
        write, "tokens: {minimum_expiration: 1h}\napi_keys: {default_expiration: 2h, maximum_expiration: 3h}"
    )

    assert api_key_lifetimes_of(settings) == LifetimePolicy(default=7200, minimum=3600, maximum=10_800)
    assert lifetimes_of(settings) == LifetimePolicy(default=14_400, minimum=3600, maximum=86_400)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "api_keys: {default_expiration: 5m}",
            "maas.yaml: api_keys.default_expiration: is not between tokens.minimum_expiration and "
            "api_keys.maximum_expiration",
        ),
        (
            "api_keys: {maximum_expiration: 5m}",
            "tokens.minimum_expiration: is more than maas.yaml: api_keys.maximum_expiration",
        ),
        (
            "api_keys: {default_expiration: 2161h}",
            "maas.yaml: api_keys.default_expiration: is not between tokens.minimum_expiration and "
            "api_keys.maximum_expiration",
        ),
        ("api_keys: {maximum_count: 0}", "maas.yaml: api_keys.maximum_count: has to be more than 0"),
        ("api_keys: {maximum_count: many}", "maas.yaml: api_keys.maximum_count: has to be a whole number"),
    ],
)
def test_bad_settings_of_api_keys_are_refused(text: str, problem: str, write: Write) -> None:
    assert problems_of(lambda: loaded(write, text)) == [problem]


# the rest


def test_nobody_is_an_administrator_by_default() -> None:
    assert load_settings({}).tokens.administrators == ()


def test_administrators_are_groups() -> None:
    settings = load_settings({"MAAS_TOKENS_ADMINISTRATORS": "maas-admins, cluster-admins"})

    assert settings.tokens.administrators == ("maas-admins", "cluster-admins")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tokens: {on_store_failure: pass}", "tokens.on_store_failure: has to be "),
        ("tokens: {revocation_grace: -1s}", "tokens.revocation_grace: has to be positive and finite"),
        ("tokens: {administrators: maas-admins}", "tokens.administrators: has to be a list"),
        ("throttles: {mints: 5}", "throttles.mints: has to be text"),
        ("throttles: {mints: often}", "throttles.mints: 'often' is not a limit such as 5/minute or "),
        ("throttles: {failed_credentials: 0/minute}", "throttles.failed_credentials: "),
        ("throttles: {requests: 5/minute}", "throttles.requests: is unknown to this version"),
        ("store_timeout: 0s", "store_timeout: has to be positive and finite"),
    ],
)
def test_bad_values_are_refused(text: str, problem: str, write: Write) -> None:
    (found,) = problems_of(lambda: loaded(write, text))

    assert found.startswith(f"maas.yaml: {problem}")


def test_throttles_can_be_switched_off(write: Write) -> None:
    throttles = loaded(write, "throttles: {mints: unlimited, failed_credentials: unlimited}").throttles

    assert (throttles.mints, throttles.failed_credentials, throttles.control_requests) == (
        "unlimited",
        "unlimited",
        "600/minute",
    )


def test_settings_made_in_python_are_checked_the_same() -> None:
    assert problems_of(lambda: validated(Settings(store="mysql://db"))) == [f"store: mysql://... {SUPPORTED}"]
