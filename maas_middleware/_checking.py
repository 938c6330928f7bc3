"""What a start would refuse, found before anything is started, and all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from ._counting import ledger_of
from ._mounting import public_endpoints
from ._proxying import missing_upstreams, transport_of
from ._signing import KeptKeys
from ._storing import stores_of
from .catalogue import Catalogue
from .settings import ConfigurationError, Problem, Settings, models_of, store_of

Form = Literal["gateway", "mounted"]


def form_of(settings: Settings) -> Form:
    """What a configuration is for: a gateway has models with upstreams, and an app that this is mounted in has none."""
    return "gateway" if any(model.upstreams for model in settings.models or ()) else "mounted"


def check(settings: Settings) -> None:
    """Look for what the form that it is for would refuse. Nothing is connected, and no file is made.

    Raises:
        ConfigurationError: with all problems.
    """
    parts: list[Callable[[Settings], object]] = [ledger_of, stores_of, KeptKeys]
    if form_of(settings) == "gateway":
        parts.append(transport_of)
    problems = [*_problems_of_the_form(settings), *_problems_of_the_folder(settings)]
    for part in parts:
        try:
            part(settings)
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)


def _problems_of_the_form(settings: Settings) -> Iterator[Problem]:
    if form_of(settings) == "gateway":
        yield from missing_upstreams(settings)
        return
    yield from public_endpoints(settings, Catalogue(models_of(settings)))


def _problems_of_the_folder(settings: Settings) -> Iterator[Problem]:
    kind, _, name = store_of(settings).partition(":///")
    file = Path(name)
    if kind == "sqlite" and not file.parent.is_dir():
        place = "store" if settings.store_file is None else "store_file"
        yield Problem(place, f"there is no folder {file.parent} for {file.name}")
