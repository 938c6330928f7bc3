"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

import zlib

import msgspec
from starlette.responses import JSONResponse

from ._answers import Call, Stream, Whole
from ._words import MAXIMUM_MODEL_LENGTH, Message, spelled, spoken, words

_VOCABULARY = 32_000


class Tokenize(msgspec.Struct, kw_only=True):
    """The body of `/tokenize`: a prompt, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] = []

    def answer(self, _call: Call) -> Whole | Stream:
        """A number for each word."""
        text = spoken(self.messages) if self.prompt is None else self.prompt
        tokens = [zlib.crc32(word.strip().encode()) % _VOCABULARY for word in words(text)]
        return Whole(JSONResponse({"count": len(tokens), "max_model_len": MAXIMUM_MODEL_LENGTH, "tokens": tokens}))


class Detokenize(msgspec.Struct, kw_only=True):
    """The body of `/detokenize`."""

    model: str | None = None
    tokens: list[int]

    def answer(self, _call: Call) -> Whole | Stream:
        """A word for each token: its number."""
        return Whole(JSONResponse({"prompt": spelled(self.tokens)}))
