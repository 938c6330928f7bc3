"""What is done to each side."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from .wire import Stream


class Scenario(Struct, frozen=True, kw_only=True):
    """So many connections, each of which asks again as soon as it has its answer.

    Attributes:
        stream: what each asks for; None is a single answer.
        seconds: how long it is asked again, or how long held streams are looked at.
        ramp: seconds over which the connections begin.
        is_held: each opens one stream, which is looked at and then left: for memory.
        is_slow: little of each answer is read at a time.
    """

    name: str
    connections: int
    stream: Stream | None = None
    seconds: float = 1.0
    ramp: float = 0.0
    is_held: bool = False
    is_slow: bool = False


REQUESTS = tuple(Scenario(name=f"{count} connection{'s'[: count > 1]}", connections=count) for count in (1, 16, 64))
UNPACED = Scenario(name="64 unpaced streams", connections=64, stream=Stream(100))
FIRST_BYTE = Scenario(name="1 stream", connections=1, stream=Stream(100))
PACED = Scenario(name="64 paced streams", connections=64, stream=Stream(25, every=20), ramp=0.5)
CROWD = Scenario(
    name="1,000 paced streams",
    connections=1000,
    stream=Stream(1000, every=200),
    seconds=3,
    ramp=2,
    is_held=True,
)
SLOW = Scenario(
    name="64 slow readers", connections=64, stream=Stream(2500, size=8000), seconds=3, is_held=True, is_slow=True
)


def shortened(scenario: Scenario) -> Scenario:
    """A tenth of it, for numbers that mean nothing."""
    stream = scenario.stream
    if stream is not None and not scenario.is_held:
        stream = replace(stream, chunks=stream.chunks // 10)
    connections, seconds, ramp = min(16, scenario.connections), scenario.seconds / 10, scenario.ramp / 10
    return replace(scenario, connections=connections, stream=stream, seconds=seconds, ramp=ramp)
