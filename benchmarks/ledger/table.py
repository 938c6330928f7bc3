"""What was measured, as a table and as JSON."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median
from typing import Any


@dataclass
class Cell:
    """One thing in one setting: microseconds a call, and beside each what it is compared with."""

    microseconds: list[float] = field(default_factory=list)
    compared: list[float] = field(default_factory=list)

    def add(self, microseconds: float, compared: float) -> None:
        self.microseconds.append(microseconds)
        self.compared.append(compared)

    @property
    def median(self) -> float:
        return median(self.microseconds)

    @property
    def ratio(self) -> float:
        """The median of the ratios, each within its round: what slows a whole round falls out."""
        return median(mine / other for mine, other in zip(self.microseconds, self.compared, strict=True))


@dataclass(frozen=True, slots=True)
class Goal:
    """What all cells of a row have to stay below: microseconds, or a ratio."""

    unit: str
    below: float

    def __str__(self) -> str:
        return f"< {self.below:g} {self.unit}"

    def is_met(self, cells: Sequence[Cell]) -> bool:
        return all((cell.median if self.unit == "us" else cell.ratio) < self.below for cell in cells)


class Table:
    """Rows of what was measured by settings.

    Args:
        title: tells what a ratio is to.
        goals: by the names of rows.
        notes: printed below.
    """

    def __init__(self, title: str, settings: Sequence[str], goals: dict[str, Goal], notes: Sequence[str] = ()) -> None:
        self._title = title
        self._settings = settings
        self._goals = goals
        self._notes = notes
        self._rows: dict[str, dict[str, Cell]] = {}

    def add(self, name: str, setting: str, microseconds: float, compared: float) -> None:
        self._rows.setdefault(name, {}).setdefault(setting, Cell()).add(microseconds, compared)

    def __str__(self) -> str:
        lines = [[self._title, *self._settings, "goal"]]
        for name, cells in self._rows.items():
            told = [f"{cells[setting].median:,.1f}  x{cells[setting].ratio:,.2f}" for setting in self._settings]
            lines.append([name, *told, self._outcome(name)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
        return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:], *self._notes]) + "\n"

    def records(self) -> Iterator[dict[str, Any]]:
        """One for each cell."""
        for name, cells in self._rows.items():
            goal = self._goals.get(name)
            for setting in self._settings:
                cell = cells[setting]
                yield {
                    "name": name,
                    "setting": setting,
                    "microseconds": round(cell.median, 2),
                    "ratio": round(cell.ratio, 3),
                    "rounds": len(cell.microseconds),
                    "goal": goal and str(goal),
                    "is_met": goal and goal.is_met([cell]),
                }

    def _outcome(self, name: str) -> str:
        goal = self._goals.get(name)
        if goal is None:
            return ""
        return f"{goal}: {'met' if goal.is_met(list(self._rows[name].values())) else 'missed'}"


def versions(redis_server: str | None) -> dict[str, str | None]:
    """Of everything that the numbers depend on; that of the server comes from whoever runs it."""
    names = ("maas-middleware", "limits", "redis")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "redis-server": redis_server,
    }
