"""Where settings come from, what is wrong with bad ones, and what the core gets of good ones."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings, strategies
from msgspec import structs

from maas_middleware.limiting import Limit
from maas_middleware.settings import (
    ConfigurationError,
    LimitsSettings,
    ModelSettings,
    OpenShiftSettings,
    Problem,
    ProxySettings,
    Settings,
    TierSettings,
    TokenSettings,
    inner_api_key_of,
    issuer_of,
    lifetimes_of,
    load_settings,
    models_of,
    tiers_of,
    validated,
    warnings_of,
)
from maas_middleware.settings.loading import existing, variable
from maas_middleware.settings.schema import leaves, schema_of
from maas_middleware.tiers import FEATURES, Tier
from maas_middleware.tokens import LifetimePolicy

from . import Write, problems_of

GOLD = {"name": "gold", "groups": ["g"], "limits": {"requests": "9/minute", "tokens": "90/minute"}}
CONFIG_MAP_VALUE = """
- name: free
  description: Free tier
  level: 1
  groups:
    - system:authenticated
- name: premium
  displayName: Premium
  level: 10
  groups: [premium-users]
"""


def value_at(loaded: Settings, path: str) -> Any:
    value: Any = loaded
    for name in path.split("."):
        value = getattr(value, name)
    return value


# where values come from


def test_nothing_configured_is_the_defaults() -> None:
    loaded = load_settings({})

    assert loaded == Settings()
    assert loaded.origin is None
    assert loaded.public_paths == ("/health", "/healthz", "/ready", "/ping", "/version", "/metrics")
    assert (loaded.openshift.api_url, loaded.openshift.timeout) == ("https://kubernetes.default.svc", 3.0)
    assert (loaded.openshift.review, loaded.trusted_proxies) == ("tokenreview", ())
    assert loaded.ietf_rate_limit_headers is False
    assert loaded.proxy == ProxySettings(
        connect_timeout=5.0, first_byte_timeout=120.0, idle_timeout=60.0, max_body_bytes=33_554_432
    )


@pytest.mark.parametrize(
    ("environ", "overrides", "expected"),
    [
        pytest.param({}, {}, "from-file", id="file-before-default"),
        pytest.param({"MAAS_TOKENS_AUDIENCE": "from-env"}, {}, "from-env", id="environment-before-file"),
        pytest.param(
            {"MAAS_TOKENS_AUDIENCE": "from-env"},
            {"tokens": {"audience": "from-keyword"}},
            "from-keyword",
            id="keyword-before-environment",
        ),
        pytest.param({}, {"tokens": TokenSettings()}, "maas", id="struct-replaces-the-section"),
    ],
)
def test_precedence(write: Write, environ: dict[str, str], overrides: dict[str, Any], expected: str) -> None:
    config = write("tokens: {audience: from-file}")

    assert load_settings(environ, config=config, **overrides).tokens.audience == expected


def test_a_mapping_as_keyword_keeps_the_other_keys_of_its_section(write: Write) -> None:
    config = write("tokens: {audience: from-file, issuer: file-issuer}")

    loaded = load_settings({}, config=config, tokens={"audience": "from-keyword"})

    assert loaded.tokens == TokenSettings(audience="from-keyword", issuer="file-issuer")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("maas.yaml", "scope: inference\ntokens:\n  audience: x\nproxy:\n", id="yaml"),
        pytest.param("maas.yml", "\ufeffscope: inference\ntokens: {audience: x}\n", id="yml-with-byte-order-mark"),
        pytest.param("maas", "scope: inference\ntokens: {audience: x}\n", id="no-suffix-is-yaml"),
        pytest.param("maas.json", '{"scope": "inference", "tokens": {"audience": "x"}}', id="json"),
        pytest.param("maas.toml", 'scope = "inference"\n[tokens]\naudience = "x"\n', id="toml"),
    ],
)
def test_file_formats(write: Write, name: str, text: str) -> None:
    config = write(text, name)

    loaded = load_settings({"MAAS_CONFIG": config})

    assert loaded == Settings(scope="inference", tokens=TokenSettings(audience="x"))


def test_an_empty_file_configures_nothing(write: Write) -> None:
    assert load_settings({}, config=write("# nothing yet\n")) == Settings()


def test_config_goes_before_its_variable(write: Write) -> None:
    environ = {"MAAS_CONFIG": write("scope: inference", "a.yaml")}

    assert load_settings(environ, config=write("scope: all", "b.yaml")).scope == "all"


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAAS_SCOPE", "inference")

    assert load_settings().scope == "inference"


def test_origin_tells_what_the_file_decided(write: Write) -> None:
    config = write("tokens: {audience: a, issuer: i}\nscope: all\n")

    origin = load_settings({"MAAS_TOKENS_ISSUER": "e"}, config=config, scope="inference").origin

    assert origin is not None
    assert (origin.config, origin.keys) == (config, frozenset({"tokens.audience"}))
    assert origin.load().tokens == TokenSettings(audience="a", issuer="e")


@pytest.mark.parametrize(
    ("name", "text", "path", "expected"),
    [
        pytest.param("MAAS_PUBLIC_URL", "https://x/", "public_url", "https://x", id="text"),
        pytest.param("MAAS_PUBLIC_URL", "", "public_url", None, id="empty-is-null"),
        pytest.param("MAAS_PUBLIC_PATHS", "/a, /b,", "public_paths", ("/a", "/b"), id="list"),
        pytest.param("MAAS_PUBLIC_PATHS", "", "public_paths", (), id="empty-list"),
        pytest.param("MAAS_OPENSHIFT_AUDIENCES", "a,b", "openshift.audiences", ("a", "b"), id="list-in-a-section"),
        pytest.param("MAAS_OPENSHIFT_TIMEOUT", "1m30s", "openshift.timeout", 90.0, id="duration"),
        pytest.param(
            "MAAS_OPENSHIFT_ALLOW_SERVICE_ACCOUNTS", "True", "openshift.allow_service_accounts", True, id="on"
        ),
        pytest.param("MAAS_OPENSHIFT_ALLOW_SERVICE_ACCOUNTS", "0", "openshift.allow_service_accounts", False, id="off"),
        pytest.param("MAAS_PROXY_MAX_BODY_BYTES", " 10 ", "proxy.max_body_bytes", 10, id="number"),
        pytest.param("MAAS_SCOPE", "inference", "scope", "inference", id="choice"),
        pytest.param("MAAS_OPENSHIFT_REVIEW", "users-self", "openshift.review", "users-self", id="choice-with-a-dash"),
        pytest.param("MAAS_IETF_RATE_LIMIT_HEADERS", "yes", "ietf_rate_limit_headers", True, id="headers"),
        pytest.param(
            "MAAS_TRUSTED_PROXIES",
            "10.0.0.0/8, ::1,*,fe80::1%eth0",
            "trusted_proxies",
            ("10.0.0.0/8", "::1", "*", "fe80::1%eth0"),
            id="peers",
        ),
        pytest.param("MAAS_MODELS", '[{"id": "m"}]', "models", (ModelSettings(id="m"),), id="json-list"),
        pytest.param("MAAS_MODELS", "null", "models", None, id="json-null"),
        pytest.param(
            "MAAS_TIER_LIMITS",
            '{"free": {"requests": "9/minute"}}',
            "tier_limits",
            {"free": LimitsSettings(requests="9/minute")},
            id="json-map",
        ),
    ],
)
def test_variables_are_read_as_their_key_wants(name: str, text: str, path: str, expected: object) -> None:
    assert value_at(load_settings({name: text}), path) == expected


def test_every_key_has_its_own_variable_and_none_looks_like_a_service_link() -> None:
    names = [variable(path) for path, _ in leaves(schema_of(Settings))]

    assert len(set(names)) == len(names) > 20
    assert not [name for name in names if name.endswith(("_PORT", "_HOST"))]


def test_unknown_variables_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    environ = {"MAAS_TOKEN_AUDIENCE": "hunter2", "MAAS_A": "", "HOME": "/", "MAAS_SCOPE": "all", "MAAS_CONFIG": ""}

    load_settings(environ)

    (record,) = caplog.records
    assert (record.name, record.levelno) == ("maas_middleware", logging.WARNING)
    assert record.getMessage() == "unknown environment variables: MAAS_A, MAAS_TOKEN_AUDIENCE"


@pytest.mark.parametrize(
    "name",
    [
        "MAAS_PORT",
        "MAAS_SERVICE_HOST",
        "MAAS_API_SERVICE_HOST",
        "MAAS_API_SERVICE_PORT",
        "MAAS_API_SERVICE_PORT_HTTP",
        "MAAS_API_PORT",
        "MAAS_API_PORT_8080_TCP",
        "MAAS_API_PORT_8080_TCP_ADDR",
        "MAAS_DNS_PORT_53_UDP_PROTO",
    ],
)
def test_kubernetes_service_links_are_ignored(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert load_settings({name: "tcp://10.0.0.1:8080"}) == Settings()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param(
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}, "https://10.0.0.1:6443", id="v4"
        ),
        pytest.param(
            {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, "https://[fd00::1]:443", id="v6"
        ),
        pytest.param({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "https://kubernetes.default.svc", id="no-port"),
        pytest.param(
            {
                "KUBERNETES_SERVICE_HOST": "10.0.0.1",
                "KUBERNETES_SERVICE_PORT": "443",
                "MAAS_OPENSHIFT_API_URL": "http://localhost:1/",
            },
            "http://localhost:1",
            id="configured",
        ),
    ],
)
def test_the_api_is_found_as_pods_find_it(environ: dict[str, str], expected: str) -> None:
    assert load_settings(environ).openshift.api_url == expected


def test_the_files_of_a_pod_are_used_where_they_exist(write: Write) -> None:
    path = write("", "ca.crt")

    assert existing(path) == path
    assert existing(path + ".not") is None


def test_files_are_kept_by_their_path(write: Write) -> None:
    path = write("{}", "keys.json")

    assert load_settings({"MAAS_TOKENS_SIGNING_KEYS_FILE": path}).tokens.signing_keys_file == path


def test_no_file_at_all_can_be_asked_for() -> None:
    loaded = load_settings({"MAAS_OPENSHIFT_CA_FILE": "", "MAAS_OPENSHIFT_TOKEN_FILE": ""})

    assert (loaded.openshift.ca_file, loaded.openshift.token_file) == (None, None)


# what is wrong


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("colour: red", "colour: is unknown to this version", id="unknown-key"),
        pytest.param("5: red", "5: is unknown to this version", id="key-that-is-no-text"),
        pytest.param("tokens: {admins: [a]}", "tokens.admins: is unknown to this version", id="unknown-in-a-section"),
        pytest.param("tokens: 5", "tokens: has to be a mapping", id="section-that-is-none"),
        pytest.param("scope: some", "scope: has to be all or inference", id="no-such-choice"),
        pytest.param("scope: [all]", "scope: has to be all or inference", id="choice-that-is-no-text"),
        pytest.param("public_paths: null", "public_paths: has to be a list", id="null-is-no-list"),
        pytest.param("public_paths: /health", "public_paths: has to be a list", id="text-is-no-list"),
        pytest.param("public_paths: [health]", "public_paths[0]: has to start with a slash", id="relative-path"),
        pytest.param("public_paths: [/a, 5]", "public_paths[1]: has to be text", id="item-that-is-no-text"),
        pytest.param("tokens: {audience: 5}", "tokens.audience: has to be text", id="number-is-no-text"),
        pytest.param(
            "tokens: {audience: ''}",
            "tokens.audience: has to be a name: printable, not empty, without spaces around it",
            id="empty-name",
        ),
        pytest.param("proxy: {max_body_bytes: 1.5}", "proxy.max_body_bytes: has to be a whole number", id="fraction"),
        pytest.param("proxy: {max_body_bytes: true}", "proxy.max_body_bytes: has to be a whole number", id="bool"),
        pytest.param("proxy: {max_body_bytes: 0}", "proxy.max_body_bytes: has to be more than 0", id="no-bytes"),
        pytest.param(
            "proxy: {idle_timeout: 5 s}",
            "proxy.idle_timeout: has to be a duration such as 30s or 1h30m: invalid duration",
            id="bad-duration",
        ),
        pytest.param(
            "proxy: {idle_timeout: '5'}",
            "proxy.idle_timeout: has to be a duration such as 30s or 1h30m: missing unit in duration",
            id="duration-without-unit",
        ),
        pytest.param(
            "proxy: {idle_timeout: [5]}",
            "proxy.idle_timeout: has to be a duration such as 30s or 1h30m",
            id="list-is-no-duration",
        ),
        pytest.param(
            f"proxy: {{idle_timeout: 1{'0' * 400}}}",
            "proxy.idle_timeout: has to be a duration such as 30s or 1h30m: int too large to convert to float",
            id="huge-duration",
        ),
        pytest.param("proxy: {idle_timeout: 0}", "proxy.idle_timeout: has to be positive and finite", id="no-time"),
        pytest.param("proxy: {idle_timeout: .inf}", "proxy.idle_timeout: has to be positive and finite", id="for-ever"),
        pytest.param(
            "openshift: {allow_service_accounts: 'on'}",
            "openshift.allow_service_accounts: has to be true or false",
            id="text-is-no-bool",
        ),
        pytest.param("public_url: /x", "public_url: has to be an absolute http or https URL", id="relative-url"),
        pytest.param("public_url: ftp://x", "public_url: has to be an absolute http or https URL", id="ftp"),
        pytest.param("public_url: http://[x", "public_url: has to be an absolute http or https URL", id="broken-url"),
        pytest.param("public_url: http://x:y", "public_url: has to be an absolute http or https URL", id="port"),
        pytest.param('public_url: "http://x/\\n"', "public_url: has to be an absolute http or https URL", id="newline"),
        pytest.param(
            "public_url: http://user:hunter2@x",
            "public_url: has to be a URL without credentials, query and fragment",
            id="credentials-in-url",
        ),
        pytest.param(
            "openshift: {review: userinfo}",
            "openshift.review: has to be tokenreview or users-self",
            id="no-such-review",
        ),
        pytest.param(
            "openshift: {review: users-self, audiences: [maas]}",
            "openshift.audiences: cannot be checked by the review users-self",
            id="audiences-that-nobody-would-check",
        ),
        pytest.param(
            "ietf_rate_limit_headers: draft-10", "ietf_rate_limit_headers: has to be true or false", id="no-such-draft"
        ),
        pytest.param("trusted_proxies: '*'", "trusted_proxies: has to be a list", id="peer-that-is-no-list"),
        pytest.param(
            "trusted_proxies: [127.0.0.1, proxy.example.com]",
            "trusted_proxies[1]: has to be an IP address, a network such as 10.0.0.0/8, or *: "
            "'proxy.example.com' does not appear to be an IPv4 or IPv6 network",
            id="peer-by-name",
        ),
        pytest.param(
            "trusted_proxies: [10.0.0.1/8]",
            "trusted_proxies[0]: has to be an IP address, a network such as 10.0.0.0/8, or *: "
            "10.0.0.1/8 has host bits set",
            id="address-and-network-at-once",
        ),
        pytest.param(
            "tier_limits: {free: {max_tokens_per_request: 5}}",
            "tier_limits.free.max_tokens_per_request: is unknown to this version",
            id="no-limit",
        ),
        pytest.param("tier_limits: {5: {}}", "tier_limits.5: has to be text", id="map-key-that-is-no-text"),
        pytest.param("tier_limits: {free: 5}", "tier_limits.free: has to be a mapping", id="map-value"),
        pytest.param("tier_limits: null", "tier_limits: has to be a mapping", id="null-is-no-map"),
        pytest.param("models: {id: m}", "models: has to be a list", id="map-is-no-list"),
        pytest.param(
            "counters: rediss+sentinel://:hunter2@redis:6379/0",
            "counters: rediss+sentinel://... is not like memory://, redis://HOST:PORT/DATABASE or rediss://...",
            id="other-counters",
        ),
        pytest.param(
            "counters: 'hunter2@redis://x'",
            "counters: this is not like memory://, redis://HOST:PORT/DATABASE or rediss://...",
            id="no-scheme-is-not-repeated",
        ),
        pytest.param(
            "tokens: {signing_keys_file: /nowhere/keys.json}",
            "tokens.signing_keys_file: /nowhere/keys.json cannot be read: No such file or directory",
            id="missing-file",
        ),
        pytest.param(
            "tokens: {default_expiration: 900.5}", "tokens.default_expiration: has to be in whole seconds", id="half"
        ),
        pytest.param(
            "tokens: {default_expiration: 5m}",
            "tokens.default_expiration: is not between tokens.minimum_expiration and tokens.maximum_expiration",
            id="default-below-minimum",
        ),
        pytest.param(
            "tokens: {default_expiration: 25h}",
            "tokens.default_expiration: is not between tokens.minimum_expiration and tokens.maximum_expiration",
            id="default-above-maximum",
        ),
        pytest.param(
            "tokens: {minimum_expiration: 25h}",
            "tokens.minimum_expiration: is more than tokens.maximum_expiration",
            id="minimum-above-maximum",
        ),
    ],
)
def test_a_bad_file_is_refused_with_the_place(write: Write, text: str, expected: str) -> None:
    problems = problems_of(lambda: load_settings({}, config=write(text)))

    assert problems == [f"maas.yaml: {expected}"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        pytest.param("MAAS_MODELS", "m, n", "MAAS_MODELS: is not valid JSON", id="no-json"),
        pytest.param("MAAS_MODELS", "[" * 100_000, "MAAS_MODELS: is not valid JSON", id="deep-json"),
        pytest.param("MAAS_MODELS", '["\udc80"]', "MAAS_MODELS: is not valid JSON", id="no-unicode"),
        pytest.param("MAAS_MODELS", "", "MAAS_MODELS: is not valid JSON", id="empty-does-not-open-the-catalogue"),
        pytest.param("MAAS_MODELS", '[{"id": 5}]', "MAAS_MODELS[0].id: has to be text", id="inside-json"),
        pytest.param(
            "MAAS_TIERS",
            "[]",
            "MAAS_TIERS: names no tier; where it is left out there are free, premium and enterprise",
            id="no-tier",
        ),
        pytest.param("MAAS_TIERS", "[", "MAAS_TIERS: is not valid JSON", id="tiers-that-are-no-json"),
        pytest.param(
            "MAAS_PROXY_MAX_BODY_BYTES", "1e6", "MAAS_PROXY_MAX_BODY_BYTES: has to be a whole number", id="no-number"
        ),
        pytest.param(
            "MAAS_OPENSHIFT_ALLOW_SERVICE_ACCOUNTS",
            "maybe",
            "MAAS_OPENSHIFT_ALLOW_SERVICE_ACCOUNTS: has to be true or false",
            id="no-bool",
        ),
        pytest.param(
            "MAAS_TOKENS_AUDIENCE",
            "",
            "MAAS_TOKENS_AUDIENCE: has to be a name: printable, not empty, without spaces around it",
            id="empty-text",
        ),
        pytest.param(
            "MAAS_CONFIG",
            "/nowhere/maas.yaml",
            "MAAS_CONFIG: /nowhere/maas.yaml cannot be read: No such file or directory",
            id="config",
        ),
    ],
)
def test_a_bad_variable_is_refused_by_name(name: str, text: str, expected: str) -> None:
    assert problems_of(lambda: load_settings({name: text})) == [expected]


def test_a_bad_keyword_is_refused_by_key() -> None:
    assert problems_of(lambda: load_settings({}, colour="red", tokens={"audience": 5})) == [
        "colour: is unknown to this version",
        "tokens.audience: has to be text",
    ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        pytest.param(
            "a.yaml", b"a: *hunter\n", "is not valid YAML: found undefined alias 'hunter' in line 1", id="yaml"
        ),
        pytest.param(
            "a.yaml",
            b"a: \x07",
            "cannot be read: unacceptable character #x0007: special characters are not allowed",
            id="control-character",
        ),
        pytest.param("a.yaml", b"a: 2024-13-45", "cannot be read: month must be in 1..12", id="impossible-date"),
        pytest.param("a.yaml", b"[" * 5000, "cannot be read: maximum recursion depth exceeded", id="deep-yaml"),
        pytest.param("a.toml", b"a = ", "cannot be read: Invalid value (at end of document)", id="toml"),
        pytest.param("a.json", b"{", "cannot be read: Input data was truncated", id="json"),
        pytest.param("a.yaml", b"a: \xff", "is not in UTF-8", id="latin-1"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_one_problem(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    (problem,) = problems_of(lambda: load_settings({}, config=str(path)))

    assert problem.startswith(f"config: {path} {expected}")


@pytest.mark.parametrize("text", [pytest.param("[a]", id="list"), pytest.param("hello", id="text")])
def test_a_file_has_to_hold_a_mapping(write: Write, text: str) -> None:
    assert problems_of(lambda: load_settings({}, config=write(text))) == ["maas.yaml: has to be a mapping"]


def test_all_problems_come_at_once_each_with_its_place(write: Write) -> None:
    config = write(
        """
        colour: red
        tokens: {audience: 5, minimum_expiration: soon, default_expiration: 1s}
        tier_limits: {gold: {requests: 5/fortnight}, bronze: {tokens: unlimited}, gone: 5}
        tiers:
          - {name: gold}
          - {name: silver, groups: g, limits: {requests: 5/minute}}
          - {nme: tin}
          - 5
          - {name: gold, level: high}
        models:
          - {id: a, tiers: [silver, lead]}
          - 5
          - {id: a, tiers: gold}
          - {tiers: all}
        """
    )

    problems = problems_of(lambda: load_settings({"MAAS_SCOPE": "some"}, config=config, proxy={"idle_timeout": "x"}))

    assert problems == [
        "maas.yaml: colour: is unknown to this version",
        "MAAS_SCOPE: has to be all or inference",
        "maas.yaml: tokens.audience: has to be text",
        "maas.yaml: tokens.minimum_expiration: has to be a duration such as 30s or 1h30m: invalid duration",
        "maas.yaml: tier_limits.gold.requests: '5/fortnight' is not a limit such as 5/minute or 100/minute;5000/day",
        "maas.yaml: tier_limits.gone: has to be a mapping",
        "maas.yaml: tiers[1].groups: has to be a list",
        "maas.yaml: tiers[2].nme: is unknown to this version",
        "maas.yaml: tiers[2].name: is missing",
        "maas.yaml: tiers[3]: has to be a mapping",
        "maas.yaml: tiers[4].level: has to be a whole number",
        "maas.yaml: models[1]: has to be a mapping",
        "maas.yaml: models[2].tiers: has to be a list or all",
        "maas.yaml: models[3].id: is missing",
        "proxy.idle_timeout: has to be a duration such as 30s or 1h30m: invalid duration",
        "maas.yaml: tiers[4].name: gold is taken by maas.yaml: tiers[0].name",
        "maas.yaml: tier_limits.bronze: there is no tier bronze",
        "maas.yaml: tier_limits.gone: there is no tier gone",
        "maas.yaml: tiers[1].limits: tier silver has no limit on tokens: "
        "write one here or in tier_limits.silver, or write unlimited",
        "maas.yaml: models[2].id: a is taken by maas.yaml: models[0].id",
        "maas.yaml: models[0].tiers: there is no tier lead",
    ]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("tiers: 5\nmodels: [{id: m, tiers: [gold]}]\ntier_limits: {gold: {}}", id="tiers"),
        pytest.param("tiers_file: 5\nmodels: [{id: m, tiers: [gold]}]", id="tiers-file"),
        pytest.param("tiers: [{name: gold}]\ntier_limits: 5", id="tier-limits"),
        pytest.param("tokens: {maximum_expiration: x, default_expiration: 48h}", id="lifetimes"),
    ],
)
def test_what_depends_on_a_refused_key_is_not_a_second_problem(write: Write, text: str) -> None:
    assert len(problems_of(lambda: load_settings({}, config=write(text)))) == 1


def test_the_error_carries_its_problems_and_survives_pickling() -> None:
    error = ConfigurationError([Problem("MAAS_SCOPE", "has to be all or inference"), Problem("a", "b")])

    copy = pickle.loads(pickle.dumps(error))

    assert copy.problems == error.problems
    assert str(copy) == "MAAS_SCOPE: has to be all or inference\na: b"
    assert isinstance(error, ValueError)


def test_no_problem_repeats_a_secret(write: Write) -> None:
    secrets = {
        "MAAS_COUNTERS": "memcached://:hunter2@cache",
        "MAAS_STORE": "postgresql+asyncpg://maas:hunter2@db/maas",
        "MAAS_PUBLIC_URL": "https://maas:hunter2@x",
        "MAAS_OPENSHIFT_API_URL": "https://x?token=hunter2",
        "MAAS_MODELS": '[{"id": "m", "upstreams": ["http://:hunter2@x"]}]',
    }
    broken = write("counters: redis://:hunter2@redis\nscope: [\n")

    problems = problems_of(lambda: load_settings(secrets, config=broken))

    assert len(problems) == 6
    assert "hunter2" not in "".join(problems)


PLAIN = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(max_size=9),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = [field.encode_name for field in structs.fields(Settings)]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    strategies.dictionaries(strategies.sampled_from(KEYS), PLAIN),
    strategies.dictionaries(
        strategies.sampled_from([variable(path) for path, _ in leaves(schema_of(Settings))]), strategies.text()
    ),
)
def test_whatever_is_given_is_accepted_or_refused_with_problems(
    overrides: dict[str, Any], environ: dict[str, str]
) -> None:
    loaded: Settings | None = None
    problems: tuple[Problem, ...] = ()
    try:
        loaded = load_settings(environ, **overrides)
    except ConfigurationError as error:
        problems = error.problems

    assert (loaded is None) == bool(problems)
    assert loaded is None or validated(loaded) == loaded


# settings that are made in Python


def test_settings_made_in_python_are_checked_and_completed() -> None:
    made = Settings(public_url="https://x/", models=[ModelSettings(id="m", upstreams=("http://h:1",))])

    checked = validated(made)

    assert checked == Settings(public_url="https://x", models=(ModelSettings(id="m", upstreams=("http://h:1",)),))
    assert validated(checked) == checked


def test_bad_settings_made_in_python_are_refused_by_key() -> None:
    made = Settings(
        counters="etcd://x",
        openshift=OpenShiftSettings(timeout=0),
        models=[ModelSettings(id="m", tiers=("gold",))],
    )

    assert problems_of(lambda: validated(made)) == [
        "openshift.timeout: has to be positive and finite",
        "counters: etcd://... is not like memory://, redis://HOST:PORT/DATABASE or rediss://...",
        "models[0].tiers: there is no tier gold",
    ]


def test_loaded_settings_keep_their_origin_until_they_are_changed(write: Write) -> None:
    loaded = load_settings({}, config=write("scope: all"))

    assert validated(loaded).origin is loaded.origin is not None
    assert structs.replace(loaded, scope="inference").origin is None


# tiers


def test_without_tiers_there_are_those_of_the_guide() -> None:
    free, premium, enterprise = tiers_of(load_settings({}))

    assert free == Tier(
        name="free",
        display_name="Free Tier",
        level=0,
        groups=("system:authenticated", "tier-free-users"),
        requests=(Limit(5, 60),),
        tokens=(Limit(100, 60),),
    )
    assert (premium.name, premium.level, premium.groups) == ("premium", 1, ("premium-group", "tier-premium-users"))
    assert (premium.requests, premium.tokens) == ((Limit(20, 60),), (Limit(50_000, 60),))
    assert enterprise.groups == ("enterprise-group", "admin-group", "tier-enterprise-users")
    assert (enterprise.level, enterprise.requests, enterprise.tokens) == (2, (Limit(50, 60),), (Limit(100_000, 60),))


def test_a_tier_is_read_completely() -> None:
    written = {
        "name": "gold",
        "displayName": "Gold",
        "description": "For few",
        "level": -3,
        "groups": ["a", "b"],
        "limits": {"requests": "5/minute;100/day", "tokens": "unlimited"},
        "max_tokens_per_request": 2048,
        "features": ["streaming", "tools"],
    }

    (tier,) = tiers_of(load_settings({}, tiers=[written]))

    assert tier == Tier(
        name="gold",
        display_name="Gold",
        description="For few",
        level=-3,
        groups=("a", "b"),
        requests=(Limit(5, 60), Limit(100, 86_400)),
        tokens=(),
        max_tokens_per_request=2048,
        features=frozenset({"streaming", "tools"}),
    )


@pytest.mark.parametrize(
    ("written", "features"),
    [
        pytest.param({}, None, id="left-out"),
        pytest.param({"features": "all"}, None, id="all"),
        pytest.param({"features": []}, frozenset(), id="none"),
        pytest.param({"features": list(FEATURES)}, frozenset(FEATURES), id="each"),
    ],
)
def test_features_are_all_or_those_that_are_named(written: dict[str, Any], features: frozenset[str] | None) -> None:
    (tier,) = tiers_of(load_settings({}, tiers=[{**GOLD, **written}]))

    assert tier.features == features


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param(
            {"features": ["tools", "video"]},
            f"tiers[0].features[1]: has to be {' or '.join(sorted(FEATURES))}",
            id="unknown-feature",
        ),
        pytest.param({"features": "tools"}, "tiers[0].features: has to be a list or all", id="feature-that-is-no-list"),
        pytest.param({"features": None}, "tiers[0].features: has to be a list or all", id="null-is-no-list"),
        pytest.param(
            {"max_tokens_per_request": 0}, "tiers[0].max_tokens_per_request: has to be more than 0", id="no-tokens"
        ),
        pytest.param(
            {"max_tokens_per_request": "2k"},
            "tiers[0].max_tokens_per_request: has to be a whole number",
            id="no-number",
        ),
    ],
)
def test_a_bad_tier_is_refused(written: dict[str, Any], expected: str) -> None:
    assert problems_of(lambda: load_settings({}, tiers=[{**GOLD, **written}])) == [expected]


def test_a_tier_may_say_that_it_has_no_cap() -> None:
    (tier,) = tiers_of(load_settings({}, tiers=[{**GOLD, "max_tokens_per_request": None}]))

    assert tier.max_tokens_per_request is None


@pytest.mark.parametrize(
    ("limits", "tier_limits", "expected"),
    [
        pytest.param({"requests": "1/minute", "tokens": "2/minute"}, {}, (1, 2), id="its-own"),
        pytest.param({}, {"requests": "3/minute", "tokens": "4/minute"}, (3, 4), id="tier-limits"),
        pytest.param({}, {}, (20, 50_000), id="the-guide"),
        pytest.param(
            {"requests": "1/minute"}, {"requests": "3/minute", "tokens": "4/minute"}, (1, 4), id="own-then-map"
        ),
        pytest.param({"tokens": "2/minute"}, {}, (20, 2), id="own-then-guide"),
        pytest.param({}, {"requests": "3/minute"}, (3, 50_000), id="map-then-guide"),
        pytest.param({"requests": None}, None, (20, 50_000), id="null-is-left-out"),
    ],
)
def test_each_limit_falls_back_on_its_own(
    limits: dict[str, str], tier_limits: dict[str, str] | None, expected: tuple[int, int]
) -> None:
    loaded = load_settings(
        {},
        tiers=[{"name": "premium", "limits": limits}],
        tier_limits={} if tier_limits is None else {"premium": tier_limits},
    )

    (tier,) = tiers_of(loaded)

    assert (tier.requests[0].amount, tier.tokens[0].amount) == expected


@pytest.mark.parametrize(
    ("limits", "tier_limits", "missing"),
    [
        pytest.param({}, {}, "requests and tokens", id="neither"),
        pytest.param({"requests": "unlimited"}, {}, "tokens", id="one"),
        pytest.param({}, {"gold": {"tokens": "unlimited"}}, "requests", id="one-in-tier-limits"),
    ],
)
def test_a_tier_of_another_name_needs_limits(limits: object, tier_limits: object, missing: str) -> None:
    assert problems_of(
        lambda: load_settings({}, tiers=[{"name": "gold", "limits": limits}], tier_limits=tier_limits)
    ) == [
        f"tiers[0].limits: tier gold has no limit on {missing}: "
        "write one here or in tier_limits.gold, or write unlimited"
    ]


def test_a_bad_limit_is_the_only_problem_of_its_tier() -> None:
    assert problems_of(lambda: load_settings({}, tiers=[{"name": "gold", "limits": {"requests": "0/minute"}}])) == [
        "tiers[0].limits.requests: '0/minute' would let nothing pass"
    ]


def test_unlimited_is_written_for_either() -> None:
    loaded = load_settings(
        {}, tiers=[{"name": "gold"}], tier_limits={"gold": {"requests": "unlimited", "tokens": "unlimited"}}
    )

    assert tiers_of(loaded) == (Tier("gold"),)


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        pytest.param("tiers.yaml", CONFIG_MAP_VALUE, ["free", "premium"], id="config-map-value"),
        pytest.param("tiers", CONFIG_MAP_VALUE, ["free", "premium"], id="key-of-a-config-map"),
        pytest.param("tiers.yaml", "tiers: [{name: free}]", ["free"], id="mapping"),
        pytest.param("tiers.json", '[{"name": "premium"}]', ["premium"], id="json"),
        pytest.param("tiers.toml", '[[tiers]]\nname = "enterprise"\n', ["enterprise"], id="toml"),
    ],
)
def test_tiers_come_from_their_own_file(write: Write, name: str, text: str, names: list[str]) -> None:
    loaded = load_settings({"MAAS_TIERS_FILE": write(text, name)})

    assert [tier.name for tier in tiers_of(loaded)] == names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", "tiers.yaml: has to be a list", id="empty"),
        pytest.param("free", "tiers.yaml: has to be a list", id="text"),
        pytest.param(
            "[]", "tiers.yaml: names no tier; where it is left out there are free, premium and enterprise", id="none"
        ),
        pytest.param(
            "tier: []", "tiers.yaml: tier: is unknown to this version\ntiers.yaml: tiers: is missing", id="typo"
        ),
        pytest.param("tiers: 5", "tiers.yaml: tiers: has to be a list", id="number"),
        pytest.param("[{name: free, level: x}]", "tiers.yaml: [0].level: has to be a whole number", id="list-item"),
        pytest.param(
            "tiers: [{name: free}, {name: free}]",
            "tiers.yaml: tiers[1].name: free is taken by tiers.yaml: tiers[0].name",
            id="mapping-item",
        ),
        pytest.param(
            "[{name: gold}]",
            "tiers.yaml: [0].limits: tier gold has no limit on requests and tokens: "
            "write one here or in tier_limits.gold, or write unlimited",
            id="no-limits",
        ),
    ],
)
def test_a_bad_tiers_file_is_refused_with_the_place(write: Write, text: str, expected: str) -> None:
    environ = {"MAAS_TIERS_FILE": write(text, "tiers.yaml")}

    assert problems_of(lambda: load_settings(environ)) == expected.splitlines()


def test_a_missing_tiers_file_is_refused_where_it_is_named(write: Write) -> None:
    config = write("tiers_file: /nowhere/tiers.yaml\nmodels: [{id: m, tiers: [gold]}]")

    assert problems_of(lambda: load_settings({}, config=config)) == [
        "maas.yaml: tiers_file: /nowhere/tiers.yaml cannot be read: No such file or directory"
    ]
    assert problems_of(lambda: tiers_of(Settings(tiers_file="/nowhere/tiers.yaml"))) == [
        "tiers_file: /nowhere/tiers.yaml cannot be read: No such file or directory"
    ]


def test_tiers_come_from_one_place_only(write: Write) -> None:
    config = write(json.dumps({"tiers": [GOLD]}))

    assert problems_of(lambda: load_settings({"MAAS_TIERS_FILE": "/tiers.yaml"}, config=config)) == [
        "MAAS_TIERS_FILE: cannot be set together with maas.yaml: tiers"
    ]


def test_tier_limits_name_tiers_that_exist() -> None:
    assert problems_of(lambda: load_settings({}, tier_limits={"gold": {"requests": "1/minute"}})) == [
        "tier_limits.gold: there is no tier gold"
    ]


# models


def test_without_models_the_inner_app_decides() -> None:
    assert models_of(load_settings({})) is None
    assert models_of(load_settings({}, models=[])) == ()


def test_the_defaults_of_a_model() -> None:
    (model,) = models_of(load_settings({}, models=[{"id": "ns/m"}])) or ()

    assert (model.name, model.upstream_model, model.path) == ("ns/m", "ns/m", "/ns/m")
    assert (model.tiers, model.upstreams, model.api_key) == (frozenset(), (), None)
    assert (model.aliases, model.context_length, model.audio_tokens_per_second) == ((), None, 10)


def test_a_model_is_read_completely(write: Write) -> None:
    upstreams = ["http://h:8000/base", "https://h:8000/base", "http://h:8001/base", "http://h:8000/Base"]
    written = {
        "id": "m",
        "name": "Model",
        "tiers": ["free", "premium"],
        "upstreams": upstreams,
        "upstream_model": "org/m",
        "path": "/x/y",
        "api_key_file": write(" hunter2\n", "key"),
        "aliases": ["gpt-4o", "org/m"],
        "context_length": 8192,
        "audio_tokens_per_second": 0,
    }

    (model,) = models_of(load_settings({}, models=[written])) or ()

    assert (model.id, model.name, model.upstream_model, model.path) == ("m", "Model", "org/m", "/x/y")
    assert (model.tiers, model.upstreams) == (frozenset({"free", "premium"}), tuple(upstreams))
    assert (model.aliases, model.context_length, model.audio_tokens_per_second) == (("gpt-4o", "org/m"), 8192, 0)
    assert model.api_key == "hunter2"
    assert "hunter2" not in repr(model)


def test_models_may_share_an_upstream() -> None:
    models = [{"id": name, "upstreams": ["http://a", f"http://{name}"]} for name in ("m", "n")]

    m, n = models_of(load_settings({}, models=models)) or ()

    assert (m.upstreams, n.upstreams) == (("http://a", "http://m"), ("http://a", "http://n"))


def test_all_stands_for_every_tier() -> None:
    (model,) = models_of(load_settings({}, models=[{"id": "m", "tiers": "all"}])) or ()

    assert model.tiers is None


SLASHES = "has to start with a slash, and to have none at its end and no two in a row"


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        pytest.param([{"id": "m"}, {"id": "m"}], "models[1].id: m is taken by models[0].id", id="same-id"),
        pytest.param(
            [{"id": "m"}, {"id": "n", "path": "/m"}], "models[1].path: /m is taken by models[0].path", id="same-path"
        ),
        pytest.param(
            [{"id": "m"}, {"id": "n", "aliases": ["x", "m"]}],
            "models[1].aliases[1]: m is taken by models[0].id",
            id="alias-of-another-id",
        ),
        pytest.param(
            [{"id": "m", "aliases": ["n"]}, {"id": "n"}],
            "models[0].aliases[0]: n is taken by models[1].id",
            id="alias-of-a-later-id",
        ),
        pytest.param(
            [{"id": "m", "aliases": ["x"]}, {"id": "n", "aliases": ["x"]}],
            "models[1].aliases[0]: x is taken by models[0].aliases[0]",
            id="alias-of-another-alias",
        ),
        pytest.param(
            [{"id": "m", "aliases": ["m"]}], "models[0].aliases[0]: m is taken by models[0].id", id="alias-of-its-id"
        ),
        pytest.param(
            [{"id": "m", "aliases": ["x", "x"]}],
            "models[0].aliases[1]: x is taken by models[0].aliases[0]",
            id="alias-twice",
        ),
        pytest.param(
            [{"id": "m", "aliases": [" x", "m"]}],
            "models[0].aliases[0]: has to be a name: printable, not empty, without spaces around it",
            id="alias-that-is-no-name",
        ),
        pytest.param(
            [{"id": "m", "context_length": 0}], "models[0].context_length: has to be more than 0", id="no-context"
        ),
        pytest.param(
            [{"id": "m", "audio_tokens_per_second": -1}],
            "models[0].audio_tokens_per_second: has to be 0 or more",
            id="less-than-nothing-a-second",
        ),
        *(
            pytest.param(
                [{"id": f"{name}/m"}], f"models[0].path: /{name}/m begins with {name}, which is reserved", id=name
            )
            for name in ("v1", "maas-api", ".well-known", "adapters")
        ),
        pytest.param(
            [{"id": "m", "path": "/maas-api"}],
            "models[0].path: /maas-api begins with maas-api, which is reserved",
            id="reserved-path",
        ),
        pytest.param([{"id": "m", "path": "x"}], f"models[0].path: x {SLASHES}", id="relative-path"),
        pytest.param([{"id": "m", "path": "/x/"}], f"models[0].path: /x/ {SLASHES}", id="slash-at-the-end"),
        pytest.param([{"id": "m", "path": "/x//y"}], f"models[0].path: /x//y {SLASHES}", id="two-slashes"),
        pytest.param([{"id": "m", "path": "/"}], f"models[0].path: / {SLASHES}", id="root"),
        pytest.param([{"id": "/m"}], f"models[0].path: //m {SLASHES}", id="id-with-slash"),
        pytest.param([{"id": "m", "tiers": ["gold"]}], "models[0].tiers: there is no tier gold", id="unknown-tier"),
        *(
            pytest.param(
                [{"id": "m", "upstreams": ["http://b", *twice]}],
                f"models[0].upstreams[2]: {server} is taken by models[0].upstreams[1]",
                id=f"upstream-twice-{name}",
            )
            for name, twice, server in (
                ("as-written", ("http://a:8000/x", "http://a:8000/x"), "http://a:8000/x"),
                ("in-other-letters", ("http://a", "HTTP://A"), "http://a"),
                ("with-the-port-of-http", ("http://a:80/x", "http://a/x"), "http://a/x"),
                ("with-the-port-of-https", ("https://[::1]", "https://[::1]:443"), "https://[::1]"),
            )
        ),
        pytest.param(
            [{"id": "m", "upstreams": ["h:8000", "http://a", "http://a"]}],
            "models[0].upstreams[0]: has to be an absolute http or https URL",
            id="upstream-twice-behind-one-that-is-none",
        ),
        pytest.param(
            [{"id": "m", "upstreams": ["h:8000"]}],
            "models[0].upstreams[0]: has to be an absolute http or https URL",
            id="upstream-without-scheme",
        ),
        pytest.param(
            [{"id": "m", "upstreams": ["http://h/"]}],
            "models[0].upstreams[0]: ends in /: write the base URL, such as http://host:8000, without a slash or /v1",
            id="upstream-with-slash",
        ),
        pytest.param(
            [{"id": "m", "upstreams": ["http://h/v1/"]}],
            "models[0].upstreams[0]: ends in /v1: write the base URL, such as http://host:8000, without a slash or /v1",
            id="upstream-with-v1",
        ),
        pytest.param(
            [{"id": "m", "api_key_file": "/nowhere/key"}],
            "models[0].api_key_file: /nowhere/key cannot be read: No such file or directory",
            id="missing-key",
        ),
    ],
)
def test_a_bad_model_is_refused(models: list[object], expected: str) -> None:
    assert problems_of(lambda: load_settings({}, models=models)) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(" \n", "is empty", id="empty"),
        pytest.param("hunter2\nhunter3", "holds what cannot be sent in a header", id="two-lines"),
        pytest.param("h\u00fcnter2", "holds what cannot be sent in a header", id="no-ascii"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused(write: Write, text: str, expected: str) -> None:
    path = write(text, "key")

    problems = problems_of(
        lambda: load_settings({"MAAS_INNER_API_KEY_FILE": path}, models=[{"id": "m", "api_key_file": path}])
    )

    assert problems == [f"models[0].api_key_file: {path} {expected}", f"MAAS_INNER_API_KEY_FILE: {path} {expected}"]


def test_the_credential_of_the_inner_app_is_read_from_its_file(write: Write) -> None:
    path = write("hunter2\n", "key")

    assert inner_api_key_of(load_settings({"MAAS_INNER_API_KEY_FILE": path})) == "hunter2"
    assert inner_api_key_of(Settings()) is None


# warnings

CAPPED = {**GOLD, "max_tokens_per_request": 2048}


def warned(loaded: Settings) -> list[str]:
    return list(map(str, warnings_of(loaded)))


def test_nothing_configured_is_nothing_to_warn_of() -> None:
    assert warnings_of(Settings()) == []


def test_a_cap_that_models_without_a_context_length_do_not_get_is_a_warning() -> None:
    models = [
        {"id": "for-all", "tiers": "all"},
        {"id": "known", "tiers": "all", "context_length": 8192},
        {"id": "for-gold", "tiers": ["free", "gold"]},
        {"id": "for-free", "tiers": ["free"]},
    ]

    loaded = load_settings({}, tiers=[{"name": "free"}, CAPPED], models=models)

    assert warned(loaded) == [
        "tiers[1].max_tokens_per_request: binds only requests that name a cap themselves, "
        "for there is no context_length in models[0], models[2]"
    ]


@pytest.mark.parametrize(
    ("tiers", "models"),
    [
        pytest.param([CAPPED], [{"id": "m", "tiers": "all", "context_length": 8192}], id="context-is-known"),
        pytest.param([CAPPED], [{"id": "m", "tiers": []}], id="not-for-the-tier"),
        pytest.param([CAPPED], [], id="no-models"),
        pytest.param([GOLD], [{"id": "m", "tiers": "all"}], id="no-cap"),
        pytest.param([GOLD], None, id="no-cap-and-any-model"),
    ],
)
def test_a_cap_that_binds_every_request_is_no_warning(tiers: list[object], models: list[object] | None) -> None:
    assert warned(load_settings({}, tiers=tiers, models=models)) == []


def test_a_cap_where_the_inner_app_decides_on_models_is_a_warning() -> None:
    assert warned(load_settings({}, tiers=[CAPPED])) == [
        "tiers[0].max_tokens_per_request: binds only requests that name a cap themselves, "
        "for without models no context_length is known"
    ]


def test_warnings_name_the_places_in_the_file(write: Write) -> None:
    config = write(json.dumps({"tiers": [CAPPED], "models": [{"id": "m", "tiers": "all"}]}))

    of_file = warned(load_settings({}, config=config))
    of_both = warned(load_settings({"MAAS_MODELS": '[{"id": "m", "tiers": "all"}]'}, config=config))

    assert of_file == [
        "maas.yaml: tiers[0].max_tokens_per_request: binds only requests that name a cap themselves, "
        "for there is no context_length in maas.yaml: models[0]"
    ]
    assert of_both == [
        "maas.yaml: tiers[0].max_tokens_per_request: binds only requests that name a cap themselves, "
        "for there is no context_length in models[0]"
    ]


@pytest.mark.parametrize(
    ("wrapped", "place"),
    [pytest.param(False, "tiers.yaml: [0]", id="list"), pytest.param(True, "tiers.yaml: tiers[0]", id="mapping")],
)
def test_warnings_name_the_places_in_the_file_of_the_tiers(wrapped: bool, place: str, write: Write) -> None:
    tiers = json.dumps({"tiers": [CAPPED]} if wrapped else [CAPPED])
    loaded = load_settings({"MAAS_TIERS_FILE": write(tiers, "tiers.yaml")})

    (warning,) = warnings_of(loaded)

    assert warning.place == f"{place}.max_tokens_per_request"


def test_a_file_of_tiers_that_is_gone_is_a_problem_and_no_warning() -> None:
    assert problems_of(lambda: warnings_of(Settings(tiers_file="/nowhere/tiers.yaml"))) == [
        "tiers_file: /nowhere/tiers.yaml cannot be read: No such file or directory"
    ]


# tokens


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        pytest.param({}, "maas-middleware", id="nothing"),
        pytest.param({"public_url": "https://x/"}, "https://x", id="public-url"),
        pytest.param({"public_url": "https://x", "tokens": {"issuer": "me"}}, "me", id="issuer"),
    ],
)
def test_the_issuer(overrides: dict[str, Any], expected: str) -> None:
    assert issuer_of(load_settings({}, **overrides)) == expected


def test_the_lifetimes_of_tokens() -> None:
    assert lifetimes_of(Settings()) == LifetimePolicy()
    assert lifetimes_of(
        load_settings({"MAAS_TOKENS_MINIMUM_EXPIRATION": "1m", "MAAS_TOKENS_MAXIMUM_EXPIRATION": "7d"})
    ) == LifetimePolicy(default=14_400, minimum=60, maximum=604_800)


def test_all_lifetimes_may_be_the_same() -> None:
    same = TokenSettings(default_expiration=900, minimum_expiration=900, maximum_expiration=900)

    assert lifetimes_of(validated(Settings(tokens=same))) == LifetimePolicy(900, 900, 900)


def test_names_can_be_given_as_structs() -> None:
    loaded = load_settings(
        {}, tiers=[TierSettings(name="free", display_name="F")], models=[ModelSettings(id="m", tiers="all")]
    )

    assert [tier.display_name for tier in tiers_of(loaded)] == ["F"]
    assert [model.id for model in models_of(loaded) or ()] == ["m"]


def test_ca_file_that_holds_a_certificate_is_taken(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.crt"))

    settings = load_settings({"MAAS_OPENSHIFT_CA_FILE": str(tmp_path / "ca.crt")})

    assert settings.openshift.ca_file == str(tmp_path / "ca.crt")


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("https://[v1.x]", id="an address of the future"),
        pytest.param("https://xn--", id="punycode of nothing"),
        pytest.param("https://a..b", id="an empty label"),
        pytest.param("https://[::1", id="an open bracket"),
    ],
)
def test_host_that_nobody_can_have_is_a_problem(url: str) -> None:
    with pytest.raises(ConfigurationError, match="MAAS_OPENSHIFT_API_URL: has to be an absolute http or https URL"):
        load_settings({"MAAS_OPENSHIFT_API_URL": url})


@pytest.mark.parametrize("url", ["https://[::1]:6443", "https://10.0.0.1", "https://api.example.com.:6443"])
def test_host_may_be_a_name_or_an_address(url: str) -> None:
    assert load_settings({"MAAS_OPENSHIFT_API_URL": url}).openshift.api_url == url


@pytest.mark.parametrize(
    ("openshift", "is_doubtful"),
    [
        pytest.param({}, True, id="no-credential"),
        pytest.param({"review": "users-self"}, False, id="asks-with-the-login"),
        pytest.param({"token_file": "token"}, False, id="credential"),
        pytest.param({"api_url": "http://127.0.0.1:8001"}, False, id="oc-proxy"),
    ],
)
def test_review_by_a_cluster_without_a_credential_is_a_warning(
    openshift: dict[str, str], is_doubtful: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("our own")
    settings = load_settings({}, openshift={"api_url": "https://api.example.com:6443", **openshift})

    found = [problem.place for problem in warnings_of(settings)]

    assert found == (["openshift.token_file"] if is_doubtful else [])


@pytest.mark.parametrize("given", [{}, "maas.yaml", {"scope": "inference"}], ids=str)
def test_settings_of_another_type_are_refused_by_name(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"settings: has to be what Settings\(\.\.\.\) or load_settings"):
        validated(given)
