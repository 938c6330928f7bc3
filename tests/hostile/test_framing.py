"""Requests whose bodies are too large, never end, or do not have the length that they say."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from ..deployments import chat
from .attack import CHAT, Target, besieged_behind, request, watched

CHUNKED = "Transfer-Encoding: chunked"
GOOD = json.dumps(chat()).encode()
LIMIT = 32 << 20
MEBIBYTE = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
SMUGGLED = b"POST /v1/load_lora_adapter HTTP/1.1\r\nHost: gateway\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
async def impatient_target(http: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with besieged_behind(http, tmp_path_factory.mktemp("keys"), body_timeout=0.2) as target:
        yield target


@pytest.fixture
def impatient(impatient_target: Target, caplog: pytest.LogCaptureFixture) -> Iterator[Target]:
    """A deployment where bodies have to come within a moment."""
    with watched(impatient_target, caplog):
        yield impatient_target


@pytest.mark.parametrize(
    ("header", "pieces"),
    [
        pytest.param(f"Content-Length: {LIMIT + 1}", [b" " * (LIMIT + 1)], id="by-its-length"),
        pytest.param(CHUNKED, [MEBIBYTE * 32, b"1\r\n \r\n0\r\n\r\n"], id="in-chunks"),
        pytest.param(CHUNKED, [MEBIBYTE * 32, b"1\r\n \r\n"], id="in-chunks-without-an-end"),
    ],
)
async def test_body_over_32_mib_is_413(target: Target, header: str, pieces: list[bytes]) -> None:
    token = target.access()

    answer = await target.send(request("POST", CHAT, header, token=token), *pieces)

    answer.refusal(413, "request_too_large")
    assert target.service.simulator.requests == []
    assert await target.used(token) == (0, 0)


async def test_body_of_32_mib_is_read(target: Target) -> None:
    answer = await target.ask("POST", CHAT, token=target.access(), body=GOOD + b" " * (LIMIT - len(GOOD)))

    assert answer.status == 200


@pytest.mark.parametrize(
    ("header", "body"),
    [
        pytest.param("Content-Length: 1000", GOOD, id="shorter-than-its-length"),
        pytest.param("Content-Length: 1000", b"", id="nothing-of-its-length"),
        pytest.param(CHUNKED, b"5\r\n{    \r\n", id="no-last-chunk"),
        pytest.param(CHUNKED, b"", id="no-chunk"),
        pytest.param(CHUNKED, b"ff\r\n{", id="within-a-chunk"),
    ],
)
async def test_body_that_never_ends_is_408(impatient: Target, header: str, body: bytes) -> None:
    token = impatient.access()

    with anyio.fail_after(2):
        answer = await impatient.ask("POST", CHAT, header, token=token, body=body)

    answer.refusal(408, "request_timeout")
    assert impatient.service.simulator.requests == []
    assert await impatient.used(token) == (0, 0)


async def test_request_may_come_byte_by_byte(target: Target) -> None:
    whole = request("POST", CHAT, token=target.access(), body=GOOD)

    answer = await target.send(*(bytes([byte]) for byte in whole))

    assert (answer.status, answer.whole) == (200, True)
    assert len(target.service.simulator.requests) == 1


@pytest.mark.parametrize(
    ("header", "body"),
    [
        pytest.param("Content-Length: 1000", GOOD, id="shorter-than-its-length"),
        pytest.param("Content-Length: 1000", b"", id="nothing-of-its-length"),
        pytest.param(CHUNKED, b"%x\r\n%b\r\n" % (len(GOOD), GOOD), id="no-last-chunk"),
        pytest.param(CHUNKED, b"", id="no-chunk"),
    ],
)
async def test_body_that_breaks_off_reaches_nobody_whole_as_it_may_look(
    target: Target, header: str, body: bytes
) -> None:
    token = target.access()

    with anyio.fail_after(5):
        async with await anyio.connect_tcp("127.0.0.1", target.port) as stream:
            await stream.send(request("POST", CHAT, header, token=token, body=body))
            await stream.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()

    assert await target.used(token) == (0, 0)
    assert target.service.simulator.requests == []


async def test_body_longer_than_its_length_is_cut_there_and_the_rest_is_no_part_of_it(target: Target) -> None:
    token = target.access()

    cut = await target.ask("POST", CHAT, f"Content-Length: {len(GOOD) - 1}", token=token, body=GOOD)
    whole = await target.ask("POST", CHAT, f"Content-Length: {len(GOOD)}", token=token, body=GOOD + SMUGGLED)

    cut.refusal(400, "invalid_json")
    assert whole.status == 200
    assert [seen.path for seen in target.service.simulator.requests] == [CHAT]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param([f"Content-Length: {len(GOOD)}", CHUNKED], GOOD + SMUGGLED, id="length-and-chunked"),
        pytest.param([CHUNKED, "Content-Length: 5"], b"0\r\n\r\n" + SMUGGLED, id="chunked-and-length"),
        pytest.param([f"Content-Length: {len(GOOD)}", "Content-Length: 0"], GOOD + SMUGGLED, id="two-lengths"),
        pytest.param([f"Content-Length: {len(GOOD)}, 0"], GOOD + SMUGGLED, id="list-of-lengths"),
        pytest.param([f"Content-Length: +{len(GOOD)}"], GOOD + SMUGGLED, id="plus"),
        pytest.param(["Content-Length: -1"], GOOD + SMUGGLED, id="minus"),
        pytest.param([f"Content-Length: {len(GOOD):#x}"], GOOD + SMUGGLED, id="hexadecimal"),
        pytest.param([f"Content-Length: {2**64 + len(GOOD)}"], GOOD + SMUGGLED, id="more-than-64-bits"),
        pytest.param(["Content-Length :0"], GOOD + SMUGGLED, id="space-before-the-colon"),
        pytest.param(["X: 1\n Content-Length: 0"], GOOD + SMUGGLED, id="folded"),
        pytest.param([f"X: 1\nContent-Length: {len(GOOD)}"], GOOD + SMUGGLED, id="bare-line-feed"),
        pytest.param(["Transfer-Encoding: xchunked"], GOOD + SMUGGLED, id="unknown-coding"),
        pytest.param(["Transfer-Encoding: chunked, identity"], GOOD + SMUGGLED, id="chunked-not-last"),
        pytest.param(["Transfer-Encoding: \x0bchunked"], GOOD + SMUGGLED, id="vertical-tab"),
        pytest.param([CHUNKED, CHUNKED], b"0\r\n\r\n" + SMUGGLED, id="chunked-twice"),
        pytest.param([CHUNKED], b"g\r\n{\r\n0\r\n\r\n" + SMUGGLED, id="no-chunk-size"),
        pytest.param([CHUNKED], b"-1\r\n{\r\n0\r\n\r\n" + SMUGGLED, id="negative-chunk"),
        pytest.param([CHUNKED], b"f" * 17 + b"\r\n{\r\n0\r\n\r\n" + SMUGGLED, id="chunk-of-68-bits"),
        pytest.param([CHUNKED], b"1\r\n{}\r\n0\r\n\r\n" + SMUGGLED, id="chunk-longer-than-its-size"),
    ],
)
async def test_request_of_two_minds_about_its_length_is_refused_and_nothing_is_smuggled(
    impatient: Target, headers: list[str], body: bytes
) -> None:
    token = impatient.access()

    answer = await impatient.ask("POST", CHAT, *headers, token=token, body=body)

    assert answer.status in (400, 408), answer.received  # some parsers wait for more than 64 bits can count
    assert answer.whole
    assert answer.received.count(b"HTTP/1.1 ") == 1
    assert impatient.service.simulator.requests == []
    assert await impatient.used(token) == (0, 0)


async def test_requests_of_one_connection_do_not_lend_each_other_their_identity(target: Target) -> None:
    known = request("POST", CHAT, "Connection: keep-alive", token=target.access(), body=GOOD)
    stranger = request("POST", CHAT, "Connection: keep-alive", body=GOOD)
    last = request("POST", CHAT, token="ey", body=GOOD)
    pipelined = (known + stranger + known + last).replace(b"Connection: close\r\nConnection", b"Connection")

    answer = await target.send(pipelined)

    assert re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answer.received) == [b"200", b"401", b"200", b"401"]
    assert len(target.service.simulator.requests) == 2


async def test_nobody_is_asked_for_a_body_that_would_be_refused(target: Target) -> None:
    headers = ["Expect: 100-continue", "Content-Length: 1000"]

    stranger = await target.ask("POST", CHAT, *headers)
    lost = await target.ask("POST", "/nothing", *headers, token=target.access())
    known = await target.ask("POST", CHAT, headers[0], token=target.access(), body=GOOD)

    assert (stranger.status, stranger.interim) == (401, ())
    assert (lost.status, lost.interim) == (404, ())
    assert (known.status, known.interim) == (200, (100,))
