from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse
from starlette.types import Message

from maas_middleware.catalogue import Model
from maas_middleware.endpoints import CHAT_COMPLETIONS
from maas_middleware.errors import MaaSError, UpstreamError, UpstreamRefusal
from maas_middleware.middleware.usage import UsageMiddleware
from maas_middleware.usage import TokenUsage
from tests.parts import Answering, PassingOn, json_answer, last, piece, start

from .metering import DONE, JSON_ANSWER, STREAM, USAGE, USAGE_EVENT, ask, context_of, serving_model

MIB = 1 << 20


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([last(JSON_ANSWER)], id="whole"),
        pytest.param([piece(JSON_ANSWER[:9]), piece(b""), last(JSON_ANSWER[9:])], id="pieces"),
        pytest.param([piece(JSON_ANSWER), {"type": "http.response.body"}], id="empty-last-piece"),
    ],
)
@pytest.mark.parametrize(
    "content_type",
    [
        pytest.param(b"application/json", id="plain"),
        pytest.param(b"application/json; charset=utf-8", id="charset"),
        pytest.param(b"Application/JSON", id="any-case"),
    ],
)
async def test_json_answer_tells_its_usage_in_its_headers(pieces: list[Message], content_type: bytes) -> None:
    begin = start(200, (b"content-type", content_type), (b"content-length", str(len(JSON_ANSWER)).encode()))
    app = Answering(begin, *pieces)

    answer = await ask(UsageMiddleware(app))

    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.body"]
    assert answer.body == JSON_ANSWER
    assert answer.headers == [
        ("content-type", content_type.decode()),
        ("content-length", str(len(JSON_ANSWER))),
        ("x-odhu-usage-input-tokens", "5"),
        ("x-odhu-usage-output-tokens", "7"),
        ("x-odhu-usage-total-tokens", "12"),
    ]
    assert context_of(app).usage == TokenUsage(5, 7, 12)


async def test_first_of_two_types_is_the_one_that_counts() -> None:
    begin = start(200, (b"content-type", b"application/json"), (b"content-type", b"text/event-stream"))

    answer = await ask(UsageMiddleware(Answering(begin, last(JSON_ANSWER))), "/v1/embeddings")

    assert answer.header("x-odhu-usage-total-tokens") == "12"


async def test_usage_of_0_is_0_and_not_unknown() -> None:
    app = Answering(*json_answer(b'{"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}'))

    answer = await ask(UsageMiddleware(app))

    assert context_of(app).usage == TokenUsage(0, 0, 0)
    assert answer.header("x-odhu-usage-total-tokens") == "0"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{}", id="none"),
        pytest.param(b'{"usage":null}', id="null"),
        pytest.param(b"null", id="no-object"),
        pytest.param(b'{"usage":3}', id="of-another-type"),
    ],
)
async def test_json_answer_without_usage_tells_none(body: bytes) -> None:
    app = Answering(*json_answer(body))

    answer = await ask(UsageMiddleware(app))

    assert answer.messages == json_answer(body)
    assert context_of(app).usage is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"usage":', id="truncated"),
        pytest.param(b"<html>\xff", id="no-json"),
        pytest.param(b'{"model":"\xff"}', id="no-utf-8"),
        pytest.param(b'{"model":"\xff","usage":' + USAGE + b"}", id="no-utf-8-with-usage"),
        pytest.param(b'{"usage":' + USAGE + b"}}", id="too-long-with-usage"),
    ],
)
@pytest.mark.parametrize("path", [CHAT_COMPLETIONS, "/v1/embeddings"])
async def test_json_answer_that_cannot_be_read_is_no_answer(body: bytes, path: str) -> None:
    answer = await ask(UsageMiddleware(Answering(*json_answer(body))), path)

    assert answer.messages == []
    assert isinstance(answer.exception, UpstreamError)


JSON_ONLY = [
    *(CHAT_COMPLETIONS, "/v1/completions", "/v1/messages", "/v1/responses", "/v1/rerank", "/score"),
    "/v1/images/generations",
]
TYPES = [
    pytest.param([], id="no-type"),
    *(
        pytest.param([(b"content-type", kind)], id=kind.decode())
        for kind in (b"text/plain", b"text/html", b"text/json", b"application/octet-stream")
    ),
]


@pytest.mark.parametrize("headers", TYPES)
@pytest.mark.parametrize("path", JSON_ONLY)
async def test_json_is_read_whatever_its_type_says_where_nothing_else_may_come(
    path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    app = Answering(start(200, *headers), piece(JSON_ANSWER[:9]), last(JSON_ANSWER[9:]))

    answer = await ask(UsageMiddleware(app), path)

    assert answer.body == JSON_ANSWER
    assert answer.header("x-odhu-usage-total-tokens") == "12"
    assert context_of(app).usage == TokenUsage(5, 7, 12)


@pytest.mark.parametrize("headers", TYPES)
@pytest.mark.parametrize("path", JSON_ONLY)
async def test_what_is_no_json_is_no_answer_where_nothing_else_may_come(
    path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    for body in (b"<html>502 of nginx</html>", b"", b"hello"):
        answer = await ask(UsageMiddleware(Answering(start(200, *headers), last(body))), path)

        assert answer.messages == []
        assert isinstance(answer.exception, UpstreamError)


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/pooling", "/v1/audio/speech", "/v1/audio/transcriptions", "/tokenize"]
)
async def test_other_answers_may_be_of_any_type(path: str) -> None:
    messages = [start(200, (b"content-type", b"application/octet-stream")), piece(b"RI"), last(b"FF")]

    assert (await ask(UsageMiddleware(Answering(*messages)), path)).messages == messages


@pytest.mark.parametrize("content_type", [b"application/json", b"text/event-stream"])
async def test_answer_without_content_is_one_only_where_it_need_not_be_json(content_type: bytes) -> None:
    messages = [start(204, (b"content-type", content_type)), last()]

    empty = await ask(UsageMiddleware(Answering(*messages)), "/v1/embeddings")
    missing = await ask(UsageMiddleware(Answering(*messages)))

    assert empty.messages == messages
    assert missing.messages == []
    assert isinstance(missing.exception, UpstreamError)


async def test_usage_that_an_inner_gateway_tells_is_replaced_by_ours() -> None:
    begin = start(200, (b"content-type", b"application/json"), (b"X-ODHU-Usage-Total-Tokens", b"1"))

    answer = await ask(UsageMiddleware(Answering(begin, last(JSON_ANSWER))))

    assert answer.header("x-odhu-usage-total-tokens") == "12"


async def test_response_that_an_app_reuses_does_not_grow() -> None:
    response = JSONResponse(json.loads(JSON_ANSWER))
    before = list(response.raw_headers)

    answers = [await ask(UsageMiddleware(response)) for _ in range(3)]

    assert response.raw_headers == before
    assert answers[0].messages == answers[1].messages == answers[2].messages


def large_json(size: int) -> bytes:
    head, tail = b'{"choices":"', b'","usage":' + USAGE + b"}"
    return head + b"a" * (size - len(head) - len(tail)) + tail


async def test_json_answer_over_4_mib_streams_through_and_is_metered_all_the_same() -> None:
    body = large_json(5 * MIB)
    pieces = [piece(body[at : at + MIB]) for at in range(0, len(body), MIB)]
    begin = start(200, (b"content-type", b"application/json"))
    app = Answering(begin, *pieces, last())

    answer = await ask(UsageMiddleware(app))

    assert answer.messages == [begin, *pieces, last()]
    assert context_of(app).usage == TokenUsage(5, 7, 12)


@pytest.mark.parametrize("begins", [b"{", b"[", b" \r\n\t{"])
async def test_answer_over_4_mib_that_begins_as_json_streams_through_whatever_its_type_says(begins: bytes) -> None:
    body = large_json(5 * MIB)
    pieces = [piece(b""), piece(begins[:1]), piece(begins[1:]), piece(body[1:]), last()]
    app = Answering(start(200), *pieces)

    answer = await ask(UsageMiddleware(app))

    assert answer.messages == [start(200), *pieces]
    assert context_of(app).usage == TokenUsage(5, 7, 12)


@pytest.mark.parametrize("begins", [b"<html>", b'"', b"7", b" ", b"\xff{"])
@pytest.mark.parametrize("headers", [[], [(b"content-type", b"application/json")]], ids=["no-type", "json"])
async def test_answer_over_4_mib_that_begins_otherwise_is_no_answer(
    headers: list[tuple[bytes, bytes]], begins: bytes
) -> None:
    app = Answering(start(200, *headers), piece(begins), piece(b" " * (4 * MIB)), last(b"{}"))

    answer = await ask(UsageMiddleware(app))

    assert answer.messages == []
    assert isinstance(answer.exception, UpstreamError)


async def test_answer_over_4_mib_may_begin_as_it_likes_where_other_types_may_come() -> None:
    messages = [start(200, (b"content-type", b"application/json")), piece(b"<html>"), piece(b" " * 4 * MIB), last()]

    assert (await ask(UsageMiddleware(Answering(*messages)), "/v1/embeddings")).messages == messages


async def test_json_answer_over_4_mib_leaves_before_its_end_is_there() -> None:
    body = large_json(5 * MIB)
    app = Answering(start(200, (b"content-type", b"application/json")), piece(body[:-1]), raises=ZeroDivisionError())

    answer = await ask(UsageMiddleware(app))

    assert (answer.body, answer.complete) == (body[:-1], False)
    assert context_of(app).usage is None


async def test_json_answer_of_exactly_4_mib_is_held() -> None:
    body = large_json(4 * MIB)
    app = Answering(start(200, (b"content-type", b"application/json")), piece(body), last())

    answer = await ask(UsageMiddleware(app))

    assert answer.body == body
    assert answer.header("x-odhu-usage-total-tokens") == "12"


async def test_app_with_gzip_inside_is_metered() -> None:
    app = Answering(*json_answer(large_json(9000)))

    answer = await ask(UsageMiddleware(GZipMiddleware(app)), headers=[("accept-encoding", "gzip")])

    assert answer.body == large_json(9000)
    assert context_of(app).usage == TokenUsage(5, 7, 12)


async def test_app_with_base_http_middleware_inside_is_metered() -> None:
    app = Answering(*json_answer(JSON_ANSWER))

    answer = await ask(UsageMiddleware(PassingOn(app)))

    assert (answer.body, answer.header("x-odhu-usage-total-tokens")) == (JSON_ANSWER, "12")


async def test_failure_behind_the_start_of_a_json_answer_has_sent_nothing_yet() -> None:
    begin = start(200, (b"content-type", b"application/json"))

    answer = await ask(UsageMiddleware(Answering(begin, piece(b'{"a"'), raises=ZeroDivisionError())))

    assert answer.messages == []
    assert isinstance(answer.exception, ZeroDivisionError)


OFFERED: dict[str, Any] = {
    "extensions": {"http.response.early_hint": {}, "http.response.trailers": {}, "http.response.pathsend": {}}
}


async def test_json_answer_that_the_server_sends_from_a_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_bytes(JSON_ANSWER)

    described = start(200, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(JSON_ANSWER)))
    file: Message = {"type": "http.response.pathsend", "path": str(path)}

    answer = await ask(UsageMiddleware(Answering(described, file)), scope=OFFERED)

    assert answer.messages == [described, file]


HINT: Message = {"type": "http.response.early_hint", "links": []}


async def test_message_in_the_middle_of_a_json_answer_keeps_its_place() -> None:
    messages = [start(200, (b"content-type", b"application/json")), piece(JSON_ANSWER[:9]), HINT, last(JSON_ANSWER[9:])]
    app = Answering(*messages)

    answer = await ask(UsageMiddleware(app), scope=OFFERED)

    assert answer.messages == messages
    assert context_of(app).usage == TokenUsage(5, 7, 12)


SIMULATOR = Model("org/simulator", upstream_model="sim-7b", audio_tokens_per_second=10)


@pytest.mark.parametrize(
    ("path", "body", "usage"),
    [
        pytest.param(
            "/v1/embeddings", b'{"data":[],"usage":{"prompt_tokens":5,"total_tokens":5}}', (5, 0, 5), id="vllm"
        ),
        pytest.param("/v1/rerank", b'{"results":[],"usage":{"total_tokens":6}}', (0, 0, 6), id="rerank"),
        pytest.param("/v1/score", b'{"data":[],"usage":{"prompt_tokens":6,"total_tokens":6}}', (6, 0, 6), id="score"),
        pytest.param(
            "/v1/responses",
            b'{"error":null,"output":[],"usage":{"input_tokens":5,"output_tokens":7,"total_tokens":12}}',
            (5, 7, 12),
            id="responses",
        ),
        pytest.param(
            "/v1/messages",
            b'{"type":"message","content":[{"type":"tool_use","input":{"usage":{"input_tokens":1}}}],"usage":'
            b'{"input_tokens":5,"cache_creation_input_tokens":3,"cache_read_input_tokens":100,"output_tokens":7}}',
            (108, 7, 115),
            id="messages-with-caches",
        ),
        pytest.param(
            "/v1/audio/transcriptions",
            b'{"text":"a","usage":{"type":"tokens","input_tokens":14,"output_tokens":4,"total_tokens":18}}',
            (14, 4, 18),
            id="audio-in-tokens",
        ),
        pytest.param(
            "/v1/audio/translations",
            b'{"text":"a","usage":{"type":"duration","seconds":3}}',
            (30, 0, 30),
            id="audio-in-seconds",
        ),
        pytest.param(
            "/v1/images/generations",
            b'{"created":1,"data":[{"b64_json":"aQ=="}],"usage":{"input_tokens":5,"output_tokens":272,'
            b'"total_tokens":277,"input_tokens_details":{"text_tokens":5,"image_tokens":0}}}',
            (5, 272, 277),
            id="images",
        ),
    ],
)
async def test_json_answer_of_every_dialect_is_metered(path: str, body: bytes, usage: tuple[int, int, int]) -> None:
    app = Answering(*json_answer(body))

    answer = await ask(serving_model(UsageMiddleware(app), SIMULATOR), path)

    names = ("input", "output", "total")
    assert answer.body == body
    assert context_of(app).usage == TokenUsage(*usage)
    assert [answer.header(f"x-odhu-usage-{name}-tokens") for name in names] == [str(count) for count in usage]


async def test_large_answer_in_seconds_is_metered_too() -> None:
    body = b'{"text":"' + b"a" * (5 * MIB) + b'","usage":{"type":"duration","seconds":3}}'
    app = Answering(start(200, (b"content-type", b"application/json")), piece(body), last())

    await ask(serving_model(UsageMiddleware(app), SIMULATOR), "/v1/audio/transcriptions")

    assert context_of(app).usage == TokenUsage(30, 0, 30)


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        pytest.param(
            b'{"error":{"message":"dead","code":500}}', UpstreamError, "The model failed to answer", id="openai"
        ),
        pytest.param(
            b'{"type":"error","error":{"type":"overloaded_error"}}',
            UpstreamError,
            "The model failed to answer",
            id="anthropic",
        ),
        pytest.param(
            b'{"status":"failed","error":{"code":"server_error"},"usage":null}',
            UpstreamError,
            "The model failed to answer",
            id="responses",
        ),
        pytest.param(b'{"error":{"message":"Too long","code":400}}', UpstreamRefusal, "Too long", id="refusal"),
        pytest.param(
            b'{"response":{"error":{"message":"Half of 10.128.4.7"}}}',
            UpstreamError,
            "The model failed to answer",
            id="inner-that-tells-too-much",
        ),
    ],
)
@pytest.mark.parametrize("path", [CHAT_COMPLETIONS, "/v1/embeddings"])
async def test_error_inside_a_success_is_raised_where_nothing_was_used(
    path: str, body: bytes, kind: type[MaaSError], message: str
) -> None:
    app = Answering(*json_answer(body))

    answer = await ask(UsageMiddleware(app), path)

    assert answer.messages == []
    assert isinstance(answer.exception, kind)
    assert answer.exception.message == message
    assert context_of(app).reported_failure


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"error":null,"choices":[]}', id="null"),
        pytest.param(b'{"error":{"message":"no"},"usage":' + USAGE + b"}", id="with-usage"),
    ],
)
async def test_error_beside_an_answer_passes(body: bytes) -> None:
    app = Answering(*json_answer(body))

    answer = await ask(UsageMiddleware(app))

    assert answer.body == body
    assert not context_of(app).reported_failure


NAMED = b'{"model":"sim-7b","choices":[{"message":{"content":"{\\"model\\": \\"sim-7b\\"}"}}]}'


@pytest.mark.parametrize(
    ("body", "renamed"),
    [
        pytest.param(NAMED, NAMED.replace(b'"sim-7b",', b'"org/simulator",'), id="top"),
        pytest.param(b'{"response":{"model":"sim-7b"}}', b'{"response":{"model":"org/simulator"}}', id="response"),
        pytest.param(b'{"message":{"model":"sim-7b"}}', b'{"message":{"model":"org/simulator"}}', id="message"),
    ],
)
async def test_json_answer_calls_the_model_by_its_id(body: bytes, renamed: bytes) -> None:
    begin = start(
        200,
        *[(b"content-type", b"application/json"), (b"Content-Length", b"%d" % len(body)), (b"ETag", b"1")],
        *[(b"content-digest", b"sha-256=:a=:"), (b"x-other", b"kept")],
    )
    app = Answering(begin, piece(body[:20]), last(body[20:]))

    answer = await ask(serving_model(UsageMiddleware(app), SIMULATOR))

    assert answer.body == renamed
    assert answer.headers == [
        ("content-type", "application/json"),
        ("x-other", "kept"),
        ("content-length", str(len(renamed))),
    ]


async def test_json_answer_without_a_name_to_change_keeps_the_headers_that_describe_its_bytes() -> None:
    body = b'{"model":"another","text":"sim-7b"}'
    described = [(b"content-length", b"%d" % len(body)), (b"etag", b"1"), (b"content-type", b"application/json")]
    messages = [start(200, *described), last(body)]

    answer = await ask(serving_model(UsageMiddleware(Answering(*messages)), SIMULATOR))

    assert answer.messages == messages


METADATA = b'{"id":"embd-1","model":"sim-7b","data":[{"index":0}],"usage":{"prompt_tokens":5,"total_tokens":5}}'


@pytest.mark.parametrize(
    ("metadata", "passed", "usage"),
    [
        pytest.param(METADATA, METADATA.replace(b"sim-7b", b"org/simulator"), TokenUsage(5, 0, 5), id="vllm"),
        pytest.param(b'{"usage":null}', b'{"usage":null}', None, id="null"),
        pytest.param(b"no json", b"no json", None, id="no-json"),
    ],
)
async def test_usage_of_embeddings_that_are_no_json_is_in_a_header(
    metadata: bytes, passed: bytes, usage: TokenUsage | None
) -> None:
    octets = [(b"content-type", b"application/octet-stream"), (b"content-length", b"4")]
    app = Answering(start(200, *octets, (b"Metadata", metadata)), piece(b"\x00\x01"), last(b"\xfe\xff"))

    answer = await ask(serving_model(UsageMiddleware(app), SIMULATOR), "/v1/embeddings")

    assert answer.messages == [
        start(200, *octets, (b"metadata", passed)),
        piece(b"\x00\x01"),
        last(b"\xfe\xff"),
    ]
    assert context_of(app).usage == usage


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param(b"application/json", NAMED, id="json"),
        pytest.param(b"text/event-stream", b"data: " + NAMED + b"\n\n" + USAGE_EVENT + DONE, id="stream"),
    ],
)
@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP", b"br", b"identity, gzip"])
async def test_answer_that_is_compressed_though_nobody_asked_passes_unread(
    content_type: bytes, body: bytes, encoding: bytes
) -> None:
    compressed = gzip.compress(body)
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(compressed)), (b"etag", b"1")]
    messages = [start(200, *headers, (b"content-encoding", encoding)), piece(compressed[:9]), last(compressed[9:])]
    app = Answering(*messages)

    answer = await ask(serving_model(UsageMiddleware(app), SIMULATOR), json=STREAM)

    context = context_of(app)
    assert answer.messages == messages
    assert (context.usage, context.produced, context.reported_failure) == (None, 0, False)
