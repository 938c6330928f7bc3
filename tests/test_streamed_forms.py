"""Forms that are forwarded while they come, compared with the same forms held whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from maas_middleware._forms import read_form, with_form
from maas_middleware._streamed_forms import StreamedForm
from maas_middleware.errors import InvalidRequest
from maas_middleware.testing.converse import http_scope

MULTIPART = "multipart/form-data; boundary=client"
KIBIBYTE, MEBIBYTE = 1 << 10, 1 << 20

MODEL = (b'name="model"', b"simulator")
PROMPT = (b'name="prompt"', b"Names: Ann")
SOUND = (b'name="file"; filename="a.wav"\r\nContent-Type: audio/wav', b"RIFF\r\n--client-\x00\r\n--clien\xff\r")
UNREADABLE = (400, "invalid_form", None)

Refusal = tuple[int, str, str | None]


def form(*parts: tuple[bytes, bytes], end: bytes = b"--client--\r\n") -> bytes:
    pieces = [b"--client\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % part for part in parts]
    return b"".join(pieces) + end


def streamed(pieces: Iterable[bytes], content_type: str = MULTIPART) -> bytes | Refusal:
    """What is forwarded of a form, with a boundary that is always the same; or why not."""
    try:
        form = StreamedForm(content_type.encode(), "sim")
        output = b"".join([form.feed(piece) for piece in pieces]) + form.end()
    except InvalidRequest as error:
        return (error.status, error.code, error.param)
    return output.replace(form.boundary, b"ours")


async def held(body: bytes, content_type: str = MULTIPART) -> bytes | Refusal:
    """The same of a form that is read whole before."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop()

    scope = http_scope("POST", "/v1/audio/transcriptions", headers=[("content-type", content_type)])
    try:
        request = await read_form(scope, receive, 64 * MEBIBYTE)
    except InvalidRequest as error:
        return (error.status, error.code, error.param)
    scope, next_message = with_form(scope, receive, request.naming("sim"))
    output, more = b"", True
    while more:
        message = await next_message()
        output, more = output + message["body"], message["more_body"]
    await request.aclose()
    boundary: bytes = dict(scope["headers"])[b"content-type"].removeprefix(b"multipart/form-data; boundary=")
    return output.replace(boundary, b"ours")


def in_pieces(body: bytes, *cuts: int) -> Iterator[bytes]:
    for start, end in zip((0, *cuts), (*cuts, len(body)), strict=True):
        yield body[start:end]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([MODEL, SOUND, PROMPT], id="model-before-the-file"),
        pytest.param([PROMPT, SOUND, MODEL], id="model-behind-the-file"),
        pytest.param([SOUND, (b'name="request_id"', b"mine"), SOUND], id="request-id"),
        pytest.param([], id="no-parts"),
        pytest.param([(b'name="prompt"', b""), (b'name="f"; filename="e"', b"")], id="empty-parts"),
        pytest.param([(b'name="f"; filename=""', b"x")], id="file-without-a-name"),
        pytest.param([(b'name="t[]"', b"word"), (b'name="t[]"', b"segment")], id="repeated-field"),
        pytest.param([(b'name="prompt"', "Zoë\n\u2028\t你".encode())], id="utf-8"),
        pytest.param([(b'name="Zo\xeb"', b"Zo\xeb"), (b'name="f"; filename="Zo\xeb"', b"")], id="latin-1"),
        pytest.param([(rb'name="a\"b\\c"; filename="d\"\\e"', b"x"), (b'name="a\tb\nc\x00"', b"")], id="escapes"),
        pytest.param([(b'name="f"; filename="g"\r\nCONTENT-type: audio/ogg; codecs="opus"', b"")], id="media-type"),
        pytest.param([(b'name="f"; filename="g"\r\nContent-Type: a/b\nX: y', b"")], id="no-media-type"),
        pytest.param([(b'name="f"\r\nX-Other: y\r\nContent-Type: text/plain', b"z")], id="other-headers"),
        pytest.param([(b"name=x; name*=utf-8''model", b"y")], id="extended-notation"),
        pytest.param([SOUND, (b'name="f"; filename="g"', b"")], id="media-type-of-one-file"),
    ],
)
async def test_form_is_forwarded_as_if_it_were_held_wherever_it_is_cut(parts: list[tuple[bytes, bytes]]) -> None:
    body = form(*parts)
    expected = await held(body)

    assert isinstance(expected, bytes)
    assert expected.startswith(b'--ours\r\nContent-Disposition: form-data; name="model"\r\n\r\nsim\r\n--ours')
    assert {streamed(in_pieces(body, cut)) for cut in range(len(body))} == {expected}
    assert streamed(bytes([byte]) for byte in body) == expected


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        pytest.param([MODEL, SOUND, MODEL], "model", id="repeated-model"),
        pytest.param([MODEL, (b'name="Model"', b"org/qwen3")], "Model", id="another-case"),
        pytest.param([(b'name="model"; filename="m"', b"simulator")], "model", id="file-as-model"),
        pytest.param([SOUND, MODEL, (b'name="model"; filename="m"', b"x")], "model", id="file-as-second-model"),
        pytest.param([(b'name="request_id"; filename="f"', b"x")], "request_id", id="file-as-request-id"),
        pytest.param([(b'name="request_id"', b"a"), (b'name="request_id"', b"b")], "request_id", id="two-request-ids"),
        pytest.param([(b'name="n"', b"1"), SOUND, (b'name="n"', b"2")], "n", id="repeated-n"),
        pytest.param([SOUND, (b'name="n"', b"two")], "n", id="n-text"),
        pytest.param([SOUND, (b'name="n"', b"100000")], "n", id="n-too-large"),
        pytest.param([(b'name="stream"', b"1"), SOUND, (b'name="stream"', b"0")], "stream", id="repeated-stream"),
    ],
)
async def test_field_that_decides_is_judged_as_if_the_form_were_held(
    parts: list[tuple[bytes, bytes]], param: str
) -> None:
    body = form(*parts)

    assert streamed([body]) == streamed(bytes([byte]) for byte in body) == (400, "invalid_value", param)
    assert await held(body) == (400, "invalid_value", param)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param("multipart/form-data", form(MODEL), id="no-boundary"),
        pytest.param("multipart/form-data; boundary=", form(MODEL), id="empty-boundary"),
        pytest.param("multipart/form-data; boundary=" + "b" * 5000, form(MODEL), id="endless-boundary"),
        pytest.param("multipart/form-data; boundary=other", form(MODEL), id="another-boundary"),
        pytest.param(MULTIPART, b"", id="empty-body"),
        pytest.param(MULTIPART, b'{"model":"simulator"}', id="json"),
        pytest.param(MULTIPART, form(MODEL, end=b""), id="no-end"),
        pytest.param(MULTIPART, form(SOUND, end=b"--client\r\nContent-Disposition: form"), id="cut-in-a-header"),
        pytest.param(MULTIPART, form(SOUND, end=b"--client\r\n"), id="cut-behind-a-boundary"),
        pytest.param(MULTIPART, form(SOUND)[:-20], id="cut-in-a-file"),
        pytest.param(MULTIPART, form(MODEL, (b"", b"x")), id="part-without-a-name"),
        pytest.param(MULTIPART, form(MODEL, (b'filename="x"', b"x")), id="file-without-a-field-name"),
        pytest.param(MULTIPART, b"--client\r\n\r\nx\r\n" + form(MODEL), id="part-without-headers"),
        pytest.param(
            MULTIPART, form(PROMPT, end=b"--client\r\nX: y\r\n\r\nz\r\n--client--"), id="part-without-its-own-name"
        ),
        pytest.param(MULTIPART, form((b'name="a\rb"', b"x")), id="carriage-return-in-a-name"),
        pytest.param(MULTIPART, form(MODEL, *[PROMPT] * 100), id="too-many-fields"),
        pytest.param(MULTIPART, form(MODEL, *[SOUND] * 21), id="too-many-files"),
        pytest.param(MULTIPART, form((b'name="prompt"', b"x" * (MEBIBYTE + 1))), id="text-of-a-mebibyte"),
        pytest.param(MULTIPART, form((b'name="model"', b"x" * (MEBIBYTE + 1))), id="model-of-a-mebibyte"),
        pytest.param(MULTIPART, form((b'name="%b"' % (b"x" * 100_000), b"x")), id="endless-name"),
        pytest.param(MULTIPART, form((b'name="f"\r\nX: %b' % (b"x" * 100_000), b"x")), id="endless-header"),
        pytest.param(MULTIPART, form((b'name="f"' + b"\r\nX: y" * 100, b"x")), id="many-headers"),
    ],
)
async def test_form_that_cannot_be_read_is_none_either_way(content_type: str, body: bytes) -> None:
    pieces = [body[at : at + KIBIBYTE] for at in range(0, len(body), KIBIBYTE)]

    assert streamed([body], content_type) == streamed(pieces, content_type) == UNREADABLE
    assert await held(body, content_type) == UNREADABLE


def test_form_with_an_empty_boundary_is_none() -> None:
    body = form(MODEL).replace(b"--client", b"--")

    assert streamed([body], "multipart/form-data; boundary=") == UNREADABLE


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/mixed; boundary=client"])
async def test_what_is_no_form_is_415_either_way(content_type: str) -> None:
    refusal = (415, "unsupported_media_type", None)

    assert streamed([form(MODEL)], content_type) == await held(form(MODEL), content_type) == refusal


async def test_as_much_as_is_allowed_is_forwarded() -> None:
    text = (b'name="prompt"', b"x" * MEBIBYTE)
    body = form(MODEL, text, *[PROMPT] * 98, *[SOUND] * 20)

    output = streamed(in_pieces(body, 100, 500_000, MEBIBYTE))

    assert isinstance(output, bytes)
    assert output == await held(body)


NAMES = st.sampled_from(["model", "Model", "n", "N", "stream", "request_id", "prompt", "file", "t[]", 'ü "x\\'])
VALUES = st.sampled_from([b"", b"1", b"true", b"simulator", b"\xff", b"\r\n--clien", b"\r\n--client-", b"\r", b"\r\n"])
HEADS = st.builds(
    lambda name, filename, more: b'name="%b"%b%b' % (name.encode(), filename, more),
    NAMES,
    st.sampled_from([b"", b"", b'; filename="f"', b'; filename="C:\\\\g\xeb"']),
    st.sampled_from([b"", b"\r\nContent-Type: audio/wav", b"\r\nContent-Type: ", b"\r\nX: y", b"\nY: z"]),
)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    parts=st.lists(st.tuples(HEADS, st.lists(VALUES, max_size=3).map(b"".join)), max_size=5),
    end=st.sampled_from([b"--client--\r\n", b"--client--", b"--client--\r\nepilogue --client\r\n", b"--client-", b""]),
    cuts=st.lists(st.integers(0, 500), max_size=6),
)
def test_any_form_is_forwarded_or_refused_as_if_it_were_held(
    parts: list[tuple[bytes, bytes]], end: bytes, cuts: list[int]
) -> None:
    body = form(*parts, end=end)

    output = streamed(in_pieces(body, *sorted(min(cut, len(body)) for cut in cuts)))

    expected = anyio.run(held, body)
    assert output == expected or (
        isinstance(output, tuple) and isinstance(expected, tuple)
    )  # of two faults one is told


# what is held


def test_file_passes_as_it_comes_and_a_field_when_it_is_whole() -> None:
    form_ = StreamedForm(MULTIPART.encode(), "sim")
    in_the_text, rest = form(PROMPT, SOUND).split(b"mes: Ann")

    before = form_.feed(in_the_text)
    behind = form_.feed(b"mes: Ann" + rest[: rest.index(b"RIFF") + 2])
    within = form_.feed(b"x" * 1000)

    assert before.endswith(b'name="model"\r\n\r\nsim\r\n')
    assert b'name="prompt"\r\n\r\nNames: Ann\r\n' in behind
    assert behind.endswith(b'name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRI')
    assert within == b"x" * 1000


def test_nothing_of_a_piece_is_forwarded_that_is_refused() -> None:
    form_ = StreamedForm(MULTIPART.encode(), "sim")
    form_.feed(form(SOUND, end=b"--client\r\n"))

    with pytest.raises(InvalidRequest):
        form_.feed(form(PROMPT, (b'name="n"', b"x"))[len(b"--client\r\n") :])

    with pytest.raises(InvalidRequest):
        form_.end()


def test_form_tells_what_it_asks_for_as_soon_as_it_was_read() -> None:
    form_ = StreamedForm(MULTIPART.encode(), "sim")
    known = []

    for part in ((b'name="n"', b"3"), (b'name="model"', b"m"), SOUND, (b'name="stream"', b"true"), PROMPT):
        form_.feed(form(part, end=b""))
        known.append((form_.fields.answers, form_.fields.model, form_.has_file, form_.fields.stream))
    form_.feed(b"--client--")

    assert known == [
        (1, None, False, False),  # the field is over where the next boundary begins
        (3, None, False, False),
        (3, "m", True, False),
        (3, "m", True, False),
        (3, "m", True, True),
    ]
    assert (form_.text_bytes, form_.file_bytes) == (len("sim3true") + len(PROMPT[1]), len(SOUND[1]))


def test_boundary_is_another_one_every_time() -> None:
    assert StreamedForm(MULTIPART.encode(), "sim").boundary != StreamedForm(MULTIPART.encode(), "sim").boundary
