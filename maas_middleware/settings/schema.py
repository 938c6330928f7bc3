"""The kinds of values that a settings struct is made of, as `msgspec.inspect` tells them.

A field that is a struct is a section. A float is a duration, so it may be text. A tuple holds texts, a list mappings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct, inspect, structs
from msgspec.inspect import StructType, Type

_NULL = inspect.NoneType
_KINDS: dict[type[Type], tuple[tuple[type, ...], str]] = {
    inspect.StrType: ((str,), "text"),
    inspect.BoolType: ((bool,), "true or false"),
    inspect.IntType: ((int,), "a whole number"),
    inspect.FloatType: ((str, int, float), "a duration such as 30s or 1h30m"),
    inspect.VarTupleType: ((list, tuple), "a list"),
    inspect.ListType: ((list, tuple), "a list"),
    inspect.DictType: ((Mapping,), "a mapping"),
    inspect.StructType: ((Mapping, Struct), "a mapping"),
    inspect.NoneType: ((type(None),), "null"),
}
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def schema_of(cls: type[Struct]) -> StructType:
    schema = inspect.type_info(cls)
    assert isinstance(schema, StructType)
    return schema


def leaves(schema: StructType, prefix: str = "") -> Iterator[tuple[str, Type]]:
    """Every key with its path, `tokens.audience`, and what it holds."""
    for field in schema.fields:
        path = prefix + field.encode_name
        if isinstance(field.type, StructType):
            yield from leaves(field.type, f"{path}.")
        else:
            yield path, field.type


def pairs(value: object) -> Iterator[tuple[Any, object]]:
    """The keys and values of a mapping or a struct."""
    if isinstance(value, Struct):
        return ((field.encode_name, getattr(value, field.name)) for field in structs.fields(value))
    assert isinstance(value, Mapping)
    return iter(value.items())


def alternatives(kind: Type) -> tuple[Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _plain(kind: Type) -> Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def fits(kind: Type, value: object) -> bool:
    plain = _plain(kind)
    if isinstance(plain, inspect.LiteralType):
        return isinstance(value, str) and value in plain.values
    types, _ = _KINDS[type(plain)]
    return isinstance(value, types) and (not isinstance(value, bool) or bool in types)


def words(kind: Type) -> str:
    """What a value has to be."""
    plain = [_plain(one) for one in alternatives(kind) if not isinstance(one, _NULL)]
    return " or ".join(
        " or ".join(map(str, one.values)) if isinstance(one, inspect.LiteralType) else _KINDS[type(one)][1]
        for one in plain
    )


def _json(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise ValueError("is not valid JSON") from None


def _list(text: str) -> object:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole_number(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        return text


_FROM_TEXT: dict[type[Type], Callable[[str], object]] = {
    inspect.BoolType: lambda text: _BOOLEANS.get(text.lower(), text),
    inspect.IntType: _whole_number,
    inspect.VarTupleType: _list,
    inspect.ListType: _json,
    inspect.DictType: _json,
}


def from_text(kind: Type, text: str) -> object:
    """Read the text of an environment variable; where it is not of the kind it stays text. Empty text may mean null.

    Raises:
        ValueError: it has to be JSON and is none.
    """
    plain = {type(_plain(one)) for one in alternatives(kind)}
    for one in plain & _FROM_TEXT.keys():
        return _FROM_TEXT[one](text)
    return None if not text and _NULL in plain else text
