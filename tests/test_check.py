"""`check` says of a configuration what a start would say of it, gateway or mounted, before anybody waits for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from maas_middleware import MaaSMiddleware, gateway
from maas_middleware.cli import main
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.settings import ConfigurationError, load_settings

from .parts import starting_up

UPSTREAMS = ["http://127.0.0.1:9"]
SERVED = {"id": "one", "tiers": ["free"], "upstreams": UPSTREAMS}
MOUNTED = {"id": "one", "tiers": ["free"]}
OTHER = {"id": "two", "tiers": "all", "aliases": ["zwei"]}
FREE = {"name": "free", "groups": ["system:authenticated"], "limits": {"requests": "5/minute", "tokens": "9/minute"}}


def environment(**values: Any) -> dict[str, str]:
    """The variables of a configuration; what is no text is JSON."""
    values = {"MAAS_TIERS": [FREE], "MAAS_STORE": "memory://", **values}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def check(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command as people do, with these variables and no other of ours."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAAS_", "KUBERNETES_"))}
    return subprocess.run(
        [sys.executable, "-m", "maas_middleware", "check", *arguments],
        cwd=folder,
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        timeout=25,
    )


def problems(checked: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What is refused, by its place."""
    lines = [line for line in checked.stderr.splitlines() if not line.startswith("WARNING:")]
    return {place: message for place, _, message in (line.partition(": ") for line in lines)}


# which form it is for


def test_environment_without_models_is_for_an_app_with_models_of_its_own(tmp_path: Path) -> None:
    checked = check(tmp_path, **environment())

    printed = checked.stdout.splitlines()
    assert checked.returncode == 0, checked.stderr
    assert printed[0] == "tier free: level 0, groups system:authenticated; all features"
    assert printed[1] == "models: those of the inner app, for every tier"
    assert "billable as chat: /v1/chat/completions" in printed
    assert printed[-2:] == [
        "To be mounted in an inference app: no model has upstreams, so `maas-gateway serve` would refuse it.",
        "The configuration is valid.",
    ]


def test_models_without_upstreams_are_those_of_the_app_inside(tmp_path: Path) -> None:
    checked = check(tmp_path, **environment(MAAS_MODELS=[MOUNTED, OTHER]))

    printed = checked.stdout.splitlines()
    assert checked.returncode == 0, checked.stderr
    assert printed[1:3] == [
        "model one: for free, below /one",
        "model two, also called zwei: for every tier, below /two",
    ]
    assert printed[-2].startswith("To be mounted in an inference app: ")


def test_models_with_upstreams_are_those_of_a_gateway(tmp_path: Path) -> None:
    checked = check(tmp_path, **environment(MAAS_MODELS=[SERVED]))

    printed = checked.stdout.splitlines()
    assert checked.returncode == 0, checked.stderr
    assert printed[1] == "model one: for free, below /one"
    assert printed[-2:] == ["For `maas-gateway serve`: every model has upstreams.", "The configuration is valid."]


def test_model_list_that_is_empty_serves_nothing(tmp_path: Path) -> None:
    checked = check(tmp_path, **environment(MAAS_MODELS=[]))

    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.splitlines()[1] == "models: none"


def test_upstream_that_was_forgotten_is_a_problem(tmp_path: Path) -> None:
    checked = check(tmp_path, **environment(MAAS_MODELS=[SERVED, OTHER]))

    assert checked.returncode == 1
    assert checked.stdout == ""
    assert problems(checked) == {"models[1].upstreams": "the gateway needs one"}


def test_file_of_a_gateway_that_the_environment_makes_a_mount_is_one(tmp_path: Path) -> None:
    (tmp_path / "maas.json").write_text(json.dumps({"models": [SERVED], "tiers": [FREE]}))

    served = check(tmp_path, "--config", "maas.json")
    mounted = check(tmp_path, MAAS_CONFIG="maas.json", MAAS_MODELS=json.dumps([MOUNTED]))

    assert "For `maas-gateway serve`" in served.stdout, served.stderr
    assert "To be mounted in an inference app" in mounted.stdout, mounted.stderr


# what is refused


def test_every_problem_of_a_mount_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}")
    paths = "/health,/v1/chat/completions,/tokenize"
    environ = environment(MAAS_TOKENS_SIGNING_KEYS_FILE="keys.json", MAAS_PUBLIC_PATHS=paths)

    checked = check(tmp_path, **{**environ, "MAAS_STORE": "sqlite:///nowhere/maas.db"})

    assert checked.returncode == 1
    assert checked.stdout == ""
    found = problems(checked)
    assert sorted(found) == ["public_paths[1]", "public_paths[2]", "store", "tokens.signing_keys_file"]
    assert found["store"] == "there is no folder nowhere for maas.db"
    assert found["public_paths[2]"] == "/tokenize is in the table of endpoints, so it is not for everyone"


def test_every_problem_of_a_gateway_is_named_at_once(tmp_path: Path) -> None:
    environ = environment(MAAS_TOKENS_SIGNING_KEYS_FILE="keys.json", MAAS_MODELS=[SERVED, OTHER])
    (tmp_path / "keys.json").write_text("{}")
    (tmp_path / "store").write_text("sqlite:////nowhere/maas.db")
    del environ["MAAS_STORE"]

    checked = check(tmp_path, MAAS_STORE_FILE="store", **environ)

    assert checked.returncode == 1
    assert sorted(problems(checked)) == ["models[1].upstreams", "store_file", "tokens.signing_keys_file"]


def test_what_cannot_be_read_is_named_by_its_variable_and_never_quoted(tmp_path: Path) -> None:
    environ = environment(MAAS_COUNTERS="etcd://:secret@db", MAAS_PUBLIC_PATHS="health", MAAS_PROXY_CA_FILE="ca.crt")

    checked = check(tmp_path, **environ)

    assert checked.returncode == 1
    assert sorted(problems(checked)) == ["MAAS_COUNTERS", "MAAS_PROXY_CA_FILE", "MAAS_PUBLIC_PATHS[0]"]
    assert "secret" not in checked.stderr


def test_variable_that_nobody_knows_is_a_warning(tmp_path: Path) -> None:
    checked = check(tmp_path, **environment(MAAS_TOKEN_AUDIENCE="maas"))

    assert checked.returncode == 0
    assert "WARNING:     unknown environment variables: MAAS_TOKEN_AUDIENCE" in checked.stderr


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    checked = check(tmp_path, **{**environment(), "MAAS_STORE": "sqlite:///maas.db"})

    assert checked.returncode == 0, checked.stderr
    assert list(tmp_path.iterdir()) == []


# it says what a start says


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], bool]:
    """Whether the command lets variables pass that are all there are of ours."""

    def ask(environ: Mapping[str, str]) -> bool:
        for name in [name for name in os.environ if name.startswith(("MAAS_", "KUBERNETES_"))]:
            monkeypatch.delenv(name)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return main(["check"]) == 0

    return ask


async def starts(app: MaaSMiddleware) -> bool:
    """Whether the server that it is mounted in would serve."""
    pending: list[Message] = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
    heard: list[str] = []

    async def receive() -> Message:
        return pending.pop()

    async def send(message: Message) -> None:
        heard.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return "lifespan.startup.complete" in heard


async def app_inside(scope: Scope, receive: Receive, send: Send) -> None:
    await starting_up(scope, receive, send)
    assert await receive() == {"type": "lifespan.shutdown"}
    await send({"type": "lifespan.shutdown.complete"})


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"MAAS_MODELS": [MOUNTED]}, id="models"),
        pytest.param({"MAAS_PUBLIC_PATHS": "/health,/docs"}, id="public-paths"),
        pytest.param({"MAAS_PUBLIC_PATHS": "/v1/chat/completions"}, id="public-endpoint"),
        pytest.param({"MAAS_PUBLIC_PATHS": "/one/v1/embeddings", "MAAS_MODELS": [MOUNTED]}, id="public-model"),
        pytest.param({"MAAS_TOKENS_SIGNING_KEYS_FILE": "{folder}/keys.json"}, id="keys"),
        pytest.param({"MAAS_TOKENS_SIGNING_KEYS_FILE": "{folder}/open.json"}, id="keys-that-others-can-read"),
        pytest.param({"MAAS_TOKENS_SIGNING_KEYS_FILE": "{folder}/none.json"}, id="keys-that-are-not-there"),
        pytest.param({"MAAS_STORE": "sqlite:///{folder}/maas.db"}, id="sqlite"),
        pytest.param({"MAAS_STORE": "sqlite:///{folder}/nowhere/maas.db"}, id="sqlite-in-no-folder"),
        pytest.param({"MAAS_INNER_API_KEY_FILE": "{folder}/none"}, id="inner-key-that-is-not-there"),
        pytest.param({"MAAS_SCOPE": "some"}, id="unreadable"),
    ],
)
async def test_mount_that_passes_starts_and_the_others_do_not(
    values: dict[str, Any], passes: Callable[[Mapping[str, str]], bool], tmp_path: Path
) -> None:
    SigningKeys.generate().save(tmp_path / "keys.json")
    (tmp_path / "open.json").write_bytes((tmp_path / "keys.json").read_bytes())
    (tmp_path / "open.json").chmod(0o644)
    environ = {name: value.replace("{folder}", str(tmp_path)) for name, value in environment(**values).items()}

    has_passed = passes(environ)
    try:
        has_started = await starts(MaaSMiddleware(app_inside, settings=load_settings(environ)))
    except ConfigurationError:
        has_started = False

    assert has_passed is has_started


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"MAAS_MODELS": [SERVED]}, id="upstreams"),
        pytest.param({"MAAS_MODELS": [SERVED, OTHER]}, id="some-upstreams"),
        pytest.param({"MAAS_MODELS": [SERVED], "MAAS_PUBLIC_PATHS": "/v1/chat/completions"}, id="path-of-a-mount"),
        pytest.param({"MAAS_MODELS": [SERVED], "MAAS_STORE": "sqlite:///{folder}/nowhere/maas.db"}, id="no-folder"),
    ],
)
def test_gateway_that_passes_is_made_and_the_others_are_not(
    values: dict[str, Any], passes: Callable[[Mapping[str, str]], bool], tmp_path: Path
) -> None:
    environ = {name: value.replace("{folder}", str(tmp_path)) for name, value in environment(**values).items()}

    has_passed = passes(environ)
    try:
        is_made = callable(gateway(load_settings(environ)))
    except ConfigurationError:
        is_made = False

    assert has_passed is is_made
