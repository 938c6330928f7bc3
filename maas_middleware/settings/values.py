"""What the configuration means: the values of the core, and what files hold that it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..catalogue import Model
from ..tiers import Tier
from ..tokens import LifetimePolicy
from .loading import read_secret
from .models import models_from
from .notation import counters_url, store_url
from .reader import Reader
from .sections import Settings
from .tiers import tiers_from
from .tokens import api_key_lifetimes, lifetimes

T = TypeVar("T")


def tiers_in(reader: Reader, settings: Settings) -> tuple[Tier, ...] | None:
    models = None if settings.models is None else {model.id for model in settings.models}
    models = None if models is None or "" in models else models  # what was refused has no id
    return tiers_from(reader, settings.tiers, settings.tiers_file, settings.tier_limits, models)


def inner_api_key_from(reader: Reader, settings: Settings) -> str | None:
    path = settings.inner_api_key_file
    return None if path is None else reader.checked(reader.place("inner_api_key_file"), read_secret, path)


def _read(part: Callable[[Reader, Settings], T], settings: Settings) -> T:
    """A part of settings that were checked before, in which files may have become invalid since."""
    reader = Reader()
    value = part(reader, settings)
    reader.finish()
    return value


def tiers_of(settings: Settings) -> tuple[Tier, ...]:
    """The tiers as they are configured now; `tiers_file` is read.

    Raises:
        ConfigurationError: they cannot be used.
    """
    tiers = _read(tiers_in, settings)
    assert tiers is not None
    return tiers


def models_of(settings: Settings) -> tuple[Model, ...] | None:
    """The models, None where the inner app decides; the files of their credentials are read.

    Raises:
        ConfigurationError: they cannot be used.
    """
    reader = Reader()
    models = models_from(reader, settings.models, None)
    reader.finish()
    return models


def inner_api_key_of(settings: Settings) -> str | None:
    """The credential that the inner app wants, read from its file.

    Raises:
        ConfigurationError: the file cannot be read, or holds none.
    """
    return _read(inner_api_key_from, settings)


def audiences_of(settings: Settings) -> tuple[str, ...]:
    """The names of the models that assertions of a gateway may be made for."""
    return settings.trusted_gateways.audiences or tuple(model.id for model in settings.models or ())


def counters_of(settings: Settings) -> str:
    """The URL of the counters, which may hold a password; `counters_file` is read.

    Raises:
        ConfigurationError: that file cannot be read, or holds no such URL.
    """
    return _read(counters_from, settings)


def store_of(settings: Settings) -> str:
    """The URL of the store, which may hold a password; `store_file` is read.

    Raises:
        ConfigurationError: that file cannot be read, or holds no such URL.
    """
    return _read(store_from, settings)


def counters_from(reader: Reader, settings: Settings) -> str:
    return _url_from(reader, "counters", settings.counters, settings.counters_file, counters_url)


def store_from(reader: Reader, settings: Settings) -> str:
    return _url_from(reader, "store", settings.store, settings.store_file, store_url)


def _url_from(reader: Reader, key: str, url: str, file: str | None, check: Callable[[str], str]) -> str:
    """A URL that may be in a file instead, where it is checked as if it stood there."""
    if file is None:
        return url
    place = reader.place(f"{key}_file")
    if url != "memory://":
        reader.refuse(place, f"cannot be set together with {reader.place(key)}")
    return str(reader.checked(place, lambda path: check(read_secret(path)), file))


def signing_keys_path(settings: Settings) -> Path | None:
    """The file of the signing keys, beside the SQLite file where none is named; None: the key is not kept."""
    if settings.tokens.signing_keys_file is not None:
        return Path(settings.tokens.signing_keys_file)
    kind, _, path = store_of(settings).partition(":///")
    return Path(path).with_suffix(".keys.json") if kind == "sqlite" else None


def issuer_of(settings: Settings) -> str:
    """What minted tokens carry as `iss`."""
    return settings.tokens.issuer or settings.public_url or "maas-middleware"


def lifetimes_of(settings: Settings) -> LifetimePolicy:
    """How long access tokens may live."""
    return lifetimes(settings.tokens)


def api_key_lifetimes_of(settings: Settings) -> LifetimePolicy:
    """How long API keys may live."""
    return api_key_lifetimes(settings.tokens, settings.api_keys)
