"""What is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that is put round an app.

    Attributes:
        wrap: puts it there.
        base: what is there without it, and is taken off.
        has_lifespan: whether it has one, which runs meanwhile.
    """

    name: str
    wrap: Callable[[ASGIApp], ASGIApp]
    base: Callable[[ASGIApp], ASGIApp] = lambda app: app
    has_lifespan: bool = False
