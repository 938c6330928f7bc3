"""Bodies that ask for a token, for how long or for nothing that makes sense."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from .attack import Target, besieged

TOKENS = "/v1/tokens"
HOURS = 3600
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
async def besieged_target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with besieged(tmp_path_factory.mktemp("keys")) as target:
        yield target


@pytest.mark.parametrize(
    ("body", "seconds", "granted"),
    [
        pytest.param(None, 4 * HOURS, "4h0m0s", id="no-body"),
        pytest.param("", 4 * HOURS, "4h0m0s", id="empty"),
        pytest.param(" \r\n\t", 4 * HOURS, "4h0m0s", id="blank"),
        pytest.param("null", 4 * HOURS, "4h0m0s", id="null"),
        pytest.param("{}", 4 * HOURS, "4h0m0s", id="empty-object"),
        pytest.param('{"expiration": null}', 4 * HOURS, "4h0m0s", id="null-expiration"),
        pytest.param('{"ttl": "1s", "name": "x", "Expiration": -1}', 4 * HOURS, "4h0m0s", id="unknown-fields"),
        pytest.param('{"sub": "root", "groups": ["captains"], "gen": 9}', 4 * HOURS, "4h0m0s", id="claims"),
        pytest.param('{"expiration": "15m"}', 900, "15m0s", id="15m"),
        pytest.param('{"expiration": "601s"}', 601, "10m1s", id="601s"),
        pytest.param('{"expiration": "1.5h"}', 5400, "1h30m0s", id="1.5h"),
        pytest.param('{"expiration": "1d"}', 24 * HOURS, "24h0m0s", id="1d"),
        pytest.param('{"expiration": "+10m"}', 600, "10m0s", id="sign"),
        pytest.param('{"expiration": 900}', 900, "15m0s", id="900"),
        pytest.param('{"expiration": 9e2}', 900, "15m0s", id="9e2"),
        pytest.param('{"expiration": "48h", "expiration": "15m"}', 900, "15m0s", id="twice"),
    ],
)
async def test_token_lives_as_long_as_was_granted_and_is_its_owners(
    target: Target, body: str | None, seconds: int, granted: str
) -> None:
    login = target.newcomer()

    answer = await target.ask("POST", TOKENS, token=login, body=body)

    minted = json.loads(answer.body)
    assert answer.status == 201
    assert answer.header("cache-control") == "no-store"
    assert answer.header("x-request-id")
    assert set(minted) == {"token", "expiration", "expiresAt", "issuedAt", "jti"}
    assert minted["expiresAt"] - minted["issuedAt"] == seconds
    assert minted["expiration"] == granted
    assert (await target.chat(minted["token"])).status == 200
    assert (await target.chat(minted["token"], model="qwen3")).status == 403


MINIMUM, MAXIMUM = "token expiration must be at least 10 minutes", "token expiration must be at most 24 hours"


@pytest.mark.parametrize(
    ("expiration", "message"),
    [
        *((text, "expiration must be positive") for text in ('""', "0", '"0"', "-1", '"-15m"', "0.0", "1e-400")),
        *((text, MINIMUM) for text in ('"1ns"', '"599s"', '"9m59.999s"', "1", "599", "599.9", "1e-9")),
        *((text, MAXIMUM) for text in ('"24h1s"', '"25h"', '"999999999h"', "86401", "1e300", f"1{'0' * 400}")),
        *((text, MAXIMUM) for text in (f'"{"9" * 5000}h"', '"9223372036854775807s"')),
        *((text, "missing unit in duration") for text in ('"30"', '"1.5"', '"1h30"', '"1."')),
        *((text, "invalid duration") for text in ('"abc"', '"4hours"', '"1 h"', '" 1h"', '"1h\\u0000"', '"\\ud800"')),
        *((text, "invalid duration") for text in ('"\u0661h"', '"1e3s"', '"0x10s"', '"."', '"-"', '"NaN"', '"infh"')),
        *((text, "invalid duration") for text in ("true", "false", "[]", "[900]", '{"a":1}', "{}")),
        *((text, "invalid duration") for text in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400")),
        pytest.param(f'"{"1h" * 30_000}"', MAXIMUM, id="60-kb-of-hours"),
        pytest.param(f'"{"." * 60_000}"', "invalid duration", id="60-kb-of-points"),
        pytest.param("[" * 900 + "]" * 900, "invalid duration", id="nested"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
async def test_expiration_that_cannot_be_granted_is_400(target: Target, expiration: str, message: str) -> None:
    answer = await target.ask("POST", TOKENS, token=target.newcomer(), body=f'{{"expiration": {expiration}}}')

    error = answer.refusal(400, "invalid_expiration")
    assert error["message"] == message
    assert error["param"] == "expiration"
    if message == MINIMUM:
        assert error["details"] == {"provided_expiration": json.loads(expiration)}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"expiration=15m", id="form"),
        pytest.param(b'{"expiration": "15m"', id="truncated"),
        pytest.param(b'{"expiration": "15m"}}', id="one-brace-too-many"),
        pytest.param(b'{"expiration": "15m"}{}', id="two-objects"),
        pytest.param(b"{'expiration': '15m'}", id="single-quotes"),
        pytest.param(b'["15m"]', id="array"),
        pytest.param(b'"15m"', id="text"),
        pytest.param(b"900", id="number"),
        pytest.param(b"NaN", id="nan"),
        pytest.param(b'{"expiration": "\xff"}', id="invalid-utf-8"),
        pytest.param(b"\x00", id="zero"),
        pytest.param(b'{"expiration": ' + b"1" * 5000 + b"}", id="5000-digits"),
        pytest.param(b"[" * 60_000, id="deep"),
        pytest.param(b'{"expiration": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", id="deep-expiration"),
        pytest.param(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, id="deep-objects"),
    ],
)
async def test_body_that_is_no_json_object_is_400(target: Target, body: bytes) -> None:
    answer = await target.ask("POST", TOKENS, token=target.newcomer(), body=body)

    answer.refusal(400, "invalid_json")


@pytest.mark.parametrize("padding", [b" ", b"x"])
async def test_body_over_64_kib_is_413_and_what_is_not_over_it_is_read(target: Target, padding: bytes) -> None:
    whole = b'{"expiration": "15m", "x": "' + padding * (65_536 - 30) + b'"}'
    chunk = b"%x\r\n%b\r\n" % (len(whole) + 1, whole + b" ")

    fits = await target.ask("POST", TOKENS, token=target.newcomer(), body=whole)
    over = [
        await target.ask("POST", TOKENS, token=target.newcomer(), body=whole + b" "),
        await target.ask("POST", TOKENS, CHUNKED, token=target.newcomer(), body=chunk + b"0\r\n\r\n"),
        await target.ask("POST", TOKENS, CHUNKED, token=target.newcomer(), body=chunk),
    ]

    assert (len(whole), fits.status) == (65_536, 201)
    assert [answer.refusal(413, "request_too_large")["param"] for answer in over] == [None] * 3


async def test_caller_in_no_tier_is_told_so(target: Target) -> None:
    login = target.newcomer("nobodies")

    answers = [await target.ask(*route, token=login) for route in (("POST", TOKENS), ("GET", "/v1/models"))]

    words = "You are in no group that gives access to a tier"
    assert [answer.refusal(403, "no_tier")["message"] for answer in answers] == [words] * 2


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
async def test_other_methods_are_405(target: Target, method: str) -> None:
    answer = await target.ask(method, TOKENS, token=target.newcomer())

    answer.refusal(405, "method_not_allowed")
    assert answer.header("allow") == "DELETE, POST"
