"""Keys that a gateway and an app behind it have in common, as either is configured."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from maas_middleware.settings import (
    ModelSettings,
    Settings,
    TrustedGatewaySettings,
    audiences_of,
    load_settings,
    models_of,
    validated,
    warnings_of,
)

from . import Write, problems_of

SECRET = "the-secret-that-nobody-is-to-read-anywhere"


@pytest.fixture
def keys(tmp_path: Path) -> str:
    return written(tmp_path, SECRET)


def written(folder: Path, text: str, mode: int = 0o640, name: str = "keys") -> str:
    file = folder / name
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def test_no_gateway_is_trusted_and_nothing_is_signed_by_default() -> None:
    settings = load_settings({}, models=[{"id": "m"}])

    assert settings.trusted_gateways == TrustedGatewaySettings(keys_file=None, audiences=())
    assert settings.models == (ModelSettings(id="m", assertion_keys_file=None),)


def test_it_is_configured_by_variables_and_by_a_file(keys: str, write: Write) -> None:
    expected = TrustedGatewaySettings(keys_file=keys, audiences=("granite", "qwen3"))
    variables = {"MAAS_TRUSTED_GATEWAYS_KEYS_FILE": keys, "MAAS_TRUSTED_GATEWAYS_AUDIENCES": "granite,qwen3"}
    text = f"trusted_gateways: {{keys_file: {keys}, audiences: [granite, qwen3]}}"

    assert load_settings(variables).trusted_gateways == expected
    assert load_settings({}, config=write(text)).trusted_gateways == expected


def test_audiences_are_the_ids_of_the_models_unless_they_are_named(keys: str) -> None:
    models = [{"id": "granite", "aliases": ["g"]}, {"id": "qwen3", "upstream_model": "Qwen/Qwen3"}]

    by_default = load_settings({}, models=models, trusted_gateways={"keys_file": keys})
    named = load_settings({}, models=models, trusted_gateways={"keys_file": keys, "audiences": ["g"]})

    assert audiences_of(by_default) == ("granite", "qwen3")
    assert audiences_of(named) == ("g",)


def test_without_models_audiences_have_to_be_named(keys: str, write: Write) -> None:
    sections: list[dict[str, Any]] = [{}, {"models": []}]
    reason = "is needed with trusted_gateways.keys_file where models names no model"

    for more in sections:
        problems = problems_of(partial(load_settings, {}, trusted_gateways={"keys_file": keys}, **more))
        assert problems == [f"trusted_gateways.audiences: {reason}"]
    assert problems_of(lambda: load_settings({}, config=write(f"trusted_gateways: {{keys_file: {keys}}}"))) == [
        "trusted_gateways.audiences: is needed with maas.yaml: trusted_gateways.keys_file where models names no model"
    ]


def test_audiences_without_keys_are_a_problem() -> None:
    assert problems_of(lambda: load_settings({}, trusted_gateways={"audiences": ["m"]})) == [
        "trusted_gateways.keys_file: is needed with trusted_gateways.audiences"
    ]


def test_audience_that_is_no_model_is_a_problem(keys: str) -> None:
    gateways = {"keys_file": keys, "audiences": ["m", "n"]}

    assert problems_of(lambda: load_settings({}, models=[{"id": "m"}], trusted_gateways=gateways)) == [
        "trusted_gateways.audiences[1]: there is no model n"
    ]


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        pytest.param("", 0o600, "holds no key", id="empty"),
        pytest.param(SECRET[:31], 0o600, "holds a key of less than 32 bytes: the 1. one", id="short"),
        pytest.param(SECRET, 0o644, "is open to everybody: its mode must be 0640 or narrower", id="open"),
    ],
)
def test_bad_keys_are_a_problem_of_either_side_and_are_not_quoted(
    tmp_path: Path, text: str, mode: int, reason: str
) -> None:
    keys = written(tmp_path, text, mode)

    problems = problems_of(
        lambda: load_settings(
            {"MAAS_TRUSTED_GATEWAYS_KEYS_FILE": keys}, models=[{"id": "m", "assertion_keys_file": keys}]
        )
    )

    assert sorted(problems) == [
        f"MAAS_TRUSTED_GATEWAYS_KEYS_FILE: {keys} {reason}",
        f"models[0].assertion_keys_file: {keys} {reason}",
    ]


def test_keys_that_are_not_there_are_one_problem_with_its_place(tmp_path: Path) -> None:
    keys = str(tmp_path / "nowhere")

    assert problems_of(lambda: load_settings({}, trusted_gateways={"keys_file": keys, "audiences": ["m"]})) == [
        f"trusted_gateways.keys_file: {keys} cannot be read: No such file or directory"
    ]


def test_bad_audiences_and_bad_models_are_no_second_problem(keys: str) -> None:
    assert problems_of(lambda: load_settings({}, trusted_gateways={"keys_file": keys, "audiences": [""]})) == [
        "trusted_gateways.audiences[0]: has to be a name: printable, not empty, without spaces around it"
    ]
    gateways = {"keys_file": keys, "audiences": ["m"]}
    assert problems_of(lambda: load_settings({}, models=[{"name": "m"}], trusted_gateways=gateways)) == [
        "models[0].id: is missing"
    ]


def test_settings_made_in_python_are_checked(keys: str) -> None:
    good = Settings(trusted_gateways=TrustedGatewaySettings(keys_file=keys, audiences=("m",)))
    bad = Settings(trusted_gateways=TrustedGatewaySettings(keys_file=keys))

    assert audiences_of(validated(good)) == ("m",)
    assert problems_of(lambda: validated(bad))[0].startswith("trusted_gateways.audiences: is needed")


def test_no_secret_is_shown(keys: str) -> None:
    models = [{"id": "m", "assertion_keys_file": keys}]
    settings = load_settings({}, models=models, trusted_gateways={"keys_file": keys})

    assert SECRET not in repr(settings) + repr(models_of(settings))


def warned(*models: dict[str, Any]) -> list[str]:
    return [str(warning) for warning in warnings_of(load_settings({}, models=models)) if "keys" in warning.place]


def test_key_that_several_apps_have_is_a_warning(keys: str, tmp_path: Path) -> None:
    own = written(tmp_path, SECRET, name="own")
    a, b, both = ["http://a"], ["http://b"], ["http://a", "http://b"]

    def signed(name: str, upstreams: list[str], file: str = keys) -> dict[str, Any]:
        return {"id": name, "tiers": "all", "upstreams": upstreams, "assertion_keys_file": file}

    assert warned(signed("m", a), signed("n", b)) == [
        "models[1].assertion_keys_file: is that of models[0] too: "
        "each of the apps can pass for this gateway at the other"
    ]
    assert warned(signed("m", a), signed("n", b, own)) == []
    assert warned(signed("m", a), signed("n", a), signed("o", both)) == []
    assert warned({"id": "m", "upstreams": a}, {"id": "n", "upstreams": b}) == []


def test_key_for_a_model_without_upstreams_is_a_warning(keys: str) -> None:
    here = {"id": "m", "assertion_keys_file": keys}
    there = {"id": "n", "assertion_keys_file": keys, "upstreams": ["http://a"]}

    assert warned(here, there) == ["models[0].assertion_keys_file: is for a gateway, and the model has no upstreams"]
