"""Turning what was given into what a schema wants, with all the problems at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import UNSET, UnsetType, inspect
from msgspec.inspect import Metadata, StructType, Type

from .loading import ConfigurationError, Given, Layer, Problem, read_document, variable
from .schema import alternatives, fits, from_text, leaves, pairs, words


class Reader:
    """Reads what was given as the schema wants it, and collects the problems instead of stopping at the first.

    A check in `Meta(extra={"check": function})` returns the value to be used, or raises a ValueError that completes a
    sentence. What cannot be read is replaced by its default, or by no text, and only serves to find further problems:
    call `finish` before anything is used.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._given: Layer = {}

    def refuse(self, place: str, message: str) -> UnsetType:
        self.problems.append(Problem(place.removesuffix(": "), message))
        return UNSET

    def finish(self) -> None:
        """Raise ConfigurationError where there was a problem."""
        if self.problems:
            raise ConfigurationError(self.problems)

    def place(self, path: str) -> str:
        """Where a key was given, or else its path."""
        return self._given[path].place if path in self._given else path

    def has_refused(self, place: str) -> bool:
        """Whether what was given there could not be used at all."""
        return any(problem.place == place.removesuffix(": ") for problem in self.problems)

    def is_sound(self, place: str) -> bool:
        """Whether nothing is wrong there or below."""
        below = (f"{place}.", f"{place}[")
        return not self.has_refused(place) and not any(one.place.startswith(below) for one in self.problems)

    def unique(self, values: Iterable[tuple[str, str]]) -> None:
        """Refuse the second of two equal texts; each comes with its place."""
        first: dict[str, str] = {}
        for place, text in values:
            if text and first.setdefault(text, place) != place:
                self.refuse(place, f"{text} is taken by {first[text]}")

    def checked(self, place: str, check: Callable[[Any], Any], value: Any) -> Any:
        """What the check makes of a value; UNSET where it refuses it."""
        try:
            return check(value)
        except ValueError as error:
            return self.refuse(place, str(error))

    def document(self, place: str, path: str) -> Given | None:
        """The content of a file that is named at a place; None where it cannot be read."""
        content = self.checked(place, read_document, path)
        return None if content is UNSET else Given(f"{Path(path).name}: ", content)

    def environment(self, schema: StructType, environ: Mapping[str, str]) -> Layer:
        """What the environment gives: lists of texts separated by commas, maps and other lists as JSON."""
        layer: Layer = {}
        for path, kind in leaves(schema):
            name = variable(path)
            if name in environ:
                value = self.checked(name, partial(from_text, kind), environ[name].strip())
                layer[path] = Given(name, value)
        return layer

    def keys(self, schema: StructType, given: Given, prefix: str = "") -> Layer:
        """What a file or keywords give. Unknown keys are problems, an empty section is none."""
        if given.value is None:
            return {}
        if not fits(schema, given.value):
            self.refuse(given.place, f"has to be {words(schema)}")
            return {}
        fields = {field.encode_name: field.type for field in schema.fields}
        layer: Layer = {}
        for key, value in pairs(given.value):
            below, kind = given.below(key, value), fields.get(key)
            if kind is None:
                self.refuse(below.place, "is unknown to this version")
            elif isinstance(kind, StructType):
                layer |= self.keys(kind, below, f"{prefix}{key}.")
            else:
                layer[f"{prefix}{key}"] = below
        return layer

    def whole(self, schema: StructType, layer: Layer) -> Any:
        """Make the outermost struct; from now on `place` knows where its keys were given."""
        self._given = layer
        return self._struct(schema, layer)

    def read(self, kind: Type, given: Given) -> Any:
        """Read one value; UNSET where that cannot be."""
        if given.value is UNSET:
            return UNSET
        fitting = next((one for one in alternatives(kind) if fits(one, given.value)), None)
        match fitting:
            case None:
                self.refuse(given.place, f"has to be {words(kind)}")
                return self._struct(kind, {}) if isinstance(kind, StructType) else UNSET  # keeps its place in a list
            case Metadata(type=inner, extra={"check": check}):
                value = self.read(inner, given)
                return UNSET if value is UNSET else self.checked(given.place, check, value)
            case StructType():
                return self._item(fitting, given)
            case inspect.DictType():
                return self._map(fitting, given)
            case inspect.ListType(item_type=inner) | inspect.VarTupleType(item_type=inner):
                return self._list(inner, given)
        return given.value

    def _list(self, kind: Type, given: Given) -> tuple[Any, ...]:
        assert isinstance(given.value, list | tuple)
        items = [self.read(kind, Given(f"{given.place}[{index}]", item)) for index, item in enumerate(given.value)]
        return tuple(item for item in items if item is not UNSET)

    def _map(self, kind: inspect.DictType, given: Given) -> dict[str, Any]:
        found = {}
        for key, value in pairs(given.value):
            below = given.below(key, value)
            found[self.read(kind.key_type, Given(below.place, key))] = self.read(kind.value_type, below)
        return {key: value for key, value in found.items() if UNSET not in (key, value)}

    def _item(self, schema: StructType, given: Given) -> Any:
        layer = self.keys(schema, given)
        for field in schema.fields:
            if field.required and field.encode_name not in layer:
                place = given.below(field.encode_name, UNSET).place
                layer[field.encode_name] = Given(place, self.refuse(place, "is missing"))
        return self._struct(schema, layer)

    def _struct(self, schema: StructType, layer: Layer, prefix: str = "") -> Any:
        values: dict[str, object] = {}
        for field in schema.fields:
            path = prefix + field.encode_name
            value: object = UNSET
            if isinstance(field.type, StructType):
                value = self._struct(field.type, layer, f"{path}.")
            elif path in layer:
                value = self.read(field.type, layer[path])
            if value is not UNSET or field.required:
                values[field.name] = "" if value is UNSET else value
        return schema.cls(**values)
