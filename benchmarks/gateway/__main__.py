"""The command."""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..arguments import positive
from ..table import Table, versions
from .metrics import DIRECT, METRICS, judged
from .running import measured
from .sides import SIDES, Side, nginx_version

_WORDS = {True: "met", False: "missed", None: "not measured"}
_DIRECT_DOES = "the upstream without anything before it, and its own CPU: the most that can be measured"
_NOTES = (
    "One worker each, access logs off, all before one upstream; the load and the upstream have processes of their own.",
    "A ratio is the median of the ratios within the rounds. Every answer was compared with what it has to be.",
    "Memory is measured once: paced streams in a fresh process, slow readers of 20 MB each in one that worked before.",
    "litellm holds 32 streams in both, for it does not begin more within minutes; early is a third of 3 seconds.",
)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the JSON where it is wanted."""
    options = _parser().parse_args(arguments)
    rounds = options.rounds or (2 if options.quick else 5)
    sides = [side for side in SIDES if side.name in (options.only or side.name) and side.is_here()]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a thousand streams are four thousand sockets

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without ending the servers
    results = measured(sides, rounds, options.quick)
    names = [DIRECT, *(side.name for side in sides)]
    base = "nginx" if "nginx" in names else DIRECT
    document = {
        "versions": _versions(sides),
        "rounds": rounds,
        "sides": {DIRECT: _DIRECT_DOES, **{side.name: side.does for side in sides}},
        "left_out": [side.name for side in SIDES if side not in sides],
        "goals": list(judged(results, names)),
    }
    tables = {metric.title: results.table(metric, names[not metric.has_direct :], base) for metric in METRICS}
    sys.stdout.writelines(f"{line}\n" for line in _printed(document, tables))
    if options.json:
        metrics = {title: list(table.records()) for title, table in tables.items()}
        options.json.write_text(json.dumps({**document, "metrics": metrics}, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.gateway", description="What the gateway costs.")
    parser.add_argument("--rounds", type=positive, help="how often everything is measured in turn (5)")
    parser.add_argument("--quick", action="store_true", help="little of everything: numbers that mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    names = [side.name for side in SIDES]
    parser.add_argument("--only", nargs="+", choices=names, help="what to measure, beside the upstream itself")
    return parser


def _versions(sides: Sequence[Side]) -> dict[str, str]:
    of_sides = (name for side in sides for name in side.distributions)
    known = versions("uvicorn", "uvloop", "httptools", "httpx", "starlette", *of_sides)
    return {**known, "nginx": nginx_version()} if any(side.name == "nginx" for side in sides) else known


def _printed(document: dict[str, Any], tables: dict[str, Table]) -> Iterator[str]:
    yield ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    yield ""
    for name, does in document["sides"].items():
        yield f"{name}: {does}"
    if document["left_out"]:
        yield f"left out: {', '.join(document['left_out'])}"
    yield from ("", *_NOTES, "")
    for table in tables.values():
        yield str(table)
    for judgement in document["goals"]:
        reached = "" if judgement["reached"] is None else f" ({judgement['reached']:,.2f})"
        yield f"{judgement['goal']}, {judgement['side']}{reached}: {_WORDS[judgement['is_met']]}"


if __name__ == "__main__":
    main()
