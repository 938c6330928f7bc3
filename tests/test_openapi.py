"""The control routes are what their OpenAPI description says, for whatever schemathesis thinks of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from maas_middleware.apps.openapi import openapi_document

from .processes import running_gateway

LOGIN = {"Authorization": "Bearer sha256~demo-admin"}
STRANGER = {"Authorization": "Bearer sha256~nobody"}
DESCRIBED = schemathesis.openapi.from_dict(openapi_document())
OPERATIONS: list[Any] = [found.ok() for found in DESCRIBED.get_all_operations() if isinstance(found, Ok)]


def is_public(operation: Any) -> bool:
    return list(operation.definition.raw.get("security", ["bearer"])) == []


# of a public document nothing can be asked wrongly
CASES = [
    pytest.param(operation, mode, id=f"{operation.label}-{mode.value}")
    for operation in OPERATIONS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or not is_public(operation)
]


def untold_by_types(operation: Any) -> list[Any]:
    """Checks that ask for too much: what is valid by its type may be refused by its meaning, as a text that is no
    duration is; and parameters of a query that nobody knows are ignored."""
    has_query = any(parameter["in"] == "query" for parameter in operation.definition.raw.get("parameters", []))
    return [positive_data_acceptance, *([negative_data_rejection] if has_query else [])]


def drawn(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    # what is asked this often is not to be answered with 429 only
    unthrottled = dict.fromkeys(("MAAS_THROTTLES_MINTS", "MAAS_THROTTLES_CONTROL_REQUESTS"), "unlimited")
    with running_gateway(**unthrottled, MAAS_THROTTLES_FAILED_CREDENTIALS="unlimited") as gateway:
        yield f"http://127.0.0.1:{gateway.port}"


def test_every_operation_is_looked_at() -> None:
    assert len(OPERATIONS) == sum(len(item.keys() - {"parameters"}) for item in openapi_document()["paths"].values())


def test_description_is_served_to_anyone(url: str) -> None:
    with urlopen(f"{url}/maas-api/openapi.json", timeout=10) as answer:
        assert json.load(answer) == json.loads(json.dumps(openapi_document()))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_every_answer_is_described(operation: Any, mode: GenerationMode, url: str) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @drawn(40)
    def check(case: Any) -> None:
        case.call_and_validate(base_url=url, headers=LOGIN, excluded_checks=untold_by_types(operation))

    check()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_strangers_get_no_further_than_the_public_routes(operation: Any, url: str) -> None:
    @given(case=operation.as_strategy())
    @drawn(5)
    def check(case: Any) -> None:
        assert (case.call(base_url=url, headers=STRANGER).status_code == 401) != is_public(operation)

    check()
