"""One name for a model: what its server calls it is not what users call it."""

from __future__ import annotations

import re

import msgspec

from .catalogue import Model

_encode = msgspec.json.Encoder().encode
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_INNER = ("response", "message")  # what an event of the Responses and the Messages API is about


class Renaming:
    """Puts a model's id where a JSON answer carries the name that only its server knows.

    That is its `model`, and that of its `response` or `message`: what a model says, the arguments of its tool calls
    too, stays as it is. `None` as the model, or one that has the same name on its server, changes nothing.
    """

    def __init__(self, model: Model | None) -> None:
        self._name: str | None = None
        if model is not None and model.upstream_model != model.id:
            self._name, self._id = model.upstream_model, model.id

    def __call__(self, document: bytes) -> bytes:
        """Return the document, or another one; what is no JSON object stays as it is."""
        if self._name is None or b'"model"' not in document:
            return document
        return self._renamed(document, _INNER) or document

    def message(self, text: str) -> str:
        """What a server says of its model, in whole words."""
        if self._name is None or self._name not in text:
            return text
        return re.sub(rf"(?<![\w/.-]){re.escape(self._name)}(?![\w/-])", lambda _: self._id, text)

    def _renamed(self, document: bytes, inner: tuple[str, ...]) -> bytes | None:
        try:
            fields = _objects.decode(document)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        changed = {name: msgspec.Raw(new) for name in inner if (new := self._renamed(fields.get(name, b""), ()))}
        if "model" in fields and _text(fields["model"]) == self._name:
            changed["model"] = msgspec.Raw(_encode(self._id))
        return _encode(fields | changed) if changed else None


def _text(raw: msgspec.Raw) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.MsgspecError:
        return None
