"""Bodies that are forwarded while they come, as the app behind `TierMiddleware` reads them."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_middleware._uploads import Upload
from maas_middleware.catalogue import Catalogue, Model
from maas_middleware.context import MaaSContext, get_context
from maas_middleware.dialects import TRANSCRIPTION
from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.limiting import parse_limits
from maas_middleware.middleware.rate_limit import RateLimitMiddleware
from maas_middleware.middleware.tier import TierMiddleware
from maas_middleware.testing.converse import Conversation, converse, http_scope
from maas_middleware.tiers import GroupTierResolver, Tier
from tests.parts import AS_ALICE, CATALOGUE, RESOLVER, Answering, PassingOn, identified, json_answer, last, piece, start

PATH = "/simulator/v1/audio/transcriptions"
MULTIPART, OCTETS = "multipart/form-data; boundary=client", "application/octet-stream"
KIBIBYTE = 1 << 10

FILE = b'--client\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
END = b"\r\n--client--\r\n"
LEFT: Message = {"type": "http.disconnect"}
DONE = json_answer(b"{}")
LIMITLESS = Tier("free", groups=("free-users",))


def field(name: str, value: str) -> bytes:
    return f'--client\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def behind_a_file(name: str, value: str) -> list[bytes]:
    """A form in pieces, with a field that nobody expects behind a file of several of them."""
    return [FILE, b"RIFF", b"\0" * KIBIBYTE, b"\r\n" + field(name, value), b"--client--\r\n"]


class Reading:
    """An app that reads its request until it is over or broken off, and then sends these messages or raises."""

    def __init__(self, *messages: Message, raises: Exception | None = None) -> None:
        self.read: list[Message] = []
        self.context = MaaSContext()
        self._messages = messages
        self._raises = raises

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.context = get_context(scope)
        more = True
        while more:
            self.read.append(message := await receive())
            more = message.get("more_body", False)
        for answer in self._messages:
            await send(answer)
        if self._raises is not None:
            raise self._raises

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.read)


def tiered(app: ASGIApp, **options: Any) -> ASGIApp:
    return identified(TierMiddleware(app, **{"resolver": RESOLVER, "catalogue": CATALOGUE, **options}))


async def upload(
    app: ASGIApp, pieces: list[bytes], content_type: str = MULTIPART, *headers: tuple[str, str], **more: Any
) -> Conversation:
    with anyio.fail_after(10):
        asked = [AS_ALICE, ("content-type", content_type), *headers]
        return await converse(app, "POST", PATH, headers=asked, body=pieces, **more)


class Client:
    """A client that sends these messages and nothing more, and keeps what it is sent."""

    def __init__(self, *messages: Message) -> None:
        self.answer: list[Message] = []
        self.pending = list(messages)
        self.left = anyio.Event()

    async def ask(self, app: ASGIApp, content_type: str = MULTIPART) -> None:
        with anyio.fail_after(10):
            scope = http_scope("POST", PATH, headers=[AS_ALICE, ("content-type", content_type)])
            await app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if not self.pending:
            await self.left.wait()
            return LEFT
        return self.pending.pop(0)

    async def _send(self, message: Message) -> None:
        self.answer.append(message)


def request_piece(body: bytes) -> Message:
    return {"type": "http.request", "body": body, "more_body": True}


# what is forwarded


async def test_app_reads_the_form_while_it_comes() -> None:
    client = Client(*map(request_piece, (field("language", "de") + FILE, b"RIFF", b"WAVE")))
    unsent: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(3):
            unsent.append(len(client.pending))
            message = await receive()
            assert message["more_body"]
        assert message["body"] == b"WAVE"

    await client.ask(tiered(app))

    assert unsent == [2, 2, 1]


async def test_fields_before_the_first_file_are_read_before_the_app_is_called() -> None:
    app = Reading(*DONE)
    seen: list[tuple[bool, int, str | None]] = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        request = get_context(scope).request
        assert isinstance(request, Upload)
        seen.append((request.stream, request.answers, request.model))
        await app(scope, receive, send)

    pieces = [field("n", "2"), field("stream", "true"), field("model", "simulator"), FILE, b"RIFF" + END]
    answer = await upload(tiered(noting), pieces)

    assert seen == [(True, 2, "sim")]
    assert answer.status == 200


async def test_fields_without_a_file_are_not_read_for_ever() -> None:
    text = field("prompt", "x" * 50 * KIBIBYTE)
    client = Client(*map(request_piece, [text] * 9))
    unsent: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        unsent.append(len(client.pending))
        await send(start())
        await send(last())

    await client.ask(tiered(app))

    assert unsent == [6]  # a field is over where the next one begins


async def test_form_is_never_whole_in_its_first_message_and_nothing_but_its_last_one_ends_it() -> None:
    app = Reading(*DONE)

    await upload(tiered(app), [field("language", "de") + FILE + b"RIFF" + END])

    first, end = app.read
    assert (first["more_body"], end["more_body"]) == (True, False)
    assert first["body"].endswith(b"\r\n\r\nRIFF\r\n")
    assert end["body"] == first["body"][: 2 + 32] + b"--\r\n"


async def test_headers_are_those_of_the_form_that_is_forwarded() -> None:
    app = Answering(*DONE)
    headers = (("content-length", "999"), ("content-encoding", "gzip"), ("content-md5", "abc"), ("x-other", "kept"))

    await upload(tiered(app), [FILE + END], MULTIPART, *headers)

    names = [name for name, _ in app.headers]
    values = dict(app.headers)
    assert names == [b"x-other", b"content-type", b"transfer-encoding"]
    assert values[b"transfer-encoding"] == b"chunked"
    assert values[b"content-type"].startswith(b"multipart/form-data; boundary=")
    assert app.bodies[0].startswith(b"--" + values[b"content-type"].partition(b"=")[2] + b"\r\n")


@pytest.mark.parametrize(
    "headers", [pytest.param([("content-length", "6")], id="length"), pytest.param([], id="no-length")]
)
async def test_octets_pass_as_they_are(headers: list[tuple[str, str]]) -> None:
    app = Reading(*DONE)
    scopes: list[Scope] = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await app(scope, receive, send)

    answer = await upload(tiered(noting), [b"\0\xff", b"--cl", b""], OCTETS, ("x-other", "kept"), *headers)

    asked = [("content-type", OCTETS), ("x-other", "kept"), *headers]
    assert answer.status == 200
    assert scopes[0]["headers"] == [(name.encode(), value.encode()) for name, value in asked]
    assert scopes[0]["path"] == "/v1/audio/transcriptions"
    assert app.body == b"\0\xff--cl"
    assert [message["more_body"] for message in app.read] == [True, True, False]


async def test_octets_ask_for_one_answer_that_is_no_stream() -> None:
    app = Reading(*DONE)

    await upload(tiered(app), [b"x"], f"{OCTETS}; a=b")

    request = app.context.request
    assert isinstance(request, Upload)
    assert (request.stream, request.answers, request.model, request.cap) == (False, 1, "sim", None)


async def test_octets_need_the_model_in_the_path() -> None:
    app = Answering(*DONE)

    answer = await converse(
        tiered(app), "POST", "/v1/audio/transcriptions", headers=[AS_ALICE, ("content-type", OCTETS)], body=b"x"
    )

    assert (answer.status, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert app.scopes == []


async def test_app_hears_the_client_itself_behind_the_body() -> None:
    app = Reading()
    heard: list[Message] = []

    async def listening(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        heard.append(await receive())

    await upload(tiered(listening), [FILE, END], leave_after=0)

    assert app.read[-1]["more_body"] is False
    assert heard == [LEFT]


# what is refused on its way


@pytest.mark.parametrize(
    ("pieces", "status", "code", "param"),
    [
        pytest.param([FILE, b"RIFF", b"WAVE"], 400, "invalid_form", None, id="no-end"),
        pytest.param([FILE, b"RIFF\r\n--client", b"-"], 400, "invalid_form", None, id="half-an-end"),
        pytest.param([FILE, b"\r\n--client\r\nX\r\n", b""], 400, "invalid_form", None, id="bad-header"),
        pytest.param(behind_a_file("model", "org/qwen3"), 404, "model_not_found", "model", id="another-model"),
        pytest.param(behind_a_file("model", ""), 404, "model_not_found", "model", id="empty-model"),
        pytest.param(behind_a_file("n", "many"), 400, "invalid_value", "n", id="n"),
        pytest.param(behind_a_file("Stream", "true"), 400, "invalid_value", "Stream", id="another-case"),
        pytest.param([FILE, b"0" * 2000, b"0" * 2000, b"0" * 2000], 413, "request_too_large", None, id="too-large"),
        pytest.param([FILE, END + b"0" * 2000, b"0" * 4000], 413, "request_too_large", None, id="endless-epilogue"),
    ],
)
@pytest.mark.parametrize(
    "app",
    [
        pytest.param(lambda: Reading(), id="silent"),
        pytest.param(lambda: Reading(*json_answer(b'{"detail": "ClientDisconnect"}', 500)), id="complaining"),
        pytest.param(lambda: Reading(start(200), piece(b"half"), raises=OSError("gone")), id="raising"),
    ],
)
async def test_body_that_is_refused_is_broken_off_and_the_client_told(
    app: Any, pieces: list[bytes], status: int, code: str, param: str | None
) -> None:
    inner = app()

    answer = await upload(tiered(inner, max_body_bytes=5000), pieces)

    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"], answer.complete) == (status, code, param, True)
    assert answer.exception is None
    assert inner.read[-1] == LEFT
    assert all(message["more_body"] for message in inner.read[:-1])
    assert b"RIFF" in inner.body or b"0000" in inner.body or b'filename="a.wav"' in inner.body
    assert inner.context.refusal == code


async def test_octets_over_the_limit_are_broken_off() -> None:
    app = Reading()

    answer = await upload(tiered(app, max_body_bytes=7), [b"1234", b"567", b"8"], OCTETS)

    assert (answer.status, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert app.body == b"1234567"
    assert app.read[-1] == LEFT


async def test_octets_at_the_limit_pass() -> None:
    app = Reading(*DONE)

    answer = await upload(tiered(app, max_body_bytes=7), [b"1234", b"567"], OCTETS, ("content-length", "7"))

    assert (answer.status, app.body) == (200, b"1234567")


@pytest.mark.parametrize("length", ["101", "9" * 5000], ids=["101", "5000-digits"])
@pytest.mark.parametrize("content_type", [MULTIPART, OCTETS])
async def test_body_that_says_that_it_is_too_large_is_not_even_read(content_type: str, length: str) -> None:
    app = Answering(*DONE)
    with anyio.fail_after(5):
        headers = [AS_ALICE, ("content-type", content_type), ("content-length", length)]
        scope = http_scope("POST", PATH, headers=headers)
        client = Client()
        await tiered(app, max_body_bytes=100)(scope, client._receive, client._send)

    assert client.answer[0]["status"] == 413
    assert app.scopes == []


@pytest.mark.parametrize(("content_type", "first"), [(MULTIPART, FILE), (OCTETS, b"x")])
async def test_body_that_does_not_come_in_time_is_broken_off(content_type: str, first: bytes) -> None:
    app = Reading()
    client = Client(request_piece(first))

    await client.ask(tiered(app, body_timeout=0.01), content_type)

    assert client.answer[0]["status"] == 408
    assert b'"code":"request_timeout"' in client.answer[1]["body"]
    assert app.read[-1] == LEFT


async def test_fields_that_do_not_come_in_time_reach_nobody() -> None:
    app = Answering(*DONE)
    client = Client(request_piece(field("language", "de")))

    await client.ask(tiered(app, body_timeout=0.01))

    assert client.answer[0]["status"] == 408
    assert app.scopes == []


async def test_time_that_the_app_takes_to_read_is_not_the_clients() -> None:
    app = Reading(*DONE)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(0.3):  # longer than the client may take
            await anyio.sleep_forever()
        await app(scope, receive, send)

    answer = await upload(tiered(slow, body_timeout=0.2), [FILE, b"RIFF", END])

    assert answer.status == 200


async def test_waits_for_all_pieces_together_count() -> None:
    app = Reading()
    client = Client(request_piece(FILE))

    async def delayed(scope: Scope, receive: Receive, send: Send) -> None:
        waits = 0

        async def delayed_receive() -> Message:
            nonlocal waits
            with anyio.move_on_after(0.06):
                await anyio.Event().wait()
            waits += 1
            return request_piece(b"" if client.pending else b"x")

        with anyio.fail_after(5):
            await tiered(app, body_timeout=0.2)(scope, delayed_receive, send)
        assert waits < 5

    client_scope = http_scope("POST", PATH, headers=[AS_ALICE, ("content-type", OCTETS)])
    await delayed(client_scope, client._receive, client._send)

    assert client.answer[0]["status"] == 408


async def test_stream_in_a_tier_without_streams_is_refused_where_it_is_read() -> None:
    app = Reading()
    resolver = GroupTierResolver([Tier("free", groups=("free-users",), features=["audio"])])

    answer = await upload(tiered(app, resolver=resolver), behind_a_file("stream", "true"))

    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (403, "feature_not_available")
    assert error["details"] == {"feature": "streaming", "tier": "free"}
    assert b"RIFF" in app.body
    assert b'name="stream"' not in app.body
    assert app.read[-1] == LEFT


@pytest.mark.parametrize(
    "pieces", [[field("model", "org/qwen3") + FILE], [field("model", "simulator"), field("model", "simulator") + FILE]]
)
async def test_what_is_wrong_before_the_first_file_reaches_nobody(pieces: list[bytes]) -> None:
    app = Answering(*DONE)

    answer = await upload(tiered(app), [*pieces, b"RIFF" + END])

    assert answer.status in (400, 404)
    assert app.scopes == []


async def test_form_calls_the_model_of_the_path_by_its_alias() -> None:
    app = Reading(*DONE)
    catalogue = Catalogue([Model("simulator", aliases=("whisper-1",), upstream_model="/models/w")])

    answer = await upload(tiered(app, catalogue=catalogue), behind_a_file("model", "whisper-1"))

    assert answer.status == 200
    assert b'name="model"\r\n\r\n/models/w\r\n' in app.body
    assert b"whisper-1" not in app.body


async def test_what_an_app_raises_of_a_good_body_is_its_own() -> None:
    app = Reading(raises=ZeroDivisionError())

    answer = await upload(tiered(app), [FILE, END])

    assert isinstance(answer.exception, ZeroDivisionError)
    assert answer.messages == []


@pytest.mark.parametrize("pieces", [[FILE, b"RIFF"], [field("language", "de")]], ids=["in-a-file", "in-the-fields"])
async def test_client_that_leaves_gets_no_answer(pieces: list[bytes]) -> None:
    app = Reading()

    answer = await upload(tiered(app), pieces, leave_while_sending=True)

    assert (answer.messages, answer.exception) == ([], None)
    assert app.read[-1:] in ([], [LEFT])
    assert app.context.refusal is None


async def test_app_that_goes_on_reading_hears_the_same() -> None:
    app = Reading()
    again: list[Message] = []

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        again.extend([await receive(), await receive()])

    answer = await upload(tiered(stubborn), behind_a_file("n", "many"))

    assert answer.status == 400
    assert again == [LEFT, LEFT]


async def transcribe(request: Request) -> Response:
    async with request.form() as form:
        return JSONResponse({"fields": sorted(form)})


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "behind-common-middleware"])
async def test_app_of_a_framework_is_refused_for_the_same_reason(wrapped: bool) -> None:
    app: ASGIApp = Starlette(routes=[Route("/v1/audio/transcriptions", transcribe, methods=["POST"])])
    shell = tiered(PassingOn(app) if wrapped else app)

    good = await upload(shell, behind_a_file("language", "de"))
    bad = await upload(shell, behind_a_file("n", "many"))

    assert good.json() == {"fields": ["file", "language", "model"]}
    assert (bad.status, bad.json()["error"]["param"], bad.exception) == (400, "n", None)


# answers that begin before the body is over


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param([b"\r\n" + field("n", "many") + END[2:]], id="bad-field"),
        pytest.param([b"0" * 9000, b"1", b"2"], id="too-large"),
        pytest.param([END], id="good"),
    ],
)
async def test_answer_that_has_begun_is_not_touched_by_the_rest_of_the_body(rest: list[bytes]) -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start(200))
        await send(piece(b"early "))
        async with anyio.create_task_group() as group:
            group.start_soon(listen, receive)
            await anyio.wait_all_tasks_blocked()
            await send(last(b"answer"))
            group.cancel_scope.cancel()

    async def listen(receive: Receive) -> None:
        while True:
            heard.append(await receive())

    client = Client(request_piece(FILE), *map(request_piece, rest))
    await client.ask(tiered(app, max_body_bytes=5000))

    assert [message.get("body") for message in client.answer] == [None, b"early ", b"answer"]
    assert client.pending == []
    assert LEFT not in heard
    assert all(message["more_body"] for message in heard)


async def test_body_that_comes_too_late_for_an_answer_that_has_begun_is_only_waited_for() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start(200))
        with anyio.move_on_after(0.1):
            await receive()
            raise AssertionError("there was nothing to hear")
        await send(last(b"answer"))

    client = Client(request_piece(FILE))
    await client.ask(tiered(app, body_timeout=0.01))

    assert client.answer == [start(200), last(b"answer")]


async def test_client_that_leaves_an_answer_that_has_begun_is_heard() -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start(200))
        client.left.set()
        heard.append(await receive())

    client = Client(request_piece(FILE), request_piece(b"\r\n" + field("n", "many") + END[2:]))
    await client.ask(tiered(app))

    assert heard == [LEFT]


async def test_app_that_answers_first_and_reads_later_never_reads_a_bad_form_to_its_end() -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start(200))
        for _ in range(2):
            with anyio.move_on_after(0.01):
                heard.append(await receive())
        client.left.set()
        heard.append(await receive())

    client = Client(request_piece(FILE), {"type": "http.request", "body": b"cut"})
    await client.ask(tiered(app))

    assert heard == [LEFT]


# what it is taken for


def uploading(length: int | None, content_type: str = MULTIPART, *messages: Message) -> Upload:
    client = Client(*messages)
    headers = [("content-type", content_type)]
    if length is not None:
        headers.append(("content-length", str(length)))
    scope = http_scope("POST", PATH, headers=headers)
    return Upload(scope, client._receive, CATALOGUE.models[0], LIMITLESS, limit=32_000, seconds=5)


@pytest.mark.parametrize("content_type", [MULTIPART, OCTETS])
@pytest.mark.parametrize(
    ("length", "tokens"),
    [
        pytest.param(0, 0, id="nothing"),
        pytest.param(1600, 1, id="a-token"),
        pytest.param(1601, 2, id="more"),
        pytest.param(None, 20, id="as-much-as-may-come"),
    ],
)
def test_media_is_estimated_from_the_length_that_is_told(content_type: str, length: int | None, tokens: int) -> None:
    model = 1 if content_type == MULTIPART else 0  # its name is text

    assert uploading(length, content_type).prompt_tokens == tokens + model


async def test_what_was_read_is_what_counts_in_the_end() -> None:
    body = field("prompt", "x" * 37) + FILE + b"0" * 1601 + END
    upload = uploading(None, MULTIPART, request_piece(body), {"type": "http.request"})
    assert upload.prompt_tokens == 21  # what may come, and `sim`
    estimates: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            estimates.append(upload.prompt_tokens)
            if not message["more_body"]:
                return

    assert await upload.run(app, Client()._send) is None
    assert estimates == [10 + 2, 10 + 2]  # `sim` is text too


async def test_nothing_more_is_expected_of_a_client_that_left() -> None:
    upload = uploading(None, OCTETS, request_piece(b"0" * 1601), LEFT)
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive()])

    assert await upload.run(app, Client()._send) is None
    assert heard == [request_piece(b"0" * 1601), LEFT]
    assert upload.prompt_tokens == 2


# what it costs


async def test_refused_upload_costs_nothing_and_tells_the_limits() -> None:
    tier = Tier("free", groups=("free-users",), requests=parse_limits("5/minute"), tokens=parse_limits("1000/minute"))
    ledger, resolver = MemoryLedger(), GroupTierResolver([tier])
    inner = Reading()
    shell = tiered(RateLimitMiddleware(inner, ledger=ledger), ledger=ledger, resolver=resolver)

    refused = await upload(shell, behind_a_file("n", "many"), MULTIPART, ("content-length", "1600"))
    after = await converse(shell, "HEAD", PATH, headers=[AS_ALICE])

    assert refused.status == 400
    assert refused.header("x-ratelimit-remaining-requests") == "5"
    assert after.header("x-ratelimit-remaining-requests") == "5"
    assert after.header("x-ratelimit-remaining-tokens") == "1000"
    verdict = inner.context.verdict
    assert verdict is not None
    assert verdict.tokens is not None
    assert verdict.tokens.remaining == 1000 - 2 - TRANSCRIPTION.output_tokens  # was reserved


async def test_who_is_over_a_limit_is_told_so_by_the_limit() -> None:
    tier = Tier("free", groups=("free-users",), requests=parse_limits("1/minute"))
    inner, resolver = Reading(*DONE), GroupTierResolver([tier])
    shell = tiered(RateLimitMiddleware(inner, ledger=MemoryLedger()), resolver=resolver)

    answers = [await upload(shell, [FILE, b"RIFF", END]) for _ in range(2)]

    assert [answer.status for answer in answers] == [200, 429]
