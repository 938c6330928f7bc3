"""Uploads that are forwarded while they come, with something wrong in them, behind both HTTP parsers."""

from __future__ import annotations

import pytest

from .attack import Target, request

PATH = "/simulator/v1/audio/transcriptions"
FORM = "Content-Type: multipart/form-data; boundary=client"
OCTETS = "Content-Type: application/octet-stream"
CHUNKED = "Transfer-Encoding: chunked"
MEBIBYTE = 1 << 20

FILE = b'--client\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
SOUND = FILE + b"\0" * (2 * MEBIBYTE)
END = b"--client--\r\n"


def field(name: bytes, value: bytes) -> bytes:
    return b"\r\n--client\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b" % (name, value)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(SOUND, 400, "invalid_form", id="no-end"),
        pytest.param(SOUND + b"\r\n--client", 400, "invalid_form", id="half-an-end"),
        pytest.param(SOUND + b"\r\n--other--\r\n", 400, "invalid_form", id="another-end"),
        pytest.param(SOUND + b"\r\n--client\r\n\r\nx\r\n" + END, 400, "invalid_form", id="part-without-headers"),
        pytest.param(SOUND + field(b'"model"', b"qwen3") + b"\r\n" + END, 404, "model_not_found", id="another-model"),
        pytest.param(SOUND + field(b"MODEL", b"simulator") + b"\r\n" + END, 400, "invalid_value", id="case"),
        pytest.param(SOUND + field(b"n", b"1e3") + b"\r\n" + END, 400, "invalid_value", id="number"),
        pytest.param(SOUND + field(b"model; filename=x", b"y") + b"\r\n" + END, 400, "invalid_value", id="file"),
        pytest.param((FILE + b"\r\n") * 21 + END, 400, "invalid_form", id="many-files"),
        pytest.param(FILE + b"\0" * (33 * MEBIBYTE) + b"\r\n" + END, 413, "request_too_large", id="too-large"),
        pytest.param(b"", 400, "invalid_form", id="empty"),
        pytest.param(b'{"model": "simulator"}', 400, "invalid_form", id="json"),
    ],
)
async def test_form_that_is_refused_never_looks_whole_to_the_model(
    target: Target, body: bytes, status: int, code: str
) -> None:
    token = target.access()
    chunks = b"%x\r\n%b\r\n" % (len(body), body) if body else b""

    answers = [
        await target.ask("POST", PATH, FORM, token=token, body=body),
        await target.ask("POST", PATH, FORM, CHUNKED, token=token, body=chunks + b"0\r\n\r\n"),
    ]

    for answer in answers:
        answer.refusal(status, code)
    assert target.service.simulator.requests == []
    assert await target.used(token) == (0, 0)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(field(b'"x\nContent-Disposition: form-data; name=model"', b"qwen3"), id="header-in-a-name"),
        pytest.param(field(rb'x\; filename="; name=model; z="', b"qwen3"), id="escaped-quote"),
        pytest.param(field(b"x; name*=utf-8''model", b"qwen3"), id="extended-notation"),
        pytest.param(b'\r\n--simulator\r\nContent-Disposition: form-data; name="model"\r\n\r\nqwen3', id="boundary"),
    ],
)
async def test_no_part_hides_a_second_model(target: Target, part: bytes) -> None:
    answer = await target.ask("POST", PATH, FORM, token=target.access(), body=SOUND + part + b"\r\n" + END)

    (seen,) = target.service.simulator.requests
    (content_type,) = [value for name, value in seen.headers if name == b"content-type"]
    boundary = b"\r\n--" + content_type.partition(b"boundary=")[2]
    heads = [section.partition(b"\r\n\r\n")[0] for section in (b"\r\n" + seen.body).split(boundary)[1:-1]]
    assert answer.status == 200
    assert [b'name="model"' in head for head in heads] == [True] + [False] * (len(heads) - 1)
    assert all([line[:20] for line in head.splitlines()].count(b"Content-Disposition:") == 1 for head in heads)
    assert b"client" not in content_type


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param(["Content-Length: 40000000"], b"\0" * 1000, id="by-its-length"),
        pytest.param([CHUNKED], (b"100000\r\n" + b"\0" * MEBIBYTE + b"\r\n") * 33, id="in-chunks"),
    ],
)
async def test_octets_over_32_mib_are_413(target: Target, headers: list[str], body: bytes) -> None:
    token = target.access()

    answer = await target.send(request("POST", PATH, OCTETS, *headers, token=token), body)

    answer.refusal(413, "request_too_large")
    assert target.service.simulator.requests == []
    assert await target.used(token) == (0, 0)


async def test_octets_pass_with_everything_in_them(target: Target) -> None:
    body = bytes(range(256)) + SOUND + field(b'"model"', b"qwen3")

    await target.ask("POST", PATH, OCTETS, token=target.access(), body=body)

    (seen,) = target.service.simulator.requests
    assert seen.body == body
    assert (b"content-length", b"%d" % len(body)) in seen.headers


async def test_length_that_the_client_takes_away_is_still_one(target: Target) -> None:
    body = SOUND + b"\r\n" + END

    answer = await target.ask(
        "POST", PATH, FORM, "Connection: content-length, transfer-encoding", token=target.access(), body=body
    )

    assert answer.status == 200
    assert len(target.service.simulator.requests) == 1
