"""Events that are like the one before them are not read again; nobody can tell."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maas_middleware._event_template import EventTemplate
from maas_middleware.catalogue import Model
from maas_middleware.dialects import CHAT, COMPLETIONS, MESSAGES, RESPONSES, SPEECH, TRANSCRIPTION, Dialect
from maas_middleware.events import MAXIMUM_EVENT_BYTES, EventScanner
from maas_middleware.renaming import Renaming
from maas_middleware.usage import TokenUsage

RENAMING = Renaming(Model("org/simulator", upstream_model="tiny"))
BLANK_LINES = (b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r\n", b"\r\n\n")
DONE = b"data: [DONE]\n\n"


@dataclass
class Reading:
    """What is known of a stream in the end."""

    output: bytes = b""
    usage: TokenUsage | None = None
    produced: int = 0
    events: int = 0
    failed: bool = False
    is_cut: bool = True
    error: tuple[int, str] | None = None

    def add(self, scanner: EventScanner, output: bytes) -> None:
        self.output += output
        self.produced += scanner.produced
        self.events += scanner.events
        self.failed |= scanner.failed
        self.error = None if scanner.error is None else (scanner.error.status, scanner.error.message)


def read(pieces: Iterable[bytes], dialect: Dialect, **options: Any) -> Reading:
    scanner = EventScanner(dialect, **options)
    output = b"".join([scanner.feed(piece) for piece in pieces]) + scanner.flush()
    reading = Reading(usage=scanner.usage, is_cut=scanner.is_cut)
    reading.add(scanner, output)
    return reading


def read_each_alone(stream: bytes, dialect: Dialect, **options: Any) -> Reading:
    """The same by scanners of which each reads one event, and so knows none that is like it."""
    reading, begin = Reading(), 0
    for place in range(len(stream) + 1):
        if place == len(stream) or stream[begin:place].endswith(BLANK_LINES):
            scanner = EventScanner(dialect, **options)
            output = scanner.feed(stream[begin:place])
            reading.is_cut &= scanner.is_cut
            if place == len(stream):
                output += scanner.flush()
                reading.is_cut = reading.is_cut or read([DONE, stream[begin:]], dialect).is_cut
            reading.add(scanner, output)
            told = scanner.usage
            if told is not None and reading.usage is not None and dialect.completes_usage:
                told = reading.usage.completed_by(told)
            reading.usage = told or reading.usage
            if scanner.error is not None:
                break
            begin = place
    return reading


def chunk(text: bytes, tail: bytes = b"", *, index: int = 0, ending: bytes = b"\n") -> bytes:
    choice = b'{"index":%d,"delta":{"content":"%b"},"finish_reason":null}' % (index, text)
    return b'data: {"id":"1","model":"tiny","choices":[%b]%b}' % (choice, tail) + 2 * ending


def counts(produced: int) -> bytes:
    return b'{"prompt_tokens":5,"total_tokens":%d,"completion_tokens":%d}' % (5 + produced, produced)


def running(text: bytes, produced: int) -> bytes:
    return chunk(text, b',"usage":' + counts(produced))


OPTIONS = [
    pytest.param({}, id="untouched"),
    pytest.param({"strip": True}, id="stripped"),
    pytest.param({"strip": True, "strip_running": True}, id="running-usage-stripped"),
    pytest.param({"strip_running": True}, id="only-running-usage-stripped"),
    pytest.param({"renaming": RENAMING}, id="renamed"),
    pytest.param({"strip": True, "strip_running": True, "renaming": RENAMING}, id="stripped-and-renamed"),
]

# texts of which some end their string, or are none at all
SNIPPETS = st.sampled_from(
    [
        *(b"a", b" tok", "\u00fc\u6a21".encode(), b"\\n", b"\\\\", b"\\/", b'\\"', b"\\u00e9", b"\\ud83d\\ude00"),
        *(
            b"\\ud83d",
            b"\\q",
            b"\\u12",
            b"\\",
            b'"',
            b"\t",
            b"\n",
            b"\r",
            b"\n\n",
            b"\x00",
            b"\x7f",
            b"\xff",
            b"}",
            b"{",
        ),
        *(b"usage", b'\\"usage', b'\\"usage\\":null', b'\\"error\\":{}', b'\\"finish_reason\\":\\"stop\\"', b"error"),
        *(b"content", b'","content":"b', b'"},"error":{"message":"no"},"x":{"y":"', b'","finish_reason":"stop","x":"'),
        *(b"[DONE]", b"data: [DONE]", b"\\ndata: [DONE]", b"model", b"x" * 4095, b"x" * 4096, b"x" * 4097),
    ]
)
TEXTS = st.lists(SNIPPETS, max_size=3).map(b"".join)
USAGES = [
    *(counts(1), counts(2), counts(40), b"null", b"{}", b"3", b'{"input_tokens":3,"output_tokens":4}'),
    *(b'{"prompt_tokens":01}', b'{"prompt_tokens":9999999999999}', b'{"prompt_tokens":99999999999999}'),
    *(b'{"x_tokens":1}', b'{"prompt_tokens":1,"prompt_tokens":2}', b'{"prompt_tokens": 1}', b'{"output_tokens":9}'),
    *(b'{"prompt_tokens":1,"details":{"error":1}}', b'{"total_tokens":7}', b'{"prompt_tokens":1},"model":"tiny"'),
]
TAILS = st.sampled_from(
    [
        *(b"", b"", b" ", b',"usage":null', b',"service":"x"', b',"usage" : null', b',"error":null', b',"error":{}'),
        *(
            b',"x":"y"',
            b',"usage":null,"x":[ 1 ]',
            b',"usage":{"prompt_tokens":1},"usage":null',
            b',"x":{"usage":null}',
        ),
        *(b',"model":"other"', b',"message":{"model":"tiny"}', b',"object":"error"', b',"x":{"usage":null}'),
    ]
) | st.sampled_from(USAGES).map(lambda usage: b',"usage":' + usage)
HEADS = {
    CHAT: b'data: {"id":"1","model":"tiny","choices":[{"index":0,"delta":{"content":"',
    COMPLETIONS: b'data: {"choices":[{"x":{"text":"',
    MESSAGES: b'event: content_block_delta\ndata: {"type":"content_block_delta","index":[{"delta":{"text":"',
    TRANSCRIPTION: b'data: {"choices":[{"delta":{"content": "',
    RESPONSES: b'data: {"type":"response.output_text.delta","items":[{"content":{"delta":"',
    SPEECH: b'data:{"type":"speech.audio.delta","x":[{"x":{"audio":"',
}
OTHERS = st.sampled_from(
    [
        *(
            b": keep-alive\n\n",
            b": keep-alive\r\n\r\n",
            b"\n",
            b"\r\n",
            b"\r",
            b"id: 1\n",
            b"event: x\n",
            b"event: error\n",
        ),
        *(
            DONE,
            b'data: {"choices":[],"usage":%b}\n\n' % counts(3),
            b'data: {"error":{"message":"no"}}\n\n',
            b"da",
            b"\xff",
        ),
        *(b'data: {"type":"message_stop"}\n\n', b'data: {"choices":[{"finish_reason":"stop"}]}\n\n', b"event: error\n"),
        *(b': "content":"a",\n\n', b'data: {"content":\ndata: "a","usage":null,"b":{"content":"a"}}\n\n'),
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[Dialect, bytes]:
    """Mostly events that are like the one before, and are not."""
    dialect = draw(st.sampled_from(list(HEADS)))
    ending, tail, parts = draw(st.sampled_from([b"\n", b"\r\n", b"\r"])), draw(TAILS), []
    for kind in draw(st.lists(st.sampled_from("tttttuvo"), max_size=9)):
        tail = draw(TAILS) if kind == "v" else tail
        like = b',"usage":' + draw(st.sampled_from(USAGES[:3])) if kind == "u" else tail
        head, others = HEADS[dialect].replace(b"\n", ending), draw(OTHERS) if kind == "o" else None
        parts.append(head + draw(TEXTS) + b'"}}]' + like + b"}" + 2 * ending if others is None else others)
    return dialect, b"".join(parts)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("options", OPTIONS)
@settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(streams(), st.lists(st.integers(0, 1000), max_size=5))
def test_any_stream_reads_as_if_each_event_were_the_first(
    options: dict[str, Any], drawn: tuple[Dialect, bytes], cuts: list[int]
) -> None:
    dialect, stream = drawn
    at = sorted(cut % (len(stream) + 1) for cut in cuts)
    pieces = [stream[begin:end] for begin, end in zip([0, *at], [*at, None], strict=True)]

    alone = read_each_alone(stream, dialect, **options)

    assert read(pieces, dialect, **options) == alone
    assert read([stream], dialect, **options) == alone


# what is recognised


def template(event: bytes, shown: bytes | None = None, *, has_usage: bool = False) -> EventTemplate | None:
    assert CHAT.stream is not None
    return EventTemplate.of(event, event if shown is None else shown, CHAT.stream.content, has_usage=has_usage)


@pytest.mark.parametrize("ending", [pytest.param(end, id=repr(end)) for end in (b"\n", b"\r\n", b"\r")])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"a", id="letter"),
        pytest.param("\u00fc \u6a21\U0001f600\x7f".encode(), id="beyond-ascii"),
        pytest.param(b'\\n\\"\\\\\\/\\b\\f\\r\\t', id="escapes"),
        pytest.param(b"\\u00e9\\uD7ff\\uE000 \\uabCD", id="numbers-of-signs"),
        pytest.param(b'{\\"error\\": [1]}', id="json"),
        pytest.param(b"x" * 4096, id="as-long-as-can-be"),
    ],
)
def test_event_with_another_text_is_recognised(text: bytes, ending: bytes) -> None:
    known, event = template(chunk(b"Hi", ending=ending)), chunk(text, ending=ending)

    assert known is not None
    assert known.match(event, 0) == (len(event), None, None)
    assert known.match(b"123" + event + event, 3) == (3 + len(event), None, None)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(chunk(b""), id="no-text"),
        pytest.param(chunk(b"a\tb"), id="control-character"),
        pytest.param(chunk(b"\\q"), id="no-escape"),
        pytest.param(chunk(b"\\u12"), id="half-of-an-escape"),
        pytest.param(chunk(b"\\ud83d"), id="half-of-a-pair"),
        pytest.param(chunk(b"\\uDEAD"), id="other-half-of-a-pair"),
        pytest.param(chunk(b"\\"), id="backslash-alone"),
        pytest.param(chunk(b'a","x":"b'), id="two-texts"),
        pytest.param(chunk(b"a\n\nb"), id="two-events"),
        pytest.param(chunk(b"x" * 4097), id="too-long"),
        pytest.param(chunk(b"a", index=1), id="another-beginning"),
        pytest.param(chunk(b"a", b',"x":1'), id="another-end"),
        pytest.param(chunk(b"a")[:-1], id="not-whole"),
        pytest.param(chunk(b"a", ending=b"\r\n"), id="another-end-of-lines"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_event_that_differs_in_more_is_not_recognised(event: bytes) -> None:
    known = template(chunk(b"Hi"))

    assert known is not None
    assert known.match(event, 0) is None


@pytest.mark.parametrize(
    ("usage", "is_recognised"),
    [
        pytest.param(counts(0), True, id="zero"),
        pytest.param(counts(1 << 39), True, id="large"),
        pytest.param(b'{"total_tokens":7}', True, id="one-count"),
        pytest.param(b'{"input_tokens":1,"output_tokens":2}', True, id="other-counts"),
        pytest.param(b'{"total_tokens":07}', False, id="no-number"),
        pytest.param(b'{"total_tokens":-7}', False, id="negative"),
        pytest.param(b'{"total_tokens":7.5}', False, id="fraction"),
        pytest.param(b'{"total_tokens":12345678901234}', False, id="larger"),
        pytest.param(b'{"total_tokens":7,}', False, id="no-json"),
        pytest.param(b'{"total_tokens": 7}', False, id="spaces"),
        pytest.param(b'{"error":7}', False, id="another-name"),
        pytest.param(b'{"total_tokens":{"x":7}}', False, id="details"),
        pytest.param(b"{}", False, id="empty"),
        pytest.param(b"null", False, id="null"),
        pytest.param(counts(1)[:-1] + b',"x_tokens":1' * 400 + b"}", False, id="too-many"),
    ],
)
def test_event_with_other_counts_is_recognised(usage: bytes, is_recognised: bool) -> None:
    known = template(running(b"Hi", 1), has_usage=True)
    event = chunk(b"you", b',"usage":' + usage)

    assert known is not None
    assert known.match(event, 0) == ((len(event), usage, None) if is_recognised else None)
    assert known.match(event[:-1], 0) is None
    assert known.match(event[:-1] + b"x", 0) is None


@pytest.mark.parametrize(
    ("event", "shown", "has_usage"),
    [
        pytest.param(chunk(b""), None, False, id="no-text"),
        pytest.param(chunk(b'a","content":"b'), None, False, id="two-texts"),
        pytest.param(b'data: {"content":"a":"b"}\n\n', None, False, id="text-as-a-name"),
        pytest.param(b'data: {"content":"a"', None, False, id="text-at-the-end"),
        pytest.param(chunk(b"a\tb"), None, False, id="text-that-is-none"),
        pytest.param(chunk(b"a" * 4096), None, False, id="too-large"),
        pytest.param(chunk(b"a"), b"", False, id="not-shown"),
        pytest.param(chunk(b"a"), chunk(b"b"), False, id="shown-with-another-text"),
        pytest.param(chunk(b"a"), chunk(b'a","content":"a'), False, id="shown-twice"),
        pytest.param(chunk(b"a"), None, True, id="usage-elsewhere"),
        pytest.param(chunk(b"a", b',"x":{"usage":%b}' % counts(1)), None, True, id="usage-of-something-else"),
        pytest.param(chunk(b"a", b',"usage":%b,"x":1' % counts(1)), None, True, id="usage-in-the-middle"),
        pytest.param(chunk(b"a", b',"usage":{"seconds":1}'), None, True, id="usage-in-seconds"),
        pytest.param(running(b"a", 1), running(b"a", 1).replace(b"tiny", b"big"), True, id="usage-is-shown"),
    ],
)
def test_nothing_is_learned_where_others_may_look_the_same(event: bytes, shown: bytes | None, has_usage: bool) -> None:
    assert template(event, shown, has_usage=has_usage) is None


def test_what_clients_read_of_an_event_is_read_of_those_that_are_like_it() -> None:
    shown = chunk(b"Hi").replace(b"tiny", b"large")
    known, known_with_usage = template(running(b"Hi", 1), shown, has_usage=True), template(chunk(b"Hi"), shown)
    event, plain = running(b"you", 22), chunk(b"you")

    given = chunk(b"you").replace(b"tiny", b"large")
    assert known is not None
    assert known_with_usage is not None
    assert known.match(event, 0) == (len(event), counts(22), given)
    assert known_with_usage.match(plain, 0) == (len(plain), None, given)


# what the scanner makes of it

KEEP_ALIVE = b": keep-alive\n\n"


@pytest.mark.parametrize("tail", [b"", b',"usage":null', b',"usage":' + counts(1)], ids=["none", "null", "running"])
def test_piece_of_which_nothing_is_to_be_changed_is_returned_itself(tail: bytes) -> None:
    scanner = EventScanner(CHAT)
    pieces = [chunk(b"a", tail), chunk(b"b", tail), chunk(b"c", tail) * 3, KEEP_ALIVE, chunk(b"d", tail), DONE]

    assert all(scanner.feed(piece) is piece for piece in pieces)
    assert (scanner.produced, scanner.events) == (6, 7)


def called_while(scanner: EventScanner, piece: bytes) -> Counter[str]:
    """The functions of libraries that are called while a piece is read."""
    called: Counter[str] = Counter()

    def note(frame: FrameType, kind: str, function: Any) -> None:
        called.update([function.__name__] if kind == "c_call" else [])

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        scanner.feed(piece)
    finally:
        sys.setprofile(before)
    return called


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("tail", "decoded"),
    [
        pytest.param(b"", 0, id="none"),
        pytest.param(b',"usage":null', 0, id="null"),
        pytest.param(b',"usage":' + counts(1), 1, id="running"),
    ],
)
def test_event_that_is_like_one_before_is_neither_searched_nor_decoded(
    options: dict[str, Any], tail: bytes, decoded: int
) -> None:
    """A running usage is read all the same, unless it stays where something else is to be changed."""
    scanner = EventScanner(CHAT, **options)
    is_read_whole = decoded and "renaming" in options and "strip_running" not in options

    first, second = called_while(scanner, chunk(b"a", tail)), called_while(scanner, chunk(b"b", tail))

    assert first["findall"] > 0
    assert is_read_whole or (second["search"], second["findall"], second["decode"]) == (0, 0, decoded)


def unlike(number: int) -> bytes:
    """An event that is like no other, as those are that models pad at random."""
    return chunk(b"a", b',"padding":%d' % number)


def learned_from(scanner: EventScanner, events: Iterable[bytes]) -> list[bool]:
    """From which events is learned what others may be like."""
    return [called_while(scanner, event)["finditer"] > 0 for event in events]


def recognised_of(scanner: EventScanner, events: Iterable[bytes]) -> list[bool]:
    return [called_while(scanner, event)["findall"] == 0 for event in events]


def test_stream_whose_events_are_never_alike_is_seldom_learned_from() -> None:
    learned = learned_from(EventScanner(CHAT), map(unlike, range(176)))

    assert [number for number, has_learned in enumerate(learned) if has_learned] == [*range(16), *range(16, 176, 16)]


def test_events_that_begin_to_be_alike_are_recognised_after_a_few_of_them() -> None:
    scanner = EventScanner(CHAT)
    learned_from(scanner, map(unlike, range(40)))

    recognised = recognised_of(scanner, [chunk(b"a")] * 80)

    assert recognised == [False] * 9 + [True] * 71
    assert recognised_of(scanner, [chunk(b"a", b',"x":1')] * 3) == [False, True, True]


def test_of_two_choices_in_turn_one_is_recognised() -> None:
    choices = [chunk(b"a").replace(b'"index":0', b'"index":%d' % (number % 2)) for number in range(80)]
    scanner = EventScanner(CHAT)

    recognised = recognised_of(scanner, choices)

    assert not any(recognised[:16])
    assert recognised[20:] in ([True, False] * 30, [False, True] * 30)
    assert (scanner.produced, scanner.events) == (80, 80)


def test_piece_with_an_event_of_each_kind_is_read_in_their_order() -> None:
    null = b',"usage":null'
    events = [chunk(b"a", null), chunk(b"b", null), KEEP_ALIVE, chunk(b"c", null), chunk(b"d", b',"x":1'), chunk(b"e")]
    events += [chunk(b"f"), b'data: {"choices":[],"usage":%b}\n\n' % counts(6), DONE, b": half"]

    given = [chunk(b"a"), chunk(b"b"), KEEP_ALIVE, chunk(b"c"), chunk(b"d", b',"x":1'), chunk(b"e"), chunk(b"f"), DONE]
    assert read([b"".join(events)], CHAT, strip=True) == Reading(
        b"".join([*given, b": half"]), TokenUsage(5, 6, 11), produced=6, events=8, is_cut=False
    )


def test_running_usage_of_events_that_are_alike_is_known_at_any_moment() -> None:
    scanner = EventScanner(CHAT, strip=True, strip_running=True)
    seen = []

    for produced in range(1, 5):
        assert scanner.feed(running(b"a", produced)) == chunk(b"a")
        seen.append(scanner.usage)

    assert seen == [TokenUsage(5, produced, 5 + produced) for produced in range(1, 5)]


def test_usage_of_an_event_that_is_the_same_again_counts_again() -> None:
    total = b'data: {"choices":[],"usage":%b}\n\n' % counts(3)

    assert read([running(b"a", 1), total, running(b"b", 1)], CHAT).usage == TokenUsage(5, 1, 6)


def test_counts_that_nobody_believes_replace_no_usage() -> None:
    stream = [running(b"a", 1), running(b"b", 2), running(b"c", 1 << 41)]

    assert read([*stream, DONE], CHAT, strip=True, strip_running=True) == Reading(
        chunk(b"a") + chunk(b"b") + chunk(b"c") + DONE, TokenUsage(5, 2, 7), produced=3, events=4, is_cut=False
    )


def test_ends_suspects_and_comments_that_are_alike_read_as_if_each_were_the_first() -> None:
    end = chunk(b"a").replace(b'"finish_reason":null', b'"finish_reason":"stop"')
    empty_error = chunk(b"a", b',"error":{}')
    comment = b': "content":"a",\n\n'
    for event in (end, empty_error, comment):
        stream = [event, event.replace(b'"a"', b'"b"')]

        assert read(stream, CHAT) == read_each_alone(b"".join(stream), CHAT)


def test_error_that_only_its_text_makes_is_one_behind_events_that_look_the_same() -> None:
    """What cannot be read at all, where an event might be an error, is taken for one."""
    event = chunk(b"a", b',"error":{}')

    assert read([event, event, chunk(b"\xff", b',"error":{}')], CHAT).error is not None


def test_events_are_recognised_behind_one_that_came_in_halves() -> None:
    scanner, last = EventScanner(CHAT), chunk(b"c")

    given = [scanner.feed(piece) for piece in (chunk(b"a")[:9], chunk(b"a")[9:] + chunk(b"b") + chunk(b"c")[:9])]

    assert given == [b"", chunk(b"a") + chunk(b"b")]
    assert scanner.feed(last[9:]) == last
    assert scanner.feed(last) is last
    assert scanner.produced == 4


def test_what_looks_like_an_event_within_an_oversized_one_is_none() -> None:
    event = chunk(b"b")
    large = b"data: " + b"x" * MAXIMUM_EVENT_BYTES + event[:3]
    scanner = EventScanner(CHAT)

    scanner.feed(chunk(b"a"))
    given = [scanner.feed(large), scanner.feed(event[3:]), scanner.feed(chunk(b"c"))]

    assert b"".join(given) == large[:-3] + event + chunk(b"c")
    assert (scanner.produced, scanner.events) == (2, 2)


@pytest.mark.parametrize("before", [[], [chunk(b"a")], [chunk(b"a"), chunk(b"b")]], ids=["first", "second", "third"])
def test_comment_that_keeps_a_connection_alive_passes_at_once_and_says_nothing(before: list[bytes]) -> None:
    scanner = EventScanner(CHAT, strip=True)
    for piece in before:
        scanner.feed(piece)

    assert scanner.feed(KEEP_ALIVE) is KEEP_ALIVE
    assert (scanner.events, scanner.produced, scanner.usage) == (len(before), len(before), None)
    assert scanner.is_cut
    assert scanner.feed(DONE) + scanner.feed(KEEP_ALIVE) + scanner.flush() == DONE + KEEP_ALIVE
    assert not scanner.is_cut
