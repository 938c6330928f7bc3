"""The command."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from starlette.types import ASGIApp

from ..arguments import positive
from ..gateway.wire import Stream
from ..table import Goal, Table, versions
from .driving import Exchange, alive
from .ours import ONION, minted, ours
from .theirs import installed, theirs

BARE = "a bare ASGI app"
_SETTING = "added"
_CHUNKS = 100
_NOTES = (
    "Of the processor, on top of what is wrapped; in the first row, of the bare app alone. A ratio is to that.",
    "Ours, each: an access token that was verified before, one tier, limits on requests and tokens in memory, usage.",
    "Theirs: two limits in memory; on top of a route of Starlette or FastAPI, which are not counted.",
)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the JSON where it is wanted."""
    parser = argparse.ArgumentParser(prog="benchmarks.onion", description="What the middlewares cost.")
    parser.add_argument("--rounds", type=positive, help="how often everything is measured in turn (20)")
    parser.add_argument("--quick", action="store_true", help="little of everything: numbers that mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (2 if options.quick else 20)

    logging.disable(logging.WARNING)  # what is kept by this process alone
    known = versions("starlette", "fastapi", "limits", *installed())
    sys.stdout.write(f"{', '.join(f'{name} {version}' for name, version in known.items())}\n\n")
    with tempfile.TemporaryDirectory() as folder:
        requests, chunks = asyncio.run(measured(Path(folder), rounds, 20 if options.quick else 500))
    sys.stdout.write(f"{requests}\n{chunks}")
    if options.json:
        tables = {"requests": list(requests.records()), "chunks": list(chunks.records())}
        options.json.write_text(json.dumps({"versions": known, "rounds": rounds, **tables}, indent=2) + "\n")


async def measured(folder: Path, rounds: int, calls: int) -> tuple[Table, Table]:
    """What each adds to a request, and to a chunk.

    Args:
        calls: of each in each round, but none for longer than a tenth of a second; a twentieth as many are streams.
    """
    token = minted(folder)
    requests = Table("us a request, ratio to the bare app", [_SETTING], {ONION: Goal("us", 25)})
    chunks = Table("us a chunk, ratio to the bare app", [_SETTING], {ONION: Goal("us", 2)}, _NOTES)
    bare = _Wrapped(token, lambda app: app)
    contenders = [*ours(folder), *theirs()]
    pairs = [(one.name, _Wrapped(token, one.wrap), _Wrapped(token, one.base)) for one in contenders]
    async with AsyncExitStack() as lifespans:
        for one, (_, wrapped, _) in zip(contenders, pairs, strict=True):
            if one.has_lifespan:
                await wrapped.live(lifespans)
        for _ in range(rounds):
            alone = await bare.request(calls), await bare.chunk(calls)
            requests.add(BARE, _SETTING, alone[0], alone[0])
            chunks.add(BARE, _SETTING, alone[1], alone[1])
            for name, wrapped, base in pairs:
                requests.add(name, _SETTING, await wrapped.request(calls) - await base.request(calls), alone[0])
                chunks.add(name, _SETTING, await wrapped.chunk(calls) - await base.chunk(calls), alone[1])
    return requests, chunks


class _Wrapped:
    """Something put round apps that answer at once, and with a short and a long stream."""

    def __init__(self, token: str, wrap: Callable[[ASGIApp], ASGIApp]) -> None:
        exchanges = [Exchange(stream, token) for stream in (None, Stream(1), Stream(1 + _CHUNKS))]
        self._single, self._short, self._long = [(exchange, wrap(exchange.app())) for exchange in exchanges]

    async def live(self, lifespans: AsyncExitStack) -> None:
        for _, app in (self._single, self._short, self._long):
            await lifespans.enter_async_context(alive(app))

    async def request(self, calls: int) -> float:
        exchange, app = self._single
        return await exchange.spent(app, calls)

    async def chunk(self, calls: int) -> float:
        """What is left of a long stream without a short one."""
        short, long = [await exchange.spent(app, max(1, calls // 20)) for exchange, app in (self._short, self._long)]
        return (long - short) / _CHUNKS


if __name__ == "__main__":
    main()
