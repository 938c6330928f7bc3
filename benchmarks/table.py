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
    """One thing in one setting: a value in each round, and its ratio to what it is compared with, if anything."""

    values: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def add(self, value: float, compared: float | None) -> None:
        self.values.append(value)
        if compared:
            self.ratios.append(value / compared)

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def ratio(self) -> float | None:
        """The median of the ratios, each within its round: what slows a whole round falls out."""
        return median(self.ratios) if self.ratios else None


@dataclass(frozen=True, slots=True)
class Goal:
    """What all cells of a row have to stay below: microseconds, or a ratio."""

    unit: str
    below: float

    def __str__(self) -> str:
        return f"< {self.below:g} {self.unit}"

    def is_met(self, cells: Sequence[Cell]) -> bool:
        return all(_is_below(cell.median if self.unit == "us" else cell.ratio, self.below) for cell in cells)


class Table:
    """Rows of what was measured by settings; a cell may be missing.

    Args:
        title: tells what is measured, and what a ratio is to.
        goals: by the names of rows.
        notes: printed below.
        unit: what a record calls a value.
    """

    def __init__(
        self,
        title: str,
        settings: Sequence[str],
        goals: dict[str, Goal],
        notes: Sequence[str] = (),
        unit: str = "microseconds",
    ) -> None:
        self._title = title
        self._settings = settings
        self._goals = goals
        self._notes = notes
        self._unit = unit
        self._rows: dict[str, dict[str, Cell]] = {}

    def add(self, name: str, setting: str, value: float, compared: float | None) -> None:
        self._rows.setdefault(name, {}).setdefault(setting, Cell()).add(value, compared)

    def __str__(self) -> str:
        lines = [[self._title, *self._settings, "goal"]]
        for name, cells in self._rows.items():
            lines.append([name, *(_told(cells.get(setting)) for setting in self._settings), self._outcome(name)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        if not self._goals:
            widths, lines = widths[:-1], [line[:-1] for line in lines]
        rows = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
        return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:], *self._notes]) + "\n"

    def records(self) -> Iterator[dict[str, Any]]:
        """One for each cell."""
        for name, cells in self._rows.items():
            goal = self._goals.get(name)
            for setting in self._settings:
                if (cell := cells.get(setting)) is None:
                    continue
                yield {
                    "name": name,
                    "setting": setting,
                    self._unit: round(cell.median, 2),
                    "ratio": cell.ratio and round(cell.ratio, 3),
                    "rounds": len(cell.values),
                    "goal": goal and str(goal),
                    "is_met": goal and goal.is_met([cell]),
                }

    def _outcome(self, name: str) -> str:
        goal = self._goals.get(name)
        if goal is None:
            return ""
        return f"{goal}: {'met' if goal.is_met(list(self._rows[name].values())) else 'missed'}"


def _told(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.median:,.1f}" + ("" if cell.ratio is None else f"  x{cell.ratio:,.2f}")


def _is_below(value: float | None, bound: float) -> bool:
    return value is not None and value < bound


def versions(*distributions: str) -> dict[str, str]:
    """Of Python, of ours, and of what else the numbers depend on."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("maas-middleware", *distributions)},
    }
