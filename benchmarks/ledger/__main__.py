"""The command."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from ..arguments import positive
from ..table import versions
from . import memory, redis
from .server import running_redis


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the JSON where it is wanted."""
    parser = argparse.ArgumentParser(prog="benchmarks.ledger", description="What the ledgers cost.")
    parser.add_argument("--rounds", type=positive, help="how often everything is measured in turn (20)")
    parser.add_argument("--quick", action="store_true", help="little of everything: numbers that mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (2 if options.quick else 20)
    calls = 64 if options.quick else 1024
    numbers = (1, 100, 1_000) if options.quick else (1, 1_000, 100_000)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without ending the server
    with running_redis() as (url, redis_server):
        known = {**versions("limits", "redis"), "redis-server": redis_server}
        sys.stdout.write(f"{', '.join(f'{name} {version}' for name, version in known.items())}\n\n")
        tables = {"memory": asyncio.run(memory.measure(numbers, rounds, calls))}
        sys.stdout.write(f"{tables['memory']}\n")
        tables["redis"] = asyncio.run(redis.measure(url, rounds, max(64, calls // 4)))
        sys.stdout.write(f"{tables['redis']}")
    if options.json:
        results = {name: list(table.records()) for name, table in tables.items()}
        options.json.write_text(json.dumps({"versions": known, "rounds": rounds, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
