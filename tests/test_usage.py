from __future__ import annotations

import gzip
import json
import re
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from maas_middleware.usage import (
    MAXIMUM_EVENT_BYTES,
    EventScanner,
    JSONScanner,
    TokenUsage,
    read_usage,
    usage_headers,
)

# NAME.asked.sse is what a server streams where usage was asked for, NAME.plain.sse what it streams where it was not
STREAMS = Path(__file__).parent / "streams"

# servers that put no `usage: null` into a stream only because usage was asked for
EXACT = [
    pytest.param("vllm", TokenUsage(11, 5, 16), 5, id="vllm"),
    pytest.param("vllm-completions", TokenUsage(2, 3, 5), 3, id="vllm-completions"),
    pytest.param("vllm-keep-alive", TokenUsage(40, 9, 49), 3, id="vllm-reasoning-and-tools-with-keep-alive"),
    pytest.param("vllm-multibyte", TokenUsage(7, 12, 19), 4, id="vllm-multi-byte"),
    pytest.param("vllm-error", None, 1, id="vllm-error-inside-200"),
    pytest.param("transformers", TokenUsage(21, 2, 23), 2, id="transformers-without-done"),
    pytest.param("llama-cpp", None, 2, id="llama-cpp-crlf-and-pings"),
    pytest.param("unended", TokenUsage(4, 2, 6), 1, id="last-event-not-ended"),
]
WITH_NULLS = [
    pytest.param("openai", TokenUsage(9, 1, 10), 1, id="openai"),
    pytest.param("azure", TokenUsage(9, 1, 10), 1, id="azure-first-chunk-without-choices"),
    pytest.param("litserve", TokenUsage(3, 2, 5), 2, id="litserve"),
    pytest.param("crlf", TokenUsage(5, 3, 8), 3, id="crlf"),
    pytest.param("cr", TokenUsage(5, 3, 8), 3, id="lone-cr"),
    pytest.param("no-space", TokenUsage(5, 3, 8), 3, id="no-space-after-data"),
    pytest.param("multi-line", TokenUsage(5, 3, 8), 3, id="data-over-several-lines"),
]
CONTINUOUS = pytest.param("vllm-continuous", TokenUsage(11, 5, 16), 5, id="vllm-continuous")


class Scanned(NamedTuple):
    output: bytes
    usage: TokenUsage | None
    produced: int


def scan(pieces: Iterable[bytes], *, strip: bool) -> Scanned:
    scanner = EventScanner(strip=strip)
    output = b"".join([scanner.feed(piece) for piece in pieces])
    return Scanned(output + scanner.flush(), scanner.usage, scanner.produced)


def recorded(name: str) -> bytes:
    return (STREAMS / f"{name}.sse").read_bytes()


def one_by_one(stream: bytes) -> list[bytes]:
    return [stream[place : place + 1] for place in range(len(stream))]


def events(stream: bytes) -> list[tuple[dict[str, str], object]]:
    """Read a stream as the WHATWG's event stream interpretation does, except that the last event need not be ended."""
    found: list[tuple[dict[str, str], object]] = []
    fields: dict[str, str] = {}
    data: list[str] = []
    for line in [*re.split("\r\n|\n|\r", stream.decode()), ""]:
        name, _, value = line.partition(":")
        if line == "" and data:
            text = "\n".join(data)
            found.append((fields, text if text == "[DONE]" else json.loads(text)))
            fields, data = {}, []
        elif name == "data":
            data.append(value.removeprefix(" "))
        elif name:
            fields[name] = value.removeprefix(" ")
    return found


def without_null_usage(event: tuple[dict[str, str], object]) -> tuple[dict[str, str], object]:
    fields, data = event
    if isinstance(data, dict) and data.get("usage", 0) is None:
        data = {key: value for key, value in data.items() if key != "usage"}
    return fields, data


def chunk(content: str, usage: object = None) -> bytes:
    document = {"choices": [{"index": 0, "delta": {"content": content}}], "usage": usage}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def usage_chunk() -> bytes:
    return b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n'


# TokenUsage, read_usage


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(
            b'{"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}', TokenUsage(5, 7, 12), id="chat"
        ),
        pytest.param(b'{"usage":{"prompt_tokens":5,"total_tokens":5}}', TokenUsage(5, 0, 5), id="embeddings"),
        pytest.param(b'{"usage":{"total_tokens":5}}', TokenUsage(0, 0, 5), id="only-a-total"),
        pytest.param(
            b'{"usage":{"prompt_tokens":5,"completion_tokens":7}}', TokenUsage(5, 7, 12), id="total-is-the-sum"
        ),
        pytest.param(
            b'{"usage":{"prompt_tokens":5,"completion_tokens":null,"total_tokens":null}}',
            TokenUsage(5, 0, 5),
            id="nulls-are-unknown",
        ),
        pytest.param(
            b'{"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}', TokenUsage(0, 0, 0), id="zero"
        ),
        pytest.param(
            b'{"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10,"prompt_tokens_details":'
            b'{"cached_tokens":8},"completion_tokens_details":{"reasoning_tokens":1}}}',
            TokenUsage(9, 1, 10),
            id="details-are-included-already",
        ),
        pytest.param(b'{"usage":null}', None, id="null"),
        pytest.param(b"{}", None, id="absent"),
        pytest.param(b'{"usage":{}}', None, id="empty"),
        pytest.param(b'{"usage":{"completion_tokens":7}}', None, id="output-alone-is-no-usage"),
        pytest.param(b'{"usage":{"prompt_tokens":-1,"completion_tokens":7}}', None, id="negative"),
        pytest.param(b'{"usage":{"prompt_tokens":5,"total_tokens":-5}}', None, id="negative-total"),
        pytest.param(b'{"usage":{"prompt_tokens":"5"}}', None, id="text"),
        pytest.param(b'{"usage":{"prompt_tokens":5.5}}', None, id="fraction"),
        pytest.param(b'{"usage":{"prompt_tokens":true}}', None, id="bool"),
        pytest.param(b'{"usage":[5]}', None, id="list"),
        pytest.param(b'{"choices":[{"usage":{"prompt_tokens":5,"total_tokens":5}}]}', None, id="not-at-the-top"),
        pytest.param(b'[{"usage":{"prompt_tokens":5,"total_tokens":5}}]', None, id="not-an-object"),
        pytest.param(b'{"usage":{"prompt_tokens":5', None, id="truncated"),
        pytest.param(b"null", None, id="null-body-of-a-client-that-left"),
        pytest.param(b"", None, id="no-body"),
        pytest.param(b"[DONE]", None, id="end-of-stream"),
        pytest.param(b"<html>", None, id="html"),
        pytest.param(b'{"\xff":1}', None, id="not-utf-8"),
        pytest.param(gzip.compress(b'{"usage":{"prompt_tokens":5}}', mtime=0), None, id="gzip"),
        pytest.param(b'{"a":' + b"[" * 100_000, None, id="deeply-nested"),
        pytest.param(
            b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b',"usage":{"prompt_tokens":5}}', None, id="deep-and-whole"
        ),
    ],
)
def test_usage_of_an_answer_is_what_the_model_counted_and_none_where_it_did_not(
    document: bytes, expected: TokenUsage | None
) -> None:
    assert read_usage(document) == expected


def test_usage_headers_name_input_output_and_total() -> None:
    assert usage_headers(TokenUsage(5, 0, 12)) == [
        (b"x-odhu-usage-input-tokens", b"5"),
        (b"x-odhu-usage-output-tokens", b"0"),
        (b"x-odhu-usage-total-tokens", b"12"),
    ]


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


def test_usage_of_a_large_answer_is_found_byte_by_byte() -> None:
    scanner = JSONScanner()

    for byte in one_by_one(large_answer("x" * 20_000)):
        scanner.feed(byte)

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


def test_scanning_a_large_answer_takes_constant_memory() -> None:
    scanner, piece = JSONScanner(), b"x" * 65_536

    tracemalloc.start()
    for _ in range(200):
        scanner.feed(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * len(piece)


# EventScanner


@pytest.mark.parametrize(("name", "usage", "produced"), [*EXACT, *WITH_NULLS, CONTINUOUS])
def test_stream_is_read_the_same_wherever_it_is_cut(name: str, usage: TokenUsage | None, produced: int) -> None:
    stream = recorded(f"{name}.asked")

    for strip in (False, True):
        whole = scan([stream], strip=strip)
        assert whole[1:] == (usage, produced)
        assert scan(one_by_one(stream), strip=strip) == whole
        for cut in range(len(stream) + 1):
            assert scan([stream[:cut], stream[cut:]], strip=strip) == whole, cut


@pytest.mark.parametrize("kind", ["asked", "plain"])
@pytest.mark.parametrize(("name", "usage", "produced"), [*EXACT, *WITH_NULLS])
def test_stream_of_a_client_that_asked_for_usage_is_not_changed_in_a_single_byte(
    name: str, usage: TokenUsage | None, produced: int, kind: str
) -> None:
    stream = recorded(f"{name}.{kind}")
    scanner = EventScanner(strip=False)

    assert [scanner.feed(byte) for byte in one_by_one(stream)] == one_by_one(stream)
    assert scanner.flush() == b""


@pytest.mark.parametrize(("name", "usage", "produced"), [*EXACT, *WITH_NULLS])
def test_client_that_did_not_ask_for_usage_reads_event_by_event_what_an_untouched_call_gives(
    name: str, usage: TokenUsage | None, produced: int
) -> None:
    untouched = events(recorded(f"{name}.plain"))

    given = events(scan([recorded(f"{name}.asked")], strip=True).output)

    # LitServe says `usage: null` even if nobody asked; whether null or absent, every SDK reads None
    assert given == list(map(without_null_usage, untouched))


@pytest.mark.parametrize(("name", "usage", "produced"), EXACT)
def test_client_that_did_not_ask_for_usage_reads_byte_for_byte_what_an_untouched_call_gives(
    name: str, usage: TokenUsage | None, produced: int
) -> None:
    assert scan([recorded(f"{name}.asked")], strip=True).output == recorded(f"{name}.plain")


@pytest.mark.parametrize(("name", "usage", "produced"), [*EXACT, *WITH_NULLS])
def test_untouched_stream_has_the_same_content_count(name: str, usage: TokenUsage | None, produced: int) -> None:
    assert scan([recorded(f"{name}.plain")], strip=False).produced == produced


def test_running_usage_replaces_the_one_before_and_is_never_added() -> None:
    scanner = EventScanner(strip=False)
    seen = []

    for event in recorded("vllm-continuous.asked").split(b"\n\n")[:-1]:
        scanner.feed(event + b"\n\n")
        seen.append(scanner.usage)

    running = [TokenUsage(11, output, 11 + output) for output in range(6)]
    assert seen == [*running, running[-1], running[-1]]


def test_event_reaches_the_client_as_soon_as_it_has_ended() -> None:
    scanner = EventScanner(strip=True)
    event = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'

    assert scanner.feed(event[:-1]) == b""
    assert scanner.feed(event[-1:] + b": keep-alive\n\n" + event[:10]) == event + b": keep-alive\n\n"
    assert scanner.feed(b"") == b""


def test_stream_that_breaks_off_loses_nothing_of_what_came() -> None:
    stream = recorded("vllm.plain")

    for end in range(len(stream)):
        assert scan([stream[:end]], strip=True).output == stream[:end]


def test_client_that_leaves_in_the_middle_has_what_it_got_counted() -> None:
    scanner = EventScanner(strip=True)

    scanner.feed(chunk("One") + chunk(" two") + chunk(" three")[:-1])

    assert scanner.usage is None
    assert scanner.produced == 2


def test_usage_of_zero_is_zero_and_not_unknown() -> None:
    zero = b'data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}\n\n'

    assert scan([chunk("Hi"), zero], strip=True).usage == TokenUsage(0, 0, 0)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(b'data: {"choices":[{"delta":{"content":"usage"}}]}\n\n', id="the-word-as-content"),
        pytest.param(b'data: {"choices":[{"usage":null}]}\n\n', id="not-at-the-top"),
        pytest.param(b'data: {"usage":{"prompt_tokens":1,"total_tokens":1}}\n\n', id="usage-without-choices"),
        pytest.param(b'data: "usage"\n\n', id="no-object"),
        pytest.param(b'data: {"usage": tru\n\n', id="no-json"),
        pytest.param(b': "usage"\n\n', id="in-a-comment"),
        pytest.param(b'data: {"usage":null,"\xff":1}\n\n', id="not-utf-8"),
        pytest.param(b'data: {"usage":null,"a":' + b"[" * 9999 + b"]" * 9999 + b"}\n\n", id="deeply-nested"),
    ],
)
def test_event_with_the_word_usage_but_nothing_to_take_out_stays_as_it_is(event: bytes) -> None:
    assert scan([event], strip=True).output == event


def test_bytes_that_are_no_events_pass_untouched() -> None:
    compressed = gzip.compress(recorded("vllm.asked"), mtime=0)

    assert scan(one_by_one(compressed), strip=True) == (compressed, None, 0)


def test_null_usage_is_taken_out_and_every_other_value_keeps_its_own_notation() -> None:
    event = b'id: 7\ndata: {"n": 1.00000000000000000001, "usage": null, "t":"\\u00e9"}\nretry: 5\n\n'

    output = scan([event], strip=True).output

    assert output == b'id: 7\ndata: {"n":1.00000000000000000001,"t":"\\u00e9"}\nretry: 5\n\n'


@pytest.mark.parametrize(
    ("event", "produced"),
    [
        pytest.param(b'data: {"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}\n\n', 2, id="n-is-two"),
        pytest.param(b'data: {"choices":[{"delta":{"content":""}}]}\n\n', 0, id="empty-content"),
        pytest.param(b'data: {"choices":[{"delta":{"content":null}}]}\n\n', 0, id="null-content"),
        pytest.param(b'data: {"choices":[{"delta":{"content":"\\"content\\":\\"x\\""}}]}\n\n', 1, id="json-as-content"),
        pytest.param(b'data: {"choices":[{"delta":{"refusal":"No"}}]}\n\n', 1, id="refusal"),
        pytest.param(b'data: {"error":{"message":"boom","type":"InternalServerError"}}\n\n', 0, id="error-text"),
        pytest.param(b": content\n\n", 0, id="comment"),
        pytest.param(b"data: [DONE]\n\n", 0, id="done"),
    ],
)
def test_only_pieces_of_content_are_counted_as_produced(event: bytes, produced: int) -> None:
    assert scan([event], strip=True).produced == produced


# events that are too large to be looked into


def sized(size: int) -> bytes:
    """An event of so many bytes, with a null to be taken out."""
    return chunk("x" * (size - len(chunk(""))))


def stripped(event: bytes) -> bytes:
    """A chunk as it is once it was looked into."""
    return event.replace(b'{"choices": ', b'{"choices":').replace(b', "usage": null', b"")


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize(
    ("size", "is_read"),
    [
        pytest.param(MAXIMUM_EVENT_BYTES - 1, True, id="below"),
        pytest.param(MAXIMUM_EVENT_BYTES, True, id="at-the-maximum"),
        pytest.param(MAXIMUM_EVENT_BYTES + 1, False, id="above"),
        pytest.param(MAXIMUM_EVENT_BYTES + 4, False, id="a-little-above"),
        pytest.param(3 * MAXIMUM_EVENT_BYTES, False, id="far-above"),
    ],
)
def test_oversized_event_passes_untouched_and_the_next_is_read_wherever_it_is_cut(
    size: int, is_read: bool, strip: bool
) -> None:
    event, following = sized(size), chunk("Hi")
    stream = event + usage_chunk() + following
    given = (stripped(event) if is_read else event) + stripped(following) if strip else stream
    expected = Scanned(given, TokenUsage(3, 4, 7), 2 if is_read else 1)

    edges = {place + around for place in (MAXIMUM_EVENT_BYTES, size) for around in range(-4, 5)}
    for edge in edges:
        assert scan([stream[:edge], stream[edge:]], strip=strip) == expected, edge
        assert scan([stream[:edge], *one_by_one(stream[edge : edge + 8]), stream[edge + 8 :]], strip=strip) == expected
    assert scan([stream], strip=strip) == expected
    assert scan([stream[at : at + 65_536] for at in range(0, len(stream), 65_536)], strip=strip) == expected


def test_oversized_event_that_is_never_ended_passes_whole() -> None:
    event = sized(MAXIMUM_EVENT_BYTES + 5)[:-2]

    assert scan([event[:100], event[100:]], strip=True).output == event


def test_no_more_than_the_maximum_is_ever_held_back() -> None:
    scanner, piece = EventScanner(strip=True), b"x" * 65_536
    fed = returned = 0

    for _ in range(64):
        fed += len(piece)
        returned += len(scanner.feed(piece))
        assert fed - returned < MAXIMUM_EVENT_BYTES

    assert returned > 3 * MAXIMUM_EVENT_BYTES


@pytest.mark.parametrize("strip", [True, False])
def test_endless_event_takes_constant_memory(strip: bool) -> None:
    scanner, piece = EventScanner(strip=strip), b"x" * 65_536

    tracemalloc.start()
    for _ in range(200):
        scanner.feed(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * MAXIMUM_EVENT_BYTES


@pytest.mark.parametrize("path", sorted(STREAMS.glob("*.sse")), ids=lambda path: str(path.stem))
def test_recorded_stream_is_whole_and_its_first_choice_alone_is_not(path: Path) -> None:
    whole, cut = EventScanner(strip=False), EventScanner(strip=False)
    stream = path.read_bytes()

    whole.feed(stream)
    whole.flush()
    cut.feed(stream[: stream.index(b'"choices"') + len(b'"choices"')])
    cut.flush()

    assert (whole.is_cut, cut.is_cut) == (False, True)
