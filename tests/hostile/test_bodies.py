"""Bodies of inference requests that are broken, ambiguous, too large or never end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from .attack import CHAT, Target, besieged

MESSAGES = '"messages": [{"role": "user", "content": "Hello"}]'
GOOD = f'{{"model": "simulator", {MESSAGES}}}'


@pytest.fixture(scope="module")
async def besieged_target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with besieged(tmp_path_factory.mktemp("keys")) as target:
        yield target


@pytest.fixture
def target(target: Target) -> Target:
    target.service.simulator.requests.clear()
    return target


def forwarded(target: Target) -> list[list[tuple[str, Any]]]:
    """The fields of every body that reached the model, one pair for each time that a key stands there."""
    return [json.loads(seen.body, object_pairs_hook=list) for seen in target.service.simulator.requests]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" ", id="blank"),
        pytest.param(GOOD[:-1].encode(), id="truncated"),
        pytest.param(GOOD.encode() + b"x", id="trailing-garbage"),
        pytest.param(GOOD.encode() * 2, id="two-objects"),
        pytest.param(f"[{GOOD}]".encode(), id="array"),
        pytest.param(json.dumps(GOOD).encode(), id="text"),
        pytest.param(b"null", id="null"),
        pytest.param(b"5", id="number"),
        pytest.param(b"NaN", id="nan"),
        pytest.param(GOOD.replace("{", '{"temperature": NaN, ', 1).encode(), id="nan-in-a-field"),
        pytest.param(GOOD.replace("{", '{"x": [1, -Infinity], ', 1).encode(), id="infinity-in-a-list"),
        pytest.param(GOOD.replace("{", "{model: 1, ", 1).encode(), id="key-without-quotes"),
        pytest.param(GOOD.replace("{", "{// hello\n", 1).encode(), id="comment"),
        pytest.param(GOOD.encode("utf-16"), id="utf-16"),
        pytest.param(b"\xef\xbb\xbf" + GOOD.encode(), id="byte-order-mark"),
        pytest.param(GOOD.replace("Hello", "\xff").encode("latin-1"), id="invalid-utf-8"),
        pytest.param(GOOD.replace("model", "m\xf6del").encode("latin-1"), id="invalid-utf-8-in-a-key"),
        pytest.param(GOOD.replace("Hello", "\ud800").encode("utf-8", "surrogatepass"), id="surrogate-in-utf-8"),
        pytest.param(GOOD.replace("Hello", "\n").encode(), id="line-break-in-a-text"),
        pytest.param(GOOD.replace("simulator", "\\ud800").encode(), id="half-a-character-as-model"),
        pytest.param(b"[" * 100_000, id="deep-and-open"),
        pytest.param(GOOD.replace("{", '{"x": ' + "[" * 100_000 + "]" * 100_000 + ", ", 1).encode(), id="deep"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep-objects"),
        pytest.param(b"{" + b",".join(b'"%d": 1' % n for n in range(300_000)) + b"}", id="300000-keys"),
        pytest.param(b"\x1f\x8b\x08" + b"\0" * 100, id="gzip"),
        pytest.param(b"model=simulator", id="form"),
    ],
)
async def test_body_that_is_no_json_object_is_400_and_reaches_nobody(target: Target, body: bytes) -> None:
    token = target.access()

    answers = [await target.ask("POST", path, token=token, body=body) for path in (CHAT, f"/simulator{CHAT}")]

    assert [answer.refusal(400, "invalid_json")["param"] for answer in answers] == [None] * 2
    assert target.service.simulator.requests == []
    assert await target.used(token) == (0, 0)


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        pytest.param(None, 400, "missing_required_parameter", id="missing"),
        pytest.param("null", 400, "missing_required_parameter", id="null"),
        pytest.param('""', 400, "missing_required_parameter", id="empty"),
        pytest.param("5", 400, "invalid_value", id="number"),
        pytest.param("true", 400, "invalid_value", id="bool"),
        pytest.param('["simulator"]', 400, "invalid_value", id="list"),
        pytest.param('{"id": "simulator"}', 400, "invalid_value", id="object"),
        pytest.param(json.dumps("x" * 10_000), 404, "model_not_found", id="10-kb"),
        pytest.param(r'"simulator\u0000"', 404, "model_not_found", id="zero"),
        pytest.param(r'"\r\nSet-Cookie: x=1\u001b[31m"', 404, "model_not_found", id="control-characters"),
        pytest.param('"Simulator"', 404, "model_not_found", id="another-case"),
        pytest.param('" simulator "', 404, "model_not_found", id="spaces"),
        pytest.param('"/simulator"', 404, "model_not_found", id="path"),
        pytest.param('"sim\\u200bulator"', 404, "model_not_found", id="invisible"),
        pytest.param('"qwen3"', 403, "access_denied", id="of-another-tier"),
    ],
)
async def test_model_that_cannot_be_had_is_told_and_reaches_nobody(
    target: Target, model: str | None, status: int, code: str
) -> None:
    token = target.access()
    body = f"{{{MESSAGES}}}" if model is None else f'{{"model": {model}, {MESSAGES}}}'

    answer = await target.ask("POST", CHAT, token=token, body=body)

    error = answer.refusal(status, code)
    assert error["param"] == (None if status == 403 else "model")
    assert len(error["message"]) < 200
    assert error["message"].isprintable()
    assert target.service.simulator.requests == target.service.qwen3.requests == []
    assert await target.used(token) == (0, 0)


@pytest.mark.parametrize("model", ['""', '"qwen3"', '"SIMULATOR"', '"org/simulator"', '"simulator\\n"'])
async def test_model_in_the_path_is_the_only_one(target: Target, model: str) -> None:
    token = target.access()

    answer = await target.ask("POST", f"/simulator{CHAT}", token=token, body=f'{{"model": {model}, {MESSAGES}}}')

    answer.refusal(404, "model_not_found")
    assert target.service.simulator.requests == target.service.qwen3.requests == []


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(f'{{"model": "qwen3", {MESSAGES}, "model": "simulator"}}', id="model-twice"),
        pytest.param(f'{{"mod\\u0065l": "qwen3", {MESSAGES}, "model": "simulator"}}', id="escaped-key"),
        pytest.param(f'{{"model": "simulator", "n": 1000, {MESSAGES}, "n": 1, "n": 2}}', id="n-three-times"),
        pytest.param(f'{{"model": "simulator", {MESSAGES}, {MESSAGES}}}', id="messages-twice"),
        pytest.param(f'{{"request_id": "a", "model": "simulator", {MESSAGES}, "request_id": "b"}}', id="request-id"),
    ],
)
async def test_what_reaches_the_model_has_one_value_a_key(target: Target, body: str) -> None:
    answer = await target.ask("POST", CHAT, token=target.access(), body=body)

    (fields,) = forwarded(target)
    assert answer.status == 200
    assert len(dict(fields)) == len(fields)
    assert dict(fields)["model"] == "simulator"
    assert dict(fields).get("n", 2) == 2
    assert "request_id" not in dict(fields)
    assert b"qwen3" not in target.service.simulator.requests[0].body


@pytest.mark.parametrize("name", ["Model", "MODEL", "\\u004dodel", "Stream", "\\u017ftream", "MAX_TOKENS", "N"])
async def test_name_that_other_parsers_may_take_for_one_that_was_judged_is_400(target: Target, name: str) -> None:
    body = GOOD.replace("{", f'{{"{name}": "qwen3", ', 1)

    answer = await target.ask("POST", CHAT, token=target.access(), body=body)

    answer.refusal(400, "invalid_value")
    assert target.service.simulator.requests == []


@pytest.mark.parametrize("value", ["1e400", "12345678901234567890123", "0.1000", "-0", "1E+2"])
async def test_number_that_nobody_judges_reaches_the_model_as_it_was_written(target: Target, value: str) -> None:
    await target.ask("POST", CHAT, token=target.access(), body=GOOD.replace("{", f'{{"seed": {value}, ', 1))

    assert f'"seed":{value}'.encode() in target.service.simulator.requests[0].body


@pytest.mark.parametrize("value", ["-1", "1.5", '"5"', "1e400", "99999999999", "true", "[]", "2147483648"])
@pytest.mark.parametrize("name", ["max_tokens", "n"])
async def test_number_that_decides_about_the_charge_is_judged(target: Target, name: str, value: str) -> None:
    answer = await target.ask("POST", CHAT, token=target.access(), body=GOOD.replace("{", f'{{"{name}": {value}, ', 1))

    assert answer.refusal(400, "invalid_value")["param"] == name
    assert target.service.simulator.requests == []


@pytest.mark.parametrize(
    ("header", "body"),
    [
        pytest.param("Content-Encoding: gzip", GOOD, id="said-to-be-compressed"),
        pytest.param("Content-Encoding: identity, deflate", GOOD, id="said-to-be-compressed-twice"),
        pytest.param("Content-Type: application/json; charset=utf-7", '{"+AG0-odel": "qwen3", ' + GOOD[1:], id="utf-7"),
        pytest.param("Content-Type: application/x-www-form-urlencoded", '{"x": "&model=q&", ' + GOOD[1:], id="form"),
        pytest.param("Content-Type: multipart/form-data; boundary=x", GOOD, id="multipart"),
    ],
)
async def test_model_server_is_not_told_to_read_the_body_in_another_way_than_it_was_judged(
    target: Target, header: str, body: str
) -> None:
    answer = await target.ask("POST", CHAT, header, token=target.access(), body=body)

    for seen in target.service.simulator.requests:
        told = {name: value for name, value in seen.headers if name in (b"content-type", b"content-encoding")}
        assert told.get(b"content-encoding") is None
        assert told.get(b"content-type", b"application/json") == b"application/json"
    assert answer.status in (200, 400, 415)
