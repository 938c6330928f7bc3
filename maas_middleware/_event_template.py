"""What the events of one stream have in common: mostly everything but a piece of text, and what was used so far."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAXIMUM_BYTES = 4096  # of what is kept of an event, and of a text

# a part of a JSON string that any reader takes: no half of a surrogate pair
_TEXT = re.compile(
    rb'(?!")[^"\\\x00-\x1f]*+'
    rb'(?:\\(?:["\\/bfnrt]|u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]|[dD][0-7])[0-9a-fA-F]{2})[^"\\\x00-\x1f]*+)*+'
)
_COUNT = rb'"[a-z]+_tokens":(?:0|[1-9]\d{0,12})'
_COUNTS = re.compile(rb"\{" + _COUNT + rb"(?:," + _COUNT + rb")*+\}")
_TOLD_LAST = re.compile(rb'(.*"usage":)' + _COUNTS.pattern + rb"(\}(?:\r\n\r\n|\n\n|\r\r))", re.DOTALL)


@dataclass(frozen=True, slots=True)
class EventTemplate:
    """An event that others of its stream are like, except for a JSON text and for the counts of its usage.

    Patterns that begin with a quote or a line find the same in all of them, and so does reading them as JSON: in a text
    both are escaped, and the names of counts are names of nothing else.

    Attributes:
        before: what is in front of the text.
        after: what is behind it, up to the usage.
        end: what is behind the usage; None where `after` is all there is.
        given: what clients read in place of all that is in front of the text, and of all that is behind it; None where
            they read the event as it is.
    """

    before: bytes
    after: bytes
    end: bytes | None
    given: tuple[bytes, bytes] | None

    @classmethod
    def of(cls, event: bytes, given: bytes, content: re.Pattern[bytes], *, has_usage: bool) -> EventTemplate | None:
        """Learn from an event that is surely no error, and from what clients read of it.

        Returns:
            None where others may look like it and be read otherwise.
        """
        own = _parts(event, content)
        shown = own if given is event else _parts(given, content)
        if own is None or shown is None or shown[1] != own[1]:
            return None
        before, _, after = own
        shown_parts = None if given is event else (shown[0], shown[2])
        if not has_usage:
            return cls(before, after, None, shown_parts)
        told = _TOLD_LAST.fullmatch(after)
        if told is None or (shown_parts is not None and b'"usage"' in given):
            return None
        return cls(before, told[1], told[2], shown_parts)

    def match(self, piece: bytes, start: int) -> tuple[int, bytes | None, bytes | None] | None:
        """Look for an event like this one at a place in a piece of the stream.

        Returns:
            Where it ends, its usage as it is written, and what clients read in its place, where they do not read the
            event itself; None where another event is there, or none that is whole.
        """
        if not piece.startswith(self.before, start):
            return None
        begin = start + len(self.before)
        text = _TEXT.match(piece, begin, begin + _MAXIMUM_BYTES)
        if text is None or not piece.startswith(self.after, end := text.end()):
            return None
        end += len(self.after)
        usage = None
        if self.end is not None:
            counts = _COUNTS.match(piece, end, end + _MAXIMUM_BYTES)
            if counts is None or not piece.startswith(self.end, counts.end()):
                return None
            end, usage = counts.end() + len(self.end), counts[0]
        return end, usage, None if self.given is None else text[0].join(self.given)


def _parts(event: bytes, content: re.Pattern[bytes]) -> tuple[bytes, bytes, bytes] | None:
    """What is in front of the only text of an event, the text, and what is behind it."""
    begins = [found.start(1) for found in content.finditer(event)]
    text = _TEXT.match(event, begins[0]) if len(begins) == 1 and len(event) <= _MAXIMUM_BYTES else None
    if text is None or not event.startswith((b'",', b'"}'), text.end()):
        return None
    return event[: text.start()], text[0], event[text.end() :]
