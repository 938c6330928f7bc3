"""What pooling models answer: embeddings, classes, and how well texts fit each other."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Annotated, Any, Literal

import msgspec
from starlette.responses import JSONResponse

from ._answers import Call, RefusedError, Stream, Whole
from ._words import AtLeastOne, spelled, words

_DIMENSIONS = 8


class _Inputs(msgspec.Struct, kw_only=True):
    model: str | None = None
    input: str | Annotated[list[str | int | list[int]], msgspec.Meta(min_length=1)]

    def _listing(self, call: Call, prefix: str, entries: list[dict[str, Any]]) -> Whole:
        return _listing(call, prefix, entries, sum(len(words(text)) for text in self._texts()))

    def _texts(self) -> list[str]:
        items = [self.input] if isinstance(self.input, str) else self.input
        ids = [item for item in items if isinstance(item, int)]
        return [spelled(item) for item in [*([ids] if ids else []), *items] if not isinstance(item, int)]


class Embeddings(_Inputs, kw_only=True):
    """The body of `/v1/embeddings`."""

    encoding_format: Literal["float", "base64"] = "float"

    def answer(self, call: Call) -> Whole | Stream:
        """A vector for each input."""
        vectors = map(_vector, self._texts())
        encoded = map(_base64, vectors) if self.encoding_format == "base64" else vectors
        return self._listing(call, "embd", [{"object": "embedding", "embedding": vector} for vector in encoded])


class Pooling(_Inputs, kw_only=True):
    """The body of `/pooling`."""

    def answer(self, call: Call) -> Whole | Stream:
        """What the model makes of each input."""
        entries = [{"object": "pooling", "data": _vector(text)} for text in self._texts()]
        return self._listing(call, "pool", entries)


class Classify(_Inputs, kw_only=True):
    """The body of `/classify`."""

    def answer(self, call: Call) -> Whole | Stream:
        """The class of each input."""
        return self._listing(call, "classify", [_class(_vector(text)[0]) for text in self._texts()])


class Rerank(msgspec.Struct, kw_only=True):
    """The body of `/rerank`."""

    model: str | None = None
    query: str
    documents: Annotated[list[str], msgspec.Meta(min_length=1)]
    top_n: AtLeastOne | None = None

    def answer(self, call: Call) -> Whole | Stream:
        """The documents, the best first."""
        results = [
            {"index": index, "document": {"text": text}, "relevance_score": _closeness(self.query, text)}
            for index, text in enumerate(self.documents)
        ]
        results.sort(key=_relevance, reverse=True)
        tokens = sum(len(words(self.query)) + len(words(text)) for text in self.documents)
        document = {"id": f"rerank-{call.id}", "model": call.model, "usage": _usage(tokens)}
        return Whole(JSONResponse({**document, "results": results[: self.top_n]}))


class Score(msgspec.Struct, kw_only=True):
    """The body of `/score`."""

    model: str | None = None
    text_1: str | Annotated[list[str], msgspec.Meta(min_length=1)]
    text_2: str | Annotated[list[str], msgspec.Meta(min_length=1)]

    def answer(self, call: Call) -> Whole | Stream:
        """How close the texts of each pair are."""
        pairs = self._pairs()
        entries = [{"object": "score", "score": _closeness(*pair)} for pair in pairs]
        return _listing(call, "score", entries, sum(len(words(text)) for pair in pairs for text in pair))

    def _pairs(self) -> list[tuple[str, str]]:
        left = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        right = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if len(left) not in (1, len(right)):
            raise RefusedError("Input lengths must be either 1:1, 1:N or N:N")
        return list(zip(left * len(right) if len(left) == 1 else left, right, strict=True))


def _listing(call: Call, prefix: str, entries: list[dict[str, Any]], tokens: int) -> Whole:
    head = {"id": f"{prefix}-{call.id}", "object": "list", "created": call.created, "model": call.model}
    data = [{"index": index, **entry} for index, entry in enumerate(entries)]
    return Whole(JSONResponse({**head, "data": data, "usage": {**_usage(tokens), "completion_tokens": 0}}))


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _vector(text: str) -> list[float]:
    # 256ths: what 32 bits hold exactly, so that both encodings say the same
    return [byte / 256 for byte in hashlib.sha256(text.encode()).digest()[:_DIMENSIONS]]


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{_DIMENSIONS}f", *vector)).decode()


def _class(probability: float) -> dict[str, Any]:
    label = "LABEL_1" if probability > 0.5 else "LABEL_0"
    return {"label": label, "probs": [1 - probability, probability], "num_classes": 2}


def _closeness(left: str, right: str) -> float:
    own, other = ({word.strip().lower() for word in words(text)} for text in (left, right))
    return len(own & other) / max(len(own | other), 1)


def _relevance(result: dict[str, Any]) -> float:
    score: float = result["relevance_score"]
    return score
