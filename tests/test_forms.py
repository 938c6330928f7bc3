"""Multipart requests, as the app behind `TierMiddleware` reads them."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest
from python_multipart import parse_form
from python_multipart.multipart import Field, File
from starlette.datastructures import UploadFile
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware._asgi import ClientLeft
from maas_middleware._forms import FormRequest, read_form
from maas_middleware.catalogue import Catalogue, Model
from maas_middleware.context import get_context
from maas_middleware.errors import InvalidRequest, RequestTimeout, RequestTooLarge
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.testing.converse import Conversation, converse, http_scope
from maas_middleware.tiers import GroupTierResolver, Tier
from tests.parts import AS_ALICE, CATALOGUE, RESOLVER, SIMULATOR, Answering, identified, json_answer, piece, start

PATH = "/v1/audio/transcriptions"
MULTIPART = "multipart/form-data; boundary=client"
MEBIBYTE = 1 << 20
MANY_BYTES = bytes(range(256)) * (3 * MEBIBYTE // 256 + 1)

MODEL = (b'name="model"', b"simulator")
PROMPT = (b'name="prompt"', b"Names: Ann")
SOUND = (b'name="file"; filename="a.wav"', b"RIFF\r\n--client-\x00\xff")
LARGE = (b'name="file"; filename="a.wav"', MANY_BYTES)

Part = tuple[str, str | None, bytes]


@pytest.fixture(scope="module", autouse=True)
def older_objects_are_not_collected() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_file_is_left_open() -> Iterator[None]:
    """A file that nobody closed warns when it is collected, and warnings are failures."""
    yield
    gc.collect()


def form(*parts: tuple[bytes, bytes], end: bytes = b"--client--\r\n") -> bytes:
    pieces = [b"--client\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % part for part in parts]
    return b"".join(pieces) + end


def tiered(app: ASGIApp, **options: Any) -> ASGIApp:
    return identified(TierMiddleware(app, **{"resolver": RESOLVER, "catalogue": CATALOGUE, **options}))


def inner() -> Answering:
    return Answering(*json_answer(b"{}"))


async def transcribe(
    app: ASGIApp, body: bytes | list[bytes], path: str = PATH, content_type: str = MULTIPART, **more: Any
) -> Conversation:
    with anyio.fail_after(10):
        return await converse(
            app, "POST", path, body=body, **{"headers": [AS_ALICE, ("content-type", content_type)], **more}
        )


def parts_of(app: Answering) -> list[Part]:
    """What another parser makes of the last request: names, file names and contents, in their order."""
    found: list[Part] = []

    def on_field(field: Field) -> None:
        assert field.field_name is not None
        found.append((field.field_name.decode(), None, field.value or b""))

    def on_file(file: File) -> None:
        assert file.field_name is not None
        assert file.file_name is not None
        file.file_object.seek(0)
        found.append((file.field_name.decode(), file.file_name.decode(), file.file_object.read()))
        file.close()

    headers = {name.decode().title(): value for name, value in app.headers}
    parse_form(headers, io.BytesIO(app.bodies[-1]), on_field, on_file)
    return found


async def forwarded(*parts: tuple[bytes, bytes]) -> list[Part]:
    app = inner()
    answer = await transcribe(tiered(app), form(*parts))
    assert answer.status == 200, answer.body
    return parts_of(app)


# what is forwarded


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        pytest.param(
            [MODEL, SOUND, PROMPT],
            [("model", None, b"sim"), ("file", "a.wav", SOUND[1]), ("prompt", None, PROMPT[1])],
            id="model-before-the-file",
        ),
        pytest.param(
            [PROMPT, SOUND, MODEL],
            [("model", None, b"sim"), ("prompt", None, PROMPT[1]), ("file", "a.wav", SOUND[1])],
            id="model-behind-the-file",
        ),
        pytest.param([MODEL], [("model", None, b"sim")], id="no-file"),
        pytest.param(
            [MODEL, (b'name="image[]"; filename="1"', b"one"), (b'name="image[]"; filename="2"', b"two")],
            [("model", None, b"sim"), ("image[]", "1", b"one"), ("image[]", "2", b"two")],
            id="several-files-of-one-name",
        ),
        pytest.param(
            [
                (b'name="timestamp_granularities[]"', b"word"),
                MODEL,
                (b'name="timestamp_granularities[]"', b"segment"),
                (b'name="timestamp_granularities[]"', b"word"),
            ],
            [
                ("model", None, b"sim"),
                ("timestamp_granularities[]", None, b"word"),
                ("timestamp_granularities[]", None, b"segment"),
                ("timestamp_granularities[]", None, b"word"),
            ],
            id="repeated-fields-keep-their-order",
        ),
        pytest.param(
            [MODEL, (b'name="request_id"', b"mine"), PROMPT],
            [("model", None, b"sim"), ("prompt", None, PROMPT[1])],
            id="without-a-request-id",
        ),
        pytest.param(
            [MODEL, (b'name="prompt"', b""), (b'name="file"; filename="empty"', b"")],
            [("model", None, b"sim"), ("prompt", None, b""), ("file", "empty", b"")],
            id="empty-parts",
        ),
        pytest.param(
            [MODEL, (b'name="file"; filename=""', b"x")],
            [("model", None, b"sim"), ("file", "", b"x")],
            id="file-without-a-name",
        ),
        pytest.param(
            [MODEL, (b'name="prompt"', "Zoë\n\u2028\t你".encode())],
            [("model", None, b"sim"), ("prompt", None, "Zoë\n\u2028\t你".encode())],
            id="text-is-utf-8",
        ),
        pytest.param(
            [MODEL, (b'name="prompt"', b"Zo\xeb")],
            [("model", None, b"sim"), ("prompt", None, "Zoë".encode())],
            id="text-that-is-no-utf-8-is-taken-for-latin-1",
        ),
    ],
)
async def test_form_reaches_the_app_part_by_part(parts: list[tuple[bytes, bytes]], expected: list[Part]) -> None:
    assert await forwarded(*parts) == expected


@pytest.mark.parametrize(
    ("given", "read"),
    [
        pytest.param("naïve 你 €", "naïve 你 €", id="not-latin"),
        pytest.param("a'b;c=d&e %41", "a'b;c=d&e %41", id="punctuation"),
        pytest.param(r"a\"b", "a%22b", id="quote"),
        pytest.param(r"mod\el", "mod%5Cel", id="backslash"),
        pytest.param("a\nb", "a%0Ab", id="line-feed"),
        pytest.param("a\tb\x00c\x7f", "a%09b%00c%7F", id="control-characters"),
        pytest.param(" a ", " a ", id="blanks"),
    ],
)
async def test_names_mean_the_same_to_every_parser(given: str, read: str) -> None:
    field = (b'name="%b"' % given.encode(), b"1")
    file = (b'name="%b"; filename="x%b"' % (given.encode(), given.encode()), b"2")

    parts = await forwarded(MODEL, field, file)

    assert parts == [("model", None, b"sim"), (read, None, b"1"), (read, "x" + read, b"2")]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        pytest.param(rb'name=x\; filename="; name=model; z="', 200, id="name-that-escapes-the-quote-behind-it"),
        pytest.param(rb'name="x"; filename="y\"; name=model; z=\""', 200, id="file-name-with-quotes"),
        pytest.param(b"name=x; name*=utf-8''model", 200, id="extended-notation"),
        pytest.param(b'name="x\nContent-Disposition: form-data; name=model"', 200, id="header-in-a-name"),
        pytest.param(b'name="x\r\n y"; filename="\r\n\r\n"', 400, id="folded-line"),
    ],
)
async def test_no_name_hides_a_second_model(name: bytes, status: int) -> None:
    app = inner()

    answer = await transcribe(tiered(app), form(MODEL, (name, b"org/qwen3")))

    assert answer.status == status
    if status == 200:
        assert [part for part in parts_of(app) if part[0] == "model"] == [("model", None, b"sim")]
        lines = app.bodies[0].lower().splitlines()
        assert sum(line.startswith(b"content-disposition:") for line in lines) == 2


@pytest.mark.parametrize(
    ("given", "read"),
    [
        pytest.param(b"audio/wav", b"audio/wav", id="plain"),
        pytest.param(b'audio/ogg; codecs="opus"', b'audio/ogg; codecs="opus"', id="with-a-parameter"),
        pytest.param(b"text/plain\nContent-Disposition: form-data; name=model", None, id="with-a-header-inside"),
        pytest.param("text/plain; a=ü".encode(), None, id="not-ascii"),
        pytest.param(b"", None, id="empty"),
    ],
)
async def test_media_type_of_a_file_is_kept_where_it_is_one(given: bytes, read: bytes | None) -> None:
    app = inner()
    file = (b'name="f"; filename="g"\r\nContent-Type: ' + given, b"x")

    answer = await transcribe(tiered(app), form(MODEL, file))

    assert answer.status == 200
    types = [line for line in app.bodies[0].splitlines() if line.lower().startswith(b"content-type:")]
    assert types == [b"Content-Type: " + (read or b"application/octet-stream")]
    assert app.bodies[0].count(b"name=model") == 0


async def test_headers_are_those_of_the_form_that_is_forwarded() -> None:
    app = inner()
    headers = [
        AS_ALICE,
        ("content-type", MULTIPART),
        ("transfer-encoding", "chunked"),
        ("content-md5", "abc"),
        ("x-other", "kept"),
    ]

    await transcribe(tiered(app), form(MODEL, SOUND), headers=headers)

    names = [name for name, _ in app.headers]
    assert names == [b"x-other", b"content-type", b"content-length"]
    values = dict(app.headers)
    assert values[b"content-length"] == str(len(app.bodies[0])).encode()
    boundary = values[b"content-type"].removeprefix(b"multipart/form-data; boundary=")
    assert boundary != b"client"
    assert app.bodies[0].startswith(b"--" + boundary + b"\r\n")
    assert app.bodies[0].endswith(b"\r\n--" + boundary + b"--\r\n")


async def test_boundary_is_another_one_every_time() -> None:
    app = inner()

    for _ in range(2):
        await transcribe(tiered(app), form(MODEL))

    assert app.bodies[0] != app.bodies[1]


async def test_form_of_a_real_client_is_read() -> None:
    app = inner()
    request = httpx.Request(
        "POST",
        "http://gateway" + PATH,
        data={"model": "simulator", "timestamp_granularities[]": ["word", "segment"]},
        files={"file": ('say "hi" ü.wav', MANY_BYTES, "audio/wav")},
    )

    answer = await transcribe(tiered(app), request.read(), content_type=request.headers["content-type"])

    assert answer.status == 200
    assert parts_of(app) == [
        ("model", None, b"sim"),
        ("timestamp_granularities[]", None, b"word"),
        ("timestamp_granularities[]", None, b"segment"),
        ("file", "say %22hi%22 ü.wav", MANY_BYTES),
    ]


async def test_form_is_in_the_context_under_the_name_that_the_server_knows() -> None:
    app = inner()

    await transcribe(tiered(app), form(SOUND, MODEL))

    context = get_context(app.scopes[0])
    assert isinstance(context.request, FormRequest)
    assert (context.model, context.request.model, context.request.answers) == (SIMULATOR, "sim", 1)
    assert (context.request.stream, context.request.cap) == (False, None)


@pytest.mark.parametrize(
    ("path", "parts", "status", "code"),
    [
        pytest.param(f"/simulator{PATH}", [SOUND], 200, None, id="in-the-path"),
        pytest.param(f"/simulator{PATH}", [SOUND, MODEL], 200, None, id="in-both"),
        pytest.param(f"/simulator{PATH}/", [MODEL], 200, None, id="trailing-slash"),
        pytest.param(PATH, [SOUND], 400, "missing_required_parameter", id="missing"),
        pytest.param(PATH, [(b'name="model"', b"")], 400, "missing_required_parameter", id="empty"),
        pytest.param(PATH, [(b'name="model"', b"nothing")], 404, "model_not_found", id="unknown"),
        pytest.param(PATH, [LARGE, (b'name="model"', b"org/qwen3")], 403, "access_denied", id="of-another-tier"),
        pytest.param(
            f"/simulator{PATH}", [LARGE, (b'name="model"', b"org/qwen3")], 404, "model_not_found", id="not-the-paths"
        ),
    ],
)
async def test_model_of_a_form_is_judged_like_any_other(
    path: str, parts: list[tuple[bytes, bytes]], status: int, code: str | None
) -> None:
    app = inner()

    answer = await transcribe(tiered(app), form(*parts), path)

    assert answer.status == status
    if code is None:
        assert parts_of(app)[0] == ("model", None, b"sim")
        assert app.scopes[0]["path"] == PATH
    else:
        assert (answer.json()["error"]["code"], app.scopes) == (code, [])


async def test_form_calls_a_model_by_its_alias() -> None:
    app = inner()
    catalogue = Catalogue([Model("org/whisper", aliases=("whisper-1",), upstream_model="/models/w")])

    await transcribe(tiered(app, catalogue=catalogue), form((b'name="model"', b"whisper-1"), SOUND))

    assert parts_of(app)[0] == ("model", None, b"/models/w")


async def test_form_whose_feature_the_tier_lacks_is_refused() -> None:
    app = inner()
    resolver = GroupTierResolver([Tier("free", groups=("free-users",), features=["streaming"])])

    answer = await transcribe(tiered(app, resolver=resolver), form(MODEL, LARGE))

    assert (answer.status, answer.json()["error"]["code"]) == (403, "feature_not_available")
    assert app.scopes == []


# large files


async def test_file_of_more_than_a_mebibyte_goes_through_whole_and_in_pieces() -> None:
    sizes: list[int] = []
    body = form(LARGE, MODEL)
    pieces = [body[cut : cut + 100_000] for cut in range(0, len(body), 100_000)]
    app = inner()

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        async def watching_receive() -> Message:
            message = await receive()
            sizes.append(len(message.get("body", b"")))
            return message

        await app(scope, watching_receive, send)

    answer = await transcribe(tiered(watching), pieces)

    assert answer.status == 200
    assert parts_of(app) == [("model", None, b"sim"), ("file", "a.wav", MANY_BYTES)]
    assert max(sizes) == 64 << 10
    assert dict(app.headers)[b"content-length"] == str(len(app.bodies[0])).encode()


class Keeping:
    """An app that keeps the files of its request in sight, and then does something else."""

    def __init__(self, *messages: Message, raises: BaseException | None = None) -> None:
        self.files: list[UploadFile] = []
        self._then = Answering(*messages, raises=raises)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = get_context(scope).request
        assert isinstance(request, FormRequest)
        self.files = [value for _, value in request.parts if isinstance(value, UploadFile)]
        assert not any(file.file.closed for file in self.files)
        await self._then(scope, receive, send)


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(Keeping(*json_answer(b"{}")), id="answered"),
        pytest.param(Keeping(raises=ZeroDivisionError()), id="raised"),
        pytest.param(Keeping(start(200), piece(b"half"), raises=ConnectionError()), id="broken-off"),
    ],
)
async def test_files_are_deleted_when_the_app_is_done(app: Keeping) -> None:
    await transcribe(tiered(app), form(MODEL, SOUND, LARGE))

    assert [file.file.closed for file in app.files] == [True, True]


async def test_files_are_deleted_when_the_request_is_cancelled() -> None:
    files: list[UploadFile] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = get_context(scope).request
        assert isinstance(request, FormRequest)
        files.extend(value for _, value in request.parts if isinstance(value, UploadFile))
        group.cancel_scope.cancel()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        await transcribe(tiered(app), form(MODEL, LARGE, LARGE))

    assert group.cancel_scope.cancelled_caught
    assert [file.file.closed for file in files] == [True, True]


async def test_app_hears_the_client_itself_behind_the_form() -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not heard or heard[-1]["type"] == "http.request":
            heard.append(await receive())

    await transcribe(tiered(app), form(MODEL, SOUND), leave_after=0)

    *pieces, end = heard
    assert end == {"type": "http.disconnect"}
    assert [message["more_body"] for message in pieces] == [True] * (len(pieces) - 1) + [False]


# what is refused


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        pytest.param([MODEL, SOUND, MODEL], "model", id="repeated-model"),
        pytest.param([MODEL, (b'name="Model"', b"org/qwen3")], "Model", id="another-case"),
        pytest.param([(b'name="MODEL"', b"simulator")], "MODEL", id="another-case-alone"),
        pytest.param([(b'name="model"; filename="m"', b"simulator")], "model", id="file-as-model"),
        pytest.param([(b'name="model"; filename="m"', MANY_BYTES)], "model", id="large-file-as-model"),
        pytest.param([MODEL, LARGE, (b'name="model"; filename="m"', b"x")], "model", id="file-as-second-model"),
        pytest.param([(b'name="request_id"; filename="f"', MANY_BYTES)], "request_id", id="file-as-request-id"),
        pytest.param([MODEL, (b'name="n"', b"1"), (b'name="n"', b"2")], "n", id="repeated-n"),
        pytest.param([MODEL, (b'name="N"', b"1")], "N", id="n-in-another-case"),
        pytest.param([MODEL, (b'name="n"', b"")], "n", id="n-empty"),
        pytest.param([MODEL, (b'name="n"', b"two")], "n", id="n-text"),
        pytest.param([MODEL, (b'name="n"', b"-1")], "n", id="n-negative"),
        pytest.param([MODEL, (b'name="n"', b"1.5")], "n", id="n-fraction"),
        pytest.param([MODEL, (b'name="n"', b" 1")], "n", id="n-with-a-blank"),
        pytest.param([MODEL, (b'name="n"', "²".encode())], "n", id="n-other-digits"),
        pytest.param([MODEL, (b'name="n"', b"100000")], "n", id="n-too-large"),
        pytest.param([MODEL, (b'name="stream"', b"1"), (b'name="stream"', b"0")], "stream", id="repeated-stream"),
        pytest.param([MODEL, (b'name="Stream"', b"true")], "Stream", id="stream-in-another-case"),
        pytest.param([MODEL, (b'name="stream"; filename="s"', b"true")], "stream", id="file-as-stream"),
    ],
)
async def test_field_that_decides_stands_once_as_text(parts: list[tuple[bytes, bytes]], param: str) -> None:
    app = inner()

    answer = await transcribe(tiered(app), form(*parts))

    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "invalid_value", param)
    assert error["message"] == f"`{param}` has an invalid value"
    assert app.scopes == []


@pytest.mark.parametrize(
    "content_type",
    [
        pytest.param("", id="none"),
        pytest.param("application/json", id="json"),
        pytest.param("application/x-www-form-urlencoded", id="urlencoded"),
        pytest.param("multipart/mixed; boundary=client", id="another-multipart"),
        pytest.param("multipart/form-datax; boundary=client", id="only-begins-like-it"),
        pytest.param(f"{MULTIPART}; charset=punycode", id="punycode"),
        pytest.param(f"{MULTIPART}; CHARSET=utf-7", id="utf-7"),
        pytest.param(f'{MULTIPART}; charset="utf-16"', id="quoted-charset"),
        pytest.param(f"{MULTIPART}; x=utf-8; charset=punycode", id="utf-8-elsewhere"),
        pytest.param(f"{MULTIPART}; charset=utf-8; charset=punycode", id="two-charsets"),
    ],
)
async def test_what_is_no_form_in_utf_8_is_415(content_type: str) -> None:
    app = inner()

    answer = await transcribe(tiered(app), form(MODEL), content_type=content_type)

    assert (answer.status, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert answer.json()["error"]["message"] == "The request body has to be multipart/form-data in UTF-8"
    assert app.scopes == []


@pytest.mark.parametrize(
    "content_type",
    [
        pytest.param(f"{MULTIPART}; charset=UTF-8", id="utf-8"),
        pytest.param('Multipart/Form-Data; Charset="utf-8"; Boundary="client"', id="other-case-and-quotes"),
        pytest.param('multipart/form-data; boundary="client"; x="charset=punycode"', id="charset-inside-of-a-value"),
    ],
)
async def test_form_in_utf_8_is_read_however_its_type_is_written(content_type: str) -> None:
    app = inner()

    answer = await transcribe(tiered(app), form(MODEL, PROMPT), content_type=content_type)

    assert answer.status == 200
    assert parts_of(app) == [("model", None, b"sim"), ("prompt", None, PROMPT[1])]


async def test_names_of_headers_are_read_in_any_case() -> None:
    app = inner()

    answer = await transcribe(tiered(app), form(MODEL), headers=[AS_ALICE, ("Content-Type", MULTIPART)])

    assert (answer.status, parts_of(app)) == (200, [("model", None, b"sim")])
    assert [name for name, _ in app.headers] == [b"content-type", b"content-length"]


UNREADABLE = {
    "message": "The request body is not a readable form",
    "type": "invalid_request_error",
    "param": None,
    "code": "invalid_form",
}


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
        pytest.param(MULTIPART, form(MODEL, LARGE, end=b"--client\r\nContent-Disposition: form"), id="cut-in-a-header"),
        pytest.param(MULTIPART, form(MODEL, LARGE)[:-20], id="cut-in-a-large-file"),
        pytest.param(MULTIPART, form(MODEL, (b"", b"x")), id="part-without-a-name"),
        pytest.param(MULTIPART, b"--client\r\n\r\nx\r\n" + form(MODEL), id="part-without-headers"),
        pytest.param(MULTIPART, form(MODEL, (b'name="a\rb"', b"x")), id="carriage-return-in-a-name"),
        pytest.param(MULTIPART, form(MODEL, *[PROMPT] * 100), id="too-many-fields"),
        pytest.param(MULTIPART, form(MODEL, *[SOUND] * 20, LARGE), id="too-many-files"),
        pytest.param(MULTIPART, form(MODEL, LARGE, (b'name="prompt"', b"x" * (MEBIBYTE + 1))), id="text-of-a-mebibyte"),
        pytest.param(MULTIPART, form(MODEL, (b'name="%b"' % (b"x" * 100_000), b"x")), id="endless-name"),
    ],
)
async def test_form_that_cannot_be_read_is_400(content_type: str, body: bytes) -> None:
    app = inner()

    answer = await transcribe(tiered(app), body, content_type=content_type)

    assert (answer.status, answer.json(), answer.exception) == (400, {"error": UNREADABLE}, None)
    assert app.scopes == []


async def test_as_many_fields_and_files_as_are_allowed_are_read() -> None:
    parts = await forwarded(MODEL, *[PROMPT] * 99, *[SOUND] * 20)

    assert len(parts) == 120


async def test_form_that_is_cut_anywhere_is_never_taken_for_a_whole_one() -> None:
    app = inner()
    shell, body = tiered(app), form(MODEL, SOUND)
    whole = len(body) - len(b"\r\n")  # the end of the last line may be missing

    statuses = {(await transcribe(shell, body[:cut])).status for cut in range(whole)}

    assert statuses == {400}
    assert app.scopes == []
    assert (await transcribe(shell, body[:whole])).status == 200


async def test_form_that_comes_byte_by_byte_is_the_same_form() -> None:
    app = inner()
    body = form(SOUND, MODEL, PROMPT)

    await transcribe(tiered(app), [bytes([byte]) for byte in body])

    assert parts_of(app) == [("model", None, b"sim"), ("file", "a.wav", SOUND[1]), ("prompt", None, PROMPT[1])]


@pytest.mark.parametrize("over", [0, 1], ids=["at-the-limit", "over-the-limit"])
async def test_form_over_the_limit_is_413_counted_as_it_comes(over: int) -> None:
    app = inner()
    body = form(MODEL, LARGE)
    pieces = [body[:MEBIBYTE], body[MEBIBYTE : 2 * MEBIBYTE], body[2 * MEBIBYTE :]]
    headers = [AS_ALICE, ("content-type", MULTIPART), ("content-length", "1")]

    answer = await transcribe(tiered(app, max_body_bytes=len(body) - over), pieces, headers=headers)

    assert answer.status == (413 if over else 200)
    assert len(app.scopes) == 1 - over
    if over:
        assert answer.json()["error"]["code"] == "request_too_large"


def receiving(*messages: Message) -> Receive:
    pending = list(messages)

    async def receive() -> Message:
        if not pending:
            await anyio.sleep_forever()
        return pending.pop(0)

    return receive


def form_scope() -> Scope:
    return http_scope("POST", PATH, headers=[("content-type", MULTIPART)])


def request_piece(body: bytes) -> Message:
    return {"type": "http.request", "body": body, "more_body": True}


async def test_form_over_the_limit_is_not_read_to_its_end() -> None:
    with anyio.fail_after(5), pytest.raises(RequestTooLarge):
        await read_form(form_scope(), receiving(request_piece(form(LARGE))), 2 * MEBIBYTE)


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([], id="nothing"),
        pytest.param([request_piece(form(MODEL, end=b""))], id="between-parts"),
        pytest.param([request_piece(form(MODEL, LARGE)[:-20])], id="in-a-large-file"),
    ],
)
async def test_form_that_does_not_come_in_time_is_408(messages: list[Message]) -> None:
    with pytest.raises(RequestTimeout):
        await read_form(form_scope(), receiving(*messages), 1 << 30, seconds=0.01)


async def test_form_messages_without_keys_are_empty_last_ones() -> None:
    with pytest.raises(InvalidRequest, match="not a readable form"):
        await read_form(form_scope(), receiving(request_piece(form(MODEL, end=b"")), {"type": "http.request"}), 999)


async def test_client_that_leaves_in_a_form_is_told_from_a_form_that_is_cut() -> None:
    with pytest.raises(ClientLeft):
        await read_form(form_scope(), receiving(request_piece(form(LARGE)[:-20]), {"type": "http.disconnect"}), 1 << 30)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(form(MODEL, end=b""), id="between-parts"),
        pytest.param(form(MODEL, LARGE)[:-20], id="in-a-large-file"),
    ],
)
async def test_client_that_leaves_in_its_form_reaches_nobody_and_gets_no_answer(body: bytes) -> None:
    app = inner()

    answer = await transcribe(tiered(app), [body], leave_while_sending=True)

    assert (answer.messages, answer.exception, app.scopes) == ([], None, [])


# what a form asks for


@pytest.mark.parametrize(
    ("value", "streams"),
    [
        *((value, True) for value in ("true", "True", "TRUE", "1", "on", "yes", "t", "y", " true ")),
        *((value, False) for value in ("", "false", "0", "off", "no", "null", "2", "truer")),
    ],
)
def test_form_streams_where_a_server_would_take_its_field_for_true(value: str, streams: bool) -> None:
    assert FormRequest.judge([("stream", value)]).stream is streams


@pytest.mark.parametrize(("value", "answers"), [("1", 1), ("10", 10), ("0", 1), ("007", 7), ("99999", 99_999)])
def test_form_asks_for_so_many_answers(value: str, answers: int) -> None:
    assert FormRequest.judge([("n", value)]).answers == answers


def test_names_that_are_only_alike_decide_nothing() -> None:
    request = FormRequest.judge([("models", "a"), ("model[]", "b"), ("ns", "c"), ("streams", "true")])

    assert (request.model, request.answers, request.stream) == (None, 1, False)


async def test_prompt_is_estimated_from_text_and_files() -> None:
    body = form((b'name="a"', "é".encode() * 4), SOUND, (b'name="b"', b"x"), (SOUND[0], bytes(1601 - len(SOUND[1]))))
    request = await read_form(form_scope(), receiving({"type": "http.request", "body": body}), MEBIBYTE)

    tokens = request.prompt_tokens
    await request.aclose()

    assert tokens == 3 + 2
    assert FormRequest.judge([]).prompt_tokens == 0
