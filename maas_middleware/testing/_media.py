"""What is heard, spoken and drawn: `/v1/audio/...` and `/v1/images/generations`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import msgspec
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ._answers import DONE, Call, Stream, Whole, data_event, timeline
from ._words import AtLeastOne, Reply, reply, words

_BYTES_PER_SECOND = 16_000
_TOKENS_PER_IMAGE = 16
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="  # a PNG of 1x1
_SILENCE = b"\xff\xfb\x90\x00".ljust(417, b"\0")  # a frame of MPEG-1 layer III: 128 kbit/s, 44.1 kHz, 26 ms


class _File(msgspec.Struct):
    size: int


class Transcription(msgspec.Struct, kw_only=True):
    """The form fields of `/v1/audio/transcriptions`."""

    task: ClassVar[str] = "transcription"
    prefix: ClassVar[str] = "trsc"

    file: _File
    model: str | None = None
    prompt: str = ""
    response_format: Literal["json", "text", "srt"] = "json"
    stream: bool = False

    def answer(self, call: Call) -> Whole | Stream:
        """The text: how long the file is, and what the prompt says."""
        said = reply(f"This is a recording of {self.file.size} bytes.", self.prompt)
        if self.stream:
            return Stream(self._events(call, said))
        return Whole(self._document(said.text), len(said.tokens))

    def _document(self, text: str) -> Response:
        seconds = -(-self.file.size // _BYTES_PER_SECOND)
        if self.response_format == "json":
            return JSONResponse({"text": text, "usage": {"type": "duration", "seconds": seconds}})
        if self.response_format == "text":
            return PlainTextResponse(text)
        end = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return PlainTextResponse(f"1\n00:00:00,000 --> {end},000\n{text}\n\n")

    def _events(self, call: Call, said: Reply) -> Iterator[tuple[int, bytes]]:
        head = {"id": f"{self.prefix}-{call.id}", "object": f"{self.task}.chunk", "created": call.created}

        def chunk(token: str, finish_reason: str | None = None) -> dict[str, Any]:
            choice = {"delta": {"content": token}, "finish_reason": finish_reason, "stop_reason": None}
            return {**head, "model": call.model, "choices": [choice]}

        for position, event in timeline([], said.tokens, chunk, [chunk("", "stop")]):
            yield position, data_event(event)
        yield len(said.tokens), DONE


class Translation(Transcription, kw_only=True):
    """The form fields of `/v1/audio/translations`."""

    task: ClassVar[str] = "translation"
    prefix: ClassVar[str] = "trsl"


class Speech(msgspec.Struct, kw_only=True):
    """The body of `/v1/audio/speech`."""

    input: str
    model: str | None = None

    def answer(self, _call: Call) -> Whole | Stream:
        """Silence, as MP3, for each word."""
        tokens = len(words(self.input))
        return Whole(Response(_SILENCE * tokens, media_type="audio/mpeg"), tokens)


class Images(msgspec.Struct, kw_only=True):
    """The body of `/v1/images/generations`."""

    prompt: str
    model: str | None = None
    n: AtLeastOne | None = None

    def answer(self, call: Call) -> Whole | Stream:
        """As many pictures as were asked for, of one pixel each."""
        count = self.n or 1
        read, drawn = len(words(self.prompt)), count * _TOKENS_PER_IMAGE
        usage = {
            "input_tokens": read,
            "input_tokens_details": {"text_tokens": read, "image_tokens": 0},
            "output_tokens": drawn,
            "total_tokens": read + drawn,
        }
        data = [{"b64_json": _PIXEL}] * count
        return Whole(JSONResponse({"created": call.created, "data": data, "usage": usage}), drawn)
