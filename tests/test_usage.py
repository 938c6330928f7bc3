from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest

from maas_middleware.usage import JSONScanner, TokenUsage, is_json, read_usage, usage_headers

# TokenUsage, read_usage


def test_usage_cannot_be_changed() -> None:
    usage = TokenUsage(5, 7, 12)

    with pytest.raises(AttributeError):
        usage.total = 0  # type: ignore[misc]  # which is what is tested


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param('{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}', TokenUsage(5, 7, 12), id="chat"),
        pytest.param(
            '{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":8,'
            '"audio_tokens":3},"completion_tokens_details":{"reasoning_tokens":1,"audio_tokens":1}}',
            TokenUsage(9, 1, 10),
            id="details-are-included-already",
        ),
        pytest.param(
            '{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10,"cache_read_input_tokens":8,'
            '"cache_creation_input_tokens":1}',
            TokenUsage(9, 1, 10),
            id="caches-of-a-chat-are-included-already",
        ),
        pytest.param('{"prompt_tokens":5,"total_tokens":5}', TokenUsage(5, 0, 5), id="embeddings"),
        pytest.param('{"prompt_tokens":5,"total_tokens":5,"completion_tokens":0}', TokenUsage(5, 0, 5), id="vllm"),
        pytest.param('{"prompt_tokens":6,"total_tokens":6}', TokenUsage(6, 0, 6), id="rerank-and-score"),
        pytest.param('{"total_tokens":5}', TokenUsage(0, 0, 5), id="only-a-total"),
        pytest.param(
            '{"input_tokens":9,"input_tokens_details":{"cached_tokens":8},"output_tokens":4,'
            '"output_tokens_details":{"reasoning_tokens":3},"total_tokens":13}',
            TokenUsage(9, 4, 13),
            id="responses",
        ),
        pytest.param('{"input_tokens":9,"output_tokens":4}', TokenUsage(9, 4, 13), id="messages"),
        pytest.param(
            '{"input_tokens":9,"cache_creation_input_tokens":5,"cache_read_input_tokens":100,"output_tokens":4,'
            '"cache_creation":{"ephemeral_5m_input_tokens":5},"server_tool_use":{"web_search_requests":1}}',
            TokenUsage(114, 4, 118),
            id="messages-with-caches",
        ),
        pytest.param(
            '{"input_tokens":9,"cache_creation_input_tokens":null,"cache_read_input_tokens":0,"output_tokens":4}',
            TokenUsage(9, 4, 13),
            id="messages-without-caches",
        ),
        pytest.param('{"output_tokens":4}', TokenUsage(0, 4, 4), id="message-delta"),
        pytest.param(
            '{"type":"tokens","input_tokens":14,"input_token_details":{"text_tokens":0,"audio_tokens":14},'
            '"output_tokens":45,"total_tokens":59}',
            TokenUsage(14, 45, 59),
            id="transcription",
        ),
        pytest.param(
            '{"input_tokens":50,"input_tokens_details":{"text_tokens":10,"image_tokens":40},"output_tokens":272,'
            '"total_tokens":322}',
            TokenUsage(50, 272, 322),
            id="images",
        ),
        pytest.param('{"prompt_tokens":5,"completion_tokens":7}', TokenUsage(5, 7, 12), id="total-is-the-sum"),
        pytest.param(
            '{"prompt_tokens":5,"completion_tokens":null,"total_tokens":null}',
            TokenUsage(5, 0, 5),
            id="null-is-unknown",
        ),
        pytest.param(
            '{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}', TokenUsage(0, 0, 0), id="zero-is-zero"
        ),
        pytest.param('{"prompt_tokens":1099511627776}', TokenUsage(1 << 40, 0, 1 << 40), id="as-many-as-are-believed"),
    ],
)
def test_usage_is_what_the_model_counted(usage: str, expected: TokenUsage) -> None:
    plain = f'{{"id":"1","choices":[],"usage":{usage}}}'
    response = f'{{"type":"response.completed","response":{{"error":null,"usage":{usage}}},"sequence_number":9}}'
    message = f'{{"type":"message_start","message":{{"content":[],"usage":{usage}}}}}'
    spaced = json.dumps(json.loads(plain), indent=2)

    assert [read_usage(answer.encode()) for answer in (plain, response, message, spaced)] == [expected] * 4


@pytest.mark.parametrize("value", ["-1", "1099511627777", "1" + "0" * 30, "5.5", "5.0", "1e3", "1e400", '"5"', "true"])
@pytest.mark.parametrize(
    "field",
    [
        *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"),
        *("cache_creation_input_tokens", "cache_read_input_tokens"),
    ],
)
def test_usage_with_a_number_that_makes_no_sense_is_unknown(field: str, value: str) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12, "input_tokens": 5, "output_tokens": 7}
    fields = {name: str(count) for name, count in usage.items()} | {field: value}

    text = ",".join(f'"{name}":{count}' for name, count in fields.items())

    assert read_usage(f'{{"usage":{{{text}}}}}'.encode()) is None


@pytest.mark.parametrize(
    "usage",
    [
        '{"prompt_tokens":1099511627776,"completion_tokens":1}',
        '{"input_tokens":1,"cache_read_input_tokens":1099511627776,"total_tokens":2}',
    ],
)
def test_sum_that_makes_no_sense_is_unknown(usage: str) -> None:
    assert read_usage(f'{{"usage":{usage}}}'.encode()) is None


@pytest.mark.parametrize(
    ("usage", "rate", "expected"),
    [
        pytest.param('{"type":"duration","seconds":3}', 10, TokenUsage(30, 0, 30), id="whole"),
        pytest.param('{"type":"duration","seconds":2.01}', 10, TokenUsage(21, 0, 21), id="rounded-up"),
        pytest.param('{"type":"duration","seconds":0}', 10, TokenUsage(0, 0, 0), id="nothing-to-hear"),
        pytest.param('{"type":"duration","seconds":3}', 0, TokenUsage(0, 0, 0), id="free"),
        pytest.param('{"seconds":3,"input_tokens":7,"output_tokens":1}', 10, TokenUsage(7, 1, 8), id="beside-tokens"),
        pytest.param('{"seconds":3,"total_tokens":7}', 10, TokenUsage(0, 0, 7), id="beside-a-total"),
        pytest.param('{"type":"duration","seconds":null}', 10, None, id="null"),
        pytest.param('{"type":"duration","seconds":-1}', 10, None, id="negative"),
        pytest.param('{"type":"duration","seconds":1e308}', 10, None, id="huge"),
        pytest.param('{"type":"duration","seconds":1e400}', 10, None, id="more-than-huge"),
        pytest.param('{"type":"duration","seconds":1099511627776}', 10, None, id="huge-once-converted"),
        pytest.param('{"type":"duration","seconds":NaN}', 10, None, id="no-number"),
        pytest.param('{"type":"duration","seconds":Infinity}', 10, None, id="infinite"),
        pytest.param('{"type":"duration","seconds":"3"}', 10, None, id="text"),
    ],
)
def test_seconds_of_audio_are_converted_where_there_are_no_tokens(
    usage: str, rate: int, expected: TokenUsage | None
) -> None:
    assert read_usage(f'{{"text":"a","usage":{usage}}}'.encode(), rate) == expected


def test_seconds_are_free_where_nobody_names_a_rate() -> None:
    assert read_usage(b'{"usage":{"seconds":3}}') == TokenUsage(0, 0, 0)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(b'{"usage":null}', id="null"),
        pytest.param(b"{}", id="absent"),
        pytest.param(b'{"usage":{}}', id="empty"),
        pytest.param(b'{"usage":{"completion_tokens":7}}', id="output-alone"),
        pytest.param(b'{"usage":[5]}', id="list"),
        pytest.param(b'{"usage":{"prompt_tokens":NaN}}', id="no-number"),
        pytest.param(b'{"choices":[{"usage":{"prompt_tokens":5,"total_tokens":5}}]}', id="not-at-the-top"),
        pytest.param(b'{"output":{"usage":{"prompt_tokens":5,"total_tokens":5}}}', id="in-another-object"),
        pytest.param(b'{"response":{"response":{"usage":{"prompt_tokens":5}}}}', id="too-far-inside"),
        pytest.param(b'{"response":null,"message":null}', id="null-inside"),
        pytest.param(b'{"response":{"usage":null}}', id="null-far-inside"),
        pytest.param(b'{"message":"usage"}', id="text-inside"),
        pytest.param(b'[{"usage":{"prompt_tokens":5,"total_tokens":5}}]', id="not-an-object"),
        pytest.param(b'{"usage":{"prompt_tokens":5', id="truncated"),
        pytest.param(b'{"usage":{"prompt_tokens":5}', id="truncated-behind-it"),
        pytest.param(b'{"usage":{"prompt_tokens":5}}}', id="too-long"),
        pytest.param(b"null", id="null-body-of-a-client-that-left"),
        pytest.param(b"", id="no-body"),
        pytest.param(b"[DONE]", id="end-of-stream"),
        pytest.param(b"<html>", id="html"),
        pytest.param(b'{"\xff":1}', id="not-utf-8"),
        pytest.param(gzip.compress(b'{"usage":{"prompt_tokens":5}}', mtime=0), id="gzip"),
        pytest.param(b'{"a":' + b"[" * 100_000, id="deeply-nested"),
        pytest.param(
            b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b',"usage":{"prompt_tokens":5}}', id="deep-and-whole"
        ),
    ],
)
def test_answer_that_tells_no_usage_has_none(document: bytes) -> None:
    assert read_usage(document, 10) is None


@pytest.mark.parametrize("other", ['"Success"', "[]", "7", "{}", "null", '{"usage":{"prompt_tokens":1}}'])
@pytest.mark.parametrize("name", ["response", "message"])
def test_usage_at_the_top_is_that_of_the_answer_whatever_else_there_is(name: str, other: str) -> None:
    answer = f'{{"code":0,"{name}":{other},"usage":{{"prompt_tokens":5,"total_tokens":5}}}}'

    assert read_usage(answer.encode()) == TokenUsage(5, 0, 5)


def test_usages_complete_each_other() -> None:
    assert TokenUsage(9, 1, 10).completed_by(TokenUsage(0, 7, 7)) == TokenUsage(9, 7, 16)
    assert TokenUsage(0, 7, 7).completed_by(TokenUsage(9, 1, 10)) == TokenUsage(9, 7, 16)


def test_usage_headers_name_input_output_and_total() -> None:
    assert usage_headers(TokenUsage(5, 0, 12)) == [
        (b"x-odhu-usage-input-tokens", b"5"),
        (b"x-odhu-usage-output-tokens", b"0"),
        (b"x-odhu-usage-total-tokens", b"12"),
    ]


# is_json


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(b"{}", True, id="object"),
        pytest.param(b' {"a": [1, "\xc3\xbc"]}\n', True, id="with-spaces"),
        pytest.param(b'{"usage":3}', True, id="of-another-shape"),
        pytest.param(b'[{"index":0}]', True, id="list"),
        pytest.param(b"null", True, id="null"),
        pytest.param(b'{"usage":3,"a":', False, id="of-another-shape-and-truncated"),
        pytest.param(b'[{"index":0},', False, id="truncated-list"),
        pytest.param(b'{"a":1} {"b":2}', False, id="two"),
        pytest.param(b'{"a":NaN}', False, id="no-number"),
        pytest.param(b'{"a":"\xff"}', False, id="not-utf-8"),
        pytest.param(b'{"\xff":1}', False, id="not-utf-8-in-a-name"),
        pytest.param(b"<html>", False, id="html"),
        pytest.param(b"", False, id="empty"),
        pytest.param(b"[" * 100_000, False, id="deeply-nested"),
    ],
)
def test_answer_that_is_json_is_told_from_one_that_is_none(document: bytes, expected: bool) -> None:
    assert is_json(document) is expected


# JSONScanner

_USAGE = {"prompt_tokens": 5, "completion_tokens": 4096, "prompt_tokens_details": {"cached_tokens": 2}}


def large_answer(content: str, **more: object) -> bytes:
    choices = [{"index": 0, "message": {"role": "assistant", "content": content}}]
    return json.dumps({"id": "chatcmpl-1", "choices": choices, "usage": _USAGE, **more}).encode()


def test_usage_of_an_answer_larger_than_the_tail_is_found_wherever_it_is_cut() -> None:
    answer = large_answer("x" * 20_000, system_fingerprint=None)

    for cut in range(len(answer) + 1):
        scanner = JSONScanner()
        scanner.feed(answer[:cut])
        scanner.feed(answer[cut:])
        assert scanner.usage == TokenUsage(5, 4096, 4101), cut


def test_usage_of_a_large_answer_is_the_last_one() -> None:
    scanner = JSONScanner()

    scanner.feed(b'{"content":[{"type":"tool_use","input":{"usage":{"input_tokens":1}}}],"usage":{"input_tokens":5}}')

    assert scanner.usage == TokenUsage(5, 0, 5)


def test_usage_of_a_large_answer_is_found_byte_by_byte() -> None:
    scanner = JSONScanner()

    for byte in large_answer("x" * 20_000):
        scanner.feed(bytes([byte]))

    assert scanner.usage == TokenUsage(5, 4096, 4101)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param('{"usage": {"prompt_tokens": 1, "total_tokens": 1}}', id="as-json"),
        pytest.param('\\"usage\\": {"prompt_tokens": 1, "total_tokens": 1}', id="with-backslashes"),
        pytest.param('"usage": {', id="unbalanced"),
    ],
)
def test_a_model_that_speaks_of_usage_does_not_change_its_own(said: str) -> None:
    before, behind = JSONScanner(), JSONScanner()

    before.feed(large_answer(said))
    behind.feed(large_answer("x", service_tier=said))

    assert before.usage == behind.usage == TokenUsage(5, 4096, 4101)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"choices":[]}', id="absent"),
        pytest.param(b'{"usage":null}', id="null"),
        pytest.param(b'{"usage":{"prompt_tokens":"many"}}', id="wrong-type"),
        pytest.param(large_answer("x")[:-10], id="truncated-inside-usage"),
        pytest.param(json.dumps({"content": '"usage": {"prompt_tokens": 1}'}).encode(), id="only-spoken-of"),
        pytest.param(b'{"usage":{"prompt_tokens":5},"logprobs":"' + b"x" * 20_000 + b'"}', id="before-the-tail"),
    ],
)
def test_usage_that_is_not_found_in_a_large_answer_is_unknown(answer: bytes) -> None:
    scanner = JSONScanner()

    scanner.feed(answer)

    assert scanner.usage is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(
            b'{"input_tokens": 9,\n "cache_read_input_tokens": 1, "output_tokens": 4}', (10, 4, 14), id="messages"
        ),
        pytest.param(b'{"type":"duration","seconds":2.5}', (25, 0, 25), id="seconds"),
    ],
)
def test_usage_of_a_large_answer_has_every_shape(usage: bytes, expected: tuple[int, int, int]) -> None:
    scanner = JSONScanner(10)

    scanner.feed(b'{"content":"%b","usage" : %b}' % (b"x" * 20_000, usage))

    assert scanner.usage == TokenUsage(*expected)


def test_scanning_a_large_answer_takes_constant_memory() -> None:
    scanner, piece = JSONScanner(), b"x" * 65_536

    tracemalloc.start()
    for _ in range(200):
        scanner.feed(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * len(piece)
