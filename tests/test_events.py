from __future__ import annotations

import gzip
import json
import re
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from maas_middleware.catalogue import Model
from maas_middleware.dialects import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    IMAGES,
    MESSAGES,
    RESPONSES,
    SPEECH,
    TRANSCRIPTION,
    Dialect,
)
from maas_middleware.errors import UpstreamError
from maas_middleware.events import MAXIMUM_EVENT_BYTES, EventScanner
from maas_middleware.renaming import Renaming
from maas_middleware.usage import TokenUsage
from tests.streams import (
    CHATS,
    CONTINUOUS,
    RECORDINGS,
    TOKENS_PER_SECOND,
    Recording,
    boundaries,
    events,
    without_null_usage,
)

RENAMING = Renaming(Model("org/simulator", upstream_model="tiny"))
ENDINGS = {"recorded": None, "crlf": b"\r\n", "cr": b"\r"}


class Scanned(NamedTuple):
    output: bytes
    usage: TokenUsage | None
    produced: int
    failed: bool
    is_cut: bool
    error: tuple[int, str] | None = None


def scan(
    pieces: Iterable[bytes], dialect: Dialect = CHAT, *, strip: bool = False, renaming: Renaming | None = None
) -> Scanned:
    scanner = EventScanner(dialect, strip=strip, renaming=renaming, audio_tokens_per_second=TOKENS_PER_SECOND)
    output = b"".join([scanner.feed(piece) for piece in pieces])
    output += scanner.flush()
    error = None if scanner.error is None else (scanner.error.status, scanner.error.message)
    return Scanned(output, scanner.usage, scanner.produced, scanner.failed, scanner.is_cut, error)


BROKEN = (502, UpstreamError().message)


def expected(recording: Recording, output: bytes) -> Scanned:
    """What is found in a recording, of which users are to read so much."""
    error = BROKEN if recording.is_error else None
    return Scanned(output, recording.usage, recording.produced, recording.failed, recording.is_error, error)


def one_by_one(stream: bytes) -> list[bytes]:
    return [stream[place : place + 1] for place in range(len(stream))]


def each(*recordings: Recording) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("recording", recordings, ids=lambda recording: str(recording.name))


def each_with_line_endings(*recordings: Recording) -> pytest.MarkDecorator:
    """Each stream as it was recorded, and with other ends of lines where it has the usual ones."""
    cases = [
        pytest.param(recording, _ending_lines(ending), id=f"{recording.name}-{name}")
        for recording in recordings
        for name, ending in ENDINGS.items()
        if ending is None or b"\r" not in recording.asked
    ]
    return pytest.mark.parametrize(("recording", "ending_lines"), cases)


def _ending_lines(ending: bytes | None) -> Callable[[bytes], bytes]:
    return lambda stream: stream if ending is None else stream.replace(b"\n", ending)


def chunk(content: str, usage: object = None) -> bytes:
    document = {"choices": [{"index": 0, "delta": {"content": content}}], "usage": usage}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def usage_chunk() -> bytes:
    return b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n'


# the recorded streams


def test_every_stream_of_the_folder_is_tested() -> None:
    folder = Path(__file__).parent / "streams"

    asked = {path.name.removesuffix(".sse").removesuffix(".asked") for path in folder.glob("*.sse")}

    assert {name for name in asked if not name.endswith(".plain")} == {recording.name for recording in RECORDINGS}
    assert all((folder / f"{recording.name}.plain.sse").exists() for recording in CHATS)


@each_with_line_endings(*RECORDINGS)
def test_stream_is_read_the_same_wherever_it_is_cut(
    recording: Recording, ending_lines: Callable[[bytes], bytes]
) -> None:
    stream, dialect = ending_lines(recording.asked), recording.dialect

    for strip in {False, dialect.asks_for_usage}:
        whole = scan([stream], dialect, strip=strip)
        assert whole == expected(recording, whole.output if strip else recording.given(stream))
        assert scan(one_by_one(stream), dialect, strip=strip) == whole
        for cut in range(0, len(stream) + 1, 1 if stream == recording.asked else 4):
            assert scan([stream[:cut], stream[cut:]], dialect, strip=strip) == whole, cut


@each_with_line_endings(*RECORDINGS)
def test_stream_that_breaks_off_before_its_end_is_cut(
    recording: Recording, ending_lines: Callable[[bytes], bytes]
) -> None:
    stream, dialect = ending_lines(recording.asked), recording.dialect
    places = [place for place, _ in boundaries(stream)]
    whole = next((place for place in places if place > stream.index(recording.end)), None)
    whole = len(stream) + 1 if whole is None or recording.is_error else whole

    unread = {place for place in range(whole) if not scan([stream[:place]], dialect).is_cut}
    cut = {place for place in places if place >= whole and scan([stream[:place]], dialect).is_cut}

    assert (unread, cut) == (set(), set())


@each_with_line_endings(*CHATS)
def test_client_that_did_not_ask_reads_event_by_event_what_an_untouched_call_gives(
    recording: Recording, ending_lines: Callable[[bytes], bytes]
) -> None:
    untouched = events(recording.given(recording.plain))

    given = events(scan([ending_lines(recording.asked)], recording.dialect, strip=True).output)

    # LitServe says `usage: null` even if nobody asked; whether null or absent, every SDK reads None
    assert given == list(map(without_null_usage, untouched))


@each_with_line_endings(*(recording for recording in CHATS if not recording.puts_null))
def test_client_that_did_not_ask_reads_byte_for_byte_what_an_untouched_call_gives(
    recording: Recording, ending_lines: Callable[[bytes], bytes]
) -> None:
    given = scan([ending_lines(recording.asked)], recording.dialect, strip=True).output

    assert given == ending_lines(recording.given(recording.plain))


@each(*CHATS)
def test_untouched_stream_passes_byte_for_byte_and_has_the_same_content_count(recording: Recording) -> None:
    scanned = scan(one_by_one(recording.plain), recording.dialect)

    assert (scanned.output, scanned.produced) == (recording.given(recording.plain), recording.produced)


@each(*RECORDINGS)
def test_model_is_called_by_its_id_in_every_event_wherever_the_stream_is_cut(recording: Recording) -> None:
    stream = recording.asked
    renamed = re.sub(rb'"model": ?"tiny"', lambda found: found[0].replace(b"tiny", b"org/simulator"), stream)
    whole = scan([stream], recording.dialect, renaming=RENAMING)

    assert whole == expected(recording, whole.output)
    assert events(whole.output) == events(recording.given(renamed))
    assert scan(one_by_one(stream), recording.dialect, renaming=RENAMING) == whole
    for cut in range(0, len(stream) + 1, 5):
        assert scan([stream[:cut], stream[cut:]], recording.dialect, renaming=RENAMING) == whole, cut


def test_renaming_and_stripping_go_together() -> None:
    recording = CHATS[0]

    output = scan([recording.asked], strip=True, renaming=RENAMING).output

    assert output == recording.plain.replace(b'"model":"tiny"', b'"model":"org/simulator"')


# usage


def test_running_usage_replaces_the_one_before_and_is_never_added() -> None:
    scanner = EventScanner(CHAT)
    seen = []

    for event in CONTINUOUS.asked.split(b"\n\n")[:-1]:
        scanner.feed(event + b"\n\n")
        seen.append(scanner.usage)

    running = [TokenUsage(11, output, 11 + output) for output in range(6)]
    assert seen == [*running, running[-1], running[-1]]


def test_last_usage_counts_even_if_it_is_smaller() -> None:
    first = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}\n\n'

    assert scan([first, usage_chunk()]).usage == TokenUsage(3, 4, 7)


def messages(*usages: str) -> list[bytes]:
    """A message of which the first event tells of the input, and the others of the output so far."""
    start, *deltas = usages
    events = [f'data: {{"type":"message_start","message":{{"usage":{start}}}}}\n\n']
    events += [f'data: {{"type":"message_delta","delta":{{}},"usage":{usage}}}\n\n' for usage in deltas]
    return [event.encode() for event in events]


@pytest.mark.parametrize(
    ("usages", "expected"),
    [
        pytest.param(
            ['{"input_tokens":9,"output_tokens":1}', '{"output_tokens":4}', '{"output_tokens":7}'],
            TokenUsage(9, 7, 16),
            id="the-output-is-cumulative",
        ),
        pytest.param(
            ['{"input_tokens":0,"output_tokens":0}', '{"input_tokens":9,"output_tokens":7}'],
            TokenUsage(9, 7, 16),
            id="the-input-comes-last",
        ),
        pytest.param(
            [
                '{"input_tokens":9,"cache_read_input_tokens":90,"cache_creation_input_tokens":1,"output_tokens":1}',
                '{"input_tokens":9,"cache_read_input_tokens":90,"cache_creation_input_tokens":1,"output_tokens":7}',
            ],
            TokenUsage(100, 7, 107),
            id="caches-are-counted-once",
        ),
        pytest.param(
            ['{"input_tokens":9,"cache_read_input_tokens":90,"output_tokens":1}', '{"output_tokens":7}'],
            TokenUsage(99, 7, 106),
            id="caches-are-told-first",
        ),
        pytest.param(['{"input_tokens":9,"output_tokens":1}'], TokenUsage(9, 1, 10), id="only-the-start"),
        pytest.param(["null", '{"input_tokens":9,"output_tokens":7}'], TokenUsage(9, 7, 16), id="only-the-end"),
        pytest.param(['{"input_tokens":9,"output_tokens":1}', "null"], TokenUsage(9, 1, 10), id="null-is-no-news"),
    ],
)
def test_usages_of_a_message_complete_each_other(usages: list[str], expected: TokenUsage) -> None:
    assert scan(messages(*usages), MESSAGES).usage == expected


def test_client_that_leaves_in_the_middle_has_what_it_got_counted() -> None:
    scanner = EventScanner(CHAT, strip=True)

    scanner.feed(chunk("One") + chunk(" two") + chunk(" three")[:-1])

    assert scanner.usage is None
    assert scanner.produced == 2


def test_usage_of_zero_is_zero_and_not_unknown() -> None:
    zero = b'data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}\n\n'

    assert scan([chunk("Hi"), zero], strip=True).usage == TokenUsage(0, 0, 0)


@pytest.mark.parametrize("usage", ["null", "-1", '"many"', '{"prompt_tokens":-1,"total_tokens":2}', "{}"])
def test_usage_that_makes_no_sense_does_not_replace_one_that_does(usage: str) -> None:
    stream = [usage_chunk(), b'data: {"choices":[],"usage":%b}\n\n' % usage.encode()]

    assert scan(stream).usage == TokenUsage(3, 4, 7)


def test_seconds_without_a_rate_are_no_tokens() -> None:
    scanner = EventScanner(TRANSCRIPTION)

    scanner.feed(b'data: {"type":"transcript.text.done","text":"a","usage":{"type":"duration","seconds":3}}\n\n')

    assert scanner.usage == TokenUsage(0, 0, 0)


def test_stream_of_a_dialect_that_has_none_is_metered_all_the_same() -> None:
    assert scan([usage_chunk()], EMBEDDINGS) == Scanned(usage_chunk(), TokenUsage(3, 4, 7), 0, False, False)


# what the client reads


@pytest.mark.parametrize("strip", [True, False])
def test_event_reaches_the_client_as_soon_as_it_has_ended(strip: bool) -> None:
    scanner = EventScanner(CHAT, strip=strip)
    event = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'

    assert scanner.feed(event[:-1]) == b""
    assert scanner.feed(event[-1:] + b": keep-alive\n\n" + event[:10]) == event + b": keep-alive\n\n"
    assert scanner.feed(b"") == b""


@pytest.mark.parametrize("strip", [True, False])
def test_stream_that_breaks_off_loses_no_event_that_came_whole_and_gives_no_half_one(strip: bool) -> None:
    stream = CHATS[0].plain
    ends = boundaries(stream)

    for cut in range(len(stream)):
        whole = max(([cut] if text <= cut <= end else [end] if end <= cut else [0])[0] for text, end in ends)
        assert scan([stream[:cut]], strip=strip).output == stream[:whole], cut


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(b'data: {"choices":[{"delta":{"content":"usage"}}]}\n\n', id="the-word-as-content"),
        pytest.param(b'data: {"choices":[{"usage":null}]}\n\n', id="not-at-the-top"),
        pytest.param(b'data: {"usage":{"prompt_tokens":1,"total_tokens":1}}\n\n', id="usage-without-choices"),
        pytest.param(b'data: {"choices":[],"x":{"usage":null}}\n\n', id="neither-usage-nor-choices"),
        pytest.param(b'data: "usage"\n\n', id="no-object"),
        pytest.param(b'data: {"usage": tru\n\n', id="no-json"),
        pytest.param(b': "usage"\n\n', id="in-a-comment"),
        pytest.param(b'data: {"usage":null,"\xff":1}\n\n', id="not-utf-8"),
        pytest.param(b'data: {"usage":null,"a":' + b"[" * 9999 + b"]" * 9999 + b"}\n\n", id="deeply-nested"),
    ],
)
def test_event_with_the_word_usage_but_nothing_to_take_out_stays_as_it_is(event: bytes) -> None:
    assert scan([event], strip=True).output == event


@pytest.mark.parametrize("strip", [True, False])
def test_total_stays_where_only_the_usage_in_every_other_event_was_not_asked_for(strip: bool) -> None:
    scanner = EventScanner(CHAT, strip=strip, strip_running=True)
    running = b'data: {"choices":[{}],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'

    assert scanner.feed(running + usage_chunk()) == b'data: {"choices":[{}]}\n\n' + (b"" if strip else usage_chunk())


def test_bytes_that_are_no_events_reach_nobody() -> None:
    compressed = gzip.compress(CHATS[0].asked, mtime=0)

    for dialect in (CHAT, EMBEDDINGS):
        assert scan(one_by_one(compressed), dialect) == Scanned(b"", None, 0, failed=False, is_cut=True)


def test_null_usage_is_taken_out_and_every_other_value_keeps_its_own_notation() -> None:
    event = b'id: 7\ndata: {"n": 1.00000000000000000001, "usage": null, "t":"\\u00e9"}\nretry: 5\n\n'

    output = scan([event], strip=True).output

    assert output == b'id: 7\ndata: {"n":1.00000000000000000001,"t":"\\u00e9"}\nretry: 5\n\n'


# what an event is


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


def test_events_with_data_are_counted() -> None:
    scanner = EventScanner(CHAT)

    scanner.feed(chunk("Hi") + b": keep-alive\n\n" + usage_chunk() + b"data: [DONE]")
    before = scanner.events
    scanner.flush()

    assert (before, scanner.events) == (2, 3)


def test_event_that_reports_an_error_is_not_counted_since_another_takes_its_place() -> None:
    scanner = EventScanner(CHAT)

    scanner.feed(chunk("Hi") + REFUSAL)

    assert scanner.events == 1


ITEM_DIALECTS = pytest.mark.parametrize("dialect", [MESSAGES, RESPONSES, IMAGES, SPEECH], ids=lambda one: one.name)


@ITEM_DIALECTS
@pytest.mark.parametrize("ending", [pytest.param(end, id=repr(end)) for end in ("\n", "\r\n", "\r")])
@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["event: error", 'data: {"message":"no"}'], id="by-name"),
        pytest.param(["event:error", "data: {", 'data: "code":1,', 'data: "type":"error"}'], id="over-several-lines"),
        pytest.param(['data: {"type":"error","error":{"message":"no"}}'], id="type-first"),
        pytest.param(['data: { "type" : "error" , "message":"no"}'], id="with-spaces"),
        pytest.param(['data:{"message":"no","type":"error"}'], id="type-last"),
        pytest.param(["id: 1", 'data: {"error":{"message":"no"}}'], id="as-in-chat"),
        pytest.param(['data: {"error":"no"}'], id="as-text"),
    ],
)
def test_error_event_is_a_failure_that_is_told_in_our_words(dialect: Dialect, lines: list[str], ending: str) -> None:
    begun = b'data: {"type":"content_block_start","content_block":{"text":""}}\n\n'
    event = "".join(line + ending for line in [*lines, ""]).encode()

    for rest in (b"", b"data: [DONE]\n\n"):
        assert scan([begun, event + rest], dialect) == Scanned(begun, None, 0, failed=True, is_cut=True, error=BROKEN)


FORGED = b'{"type":"error","error":{"message":"no"},"object":"error"}'


@ITEM_DIALECTS
@pytest.mark.parametrize(
    "event",
    [
        pytest.param(b'data: {"type":"x","response":{"metadata":%b}}\n\n' % FORGED, id="in-the-last-object"),
        pytest.param(b'data: {"response":{"tools":[%b]},"type":"x"}\n\n' % FORGED, id="in-a-list"),
        pytest.param(b'data: {"response":{"metadata":{"type":"error"}}}\n\n', id="at-the-end"),
        pytest.param(b'data: {"type":"x","response":{"error":null}}\n\n', id="null"),
        pytest.param(b'data: {"error":null,"type":"x"}\n\n', id="null-in-front"),
        pytest.param(b'data: {"type":"x","text":"data: {\\"error\\":{\\"a\\":1}}\\nevent: error"}\n\n', id="as-text"),
        pytest.param(b'event: errors\ndata: {"type":"x"}\n\n', id="another-name"),
        pytest.param(b': event: error\ndata: {"type":"x"}\n\n', id="in-a-comment"),
    ],
)
def test_error_that_a_user_put_into_the_request_is_no_failure_of_the_model(dialect: Dialect, event: bytes) -> None:
    scanned = scan([event], dialect)

    assert (scanned.output, scanned.failed, scanned.error) == (event, False, None)
    assert scanned.is_cut


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, TRANSCRIPTION], ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("document", "failed"),
    [
        pytest.param(b'{"error":{"message":"no"}}', True, id="object"),
        pytest.param(b'{"error":"no"}', True, id="text"),
        pytest.param(b'{"object": "error","message":"no"}', True, id="old"),
        pytest.param(b'{"choices":[],"error":null}', False, id="null"),
        pytest.param(b'{"choices":[{"delta":{"content":"{\\"error\\":{}}"}}]}', False, id="spoken-of"),
    ],
)
def test_error_object_is_a_failure(dialect: Dialect, document: bytes, failed: bool) -> None:
    event = b"data: %b\n\n" % document

    scanned = scan([event], dialect)

    assert (scanned.output, scanned.failed) == (b"" if failed else event, failed)
    assert scanned.error == (BROKEN if failed else None)


REFUSAL = b'data: {"error":{"message":"too long","code":400},"usage":{"prompt_tokens":9,"total_tokens":9}}\n\n'


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param([b"data: [DONE]\n\n"], id="done"),
        pytest.param([b"data: [DONE]"], id="done-without-its-blank-line"),
        pytest.param([chunk("Hi") + usage_chunk(), b"data: [DONE]\n\n"], id="content-and-usage"),
        pytest.param([b'data: {"error":{"message":"again"}}\n\n'], id="another-error"),
        pytest.param([b"x" * 2 * MAXIMUM_EVENT_BYTES], id="more-than-is-held"),
        pytest.param([b"data: [DON"], id="half-of-an-event"),
    ],
)
def test_nothing_behind_an_error_is_read(behind: list[bytes]) -> None:
    refused = Scanned(chunk("a"), TokenUsage(9, 0, 9), 1, failed=True, is_cut=True, error=(400, "too long"))
    first, *others = behind

    assert scan([chunk("a"), REFUSAL, *behind]) == refused
    assert scan([chunk("a") + REFUSAL + first, *others]) == refused


def test_error_whose_blank_line_is_missing_is_one_all_the_same() -> None:
    assert scan([REFUSAL[:-2]]).error == (400, "too long")


FAILED = (
    b'data: {"type":"response.failed","response":{"status":"failed","error":{"code":"server_error","message":"%b"}}}'
)


@pytest.mark.parametrize("message", [b"The engine is dead", b"Half of 10.0.0 and 3.14"])
def test_response_that_fails_ends_as_its_dialect_knows_it(message: bytes) -> None:
    event = FAILED % message + b"\n\n"

    assert scan([event], RESPONSES) == Scanned(event, None, 0, failed=True, is_cut=False)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"Traceback (most recent call last):\\n  File", id="stack"),
        pytest.param(b"no answer of 10.128.4.7", id="address"),
        pytest.param(b"no answer of http://vllm:8000/v1", id="url"),
        pytest.param(b"no answer of vllm.models.svc", id="name-in-the-cluster"),
    ],
)
def test_response_that_fails_and_tells_too_much_is_told_in_our_words(message: bytes) -> None:
    event = b"event: response.failed\n" + FAILED % message + b"\n\n"

    assert scan([event], RESPONSES) == Scanned(b"", None, 0, failed=True, is_cut=True, error=BROKEN)


@pytest.mark.parametrize(
    ("rest", "is_cut"),
    [
        pytest.param(b"", False, id="nothing"),
        pytest.param(b"\n", False, id="blank-line"),
        pytest.param(b": ping", False, id="comment"),
        pytest.param(b": ping\r: pong\r\n", False, id="comments"),
        pytest.param(b"data: [DONE]", False, id="done"),
        pytest.param(b'data: {"choices":[]}', False, id="event-without-its-blank-line"),
        pytest.param(b'data: {"choices":\ndata: []}\n', False, id="event-of-several-lines"),
        pytest.param(b"data: [DON", True, id="half-of-done"),
        pytest.param(b'data: {"choices":', True, id="half-of-an-event"),
        pytest.param(b"data:", True, id="event-without-data"),
        pytest.param(b"da", True, id="half-of-a-name"),
        pytest.param(b"event: chunk\n", True, id="name-of-an-event"),
        pytest.param(b": ping\ndat", True, id="behind-a-comment"),
        pytest.param(b"\xff", True, id="noise"),
    ],
)
@pytest.mark.parametrize("before", [b"", b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'], ids=["alone", "behind"])
def test_stream_that_ends_within_an_event_is_cut(rest: bytes, is_cut: bool, before: bytes) -> None:
    assert scan([before + b"data: [DONE]\n\n" + rest]).is_cut == is_cut


def test_done_that_a_model_speaks_of_ends_nothing() -> None:
    said = b'data: {"choices":[{"delta":{"content":"data: [DONE]"}}]}\n\n'

    assert scan([said]).is_cut
    assert not scan([said + b"data: [DONE]\n\n"]).is_cut


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
    expected = Scanned(given, TokenUsage(3, 4, 7), 2 if is_read else 1, failed=False, is_cut=is_read)

    edges = {place + around for place in (MAXIMUM_EVENT_BYTES, size) for around in range(-4, 5)}
    for edge in edges:
        assert scan([stream[:edge], stream[edge:]], strip=strip) == expected, edge
        assert scan([stream[:edge], *one_by_one(stream[edge : edge + 8]), stream[edge + 8 :]], strip=strip) == expected
    assert scan([stream], strip=strip) == expected
    assert scan([stream[at : at + 65_536] for at in range(0, len(stream), 65_536)], strip=strip) == expected


def picture(seconds: bytes = b"") -> bytes:
    """The event of a large picture, with its usage."""
    usage = b'{"input_tokens":16,"output_tokens":272,"total_tokens":288}'
    data = b"x" * (MAXIMUM_EVENT_BYTES + 65_536)
    return b'data: {"type":"image_generation.completed","b64_json":"%b","usage":%b}\n\n' % (data, seconds or usage)


@pytest.mark.parametrize("size", [1 << 22, 65_536, 65_537, 1000])
def test_usage_of_an_oversized_event_is_read_wherever_it_is_cut(size: int) -> None:
    stream = picture()

    scanned = scan([stream[at : at + size] for at in range(0, len(stream), size)], IMAGES, renaming=RENAMING)

    assert scanned == Scanned(stream, TokenUsage(16, 272, 288), 0, failed=False, is_cut=False)


def test_seconds_in_an_oversized_event_are_converted() -> None:
    assert scan([picture(b'{"type":"duration","seconds":2.5}')], TRANSCRIPTION).usage == TokenUsage(25, 0, 25)


LARGE_ERRORS = [
    pytest.param(b'data: {"error":{"message":"%s"}}', id="error"),
    pytest.param(b': ping\nid: 7\ndata: { "object": "error", "message": "%s"}', id="behind-other-lines"),
    pytest.param(b'data:{"type":"error","message":"%s"}', id="type"),
    pytest.param(b'event: error\ndata: "%s"', id="event"),
]


@pytest.mark.parametrize("cut", [MAXIMUM_EVENT_BYTES, None])
@pytest.mark.parametrize("event", LARGE_ERRORS)
def test_oversized_error_is_reported_in_our_words(event: bytes, cut: int | None) -> None:
    stream = event % (b"x" * (MAXIMUM_EVENT_BYTES + 9)) + b"\n\ndata: [DONE]\n\n"
    scanner = EventScanner(CHAT)

    passed = b"".join(map(scanner.feed, (stream[:cut], stream[len(stream[:cut]) :]))) + scanner.flush()

    assert (passed, scanner.failed) == (b"", True)
    assert isinstance(scanner.error, UpstreamError)


def test_oversized_event_of_a_dialect_without_streams_is_no_error() -> None:
    event = b'data: {"error":{"message":"%s"}}\n\n' % (b"x" * MAXIMUM_EVENT_BYTES)
    scanner = EventScanner(EMBEDDINGS)

    assert (scanner.feed(event), scanner.error) == (event, None)


@pytest.mark.parametrize("cut", [100, MAXIMUM_EVENT_BYTES + 5])
@pytest.mark.parametrize(
    ("missing", "is_cut"),
    [
        pytest.param(1, False, id="half-of-the-blank-line"),
        pytest.param(2, False, id="blank-line"),
        pytest.param(3, True, id="last-sign"),
        pytest.param(5, True, id="more"),
    ],
)
def test_oversized_event_that_is_never_ended_passes_as_it_came(missing: int, is_cut: bool, cut: int) -> None:
    event = sized(MAXIMUM_EVENT_BYTES + 9)[:-missing]

    scanned = scan([event[:cut], event[cut:]], strip=True)

    assert (scanned.output, scanned.is_cut) == (event, is_cut)


def test_no_more_than_the_maximum_is_ever_held_back() -> None:
    scanner, piece = EventScanner(CHAT, strip=True), b"x" * 65_536
    fed = returned = 0

    for _ in range(64):
        fed += len(piece)
        returned += len(scanner.feed(piece))
        assert fed - returned < MAXIMUM_EVENT_BYTES

    assert returned > 3 * MAXIMUM_EVENT_BYTES


@pytest.mark.parametrize("strip", [True, False])
def test_endless_event_takes_constant_memory(strip: bool) -> None:
    scanner, piece = EventScanner(CHAT, strip=strip), b"x" * 65_536

    tracemalloc.start()
    for _ in range(200):
        scanner.feed(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * MAXIMUM_EVENT_BYTES
