"""One name for a model: what its server calls it is not what users call it."""

from __future__ import annotations

import re

import msgspec

from .catalogue import Model
from .usage import Fields, json_fields

_encode = msgspec.json.Encoder().encode
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

    def __call__(self, document: bytes, fields: Fields | None = None) -> bytes:
        """Return the document, or another one; what is no JSON object stays as it is.

        Whoever has read its `fields` passes them on.
        """
        if not self.concerns(document):
            return document
        fields = fields or json_fields(document) or {}
        changed = self.changes(fields)
        return _encode(fields | changed) if changed else document

    def concerns(self, text: bytes) -> bool:
        """Whether a name may have to be changed in there."""
        return self._name is not None and b'"model"' in text

    def changes(self, fields: Fields) -> Fields:
        """The fields of an answer that change, as they are to be written."""
        changed = self._name_of(fields)
        for name in _INNER:
            inner = json_fields(fields[name]) if name in fields else None
            if inner is not None and (named := self._name_of(inner)):
                changed[name] = msgspec.Raw(_encode(inner | named))
        return changed

    def message(self, text: str) -> str:
        """What a server says of its model, in whole words."""
        if self._name is None or self._name not in text:
            return text
        return re.sub(rf"(?<![\w/.-]){re.escape(self._name)}(?![\w/-])", lambda _: self._id, text)

    def _name_of(self, fields: Fields) -> Fields:
        is_named = "model" in fields and _text(fields["model"]) == self._name
        return {"model": msgspec.Raw(_encode(self._id))} if is_named else {}


def _text(raw: msgspec.Raw) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
