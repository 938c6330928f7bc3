"""The JSON body of an inference request: decoded at the top level once, judged, and encoded again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Protocol

import msgspec

from .errors import InvalidRequest

BYTES_PER_TOKEN = 4
TOKENS_PER_IMAGE = 512
_IMAGE = re.compile(rb'"type"\s*:\s*"(?:image_url|input_image|image)"')
_DATA_URL = re.compile(rb'"data:[^"]*"|"data"\s*:\s*"[^"]*"')
_MAXIMUM_KEYS = 1000
# decoding takes about a microsecond a key, and in a large body there may be millions
_LARGE_BYTES = 1 << 20
_MAXIMUM_LARGE_KEYS = 250_000
_SEVERAL_PROMPTS = re.compile(rb'\s*\[\s*(["\[{])')
_MAXIMUM_PROMPT_MARKS = 500_000
_AFTER_KEYS = (b":", b" ", b"\t", b"\r", b"\n")
_NOTHING = re.compile(rb'null|false|""|\[\s*\]|\{\s*\}')
_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# what a model reads, in all dialects
CONTENT_FIELDS = (
    *("messages", "prompt", "system", "instructions", "input"),
    *("query", "queries", "documents", "items", "text_1", "text_2", "data_1", "data_2", "data"),
)
_PROMPT_FIELDS = frozenset({*CONTENT_FIELDS, "suffix", "tools", "functions"})
# what would be kept by the server under an id that is nobody's: users would read each other's
UNOWNED_FIELDS = ("previous_response_id", "conversation", "background")
# what vLLM reads and is not the user's to say: the key of the running request, who is served first, whose memory is
# read, and how many tokens are in a piece of a stream
_FIELDS_OF_OPERATORS = ("request_id", "priority", "kv_transfer_params", "ec_transfer_params", "stream_interval")
_OTHER_JUDGED_FIELDS = (*UNOWNED_FIELDS, "modalities", "audio")

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]  # a cap times a count fits into the integers of any ledger

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_flag = msgspec.json.Decoder(bool | None).decode
_decode_count = msgspec.json.Decoder(_Count | None).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_anything = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
# the fields that decide about a request, with the types that they must have
_DECODERS: Mapping[str, Callable[[msgspec.Raw], Any]] = {
    "model": msgspec.json.Decoder(str | None).decode,
    "stream": _decode_flag,
    "stream_options": msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode,
    **dict.fromkeys((*_CAPS, "n", "best_of"), _decode_count),
}
_JUDGED = frozenset({*_DECODERS, *_PROMPT_FIELDS, *_OTHER_JUDGED_FIELDS})


class InferenceRequest(Protocol):
    """What a request asks for, in whatever form.

    Attributes:
        model: None where it names none.
        stream: whether the answer is to be an event stream.
        answers: how many answers are to be generated.
        cap: the most tokens that one answer may have; None where it names no cap.
    """

    @property
    def model(self) -> str | None: ...
    @property
    def stream(self) -> bool: ...
    @property
    def answers(self) -> int: ...
    @property
    def cap(self) -> int | None: ...
    @property
    def prompt_tokens(self) -> int:
        """An estimate from the size of what the model is to read."""
        ...


class JSONRequest(msgspec.Struct, frozen=True, dict=True):
    """An `InferenceRequest` that is a JSON object.

    Attributes:
        fields: the top level, one value a key, each value the client's own bytes.
        include_usage: whether the client itself asked for usage at the end of a stream.
        running_usage: whether it asked for usage in every event of it, as vLLM tells it.
        answers: the larger of `n` and `best_of`, times the number of prompts.
        cap: the largest of all caps.
    """

    fields: Mapping[str, msgspec.Raw]
    model: str | None
    stream: bool
    include_usage: bool
    running_usage: bool
    answers: int
    cap: int | None

    @classmethod
    def parse(cls, body: bytes) -> JSONRequest:
        """Decode and judge a body.

        Raises:
            InvalidRequest: `invalid_json` for what is no JSON object, `invalid_value` for a field that has a wrong type
                or is out of range.
        """
        if len(body) > _LARGE_BYTES and _has_too_many_keys(body):
            raise InvalidRequest("The request body has too many keys", code="invalid_json")
        try:
            if not body.isascii():
                body.decode()  # msgspec does not look into the text of values that it leaves raw
            fields = _decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise InvalidRequest("The request body is not a JSON object", code="invalid_json") from None
        _refuse_look_alikes(fields)
        return cls._judge(fields)

    @classmethod
    def _judge(cls, fields: Mapping[str, msgspec.Raw]) -> JSONRequest:
        known = _known(fields)
        options = known.get("stream_options") or {}
        include_usage = _is_true(options, "include_usage")
        caps = [cap for name in _CAPS if (cap := known.get(name)) is not None]
        return cls(
            fields,
            known.get("model"),
            known.get("stream") is True,
            include_usage,
            include_usage and _is_true(options, "continuous_usage_stats"),
            max(known.get("n") or 1, known.get("best_of") or 1) * _prompts(fields.get("prompt")),
            max(caps, default=None),
        )

    @cached_property
    def encoded(self) -> bytes:
        """The body that carries exactly these fields; the same object each time."""
        return _encode(self.fields)

    def capped(self, name: str, cap: int) -> JSONRequest:
        """The same request with a cap in a field of that name."""
        return self._with({**self.fields, name: msgspec.Raw(_encode(cap))}, self.model, cap)

    def naming(self, model: str) -> JSONRequest:
        """The same request for the server that knows the model by another name, without what is not the user's to say.

        These are vLLM's `request_id`, `priority`, `kv_transfer_params`, `ec_transfer_params` and `stream_interval`.
        """
        if self.model == model and self.fields.keys().isdisjoint(_FIELDS_OF_OPERATORS):
            return self
        fields = {**self.fields, "model": msgspec.Raw(_encode(model))}
        for name in _FIELDS_OF_OPERATORS:
            fields.pop(name, None)
        return self._with(fields, model, self.cap)

    def asking_for_usage(self, *, running: bool) -> JSONRequest:
        """The same request with `stream_options.include_usage`, its other stream options kept.

        Args:
            running: whether to ask for usage in every event, which has no effect without `include_usage`.
        """
        given = self.fields.get("stream_options")
        options = {} if given is None else dict(_DECODERS["stream_options"](given) or {})
        options.pop("continuous_usage_stats", None)
        options["include_usage"] = msgspec.Raw(b"true")
        if running or self.running_usage:
            options["continuous_usage_stats"] = msgspec.Raw(b"true")
        fields = {**self.fields, "stream_options": msgspec.Raw(_encode(options))}
        return self._with(fields, self.model, self.cap)

    def _with(self, fields: Mapping[str, msgspec.Raw], model: str | None, cap: int | None) -> JSONRequest:
        asked = self.stream, self.include_usage, self.running_usage, self.answers
        return JSONRequest(fields, model, *asked, cap)

    @property
    def prompt_tokens(self) -> int:
        """4 bytes are taken for a token, and an image for 512 tokens; what is given as a data URL is no text."""
        size, images = 0, 0
        for name in self.fields.keys() & _PROMPT_FIELDS:
            value = bytes(self.fields[name])
            size += len(value)
            if b'"data' in value or b"image" in value:
                urls = _DATA_URL.findall(value)
                size -= sum(map(len, urls))
                images += max(len(urls), len(_IMAGE.findall(value)))
        return -(-size // BYTES_PER_TOKEN) + images * TOKENS_PER_IMAGE

    @property
    def prompt_bytes(self) -> int:
        """The size of what the model is to read: no tokenizer makes more tokens of it."""
        return sum(len(bytes(self.fields[name])) for name in self.fields.keys() & _PROMPT_FIELDS)

    def has(self, name: str) -> bool:
        """Whether a field says anything: it is there, and neither null, false nor empty."""
        return name in self.fields and _NOTHING.fullmatch(bytes(self.fields[name])) is None

    def value(self, name: str) -> Any:
        """A field as JSON data, None where it is absent.

        Raises:
            InvalidRequest: it is nested too deep.
        """
        return _decoded(name, self.fields[name], _decode_anything) if name in self.fields else None


def _has_too_many_keys(body: bytes) -> bool:
    return (
        body.count(b'"') > _MAXIMUM_LARGE_KEYS  # far faster to count, and mostly enough
        and sum(body.count(b'"' + mark) for mark in _AFTER_KEYS) > _MAXIMUM_LARGE_KEYS
    )


def _prompts(raw: msgspec.Raw | None) -> int:
    """How many prompts there are: text is one, so is a list of token ids, and other lists hold several."""
    several = _SEVERAL_PROMPTS.match(bytes(raw)) if raw is not None else None
    if raw is None or several is None:
        return 1
    if bytes(raw).count(several[1]) > _MAXIMUM_PROMPT_MARKS:
        raise InvalidRequest("`prompt` has too many parts", code="invalid_value", param="prompt")
    return len(_decoded("prompt", raw, _decode_list))


def _refuse_look_alikes(fields: Mapping[str, msgspec.Raw]) -> None:
    if len(fields) > _MAXIMUM_KEYS:
        raise InvalidRequest("The request body has too many keys", code="invalid_json")
    for name in fields.keys() - _JUDGED:
        # servers that match names without case would read another value than was judged
        if name.casefold() in _JUDGED:
            raise InvalidRequest(f"`{name}` has to be written `{name.casefold()}`", code="invalid_value", param=name)


def _known(fields: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    try:
        return {name: _DECODERS[name](fields[name]) for name in fields if name in _DECODERS}
    except (msgspec.MsgspecError, RecursionError):
        # in the order of the table it is always the same one that is named
        return {name: _decoded(name, fields[name], decode) for name, decode in _DECODERS.items() if name in fields}


def _decoded(name: str, raw: msgspec.Raw, decode: Callable[[msgspec.Raw], Any]) -> Any:
    try:
        return decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        raise InvalidRequest(f"`{name}` has an invalid value", code="invalid_value", param=name) from None


def _is_true(options: Mapping[str, msgspec.Raw], name: str) -> bool:
    return name in options and _decoded("stream_options", options[name], _decode_flag) is True
