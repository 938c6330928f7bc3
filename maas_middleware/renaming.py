"""One name for a model: what its server calls it is not what users call it."""

from __future__ import annotations

import re

import msgspec

from .catalogue import Model

_encode = msgspec.json.Encoder().encode


class Renaming:
    """Puts a model's id where an answer carries the name that only its server knows.

    `None` as the model, or one that has the same name on its server, changes nothing.
    """

    def __init__(self, model: Model | None) -> None:
        self._pattern: re.Pattern[bytes] | None = None
        if model is not None and model.upstream_model != model.id:
            # inside of JSON text the quotes would be escaped, so that nothing that a model says is changed
            self._pattern = re.compile(rb'("model"\s*:\s*)' + re.escape(_encode(model.upstream_model)))
            self._id = _encode(model.id)

    def __bool__(self) -> bool:
        return self._pattern is not None

    def __call__(self, document: bytes) -> bytes:
        if self._pattern is None:
            return document
        return self._pattern.sub(lambda found: found[1] + self._id, document)
