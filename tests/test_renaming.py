from __future__ import annotations

import json

import pytest

from maas_middleware.catalogue import Model
from maas_middleware.renaming import Renaming
from maas_middleware.usage import json_fields

RENAMING = Renaming(Model("org/simulator", upstream_model="sim-7b"))


@pytest.mark.parametrize(
    ("document", "renamed"),
    [
        pytest.param(b'{"model":"sim-7b"}', b'{"model":"org/simulator"}', id="top"),
        pytest.param(b'{"a": [1, 2],"model" : \n"sim-7b"}', b'{"a":[1, 2],"model":"org/simulator"}', id="with-spaces"),
        pytest.param(b'{"model":"\\u0073im-7b"}', b'{"model":"org/simulator"}', id="escapes"),
        pytest.param(b'{"response":{"model":"sim-7b"}}', b'{"response":{"model":"org/simulator"}}', id="response"),
        pytest.param(b'{"message":{"model":"sim-7b"}}', b'{"message":{"model":"org/simulator"}}', id="message"),
        pytest.param(
            b'{"model":"sim-7b","message":{"model":"sim-7b","content":[{"input":{"model":"sim-7b"}}]}}',
            b'{"model":"org/simulator","message":{"model":"org/simulator","content":[{"input":{"model":"sim-7b"}}]}}',
            id="not-what-a-tool-is-called-with",
        ),
    ],
)
def test_answer_calls_the_model_by_its_id(document: bytes, renamed: bytes) -> None:
    assert RENAMING(document) == renamed


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(b'{"model":"sim-7b-chat"}', id="longer-name"),
        pytest.param(b'{"model":"sim"}', id="shorter-name"),
        pytest.param(b'{"model":"simx7b"}', id="no-pattern"),
        pytest.param(b'{"model":"SIM-7B"}', id="other-case"),
        pytest.param(b'{"name":"sim-7b"}', id="another-field"),
        pytest.param(b'{"root_model":"sim-7b"}', id="end-of-a-field"),
        pytest.param(b'{"model":null}', id="null"),
        pytest.param(b'{"text":"sim-7b"}', id="text"),
        pytest.param(json.dumps({"text": '{"model":"sim-7b"}'}).encode(), id="json-as-text"),
        pytest.param(json.dumps({"text": '\\"model\\":"sim-7b"'}).encode(), id="backslashes-as-text"),
        pytest.param(b'{"content":[{"type":"tool_use","input":{"model":"sim-7b"}}]}', id="what-a-tool-is-called-with"),
        pytest.param(b'{"response":"model","message":["model"],"model":7}', id="other-types"),
        pytest.param(b'{"model":"sim-7b\xff"}', id="no-text"),
        pytest.param(b'{"model":"sim-7b"', id="no-json"),
        pytest.param(b'["model"]', id="no-object"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_everything_else_stays_as_it_is(document: bytes) -> None:
    assert RENAMING(document) is document


@pytest.mark.parametrize(
    ("upstream_model", "model_id"),
    [
        pytest.param("sim.7b", "a.b", id="signs-of-patterns"),
        pytest.param("(sim", "\\1 \\g<0>", id="signs-of-replacements"),
        pytest.param('a"b', 'c"d', id="quotes"),
        pytest.param("C:\\models\\sim", "si/m", id="backslashes"),
        pytest.param("模型", "modell-ü", id="beyond-ascii"),
        pytest.param("/models/sim-7b", "simulator", id="path"),
    ],
)
def test_names_may_have_any_signs(upstream_model: str, model_id: str) -> None:
    renaming = Renaming(Model(model_id, upstream_model=upstream_model))

    document = renaming(json.dumps({"model": upstream_model, "a": 1}, ensure_ascii=False).encode())

    assert json.loads(document) == {"model": model_id, "a": 1}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(None, id="no-model"),
        pytest.param(Model("sim-7b"), id="one-name"),
        pytest.param(Model("sim-7b", aliases=("sim",), upstream_model="sim-7b"), id="one-name-with-aliases"),
    ],
)
def test_model_that_has_one_name_is_never_renamed(model: Model | None) -> None:
    renaming = Renaming(model)

    for document in (b'{"model":"sim-7b"}', b'{"model":7}'):
        assert renaming(document) is document


@pytest.mark.parametrize(
    ("message", "named"),
    [
        pytest.param("sim-7b has no such option", "org/simulator has no such option", id="first-word"),
        pytest.param("The model `sim-7b` is busy.", "The model `org/simulator` is busy.", id="quoted"),
        pytest.param("ask sim-7b.", "ask org/simulator.", id="end-of-a-sentence"),
        pytest.param("sim-7b-chat and my/sim-7b", "sim-7b-chat and my/sim-7b", id="parts-of-names"),
        pytest.param("no name", "no name", id="no-name"),
    ],
)
def test_messages_of_the_server_call_the_model_by_its_id(message: str, named: str) -> None:
    assert RENAMING.message(message) == named


def test_fields_that_were_read_already_are_not_read_again() -> None:
    document = b'{"model":"sim-7b","text":"another"}'
    fields = json_fields(b'{"model":"sim-7b","text":"this"}')

    assert RENAMING(document, fields) == b'{"model":"org/simulator","text":"this"}'


def test_messages_about_a_model_of_one_name_stay_as_they_are() -> None:
    assert Renaming(Model("sim-7b")).message("sim-7b is busy") == "sim-7b is busy"
