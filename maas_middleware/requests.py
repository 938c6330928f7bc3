"""The JSON body of an inference request: decoded at the top level once, judged, and encoded again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from .errors import InvalidRequest

_DATA_URL = re.compile(rb'"data:[^"]*"')
_BYTES_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 512
_DEFAULT_OUTPUT_TOKENS = 512
_MAXIMUM_KEYS = 1000
# decoding takes about a microsecond a key, and in a large body there may be millions
_LARGE_BYTES = 1 << 20
_MAXIMUM_LARGE_KEYS = 250_000
_AFTER_KEYS = (b":", b" ", b"\t", b"\r", b"\n")
_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]  # a cap times a count fits into the integers of any ledger

_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


class _Known(msgspec.Struct):
    """The fields that decide about a request, with the types that they must have."""

    model: str | None = None
    stream: bool | None = None
    stream_options: dict[str, msgspec.Raw] | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    max_output_tokens: _Count | None = None
    n: _Count | None = None
    best_of: _Count | None = None


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """What a request's body asks for.

    Attributes:
        fields: the top level, one value a key, each value the client's own bytes.
        encoded: the body that carries exactly these fields.
        model: None where the body names none.
        include_usage: whether the client itself asked for usage in a stream.
        output_tokens: the most it may generate: the largest cap it names, times `n` or `best_of`; None without a cap.
    """

    fields: Mapping[str, msgspec.Raw]
    encoded: bytes
    model: str | None
    stream: bool
    include_usage: bool
    output_tokens: int | None

    @classmethod
    def parse(cls, body: bytes) -> InferenceRequest:
        """Decode and judge a body.

        Raises:
            InvalidRequest: `invalid_json` for what is no JSON object, `invalid_value` for a field that has a wrong type
                or is out of range.
        """
        if len(body) > _LARGE_BYTES and sum(body.count(b'"' + mark) for mark in _AFTER_KEYS) > _MAXIMUM_LARGE_KEYS:
            raise InvalidRequest("The request body has too many keys", code="invalid_json")
        try:
            if not body.isascii():
                body.decode()  # msgspec does not look into the text of values that it leaves raw
            fields = _decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise InvalidRequest("The request body is not a JSON object", code="invalid_json") from None
        _refuse_look_alikes(fields)
        return cls._judge(fields)

    @classmethod
    def _judge(cls, fields: Mapping[str, msgspec.Raw]) -> InferenceRequest:
        known = _known(fields)
        include_usage = (known.stream_options or {}).get("include_usage")
        caps = [cap for name in _CAPS if (cap := getattr(known, name)) is not None]
        counts = [known.n or 1, known.best_of or 1]
        return cls(
            fields=fields,
            encoded=_encode(fields),
            model=known.model,
            stream=known.stream is True,
            include_usage=include_usage is not None and _value("stream_options", include_usage, bool | None) is True,
            output_tokens=max(caps) * max(counts) if caps else None,
        )

    def naming(self, model: str) -> InferenceRequest:
        """The same request for the server that knows the model by another name, without a `request_id`.

        vLLM takes a body's `request_id` as the key of the running request, so it must not be the client's.
        """
        if self.model == model and "request_id" not in self.fields:
            return self
        fields = {key: value for key, value in self.fields.items() if key != "request_id"}
        return self._judge({**fields, "model": msgspec.Raw(_encode(model))})

    def asking_for_usage(self) -> InferenceRequest:
        """The same request with `stream_options.include_usage`, its other stream options kept.

        Only `continuous_usage_stats` is not: it has no effect where the client did not ask for usage.
        """
        options = dict(_known(self.fields).stream_options or {})
        options.pop("continuous_usage_stats", None)
        options["include_usage"] = msgspec.Raw(b"true")
        return self._judge({**self.fields, "stream_options": msgspec.Raw(_encode(options))})

    @property
    def prompt_tokens(self) -> int:
        """An estimate from the size of the prompt: 4 bytes a token, 512 tokens for an image given as a data URL."""
        size, images = 0, 0
        for name in ("messages", "prompt", "tools"):
            if (raw := self.fields.get(name)) is not None:
                urls = _DATA_URL.findall(value := bytes(raw))
                size += len(value) - sum(map(len, urls))
                images += len(urls)
        return -(-size // _BYTES_PER_TOKEN) + images * _TOKENS_PER_IMAGE

    @property
    def estimated_tokens(self) -> int:
        """Prompt and output together; an output without a cap is taken for 512 tokens."""
        return self.prompt_tokens + (_DEFAULT_OUTPUT_TOKENS if self.output_tokens is None else self.output_tokens)


def _refuse_look_alikes(fields: Mapping[str, msgspec.Raw]) -> None:
    if len(fields) > _MAXIMUM_KEYS:
        raise InvalidRequest("The request body has too many keys", code="invalid_json")
    for name in fields:
        # servers that match names without case would read another value than was judged
        if name not in _TYPES and name.casefold() in _TYPES:
            raise InvalidRequest(f"`{name}` has to be written `{name.casefold()}`", code="invalid_value", param=name)


def _known(fields: Mapping[str, msgspec.Raw]) -> _Known:
    values: dict[str, Any] = {}
    for name in _Known.__struct_fields__:
        if (raw := fields.get(name)) is not None:
            values[name] = _value(name, raw, _TYPES[name])
    return _Known(**values)


def _value(name: str, raw: msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError):
        raise InvalidRequest(f"`{name}` has an invalid value", code="invalid_value", param=name) from None


_TYPES = {field.name: field.type for field in msgspec.structs.fields(_Known)}
