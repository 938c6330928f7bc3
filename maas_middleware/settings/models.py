"""Models as they are configured, and how they become the ones that are used."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

from ..catalogue import Model
from ..endpoints import RESERVED_SEGMENTS
from .gateways import AssertionKeysFile
from .loading import read_secret
from .notation import Name, NotNegative, Positive, Upstream
from .reader import Reader
from .tiers import ModelLimitsSettings


class ModelSettings(Struct, frozen=True, kw_only=True):
    """A model and its server.

    Attributes:
        id: what requests name.
        name: what people read; default: the id.
        aliases: other names by which requests may call it.
        tiers: the names of the tiers that may use it, or `all`; nobody where it is left out.
        upstreams: base URLs without `/v1`, such as `http://host:8000`; each request goes to the one that has the
            fewest under way. None in a mounted app.
        upstream_model: the name that the server knows it by; default: the id.
        path: the prefix below which requests need not name it; default: `/<id>`.
        api_key_file: holds the credential that its server wants.
        assertion_keys_file: holds the keys that the app behind its upstreams has as `trusted_gateways.keys_file`: the
            first signs what that is told of callers. None where its server is no such app.
        context_length: how many tokens prompt and output may have together; None where it is not known.
        audio_tokens_per_second: what a second of audio is charged where its server reports seconds instead of tokens.
        engine: `vllm` is asked to tell its usage while a stream runs; others might refuse that.
        limits: what all users together may ask of it, because its servers bear no more.
    """

    id: Name
    name: Name | None = None
    aliases: tuple[Name, ...] = ()
    tiers: tuple[str, ...] | Literal["all"] = ()
    upstreams: tuple[Upstream, ...] = ()
    upstream_model: Name | None = None
    path: str | None = None
    api_key_file: str | None = None
    assertion_keys_file: AssertionKeysFile | None = None
    context_length: Positive | None = None
    audio_tokens_per_second: NotNegative = 10
    engine: Literal["vllm"] | None = None
    limits: ModelLimitsSettings = ModelLimitsSettings()


def models_from(
    reader: Reader, models: Sequence[ModelSettings] | None, tiers: Collection[str] | None
) -> tuple[Model, ...] | None:
    """The models to be used, None where the inner app decides. Tiers that are None are not known, and not checked."""
    if models is None:
        return None
    places = [f"{reader.place('models')}[{index}]" for index in range(len(models))]
    reader.unique(_ids_and_aliases(reader, places, models))
    for place, entry in zip(places, models, strict=True):
        _check(reader, place, entry, tiers)
    made = tuple(_model(reader, place, entry) for place, entry in zip(places, models, strict=True))
    paths: dict[str, tuple[str, str]] = {}  # one of each id, for equal ids were refused already
    for place, model in zip(places, made, strict=True):
        paths.setdefault(model.id, (f"{place}.path", model.path))
    reader.unique(paths.values())
    return made


def _ids_and_aliases(
    reader: Reader, places: Sequence[str], models: Sequence[ModelSettings]
) -> Iterator[tuple[str, str]]:
    yield from ((f"{place}.id", entry.id) for place, entry in zip(places, models, strict=True))
    for place, entry in zip(places, models, strict=True):
        if reader.is_sound(f"{place}.aliases"):  # else they are not where they were written
            yield from ((f"{place}.aliases[{index}]", alias) for index, alias in enumerate(entry.aliases))


def _check(reader: Reader, place: str, entry: ModelSettings, tiers: Collection[str] | None) -> None:
    if entry.tiers != "all" and tiers is not None:
        for name in entry.tiers:
            if name not in tiers:
                reader.refuse(f"{place}.tiers", f"there is no tier {name}")
    if reader.is_sound(f"{place}.upstreams"):  # else they are not where they were written
        servers = map(_server, entry.upstreams)
        reader.unique((f"{place}.upstreams[{index}]", server) for index, server in enumerate(servers))
    if entry.id:
        reader.checked(f"{place}.path", _route, _path(entry))


def _server(url: str) -> str:
    parts = urlsplit(url)  # RFC 3986 6.2.2.1 and 6.2.3
    port = ":443" if parts.scheme == "https" else ":80"
    return parts._replace(netloc=parts.netloc.lower().removesuffix(port)).geturl()


def _path(entry: ModelSettings) -> str:
    return f"/{entry.id}" if entry.path is None else entry.path


def _route(path: str) -> str:
    first, *others = path.removeprefix("/").split("/")
    if not path.startswith("/") or not first or not all(others):
        raise ValueError(f"{path} has to start with a slash, and to have none at its end and no two in a row")
    if first in RESERVED_SEGMENTS:
        raise ValueError(f"{path} begins with {first}, which is reserved")
    return path


def _model(reader: Reader, place: str, entry: ModelSettings) -> Model:
    api_key = None
    if entry.api_key_file is not None:
        api_key = reader.checked(f"{place}.api_key_file", read_secret, entry.api_key_file)
    return Model(
        id=entry.id,
        name=entry.name or entry.id,
        aliases=tuple(entry.aliases),
        upstream_model=entry.upstream_model or entry.id,
        path=_path(entry),
        tiers=None if entry.tiers == "all" else frozenset(entry.tiers),
        upstreams=tuple(entry.upstreams),
        api_key=api_key,
        context_length=entry.context_length,
        audio_tokens_per_second=entry.audio_tokens_per_second,
        engine=entry.engine,
        limits=entry.limits.limits(),
    )
